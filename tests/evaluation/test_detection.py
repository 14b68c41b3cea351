import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesuq.evaluation.detection import (
    augrc,
    aurc,
    auroc,
    average_precision,
    excess_aurc,
    false_positive_rate_at,
    risk_coverage,
)
from tests.evaluation.examples import labelled, noise

MEASURES = [auroc, average_precision, false_positive_rate_at]
PROPERTY = settings(derandomize=True, deadline=None, max_examples=40)
# Few distinct values, so that ties are the rule; both classes are there.
TIED = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({positive for _, positive in pairs}) == 2
)


def example(seed: int = 0, num_points: int = 300) -> tuple[Tensor, Tensor]:
    positives = torch.arange(num_points) % 3 == 0
    return noise(seed, num_points) + positives, positives


def columns(pairs: list[tuple[int, bool]]) -> tuple[Tensor, Tensor]:
    scores, positives = zip(*pairs, strict=True)
    return torch.tensor(scores), torch.tensor(positives)


class TestEveryMeasure:
    @pytest.mark.parametrize("measure", MEASURES)
    @pytest.mark.parametrize("transform", [lambda s: 30 * s, torch.exp, torch.sigmoid, lambda s: s**3 - 1000])
    def test_depends_on_the_order_of_scores_only(self, measure, transform: Callable[[Tensor], Tensor]) -> None:
        scores, positives = example()
        assert torch.equal(measure(transform(scores), positives), measure(scores, positives))

    @pytest.mark.parametrize("measure", MEASURES)
    def test_does_not_depend_on_the_order_of_points_or_their_shape(self, measure) -> None:
        scores, positives = example()
        order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
        assert torch.equal(measure(scores[order], positives[order]), measure(scores, positives))
        assert torch.equal(measure(scores.reshape(3, 10, 10), positives.reshape(3, 10, 10)), measure(scores, positives))

    @pytest.mark.parametrize("measure", MEASURES)
    def test_is_a_float64_number_and_takes_what_numpy_has(self, measure) -> None:
        scores, positives = example()
        value = measure(scores.numpy(), positives.int().numpy())
        assert value.dtype == torch.float64
        assert value.shape == ()
        assert torch.equal(value, measure(scores, positives))
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.int64):
            assert measure((8 * scores).round().to(dtype), positives) == measure((8 * scores).round(), positives)

    def test_of_a_perfect_and_a_worst_score(self) -> None:
        positives = torch.arange(10) < 4
        best, worst = positives.double(), -torch.arange(10).flip(0).double()
        assert [measure(best, positives).item() for measure in MEASURES] == [1, 1, 0]
        assert auroc(worst, positives).item() == 0
        assert false_positive_rate_at(worst, positives).item() == 1

    def test_of_a_constant_score_is_chance(self) -> None:
        constant, positives = torch.zeros(10), torch.arange(10) < 4
        assert auroc(constant, positives).item() == 0.5
        assert average_precision(constant, positives).item() == pytest.approx(0.4)
        assert false_positive_rate_at(constant, positives).item() == 1

    def test_of_infinite_scores_is_defined(self) -> None:
        scores = [math.inf, 2.0, math.inf, -math.inf]
        assert auroc(scores, [True, True, False, False]).item() == pytest.approx((0.5 + 1 + 0 + 1) / 4)

    @pytest.mark.parametrize("measure", [auroc, false_positive_rate_at])
    @pytest.mark.parametrize(("positive", "missing"), [(True, "negative"), (False, "positive")])
    def test_of_one_class_is_nan_with_a_warning(self, measure, positive: bool, missing: str) -> None:
        with pytest.warns(UserWarning, match=f"`{measure.__name__}` is undefined.*no point is {missing}"):
            assert math.isnan(measure([1.0, 2.0], [positive, positive]))

    def test_of_no_positive_has_no_precision_but_of_no_negative_all(self) -> None:
        with pytest.warns(UserWarning, match="no point is positive"):
            assert math.isnan(average_precision([1.0, 2.0], [False, False]))
        assert average_precision([1.0, 2.0], [True, True]).item() == 1

    @pytest.mark.parametrize("measure", MEASURES)
    def test_of_no_point_at_all_is_nan_with_a_warning(self, measure) -> None:
        with pytest.warns(UserWarning, match="no point is positive"):
            assert math.isnan(measure(torch.zeros(0), torch.zeros(0, dtype=torch.bool)))

    @pytest.mark.parametrize("measure", MEASURES)
    @pytest.mark.parametrize(
        ("scores", "positives", "reason"),
        [
            ([math.nan, 1.0], [True, False], "must not hold NaN; got 1"),
            ([0.5, 1.0], [2, 0], "0 and 1"),
            ([0.5, 1.0], [math.nan, 0.0], "0 and 1"),
            ([[0.5], [1.0]], [True, False], r"shape of `scores`, \(2, 1\)"),
        ],
    )
    def test_refuses_what_has_no_order(self, measure, scores: list, positives: list, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            measure(scores, positives)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("measure", MEASURES)
    def test_is_the_same_on_a_gpu(self, measure) -> None:
        scores, positives = example()
        on_gpu = measure(scores.cuda(), positives)
        assert on_gpu.is_cuda
        torch.testing.assert_close(on_gpu.cpu(), measure(scores, positives))


class TestAUROC:
    @PROPERTY
    @given(TIED)
    def test_is_the_share_of_pairs_in_order(self, pairs: list[tuple[int, bool]]) -> None:
        scores, positives = columns(pairs)
        gaps = scores[positives][:, None] - scores[~positives][None]
        expected = ((gaps > 0).double() + (gaps == 0) / 2).mean()
        torch.testing.assert_close(auroc(scores, positives), expected, rtol=1e-14, atol=0)

    @PROPERTY
    @given(TIED)
    def test_turns_round_with_the_score_and_with_the_classes(self, pairs: list[tuple[int, bool]]) -> None:
        scores, positives = columns(pairs)
        value = auroc(scores, positives)
        torch.testing.assert_close(auroc(-scores, positives), 1 - value, rtol=0, atol=1e-15)
        torch.testing.assert_close(auroc(scores, ~positives), 1 - value, rtol=0, atol=1e-15)

    def test_large_scores_are_not_squashed(self) -> None:
        # PITFALLS section 3: torchmetrics passes scores above 1 through a sigmoid, where these tie: .5 for 1.
        scores, positives = torch.tensor([40.0, 41.0, 42.0, 43.0]), torch.tensor([False, False, True, True])
        assert auroc(scores, positives).item() == 1

    def test_of_entropies_times_thirty_is_that_of_entropies(self) -> None:
        predictive, y = labelled(0)
        wrong = predictive.mean.argmax(dim=1) != y
        assert (predictive.total > 1 / 30).any()  # so that some leave [0, 1]
        assert torch.equal(auroc(30 * predictive.total, wrong), auroc(predictive.total, wrong))

    @pytest.mark.oracle
    def test_agrees_with_torchmetrics_inside_the_unit_interval(self) -> None:
        from torchmetrics.functional.classification import binary_auroc

        scores, positives = torch.sigmoid(example()[0]), example()[1]
        # torchmetrics counts in float32.
        assert auroc(scores, positives).item() == pytest.approx(binary_auroc(scores, positives.int()).item(), abs=1e-6)

    @pytest.mark.slow
    def test_counts_are_exact_beyond_float32(self) -> None:
        # 2^24 + 1 negatives below one positive, and one above: a float32 counter stops at 2^24.
        negatives = 2**24 + 1
        scores = torch.zeros(negatives + 2, dtype=torch.int8)
        scores[0], scores[1] = 1, 2
        positives = torch.zeros(negatives + 2, dtype=torch.bool)
        positives[0] = True
        assert auroc(scores, positives).item() == negatives / (negatives + 1)


class TestAgainstScikitLearn:
    @PROPERTY
    @pytest.mark.oracle
    @given(TIED)
    def test_agrees_with_ties(self, pairs: list[tuple[int, bool]]) -> None:
        from sklearn.metrics import average_precision_score, roc_auc_score

        scores, positives = columns(pairs)
        arrays = positives.numpy(), scores.numpy()
        assert auroc(scores, positives).item() == pytest.approx(roc_auc_score(*arrays), abs=1e-12)
        assert average_precision(scores, positives).item() == pytest.approx(average_precision_score(*arrays), abs=1e-12)

    @PROPERTY
    @pytest.mark.oracle
    @given(TIED, st.sampled_from([0.05, 0.5, 0.8, 0.95, 1.0]))
    def test_false_positive_rate_agrees_with_the_curve(self, pairs: list[tuple[int, bool]], rate: float) -> None:
        from sklearn.metrics import roc_curve

        scores, positives = columns(pairs)
        false_rates, true_rates, _ = roc_curve(positives.numpy(), scores.numpy(), drop_intermediate=False)
        expected = false_rates[np.argmax(true_rates >= rate)]
        assert false_positive_rate_at(scores, positives, rate).item() == pytest.approx(expected, abs=1e-12)


class TestFalsePositiveRate:
    def test_takes_the_first_threshold_that_suffices(self) -> None:
        positives = torch.arange(40) % 2 == 0  # 20 positives at falling scores, each followed by a negative
        scores = -torch.arange(40).double()
        # 19 of 20 positives are 95 %; before the 19th positive stand 18 negatives.
        assert false_positive_rate_at(scores, positives, 0.95).item() == pytest.approx(18 / 20)
        assert false_positive_rate_at(scores, positives, 0.96).item() == pytest.approx(19 / 20)

    @pytest.mark.parametrize("hundredths", range(1, 101))
    def test_a_rate_that_is_met_exactly_is_met(self, hundredths: int) -> None:
        scores = -torch.arange(200).double()
        positives = torch.arange(200) < 100
        scores[100:] = scores[:100] - 0.5  # a negative right after each positive
        found = false_positive_rate_at(scores, positives, hundredths / 100)
        assert found.item() == pytest.approx((hundredths - 1) / 100)

    @pytest.mark.parametrize("rate", [0.0, 1.01, -0.5, math.nan, math.inf])
    def test_rates_outside_their_range_are_refused(self, rate: float) -> None:
        with pytest.raises(ValueError, match="`true_positive_rate`"):
            false_positive_rate_at(*example(), rate)


def areas(order: list[int], losses: list[float]) -> tuple[float, float]:
    """AURC and AUGRC with the points in this order, from their definitions."""
    kept = list(itertools.accumulate(losses[i] for i in order))
    n = len(kept)
    generalised = [0.0, *(total / n for total in kept)]
    return (
        sum(total / k for k, total in enumerate(kept, start=1)) / n,
        sum((low + high) / 2 for low, high in itertools.pairwise(generalised)) / n,
    )


LOSSES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=6)


class TestRiskCoverage:
    @PROPERTY
    @given(LOSSES)
    def test_areas_are_means_over_every_order_that_ties_leave_open(self, pairs: list[tuple[int, int]]) -> None:
        scores, losses = [score for score, _ in pairs], [float(loss) for _, loss in pairs]
        everything = itertools.permutations(range(len(pairs)))
        found = [areas(list(o), losses) for o in everything if sorted(scores) == [scores[i] for i in o]]
        mean, generalised = (sum(values) / len(found) for values in zip(*found, strict=True))
        assert aurc(scores, losses).item() == pytest.approx(mean, abs=1e-12)
        assert augrc(scores, losses).item() == pytest.approx(generalised, abs=1e-12)

    @PROPERTY
    @given(LOSSES)
    def test_curve_and_areas_agree(self, pairs: list[tuple[int, int]]) -> None:
        scores, losses = columns(pairs)
        curve = risk_coverage(scores, losses)
        torch.testing.assert_close(curve.risk.mean(), aurc(scores, losses))
        rises = torch.cat([torch.zeros(1, dtype=torch.float64), curve.generalised_risk])
        torch.testing.assert_close(torch.trapezoid(rises, dx=1 / len(pairs)), augrc(scores, losses))
        assert curve.coverage.tolist() == [k / len(pairs) for k in range(1, len(pairs) + 1)]
        assert curve.attainable.sum() == len(scores.unique())
        assert curve.risk[-1].item() == pytest.approx(losses.double().mean().item())

    @PROPERTY
    @given(TIED)
    def test_generalised_area_is_what_accuracy_and_auroc_make_it(self, pairs: list[tuple[int, bool]]) -> None:
        # Traub et al. (2024): it mixes how often predictions are wrong and how well the score ranks them.
        scores, wrong = columns(pairs)
        accuracy = 1 - wrong.double().mean()
        expected = (1 - auroc(scores, wrong)) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
        torch.testing.assert_close(augrc(scores, wrong), expected, rtol=1e-12, atol=1e-14)

    @PROPERTY
    @given(LOSSES)
    def test_no_order_beats_the_oracle(self, pairs: list[tuple[int, int]]) -> None:
        losses = [float(loss) for _, loss in pairs]
        best = min(areas(list(order), losses)[0] for order in itertools.permutations(range(len(pairs))))
        assert aurc(losses, losses).item() == pytest.approx(best, abs=1e-12)
        assert excess_aurc(losses, losses).item() == 0
        assert excess_aurc([score for score, _ in pairs], losses) >= -1e-12

    def test_geifmans_limit_is_the_oracle_of_many_points(self) -> None:
        wrong = torch.arange(100_000) < 20_000
        scores = noise(0, 100_000) + wrong
        # The oracle's sum is an integral up to the width of a point.
        exact, limit = excess_aurc(scores, wrong), excess_aurc(scores, wrong, variant="geifman")
        assert exact.item() == pytest.approx(limit.item(), abs=2 / 100_000)
        assert excess_aurc([1.0, 2.0], [True, True], variant="geifman").item() == 0  # 0 log 0

    def test_corbieres_variant_is_the_loop_of_confidnet(self) -> None:
        # Its definition written out: thresholds at each distinct confidence but the largest, times 1000.
        wrong = torch.arange(60) % 4 == 0
        confidence = -((noise(0, 60) + wrong) * 4).round().numpy()
        right = ~wrong.numpy()
        thresholds = sorted(set(confidence.tolist()))[:-1]
        coverages = [(confidence > t).mean() for t in thresholds]
        risks = [1 - right[confidence > t].mean() for t in thresholds]
        area = -np.trapezoid(risks, coverages)  # coverage falls as the threshold rises
        accuracy = right.mean()
        excess = area - ((1 - accuracy) + accuracy * np.log(accuracy))
        assert aurc(-confidence, wrong, variant="corbiere").item() == pytest.approx(1000 * area)
        assert excess_aurc(-confidence, wrong, variant="corbiere").item() == pytest.approx(1000 * excess)

    def test_of_no_error_is_zero_and_of_nothing_else_the_loss(self) -> None:
        scores = noise(0, 5)
        for measure in (aurc, augrc):
            assert measure(scores, torch.zeros(5)).item() == 0
        assert aurc(scores, torch.full((5,), 3.0)).item() == pytest.approx(3.0)
        assert augrc(scores, torch.full((5,), 3.0)).item() == pytest.approx(1.5)

    def test_of_many_points_is_exact(self) -> None:
        # Right first, then wrong: 1/n sum_(k > m) (k - m) / k = 1 - m/n - m/n (H_n - H_m), H by its series.
        n, m = 300_000, 200_000
        wrong = torch.arange(n) >= m
        gap = math.log(n / m) + 0.5 * (1 / n - 1 / m) - (1 / n**2 - 1 / m**2) / 12
        expected = 1 - m / n - m / n * gap
        assert aurc(torch.arange(n), wrong).item() == pytest.approx(expected, abs=1e-11)

    @pytest.mark.parametrize("measure", [aurc, augrc, excess_aurc])
    def test_depends_on_the_order_of_scores_only_and_on_no_shape(self, measure) -> None:
        scores, wrong = example()
        value = measure(scores, wrong)
        assert torch.equal(measure(scores.exp(), wrong), value)
        torch.testing.assert_close(measure(scores.reshape(3, 10, 10), wrong.reshape(3, 10, 10)), value)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.int64):
            torch.testing.assert_close(
                measure((8 * scores).round().to(dtype), wrong), measure((8 * scores).round(), wrong)
            )

    @pytest.mark.parametrize(
        ("scores", "errors", "reason"),
        [
            ([math.nan, 1.0], [True, False], "must not hold NaN; got 1"),
            ([0.5, 1.0], [-1.0, 0.0], "at least 0; got -1 to 0"),
            ([0.5, 1.0], [math.nan, 0.0], "finite losses"),
            ([0.5, 1.0], [math.inf, 0.0], "finite losses"),
            ([[0.5], [1.0]], [True, False], r"`errors` must have the shape of `scores`, \(2, 1\)"),
            ([], [], "at least one point"),
        ],
    )
    def test_refuses_what_has_no_risk(self, scores: list, errors: list, reason: str) -> None:
        for measure in (risk_coverage, aurc, augrc, excess_aurc):
            with pytest.raises(ValueError, match=reason):
                measure(scores, errors)

    def test_unknown_variants_are_refused(self) -> None:
        for measure in (aurc, excess_aurc):
            with pytest.raises(ValueError, match="`variant`"):
                measure([0.5], [True], variant="other")
        with pytest.raises(ValueError, match="boolean"):
            excess_aurc([0.5, 1.0], [2.0, 0.0], variant="geifman")


def test_excess_and_curve_of_weighted_points_are_theirs() -> None:
    """Weights that are alike change nothing, those of 0 leave out; an oracle has no excess."""
    scores, losses = noise(0, 60), noise(1, 60).abs()
    known = torch.arange(60) % 3 != 0
    for measure in (excess_aurc, aurc):
        alone = measure(scores[known], losses[known])
        torch.testing.assert_close(measure(scores, torch.where(known, losses, torch.nan), weight=2.0 * known), alone)
    assert abs(float(excess_aurc(losses, losses, weight=scores.exp()))) < 1e-12
    curve, alone = risk_coverage(scores, losses, weight=2.0 * known), risk_coverage(scores[known], losses[known])
    for name in ("coverage", "risk", "attainable"):
        torch.testing.assert_close(getattr(curve, name), getattr(alone, name))
    with pytest.raises(ValueError, match="known to the variant"):
        excess_aurc(scores, losses > 1, variant="geifman", weight=known)
