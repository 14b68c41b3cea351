"""Containers of draws whose quality is known, for the tests of diagnostics; no torch."""

import numpy as np

from bayesuq.to_arviz.container import Variable, build


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def chains(values: np.ndarray, *, statistics: dict[str, np.ndarray] | None = None, **sites: np.ndarray):
    """A container of function values `mu` (C, D, N) and sites, each (C, D, ...)."""
    arrays = {"mu": values, **sites}
    posterior = {
        name: Variable(array, ("chain", "draw", *(f"{name}_dim_{k}" for k in range(array.ndim - 2))))
        for name, array in arrays.items()
    }
    stats = {name: Variable(array, ("chain", "draw")) for name, array in (statistics or {}).items()}
    marks = {"independent_draws": 0, "function_values": "posterior/mu"}
    return build({"posterior": posterior, "sample_stats": stats}, attributes=marks)


def independent(values: np.ndarray):
    """A container of independent draws of function values, (S, N)."""
    mu = Variable.of_draws(values, 1, ("point",))
    return build({"posterior": {"mu": mu}}, attributes={"independent_draws": 1, "function_values": "posterior/mu"})


def conjugate(num_draws: int, num_rows: int, *, chains: int = 1, independent: int = 0, shift: float = 0.0):
    """y_n ~ N(theta, 1), theta ~ N(0, 1): exact draws with what `to_arviz` tells of them; and y."""
    y = noise(num_rows, seed=9) + 0.5
    variance = 1 / (num_rows + 1)
    theta = y.sum() * variance + shift + np.sqrt(variance) * noise(num_draws, seed=8)
    terms = -0.5 * (y - theta[:, None]) ** 2 - 0.5 * np.log(2 * np.pi)
    replicates = theta[:, None] + noise(num_draws, num_rows, seed=7)
    groups = {
        "posterior": {"mu": Variable.of_draws(np.repeat(theta[:, None], num_rows, axis=1), chains, ("point",))},
        "posterior_predictive": {"y": Variable.of_draws(replicates, chains, ("point",))},
        "log_likelihood": {"y": Variable.of_draws(terms, chains, ("point",))},
        "observed_data": {"y": Variable(y, ("point",))},
    }
    marks = {"independent_draws": independent, "function_values": "posterior/mu"}
    return build(groups, attributes=marks), y
