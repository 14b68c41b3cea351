"""Calibration of a posterior's quantiles for one real target, by isotonic regression of levels on held-out data.

With F_n the predictive's distribution function at held-out row n, the levels u_n = F_n(y_n) are uniform where quantiles
are calibrated. Their empirical distribution function R is what isotonic regression gives (it rises already), and R(F)
is calibrated. R is taken through few knots only, at order statistics u_(k) whose expected true level is k / (n + 1):

    R(u_(k)) = k / (n + 1),

so that the quantile of level k / (n + 1) covers new rows with exactly that probability, as conformal prediction does,
and the slopes of R, which multiply the density, are averages over many rows. Where no rows are held out, those of the
fit serve, each as all the others predict it: see `bayesuq.inference.posteriors.leave_one_out`.

Reference:
    Kuleshov, Fenner & Ermon 2018, Accurate Uncertainties for Deep Learning Using Calibrated Regression, algorithm 1.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Unpack, cast, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.columns import keeps_names
from bayesuq.inference.posteriors.leave_one_out import left_out_levels, one_column
from bayesuq.inference.posteriors.prediction import differentiated
from bayesuq.inference.posteriors.wrapping import WrappingPosterior, check_fitted, row_weights
from bayesuq.loaders import Data, in_memory, only_targets
from bayesuq.options import suggests_names
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.empirical import EmpiricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.recalibrated import RecalibratedPredictive
from bayesuq.randomness import resolve_seed
from bayesuq.windows import WindowOptions

__all__ = ["fit"]
__dir__ = __all__.copy

ROUNDING = 1e-9  # of sums of weights
NUM_LEVELS = 199  # of a predictive that is told by its quantiles


@overload
def fit(
    posterior: Posterior,
    data: Data,
    *,
    num_pieces: int = 20,
    leave_one_out: bool = False,
    num_samples: int | None = None,
    seed: int | None = None,
) -> "QuantileCalibratedPosterior": ...


@overload
def fit(
    posterior: RealPredictive,
    data: ArrayLike,
    *,
    num_pieces: int = 20,
    leave_one_out: Literal[False] = False,
    num_samples: None = None,
    seed: int | None = None,
) -> "LevelMap": ...


@suggests_names
@keeps_names
def fit(
    posterior: Posterior | RealPredictive,
    data: Data | ArrayLike,
    *,
    num_pieces: int = 20,
    leave_one_out: bool = False,
    num_samples: int | None = None,
    seed: int | None = None,
) -> "QuantileCalibratedPosterior | LevelMap":
    """Choose the map of levels on held-out rows, or on those of the fit, each left out.

    Args:
        posterior: A fitted posterior over one real target with normal noise, which stays as it is; or a predictive of
            anyone's making at held-out inputs, of one continuous target: draws, quantiles, any mixture.
        data: Held-out rows that no other choice has used, or a DataLoader of them, in order, each counted by its
            weight; of a predictive, the targets at its points. With `leave_one_out` the rows that the posterior was
            fitted to.
        num_pieces: K, straight pieces of the map; at most one more than there are rows.
        leave_one_out: Whether each row is predicted from all the others, of an exact process in closed form, else by
            weighting at least 25 draws. It is right where these are draws of the posterior, as of chains, or nearly; a
            mode that follows its rows, and an ensemble of modes, cannot be asked so.
        num_samples: Draws of the mixture that is calibrated, as for `predict`; predict with as many. A predictive has
            its own.
        seed: Of the draws.

    Returns:
        The same posterior, its predictive's levels mapped; of a predictive, the map, whose `calibrated` reads others
        through it.

    Raises:
        TypeError: A posterior over labels or counts, or with another noise than a normal one; unknown options.
        ValueError: Several target columns; more pieces than the rows allow; held-out targets so far out that their
            levels are 0, 1 or the same: such a predictive must be mended first. With `leave_one_out` fewer than 25
            draws, or other rows than those that a process was fitted to.

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
    if isinstance(posterior, PredictiveDistribution):
        if num_samples is not None or leave_one_out:
            given = "num_samples" if num_samples is not None else "leave_one_out"
            raise ValueError(f"`{given}` is of a posterior; a predictive has its draws already. Leave it out.")
        levels_of = _check_continuous(posterior).cdf(only_targets(data)).flatten()
        return LevelMap(*level_map(levels_of, num_pieces))
    check_fitted(posterior)
    key = resolve_seed(seed)
    rows = in_memory(cast(Data, data), key)
    if leave_one_out:
        found = left_out_levels(posterior, rows, num_samples=num_samples, seed=key)
    else:
        predictive = posterior.predict(rows.x, num_samples=num_samples, seed=key, keep_samples=True)
        found = one_column(predictive).cdf(rows.y).flatten()
    weight = row_weights(rows).to(found.device)
    knots, levels = level_map(found[weight > 0], num_pieces, weight[weight > 0])
    return QuantileCalibratedPosterior(posterior=posterior, knots=knots, levels=levels)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class QuantileCalibratedPosterior(WrappingPosterior):
    """A posterior whose predictive's quantiles are calibrated.

    `to_arviz` is that of the posterior underneath, whose draws have no calibrated levels of their own.

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
        **windows: Unpack[WindowOptions],
    ) -> RecalibratedPredictive:
        """The predictive distribution p(y* | x, D) at calibrated levels, of all draws: see `Posterior.predict`."""
        with differentiated(x, differentiable=differentiable):
            predictive = self.posterior.predict(x, num_samples=num_samples, seed=seed, keep_samples=True, **windows)
        return RecalibratedPredictive(predictive, self.knots, self.levels)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LevelMap:
    """A map of levels, for predictives of one making; from `fit(predictive, y)`.

    Attributes:
        knots: Levels of the predictive, from 0 to 1.
        levels: What they really are.
    """

    knots: tuple[float, ...]
    levels: tuple[float, ...]

    def calibrated(self, predictive: RealPredictive) -> RealPredictive:
        """A predictive of the same making at calibrated levels.

        Of a Gaussian mixture it is a `RecalibratedPredictive`, in closed form. Any other is told by its quantiles at
        199 levels and those of the map, and its spread is not split.

        Raises:
            TypeError: A predictive of labels or counts.
            ValueError: Several target columns.
        """
        base = _check_continuous(predictive)
        if isinstance(base, GaussianPredictive):
            return RecalibratedPredictive(base, self.knots, self.levels)
        wanted = np.union1d(np.arange(1, NUM_LEVELS + 1) / (NUM_LEVELS + 1), self.levels[1:-1])
        read = np.interp(wanted, self.levels, self.knots)
        values = torch.stack([base.quantile(float(level)) for level in read])
        return EmpiricalPredictive.from_quantiles(wanted, values)


def _check_continuous(predictive: PredictiveDistribution) -> RealPredictive:
    """The predictive, where it is one whose levels can be mapped.

    Raises:
        TypeError: Of labels or counts.
        ValueError: Of several target columns.
    """
    if not isinstance(predictive, RealPredictive) or predictive.is_discrete:
        raise TypeError(
            f"Quantiles are calibrated of continuous targets; got {predictive!r}. For labels take "
            "`temperature.fit(predictive, y)`; for counts `bayesuq.conformal` gives intervals."
        )
    if predictive.shape[2] != 1:
        raise ValueError(f"Quantiles are calibrated for one target column; got {predictive.shape[2]}.")
    return predictive


class CoincidingLevelsError(ValueError):
    """Levels of a predictive of which no map can be made."""


def level_map(
    transforms: Tensor, num_pieces: int, weight: Tensor | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots and levels of R from the levels u_n of held-out rows, (N,), in K pieces.

    Args:
        transforms: u_n.
        num_pieces: K.
        weight: What each row counts, (N,), positive, as parts of their sum; None is 1.

    Raises:
        TypeError: Pieces that are not a whole number.
        CoincidingLevelsError: Levels that are 0 or 1 or the same at a knot.
        ValueError: Pieces below 1, or more than rows + 1.
    """
    count = len(transforms)
    if check_count(num_pieces, "num_pieces") > count + 1:
        raise ValueError(
            f"`num_pieces` must be at most {count + 1}, one more than the held-out rows; got {num_pieces}."
        )
    ranks = [round(piece * (count + 1) / num_pieces) for piece in range(1, num_pieces)]
    ordered, order = transforms.double().sort()
    share = torch.ones_like(ordered) if weight is None else (weight / weight.mean()).to(ordered)[order]
    places = torch.searchsorted(share.cumsum(0) * (1 + ROUNDING), torch.tensor(ranks).to(ordered))
    knots = (0.0, *ordered[places].tolist(), 1.0)
    if any(not before < after for before, after in pairwise(knots)):
        raise CoincidingLevelsError(
            "Held-out targets lie so far out that levels of the predictive coincide: knots at "
            f"{', '.join(f'{knot:.3g}' for knot in knots)}. Its noise is far too small; mend that first, or take fewer "
            "pieces, or `bayesuq.conformal`."
        )
    return knots, (0.0, *(rank / (count + 1) for rank in ranks), 1.0)
