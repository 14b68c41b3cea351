"""The few numbers of a posterior that are worth a picture: those whose chains agree least, or that are least sure.

Free of torch.
"""

from typing import Any

import numpy as np

from bayesuq.evaluation.diagnostics.convergence import convergence, function_values
from bayesuq.evaluation.diagnostics.quantities import entries
from bayesuq.to_arviz.container import SAMPLES, Container, Variable, build, group

__all__ = ["worst_entries"]
__dir__ = __all__.copy

MOST_LOOKED_AT = 200  # of the function's values


def worst_entries(data: Container, number: int = 4) -> Container:
    """A container of single numbers, named as `mu[12]`: values of the function, or weights where none were told.

    Those of largest R-hat, the largest first, where there are chains; of largest spread where draws are independent.
    The sampler's statistics go with them, for plots that mark divergences.

    Args:
        data: As for `convergence`.
        number: How many, at most.

    Raises:
        TypeError: No container.
        ValueError: No draws in it.

    Example:
        >>> mu = Variable.of_draws(np.random.default_rng(0).standard_normal((40, 3)) * [1, 3, 2], 1, ("point",))
        >>> marks = {"independent_draws": 1, "function_values": "posterior/mu"}
        >>> list(worst_entries(build({"posterior": {"mu": mu}}, attributes=marks), number=2)["posterior"].data_vars)
        ['mu[1]', 'mu[2]']
    """
    found = convergence(data, most_entries=MOST_LOOKED_AT)
    values = function_values(data)
    candidates = []
    for quantity in found.quantities[:1] if values is not None else found.quantities:
        variable = values if values is not None else group(data, "posterior")[quantity.name]
        draws, places = entries(variable, MOST_LOOKED_AT)
        told = [_label(quantity.name, _coordinates(variable, place)) for place in places]
        keys = quantity.sd if found.is_independent or np.isnan(quantity.r_hat).all() else quantity.r_hat
        keys = np.where(np.isnan(keys), -np.inf, keys)
        for place, (key, label) in enumerate(zip(keys, told, strict=True)):
            candidates.append((float(key), label, draws[:, :, place]))
    candidates.sort(key=lambda one: -one[0])
    chosen = {label: Variable(draws, SAMPLES) for _, label, draws in candidates[:number]}
    statistics = {
        str(name): Variable(one.values, SAMPLES)
        for name, one in group(data, "sample_stats").data_vars.items()
        if one.dims == SAMPLES
    }
    attributes: dict[str, Any] = {"independent_draws": int(found.is_independent)}
    return build({"posterior": chosen, "sample_stats": statistics}, attributes=attributes)


def _coordinates(variable: Any, place: tuple[int, ...]) -> tuple[str, ...]:
    """Where an entry stands, by the names of the places along its dimensions; where they have none, by number."""
    dims = [dim for dim in variable.dims if dim not in SAMPLES]
    return tuple(str(variable[dim].values[i]) for dim, i in zip(dims, place, strict=True))


def _label(name: str, place: tuple[str, ...]) -> str:
    return f"{name}[{', '.join(place)}]" if place else name
