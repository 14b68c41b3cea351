"""The names of a data frame's columns: what a fit keeps of them, and how later frames are read by them."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from bayesuq.data import Dataset
from bayesuq.inputs import in_columns
from bayesuq.posterior import Posterior

P = ParamSpec("P")
R = TypeVar("R")


def ordered(x: Any, names: tuple[str, ...] | None) -> Any:
    """Inputs, or a Dataset, with the columns of these names in their order: see `bayesuq.inputs.in_columns`."""
    return x.in_columns(names) if isinstance(x, Dataset) else in_columns(x, names)


def keeps_names(fit: Callable[P, R]) -> Callable[P, R]:
    """Make a `fit` read its data sets by the names of their columns, and give these to its posterior.

    Their order is that of the first data set that has names, which are the rows to fit; or of a posterior that the fit
    starts from or stands on. A data set without names is read by its places.
    """

    @wraps(fit)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        given = [*args, *kwargs.values()]
        start = next((one for one in given if isinstance(one, Posterior)), None)
        names = next((one.columns for one in given if isinstance(one, Dataset) and one.columns is not None), None)
        if names is None:
            return fit(*args, **kwargs)

        def read(one: Any) -> Any:
            if not isinstance(one, Dataset):
                return one
            return one.in_columns(names) if start is None else start.by_name(one)

        rows = [read(one) for one in given]
        found = fit(*rows[: len(args)], **dict(zip(kwargs, rows[len(args) :], strict=True)))
        if hasattr(found, "feature_names"):
            order = next(one.columns for one in rows if isinstance(one, Dataset) and one.columns is not None)
            object.__setattr__(found, "feature_names", order)  # of a value that nobody else has seen yet
        return found

    return named
