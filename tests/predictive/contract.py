"""What every predictive distribution promises. A test class inherits `PredictiveContract` and says how to build one."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesuq.predictive.base import PredictiveDistribution

Components = dict[str, Tensor]
ROUNDING = {"rtol": 1e-9, "atol": 1e-12}  # float64 sums of some ten terms, in another order
NUM_DRAWS, NUM_POINTS = 5, 4


class PredictiveContract:
    """Subclasses define `components`, `build`, `targets`, `mass` and `sample_errors`."""

    out_of_shape: ClassVar[str] = "must have shape"

    def components(self, num_draws: int = NUM_DRAWS, num_points: int = NUM_POINTS) -> Components:
        """Arguments of `build`, each (S, N, ...), always the same ones."""
        raise NotImplementedError

    def build(self, components: Components) -> PredictiveDistribution:
        raise NotImplementedError

    def targets(self, num_points: int = NUM_POINTS) -> Tensor:
        """Some y of the right shape."""
        raise NotImplementedError

    def mass(self, predictive: PredictiveDistribution) -> Tensor:
        """exp(log_prob) summed or integrated over all y, for each point."""
        raise NotImplementedError

    def sample_errors(self, predictive: PredictiveDistribution, samples: Tensor) -> Tensor:
        """Deviations of the samples' moments from the predictive's, in standard errors."""
        raise NotImplementedError

    def epistemic_of_one_draw(self, components: Components) -> Tensor | float:  # noqa: ARG002 - overridden
        return 0.0

    def assert_same(self, one: PredictiveDistribution, other: PredictiveDistribution) -> None:
        assert one.num_samples == other.num_samples
        y = self.targets(len(one.mean))
        for name in ("mean", "total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), **ROUNDING)
        torch.testing.assert_close(one.log_prob(y), other.log_prob(y), **ROUNDING)

    @pytest.fixture
    def predictive(self) -> PredictiveDistribution:
        return self.build(self.components())

    def test_total_is_aleatoric_plus_epistemic(self, predictive: PredictiveDistribution) -> None:
        assert (predictive.aleatoric > 0).all()
        assert (predictive.epistemic > 0).all()
        torch.testing.assert_close(predictive.total, predictive.aleatoric + predictive.epistemic, **ROUNDING)

    def test_one_draw_has_no_disagreement(self) -> None:
        components = self.components(num_draws=1)
        predictive = self.build(components)
        expected = torch.as_tensor(self.epistemic_of_one_draw(components), dtype=torch.float64)
        torch.testing.assert_close(predictive.epistemic, expected.expand_as(predictive.total), **ROUNDING)
        assert predictive.num_samples == 1

    def test_equal_draws_have_no_disagreement(self) -> None:
        one = self.components(num_draws=1)
        many = self.build({name: value.expand(7, *value.shape[1:]) for name, value in one.items()})
        for name in ("mean", "total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(many, name), getattr(self.build(one), name), **ROUNDING)

    def test_merge_of_two_is_the_one_built_at_once(self, predictive: PredictiveDistribution) -> None:
        parts = [
            self.build({name: value[draws] for name, value in self.components().items()})
            for draws in (slice(0, 2), slice(2, None))
        ]
        self.assert_same(parts[0].merge(parts[1]), predictive)

    def test_mixture_of_a_generator_is_the_one_built_at_once(self, predictive: PredictiveDistribution) -> None:
        components = self.components()
        parts = (self.build({name: value[i : i + 1] for name, value in components.items()}) for i in range(NUM_DRAWS))
        self.assert_same(type(predictive).mixture(parts), predictive)

    def test_merging_leaves_both_parts_as_they_were(self, predictive: PredictiveDistribution) -> None:
        other = self.build(self.components())
        predictive.merge(other)
        self.assert_same(predictive, other)

    def test_concatenate_is_the_one_built_at_once(self, predictive: PredictiveDistribution) -> None:
        parts = [
            self.build({name: value[:, points] for name, value in self.components().items()})
            for points in (slice(0, 1), slice(1, None))
        ]
        self.assert_same(type(predictive).concatenate(parts), predictive)

    def test_order_of_draws_does_not_matter(self, predictive: PredictiveDistribution) -> None:
        reversed_draws = {name: value.flip(0) for name, value in self.components().items()}
        self.assert_same(self.build(reversed_draws), predictive)

    def test_row_of_a_batch_is_a_batch_of_one(self, predictive: PredictiveDistribution) -> None:
        for i in range(NUM_POINTS):
            alone = self.build({name: value[:, i : i + 1] for name, value in self.components().items()})
            for name in ("mean", "total", "aleatoric", "epistemic"):
                torch.testing.assert_close(getattr(alone, name), getattr(predictive, name)[i : i + 1], **ROUNDING)
            log_prob = predictive.log_prob(self.targets())[i : i + 1]
            torch.testing.assert_close(alone.log_prob(self.targets()[i : i + 1]), log_prob, **ROUNDING)

    @pytest.mark.parametrize(
        "points", [slice(1, 3), [2, 0, -1], torch.tensor([1, 1]), [True, False, False, True], np.array([3])], ids=str
    )
    def test_some_points_are_those_of_the_components(self, predictive: Any, points: Any) -> None:
        chosen = points if isinstance(points, slice) else torch.as_tensor(points)
        some = self.build({name: value[:, chosen] for name, value in self.components().items()})
        for name in ("mean", "total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(predictive.at(points), name), getattr(some, name), **ROUNDING)
        y = self.targets()[chosen]
        torch.testing.assert_close(predictive.at(points).log_prob(y), some.log_prob(y), **ROUNDING)

    def test_points_that_are_no_list_of_them_are_refused(self, predictive: Any) -> None:
        with pytest.raises(ValueError, match=r"`points` must have one dimension, as \[3\] for row 3"):
            predictive.at(3)
        with pytest.raises(ValueError, match=rf"N = {NUM_POINTS} entries if boolean; got \(1,\)"):
            predictive.at([True])
        with pytest.raises(TypeError, match=r"whole numbers or booleans; got torch\.float"):
            predictive.at([0.5])
        with pytest.raises(IndexError):
            predictive.at([NUM_POINTS])

    def test_probability_sums_to_one(self, predictive: PredictiveDistribution) -> None:
        mass = self.mass(predictive)
        torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-6)

    def test_results_are_float64_and_without_gradient(self) -> None:
        components = {name: value.float().requires_grad_() for name, value in self.components().items()}
        predictive = self.build(components)
        results = [predictive.mean, predictive.total, predictive.aleatoric, predictive.epistemic]
        for result in [*results, predictive.log_prob(self.targets())]:
            assert result.dtype == torch.float64
            assert not result.requires_grad

    def test_samples_have_the_mean_and_spread(self, predictive: PredictiveDistribution) -> None:
        # Each of some 20 moments exceeds 5 standard errors with probability 6e-7; the seed is fixed besides.
        assert self.sample_errors(predictive, predictive.sample(20_000, seed=3)).abs().max() < 5

    def test_sampling_is_repeatable_and_leaves_the_global_generator(self, predictive: PredictiveDistribution) -> None:
        before = torch.get_rng_state()
        one, same, other = (predictive.sample(6, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_sampling_without_a_seed_follows_the_global_generator(self, predictive: PredictiveDistribution) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            one, other = predictive.sample(6), predictive.sample(6)
            torch.manual_seed(0)
            again = predictive.sample(6)
        assert torch.equal(one, again)
        assert not torch.equal(one, other)

    @pytest.mark.parametrize(("number", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)])
    def test_number_of_samples_must_be_a_count(
        self, predictive: PredictiveDistribution, number: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error, match="`num_samples`"):
            predictive.sample(number)

    def test_moving_to_the_same_device_changes_nothing(self, predictive: PredictiveDistribution) -> None:
        self.assert_same(predictive.to("cpu"), predictive)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_results_are_the_same_on_a_gpu(self, predictive: PredictiveDistribution) -> None:
        moved = predictive.to("cuda")
        assert moved.mean.is_cuda
        assert moved.sample(2, seed=0).is_cuda
        assert moved.log_prob(self.targets()).is_cuda  # y may stay where it is
        self.assert_same(moved.to("cpu"), predictive)
        torch.testing.assert_close(
            moved.log_prob(self.targets()).cpu(), predictive.log_prob(self.targets()), **ROUNDING
        )

    def test_targets_of_another_number_of_points_are_refused(self, predictive: PredictiveDistribution) -> None:
        with pytest.raises(ValueError, match=self.out_of_shape):
            predictive.log_prob(self.targets(NUM_POINTS + 1))

    def test_targets_that_would_broadcast_are_refused(self, predictive: PredictiveDistribution) -> None:
        with pytest.raises(ValueError, match=self.out_of_shape):
            predictive.log_prob(self.targets()[None].movedim(0, 1).expand(-1, NUM_POINTS, *self.targets().shape[1:]))

    def test_nan_targets_are_refused(self, predictive: PredictiveDistribution) -> None:
        y = self.targets().double()
        y[1] = torch.nan
        with pytest.raises(ValueError, match="1 of 4 rows"):
            predictive.log_prob(y)

    def test_nan_components_are_refused(self) -> None:
        for name in self.components():
            components = self.components()
            components[name].view(-1)[0] = torch.nan
            with pytest.raises(ValueError, match=name):
                self.build(components)

    def test_a_missing_draw_dimension_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"\(S, N, "):
            self.build({name: value[0, 0].flatten() for name, value in self.components().items()})

    def test_predictives_at_other_points_do_not_merge(self, predictive: PredictiveDistribution) -> None:
        with pytest.raises(ValueError, match="same points"):
            predictive.merge(self.build(self.components(num_points=NUM_POINTS - 1)))

    def test_predictives_with_other_numbers_of_draws_do_not_concatenate(
        self, predictive: PredictiveDistribution
    ) -> None:
        with pytest.raises(ValueError, match="same number of draws"):
            type(predictive).concatenate([predictive, self.build(self.components(num_draws=NUM_DRAWS - 1))])

    def test_nothing_to_join_is_refused(self, predictive: PredictiveDistribution) -> None:
        with pytest.raises(ValueError, match="at least one part"):
            type(predictive).mixture([])
        with pytest.raises(ValueError, match="at least one part"):
            type(predictive).concatenate([])
