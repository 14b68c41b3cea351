"""What is measured together must belong together: batches, names of classes, weights, and numbers that floats hold."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from bayesuq.evaluation import distance, scores
from bayesuq.evaluation.calibration import debiased_calibration_error, interval_width
from bayesuq.evaluation.real_maps import evaluate_maps
from bayesuq.evaluation.report.comparison import compare_predictives
from bayesuq.evaluation.report.reporting import evaluate
from bayesuq.evaluation.segmentation.failures import image_failures
from bayesuq.evaluation.segmentation.lesions import lesion_counts
from bayesuq.evaluation.segmentation.reporting import evaluate_segmentation
from bayesuq.evaluation.segmentation.surfaces import surface_distances
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.maps import RealMaps
from tests.evaluation.examples import labelled, noise

TWO = CategoricalPredictive.from_probs([[[0.7, 0.3], [0.2, 0.8]]])
THREE = CategoricalPredictive.from_probs([[[0.7, 0.2, 0.1], [0.2, 0.4, 0.4]]])
TURNED = TWO.named(["no", "yes"]), TWO.named(["yes", "no"])


def test_batches_and_pairs_have_one_number_of_classes() -> None:
    with pytest.raises(ValueError, match="one number of classes; got 2 and 3"):
        evaluate([(TWO, [0, 1]), (THREE, [0, 1])])
    with pytest.raises(ValueError, match="same classes compare; got 2 and 3"):
        compare_predictives(TWO, THREE, [0, 1])


def test_the_same_number_is_the_same_class() -> None:
    """Two predictives whose classes stand in another order were mixed by their places."""
    for together in (
        lambda: CategoricalPredictive.mixture(TURNED),
        lambda: CategoricalPredictive.concatenate(TURNED),
        lambda: compare_predictives(*TURNED, [0, 1]),
        lambda: distance.agreement(*TURNED),
        lambda: distance.total_variation(*TURNED),
    ):
        with pytest.raises(ValueError, match="one order; got no, yes and yes, no"):
            together()
    assert CategoricalPredictive.mixture([TWO, TURNED[0]]).names == ("no", "yes")
    assert CategoricalPredictive.concatenate([TURNED[0], TWO]).names == ("no", "yes")


def test_labels_by_name_may_be_weighted_and_missing() -> None:
    assert float(scores.accuracy(TURNED[0], ["no", "yes"], weight=[1, 2])) == 1.0
    assert float(scores.accuracy(TURNED[0], ["no", None], weight=[1, 0])) == 1.0
    assert evaluate(TURNED[0], pd.Series([np.nan, "yes"]), weight=[0, 1]).num_points == 1
    with pytest.raises(ValueError, match="label 'maybe', which is none of no, yes"):
        scores.accuracy(TURNED[0], ["no", "maybe"], weight=[1, 1])


def test_numbers_that_are_names_are_not_taken_for_places() -> None:
    grades = THREE.named(["1", "2", "3"])
    for y in (np.array([1, 3]), pd.Series([1.0, 3.0]), [1, 3]):
        assert float(scores.negative_log_likelihood(grades, y)) == pytest.approx(-math.log(0.7 * 0.4) / 2)
    assert float(scores.accuracy(grades, torch.tensor([1, 2]))) == 0.0
    assert float(scores.accuracy(grades, [0, 2])) == 0.5
    with pytest.raises(ValueError, match="may be names of classes"):
        scores.accuracy(grades, [1, 2])


def test_a_bounded_score_has_a_bounded_interval() -> None:
    report = evaluate(CategoricalPredictive.from_probs([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]]), [1, 1, 0])
    assert report["brier_score"].interval[1] <= 2
    logits = torch.cat([torch.zeros(2, 4, 3), 20 * noise(0, 2, 1, 3)], dim=1)
    uncertain = evaluate(CategoricalPredictive.from_logits(logits), [0, 1, 2, 0, 1])
    assert uncertain["predictive_entropy"].interval[1] <= math.log(3) + 1e-12
    assert uncertain["mutual_information"].interval[1] <= math.log(2) + 1e-12


def test_a_log_score_of_labels_has_no_interval_below_0_and_one_of_densities_may() -> None:
    probs = [[[1 - 1e-9, 1e-9], *[[0.9, 0.1]] * 11]]
    labels = evaluate(CategoricalPredictive.from_probs(probs), [1, *[0] * 11])
    assert labels["negative_log_likelihood"].interval[0] >= 0
    sharp = GaussianPredictive(mean=torch.zeros(1, 12, 1), noise_variance=1e-6)
    assert evaluate(sharp, 1e-3 * noise(0, 12))["negative_log_likelihood"].interval[0] < 0


def test_widths_may_be_weighted() -> None:
    predictive = GaussianPredictive(mean=torch.zeros(1, 2, 1), noise_variance=torch.tensor([[[1.0], [4.0]]]))
    width = interval_width(predictive.at(slice(0, 1)), 0.9)
    torch.testing.assert_close(interval_width(predictive, 0.9, weight=[3, 1]), 1.25 * width)
    torch.testing.assert_close(interval_width(predictive, 0.9, weight=[[1], [0]]), width)


def maps(number: int, draws: int = 1) -> RealMaps:
    f = torch.zeros(draws, number, 1, 4, 4)
    return RealMaps.of_draws(f, lambda f: GaussianPredictive(mean=f, noise_variance=1.0))


def test_batches_of_images_are_predictives_with_their_truth_and_as_many_draws() -> None:
    y = torch.arange(32).reshape(2, 4, 4) % 3
    few, many = (CategoricalPredictive.from_logits(noise(0, draws, 2, 3, 4, 4)) for draws in (2, 3))
    for measure in (evaluate_segmentation, image_failures):
        with pytest.raises(ValueError, match="one number of draws; got 2 and 3"):
            measure([(few, y), (many, y)])
        for wrong in ([(y, few)], [few], [(few, y, y)]):
            with pytest.raises(TypeError, match="Each batch must be a predictive and its truth"):
                measure(wrong)
    with pytest.raises(ValueError, match="one number of draws; got 1 and 2"):
        evaluate_maps([(maps(1), torch.ones(1, 1, 4, 4)), (maps(1, draws=2), torch.ones(1, 1, 4, 4))])


def test_images_fail_where_all_batches_tell_as_much() -> None:
    y = torch.arange(32).reshape(2, 4, 4) % 3
    logits = noise(0, 2, 2, 3, 4, 4)
    kept, gone = (CategoricalPredictive.from_logits(logits, keep_samples=keep) for keep in (True, False))
    with pytest.raises(ValueError, match="must all keep their draws"):
        image_failures([(kept, y), (gone, y)])
    with pytest.raises(ValueError, match="No image has a labelled pixel"):
        image_failures(kept, torch.full_like(y, 9), ignore_index=9)


def test_pixels_that_do_not_count_may_be_missing() -> None:
    y = torch.ones(2, 1, 4, 4)
    y[:, :, 0] = torch.nan
    report = evaluate_maps(maps(2), y, counts=~y.isnan())
    assert report["root_mean_squared_error"].value == pytest.approx(1.0)
    assert report["negative_log_likelihood"].value == pytest.approx(0.5 + math.log(2 * math.pi) / 2)
    with pytest.raises(TypeError, match="`counts` is of one predictive"):
        evaluate_maps([(maps(2), y)], counts=~y.isnan())


@pytest.mark.parametrize("y", [np.array([2**24 + 1, 2**40]), [2**24 + 1, 2**40], torch.tensor([2**24 + 1, 2**40])])
def test_whole_targets_keep_their_digits(y: object) -> None:
    """Seconds since 1970 were off by up to a minute."""
    mean = torch.tensor([[[2.0**24], [2.0**40]]], dtype=torch.float64)
    predictive = GaussianPredictive(mean=mean, noise_variance=1.0)
    assert scores.pointwise(scores.root_mean_squared_error)(predictive, y).flatten().tolist() == [1.0, 0.0]
    assert float(scores.sample_crps(np.array([[2**24 + 1, 2**40]] * 2), y)) == 0.0
    assert GaussianPredictive(mean=np.array([[[1]]]), noise_variance=1.0).component_means.dtype == torch.float64


def test_levels_may_be_an_array() -> None:
    predictive = GaussianPredictive(mean=torch.zeros(1, 2, 1), noise_variance=1.0)
    expected = scores.weighted_interval_score(predictive, [0.0, 1.0], levels=[0.5, 0.9])
    for levels in (np.array([0.5, 0.9]), torch.tensor([0.5, 0.9], dtype=torch.float64), (0.5, 0.9)):
        assert torch.equal(scores.weighted_interval_score(predictive, [0.0, 1.0], levels=levels), expected)


def test_the_scale_of_weights_changes_nothing_or_is_refused() -> None:
    predictive, y = labelled(0)
    weight = noise(5, 200).exp()
    expected = debiased_calibration_error(predictive, y, weight=weight)
    for factor in (1e-100, 1e100):
        torch.testing.assert_close(debiased_calibration_error(predictive, y, weight=factor * weight), expected)
    for factor in (1e-200, 1e200):
        with pytest.raises(ValueError, match="Multiply all weights by one number"):
            debiased_calibration_error(predictive, y, weight=factor * weight)


def test_lesions_none_of_which_is_found_have_no_f1_to_speak_of() -> None:
    said = torch.tensor([[0.9, 0.1, 0.1, 0.1]])
    predictive = CategoricalPredictive.from_probs(torch.stack([1 - said, said], dim=1)[None])
    assert float(lesion_counts(predictive, [[0, 0, 0, 1]]).f1) == 0.0
    assert math.isnan(float(lesion_counts(predictive, [[0, 0, 0, 0]]).f1))


def test_a_spacing_is_any_number() -> None:
    predictive = CategoricalPredictive.from_logits([[[[9, 9, 0, 0, 0], [0, 0, 9, 9, 9]]]])
    expected = surface_distances(predictive, [[0, 0, 0, 0, 1]], spacing=0.5).hausdorff
    for spacing in (np.float32(0.5), np.array([0.5]), torch.tensor(0.5)):
        assert torch.equal(surface_distances(predictive, [[0, 0, 0, 0, 1]], spacing=spacing).hausdorff, expected)
