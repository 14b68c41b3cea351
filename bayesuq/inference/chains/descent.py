"""Where a short descent from a chain's last draw leads: how much better than the chain its rows can be predicted.

Chains that all begin far from the posterior, and lag behind alike, agree with each other; what they began at is no
better, and a constant may be worse. Some steps of Adam (Kingma & Ba 2015) on the chains' own energy tell: from draws of
the posterior they gain at most the half nat a label by which draws lie below their mode, and mostly next to nothing,
since all draws together predict better than one; from the way to it they gain whatever is left of it. The likelihood's
own unknowns stay where they are: a noise scale at a mode may be next to 0. The cost is bounded by `SHARE` of the
gradients that the chains took.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.training.optimizers import Adam, falling_rate
from bayesuq.models.bnn import LIKELIHOOD

SHARE = 0.02  # of the chains' gradients, at most
FEWEST_STEPS, MOST_STEPS = 20, 400
RATE = 0.01  # at the start, in units of weights


@dataclass(frozen=True, eq=False)
class Descent:
    """Steps down the energy that chains moved in.

    Attributes:
        gradient: Of the energy at a vector of the random sites, (R,), in nats; estimates will do.
        layout: Of the random sites.
        num_steps: Of Adam, at a rate that falls to 0; 0 where the chains were too short to be worth any.
    """

    gradient: Callable[[Tensor], Tensor]
    layout: Layout
    num_steps: int

    @classmethod
    def after(cls, num_gradients: float, gradient: Callable[[Tensor], Tensor], layout: Layout) -> "Descent":
        """As long as chains that took so many gradients can bear."""
        steps = min(int(SHARE * num_gradients), MOST_STEPS)
        return cls(gradient, layout, steps if steps >= FEWEST_STEPS else 0)

    def end(self, flat: Tensor) -> Tensor:
        """Where it leads from a draw, (P,): the random sites move, and what stands behind them does not."""
        moving = self.layout.size
        moves = torch.ones_like(flat[:moving])
        for name, where in self.layout.slices().items():
            if name.startswith(LIKELIHOOD):
                moves[where] = 0
        at = flat[:moving].detach().clone()
        optimizer = Adam([{"params": [at], "lr": RATE}])
        for step in range(self.num_steps):
            optimizer.param_groups[0]["lr"] = falling_rate(RATE, step, self.num_steps)
            found = self.gradient(at)
            if not bool(found.isfinite().all()):
                break
            at.grad = found.to(at) * moves
            optimizer.step()
        return torch.cat([at, flat[moving:]])
