"""Microcanonical chains of a Pyro program: they move in its flat vector, and begin where chains of `hmc` do.

A program's density is no valley behind a hill, as a network's is: no optimiser goes before. All chains have one unit
of length in every coordinate, so that a program is written with latents of about one size, or draws are correlated.
"""

from dataclasses import dataclass

import torch

from bayesuq.data import Batch
from bayesuq.inference.chains.agreement import warn_unless_latents_agree
from bayesuq.inference.chains.identity import identity_of
from bayesuq.inference.chains.program_starts import ProgramStart, program_starts
from bayesuq.inference.joint.program_joint import ProgramJoint
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.microcanonical.run import Plan, Run
from bayesuq.inference.posteriors.program import ProgramChains, parts_of
from bayesuq.inference.posteriors.program_reader import ProgramRows
from bayesuq.inference.training.captured import warn_of_no_capture
from bayesuq.inference.training.checkpoint import Checkpoint, claimed_seed
from bayesuq.inference.training.identity import digest
from bayesuq.inference.training.minibatches import Source, all_rows
from bayesuq.inference.training.options import Training
from bayesuq.inference.training.shares import check_same_rows
from bayesuq.inference.training.workers import ALONE, Workers
from bayesuq.loaders import Data
from bayesuq.models.program import Observed, Program, check_program
from bayesuq.randomness import derive_seed, isolated

DATA, STARTS, CHAINS = range(3)  # what a fit's seed is split into


@dataclass(frozen=True)
class ProgramRun:
    """What a fit does, whatever the program.

    Attributes:
        num_chains: Chains.
        plan: How long they run, and how finely.
        key: The fit's seed.
        checkpoint: Beside which the chains write a file of theirs.
        device: Where to compute.
        progress: Whether to show a bar.
        workers: Processes that share the chains out.
    """

    num_chains: int
    plan: Plan
    key: int
    checkpoint: Checkpoint | None
    device: torch.device | str | None
    progress: bool | None
    workers: Workers = ALONE

    @classmethod
    def of(cls, plan: Plan, num_chains: int, training: Training) -> "ProgramRun":
        """Of a fit's options; those that train networks are left as they are.

        Raises:
            ValueError: Rows to watch, callbacks: nothing is trained.
        """
        if training.validation is not None or training.callbacks:
            raise ValueError(
                "Chains of a program begin without training: leave `validation` and `callbacks` out. To begin at a "
                "mode, pass `start=map_estimate.fit(program, data, ...)`."
            )
        if training.captured:
            warn_of_no_capture("chains of a program begin without training")
        file = Checkpoint.of(training.checkpoint)
        workers = Workers.of(training.data_parallel)
        key = claimed_seed(workers, file, training.seed)
        return cls(num_chains, plan, key, file, training.device, training.progress, workers)


def fit_program(
    program: Program, data: Data, observed: Observed, start: ProgramStart | None, run: ProgramRun
) -> tuple[ProgramChains, float]:
    """Chains of a program's latents, and the variance of the energy error that they reached, in nats squared.

    Raises:
        TypeError: No program, or a start of another kind.
        ValueError: See `hmc.fit`; a program of a single number.
    """
    check_program(program)
    reader = ProgramRows(program, observed, run.device)
    if run.workers.size > 1:
        check_same_rows(run.workers, data)
    with isolated(derive_seed(run.key, DATA)):  # which a loader may draw its order from
        rows = all_rows(Source(reader, data, batch_size=1))
    joint = reader.joint
    if joint.layout.size < 2:
        raise ValueError("A direction needs at least two numbers; the program's latents have one. Take `hmc.fit`.")
    potential = ProgramPotential(joint, rows)
    positions = program_starts(potential, start or "uniform", run.num_chains, derive_seed(run.key, STARTS))
    chains = Run(potential.at_rows, positions, run.plan, derive_seed(run.key, CHAINS), run.workers)
    if run.checkpoint is None:
        chains.finish(None, None, run.progress)
    else:
        contents = {"start": digest({"positions": positions})}
        identity = identity_of(potential, positions, run.plan.told(run.key), run.plan.num_samples, contents)
        chains.finish(run.checkpoint.of_part("chains"), identity, run.progress)
    warn_unless_latents_agree(chains.draws, joint.layout.slices())
    return _posterior(joint, rows, chains), chains.energy_variance()


def _posterior(joint: ProgramJoint, rows: Batch, chains: Run) -> ProgramChains:
    needed = joint.needed(rows)
    return ProgramChains(
        program=joint.call.program,
        observed=joint.observed,
        local=joint.layout.local,
        rows=parts_of(needed.x),
        draws=joint.thetas(chains.draws, rows),
        statistics=chains.told,
        warmup_statistics={},
        inverse_mass=chains.draws.new_zeros(len(chains.draws), 0),
    )
