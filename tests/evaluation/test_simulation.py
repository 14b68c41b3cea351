"""Simulation-based calibration: uniform for the right posterior, caught for each way to be wrong."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesuq.evaluation.simulation import Ranks, calibrate
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.randomness import generator

NUM_DRAWS, NUM_SIMULATIONS = 49, 200


def simulate(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """A mean from N(0, 1), and one observation of it with noise N(0, 1)."""
    mean, noise = torch.randn(2, generator=generator(seed), dtype=torch.float64)
    return {"mean": mean}, mean + noise


def normal(shift: float = 0.0, factor: float = 1.0) -> Any:
    """A fit that gives N(y / 2, 1 / 2), moved by so many of its deviations and so many times as wide."""

    def fit(y: Tensor, seed: int) -> dict[str, Tensor]:
        draws = torch.randn(NUM_DRAWS, generator=generator(seed), dtype=torch.float64)
        return {"mean": y / 2 + math.sqrt(0.5) * (shift + factor * draws)}

    return fit


def ranks_of(fit: Any, **options: Any) -> Ranks:
    return calibrate(simulate, fit, num_simulations=NUM_SIMULATIONS, num_draws=NUM_DRAWS, **options)


def test_the_exact_posterior_passes() -> None:
    found = ranks_of(normal())
    assert found.names == ("mean",)
    assert found.ranks.shape == (1, NUM_SIMULATIONS)
    assert found.p_value() > 0.05


@pytest.mark.parametrize("wrong", [{"factor": 0.6}, {"factor": 1.8}, {"shift": 0.4}, {"shift": -0.4}])
def test_a_wrong_posterior_is_caught(wrong: dict[str, float]) -> None:
    found = ranks_of(normal(**wrong))
    assert found.p_value() < 0.01
    shares = found.ranks[0].double() / NUM_DRAWS
    if "shift" in wrong:  # draws that are too large leave the truth at low ranks
        assert (float(shares.mean()) < 0.5) == (wrong["shift"] > 0)
    else:  # uniform shares have a variance of 1 / 12; of too narrow a posterior they pile up at the ends
        assert (float(shares.var()) > 1 / 12) == (wrong["factor"] < 1)


def test_p_values_are_uniform_under_uniform_ranks() -> None:
    ranks = torch.randint(NUM_DRAWS + 1, (2000, 100), generator=generator(0))
    p = Ranks(tuple(map(str, range(2000))), ranks, NUM_DRAWS).p_values
    for level in (0.01, 0.05, 0.2, 0.5):  # four standard errors of 2,000 trials and of as many times two simulated ones
        assert float((p <= level).double().mean()) == pytest.approx(level, abs=4 * math.sqrt(1.5 * level / 2000))


def test_a_line_within_the_band_is_one_that_passes() -> None:
    ranks = torch.randint(NUM_DRAWS + 1, (500, 100), generator=generator(1))
    found = Ranks(tuple(map(str, range(500))), ranks, NUM_DRAWS)
    lower, upper = found.band(0.9)
    inside = ((found.distribution >= lower - 1e-12) & (found.distribution <= upper + 1e-12)).all(dim=1)
    assert float((inside == (found.p_values > 0.1)).double().mean()) > 0.99


def test_the_distribution_counts_ranks_up_to_each() -> None:
    found = Ranks(("a",), torch.tensor([[0, 0, 2, 3]]), 3)
    np.testing.assert_allclose(found.distribution, [[0.5, 0.5, 0.75]])
    np.testing.assert_allclose(found.levels, [0.25, 0.5, 0.75])


def test_ties_are_broken_at_random() -> None:
    def constant(_y: Tensor, _seed: int) -> dict[str, Tensor]:
        return {"mean": torch.zeros(NUM_DRAWS)}

    def same(_theta: Any, _data: Any) -> dict[str, float]:
        return {"nothing": 0.0}

    assert ranks_of(constant, quantities=same).p_value() > 0.05


def test_a_function_of_the_data_sees_what_margins_do_not() -> None:
    def prior(_y: Tensor, seed: int) -> dict[str, Tensor]:
        return {"mean": torch.randn(NUM_DRAWS, generator=generator(seed), dtype=torch.float64)}

    def log_likelihood(theta: Any, y: Tensor) -> dict[str, Tensor]:
        return {"log_likelihood": -((y - theta["mean"]) ** 2)}

    assert ranks_of(prior).p_value() > 0.05  # the prior is the posterior's mean over data
    assert ranks_of(prior, quantities=log_likelihood).p_value() < 1e-3
    assert ranks_of(normal(), quantities=log_likelihood).p_value() > 0.05


def test_a_network_simulates_its_prior_and_its_likelihood() -> None:
    net = networks.mlp(2, (), 1)
    noise = priors.LogNormal(loc=-1.0, scale=0.5)
    model = BayesianNetwork(net, priors.Normal(scale=2.0), likelihoods.Normal(scale=noise)).simulate
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    draws = [model(x, seed=seed) for seed in range(1000)]
    weights = torch.stack([theta["1.weight"] for theta, _ in draws])
    # 2,000 entries of N(0, 4): standard errors 2 / sqrt(2,000) of the mean, 2 / sqrt(4,000) of the deviation
    assert float(weights.mean()) == pytest.approx(0, abs=4 * 2 / 2000**0.5)
    assert float(weights.std()) == pytest.approx(2, abs=4 * 2 / 4000**0.5)
    rests = torch.stack([(y[2, 0] - theta["1.bias"][0]) / theta["likelihood.scale"] for theta, y in draws])
    assert float(rests.std()) == pytest.approx(1, abs=4 / 2000**0.5)
    same = model(x, seed=3)
    assert torch.equal(same[1], draws[3][1])


def test_entries_have_their_index() -> None:
    def pair(seed: int) -> tuple[dict[str, Tensor], None]:
        return {"w": torch.randn(2, 1, generator=generator(seed)), "b": torch.zeros(())}, None

    def fit(_data: None, seed: int) -> dict[str, Tensor]:
        return {"w": torch.randn(9, 2, 1, generator=generator(seed)), "b": torch.zeros(9), "other": torch.zeros(9)}

    found = calibrate(pair, fit, num_simulations=20, num_draws=9)
    assert found.names == ("w[0,0]", "w[1,0]", "b")
    assert "20 simulations of 9 draws" in str(found)
    again = calibrate(pair, fit, num_simulations=20, num_draws=9)
    assert torch.equal(found.ranks, again.ranks)


@pytest.mark.parametrize(
    ("fit", "error", "words"),
    [
        (lambda _y, _seed: 3, TypeError, "a posterior, or draws"),
        (lambda _y, _seed: {"other": torch.zeros(NUM_DRAWS)}, ValueError, "lack the sites mean"),
        (lambda _y, _seed: {"mean": torch.zeros(3)}, ValueError, "at least `num_draws`"),
        (lambda _y, _seed: {"mean": torch.full((NUM_DRAWS,), torch.nan)}, ValueError, "mean is NaN"),
    ],
)
def test_what_is_no_draw_of_a_posterior_is_refused(fit: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ranks_of(fit)


def test_quantities_in_another_order_are_not_ranked_by_place() -> None:
    """Two sites swapped from one simulation to the next were ranked as one."""

    def swapped(seed: int) -> tuple[dict[str, Tensor], Tensor]:
        theta, y = simulate(seed)
        pair = {"mean": theta["mean"], "other": theta["mean"]}
        return dict(sorted(pair.items(), reverse=bool(seed % 2))), y

    def fit(y: Tensor, seed: int) -> dict[str, Tensor]:
        return normal()(y, seed) | {"other": torch.zeros(NUM_DRAWS)}

    def of_rows(theta: Any, data: Any) -> dict[str, Tensor]:
        return {"f": theta["mean"].expand(1 + int(data > 0))}

    for given in ((swapped, fit, None), (simulate, normal(), of_rows)):
        with pytest.raises(ValueError, match=r"same quantities in one order; got (mean|other|f) "):
            calibrate(given[0], given[1], num_simulations=8, num_draws=NUM_DRAWS, quantities=given[2])


def test_counts_are_checked() -> None:
    with pytest.raises(ValueError, match="num_simulations"):
        calibrate(simulate, normal(), num_simulations=0)
    with pytest.raises(ValueError, match="level"):
        ranks_of(normal()).band(1.0)
