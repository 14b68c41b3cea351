"""The mode of a Pyro program's joint density, by Adam on minibatches and, where all rows are at hand, L-BFGS after it.

theta* = argmax log p(theta, y | x)      of the latents on their own support, or, with the volume, of the flat vector
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesuq.data import Batch, Dataset
from bayesuq.inference.joint.program_call import ProgramCall
from bayesuq.inference.joint.program_joint import ProgramJoint, running
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.posteriors.modes import MOST_TRIES, RADIUS, polished
from bayesuq.inference.posteriors.program import LatentPosterior, parts_of
from bayesuq.inference.posteriors.program_reader import ProgramRows
from bayesuq.inference.training.history import History
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.training.options import NOISE, Training, sources
from bayesuq.loaders import Data
from bayesuq.models.program import Observed, Program, check_program
from bayesuq.randomness import derive_seed, generator


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ProgramMode(LatentPosterior):
    """All mass on one value of a program's latents.

    Attributes:
        program: As in `LatentPosterior`, like the following.
        observed: See there.
        local: See there.
        rows: See there.
        values: Of each latent, on its own support.
        history: How the fit went.
    """

    program: Program
    observed: tuple[str, ...]
    local: tuple[str, ...]
    rows: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    history: History

    @property
    def num_members(self) -> int:
        """One."""
        return 1

    def latents(self, index: int, seed: int) -> dict[str, Tensor]:  # noqa: ARG002 - there is one member
        """The one member."""
        return dict(self.values)


@dataclass(frozen=True, eq=False)
class ProgramSession:
    """A program with its data opened.

    Attributes:
        joint: The joint density.
        source: The data in minibatches.
        validation: Rows that are watched, or None.
    """

    joint: ProgramJoint
    source: Source
    validation: Source | None

    @property
    def rows(self) -> Batch | None:
        """All rows, where they are at hand."""
        return self.source.rows if self.source.loader is None else None


@contextmanager
def program_session(
    program: Program, data: Data, training: Training, observed: Observed
) -> Iterator[tuple[ProgramSession, Training]]:
    """Check a program and its data; all rows make one batch where the program cannot take fewer.

    Raises:
        TypeError: No program.
        ValueError: See `ProgramJoint.of`; minibatches, and a program that does not scale to `num_data`.
    """
    check_program(program)
    call = ProgramCall.of(program, observed)
    if not call.takes_num_data and isinstance(data, Dataset):
        training = replace(training, batch_size=len(data))
    reader = ProgramRows(program, observed, training.device)
    with sources(reader, data, training) as (source, validation):
        joint = reader.joint
        if source.num_batches > 1:
            reader.call.check_minibatches(source.rows)
        if source.num_batches > 1 and joint.layout.local:
            raise ValueError(
                f"The latents {', '.join(joint.layout.local)} belong to single rows, which minibatches leave out in "
                "turn. Pass batch_size=len(data), or sample them: `hmc.fit`."
            )
        yield ProgramSession(joint, source, validation), training


def fit_program_mode(program: Program, data: Data, training: Training, observed: Observed) -> ProgramMode:
    """The mode of the latents on their own support."""
    with program_session(program, data, training, observed) as (opened, training):
        flat, history = find_mode(opened, training, with_volume=False)
        joint, rows = opened.joint, opened.source.rows
        needed = joint.needed(rows)
        return ProgramMode(
            program=joint.call.program,
            observed=joint.observed,
            local=joint.layout.local,
            rows=parts_of(needed.x),
            values=joint.theta(flat, needed),
            history=history,
        )


def find_mode(opened: ProgramSession, training: Training, *, with_volume: bool) -> tuple[Tensor, History]:
    """The flat vector (P,) at the mode, and how Adam went."""
    whole = opened.source.num_batches == 1 and opened.rows is not None
    search = ModeSearch(opened, training, with_volume=with_volume, whole=whole)
    history = minimise(search.objective(), opened.source, opened.validation, training)
    flat = search.flat.detach().clone()
    rows = opened.rows
    if rows is not None and opened.validation is None:
        potential = search.potential or ProgramPotential(opened.joint, rows, with_volume=with_volume)
        flat = polished(potential, flat)
    return flat, history


class ModeSearch:
    """Minus the log joint as a function of the flat vector, for the minibatch loop.

    Attributes:
        flat: The vector, which moves.
        potential: Of all rows, where each step reads them.
    """

    def __init__(self, opened: ProgramSession, training: Training, *, with_volume: bool, whole: bool) -> None:
        self.joint, self.num_data, self.with_volume = opened.joint, opened.source.num_data, with_volume
        rows = opened.source.rows
        self.potential = ProgramPotential(self.joint, rows, with_volume=with_volume) if whole else None
        self.is_polished = opened.rows is not None and opened.validation is None
        self.flat = self._start(rows, training.key(NOISE))

    def objective(self) -> Objective:
        """What the loop needs."""
        return Objective(
            leaves={"latents": self.flat},
            loss_and_grads=self.loss_and_grads,
            log_predictive=self.log_predictive,
            culprits=self.culprits,
            identity=f"mode of {self.joint!r}{' with volume' if self.with_volume else ''}",
            options={**self.joint.sites(), "with_volume": self.with_volume},
            comes_to_rest=not self.is_polished,
        )

    def loss_and_grads(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        """Minus the log joint in nats, estimated from a minibatch."""
        if self.potential is not None:
            value, gradient = self.potential.at(self.flat.detach())
            self.flat.grad = gradient
            return torch.tensor(value, dtype=self.flat.dtype, device=self.flat.device)
        num_data = self.num_data if self.joint.call.takes_num_data else None
        with running():
            found, gradient = self.joint.value_and_grad(self.flat, batch, num_data, with_volume=self.with_volume)
        self.flat.grad = gradient
        return found

    def log_predictive(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        """log p(y | x, theta) of each row, over all observed sites."""
        return self.joint.row_log_prob(self.flat.detach(), batch)

    def culprits(self, batch: Batch, _noise: torch.Generator) -> list[str]:
        """Latents that are not finite, or else observed sites whose terms are not."""
        slices = self.joint.layout.slices()
        broken = [name for name, where in slices.items() if not self.flat[where].isfinite().all()]
        if broken:
            return broken
        with running(), torch.no_grad():
            observed = self.joint.terms(self.flat.detach(), batch).observed
        return [name for name, one in observed.items() if not one["fn"].log_prob(one["value"]).isfinite().all()]

    def _start(self, rows: Batch, key: int) -> Tensor:
        """The first point, drawn evenly on the real line, at which the density is finite."""
        like = self.joint.probe(0.0)
        for attempt in range(MOST_TRIES):
            share = torch.rand(len(like), dtype=like.dtype, generator=generator(derive_seed(key, attempt)))
            flat = RADIUS * (2 * share - 1).to(like.device)
            with running():
                value, gradient = self.joint.value_and_grad(flat, rows, with_volume=self.with_volume)
            if value.isfinite() and gradient.isfinite().all():
                return flat
        raise ValueError(
            f"The program's density is not finite at any of {MOST_TRIES} starting points. Look whether its laws can "
            "give these targets, or standardise the data."
        )
