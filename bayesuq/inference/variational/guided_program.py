"""A program with its guide, and stochastic variational inference on the two by Pyro's ordinary route.

    -ELBO = E_q[ log q(theta) - log p(theta, y | x) ],   estimated by `pyro.infer.Trace_ELBO`

It is open to any guide and to any program; what `bayesuq.inference.variational.elbo` does for mean field is faster.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.joint.fresh_draws import log_mean_over_draws
from bayesuq.inference.joint.programs import (
    GuideBuilder,
    build_guide,
    check_same_density,
    check_sites,
    data_sites,
    find_leaves,
    latent_sites,
    leaving_out,
    optional_keywords,
    private_store,
    row_log_prob,
    untaken,
)
from bayesuq.inference.training.objective import Objective
from bayesuq.inputs import on_leaves
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork
from bayesuq.models.program import Program
from bayesuq.randomness import derive_seed, globally_isolated, lent

MODEL = "model."  # before the names of a program's own parameters: see `find_leaves`


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
            self.guide = build_guide(program, build)
            self.keywords = optional_keywords(program)
            self._left = untaken(self.guide, self.keywords)  # asked once: it takes as long as a site
            guide, model, options = self._called(None, example, None)
            with poutine.trace(param_only=True) as capture:
                traces = [poutine.trace(one).get_trace(example.x, example.y, **options) for one in (guide, model)]
        check_sites(*traces)
        self.latents = latent_sites(traces[1])
        self.leaves = find_leaves((self.guide, program), capture.trace)
        self._check_that_draws_ignore_inputs()

    @contextmanager
    def active(self, seed: int | None = None, noise: torch.Generator | None = None) -> Iterator[None]:
        """Alone in the process, with these parameters; draws are a function of a seed, or go on from `noise`."""
        with private_store(self._state):
            if noise is not None:
                with lent(noise):
                    yield
            elif seed is not None:
                with globally_isolated(seed, device=self.example.x.device):  # Pyro's lock lets in one at a time
                    yield
            else:
                yield

    def traces(self, batch: Batch, *, program: Program | None = None) -> tuple[Any, Any]:
        """Traces of the guide at a draw, and of the program at the same draw; within `active`.

        Args:
            batch: Rows, as the program takes them.
            program: Another form of the program, such as one whose BatchNorm learns.

        Raises:
            ValueError: Sites that come or go from draw to draw.
        """
        guide, model, options = self._called(program, batch, None)
        guide_trace = poutine.trace(guide).get_trace(batch.x, batch.y, **options)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch.x, batch.y, **options)
        changed = set(latent_sites(model_trace)) ^ set(self.latents)
        if changed:
            raise ValueError(
                f"The program's site {min(changed)!r} is there at some draws and not at others: its sites must not "
                "change. Sample it always, and use it where it is wanted."
            )
        return guide_trace, model_trace

    def check_density(self, seed: int) -> None:
        """Refuse a program that is no density: at one draw of its latents it has to be the same each time.

        Raises:
            ChangingDensityError: It is not.
        """
        with torch.no_grad():
            with self.active(derive_seed(seed, 0)):
                draw, first = self.traces(self.example)
            with self.active(derive_seed(seed, 1)):
                _, model, options = self._called(None, self.example, None)
                replayed = poutine.replay(model, trace=draw)
                again = poutine.trace(replayed).get_trace(self.example.x, self.example.y, **options)
            check_same_density(float(first.log_prob_sum()), float(again.log_prob_sum()))

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
        with torch.no_grad(), self.active(seed), pyro.validation_enabled(False):
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
        return leaving_out(self.guide, self._left), self.program if program is None else program, options

    def _draw_at(self, x: Any, seed: int) -> dict[str, Tensor]:
        # Pyro's checks take a third of a draw; the fit has made them.
        with torch.no_grad(), self.active(seed), pyro.validation_enabled(False):
            return self._latents_of(self._guide_trace(x))

    def _guide_trace(self, x: Any) -> Any:
        """The guide run once at rows x; within `active`."""
        guide, _, options = self._called(None, self.example, None)
        return poutine.trace(guide).get_trace(x, self.example.y, **options)

    def _latents_of(self, trace: Any) -> dict[str, Tensor]:
        return {name: trace.nodes[name]["value"] for name in self.latents}

    def _check_that_draws_ignore_inputs(self) -> None:
        one, other = (
            self._draw_at(x, self._seed)
            for x in (self.example.x, on_leaves(lambda leaf: (leaf == 0).to(leaf.dtype), self.example.x))
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
        statistics: Callable[[Any], Sequence[Tensor]] = lambda _: (),
    ) -> None:
        self.pair, self.num_data, self.num_draws, self.scale_rate = pair, num_data, num_draws, scale_rate
        self.training, self.evaluation = training, evaluation
        self.buffers = {} if buffers is None else buffers
        self.statistics = statistics
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
            identity=f"guide of {self.pair.program}, {self.num_draws} draws a step, scale rate {self.scale_rate}",
            model=self.pair.program if isinstance(self.pair.program, BayesianNetwork) else None,
            options={"num_draws": self.num_draws, "latents": self.pair.latents},
            from_network=tuple(name for name, leaf in self.pair.leaves.items() if self._is_from_network(name, leaf)),
            shared=lambda batch: self.statistics(batch.x),
        )

    def _is_from_network(self, name: str, leaf: Tensor) -> bool:
        """Whether a parameter starts at weights of the user's: of a module, or as an autoguide of a network does."""
        if not isinstance(self.pair.program, BayesianNetwork):
            return name.startswith(MODEL)
        weights = list(self.pair.program.initial().values())
        flat = leaf.detach().reshape(-1)
        whole = torch.cat([value.reshape(-1) for value in weights])
        return any(torch.equal(flat, value.reshape(-1)) for value in (*weights, whole))

    def loss_and_grads(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Minus the ELBO in nats."""
        for leaf in self.pair.leaves.values():
            leaf.grad = None
        # Pyro's checks take a quarter of a step: the first step makes them for all.
        with self.pair.active(noise=noise), pyro.validation_enabled(not self._checked):
            loss = self.pair.loss(batch, self.num_data, self.num_draws, program=self.training)
            loss.backward()
        self._checked = True
        return loss.detach()

    def log_predictive(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """log of the mean over eight draws of p(y | x, theta), row by row."""
        with self.pair.active(noise=noise):
            return log_mean_over_draws(
                lambda: row_log_prob(data_sites(self.pair.traces(batch, program=self.evaluation)[1]), batch)
            )

    def culprits(self, batch: Batch, noise: torch.Generator) -> list[str]:
        """Parameters that are not finite, or else sites whose terms are not."""
        broken = [name for name, leaf in self.pair.leaves.items() if not leaf.isfinite().all()]
        if broken:
            return broken
        with torch.no_grad(), self.pair.active(noise=noise):
            traces = self.pair.traces(batch, program=self.evaluation)
            for trace in traces:
                trace.compute_log_prob()
        sites = {name: site for trace in traces for name, site in trace.nodes.items() if site["type"] == "sample"}
        return [name for name, site in sites.items() if not site["log_prob"].isfinite().all()]
