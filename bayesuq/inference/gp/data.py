"""Rows as a Gaussian process reads them: float64, targets as the likelihood has them, and the units of both."""

from dataclasses import replace

import torch
from torch import Tensor

from bayesuq.data import Batch, Dataset
from bayesuq.inference.training.minibatches import cast_rows
from bayesuq.inputs import require_tensor
from bayesuq.models.gp.combined import Deep
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.models.gp.units import ROUNDING, Units, channel_moments, spread_or_size
from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.models.likelihoods.real import HeteroscedasticNormal


class ProcessReader:
    """Reads rows for a Gaussian process.

    Attributes:
        model: The process.
        device: Where it computes.
        dtype: Of real numbers, float64.
        weighs: That rows count by their weights.
        num_outputs: C, as the first rows show it.
    """

    def __init__(self, model: GaussianProcess, device: torch.device) -> None:
        self.model, self.device = model, device
        self.dtype, self.weighs = torch.float64, True
        self.num_outputs = 0
        self._row: torch.Size | None = None

    def open(self, first: Dataset) -> Batch:
        """Learn C and the shape of a row, and hold the process's shapes against them; validation rows come second."""
        require_tensor(first.x, "A Gaussian process")
        if self._row is None:
            self._row = first.x.shape[1:]
            self.num_outputs = self.model.outputs_for(self.model.likelihood.targets(first.y))
        rows = self.read(first)
        self.model.build(rows.x[:2], self.num_outputs).check(rows.x[:3])
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
        return cast_rows(data, y, self.device, self.dtype)


def units_of(
    model: GaussianProcess, features: Tensor, y: Tensor, num_outputs: int, weight: Tensor | None = None
) -> Units:
    """The units that features (N, K) and targets give.

    A network's outputs start next to 0 and grow to some units within some steps, as logits do. Lengthscales in
    units of their first spread would be left behind, and all rows be far from each other: it counts as 1 at least.

    Args:
        model: The process.
        features: What the kernel looks at, (N, K).
        y: Targets as the likelihood has them.
        num_outputs: C.
        weight: Of each row (N,) or target (N, D); targets of weight 0 are missing.

    Raises:
        ValueError: A spread whose square float64 does not hold.
    """
    centre, spread = (part.squeeze(0) for part in channel_moments(features, weight))
    _check_spread(spread, "the network's features" if isinstance(model.kernel, Deep) else "`x`")
    spread = spread.clamp(min=1.0) if isinstance(model.kernel, Deep) else spread
    square = features.square().mean(dim=0)
    square = torch.where(square > SMALLEST_SQUARE, square, 1.0)
    ones = torch.ones(num_outputs, dtype=torch.float64, device=features.device)
    units = Units(centre, spread, square, 0 * ones, ones)
    # Classes as a Dirichlet process has them are real targets too.
    if not y.is_floating_point() or not (model.likelihood.has_units or isinstance(model.likelihood, Categorical)):
        return units
    mean, variance = _target_moments(y if y.ndim > 1 else y.unsqueeze(1), weight)
    _check_spread(variance.sqrt(), "`y`")
    if isinstance(model.likelihood, HeteroscedasticNormal):
        noise = (NOISE_SHARE * variance).log()  # log variances, which vary by a nat or so
        return replace(
            units, location=torch.cat([mean, noise]), variance=torch.cat([variance, torch.ones_like(variance)])
        )
    return replace(units, location=mean, variance=variance)


def _check_spread(spread: Tensor, name: str) -> None:
    """Refuse columns whose squares are no numbers, of their standard deviations."""
    bad = ((spread > LARGEST) | (spread < 1 / LARGEST)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"The spread of column {bad[0]} of {name} is {float(spread[bad[0]]):.1e}, whose square float64 does not "
            "hold. Give it in another unit."
        )


def _target_moments(y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted means and variances of columns (N, D); of a constant one, the square of its size, or 1."""
    if weight is None:
        mean, variance, size = y.mean(dim=0), y.var(dim=0, correction=0), y.abs().amax(dim=0)
    else:
        weight = weight.reshape(len(y), -1).expand_as(y)
        seen = torch.where(weight > 0, y, 0.0)  # a missing target is any number
        shares = weight / weight.sum(dim=0).clamp(min=torch.finfo(y.dtype).tiny)
        mean, size = (shares * seen).sum(dim=0), seen.abs().amax(dim=0)
        variance = (shares * (seen - mean).square()).sum(dim=0)
    square = torch.where(size > 0, size.square().clamp(min=torch.finfo(y.dtype).tiny), 0.0)  # 0 only for constant 0
    return mean, spread_or_size(variance, square, ROUNDING**2)


NOISE_SHARE = 0.1  # of the targets' variance
LARGEST = 1e140  # spread, and the inverse of the smallest
SMALLEST_SQUARE = 1e-300  # of a feature's size that a slope is measured by
