"""What `regress` and `classify` return: a posterior in the table's own units, with the story of how it was chosen."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.data import Dataset, Standardizer
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.automatic.gaps import Crowd, crowds
from bayesuq.inference.posteriors.units import UnitsPosterior
from bayesuq.inference.posteriors.wrapping import WrappingPosterior
from bayesuq.inputs import Given
from bayesuq.loaders import Loader
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.windows import WindowOptions

MOST_TOLD = 3  # columns


class Candidate(NamedTuple):
    """What became of a method that was tried.

    Attributes:
        name: Of the method.
        score: Mean log density or log probability of the held-out rows, in nats a row of y's own units; None where it
            was not fitted.
        weight: In the mixture, a fraction in [0, 1].
        seconds: Of its fit, pilots included.
        remark: What else is to be said of it: its size, in epochs, iterations or steps, whether time has ended it, and
            whether it was fitted again.
    """

    name: str
    score: float | None
    weight: float
    seconds: float
    remark: str


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AutomaticPosterior(WrappingPosterior):
    """A posterior that takes inputs and gives targets in the units of the table that it was fitted to.

    A data frame is read by the names of its columns, where the fitted table had names.

    Attributes:
        posterior: With its units: the stacked candidates, recalibrated where there were rows for it.
        labels: Of the classes, in the predictive's order; empty for real targets.
        candidates: What was tried.
        remarks: How rows were used, what was recalibrated, and how long all took.
        gaps: The widest intervals of each column without a fitted row, in standard units, (F, K, 2); None in a file of
            before.
        num_rows: That were fitted.
    """

    posterior: UnitsPosterior
    labels: tuple[Any, ...]
    candidates: tuple[Candidate, ...]
    remarks: tuple[str, ...]
    gaps: Tensor | None = None
    num_rows: int = 0
    changes_functions: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(Candidate(*one) for one in self.candidates))  # of a file

    @property
    def explanation(self) -> str:
        """What was tried, what was chosen, and why, in lines for a reader."""
        lines = ["Mean log score of held-out rows, weight in the mixture, and seconds:"]
        for one in sorted(self.candidates, key=lambda candidate: -candidate.weight):
            score = "not fitted" if one.score is None else f"{one.score:.3f}"
            lines.append(f"  {one.name}: {score}, {one.weight:.0%}, {one.seconds:.1f} s. {one.remark}".rstrip(". "))
        return "\n".join([*lines, *self.remarks])

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
        differentiable: bool = False,
        **windows: Unpack[WindowOptions],
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D) at raw inputs, in units of y: see `Posterior.predict`.

        Warns:
            UserWarning: Rows, not of a loader, crowd where no fitted row was, as new rows of the same kind never would.
        """
        self._tell_of_crowds(x)
        return super().predict(
            x,
            num_samples=num_samples,
            seed=seed,
            keep_samples=keep_samples,
            differentiable=differentiable,
            **windows,
        )

    def _tell_of_crowds(self, x: Any) -> None:
        if self.gaps is None or isinstance(x, Dataset) or Loader.of(x) is not None:
            return
        standardizer = self.posterior.standardizer
        rows = standardizer.inputs(x.x if isinstance(x, Given) else x).detach()
        found = crowds(self.gaps, self.num_rows, rows)
        if found:
            told = "; ".join(_told(crowd, len(rows), standardizer) for crowd in found[:MOST_TOLD])
            warn_of_fit(
                f"Predicted rows lie where none of the {self.num_rows} fitted rows does: {told}. Nothing has judged "
                "predictions there, and their intervals may be far too narrow.",
                UserWarning,
            )

    def facts(self) -> dict[str, str]:
        """What a notebook shows of it, by name."""
        return {one.name: f"{one.weight:.0%}" for one in self.candidates} | {"device": str(self.device)}


def _told(crowd: Crowd, number: int, standardizer: Standardizer) -> str:
    """Where so many of the rows are, in the column's own unit."""
    names = standardizer.columns
    name = f"column {crowd.column}" if names is None else repr(names[crowd.column])
    low, high = (f"{standardizer.feature(crowd.column, end):.4g}" for end in (crowd.low, crowd.high))
    if math.isinf(crowd.low):
        return f"{crowd.number} of {number} below {high} in {name}"
    if math.isinf(crowd.high):
        return f"{crowd.number} of {number} above {low} in {name}"
    return f"{crowd.number} of {number} between {low} and {high} in {name}"


def standard_rows(standardizer: Standardizer, data: Dataset) -> Dataset:
    """Rows in standard units, float32, computed in float64, so that the unit of a column is forgotten."""
    found = standardizer.transform(data)
    y = found.y.float() if found.y.is_floating_point() else found.y
    return Dataset(found.x.to(torch.float32), y, found.weight)
