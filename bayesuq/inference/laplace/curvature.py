"""The curvature of a log-likelihood in the network's outputs: the matrix Lambda of a generalised Gauss-Newton.

For one row with outputs f, K numbers in all,

    Lambda = E[ -d^2 log p(y | f) / df df^T ]  over y ~ p(y | f),   H = sum_n w_n J_n^T Lambda_n J_n,   J = df / dtheta

It is the Fisher information of p(y | f), and for plain likelihoods of labels, of counts and for a normal one the
Hessian itself, which does not depend on y. Lambda is handled by a root, Lambda = R R^T, so that H is a sum of squares.

Reference:
    Martens 2020, New Insights and Perspectives on the Natural Gradient Method.
"""

import torch
from torch import Tensor

from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.counts import Poisson
from bayesuq.models.likelihoods.labels import Bernoulli, Categorical
from bayesuq.models.likelihoods.noisy_logits import HeteroscedasticCategorical
from bayesuq.models.likelihoods.real import HeteroscedasticNormal, Normal, StudentT

SUPPORTED = (Categorical, Bernoulli, HeteroscedasticCategorical, Normal, HeteroscedasticNormal, StudentT, Poisson)


def check_supported(likelihood: Likelihood) -> None:
    """Raise a ValueError unless `fisher_root` knows the likelihood."""
    if not isinstance(likelihood, SUPPORTED):
        known = ", ".join(kind.__name__ for kind in SUPPORTED)
        raise ValueError(
            f"The curvature of {type(likelihood).__name__} is not known; Laplace approximations take {known}. Use "
            "another method, such as variational."
        )


def fisher_root(likelihood: Likelihood, f: Tensor) -> Tensor:
    """R with R R^T = Lambda, (N, K, K), float64; K is the number of outputs of a row, in the order of `f.flatten(1)`.

    Args:
        likelihood: At the values of its unknowns; its class weights have no part in it: see `target_weights`.
        f: Network outputs, (N, C, ...).

    Raises:
        ValueError: A likelihood whose curvature is not known.
    """
    check_supported(likelihood)
    f = f.double()
    if isinstance(likelihood, Categorical):
        return _softmax_root(f)
    if isinstance(likelihood, HeteroscedasticCategorical):
        return _noisy_softmax_root(likelihood, f)
    if isinstance(likelihood, Bernoulli):
        p = f.sigmoid()
        return (p * (1 - p)).sqrt().flatten(1).diag_embed()
    if isinstance(likelihood, Poisson):
        return (0.5 * f).exp().flatten(1).diag_embed()  # a count tells of its log rate as much as the rate is large
    law = likelihood.distribution(f).base_dist
    scale = law.scale.double()
    if isinstance(likelihood, StudentT):  # (df + 1) / (df + 3) / scale^2: Lange et al. 1989, section 2
        return (((law.df + 1) / (law.df + 3)).sqrt() / scale).expand(f.shape).flatten(1).diag_embed()
    if isinstance(likelihood, Normal):
        return (1 / scale).expand(f.shape).flatten(1).diag_embed()
    if not isinstance(likelihood, HeteroscedasticNormal):
        raise TypeError(f"The curvature of {type(likelihood).__name__} is not known.")
    # Of N(m, v) the Fisher information is 1 / v in m and 1 / 2 in log v.
    slope = likelihood.log_variance_slope(f.chunk(2, dim=1)[1])
    return torch.cat([1 / scale, slope / 2**0.5], dim=1).diag_embed()


def target_weights(likelihood: Likelihood, f: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """What multiplies each target's log p(y | f), (N, ...) or (N, C, ...), float64: weights of its row and its class.

    Args:
        likelihood: Whose class weights and ignored label count.
        f: Network outputs, (N, C, ...).
        y: Targets.
        weight: (N,), or of y's shape, or None.
    """
    y = likelihood.align(f, y)
    likelihood = likelihood.categorical if isinstance(likelihood, HeteroscedasticCategorical) else likelihood
    own = torch.ones(y.shape, dtype=torch.float64, device=f.device)
    if isinstance(likelihood, Categorical | Bernoulli) and likelihood.class_weights is not None:
        classes = own.new_tensor(likelihood.class_weights)
        own = classes[y.long().clamp(0, len(classes) - 1)]  # an ignored label may be any number
    if isinstance(likelihood, Categorical) and likelihood.ignore_index is not None:
        own = torch.where(y == likelihood.ignore_index, 0.0, own)
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


def _softmax_root(f: Tensor) -> Tensor:
    """diag(sqrt p) - p sqrt(p)^T at each position of (N, C, ...), whose square is diag(p) - p p^T; (N, K, K)."""
    p = f.reshape(*f.shape[:2], -1).softmax(dim=1).movedim(1, -1)  # (N, M, C); M = 1 for plain labels
    root = p.sqrt().diag_embed() - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)
    _, num_positions, num_classes = p.shape
    whole = torch.diag_embed(root.movedim(1, -1))  # (N, C, C, M, M): positions do not mix
    return whole.permute(0, 1, 3, 2, 4).reshape(len(f), num_classes * num_positions, -1)


def _noisy_softmax_root(likelihood: HeteroscedasticCategorical, f: Tensor) -> Tensor:
    """Columns sqrt(p_y) d log p_y / df, one for each label and position, and zeros; their squares sum to the Fisher."""
    num_classes, num_positions = f.shape[1] // 2, f[0, 0].numel()
    with torch.enable_grad():
        outputs = f.detach().requires_grad_()
        log_probs = likelihood.logits(outputs)
        # Rows and positions do not mix, so that one sum a label has all their gradients.
        slopes = [torch.autograd.grad(log_probs[:, k].sum(), outputs, retain_graph=True)[0] for k in range(num_classes)]
    roots = (0.5 * log_probs.detach()).exp()
    columns = torch.stack([roots[:, k, None] * slope for k, slope in enumerate(slopes)], dim=2)  # (N, 2 C, C, ...)
    whole = torch.diag_embed(columns.reshape(len(f), 2 * num_classes, num_classes, num_positions))
    whole = torch.cat([whole, torch.zeros_like(whole)], dim=2)
    return whole.permute(0, 1, 3, 2, 4).reshape(len(f), 2 * num_classes * num_positions, -1)
