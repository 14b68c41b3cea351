"""A report of batches is that of all points at once; ranks beyond the limit lie between their bounds."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesuq.evaluation import detection
from bayesuq.evaluation.report import comparison
from bayesuq.evaluation.report.error_ranks import Block, ErrorRanks
from bayesuq.evaluation.report.reporting import Report, evaluate
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.evaluation.examples import labelled, measured, noise
from tests.evaluation.test_observed import REAL, rows_of, spoiled

NUM_POINTS = 120
RANKS = {"misclassification_auroc", "aurc"}


def images() -> tuple[CategoricalPredictive, Tensor]:
    logits = 2 * noise(0, 3, NUM_POINTS, 3, 4)
    predictive = CategoricalPredictive.from_logits(logits)
    return predictive, predictive.sample(1, seed=0)[0]


EXAMPLES: dict[str, tuple[Any, Tensor]] = {
    "labels": labelled(0, num_points=NUM_POINTS),
    "images": images(),
    "real": measured(0, num_points=NUM_POINTS, num_columns=2),
}


def batches(example: tuple[Any, Tensor], weight: Tensor | None, cuts: list[int]) -> Any:
    predictive, y = example
    for start, end in itertools.pairwise([0, *cuts, NUM_POINTS]):
        part = rows_of(predictive, torch.arange(start, end)), y[start:end]
        yield part if weight is None else (*part, weight[start:end])


def check_same(one: Report, other: Report, *, ranks: bool = True) -> None:
    counts = [(each.num_points, each.num_missing, each.num_samples, each.num_impossible) for each in (one, other)]
    assert counts[0] == counts[1]
    assert [measure.name for measure in one.measures] == [measure.name for measure in other.measures]
    for first, second in zip(one.measures, other.measures, strict=True):
        if first.name in RANKS and not ranks:
            continue
        assert second.value == pytest.approx(first.value, rel=1e-12, abs=1e-13), first.name
        # Of nearly equal sums the simulated error may move by one count.
        rel = 0.05 if first.name == "expected_calibration_error" else 1e-9
        assert second.standard_error == pytest.approx(first.standard_error, rel=rel), first.name
        if first.interval is not None:
            assert second.interval == pytest.approx(first.interval, rel=1e-8, abs=1e-12), first.name


@pytest.mark.parametrize("kind", list(EXAMPLES))
@pytest.mark.parametrize("cuts", [[1], [30, 60, 90], [7, 8, 100]], ids=str)
def test_batches_are_one_report(kind: str, cuts: list[int]) -> None:
    example = EXAMPLES[kind]
    check_same(evaluate(*example), evaluate(batches(example, None, cuts)))


@pytest.mark.parametrize("kind", list(EXAMPLES))
def test_weights_and_missing_targets_come_with_their_batches(kind: str) -> None:
    """Single targets are missing, whole rows too, and one batch wholly; the rest is weighted."""
    predictive, y = EXAMPLES[kind]
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(y.shape, generator=generator, dtype=torch.float64)
    weight = torch.where(torch.rand(y.shape, generator=generator) < 0.3, 0.0, weight)
    weight[40:60] = 0.0
    example = predictive, spoiled(y, weight)
    whole = evaluate(*example, weight=weight)
    check_same(whole, evaluate(batches(example, weight, [40, 60, 100])))
    assert whole.num_missing >= 20
    assert whole.num_points + whole.num_missing == NUM_POINTS


@pytest.mark.parametrize("kind", [*EXAMPLES, *REAL])
def test_missing_rows_are_as_if_never_there(kind: str) -> None:
    predictive, y = {**EXAMPLES, **REAL}[kind]
    known = torch.arange(len(y)) % 3 != 1
    found = evaluate(predictive, spoiled(y, known.double()), weight=known)
    alone = evaluate(rows_of(predictive, known.nonzero().squeeze(1)), y[known])
    assert (found.num_points, found.num_missing) == (alone.num_points, int((~known).sum()))
    for one, other in zip(found.measures, alone.measures, strict=True):
        drawn = "crps" in one.name and kind in ("student", "counts")
        assert one.value == pytest.approx(other.value, rel=0.05 if drawn else 1e-12), one.name
        rel = 0.2 if drawn or one.name == "expected_calibration_error" else 1e-9
        assert one.standard_error == pytest.approx(other.standard_error, rel=rel), one.name


def test_the_log_score_of_a_row_with_a_missing_column_is_that_of_the_others() -> None:
    predictive, y = EXAMPLES["real"]
    known = torch.ones(y.shape, dtype=torch.bool)
    known[::2, 1] = False
    found = evaluate(predictive, spoiled(y, known.double()), weight=known)["negative_log_likelihood"]
    assert found.value == pytest.approx(-float(predictive.log_prob(y, observed=known).mean()))
    assert "jointly over 2 columns, the known ones of each row" in found.remark


def test_beyond_the_limit_ranks_lie_between_their_bounds_and_have_their_errors() -> None:
    """AUROC and AURC within what the remark gives or takes, their errors within 2 %, all else exact."""
    example = labelled(3, num_points=NUM_POINTS)
    whole, counted = evaluate(*example), evaluate(batches(example, None, [30, 60, 90]), limit=50)
    check_same(whole, counted, ranks=False)
    for name in RANKS:
        told = counted[name].remark
        assert "from counts in bins" in told
        doubt = float(told.split("give or take ")[1].split(",")[0])
        assert abs(whole[name].value - counted[name].value) <= 1.06 * doubt  # it is rounded to one digit
        assert doubt < 0.01
        assert counted[name].standard_error == pytest.approx(whole[name].standard_error, rel=0.03)
        assert counted[name].interval == pytest.approx(whole[name].interval, abs=0.03)


def test_beyond_the_limit_weights_are_refused_with_a_remedy_that_works() -> None:
    example, weight = EXAMPLES["labels"], torch.rand(NUM_POINTS, generator=torch.Generator().manual_seed(1)) + 0.1
    with pytest.raises(ValueError, match="Give a larger `limit`"):
        evaluate(batches(example, weight, [60]), limit=50)
    check_same(evaluate(*example, weight=weight), evaluate(batches(example, weight, [60]), limit=NUM_POINTS))


def test_rows_of_many_points_have_no_error_once_they_are_counted_one_by_one() -> None:
    example = EXAMPLES["images"]
    report = evaluate(batches(example, None, [60]), limit=100)
    assert report["misclassification_auroc"].standard_error is None
    assert report["aurc"].standard_error is None


def test_memory_of_ranks_is_bounded() -> None:
    ranks = ErrorRanks(limit=1000)
    for seed in range(20):
        ranks.add(Block.of(noise(seed, 500), noise(seed + 100, 500) > 1, None))
    kept = [block.scores.numel() for block in ranks._blocks]
    assert sum(kept) == 0
    scores = torch.cat([noise(seed, 500) for seed in range(20)])
    wrong = torch.cat([noise(seed + 100, 500) > 1 for seed in range(20)])
    bounds = ranks.auroc.bounded
    assert bounds.lower <= detection.auroc(scores, wrong) <= bounds.upper


def test_a_batch_is_let_go_before_the_next_is_taken() -> None:
    alive: list[int] = []

    class Watched(GaussianPredictive):
        def __del__(self) -> None:
            alive.append(-1)

    def one_by_one() -> Any:
        for seed in range(5):
            alive.append(1)
            predictive, y = measured(seed, num_points=10)
            yield (
                Watched(mean=predictive.component_means, noise_variance=predictive.noise_variance),
                y,
            )

    evaluate(one_by_one())
    held = list(itertools.accumulate(alive))
    assert max(held) <= 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: evaluate(EXAMPLES["real"][0]), TypeError, "`y` is needed"),
        (lambda: evaluate([], [0.0]), TypeError, "Batches bring their truth"),
        (lambda: evaluate([]), ValueError, "no batch"),
        (lambda: evaluate([EXAMPLES["labels"], EXAMPLES["real"]]), ValueError, "of one kind"),
        (lambda: evaluate([labelled(0, num_draws=2), labelled(0, num_draws=3)]), ValueError, "2 and 3"),
        (lambda: evaluate(*EXAMPLES["real"], weight=torch.zeros(NUM_POINTS)), ValueError, "No target is known"),
        (lambda: evaluate(*EXAMPLES["real"], weight=-torch.ones(NUM_POINTS)), ValueError, "at least 0"),
        (lambda: evaluate(*EXAMPLES["real"], limit=-1), ValueError, "`limit`"),
        (
            lambda: evaluate(EXAMPLES["real"][0], torch.full((NUM_POINTS, 2), math.nan)),
            ValueError,
            "must be finite",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_comparisons_take_weights_too() -> None:
    predictive, y = EXAMPLES["real"]
    known = torch.arange(NUM_POINTS) % 2 == 0
    wider = GaussianPredictive(mean=predictive.component_means, noise_variance=2 * predictive.noise_variance)
    found = comparison.compare_predictives(predictive, wider, spoiled(y, known.double()), weight=known)
    rows = known.nonzero().squeeze(1)
    alone = comparison.compare_predictives(rows_of(predictive, rows), rows_of(wider, rows), y[known])
    assert found.num_points == alone.num_points == NUM_POINTS // 2
    for one, other in zip(found.differences, alone.differences, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-9, abs=1e-12)
        assert one.standard_error == pytest.approx(other.standard_error, rel=1e-9, abs=1e-12)
