import math

import pytest
import torch

from bayesuq.evaluation.scores import pointwise_brier_score
from bayesuq.evaluation.standard_errors import bootstrap, weighted
from bayesuq.evaluation.standard_errors.closed_form import of_auroc, of_mean
from bayesuq.randomness import generator
from tests.evaluation.examples import labelled, noise

REPLICATES = 1000
FOUR_ERRORS = 4 / math.sqrt(2 * REPLICATES)


def detected(num_points: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    positives = torch.arange(num_points) % 3 == 0
    return noise(0, num_points) + positives, positives


def test_of_a_mean_is_its_closed_form() -> None:
    values = noise(0, 200)
    found = bootstrap.standard_error(weighted.mean(values), num_replicates=REPLICATES)
    assert found.item() == pytest.approx(of_mean(values).item(), rel=FOUR_ERRORS + 0.02)  # 1/N of curvature


def test_of_auroc_is_delongs() -> None:
    scores, positives = detected()
    found = bootstrap.standard_error(weighted.auroc(scores, positives), num_replicates=REPLICATES)
    assert found.item() == pytest.approx(of_auroc(scores, positives).item(), rel=FOUR_ERRORS + 0.02)


def test_of_a_false_positive_rate_is_the_spread_over_repeated_test_sets() -> None:
    values, errors = [], []
    for seed in range(REPLICATES):
        positives = torch.arange(400) % 2 == 0
        scores = noise(seed, 400) + 2 * positives
        values.append(weighted.false_positive_rate_at(scores, positives, 0.8).value)
        if seed < 30:
            errors.append(bootstrap.standard_error(weighted.false_positive_rate_at(scores, positives, 0.8)))
    # The bootstrap of a quantile is right in the limit of many points only: a fifth is allowed.
    assert torch.stack(errors).mean().item() == pytest.approx(torch.stack(values).std().item(), rel=0.2)


def test_units_are_images_not_pixels() -> None:
    values = noise(0, 50)
    images = weighted.mean(values[:, None, None].expand(-1, 8, 8))
    torch.testing.assert_close(bootstrap.standard_error(images), bootstrap.standard_error(weighted.mean(values)))
    scores, positives = detected()
    columns = weighted.auroc(scores[:, None].expand(-1, 4), positives[:, None].expand(-1, 4))
    expected = bootstrap.standard_error(weighted.auroc(scores, positives))
    torch.testing.assert_close(bootstrap.standard_error(columns), expected)


def test_replicates_depend_on_seed_and_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = weighted.aurc(*detected())
    before = torch.get_rng_state()
    whole = bootstrap.replicates(measure, num_replicates=20, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(bootstrap.replicates(measure, num_replicates=10, seed=3), whole[:10])
    assert not torch.equal(bootstrap.replicates(measure, num_replicates=20, seed=4), whole)
    monkeypatch.setattr(bootstrap, "BLOCK_NUMBERS", 1000)  # three replicates at a time
    torch.testing.assert_close(bootstrap.replicates(measure, num_replicates=20, seed=3), whole)


class TestPairedDifference:
    def test_of_means_is_the_closed_form_of_the_differences(self) -> None:
        shared, first, second = noise(0, 300), noise(1, 300), noise(2, 300)
        one, other = 5 * shared + first, 5 * shared + second
        found = bootstrap.paired_difference(weighted.mean(one), weighted.mean(other), num_replicates=REPLICATES)
        assert found.value == pytest.approx((one.mean() - other.mean()).item())
        assert found.standard_error == pytest.approx(of_mean(one - other).item(), rel=FOUR_ERRORS + 0.02)
        assert found.standard_error < 0.3 * of_mean(one).item()

    def test_of_a_measure_with_itself_is_nothing(self) -> None:
        measure = weighted.auroc(*detected())
        assert bootstrap.paired_difference(measure, measure) == bootstrap.Estimate(0.0, 0.0)

    def test_of_two_predictives_sees_what_each_alone_hides(self) -> None:
        # The same predictive, but for a little: its Brier score alone is uncertain, its difference hardly.
        predictive, y = labelled(0)
        sharper, _ = labelled(0, sharpness=1.1)
        one, other = (weighted.mean(pointwise_brier_score(p, y)) for p in (predictive, sharper))
        assert bootstrap.paired_difference(one, other).standard_error < bootstrap.standard_error(one) / 5

    def test_is_the_spread_over_repeated_test_sets(self) -> None:
        values, errors = [], []
        for seed in range(0, 4 * 300, 4):
            positives = torch.arange(120) % 3 == 0
            shared = noise(seed, 120) + positives
            pair = [weighted.auroc(shared + 0.5 * noise(seed + k, 120), positives) for k in (1, 2)]
            values.append((pair[0] - pair[1]).value)
            if seed < 200:
                errors.append(bootstrap.paired_difference(*pair).standard_error)
        spread = torch.stack(values).std().item()
        assert sum(errors) / len(errors) == pytest.approx(spread, rel=4 / math.sqrt(2 * 300) + 0.05)


def test_samples_without_a_positive_are_left_out() -> None:
    # With 3 positives of 30 a sample lacks them with chance exp(-3) = .05.
    positives = torch.arange(30) < 3
    measure = weighted.auroc(noise(0, 30) + positives, positives)
    assert bootstrap.replicates(measure).isnan().any()
    assert bootstrap.standard_error(measure).isfinite()
    nothing = weighted.auroc(noise(0, 30), torch.zeros(30))
    assert bootstrap.standard_error(nothing).isnan()


def test_one_row_of_many_values_tells_nothing_of_other_rows() -> None:
    one_image = weighted.false_positive_rate_at(noise(0, 1, 30), torch.arange(30)[None] % 3 == 0)
    for measure in (one_image, weighted.mean(noise(0, 1))):
        assert measure.value.isfinite()
        assert bootstrap.standard_error(measure).isnan()


def test_impossible_numbers_are_refused() -> None:
    measure = weighted.mean(noise(0, 5))
    with pytest.raises(ValueError, match="`num_replicates`"):
        bootstrap.replicates(measure, num_replicates=1)
    with pytest.raises(ValueError, match="`seed`"):
        bootstrap.replicates(measure, seed=-1)


def test_counts_are_drawn_once_for_all_measures_of_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the next seed and the next number of rows have of their own."""
    drawn: list[tuple[int, ...]] = []

    def noted(*key: int, device: torch.device) -> torch.Generator:
        drawn.append(key)
        return generator(*key, device=device)

    monkeypatch.setattr(bootstrap, "generator", noted)
    bootstrap._counts.cache_clear()
    rows, more = torch.arange(5.0), torch.arange(6.0)
    first = bootstrap.replicates(weighted.mean(rows), num_replicates=30)
    twice = bootstrap.replicates(weighted.mean(2 * rows), num_replicates=30)
    assert len(drawn) == 30
    torch.testing.assert_close(twice, 2 * first, rtol=1e-12, atol=0.0)
    others = (
        bootstrap.replicates(weighted.mean(rows), num_replicates=30, seed=1),
        bootstrap.replicates(weighted.mean(more), num_replicates=30),
    )
    assert len(drawn) == 90
    assert not any(torch.equal(first, other) for other in others)
    assert torch.equal(bootstrap.replicates(weighted.mean(rows), num_replicates=30), first)
