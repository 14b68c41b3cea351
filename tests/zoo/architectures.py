"""Small networks of the architectures that are in use, from x (N, ...) to f (N, 1)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.zoo.modules import IMAGES, SEQUENCES, STEPS, VECTORS, WIDTH, Kind, Pooled, convolutional


class Experts(nn.Module):
    """A mixture of experts: each row goes through the one that a gate picks, which no vectorisation can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 2)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, 4) for _ in range(2))
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(dim=1)
        chosen = shares.argmax(dim=1)
        hidden = x.new_zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                hidden = hidden.index_add(0, rows, expert(x[rows]).tanh() * shares[rows, number, None])
        return self.last(hidden)


class Keywords(nn.Module):
    """A body that is called by keyword, and passes on what it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 4), nn.Linear(4, 1)

    def body(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.first(*args, **kwargs).tanh()

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.last(input=self.body(input=x, **kwargs))


class OwnAttention(nn.Module):
    """Attention by torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.last = nn.Linear(WIDTH, 12), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, dim=-1)
        return self.last(functional.scaled_dot_product_attention(q, k, v).mean(dim=1))


class Bag(nn.Module):
    """Words by the signs of what comes in, in a bag of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(2 * WIDTH, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        words = (x > 0).long() + 2 * torch.arange(WIDTH)
        return self.last(self.bag(words).tanh())


class Scaled(nn.Module):
    """Logits at a temperature that is one number, of shape (), as CLIP's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.log_scale = nn.Linear(WIDTH, 4), nn.Linear(4, 1), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh()) * self.log_scale.exp()

    def reset_parameters(self) -> None:
        """For members of an ensemble."""
        nn.init.constant_(self.log_scale, 0.3)


class SelfAttention(nn.Module):
    """torch's attention of a sequence to itself, without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


def encoder() -> nn.Module:
    """torch's transformer, without dropout."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return Pooled(nn.Sequential(nn.Linear(WIDTH, 4), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)), 4)


def flattened(*layers: nn.Module, width: int) -> nn.Module:
    """Layers, a nonlinearity, and a linear layer on all that they give."""
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(width, 1))


ARCHITECTURES: Mapping[str, Kind] = {
    "transformer": Kind(encoder, SEQUENCES),
    "attention": Kind(lambda: Pooled(SelfAttention(), 4), (STEPS, 4)),
    "own attention": Kind(OwnAttention, SEQUENCES),
    "experts": Kind(Experts),
    "keywords": Kind(Keywords),
    "one number": Kind(Scaled),
    "lstm": Kind(lambda: Pooled(nn.LSTM(WIDTH, 4, batch_first=True), 4), SEQUENCES),
    "gru": Kind(lambda: Pooled(nn.GRU(WIDTH, 4, batch_first=True), 4), SEQUENCES),
    "bag of embeddings": Kind(Bag),
    "group norm": Kind(lambda: convolutional(nn.GroupNorm(1, 3)), IMAGES),
    "transposed convolution": Kind(lambda: flattened(nn.ConvTranspose2d(2, 2, 2), width=50), IMAGES),
    "convolution in three dimensions": Kind(lambda: flattened(nn.Conv3d(1, 2, 2), width=16), (1, 3, 3, 3)),
    "convolution in one": Kind(lambda: flattened(nn.Conv1d(STEPS, 2, 2), width=4), SEQUENCES),
    "weight norm": Kind(lambda: flattened(parametrizations.weight_norm(nn.Linear(WIDTH, 4)), width=4), VECTORS),
}
