"""MC dropout: train with dropout, keep the masks random when predicting, and read their spread as uncertainty.

A draw is one mask for every input and layer. Only the dropout layers are random; BatchNorm stays in evaluation mode and
unchanged, and so does the network that was passed in.

Reference:
    Gal & Ghahramani 2016, Dropout as a Bayesian Approximation, section 4 (eq. 6 and 7).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.export import Drawn, Wanted
from bayesuq.inference.checkpoint import Checkpoint
from bayesuq.inference.history import History
from bayesuq.inference.map_estimate import LEARNING_RATE, fit_mode
from bayesuq.inference.minibatches import Data
from bayesuq.inference.packing import move, save
from bayesuq.inference.prediction import draw_indices, predict_in_chunks
from bayesuq.inference.prior_draws import prior_of
from bayesuq.inference.training import Callback, Schedule, Training
from bayesuq.inference.training_network import is_dropout
from bayesuq.inference.weights import Layout
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.options import suggests_names
from bayesuq.posterior import Posterior
from bayesuq.predictive import PredictiveDistribution
from bayesuq.randomness import resolve_seed

BLOCK = 64  # rows whose masks come from one generator
ALPHA = -1.7580993408473766  # -scale * alpha of SELU (Klambauer et al. 2017): what AlphaDropout puts for a dropped unit


@suggests_names
def fit(
    model: BayesianNetwork,
    data: Data,
    *,
    num_epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = LEARNING_RATE,
    schedule: Schedule = "cosine",
    max_grad_norm: float | None = None,
    validation: Data | None = None,
    patience: int | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | str | PathLike[str] | None = None,
) -> "DropoutPosterior":
    """Train the network with its dropout layers on; the prior acts as weight decay.

    Args:
        model: The joint density; its network has dropout layers (`torch.nn.Dropout` and its kin, as modules).
        data: Rows to fit, or a DataLoader of them.
        num_epochs: This and the following: see `bayesuq.inference.training.Training`.
        batch_size: See there.
        learning_rate: See there; scales of the likelihood move ten times as fast.
        schedule: See there.
        max_grad_norm: See there.
        validation: See there; watched with the dropout layers off.
        patience: See there.
        device: See there.
        seed: See there.
        progress: See there.
        callbacks: See there.
        checkpoint: See there.

    Returns:
        A posterior without end of draws, one mask each.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: A network without dropout layers; data that the network or the likelihood does not take; options out
            of range.
        FloatingPointError: The loss stopped being finite.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> net = networks.mlp(1, (20,), 1, dropout=0.1)
        >>> model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> fit(model, data, num_epochs=3, seed=0).predict(data.x, num_samples=10).num_samples
        10
    """
    training = Training(
        num_epochs=num_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        max_grad_norm=max_grad_norm,
        validation=validation,
        patience=patience,
        device=device,
        seed=seed,
        progress=progress,
        callbacks=callbacks,
        checkpoint=checkpoint,
    )
    if isinstance(model, BayesianNetwork) and not any(is_dropout(module) for module in model.net.modules()):
        raise ValueError(
            "MC dropout needs a network with dropout layers; this one has none, or all have p = 0. Build it with "
            "`dropout=0.1`, or put `torch.nn.Dropout` modules into it."
        )
    mode = fit_mode(model, data, training)
    return DropoutPosterior(model=mode.model, values=mode.values, buffers=mode.buffers, history=mode.history)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DropoutPosterior(Posterior):
    """One set of weights whose units are dropped at random.

    Attributes:
        model: The joint density.
        values: The flat vector (P,) of every site.
        buffers: The network's buffers as trained.
        history: How the fit went.
    """

    model: BayesianNetwork
    values: Tensor
    buffers: Mapping[str, Tensor]
    history: History

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def to(self, device: torch.device | str) -> Self:
        """The same posterior on another device."""
        return move(self, device)

    def save(self, path: "str | PathLike[str]") -> None:
        """Write it to one file: see `Posterior.save`."""
        save(self, path)

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D), a mask a draw and input: see `Posterior.predict`."""
        indices = draw_indices(num_samples, None)
        key = resolve_seed(seed)
        theta = Layout.of(self.model).split(self.values)
        likelihood = self.model.likelihood_given(theta)
        masks = Masks(self.device)
        tree = with_masks(share_tensors(self.model.net), masks)

        def parts(rows: Tensor, start: int, width: int) -> Iterator[PredictiveDistribution]:  # noqa: ARG001
            for index in indices:
                masks.begin(key, index, start, len(rows))
                f = self.model.forward(theta, rows, net=tree, buffers=self.buffers)
                masks.end()
                yield likelihood.predictive(f.unsqueeze(0), keep_samples=keep_samples)

        return predict_in_chunks(self.model, x, tree, parts)

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: functions of x only, for a draw is a mask."""
        return Drawn(
            method=type(self).__name__,
            weights={},
            predict=partial(self.predict, num_samples=wanted.num_samples, seed=wanted.seed, keep_samples=True),
            **prior_of(self.model, Layout.of(self.model).split(self.values.unsqueeze(0)), self.buffers),
        )


class Masks:
    """Random masks for a run of rows, a function of seed, draw and block of rows, whatever the chunk.

    Before `begin` and after `end` it makes none.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.active = False

    def begin(self, seed: int, draw: int, start: int, num_rows: int) -> None:
        """Get ready for the rows from `start` on; layers then ask in the order in which they run."""
        first, last = start // BLOCK, (start + num_rows - 1) // BLOCK
        # One hash a draw: the state of a block is the same however many blocks are asked for.
        seeds = np.random.SeedSequence(seed, spawn_key=(draw, 0)).generate_state(last + 1, np.uint64)[first:]
        self.generators = [torch.Generator(self.device).manual_seed(int(block)) for block in seeds]
        self.rows = slice(start - first * BLOCK, start - first * BLOCK + num_rows)
        self.active = True

    def check_rows(self, x: Tensor) -> None:
        """Raise a ValueError unless the first dimension of `x` is that of the rows."""
        expected = self.rows.stop - self.rows.start
        if x.ndim < 2 or len(x) != expected:
            raise ValueError(
                f"A dropout layer got inputs of shape {tuple(x.shape)} for {expected} rows; rows must come first."
            )

    def end(self) -> None:
        """Make no more masks."""
        self.active = False

    def keep(self, like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
        """1 with probability 1 - p and 0 else, for each row and each place of `shape`; in `like`'s dtype."""
        blocks = like.new_empty(len(self.generators), BLOCK, *shape)
        for block, noise in zip(blocks, self.generators, strict=True):
            block.bernoulli_(1 - p, generator=noise)
        return blocks.flatten(0, 1)[self.rows]


class MaskedLayer(nn.Module):
    """A dropout layer whose masks come from `Masks`."""

    def __init__(self, layer: nn.Module, masks: Masks) -> None:
        super().__init__()
        self.p: float = layer.p  # type: ignore[assignment]
        self.whole_channels = not isinstance(layer, nn.Dropout | nn.AlphaDropout)
        self.keeps_moments = isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout)
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, ...) with units, or whole channels, dropped."""
        if not self.masks.active:
            return x
        self.masks.check_rows(x)
        if self.p == 1:
            return torch.zeros_like(x)
        shape = (x.shape[1], *[1] * (x.ndim - 2)) if self.whole_channels else tuple(x.shape[1:])
        keep = self.masks.keep(x, shape, self.p)
        if not self.keeps_moments:
            return x * keep.div_(1 - self.p)
        # Klambauer et al. 2017, section 3: an affine map puts mean 0 and variance 1 back.
        a = ((1 - self.p) * (1 + self.p * ALPHA**2)) ** -0.5
        return a * (x * keep + ALPHA * (1 - keep) - ALPHA * self.p)


def with_masks(net: nn.Module, masks: Masks) -> nn.Module:
    """The network, its own to change, with a `MaskedLayer` in the place of each dropout layer."""
    if is_dropout(net):
        return MaskedLayer(net, masks)
    replaced: dict[int, nn.Module] = {}
    for path, layer in list(net.named_modules(remove_duplicate=False)):  # one layer may stand in several places
        if is_dropout(layer):
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, replaced.setdefault(id(layer), MaskedLayer(layer, masks)))
    return net
