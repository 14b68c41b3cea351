"""One number of a report, or of the comparison of two: its value, how sure it is, and its unit."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self, SupportsFloat

from bayesuq.evaluation.report.tables import interval_cells, value_cells

if TYPE_CHECKING:
    from bayesuq.evaluation.standard_errors.intervals import Interval

COLUMNS = ("measure", "value", "error", "unit")  # name and cells
NORMAL_QUANTILE = 1.959963984540054  # of the standard normal at 0.975
ROUNDING = 1e-9


@dataclass(frozen=True)
class Measure:
    """One number, with its standard error.

    Attributes:
        name: As the function that computes it.
        value: NaN where it is undefined; the remark then says why.
        standard_error: Over test points, see `standard_errors`; None where there is none.
        unit: Such as "nats".
        remark: What must be known to read the value, often empty.
        interval: Where the truth lies with 95 % probability, see `intervals`; None where there is none. It is printed
            in the place of the standard error where that says something else: skewed, at the limit of what can be, or
            0.
        off: Of a coverage, by how many standard errors of chance it is beyond what it is to be, below 0 where it is
            too small; None where that is no more than chance.
    """

    name: str
    value: float
    standard_error: float | None
    unit: str
    remark: str = ""
    interval: tuple[float, float] | None = None
    off: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        value: SupportsFloat,
        standard_error: SupportsFloat | None,
        unit: str,
        remark: str = "",
        interval: "Interval | None" = None,
    ) -> Self:
        """Of tensors: error and interval are left out where they or the value are undefined, as over one row."""
        number, error = float(value), math.nan if standard_error is None else float(standard_error)
        if not (math.isfinite(number) and math.isfinite(error)):
            return cls(name, number, None, unit, remark)
        ends = None if interval is None else (float(interval.lower), float(interval.upper))
        return cls(name, number, error, unit, remark, None if ends is None or any(map(math.isnan, ends)) else ends)

    def __str__(self) -> str:
        return f"{self.name} {' '.join(self.cells)}".rstrip()

    @property
    def cells(self) -> tuple[str, str, str]:
        """Value, standard error or interval, and unit with remark, as printed."""
        if self.interval is not None and self.is_skewed:
            return interval_cells(self.value, self.interval, self.unit, self.remark)
        return value_cells(self.value, self.standard_error, self.unit, self.remark)

    @property
    def is_skewed(self) -> bool:
        """Whether an end of the interval is not where two standard errors end, by half as much again or half of it."""
        if self.interval is None or self.standard_error is None or not math.isfinite(self.value):
            return False
        half = NORMAL_QUANTILE * self.standard_error
        sides = [self.value - self.interval[0], self.interval[1] - self.value]
        nothing = ROUNDING * max(abs(self.value), half)
        return any(side > 1.5 * half + nothing or side < 0.5 * half - nothing for side in sides)

    @property
    def plain(self) -> dict[str, Any]:
        """Plain data for strict JSON: an undefined or infinite value is None, its remark says why."""
        return {
            **asdict(self),
            "value": self.value if math.isfinite(self.value) else None,
            "interval": None if self.interval is None else list(self.interval),
        }

    @property
    def num_errors(self) -> float:
        """The value in standard errors; NaN where there is none, or it is 0."""
        return self.value / self.standard_error if self.standard_error else math.nan
