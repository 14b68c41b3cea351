"""How several chains are run: one after another, in processes of their own, or all in one vectorised pass.

The first two give the same bits, because a chain depends on its own seed alone and always computes on one thread.
"""

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from threading import Thread
from time import sleep
from typing import Literal

import torch
from joblib import Parallel, delayed
from joblib.externals.loky.backend import resource_tracker
from threadpoolctl import threadpool_limits
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.chains.hamiltonian import Hmc, Kernel
from bayesuq.inference.chains.potential import NetworkPotential
from bayesuq.inference.chains.run import Chains, End, Plan, Watch, go_on, run
from bayesuq.inference.chains.starts import Constants
from bayesuq.inference.joint.program_joint import ProgramJoint
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.cost import seconds_of, warn_of_seconds
from bayesuq.inference.training.identity import Identity, digest
from bayesuq.inference.training.workers import ALONE, Workers
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.precision import full_precision
from bayesuq.randomness import derive_seed

ChainMethod = Literal["sequential", "parallel", "vectorised"]
PROCESSES_PAY = 20.0  # seconds of work, by a rough estimate; starting processes takes some
MOST_LOST = 5.0  # seconds between two checkpoints of a chain in a process of its own
BETWEEN_LOOKS = 0.2  # seconds, of a process at whether its parent is there
USUAL_STEPS = 30  # leapfrog steps of a transition, for that estimate
NETWORK_STEPS = 127  # of one that turns back after 2^7 - 1, as those of networks often do
HARMLESS = "ignore:resource_tracker:UserWarning"  # what loky's tracker says when it cleans up after a killed process
LARGEST_TOGETHER = 2**18  # weights and activations of a chain, up to which one pass was measured to be faster


@dataclass(frozen=True, eq=False)
class Job:
    """All that a process needs to know of a fit.

    Attributes:
        model: The joint density, of a network or a program.
        rows: All data.
        constants: What does not move in a network.
        kernel: The transition.
        plan: How long.
        seed: Of the fit.
        fit: What tells it from others, for checkpoints; None without them.
        checkpoint: The fit's file; chains have files of their own beside it.
        progress: Whether to show bars.
        ends: Where chains ended that are to go on, as `End.of` takes them; None for new ones.
    """

    model: BayesianNetwork | ProgramJoint
    rows: Batch
    constants: Constants
    kernel: Kernel
    plan: Plan
    seed: int
    fit: Identity | None
    checkpoint: Checkpoint | None
    progress: bool
    ends: Mapping[str, Tensor] | None = None

    def potential(self) -> NetworkPotential | ProgramPotential:
        """The energy, with buffers of its own."""
        if isinstance(self.model, ProgramJoint):
            return ProgramPotential(self.model, self.rows)
        return NetworkPotential(self.model, self.rows, fixed=self.constants.fixed, buffers=self.constants.buffers)

    def watch(self, name: str, positions: Tensor, line: int = 0, parent: int | None = None) -> Watch:
        """For the run of this name, from positions (C, P), in a process of its own where that has a parent."""
        if self.checkpoint is None or self.fit is None:
            return Watch(None, None, self.progress, name, line)
        fit = replace(
            self.fit,
            options={**self.fit.options, "part": name},
            contents={**self.fit.contents, "start": digest({"positions": positions})},
            before={**self.fit.before, "part": name},
        )
        return Watch(self.checkpoint.of_part(name), fit, self.progress, name, line, parent)


@full_precision()  # differences of energies decide
def run_chains(
    job: Job,
    positions: Tensor,
    method: ChainMethod,
    potential: NetworkPotential | ProgramPotential | None = None,
    workers: Workers = ALONE,
) -> Chains:
    """Chains from `positions` (C, P); those of this process move in `potential`, where the caller has it already.

    Of several workers, by "sequential", each runs the chains of its number modulo theirs, and all get all.
    """
    if method == "parallel":
        work = (delayed(_run_apart)(_hurried(job), positions[c : c + 1], c, os.getpid()) for c in range(len(positions)))
        processes = min(len(positions), num_cores())
        _start_tracker()
        return Chains.joined(Parallel(n_jobs=processes, backend="loky")(work))
    potential = job.potential() if potential is None else potential
    if method == "vectorised":
        return _moved(job, positions, 0, potential, job.watch("chains", positions))
    known = potential
    mine = range(workers.rank, len(positions), workers.size)
    own = workers.agreed(lambda: {c: _run_one(job, positions[c : c + 1], c, known) for c in mine})
    if not workers.are_together:
        return Chains.joined([own[c] for c in range(len(positions))])
    found = [(c % workers.size, own.get(c)) for c in range(len(positions))]
    sent = [workers.tensors(None if one is None else one.tensors(), owner) for owner, one in found]
    return Chains.joined([Chains.of(tensors) for tensors in sent])


def _start_tracker() -> None:
    """Start loky's process that cleans up after killed ones without its warnings; its options are ours."""
    sys.warnoptions.append(HARMLESS)
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(HARMLESS)


def _hurried(job: Job) -> Job:
    """With checkpoints in short order: processes are ended unasked when the one that they work for is interrupted."""
    if job.checkpoint is None:
        return job
    seconds = min(job.checkpoint.every_seconds, MOST_LOST)
    return replace(job, checkpoint=replace(job.checkpoint, every_seconds=seconds))


def _run_apart(job: Job, position: Tensor, chain: int, parent: int) -> Chains:
    """As `_run_one`, in a process that ends with its parent."""
    if os.getpid() == parent:  # joblib has none to give within its own workers, and makes none for one at a time
        return _run_one(job, position, chain, job.potential())
    _follow(parent)
    return _run_one(job, position, chain, job.potential(), line=chain, parent=parent)


@cache
def _follow(parent: int) -> None:
    """End this process soon after its parent has ended, however it has; once for all runs in it."""

    def look() -> None:
        while os.getppid() == parent:
            sleep(BETWEEN_LOOKS)
        os._exit(1)

    Thread(target=look, daemon=True).start()


def _run_one(
    job: Job,
    position: Tensor,
    chain: int,
    potential: NetworkPotential | ProgramPotential,
    line: int = 0,
    parent: int | None = None,
) -> Chains:
    """One chain, on one thread: sums in another order would have other bits."""
    with one_thread():
        return _moved(job, position, chain, potential, job.watch(f"chain-{chain}", position, line, parent))


def _moved(
    job: Job, positions: Tensor, number: int, potential: NetworkPotential | ProgramPotential, watch: Watch
) -> Chains:
    """The run of this number."""
    if job.ends is not None:
        return go_on(potential, job.kernel, End.of(job.ends, number), job.plan, watch)
    return run(potential, job.kernel, positions, job.plan, derive_seed(job.seed, number), watch)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):  # NumPy's
            yield
    finally:
        torch.set_num_threads(before)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@dataclass(frozen=True, eq=False)
class Cost:
    """What a gradient over all rows costs, timed when it is first asked for.

    Attributes:
        potential: Whose gradient it is.
        position: Where it is taken, (P,).
    """

    potential: NetworkPotential | ProgramPotential
    position: Tensor

    @cached_property
    def seconds(self) -> float:
        """Of the second gradient of two, on one thread."""
        with one_thread():
            self.potential.at(self.position)
            return seconds_of(lambda: self.potential.at(self.position))


def choose_method(job: Job, cost: Cost, num_chains: int, *, together: bool) -> ChainMethod:
    """What is fastest; between methods whose draws differ, sizes alone decide, never a clock.

    Args:
        job: What is to be done.
        cost: Of a gradient of the job's potential.
        num_chains: C.
        together: Whether the kernel can move several chains at once.
    """
    potential = cost.potential
    on_cpu = job.model.device.type == "cpu"
    is_small = not on_cpu or potential.work() <= LARGEST_TOGETHER
    if together and num_chains > 1 and is_small and potential.can_vectorise():
        return "vectorised"
    if not on_cpu or num_chains == 1 or num_cores() == 1:
        return "sequential"
    estimate = cost.seconds * USUAL_STEPS * job.plan.num_transitions * num_chains
    return "parallel" if estimate > PROCESSES_PAY else "sequential"


def check_method(
    job: Job, potential: NetworkPotential | ProgramPotential, method: ChainMethod, *, together: bool
) -> None:
    """Raise a ValueError where a method is not possible."""
    if method == "parallel" and job.model.device.type != "cpu":
        raise ValueError("Chains in processes of their own compute on the CPU; pass chain_method='vectorised' or None.")
    if method == "vectorised" and not together:
        raise ValueError(
            "NUTS chains make different numbers of steps and cannot move together. Pass kernel='hmc', or "
            "chain_method='parallel'."
        )
    if method == "vectorised" and not potential.can_vectorise():
        raise ValueError(
            "The model cannot be vectorised: it is a program, or branches on values. Pass chain_method='parallel'."
        )


def warn_of_cost(job: Job, cost: Cost, num_chains: int, method: ChainMethod) -> None:
    """Warn, before chains that take long begin, of how long that is: by what one gradient takes.

    Trajectories of NUTS are as long as they turn out; networks usually need a hundred steps and more.
    """
    steps = job.kernel.num_steps if isinstance(job.kernel, Hmc) else NETWORK_STEPS
    number = steps * job.plan.num_transitions
    together = min(num_chains, num_cores()) if method == "parallel" else 1
    seconds = cost.seconds * number * math.ceil(num_chains / together)
    warn_of_seconds(
        seconds,
        f"The chains have {{}} to go: a gradient over all {len(job.rows.y)} rows takes {1000 * cost.seconds:.2g} ms, "
        f"and {num_chains} chains make {job.plan.num_transitions} transitions each, of some {steps} leapfrog steps. "
        "Lower `num_samples` and `num_warmup`, fit fewer rows, or take `laplace`, `variational` or `ensemble`, whose "
        "fits read minibatches.",
    )
