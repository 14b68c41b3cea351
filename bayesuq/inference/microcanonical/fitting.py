"""Microcanonical Langevin ensembles (MILE): networks are trained, and from each a chain draws from the posterior.

Training finds good modes at the cost of an ensemble; the chains, all rows of one matrix, then tell how wide each is.
They refuse no step and need no leapfrog trajectories: two gradients over all rows for each move, see
`bayesuq.inference.microcanonical.dynamics`. The predictive is the mixture over members and draws.

Reference:
    Sommer et al. 2025, Microcanonical Langevin Ensembles: Advancing the Sampling of Bayesian Neural Networks.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.data import Batch
from bayesuq.deadline import within
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.chains.agreement import disagreement, warn_of_disagreement, warn_of_few_draws
from bayesuq.inference.chains.identity import identity_of
from bayesuq.inference.chains.potential import NetworkPotential
from bayesuq.inference.chains.program_starts import ProgramStart
from bayesuq.inference.chains.starts import Constants, check_precision, starting_points
from bayesuq.inference.ensemble import fitting as ensemble
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.microcanonical.dynamics import Energies
from bayesuq.inference.microcanonical.program import ProgramRun, fit_program
from bayesuq.inference.microcanonical.run import Plan, Run
from bayesuq.inference.microcanonical.sampling import checked_plan
from bayesuq.inference.posteriors.chains import ChainPosterior
from bayesuq.inference.posteriors.heads import on_features
from bayesuq.inference.posteriors.program import ProgramChains
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.training.captured import warn_of_no_capture
from bayesuq.inference.training.checkpoint import Checkpoint, claimed_seed
from bayesuq.inference.training.column_scales import warn_of_scales
from bayesuq.inference.training.identity import Identity, digest
from bayesuq.inference.training.minibatches import NetworkReader, Source, all_rows
from bayesuq.inference.training.options import Training, TrainingOptions, training_options
from bayesuq.inference.training.shares import check_same_rows
from bayesuq.inference.training.workers import Group, Workers
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.likelihoods.real import HeteroscedasticNormal
from bayesuq.models.program import Observed, Program, check_unnamed
from bayesuq.randomness import derive_seed, isolated

__all__ = ["MicrocanonicalPosterior", "fit"]
__dir__ = __all__.copy

NUM_EPOCHS, LEARNING_RATE = 40, 0.01  # of the networks: chains go on from there
NETWORKS_SHARE = 0.5  # of the time, at most, where there is a deadline
ENERGY_VARIANCE = 5e-4  # longer steps than the sampler alone has: how far chains come decides
DATA, NETWORKS, STARTS, CHAINS = range(4)  # what a fit's seed is split into
MOST_VARIANCE = 4.0  # times the target, beyond which steps are said to be too long
MOST_REPEATED = 0.5  # of the targets


@training_options(num_epochs=NUM_EPOCHS, learning_rate=LEARNING_RATE)
@on_features()
@torch.enable_grad()  # whatever the caller has turned off
def fit(
    model: BayesianNetwork | Program,
    data: Data,
    *,
    observed: Observed = None,
    num_members: int = 8,
    num_samples: int = 200,
    num_warmup: int = 3000,
    thinning: int = 10,
    energy_variance: float = ENERGY_VARIANCE,
    start: ensemble.EnsemblePosterior | WeightPosterior | ProgramStart | None = None,
    data_parallel: bool | Group = False,
    **options: Unpack[TrainingOptions],
) -> "MicrocanonicalPosterior | ProgramChains":
    """Train networks, and draw from the posterior by a microcanonical chain from each.

    Args:
        model: The joint density. Normalisation layers are in evaluation mode in the chains, with the statistics of the
            first member, from which all chains then begin. Sites learned as point values stay at the members' mean. A
            Pyro program, of which nothing is trained, has chains that begin as those of `hmc.fit`.
        data: Rows to fit, or a DataLoader of them, which the chains read once: all rows are held in memory.
        observed: Of a program, the names of its observed sites: see `hmc.fit`.
        num_members: Networks, and chains.
        num_samples: Draws of each chain that are kept.
        num_warmup: Steps of each chain before, in which its step size and length are tuned. Step sizes go on learning
            after it, ever more slowly.
        thinning: Steps for one kept draw.
        energy_variance: Variance of a step's energy error a dimension that step sizes are tuned to, in nats squared. No
            step is refused, so that this is what decides how right the draws are: variances of known Gaussians are 1 to
            2 % small at 0.0005 (10 % along narrow directions), within 1 % at 0.00002, whose steps are 0.6 to 0.75 times
            as long, and 6 to 16 % small at the paper's 0.1, whose steps are 1.3 to 1.7 times as long.
        start: A fitted ensemble, or any posterior over weights, that the chains begin at; None trains one. Of a
            program, "uniform", which None is, "prior" or a fitted posterior.
        data_parallel: Whether the processes that `torchrun` has started, or those of a `torch.distributed` group, share
            networks and chains out: see docs/scaling.md. Each has all rows.
        num_epochs: Passes over the data by which the networks are trained.
        learning_rate: Adam's step size at the start, likewise.
        validation: Rows whose predictive log density is watched while networks train: each chain begins at the weights
            of its member's best epoch.
        patience: Stops a network's training after so many epochs without a better validation loss; None never does.
        progress: Whether to show bars; None shows them on a terminal and in a notebook.
        checkpoint: A path, or a `Checkpoint` of one, beside which the networks and the chains write files of their own,
            `.start` and `.chains`, as they go; the same fit called again goes on from there and ends with the same
            bits. Where the file is there and `seed` is None, its seed is taken.

    Returns:
        All draws, with the sampler's statistics of each: a `MicrocanonicalPosterior` over weights, `ProgramChains` of a
        program's latents.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the network, the likelihood or the program does not take; options out of range; a `start`
            of another model; a network or a program of a single number; options of training, of a program.
        FloatingPointError: The loss of a network stopped being finite.

    Warns:
        ConvergenceWarning: Steps diverged after the warm-up, or their energy errors are beyond the target; chains
            disagree in what they predict, or in a program's latents.
        UserWarning: Targets that repeat themselves under noise without a floor, which a network may make nothing; the
            chains have more than three minutes to go, by what their first steps take.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.5))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> fit(model, data, num_members=2, num_samples=50, num_warmup=500, seed=0).predict(data.x).num_samples
        100
    """
    plan = checked_plan(num_samples, num_warmup, thinning, energy_variance, None, None)
    check_count(num_members, "num_members")
    training = Training.of(options, data_parallel=data_parallel)
    if not isinstance(model, BayesianNetwork):
        return _fit_program(model, data, observed, start, ProgramRun.of(plan, num_members, training))
    check_unnamed(observed)
    model.likelihood.check_density()
    check_precision(model)
    model = model if training.device is None else model.to(training.device)
    file, workers = Checkpoint.of(training.checkpoint), Workers.of(data_parallel)
    key = claimed_seed(workers, file, training.seed)
    if workers.size > 1:
        check_same_rows(workers, data)
    with isolated(derive_seed(key, DATA)):  # which a loader may draw its order from
        rows = all_rows(Source(NetworkReader(model), data, batch_size=1))
    warn_of_scales(model.likelihood, rows)
    _warn_of_repeats(model, rows)
    if training.captured and start is not None:
        warn_of_no_capture("chains begin at a posterior that was there, and nothing is trained")
    given: Any = (
        start
        if start is not None
        else _trained(model, data, {**options, "data_parallel": data_parallel}, num_members, key, file)
    )
    begins = as_one(given) if isinstance(given, ensemble.EnsemblePosterior) else given
    constants = Constants.of(model, begins)
    potential = NetworkPotential(model, rows, fixed=constants.fixed, buffers=constants.buffers)
    if potential.layout.size < 2:
        raise ValueError("A direction needs at least two random parameters; the model has one. Take `hmc`.")
    positions = starting_points(potential, begins, num_members, derive_seed(key, STARTS))
    run = Run(energies_of(potential), positions, plan, derive_seed(key, CHAINS), workers)
    chains_file = None if file is None else file.of_part("chains")
    fit_identity = None if file is None else _identity(constants, potential, positions, plan, key)
    run.finish(chains_file, fit_identity, sys.stderr.isatty() if training.progress is None else training.progress)
    posterior = _posterior(model, constants, run)
    worst, share = disagreement(posterior, rows)
    posterior = replace(posterior, prediction_r_hat=worst)
    _warn(posterior.statistics, posterior.energy_variance, plan.energy_variance)
    warn_of_few_draws(posterior.draws.shape[1])
    warn_of_disagreement(worst, share)
    return posterior


def _fit_program(model: Program, data: Data, observed: Observed, start: Any, run: ProgramRun) -> ProgramChains:
    chains, reached = fit_program(model, data, observed, start, run)
    _warn(chains.statistics, reached, run.plan.energy_variance)
    return chains


def energies_of(potential: NetworkPotential) -> Energies:
    """The potential at many rows: in one pass where the network can be vectorised, else one after another."""
    if potential.can_vectorise():
        return potential.at_rows

    def one_by_one(positions: Tensor) -> tuple[Tensor, Tensor]:
        found = [potential.at(position) for position in positions]
        values = torch.tensor([value for value, _ in found], dtype=torch.float64, device=positions.device)
        return values, torch.stack([gradient for _, gradient in found])

    return one_by_one


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class MicrocanonicalPosterior(ChainPosterior):
    """Microcanonical chains, one from each network.

    Attributes:
        model: As in `ChainPosterior`, like the following.
        draws: The flat vectors of every site, (C, D, P); sites learned as point values repeat.
        buffers: The network's buffers, the same for all draws.
        statistics: Of each draw, (C, D): `lp`; `energy_error`, the root mean square of the energy errors of the draw's
            steps, in nats; `step_size` and `length` in units of the flat vector; `n_steps`; and whether one of the
            steps was `diverging`.
        warmup_statistics: Empty.
        energy_variance: E[dE^2] / d that was reached after the warm-up, in nats squared.
        wanted_energy_variance: What step sizes were tuned to.
        prediction_r_hat: The largest split R-hat of E[y* | x, draw] at some of the rows that were fitted, among
            entries whose disagreement matters; that of weights means nothing across members.
    """

    energy_variance: float
    wanted_energy_variance: float
    prediction_r_hat: float

    @property
    def num_divergences(self) -> int:
        """Draws with a step that diverged."""
        return int(self.statistics["diverging"].sum())


def _trained(
    model: BayesianNetwork,
    data: Data,
    options: Mapping[str, Any],
    num_members: int,
    key: int,
    file: Checkpoint | None,
) -> ensemble.EnsemblePosterior:
    """The networks; one alone where it has statistics of its own, which all chains must share."""
    number = 1 if dict(model.net.named_buffers()) else num_members
    own: dict[str, Any] = {**options, "seed": derive_seed(key, NETWORKS)}
    own["checkpoint"] = None if file is None else file.of_part("start")
    with within(NETWORKS_SHARE):
        return cast(ensemble.EnsemblePosterior, ensemble.fit(model, data, num_members=number, **own))


def as_one(members: ensemble.EnsemblePosterior) -> ChainPosterior:
    """The members of an ensemble as draws under one set of constants.

    Point values are the members' mean on the unconstrained scale. Where buffers differ, all draws are the first member.

    Raises:
        TypeError: Members that are not single networks.
    """
    modes = [one for one in members.members if isinstance(one, WeightPosterior) and one.num_members == 1]
    if len(modes) < len(members.members):
        raise TypeError("`start` must be an ensemble of modes (`ensemble.fit`), or a posterior over weights.")
    first = modes[0]
    values = torch.stack([mode.draw(0, 0) for mode in modes])
    random = Layout.of(first.model, first.model.laws).size
    values = torch.cat([values[:, :random], values[:, random:].mean(dim=0).expand(len(modes), -1)], dim=1)
    differ = any(not torch.equal(mode.buffers[name], b) for mode in modes for name, b in first.buffers.items())
    if differ:
        values = values[:1].expand_as(values)
    return ChainPosterior(
        model=first.model,
        draws=values.unsqueeze(1).clone(),
        buffers=first.buffers,
        statistics={},
        warmup_statistics={},
    )


def _posterior(model: BayesianNetwork, constants: Constants, run: Run) -> MicrocanonicalPosterior:
    return MicrocanonicalPosterior(
        model=model,
        draws=constants.behind(model, run.draws),
        buffers=constants.kept_buffers(),
        statistics=run.told,
        warmup_statistics={},
        energy_variance=run.energy_variance(),
        wanted_energy_variance=run.plan.energy_variance,
        prediction_r_hat=1.0,
    )


def _identity(constants: Constants, potential: NetworkPotential, positions: Tensor, plan: Plan, key: int) -> Identity:
    """What tells the chains from others."""
    contents = {
        "values of learned sites": digest(constants.fixed),
        "buffers of the start": digest(constants.buffers),
        "start": digest({"positions": positions}),
    }
    return identity_of(potential, positions, plan.told(key), plan.num_samples, contents)


def _warn_of_repeats(model: BayesianNetwork, rows: Batch) -> None:
    """Say that a network may make its noise nothing at targets that repeat themselves, and its density infinite."""
    likelihood = model.likelihood
    if not isinstance(likelihood, HeteroscedasticNormal) or likelihood.minimum_scale > 0 or len(rows.y) < 2:
        return
    share = 1 - len(torch.unique(rows.y, dim=0)) / len(rows.y)
    if share > MOST_REPEATED:
        warn_of_fit(
            f"{share:.0%} of the targets repeat another one, and the noise has no floor: chains may find networks that "
            "meet some of them exactly, with a density without bound. Give HeteroscedasticNormal a `minimum_scale`, "
            "such as 0.05 standard deviations of y.",
            UserWarning,
        )


def _warn(statistics: Mapping[str, Tensor], reached: float, wanted: float) -> None:
    diverging = statistics["diverging"]
    if diverging.any():
        warn_of_fit(
            f"Steps of {int(diverging.sum())} of {diverging.numel()} draws diverged; the chains went on from where "
            "they were, with smaller ones. Raise `num_warmup`, lower `energy_variance`, or choose other priors."
        )
    if reached > MOST_VARIANCE * wanted:
        warn_of_fit(
            f"The energy errors have a variance of {reached:.2g} nats squared a dimension, where {wanted:.2g} was "
            "asked for: variances of the draws may be too small. Raise `num_warmup`, in which step sizes are tuned."
        )
