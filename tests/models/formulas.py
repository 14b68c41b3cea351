"""Log densities written out as in a textbook, for single entries in float64: the truth that the models are held to."""

import math

import scipy.special
import torch
from torch import Tensor


def normal(value: Tensor, loc: float | Tensor, scale: float | Tensor) -> Tensor:
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return -((value - loc) ** 2) / (2 * scale**2) - torch.log(scale) - 0.5 * math.log(2 * math.pi)


def laplace(value: Tensor, loc: float, scale: float) -> Tensor:
    return -torch.abs(value - loc) / scale - math.log(2 * scale)


def student_t(value: Tensor, df: float | Tensor, loc: float | Tensor, scale: float | Tensor) -> Tensor:
    df, scale = torch.as_tensor(df, dtype=torch.float64), torch.as_tensor(scale, dtype=torch.float64)
    constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * torch.log(df * math.pi) - torch.log(scale)
    return constant - (df + 1) / 2 * torch.log(1 + ((value - loc) / scale) ** 2 / df)


def scale_mixture(value: Tensor, scales: tuple[float, ...], weights: tuple[float, ...]) -> Tensor:
    return torch.log(sum(w * torch.exp(normal(value, 0.0, s)) for s, w in zip(scales, weights, strict=True)))


def half_normal(value: Tensor, scale: float) -> Tensor:
    return math.log(2) + normal(value, 0.0, scale)


def half_cauchy(value: Tensor, scale: float) -> Tensor:
    return math.log(2 / (math.pi * scale)) - torch.log(1 + (value / scale) ** 2)


def log_normal(value: Tensor, loc: float, scale: float) -> Tensor:
    return normal(torch.log(value), loc, scale) - torch.log(value)


def gamma(value: Tensor, concentration: float, rate: float) -> Tensor:
    constant = concentration * math.log(rate) - math.lgamma(concentration)
    return constant + (concentration - 1) * torch.log(value) - rate * value


def categorical(f: Tensor, y: Tensor) -> Tensor:
    """Of labels (N, ...) under softmax over the second dimension of f."""
    probs = torch.exp(f) / torch.exp(f).sum(dim=1, keepdim=True)
    return torch.log(probs.gather(1, y.unsqueeze(1)).squeeze(1))


def bernoulli(f: Tensor, y: Tensor) -> Tensor:
    """Of labels 0 and 1, of f's shape."""
    prob = 1 / (1 + torch.exp(-f))
    return torch.where(y == 1, torch.log(prob), torch.log(1 - prob))


def poisson(f: Tensor, y: Tensor) -> Tensor:
    """Of counts under log rates f, both (N, D)."""
    factorials = torch.tensor([math.log(math.factorial(int(count))) for count in y.flatten()], dtype=torch.float64)
    return torch.log(torch.exp(f) ** y) - torch.exp(f) - factorials.reshape(y.shape)


def horseshoe(value: Tensor, scale: float) -> Tensor:
    u = (value / scale) ** 2 / 2
    density = (
        torch.exp(u) * torch.as_tensor(scipy.special.exp1(u.detach().numpy())) / (scale * math.sqrt(2 * math.pi**3))
    )
    return torch.log(density)
