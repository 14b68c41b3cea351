import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesuq.evaluation.uncertainty import (
    aleatoric_variance,
    epistemic_variance,
    expected_entropy,
    margin,
    maximum_probability,
    mutual_information,
    predictive_entropy,
    predictive_variance,
    variation_ratio,
)
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.evaluation.examples import labelled, measured, noise, sure

MEASURES = [
    maximum_probability,
    margin,
    predictive_entropy,
    expected_entropy,
    mutual_information,
    variation_ratio,
]
VARIANCES = [predictive_variance, aleatoric_variance, epistemic_variance]
PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)


def test_values_by_hand() -> None:
    predictive = CategoricalPredictive.from_probs(
        torch.tensor([[[0.7, 0.2, 0.1]], [[0.1, 0.8, 0.1]], [[0.4, 0.5, 0.1]]], dtype=torch.float64)
    )
    mean = [0.4, 0.5, 0.1]
    entropies = [-sum(p * math.log(p) for p in probs) for probs in ([0.7, 0.2, 0.1], [0.1, 0.8, 0.1], mean, mean)]
    assert maximum_probability(predictive).item() == pytest.approx(0.5)
    assert margin(predictive).item() == pytest.approx(1 - (0.5 - 0.4))
    assert predictive_entropy(predictive).item() == pytest.approx(entropies[3])
    assert expected_entropy(predictive).item() == pytest.approx(sum(entropies[:3]) / 3)
    assert mutual_information(predictive).item() == pytest.approx(entropies[3] - sum(entropies[:3]) / 3)
    assert variation_ratio(predictive).item() == pytest.approx(1 / 3)  # votes 1, 2, 0


@pytest.mark.parametrize("measure", MEASURES)
def test_certainty_is_zero_and_a_coin_is_more(measure) -> None:
    disagreeing = CategoricalPredictive.from_probs([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert measure(sure([1.0, 0.0])).item() == 0
    # Two sure draws that disagree: all but the expected entropy see it.
    assert (measure(disagreeing).item() > 0.4) == (measure is not expected_entropy)


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_is_float64_a_value_for_each_pixel(measure) -> None:
    values = measure(CategoricalPredictive.from_logits(noise(0, 3, 2, 4, 5, 6).float()))
    assert values.dtype == torch.float64
    assert values.shape == (2, 5, 6)


@pytest.mark.parametrize("measure", MEASURES)
def test_names_of_classes_do_not_matter(measure) -> None:
    logits = noise(0, 3, 10, 4)
    renamed = CategoricalPredictive.from_logits(logits[:, :, [2, 0, 3, 1]])
    torch.testing.assert_close(measure(renamed), measure(CategoricalPredictive.from_logits(logits)))


@pytest.mark.parametrize("measure", MEASURES)
def test_real_targets_are_sent_to_the_variances(measure) -> None:
    with pytest.raises(TypeError, match=r"got GaussianPredictive.*`predictive_variance`"):
        measure(measured(0)[0])


@PROPERTY
@given(st.integers(0, 2**32 - 4), st.floats(0.0, 50.0), st.integers(1, 6), st.integers(2, 6))
def test_every_measure_keeps_its_range(seed: int, sharpness: float, num_draws: int, num_classes: int) -> None:
    predictive, _ = labelled(seed, num_draws=num_draws, num_points=5, num_classes=num_classes, sharpness=sharpness)
    uniform = math.log(num_classes)
    ceilings = [1 - 1 / num_classes, 1, uniform, uniform, math.log(min(num_draws, num_classes)), 1 - 1 / num_classes]
    for measure, ceiling in zip(MEASURES, ceilings, strict=True):
        values = measure(predictive)
        assert (values >= 0).all()
        assert (values <= ceiling + 1e-12).all()
    parts = expected_entropy(predictive) + mutual_information(predictive)
    torch.testing.assert_close(predictive_entropy(predictive), parts)


def test_points_that_round_to_certainty_can_still_be_ranked() -> None:
    # 1 - p rounds to 0 beyond 37 nats; exp(-40) and exp(-60) are different numbers all the same.
    predictive = CategoricalPredictive.from_logits([[[0.0, -40.0], [0.0, -60.0]]])
    for measure in (maximum_probability, margin, predictive_entropy):
        less_sure, surer = measure(predictive).tolist()
        assert less_sure > surer > 0


def test_mutual_information_of_few_draws_is_biased_low() -> None:
    # By the convexity of -H: the mean over pairs of draws never exceeds that of all draws.
    logits = 3 * noise(0, 100, 50, 4)
    pairs = [mutual_information(CategoricalPredictive.from_logits(pair)) for pair in logits.split(2)]
    everything = mutual_information(CategoricalPredictive.from_logits(logits))
    assert (torch.stack(pairs).mean(dim=0) < everything).all()


class TestVariances:
    def test_of_labels_are_those_of_one_hot_vectors(self) -> None:
        predictive, _ = labelled(0, num_points=3)
        probs = predictive.samples
        for point in range(3):
            p, mean = probs[:, point], probs[:, point].mean(dim=0)
            # Kwon et al. (2020), eq. (4): matrices over classes, whose traces these are.
            aleatoric = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(dim=0)
            epistemic = ((p - mean)[:, :, None] * (p - mean)[:, None]).mean(dim=0)
            total = torch.diag(mean) - torch.outer(mean, mean)
            torch.testing.assert_close(aleatoric + epistemic, total)
            for measure, matrix in zip(VARIANCES, (total, aleatoric, epistemic), strict=True):
                torch.testing.assert_close(measure(predictive)[point], matrix.trace())

    def test_of_real_targets_are_the_predictives_own(self) -> None:
        predictive, _ = measured(0, num_columns=2)
        parts = (predictive.total, predictive.aleatoric, predictive.epistemic)
        assert all(torch.equal(measure(predictive), part) for measure, part in zip(VARIANCES, parts, strict=True))

    def test_of_pixels_are_a_value_each(self) -> None:
        predictive = CategoricalPredictive.from_logits(noise(0, 3, 2, 4, 5, 6))
        for measure in VARIANCES:
            assert measure(predictive).shape == (2, 5, 6)
        parts = aleatoric_variance(predictive) + epistemic_variance(predictive)
        torch.testing.assert_close(predictive_variance(predictive), parts)

    def test_parts_need_the_single_draws_the_total_does_not(self) -> None:
        predictive = CategoricalPredictive.from_logits(noise(0, 3, 2, 4), keep_samples=False)
        assert predictive_variance(predictive).isfinite().all()
        for measure in (aleatoric_variance, epistemic_variance):
            with pytest.raises(ValueError, match="keep_samples=True"):
                measure(predictive)

    def test_of_something_else_are_refused(self) -> None:
        for measure in VARIANCES:
            with pytest.raises(TypeError, match="got Tensor"):
                measure(torch.ones(3))
