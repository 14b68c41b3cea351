"""Convergence: ArviZ's own numbers, and warnings exactly where they are due. Runs under ArviZ 1.x, too."""

import math
import subprocess
import sys

import arviz
import numpy as np
import pytest

from bayesuq.evaluation.diagnostics.convergence import INDEPENDENT, bfmi, convergence, function_values
from bayesuq.evaluation.diagnostics.worst_entries import worst_entries
from bayesuq.to_arviz.container import Variable, build, group
from tests.evaluation.draws_examples import chains, independent, noise


def autoregressive(coefficient: float, num_chains: int = 4, num_draws: int = 2000) -> np.ndarray:
    """Stationary chains x' = c x + sqrt(1 - c^2) noise, (C, D), of variance 1."""
    steps = noise(num_chains, num_draws, seed=3)
    values = np.empty_like(steps)
    values[:, 0] = steps[:, 0]
    for t in range(1, num_draws):
        values[:, t] = coefficient * values[:, t - 1] + math.sqrt(1 - coefficient**2) * steps[:, t]
    return values


def test_the_numbers_are_those_of_arviz():
    values = np.stack([autoregressive(c) for c in (0.0, 0.5, 0.9)], axis=2)
    found = convergence(chains(values))["mu"]
    data = group(chains(values), "posterior")[["mu"]]
    for name, expected in (
        ("r_hat", arviz.rhat(data)),
        ("ess_bulk", arviz.ess(data, method="bulk")),
        ("ess_tail", arviz.ess(data, method="tail")),
        ("mcse_mean", arviz.mcse(data, method="mean")),
    ):
        np.testing.assert_array_equal(getattr(found, name), expected["mu"].values)
    np.testing.assert_allclose(found.mean, values.mean(axis=(0, 1)), rtol=1e-12)


def test_the_effective_sample_size_is_what_theory_gives():
    """An autoregressive chain is worth (1 - c) / (1 + c) of as many independent draws."""
    found = convergence(chains(autoregressive(0.5)[:, :, None]))["mu"]
    assert found.ess_bulk[0] == pytest.approx(8000 / 3, rel=0.1)
    assert found.mcse_mean[0] == pytest.approx(math.sqrt(3 / 8000), rel=0.1)


def test_good_chains_have_no_problem():
    values = noise(4, 1000, 3)
    statistics = {"diverging": np.zeros((4, 1000), bool), "energy": noise(4, 1000), "tree_depth": np.full((4, 1000), 4)}
    found = convergence(chains(values, statistics=statistics, weight=noise(4, 1000, seed=1)))
    assert found.problems == ()
    assert found.remark == ""
    assert found.num_divergences == 0
    assert [each.name for each in found.quantities] == ["mu", "weight"]  # the function first
    assert found["mu"].share_converged == 1.0


def only_problem(data, **options) -> str:
    (problem,) = convergence(data, **options).problems
    return problem


def test_chains_at_two_places_do_not_agree():
    values = noise(4, 1000, 3)
    values[0, :, 1] += 1.0
    r_hat, _ = problems = convergence(chains(values)).problems
    assert len(problems) == 2  # few effective draws, too
    assert "mu: R-hat is above 1.01 in 1 of 3 entries" in r_hat
    assert convergence(chains(values))["mu"].share_converged == pytest.approx(2 / 3)


def test_few_effective_draws_are_told():
    slow = convergence(chains(autoregressive(0.98)[:, :, None]))  # worth about 8,000 / 99
    assert any("below 100 a chain" in problem for problem in slow.problems)
    assert slow["mu"].least_ess == pytest.approx(8000 / 99, rel=0.5)


def test_divergences_slow_energies_and_saturated_trees_are_told():
    values = noise(4, 1000, 1)
    diverging = np.zeros((4, 1000), bool)
    diverging[2, 5] = True
    assert "1 of 4000 draws diverged" in only_problem(chains(values, statistics={"diverging": diverging}))
    energy = noise(4, 1000, seed=2)
    energy[1] = autoregressive(0.95, 1, 1000)[0]  # steps of variance 2 (1 - c): BFMI of about .1
    assert "chain 1" in only_problem(chains(values, statistics={"energy": energy}))
    depth = np.full((4, 1000), 7)
    depth[0, 0] = 8
    assert "1 of 4000 trajectories" in only_problem(chains(values, statistics={"tree_depth": depth}), max_tree_depth=8)
    assert convergence(chains(values, statistics={"tree_depth": depth})).problems == ()


def test_weights_that_are_permuted_are_one_sentence():
    weight = noise(4, 1000, 2, seed=1)
    weight[0] += 5.0
    problem = only_problem(chains(noise(4, 1000, 3), first=weight, second=weight + 1))
    assert problem.startswith("Weights: R-hat is up to ")
    assert "first, second" in problem


def test_independent_draws_are_never_dressed_up():
    values = noise(400, 3) * [1.0, 2.0, 0.0]
    found = convergence(independent(values))
    assert found.remark == INDEPENDENT
    assert found.problems == ()
    mu = found["mu"]
    for undefined in (mu.r_hat, mu.ess_bulk, mu.ess_tail):
        assert np.isnan(undefined).all()
    assert math.isnan(mu.share_converged)
    np.testing.assert_allclose(mu.mcse_mean[:2], values.std(axis=0, ddof=1)[:2] / 20, rtol=1e-12)
    assert INDEPENDENT in str(found)


def test_a_constant_is_not_worth_as_many_draws_as_there_are():
    values = noise(4, 100, 2)
    values[:, :, 0] = 3.0
    mu = convergence(chains(values))["mu"]
    assert mu.num_constant == 1
    assert np.isnan([mu.r_hat[0], mu.ess_bulk[0], mu.ess_tail[0], mu.mcse_mean[0]]).all()
    assert not math.isnan(mu.worst_r_hat)


def test_chains_that_stand_still_apart_do_not_agree():
    values = np.repeat(np.arange(4.0)[:, None, None], 100, axis=1)
    assert convergence(chains(values))["mu"].worst_r_hat == math.inf


def test_draws_that_are_not_finite_are_counted():
    values = noise(4, 1000, 2)
    values[1, 3, 0] = math.nan
    assert "mu: 1 entries have draws that are not finite" in only_problem(chains(values))


@pytest.mark.parametrize(("shape", "words"), [((1, 1000, 2), "one chain"), ((4, 3, 2), "too short")])
def test_what_cannot_be_told_is_said(shape, words):
    found = convergence(chains(noise(*shape)))
    assert any(words in problem for problem in found.problems)
    assert math.isnan(found["mu"].worst_r_hat)


def test_large_variables_are_thinned_evenly():
    found = convergence(chains(noise(4, 50, 10, 7)), most_entries=14)["mu"]
    assert found.size == 70
    assert len(found.r_hat) == 14
    whole = convergence(chains(noise(4, 50, 10, 7)), most_entries=None)["mu"]
    np.testing.assert_array_equal(found.mean, whole.mean[2::5])


def test_bfmi_is_that_of_arviz():
    energy = autoregressive(0.5)
    np.testing.assert_allclose(bfmi(energy), np.asarray(arviz.bfmi(energy)).ravel(), rtol=1e-10)
    assert bfmi(energy)[0] == pytest.approx(2 * 0.5, abs=0.1)  # var of steps 2 (1 - c) over variance 1
    assert np.isnan(bfmi(np.ones((2, 10)))).all()


def test_a_container_of_another_library_is_read():
    theta = Variable.of_draws(noise(4000), 4, ())
    data = build({"posterior": {"theta": theta}}, attributes={})
    assert [each.name for each in convergence(data).quantities] == ["theta"]
    assert function_values(data) is None
    assert list(group(worst_entries(data), "posterior").data_vars) == ["theta"]


def test_what_has_no_draws_is_refused():
    with pytest.raises(ValueError, match="no draws"):
        convergence(build({"observed_data": {"y": Variable(noise(3), ("point",))}}, attributes={}))
    with pytest.raises(TypeError, match="got dict"):
        convergence({"posterior": 3})


def test_the_worst_entries_come_first_with_the_statistics():
    values = noise(4, 200, 6)
    values[0, :, 4] += 3.0
    values[1, :, 2] += 1.0
    statistics = {"diverging": np.zeros((4, 200), bool)}
    shown = worst_entries(chains(values, statistics=statistics), number=2)
    assert list(group(shown, "posterior").data_vars) == ["mu[4]", "mu[2]"]
    np.testing.assert_array_equal(group(shown, "posterior")["mu[4]"].values, values[:, :, 4])
    assert "diverging" in group(shown, "sample_stats")


def test_convergence_needs_no_torch():
    code = "import sys; from bayesuq.evaluation import leave_one_out, worst_entries; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
