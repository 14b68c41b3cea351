"""A network in training mode whose draws come from keys, so that a row has the same masks wherever it stands."""

from collections.abc import Mapping
from contextlib import nullcontext

from torch import Tensor, nn

from bayesuq.inference.joint.masks import MaskedOperators, Masks, check_masks, only_layers, with_masks
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.layers import is_dropout
from bayesuq.models.training_mode import TrainingMode, observe, training_mode, with_own_buffers


def is_random(model: BayesianNetwork, mode: TrainingMode) -> bool:
    """Whether the network draws anything in training mode."""
    return bool(mode.calls) or any(is_dropout(module) for module in model.net.modules())


def draws_in_training(model: BayesianNetwork, x: Tensor) -> bool:
    """Whether a network draws anything in training mode, at rows as it takes them."""
    return is_random(model, training_mode(model, x))


class MaskedNetwork:
    """A model's network in training mode, its statistics held, drawing from masks.

    Attributes:
        masks: Where its draws come from.
    """

    def __init__(self, model: BayesianNetwork, x: Tensor) -> None:
        """Find out what draws.

        Args:
            model: Whose network it is.
            x: Some rows of the inputs.

        Raises:
            ValueError: Draws that cannot be tied to rows, or a module that keeps statistics as it draws.
        """
        self.model, self.mode = model, training_mode(model, x)
        check_masks(self.mode)
        self.masks = Masks(model.device)
        _check_held(model, self.mode, x)
        tree = _held(share_tensors(model.net), self.mode)
        by_layers = only_layers(tree, self.mode)
        self.tree = with_masks(tree, self.masks) if by_layers else tree
        self.operators = None if by_layers else MaskedOperators(tree, self.masks, self.mode)

    def num_drawn(self) -> int:
        """Masks that the pass has drawn by now."""
        return self.masks.count

    def __call__(
        self,
        theta: Mapping[str, Tensor],
        rows: Tensor,
        buffers: Mapping[str, Tensor],
        *,
        key: tuple[int, int],
        start: int | None,
    ) -> Tensor:
        """f (N, C, ...) under one draw of the masks.

        Args:
            theta: A value for each site.
            rows: Inputs, (N, ...).
            buffers: The network's.
            key: A seed and the number of the draw.
            start: The number of the first row; None where all rows share one mask.

        Raises:
            RuntimeError: The pass did not draw as often as it should.
        """
        masks = self.masks
        masks.begin(*key, start, len(rows))
        with self.operators or nullcontext():
            f = self.model.forward(theta, rows, net=self.tree, buffers=buffers)
        masks.end()
        if masks.count != len(self.mode.calls) and not self.mode.skips:
            raise RuntimeError(
                f"A pass of the network drew {masks.count} times where {len(self.mode.calls)} were seen. A network "
                "must draw in the same way in each pass."
            )
        return f


def _held(tree: nn.Module, mode: TrainingMode) -> nn.Module:
    """The tree in training mode but for the modules with buffers that would move."""
    tree.train()
    for path in mode.moving:
        tree.get_submodule(path).training = False  # of this module alone, not of those in it
    return tree


def _check_held(model: BayesianNetwork, mode: TrainingMode, x: Tensor) -> None:
    """Refuse a module that draws and keeps statistics, for it has one switch for both."""
    if not mode.moving:
        return
    held = observe(_held(with_own_buffers(model.net), mode), x)
    if held.moving or held.calls.keys() != mode.calls.keys():
        raise ValueError(
            f"`net.{mode.moving[0]}` keeps statistics in training mode, which must be held while masks are drawn, and "
            "draws too, or does not heed `self.training`. Put the two into modules of their own."
        )
