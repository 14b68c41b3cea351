"""Hamiltonian Monte Carlo: draws from the posterior itself, by NUTS or by trajectories of plain HMC.

    H(u, r) = U(u) + r^T M^-1 r / 2,   du/dt = M^-1 r,   dr/dt = -dU/du,   U(u) = -log p(theta(u), y | x) |d theta / du|

Chains that ran long enough, and agree, are the reference that other methods are measured by. They need gradients over
all rows, tens or hundreds of them for one draw: small networks and data only.

Reference:
    Hoffman & Gelman 2014, The No-U-Turn Sampler; Betancourt 2017, A Conceptual Introduction to Hamiltonian Monte Carlo;
    Neal 1996, Bayesian Learning for Neural Networks.
"""

import sys
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from bayesuq.arrays import check_count, check_fraction, check_one_of, check_positive
from bayesuq.columns import keeps_names
from bayesuq.data import Batch
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.chains.agreement import (
    warn_unless_agreed,
    warn_unless_draws_agree,
    warn_unless_latents_agree,
)
from bayesuq.inference.chains.descent import Descent
from bayesuq.inference.chains.hamiltonian import Hmc, Kernel
from bayesuq.inference.chains.identity import identity_of
from bayesuq.inference.chains.mass import LARGEST_DENSE, MassName
from bayesuq.inference.chains.nuts import Nuts
from bayesuq.inference.chains.potential import NetworkPotential
from bayesuq.inference.chains.processes import (
    ChainMethod,
    Cost,
    Job,
    check_method,
    choose_method,
    run_chains,
    warn_of_cost,
)
from bayesuq.inference.chains.program_starts import ProgramStart, program_starts
from bayesuq.inference.chains.run import REFUSED, STUCK, Chains, Plan
from bayesuq.inference.chains.scores import warn_unless_scored
from bayesuq.inference.chains.starts import Constants, Start, starting_points
from bayesuq.inference.hmc.onwards import FIXED, check_same_density, ends_of, kernel_of, longer, seed_of
from bayesuq.inference.hmc.posterior import HmcPosterior
from bayesuq.inference.joint.program_joint import ProgramJoint
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.posteriors.heads import on_features
from bayesuq.inference.posteriors.program import ProgramChains, parts_of
from bayesuq.inference.posteriors.program_reader import ProgramRows
from bayesuq.inference.training.checkpoint import Checkpoint, claimed_seed
from bayesuq.inference.training.column_scales import warn_of_scales
from bayesuq.inference.training.identity import ADDRESS, Identity, digest
from bayesuq.inference.training.minibatches import NetworkReader, Reader, Source, all_rows
from bayesuq.inference.training.shares import check_same_rows
from bayesuq.inference.training.workers import ALONE, Group, Workers
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.program import Observed, Program, check_program, check_unnamed
from bayesuq.options import suggests_names
from bayesuq.randomness import derive_seed, isolated
from bayesuq.storage import below

__all__ = ["extend", "fit"]
__dir__ = __all__.copy

KernelName = Literal["nuts", "hmc"]
ChainsT = TypeVar("ChainsT", bound=HmcPosterior | ProgramChains)
NUM_STEPS = 32
OFTEN = 0.05  # of all draws at the bound on the tree's depth
DATA, STARTS, CHAINS = range(3)  # what a fit's seed is split into


@suggests_names
@keeps_names
@on_features()
def fit(
    model: BayesianNetwork | Program,
    data: Data,
    *,
    observed: Observed = None,
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_chains: int = 4,
    kernel: KernelName = "nuts",
    chain_method: ChainMethod | None = None,
    start: Start | ProgramStart | None = None,
    target_acceptance: float = 0.8,
    max_tree_depth: int = 10,
    num_steps: int | None = None,
    trajectory_length: float | None = None,
    step_size: float | None = None,
    mass: MassName = "diagonal",
    thinning: int = 1,
    keep_warmup_statistics: bool = True,
    data_parallel: bool | Group = False,
    device: torch.device | str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    checkpoint: Checkpoint | str | PathLike[str] | None = None,
) -> HmcPosterior | ProgramChains:
    """Draw from the posterior by chains of Hamiltonian Monte Carlo.

    Args:
        model: The joint density: a network, whose normalisation layers are in evaluation mode, with the buffers of
            `start` or its own; or a Pyro program, whose latents may belong to single rows.
        data: Rows to fit, or a DataLoader of them, which is read once: all rows are held in memory. A program takes
            inputs of several parts as so many arguments.
        observed: Of a program, the name of the observed site, or all of them where there are several, which share the
            columns of y in order; None takes what it observes.
        num_samples: Draws of each chain that are kept.
        num_warmup: Transitions of each chain before, in which step size and scales are adapted (as Stan does).
        num_chains: Number of chains.
        kernel: "nuts", whose trajectories end where they would turn back; or "hmc", of `num_steps` on average.
        chain_method: "sequential", one chain after another; "parallel", in processes of their own, with the same bits
            (a script then needs the `if __name__ == "__main__"` guard on systems that spawn); "vectorised", all chains
            of plain HMC in one pass, with one step size and one set of scales adapted to all of them. None takes the
            vectorised pass for plain HMC of networks that are small enough for it to be faster, and processes where
            they are worth their start.
        start: "prior" begins each chain at a draw from the prior, which makes them overdispersed, as R-hat asks for; a
            fitted posterior of the same model begins each at a draw from it. Sites learned as point values stay at that
            posterior's values. None is the prior for networks, and for programs, whose priors may be very wide,
            "uniform": each latent's number on the real line between -2 and 2, as Stan has it.
        target_acceptance: Mean acceptance that the step size is adapted to; closer to 1 means smaller steps.
        max_tree_depth: NUTS makes at most 2^max_tree_depth - 1 leapfrog steps a transition.
        num_steps: Mean number of leapfrog steps of plain HMC, whose number is drawn evenly from 1 to 2 num_steps - 1;
            None is 32.
        trajectory_length: Instead of it, step size times mean number of steps, in units of the adapted scales.
        step_size: Where its adaptation begins (with num_warmup=0: the one that is used); None finds one.
        mass: Which scales the warm-up learns: "diagonal", one of every number; or "dense", with the correlations of all
            P numbers, where a posterior is long and narrow along no axis: far fewer steps a draw then, at P^2 numbers
            a chain and P^2 operations a step, P at most 4,096. Give it a warm-up of more transitions than numbers.
        thinning: Transitions for one kept draw.
        keep_warmup_statistics: Whether the statistics of the warm-up are kept.
        data_parallel: Whether the processes that `torchrun` has started, or those of a `torch.distributed` group, share
            out the chains: each, to which all rows are passed, runs some of them, one after another, and all get all
            draws, with the bits of one process.
        device: Where to compute; None is where the model is. Chains on the CPU compute on one thread each.
        seed: Makes the fit repeatable; None draws one from torch's generator.
        progress: Whether to show a bar for each chain; None shows it on a terminal and in a notebook.
        checkpoint: A path, or a `Checkpoint` of one, that keeps the seed; chains write files beside it, and the same
            fit called again goes on from them and ends with the same bits.

    Returns:
        All draws, with the sampler's statistics of each: an `HmcPosterior` over weights, `ProgramChains` of a program's
        latents.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the network, the likelihood or the program does not take; options out of range, or that
            contradict each other; sites learned as point values without a posterior to `start` from, or in a program;
            observed sites that are not those named; a log joint that is nowhere finite.

    Warns:
        UserWarning: The chains have more than ten minutes to go, by what a gradient takes.
        ConvergenceWarning: The chains disagree in what they predict at some of the rows, or in a program's latents;
            some predict their rows much worse than others, than what they began at, than a constant or than where a
            short descent from their end leads; some refused all of the warm-up; trajectories diverged, or had the
            greatest length.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.5))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> posterior = fit(model, data, num_samples=100, num_warmup=100, num_chains=2, seed=0)
        >>> posterior.predict(data.x).num_samples, posterior.num_divergences
        (200, 0)
    """
    plan = _plan(num_samples, num_warmup, thinning, step_size, target_acceptance, keep_warmup_statistics)
    check_one_of(mass, "mass", MassName)
    plan = replace(plan, mass=mass)
    transition = _kernel(kernel, max_tree_depth, num_steps, trajectory_length)
    check_count(num_chains, "num_chains")
    if chain_method is not None:
        check_one_of(chain_method, "chain_method", ChainMethod)
    file, workers = Checkpoint.of(checkpoint), Workers.of(data_parallel)
    if workers.are_together:
        if chain_method not in (None, "sequential"):
            raise ValueError(f"Processes share out sequential chains; got chain_method {chain_method!r}. Leave it out.")
        chain_method, progress = "sequential", progress if workers.is_first else False
    key = claimed_seed(workers, file, seed)
    shown = sys.stderr.isatty() if progress is None else progress
    run = _Run(transition, plan, num_chains, chain_method, key, file, shown, max_tree_depth, workers=workers)
    if isinstance(model, BayesianNetwork):
        check_unnamed(observed)
        return _fit_network(model if device is None else model.to(device), data, start or "prior", run)
    check_program(model)
    return _fit_program(ProgramRows(model, observed, device), data, start or "uniform", run)


@suggests_names
def extend(
    posterior: ChainsT,
    data: Data,
    *,
    num_samples: int = 1000,
    chain_method: ChainMethod | None = None,
    progress: bool | None = None,
) -> ChainsT:
    """Draw more from chains that were fitted: they go on where they ended, with the same scales and step sizes.

    The draws are those of one longer fit, bit for bit, whatever chains were saved and loaded in between.

    Args:
        posterior: What `fit` gave, or this function.
        data: The rows that were fitted; posteriors do not hold them.
        num_samples: Further draws of each chain.
        chain_method: See `fit`.
        progress: See `fit`.

    Returns:
        A posterior of the draws of before and these behind them.

    Raises:
        TypeError: No such posterior.
        ValueError: Chains of another sampler, or of a file of before, which do not hold where they ended; data that
            are not those that were fitted.

    Warns:
        ConvergenceWarning: See `fit`; it is asked of all draws.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.5))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> posterior = fit(model, data, num_samples=50, num_warmup=100, num_chains=2, seed=0)
        >>> extend(posterior, data, num_samples=50).draws.shape[:2]
        torch.Size([2, 100])
    """
    if not isinstance(posterior, HmcPosterior | ProgramChains):
        raise TypeError(f"`posterior` must be what `hmc.fit` gave; got {type(posterior).__name__}.")
    if not posterior.ends:
        raise ValueError(
            "These chains do not hold where they ended: they come from another sampler, or from a file of an earlier "
            "version. Begin new ones there: `hmc.fit(model, data, start=posterior)`."
        )
    check_count(num_samples, "num_samples")
    if chain_method is not None:
        check_one_of(chain_method, "chain_method", ChainMethod)
    ends = posterior.ends
    together = len(ends["noise"]) < posterior.num_chains
    if together or (chain_method is None and posterior.num_chains == 1):
        chain_method = "vectorised" if together else "sequential"
    kernel, plan = kernel_of(ends), Plan(num_samples, 0, int(ends["thinning"]))
    shown = sys.stderr.isatty() if progress is None else progress
    depth = kernel.max_tree_depth if isinstance(kernel, Nuts) else 0
    run = _Run(kernel, plan, posterior.num_chains, chain_method, seed_of(ends), None, shown, depth, posterior)
    extended: Any = (
        _extend_network(posterior, data, run)
        if isinstance(posterior, HmcPosterior)
        else _extend_program(posterior, data, run)
    )
    return extended


@dataclass(frozen=True)
class _Run:
    """The options of a fit that do not depend on the model."""

    kernel: Kernel
    plan: Plan
    num_chains: int
    chain_method: ChainMethod | None
    key: int
    checkpoint: Checkpoint | None
    progress: bool
    max_tree_depth: int
    ended: HmcPosterior | ProgramChains | None = None
    workers: Workers = ALONE

    def rows(self, reader: Reader, data: Data) -> Batch:
        """All rows; a loader may draw their order."""
        if self.workers.are_together and self.workers.size > 1:
            check_same_rows(self.workers, data)
        with isolated(derive_seed(self.key, DATA)):
            return all_rows(Source(reader, data, batch_size=1))

    def job(self, model: BayesianNetwork | ProgramJoint, rows: Batch, constants: Constants) -> Job:
        """What the processes need to know, without what tells the fit from others."""
        seed = derive_seed(self.key, CHAINS)
        ended = self.ended
        ends = None if ended is None else {**ended.ends, "inverse_mass": ended.inverse_mass}
        return Job(model, rows, constants, self.kernel, self.plan, seed, None, self.checkpoint, self.progress, ends)

    def chains(self, job: Job, potential: NetworkPotential | ProgramPotential, positions: Tensor) -> Chains:
        """Run them."""
        self._check_mass(positions.shape[1])
        if self.checkpoint is not None:
            job = replace(job, fit=_identity(job, potential, positions, self.key))
        together, method, cost = isinstance(self.kernel, Hmc), self.chain_method, Cost(potential, positions[0])
        if method is None:
            method = choose_method(job, cost, self.num_chains, together=together)
        else:
            check_method(job, potential, method, together=together)
        warn_of_cost(job, cost, self.num_chains, method)
        chains = run_chains(job, positions, method, potential, self.workers)
        _warn(chains, self.max_tree_depth)
        return replace(chains, ends=ends_of(chains, self.kernel, self.plan, self.key, job.constants.fixed))

    def _check_mass(self, size: int) -> None:
        """Refuse a dense mass of more numbers than a matrix should have."""
        if self.plan.mass == "dense" and size > LARGEST_DENSE:
            raise ValueError(
                f"mass='dense' takes at most {LARGEST_DENSE:,} numbers, since it holds the covariance of all pairs; "
                f"these are {size:,}. Leave it at 'diagonal'."
            )

    def further(
        self, ended: HmcPosterior | ProgramChains, job: Job, potential: NetworkPotential | ProgramPotential
    ) -> Chains:
        """The draws behind those that there are."""
        positions = ended.ends["positions"]
        check_same_density(potential, positions, ended.statistics["lp"][:, -1])
        return self.chains(job, potential, positions)


@torch.enable_grad()  # whatever the caller has turned off
def _fit_network(model: BayesianNetwork, data: Data, start: Any, run: _Run) -> HmcPosterior:
    model.likelihood.check_density()
    constants = Constants.of(model, start)
    rows = run.rows(NetworkReader(model), data)
    warn_of_scales(model.likelihood, rows)
    job = run.job(model, rows, constants)
    potential = NetworkPotential(model, rows, fixed=constants.fixed, buffers=constants.buffers)
    positions = starting_points(potential, start, run.num_chains, derive_seed(run.key, STARTS))
    posterior = _posterior(model, constants, run.chains(job, potential, positions))
    warn_unless_agreed(posterior, rows)
    descent = Descent.after(_num_gradients(posterior), lambda flat: potential.at(flat)[1], potential.layout)
    warn_unless_scored(posterior, rows, start, descent)
    return posterior


def _fit_program(reader: ProgramRows, data: Data, start: Any, run: _Run) -> ProgramChains:
    rows = run.rows(reader, data)
    joint = reader.joint
    potential = ProgramPotential(joint, rows)
    positions = program_starts(potential, start, run.num_chains, derive_seed(run.key, STARTS))
    chains = run.chains(run.job(joint, rows, Constants({}, {})), potential, positions)
    warn_unless_latents_agree(chains.draws, joint.layout.slices())
    return ProgramChains(
        program=reader.call.program,
        observed=joint.observed,
        local=joint.layout.local,
        rows=parts_of(joint.needed(rows).x),
        draws=joint.thetas(chains.draws, rows),
        statistics=chains.statistics,
        warmup_statistics=chains.warmup_statistics,
        inverse_mass=chains.inverse_mass,
        ends=chains.ends,
    )


def _extend_network(posterior: HmcPosterior, data: Data, run: _Run) -> HmcPosterior:
    model = posterior.model
    constants = Constants(below(FIXED, posterior.ends), posterior.buffers)
    rows = run.rows(NetworkReader(model), data)
    potential = NetworkPotential(model, rows, fixed=constants.fixed, buffers=constants.buffers)
    chains = run.further(posterior, run.job(model, rows, constants), potential)
    extended = replace(
        posterior,
        draws=torch.cat([posterior.draws, constants.behind(model, chains.draws)], dim=1),
        statistics=longer(posterior.statistics, chains.statistics),
        ends=chains.ends,
    )
    warn_unless_agreed(extended, rows)
    return extended


def _extend_program(posterior: ProgramChains, data: Data, run: _Run) -> ProgramChains:
    reader = ProgramRows(posterior.program, posterior.observed, posterior.device)
    rows = run.rows(reader, data)
    joint = reader.joint
    job, potential = run.job(joint, rows, Constants({}, {})), ProgramPotential(joint, rows)
    chains = run.further(posterior, job, potential)
    draws = longer(posterior.draws, joint.thetas(chains.draws, rows))
    warn_unless_draws_agree(draws)
    return replace(posterior, draws=draws, statistics=longer(posterior.statistics, chains.statistics), ends=chains.ends)


def _num_gradients(posterior: HmcPosterior) -> float:
    """Gradients that all chains took; without those of a warm-up that was not kept."""
    told = (posterior.statistics, posterior.warmup_statistics)
    return float(sum(table["n_steps"].sum() for table in told if "n_steps" in table))


def _plan(
    num_samples: int,
    num_warmup: int,
    thinning: int,
    step_size: float | None,
    target_acceptance: float,
    keep_warmup_statistics: bool,
) -> Plan:
    check_count(num_samples, "num_samples")
    check_count(num_warmup, "num_warmup", minimum=0)
    check_count(thinning, "thinning")
    check_fraction(target_acceptance, "target_acceptance")
    if step_size is not None:
        check_positive(step_size, "step_size")
    return Plan(num_samples, num_warmup, thinning, step_size, target_acceptance, keep_warmup_statistics)


def _kernel(name: str, max_tree_depth: int, num_steps: int | None, trajectory_length: float | None) -> Kernel:
    check_one_of(name, "kernel", KernelName)
    check_count(max_tree_depth, "max_tree_depth")
    if num_steps is not None:
        check_count(num_steps, "num_steps")
    if trajectory_length is not None:
        check_positive(trajectory_length, "trajectory_length")
    if name == "nuts":
        if num_steps is not None or trajectory_length is not None:
            raise ValueError("`num_steps` and `trajectory_length` are of kernel='hmc'; NUTS finds its own length.")
        return Nuts(max_tree_depth)
    if num_steps is not None and trajectory_length is not None:
        raise ValueError("Pass `num_steps` or `trajectory_length`, not both.")
    return Hmc(num_steps or NUM_STEPS, trajectory_length)


def _identity(job: Job, potential: NetworkPotential | ProgramPotential, positions: Tensor, key: int) -> Identity:
    """What tells this fit from others, for checkpoints; each chain adds where it starts."""
    plan, fixed, buffers = job.plan, job.constants.fixed, job.constants.buffers
    told = {"seed": key, "kernel": repr(job.kernel) + ("" if plan.mass == "diagonal" else f", {plan.mass} mass")}
    options = told | {name: value for name, value in vars(plan).items() if name not in ("num_samples", "mass")}
    constants = {"values of learned sites": digest(fixed), "buffers of the start": digest(buffers)}
    found = identity_of(potential, positions, options, plan.num_samples, constants)
    before = {
        **told,
        "plan": repr(plan),
        "model": ADDRESS.sub("", found.text),
        "data": found.options["data"].rpartition(" ")[2],
        "start": digest({"positions": positions, **fixed, **buffers}),
    }
    return replace(found, before=before)


def _warn(chains: Chains, max_tree_depth: int) -> None:
    _warn_of_stuck(chains)
    diverging = chains.statistics["diverging"]
    if diverging.any():
        warn_of_fit(
            f"{int(diverging.sum())} of {diverging.numel()} draws follow a trajectory that diverged: the chains may "
            "have missed a part of the posterior. Raise `target_acceptance`, towards 1, or choose other priors."
        )
    depths = chains.statistics.get("tree_depth")
    if depths is not None and (depths >= max_tree_depth).double().mean() > OFTEN:
        share = float((depths >= max_tree_depth).double().mean())
        warn_of_fit(
            f"{share:.0%} of the trajectories had the greatest length, 2^{max_tree_depth} - 1 steps: the chains move "
            "slowly. Raise `max_tree_depth` or `num_warmup`."
        )


def _warn_of_stuck(chains: Chains) -> None:
    """Name the chains that refused all of the warm-up."""
    rates = chains.warmup_statistics.get("acceptance_rate")
    if rates is None or rates.shape[1] < STUCK:
        return
    stuck = (rates < REFUSED).all(dim=1).nonzero()[:, 0].tolist()
    if stuck:
        one = len(stuck) == 1
        told = f"Chain {stuck[0]}" if one else f"Chains {', '.join(map(str, stuck))}"
        warn_of_fit(
            f"{told} of {len(rates)} refused all {rates.shape[1]} transitions of the warm-up and "
            f"{'is' if one else 'are'} still at the start. Pass another `start` or `seed`, or give each chain a step "
            "size of its own by chain_method='sequential'."
        )


def _posterior(model: BayesianNetwork, constants: Constants, chains: Chains) -> HmcPosterior:
    return HmcPosterior(
        model=model,
        draws=constants.behind(model, chains.draws),
        buffers=constants.kept_buffers(),
        statistics=chains.statistics,
        warmup_statistics=chains.warmup_statistics,
        inverse_mass=chains.inverse_mass,
        ends=chains.ends,
    )
