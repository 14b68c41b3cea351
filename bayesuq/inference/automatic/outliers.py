"""A posterior under which a few rows may be unlike all others.

    (1 - r) p(y* | x, D) + r p(y* + s e | x, D),   e ~ N(0, 1)

To normal noise of 0.2 a row that is 3 off costs 110 nats. With r = 1 / N, one row in as many as were fitted, it costs
some ten, and all others 1 / N nats each. The variance grows by r s^2, so that `outlier_share` bounds r by that, too.

Reference:
    Tukey 1960, A Survey of Sampling from Contaminated Distributions.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.posteriors.prediction import differentiated
from bayesuq.inference.posteriors.wrapping import WrappingPosterior
from bayesuq.posterior import Posterior
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.windows import WindowOptions

MOST_GROWTH = 0.1  # of the variance
MOST_TIMES = 1000
STRANGE = 1000.0  # times the width of nine tenths of the targets


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class OutlierPosterior(WrappingPosterior):
    """A posterior over real targets with normal noise, of whose draws some have a much larger one.

    `to_arviz` is that of the posterior underneath.

    Attributes:
        posterior: As it was fitted.
        share: r, a fraction of the draws, to the next whole one: of a few draws that were asked for it is none. A
            prediction of all repeats its laws, where they are fewer than 1 / r.
        scale: s, in units of y.
    """

    posterior: Posterior
    share: float
    scale: float
    changes_functions: ClassVar[bool] = False

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,  # noqa: ARG002 - the noise is widened of some of the draws
        differentiable: bool = False,
        **windows: Unpack[WindowOptions],
    ) -> GaussianPredictive:
        """The predictive distribution p(y* | x, D) with its outliers: see `Posterior.predict`."""
        with differentiated(x, differentiable=differentiable):
            predictive: Any = self.posterior.predict(
                x, num_samples=num_samples, seed=seed, keep_samples=True, **windows
            )
        if num_samples is None:
            predictive = predictive.repeated([_times(self.share, predictive.num_samples)] * predictive.num_samples)
        return widened(predictive, self.share, self.scale)


def warn_of_strangers(y: Tensor) -> None:
    """Tell of a target that has little in common with the others: a typing error, or a column that asks for logarithms.

    Args:
        y: Targets, (N,) or (N, D).

    Warns:
        UserWarning: One is a thousand times further from the middle of the others than nine tenths of them are wide.
    """
    values = y.double().reshape(len(y), -1)
    ordered = values.sort(dim=0).values
    low, middle, high = (ordered[round(share * (len(y) - 1))] for share in (0.05, 0.5, 0.95))
    far = (values - middle).abs()
    strange = ((high > low) & (far > STRANGE * (high - low))).nonzero().tolist()
    if strange:
        row, column = strange[0]
        ends = f"{float(low[column]):.4g} and {float(high[column]):.4g}"
        warn_of_fit(
            f"{len(strange)} of the targets are unlike the others, the first, {float(values[row, column]):.4g}, is in "
            f"row {row}: nine tenths of them lie between {ends}. Beside it their differences are nothing. Leave it out "
            "if it is an error; if not, predict a logarithm of `y`.",
            UserWarning,
        )


def outlier_share(number: int, variance: float, scale: float) -> float:
    """One row in as many as were fitted, or fewer where these would add more than a tenth to the predicted variance.

    Held-out rows show none that are rarer. Intervals hardly ask for r, but standard deviations do: 1 / N of rows with a
    scale of 1 would treble the one of a table whose noise is 0.05 and whose rows are 60.

    Args:
        number: Rows that were fitted.
        variance: What is predicted, the mean over rows, in units of y squared.
        scale: s, in units of y.

    Example:
        >>> outlier_share(100, 4.0, 1.0), outlier_share(100, 0.01, 1.0)
        (0.01, 0.001)
    """
    return min(1 / number, MOST_GROWTH * variance / scale**2)


def _times(share: float, number: int) -> int:
    """How often so many draws are to stand for one of them to be this share; once for one that is not worth it."""
    needed = math.ceil(1 / (share * number)) if share > 0 else math.inf
    return int(needed) if needed <= MOST_TIMES else 1


def widened(predictive: GaussianPredictive, share: float, scale: float) -> GaussianPredictive:
    """The same components, a share of which, taken evenly, has further noise of this scale."""
    number = predictive.num_samples
    count = round(share * number)
    if count == 0:
        return predictive
    chosen = (torch.arange(count) * number) // count
    others = torch.ones(number, dtype=torch.bool).index_fill(0, chosen, False).nonzero().flatten()
    wide, plain = (predictive.components_at(each.to(predictive.device)) for each in (chosen, others))
    return GaussianPredictive.mixture([plain, wide.with_noise(scale**2)])
