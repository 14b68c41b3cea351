"""What `regress` and `classify` return: a posterior in the table's own units, with the story of how it was chosen."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, to_tensor
from bayesuq.data import Dataset, Standardizer
from bayesuq.inference.posteriors.prediction import differentiated
from bayesuq.inference.posteriors.wrapping import WrappingPosterior
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.to_arviz.groups import Drawn, Wanted


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

    Attributes:
        posterior: In standard units: the stacked candidates, recalibrated where there were rows for it.
        scaling: Means and standard deviations of inputs and real targets, `x_loc`, `x_scale`, `y_loc` and `y_scale`.
        clip: Standard deviations that inputs are held within.
        labels: Of the classes, in the predictive's order; empty for real targets.
        candidates: What was tried: name, score, weight, seconds and remark of each.
        remarks: How rows were used, and what was recalibrated.
    """

    posterior: Posterior
    scaling: Mapping[str, Tensor]
    clip: float
    labels: tuple[Any, ...]
    candidates: tuple[Candidate, ...]
    remarks: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(Candidate(*one) for one in self.candidates))  # of a file

    @property
    def standardizer(self) -> Standardizer:
        """To and from standard units."""
        return Standardizer(**self.scaling, clip=self.clip)

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

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
        differentiable: bool = False,
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D) in y's own units: see `Posterior.predict`.

        Raises:
            TypeError: A DataLoader, whose batches would be standardised one by one; hand over their inputs.
        """
        if isinstance(x, DataLoader):
            raise TypeError("`x` must be a table of inputs, (N, F); got a DataLoader. Predict its batches one by one.")
        with differentiated(x, differentiable=differentiable):
            found = self.posterior.predict(
                self._inputs(x), num_samples=num_samples, seed=seed, keep_samples=keep_samples
            )
        return self.standardizer.inverse(found)

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: functions of x in its own units."""
        inner = self.posterior.drawn(wanted)
        back = self.standardizer.inverse

        def predict(x: Any) -> PredictiveDistribution:
            return self.predict(x, num_samples=wanted.num_samples, seed=wanted.seed, keep_samples=True)

        def prior_predict(x: Any, *rest: Any) -> PredictiveDistribution:
            return back(inner.prior_predict(self._inputs(x), *rest))

        return replace(inner, method=type(self).__name__, weights={}, predict=predict, prior_predict=prior_predict)

    def _inputs(self, x: Any) -> Tensor:
        return in_standard_units(self.standardizer, x if isinstance(x, Tensor) else to_tensor(x, "x"))


def in_standard_units(standardizer: Standardizer, x: Tensor) -> Tensor:
    """Inputs in standard units, float32, from whatever the table had: computed in float64."""
    return standardizer.inputs(x.double()).float()


def standard_rows(standardizer: Standardizer, data: Dataset) -> Dataset:
    """Rows in standard units, float32, computed in float64, so that the unit of a column is forgotten."""
    found = standardizer.transform(data)
    y = found.y.float() if found.y.is_floating_point() else found.y
    return Dataset(found.x.to(torch.float32), y, found.weight)
