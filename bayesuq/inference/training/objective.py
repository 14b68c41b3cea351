"""What a method hands over to the minibatch loop: its loss, what moves, and what tells it from others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.training.looks import RowLosses
from bayesuq.inference.training.optimizers import Optimizer
from bayesuq.models.bnn import BayesianNetwork


@dataclass(frozen=True)
class Objective:
    """What a method gives to the loop.

    Attributes:
        leaves: The tensors to move, in place.
        loss_and_grads: The loss of a minibatch, scaled to the whole data, in nats; it leaves its gradient in each
            leaf's `.grad`.
        log_predictive: Log predictive density of each row at the current state, (B,), in nats.
        culprits: Names of the sites whose terms in the loss are not finite.
        identity: What it is, in words: it tells fits apart for checkpoints.
        rates: Factors on the learning rate, for the leaves where it is not 1.
        buffers: State that the forward pass changes (BatchNorm's statistics), kept with the best weights.
        model: The network that it is of, whose constants tell fits apart too, like the following.
        options: What neither the loss nor the optimiser shows, plain JSON data, or functions that give it, which
            a checkpoint alone calls.
        contents: Digests of constants beside the network's.
        from_network: Leaves that start at the network's own weights. These do not.
        per_step: Buffers that have a row for each step of the fit.
        fixed_length: Tells, for a checkpoint, why the fit cannot be made longer afterwards; None where it can.
        forgetting: An exponent c makes Adam's decay of squared gradients 1 - t^-c at step t, so that it soon
            forgets the large ones of the beginning (Shazeer & Stern 2018, section 7.2); None leaves it at 0.999.
        optimizer: Builds the optimiser from the objective and the learning rate; None is Adam.
        optimizer_state: What the optimiser remembers of each leaf, by its keys, that the posterior is made of, and
            that is kept with the best weights.
        after_step: Called after each step; what it remembers between steps must be in `buffers`.
        rate_option: What the method calls the learning rate, for errors.
        num_fits: How many fits' losses the loss is the sum of.
        log_constant: As `log_predictive`, of the constant that fits the rows best, in the network's place; None where
            there is no such thing, and nothing is compared with it.
        comes_to_rest: Whether the loss is meant to stop falling; where not, nothing is said of its trend.
        varies: Tells why the steps from now on are not all the same operators and numbers, on other rows, noise and
            leaves; None where they are, so that a device can repeat one.
        shared: Gives, of a minibatch, what its rows or its noise have changed beside the gradients: processes that fit
            together average it as they do gradients.
        row_losses: The loss as the rows of a minibatch have it, (B,), per data point, in nats, where masks are drawn
            row by row, and None where nothing is; no gradient. Without it only the steps tell how the loss fell.
    """

    leaves: Mapping[str, Tensor]
    loss_and_grads: Callable[[Batch, torch.Generator], Tensor]
    log_predictive: Callable[[Batch, torch.Generator], Tensor]
    culprits: Callable[[Batch, torch.Generator], list[str]]
    identity: str
    rates: Mapping[str, float] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    model: BayesianNetwork | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)
    from_network: tuple[str, ...] = ()
    per_step: tuple[str, ...] = ()
    fixed_length: Callable[[], str | None] = lambda: None
    forgetting: float | None = None
    optimizer: "Callable[[Objective, float], Optimizer] | None" = None
    optimizer_state: tuple[str, ...] = ()
    after_step: Callable[[], None] | None = None
    rate_option: str = "learning_rate"
    num_fits: int = 1
    log_constant: Callable[[Batch], Tensor] | None = None
    comes_to_rest: bool = True
    row_losses: RowLosses | None = None
    varies: Callable[[], str | None] = lambda: "the steps of this method are none that can be repeated"
    shared: Callable[[Batch], Sequence[Tensor]] = lambda _: ()
