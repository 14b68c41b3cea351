"""Whether a search for hyperparameters has ended at an optimum, and what its end says of the data."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.gp.hyperparameters import HyperparameterVector
from bayesuq.inference.gp.marginal_likelihood import Observations
from bayesuq.models.gp.process import FunctionPrior

STOPPED, GAVE_UP = 1, 2  # L-BFGS-B's words for a limit that was reached, and for a line search that found nothing
STEEP = 1e-3  # nats a data point and unit of a hyperparameter: the slope at which giving up is no optimum
NOTHING_LEFT = 1e-3  # of the targets' spread: residuals of a mean that leaves nothing to learn from
ALIKE = 1e-3  # correlation of the two rows that are the most alike, below which rows tell nothing of each other


def warn_of_end(found: Mapping[str, Tensor], vector: HyperparameterVector, max_iterations: int) -> None:
    """Tell of a search that was stopped or gave up.

    Args:
        found: Of the best run: its place, gradient, iterations and status. Checkpoints of earlier versions have the
            largest slope in place of a gradient.
        vector: What was searched over.
        max_iterations: What it was allowed.

    Warns:
        ConvergenceWarning: With the figure.
    """
    slope, number = _largest_slope(found, vector), int(found["num_iterations"])
    status = int(found.get("status", torch.tensor(0)))
    if number >= max_iterations or status == STOPPED:
        warn_of_fit(
            f"The hyperparameters had not converged after {number} iterations: the largest slope is {slope:.1e} nats "
            "a data point. Raise `max_iterations`."
        )
    elif status == GAVE_UP and slope > STEEP:
        warn_of_fit(
            f"L-BFGS gave up after {number} iterations, and not at an optimum: the largest slope is still {slope:.1e} "
            "nats a data point, and rounding hides the way. Raise `num_restarts`, or give the noise scale a prior."
        )


def _largest_slope(found: Mapping[str, Tensor], vector: HyperparameterVector) -> float:
    """In nats a data point, but for what would leave the range of a hyperparameter."""
    if "gradient" not in found:
        return float(found["slope"])
    place, gradient, pairs = found["place"], found["gradient"], vector.bounds()
    low = torch.tensor([-torch.inf if below is None else below for below, _ in pairs], dtype=torch.float64)
    high = torch.tensor([torch.inf if above is None else above for _, above in pairs], dtype=torch.float64)
    is_kept = ((place <= low) & (gradient > 0)) | ((place >= high) & (gradient < 0))
    return float(torch.where(is_kept, 0.0, gradient).abs().max())


def warn_of_nothing_left(prior: FunctionPrior, vector: HyperparameterVector, data: Observations) -> None:
    """Tell of a mean that passes through all targets of an output, so that no spread is left to learn from.

    Warns:
        ConvergenceWarning: With the outputs.
    """
    if data.noise is not None or not any(leaf.name == "log_unknowns.scale" for leaf in vector.leaves):
        return
    with torch.no_grad():
        residual = data.y - prior.mean_at(prior.features(data.x))
    if data.present is not None:
        residual = residual * data.present
    left = residual.abs().amax(dim=1) / vector.units.deviation
    columns = (left < NOTHING_LEFT).nonzero().flatten().tolist()
    if columns:
        warn_of_fit(
            f"The mean alone passes through all targets of column {', '.join(map(str, columns))}, in "
            f"{data.y.shape[1]} rows: they are constant, or as few as the mean has parameters. No noise can be learned "
            "from them, and the uncertainty is no more than the smallest that is looked for. Give the noise a number "
            "or a prior: likelihoods.Normal(scale=...), or take a mean with fewer parameters."
        )


def warn_of_strangers(prior: FunctionPrior, x: Tensor) -> None:
    """Tell of a fitted kernel under which no two rows (N, ...) are alike, so that none tells of new ones.

    Warns:
        ConvergenceWarning: With the figure.
    """
    with torch.no_grad():
        covariance = prior.lazy(prior.features(x)).to_dense()
        covariance = covariance if covariance.ndim == 3 else covariance.unsqueeze(0)
        scale = covariance.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
        alike = covariance.mul_(scale.unsqueeze(1)).mul_(scale.unsqueeze(2)).abs_()
        alike.diagonal(dim1=1, dim2=2).zero_()
        largest = float(alike.amax(dim=(1, 2)).min())
    if len(x) > 1 and largest < ALIKE:
        warn_of_fit(
            f"The kernel finds no two rows alike: the largest correlation of an output's function between two of them "
            f"is {largest:.1e}, so that predictions at new inputs are the mean. Is there anything to learn from these "
            "inputs, and does a kernel of your own start from lengthscales in their units?"
        )
