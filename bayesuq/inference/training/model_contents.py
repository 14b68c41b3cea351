"""The constants of a Bayesian network and what its objectives compute at fixed weights, to tell fits apart by."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesuq.inference.training.identity import NUM_PROBES, digest, fill, summary
from bayesuq.inference.training.objective import Objective
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.precision import DEVICES
from bayesuq.models.running import running_of
from bayesuq.randomness import generator


def model_contents(model: BayesianNetwork) -> dict[str, str]:
    """Digests of all that does not move: frozen parameters, buffers, and the parameters of each site's prior."""
    constants = {f"buffer {name}": value for name, value in model.net.named_buffers()}
    frozen = {name: value for name, value in model.net.named_parameters() if not value.requires_grad}
    constants |= {f"frozen parameter {name}": value for name, value in frozen.items()}
    found = {name: digest({"": value}) for name, value in constants.items()}
    for name, law in model.laws.items():
        found[f"prior of {name}"] = digest(dict(_parameters(law)))
    return found


def sites_of(model: BayesianNetwork) -> dict[str, Any]:
    """Which sites are random and which are learned, in order."""
    return {"random sites": list(model.laws), "learned sites": list(model.points)}


def running_in(model: BayesianNetwork) -> dict[str, str]:
    """The precision of a network's products of matrices in a fit, and what compiles it: other bits from there on."""
    running, device = running_of(model.net), model.device.type
    around = torch.get_autocast_dtype(device) if device in DEVICES and torch.is_autocast_enabled(device) else None
    own = around if running is None or running.autocast is None else running.autocast
    backend = None if running is None else running.backend
    return {"precision": str(own or model.dtype).removeprefix("torch."), "compiler": backend or "none"}


def probed(objective: Objective, batch: Any, device: torch.device) -> dict[str, list[float]]:
    """The loss of a minibatch and a summary of its gradient, at two fixed vectors of weights.

    Between the two, what moves after a step is moved: a process's approximation is its prior before that, and shows no
    kernel. Leaves and buffers are as they were afterwards. Where the loss has no value there, it has none in any other
    process either, and nothing is told of it.
    """
    state = {"leaf": objective.leaves, "buffer": objective.buffers}
    before = {kind: {name: value.detach().clone() for name, value in each.items()} for kind, each in state.items()}
    losses: list[float] = []
    slopes: list[float] = []
    try:
        for number in range(NUM_PROBES):
            if objective.after_step is None:
                _put(objective.buffers, before["buffer"])
            elif number:
                objective.after_step()
            _put(objective.leaves, {name: fill(value, number) for name, value in before["leaf"].items()})
            losses.append(float(objective.loss_and_grads(batch, generator(number, device=device))))
            slopes += summary(torch.cat([_gradient(leaf) for leaf in objective.leaves.values()]))
    except (ValueError, RuntimeError, ArithmeticError):
        return {"loss at fixed weights": [], "slope of the loss at fixed weights": []}
    finally:
        for kind, each in state.items():
            _put(each, before[kind])
    return {"loss at fixed weights": losses, "slope of the loss at fixed weights": slopes}


def probed_energy(at: Callable[[Tensor], tuple[Any, Tensor]], like: Tensor) -> dict[str, list[float]]:
    """The log joint and a summary of its gradient at two fixed vectors.

    Args:
        at: From a vector (P,) to minus the log joint, in nats, and its gradient (P,).
        like: Such a vector.
    """
    try:
        found = [at(fill(like, number)) for number in range(NUM_PROBES)]
    except (ValueError, RuntimeError, ArithmeticError):
        found = []
    return {
        "log joint at fixed weights": [-float(value) for value, _ in found],
        "slope of the log joint at fixed weights": [part for _, slope in found for part in summary(slope)],
    }


def _put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def _gradient(leaf: Tensor) -> Tensor:
    return (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).detach().reshape(-1).double()


def _parameters(law: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that make a law."""
    while isinstance(law, dist.Independent):
        law = law.base_dist
    for name in sorted(law.arg_constraints):
        value = getattr(law, name, None)
        if isinstance(value, Tensor):
            yield f"{type(law).__name__}.{name}", value
