"""Variational inference on a Pyro program of the user's own, and its posterior.

A program `program(x, y=None)` samples global latents and observes the site `y`, one row of it for each row of x:

    def program(x, y=None, num_data=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
            return pyro.sample("y", dist.Normal(slope * x[:, 0], 0.1), obs=y)

The law of `y` decides the predictive: Normal gives a GaussianPredictive, Categorical and Bernoulli a
CategoricalPredictive, others a MixturePredictive. A latent of its own for each row (in the plate of `y`) has no
posterior at a new row: such a program is fitted to all rows at once, and predicts at these.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pyro
import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.data import Batch, Dataset
from bayesuq.gradients import unless_kept
from bayesuq.inference.joint.program_call import ProgramCall
from bayesuq.inference.joint.programs import OBSERVED, GuideBuilder, correlated
from bayesuq.inference.posteriors.modes import warn_of_modes
from bayesuq.inference.posteriors.program import LatentPosterior, from_parts, parts_of
from bayesuq.inference.posteriors.program_reader import ProgramRows
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.convergence import num_ratios, warn_if_wide, warn_unless_reaching
from bayesuq.inference.training.history import History
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.options import GLOBAL, QUALITY, STARTS, Training, sources
from bayesuq.inference.variational.guided_program import GuidedProgram, ProgramObjective
from bayesuq.inference.variational.normal_program import normal_objective
from bayesuq.loaders import Data
from bayesuq.models.program import Observed, Program
from bayesuq.randomness import derive_seed, resolve_seed

MOST_ROWS = 5_000_000  # over all draws, a matter of seconds: on larger data the reach is not looked at
REMEDY = "Raise `num_epochs`, or take guide=variational.full_rank, whose latents correlate, or chains: `hmc.fit`."
REMEDY_OF_CORRELATED = "Raise `num_epochs`, or take chains: `hmc.fit`."
LOCAL = "The latents {names} belong to single rows of the data."
LOCAL_REMEDY = "Fit all rows at once (batch_size=len(data)), sample them by `hmc.fit`, or integrate them out."
MODES_REMEDY = "Take `hmc.fit` with several chains, or order what is interchangeable."


def fit_program(
    program: Program,
    data: Data,
    training: Training,
    build: GuideBuilder,
    *,
    num_draws: int,
    observed: Observed = None,
) -> "ProgramPosterior":
    """Fit a guide to a program; the options are those of `variational.fit`."""
    reader = ProgramRows(program, observed, training.device, learns=True)
    with sources(reader, data, training) as (source, validation):
        if source.num_batches > 1:
            reader.call.check_minibatches(source.rows)
        joint, local = reader.joint, reader.joint.layout.local
        needed = joint.needed(source.rows)
        together = source.workers.are_together
        if local and (source.num_batches > 1 or together):
            raise ValueError(f"{LOCAL.format(names=', '.join(local))} {LOCAL_REMEDY}")
        example = Batch(needed.x.clone(), needed.y.clone(), None)
        call = ProgramCall(reader.call.program, joint.observed)
        pair = _paired(call, example, build, training.key(GLOBAL))
        normal = None
        shows_all = source.num_batches == 1 and source.loader is None and not together
        if shows_all and not _goes_on_by_pyro(training):
            normal = normal_objective(pair, build, call, source.rows, training.key(STARTS))
        if normal is None:
            objective = ProgramObjective(pair, source.num_data, num_draws=num_draws).objective()
        else:
            objective = normal.objective(num_draws)
        history = minimise(objective, source, validation, training)
        if normal is not None:
            normal.put()
            warn_of_modes(normal.modes, MODES_REMEDY)
        posterior = ProgramPosterior(
            program=call.program,
            build=build,
            values=pair.values(),
            example=parts_of(example.x) | {"y": example.y},
            history=history,
            observed=joint.observed,
            local=local,
        )
        count = num_ratios(len(history.loss) * source.num_batches)
        if source.loader is None and not together and pair.latents and count * source.num_data <= MOST_ROWS:
            if normal is None:
                ratios = posterior.ratios_at(source.rows, count, training.key(QUALITY))
                latents = posterior.sample_weights(count, seed=training.key(QUALITY))
            else:
                ratios, latents = normal.weighed(training.key(QUALITY))
            warn_unless_reaching(ratios, REMEDY_OF_CORRELATED if build is correlated else REMEDY, latents.values())
            warn_if_wide(ratios, latents.values())
        return posterior


def _paired(call: ProgramCall, example: Batch, build: GuideBuilder, seed: int) -> GuidedProgram:
    """The program with its guide, for which Pyro draws from the priors."""
    try:
        pair = GuidedProgram(as_usual(call, example), build, example, seed=seed)
    except NotImplementedError as error:
        raise ValueError(
            f"A guide begins at draws of the program, which a law of it does not have: {str(error).splitlines()[0]}. "
            "Write a flat prior as `dist.Normal(0.0, 1.0).mask(False)`, or take `hmc.fit` or `laplace.fit`."
        ) from error
    pair.check_density(seed)
    return pair


def _goes_on_by_pyro(training: Training) -> bool:
    """Whether the fit goes on from a file that was begun by Pyro's estimate of the ELBO."""
    there = Checkpoint.of(training.checkpoint)
    told = {} if there is None else there.told()
    return bool(told) and "route" not in told


def as_usual(call: ProgramCall, example: Batch) -> Program:
    """The program as guides are built from: itself where it is `program(x, y)` with a site `y`, else a form of it."""
    plain = call.names == (OBSERVED,) and call.is_usual(example.x)
    return call.program if plain else call.as_program()


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ProgramPosterior(LatentPosterior):
    """q = the guide at the fitted values of its parameters, over the latents of a Pyro program.

    Its file holds all but the program, which `bayesuq.load(path, model=program)` is given again. On another device,
    tensors that the program makes itself are the program's affair.

    Attributes:
        program: As it was passed.
        build: From the program to the guide.
        values: The parameters of both by name, unconstrained.
        example: A row of the data, `x` and `y`, which guides get to see though they must not use it.
        history: How the fit went.
        observed: Names of the program's observed sites.
        local: Latents with numbers of their own for each row.
    """

    program: Program
    build: GuideBuilder
    values: Mapping[str, Tensor]
    example: Mapping[str, Tensor]
    history: History
    observed: tuple[str, ...] = (OBSERVED,)
    local: tuple[str, ...] = ()
    num_members: ClassVar[None] = None  # draws are without end

    def __post_init__(self) -> None:
        self.pair.put(self.values)  # now, so that a guide that is not the fitted one is refused at once

    @cached_property
    def pair(self) -> GuidedProgram:
        """The program and a guide of this posterior's own."""
        example = Batch(from_parts(self.rows), self.example["y"], None)
        return GuidedProgram(as_usual(self.call, example), self.build, example, seed=0)

    @property
    def rows(self) -> Mapping[str, Tensor]:  # type: ignore[override]  # what other classes store
        """The inputs of the example."""
        return {name: value for name, value in self.example.items() if name != "y"}

    def latents(self, index: int, seed: int) -> dict[str, Tensor]:
        """The latents at a draw of the guide."""
        return self.pair.draw(derive_seed(seed, index))

    @contextmanager
    def _alone(self, seed: int) -> Iterator[None]:
        with unless_kept(), self.pair.active(seed):
            yield

    def log_importance_ratios(self, data: Dataset, *, num_samples: int = 500, seed: int | None = None) -> Tensor:
        """log p(theta, y | x) - log q(theta) at S draws of q: see `VariationalPosterior.log_importance_ratios`."""
        rows = ProgramRows(self.program, self.observed, self.device, learns=True).open(data)
        return self.ratios_at(rows, check_count(num_samples, "num_samples"), resolve_seed(seed))

    def ratios_at(self, rows: Batch, num_samples: int, key: int) -> Tensor:
        """As `log_importance_ratios`, of rows as the program takes them."""
        ratios = []
        for index in range(num_samples):
            checked = pyro.validation_enabled(index == 0)  # the first draw is checked for all, as the first step is
            with torch.no_grad(), self.pair.active(derive_seed(key, index)), checked:
                guide_trace, trace = self.pair.traces(rows)
                ratios.append(trace.log_prob_sum().double() - guide_trace.log_prob_sum().double())
        return torch.stack(ratios)
