import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import StudentT

from bayesuq.gradients import keeping
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive
from tests.predictive.contract import NUM_DRAWS, NUM_POINTS, ROUNDING, Components, PredictiveContract

NUM_CLASSES = 3
PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestKeptCategoricalContract(PredictiveContract):
    keep_samples = True
    pixels: tuple[int, ...] = ()

    def components(self, num_draws: int = NUM_DRAWS, num_points: int = NUM_POINTS) -> Components:
        whole = 2 * gaussian(0, NUM_DRAWS, NUM_POINTS, NUM_CLASSES, *self.pixels)
        return {"logits": whole[:num_draws, :num_points].clone()}

    def build(self, components: Components) -> CategoricalPredictive:
        return CategoricalPredictive.from_logits(components["logits"], keep_samples=self.keep_samples)

    def targets(self, num_points: int = NUM_POINTS) -> Tensor:
        labels = torch.arange(num_points * math.prod(self.pixels)) % NUM_CLASSES
        return labels.reshape(num_points, *self.pixels)

    def mass(self, predictive: PredictiveDistribution) -> Tensor:
        labels = [torch.full_like(self.targets(), label) for label in range(NUM_CLASSES)]
        return sum(predictive.log_prob(y).exp() for y in labels)

    def sample_errors(self, predictive: PredictiveDistribution, samples: Tensor) -> Tensor:
        frequency = torch.stack([(samples == label).double().mean(dim=0) for label in range(NUM_CLASSES)], dim=1)
        mean = predictive.mean
        return (frequency - mean) / (mean * (1 - mean) / len(samples)).sqrt()

    def test_uncertainties_are_bounded(self) -> None:
        for scale in (0.0, 0.1, 3.0, 1000.0):
            predictive = self.build({"logits": scale * self.components()["logits"]})
            assert (predictive.epistemic >= 0).all()
            assert (predictive.epistemic <= math.log(min(NUM_DRAWS, NUM_CLASSES)) + 1e-12).all()
            assert (predictive.total <= math.log(NUM_CLASSES) + 1e-12).all()
            assert (predictive.aleatoric >= 0).all()

    def test_a_constant_added_to_all_logits_changes_nothing(self, predictive: PredictiveDistribution) -> None:
        self.assert_same(self.build({"logits": self.components()["logits"] + 500}), predictive)

    def test_probabilities_give_what_their_logits_give(self, predictive: PredictiveDistribution) -> None:
        probs = self.components()["logits"].softmax(dim=2)
        self.assert_same(CategoricalPredictive.from_probs(probs, keep_samples=self.keep_samples), predictive)

    def test_its_kept_state_gives_it_back(self, predictive: CategoricalPredictive) -> None:
        state = {name: getattr(predictive, name) for name in ("probability_sum", "entropy_sum", "votes", "num_draws")}
        self.assert_same(CategoricalPredictive.from_sums(**state), predictive)

    def test_votes_are_of_the_single_draws(self, predictive: CategoricalPredictive) -> None:
        winners = self.components()["logits"].argmax(dim=2)
        expected = torch.stack([(winners == label).sum(dim=0) for label in range(NUM_CLASSES)], dim=1)
        assert torch.equal(predictive.votes, expected)


class TestStreamedCategoricalContract(TestKeptCategoricalContract):
    keep_samples = False


class TestSegmentationContract(TestKeptCategoricalContract):
    pixels = (2, 3)


class TestGaussianContract(PredictiveContract):
    num_columns = 1
    function_scale = 0.0

    def components(self, num_draws: int = NUM_DRAWS, num_points: int = NUM_POINTS) -> Components:
        shape = (NUM_DRAWS, NUM_POINTS, self.num_columns)
        whole = {"mean": gaussian(0, *shape), "noise_variance": 0.2 + gaussian(1, *shape).square()}
        if self.function_scale:
            whole["function_variance"] = self.function_scale * gaussian(2, *shape).square()
        return {name: value[:num_draws, :num_points].clone() for name, value in whole.items()}

    def build(self, components: Components) -> GaussianPredictive:
        return GaussianPredictive(**components)

    def targets(self, num_points: int = NUM_POINTS) -> Tensor:
        return torch.linspace(-1, 1, num_points * self.num_columns, dtype=torch.float64).reshape(num_points, -1)

    def mass(self, predictive: PredictiveDistribution) -> Tensor:
        assert isinstance(predictive, GaussianPredictive)
        # The trapezoid rule is off by exp(-2 pi^2 (scale / step)^2) inside, and the scales are above .4; the ends are
        # more than 6 scales away.
        axis = torch.arange(-18.0, 18.0, 0.1, dtype=torch.float64)
        grid = torch.cartesian_prod(*[axis] * self.num_columns).reshape(-1, self.num_columns)
        first, covariance = predictive.at(slice(0, 1)), predictive.function_covariance
        everywhere = GaussianPredictive(
            mean=first.component_means.expand(-1, len(grid), -1),
            noise_variance=first.noise_variance,
            function_variance=first.function_variance if covariance is None else None,
            function_covariance=first.function_covariance,
        )
        return everywhere.log_prob(grid).exp().sum() * 0.1**self.num_columns

    def sample_errors(self, predictive: PredictiveDistribution, samples: Tensor) -> Tensor:
        centred = samples - predictive.mean
        of_mean = centred.mean(dim=0) / (predictive.total / len(samples)).sqrt()
        squares = centred.square()
        of_variance = (squares.mean(dim=0) - predictive.total) / (squares.std(dim=0) / len(samples) ** 0.5)
        return torch.stack([of_mean, of_variance])

    def epistemic_of_one_draw(self, components: Components) -> Tensor | float:
        if "function_covariance" in components:
            return components["function_covariance"][0].diagonal(dim1=1, dim2=2)
        return components["function_variance"][0] if self.function_scale else 0.0

    def test_quantile_inverts_cdf(self, predictive: GaussianPredictive) -> None:
        for level in (1e-6, 0.05, 0.5, 0.9, 1 - 1e-6):
            torch.testing.assert_close(
                predictive.cdf(predictive.quantile(level)), torch.full_like(predictive.mean, level), rtol=1e-9, atol=0
            )

    def test_cdf_is_the_integral_of_the_density_of_each_column(self, predictive: GaussianPredictive) -> None:
        means, variances = predictive.component_means[:, :, :1], predictive.component_variances[:, :, :1]
        column = GaussianPredictive(mean=means, noise_variance=variances)
        y, step = self.targets()[:, :1], 1e-4
        slope = (column.cdf(y + step) - column.cdf(y - step)) / (2 * step)
        torch.testing.assert_close(slope.squeeze(-1), column.log_prob(y).exp(), rtol=1e-6, atol=0)
        torch.testing.assert_close(column.cdf(y), predictive.cdf(self.targets())[:, :1], **ROUNDING)

    def test_rescaling_moves_and_stretches_everything(self, predictive: GaussianPredictive) -> None:
        loc, scale = gaussian(5, self.num_columns), gaussian(6, self.num_columns).exp()
        rescaled, y = predictive.rescale(loc, scale), self.targets()
        torch.testing.assert_close(rescaled.mean, loc + scale * predictive.mean, **ROUNDING)
        for name in ("total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(rescaled, name), scale**2 * getattr(predictive, name), **ROUNDING)
        jacobian = scale.log().sum()
        torch.testing.assert_close(rescaled.log_prob(loc + scale * y), predictive.log_prob(y) - jacobian, **ROUNDING)
        torch.testing.assert_close(rescaled.quantile(0.3), loc + scale * predictive.quantile(0.3), **ROUNDING)


class TestGaussianOfTwoColumnsContract(TestGaussianContract):
    num_columns = 2


class TestGaussianProcessContract(TestGaussianContract):
    function_scale = 0.5


class TestGaussianProcessOfTwoColumnsContract(TestGaussianContract):
    num_columns = 2
    function_scale = 0.5


class TestCorrelatedColumnsContract(TestGaussianContract):
    num_columns = 2

    def components(self, num_draws: int = NUM_DRAWS, num_points: int = NUM_POINTS) -> Components:
        root = 0.7 * gaussian(3, NUM_DRAWS, NUM_POINTS, 2, 2)
        return super().components(num_draws, num_points) | {
            "function_covariance": (root @ root.mT)[:num_draws, :num_points].clone()
        }


class TestGaussianByHand:
    def test_two_distant_members_are_a_mixture_not_their_average(self) -> None:
        # PITFALLS section 1: packages that average the scales say 0.10, with log p(1) = -48.6.
        predictive = GaussianPredictive(mean=torch.tensor([[[-1.0]], [[1.0]]]), noise_variance=0.01)
        assert predictive.total.sqrt().item() == pytest.approx(math.sqrt(1.01))
        # log(1/2 N(1; 1, .1)) as the other member adds exp(-200).
        by_hand = math.log(0.5) - 0.5 * math.log(2 * math.pi * 0.01)
        assert predictive.log_prob([1.0]).item() == pytest.approx(by_hand, abs=1e-12)

    def test_members_are_not_weighted_by_their_precision(self) -> None:
        # PITFALLS section 1: weighting by precision says mean 0.10 and scale 7.11.
        predictive = GaussianPredictive(mean=[[[0.0]], [[10.0]]], noise_variance=[[[0.1**2]], [[1.0]]])
        assert predictive.mean.item() == pytest.approx(5.0)
        assert predictive.total.sqrt().item() == pytest.approx(math.sqrt(25 + (0.01 + 1) / 2))  # 5.05

    def test_columns_are_dependent_through_the_draw(self) -> None:
        # Both members sure that the columns agree: log p(1, 1) is one draw's chance, not the product of two mixtures.
        predictive = GaussianPredictive(mean=[[[-1.0, -1.0]], [[1.0, 1.0]]], noise_variance=0.01)
        one_column = -0.5 * math.log(2 * math.pi * 0.01)
        assert predictive.log_prob([[1.0, 1.0]]).item() == pytest.approx(math.log(0.5) + 2 * one_column)
        assert predictive.log_prob([[1.0, -1.0]]).item() < -100

    def test_far_targets_have_a_finite_log_prob(self) -> None:
        predictive = GaussianPredictive(mean=torch.zeros(3, 1, 1), noise_variance=1.0)
        assert predictive.log_prob([100.0]).item() == pytest.approx(-5000 - 0.5 * math.log(2 * math.pi))

    def test_a_number_given_as_variance_keeps_its_float64_value(self) -> None:
        # Once it passed through float32: 0.01 lost 9 digits and 1e-50 became 0.
        for variance in (0.01, 1e-50, 1e50):
            assert GaussianPredictive(mean=torch.zeros(1, 1, 1), noise_variance=variance).total.item() == variance

    def test_a_draw_of_all_points_is_one_function(self) -> None:
        predictive = GaussianPredictive(mean=[[[-9.0], [-9.0]], [[9.0], [9.0]]], noise_variance=1e-4)
        samples = predictive.sample(50, seed=0).squeeze(-1)
        assert torch.equal(samples[:, 0] > 0, samples[:, 1] > 0)
        assert 0 < int((samples[:, 0] > 0).sum()) < 50

    def test_variances_broadcast(self) -> None:
        mean = gaussian(0, 3, 4, 2)
        for variance in (0.5, torch.tensor(0.5), torch.full((2,), 0.5), torch.full((3, 1, 1), 0.5), [[[0.5]]]):
            predictive = GaussianPredictive(mean=mean, noise_variance=variance, function_variance=variance)
            torch.testing.assert_close(predictive.component_variances, torch.ones_like(mean))

    @pytest.mark.parametrize("variance", [-1e-9, math.nan, math.inf, torch.ones(4)])
    @pytest.mark.parametrize("name", ["noise_variance", "function_variance"])
    def test_impossible_variances_are_refused(self, variance: float | Tensor, name: str) -> None:
        variances = {"noise_variance": 1.0, "function_variance": 0.0, name: variance}
        with pytest.raises(ValueError, match=f"`{name}`"):
            GaussianPredictive(mean=torch.zeros(2, 3, 2), **variances)

    def test_no_noise_has_moments_but_no_density(self) -> None:
        predictive = GaussianPredictive(mean=[[[0.0]], [[2.0]]], noise_variance=0.0)
        assert predictive.total.item() == 1.0
        for use in (predictive.log_prob, predictive.cdf):
            with pytest.raises(ValueError, match="zero variance"):
                use([1.0])
        with pytest.raises(ValueError, match="zero variance"):
            predictive.quantile(0.5)

    def test_targets_may_be_a_vector_for_one_column_only(self) -> None:
        one, two = (GaussianPredictive(mean=torch.zeros(1, 3, D), noise_variance=1.0) for D in (1, 2))
        assert torch.equal(one.log_prob([1.0, 2.0, 3.0]), one.log_prob([[1.0], [2.0], [3.0]]))
        with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
            two.log_prob([1.0, 2.0, 3.0])

    @pytest.mark.parametrize("level", [0.0, 1.0, -0.1, math.nan])
    def test_quantiles_outside_the_open_interval_are_refused(self, level: float) -> None:
        with pytest.raises(ValueError, match="`level`"):
            GaussianPredictive(mean=torch.zeros(1, 1, 1), noise_variance=1.0).quantile(level)

    def test_parts_of_other_columns_do_not_concatenate(self) -> None:
        parts = [GaussianPredictive(mean=torch.zeros(2, 3, D), noise_variance=1.0) for D in (1, 2)]
        with pytest.raises(ValueError, match="differ only in their points"):
            GaussianPredictive.concatenate(parts)

    def test_half_precision_and_integers_are_taken(self) -> None:
        half = GaussianPredictive(mean=torch.ones(1, 1, 1, dtype=torch.float16), noise_variance=torch.tensor(1))
        double = GaussianPredictive(mean=torch.ones(1, 1, 1, dtype=torch.float64), noise_variance=1.0)
        assert half.log_prob(torch.tensor([2])) == double.log_prob([2.0])
        assert half.merge(double).num_samples == 2


@pytest.mark.parametrize("build", ["gaussian", "student"])
def test_columns_that_are_not_observed_are_integrated_out(build: str) -> None:
    """Row by row the density is that of a predictive of the observed columns alone; of none it is 1."""
    means, variances = gaussian(0, 5, 3, 2), gaussian(1, 5, 3, 2).square() + 0.1

    def predictive(columns: list[int]) -> GaussianPredictive | MixturePredictive:
        mean, variance = means[..., columns], variances[..., columns]
        if build == "gaussian":
            return GaussianPredictive(mean=mean, noise_variance=variance)
        return MixturePredictive(StudentT(torch.tensor(5.0).double(), mean, variance.sqrt()))

    y, observed = gaussian(2, 3, 2), torch.tensor([[True, True], [False, True], [False, False]])
    found = predictive([0, 1]).log_prob(y, observed=observed)
    torch.testing.assert_close(found[0], predictive([0, 1]).log_prob(y)[0])
    torch.testing.assert_close(found[1], predictive([1]).log_prob(y[:, 1:])[1])
    assert found[2] == 0.0


class TestCategoricalByHand:
    def test_sure_draws_that_disagree_are_all_epistemic(self) -> None:
        predictive = CategoricalPredictive.from_probs([[[1.0, 0.0]], [[0.0, 1.0]]])
        assert predictive.total.item() == pytest.approx(math.log(2))
        assert predictive.aleatoric.item() == 0.0
        assert predictive.epistemic.item() == pytest.approx(math.log(2))

    def test_draws_that_agree_on_a_coin_are_all_aleatoric(self) -> None:
        predictive = CategoricalPredictive.from_probs([[[0.5, 0.5]], [[0.5, 0.5]]])
        assert predictive.aleatoric.item() == pytest.approx(math.log(2))
        assert predictive.epistemic.item() == pytest.approx(0.0, abs=1e-15)

    def test_entropy_is_of_the_mean_probability_not_of_the_mean_logit(self) -> None:
        predictive = CategoricalPredictive.from_logits([[[4.0, 0.0]], [[0.0, 0.0]]])
        p = (1 / (1 + math.exp(-4)) + 0.5) / 2
        assert predictive.mean[0, 0].item() == pytest.approx(p)
        assert predictive.total.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))

    def test_improbable_labels_stay_finite(self) -> None:
        logits = torch.tensor([[[0.0, -2000.0]], [[0.0, -2000.0]]])
        kept = CategoricalPredictive.from_logits(logits, keep_samples=True)
        streamed = CategoricalPredictive.from_logits(logits, keep_samples=False)
        assert kept.log_prob([1]).item() == pytest.approx(-2000.0)
        assert streamed.log_prob([1]).item() == pytest.approx(-2000.0)  # exp(-2000) is no float64
        for predictive in (kept, streamed):
            assert predictive.total.item() == 0.0
            assert predictive.log_prob([0]).item() == 0.0

    def test_impossible_classes_are_possible(self) -> None:
        predictive = CategoricalPredictive.from_logits([[[0.0, -math.inf, 0.0]]])
        assert predictive.log_prob([1]).item() == -math.inf
        assert predictive.total.item() == pytest.approx(math.log(2))

    @pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, np.float16])
    def test_probabilities_of_half_floats_are_taken_and_sum_to_one(self, kind: torch.dtype | type) -> None:
        probs = torch.randn(2, 500, 10, generator=torch.Generator().manual_seed(0)).softmax(dim=2)
        half = probs.to(kind) if isinstance(kind, torch.dtype) else probs.numpy().astype(kind)
        predictive = CategoricalPredictive.from_probs(half)
        torch.testing.assert_close(predictive.mean.sum(dim=1), torch.ones(500, dtype=torch.float64))
        torch.testing.assert_close(predictive.mean.float(), probs.mean(dim=0), rtol=0.01, atol=0)

    @pytest.mark.parametrize(
        ("probs", "reason"),
        [
            (torch.tensor([[[0.75, 0.2]]], dtype=torch.bfloat16), "sum to 1"),
            ([[[2.0, -1.0]]], "sum to 1"),
            ([[[3.0, 0.5]]], "from_logits"),
            ([[[0.6, 0.3]]], "sums from 0.9 "),
            ([[[math.nan, 1.0]]], "finite"),
            ([[[1.0]]], "two classes"),
            ([[0.5, 0.5]], r"probs\[None\]"),
        ],
    )
    def test_what_is_no_probability_is_refused(self, probs: list, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            CategoricalPredictive.from_probs(probs)

    @pytest.mark.parametrize(
        ("logits", "reason"),
        [
            ([[[math.nan, 1.0]]], "NaN"),
            ([[[math.inf, 1.0]]], "overflowed"),
            ([[[-math.inf, -math.inf]]], "at least one class"),
            ([[[1.0]]], "two classes.*Bernoulli"),
            ([[1.0, 0.5]], r"logits\[None\]"),
            (torch.zeros(0, 2, 3), "no empty dimension"),
        ],
    )
    def test_what_is_no_logit_is_refused(self, logits: list, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            CategoricalPredictive.from_logits(logits)

    def test_sums_that_no_draws_can_have_are_refused(self) -> None:
        good = {
            "probability_sum": torch.tensor([[1.5, 0.5]]),
            "entropy_sum": torch.tensor([0.5]),
            "votes": torch.tensor([[2, 0]]),
            "num_draws": 2,
        }
        assert CategoricalPredictive.from_sums(**good).num_samples == 2
        bad = [
            {"probability_sum": torch.tensor([[1.5, 0.6]])},
            {"probability_sum": torch.tensor([[3.0, -1.0]])},
            {"probability_sum": torch.tensor([[math.nan, 1.0]])},
            {"probability_sum": torch.tensor([1.5, 0.5])},
            {"votes": torch.tensor([[1, 0]])},
            {"votes": torch.tensor([[2], [0]])},
            {"entropy_sum": torch.tensor([math.nan])},
            {"entropy_sum": torch.tensor([[0.5]])},
            {"num_draws": 3},
            {"num_draws": 0},
        ]
        for change in bad:
            with pytest.raises(ValueError, match="must"):
                CategoricalPredictive.from_sums(**good | change)

    def test_an_inconsistent_state_is_not_passed_off_as_certainty(self) -> None:
        state = CategoricalPredictive.from_probs([[[0.5, 0.5]], [[0.5, 0.5]]])
        wrong = dataclasses.replace(state, entropy_sum=2 * state.entropy_sum)
        with pytest.raises(FloatingPointError, match="negative"):
            _ = wrong.epistemic

    def test_one_draw_has_no_mutual_information_not_even_by_rounding(self) -> None:
        assert torch.equal(CategoricalPredictive.from_logits(gaussian(0, 1, 50, 9)).epistemic, torch.zeros(50).double())

    @pytest.mark.parametrize(("labels", "error"), [([0, 2], ValueError), ([-1, 0], ValueError), ([0.5, 0], TypeError)])
    def test_labels_outside_the_classes_are_refused(self, labels: list, error: type[Exception]) -> None:
        with pytest.raises(error, match="`y`"):
            CategoricalPredictive.from_probs([[[0.5, 0.5], [0.5, 0.5]]]).log_prob(labels)

    def test_labels_may_be_a_column(self) -> None:
        predictive = CategoricalPredictive.from_logits(gaussian(0, 2, 3, 4))
        assert torch.equal(predictive.log_prob([[0], [1], [2]]), predictive.log_prob([0, 1, 2]))

    def test_draws_that_were_not_kept_are_missed_with_the_remedy(self) -> None:
        logits = gaussian(0, 2, 3, 4)
        streamed = CategoricalPredictive.from_logits(logits, keep_samples=False)
        with pytest.raises(ValueError, match="keep_samples=True"):
            _ = streamed.samples
        torch.testing.assert_close(CategoricalPredictive.from_logits(logits).samples, logits.softmax(dim=2))

    def test_kept_draws_survive_only_where_all_parts_kept_them(self) -> None:
        logits = gaussian(0, 2, 3, 4)
        kept = CategoricalPredictive.from_logits(logits)
        streamed = CategoricalPredictive.from_logits(logits, keep_samples=False)
        assert kept.merge(kept).samples.shape == (4, 3, 4)
        assert CategoricalPredictive.concatenate([kept, kept]).samples.shape == (2, 6, 4)
        assert kept.merge(streamed).draws is None
        assert CategoricalPredictive.concatenate([kept, streamed]).draws is None

    def test_a_kept_draw_of_all_points_is_one_function(self) -> None:
        probs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
        joint = CategoricalPredictive.from_probs(probs).sample(50, seed=0)
        assert torch.equal(joint[:, 0], joint[:, 1])
        apart = CategoricalPredictive.from_probs(probs, keep_samples=False).sample(50, seed=0)
        assert not torch.equal(apart[:, 0], apart[:, 1])

    def test_parts_of_other_classes_do_not_concatenate(self) -> None:
        parts = [CategoricalPredictive.from_logits(torch.zeros(2, 3, C)) for C in (2, 3)]
        with pytest.raises(ValueError, match="differ only in their points"):
            CategoricalPredictive.concatenate(parts)

    def test_labels_have_no_unit(self) -> None:
        predictive = CategoricalPredictive.from_probs([[[0.5, 0.5]]])
        assert predictive.rescale(torch.tensor(1.0), torch.tensor(2.0)) is predictive

    def test_mixed_dtypes_merge(self) -> None:
        logits = gaussian(0, 2, 3, 4)
        parts = [CategoricalPredictive.from_logits(logits.to(dtype)) for dtype in (torch.float16, torch.float64)]
        merged = parts[0].merge(parts[1])
        assert merged.num_samples == 4
        # float16 has 11 bits: logits of about 1 are off by 5e-4 at most.
        torch.testing.assert_close(merged.mean, logits.softmax(dim=2).mean(dim=0), rtol=0, atol=1e-3)

    def test_permuting_classes_permutes_the_mean_and_nothing_else(self) -> None:
        logits, order = gaussian(0, 3, 5, 4), torch.tensor([2, 0, 3, 1])
        one, other = (CategoricalPredictive.from_logits(value) for value in (logits, logits[:, :, order]))
        torch.testing.assert_close(other.mean, one.mean[:, order], **ROUNDING)
        assert torch.equal(other.votes, one.votes[:, order])
        for name in ("total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(other, name), getattr(one, name), **ROUNDING)

    @PROPERTY
    @given(st.integers(0, 2**32 - 1), st.floats(0.01, 100.0), st.integers(1, 8), st.integers(2, 6))
    def test_mutual_information_is_within_its_bounds(
        self, seed: int, scale: float, num_draws: int, num_classes: int
    ) -> None:
        predictive = CategoricalPredictive.from_logits(scale * gaussian(seed, num_draws, 4, num_classes))
        assert (predictive.epistemic >= 0).all()
        assert (predictive.epistemic <= math.log(min(num_draws, num_classes)) + 1e-12).all()
        torch.testing.assert_close(predictive.total, predictive.aleatoric + predictive.epistemic, **ROUNDING)


class TestProbabilitiesAndQuantilesInBlocks:
    def test_probabilities_are_what_their_logits_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Whole-number logits: ties, which go to the first class; and some classes that are impossible.
        logits = torch.randn(3, 40, 4, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
        logits[:, :, 1, 0] = -math.inf
        expected = CategoricalPredictive.from_logits(logits)
        for numbers in (1, 100, 2**16):
            monkeypatch.setattr("bayesuq.predictive.categorical.CACHE_NUMBERS", numbers)
            for found in (
                CategoricalPredictive.from_probs(logits.softmax(dim=2)),
                CategoricalPredictive.from_logits(logits),
            ):
                torch.testing.assert_close(found.probability_sum, expected.probability_sum)
                torch.testing.assert_close(found.entropy_sum, expected.entropy_sum)
                torch.testing.assert_close(found.total, expected.total)
                assert torch.equal(found.votes, expected.votes)

    @pytest.mark.parametrize("kind", [CategoricalPredictive.from_logits, CategoricalPredictive.from_probs])
    def test_the_first_of_equal_classes_is_voted_for_at_every_pixel(self, kind: Callable) -> None:
        # Many pixels, of which several are compared at a time, and some more.
        numbers = torch.randint(3, (2, 1, 4, 13, 37), generator=torch.Generator().manual_seed(0)).double()
        predictive = kind(numbers.softmax(dim=2))
        votes = np.zeros(predictive.votes.shape, dtype=np.int64)
        for draw in numbers.numpy():
            votes += np.arange(4)[:, None, None] == draw.argmax(axis=1)[:, None]
        assert predictive.votes.tolist() == votes.tolist()

    def test_entropies_have_slopes_where_a_class_is_impossible(self) -> None:
        logits = torch.tensor([[[0.3, -0.4, -math.inf]]], dtype=torch.float64, requires_grad=True)
        two = logits.detach()[..., :2].clone().requires_grad_()
        with keeping():
            for values in (logits, two):
                CategoricalPredictive.from_logits(values).entropy_sum.sum().backward()
        torch.testing.assert_close(logits.grad[..., :2], two.grad)
        assert logits.grad[0, 0, 2] == 0

    def test_rounded_probabilities_are_summed_to_one(self) -> None:
        probs = torch.tensor([[[0.3334, 0.3333, 0.3333]]]) * 1.00002
        predictive = CategoricalPredictive.from_probs(probs)
        torch.testing.assert_close(predictive.mean.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-15, atol=0)

    @pytest.mark.parametrize("level", [1e-9, 0.05, 0.4999999, 0.5, 0.95, 1 - 1e-9])
    def test_quantiles_of_distant_modes_are_found(self, level: float) -> None:
        # Between modes a thousand scales apart the density is 0, and Newton's step from there leads nowhere.
        means = torch.tensor([0.0, 1000.0, 1000.0, 3000.0], dtype=torch.float64)[:, None, None]
        predictive = GaussianPredictive(mean=means, noise_variance=torch.tensor([1.0, 1e-6, 4.0, 1.0])[:, None, None])
        quantile = predictive.quantile(level)
        below, above = (predictive.cdf(quantile + step).item() for step in (-1e-9, 1e-9))
        assert below - 1e-12 <= level <= above + 1e-12

    @pytest.mark.parametrize("level", [1e-300, 1e-30, 1e-12, 1e-3])
    def test_the_lower_tail_keeps_its_digits(self, level: float) -> None:
        means, scales = (-3.0, 0.0, 2.0), (0.1, 1.5, 0.01)
        predictive = GaussianPredictive(
            mean=torch.tensor(means)[:, None, None],
            noise_variance=torch.tensor(scales).double().square()[:, None, None],
        )
        quantile = predictive.quantile(level).item()
        z = [(quantile - mean) / scale for mean, scale in zip(means, torch.tensor(scales).tolist(), strict=True)]
        exact = sum(math.erfc(-each / math.sqrt(2)) for each in z) / 6
        assert exact == pytest.approx(level, rel=1e-9, abs=0)
        assert predictive.cdf([quantile]).item() == pytest.approx(level, rel=1e-9, abs=0)


def test_correlated_noise_is_the_mixture_of_multivariate_normals() -> None:
    mean = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[1.0, 1.0], [2.0, 0.0]]])
    covariance = torch.tensor([[2.0, 0.9], [0.9, 0.5]])
    predictive = GaussianPredictive.with_noise_covariance(mean, covariance)
    laws = torch.distributions.MultivariateNormal(mean.double(), covariance.double())
    y = torch.tensor([[0.3, 1.2], [2.5, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(predictive.log_prob(y), laws.log_prob(y).logsumexp(dim=0) - math.log(2))
    torch.testing.assert_close(predictive.aleatoric, torch.tensor([[2.0, 0.5]] * 2, dtype=torch.float64))
    torch.testing.assert_close(predictive.total, predictive.aleatoric + predictive.epistemic)
    drawn = predictive.sample(4000, seed=0)[:, 1]
    apart = drawn - drawn.mean(dim=0)
    assert float((apart[:, 0] * apart[:, 1]).mean()) == pytest.approx(0.9, abs=0.1)  # .02 by chance
    with pytest.raises(ValueError, match="`covariance` must be positive semidefinite"):
        GaussianPredictive.with_noise_covariance(mean, [[1.0, 2.0], [2.0, 1.0]])


def test_several_labels_a_point_and_maps_of_one_label_a_pixel_do_not_go_together() -> None:
    """Both are (N, 2, K); the first one decided what the other was read as."""
    chances = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0))
    several = CategoricalPredictive.from_probs(chances, kind="bernoulli")
    maps = CategoricalPredictive.from_probs(torch.stack([1 - chances, chances], dim=2))
    assert several.mean.shape == maps.mean.shape
    for one, other in ((several, maps), (maps, several)):
        with pytest.raises(ValueError, match="do not go together"):
            one.merge(other)
        with pytest.raises(ValueError, match="do not go together"):
            CategoricalPredictive.concatenate([one, other])


@pytest.mark.parametrize("names", ["abc", ["a", "b"], [1, "1", 2]])
def test_names_of_classes_that_cannot_be_told_apart_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="`names` must be 3 different ones"):
        CategoricalPredictive.from_probs([[[0.7, 0.2, 0.1]]]).named(names)
