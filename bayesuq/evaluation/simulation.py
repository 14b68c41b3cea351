"""Simulation-based calibration: does a way of inferring the posterior give the right one, on average over the prior?

    theta ~ p(theta),   y ~ p(y | theta),   theta_1, ..., theta_L ~ q(theta | y)

If q is the posterior, theta and its L draws are exchangeable, so that the rank of any function of theta (and y) among
its values at the draws is uniform on {0, ..., L}. Ranks that pile up at both ends say that q is too narrow, in the
middle too wide, at one end shifted.

References:
    Talts, Betancourt, Simpson, Vehtari and Gelman, "Validating Bayesian inference algorithms with simulation-based
    calibration", arXiv 1804.06788.
    Modrak et al., "Simulation-based calibration checking for Bayesian computation: the choice of test quantities
    shapes sensitivity", Bayesian Analysis 2023: functions of the data too, such as the log-likelihood.
    Sailynoja, Burkner and Vehtari, "Graphical test for discrete uniformity and its applications in goodness-of-fit
    evaluation and multiple sample comparison", Statistics and Computing 2022: bands by simulation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count, check_fraction, to_tensor
from bayesuq.options import shortened
from bayesuq.posterior import Posterior
from bayesuq.randomness import derive_seed, generator

__all__ = ["calibrate"]
__dir__ = __all__.copy

Theta = Mapping[str, ArrayLike]
Quantities = Callable[[Mapping[str, Tensor], Any], Mapping[str, ArrayLike]]
TRUTH, FIT, DRAWS, TIES = range(4)  # what a simulation's seed is split into
NUM_NULL = 4000  # simulated sets of uniform ranks that the test compares with
NULL_SEED = 0
MOST_TOLD = 4  # names in an error


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of the truth among posterior draws, and whether they are uniform.

    Attributes:
        names: Of the Q quantities; entries of an array have their index, such as `w[0,1]`.
        ranks: How many of the L draws lie below the truth, (Q, R) for R simulations, int64, in {0, ..., L}.
        num_draws: L.
    """

    names: tuple[str, ...]
    ranks: Tensor
    num_draws: int

    @property
    def num_simulations(self) -> int:
        """R."""
        return self.ranks.shape[1]

    @cached_property
    def levels(self) -> Tensor:
        """Where the distribution function of the ranks is looked at: (k + 1) / (L + 1) for k = 0, ..., L - 1, (L,)."""
        return torch.arange(1, self.num_draws + 1, dtype=torch.float64) / (self.num_draws + 1)

    @property
    def distribution(self) -> Tensor:
        """Share of ranks up to k, (Q, L); its expectation under uniform ranks is `levels`."""
        return _distribution(self.ranks, self.num_draws)

    @cached_property
    def p_values(self) -> Tensor:
        """How often uniform ranks would deviate by as much, (Q,), each quantity by itself.

        The deviation is the largest, over the levels, of the difference between the distribution function and the
        uniform one in its binomial standard deviations. Its law is simulated, so that ties and small numbers are right.
        """
        observed = self._deviations(self.ranks)
        return (1 + (self._null >= observed.unsqueeze(1) - 1e-12).sum(dim=1)) / (1.0 + len(self._null))

    def p_value(self) -> float:
        """Of all quantities together: the smallest times their number (Bonferroni), at most 1."""
        return min(1.0, float(self.p_values.min()) * len(self.names))

    def band(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, (L,) each, that uniform ranks' whole distribution function stays in so often.

        Args:
            level: Probability, for one quantity; simultaneous over the levels.

        Raises:
            ValueError: Outside (0, 1).
        """
        height = self._null.quantile(check_fraction(level, "level")) * self._scales
        return (self.levels - height).clamp(min=0.0), (self.levels + height).clamp(max=1.0)

    @cached_property
    def _scales(self) -> Tensor:
        """Binomial standard deviations of the distribution function, (L,)."""
        return (self.levels * (1 - self.levels) / self.num_simulations).sqrt()

    def _deviations(self, ranks: Tensor) -> Tensor:
        """(Q,)."""
        return ((_distribution(ranks, self.num_draws) - self.levels) / self._scales).abs().amax(dim=1)

    @cached_property
    def _null(self) -> Tensor:
        """Deviations of uniform ranks, (NUM_NULL,)."""
        noise = generator(NULL_SEED, self.num_simulations, self.num_draws)
        shape = (NUM_NULL, self.num_simulations)
        return self._deviations(torch.randint(self.num_draws + 1, shape, generator=noise))

    def __str__(self) -> str:
        """A line for each quantity."""
        width = max(map(len, self.names))
        head = f"{self.num_simulations} simulations of {self.num_draws} draws, all together p = {self.p_value():.4f}"
        lines = [f"{name:{width}}  p = {float(p):.4f}" for name, p in zip(self.names, self.p_values, strict=True)]
        return "\n".join([head, *lines])


def calibrate(
    simulate: Callable[[int], tuple[Theta, Any]],
    fit: Callable[[Any, int], Posterior | Theta],
    *,
    num_simulations: int = 200,
    num_draws: int = 99,
    quantities: Quantities | None = None,
    seed: int = 0,
) -> Ranks:
    """Draw truths from the prior and data from the truths, fit each, and rank the truth among the posterior's draws.

    Args:
        simulate: From a seed to theta, its sites by name, drawn from the prior, and data drawn given theta, of any
            kind: for a network, `bayesuq.models.BayesianNetwork.simulate`.
        fit: From such data and a seed to a posterior, or to `num_draws` draws of the sites, (L, *shape) by name. Draws
            must be independent: thin chains.
        num_simulations: R.
        num_draws: L; with R of at most a few hundred, more than some hundred add nothing.
        quantities: From one theta and the data to the numbers that are ranked, by name; None takes every entry of
            every site. Weights of networks are not identified but have uniform ranks all the same; functions of the
            data, such as the log-likelihood, see errors that the sites' own margins hide.
        seed: Makes all of it repeatable.

    Returns:
        The ranks. Draws equal to the truth count as below it or not at random.

    Raises:
        TypeError: `fit` gave neither a posterior nor draws.
        ValueError: Counts below 1; another number of draws than asked for; sites that the posterior lacks; values that
            are NaN; quantities that are others, or in another order, from one simulation or draw to the next.

    Example:
        >>> def simulate(seed):
        ...     mean, noise = torch.randn(2, generator=generator(seed), dtype=torch.float64)
        ...     return {"mean": mean}, mean + noise
        >>> def exact(y, seed):  # N(y / 2, 1 / 2)
        ...     return {"mean": y / 2 + 0.5**0.5 * torch.randn(99, generator=generator(seed), dtype=torch.float64)}
        >>> calibrate(simulate, exact).p_value() > 0.05
        True
    """
    check_count(num_simulations, "num_simulations")
    check_count(num_draws, "num_draws")
    check_count(seed, "seed", minimum=0)
    names: tuple[str, ...] = ()
    shapes: list[tuple[str, ...]] = []  # of the first, and of this simulation
    ranks = []
    for number in range(num_simulations):
        theta, data = simulate(derive_seed(seed, number, TRUTH))
        fitted = fit(data, derive_seed(seed, number, FIT))
        draws = _draws(fitted, num_draws, derive_seed(seed, number, DRAWS))
        truth = {name: to_tensor(value, name) for name, value in theta.items()}
        drawn = _checked(draws, truth, num_draws)
        if quantities is None:
            shapes = [*shapes[:1], _shapes(truth)]
            names, values = _names(truth), torch.cat([_flat(truth).unsqueeze(0), _flat(drawn, num_draws)])
        else:
            every = [truth, *({name: value[draw] for name, value in drawn.items()} for draw in range(num_draws))]
            found = [{name: to_tensor(one, name) for name, one in quantities(theta, data).items()} for theta in every]
            shapes = [*shapes[:1], *map(_shapes, found)]
            _check_same(shapes)  # before they are put together
            names, values = _names(found[0]), torch.stack([_flat(one) for one in found])
        _check_same(shapes)
        _check_numbers(names, values)
        ranks.append(_rank(values[0], values[1:], derive_seed(seed, number, TIES)))
    return Ranks(names, torch.stack(ranks, dim=1), num_draws)


def _draws(fitted: Any, num_draws: int, seed: int) -> Mapping[str, ArrayLike]:
    if isinstance(fitted, Posterior):
        sample = getattr(fitted, "sample_weights", None)
        if sample is None:
            raise TypeError(f"`fit` must give a posterior with draws of its sites; {type(fitted).__name__} has none.")
        return sample(num_draws, seed=seed)
    if not isinstance(fitted, Mapping):
        raise TypeError(f"`fit` must give a posterior, or draws of the sites by name; got {type(fitted).__name__}.")
    return fitted


def _checked(draws: Mapping[str, ArrayLike], truth: Mapping[str, Tensor], num_draws: int) -> dict[str, Tensor]:
    """The draws of the sites that the truth has, (L, *shape)."""
    missing = sorted(truth.keys() - draws.keys())
    if missing:
        raise ValueError(f"The posterior's draws lack the sites {', '.join(missing)}; they have {', '.join(draws)}.")
    values = {name: to_tensor(draws[name], name) for name in truth}
    for name, value in values.items():
        if value.shape != (num_draws, *truth[name].shape):
            raise ValueError(
                f"The draws of {name!r} must have shape {(num_draws, *truth[name].shape)}; got {tuple(value.shape)}. "
                "A posterior that stores its draws needs at least `num_draws` of them."
            )
    return values


def _flat(values: Mapping[str, Tensor], num_draws: int | None = None) -> Tensor:
    """All entries in a row, (Q,), or of each draw, (L, Q); float64, on the CPU."""
    leading = () if num_draws is None else (num_draws,)
    return torch.cat([value.double().cpu().reshape(*leading, -1) for value in values.values()], dim=-1)


def _names(values: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(entry for name, value in values.items() for entry in _entries(name, value))


def _shapes(values: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(f"{name} {tuple(value.shape)}" for name, value in values.items())


def _check_same(shapes: Sequence[tuple[str, ...]]) -> None:
    """Ranks stand beside each other by place, so that what is ranked must be the same, in one order."""
    other = next((one for one in shapes if one != shapes[0]), None)
    if other is not None:
        raise ValueError(
            "Every simulation, and every draw, must have the same quantities in one order; got "
            f"{shortened(shapes[0], MOST_TOLD)}, and {shortened(other, MOST_TOLD)}."
        )


def _check_numbers(names: tuple[str, ...], values: Tensor) -> None:
    if values.isnan().any():
        first = names[int(values.isnan().any(dim=0).nonzero()[0])]
        raise ValueError(f"The quantity {first} is NaN, and has no rank.")


def _entries(name: str, value: Tensor) -> list[str]:
    if value.ndim == 0:
        return [name]
    places = torch.ones(value.shape).nonzero().tolist()
    return [f"{name}[{','.join(map(str, place))}]" for place in places]


def _rank(true: Tensor, drawn: Tensor, seed: int) -> Tensor:
    """(Q,), int64, of (Q,) among (L, Q)."""
    below = (drawn < true).sum(dim=0)
    equal = (drawn == true).sum(dim=0)
    share = torch.rand(len(true), generator=generator(seed), dtype=torch.float64)
    return below + (share * (equal + 1)).long()


def _distribution(ranks: Tensor, num_draws: int) -> Tensor:
    """Share of ranks up to each of 0, ..., L - 1, (Q, L)."""
    counts = torch.zeros(len(ranks), num_draws + 1, dtype=torch.float64)
    counts.scatter_add_(1, ranks, torch.ones(ranks.shape, dtype=torch.float64))
    return counts.cumsum(dim=1)[:, :-1] / ranks.shape[1]
