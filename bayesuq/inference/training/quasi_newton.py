"""The minimum of a smooth function of tensors, by SciPy's L-BFGS; torch's own imports a compiler, 1.4 CPU seconds."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

MEMORY = 20  # steps that tell of the curvature


def minimum(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    max_iterations: int,
    tolerance: float,
    largest: float | None = None,
) -> Tensor:
    """Where the search ends, (P,).

    Args:
        evaluate: The value at a point, 0-d, and its gradient, (P,).
        start: The point where the search begins, (P,).
        max_iterations: Steps at most.
        tolerance: On the largest entry of the gradient, below which it ends.
        largest: What no coordinate leaves on either side; None lets all go anywhere. A function that is cut there
            instead is flat beyond, where a long step ends the search.
    """

    def told(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evaluate(torch.as_tensor(point).to(start))
        return float(value), gradient.double().cpu().numpy()

    bounds = None if largest is None else [(-largest, largest)] * start.numel()
    options = {"maxiter": max_iterations, "maxcor": MEMORY, "ftol": 0.0, "gtol": tolerance}
    found = minimize(
        told, start.detach().double().cpu().numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return torch.as_tensor(found.x).to(start)
