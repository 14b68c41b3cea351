"""PSIS-LOO against a conjugate model, where leaving a row out is known in closed form; under ArviZ 1.x, too."""

import arviz
import numpy as np
import pytest

from bayesuq.evaluation.diagnostics.leave_one_out import APPROXIMATE, compare, loo
from bayesuq.to_arviz.container import Variable, build
from tests.evaluation.draws_examples import conjugate, noise


def exact(y: np.ndarray) -> np.ndarray:
    """log p(y_n | all others) of y_n ~ N(theta, 1), theta ~ N(0, 1): N(sum of others / N, 1 + 1 / N)."""
    mean, variance = (y.sum() - y) / len(y), 1 + 1 / len(y)
    return -0.5 * (y - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)


def test_loo_is_exact_for_a_conjugate_model():
    data, y = conjugate(4000, 30)
    found = loo(data)
    # A row's estimate has a relative error of some sd(p_n) / sqrt(S): p_n varies by about sqrt(1 / 31).
    np.testing.assert_allclose(found.pointwise, exact(y), atol=5 * np.sqrt(1 / 31 / 4000))
    assert found.elpd == pytest.approx(exact(y).sum(), abs=0.1)
    assert found.standard_error == pytest.approx(np.sqrt(30) * exact(y).std(), rel=0.05)
    assert found.num_parameters == pytest.approx(1.0, abs=0.3)
    assert found.num_draws == 4000
    assert found.problems == ()


def test_the_names_are_ours_and_the_numbers_arvizs():
    data, _ = conjugate(400, 30, independent=1)
    found, own = loo(data), arviz.loo(data, pointwise=True, reff=1.0)
    for mine, theirs in (
        ("elpd", ("elpd_loo", "elpd")),
        ("num_parameters", ("p_loo", "p")),
        ("standard_error", ("se",)),
    ):
        (value,) = [float(getattr(own, name)) for name in theirs if hasattr(own, name)]
        assert getattr(found, mine) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(found.pareto_k, own.pareto_k.values, rtol=1e-12)


def test_rows_that_cannot_be_left_out_are_counted():
    terms = -np.abs(noise(200, 10)) * 1e-3
    terms[:, 3] = -10 * noise(200, seed=1) ** 2
    y = Variable.of_draws(terms, 1, ("point",))
    found = loo(build({"log_likelihood": {"y": y}}, attributes={"independent_draws": 1}))
    assert found.num_unreliable == 1
    assert found.pareto_k[3] > found.good_k
    assert "for 1 of 10 rows" in found.problems[0]


def test_rows_whose_draws_are_few_values_have_no_tail_and_are_counted():
    """As of two networks that were drawn twenty times each: 1 / mean(1 / p), and a k of which nothing is known."""
    terms = -np.abs(noise(40, 10))
    terms[:, 3] = np.repeat([-1.0, -2.0], 20)
    y = Variable.of_draws(terms, 1, ("point",))
    found = loo(build({"log_likelihood": {"y": y}}, attributes={"independent_draws": 1}))
    assert found.pareto_k[3] == np.inf
    assert found.pointwise[3] == pytest.approx(-np.log((np.e + np.e**2) / 2), rel=1e-8)


def test_rows_that_all_draws_are_sure_of_are_left_out_exactly():
    """Of a classifier that is sure, log p is 0 in every draw: all ratios are 1, and no tail is missing."""
    terms = -np.abs(noise(200, 10)) * 1e-3
    terms[:, :4] = 0.0
    y = Variable.of_draws(terms, 4, ("point",))
    found = loo(build({"log_likelihood": {"y": y}}, attributes={}))
    assert found.num_unreliable == 0
    np.testing.assert_allclose(found.pointwise[:4], 0.0, atol=1e-8)
    assert found.problems == ()


def test_draws_of_an_approximation_are_marked():
    assert loo(conjugate(100, 10, independent=1)[0]).remark == APPROXIMATE
    assert loo(conjugate(100, 10)[0]).remark == ""


def test_chains_of_equal_draws_count_once():
    """Four copies of a chain of 50 different draws, each repeated ten times, are worth less than 2,000 draws."""
    data, _ = conjugate(50, 10)
    once = data["log_likelihood"]["y"].values[0]
    y = Variable.of_draws(np.tile(np.repeat(once, 10, axis=0), (4, 1)), 4, ("point",))
    repeated = loo(build({"log_likelihood": {"y": y}}, attributes={"independent_draws": 0}))
    fresh = loo(conjugate(2000, 10, chains=4)[0])
    assert np.median(repeated.pareto_k) != pytest.approx(np.median(fresh.pareto_k))  # another tail is fitted
    assert abs(repeated.elpd - fresh.elpd) < 1.0


def test_an_image_is_one_row():
    terms = noise(100, 7, 2, 3) - 1
    pixels = Variable.of_draws(terms, 1, ("point", "y_dim_1", "y_dim_2"))
    found = loo(build({"log_likelihood": {"y": pixels}}, attributes={}))
    summed = Variable.of_draws(terms.sum(axis=(2, 3)), 1, ("point",))
    assert len(found.pointwise) == 7
    assert found.elpd == pytest.approx(loo(build({"log_likelihood": {"y": summed}}, attributes={})).elpd, rel=1e-12)


def test_the_better_method_is_first():
    good, y = conjugate(1000, 40)
    shifted, _ = conjugate(1000, 40, shift=1.0)
    ranking = compare({"shifted": shifted, "good": good})
    assert [each.name for each in ranking.methods] == ["good", "shifted"]
    gap = loo(good).pointwise - loo(shifted).pointwise
    assert ranking["shifted"].difference == pytest.approx(gap.sum(), rel=1e-12)
    assert ranking["shifted"].difference_error == pytest.approx(np.sqrt(len(y)) * gap.std(), rel=1e-12)
    assert ranking["good"].difference == ranking["good"].difference_error == 0.0
    assert sum(each.weight for each in ranking.methods) == pytest.approx(1.0)
    assert ranking["good"].weight > 0.9  # the optimisers of 0.x and 1.x stop at .99 and .93
    assert "shifted" in str(ranking)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (build({"posterior": {"mu": Variable.of_draws(noise(100), 1, ())}}, attributes={}), "no log likelihood of `y`"),
        (conjugate(24, 5)[0], "at least 25 draws; there are 24"),
    ],
)
def test_what_cannot_be_left_out_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        loo(data)


def test_a_row_without_any_probability_is_refused():
    terms = noise(100, 5)
    terms[3, 2] = -np.inf
    y = Variable.of_draws(terms, 1, ("point",))
    with pytest.raises(ValueError, match="for 1 of 5 rows"):
        loo(build({"log_likelihood": {"y": y}}, attributes={}))


def test_only_methods_of_the_same_rows_compare():
    data, _ = conjugate(100, 10)
    with pytest.raises(ValueError, match="at least two methods"):
        compare({"one": data})
    with pytest.raises(ValueError, match="same rows compare; one and two"):
        compare({"one": data, "two": conjugate(100, 11)[0]})
