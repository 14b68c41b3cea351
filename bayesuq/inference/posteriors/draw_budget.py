"""How many draws a predictive of real targets holds: all of them up to a budget, and an even thinning beyond it.

The budget is of numbers, rows times draws times columns. Below it nothing is thinned and no number is another. Above
it draws are halved, of all rows alike, as often as needed while rows come in, so that memory stays within the budget
whatever the draws; the moments are those of all draws (`bayesuq.predictive.thinned`), and a warning says so.
"""

from collections.abc import Iterable, Sequence
from typing import cast

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.maps import RealMaps
from bayesuq.predictive.thinned import ThinnedPredictive, at_all_points

DRAW_BUDGET = 2**28  # numbers that stay held: 1 GiB of float32
CHUNK_BUDGET = 2**26  # of them that one chunk of rows may have at once
FEWEST_HELD = 16  # draws at any row, whatever the rows


class Rows:
    """The predictives of rows, collected in order within the budget."""

    def __init__(self, *, keep_samples: bool) -> None:
        """Of no row; `keep_samples` lifts the budget."""
        self._parts: list[PredictiveDistribution] = []
        self._numbers = 0  # that these hold
        self._halvings = 0
        self._is_bounded = not keep_samples
        self._maps: RealMaps | None = None  # of which the parts are the pixels

    def add(self, part: PredictiveDistribution) -> None:
        """Take further rows, and halve the draws of all where they have become too many."""
        if isinstance(part, RealMaps):
            if self._maps is not None and self._maps.size != part.size:
                raise ValueError(
                    f"Only images of one size are put together; got {tuple(self._maps.size)} and {tuple(part.size)}. "
                    "Predict them batch by batch."
                )
            self._maps, part = part, part.pixels
        if not (self._is_bounded and isinstance(part, RealPredictive)):
            self._parts.append(part)
            return
        held: RealPredictive = part
        for _ in range(self._halvings):
            held = halved(held)
        self._parts.append(held)
        self._numbers += held.shape.numel()
        while held.num_samples > FEWEST_HELD and self._numbers > DRAW_BUDGET:
            self._numbers = 0
            for number, one in enumerate(self._parts):  # one by one, so that the draws let go are let go at once
                held = self._parts[number] = halved(one)
                self._numbers += held.shape.numel()
            self._halvings += 1

    def whole(self) -> PredictiveDistribution | None:
        """All rows as one predictive; None of no row."""
        if not self._parts:
            return None
        parts, self._parts = self._parts, []
        real = [part for part in parts if isinstance(part, RealPredictive)]
        whole = at_all_points(real) if len(real) == len(parts) else type(parts[0]).concatenate(parts)
        if self._halvings:
            tell(whole)
        return whole if self._maps is None else self._maps.with_pixels(cast(RealPredictive, whole))


def mixed_within(parts: Iterable[RealPredictive]) -> RealPredictive:
    """The mixture of predictives at the same rows, in the budget."""
    settled: RealPredictive | None = None
    pending: list[RealPredictive] = []
    draws, numbers = 0, 0  # of those that pend, and in these and what is settled
    for part in parts:
        pending.append(part)
        draws, numbers = draws + part.num_samples, numbers + part.shape.numel()
        if draws >= FEWEST_HELD and numbers > DRAW_BUDGET:
            settled = halved(_mixture(settled, pending))
            pending, draws, numbers = [], 0, settled.shape.numel()
    whole = _mixture(settled, pending)
    if settled is not None:
        tell(whole)
    return whole


def halved(predictive: object) -> ThinnedPredictive:
    """Half of the components, and the moments of all draws."""
    if not isinstance(predictive, RealPredictive):
        raise TypeError(f"Only predictives of real targets are thinned; got {type(predictive).__name__}.")
    return ThinnedPredictive.of(predictive, max(FEWEST_HELD, predictive.num_samples // 2))


def tell(predictive: PredictiveDistribution) -> None:
    """Warn that a predictive holds some of its draws alone."""
    if not isinstance(predictive, ThinnedPredictive):
        return
    points, columns = predictive.shape[1:]
    warn_of_fit(
        f"{predictive.num_draws} draws at {points} rows are more than {DRAW_BUDGET} numbers: {predictive.num_samples} "
        f"of them are held at each row{f' and column of {columns}' if columns > 1 else ''}. The mean and the variances "
        "are of all draws; log scores, quantiles, CRPS and samples are of those held. To have them of all, predict "
        "some rows at a time and pass the batches to `report.evaluate`, or pass `keep_samples=True` if memory has "
        "room for it.",
        UserWarning,
    )


def _mixture(settled: RealPredictive | None, pending: Sequence[RealPredictive]) -> RealPredictive:
    """Of those settled before and the others, which count by their draws; `pending` or `settled` has something."""
    if any(isinstance(part, ThinnedPredictive) for part in pending):
        pending = [ThinnedPredictive.of(part, part.num_samples) for part in pending]
    new = [type(pending[0]).mixture(pending)] if pending else []
    if settled is None:
        return new[0]
    return ThinnedPredictive.mixture([ThinnedPredictive.of(part, part.num_samples) for part in (settled, *new)])
