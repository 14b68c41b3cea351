"""Intervals hold the truth in 90 to 97 % of simulated test sets, where two standard errors hold it in far fewer.

Of 1,500 sets at 95 % the share has an error of .0056, so that .90 and .97 are nine and four of its errors away. Of 250
it has one of .014: there the bounds are an error wider.
"""

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from bayesuq.evaluation.calibration import expected_calibration_error
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import evaluate
from bayesuq.evaluation.standard_errors import closed_form as standard_errors
from bayesuq.evaluation.standard_errors import weighted
from bayesuq.evaluation.standard_errors.intervals import (
    Interval,
    _between,
    auroc_interval,
    false_positive_rate_interval,
    share_interval,
    skewed_interval,
)
from bayesuq.evaluation.standard_errors.sums import Sums
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.evaluation.examples import sure

SETS = 1500


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def holds(interval: Interval, truth: float) -> bool:
    return bool(interval.lower <= truth <= interval.upper)


def share_of(intervals: Interval, truth: float) -> float:
    return float(((intervals.lower <= truth) & (truth <= intervals.upper)).double().mean())


def exponential(*size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float64).exponential_(generator=generator(0))


def log_normal(*size: int) -> Tensor:
    return torch.randn(size, generator=generator(1), dtype=torch.float64).exp()


def squared_normal(*size: int) -> Tensor:
    return torch.randn(size, generator=generator(2), dtype=torch.float64).square()


@pytest.mark.parametrize(("draw", "truth"), [(exponential, 1.0), (log_normal, math.exp(0.5)), (squared_normal, 1.0)])
@pytest.mark.parametrize("num_rows", [30, 200])
def test_of_skewed_means_and_of_their_roots(draw, truth: float, num_rows: int) -> None:
    values = draw(SETS, num_rows)
    error, moves = values.std(dim=1) / num_rows**0.5, values - values.mean(dim=1, keepdim=True)
    skewness = moves.pow(3).mean(dim=1) / moves.square().mean(dim=1) ** 1.5
    interval = skewed_interval(values.mean(dim=1), error, skewness, torch.tensor(num_rows))
    assert 0.90 <= share_of(interval, truth) <= 0.97
    assert 0.90 <= share_of(interval.sqrt(), truth**0.5) <= 0.97


def pareto(index: float, *size: int) -> Tensor:
    return (exponential(*size) / index).exp()


def student_squared(degrees: int, *size: int) -> Tensor:
    normal = torch.randn((degrees + 1, *size), generator=generator(9), dtype=torch.float64)
    return degrees * normal[0].square() / normal[1:].square().sum(dim=0)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda *size: torch.randn(size, generator=generator(10), dtype=torch.float64), 0.0),
        (exponential, 1.0),
        (lambda *size: (1.5 * torch.randn(size, generator=generator(1), dtype=torch.float64)).exp(), math.exp(1.125)),
        (lambda *size: pareto(2, *size), 2.0),
        (lambda *size: student_squared(4, *size), 2.0),
    ],
    ids=["normal", "exponential", "wide log-normal", "Pareto 2", "Student 4 squared"],
)
@pytest.mark.parametrize("num_rows", [30, 200])
def test_of_means_with_tails_up_to_those_without_a_variance(draw, truth: float, num_rows: int) -> None:
    """The last two have tail index 2. Without one row more, as far out as the furthest, they are held in .88 to .90."""
    sets = 250
    intervals = [Sums.of(values).interval for values in draw(sets, num_rows)]
    assert 0.88 <= sum(holds(interval, truth) for interval in intervals) / sets <= 0.99


def test_an_interval_of_a_mean_has_room_for_one_row_more_as_far_out_as_the_furthest() -> None:
    """It is that of these rows, or of these and the furthest once more, whichever reaches further on each side."""
    values = pareto(2, 1, 30)[0]
    ends = []
    for rows in (values, torch.cat([values, values.max().unsqueeze(0)])):
        sums = Sums.of(rows)
        ends.append(skewed_interval(sums.mean, sums.standard_error, sums.skewness, sums.rows))
    found = Sums.of(values).interval
    assert ends[1].upper > ends[0].upper + 0.1
    torch.testing.assert_close(found.upper, ends[1].upper, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.lower, torch.minimum(ends[0].lower, ends[1].lower), rtol=1e-12, atol=0)


def test_the_tail_index_tells_where_there_is_no_variance() -> None:
    """Of Pareto's law with index a it is a; its error is near 1 / sqrt 63, and that of 20 of them a fifth of it.

    Values that are bounded, or fall off faster than every power, have a larger one.
    """
    for index in (1.2, 1.6):
        found = torch.stack([Sums.of(values).tail_index for values in pareto(index, 20, 3000)])
        assert float((1 / found).mean()) == pytest.approx(1 / index, abs=0.15)
    for draw in (exponential, squared_normal):
        assert all(float(Sums.of(values).tail_index) > 2 for values in draw(20, 3000))
    halves = [Sums.of(part) for part in pareto(1.2, 3000).split([1000, 2000])]
    whole = Sums.of(pareto(1.2, 3000))
    for merged in (halves[0].merge(halves[1]), halves[1].merge(halves[0])):
        torch.testing.assert_close(merged.tail_index, whole.tail_index)
        torch.testing.assert_close(torch.stack(merged.interval), torch.stack(whole.interval))
    assert Sums.of(torch.ones(100)).tail_index == math.inf
    assert Sums.of(pareto(1.2, 40)).tail_index == math.inf


def test_without_skewness_it_is_students() -> None:
    """t of 3 degrees of freedom at .975 is 3.1824; a nearly vanishing skewness joins smoothly."""
    mean, error, rows = torch.tensor(1.0).double(), torch.tensor(0.5).double(), torch.tensor(4)
    ends = [skewed_interval(mean, error, torch.tensor(skewness).double(), rows) for skewness in (0.0, 1e-5, 3e-6)]
    for interval in ends:
        assert float(interval.lower) == pytest.approx(1 - 0.5 * 3.1824463, rel=1e-4)
        assert float(interval.upper) == pytest.approx(1 + 0.5 * 3.1824463, rel=1e-4)


@pytest.mark.parametrize("num_rows", [30, 200])
def test_of_shares(num_rows: int) -> None:
    """By the exact law of the count: Wilson's own coverage is .93 to .97 or so, and a step at either end of that."""
    covered = dict.fromkeys((0.5, 0.9, 0.98), 0.0)
    for hits in range(num_rows + 1):
        sums = Sums.of((torch.arange(num_rows) < hits).double())
        interval = share_interval(sums.mean, sums.standard_error, torch.tensor(float(num_rows)))
        for share in covered:
            chance = math.comb(num_rows, hits) * share**hits * (1 - share) ** (num_rows - hits)
            covered[share] += chance * holds(interval, share)
    assert all(0.90 <= found <= 0.985 for found in covered.values()), covered


def areas(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """AUROCs of many sets and DeLong's errors, from the share that each positive beats and that beats each negative."""
    beats = (positives.unsqueeze(2) > negatives.unsqueeze(1)).double()
    variance = beats.mean(2).var(1) / positives.shape[1] + beats.mean(1).var(1) / negatives.shape[1]
    return beats.mean(dim=(1, 2)), variance.sqrt()


@pytest.mark.parametrize("truth", [0.5, 0.75, 0.9, 0.97])
@pytest.mark.parametrize("spread", [1 / 3, 1.0, 3.0])
@pytest.mark.parametrize(("num_positive", "num_negative"), [(10, 20), (10, 150), (40, 40)])
def test_of_the_auroc(truth: float, spread: float, num_positive: int, num_negative: int) -> None:
    """Whatever the positives' law: three times as wide as the negatives', one in ten is far below and mostly not seen.

    Of ten that are narrow, or nearly all above, nothing says that the next is too: the lower end is hardly ever missed.
    """
    noise = generator(3)
    distance = math.sqrt(2 * (1 + spread**2)) * float(torch.erfinv(torch.tensor(2 * truth - 1).double()))
    positives = torch.randn(SETS, num_positive, generator=noise, dtype=torch.float64) * spread + distance
    negatives = torch.randn(SETS, num_negative, generator=noise, dtype=torch.float64)
    area, error = areas(positives, negatives)
    interval = auroc_interval(area, error, torch.tensor(num_positive), torch.tensor(num_negative))
    assert share_of(interval, truth) >= 0.90
    if spread >= 1:
        assert share_of(interval, truth) <= 0.975 or (truth < interval.lower).double().mean() < 0.01


def test_of_the_auroc_of_a_score_in_two_levels_it_is_jeffreys() -> None:
    """All of ten positives above very many negatives: down to beta(10.5, 0.5) at .025; and one or two below them."""
    for above in (8, 9, 10):
        share = torch.tensor(above / 10).double()
        error = (share * (1 - share) / 9).sqrt()
        interval = auroc_interval(share, error, torch.tensor(10), torch.tensor(1e9))
        assert float(interval.lower) == pytest.approx(scipy.stats.beta(above + 0.5, 10.5 - above).ppf(0.025), abs=1e-6)
        assert (interval.upper == 1) == (above == 10)


@pytest.mark.parametrize(("num_positive", "distance"), [(10, 1.0), (10, 3.0), (150, 1.0)])
def test_of_the_false_positive_rate(num_positive: int, distance: float) -> None:
    """It reaches to 1 where positives are few, since nothing bounds the rate above, and is then open on one side."""
    noise, num_negative, sets = generator(4), 150, 250
    covered = 0
    truth = 0.5 - 0.5 * math.erf((distance - 1.6448536) / math.sqrt(2))
    for _ in range(sets):
        positives = torch.randn(num_positive, generator=noise, dtype=torch.float64) + distance
        negatives = torch.randn(num_negative, generator=noise, dtype=torch.float64)
        alarms = (negatives >= positives.unsqueeze(1)).double().mean(dim=1).sort().values
        rate = alarms[math.ceil(0.95 * num_positive - 1e-9) - 1]
        interval = false_positive_rate_interval(alarms, rate, num_negative, 0.95)
        covered += holds(interval, truth)
        assert interval.lower <= rate <= interval.upper
        assert (interval.upper == 1) == (0.95**num_positive > 0.025)
    assert 0.90 <= covered / sets <= 0.985


def rate_interval(num_positive: int, num_negative: int) -> Interval:
    """Of samples that are as even as can be: positives uniform in [0, 1], negatives in [-0.5, 0.5]."""
    alarms = 0.5 - torch.arange(num_positive, 0, -1, dtype=torch.float64) / (num_positive + 1)
    alarms = (alarms.clamp(0.0, 1.0) * num_negative).round() / num_negative
    return false_positive_rate_interval(alarms, alarms[math.ceil(0.95 * num_positive) - 1], num_negative, 0.95)


def test_one_positive_more_hardly_moves_the_false_positive_rate_s_interval() -> None:
    """At 71 positives the upper end is open, and 5 % are below; at 72 these must not fall to 2.5 %."""
    lower = {number: float(rate_interval(number, 10_000).lower) for number in (70, 71, 72, 73)}
    assert lower[72] - lower[71] == pytest.approx(lower[71] - lower[70], abs=5e-4)
    assert lower[73] - lower[72] == pytest.approx(lower[71] - lower[70], abs=2e-3)


def test_a_threshold_between_two_positives_is_where_uniform_ones_have_it() -> None:
    """9 of 10 above it, by 20,000 samples; exponential distances are off by .08 at most, the mean place by .43."""
    uniform = torch.rand(20_000, 10, generator=generator(14), dtype=torch.float64).sort(dim=1, descending=True).values
    at = uniform[(uniform > 0.05).sum(dim=1) == 9]
    places = (at[:, 8] - 0.05) / (at[:, 8] - at[:, 9])
    alarms = torch.arange(1.0, 11.0, dtype=torch.float64) / 11  # one step a gap
    shares, chances = _between(alarms, 0.95)
    inside = (shares > alarms[8]) & (shares < alarms[9])
    assert float(chances[inside].sum()) == pytest.approx(len(at) / 20_000, abs=0.015)
    for level, share in zip((0.125, 0.375, 0.625, 0.875), shares[inside], strict=True):
        assert float((places < (share - alarms[8]) * 11).double().mean()) == pytest.approx(level, abs=0.1)


def test_of_the_average_precision() -> None:
    noise, sets = generator(5), 150
    for distance, truth in ((1.5, 0.665), (3.0, 0.953)):  # of 400,000 points, a quarter positive
        covered = 0
        for _ in range(sets):
            positive = torch.rand(60, generator=noise) < 0.25
            scores = torch.randn(60, generator=noise, dtype=torch.float64) + distance * positive
            measure = weighted.average_precision(scores, positive)
            error = standard_errors.by_derivative(measure)
            covered += holds(share_interval(measure.value, error, positive.sum().double()), truth)
        assert covered / sets >= 0.90


class TestInTheReport:
    def test_all_right_is_not_surely_right(self) -> None:
        """30 of 30 right was printed as 1 ± 0; Wilson's interval goes down to .886."""
        report = evaluate(sure(*[[0.9, 0.1]] * 30), [0] * 30)
        assert str(report["accuracy"]) == "accuracy 1.000 [0.886, 1.000] fraction"
        assert "or [95 % interval]" in str(report).splitlines()[0]
        assert report["accuracy"].interval == pytest.approx((30 / (30 + 1.959964**2), 1.0))

    def test_a_standard_error_is_printed_where_it_says_the_same(self) -> None:
        assert str(Measure("a", 1.0, 0.1, "y", interval=(0.8, 1.2))) == "a 1.00 ± 0.10 y"
        assert str(Measure("a", 1.0, 0.1, "y", interval=(0.9, 1.6))) == "a 1.00 [0.90, 1.60] y"

    def test_a_spread_that_few_rows_hold_is_told(self) -> None:
        predictive = GaussianPredictive(mean=torch.zeros(1, 40, 1), noise_variance=1.0)
        y = torch.randn(40, generator=generator(12))
        assert "few rows hold" not in str(evaluate(predictive, y))
        y[0] = 30.0
        told = {m.name for m in evaluate(predictive, y).measures if "few rows hold" in m.remark}
        assert {"root_mean_squared_error", "negative_log_likelihood", "crps"} <= told

    def test_a_tail_without_a_variance_is_told(self) -> None:
        """Errors of Cauchy's law, whose squares have no mean: their tail index is a half."""
        predictive = GaussianPredictive(mean=torch.zeros(1, 400, 1), noise_variance=1.0)
        normal = torch.randn(2, 400, generator=generator(11), dtype=torch.float64)
        heavy = normal[0] / normal[1].abs()
        remarks = {m.name: m.remark for m in evaluate(predictive, heavy).measures}
        assert remarks["root_mean_squared_error"].endswith("below 2: no interval is to be trusted")
        assert not any("tail index" in m.remark for m in evaluate(predictive, normal[0]).measures)

    def test_a_coverage_that_is_off_is_told_column_by_column(self) -> None:
        """One column is honest, one ten times too sure: together .6 of .9, and each by itself."""
        mean = torch.zeros(1, 300, 2)
        predictive = GaussianPredictive(mean=mean, noise_variance=torch.tensor([1.0, 0.01]).expand(1, 300, 2))
        report = evaluate(predictive, torch.randn(300, 2, generator=generator(7)))
        off = report["interval_coverage"].off
        assert report["interval_coverage"].remark.endswith(f"below it by {-off:.1f} standard errors")
        assert (report["interval_coverage[0]"].remark, report["interval_coverage[0]"].off) == ("column 0", None)
        assert report["interval_coverage[1]"].value < 0.3
        assert "below it by" in report["interval_coverage[1]"].remark
        assert report["root_mean_squared_error[0]"].value == pytest.approx(1.0, abs=0.15)

    def test_a_calibrated_model_shows_the_error_that_chance_alone_gives(self) -> None:
        """Its ECE is near the floor that stands beside it, and the floor is the mean over labels of its own."""
        probs = 0.5 + 0.5 * torch.rand(323, generator=generator(8), dtype=torch.float64)
        predictive = CategoricalPredictive.from_probs(torch.stack([probs, 1 - probs], dim=1)[None])
        draws = predictive.sample(300, seed=0)
        reports = [evaluate(predictive, labels)["expected_calibration_error"] for labels in draws[:2]]
        floor = float(reports[0].remark.split()[3])
        assert all(each.remark == f"15 equal bins, {floor:.2g} if calibrated" for each in reports)
        from_draws = torch.stack([expected_calibration_error(predictive, labels) for labels in draws])
        error = float(from_draws.std()) / math.sqrt(300)
        assert float(from_draws.mean()) == pytest.approx(floor, abs=4 * error + 5e-4)  # it is printed to two digits
