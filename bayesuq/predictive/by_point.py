"""A predictive point by point: named columns of numbers, for data frames and for what notebooks show."""

from collections.abc import Mapping

from torch import Tensor

from bayesuq.notebook import table

MOST_ROWS = 5  # that a notebook shows

Columns = Mapping[str, Tensor | list[str]]


def named_columns(quantities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of quantities (N, D) by name, the columns (N,): under the name alone where D = 1, else with the column's number.

    Example:
        >>> import torch
        >>> list(named_columns({"mean": torch.zeros(3, 2), "std": torch.ones(3, 2)}))
        ['mean_0', 'std_0', 'mean_1', 'std_1']
    """
    width = next(iter(quantities.values())).shape[1]
    return {
        (name if width == 1 else f"{name}_{column}"): values[:, column]
        for column in range(width)
        for name, values in quantities.items()
    }


def as_html(caption: str, columns: Columns, num_points: int) -> str:
    """The first points of a predictive as an HTML table, and how many more there are."""
    lists = [values.tolist() if isinstance(values, Tensor) else values for values in columns.values()]
    rows = [[str(point), *map(_shown, values)] for point, values in enumerate(zip(*lists, strict=True))]
    more = num_points - len(rows)
    return table(caption, ["", *columns], rows, note=f"{more} more" if more else "")


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
