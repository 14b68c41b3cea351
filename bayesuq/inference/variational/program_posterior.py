"""Variational inference on a Pyro program of the user's own, and its posterior.

A program `program(x, y=None)` samples global latents and observes the site `y`, one row of it for each row of x:

    def program(x, y=None, num_data=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
            return pyro.sample("y", dist.Normal(slope * x[:, 0], 0.1), obs=y)

The family of `y` decides the predictive: Normal gives a GaussianPredictive, Categorical and Bernoulli a
CategoricalPredictive, StudentT and Poisson a MixturePredictive. A latent of its own for each row (in the plate of `y`)
has no posterior at a new row, so it is refused.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayesuq.arrays import as_labels, as_targets, check_count, check_device
from bayesuq.data import Batch, Dataset
from bayesuq.gradients import unless_kept
from bayesuq.inference.joint.program_call import Observed, ProgramCall, check_laws
from bayesuq.inference.joint.programs import (
    OBSERVED,
    GuideBuilder,
    Program,
    correlated,
    is_data,
    is_subsample,
    latent_sites,
    private_store,
)
from bayesuq.inference.posteriors.modes import warn_of_modes
from bayesuq.inference.posteriors.program import LatentPosterior, from_parts, parts_of
from bayesuq.inference.posteriors.program_reader import ProgramRows
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.convergence import num_ratios, warn_if_wide, warn_unless_reaching
from bayesuq.inference.training.history import History
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.minibatches import cast_rows
from bayesuq.inference.training.options import GLOBAL, QUALITY, STARTS, Training, sources
from bayesuq.inference.variational.guided_program import GuidedProgram, ProgramObjective
from bayesuq.inference.variational.normal_program import normal_objective
from bayesuq.inputs import require_tensor
from bayesuq.loaders import Data
from bayesuq.models.likelihoods.counts import check_counts
from bayesuq.predictive.laws import unwrapped
from bayesuq.randomness import derive_seed, resolve_seed

MOST_ROWS = 5_000_000  # over all draws, a matter of seconds: on larger data the reach is not looked at
REMEDY = "Raise `num_epochs`, or take guide=variational.full_rank, whose latents correlate, or chains: `hmc.fit`."
REMEDY_OF_CORRELATED = "Raise `num_epochs`, or take chains: `hmc.fit`."
MODES_REMEDY = "Take `hmc.fit` with several chains, or order what is interchangeable."
FAMILIES = (dist.Normal, dist.Categorical, dist.Bernoulli, dist.StudentT, dist.Poisson)


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
    program = copy.deepcopy(program) if isinstance(program, nn.Module) else program  # the user's stays as it is
    reader = reader_of(program, observed, training.device, data)
    with sources(reader, data, training) as (source, validation):
        if source.num_batches > 1 and not reader.takes_num_data:
            raise ValueError(
                "Minibatches need a program that takes `num_data` and scales its plate of `y` to it: "
                '`pyro.plate("data", num_data, subsample=torch.arange(len(x)))`. Add it, or fit all rows at once.'
            )
        needed = reader.needed(source.rows)
        together = source.workers.are_together
        if reader.local and (source.num_batches > 1 or together):
            raise ValueError(f"{LOCAL.format(names=', '.join(reader.local))} {LOCAL_REMEDY}")
        example = Batch(needed.x.clone(), needed.y.clone(), None)
        call = ProgramCall(reader.program, reader.observed)
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
            program=reader.program,
            build=build,
            values=pair.values(),
            example=parts_of(example.x) | {"y": example.y},
            history=history,
            observed=reader.observed,
            local=reader.local,
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
    if not pair.latents:
        raise ValueError(
            f"The program has no latent site when it runs on {len(example.y)} of the rows: nothing is to be inferred. "
            "One whose sites depend on the number of rows is taken by `hmc.fit` and `laplace.fit`."
        )
    pair.check_density(seed)
    return pair


def _goes_on_by_pyro(training: Training) -> bool:
    """Whether the fit goes on from a file that was begun by Pyro's estimate of the ELBO."""
    there = Checkpoint.of(training.checkpoint)
    told = {} if there is None else there.told()
    return bool(told) and "route" not in told


LOCAL = "The latents {names} belong to single rows of the data."
LOCAL_REMEDY = "Fit all rows at once (batch_size=len(data)), sample them by `hmc.fit`, or integrate them out."


def reader_of(
    program: Program, observed: Observed, device: torch.device | str | None, data: Data
) -> "ProgramReader | ProgramRows":
    """What reads rows for a program: one of a site `y` at one tensor of inputs learns it from the program alone."""
    names = (observed,) if isinstance(observed, str) else observed
    if names in (None, (OBSERVED,)):
        reader = ProgramReader(program, device)
        if not isinstance(data, Dataset) or reader.samples_usual(data):
            return reader
    return ProgramRows(program, observed, device, learns=True)


def as_usual(call: ProgramCall, example: Batch) -> Program:
    """The program as guides are built from: itself where it is `program(x, y)` with a site `y`, else a form of it."""
    plain = call.names == (OBSERVED,) and call.is_usual(example.x)
    return call.program if plain else call.as_program()


def takes_num_data(program: Program) -> bool:
    """Whether a program can be fitted by minibatches."""
    taken = inspect.signature(program.forward if isinstance(program, nn.Module) else program).parameters
    return "num_data" in taken or any(one.kind is one.VAR_KEYWORD for one in taken.values())


class ProgramReader:
    """Reads rows for a Pyro program, and learns from two rows what the program observes.

    Attributes:
        program: On its device.
        takes_num_data: Whether it can be fitted by minibatches.
    """

    def __init__(self, program: Program, device: torch.device | str | None) -> None:
        own = next(program.parameters(), None) if isinstance(program, nn.Module) else None
        self._device = (
            check_device(device) if device is not None else torch.device("cpu") if own is None else own.device
        )
        self.program = program.to(self._device) if isinstance(program, nn.Module) else program
        self.dtype = torch.get_default_dtype() if own is None else own.dtype
        self.takes_num_data = takes_num_data(program)

    @property
    def device(self) -> torch.device:
        """Where the rows go; the program must compute there."""
        return self._device

    @property
    def observed(self) -> tuple[str, ...]:
        """The one site."""
        return (OBSERVED,)

    @property
    def local(self) -> tuple[str, ...]:
        """None: they are refused."""
        return ()

    def needed(self, rows: Batch) -> Batch:
        """The rows that a run of the program needs."""
        return rows.at(slice(1))

    def samples_usual(self, data: Dataset) -> bool:
        """Whether the program draws a site `y` from one of `FAMILIES` when it is run on a row without targets."""
        if not isinstance(data.x, Tensor):
            return False
        try:
            site = self._trace(data.x[:1].to(self._device, self.dtype)).nodes.get(OBSERVED)
            has_rows = site is not None and site["fn"].shape()[:1] in ((), (1,))  # of one for all rows, told by `open`
            return has_rows and isinstance(unwrapped(site["fn"]), FAMILIES) and self._observes_it(data)
        except (TypeError, AttributeError, IndexError, NotImplementedError, RuntimeError, ValueError):
            return False  # nor a single one: what it needs is learned from all rows

    def _observes_it(self, data: Dataset) -> bool:
        """Whether targets go to the site `y` itself, and not to one beside it, as `obs_mask` makes."""
        x, y = data.x[:1].to(self._device, self.dtype), data.y[:1].to(self._device, self.dtype)
        row = Batch(x, y.reshape(1) if y.numel() == 1 else y, None)
        try:
            site = ProgramCall.of(self.program).trace(row).nodes.get(OBSERVED)
        except (TypeError, AttributeError, IndexError, NotImplementedError, RuntimeError, ValueError):
            return True  # told by `open`
        return site is None or is_data(site)

    def open(self, first: Dataset) -> Batch:
        """Run the program on one row and on two, and refuse what has no predictive."""
        require_tensor(first.x, "A Pyro program")
        x = first.x.to(self._device, self.dtype)
        one, two = (self._trace(rows) for rows in (x[:1], torch.cat([x[:1], x[:1]])))
        _check_observed(two)
        check_laws({name: two.nodes[name] for name in latent_sites(two)})
        _check_global(one, two)
        law = two.nodes[OBSERVED]["fn"]
        self._family = family(law)
        self._row_shape = (law.batch_shape + law.event_shape)[1:]
        self._num_classes = self._family.probs.shape[-1] if isinstance(self._family, dist.Categorical) else 2
        return self.read(first)

    def read(self, data: Dataset) -> Batch:
        """Rows with targets in the shape of the program's own `y`; nothing is ever broadcast."""
        if isinstance(self._family, dist.Normal | dist.StudentT | dist.Poisson):
            y = as_targets(data.y)
            if isinstance(self._family, dist.Poisson):
                check_counts(y)
        else:
            y = as_labels(data.y, num_classes=self._num_classes)
        shape = (len(y), *self._row_shape)
        if y.shape != shape and y.shape not in ((len(y), 1, *shape[1:]), shape[:1] + shape[2:]):
            raise ValueError(f"`y` of shape {tuple(data.y.shape)} is no value of the program's `y`, {tuple(shape)}.")
        y = y.reshape(shape)
        return cast_rows(
            data, y.to(self.dtype) if isinstance(self._family, dist.Bernoulli) else y, self.device, self.dtype
        )

    def _trace(self, x: Tensor) -> Any:
        """The program run forwards, with parameters that are then forgotten."""
        with private_store(), torch.no_grad():
            return poutine.trace(self.program).get_trace(x)


def family(law: Any) -> Any:
    """The law of single entries of `y`.

    Raises:
        TypeError: None that has a predictive.
    """
    base = law
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if not isinstance(base, FAMILIES):
        raise TypeError(
            f"The program observes `y` from a {type(base).__name__}; predictives exist for "
            f"{', '.join(kind.__name__ for kind in FAMILIES)}."
        )
    return base


def _check_observed(trace: Any) -> None:
    site = trace.nodes.get(OBSERVED)
    if site is None or site["type"] != "sample":
        names = [name for name, other in trace.nodes.items() if other["type"] == "sample" and not is_subsample(other)]
        raise ValueError(f"The program must sample a site named 'y', the targets; it has {', '.join(names) or 'none'}.")
    shape = site["fn"].batch_shape + site["fn"].event_shape
    if shape[:1] != (2,):
        raise ValueError(
            f"The program's `y` must have a row for each row of x; for 2 rows it has shape {tuple(shape)}."
        )
    family(site["fn"])


def _check_global(one: Any, two: Any) -> None:
    """Refuse latents that belong to single rows."""
    sizes = {frame.name: frame.size for frame in one.nodes[OBSERVED]["cond_indep_stack"]}
    stack = two.nodes[OBSERVED]["cond_indep_stack"]
    frames = {frame.name for frame in stack if sizes.get(frame.name) != frame.size}  # those of rows
    local = []
    for name in latent_sites(two):
        site = two.nodes[name]
        shared = frames & {frame.name for frame in site["cond_indep_stack"]}
        grows = name not in one.nodes or one.nodes[name]["value"].shape != site["value"].shape
        if shared or grows:
            local.append(name)
    if local:
        raise ValueError(
            f"The latents {', '.join(local)} belong to single rows of the data, so their posterior says nothing of new "
            "rows. Integrate them out, or index them by a group that new rows share."
        )


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

    @property
    def num_members(self) -> None:
        """Draws are without end."""
        return None

    def latents(self, index: int, seed: int) -> dict[str, Tensor]:
        """The latents at a draw of the guide."""
        return self.pair.draw(derive_seed(seed, index))

    @contextmanager
    def _alone(self, seed: int) -> Iterator[None]:
        with unless_kept(), self.pair.active(seed):
            yield

    def log_importance_ratios(self, data: Dataset, *, num_samples: int = 500, seed: int | None = None) -> Tensor:
        """log p(theta, y | x) - log q(theta) at S draws of q: see `VariationalPosterior.log_importance_ratios`."""
        rows = reader_of(self.program, self.observed, self.device, data).open(data)
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
