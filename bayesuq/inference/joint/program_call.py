"""How a Pyro program takes its data, and what it samples and observes.

    def program(x, y=None): ...            # or program(x1, x2, y=None), program(**parts), program(x) with y by name

Inputs of several parts are arguments of their own: a tuple by place, a mapping by name; one that is taken by name alone
is passed so. Targets come last. A program that takes none is conditioned on them, as `poutine.condition` does. Keywords
`num_data` and `weight` are passed where they are taken. Which sites are observed is what the program says when it is
given targets, whatever their names.
"""

import inspect
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import biject_to

from bayesuq.data import Batch
from bayesuq.inference.joint.programs import OPTIONS, data_sites, is_data, is_subsample, private_store
from bayesuq.inputs import structure
from bayesuq.models.program import Observed, Program
from bayesuq.predictive.laws import unwrapped

USUAL = ("y", "obs")
ROUNDING = 1e-3  # of a log-likelihood in float32
WEIGHTING = (
    "Let it take weight=None, and multiply what it observes: `poutine.scale(scale=torch.ones(len(x)) if weight is None "
    "else weight)`; of weights that are 0, for missing targets, `poutine.mask(mask=weight > 0)`."
)


@dataclass(frozen=True, eq=False)
class Survey:
    """What a run of a program showed.

    Attributes:
        latents: The sites to be inferred, in order.
        observed: The observed ones, of data.
        local: Latents with numbers of their own for single rows.
        is_bound: Whether it runs on these rows alone, and on no single one.
    """

    latents: Mapping[str, Any]
    observed: Mapping[str, Any]
    local: tuple[str, ...]
    is_bound: bool


@dataclass(frozen=True, eq=False)
class ProgramCall:
    """A program, and how it is given data.

    Attributes:
        program: The user's.
        names: Of the observed sites as the user gave them; None takes those that the program observes.
        learns: Whether point values may be learned beside the latents.
    """

    program: Program
    names: tuple[str, ...] | None = None
    learns: bool = False

    @classmethod
    def of(cls, program: Program, observed: Observed = None, *, learns: bool = False) -> "ProgramCall":
        """Check the names.

        Raises:
            TypeError: No names.
        """
        if observed is None:
            return cls(program, learns=learns)
        names = (observed,) if isinstance(observed, str) or not isinstance(observed, Sequence) else tuple(observed)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"`observed` must be the name of a site, or several; got {observed!r}.")
        return cls(program, names, learns)

    def run(self, rows: Batch, num_data: int | None) -> Any:
        """Run the program on rows with their targets."""
        args, named = self._inputs(rows.x)
        if rows.weight is not None and "weight" not in self._parameters and not self._takes_any:
            raise ValueError(f"The data have weights, but the program takes no argument `weight`. {WEIGHTING}")
        named |= self._options(num_data, rows.weight)
        if not self.takes_targets(rows.x):
            return poutine.condition(self.program, data=self._conditions(rows.y))(*args, **named)
        return self._with_targets(args, named, rows.y)

    def run_forwards(self, x: Any) -> Any:
        """Run the program on inputs without targets, which it then draws."""
        args, named = self._inputs(x)
        named |= self._options(None, None)
        if self.takes_targets(x):
            return self._with_targets(args, named, None)
        return self.program(*args, **named)

    def _with_targets(self, args: tuple[Any, ...], named: Mapping[str, Any], y: Tensor | None) -> Any:
        """Run the program with targets in the argument that is called after them, else in the first that is free."""
        target = self._target_name(args, named)
        is_next = bool(args) and self._plain[len(args) : len(args) + 1] == [target]
        if target is None or is_next:
            return self.program(*args, y, **named)
        return self.program(*args, **named, **{target: y})

    def is_usual(self, x: Any) -> bool:
        """Whether `program(x, y)` is the call, at one tensor of inputs."""
        return isinstance(x, Tensor) and self.takes_targets(x) and self._plain[1:2] == [self._target_name((x,), {})]

    def as_program(self) -> Program:
        """The program as a function of x and y, whatever form it has."""

        def usual(x: Any, y: Tensor | None = None, num_data: int | None = None, weight: Tensor | None = None) -> Any:
            return self.run_forwards(x) if y is None else self.run(Batch(x, y, weight), num_data)

        return usual

    def takes_targets(self, x: Any) -> bool:
        """Whether the program has an argument for the targets."""
        args, named = self._inputs(x)
        return self._takes_many or self._target_name(args, named) is not None

    @property
    def takes_num_data(self) -> bool:
        """Whether it can be fitted by minibatches."""
        return "num_data" in self._parameters or self._takes_any

    def check_minibatches(self, rows: Batch) -> None:
        """Refuse a program whose likelihood of some rows does not grow with `num_data`, the rows that they stand for.

        Raises:
            ValueError: Such a program.
        """
        remedy = (
            '`pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x)))`. Add it, or fit all rows at '
            "once, by `batch_size=len(data)`."
        )
        if not self.takes_num_data:
            rule = "Minibatches need a program that takes `num_data` and scales its plate of `y` to it"
            raise ValueError(f"{rule}: {remedy}")
        once, doubled = (self._log_likelihood(rows, times * len(rows.y)) for times in (1, 2))
        if math.isfinite(once) and abs(doubled - 2 * once) > ROUNDING * abs(once):
            raise ValueError(
                "The program takes `num_data`, but does not scale to it: told of twice as many rows, it gives these a "
                f"log-likelihood of {doubled:.6g} in place of {2 * once:.6g}. A minibatch would not count for all "
                f"rows. Minibatches need a plate of `y` that scales: {remedy}"
            )
        size, both = len(rows.y), rows.at(torch.arange(len(rows.y)).repeat(2).to(rows.y.device))
        alone, told, shown = (self._factors(*given) for given in ((rows, size), (rows, 2 * size), (both, 2 * size)))
        for name, value in alone.items():
            nearly = ROUNDING * abs(value)
            if math.isfinite(value) and abs(shown[name] - 2 * value) <= nearly < abs(told[name] - 2 * value):
                raise ValueError(
                    f"The factor {name!r} is a sum over rows, and does not scale to `num_data`: a minibatch would not "
                    f"count for all rows. Minibatches need it within a plate that scales: {remedy}"
                )

    def check_weights(self, rows: Batch) -> None:
        """Refuse a program that takes weights, and gives a row the density that it would have without its own.

        Raises:
            ValueError: Such a program.
        """
        weight = rows.weight
        if weight is None or bool((weight == 1).all()):
            return
        alone = self._densities(rows._replace(weight=torch.ones_like(weight)))
        for name, density in self._densities(rows).items():
            without = alone[name]
            same = (density == without) & (without != 0) & without.isfinite()
            ignored = int((same & _is_weighted(weight, density)).sum())
            if ignored:
                raise ValueError(
                    f"The program takes `weight`, but {name!r} does not go by it: {ignored} of {density.numel()} "
                    f"densities with a weight that is not 1 are as they were without. {WEIGHTING}"
                )

    def multiplies_weights(self, rows: Batch) -> bool:
        """Whether the log-likelihood of rows is multiplied by their weights."""
        if "weight" not in self._parameters and not self._takes_any:
            return False
        one, half = (rows._replace(weight=torch.full((len(rows.y),), value).to(rows.y.device)) for value in (1.0, 0.5))
        try:
            whole, part = self._densities(one), self._densities(half)
        except (RuntimeError, ValueError, IndexError):  # weights of single targets, say
            return False
        return all(torch.allclose(part[name], whole[name] / 2, rtol=ROUNDING, equal_nan=True) for name in whole)

    def _log_likelihood(self, rows: Batch, num_data: int) -> float:
        """Of what is observed, where the real line has 0."""
        return sum(float(density.sum()) for density in self._densities(rows, num_data).values())

    def _factors(self, rows: Batch, num_data: int) -> dict[str, float]:
        """What each `pyro.factor` adds, where the real line has 0."""
        trace = self.trace(rows, num_data)
        trace.compute_log_prob()
        sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
        return {site["name"]: float(site["log_prob_sum"]) for site in sites if type(site["fn"]).__name__ == "Unit"}

    def _densities(self, rows: Batch, num_data: int | None = None) -> dict[str, Tensor]:
        """log p of what each site observes, with its scale and mask, where the real line has 0."""
        trace = self.trace(rows, num_data)
        trace.compute_log_prob()
        return {site["name"]: site["log_prob"] for site in data_sites(trace)}

    def survey(self, rows: Batch, num_data: int | None = None) -> Survey:
        """What the program samples and observes on these rows; nothing is drawn from its laws.

        Raises:
            ValueError: See `ProgramJoint.of`; numbers of two precisions that meet.
        """
        try:
            trace = self.trace(rows, num_data)
        except RuntimeError as error:
            if "dtype" not in str(error) and "scalar type" not in str(error):
                raise
            raise ValueError(
                f"The program meets two precisions, and real inputs come in torch's default, "
                f"{torch.get_default_dtype()}: {str(error).splitlines()[0]}. Make its own numbers from the inputs, as "
                "`x.new_zeros(3)`, or call `torch.set_default_dtype(torch.float64)` first."
            ) from error
        learned = [name for name, site in trace.nodes.items() if site["type"] == "param"]
        if isinstance(self.program, nn.Module):
            learned += [name for name, value in self.program.named_parameters() if value.requires_grad]
        if learned and not self.learns:
            raise ValueError(
                f"The program learns point values ({', '.join(dict.fromkeys(learned))}), which have no density. Give "
                "them a prior (`pyro.sample`, `PyroSample`), freeze them (`requires_grad_(False)`), or take "
                "`variational.fit`, which learns them."
            )
        sites = {
            name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not is_subsample(site)
        }
        latents = {name: site for name, site in sites.items() if not site["is_observed"]}
        observed = {name: site for name, site in sites.items() if is_data(site)}
        self._check(latents, observed)
        self._check_targets(rows.x, sites)
        frames = {f.name for site in observed.values() for f in site["cond_indep_stack"] if f.size == len(rows.y)}
        return Survey(latents, observed, *self._local(latents, rows, frames, observed.keys()))

    def trace(self, rows: Batch, num_data: int | None = None, *, checked: bool = False) -> Any:
        """A trace whose latents stand where the real line has 0; its laws check their values where they are `checked`.

        Raises:
            ValueError: Numbers that a checked law does not take.
        """
        with private_store(), torch.no_grad(), pyro.validation_enabled(checked), poutine.trace() as tracer, AtOrigin():
            self.run(rows, num_data)
        return tracer.trace

    def _check(self, latents: Mapping[str, Any], observed: Mapping[str, Any]) -> None:
        check_laws(latents)
        if not latents:
            raise ValueError("The program has no latent site: nothing is to be inferred.")
        if self.names is None:
            return
        wrong = [name for name in self.names if name not in observed]
        left = [name for name in observed if name not in self.names]
        if wrong:
            there = f"it observes {', '.join(observed) or 'none'}, and samples {', '.join(latents)}"
            raise ValueError(f"The program observes no site {wrong[0]!r}; {there}. Name one that is given the data.")
        if left:
            names = ", ".join(repr(name) for name in observed)
            raise ValueError(f"The program observes {', '.join(left)}, too. Name all: `observed=({names})`.")

    def _check_targets(self, x: Any, sites: Mapping[str, Any]) -> None:
        """Refuse a program that the targets do not reach: it would be fitted without them."""
        if self.names is None and not self.takes_targets(x) and USUAL[0] not in sites:
            raise ValueError(
                f"The targets reach no site: the program takes none as an argument, and samples {', '.join(sites)}. "
                'Name the site that they are of, `observed="..."`, or let it take them, `program(x, y=None)`.'
            )

    def _local(
        self, latents: Mapping[str, Any], rows: Batch, frames: set[str], observed: Set[str]
    ) -> tuple[tuple[str, ...], bool]:
        """Latents in a plate of rows, or whose shape goes with their number; whether there must be so many."""
        fewer: Any = None
        if len(rows.y) > 1:
            try:
                fewer = self.trace(rows.at(slice(1))).nodes
            except (ValueError, RuntimeError, IndexError):
                fewer = None

        runs = fewer is not None
        nodes = fewer if runs else {}
        data = {name: site for name, site in nodes.items() if site["type"] == "sample" and is_data(site)}
        has_all = runs and data.keys() == observed
        is_bound = not has_all or any(site["fn"].shape()[:1] != (1,) for site in data.values())

        def grows(name: str, site: Any) -> bool:
            if runs and name not in nodes:
                return True
            if is_bound:  # a program of these rows alone
                return len(rows.y) > 1 and len(rows.y) in site["value"].shape
            return bool(nodes[name]["value"].shape != site["value"].shape)

        found = tuple(
            name
            for name, site in latents.items()
            if grows(name, site) or (frames & {frame.name for frame in site["cond_indep_stack"]})
        )
        return found, is_bound and len(rows.y) > 1

    def _inputs(self, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        value = structure(x)
        if isinstance(value, Mapping) and self._takes_names(value):
            return (), dict(value)
        if isinstance(value, Mapping):
            value = dict(value)
        is_parts = isinstance(value, tuple) and not hasattr(value, "_fields")
        if is_parts and (len(self._plain) >= len(value) or self._takes_many):
            return value, {}
        if self._plain or self._takes_many:
            return (value,), {}
        return (), {self._only_name(): value}

    def _takes_names(self, parts: Mapping[str, Any]) -> bool:
        """Whether parts of the inputs are arguments by their names."""
        any_name = self._takes_any and not self._plain
        return all(any_name or name in self._parameters for name in parts)

    def _only_name(self) -> str:
        """The one argument of a program that takes inputs by name alone.

        Raises:
            ValueError: It takes none, or several.
        """
        needed = [name for name in self._named if name not in USUAL]
        needed = [name for name in needed if self._parameters[name].default is inspect.Parameter.empty] or needed
        if len(needed) == 1:
            return needed[0]
        if needed or self._takes_any:
            told = ", ".join(needed) or "any"
            raise ValueError(
                f"The program takes its inputs by name ({told}): pass them as a mapping from these names to tensors."
            )
        raise ValueError(
            "The program takes no inputs, and a posterior predicts at inputs. Write it as `program(x, y=None)`, whose "
            "data are those that the fit is given."
        )

    def _options(self, num_data: int | None, weight: Tensor | None) -> dict[str, Any]:
        given = {"num_data": num_data, "weight": weight}
        return {name: given[name] for name in OPTIONS if name in self._parameters or self._takes_any}

    def _conditions(self, y: Tensor) -> dict[str, Tensor]:
        """The targets under the names of the observed sites, in whose shapes they come; several share its columns."""
        names = self.names or USUAL[:1]
        return {name: y if len(names) == 1 else y[:, place] for place, name in enumerate(names)}

    def _target_name(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> str | None:
        """The argument that targets go into: of their site's name, or the first that has no value of its own."""
        free = [name for name in (*self._plain[len(args) :], *self._named) if name not in named]
        known = [name for name in free if name in (self.names or ()) or name in USUAL]
        waiting = [name for name in free if self._parameters[name].default in (inspect.Parameter.empty, None)]
        return next(iter(known + waiting), None)

    @cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        function = self.program.forward if isinstance(self.program, nn.Module) else self.program
        return inspect.signature(function).parameters

    @cached_property
    def _plain(self) -> list[str]:
        """Names of the arguments that data can take."""
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [name for name, one in self._parameters.items() if one.kind in kinds and name not in OPTIONS]

    @cached_property
    def _named(self) -> list[str]:
        """Names of the arguments that data can take by name alone."""
        own = [name for name, one in self._parameters.items() if one.kind is one.KEYWORD_ONLY]
        return [name for name in own if name not in OPTIONS]

    @property
    def _takes_any(self) -> bool:
        return any(one.kind is one.VAR_KEYWORD for one in self._parameters.values())

    @property
    def _takes_many(self) -> bool:
        return any(one.kind is one.VAR_POSITIONAL for one in self._parameters.values())


def _is_weighted(weight: Tensor, density: Tensor) -> Tensor:
    """Which densities of a site belong to rows, or targets, of a weight that is not 1; of density's shape."""
    found = weight != 1
    if found.shape == density.shape:
        return found
    rows = found.reshape(len(weight), -1).any(dim=1)
    if density.shape[:1] != rows.shape:  # one of all rows
        return rows.any().expand(density.shape)
    return rows.reshape(-1, *[1] * (density.ndim - 1)).expand(density.shape)


class AtOrigin(Messenger):
    """A handler that puts every latent where the real line has 0: improper laws cannot be drawn from."""

    def _pyro_sample(self, msg: Any) -> None:
        if is_subsample(msg):
            size, chosen = msg["fn"].size, msg["fn"].subsample_size
            if msg["value"] is None and chosen is not None and chosen < size:
                raise ValueError(
                    f"The plate {msg['name']!r} chooses {chosen} of {size} rows by chance. "
                    "Leave `subsample_size` out: minibatches come from the fit, and the plate scales to `num_data` by "
                    '`pyro.plate("data", num_data, subsample=torch.arange(len(x)))`.'
                )
            return
        if msg["is_observed"] or msg["value"] is not None:
            return
        law, shape = msg["fn"], msg["fn"].shape()
        if is_discrete(law.support):
            msg["value"] = law.sample()
            return
        transform = biject_to(law.support)
        msg["value"] = transform(
            torch.zeros(transform.inverse_shape(shape), dtype=dtype_of(law), device=device_of(law))
        )


def check_laws(latents: Mapping[str, Any]) -> None:
    """Refuse latents whose laws have no density on the real line.

    Raises:
        ValueError: Discrete ones, or a law of one point.
    """
    discrete = [name for name, site in latents.items() if is_discrete(site["fn"].support)]
    if discrete:
        raise ValueError(
            f"The latents {', '.join(discrete)} are discrete, and have no gradient. Sum them out in the program, "
            "as by torch.logsumexp over their values or by a mixture (`dist.MixtureSameFamily`)."
        )
    points = [name for name, site in latents.items() if isinstance(unwrapped(site["fn"]), Delta)]
    if points:
        raise ValueError(
            f"The latents {', '.join(points)} have a law of one point, Delta, and so no density. Write what the "
            "program works out as `pyro.deterministic(name, value)`."
        )


def is_discrete(support: Any) -> bool:
    """Whether a support holds whole numbers alone."""
    return bool(getattr(support, "is_discrete", False)) or support is constraints.boolean


def dtype_of(law: Any) -> torch.dtype:
    """Of a law's values."""
    found = next((value for value in _parameters_of(law) if value.is_floating_point()), None)
    return torch.get_default_dtype() if found is None else found.dtype


def device_of(law: Any) -> torch.device:
    """Where a law's values are."""
    found = next(iter(_parameters_of(law)), None)
    return torch.device("cpu") if found is None else found.device


def _parameters_of(law: Any) -> list[Tensor]:
    """The tensors that make a law, those of laws within it too."""
    inner = getattr(law, "base_dist", None)
    own = [value for name in law.arg_constraints if isinstance(value := law.__dict__.get(name), Tensor)]
    return own + (_parameters_of(inner) if inner is not None else [])
