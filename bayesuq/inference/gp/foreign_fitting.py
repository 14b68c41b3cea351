"""An `ApproximateGP` of GPyTorch's trained by minibatches: its own ELBO, by Adam, on copies of model and likelihood.

    -ELBO = -(N / batch) sum_n E_q log p(y_n | f(x_n)) + KL(q(u) || p(u))

What moves are the model's parameters and the likelihood's, with those that were frozen as they are. Priors that are
registered in GPyTorch's modules count, as GPyTorch's `VariationalELBO` has it.
"""

import copy
from typing import Any

import gpytorch
import torch
from torch import Tensor

from bayesuq.arrays import as_targets
from bayesuq.data import Batch, Dataset
from bayesuq.inference.gp.foreign import GpytorchPosterior, copied
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.minibatches import cast_rows
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.training.options import Training, sources
from bayesuq.inputs import require_tensor
from bayesuq.loaders import Data
from bayesuq.randomness import lent


class OutsideReader:
    """Reads rows for a model of GPyTorch's: real numbers in its dtype, labels as whole numbers, one column as (N,)."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self.device, self.dtype, self.weighs = device, next(network.parameters()).dtype, False

    def open(self, first: Dataset) -> Batch:
        """As `read`."""
        return self.read(first)

    def read(self, data: Dataset) -> Batch:
        """Rows on the device."""
        require_tensor(data.x, "A model of GPyTorch's")
        if data.weight is not None:
            raise ValueError("GPyTorch's ELBO has no weights of rows. Drop them, or take a bayesuq GaussianProcess.")
        y = data.y if data.is_labelled else as_targets(data.y)
        y = y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y
        return cast_rows(data, y, self.device, self.dtype)


class OutsideObjective:
    """Minus the ELBO as the loop takes it.

    Attributes:
        network: The model, which moves.
        likelihood: Its likelihood, likewise.
        num_data: Rows in all.
    """

    def __init__(self, network: Any, likelihood: Any, num_data: int) -> None:
        self.network, self.likelihood, self.num_data = network, likelihood, num_data
        self.bound = gpytorch.mlls.VariationalELBO(likelihood, network, num_data=num_data)
        named = [*network.named_parameters(), *((f"likelihood.{name}", p) for name, p in likelihood.named_parameters())]
        distinct = {id(parameter): (name, parameter) for name, parameter in reversed(named) if parameter.requires_grad}
        self.leaves = dict(reversed(distinct.values()))

    def objective(self) -> Objective:
        """What the loop needs."""
        kinds = f"{type(self.network).__name__} with {type(self.likelihood).__name__}"
        return Objective(
            leaves=self.leaves,
            loss_and_grads=self.loss_and_grads,
            log_predictive=self.log_predictive,
            culprits=self.culprits,
            identity=f"GPyTorch's {kinds}",
            options={"shapes": [[name, list(leaf.shape)] for name, leaf in self.leaves.items()]},
        )

    def loss_and_grads(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """In nats."""
        for leaf in self.leaves.values():
            leaf.grad = None
        with lent(noise):  # likelihoods without quadrature draw
            loss = -self.num_data * self.bound(self.network(batch.x), batch.y).sum()
        loss.backward()
        for leaf in self.leaves.values():
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return loss.detach()

    def log_predictive(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """log p(y | x) of each row."""
        with torch.no_grad(), lent(noise):
            terms = self.likelihood.log_marginal(batch.y, self.network(batch.x))
        return terms.reshape(len(batch.y), -1).sum(dim=1)

    def culprits(self, _batch: Batch, _noise: torch.Generator) -> list[str]:
        """Parameters that are not finite, or else the targets."""
        return [name for name, leaf in self.leaves.items() if not leaf.isfinite().all()] or ["y"]


def fit_outside(
    posterior: GpytorchPosterior, data: Data, training: Training, device: torch.device
) -> GpytorchPosterior:
    """Train copies of an `ApproximateGP` and its likelihood, from where they stand.

    Raises:
        TypeError: Another model.
        ValueError: Weighted rows; data that the model does not take.
    """
    if not isinstance(posterior.network, gpytorch.models.ApproximateGP):
        raise TypeError(
            f"Of GPyTorch's models an ApproximateGP is trained here, and an ExactGP that is its mean and kernel; got "
            f"{type(posterior.network).__name__}. Train it with GPyTorch, and call `bayesuq.adopt`."
        )
    network, likelihood = (
        copy.deepcopy(module).to(device).train().requires_grad_() for module in (posterior.network, posterior.reading)
    )
    with sources(OutsideReader(network, device), data, training) as (source, validation):
        bound = OutsideObjective(network, likelihood, source.num_data)
        minimise(bound.objective(), source, validation, training)
    return GpytorchPosterior(copied(network), copied(likelihood))
