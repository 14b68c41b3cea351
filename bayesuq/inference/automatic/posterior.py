"""What `regress` and `classify` return: a posterior in the table's own units, with the story of how it was chosen."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from bayesuq.data import Dataset, Standardizer
from bayesuq.inference.posteriors.wrapping import WrappingPosterior
from bayesuq.inference.units import UnitsPosterior


class Candidate(NamedTuple):
    """What became of a method that was tried.

    Attributes:
        name: Of the method.
        score: Mean log density or log probability of the held-out rows, in nats a row of y's own units; None where it
            was not fitted.
        weight: In the mixture, a fraction in [0, 1].
        seconds: Of its fit, pilots included.
        remark: What else is to be said of it.
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
        remarks: How rows were used, and what was recalibrated.
    """

    posterior: UnitsPosterior
    labels: tuple[Any, ...]
    candidates: tuple[Candidate, ...]
    remarks: tuple[str, ...]
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

    def facts(self) -> dict[str, str]:
        """What a notebook shows of it, by name."""
        return {one.name: f"{one.weight:.0%}" for one in self.candidates} | {"device": str(self.device)}


def standard_rows(standardizer: Standardizer, data: Dataset) -> Dataset:
    """Rows in standard units, float32, computed in float64, so that the unit of a column is forgotten."""
    found = standardizer.transform(data)
    y = found.y.float() if found.y.is_floating_point() else found.y
    return Dataset(found.x.to(torch.float32), y, found.weight)
