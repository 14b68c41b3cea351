"""Distances between predictives, against closed forms and brute force."""

import math

import pytest
import torch
from torch import Tensor, distributions

from bayesuq.evaluation.distance import (
    agreement,
    pointwise_total_variation,
    pointwise_wasserstein,
    total_variation,
    wasserstein,
)
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive
from bayesuq.predictive.thinned import ThinnedPredictive

RULE = 2e-3  # relative, what the trapezoidal rule of the default leaves


def normal(loc: float, scale: float) -> GaussianPredictive:
    return GaussianPredictive(mean=[[[loc]]], noise_variance=scale**2)


def phi(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def mixture(seed: int, num_draws: int, num_points: int = 4) -> GaussianPredictive:
    noise = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(num_draws, num_points, 1, generator=noise, dtype=torch.float64)
    scales = torch.rand(num_draws, num_points, 1, generator=noise, dtype=torch.float64) + 0.05
    return GaussianPredictive(mean=means, noise_variance=scales**2, function_variance=0.01)


@pytest.mark.parametrize("distance", [0.01, 0.5, 2.0, 8.0, 50.0])
def test_of_normals_that_are_moved(distance: float) -> None:
    one, other = normal(1.0, 1.0), normal(1.0 + distance, 1.0)
    assert float(total_variation(one, other)) == pytest.approx(2 * phi(distance / 2) - 1, rel=RULE)
    assert float(wasserstein(one, other)) == pytest.approx(distance, rel=RULE)


@pytest.mark.parametrize("ratio", [1.1, 2.0, 10.0])
def test_of_normals_that_are_wider(ratio: float) -> None:
    one, other = normal(-2.0, 0.3), normal(-2.0, 0.3 * ratio)
    crossing = math.sqrt(2 * math.log(ratio) / (1 - ratio**-2))  # of the densities, in the narrow one's scale
    assert float(total_variation(one, other)) == pytest.approx(2 * (phi(crossing) - phi(crossing / ratio)), rel=RULE)
    assert float(wasserstein(one, other)) == pytest.approx(0.3 * (ratio - 1) * math.sqrt(2 / math.pi), rel=RULE)


@pytest.mark.parametrize(("num_one", "num_other"), [(2, 3), (40, 600)])
def test_of_mixtures_against_a_fine_grid(num_one: int, num_other: int) -> None:
    one, other = mixture(0, num_one), mixture(1, num_other)
    grid = torch.linspace(-20, 20, 4_001, dtype=torch.float64)
    densities, masses = [], []
    for predictive in (one, other):
        means, scales = predictive.component_means[..., 0], predictive.component_variances[..., 0].sqrt()
        laws = [torch.distributions.Normal(means[:, n, None], scales[:, n, None]) for n in range(means.shape[1])]
        densities.append(torch.stack([law.log_prob(grid).exp().mean(dim=0) for law in laws]))
        masses.append(torch.stack([law.cdf(grid).mean(dim=0) for law in laws]))
    brute = [torch.trapezoid((pair[0] - pair[1]).abs(), grid) for pair in (densities, masses)]
    torch.testing.assert_close(pointwise_total_variation(one, other), brute[0] / 2, rtol=5 * RULE, atol=1e-4)
    torch.testing.assert_close(pointwise_wasserstein(one, other), brute[1], rtol=5 * RULE, atol=1e-4)


def test_the_same_predictive_is_at_no_distance_and_the_order_does_not_matter() -> None:
    one, other = mixture(0, 30), mixture(1, 7)
    for distance in (total_variation, wasserstein):
        assert float(distance(one, one)) == 0
        assert float(distance(one, other)) == pytest.approx(float(distance(other, one)), rel=1e-12)
    again = GaussianPredictive.mixture([one, one])  # each draw twice
    assert float(total_variation(one, again)) == pytest.approx(0, abs=1e-12)


def test_a_change_of_unit_changes_the_wasserstein_distance_alone() -> None:
    one, other = mixture(0, 30), mixture(1, 7)
    ten, scale = torch.tensor(10.0), torch.tensor(4.0)
    rescaled = [predictive.rescale(ten, scale) for predictive in (one, other)]
    torch.testing.assert_close(total_variation(*rescaled), total_variation(one, other), rtol=1e-9, atol=0)
    torch.testing.assert_close(wasserstein(*rescaled), 4 * wasserstein(one, other), rtol=1e-9, atol=0)


@pytest.mark.parametrize("is_gaussian", [True, False])
def test_a_rare_component_that_is_wide_counts_as_much_as_it_weighs(is_gaussian: bool) -> None:
    """The distance of (1 - r) N(0, s^2) + r N(0, w^2) from N(0, s^2) is r times that of the two normals."""
    narrow, wide, number, place = 0.05, 15.0, 200, 70
    scales = torch.where(torch.arange(number) == place, wide, narrow).double()[:, None, None]
    means = 1e-9 * torch.linspace(-1, 1, number, dtype=torch.float64)[:, None, None]  # the wide one's in no way extreme
    other = normal(0.0, narrow)
    one = (
        GaussianPredictive(mean=means.expand(-1, *other.shape[1:]), noise_variance=scales**2)
        if is_gaussian
        else MixturePredictive(distributions.Normal(means.expand(-1, *other.shape[1:]), scales))
    )
    crossing = math.sqrt(2 * math.log(wide / narrow) / (1 - (narrow / wide) ** 2))
    apart = 2 * (phi(crossing) - phi(crossing * narrow / wide))
    assert float(total_variation(one, other)) == pytest.approx(apart / number, rel=0.02)
    assert float(wasserstein(one, other)) == pytest.approx((wide - narrow) * math.sqrt(2 / math.pi) / number, rel=0.02)


def test_labels_differ_by_half_the_sum() -> None:
    one = CategoricalPredictive.from_probs(torch.tensor([[[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]]))
    other = CategoricalPredictive.from_probs(torch.tensor([[[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]]]))
    expected: Tensor = torch.tensor([0.3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(pointwise_total_variation(one, other), expected, rtol=0, atol=1e-7)
    assert float(total_variation(one, other)) == pytest.approx(0.65)
    assert float(agreement(one, other)) == 0
    assert float(agreement(one, one)) == 1


def test_nodes_that_are_looked_at_together_give_what_they_give_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = mixture(0, 5), mixture(1, 3).repeated([1, 4, 2])
    distances = (pointwise_total_variation, pointwise_wasserstein)
    together = [distance(one, other, num_nodes=16) for distance in distances]
    monkeypatch.setattr("bayesuq.evaluation.distance.MOST_TOGETHER", 1)
    alone = [distance(one, other, num_nodes=16) for distance in distances]
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_of_any_law_with_a_density_and_of_draws_that_are_held() -> None:
    """A mixture of laws is the Gaussian predictive of the same; of one that holds some draws, those are compared."""
    one, other = mixture(0, 30), mixture(1, 7)
    scales = one.component_variances.sqrt()
    laws = MixturePredictive(distributions.Normal(one.component_means, scales))
    held = ThinnedPredictive.of(one, 10)
    for distance in (total_variation, wasserstein):
        assert float(distance(laws, other)) == pytest.approx(float(distance(one, other)), rel=5 * RULE)
        assert float(distance(held, other)) == float(distance(held.held, other))
        counts = MixturePredictive(distributions.Poisson(one.component_means.exp()))
        with pytest.raises(ValueError, match=r"Counts have a cdf with steps.*compare_predictives"):
            distance(counts, counts)


def test_what_has_no_distance_is_refused() -> None:
    labels = CategoricalPredictive.from_probs(torch.tensor([[[0.5, 0.5]]]))
    with pytest.raises(TypeError, match="Both predictives"):
        total_variation(labels, normal(0, 1))
    with pytest.raises(TypeError, match="Both predictives"):
        wasserstein(labels, labels)
    with pytest.raises(TypeError, match="of labels"):
        agreement(normal(0, 1), normal(0, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same points"):
        total_variation(mixture(0, 2, num_points=3), mixture(0, 2, num_points=4))
    two = GaussianPredictive(mean=torch.zeros(1, 3, 2), noise_variance=1.0)
    with pytest.raises(ValueError, match="one target column"):
        wasserstein(two, two)
    with pytest.raises(ValueError, match="zero variance"):
        total_variation(normal(0, 0), normal(0, 1))
    with pytest.raises(ValueError, match="num_nodes"):
        total_variation(normal(0, 1), normal(0, 1), num_nodes=2)
