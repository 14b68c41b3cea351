"""What moves leaves by their gradients: Adam (Kingma & Ba 2015) in its fused form, and gradient descent with momentum.

They make the steps of `torch.optim.Adam(fused=True)` and `torch.optim.SGD`, bit for bit, and remember the same under
the same names. What those cost beside the arithmetic they leave out: the first one that a process makes imports torch's
compiler, 1.4 CPU seconds, and each step passes through wrappers for it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Group = dict[str, Any]

# All that torch's own have as options, as checkpoints tell fits apart by them.
OF_ADAM: Mapping[str, Any] = {
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0,
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": True,
    "decoupled_weight_decay": False,
}
OF_DESCENT: Mapping[str, Any] = {
    "dampening": 0,
    "weight_decay": 0,
    "nesterov": False,
    "maximize": False,
    "foreach": None,
    "differentiable": False,
    "fused": None,
}


class Optimizer(Protocol):
    """What the minibatch loop needs of an optimiser, one of torch's among them.

    Attributes:
        param_groups: Leaves that share options: "params", "lr" and others.
        state: What it remembers of each leaf, by name.
    """

    param_groups: list[Group]
    state: Any

    def step(self) -> Any:
        """Move the leaves once, by the gradients that they hold."""


class Adam:
    """m <- b1 m + (1 - b1) g and v <- b2 v + (1 - b2) g^2 move a leaf by - rate m^ / (sqrt(v^) + eps).

    The hats divide by 1 - b^t at step t. Leaves without a gradient stay.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        """Remember nothing yet.

        Args:
            groups: Leaves, "params", with their rate, "lr", and options that are not the usual ones.
        """
        self.param_groups: list[Group] = [{**OF_ADAM, **group} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move the leaves once, by the gradients that they hold."""
        for group in self.param_groups:
            for leaves in _alike(group["params"]):
                memories = [self._memory(leaf) for leaf in leaves]
                averages, squares, steps = (
                    [memory[name] for memory in memories] for name in ("exp_avg", "exp_avg_sq", "step")
                )
                first, second = group["betas"]
                torch._foreach_add_(steps, 1)
                torch._fused_adam_(
                    leaves,
                    [leaf.grad for leaf in leaves if leaf.grad is not None],
                    averages,
                    squares,
                    [],
                    steps,
                    lr=group["lr"],
                    beta1=first,
                    beta2=second,
                    weight_decay=0.0,
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                )

    def _memory(self, leaf: Tensor) -> dict[str, Tensor]:
        memory = self.state.setdefault(leaf, {})
        if not memory:
            memory["step"] = torch.zeros((), device=leaf.device)
            memory |= {name: torch.zeros_like(leaf) for name in ("exp_avg", "exp_avg_sq")}
        return memory


class SGD:
    """b <- momentum b + g moves a leaf by - rate b; the first b is g. Leaves without a gradient stay."""

    def __init__(self, leaves: Sequence[Tensor], *, lr: float, momentum: float) -> None:
        """Remember nothing yet."""
        self.param_groups: list[Group] = [{"params": list(leaves), "lr": lr, "momentum": momentum, **OF_DESCENT}]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move the leaves once, by the gradients that they hold."""
        for group in self.param_groups:
            for leaf in group["params"]:
                if leaf.grad is not None:
                    leaf.add_(self._buffer(leaf, leaf.grad, group["momentum"]), alpha=-group["lr"])

    def _buffer(self, leaf: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        if not momentum:
            return gradient
        memory = self.state.setdefault(leaf, {})
        if "momentum_buffer" in memory:
            return memory["momentum_buffer"].mul_(momentum).add_(gradient)
        memory["momentum_buffer"] = gradient.clone()
        return memory["momentum_buffer"]


def falling_rate(rate: float, step: float, num_steps: int) -> float:
    """The rate of a step, from 0, where it falls to 0 over all of them as half a cosine does."""
    return rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def _alike(leaves: Sequence[Tensor]) -> list[list[Tensor]]:
    """Those that have a gradient, by precision and device, which one fused step has in common."""
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for leaf in leaves:
        if leaf.grad is not None:
            alike.setdefault((leaf.dtype, leaf.device), []).append(leaf)
    return list(alike.values())
