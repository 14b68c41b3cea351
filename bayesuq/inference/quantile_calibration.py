"""Calibration of a posterior's quantiles for one real target, by isotonic regression of levels on held-out data.

With F_n the predictive's distribution function at held-out row n, the levels u_n = F_n(y_n) are uniform where quantiles
are calibrated. Their empirical distribution function R is what isotonic regression gives (it rises already), and R(F)
is calibrated. R is taken through few knots only, at order statistics u_(k) whose expected true level is k / (n + 1):

    R(u_(k)) = k / (n + 1),

so that the quantile of level k / (n + 1) covers new rows with exactly that probability, as conformal prediction does,
and the slopes of R, which multiply the density, are averages over many rows.

Reference:
    Kuleshov, Fenner & Ermon 2018, Accurate Uncertainties for Deep Learning Using Calibrated Regression, algorithm 1.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.inference.posteriors.prediction import differentiated
from bayesuq.inference.posteriors.wrapping import WrappingPosterior
from bayesuq.inference.training.minibatches import Data, in_memory
from bayesuq.options import suggests_names
from bayesuq.posterior import Posterior
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.recalibrated import RecalibratedPredictive
from bayesuq.randomness import resolve_seed
from bayesuq.to_arviz.groups import Drawn, Wanted

__all__ = ["QuantileCalibratedPosterior", "fit"]
__dir__ = __all__.copy


@suggests_names
def fit(
    posterior: Posterior,
    data: Data,
    *,
    num_pieces: int = 20,
    num_samples: int | None = None,
    seed: int | None = None,
) -> "QuantileCalibratedPosterior":
    """Choose the map of levels on held-out rows.

    Args:
        posterior: A fitted posterior over one real target with normal noise; it stays as it is.
        data: Held-out rows that no other choice has used, or a DataLoader of them, in order.
        num_pieces: K, straight pieces of the map; at most one more than there are rows.
        num_samples: Draws of the mixture that is calibrated, as for `predict`; predict with as many.
        seed: Of the draws.

    Returns:
        The same posterior, its predictive's levels mapped.

    Raises:
        TypeError: A posterior over labels or counts, or with another noise than a normal one; unknown options.
        ValueError: Several target columns; more pieces than the rows allow; held-out targets so far out that their
            levels are 0, 1 or the same: such a predictive must be mended first.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.inference import map_estimate
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=1.0))
        >>> data = Dataset([[0.0], [1.0], [2.0], [3.0]], [0.5, 1.5, 1.0, 3.0])
        >>> calibrated = fit(map_estimate.fit(model, data, num_epochs=3, seed=0), data, num_pieces=2)
        >>> calibrated.levels
        (0.0, 0.4, 1.0)
    """
    key = resolve_seed(seed)
    rows = in_memory(data, key)
    predictive = posterior.predict(rows.x, num_samples=num_samples, seed=key, keep_samples=True)
    if not isinstance(predictive, GaussianPredictive):
        raise TypeError(
            f"Quantiles are calibrated of Gaussian mixtures; got {type(predictive).__name__}. For labels take "
            "`temperature.fit`; for any real target `bayesuq.conformal` gives intervals."
        )
    if predictive.mean.shape[1] != 1:
        raise ValueError(f"Quantiles are calibrated for one target column; got {predictive.mean.shape[1]}.")
    knots, levels = level_map(predictive.cdf(rows.y).flatten(), num_pieces)
    return QuantileCalibratedPosterior(posterior=posterior, knots=knots, levels=levels)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class QuantileCalibratedPosterior(WrappingPosterior):
    """A posterior whose predictive's quantiles are calibrated.

    Attributes:
        posterior: As it was fitted.
        knots: Levels of its predictive, from 0 to 1.
        levels: What they really are.
    """

    posterior: Posterior
    knots: tuple[float, ...]
    levels: tuple[float, ...]

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,  # noqa: ARG002 - levels are calibrated of the whole mixture
        differentiable: bool = False,
    ) -> RecalibratedPredictive:
        """The predictive distribution p(y* | x, D) at calibrated levels, of all draws: see `Posterior.predict`."""
        with differentiated(x, differentiable=differentiable):
            predictive = self.posterior.predict(x, num_samples=num_samples, seed=seed, keep_samples=True)
        return RecalibratedPredictive(predictive, self.knots, self.levels)  # type: ignore[arg-type]

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: that of the posterior, whose draws have no calibrated levels of their own."""
        return replace(self.posterior.drawn(wanted), method=type(self).__name__)


def level_map(transforms: Tensor, num_pieces: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots and levels of R from the levels u_n of held-out rows, (N,), in K pieces.

    Raises:
        TypeError: Pieces that are not a whole number.
        ValueError: Pieces below 1, or more than rows + 1; levels that are 0 or 1 or the same at a knot.
    """
    count = len(transforms)
    if check_count(num_pieces, "num_pieces") > count + 1:
        raise ValueError(
            f"`num_pieces` must be at most {count + 1}, one more than the held-out rows; got {num_pieces}."
        )
    ranks = [round(piece * (count + 1) / num_pieces) for piece in range(1, num_pieces)]
    ordered = transforms.double().sort().values.tolist()
    knots = (0.0, *(ordered[rank - 1] for rank in ranks), 1.0)
    if any(not before < after for before, after in pairwise(knots)):
        raise ValueError(
            "Held-out targets lie so far out that levels of the predictive coincide: knots at "
            f"{', '.join(f'{knot:.3g}' for knot in knots)}. Its noise is far too small; mend that first, or take fewer "
            "pieces, or `bayesuq.conformal`."
        )
    return knots, (0.0, *(rank / (count + 1) for rank in ranks), 1.0)
