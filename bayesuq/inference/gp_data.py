"""Rows as a Gaussian process reads them: float64, targets as the likelihood has them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesuq.data import Batch, Dataset
from bayesuq.inference.minibatches import cast_rows
from bayesuq.models.gp.combined import Deep
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.models.likelihoods.real import HeteroscedasticNormal, Normal, StudentT


class ProcessReader:
    """Reads rows for a Gaussian process.

    Attributes:
        model: The process.
        num_outputs: C, as the first rows show it.
    """

    def __init__(self, model: GaussianProcess, device: torch.device) -> None:
        self.model, self._device = model, device
        self.num_outputs = 0
        self._row: torch.Size | None = None

    @property
    def device(self) -> torch.device:
        """Where the process computes."""
        return self._device

    def open(self, first: Dataset) -> Batch:
        """Learn C and the shape of a row, and hold the process's shapes against them; validation rows come second."""
        if self._row is None:
            self._row = first.x.shape[1:]
            self.num_outputs = self.model.outputs_for(self.model.likelihood.targets(first.y))
        rows = self.read(first)
        self.model.build(rows.x[:2], self.num_outputs)  # refuses what the kernel does not take
        self.model.likelihood.align(rows.x.new_zeros(()).expand(len(rows.x), self.num_outputs), rows.y)
        return rows

    def read(self, data: Dataset) -> Batch:
        """Rows on the device, in float64."""
        if self._row is not None and data.x.shape[1:] != self._row:
            raise ValueError(
                f"The kernel does not take `x` of shape {tuple(data.x.shape)}; the data's rows have shape "
                f"{tuple(self._row)}."
            )
        y = self.model.likelihood.targets(data.y, num_outputs=self.num_outputs)
        return cast_rows(data, y, self.device, torch.float64)


@dataclass(frozen=True, eq=False)
class Units:
    """Sizes of the data, in which hyperparameters are counted.

    Attributes:
        inputs: Spread (standard deviation) of each feature, (K,); 1 where it is constant.
        square: Mean square of each feature, (K,).
        location: Where each latent function's mean starts, (C,).
        variance: What each latent function's variance starts at, (C,).
    """

    inputs: Tensor
    square: Tensor
    location: Tensor
    variance: Tensor

    @classmethod
    def of(cls, model: GaussianProcess, features: Tensor, y: Tensor, num_outputs: int) -> "Units":
        """Of features (N, K) and targets.

        A network's outputs start next to 0 and grow to some units within some steps, as logits do. Lengthscales in
        units of their first spread would be left behind, and all rows be far from each other: it counts as 1 at least.
        """
        spread = features.std(dim=0, correction=0)
        spread = torch.where(spread > 1e-12 * features.abs().amax(dim=0), spread, 1.0)
        spread = spread.clamp(min=1.0) if isinstance(model.kernel, Deep) else spread
        square = features.square().mean(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
        ones = torch.ones(num_outputs, dtype=torch.float64, device=features.device)
        units = cls(spread, torch.where(square > 1e-300, square, 1.0), 0 * ones, ones)
        if not y.is_floating_point() or not (_has_units(model) or isinstance(model.likelihood, Categorical)):
            return units
        y = y if y.ndim > 1 else y.unsqueeze(1)
        variance = y.var(dim=0, correction=0)
        variance = torch.where(variance > (1e-12 * y.abs().amax(dim=0)) ** 2, variance, 1.0)  # constant targets
        if isinstance(model.likelihood, HeteroscedasticNormal):
            noise = (NOISE_SHARE * variance).log()  # log variances, which vary by a nat or so
            return replace(
                units,
                location=torch.cat([y.mean(dim=0), noise]),
                variance=torch.cat([variance, torch.ones_like(variance)]),
            )
        return replace(units, location=y.mean(dim=0), variance=variance)


NOISE_SHARE = 0.1  # of the targets' variance


def _has_units(model: GaussianProcess) -> bool:
    """Whether f is counted in units of y: not for counts, whose f is a log rate."""
    return isinstance(model.likelihood, Normal | StudentT | HeteroscedasticNormal)
