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


def output_weights(likelihood: Likelihood, f: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """What multiplies log p(y | f) for each of the K outputs of a row, (N, K), float64: weights of row and class.

    Outputs that share a target share its weight.

    Args:
        likelihood: Whose class weights and ignored label count.
        f: Network outputs, (N, C, ...).
        y: Targets.
        weight: (N,), or of y's shape, or None.
    """
    own = likelihood.target_weights(likelihood.align(f, y))
    if weight is not None:
        rowwise = weight.ndim == 1 and own.ndim > 1
        own = own * (weight.reshape(-1, *[1] * (own.ndim - 1)) if rowwise else weight.reshape(own.shape)).double()
    own = own.unsqueeze(1) if own.ndim < f.ndim else own  # labels have no channel
    repeats = f.shape[1] // own.shape[1]  # of (means, log variances) or of classes
    return own.repeat(1, repeats, *[1] * (f.ndim - 2)).flatten(1)
