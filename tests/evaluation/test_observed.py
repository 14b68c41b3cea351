"""Weights and missing targets, through every measure: a whole-number weight is a row repeated, 0 is one that is absent.

What stands in y at weight 0 is NaN, or a label that is no class.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Poisson, StudentT

from bayesuq.evaluation import calibration, decomposition, detection, scores
from bayesuq.evaluation.observed import as_weight
from bayesuq.evaluation.standard_errors import closed_form as standard_errors
from bayesuq.evaluation.standard_errors import weighted
from bayesuq.evaluation.streaming import states
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive
from tests.evaluation.examples import labelled, measured, noise

Example = tuple[Any, Tensor]
NUM_POINTS = 60


def counts() -> Example:
    rates = 3 * noise(0, 4, NUM_POINTS, 2).exp()
    return MixturePredictive(Poisson(rates)), torch.poisson(rates[0], generator=torch.Generator().manual_seed(1))


def student() -> Example:
    means = noise(2, 4, NUM_POINTS, 2)
    law = StudentT(torch.tensor(4.0).double(), means, torch.ones_like(means))
    return MixturePredictive(law), means[0] + noise(3, NUM_POINTS, 2)


def images() -> Example:
    logits = 2 * noise(4, 3, NUM_POINTS, 3, 4)
    predictive = CategoricalPredictive.from_logits(logits)
    return predictive, predictive.sample(1, seed=0)[0]


def floor(predictive: Any, y: Tensor, weight: Any = None) -> Tensor:  # noqa: ARG001 - of any labels
    return calibration.calibration_error_floor(predictive, weight=weight)


LABELS: dict[str, Example] = {"labels": labelled(0, num_points=NUM_POINTS), "images": images()}
REAL: dict[str, Example] = {
    "gaussian": measured(0, num_points=NUM_POINTS, num_columns=2),
    "student": student(),
    "counts": counts(),
}
OF_LABELS: list[Callable[..., Tensor]] = [
    scores.negative_log_likelihood,
    scores.brier_score,
    scores.accuracy,
    calibration.expected_calibration_error,
    calibration.maximum_calibration_error,
    calibration.debiased_calibration_error,
    calibration.adaptive_calibration_error,
    calibration.classwise_calibration_error,
    floor,
    lambda p, y, **w: decomposition.brier_decomposition(p, y, **w).resolution,
    lambda p, y, **w: weighted.expected_calibration_error(p, y, **w).value,
    lambda p, y, **w: states.mean_of(scores.pointwise_brier_score).update(p, y, **w).result,
    lambda p, y, **w: states.top_label_reliability().update(p, y, **w).result,
    lambda p, y, **w: states.classwise_reliability(p.mean.shape[1]).update(p, y, **w).result,
    lambda p, y, **w: states.brier_bins(p.mean.shape[1]).update(p, y, **w).result,
]
OF_INDEPENDENT_POINTS = [calibration.debiased_calibration_error, floor]
OF_REAL: list[Callable[..., Tensor]] = [
    scores.negative_log_likelihood,
    scores.root_mean_squared_error,
    scores.crps,
    lambda p, y, **w: scores.interval_score(p, y, 0.8, **w),
    lambda p, y, **w: calibration.interval_coverage(p, y, 0.8, **w),
    lambda p, y, **w: states.mean_of(scores.pointwise_negative_log_likelihood).update(p, y, **w).result,
    lambda p, y, **w: states.interval_coverage(0.8).update(p, y, **w).result,
]


def rows_of(predictive: Any, rows: Tensor) -> Any:
    """The predictive at some points, in any order, repeated or not."""
    parts = [_one(predictive, int(row)) for row in rows]
    return type(predictive).concatenate(parts)


def _one(predictive: Any, row: int) -> Any:
    if isinstance(predictive, CategoricalPredictive):
        return CategoricalPredictive.from_logits(predictive.draws[:, row : row + 1])
    if isinstance(predictive, MixturePredictive):
        return predictive.at(slice(row, row + 1))
    return GaussianPredictive(
        mean=predictive.component_means[:, row : row + 1],
        noise_variance=predictive.noise_variance[:, row : row + 1],
        function_variance=predictive.function_variance[:, row : row + 1],
    )


def spoiled(y: Tensor, weight: Tensor) -> Tensor:
    """The truth with what has weight 0 destroyed: NaN, or a label that is no class."""
    known = weight.reshape(weight.shape + (1,) * (y.ndim - weight.ndim)) > 0
    return torch.where(known, y, 99 if not y.is_floating_point() else math.nan)


def cases() -> list[Any]:
    return [
        pytest.param(measure, example, id=f"{kind}-{place}")
        for table, measures in ((LABELS, OF_LABELS), (REAL, OF_REAL))
        for kind, example in table.items()
        for place, measure in enumerate(measures)
    ]


@pytest.mark.parametrize(("measure", "example"), cases())
def test_weights_of_rows_are_rows_repeated_whatever_their_scale(
    measure: Callable[..., Tensor], example: Example
) -> None:
    predictive, y = example
    times = torch.randint(0, 3, (NUM_POINTS,), generator=torch.Generator().manual_seed(0))
    chosen = torch.arange(NUM_POINTS).repeat_interleave(times)
    found = measure(predictive, spoiled(y, times), weight=times)
    torch.testing.assert_close(
        measure(predictive, spoiled(y, times), weight=0.1 * times.double()), found, rtol=1e-9, atol=1e-12
    )
    repeated = measure(rows_of(predictive, chosen), y[chosen])
    if measure in OF_INDEPENDENT_POINTS:  # one row twice is no second row: it is worth less than two
        assert abs(float(found - repeated)) > 1e-3
        return
    if measure is scores.crps and isinstance(predictive, MixturePredictive):
        return  # from draws, others for other rows
    torch.testing.assert_close(found, repeated, rtol=1e-9, atol=1e-12)


def test_the_debiased_error_of_weighted_points_has_no_bias() -> None:
    """Its mean over all labels of three points, of which one weighs twice, is the squared gap; that of four is not."""
    right, stated = 0.625, 0.75
    labels = torch.cartesian_prod(*[torch.tensor([0, 1])] * 3)
    chances = torch.where(labels == 0, right, 1 - right).prod(dim=1)
    weight, chosen = torch.tensor([2.0, 1.0, 1.0]), [0, 0, 1, 2]
    three, four = (CategoricalPredictive.from_probs([[[stated, 1 - stated]] * number]) for number in (3, 4))
    of_weights = [calibration.reliability(three, y, weight=weight).debiased_squared_error for y in labels]
    of_repeats = [calibration.reliability(four, y[chosen]).debiased_squared_error for y in labels]
    unbiased, biased = (float(chances.double() @ torch.stack(found)) for found in (of_weights, of_repeats))
    assert unbiased == pytest.approx((right - stated) ** 2, rel=1e-9)
    assert biased > 1.5 * (right - stated) ** 2


@pytest.mark.parametrize(("measure", "example"), cases())
def test_rows_that_are_missing_are_as_if_never_there(measure: Callable[..., Tensor], example: Example) -> None:
    predictive, y = example
    known = torch.arange(NUM_POINTS) % 3 != 0
    kept = known.nonzero().squeeze(1)
    found = measure(predictive, spoiled(y, known.double()), weight=known)
    alone = measure(rows_of(predictive, kept), y[kept])
    drawn = measure is scores.crps and isinstance(predictive, MixturePredictive)
    torch.testing.assert_close(found, alone, rtol=0.05 if drawn else 1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", list(REAL))
def test_single_missing_targets_are_left_out_column_by_column(kind: str) -> None:
    """A mean over targets is that of what is known; a row's density is that of its known columns."""
    predictive, y = REAL[kind]
    known = torch.rand(y.shape, generator=torch.Generator().manual_seed(5)) < 0.6
    holed = spoiled(y, known.double())
    for pointwise, measure in (
        (scores.pointwise_squared_error, lambda *a, **w: scores.root_mean_squared_error(*a, **w).square()),
        (scores.pointwise_crps, scores.crps),
        (
            lambda p, t: calibration.pointwise_coverage(p, t, 0.9),
            lambda p, t, **w: calibration.interval_coverage(p, t, 0.9, **w),
        ),
    ):
        torch.testing.assert_close(measure(predictive, holed, weight=known), pointwise(predictive, y)[known].mean())
    some = known.any(dim=1)
    expected = -predictive.log_prob(y, observed=known)[some].mean()
    torch.testing.assert_close(scores.negative_log_likelihood(predictive, holed, weight=known), expected)
    u = calibration.probability_integral_transform(predictive, holed, seed=0, weight=known)
    assert torch.equal(u.isnan(), ~known)
    whole = calibration.probability_integral_transform(predictive, y, seed=0)
    torch.testing.assert_close(u[known], whole[known])


def test_pixels_that_are_missing_are_left_out() -> None:
    predictive, y = LABELS["images"]
    known = torch.rand(y.shape, generator=torch.Generator().manual_seed(6)) < 0.7
    found = scores.brier_score(predictive, spoiled(y, known.double()), weight=known)
    torch.testing.assert_close(found, scores.pointwise_brier_score(predictive, y)[known].mean())


RANKS = [
    detection.auroc,
    detection.average_precision,
    detection.false_positive_rate_at,
    detection.augrc,
    standard_errors.of_auroc,
    standard_errors.of_average_precision,
    standard_errors.of_aurc,
    detection.aurc,
]


@pytest.mark.parametrize("measure", RANKS)
def test_ranks_without_the_missing_points_are_those_of_the_others(measure: Callable[..., Tensor]) -> None:
    values, positive = noise(7, 80).round(decimals=1), torch.arange(80) % 4 == 0
    known = torch.arange(80) % 3 != 1
    found = measure(values, positive, weight=known)
    torch.testing.assert_close(found, measure(values[known], positive[known]))
    torch.testing.assert_close(measure(values, positive, weight=0.3 * known), found)


@pytest.mark.parametrize("measure", RANKS[:4])
def test_ranks_with_whole_weights_are_those_of_points_repeated(measure: Callable[..., Tensor]) -> None:
    values, positive = noise(8, 80).round(decimals=1), torch.arange(80) % 4 == 0
    times = torch.randint(0, 4, (80,), generator=torch.Generator().manual_seed(1))
    repeated = [each.repeat_interleave(times) for each in (values, positive)]
    torch.testing.assert_close(measure(values, positive, weight=times), measure(*repeated))


def test_ranks_of_one_class_by_weight_are_undefined_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="no point is positive"):
        assert detection.auroc([1.0, 2.0], [True, False], weight=[0.0, 1.0]).isnan()


def test_the_error_of_a_weighted_mean_is_its_spread_over_test_sets() -> None:
    """1,000 sets of 50 rows whose weight goes with the value; the mean error is within 4 of its own errors."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(1000, 50, generator=generator, dtype=torch.float64) + 0.1
    values = weight + torch.randn(1000, 50, generator=generator, dtype=torch.float64)
    means = torch.stack([weighted.mean(v, w).value for v, w in zip(values, weight, strict=True)])
    errors = torch.stack([standard_errors.of_mean(v, w) for v, w in zip(values[:200], weight[:200], strict=True)])
    assert float(errors.mean() / means.std()) == pytest.approx(1.0, abs=4 / math.sqrt(2000) + 0.02)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(4), r"must have shape \(3,\), one of each row, or \(3, 2\)"),
        (torch.tensor([1.0, -1.0, 1.0]), "at least 0; got -1"),
        (torch.tensor([1.0, math.nan, 1.0]), "must be finite"),
        (torch.zeros(3, 2), "all of it is 0"),
    ],
)
def test_weights_that_are_none_are_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_weight(weight, torch.Size([3, 2]))


def test_a_measure_of_whole_rows_refuses_rows_that_are_known_in_part() -> None:
    predictive, y = REAL["gaussian"]
    weight = torch.ones(y.shape)
    weight[0, 1] = 0
    state = states.mean_of(lambda p, t: (t - p.mean).square().sum(dim=1))
    with pytest.raises(ValueError, match="known or missing as a whole"):
        state.update(predictive, y, weight=weight)
