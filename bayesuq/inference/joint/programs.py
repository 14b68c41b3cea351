"""Pyro programs and guides as they are run here: in a parameter store of their own, and held against each other.

Pyro keeps parameters in one global store. Here each pair of a program and its guide has a store of its own, which is
put in place while they run and taken away again, so that fits and posteriors never meet. Pyro's handlers and torch's
generators are global too, so one pair runs at a time, whatever the threads.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from operator import add
from threading import RLock
from typing import Any

import pyro
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayesuq.data import Batch
from bayesuq.models.program import Program
from bayesuq.options import shortened
from bayesuq.predictive.laws import unwrapped

GuideBuilder = Callable[[Any], Program]

LOCK = RLock()
OBSERVED = "y"
OPTIONS = ("num_data", "weight")  # keywords that a program may take or leave


def factorised(program: Program) -> Program:
    """What "mean field" means for a program: Pyro's `AutoNormal`, a normal law for each unconstrained latent number."""
    return AutoNormal(program)


def correlated(program: Program) -> Program:
    """What "full rank" means for a program: Pyro's `AutoMultivariateNormal`, one normal law of all of these numbers."""
    return AutoMultivariateNormal(program)


@contextmanager
def private_store(state: Any | None = None) -> Iterator[None]:
    """Pyro's parameter store holds `state`, default nothing, and then again what it held.

    Within, modules keep their parameters in it as well, whatever the user's setting: Pyro does not let a module that
    keeps its own run a program that has `pyro.param` statements.
    """
    with LOCK, pyro.get_param_store().scope(state), pyro.settings.context(module_local_params=False):
        yield


def latent_sites(trace: Any) -> list[str]:
    """Names of the sites that a program samples and does not observe, in order."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and name != OBSERVED and not site["is_observed"] and not is_subsample(site)
    ]


def data_sites(trace: Any) -> list[Any]:
    """The sites of a trace that are observed data."""
    return [site for site in trace.nodes.values() if site["type"] == "sample" and is_data(site)]


def row_log_prob(sites: Iterable[Any], rows: Batch) -> Tensor:
    """log p(y | x, theta) of each row, (N,), in nats, over all observed sites, as they mask and the rows weigh them.

    Scales of plates do not count; weights of single targets do, where a site has a density of each.

    Raises:
        ValueError: A site that has one density of all rows.
    """
    return reduce(add, (_terms_of_rows(site, rows) for site in sites))


def _terms_of_rows(site: Any, rows: Batch) -> Tensor:
    terms = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
    if terms.shape[:1] != (len(rows.y),):
        raise ValueError(f"`validation` needs a density of each row; that of {site['name']!r} is one of all rows.")
    if rows.weight is not None and terms.shape == rows.weight.shape:
        terms = terms * rows.weight
    return terms.reshape(len(rows.y), -1).sum(dim=1)


def is_subsample(site: Any) -> bool:
    """Whether a site is the choice of rows that a plate makes."""
    return type(site["fn"]).__name__ == "_Subsample"


def is_data(site: Any) -> bool:
    """Whether a site is observed data: neither a factor, nor what the program works out from its latents."""
    return bool(site["is_observed"]) and not is_worked_out(site)


def is_worked_out(site: Any) -> bool:
    """Whether an observed site is `pyro.factor`'s or `pyro.deterministic`'s, or what a reparametrisation left there."""
    law = unwrapped(site["fn"])
    return bool(site["infer"].get("_deterministic")) or isinstance(law, Delta) or type(law).__name__ == "Unit"


def build_guide(program: Program, build: GuideBuilder) -> Program:
    """A fresh guide."""
    guide, again = build(program), build(program)
    if not callable(guide) or (isinstance(guide, nn.Module) and not isinstance(guide, PyroModule)):
        raise TypeError(
            f"`guide` must be a function from the model to a Pyro guide; it gave {type(guide).__name__}. Pass a guide "
            "that is a function of yours as `guide=lambda model: my_guide`, and make a module a pyro.nn.PyroModule."
        )
    if isinstance(guide, AutoLaplaceApproximation):
        raise TypeError(
            "An AutoLaplaceApproximation is a point until its `laplace_approximation` is called; take another guide."
        )
    if isinstance(guide, nn.Module) and guide is again:
        raise ValueError(
            "`guide` must build a new guide at each call, or two fits would share its parameters: pass "
            "`guide=AutoNormal` or `guide=lambda model: AutoNormal(model)`."
        )
    return guide


def optional_keywords(program: Program) -> list[str]:
    """Which of `OPTIONS` a program takes."""
    taken = _parameters(program)
    return [name for name in OPTIONS if taken is None or name in taken]


def untaken(function: Program, keywords: list[str]) -> list[str]:
    """Those keywords that a function does not take."""
    taken = _parameters(function)
    return [] if taken is None else [name for name in keywords if name not in taken]


def leaving_out(function: Program, left: list[str]) -> Program:
    """The function, called without these keywords."""
    if not left:
        return function
    return lambda x, y, **options: function(x, y, **{k: v for k, v in options.items() if k not in left})


def _parameters(function: Program) -> set[str] | None:
    """Names of a function's parameters; None where it takes any keyword."""
    signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    if any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
        return None
    return set(signature.parameters)


def find_leaves(programs: tuple[Program, Program], capture: Any) -> dict[str, Tensor]:
    """The parameters of Pyro's store and of modules, each once."""
    found = {name: _unconstrained(site["value"]) for name, site in capture.nodes.items()}
    for prefix, program in zip(("guide", "model"), programs, strict=True):
        if isinstance(program, nn.Module):
            found |= {f"{prefix}.{name}": parameter for name, parameter in program.named_parameters()}
    leaves: dict[str, Tensor] = {}
    for name, leaf in sorted(found.items()):
        if leaf.requires_grad and not any(leaf is other for other in leaves.values()):
            leaves[name] = leaf
    return leaves


def _unconstrained(value: Tensor) -> Tensor:
    """The leaf behind the value of a param site; a module's own parameters are their leaves."""
    reference = getattr(value, "unconstrained", None)
    return value if reference is None else reference()


class ChangingDensityError(ValueError):
    """A program has another density at the same latents, each time that it runs."""


def check_same_density(once: float, again: float) -> None:
    """Hold log densities of two runs at the same latents against each other, in nats.

    Raises:
        ChangingDensityError: They differ.
    """
    if once != again and not (math.isnan(once) or math.isnan(again)):
        raise ChangingDensityError(
            "The program draws numbers beside its sites: at the same latents its density was "
            f"{once:.6g}, and then {again:.6g}. Draw them by pyro.sample, or put its networks into eval()."
        )


def check_sites(guide: Any, program: Any) -> None:
    """Refuse a guide that leaves sites out, has others, or draws them in another shape."""
    wanted = {name: program.nodes[name]["value"].shape for name in latent_sites(program)}
    auxiliary = {name for name, site in guide.nodes.items() if site.get("infer", {}).get("is_auxiliary")}
    given = {name: guide.nodes[name]["value"].shape for name in latent_sites(guide) if name not in auxiliary}
    missing, strange = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or strange:
        raise ValueError(
            "The guide's sites must be the model's latent ones. "
            + (f"It lacks {shortened(missing)}. " if missing else "")
            + (f"The model does not have {shortened(strange)}." if strange else "")
        )
    for name, shape in wanted.items():
        if given[name] != shape:
            raise ValueError(
                f"The guide draws {name} of shape {tuple(given[name])}; the model's has {tuple(shape)}. Is an "
                "`.to_event()` missing?"
            )
