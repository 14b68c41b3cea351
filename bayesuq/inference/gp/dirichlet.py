"""Labels as regression: each class gets a column of log concentrations with known noise, and all is exact.

    alpha_nc = 0.01 + [y_n = c],   noise_nc = log(1 / alpha_nc + 1),   y~_nc = log alpha_nc - noise_nc / 2

which matches the log of a Gamma(alpha, 1) variable, of which a Dirichlet draw is made, by a log-normal one. Draws of
the latent functions through a softmax are then draws of class probabilities.

Reference:
    Milios et al. 2018, Dirichlet-based Gaussian Processes for Large-scale Calibrated Classification, eq. (5) and (6).
"""

from torch.nn import functional

from bayesuq.data import Batch
from bayesuq.inference.gp.marginal_likelihood import Observations

CONCENTRATION = 0.01  # of a class that a row does not have; the paper's choice


def dirichlet_observations(rows: Batch, num_classes: int) -> Observations:
    """The columns (C, N) and their noise variances, of labels (N,) from 0 to C - 1.

    Raises:
        ValueError: Weights, which the matched moments have no place for; labels of pixels.
    """
    if rows.weight is not None:
        raise ValueError("Dirichlet classification takes no weights; pass approximation='sparse'.")
    if rows.y.ndim != 1:
        raise ValueError(f"Dirichlet classification takes labels of shape (N,); got {tuple(rows.y.shape)}.")
    concentration = CONCENTRATION + functional.one_hot(rows.y, num_classes).mT.double()
    noise = (1 / concentration).log1p()
    return Observations(rows.x, concentration.log() - 0.5 * noise, noise=noise)
