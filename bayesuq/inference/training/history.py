"""How a fit went."""

from dataclasses import dataclass


@dataclass(frozen=True)
class History:
    """The course of a fit.

    Attributes:
        loss: Of each epoch: mean over its steps of the loss per data point, in nats.
        validation_loss: Of each epoch: mean negative log predictive density of the validation points by their
            weights, in nats.
        best_epoch: The epoch whose weights were kept; the last one without validation.
    """

    loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_epoch: int


UNTRAINED = History(loss=(), validation_loss=(), best_epoch=0)  # no epoch of ours
