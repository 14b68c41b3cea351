"""Stochastic gradient Markov chains: draws from the posterior by minibatches, without a test of acceptance.

Chains follow Langevin (SGLD) or Hamiltonian dynamics (SGHMC) in the potential

    U(u) = -log p(theta(u), y | x) - log |d theta / du|

whose gradient a minibatch estimates; the steps are in `langevin`. What they leave is biased in two ways, which both
vanish with the step size: by the discretisation, and by the noise of the minibatches, which heats the chains. With
schedule="cyclical" each cycle first explores with large steps and then samples with small ones.

Reference:
    Welling & Teh 2011, Bayesian Learning via Stochastic Gradient Langevin Dynamics; Chen, Fox & Guestrin 2014,
    Stochastic Gradient Hamiltonian Monte Carlo; Li et al. 2016, Preconditioned Stochastic Gradient Langevin Dynamics;
    Zhang et al. 2020, Cyclical Stochastic Gradient MCMC.
"""

from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from bayesuq.arrays import check_count, check_one_of, check_positive
from bayesuq.columns import keeps_names
from bayesuq.inference.chains.agreement import warn_unless_agreed, warn_unless_latents_agree
from bayesuq.inference.chains.descent import Descent
from bayesuq.inference.chains.potential import NetworkPotential
from bayesuq.inference.chains.program_starts import ProgramStart, program_starts
from bayesuq.inference.chains.scores import warn_unless_scored
from bayesuq.inference.chains.starts import Constants, starting_points
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.posteriors.chains import ChainPosterior
from bayesuq.inference.posteriors.heads import on_features
from bayesuq.inference.posteriors.program import ProgramChains, parts_of
from bayesuq.inference.posteriors.program_mode import program_session
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.sgmcmc.langevin import Kernel, Sghmc, Sgld
from bayesuq.inference.sgmcmc.potential import MinibatchPotential, ProgramMinibatchPotential
from bayesuq.inference.sgmcmc.run import Plan, Run
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.identity import ADDRESS, Identity, digest, tolerance_of
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.model_contents import model_contents, probed_energy, running_in, sites_of
from bayesuq.inference.training.options import Training, session
from bayesuq.inference.training.workers import Group, check_alone
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.freshness import not_fresh
from bayesuq.models.program import Observed, Program, check_unnamed, is_program
from bayesuq.options import suggests_names
from bayesuq.randomness import derive_seed
from bayesuq.storage import below

Sampler = Literal["sgld", "sghmc"]
StepSchedule = Literal["constant", "cyclical"]
Preconditioning = Literal["rmsprop"]
NamedStart = Literal["reset", "network", "prior"]
BEGINS = "chains' start"  # in a checkpoint, which says nothing of draws from the prior
NUM_RESETS = 2  # that a network's own weights are compared with
STARTS, CHAINS = range(2)  # what a fit's seed is split into
LARGEST_WORK = 2**16  # weights times rows of a minibatch, up to which one pass for 4 chains was faster on a CPU


@suggests_names
@keeps_names
@on_features()
def fit(
    model: BayesianNetwork | Program,
    data: Data,
    *,
    observed: Observed = None,
    sampler: Sampler = "sghmc",
    num_samples: int = 250,
    num_warmup: int = 1000,
    num_chains: int = 4,
    thinning: int = 10,
    step_size: float | None = None,
    friction: float = 0.1,
    preconditioning: Preconditioning | None = None,
    schedule: StepSchedule = "constant",
    num_cycles: int = 5,
    start: NamedStart | WeightPosterior | ProgramStart | None = None,
    vectorised: bool | None = None,
    batch_size: int = 128,
    data_parallel: bool | Group = False,
    device: torch.device | str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    checkpoint: Checkpoint | str | PathLike[str] | None = None,
) -> "SgmcmcPosterior | ProgramChains":
    """Draw from the posterior by chains that read a minibatch a step.

    Args:
        model: The joint density: a network, whose normalisation layers are in evaluation mode, with the buffers of
            `start` or its own, and whose dropout layers are the identity; or a Pyro program, which for minibatches
            takes `num_data`.
        data: Rows to fit, or a DataLoader of them, whose minibatches all chains share.
        observed: Of a program, the names of its observed sites: see `hmc.fit`.
        sampler: "sgld" or "sghmc".
        num_samples: Draws of each chain that are kept.
        num_warmup: Steps of each chain before the first draw; in a cyclical schedule, at the beginning of each cycle.
        num_chains: Number of chains.
        thinning: Steps for one kept draw.
        step_size: h, the distance that a momentum of one moves a weight in a step: epsilon = h^2 in Welling & Teh's
            eq. (4), and N h^2 is the learning rate of SGD on the loss per data point. None takes a quarter of the
            largest stable one, or less where the noise of minibatches would heat the chains; it is measured, by the
            curvature of minibatches, at tenths of the (first) warm-up, more often before the first of them, and then
            kept.
        friction: Share of its momentum that SGHMC loses in a step, in (0, 1]; one minus SGD's momentum.
        preconditioning: "rmsprop" learns a scale for each weight in the (first) warm-up, then keeps it, so that no
            correction for its change is needed; the momentum's units are then those scales. None has one for all.
        schedule: "constant" steps, or "cyclical" ones, which fall to 0 in each of `num_cycles`; the first `num_warmup`
            of a cycle explore without noise.
        num_cycles: Of a cyclical schedule; must divide `num_samples`.
        start: "reset" begins each chain at layers initialised anew by their own `reset_parameters`, as the members of
            an ensemble begin; "network" all at the network's own weights; "prior" each at a draw from the prior, which
            for a network of more than a few units is so far from the posterior that chains do not arrive; a fitted
            posterior over weights each at a draw from it. None is "reset", and "network" where layers cannot be reset
            or the network looks trained; a program begins as in `hmc.fit`. Sites learned as point values stay at a
            posterior's values.
        vectorised: Whether all chains compute their gradients in one pass, which gives the same numbers to rounding.
            None does so where it is faster: for small networks.
        batch_size: Rows in a minibatch, at most; an epoch is divided into batches of equal size, give or take one. A
            DataLoader has its own.
        data_parallel: Whether the processes that `torchrun` has started, or those of a `torch.distributed` group, fit
            one posterior together: each reads its part of `data`, or rows of its own, in minibatches of `batch_size`.
        device: Where to compute; None is where the model is.
        seed: Makes the fit repeatable; None draws one from torch's generator.
        progress: Whether to show a bar; None shows it on a terminal and in a notebook.
        checkpoint: A path, or a `Checkpoint` of one, that the fit writes to as it goes; the same fit called again goes
            on from there and ends with the same bits. Where the file is there and `seed` is None, its seed is taken.

    Returns:
        All draws, with `lp` (log density of the flat vector, estimated from the step's minibatch, in nats) and
        `step_size` of each.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the network or the likelihood does not take; options out of range, or that contradict each
            other; sites learned as point values without a posterior to `start` from; a log joint that is nowhere
            finite.
        FloatingPointError: A chain diverged: the step size is too large.

    Warns:
        ConvergenceWarning: The chains disagree in what they predict at some of the rows, or some predict them much
            worse than others, than what they began at, than a constant or than where a short descent from their end
            leads.
        UserWarning: The chains have more than three minutes to go, by what their first steps take.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.5))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> posterior = fit(model, data, num_samples=50, num_warmup=100, num_chains=2, seed=0)
        >>> posterior.predict(data.x).num_samples, posterior.statistics["lp"].shape
        (100, torch.Size([2, 50]))
    """
    plan = _plan(num_samples, num_warmup, thinning, step_size, preconditioning, schedule, num_cycles)
    kernel = _kernel(sampler, friction)
    check_count(num_chains, "num_chains")
    # What `session` needs of it; chains have no epochs and no learning rate.
    training = Training(
        num_epochs=1,
        batch_size=batch_size,
        learning_rate=1.0,
        device=device,
        seed=seed,
        progress=progress,
        checkpoint=checkpoint,
        data_parallel=data_parallel,
    )
    progress = training.progress
    numbers = plan, kernel, num_chains
    if is_program(model):
        if vectorised:
            raise ValueError("Chains of a program run one after another. Leave `vectorised` out.")
        check_alone(data_parallel, "chains of a program")
        return _fit_program(model, data, training, observed, start, numbers, progress)
    check_unnamed(observed)
    with session(cast(BayesianNetwork, model), data, training) as (model, source, _):
        file = Checkpoint.of(training.checkpoint)
        begins = _start(model, file) if start is None else start
        _check_start(begins)
        of_network = isinstance(begins, str) and begins in ("reset", "network")
        place: Any = "prior" if of_network else begins
        constants = Constants.of(model, place)
        workers = source.workers
        positions = workers.agreed(lambda: _starts(model, source, constants, begins, num_chains, training.key(STARTS)))
        positions = workers.of_first(positions)
        constants = Constants(*(workers.all_of_first(part) for part in (constants.fixed, constants.buffers)))
        potential = MinibatchPotential(model, source.num_data, constants.fixed, constants.buffers)
        chosen = _is_vectorised(potential, source, num_chains, vectorised)
        keys = [
            [derive_seed(training.key(CHAINS), chain, purpose) for purpose in range(3)] for chain in range(num_chains)
        ]
        run = Run(potential, kernel, source, positions, plan, keys, vectorised=chosen)
        fit = None
        if file is not None and workers.is_first:
            fit = _identity(run, constants, training.seed, begins, is_default=start is None)
        run.finish(file, fit, progress)
        posterior = _posterior(model, constants, run)
        warn_unless_agreed(posterior, source.rows)
        warn_unless_scored(posterior, source.rows, start, _descent(potential, run))
        return posterior


def _fit_program(
    program: Program,
    data: Data,
    training: Training,
    observed: Observed,
    start: Any,
    numbers: tuple[Plan, Kernel, int],
    progress: bool | None,
) -> ProgramChains:
    """As `fit`, of a Pyro program."""
    plan, kernel, num_chains = numbers
    with program_session(program, data, training, observed) as (opened, training):
        joint, source = opened.joint, opened.source
        place = program_starts(
            ProgramPotential(joint, source.rows), start or "uniform", num_chains, training.key(STARTS)
        )
        keys = [
            [derive_seed(training.key(CHAINS), chain, purpose) for purpose in range(3)] for chain in range(num_chains)
        ]
        potential = ProgramMinibatchPotential(joint, source.num_data)
        run = Run(potential, kernel, source, place, plan, keys, vectorised=False)
        file = Checkpoint.of(training.checkpoint)
        fit = None
        if file is not None:
            fit = _identity(run, Constants({}, {}), training.seed, start, is_default=False)
        run.finish(file, fit, progress)
        warn_unless_latents_agree(run.draws, joint.layout.slices())
        needed = joint.needed(source.rows)
        statistics, warmup = _statistics(run)
        return ProgramChains(
            program=joint.call.program,
            observed=joint.observed,
            local=joint.layout.local,
            rows=parts_of(needed.x),
            draws=joint.thetas(run.draws, needed),
            statistics=statistics,
            warmup_statistics=warmup,
            inverse_mass=run.chains.scales.clone(),
        )


def _statistics(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What chains told of their draws, and of the warm-up."""
    during = {name: value for name, value in run.told.items() if not name.startswith("warmup ")}
    return during, below("warmup ", run.told)


def _check_start(start: object) -> None:
    if isinstance(start, WeightPosterior) or (isinstance(start, str) and start in get_args(NamedStart)):
        return
    known = ", ".join(map(repr, get_args(NamedStart)))
    told = repr(start) if isinstance(start, str) else type(start).__name__
    kind = ValueError if isinstance(start, str) else TypeError
    raise kind(f"`start` must be {known} or a posterior over weights; got {told}.")


def _start(model: BayesianNetwork, file: Checkpoint | None) -> NamedStart:
    """Where chains begin that were not told where: those on file from before began at the prior, and go on."""
    told = {} if file is None else file.told()
    if told:
        return next((word for word in get_args(NamedStart) if told.get(BEGINS) == word), "prior")
    try:
        resets = [model.reinitialise(seed).net for seed in range(NUM_RESETS)]
    except ValueError:
        return "network"
    return "network" if not_fresh(model.net, resets) else "reset"


def _identity(run: Run, constants: Constants, seed: int | None, begins: Any, *, is_default: bool) -> Identity:
    """What tells a run that has not begun from others."""
    named = isinstance(begins, str) and (is_default or begins == "reset") and begins != "prior"
    starts_at_network = isinstance(begins, str) and begins == "network"
    plan, model, source, positions = run.plan, run.potential.model, run.stream.source, run.chains.positions
    data, batch = source.contents()

    def energy(position: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = run.potential.at(position.unsqueeze(0), [batch])
        return values[0], gradients[0]

    told = {"seed": seed, "kernel": repr(run.kernel), "vectorised": run.vectorised}
    start = {"positions": positions, **constants.fixed, **constants.buffers}
    contents = {"start": digest(constants.fixed if starts_at_network else start), "buffers": digest(constants.buffers)}
    return Identity(
        options={
            **told,
            **{name: value for name, value in vars(plan).items() if name != "num_samples"},
            "chains": len(positions),
            **({BEGINS: begins} if named else {}),
            "device": source.device.type,
            "data": data,
            **({**sites_of(model), **running_in(model)} if isinstance(model, BayesianNetwork) else model.sites()),
        },
        lengths={"num_samples": plan.num_samples},
        fixed_length="the cycles of its step size would be longer" if plan.cyclical else None,
        contents=contents | (model_contents(model) if isinstance(model, BayesianNetwork) else {}),
        numbers=probed_energy(energy, positions[0]),
        tolerance=tolerance_of(positions.dtype),
        text=repr(model),
        start=digest({"positions": positions}) if starts_at_network else None,
        before={
            **told,
            "plan": repr(plan),
            "data": source.identity(),
            "model": ADDRESS.sub("", repr(model)),
            **({} if starts_at_network else {"start": digest(start)}),
        },
    )


def _plan(
    num_samples: int,
    num_warmup: int,
    thinning: int,
    step_size: float | None,
    preconditioning: str | None,
    schedule: str,
    num_cycles: int,
) -> Plan:
    check_count(num_samples, "num_samples")
    check_count(num_warmup, "num_warmup", minimum=0)
    check_count(thinning, "thinning")
    if step_size is not None:
        check_positive(step_size, "step_size")
    if preconditioning is not None:
        check_one_of(preconditioning, "preconditioning", Preconditioning)
        if num_warmup == 0:
            raise ValueError("`preconditioning` learns its scales in the warm-up; got `num_warmup` = 0.")
    check_one_of(schedule, "schedule", StepSchedule)
    cyclical = schedule == "cyclical"
    if cyclical and num_samples % check_count(num_cycles, "num_cycles"):
        raise ValueError(f"`num_cycles` must divide `num_samples`; got {num_cycles} cycles for {num_samples} draws.")
    return Plan(
        num_samples=num_samples,
        num_warmup=num_warmup,
        thinning=thinning,
        num_cycles=num_cycles if cyclical else 1,
        cyclical=cyclical,
        step_size=step_size,
        preconditioned=preconditioning is not None,
    )


def _kernel(sampler: str, friction: float) -> Kernel:
    check_one_of(sampler, "sampler", Sampler)
    if check_positive(friction, "friction") > 1:
        raise ValueError(f"`friction` must lie in (0, 1]; got {friction!r}.")
    return Sgld() if sampler == "sgld" else Sghmc(friction)


def _starts(
    model: BayesianNetwork, source: Source, constants: Constants, start: Any, num_chains: int, seed: int
) -> Tensor:
    """A vector of the random sites for each chain, (C, P)."""
    layout = Layout.of(model, model.laws)
    if isinstance(start, str) and start == "network":
        return layout.join(model.initial()).repeat(num_chains, 1)
    if isinstance(start, str) and start == "reset":
        fresh = (model.reinitialise(derive_seed(seed, chain)) for chain in range(num_chains))
        return torch.stack([layout.join(one.initial()) for one in fresh])
    potential = NetworkPotential(model, source.rows, fixed=constants.fixed, buffers=constants.buffers)
    return starting_points(potential, start, num_chains, seed)


def _is_vectorised(potential: MinibatchPotential, source: Source, num_chains: int, asked: bool | None) -> bool:
    """Whether chains compute in one pass: as asked, or where that is possible and faster.

    Raises:
        ValueError: It was asked for where it is not possible.
    """
    first, size = source.rows, -(-source.num_data // source.num_batches)
    if asked is False or (asked is None and num_chains == 1):
        return False
    if not potential.can_vectorise(first.at(slice(2))):
        if asked:
            raise ValueError("The network branches on its values, so that chains cannot move together.")
        return False
    small = potential.layout.size * size <= LARGEST_WORK
    return asked or small or source.device.type != "cpu"


def _descent(potential: MinibatchPotential, run: Run) -> Descent:
    """Down the energy, by minibatches of the first chain's; gradients of all chains in one pass count as one's."""

    def gradient(flat: Tensor) -> Tensor:
        return potential.at(flat.unsqueeze(0), run.stream.take()[:1])[1][0]

    num_gradients = run.plan.num_steps * (1 if run.vectorised else len(run.chains.positions))
    return Descent.after(num_gradients, gradient, potential.layout)


def _posterior(model: BayesianNetwork, constants: Constants, run: Run) -> "SgmcmcPosterior":
    statistics, warmup = _statistics(run)
    return SgmcmcPosterior(
        model=model,
        draws=constants.behind(model, run.draws),
        buffers=constants.kept_buffers(),
        statistics=statistics,
        warmup_statistics=warmup,
        scales=run.chains.scales.clone(),
    )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SgmcmcPosterior(ChainPosterior):
    """Chains of stochastic gradient Langevin or Hamiltonian dynamics.

    Attributes:
        model: As in `ChainPosterior`, like the following.
        draws: The flat vectors of every site, (C, D, P); sites learned as point values repeat.
        buffers: The network's buffers, the same for all draws.
        statistics: Of each draw, (C, D): `lp`, estimated from a minibatch, and `step_size`.
        warmup_statistics: The same of each step of the (first) warm-up, (C, W).
        scales: The preconditioner of the random sites as learned, (C, R); 1 without one.
    """

    scales: Tensor
