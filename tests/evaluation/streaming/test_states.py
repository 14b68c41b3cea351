import itertools
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, multiprocessing

from bayesuq.evaluation import calibration, detection, scores, uncertainty
from bayesuq.evaluation.binning import Reliability
from bayesuq.evaluation.decomposition import brier_decomposition
from bayesuq.evaluation.segmentation.pixel_counts import pixel_state
from bayesuq.evaluation.standard_errors import closed_form as standard_errors
from bayesuq.evaluation.standard_errors.sums import Sums
from bayesuq.evaluation.streaming import states
from bayesuq.evaluation.streaming.ranking import Ranking
from bayesuq.evaluation.streaming.states import State
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.evaluation.examples import labelled, measured, noise

PROPERTY = settings(derandomize=True, deadline=None, max_examples=8)
CUTS = st.lists(st.integers(0, 200), max_size=6)
NUM_POINTS = 200


def wrong_of(predictive: CategoricalPredictive, y: Tensor) -> Tensor:
    return ~scores.top_label(predictive, y)[1]


def of_labels() -> list[tuple[State, object]]:
    """Each state, and the one-shot measure that it is to equal."""
    return [
        *((states.of(score), score) for score in (scores.accuracy, scores.negative_log_likelihood, scores.brier_score)),
        (states.of(calibration.expected_calibration_error), calibration.expected_calibration_error),
        (
            states.of(calibration.expected_calibration_error, num_bins=7),
            lambda p, y: calibration.expected_calibration_error(p, y, 7),
        ),
        (states.of(calibration.classwise_calibration_error, num_classes=5), calibration.classwise_calibration_error),
        (
            states.of(calibration.classwise_calibration_error, num_classes=5, threshold=0.1),
            lambda p, y: calibration.classwise_calibration_error(p, y, threshold=0.1),
        ),
        (states.of(brier_decomposition, num_classes=5), lambda p, y: brier_decomposition(p, y).reliability),
        (states.misclassification(), lambda p, y: detection.auroc(p.total, wrong_of(p, y))),
        (
            states.misclassification(uncertainty.maximum_probability),
            lambda p, y: detection.auroc(uncertainty.maximum_probability(p), wrong_of(p, y)),
        ),
    ]


def of_real_targets() -> list[tuple[State, object]]:
    return [
        *((states.of(score), score) for score in (scores.negative_log_likelihood, scores.crps)),
        (states.of(scores.root_mean_squared_error), scores.root_mean_squared_error),
        (states.of(calibration.interval_coverage, level=0.9), lambda p, y: calibration.interval_coverage(p, y, 0.9)),
        (states.of(scores.interval_score, level=0.9), lambda p, y: scores.interval_score(p, y, 0.9)),
    ]


LABELS, REAL = labelled(0, num_points=NUM_POINTS), measured(0, num_points=NUM_POINTS, num_columns=2)


def rows_of(predictive, rows: slice):
    if isinstance(predictive, CategoricalPredictive):
        return CategoricalPredictive.from_logits(predictive.draws[:, rows])
    return GaussianPredictive(
        mean=predictive.component_means[:, rows],
        noise_variance=predictive.noise_variance[:, rows],
        function_variance=predictive.function_variance[:, rows],
    )


def batches(example, cuts: list[int]):
    predictive, y = example
    ends = sorted({0, NUM_POINTS, *cuts})
    for start, end in itertools.pairwise(ends):
        yield rows_of(predictive, slice(start, end)), y[start:end]


@PROPERTY
@given(CUTS)
def test_any_batches_are_one_shot(cuts: list[int]) -> None:
    for example, pairs in ((LABELS, of_labels()), (REAL, of_real_targets())):
        parts = list(batches(example, cuts))
        for state, measure in pairs:
            streamed = state
            for part in parts:
                streamed = streamed.update(*part)
            backwards = state
            for part in reversed(parts):
                backwards = state.update(*part).merge(backwards)
            expected = measure(*example)
            torch.testing.assert_close(streamed.result, expected, rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(backwards.result, expected, rtol=1e-11, atol=1e-12)
            assert streamed.result.dtype == torch.float64
            assert streamed.result.shape == ()


def test_a_batch_of_which_no_target_is_known_changes_nothing() -> None:
    """As in a report; the whole is that of the others."""
    for (predictive, y), pairs in ((LABELS, of_labels()), (REAL, of_real_targets())):
        known = torch.arange(NUM_POINTS) < NUM_POINTS // 2
        for state, measure in pairs:
            streamed = state
            for rows in (slice(0, NUM_POINTS // 2), slice(NUM_POINTS // 2, NUM_POINTS)):
                streamed = streamed.update(rows_of(predictive, rows), y[rows], weight=known[rows])
            alone = measure(rows_of(predictive, slice(0, NUM_POINTS // 2)), y[: NUM_POINTS // 2])
            torch.testing.assert_close(streamed.result, alone, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "state",
    [
        states.of(calibration.classwise_calibration_error, num_classes=5),
        states.of(brier_decomposition, num_classes=5),
        pixel_state(5),
    ],
)
def test_classes_that_are_called_otherwise_are_not_put_together_by_number(state: State) -> None:
    predictive, y = LABELS
    if state.name.startswith("pixels"):
        predictive, y = CategoricalPredictive.from_logits(predictive.draws.unsqueeze(-1)), y.unsqueeze(-1)
    one, other, plain = (
        state.update(p, y) for p in (predictive.named([*"abcde"]), predictive.named([*"abdce"]), predictive)
    )
    for wrong in (
        lambda: one.update(predictive.named([*"abdce"]), y),
        lambda: one.update(predictive, y).merge(other),
        lambda: state.merge(plain).merge(one).merge(other),
    ):
        with pytest.raises(ValueError, match="same classes, in one order; got a, b, c, d, e and a, b, d, c, e"):
            wrong()
    torch.testing.assert_close(one.merge(plain).result, plain.result)
    accuracy = states.of(scores.accuracy)  # which each batch has by its own names
    assert accuracy.update(predictive.named([*"abcde"]), y).update(predictive.named([*"abdce"]), y).result > 0


def test_a_state_is_a_value() -> None:
    state = states.mean_of(scores.pointwise_accuracy)
    state.update(*LABELS)
    assert state.result.isnan()


def test_states_of_no_point_are_undefined_and_add_nothing() -> None:
    for state, measure in of_labels():
        torch.testing.assert_close(state.update(*LABELS).merge(state).result, measure(*LABELS))
    assert states.top_label_reliability().result.isnan()


def test_a_measure_without_a_state_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(ValueError, match=r"crps, .* brier_decomposition; got auroc. Take `mean_of`"):
        states.of(detection.auroc)


def test_states_of_other_measures_do_not_merge() -> None:
    brier = states.mean_of(scores.pointwise_brier_score)
    with pytest.raises(ValueError, match="pointwise_brier_score and pointwise_accuracy"):
        brier.merge(states.mean_of(scores.pointwise_accuracy))
    with pytest.raises(ValueError, match=r"level 0.9 and pointwise_coverage, level 0.5"):
        states.interval_coverage(0.9).merge(states.interval_coverage(0.5))
    with pytest.raises(ValueError, match="15 bins and expected_calibration_error in 10 bins"):
        states.top_label_reliability().merge(states.top_label_reliability(10))


def test_summaries_have_the_other_measures_too() -> None:
    state = states.top_label_reliability().update(*LABELS)
    torch.testing.assert_close(state.summary.maximum_calibration_error, calibration.maximum_calibration_error(*LABELS))
    ranking = states.misclassification().update(*LABELS).summary
    torch.testing.assert_close(ranking.aurc().value, detection.aurc(LABELS[0].total, wrong_of(*LABELS)))


def test_many_batches_of_ranks_take_time_in_proportion() -> None:
    """Each score is copied log n times: 5,000 batches of one make at most 13 blocks, and 2 x 5,000 x 13 copies."""
    ranking, copied = Ranking.empty(), 0
    for score in torch.arange(5000.0).unsqueeze(1):
        merged = ranking.merge(Ranking.of(score, score % 2 == 0))
        new = {id(block[0]) for block in merged.blocks} - {id(block[0]) for block in ranking.blocks}
        copied += sum(len(block[0]) for block in merged.blocks if id(block[0]) in new)
        ranking = merged
        assert len(ranking.blocks) <= 13
    assert copied <= 2 * 5000 * 13
    assert ranking.scores.tolist() == list(range(5000))


def test_beyond_the_limit_ranks_are_bounded() -> None:
    state = states.misclassification(limit=150)
    for part in batches(LABELS, [50, 100]):
        state = state.update(*part)
    exact = detection.auroc(LABELS[0].total, wrong_of(*LABELS))
    bounded = state.summary.auroc()
    assert not state.summary.is_exact
    assert bounded.lower <= exact <= bounded.upper
    assert 0 < bounded.upper - bounded.lower < 0.01
    assert state.result == bounded.value


class TestSums:
    @PROPERTY
    @given(st.integers(2, 30), st.integers(1, 4))
    def test_standard_error_is_that_of_all_rows_at_once(self, num_rows: int, num_columns: int) -> None:
        values = noise(num_rows, num_rows, num_columns)
        sums = Sums.of(values[:1]).merge(Sums.of(values[1:]))
        torch.testing.assert_close(sums.standard_error, standard_errors.of_mean(values), rtol=1e-9, atol=0)
        torch.testing.assert_close(sums.mean, values.mean())

    def test_of_rows_of_many_sizes_weighs_values_and_errs_by_rows(self) -> None:
        # A ratio of sums over rows: the spread over repeated test sets is the truth.
        means, errors = [], []
        for seed in range(400):
            small, large = noise(seed, 30, 2) + noise(seed + 1000, 30, 1), noise(seed + 2000, 30, 6)
            sums = Sums.of(small).merge(Sums.of(large))
            means.append(sums.mean)
            errors.append(sums.standard_error)
            if seed == 0:
                both = torch.cat([small.flatten(), large.flatten()])
                torch.testing.assert_close(sums.mean, both.mean())
        spread = torch.stack(means).std().item()
        assert torch.stack(errors).mean().item() == pytest.approx(spread, rel=4 / (2 * 400) ** 0.5)

    def test_a_large_mean_cancels_nothing(self) -> None:
        """Of values 1e9 + N(0, 1) in batches of any order the error is that of N(0, 1): it used to be 0, or 1e3."""
        spread = noise(0, 3000)
        values = spread + 1e9
        expected = standard_errors.of_mean(spread)
        parts = [Sums.of(part) for part in values.split([1, 999, 2000])]
        for order in itertools.permutations(parts):
            merged = order[0].merge(order[1]).merge(order[2])
            # The values themselves are rounded to 1.2e-7.
            torch.testing.assert_close(merged.standard_error, expected, rtol=1e-6, atol=0)
            torch.testing.assert_close(merged.skewness, Sums.of(spread).skewness, rtol=0, atol=1e-6)
            torch.testing.assert_close(merged.mean, values.mean(), rtol=1e-15, atol=0)

    def test_weights_are_rows_repeated_and_missing_values_are_absent(self) -> None:
        values, times = noise(0, 50, 3), torch.randint(0, 3, (50, 3), generator=torch.Generator().manual_seed(0))
        holed = torch.where(times > 0, values, torch.nan)
        sums = Sums.of(holed, times.double())
        repeated = values.flatten().repeat_interleave(times.flatten())
        torch.testing.assert_close(sums.mean, repeated.mean())
        assert int(sums.count) == int((times > 0).sum())
        rows = Sums.of(values, (times[:, :1] > 0).double().expand_as(values))
        torch.testing.assert_close(rows.standard_error, standard_errors.of_mean(values[times[:, 0] > 0]))

    def test_an_impossible_value_makes_the_mean_infinite_and_the_error_undefined(self) -> None:
        sums = Sums.of(torch.tensor([1.0, math.inf])).merge(Sums.of(torch.tensor([2.0, 3.0])))
        assert sums.mean == math.inf
        assert sums.standard_error.isnan()

    def test_of_one_row_has_no_error(self) -> None:
        assert Sums.of(torch.ones(1, 5)).standard_error.isnan()

    def test_forty_million_points_in_one_bin_come_out_right(self) -> None:
        # PITFALLS section 3: at confidence .9 and accuracy .5, float32 counters said .106, then 0, instead of .4.
        correct = torch.arange(10**6) % 2 == 0
        block = Reliability.from_confidences(torch.tensor([0.9], dtype=torch.float64).expand(10**6), correct)
        values = Sums.of(correct[: 10**5])
        total, sums = block, values
        for _ in range(39):
            total = total.merge(block)
        for _ in range(399):
            sums = sums.merge(values)
        assert total.count.max().item() == 4 * 10**7
        assert total.expected_calibration_error.item() == pytest.approx(0.4, abs=1e-9)
        assert sums.count.item() == 4 * 10**7
        assert sums.mean.item() == 0.5
        assert sums.standard_error.item() == pytest.approx(0.5 / (4e7) ** 0.5, rel=1e-6)


class TestProcesses:
    @pytest.mark.distributed
    @pytest.mark.slow
    def test_two_processes_have_the_result_of_all_points(self, tmp_path: Path) -> None:
        multiprocessing.start_processes(reduce_on, args=(str(tmp_path),), nprocs=2, start_method="fork")
        expected = [measure(*example) for example, pairs in examples() for _, measure in pairs]
        for rank in range(2):
            found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
            torch.testing.assert_close(found[:-1], expected, rtol=1e-11, atol=1e-12)
            exact = detection.auroc(LABELS[0].total, wrong_of(*LABELS))
            lower, upper = found[-1]
            assert lower <= exact <= upper


def examples():
    return [(LABELS, of_labels()), (REAL, of_real_targets())]


def reduce_on(rank: int, folder: str) -> None:
    """One of two processes: the first has 130 points in two batches, the second 70 in one, and once none at all."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = []
    for example, pairs in examples():
        mine = list(batches(example, [60, 130]))[:2] if rank == 0 else list(batches(example, [130]))[1:]
        for state, _ in pairs:
            for part in mine:
                state = state.update(*part)
            found.append(state.all_reduce().result)
    bounded = states.misclassification(limit=150)
    if rank == 0:
        bounded = bounded.update(*LABELS)
    ranking = bounded.all_reduce().summary.auroc()
    torch.save([*found, torch.stack([ranking.lower, ranking.upper])], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
