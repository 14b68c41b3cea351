"""Split conformal prediction: the finite-sample rule, coverage in simulation, ties, too few rows, NaN."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from bayesuq import conformal
from bayesuq.conformal import IntervalMethod, LabelMethod
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive

NUM_TRIALS = 120


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def real_world(seed: int, num_rows: int) -> tuple[GaussianPredictive, Tensor]:
    """Targets whose noise differs between rows, and a predictive that is wrong about mean and scale."""
    draws = noise(seed, num_rows, 3)
    scale = draws[:, :1].exp()
    y = draws[:, :1] + scale * draws[:, 1:2]
    return GaussianPredictive(mean=0.7 * draws[None, :, :1], noise_variance=0.1 * scale.square()[None]), y


def labelled_world(seed: int, num_rows: int) -> tuple[CategoricalPredictive, Tensor]:
    """Labels of four classes, and a predictive that is far too sure."""
    logits = noise(seed, num_rows, 4)
    y = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
    return CategoricalPredictive.from_logits(4 * logits[None]), y


def assert_coverage(covered: list[float], num_calibration: int, alpha: float, num_new: int, *, exact: bool) -> None:
    """Coverage given the rows is Beta(k, n + 1 - k): its mean k / (n + 1), plus the noise of the new rows."""
    k = math.ceil((num_calibration + 1) * (1 - alpha) - 1e-9)
    mean = k / (num_calibration + 1)
    variance = mean * (1 - mean) * (1 / (num_calibration + 2) + 1 / num_new)
    error = 4 * (variance / len(covered)) ** 0.5
    found = sum(covered) / len(covered)
    assert found > mean - error
    if exact:
        assert found < mean + error


@pytest.mark.parametrize("method", get_args(IntervalMethod))
@pytest.mark.parametrize(("num_calibration", "alpha"), [(19, 0.1), (50, 0.2), (33, 0.05)])
def test_intervals_cover_as_the_rule_says(method: IntervalMethod, num_calibration: int, alpha: float) -> None:
    covered = []
    for trial in range(NUM_TRIALS):
        predictive, y = real_world(trial, num_calibration + 40)
        parts = [
            GaussianPredictive(
                mean=predictive.component_means[:, rows], noise_variance=predictive.noise_variance[:, rows]
            )
            for rows in (slice(num_calibration), slice(num_calibration, None))
        ]
        calibrated = conformal.calibrate_intervals(parts[0], y[:num_calibration], alpha=alpha, method=method)
        lower, upper = calibrated.intervals(parts[1])
        new = y[num_calibration:]
        covered.append(float(((lower <= new) & (new <= upper)).double().mean()))
    assert_coverage(covered, num_calibration, alpha, 40, exact=True)


@pytest.mark.parametrize("method", get_args(LabelMethod))
@pytest.mark.parametrize(("num_calibration", "alpha"), [(19, 0.1), (50, 0.2)])
def test_sets_of_labels_cover_as_the_rule_says(method: LabelMethod, num_calibration: int, alpha: float) -> None:
    covered = []
    for trial in range(NUM_TRIALS):
        predictive, y = labelled_world(trial, num_calibration + 40)
        draws = predictive.draws
        parts = [
            CategoricalPredictive.from_logits(draws[:, rows])
            for rows in (slice(num_calibration), slice(num_calibration, None))
        ]
        calibrated = conformal.calibrate_labels(parts[0], y[:num_calibration], alpha=alpha, method=method, seed=trial)
        sets = calibrated.sets(parts[1])
        covered.append(float(sets.gather(1, y[num_calibration:, None]).double().mean()))
    assert_coverage(covered, num_calibration, alpha, 40, exact=True)


def test_the_interpolated_quantile_would_cover_too_little() -> None:
    covered = []
    for trial in range(NUM_TRIALS):
        scores = noise(trial, 59).abs()
        covered.append(float((scores[19:] <= scores[:19].quantile(0.9)).double().mean()))
    assert sum(covered) / NUM_TRIALS < 0.875  # the rule gives 18 / 20 = .9


@pytest.mark.parametrize(
    ("num_rows", "alpha", "k"),
    [(9, 0.1, 9), (19, 0.1, 18), (99, 0.1, 90), (10, 0.5, 6), (9, 0.3, 7), (999, 0.001, 999)],
)
def test_the_threshold_is_the_order_statistic_of_the_rule(num_rows: int, alpha: float, k: int) -> None:
    predictive = GaussianPredictive(mean=torch.zeros(1, num_rows, 1), noise_variance=1.0)
    y = torch.arange(1.0, num_rows + 1).flip(0)
    assert float(conformal.calibrate_intervals(predictive, y, alpha=alpha).threshold) == k


@pytest.mark.parametrize("method", get_args(IntervalMethod))
def test_too_few_rows_give_the_whole_line(method: IntervalMethod) -> None:
    predictive, y = real_world(0, 8)
    lower, upper = conformal.calibrate_intervals(predictive, y, alpha=0.1, method=method).intervals(predictive)
    assert (lower == -math.inf).all()
    assert (upper == math.inf).all()


@pytest.mark.parametrize("method", get_args(LabelMethod))
def test_too_few_rows_give_every_label(method: LabelMethod) -> None:
    predictive, y = labelled_world(0, 8)
    calibrated = conformal.calibrate_labels(predictive, y, alpha=0.1, method=method, seed=0)
    assert calibrated.threshold == math.inf
    assert calibrated.sets(predictive).all()


def test_ties_only_add_to_the_coverage() -> None:
    predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.5, 0.5]] * 10]).double())
    calibrated = conformal.calibrate_labels(predictive, [0, 1] * 5, alpha=0.5, method="lac")
    assert calibrated.sets(predictive).all()


def test_aps_breaks_ties_by_chance_and_covers_exactly() -> None:
    probs = torch.full((1, 4000, 2), 0.5, dtype=torch.float64)
    predictive = CategoricalPredictive.from_probs(probs)
    y = torch.arange(4000) % 2
    calibrated = conformal.calibrate_labels(predictive, y, alpha=0.3, method="aps", seed=1)
    covered = calibrated.sets(predictive).gather(1, y[:, None]).double().mean()
    assert abs(float(covered) - 0.7) < 4 * (2 * 0.21 / 4000) ** 0.5


def test_sets_repeat_by_their_seed_and_leave_the_global_state() -> None:
    predictive, y = labelled_world(3, 60)
    state = torch.get_rng_state()
    one, same, other = (conformal.calibrate_labels(predictive, y, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.threshold == same.threshold != other.threshold
    assert torch.equal(one.sets(predictive), same.sets(predictive))


def test_normalised_intervals_are_as_wide_as_the_predictive_is_unsure() -> None:
    predictive, y = real_world(5, 200)
    calibrated = conformal.calibrate_intervals(predictive, y, method="normalised")
    lower, upper = calibrated.intervals(predictive)
    torch.testing.assert_close((upper - lower) / 2, calibrated.threshold * predictive.total.sqrt())
    lower, upper = conformal.calibrate_intervals(predictive, y, method="absolute").intervals(predictive)
    assert float((upper - lower).std()) == pytest.approx(0, abs=1e-12)


def test_columns_have_thresholds_of_their_own() -> None:
    y = noise(0, 99, 2) * torch.tensor([1.0, 10.0])
    predictive = GaussianPredictive(mean=torch.zeros(1, 99, 2), noise_variance=1.0)
    calibrated = conformal.calibrate_intervals(predictive, y, alpha=0.1)
    torch.testing.assert_close(calibrated.threshold, y.abs().sort(dim=0).values[89])
    with pytest.raises(ValueError, match="2 target columns; got 1"):
        calibrated.intervals(real_world(0, 5)[0])


def test_a_law_without_variance_takes_quantiles() -> None:
    law = MixturePredictive(torch.distributions.StudentT(1.5, torch.zeros(1, 99, 1), 1.0))
    y = noise(1, 99, 1)
    with pytest.raises(ValueError, match="Use method='quantile'"):
        conformal.calibrate_intervals(law, y)
    calibrated = conformal.calibrate_intervals(law, y, method="quantile")
    assert float(calibrated.threshold) < 0  # a normal has lighter tails
    lower, upper = calibrated.intervals(law)
    inside = ((lower <= y) & (y <= upper)).double().mean()
    assert float(inside) == pytest.approx(90 / 99)


def test_intervals_never_turn_round() -> None:
    predictive = GaussianPredictive(mean=torch.zeros(1, 19, 1), noise_variance=100.0)
    calibrated = conformal.calibrate_intervals(predictive, torch.zeros(19), method="quantile")
    narrow = GaussianPredictive(mean=torch.ones(1, 3, 1), noise_variance=0.01)
    lower, upper = calibrated.intervals(narrow)
    assert torch.equal(lower, upper)
    torch.testing.assert_close(lower, torch.ones(3, 1, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_alpha_outside_of_the_unit_interval_is_refused(alpha: float) -> None:
    predictive, y = real_world(0, 20)
    with pytest.raises(ValueError, match="`alpha`"):
        conformal.calibrate_intervals(predictive, y, alpha=alpha)
    labels, classes = labelled_world(0, 20)
    with pytest.raises(ValueError, match="`alpha`"):
        conformal.calibrate_labels(labels, classes, alpha=alpha)


def test_what_has_no_such_score_is_refused() -> None:
    (real, y), (labels, classes) = real_world(0, 20), labelled_world(0, 20)
    with pytest.raises(TypeError, match="must be a CategoricalPredictive"):
        conformal.calibrate_labels(real, classes)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="real targets"):
        conformal.calibrate_intervals(labels, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`method` must be one of 'lac', 'aps'; got 'raps'"):
        conformal.calibrate_labels(labels, classes, method="raps")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`method` must be one of 'absolute'"):
        conformal.calibrate_intervals(real, y, method="cqr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one label a point"):
        conformal.calibrate_labels(
            CategoricalPredictive.from_logits(torch.randn(1, 4, 3, 2, 2)), torch.zeros(4, 2, 2).long()
        )
    with pytest.raises(ValueError, match="finite"):
        conformal.calibrate_intervals(real, y * math.nan)
