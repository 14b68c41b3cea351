"""ArviZ's container of draws, built from plain arrays: groups of named variables with named dimensions.

Free of torch, and the same for ArviZ 0.22, 0.23 and 1.x: every group is an `xarray.Dataset`, together they are an
`xarray.DataTree`, which 1.x takes as it is and of which 0.x makes its `InferenceData`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from bayesuq import optional

__all__ = ["Variable", "build", "group", "group_names", "native"]
__dir__ = __all__.copy

IS_ARVIZ_BEFORE_1 = int(version("arviz").split(".")[0]) < 1
SAMPLES = ("chain", "draw")

Array = np.ndarray[Any, np.dtype[Any]]
Container = Any  # arviz.InferenceData on 0.x, xarray.DataTree on 1.x
Attributes = Mapping[str, str | int | float]


@dataclass(frozen=True, eq=False)
class Variable:
    """An array whose dimensions have names.

    Attributes:
        values: The numbers.
        dims: A name for each dimension.
        places: Names of the places along some of them, such as classes.
    """

    values: Array
    dims: tuple[str, ...]
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of_draws(
        cls, values: Array, num_chains: int, dims: tuple[str, ...], places: Mapping[str, Sequence[str]] | None = None
    ) -> "Variable":
        """From S draws (S, ...), the chains one after another, as (chain, draw, ...); `dims` names the rest."""
        shape = (num_chains, len(values) // num_chains, *values.shape[1:])
        return cls(values.reshape(shape), (*SAMPLES, *dims), places or {})


Groups = Mapping[str, Mapping[str, Variable]]


def build(groups: Groups, *, attributes: Attributes) -> Container:
    """The container of these groups.

    Args:
        groups: Variables by the names of groups and variables; groups without any are left out.
        attributes: Of the whole and of each group, text and numbers (netCDF has no truth values: write 0 or 1).

    Returns:
        `arviz.InferenceData` on ArviZ 0.x, `xarray.DataTree` on 1.x, with coordinates 0, 1, 2, ... for all dimensions
        whose places have no names.

    Raises:
        ImportError: ArviZ or xarray cannot be imported.
        ValueError: A variable named as a dimension is, which neither xarray nor netCDF can tell apart.

    Example:
        >>> draws = Variable.of_draws(np.zeros((6, 2)), 3, ("mu_dim_0",))
        >>> build({"posterior": {"mu": draws}}, attributes={})["posterior"]["mu"].shape
        (3, 2, 2)
    """
    known = {
        "inference_library": "bayesuq",
        "inference_library_version": version("bayesuq"),
        "created_at": datetime.now(UTC).isoformat(),
        **attributes,
    }
    datasets = {name: _dataset(name, variables, known) for name, variables in groups.items() if variables}
    tree = optional.xarray.DataTree.from_dict({"/": optional.xarray.Dataset(attrs=known), **datasets})
    return native(tree)


def native(data: Container) -> Container:
    """A container or plain DataTree as the ArviZ that is installed takes it."""
    if IS_ARVIZ_BEFORE_1 and isinstance(data, optional.xarray.DataTree):
        return optional.arviz.from_datatree(data)
    return data


def group_names(data: Container) -> list[str]:
    """Of the groups in a container.

    Raises:
        TypeError: Something else than a container.
    """
    if isinstance(data, optional.xarray.DataTree):
        return list(data.children)
    if not hasattr(data, "groups"):
        raise TypeError(f"`data` must be what `posterior.to_arviz` gives; got {type(data).__name__}.")
    return list(data.groups())


def group(data: Container, name: str) -> Any:
    """A group as an `xarray.Dataset`; an empty one where there is none of that name."""
    if name not in group_names(data):
        return optional.xarray.Dataset()
    found = data[name]
    return found.to_dataset() if isinstance(found, optional.xarray.DataTree) else found


def observed_variable(found: Any, name: str, site: str | None) -> Any:
    """The variable of an observed site in a group of observed data, their replicates or their log likelihoods.

    Args:
        found: The group.
        name: Its name, for errors.
        site: The site; None is the only one there, or `y`.

    Raises:
        ValueError: It is not there; several, and none named.
    """
    names = list(found.data_vars)
    told = ", ".join(repr(one) for one in names)
    if site is None and len(names) > 1 and "y" not in names:
        raise ValueError(f"`data` has several observed sites, {told}: name one, as in `site={names[0]!r}`.")
    wanted = site or (names[0] if len(names) == 1 else "y")
    if wanted not in names:
        kind = "log likelihood" if name == "log_likelihood" else f"group {name}"
        raise ValueError(
            f"`data` has no {kind} of `{wanted}`; call `posterior.to_arviz(x, y)` with the fitted rows."
            + (f" There are {told}." if names else "")
        )
    return found[wanted]


def _without_paths(name: str, variables: Mapping[str, Variable]) -> dict[str, Variable]:
    """The variables with a point for each slash in a name, which xarray and netCDF would take for a group."""
    found = {
        one.replace("/", "."): Variable(held.values, tuple(dim.replace("/", ".") for dim in held.dims), held.places)
        for one, held in variables.items()
    }
    if len(found) < len(variables):
        raise ValueError(f"In the group {name}, names differ by slashes and points alone; rename some of them.")
    return found


def _dataset(name: str, variables: Mapping[str, Variable], attributes: Attributes) -> Any:
    variables = _without_paths(name, variables)
    sizes = {dim: size for one in variables.values() for dim, size in zip(one.dims, one.values.shape, strict=True)}
    places = {dim: names for one in variables.values() for dim, names in one.places.items()}
    clashing = sorted(set(variables) & set(sizes))
    if clashing:
        raise ValueError(
            f"In the group {name}, {', '.join(clashing)} names both a variable and a dimension; rename it."
        )
    return optional.xarray.Dataset(
        {name: (one.dims, one.values) for name, one in variables.items()},
        coords={dim: np.asarray(places[dim]) if dim in places else np.arange(size) for dim, size in sizes.items()},
        attrs=dict(attributes),
    )
