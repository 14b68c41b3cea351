"""New rows that crowd where no fitted row is are told of, and rows of the same kind never are."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import bayesuq as bq
from bayesuq.data import Dataset, Standardizer
from bayesuq.inference.automatic.gaps import MOST_GAPS, Crowd, _log_probability, crowds, widest_gaps
from bayesuq.inference.automatic.posterior import AutomaticPosterior

LOW, HIGH = 2.0, 4.0  # of what the fitted rows leave out


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def told(fitted: torch.Tensor, new: torch.Tensor) -> list[Crowd]:
    return crowds(widest_gaps(fitted), len(fitted), new)


def test_as_many_rows_fall_into_a_gap_as_the_law_says() -> None:
    number, new, least, times = 30, 20, 3, 20_000
    values = torch.rand(times, number, generator=generator()).sort(dim=1).values
    drawn = torch.rand(times, new, generator=generator(1))
    inside = ((drawn > values[:, 10:11]) & (drawn < values[:, 11:12])).sum(dim=1)
    expected = math.exp(_log_probability(least, new, number)) / (number + 1)
    deviation = math.sqrt(expected * (1 - expected) / times)
    assert float((inside >= least).double().mean()) == pytest.approx(expected, abs=4 * deviation)


def test_rows_of_the_same_kind_are_not_told_of() -> None:
    for seed in range(50):
        rows = torch.randn(150, 5, generator=generator(seed)).exp()  # with a long tail
        rows[:, 4] = rows[:, 4].round()
        assert told(rows[:100], rows[100:]) == []


def test_a_third_that_was_left_out_is_found_in_its_column() -> None:
    rows = torch.randn(300, 3, generator=generator())
    order = rows[:, 1].argsort()
    inside, outside = order[100:200], torch.cat([order[:100], order[200:]])
    (crowd,) = told(rows[outside], rows[inside])
    assert crowd.column == 1
    assert (crowd.low, crowd.high) == (float(rows[order[99], 1]), float(rows[order[200], 1]))
    assert crowd.number > 40  # those at its edges are near to fitted rows


@pytest.mark.parametrize("sign", [1, -1])
def test_rows_beyond_an_end_are_found(sign: int) -> None:
    fitted = torch.randn(100, 2, generator=generator())
    new = fitted[:10] + torch.tensor([0.0, sign * 10.0])
    (crowd,) = told(fitted, new)
    assert (crowd.column, crowd.number) == (1, 10)
    assert math.isinf(crowd.high if sign > 0 else crowd.low)
    assert told(fitted, new[:1]) == []  # one row may be anywhere


def test_values_that_were_fitted_and_what_is_near_to_one_are_no_crowd() -> None:
    fitted = torch.tensor([0.0, 1.0]).repeat(50)[:, None]
    assert told(fitted, torch.ones(100, 1)) == []
    assert told(fitted, torch.ones(100, 1) - 0.1) == []
    assert told(fitted, torch.full((100, 1), 0.5)) == [Crowd(0, 0.0, 1.0, 100)]


def test_of_a_long_column_the_widest_gaps_are_kept() -> None:
    rows = torch.arange(1000.0)[:, None]
    rows[500:] += 50.0
    gaps = widest_gaps(rows)
    assert gaps.shape == (1, MOST_GAPS + 2, 2)
    assert [499.0, 550.0] in gaps[0].tolist()


def fitted() -> tuple[AutomaticPosterior, pd.DataFrame]:
    """A fit to rows whose second column, which is read by its logarithm, leaves an interval out; and rows in it."""
    x = torch.rand(60, 2, generator=generator(), dtype=torch.float64)
    x[:, 1] = (4 * torch.randn(60, generator=generator(1), dtype=torch.float64)).exp()
    x = x[(x[:, 1] < LOW) | (x[:, 1] > HIGH * 10)]
    frame = pd.DataFrame(x.numpy(), columns=["width", "age"])
    inside = pd.DataFrame({"age": [10.0] * 12, "width": [0.5] * 12})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        posterior = bq.regress(frame, x[:, 0], budget=1e-9, seed=0)
        posterior.predict(frame, seed=0)
    return posterior, inside


def test_predictions_where_nothing_was_fitted_are_told_of_in_the_columns_unit(tmp_path: Path) -> None:
    posterior, inside = fitted()
    ages = sorted(float(posterior.posterior.standardizer.feature(1, float(end))) for end in posterior.gaps[1].flatten())
    low, high = (choose(age for age in ages if is_beyond(age)) for choose, is_beyond in BOTH)
    expected = rf"none of the {posterior.num_rows} fitted rows does: 12 of 12 between {low:.4g} and {high:.4g} in 'age'"
    with pytest.warns(UserWarning, match=expected.replace(".", r"\.")):
        plain = posterior.predict(inside, seed=0)
    posterior.save(tmp_path / "table")
    with pytest.warns(UserWarning, match="12 of 12 between"):
        bq.load(tmp_path / "table").predict(inside, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        replace(posterior, gaps=None).predict(inside, seed=0)  # as of a file of before
        loader = DataLoader(torch.tensor([[0.5, 10.0]] * 12), batch_size=12)
        torch.testing.assert_close(posterior.predict(loader, seed=0).mean, plain.mean)


BOTH = ((max, lambda age: age < 10), (min, lambda age: age > 10))


def test_standard_values_have_their_way_back() -> None:
    x = torch.randn(50, 2, generator=generator())
    x[:, 1] = (3 * x[:, 1]).exp()
    units = Standardizer.fit(Dataset(x, x[:, 0]), logarithms=True)
    assert units.x_least is not None
    for value in (float(x[:, 1].min()) / 3, 1.0, 100.0):
        standard = units.inputs([[value, value]])[0]
        assert [units.feature(column, float(standard[column])) for column in (0, 1)] == pytest.approx([value, value])
