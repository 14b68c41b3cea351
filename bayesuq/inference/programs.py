"""Pyro programs with parameters of their own: a model and its guide, and stochastic variational inference on the two.

This is Pyro's ordinary route, open to any guide and to any program:

    -ELBO = E_q[ log q(theta) - log p(theta, y | x) ],   estimated by `pyro.infer.Trace_ELBO`

Pyro keeps parameters in one global store. Here each pair has a store of its own, which is put in place while its
programs run and taken away again, so that fits and posteriors never meet. Pyro's handlers and torch's generators are
global too, so one pair runs at a time, whatever the threads.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayesuq.inference.minibatches import Batch
from bayesuq.inference.optimize import Objective
from bayesuq.models.bnn import LIKELIHOOD
from bayesuq.randomness import isolated

Program = Callable[..., Any]
GuideBuilder = Callable[[Any], Program]

LOCK = RLock()
OBSERVED = "y"
OPTIONS = ("num_data", "weight")  # keywords that a program may take or leave
VALIDATION_DRAWS = 8


def factorised(program: Program) -> Program:
    """What "mean field" means for a program: Pyro's `AutoNormal`, a normal law for each unconstrained latent number."""
    return AutoNormal(program)


class GuidedProgram:
    """A Pyro program, its guide, and the parameters of both.

    Attributes:
        program: Called as `program(x, y, num_data=..., weight=...)`, with those of the keywords that it takes.
        guide: Called with the same arguments.
        latents: Names of the program's latent sites.
        leaves: The parameters by name, unconstrained; to be moved in place.
    """

    def __init__(self, program: Program, build: GuideBuilder, example: Batch, *, seed: int) -> None:
        """Build the guide and run both once, on an example.

        Args:
            program: The program.
            build: From the program to its guide, made anew at each call.
            example: A row of the data, as the program takes it. (Without its y, an autoguide would take y as latent.)
            seed: Of whatever is drawn here: an autoguide looks at a few draws of the program.

        Raises:
            TypeError: `build` gives no guide.
            ValueError: The guide's sites are not the program's latent ones, or its draws depend on x; or the same
                guide object comes twice.
        """
        self.program, self.example = program, example
        self._seed, self._state = seed, {"params": {}, "constraints": {}}  # type: ignore[var-annotated]
        with self.active(seed), torch.no_grad():
            self.guide = _built(program, build)
            self.keywords = _keywords(program)
            guide, model, options = self._called(None, example, None)
            with poutine.trace(param_only=True) as capture:
                traces = [poutine.trace(one).get_trace(example.x, example.y, **options) for one in (guide, model)]
        _check_sites(*traces)
        self.latents = latent_sites(traces[1])
        self.leaves = _leaves((self.guide, program), capture.trace)
        self._check_that_draws_ignore_inputs()

    @contextmanager
    def active(self, seed: int | None = None) -> Iterator[None]:
        """Alone in the process, with these parameters; given a seed, draws are a function of it."""
        with private_store(self._state):
            if seed is None:
                yield
            else:
                with isolated(seed, device=self.example.x.device):
                    yield

    def traces(self, batch: Batch, num_data: int | None = None, *, program: Program | None = None) -> tuple[Any, Any]:
        """Traces of the guide at a draw, and of the program at the same draw; within `active`.

        Args:
            batch: Rows, as the program takes them.
            num_data: Size of the whole data set; None is that of the batch.
            program: Another form of the program, such as one whose BatchNorm learns.
        """
        guide, model, options = self._called(program, batch, num_data)
        guide_trace = poutine.trace(guide).get_trace(batch.x, batch.y, **options)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch.x, batch.y, **options)
        return guide_trace, model_trace

    def loss(self, batch: Batch, num_data: int, num_draws: int, *, program: Program | None = None) -> Tensor:
        """Minus the ELBO in nats, estimated from a minibatch and `num_draws` draws; within `active`."""
        guide, model, options = self._called(program, batch, num_data)
        elbo = Trace_ELBO(num_particles=num_draws)
        return elbo.differentiable_loss(model, guide, batch.x, batch.y, **options)

    def draw(self, seed: int) -> dict[str, Tensor]:
        """The latent sites at one draw of the guide."""
        return self._draw_at(self.example.x, seed)

    def draw_with_density(self, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        """As `draw`, with log q at it, float64, in nats."""
        with torch.no_grad(), self.active(seed):
            trace = self._guide_trace(self.example.x)
            density = trace.log_prob_sum()
        return self._latents_of(trace), density.double()

    def values(self) -> dict[str, Tensor]:
        """Copies of the parameters, unconstrained."""
        return {name: leaf.detach().clone() for name, leaf in self.leaves.items()}

    def parameter(self, name: str) -> Tensor:
        """A parameter of Pyro's store, on its own support."""
        with self.active():
            return pyro.get_param_store()[name].detach().clone()

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Set all parameters.

        Raises:
            ValueError: Names, shapes or dtypes that are not the parameters'.
        """
        expected = {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in self.leaves.items()}
        found = {name: (tuple(value.shape), value.dtype) for name, value in values.items()}
        if expected != found:
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise ValueError(
                f"The guide is not the one that was fitted: {len(differing)} parameters differ, the first is "
                f"{differing[0]}. It has {expected.get(differing[0], 'none')}, fitted was "
                f"{found.get(differing[0], 'none')}."
            )
        with torch.no_grad():
            for name, value in values.items():
                self.leaves[name].copy_(value)

    def _called(self, program: Program | None, batch: Batch, num_data: int | None) -> tuple[Program, Program, Any]:
        """The guide and the program, and the keywords that the program takes."""
        if batch.weight is not None and "weight" not in self.keywords:
            raise ValueError("The data have weights, but the program takes no argument `weight`.")
        options = {"num_data": num_data, "weight": batch.weight}
        options = {name: options[name] for name in self.keywords}
        return _leaving(self.guide, self.keywords), self.program if program is None else program, options

    def _draw_at(self, x: Tensor, seed: int) -> dict[str, Tensor]:
        with torch.no_grad(), self.active(seed):
            return self._latents_of(self._guide_trace(x))

    def _guide_trace(self, x: Tensor) -> Any:
        """The guide run once at rows x; within `active`."""
        guide, _, options = self._called(None, self.example, None)
        return poutine.trace(guide).get_trace(x, self.example.y, **options)

    def _latents_of(self, trace: Any) -> dict[str, Tensor]:
        return {name: trace.nodes[name]["value"] for name in self.latents}

    def _check_that_draws_ignore_inputs(self) -> None:
        one, other = (
            self._draw_at(x, self._seed) for x in (self.example.x, (self.example.x == 0).to(self.example.x.dtype))
        )
        differing = [name for name in one if not torch.equal(one[name], other[name])]
        if differing:
            names = ", ".join(differing)
            raise ValueError(
                f"The guide's draws of {names} depend on x, or on chance that no seed reaches. Those of a posterior "
                "over global latents must not."
            )


class ProgramObjective:
    """Minus the ELBO of a guided program, as a function of the parameters, for the minibatch loop."""

    def __init__(
        self,
        pair: GuidedProgram,
        num_data: int,
        *,
        num_draws: int,
        scale_rate: float = 1.0,
        training: Program | None = None,
        evaluation: Program | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.pair, self.num_data, self.num_draws, self.scale_rate = pair, num_data, num_draws, scale_rate
        self.training, self.evaluation = training, evaluation
        self.buffers = {} if buffers is None else buffers
        self._checked = False

    def objective(self) -> Objective:
        """What the loop needs."""
        return Objective(
            leaves=self.pair.leaves,
            rates={name: self.scale_rate for name in self.pair.leaves if name.startswith(LIKELIHOOD)},
            buffers=self.buffers,
            loss_and_grads=self.loss_and_grads,
            log_predictive=self.log_predictive,
            culprits=self.culprits,
        )

    def loss_and_grads(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        """Minus the ELBO in nats; Pyro draws from torch's global generators, which belong to the fit's session."""
        for leaf in self.pair.leaves.values():
            leaf.grad = None
        # Pyro's checks take a quarter of a step: the first step makes them for all.
        with self.pair.active(), pyro.validation_enabled(not self._checked):
            loss = self.pair.loss(batch, self.num_data, self.num_draws, program=self.training)
            loss.backward()
        self._checked = True
        return loss.detach()

    def log_predictive(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        """log of the mean over eight draws of p(y | x, theta), row by row."""
        draws = []
        with self.pair.active():
            for _ in range(VALIDATION_DRAWS):
                _, trace = self.pair.traces(batch, program=self.evaluation)
                draws.append(row_log_prob(trace, batch.y))
        return torch.stack(draws).logsumexp(dim=0) - math.log(VALIDATION_DRAWS)

    def culprits(self, batch: Batch, _noise: torch.Generator) -> list[str]:
        """Parameters that are not finite, or else sites whose terms are not."""
        broken = [name for name, leaf in self.pair.leaves.items() if not leaf.isfinite().all()]
        if broken:
            return broken
        with torch.no_grad(), self.pair.active():
            traces = self.pair.traces(batch, program=self.evaluation)
            for trace in traces:
                trace.compute_log_prob()
        sites = {name: site for trace in traces for name, site in trace.nodes.items() if site["type"] == "sample"}
        return [name for name, site in sites.items() if not site["log_prob"].isfinite().all()]


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


def row_log_prob(trace: Any, y: Tensor) -> Tensor:
    """log p(y | x, theta) of each row, unscaled, (N,), in nats."""
    terms = trace.nodes[OBSERVED]["fn"].log_prob(y)
    return terms.flatten(1).sum(dim=1) if terms.ndim > 1 else terms


def is_subsample(site: Any) -> bool:
    """Whether a site is the choice of rows that a plate makes."""
    return type(site["fn"]).__name__ == "_Subsample"


def _built(program: Program, build: GuideBuilder) -> Program:
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


def _keywords(program: Program) -> list[str]:
    """Which of `OPTIONS` a program takes."""
    taken = _parameters(program)
    return [name for name in OPTIONS if taken is None or name in taken]


def _leaving(function: Program, keywords: list[str]) -> Program:
    """The function, called without those keywords that it does not take."""
    taken = _parameters(function)
    left = [] if taken is None else [name for name in keywords if name not in taken]
    if not left:
        return function
    return lambda x, y, **options: function(x, y, **{k: v for k, v in options.items() if k not in left})


def _parameters(function: Program) -> set[str] | None:
    """Names of a function's parameters; None where it takes any keyword."""
    signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    if any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
        return None
    return set(signature.parameters)


def _leaves(programs: tuple[Program, Program], capture: Any) -> dict[str, Tensor]:
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


def _check_sites(guide: Any, program: Any) -> None:
    """Refuse a guide that leaves sites out, has others, or draws them in another shape."""
    wanted = {name: program.nodes[name]["value"].shape for name in latent_sites(program)}
    auxiliary = {name for name, site in guide.nodes.items() if site.get("infer", {}).get("is_auxiliary")}
    given = {name: guide.nodes[name]["value"].shape for name in latent_sites(guide) if name not in auxiliary}
    missing, strange = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or strange:
        raise ValueError(
            "The guide's sites must be the model's latent ones. "
            + (f"It lacks {', '.join(missing)}. " if missing else "")
            + (f"The model does not have {', '.join(strange)}." if strange else "")
        )
    for name, shape in wanted.items():
        if given[name] != shape:
            raise ValueError(
                f"The guide draws {name} of shape {tuple(given[name])}; the model's has {tuple(shape)}. Is an "
                "`.to_event()` missing?"
            )
