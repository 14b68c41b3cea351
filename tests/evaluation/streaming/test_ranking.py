import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesuq.evaluation import detection
from bayesuq.evaluation.calibration import adaptive_calibration_error
from bayesuq.evaluation.scores import top_label
from bayesuq.evaluation.streaming.ranking import NUM_BINS, Bounded, Ranking, bin_of, bin_range
from bayesuq.evaluation.uncertainty import maximum_probability
from tests.evaluation.examples import labelled, noise

MEASURES: list[tuple[Callable[[Ranking], Bounded], Callable[..., Tensor]]] = [
    (Ranking.auroc, detection.auroc),
    (Ranking.average_precision, detection.average_precision),
    (Ranking.false_positive_rate_at, detection.false_positive_rate_at),
    (Ranking.aurc, detection.aurc),
    (Ranking.augrc, detection.augrc),
]
PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)
# Values that share bins: within one bin, equal to each other, at its edges, at both ends and around zero.
CLOSE = st.one_of(
    st.integers(0, 3).map(lambda k: 1 + k * 2.0**-12),  # all in one bin
    st.integers(-2, 2).map(float),
    st.integers(0, 40).map(lambda k: 1 + k * 2.0**-11),  # several bins, four values each
    st.sampled_from([0.0, -0.0, 1e-300, -1e-300, 2.0**-41, 2.0**-40, 1e30, -1e30, math.inf, -math.inf]),
)
ROWS = st.lists(st.tuples(CLOSE, st.booleans()), min_size=2, max_size=30).filter(
    lambda rows: len({positive for _, positive in rows}) == 2
)


def columns(rows: list[tuple[float, bool]]) -> tuple[Tensor, Tensor]:
    scores, positives = zip(*rows, strict=True)
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(positives)


def contains(bounded: Bounded, exact: Tensor) -> bool:
    return bool(bounded.lower - 1e-12 <= exact <= bounded.upper + 1e-12)


class TestBins:
    @PROPERTY
    @given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=50))
    def test_rise_with_the_score_and_hold_it(self, values: list[float]) -> None:
        scores = torch.tensor(values, dtype=torch.float64).sort().values
        bins = bin_of(scores)
        assert (bins.diff() >= 0).all()
        for score, index in zip(scores.tolist(), bins.tolist(), strict=True):
            lower, upper = bin_range(index)
            assert lower <= score <= upper
            assert 0 <= index < NUM_BINS

    def test_meet_without_a_gap(self) -> None:
        ranges = [bin_range(index) for index in range(NUM_BINS // 2 - 3000, NUM_BINS // 2 + 3000)]
        assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))
        assert bin_range(0)[0] == -math.inf
        assert bin_range(NUM_BINS - 1) == (2.0**24 * (1 - 2.0**-10), math.inf)

    def test_are_512_to_each_factor_of_two(self) -> None:
        scores = torch.tensor([0.25, 0.5, 1.0, 2.0], dtype=torch.float64)
        assert bin_of(scores).diff().tolist() == [512] * 3
        assert bin_of(-scores).diff().tolist() == [-512] * 3
        lower, upper = bin_range(int(bin_of(scores[2:3])))
        assert (lower, upper) == (1.0, 1 + 1 / 512)

    def test_zero_has_one_sign(self) -> None:
        assert bin_of(torch.tensor([0.0, -0.0], dtype=torch.float64)).tolist() == [NUM_BINS // 2] * 2


class TestMeasures:
    @pytest.mark.parametrize(("read", "measure"), MEASURES)
    @PROPERTY
    @given(rows=ROWS)
    def test_bounds_hold_whatever_the_order_within_bins(self, read, measure, rows: list[tuple[float, bool]]) -> None:
        scores, positives = columns(rows)
        bounded = read(Ranking.of(scores, positives, limit=0))
        assert contains(bounded, measure(scores, positives))
        assert bounded.lower <= bounded.value <= bounded.upper

    @pytest.mark.parametrize(("read", "measure"), MEASURES)
    def test_bounds_hold_for_the_best_and_the_worst_order_and_are_near_them(self, read, measure) -> None:
        # 20 points in one bin: all positives above or all below its negatives, or tied.
        inside = 1 + torch.arange(20, dtype=torch.float64) * 2.0**-14
        found = []
        for positives in (torch.arange(20) < 8, torch.arange(20) >= 12):
            bounded = read(Ranking.of(inside, positives, limit=0))
            found.append(measure(inside, positives))
            assert contains(bounded, found[-1])
            assert contains(bounded, measure(torch.ones(20), positives))
        reached = torch.stack(found).aminmax()
        # Only average precision is bounded by an integral, the others by an order that exists.
        slack = 0.05 if measure is detection.average_precision else 1e-12
        assert reached.min - bounded.lower <= slack
        assert bounded.upper - reached.max <= slack

    @pytest.mark.parametrize(("read", "measure"), MEASURES)
    def test_bounds_of_many_spread_scores_are_narrow(self, read, measure) -> None:
        positives = torch.arange(20_000) % 7 == 0
        scores = (noise(0, 20_000) + positives).exp()
        bounded = read(Ranking.of(scores, positives, limit=0))
        assert contains(bounded, measure(scores, positives))
        assert bounded.upper - bounded.lower < 2e-3

    @pytest.mark.parametrize(("read", "measure"), MEASURES)
    def test_are_exact_up_to_the_limit(self, read, measure) -> None:
        positives = torch.arange(300) % 3 == 0
        scores = noise(0, 300) + positives
        bounded = read(Ranking.of(scores, positives, limit=300))
        assert torch.equal(bounded.value, measure(scores, positives))
        assert bounded.lower == bounded.value == bounded.upper
        assert not Ranking.of(scores, positives, limit=299).is_exact

    def test_of_one_class_are_undefined(self) -> None:
        ranking = Ranking.of([1.0, 2.0], [False, False], limit=0)
        for read in (Ranking.auroc, Ranking.average_precision, Ranking.false_positive_rate_at):
            assert read(ranking).value.isnan()
        assert ranking.aurc().value == 0

    def test_of_float32_scores_are_those_of_their_values(self) -> None:
        positives = torch.arange(300) % 3 == 0
        scores = (noise(0, 300) + positives).float()
        assert torch.equal(Ranking.of(scores, positives).auroc().value, detection.auroc(scores, positives))

    @PROPERTY
    @given(ROWS, st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.99]))
    def test_quantiles_lie_in_their_bin(self, rows: list[tuple[float, bool]], level: float) -> None:
        scores, positives = columns(rows)
        exact = Ranking.of(scores, positives).quantile(level)
        ranked = scores.sort().values
        assert exact.value == ranked[math.ceil(level * len(ranked) - 1e-9) - 1]
        bounded = Ranking.of(scores, positives, limit=0).quantile(level)
        assert bounded.lower <= exact.value <= bounded.upper

    def test_quantiles_outside_their_range_are_refused(self) -> None:
        with pytest.raises(ValueError, match="`level`"):
            Ranking.of([1.0], [True]).quantile(1.0)
        with pytest.raises(ValueError, match="no point"):
            Ranking.empty().quantile(0.5)


class TestAdaptiveCalibrationError:
    @pytest.mark.parametrize("sharpness", [0.3, 1.0, 8.0])
    @pytest.mark.parametrize("num_bins", [1, 7, 15])
    def test_bounds_hold(self, num_bins: int, sharpness: float) -> None:
        predictive, y = labelled(0, num_points=3000, sharpness=sharpness)
        scores, right = -maximum_probability(predictive), top_label(predictive, y)[1]
        exact = adaptive_calibration_error(predictive, y, num_bins)
        assert torch.equal(Ranking.of(scores, right).adaptive_calibration_error(num_bins).value, exact)
        bounded = Ranking.of(scores, right, limit=0).adaptive_calibration_error(num_bins)
        assert contains(bounded, exact)
        # Gaps of either sign, as near calibration or near certainty, leave a doubt where a bin ends within a fine one.
        assert bounded.upper - bounded.lower < (0.02 if sharpness < 1 else 0.06)

    @PROPERTY
    @given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=30), st.integers(1, 6))
    def test_bounds_hold_where_bins_are_split_anywhere(self, rows: list[tuple[int, bool]], num_bins: int) -> None:
        confidence, right = columns([(0.5 + k * 2.0**-12, flag) for k, flag in rows])
        exact = Ranking.of(confidence - 1, right).adaptive_calibration_error(num_bins).value
        assert contains(Ranking.of(confidence - 1, right, limit=0).adaptive_calibration_error(num_bins), exact)


class TestMerging:
    @PROPERTY
    @given(ROWS, st.integers(0, 30), st.integers(0, 40))
    def test_any_split_is_one_pass(self, rows: list[tuple[float, bool]], cut: int, limit: int) -> None:
        scores, positives = columns(rows)
        whole = Ranking.of(scores, positives, limit=limit)
        one, other = (Ranking.of(scores[part], positives[part], limit=limit) for part in (slice(cut), slice(cut, None)))
        for merged in (one.merge(other), other.merge(one)):
            assert merged.is_exact == whole.is_exact == (len(rows) <= limit)
            assert torch.equal(merged.counts, whole.counts)
            assert merged.num_points == len(rows)
            assert torch.equal(merged.auroc().value, whole.auroc().value)

    def test_empty_adds_nothing_and_other_limits_do_not_merge(self) -> None:
        ranking = Ranking.of([1.0, 2.0], [False, True])
        assert Ranking.empty().merge(ranking).auroc().value == 1
        with pytest.raises(ValueError, match="one limit merge"):
            ranking.merge(Ranking.of([1.0], [True], limit=3))

    def test_forty_million_points_in_one_bin_are_counted(self) -> None:
        # PITFALLS section 3: float32 counters stop at 2^24 and lose half of these.
        block = Ranking.of(torch.full((10**5,), 0.5), torch.arange(10**5) % 4 == 0, limit=0)
        total = block
        for _ in range(399):
            total = total.merge(block)
        assert total.num_points == 4 * 10**7
        assert (total.counts.dtype, total.sums.dtype) == (torch.int64, torch.float64)
        assert total.counts.max().item() == 3 * 10**7
        assert total.auroc().value.item() == 0.5
        assert contains(total.aurc(), torch.tensor(0.25))
        assert contains(total.average_precision(), torch.tensor(0.25))


def test_refuses_what_has_no_order() -> None:
    with pytest.raises(ValueError, match="must not hold NaN"):
        Ranking.of([math.nan], [True])
    with pytest.raises(ValueError, match="`limit`"):
        Ranking.of([1.0], [True], limit=-1)
