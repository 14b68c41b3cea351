"""One number of a report, or of the comparison of two: its value, how sure it is, and its unit."""

import math
from dataclasses import dataclass

from bayesuq.evaluation.tables import value_cells


@dataclass(frozen=True)
class Measure:
    """One number, with its standard error.

    Attributes:
        name: As the function that computes it.
        value: NaN where it is undefined; the remark then says why.
        standard_error: Over test points, see `standard_errors`; None where there is none.
        unit: Such as "nats".
        remark: What must be known to read the value, often empty.
    """

    name: str
    value: float
    standard_error: float | None
    unit: str
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.name} {' '.join(self.cells)}".rstrip()

    @property
    def cells(self) -> tuple[str, str, str]:
        """Value, standard error, and unit with remark, as printed."""
        return value_cells(self.value, self.standard_error, self.unit, self.remark)

    @property
    def num_errors(self) -> float:
        """The value in standard errors; NaN where there is none, or it is 0."""
        return self.value / self.standard_error if self.standard_error else math.nan
