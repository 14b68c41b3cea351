"""Small networks of every kind that does more than `torch.nn.Linear` does, from x (N, ...) to f (N, 1).

Each is what its library's users write. `RANDOM_IN_TRAINING` draw when `net.train()` runs them, in the ways that there
are; `STATEFUL` move some of their own buffers then; `SHARED` have one module, or one parameter, in several places, and
stand beside the same function written out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

WIDTH, STEPS = 3, 4  # numbers in a vector, vectors in a sequence
P = 0.3  # of dropping


class Pooled(nn.Module):
    """A body from sequences (N, T, D) to (N, T, K), the mean over T, and a linear layer to (N, 1)."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.last = body, nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out = out[0] if isinstance(out, tuple) else out
        return self.last(out.mean(dim=1))


class TimeFirst(nn.Module):
    """Runs a body that takes (T, N, D), torch's own default for sequences."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x.transpose(0, 1))
        return (out[0] if isinstance(out, tuple) else out).transpose(0, 1)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself; its dropout is an argument."""

    def __init__(self, width: int, *, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, dropout=P, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


class FunctionalDropout(nn.Module):
    """Dropout that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.dropout(self.first(x).tanh(), P, self.training))


class StochasticDepth(nn.Module):
    """A residual block that each row skips at random, as in torchvision and timm."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        if self.training:
            out = out * x.new_empty(len(x), 1).bernoulli_(1 - P).div_(1 - P)
        return self.last(x + out)


class LayerDrop(nn.Module):
    """A block that a whole batch skips at random."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.drop, self.last = nn.Linear(WIDTH, WIDTH), nn.Dropout(P), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or torch.rand(()) > P:
            x = x + self.drop(self.block(x).tanh())
        return self.last(x)


class GaussianNoise(nn.Module):
    """Noise on the inputs while training."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + 0.5 * torch.randn_like(x) if self.training else x)


class AlwaysNoisy(nn.Module):
    """Noise that no mode turns off."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + torch.randn_like(x))


class MovingAverage(nn.Module):
    """A statistic of one's own, assigned anew while training."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(dim=0)
        return self.last(x - self.mean)


class UsedTwice(nn.Module):
    """One layer called twice in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.layer(x).tanh()).tanh())


class Tied(nn.Module):
    """One parameter in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).tanh()).tanh())


def in_two_places() -> nn.Module:
    """One layer at two places of the tree."""
    layer = nn.Linear(WIDTH, WIDTH)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(WIDTH, 1))


def encoder(*, batch_first: bool = True) -> nn.Module:
    """torch's transformer, whose evaluation has a fused path of its own."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=P, batch_first=batch_first)
    body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return Pooled(nn.Sequential(nn.Linear(WIDTH, 4), body if batch_first else TimeFirst(body)), 4)


def convolutional(norm: nn.Module) -> nn.Module:
    """A convolution, a norm and a mean, on images (N, 2, 4, 4)."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), norm, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1)
    )


def spectral(norm: Callable[[nn.Module], nn.Module], width: int = 16) -> nn.Module:
    """Layers whose largest singular value is held at 1."""
    return nn.Sequential(
        norm(nn.Linear(WIDTH, width)), nn.ReLU(), norm(nn.Linear(width, width)), nn.ReLU(), nn.Linear(width, 1)
    )


VECTORS, SEQUENCES, IMAGES = (WIDTH,), (STEPS, WIDTH), (2, 4, 4)


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    Attributes:
        build: Makes one, its weights drawn from torch's global generator.
        row: Shape of one row of its inputs.
    """

    build: Callable[[], nn.Module]
    row: tuple[int, ...] = VECTORS

    def net(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """One whose weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().to(dtype)

    def x(self, number: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal inputs, (N, ...)."""
        return torch.randn(number, *self.row, generator=torch.Generator().manual_seed(seed)).to(dtype)


RANDOM_IN_TRAINING: Mapping[str, Kind] = {
    "dropout layers": Kind(lambda: nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Dropout(P), nn.Linear(6, 1))),
    "transformer": Kind(encoder, SEQUENCES),
    "transformer, time first": Kind(lambda: encoder(batch_first=False), SEQUENCES),
    "attention": Kind(lambda: Pooled(SelfAttention(4, need_weights=True), 4), (STEPS, 4)),
    "fused attention": Kind(lambda: Pooled(SelfAttention(4, need_weights=False), 4), (STEPS, 4)),
    "lstm": Kind(lambda: Pooled(nn.LSTM(WIDTH, 4, 2, dropout=P, batch_first=True), 4), SEQUENCES),
    "gru, time first": Kind(lambda: Pooled(TimeFirst(nn.GRU(WIDTH, 4, 2, dropout=P)), 4), SEQUENCES),
    "functional": Kind(FunctionalDropout),
    "functional beside a layer": Kind(lambda: nn.Sequential(nn.Dropout(P), FunctionalDropout())),
    "stochastic depth": Kind(StochasticDepth),
    "layer drop": Kind(LayerDrop),
    "gaussian noise": Kind(GaussianNoise),
}

STATEFUL: Mapping[str, Kind] = {
    "spectral norm": Kind(lambda: spectral(parametrizations.spectral_norm)),
    "spectral norm, by a hook": Kind(lambda: spectral(nn.utils.spectral_norm)),
    "instance norm": Kind(lambda: convolutional(nn.InstanceNorm2d(3, track_running_stats=True)), IMAGES),
    "batch norm": Kind(lambda: convolutional(nn.BatchNorm2d(3)), IMAGES),
    "moving average": Kind(MovingAverage),
}

SHARED: Mapping[str, tuple[Kind, Callable[[Mapping[str, Tensor], Tensor], Tensor]]] = {
    "module in two places": (
        Kind(in_two_places),
        lambda theta, x: _twice(theta, x, "0.weight", "0.bias", "0.bias", "4"),
    ),
    "module called twice": (
        Kind(UsedTwice),
        lambda theta, x: _twice(theta, x, "layer.weight", "layer.bias", "layer.bias", "last"),
    ),
    "parameter in two modules": (
        Kind(Tied),
        lambda theta, x: _twice(theta, x, "first.weight", "first.bias", "second.bias", "last"),
    ),
}

OTHER: Mapping[str, Kind] = {
    "weight norm": Kind(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(WIDTH, 4)), nn.Tanh(), nn.Linear(4, 1))
    ),
    "weight norm, by a hook": Kind(
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(WIDTH, 4)), nn.Tanh(), nn.Linear(4, 1))
    ),
}

ALWAYS_RANDOM = Kind(AlwaysNoisy)


def _twice(theta: Mapping[str, Tensor], x: Tensor, weight: str, bias: str, second_bias: str, last: str) -> Tensor:
    """tanh(W tanh(W x + b) + c) and a linear layer, of explicit weights."""
    hidden = functional.linear(x, theta[weight], theta[bias]).tanh()
    hidden = functional.linear(hidden, theta[weight], theta[second_bias]).tanh()
    return functional.linear(hidden, theta[f"{last}.weight"], theta[f"{last}.bias"])
