import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesuq.evaluation import calibration, detection
from bayesuq.evaluation.scores import pointwise_brier_score, pointwise_squared_error, root_mean_squared_error
from bayesuq.evaluation.standard_errors import weighted
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.evaluation.examples import labelled, measured, noise

OF_SCORES = [
    (weighted.auroc, detection.auroc),
    (weighted.average_precision, detection.average_precision),
    (weighted.false_positive_rate_at, detection.false_positive_rate_at),
    (weighted.aurc, detection.aurc),
    (weighted.augrc, detection.augrc),
]
PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)
# Tied scores, both classes, and how often each row counts, none among them, but each class at least once.
ROWS = st.lists(st.tuples(st.integers(-2, 2), st.booleans(), st.integers(0, 3)), min_size=2, max_size=20).filter(
    lambda rows: {positive for _, positive, count in rows if count} == {True, False}
)


@pytest.mark.parametrize(("function", "measure"), OF_SCORES)
@PROPERTY
@given(rows=ROWS)
def test_whole_weights_repeat_rows(function, measure, rows: list[tuple[int, bool, int]]) -> None:
    scores, positives, counts = (torch.tensor(column) for column in zip(*rows, strict=True))
    found = function(scores, positives)(counts.double()[None])[0]
    expected = measure(scores.repeat_interleave(counts), positives.repeat_interleave(counts))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("function", "measure"), OF_SCORES)
def test_a_row_of_pixels_counts_together(function, measure) -> None:
    scores, positives = noise(0, 10, 3, 4).round(), noise(1, 10, 3, 4) > 0
    counts = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    weights = torch.stack([counts.double(), torch.ones(10, dtype=torch.float64)])
    found = function(scores, positives)(weights)
    for value, times in zip(found, (counts, torch.ones_like(counts)), strict=True):
        expected = measure(scores.repeat_interleave(times, 0), positives.repeat_interleave(times, 0))
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(function(scores, positives).value, measure(scores, positives))


def test_calibration_error_repeats_rows() -> None:
    predictive, y = labelled(0)
    counts = torch.arange(200) % 4
    repeated = CategoricalPredictive.from_logits(predictive.draws.repeat_interleave(counts, dim=1))
    measure = weighted.expected_calibration_error(predictive, y)
    expected = calibration.expected_calibration_error(repeated, y.repeat_interleave(counts))
    torch.testing.assert_close(measure(counts.double()[None])[0], expected)
    torch.testing.assert_close(measure.value, calibration.expected_calibration_error(predictive, y))


def test_means_repeat_rows() -> None:
    predictive, y = labelled(0)
    values = pointwise_brier_score(predictive, y)
    counts = torch.arange(200) % 3
    found = weighted.mean(values)(counts.double()[None])[0]
    torch.testing.assert_close(found, values.repeat_interleave(counts).mean())
    example = measured(0, num_columns=2)
    found = weighted.root_mean(pointwise_squared_error(*example)).value
    torch.testing.assert_close(found, root_mean_squared_error(*example))


@pytest.mark.parametrize(("function", "measure"), OF_SCORES)
def test_what_is_undefined_is_nan_or_zero_but_never_a_guess(function, measure) -> None:
    scores, positives = torch.arange(4.0), torch.tensor([True, False, True, False])
    only_negatives: Tensor = (~positives).double()[None]
    value = function(scores, positives)(only_negatives)[0]
    if measure in (detection.aurc, detection.augrc):
        assert value.item() == 0
    else:
        assert value.isnan()


def test_differences_need_the_same_rows() -> None:
    one, other = weighted.mean(torch.ones(3)), weighted.mean(torch.ones(4))
    with pytest.raises(ValueError, match="same rows; got 3 and 4"):
        _ = one - other
