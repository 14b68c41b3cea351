"""The curvature of a log-likelihood in the network's outputs: the matrix Lambda of a generalised Gauss-Newton.

For one row with outputs f, K numbers in all,

    Lambda = E[ -d^2 log p(y | f) / df df^T ]  over y ~ p(y | f),   H = sum_n w_n J_n^T Lambda_n J_n,   J = df / dtheta

It is the Fisher information of p(y | f), and for plain likelihoods of labels, of counts and for a normal one the
Hessian itself, which does not depend on y. A likelihood gives its root, `fisher_root`, Lambda = R R^T, so that H is a
sum of squares; what multiplies it is here.

Reference:
    Martens 2020, New Insights and Perspectives on the Natural Gradient Method.
"""

from torch import Tensor

from bayesuq.models.likelihoods.base import Likelihood


def target_weights(likelihood: Likelihood, f: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """What multiplies each target's log p(y | f), (N, ...) or (N, C, ...), float64: weights of its row and its class.

    Args:
        likelihood: Whose class weights and ignored label count.
        f: Network outputs, (N, C, ...).
        y: Targets.
        weight: (N,), or of y's shape, or None.
    """
    own = likelihood.target_weights(likelihood.align(f, y))
    if weight is None:
        return own
    rowwise = weight.ndim == 1 and own.ndim > 1
    return own * (weight.reshape(-1, *[1] * (own.ndim - 1)) if rowwise else weight.reshape(own.shape)).double()


def output_weights(likelihood: Likelihood, f: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """`target_weights` for each of the K outputs of a row, (N, K): outputs that share a target share its weight."""
    of_targets = target_weights(likelihood, f, y, weight)
    if of_targets.ndim < f.ndim:  # labels have no channel
        of_targets = of_targets.unsqueeze(1)
    repeats = f.shape[1] // of_targets.shape[1]  # of (means, log variances) or of classes
    return of_targets.repeat(1, repeats, *[1] * (f.ndim - 2)).flatten(1)
