"""The sizes of the data, and the parts of a built process whose parameters are counted in them while they are fitted.

An optimiser steps, and a weak prior spreads, by about 1. Positive hyperparameters are held as logarithms, to which a
unit is a shift; a mean's level and slopes are not, so a fit holds them in standard deviations of the targets. What a
process gives away as its state is always in the units of x and y.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Units:
    """Sizes of the data, in which hyperparameters are counted.

    Attributes:
        centre: Mean of each feature, (K,).
        inputs: Spread (standard deviation) of each feature, (K,); its size, or 1, where it is constant.
        square: Mean square of each feature, (K,).
        location: Where each latent function's mean starts, (C,).
        variance: What each latent function's variance starts at, (C,).
    """

    centre: Tensor
    inputs: Tensor
    square: Tensor
    location: Tensor
    variance: Tensor

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of each latent function, (C,)."""
        return self.variance.sqrt()


class Counted(nn.Module):
    """A built part that holds some parameters in the data's units; before `count`, in those of x and y.

    The units themselves are no state: they are taken out of it.
    """

    @abstractmethod
    def count(self, units: Units) -> None:
        """Count in these units from now on."""

    @abstractmethod
    def natural(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its own parameters in units of x and y, of how they are stored, by name, of any leading shape."""

    def settle(self) -> None:
        """Count in units of x and y again; the parameters are set anew after that."""
        for name, buffer in self.named_buffers(recurse=False):
            setattr(self, name, torch.zeros_like(buffer) if name in SHIFTS else torch.ones_like(buffer))


ROUNDING = 1e-12  # of a size: a spread that rounding may leave of a constant
SHIFTS = ("centre", "location")  # buffers that are added, where the others multiply


def unit_buffer(module: nn.Module, name: str, size: int) -> None:
    """Give a counted part a unit for each output or input, which no state holds."""
    start = torch.zeros if name in SHIFTS else torch.ones
    module.register_buffer(name, start(size, dtype=torch.float64), persistent=False)


def channel_moments(x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, or channel of images, shaped to broadcast over x (N, ...).

    A constant one has its size for a standard deviation, and a zero one has 1.

    Args:
        x: (N, ...).
        weight: Of the rows, (N,), or of each of their targets, whose mean counts; None is 1.
    """
    over = [dim for dim in range(x.ndim) if dim != 1]
    size = x.abs().amax(dim=over, keepdim=True)
    if weight is None:
        return x.mean(dim=over, keepdim=True), spread_or_size(x.std(dim=over, correction=0, keepdim=True), size)
    of_rows = weight.reshape(len(x), -1).mean(dim=1).reshape(-1, *[1] * (x.ndim - 1)).to(x)
    shares = (of_rows / of_rows.sum()).expand_as(x) / (x[0].numel() // x.shape[1])  # of a channel's numbers
    mean = (shares * x).sum(dim=over, keepdim=True)
    return mean, spread_or_size((shares * (x - mean).square()).sum(dim=over, keepdim=True).sqrt(), size)


def spread_or_size(spread: Tensor, size: Tensor, rounding: float = ROUNDING) -> Tensor:
    """A spread, or where it is but rounding of a constant, the size of that constant, or 1 for the constant 0."""
    return torch.where(spread > rounding * size, spread, torch.where(size > 0, size, 1.0))
