"""The validation loss: what held-out rows have at the current state of a fit, by which the best epoch is kept.

    -sum_n w_n log p(y_n | x_n, D) / sum_n w_n

Rows of weight 2 count as two rows, and rows of weight 0 as none, whatever stands in their place.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.training.minibatches import Source
from bayesuq.randomness import generator

LogPredictive = Callable[[Batch, torch.Generator], Tensor]


def validation_loss(log_predictive: LogPredictive, validation: Source, seed: int) -> float:
    """The mean negative log predictive density of the rows by their weights, in nats.

    Args:
        log_predictive: Of each row of a batch, (B,), in nats; see `Objective`.
        validation: The rows, of all processes.
        seed: Of its draws, which are the same at each call.

    Raises:
        ValueError: No row of positive weight.
    """
    noise = generator(seed, device=validation.device)

    def found() -> tuple[float, float]:
        log_density, count = 0.0, 0.0
        for batch in validation.complete():
            rows, weight = with_weights_apart(batch)
            terms = log_predictive(rows, noise).double()
            log_density += float(terms.sum() if weight is None else torch.where(weight > 0, weight * terms, 0.0).sum())
            count += len(batch.y) if batch.weight is None else float(_by_row(batch.weight).double().mean(dim=1).sum())
        return log_density, count

    log_density, count = (validation.workers.total(value) for value in validation.workers.agreed(found))
    if not count > 0:
        raise ValueError("`validation` must have a row of positive weight, by which an epoch could be chosen.")
    return -log_density / count


def with_weights_apart(batch: Batch) -> tuple[Batch, Tensor | None]:
    """Rows whose weights are shares of their largest, and that largest, (B,), float64; None where all are 1.

    A predictive density is a mean over draws, and its logarithm is what a row's weight multiplies: within the mean it
    would be that of a power. Shares are of single targets of a row, 0 of those that are missing.
    """
    weight = batch.weight
    if weight is None or weight.ndim == 1:
        return batch._replace(weight=None), None if weight is None else weight.double()
    largest = _by_row(weight).amax(dim=1)
    shares = weight / torch.where(largest > 0, largest, 1.0).reshape(-1, *[1] * (weight.ndim - 1))
    return batch._replace(weight=shares), largest.double()


def _by_row(weight: Tensor) -> Tensor:
    return weight.reshape(len(weight), -1)
