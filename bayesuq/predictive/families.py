"""Distribution functions and moments of single laws, also where torch has none; None where nobody knows them.

References:
    Johnson, Kotz and Balakrishnan 1995 and Johnson, Kemp and Kotz 2005, for the incomplete beta and gamma functions.
    Mardia and Jupp 2000, section 3.5.4, for the Fourier series of von Mises' law.
"""

import math
from collections.abc import Callable
from typing import Any

import scipy.special
import torch
from torch import Tensor
from torch.distributions import AffineTransform, TransformedDistribution

from bayesuq.predictive.laws import kinds

MOST_TERMS = 2**24  # numbers that a distribution function is summed from


def cdf(law: Any, y: Tensor) -> Tensor | None:
    """P(y* <= y) under each law, of the batch shape, or None where it is not known."""
    value = _cdf(law, y)
    if value is None:
        return None
    lower, upper = bounds(law)
    value = torch.where(y < lower, 0.0, value) if lower is not None else value
    return torch.where(y >= upper, 1.0, value) if upper is not None else value


def bounds(law: Any) -> tuple[Any, Any]:
    """The least and the greatest value of a law's support, numbers or tensors; None where there is none."""
    support = law.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)


def _cdf(law: Any, y: Tensor) -> Tensor | None:
    known = kinds(law)
    for kind, formula in FORMULAS.items():
        if kind in known:
            return formula(law, y)
    if type(law) is TransformedDistribution:
        return _transformed(law, y)
    try:
        return law.cdf(y)
    except NotImplementedError:
        if isinstance(law, TransformedDistribution):
            return _transformed(law, y)
        return _summed(law, y) if law.support.is_discrete else None


def _transformed(law: Any, y: Tensor) -> Tensor | None:
    """By the law underneath: falling transforms turn the two sides round."""
    sign: Any = 1
    for step in reversed(law.transforms):
        if not step.bijective:
            return None
        y, sign = step.inv(y), sign * step.sign
    below = cdf(law.base_dist, y)
    if below is None:
        return None
    return torch.where(torch.as_tensor(sign, device=below.device) > 0, below, 1 - below)


def _summed(law: Any, y: Tensor) -> Tensor | None:
    """Of counts from 0 on, one after another, where they are few."""
    last = y.floor()
    most = float(last.amax())
    if (most + 2) * last.numel() > MOST_TERMS:
        return None
    total = torch.zeros(torch.broadcast_shapes(law.batch_shape, y.shape), dtype=torch.float64, device=y.device)
    for count in range(int(max(most, -1.0)) + 1):
        at = torch.full_like(total, float(count))
        total += torch.where(at <= last, log_prob(law, at).exp(), 0.0)
    return total.clamp(max=1.0)


def _by_scipy(function: Any, *arguments: Any) -> Tensor:
    # torch has no incomplete beta function.
    tensors = torch.broadcast_tensors(*[torch.as_tensor(each, dtype=torch.float64) for each in arguments])
    return torch.as_tensor(function(*[each.detach().cpu().numpy() for each in tensors])).to(tensors[-1])


def _of_student(law: Any, y: Tensor) -> Tensor:
    return _by_scipy(scipy.special.stdtr, law.df, (y - law.loc) / law.scale)


def _of_poisson(law: Any, y: Tensor) -> Tensor:
    return torch.special.gammaincc(y.floor().clamp(min=0) + 1, law.rate)


def _of_beta(law: Any, y: Tensor) -> Tensor:
    return _by_scipy(scipy.special.betainc, law.concentration1, law.concentration0, y.clamp(0.0, 1.0))


def _of_ratio(law: Any, y: Tensor) -> Tensor:
    share = law.df1 * y.clamp(min=0.0)
    return _by_scipy(scipy.special.betainc, law.df1 / 2, law.df2 / 2, share / (share + law.df2))


def _of_binomial(law: Any, y: Tensor) -> Tensor:
    count = y.floor().clamp(min=0)
    left = law.total_count - count
    inside = _by_scipy(scipy.special.betainc, left.clamp(min=1e-300), count + 1, 1 - law.probs)
    return torch.where(left <= 0, 1.0, inside)


def _of_negative_binomial(law: Any, y: Tensor) -> Tensor:
    return _by_scipy(scipy.special.betainc, law.total_count, y.floor().clamp(min=0) + 1, torch.sigmoid(-law.logits))


def _of_gamma_poisson(law: Any, y: Tensor) -> Tensor:
    share = law.rate / (1 + law.rate)
    return _by_scipy(scipy.special.betainc, law.concentration, y.floor().clamp(min=0) + 1, share)


def _of_generalised_pareto(law: Any, y: Tensor) -> Tensor:
    return -torch.expm1(_survival_of_pareto(law, y))


def _of_geometric(law: Any, y: Tensor) -> Tensor:
    return -torch.expm1((y.floor() + 1) * torch.log1p(-law.probs))


def _of_coin(law: Any, y: Tensor) -> Tensor:
    return torch.where(y < 1, 1 - law.probs, 1.0)


def _of_logits(law: Any, y: Tensor) -> Tensor:
    return torch.sigmoid(law.temperature * y - law.logits)


def _of_folded(law: Any, y: Tensor) -> Tensor | None:
    upper, lower = cdf(law.base_dist, y), cdf(law.base_dist, -y)
    return None if upper is None or lower is None else upper - lower


def _of_zero_inflated(law: Any, y: Tensor) -> Tensor | None:
    base = cdf(law.base_dist, y)
    return None if base is None else law.gate * (y >= 0) + (1 - law.gate) * base


def _of_asymmetric(law: Any, y: Tensor) -> Tensor:
    left, right = law.scale * law.asymmetry, law.scale / law.asymmetry
    away = y - law.loc
    below = left / (left + right) * torch.exp(away.clamp(max=0.0) / left)
    return torch.where(away < 0, below, 1 - right / (left + right) * torch.exp(-away.clamp(min=0.0) / right))


def _of_mixture(law: Any, y: Tensor) -> Tensor | None:
    each = cdf(law.component_distribution, y.unsqueeze(-1))
    return None if each is None else (law.mixture_distribution.probs * each).sum(dim=-1)


def _of_choice(law: Any, y: Tensor) -> Tensor | None:
    one, other = cdf(law.component0, y), cdf(law.component1, y)
    return None if one is None or other is None else torch.where(law.mask, other, one)


def _of_angle(law: Any, y: Tensor) -> Tensor:
    """From -pi on: 1/2 + y / 2 pi + sum_j rho_j (sin j (y - mu) + sin j (pi + mu)) / (pi j), rho_j = I_j / I_0."""
    total = 0.5 + y / math.tau
    for j, rho in _fourier(law):
        total = total + rho / (math.pi * j) * (torch.sin(j * (y - law.loc)) + torch.sin(j * (math.pi + law.loc)))
    return total.clamp(0.0, 1.0)


def _fourier(law: Any) -> Any:
    """j and rho_j as far as they matter."""
    concentration = law.concentration
    for j in range(1, 30 + int(10 * float(concentration.amax()) ** 0.5)):
        yield j, _by_scipy(lambda kappa, j=j: scipy.special.ive(j, kappa) / scipy.special.ive(0, kappa), concentration)


FORMULAS: dict[str, Callable[[Any, Tensor], Tensor | None]] = {
    "StudentT": _of_student,
    "Poisson": _of_poisson,
    "Beta": _of_beta,
    "FisherSnedecor": _of_ratio,
    "ExtendedBinomial": _summed,  # before what it is a kind of
    "Binomial": _of_binomial,
    "NegativeBinomial": _of_negative_binomial,
    "GammaPoisson": _of_gamma_poisson,
    "GeneralizedPareto": _of_generalised_pareto,
    "Geometric": _of_geometric,
    "Bernoulli": _of_coin,
    "LogitRelaxedBernoulli": _of_logits,
    "AsymmetricLaplace": _of_asymmetric,
    "FoldedDistribution": _of_folded,
    "ZeroInflatedDistribution": _of_zero_inflated,
    "MixtureSameFamily": _of_mixture,
    "MaskedMixture": _of_choice,
    "VonMises": _of_angle,
}


def log_prob(law: Any, y: Tensor) -> Tensor:
    """log density or log probability of each law, -inf outside of its own support."""
    if type(law) is TransformedDistribution:  # whose own support forgets that of the law underneath
        return _log_density_of_transformed(law, y)
    value = _log_density_of_pareto(law, y) if "GeneralizedPareto" in kinds(law) else law.log_prob(y)
    return torch.where(law.support.check(y).expand(value.shape), value, -math.inf)


def _log_density_of_transformed(law: Any, y: Tensor) -> Tensor:
    """By the law underneath, less log |dy / dx| of each step."""
    inside, slope = law.support.check(y), torch.zeros_like(y)
    for step in reversed(law.transforms):
        x = step.inv(y)
        slope, y = slope + step.log_abs_det_jacobian(x, y), x
    value = log_prob(law.base_dist, y) - slope
    return torch.where(inside & value.isfinite(), value, -math.inf)


def sample(law: Any) -> Tensor:
    """One draw of each law, by torch's global random numbers."""
    if "LogNormalNegativeBinomial" not in kinds(law):
        return law.sample()
    noise = law.multiplicative_noise_scale * torch.randn_like(law.logits)
    return torch.distributions.NegativeBinomial(law.total_count, logits=law.logits + noise).sample()


def _survival_of_pareto(law: Any, y: Tensor) -> Tensor:
    """log P(y* > y) of generalised Pareto laws, which torch has for one dtype only."""
    standard, shape = (y - law.loc) / law.scale, law.concentration
    is_exponential = shape.abs() < 1e-8
    safe = torch.where(is_exponential, 1.0, shape)
    return torch.where(is_exponential, -standard, -torch.log1p(safe * standard) / safe)


def _log_density_of_pareto(law: Any, y: Tensor) -> Tensor:
    # d/dy of 1 - (1 + k z)^(-1 / k) is (1 + k z)^(-1 / k - 1) / scale
    return (1 + law.concentration) * _survival_of_pareto(law, y) - law.scale.log()


def quantile(law: Any, level: float, device: torch.device) -> Tensor | None:
    """The value that y* does not exceed with probability `level` under each law, or None where it is not known."""
    if "StudentT" in kinds(law):
        return law.loc + law.scale * _by_scipy(scipy.special.stdtrit, law.df, level)
    try:
        return law.icdf(torch.full(law.batch_shape, level, dtype=torch.float64, device=device))
    except NotImplementedError:
        return None


def moments(law: Any) -> tuple[Tensor, Tensor] | None:
    """Mean and variance of each law, or None where they are not known in closed form."""
    if "VonMises" in kinds(law):
        return _moments_of_angle(law)
    if type(law) is TransformedDistribution and all(isinstance(one, AffineTransform) for one in law.transforms):
        found = moments(law.base_dist)
        if found is None:
            return None
        mean, variance = found
        steps: Any = law.transforms
        for step in steps:
            mean, variance = step.loc + step.scale * mean, step.scale**2 * variance
        return mean, variance
    try:
        return law.mean, law.variance
    except NotImplementedError:
        return None


def _moments_of_angle(law: Any) -> tuple[Tensor, Tensor]:
    """Of the number in (-pi, pi] that an angle is told by; torch's variance is the circular one."""
    mean, square = torch.zeros_like(law.loc), torch.full_like(law.loc, math.pi**2 / 3)
    for j, rho in _fourier(law):
        turn = -1.0 if j % 2 else 1.0
        mean = mean - 2 * rho * turn * torch.sin(j * law.loc) / j
        square = square + 4 * rho * turn * torch.cos(j * law.loc) / j**2
    return mean, (square - mean.square()).clamp(min=0.0)
