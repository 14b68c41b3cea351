"""Deep ensembles: M networks, each from an initialisation and with an order of the data of its own, and their mixture.

Reference:
    Lakshminarayanan, Pritzel & Blundell 2017, Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles, section 2.4 and algorithm 1.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

import bayesuq.inference.map_estimate as map_estimate
from bayesuq.arrays import check_count
from bayesuq.data import Dataset
from bayesuq.deadline import within
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.ensemble.program import ProgramEnsemble, fit_program
from bayesuq.inference.ensemble.together import fit_modes, is_faster, is_possible
from bayesuq.inference.posteriors.ensemble import EnsemblePosterior
from bayesuq.inference.posteriors.heads import on_features
from bayesuq.inference.posteriors.network_mode import LEARNING_RATE
from bayesuq.inference.posteriors.packing import pack, unpack
from bayesuq.inference.posteriors.saved import CLASSES
from bayesuq.inference.training.checkpoint import Checkpoint, claimed_seed
from bayesuq.inference.training.identity import Identity
from bayesuq.inference.training.model_contents import running_in
from bayesuq.inference.training.options import Training, TrainingOptions, training_options
from bayesuq.inference.training.shares import check_same_rows
from bayesuq.inference.training.workers import Group, Workers, check_alone
from bayesuq.loaders import Data
from bayesuq.models.agreement import differ_in_start_only
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.freshness import not_fresh
from bayesuq.models.initialisation import Initialise
from bayesuq.models.layers import is_dropout
from bayesuq.models.program import Observed, Program, check_program, check_unnamed
from bayesuq.posterior import Posterior
from bayesuq.randomness import derive_seed, generator

LEFT_TO_MEMBERS: dict[str, Any] = {"num_epochs": None, "learning_rate": LEARNING_RATE}


@training_options(learning_rate=None)
@on_features(drops=True)
def fit(
    model: BayesianNetwork | Program,
    data: Data,
    *,
    observed: Observed = None,
    num_members: int = 5,
    adversarial: bool = False,
    bootstrap: bool = False,
    vectorised: bool | None = None,
    member_fit: Callable[..., Posterior] = map_estimate.fit,
    initialise: Initialise | None = None,
    data_parallel: bool | Group = False,
    **options: Unpack[TrainingOptions],
) -> "EnsemblePosterior | ProgramEnsemble":
    """Fit M members, each from initial weights of its own.

    Args:
        model: The joint density: a network, whose own weights are not used, unless `initialise` says so; or a Pyro
            program, whose members differ in their seeds, and by `bootstrap`.
        data: Rows to fit, or a DataLoader of them.
        observed: Of a program, the names of its observed sites: see `hmc.fit`.
        num_members: M.
        adversarial: Whether half of the likelihood is that of inputs moved by 1 % of their range, each in the direction
            that makes its target least likely (section 2.3); `member_fit` must have the option.
        bootstrap: Whether each member gets N rows drawn from the N with replacement (Breiman 1996), from a Dataset.
        vectorised: Whether members train together in one pass, which gives the same numbers to rounding. None does so
            where it is faster: modes of small networks without dropout and BatchNorm, watched by no validation,
            callback or gradient clipping.
        member_fit: Any method's `fit`; `functools.partial` gives it options of its own.
        initialise: What each member starts from: "reset", all layers initialised anew by their own `reset_parameters`;
            "last_layer", the network's own weights under a last layer initialised anew, as for a pretrained network;
            "keep", the network's own weights, so that only the order of the data, the bootstrap and random layers tell
            members apart; or a function from a copy of the network and a seed to the network, for parts with an
            initialisation of their own, such as adapters that start at 0. None resets, and warns where the network's
            own weights do not look fresh. Frozen parameters always stay.
        data_parallel: Whether the processes that `torchrun` has started, or those of a `torch.distributed` group, share
            out the members of a network: each process, to which all rows are passed, fits some of them, one after
            another, and all get the whole ensemble, with the bits of one process. (Members that are too large for one
            process fit data-parallel one by one: `data_parallel=True` of their own method, seed by seed, and
            `bayesuq.adopt_members`.)
        num_epochs: Passes over the data, of every member. None leaves it to `member_fit`.
        learning_rate: Adam's step size at the start. None leaves it to `member_fit`.
        validation: Rows whose predictive log density is watched: each member keeps the weights of its own best epoch.
        seed: Makes the fit repeatable; None draws one from torch's generator. Members' initial weights, orders and
            bootstraps get seeds derived from it.
        progress: Whether to show a bar for each member; None shows them on a terminal and in a notebook.
        callbacks: Called with a `Progress` after each epoch, of every member in turn.
        checkpoint: A path, or a `Checkpoint` of one, that the fit writes to as it goes; members that train one after
            another have files of their own beside it. The same fit called again goes on from there and ends with the
            same bits. Where the file is there and `seed` is None, its seed is taken.

    Returns:
        The equal mixture of the members: an `EnsemblePosterior`, or a program's `ProgramEnsemble`.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the network or the likelihood does not take; options out of range; a module whose weights
            nothing initialises.
        FloatingPointError: The loss stopped being finite.

    Warns:
        UserWarning: Weights that look trained, or initialised in a way of their own, are reset without being asked to;
            members that start alike and see the same minibatches.
        ConvergenceWarning: What the members' fits warn of; of members that train together, what the
            first one memorised.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (20,), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> fit(model, data, num_members=3, num_epochs=3, seed=0).predict(data.x).num_samples
        3
    """
    check_count(num_members, "num_members")
    if not callable(member_fit):
        raise TypeError(
            f"`member_fit` must be a function, such as `map_estimate.fit`; got {type(member_fit).__name__}."
        )
    if not isinstance(model, BayesianNetwork):
        check_program(model)
        if adversarial or vectorised or initialise is not None:
            raise ValueError("`adversarial`, `vectorised` and `initialise` are for networks; leave them out.")
    file, workers = Checkpoint.of(options["checkpoint"]), Workers.of(data_parallel)
    own = Identity(running_in(model)) if isinstance(model, BayesianNetwork) else None
    key = claimed_seed(workers, file, options["seed"], own)
    shared = _of_members(options)
    seeds = [derive_seed(key, number, 1) for number in range(num_members)]
    if not isinstance(model, BayesianNetwork):
        check_alone(data_parallel, "an ensemble of a program")
        rows = [_resampled(data, derive_seed(key, number, 2)) if bootstrap else data for number in range(num_members)]
        files = [{} if file is None else {"checkpoint": file.of_part(f"member-{n}")} for n in range(num_members)]
        return fit_program(model, rows, seeds, member_fit, observed, shared, files)
    check_unnamed(observed)
    start: Initialise = "reset" if initialise is None else initialise
    models = [model.reinitialise(derive_seed(key, number, 0), start) for number in range(num_members)]
    if initialise is None:
        _warn_if_trained(model, models)
    if initialise == "keep" and member_fit is map_estimate.fit and not bootstrap:
        _warn_if_alike(model, data, options["batch_size"])
    rows = [_resampled(data, derive_seed(key, number, 2)) if bootstrap else data for number in range(num_members)]
    if workers.are_together:
        if vectorised:
            raise ValueError("Processes share out members that train one after another. Leave `vectorised` out.")
        check_same_rows(workers, data)
    stackable = not callable(initialise) or all(differ_in_start_only(models[0], other) for other in models[1:])
    stackable = stackable and not workers.are_together
    if stackable and _train_together(models[0], data, shared, member_fit, vectorised=vectorised):
        trainings = [Training(**{**LEFT_TO_MEMBERS, **shared}, seed=seed) for seed in seeds]
        if file is not None:
            trainings[0] = replace(trainings[0], checkpoint=file.of_part("members"))
        return EnsemblePosterior.of(fit_modes(models, rows, trainings, adversarial=adversarial))
    if adversarial:
        shared["adversarial"] = True

    def fitted(number: int) -> Posterior:
        own_file = {} if file is None else {"checkpoint": file.of_part(f"member-{number}")}
        with within(1 / (num_members - number)):
            return member_fit(models[number], rows[number], seed=seeds[number], **shared, **own_file)

    if workers.are_together:
        return EnsemblePosterior.of(_shared_out(workers, models, fitted))
    return EnsemblePosterior.of([fitted(number) for number in range(num_members)])


def _of_members(options: TrainingOptions) -> dict[str, Any]:
    """Those of every member: without what each has of its own, and without what is left to its method."""
    given = {name: value for name, value in options.items() if name not in ("seed", "checkpoint")}
    return {name: value for name, value in given.items() if value is not None or name not in LEFT_TO_MEMBERS}


def _warn_if_trained(model: BayesianNetwork, resets: Sequence[BayesianNetwork]) -> None:
    """Say that weights are dropped that somebody may have meant to keep."""
    names = not_fresh(model.net, [reset.net for reset in resets])
    if names:
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        warn_of_fit(
            f"Members start from layers reset anew, not from the network's own weights, of which {listed} look trained "
            "or initialised in a way of their own. Pass `initialise`: 'last_layer' or 'keep' to start from them, a "
            "function of (net, seed) for an initialisation of your own, or 'reset' if this is meant.",
            UserWarning,
        )


def _warn_if_alike(model: BayesianNetwork, data: Data, batch_size: int | None) -> None:
    """Say that all members will be one network."""
    in_one_step = isinstance(data, Dataset) and isinstance(batch_size, int) and len(data) <= batch_size
    if in_one_step and not any(is_dropout(module) for module in model.net.modules()):
        warn_of_fit(
            "Members that keep the network's own weights and see all rows in each step are all the same. Pass "
            "`bootstrap=True`, a smaller `batch_size`, or initialise='last_layer'.",
            UserWarning,
        )


def _train_together(
    model: BayesianNetwork,
    data: Data,
    shared: Mapping[str, Any],
    member_fit: Callable[..., Posterior],
    *,
    vectorised: bool | None,
) -> bool:
    """Whether members train in one pass: as asked, or where that is possible and faster.

    Raises:
        ValueError: It was asked for where it is not possible.
    """
    training = Training(**{**LEFT_TO_MEMBERS, **shared, "seed": 0})
    possible = member_fit is map_estimate.fit and is_possible(model, data, training)
    if vectorised and not possible:
        raise ValueError(
            "Members can train together only as modes (`map_estimate.fit`) of networks without dropout and BatchNorm, "
            "on a Dataset, without `validation`, `callbacks` and `max_grad_norm`. Pass vectorised=None."
        )
    return possible and (is_faster(model, training.batch_size) if vectorised is None else vectorised)


def _resampled(data: Data, seed: int) -> Dataset:
    """N rows drawn with replacement from the N."""
    if not isinstance(data, Dataset):
        raise TypeError(f"`bootstrap` draws rows of a Dataset; got {type(data).__name__}.")
    return data.rows(torch.randint(len(data), (len(data),), generator=generator(seed)))


def _shared_out(workers: Workers, models: Sequence[Any], fit: Callable[[int], Posterior]) -> list[Posterior]:
    """One posterior for each model: the first process fits numbers 0, R, 2 R, ... of R processes, and all get all.

    Args:
        workers: Every one of them takes part in this.
        models: That the posteriors are of, the same in all processes.
        fit: Of the model of a number.

    Raises:
        Exception: What a fit in any process has raised: the same in all.
    """
    own = workers.agreed(lambda: {n: fit(n) for n in range(workers.rank, len(models), workers.size)})
    return [_sent(workers, number, own.get(number), model) for number, model in enumerate(models)]


def _sent(workers: Workers, number: int, posterior: Posterior | None, model: Any) -> Posterior:
    """The posterior of a number, from the process that has it."""
    owner = number % workers.size
    body: dict[str, Any] | None = None
    tensors: dict[str, Tensor] | None = None
    if posterior is not None:
        body, tensors = pack(posterior)
    told, found = json.loads(workers.text(json.dumps(body), owner)), workers.tensors(tensors, owner)
    return unpack(told, found, {"model": model, "guide": None}, CLASSES) if posterior is None else posterior
