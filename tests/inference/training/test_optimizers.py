"""Our optimisers against torch's, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesuq.inference.training.optimizers import SGD, Adam, Optimizer, falling_rate
from tests.inference.examples import noise

PAIRS: dict[str, tuple[Callable[[list[Tensor]], Optimizer], Callable[[list[Tensor]], Optimizer]]] = {
    "adam": (
        lambda leaves: Adam([{"params": leaves[:2], "lr": 0.1}, {"params": leaves[2:], "lr": 0.01}]),
        lambda leaves: torch.optim.Adam(
            [{"params": leaves[:2], "lr": 0.1}, {"params": leaves[2:], "lr": 0.01}], fused=True
        ),
    ),
    "momentum": (
        lambda leaves: SGD(leaves, lr=0.1, momentum=0.9),
        lambda leaves: torch.optim.SGD(leaves, lr=0.1, momentum=0.9),
    ),
    "descent": (lambda leaves: SGD(leaves, lr=0.1, momentum=0.0), lambda leaves: torch.optim.SGD(leaves, lr=0.1)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_steps_and_memories_are_torchs_own(name: str) -> None:
    """Of leaves of two precisions in one group, of one without a gradient, and under options that change."""
    start = [noise(0, 5, 3), noise(1, 4).float(), noise(2, 7), noise(3, 2)]
    sides = [[value.clone().requires_grad_() for value in start] for _ in range(2)]
    optimizers = [build(leaves) for build, leaves in zip(PAIRS[name], sides, strict=True)]
    for step in range(5):
        for optimizer, leaves in zip(optimizers, sides, strict=True):
            for number, leaf in enumerate(leaves[:3]):
                leaf.grad = noise(10 * step + number, *leaf.shape).to(leaf)
            for group in optimizer.param_groups:
                group["lr"] *= falling_rate(1.0, step, 8)
                if "betas" in group:
                    group["betas"] = (0.9, 0.9 + 0.01 * step)
            optimizer.step()
    ours, theirs = optimizers
    assert all(torch.equal(one, other) for one, other in zip(*sides, strict=True))
    for one, other in zip(*sides, strict=True):
        memories = ours.state.get(one, {}), theirs.state.get(other, {})
        kept = [{key: value for key, value in memory.items() if value is not None} for memory in memories]
        assert kept[0].keys() == kept[1].keys()
        assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])


@pytest.mark.parametrize("name", PAIRS)
def test_options_are_torchs_own_by_which_checkpoints_tell_fits_apart(name: str) -> None:
    leaves = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    ours, theirs = (build(leaves).param_groups[0] for build in PAIRS[name])
    without: Callable[[dict[str, Any]], dict[str, Any]] = lambda group: {  # noqa: E731
        key: value for key, value in group.items() if key != "params"
    }
    assert without(ours) == without(theirs)
