"""Draws that another sampler made, as a posterior: what Pyro's, NumPyro's or CmdStan's chains returned for a model.

    posterior = from_samples(program, mcmc.get_samples(group_by_chain=True), data)      # Pyro, NumPyro
    posterior = from_samples(program, fit.stan_variables(), data)                       # CmdStanPy
    posterior = from_samples(program, arviz.from_netcdf("fit.nc"), data)                # InferenceData or DataTree

The program says what the draws mean: its latents have the names and shapes of the draws, on their own support, and
predictions come from its observed site. What else the samples hold, such as deterministic sites, is left out where rows
are given, and is of no effect on predictions where they are not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesuq.arrays import check_finite
from bayesuq.data import Dataset
from bayesuq.inference.hmc.posterior import HmcPosterior
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.program_call import USUAL
from bayesuq.inference.posteriors.program import ProgramChains, parts_of
from bayesuq.inference.posteriors.program_reader import ProgramRows
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.program import Observed, Program, check_program
from bayesuq.options import shortened

__all__ = ["from_samples"]
__dir__ = __all__.copy

STATISTICS = ("lp", "energy", "acceptance_rate", "n_steps", "tree_depth", "step_size", "diverging")  # ArviZ's names


def from_samples(
    model: BayesianNetwork | Program,
    samples: Any,
    data: Dataset | None = None,
    *,
    observed: Observed = None,
    by_chain: bool | None = None,
) -> HmcPosterior | ProgramChains:
    """The posterior that draws from elsewhere are: it predicts, is evaluated, saved and diagnosed as any other.

    Args:
        model: The Pyro program whose latents were drawn, or a `BayesianNetwork`, whose sites are its parameters.
        samples: Arrays by the sites' names, (C, D, *shape) of C chains of D draws, or (S, *shape); or a container of
            ArviZ's with a group `posterior`.
        data: Rows that were fitted, by which names, shapes and supports are checked; without them the shapes are those
            that the samples have. A network needs none.
        observed: Of a program the observed site, or sites; None takes what it observes in `data`, what the container
            says was observed, or "y".
        by_chain: Whether arrays begin with chains and draws, or with draws alone. None asks the model's shapes.

    Raises:
        TypeError: No program and no network; samples of another kind.
        ValueError: A latent without draws; draws of other shapes or numbers, not finite or outside its support; shapes
            that could be either.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from bayesuq.data import Dataset
        >>> def program(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", len(x)):
        ...         return pyro.sample("y", dist.Normal(slope * x[:, 0], 0.5), obs=y)
        >>> data = Dataset([[0.0], [1.0]], [0.1, 0.9])
        >>> posterior = from_samples(program, {"slope": [0.8, 1.0, 1.2, 1.0]}, data)
        >>> posterior.predict([[2.0]]).mean.round(decimals=3)
        tensor([[2.]], dtype=torch.float64)
    """
    given = _Given.of(samples)
    by_chain = given.by_chain if by_chain is None else by_chain
    if isinstance(model, BayesianNetwork):
        layout = Layout.of(model)
        draws = _draws(given.values, layout.shapes, by_chain)
        _check_support(draws, {name: law.support for name, law in model.laws.items()})
        flat = layout.join({name: value.to(model.device, model.dtype) for name, value in draws.items()})
        return HmcPosterior(
            model=model,
            draws=flat,
            buffers={name: buffer.clone() for name, buffer in model.net.named_buffers()},
            statistics=given.statistics_of(flat.shape[:2]),
            warmup_statistics={},
            inverse_mass=flat.new_zeros(len(flat), 0),
        )
    check_program(model)
    return _of_program(model, given, data, observed if observed is not None else given.observed, by_chain)


def _of_program(
    program: Program, given: "_Given", data: Dataset | None, observed: Observed, by_chain: bool | None
) -> ProgramChains:
    if data is None:
        names = USUAL[:1] if observed is None else (observed,) if isinstance(observed, str) else tuple(observed)
        draws = _draws(given.values, None, by_chain)
        example: Mapping[str, Tensor] = {"x": torch.zeros(1, 1)}
        local: tuple[str, ...] = ()
    else:
        reader = ProgramRows(program, observed, None)
        rows = reader.open(data)
        joint = reader.joint
        draws = _draws(given.values, joint.layout.shapes, by_chain)
        draws = {name: value.to(reader.device, joint.layout.dtypes[name]) for name, value in draws.items()}
        survey = joint.call.survey(rows)
        _check_support(draws, {name: site["fn"].support for name, site in survey.latents.items()})
        program, names, local = reader.call.program, joint.observed, joint.layout.local
        example = parts_of(rows.x if local else rows.x[:1])
    leading = next(iter(draws.values())).shape[:2]
    return ProgramChains(
        program=program,
        observed=names,
        local=local,
        rows=example,
        draws=draws,
        statistics=given.statistics_of(leading),
        warmup_statistics={},
        inverse_mass=torch.zeros(leading[0], 0),
    )


@dataclass(frozen=True, eq=False)
class _Given:
    """Samples as they came.

    Attributes:
        values: Arrays by name.
        statistics: Of each draw, (C, D), by name.
        observed: Names of what a container says was observed.
        by_chain: Whether arrays begin with chains; None where that is not known.
    """

    values: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]
    observed: tuple[str, ...] | None
    by_chain: bool | None

    @classmethod
    def of(cls, samples: Any) -> "_Given":
        """Of a mapping, or of a container of ArviZ's."""
        groups = _groups(samples)
        if groups is not None:
            told = groups("sample_stats")
            seen = tuple(groups("observed_data"))
            return cls(groups("posterior"), told, seen or None, True)
        if not isinstance(samples, Mapping) or not samples:
            raise TypeError(
                "`samples` must be arrays by the names of the sites, such as `mcmc.get_samples(group_by_chain=True)`, "
                f"or ArviZ's InferenceData or DataTree; got {type(samples).__name__}."
            )
        return cls({str(name): _tensor(value, str(name)) for name, value in samples.items()}, {}, None, None)

    def statistics_of(self, leading: torch.Size) -> dict[str, Tensor]:
        """Those that go with C chains of D draws."""
        return {name: value for name, value in self.statistics.items() if name in STATISTICS and value.shape == leading}


def _groups(samples: Any) -> Callable[[str], dict[str, Tensor]] | None:
    """From the name of a group of ArviZ's to its arrays, chains and draws first; None of another object."""
    has = getattr(samples, "posterior", None)
    if isinstance(samples, Mapping) and "posterior" in samples and hasattr(samples["posterior"], "data_vars"):
        has = samples["posterior"]
    if has is None or not hasattr(has, "data_vars"):
        return None

    def arrays(name: str) -> dict[str, Tensor]:
        group = getattr(samples, name, None)
        if group is None:
            return {}
        found = {}
        for key, value in group.data_vars.items():
            first = [dim for dim in ("chain", "draw") if dim in value.dims]
            ordered = value.transpose(*first, *[dim for dim in value.dims if dim not in first])
            if np.issubdtype(ordered.dtype, np.number) or ordered.dtype == bool:
                found[str(key)] = _tensor(ordered.values, str(key))
        return found

    return arrays


def _tensor(value: Any, name: str) -> Tensor:
    """A copy of numbers from any library."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    try:
        return torch.as_tensor(np.array(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"`samples[{name!r}]` must be an array of numbers; got {type(value).__name__}.") from error


def _draws(
    values: Mapping[str, Tensor], shapes: Mapping[str, torch.Size] | None, by_chain: bool | None
) -> dict[str, Tensor]:
    """Draws of each site, (C, D, *shape), in the order of the sites."""
    if shapes is not None:
        missing = [name for name in shapes if name not in values]
        if missing:
            raise ValueError(
                f"`samples` must hold every latent of the model; {shortened(missing)} is not among "
                f"{shortened(list(values))}. Rename them, or run the sampler on this model."
            )
        values = {name: values[name] for name in shapes}
        by_chain = _reads_by_chain(values, shapes) if by_chain is None else by_chain
    elif by_chain is None:
        common = {tuple(value.shape[:2]) for value in values.values()}
        if all(value.ndim >= 2 for value in values.values()) and len(common) == 1:
            raise ValueError(
                "The arrays could begin with chains and draws, or with draws alone: pass `by_chain=`, or the `data`."
            )
        by_chain = False
    found = {name: value if by_chain else value.unsqueeze(0) for name, value in values.items()}
    leading = {name: tuple(value.shape[:2]) for name, value in found.items()}
    first = next(iter(leading.values()))
    for name, value in found.items():
        expected = None if shapes is None else (*first, *shapes[name])
        if leading[name] != first or len(first) < 2 or (expected is not None and tuple(value.shape) != expected):
            raise ValueError(
                f"`samples[{name!r}]` must have shape {expected or (*first, '...')}, chains, draws and the site's own; "
                f"got {tuple(value.shape)}."
            )
        if 0 in first:
            raise ValueError("`samples` must hold at least one draw.")
        check_finite(value.double().flatten(0, 1), f"samples[{name!r}]", "Drop the draws.")
    return {name: value.to(torch.get_default_dtype()) for name, value in found.items()} if shapes is None else found


def _reads_by_chain(values: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> bool:
    """Whether arrays have two dimensions more than the sites, and not one."""
    more = {value.ndim - len(shapes[name]) for name, value in values.items()}
    if more not in ({1}, {2}):
        told = ", ".join(f"{name} {tuple(value.shape)} of {tuple(shapes[name])}" for name, value in values.items())
        raise ValueError(f"All arrays must be (C, D, *shape), or all (S, *shape), of their sites; got {told}.")
    return more == {2}


def _check_support(draws: Mapping[str, Tensor], supports: Mapping[str, Any]) -> None:
    for name, support in supports.items():
        if name in draws and support is not None and not bool(support.check(draws[name]).all()):
            raise ValueError(
                f"Some draws of {name!r} lie outside of its support, {support}. Give them on the program's own scale, "
                "and not as the sampler moved them."
            )
