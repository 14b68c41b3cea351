"""HeteroscedasticCategorical: the expectation over the logits' noise against quadrature, limits, what is aleatoric."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.models.likelihoods.noisy_logits import HeteroscedasticCategorical, base_noise
from bayesuq.models.scaled_logits import ScaledLogits

DIFFERENCES = torch.linspace(-4, 4, 17, dtype=torch.float64)
SCALES = torch.tensor([0.3, 1.0, 2.0, 4.0], dtype=torch.float64)


def outputs_of_two_classes() -> Tensor:
    """(N, 4), over a grid of the difference of the means and of both scales."""
    difference, first, second = (part.flatten() for part in torch.meshgrid(DIFFERENCES, SCALES, SCALES, indexing="ij"))
    return torch.stack([torch.zeros_like(difference), difference, 2 * first.log(), 2 * second.log()], dim=1)


def exact_log_probs(f: Tensor) -> Tensor:
    """log E sigmoid(difference + scale eps) by Gauss-Hermite quadrature: two noisy logits are one noisy difference."""
    nodes, weights = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(200))
    difference, scale = f[:, 1] - f[:, 0], f[:, 2:].exp().sum(dim=1).sqrt()
    prob = (difference[:, None] + scale[:, None] * nodes).sigmoid() @ weights / math.sqrt(math.tau)
    return torch.stack([1 - prob, prob], dim=1).log()


def mean_error(num_noise_draws: int) -> float:
    f = outputs_of_two_classes()
    return float((HeteroscedasticCategorical(num_noise_draws).logits(f) - exact_log_probs(f)).abs().mean())


def test_log_prob_is_the_expectation_over_the_noise() -> None:
    # The error of Sobol points falls nearly as 1 / K; that of random draws is .12 at 32 and falls as 1 / sqrt(K).
    assert mean_error(32) < 0.02
    assert mean_error(512) < 0.002
    assert mean_error(2**14) < 1e-4


def test_random_draws_are_several_times_further_off() -> None:
    f, draws = outputs_of_two_classes(), torch.randn(20, 32, 1, 2, dtype=torch.float64)
    noisy = (f[:, :2] + (f[:, 2:] / 2).exp() * draws).log_softmax(dim=-1).logsumexp(dim=1) - math.log(32)
    assert float((noisy - exact_log_probs(f)).abs().mean()) > 4 * mean_error(32)


def test_the_gradient_is_that_of_the_expectation() -> None:
    f, exact = (outputs_of_two_classes().requires_grad_() for _ in range(2))
    (found,) = torch.autograd.grad(HeteroscedasticCategorical(2**13).logits(f)[:, 1].sum(), f)
    (expected,) = torch.autograd.grad(exact_log_probs(exact)[:, 1].sum(), exact)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.01)


@pytest.mark.parametrize("num_noise_draws", [2, 5, 32])
@pytest.mark.parametrize("inner", [(), (2, 3)])
def test_without_noise_it_is_categorical(num_noise_draws: int, inner: tuple[int, ...]) -> None:
    mean, y = torch.randn(5, 3, *inner, dtype=torch.float64), torch.arange(5 * math.prod(inner)).view(5, *inner) % 3
    f = torch.cat([mean, torch.full_like(mean, -80.0)], dim=1)
    likelihood = HeteroscedasticCategorical(num_noise_draws)
    torch.testing.assert_close(likelihood.log_prob(f, y), Categorical().log_prob(mean, y))
    torch.testing.assert_close(likelihood.predictive(f[None]).mean, mean.softmax(dim=1))


@pytest.mark.parametrize("inner", [(), (2, 3)])
def test_probabilities_sum_to_one_at_any_noise(inner: tuple[int, ...]) -> None:
    f = 3 * torch.randn(5, 8, *inner, dtype=torch.float64)
    logits = HeteroscedasticCategorical(7).logits(f)
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(5, *inner, dtype=torch.float64))
    y = torch.arange(5 * math.prod(inner)).view(5, *inner) % 4
    law = HeteroscedasticCategorical(7).distribution(f)
    torch.testing.assert_close(law.log_prob(y), HeteroscedasticCategorical(7).log_prob(f, y))


def test_pixels_are_rows_of_their_own() -> None:
    f = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    rows = f.movedim(1, -1).reshape(-1, 6)
    likelihood = HeteroscedasticCategorical(16)
    expected = likelihood.logits(rows).reshape(2, 3, 4, 3).movedim(-1, 1)
    torch.testing.assert_close(likelihood.logits(f), expected)
    draws = torch.stack([f, 2 * f])
    torch.testing.assert_close(likelihood.logits(draws, dim=2)[0], expected)


def test_noise_of_the_logits_is_aleatoric_and_disagreement_between_draws_epistemic() -> None:
    sure, noisy = torch.tensor([[4.0, 0.0, -80.0, -80.0]]), torch.tensor([[4.0, 0.0, 6.0, 6.0]])
    likelihood = HeteroscedasticCategorical(256)
    alike = likelihood.predictive(torch.stack([noisy, noisy]).double())
    assert float(alike.aleatoric) > 0.5  # nats, of log 2 = .69
    assert float(alike.epistemic) == pytest.approx(0, abs=1e-9)
    assert float(likelihood.predictive(sure[None].double()).aleatoric) < 0.1
    flipped = sure[:, [1, 0, 2, 3]]
    apart = likelihood.predictive(torch.stack([sure, flipped]).double())
    assert float(apart.epistemic) > 0.5
    assert float(apart.aleatoric) < 0.1


def test_the_noise_is_always_the_same_and_nobody_can_change_it() -> None:
    f = torch.randn(3, 6)
    state = torch.get_rng_state()
    one, other = (HeteroscedasticCategorical(16).logits(f) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="read-only"):
        base_noise(16, 3)[0, 0] = 1.0
    moments = base_noise(1024, 3)
    assert abs(moments.mean(axis=0)).max() < 0.01
    assert abs(moments.T @ moments / 1024 - np.eye(3)).max() < 0.03


def test_it_runs_under_vmap_and_in_float32() -> None:
    f, y = torch.randn(4, 5, 6), torch.arange(5) % 3
    likelihood = HeteroscedasticCategorical(8)
    together = torch.func.vmap(lambda one: likelihood.log_prob(one, y))(f)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, torch.stack([likelihood.log_prob(one, y) for one in f]))
    slopes = torch.func.grad(lambda one: likelihood.total_log_prob(one, y))(f[0])
    assert slopes.isfinite().all()


def test_extreme_outputs_stay_finite() -> None:
    f = torch.tensor([[-2000.0, 2000.0, -80.0, -80.0], [0.0, 0.0, 12.0, 12.0]]).requires_grad_()
    found = HeteroscedasticCategorical().log_prob(f, torch.tensor([0, 1]))
    (slopes,) = torch.autograd.grad(found.sum(), f)
    assert found.isfinite().all()
    assert slopes.isfinite().all()


def test_a_minimum_scale_keeps_the_logits_noisy() -> None:
    f = torch.tensor([[1.0, 0.0, -80.0, -80.0]], dtype=torch.float64)
    floored = HeteroscedasticCategorical(minimum_scale=2.0).logits(f)
    torch.testing.assert_close(
        floored, HeteroscedasticCategorical().logits(f.new_tensor([[1, 0, math.log(4), math.log(4)]]))
    )


def test_scaling_reads_the_logits_of_the_mean_over_the_noise() -> None:
    f, y = torch.randn(5, 6, dtype=torch.float64), torch.arange(5) % 3
    noisy = HeteroscedasticCategorical(16, class_weights=(1.0, 2.0, 3.0))
    scaled = ScaledLogits(noisy, (0.5,))
    expected = noisy.categorical.log_prob(0.5 * noisy.logits(f), y)
    torch.testing.assert_close(scaled.log_prob(f, y), expected)
    twice = ScaledLogits(ScaledLogits(noisy, (0.5,), (1.0, 0.0, 0.0)), (2.0,))  # the later one on top of the earlier
    torch.testing.assert_close(
        twice.predictive(f[None]).mean, (noisy.logits(f) + 2 * f.new_tensor([1.0, 0.0, 0.0])).softmax(dim=1)
    )


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"num_noise_draws": 1}, ValueError, "`num_noise_draws` must be at least 2"),
        ({"num_noise_draws": 2.5}, TypeError, "`num_noise_draws` must be a whole number"),
        ({"class_weights": (1.0, -1.0)}, ValueError, "`class_weights` must be finite"),
        ({"ignore_index": 1.5}, TypeError, "`ignore_index`"),
        ({"minimum_scale": -1.0}, ValueError, "`minimum_scale` must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        HeteroscedasticCategorical(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(5, 3), (5, 2), (5,), (5, 7, 2, 2)])
def test_outputs_that_are_not_means_and_log_variances_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must give f of shape \(N, 2 C, ...\).*Double its outputs"):
        HeteroscedasticCategorical().log_prob(torch.randn(shape), torch.zeros(5, dtype=torch.int64))


def test_labels_are_below_half_the_outputs() -> None:
    likelihood = HeteroscedasticCategorical()
    assert likelihood.targets([0, 1, 2], num_outputs=6).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        likelihood.targets([0, 1, 3], num_outputs=6)
    with pytest.raises(ValueError, match="Double its outputs"):
        likelihood.targets([0, 1], num_outputs=3)
