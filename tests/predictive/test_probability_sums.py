import math

import pytest
import torch
from torch import Tensor

from bayesuq.data import Dataset
from bayesuq.evaluation import scores, uncertainty
from bayesuq.inference import confidence, ensemble, temperature
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.scaled_logits import ScaledLogits
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.probability_sums import ProbabilitySum

FAR = 2000.0  # nats: exp(-709) is the last that float64 holds
MEASURES = [
    scores.negative_log_likelihood,
    scores.brier_score,
    scores.accuracy,
    uncertainty.maximum_probability,
    uncertainty.margin,
    uncertainty.predictive_entropy,
    uncertainty.expected_entropy,
    uncertainty.mutual_information,
    uncertainty.variation_ratio,
    uncertainty.predictive_variance,
]
LIKELIHOODS: dict[str, tuple[Likelihood, int]] = {  # and its number of outputs
    "categorical": (likelihoods.Categorical(), 3),
    "bernoulli": (likelihoods.Bernoulli(), 1),
    "noisy logits": (likelihoods.HeteroscedasticCategorical(), 6),
    "temperature": (ScaledLogits(likelihoods.Categorical(), (0.5,)), 3),
    "temperature of one output": (ScaledLogits(likelihoods.Bernoulli(), (2.0,)), 1),
}


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(num_outputs: int, *pixels: int) -> Tensor:
    """Of 6 draws that agree by and large, at 40 points, from an even guess to certainty."""
    size = torch.logspace(-1, math.log10(FAR), 40, dtype=torch.float64).view(-1, *[1] * (1 + len(pixels)))
    f = size * (gaussian(0, 1, 40, num_outputs, *pixels) + 0.2 * gaussian(1, 6, 40, num_outputs, *pixels))
    if num_outputs == 6:  # log variances of the logits
        f[:, :, 3:] = 0.1 * gaussian(2, 6, 40, 3, *pixels)
    return f


def assert_same(streamed: CategoricalPredictive, kept: CategoricalPredictive, y: Tensor) -> None:
    log_prob = kept.log_prob(y)
    assert log_prob.isfinite().all()
    assert log_prob.min() < -800
    torch.testing.assert_close(streamed.log_prob(y), log_prob, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(streamed.mean, kept.mean, rtol=1e-9, atol=1e-12)
    for measure in MEASURES:
        arguments = (y,) if measure.__module__.endswith("scores") else ()
        torch.testing.assert_close(measure(streamed, *arguments), measure(kept, *arguments), rtol=1e-9, atol=1e-12)


class TestProbabilitySum:
    def test_is_the_log_sum_exp_over_all_draws_in_whatever_parts(self) -> None:
        log_probs = torch.cat([torch.linspace(-2 * FAR, 0, 90), torch.full((6,), -math.inf)]).double().view(6, 16)
        log_probs = log_probs[torch.randperm(6, generator=torch.Generator().manual_seed(0))]
        for sizes in ([6], [1] * 6, [2, 3, 1]):
            running = ProbabilitySum(torch.zeros(16, dtype=torch.float64))
            for part in log_probs.split(sizes):
                running.add(ProbabilitySum.of_draws(part.exp(), part))
            torch.testing.assert_close(running.full_log(), log_probs.logsumexp(dim=0), rtol=1e-13, atol=1e-300)
            torch.testing.assert_close(running.value, log_probs.exp().sum(dim=0), rtol=1e-13, atol=1e-300)

    def test_keeps_no_logarithm_of_what_is_of_ordinary_size_or_zero(self) -> None:
        ordinary = torch.tensor([[-600.0, -math.inf, -1.0]], dtype=torch.float64)
        small = torch.tensor([[-800.0, -math.inf, -1.0]], dtype=torch.float64)
        running = ProbabilitySum.of_draws(ordinary.exp(), ordinary)
        assert running.log is None
        running.add(ProbabilitySum.of_draws(small.exp(), small))
        assert running.settled().log is None
        assert ProbabilitySum.of_draws(small.exp(), small).settled().log is not None


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("pixels", [(), (2, 3)])
class TestStreamedLabels:
    def test_say_what_kept_draws_say_far_below_the_smallest_float(self, name: str, pixels: tuple[int, ...]) -> None:
        likelihood, num_outputs = LIKELIHOODS[name]
        f = outputs(num_outputs, *pixels)
        kept = likelihood.predictive(f, keep_samples=True)
        y = kept.log_probability_sum.argmin(dim=1)
        parts = [likelihood.predictive(draw, keep_samples=False) for draw in f.split(1)]
        streamed = type(kept).mixture(iter(parts))
        assert_same(streamed, kept, y)
        assert_same(likelihood.predictive(f, keep_samples=False), kept, y)
        assert_same(streamed.to("cpu"), kept, y)
        state = ("probability_sum", "entropy_sum", "votes", "num_draws", "small_log_sum")
        assert_same(type(kept).from_sums(**{each: getattr(streamed, each) for each in state}), kept, y)

    def test_join_points_of_both_kinds(self, name: str, pixels: tuple[int, ...]) -> None:
        likelihood, num_outputs = LIKELIHOODS[name]
        f = outputs(num_outputs, *pixels)
        rows = [likelihood.predictive(part, keep_samples=False) for part in f.split(20, dim=1)]
        assert [part.small_log_sum is None for part in rows] == [True, False]
        kept = likelihood.predictive(f, keep_samples=True)
        assert_same(type(kept).concatenate(rows), kept, kept.log_probability_sum.argmin(dim=1))


class TestOfPosteriors:
    def test_predict_by_default_scores_as_with_kept_draws(self) -> None:
        x = gaussian(0, 60, 2).float()
        y = (x.sum(dim=1) > 0).long()
        net = networks.mlp(2, (8,), 3)
        model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
        data, far = Dataset(x, y), 1e5 * x
        fitted = ensemble.fit(model, data, num_members=3, num_epochs=2, seed=0)
        for posterior in (fitted, temperature.fit(fitted, data), confidence.fit(fitted, data, num_epochs=1, seed=0)):
            kept = posterior.predict(far, keep_samples=True)
            assert_same(posterior.predict(far), kept, kept.log_probability_sum.argmin(dim=1))


class TestTies:
    def test_votes_accuracy_and_the_argmax_of_the_mean_name_one_class(self) -> None:
        # A logit of 1e-30 is above 0 and its probability is a half; sums may be equal once divided by their number.
        logits = torch.tensor([[[0.0, 1e-30], [1e-30, 0.0], [0.0, 0.0]]], dtype=torch.float64)
        single = CategoricalPredictive.from_logits(logits)
        assert torch.equal(single.votes.argmax(dim=1), single.mean.argmax(dim=1))
        below = math.nextafter(1.5, 0)
        sums = torch.tensor([[below, 1.5], [1.5, below], [1.5, 1.5]], dtype=torch.float64)
        mixture = CategoricalPredictive.from_sums(
            probability_sum=sums, entropy_sum=torch.ones(3), votes=torch.tensor([[2, 1]] * 3), num_draws=3
        )
        for predictive in (single, mixture):
            said = predictive.mean.argmax(dim=1)
            for y in (torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)):
                assert torch.equal(scores.pointwise_accuracy(predictive, y), (said == y).double())

    def test_probabilities_and_their_logits_vote_alike(self) -> None:
        probs = torch.tensor([[[0.5, math.nextafter(0.5, 1.0)], [math.nextafter(0.5, 1.0), 0.5]]], dtype=torch.float64)
        single = CategoricalPredictive.from_probs(probs)
        assert torch.equal(single.votes.argmax(dim=1), single.mean.argmax(dim=1))
