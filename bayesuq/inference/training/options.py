"""The options that every optimising fit shares, and the session in which it runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, dataclass, fields
from os import PathLike
from typing import Any, Literal, ParamSpec, Self, TypedDict, TypeVar, Unpack

import torch
from torch import nn
from torch.utils.data import DataLoader

from bayesuq.arrays import check_count, check_one_of, check_positive
from bayesuq.columns import keeps_names
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.column_scales import warn_of_scales
from bayesuq.inference.training.minibatches import NetworkReader, Reader, Source
from bayesuq.inference.training.workers import SEED_BITS, Group, Workers
from bayesuq.loaders import Data, Loader
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.precision import fresh_casts
from bayesuq.options import spells_out
from bayesuq.randomness import derive_seed, globally_isolated, resolve_seed

P = ParamSpec("P")
R = TypeVar("R")
Schedule = Literal["cosine", "constant"]
SHUFFLE, NOISE, VALIDATION, GLOBAL, QUALITY, LOOKS, STARTS = range(7)  # what a fit's seed is split into
NUM_EPOCHS = 100  # and on small data as many as make
FEWEST_STEPS = 2000
BATCH_SIZE = 128
OF_PROGRAMS = "variational, laplace, map_estimate, ensemble, hmc, sgmcmc and microcanonical"


@dataclass(frozen=True)
class Progress:
    """What a callback is told after each epoch.

    Attributes:
        epoch: Number of the epoch, from 0.
        step: Steps made so far.
        loss: Mean over the epoch's steps of the loss per data point, in nats.
        validation_loss: Mean negative log predictive density of the validation points by their weights, in nats; None
            without them.
        seconds: Wall time since the fit began.
    """

    epoch: int
    step: int
    loss: float
    validation_loss: float | None
    seconds: float


Callback = Callable[[Progress], None]


class TrainingOptions(TypedDict, total=False):
    """The options that every optimising `fit` takes. None, where a type has it, is the method's default.

    Attributes:
        num_epochs: Passes over the data. None makes 100, and as many as make 2,000 steps where that is more: of 60 rows
            an epoch is one step, and a step moves a weight by no more than the learning rate, whatever the data's size.
        batch_size: Rows in a minibatch, at most; an epoch is divided into batches of equal size, give or take one. A
            DataLoader has its own.
        learning_rate: Adam's step size at the start.
        schedule: Of the learning rate: "cosine" lets it fall to 0 over the steps (Loshchilov & Hutter 2017); "constant"
            does not.
        max_grad_norm: Clips the norm of the gradient of the loss per data point; None does not.
        validation: Rows whose predictive log density is watched: the weights of the best epoch are kept.
        patience: Stops after so many epochs without a better validation loss; None never does.
        device: Where to compute; None is where the model is.
        seed: Makes the fit repeatable; None draws one from torch's generator. It does not decide the network's initial
            weights, which were drawn when the network was made: for the same fit in another process, give
            `networks.mlp(..., seed=0)` or `BayesianNetwork(..., seed=0)` a seed too. (An ensemble draws its members'
            initial weights itself, by this seed.)
        progress: Whether to show a bar; None shows it on a terminal and in a notebook.
        callbacks: Called with a `Progress` after each epoch.
        checkpoint: A path, or a `Checkpoint` of one, that the fit writes to as it goes; the same fit called again goes
            on from there and ends with the same bits. Where the file is there and `seed` is None, its seed is taken.
        captured: Whether a CUDA device makes the steps as a graph, which is captured once and launched as a whole: for
            networks whose kernels take less time than Python. Smaller minibatches are filled up with rows of weight
            zero, so that masks and other noise of single rows are other numbers then. A warning says why where it
            cannot be. It has not been run on a GPU.
    """

    num_epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    schedule: Schedule
    max_grad_norm: float | None
    validation: Data | None
    patience: int | None
    device: torch.device | str | None
    seed: int | None
    progress: bool | None
    callbacks: Sequence[Callback]
    checkpoint: Checkpoint | str | PathLike[str] | None
    captured: bool


def training_options(**defaults: Unpack[TrainingOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a `fit` that takes `**training: Unpack[TrainingOptions]` show them all, and get them all when it is called.

    It reads data frames by the names of their columns, too: see `keeps_names`.

    Args:
        defaults: Those in which the method differs from others. It says its learning rate always.
    """
    usual = {field.name: field.default for field in fields(Training) if field.default is not MISSING}
    shown = spells_out({"num_epochs": None, "batch_size": BATCH_SIZE, **usual, **defaults})
    return lambda fit: shown(keeps_names(fit))


@dataclass(frozen=True)
class Training:
    """The options of `TrainingOptions` as they travel inside of a fit: all are there, and checked."""

    num_epochs: int | None
    batch_size: int
    learning_rate: float
    schedule: Schedule = "cosine"
    max_grad_norm: float | None = None
    validation: Data | None = None
    patience: int | None = None
    device: torch.device | str | None = None
    seed: int | None = None
    progress: bool | None = None
    callbacks: Sequence[Callback] = ()
    checkpoint: Checkpoint | str | PathLike[str] | None = None
    captured: bool = False
    data_parallel: bool | Group = False

    @classmethod
    def of(cls, options: TrainingOptions, **changed: Any) -> Self:
        """A fit's options, but for those that it changes.

        Raises:
            TypeError: Options of the wrong kind.
            ValueError: Options out of range, or `patience` without `validation`.
        """
        told: dict[str, Any] = {**options, **changed}
        return cls(**told)

    def __post_init__(self) -> None:
        if self.num_epochs is not None:
            check_count(self.num_epochs, "num_epochs")
        check_count(self.batch_size, "batch_size")
        check_positive(self.learning_rate, "learning_rate")
        # A generator would be used up by this very check.
        if not isinstance(self.callbacks, Sequence) or not all(callable(callback) for callback in self.callbacks):
            raise TypeError(f"`callbacks` must be a list of functions of a Progress; got {self.callbacks!r}.")
        check_one_of(self.schedule, "schedule", Schedule)
        if not isinstance(self.captured, bool):
            raise TypeError(f"`captured` must be True or False; got {self.captured!r}.")
        if self.max_grad_norm is not None:
            check_positive(self.max_grad_norm, "max_grad_norm")
        if self.patience is not None:
            check_count(self.patience, "patience")
            if self.validation is None:
                raise ValueError("`patience` needs `validation` rows to watch.")
        checkpoint = Checkpoint.of(self.checkpoint)
        object.__setattr__(self, "checkpoint", checkpoint)
        seed = checkpoint.seed() if checkpoint is not None and self.seed is None else self.seed
        seed, workers = resolve_seed(seed), self.workers
        if workers.are_together:
            seed = workers.numbers(seed % 2**SEED_BITS)[0]
        if not workers.is_first:  # which shows one bar, writes one file, and calls what the user has passed
            object.__setattr__(self, "progress", False)
        object.__setattr__(self, "seed", seed)

    @property
    def workers(self) -> Workers:
        """The processes that this fit is made by."""
        return Workers.of(self.data_parallel)

    def key(self, purpose: int) -> int:
        """A seed for one purpose of this fit."""
        return derive_seed(resolve_seed(self.seed), purpose)

    def epochs(self, num_batches: int) -> int:
        """Passes over data of so many minibatches."""
        return default_epochs(num_batches) if self.num_epochs is None else self.num_epochs


def default_epochs(num_batches: int) -> int:
    """The `num_epochs` that None stands for: 100, and on data of few minibatches as many as make 2,000 steps."""
    return max(NUM_EPOCHS, -(-FEWEST_STEPS // num_batches))


@contextmanager
def session(
    model: BayesianNetwork, data: Data, training: Training, *, takes_losses: bool = False
) -> Iterator[tuple[BayesianNetwork, Source, Source | None]]:
    """The model on its device, checked data and checked validation rows, for the length of one fit.

    What a DataLoader draws from torch's global generators, such as its order, depends on the fit's seed, and those
    generators are then put back as they were. Without a DataLoader they are neither read nor written, so that fits in
    several threads do not meet; fits that read one share these generators, and in threads need loaders with a
    `generator=` of their own. Inside of `torch.autocast` networks run in its precision, and weights that move are cast
    anew at each step.

    Args:
        model: The joint density.
        data: Rows to fit.
        training: The fit's options.
        takes_losses: Whether the method only descends, so that a likelihood may be a loss that is no density.
    """
    if not isinstance(model, BayesianNetwork):
        given = callable(model) and not isinstance(model, nn.Module)
        remedy = f" A Pyro program is fitted by {OF_PROGRAMS}." if given else ""
        raise TypeError(f"`model` must be a bayesuq.models.BayesianNetwork; got {type(model).__name__}.{remedy}")
    if not takes_losses:
        model.likelihood.check_density()
    model = model if training.device is None else model.to(training.device)
    with sources(NetworkReader(model), data, training) as (source, validation):
        warn_of_scales(model.likelihood, source.rows)
        yield model, source, validation


@contextmanager
def sources(reader: Reader, data: Data, training: Training) -> Iterator[tuple[Source, Source | None]]:
    """As `session`, for whatever reads rows; gradients are on, whatever the caller's `torch.no_grad`.

    Raises:
        ValueError: Inside of `torch.inference_mode`, which nothing within turns off for tensors that are there.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "A fit needs gradients, and tensors that are made inside of torch.inference_mode() have none. Call `fit` "
            "outside of it, on data that were made outside of it, too; `predict` may be called inside."
        )
    watched = training.validation
    loads = any(isinstance(rows, DataLoader | Loader) for rows in (data, watched))
    generators = globally_isolated(training.key(GLOBAL), device=reader.device) if loads else nullcontext()
    with fresh_casts(), generators, torch.enable_grad():
        workers = training.workers
        source = Source.together(reader, data, training.batch_size, workers)
        own = None if watched is None else Source.together(reader, watched, training.batch_size, workers)
        yield source, own
