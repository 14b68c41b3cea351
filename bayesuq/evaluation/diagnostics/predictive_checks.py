"""Does the model make data like those observed? Prior and posterior predictive checks; free of torch.

Of each draw's replicate y* of all rows a statistic T(y*) is taken; the observed T(y) should lie among them. A posterior
predictive check sees the data twice, so it can only show what the model cannot do, not that the model is right.

Reference:
    Gelman, Meng & Stern 1996, Posterior Predictive Assessment of Model Fitness via Realized Discrepancies.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bayesuq.evaluation.diagnostics.convergence import function_values
from bayesuq.evaluation.report.tables import aligned
from bayesuq.to_arviz.container import Container, group, observed_variable

__all__ = ["predictive_checks"]
__dir__ = __all__.copy

INTERVAL = (5.0, 95.0)  # percent
MOST_CLASSES = 12
FEWEST_REPLICATES = 20

Array = np.ndarray[Any, np.dtype[np.float64]]
Statistic = Callable[[Array], float]
Replicates = Literal["posterior_predictive", "prior_predictive"]


@dataclass(frozen=True)
class PredictiveCheck:
    """One statistic, of the observed targets and of replicates.

    Attributes:
        name: Of the statistic.
        observed: T(y).
        mean: Of T(y*) over replicates.
        lower: 5 % quantile of T(y*).
        upper: 95 % quantile of T(y*).
        num_replicates: S.
        p_value: Share of replicates whose T is larger, ties counted half: near 0 or 1, the model cannot do it.
    """

    name: str
    observed: float
    mean: float
    lower: float
    upper: float
    num_replicates: int
    p_value: float

    @property
    def is_surprising(self) -> bool:
        """Whether the observed value lies outside the central 90 % of at least twenty replicates."""
        return self.num_replicates >= FEWEST_REPLICATES and not self.lower <= self.observed <= self.upper


class PredictiveChecks(tuple[PredictiveCheck, ...]):
    """Several checks of one model, in a row; printed, a line each."""

    @property
    def surprising(self) -> tuple[PredictiveCheck, ...]:
        """Those that the model fails."""
        return tuple(each for each in self if each.is_surprising)

    def __str__(self) -> str:
        head = ("statistic", "observed", "replicates", "90 % of them", "p")
        rows = [
            (
                each.name,
                f"{each.observed:.4g}",
                f"{each.mean:.4g}",
                f"{each.lower:.4g} to {each.upper:.4g}",
                f"{each.p_value:.2f}",
            )
            for each in self
        ]
        return "\n".join(aligned([head, *rows], right=[1, 2, 3, 4]))


def predictive_checks(
    data: Container,
    *,
    replicates: Replicates = "posterior_predictive",
    statistics: Mapping[str, Statistic] | None = None,
    site: str | None = None,
) -> PredictiveChecks:
    """Checks of some statistics of all targets together.

    Args:
        data: What `posterior.to_arviz(x, y)` gives.
        replicates: Whose replicates.
        statistics: By name, functions from targets (N, ...) to a number; None takes mean, standard deviation, smallest
            and largest of real targets and counts, and the share of each of the most frequent classes of labels.
        site: The observed site, where a program has several.

    Raises:
        TypeError: No container.
        ValueError: No replicates, or nothing observed.

    Example:
        >>> from bayesuq.to_arviz.container import Variable, build
        >>> y = np.random.default_rng(0).standard_normal((101, 50))
        >>> groups = {"posterior_predictive": {"y": Variable.of_draws(y[1:], 1, ("point",))}}
        >>> groups["observed_data"] = {"y": Variable(y[0] + 3, ("point",))}
        >>> [(each.name, each.is_surprising) for each in predictive_checks(build(groups, attributes={}))][:2]
        [('mean', True), ('sd', False)]
    """
    observed = observed_variable(group(data, "observed_data"), "observed_data", site)
    drawn = group(data, replicates)
    if observed.name not in drawn:
        raise ValueError(
            f"`data` needs `{observed.name}` in the groups {replicates} and observed_data; see `posterior.to_arviz`."
        )
    y, values = observed.values, drawn[observed.name].transpose("chain", "draw", ...).values
    samples = values.reshape(-1, *values.shape[2:])
    chosen = statistics or _usual(y, _class_names(data))
    return PredictiveChecks(_check(name, statistic, y, samples) for name, statistic in chosen.items())


def table(checks: "tuple[PredictiveCheck, ...]") -> str:
    """The checks as lines of text, which is what they print: this name goes with version 0.3."""
    warnings.warn("Write `str(checks)`, or print them.", DeprecationWarning, stacklevel=2)
    return str(PredictiveChecks(checks))


def _check(name: str, statistic: Statistic, y: Array, samples: Array) -> PredictiveCheck:
    own = float(statistic(y))
    others = np.array([float(statistic(sample)) for sample in samples])
    lower, upper = np.percentile(others, INTERVAL)
    p_value = float((others > own).mean() + (others == own).mean() / 2)
    return PredictiveCheck(name, own, float(others.mean()), float(lower), float(upper), len(others), p_value)


def _class_names(data: Container) -> Any:
    """Of the labels by number, where one site alone is observed; none of other targets."""
    values = function_values(data) if len(group(data, "observed_data").data_vars) == 1 else None
    return [] if values is None or "class" not in values.coords else values["class"].values


def _usual(y: Array, names: Any) -> dict[str, Statistic]:
    if np.issubdtype(y.dtype, np.floating):
        return {"mean": np.mean, "sd": np.std, "smallest": np.min, "largest": np.max}
    labels, counts = np.unique(y, return_counts=True)
    frequent = sorted(labels[np.argsort(-counts, kind="stable")][:MOST_CLASSES])
    return {f"share of {names[label] if label < len(names) else label}": _share(label) for label in frequent}


def _share(label: Any) -> Statistic:
    return lambda y: float((y == label).mean())
