"""The test rows of which a method is least sure, as a table that a reader can go through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from bayesuq.cli.figures import best_scored, shows_images
from bayesuq.cli.judging import Judged
from bayesuq.data import Split
from bayesuq.evaluation.report.standard_measures import COVERAGE_LEVEL
from bayesuq.evaluation.scores import central_interval
from bayesuq.predictive.base import RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.thinned import at_all_points
from bayesuq.tables.encoding import Columns

NUM_ROWS, MOST_INPUTS = 8, 6
INTERVAL = f"{COVERAGE_LEVEL:.0%} interval".replace("%", " %")


@dataclass(frozen=True)
class Examples:
    """A few rows of a table of text.

    Attributes:
        method: Whose predictions they are: that of the best log score.
        header: Names of the columns.
        rows: In falling order of uncertainty, a cell for each column.
        num_hidden: Inputs that have no column.
    """

    method: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_hidden: int


class _Columns(NamedTuple):
    """What a table says of some rows."""

    names: tuple[str, ...]
    cells: Sequence[tuple[str, ...]]


def least_sure(
    data: str, split: Split, judged: Mapping[str, Judged], columns: Columns | None = None
) -> Examples | None:
    """The test rows of which the method of the best log score is least sure; None of what is no table.

    Args:
        data: Name of the data set.
        split: Its parts.
        judged: What was predicted of its test rows, by method.
        columns: What the columns of a table are; None of a named set, whose inputs have numbers.
    """
    x, y = split.test.x, split.test.y
    if x.ndim != 2 or (split.test.is_labelled and (y.ndim > 1 or shows_images(data, split))):
        return None
    method = best_scored({name: (result.predictive, result.y) for name, result in judged.items()})
    predictive = judged[method].predictive
    unsure = predictive.total if predictive.total.ndim == 1 else predictive.total.sum(dim=1)
    first = unsure.argsort(descending=True)[:NUM_ROWS]
    if isinstance(predictive, CategoricalPredictive):
        said = _of_labels(predictive, y, first)
    elif isinstance(predictive, RealPredictive):
        said = _of_real_targets(predictive, y, first, "y" if columns is None else columns.target.name)
    else:
        return None
    shown = min(x.shape[1], MOST_INPUTS)
    inputs = [f"x[{column}]" for column in range(shown)] if columns is None else columns.features[:shown]
    header = ("Test row", *said.names, *inputs)
    rows = tuple(
        (str(row), *cells, *map(_number, x[row, :shown].tolist()))
        for row, cells in zip(first.tolist(), said.cells, strict=True)
    )
    return Examples(method, header, rows, x.shape[1] - shown)


def _of_labels(predictive: CategoricalPredictive, y: Tensor, rows: Tensor) -> _Columns:
    probability, guess = predictive.mean[rows].max(dim=1)
    parts = (guess, probability, y[rows], predictive.total[rows])
    values = zip(*(part.tolist() for part in parts), strict=True)
    names = predictive.names or [str(label) for label in range(predictive.mean.shape[1])]
    cells = [(names[said], f"{sure:.2f}", names[true], f"{unsure:.2f}") for said, sure, true, unsure in values]
    return _Columns(("predicted", "probability", "true", "entropy (nats)"), cells)


def _of_real_targets(predictive: RealPredictive, y: Tensor, rows: Tensor, target: str) -> _Columns:
    few = at_all_points([predictive.at(slice(row, row + 1)) for row in rows.tolist()])
    columns = range(predictive.shape[2])
    places = [f"[{column}]" for column in columns] if len(columns) > 1 else [""]
    names = [f"{what}{place}" for place in places for what in (target, "predicted", INTERVAL)]
    shown = (y.reshape(len(y), -1)[rows], few.mean, *central_interval(few, COVERAGE_LEVEL))
    parts = [part.tolist() for part in shown]
    cells = [
        tuple(cell for column in columns for cell in _target(*(part[place][column] for part in parts)))
        for place in range(len(rows))
    ]
    return _Columns(tuple(names), cells)


def _target(true: float, mean: float, lower: float, upper: float) -> tuple[str, str, str]:
    return _number(true), _number(mean), f"{_number(lower)} to {_number(upper)}"


def _number(value: float) -> str:
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
