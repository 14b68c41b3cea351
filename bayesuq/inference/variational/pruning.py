"""Hidden units that returned to their prior, and what their signal has become: noise.

A unit is alive where a weight that reads it has a mean beyond one of its own deviations; the others add noise to the
prediction, and nothing else. Few living units are right where little can be predicted, and a poor optimum where much
can: the loss cannot tell which, so that both are said.
"""

from torch import Tensor, nn

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.joint.perceptrons import is_perceptron
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.variational.factorised import VariationalPosterior
from bayesuq.models.bnn import share_tensors

FEW, MOST = 0.1, 0.5  # of the units that are alive, and of the variance that is noise
NUM_ROWS, NUM_DRAWS = 256, 16


def warn_if_pruned(posterior: VariationalPosterior, source: Source, seed: int) -> None:
    """Warn where the noise explains most of the targets' variance while few hidden units are alive."""
    x, y, _ = source.rows
    if not isinstance(x, Tensor) or not is_perceptron(share_tensors(posterior.model.net), x):
        return
    alive, units = living_units(posterior)
    if not units or alive > FEW * units:
        return
    predictive = posterior.predict(x[:NUM_ROWS], num_samples=NUM_DRAWS, seed=seed)
    variance = y.double().var(dim=0).sum()
    share = float(predictive.aleatoric.double().mean(dim=0).sum() / variance) if variance > 0 else 0.0
    if share > MOST:
        warn_of_fit(
            f"{alive} of {units} hidden units are alive, and the noise has {min(share, 1):.0%} of the variance of the "
            "targets: the others returned to their prior. Either there is little to be predicted, or the fit is in a "
            "poor optimum. Hold it against `map_estimate`; take the defaults of `kl_weight` and `estimator`, a "
            "narrower prior, or `ensemble`."
        )


def living_units(posterior: VariationalPosterior) -> tuple[int, int]:
    """How many units that a linear layer reads are alive, and how many there are."""
    layers = [name for name, module in posterior.model.net.named_modules() if isinstance(module, nn.Linear)]
    laws, alive, units = posterior.guide().laws(), 0, 0
    for name in layers[1:]:
        law = laws.get(f"{name}.weight")
        if law is not None:
            told = (law.mean.abs() > law.variance.sqrt()).any(dim=0)
            alive, units = alive + int(told.sum()), units + len(told)
    return alive, units
