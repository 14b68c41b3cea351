"""How far two predictives are apart at the same points: of an approximation from its reference, such as HMC.

No truth is needed. Each distance is the mean over points of its `pointwise_` function. Of a predictive that holds some
of its draws alone it is the distance of those.

References:
    Izmailov, Vikram, Hoffman and Wilson, "What are Bayesian neural network posteriors really like?", ICML 2021,
    section 3.3, for agreement and total variation of labels.
    Villani, "Optimal transport", 2009, remark 2.19, for the Wasserstein distance on the line.
"""

import math
from collections.abc import Callable
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.evaluation.kinds import check_categorical
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive, check_mergeable
from bayesuq.predictive.categorical import CategoricalPredictive, same_names
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.thinned import held_of

Predictive = TypeVar("Predictive", bound=RealPredictive)
__all__ = ["agreement", "total_variation", "wasserstein"]
__dir__ = __all__.copy

NUM_NODES = 256  # of each predictive
NUM_COMPONENTS = 16  # of a mixture that nodes are laid around; of laws whose ranks differ from point to point 64
FEWEST_PLACES = 8  # around one of these
FURTHEST = 1e-10  # probability beyond the last node
MOST_TOGETHER = 2**16  # components at points, of nodes that are looked at together


def total_variation(
    one: PredictiveDistribution, other: PredictiveDistribution, *, num_nodes: int = NUM_NODES
) -> Tensor:
    """Total variation distance, the mean over points of half the integral (or sum) of abs(p(y) - q(y)).

    Args:
        one: At N points.
        other: Of labels too, or of real targets too, at the same points; the order of the two does not matter.
        num_nodes: Places that each gives to the trapezoidal rule where real targets are integrated; the default leaves
            an error of some 1e-3 of the result.

    Returns:
        In [0, 1], 0-d float64.

    Raises:
        TypeError: Labels and real targets.
        ValueError: Other points; several target columns, whose joint density has no quantiles; a component of zero
            variance, counts, or draws of y alone, which have no density.

    Example:
        >>> one, other = (GaussianPredictive(mean=[[[loc]]], noise_variance=1.0) for loc in (0.0, 2.0))
        >>> total_variation(one, other)  # 2 Phi(1) - 1
        tensor(0.6827, dtype=torch.float64)
    """
    return pointwise_total_variation(one, other, num_nodes=num_nodes).mean()


def pointwise_total_variation(
    one: PredictiveDistribution, other: PredictiveDistribution, *, num_nodes: int = NUM_NODES
) -> Tensor:
    """Half the integral or sum of abs(p - q), (N, ...) for labels, (N,) for real targets; see `total_variation`."""
    if isinstance(one, CategoricalPredictive) and isinstance(other, CategoricalPredictive):
        check_mergeable(one.probability_sum.shape, other.probability_sum.shape)
        same_names(one.names, other.names)
        return 0.5 * (one.mean - other.mean).abs().sum(dim=1)
    real, reference = _check_real(one, other)
    nodes = _nodes(real, reference, num_nodes)
    gaps = (_densities(real, nodes) - _densities(reference, nodes)).abs()
    return (0.5 * torch.trapezoid(gaps, nodes, dim=0).squeeze(1)).clamp(max=1.0)


def wasserstein(one: PredictiveDistribution, other: PredictiveDistribution, *, num_nodes: int = NUM_NODES) -> Tensor:
    """Wasserstein-1 distance, the mean over points of the integral of abs(F(y) - G(y)): how far mass must be moved.

    Args:
        one: Of real targets in one column, at N points.
        other: The same.
        num_nodes: As for `total_variation`.

    Returns:
        In units of y, 0-d float64.

    Raises:
        TypeError: Not two predictives of real targets.
        ValueError: Other points; several target columns; a component of zero variance; a cdf with steps.

    Example:
        >>> one, other = (GaussianPredictive(mean=[[[loc]]], noise_variance=1.0) for loc in (0.0, 2.0))
        >>> round(float(wasserstein(one, other)), 3)
        2.0
    """
    return pointwise_wasserstein(one, other, num_nodes=num_nodes).mean()


def pointwise_wasserstein(
    one: PredictiveDistribution, other: PredictiveDistribution, *, num_nodes: int = NUM_NODES
) -> Tensor:
    """The integral of abs(F - G), (N,), in units of y; see `wasserstein`."""
    real, reference = _check_real(one, other)
    nodes = _nodes(real, reference, num_nodes)
    below, reference_below = (_at_nodes(attrgetter("cdf"), each, nodes) for each in (real, reference))
    return torch.trapezoid((below - reference_below).abs(), nodes, dim=0).squeeze(1)


def agreement(one: CategoricalPredictive, other: CategoricalPredictive) -> Tensor:
    """Share of points at which both hold the same class for the most probable; larger is nearer.

    Args:
        one: Of labels, at N points.
        other: The same.

    Returns:
        Fraction, 0-d float64.

    Raises:
        TypeError: Not two predictives of labels.
        ValueError: Other points.

    Example:
        >>> one = CategoricalPredictive.from_probs([[[0.6, 0.4], [0.2, 0.8]]])
        >>> other = CategoricalPredictive.from_probs([[[0.9, 0.1], [0.7, 0.3]]])
        >>> agreement(one, other)
        tensor(0.5000, dtype=torch.float64)
    """
    for predictive in (one, other):
        check_categorical(predictive, "`agreement` is of labels; of real targets take `total_variation`.")
    check_mergeable(one.probability_sum.shape, other.probability_sum.shape)
    same_names(one.names, other.names)
    return (one.mean.max(dim=1).indices == other.mean.max(dim=1).indices).double().mean()


def _check_real(one: PredictiveDistribution, other: PredictiveDistribution) -> tuple[RealPredictive, RealPredictive]:
    if not isinstance(one, RealPredictive) or not isinstance(other, RealPredictive):
        raise TypeError(
            "Both predictives must be of real targets, or both of labels for `total_variation`; got "
            f"{type(one).__name__} and {type(other).__name__}."
        )
    check_mergeable(one.shape[1:], other.shape[1:])
    if one.shape[2] != 1:
        raise ValueError(f"Predictives must have one target column; got {one.shape[2]}.")
    held = held_of(one), held_of(other)
    for predictive in held:
        if predictive.has_steps:
            what = "Counts" if predictive.is_discrete else f"The draws that a {type(predictive).__name__} is made of"
            raise ValueError(
                f"{what} have a cdf with steps, which no rule of integration follows. Compare the predictives by a "
                "score, with `report.compare_predictives`."
            )
        if isinstance(predictive, GaussianPredictive) and (predictive.laws.component_variances == 0).any():
            raise ValueError(
                "A component has zero variance, and so no density. Give the likelihood a noise scale above 0."
            )
    return held


def _densities(predictive: RealPredictive, nodes: Tensor) -> Tensor:
    """p at each node, (L, N, 1), per unit of y."""
    if isinstance(predictive, GaussianPredictive):
        return _at_nodes(_gaussian_density, predictive, nodes)
    if predictive.without_density:
        raise ValueError(f"There is no total variation: {predictive.without_density}. Take `wasserstein`.")
    return _at_nodes(lambda some: lambda y: some.log_prob(y).exp().unsqueeze(1), predictive, nodes)


def _gaussian_density(predictive: GaussianPredictive) -> Callable[[Tensor], Tensor]:
    """Of y (N, 1), per unit of y, (N, 1)."""
    means, inverse_scales = predictive.laws.component_means, predictive.laws.component_variances.rsqrt()

    def density(y: Tensor) -> Tensor:
        heights = (y - means).mul_(inverse_scales).square_().mul_(-0.5).exp_().mul_(inverse_scales)
        return predictive.average(heights) / math.sqrt(2 * math.pi)

    return density


def _at_nodes(
    function_of: Callable[[Predictive], Callable[[Tensor], Tensor]], predictive: Predictive, nodes: Tensor
) -> Tensor:
    """A predictive's function of y (N, 1) at each node, (L, N, 1); of few components and points at many together."""
    num_points = nodes.shape[1]
    together = max(1, MOST_TOGETHER // (predictive.num_samples * num_points))
    if together == 1:
        function = function_of(predictive)
        return torch.stack([function(y) for y in nodes])
    parts = []
    for some in nodes.split(together):
        repeated = predictive.at(torch.arange(num_points).repeat(len(some)))
        parts.append(function_of(repeated)(some.reshape(-1, 1)).reshape(some.shape))
    return torch.cat(parts)


def _nodes(one: RealPredictive, other: RealPredictive, num_nodes: int) -> Tensor:
    """Places in ascending order, (L, N, 1), dense wherever either density is, and far into the tails."""
    check_count(num_nodes, "num_nodes", minimum=8)
    return torch.cat([_places(predictive, num_nodes) for predictive in (one, other)]).sort(dim=0).values


def _places(predictive: RealPredictive, num_nodes: int) -> Tensor:
    """Quantiles, (L, N, 1), at levels that are even in the logit, which puts enough into the tails.

    Of Gaussians some components' are taken: cheaper than the mixture's own, which are roots. Components are those at
    even ranks of their means, both ends included; the levels of each lie between those of the one before, so that
    components that coincide share the work. Half as many places more are the widest component's, which may be rare and
    hold all of the tails.
    """
    if not isinstance(predictive, GaussianPredictive):
        return _places_of_laws(predictive, num_nodes)
    means, order = predictive.component_means.sort(dim=0)
    scales = predictive.component_variances.gather(0, order).sqrt()
    widest, number = scales.max(dim=0, keepdim=True)
    in_tails = torch.special.ndtri(_levels(num_nodes // 2).to(means.device))[:, None, None]
    num_components = min(len(means), NUM_COMPONENTS)
    chosen = torch.linspace(0, len(means) - 1, num_components).round().long().to(means.device)
    per_component = -(-num_nodes // num_components)
    levels = _levels(num_components * per_component).to(means.device)
    standardised = torch.special.ndtri(levels).view(per_component, num_components)
    places = means[chosen] + scales[chosen] * standardised[:, :, None, None]
    return torch.cat([places.flatten(0, 1), means.gather(0, number) + widest * in_tails])


def _places_of_laws(predictive: RealPredictive, num_nodes: int) -> Tensor:
    """The same of components of any law, at even ranks of their means over all points."""
    num_components = min(predictive.num_samples, 4 * NUM_COMPONENTS)
    order = predictive.component_means.mean(dim=(1, 2)).argsort()
    ranks = torch.linspace(0, predictive.num_samples - 1, num_components).round().long().to(order.device)
    per_component = max(FEWEST_PLACES, -(-num_nodes // num_components))
    levels = _levels(num_components * per_component).view(per_component, num_components)
    widest = predictive.component_variances.mean(dim=(1, 2)).argmax()
    chosen, each = [*order[ranks], widest], [*levels.T, _levels(num_nodes // 2)]
    ones = [predictive.components_at(number.reshape(1)) for number in chosen]
    return torch.stack([one.quantile(float(p)) for one, own in zip(ones, each, strict=True) for p in own])


def _levels(number: int) -> Tensor:
    return (-math.log(FURTHEST) * torch.linspace(-1, 1, number, dtype=torch.float64)).sigmoid()
