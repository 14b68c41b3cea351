"""Have the chains converged? R-hat, effective sample sizes and Monte Carlo errors, of functions first; free of torch.

Two chains of a network can sit in weights that are permutations of each other and say the same of every x, or in
weights that look alike and say different things. So the values of the function, E[y* | x, draw], are looked at first,
and the weights second. Independent draws (of a variational posterior, an ensemble, dropout) are no chains: nothing here
says that they are draws of the right law, and R-hat and effective sample sizes are left undefined.

Reference:
    Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, Rank-Normalization, Folding, and Localization.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesuq.evaluation.diagnostics.quantities import FEWEST_DRAWS, LARGEST_R_HAT, Array, Quantity, measured
from bayesuq.evaluation.report.tables import aligned, named
from bayesuq.to_arviz.container import Container, group

__all__ = ["convergence"]
__dir__ = __all__.copy

FEWEST_PER_CHAIN = 100  # effective draws
SMALLEST_BFMI = 0.3
MOST_ENTRIES = 1000
INDEPENDENT = (
    "The draws are independent, not chains: R-hat and effective sample sizes do not apply, and nothing here says that "
    "they come from the right posterior. Look at Pareto k, at whether the loss came to rest, and at several restarts."
)


@dataclass(frozen=True, eq=False)
class Convergence:
    """What the draws say of their own quality.

    Attributes:
        quantities: The function's values first, then the sites.
        num_chains: C.
        num_draws: Of each chain.
        is_independent: Whether the draws are independent, and no chains.
        num_divergences: Draws whose trajectories diverged; None where the sampler does not tell.
        bfmi: Of each chain, (C,): how freely the energy moves; empty where there is no energy.
        problems: Sentences, each telling one thing that is wrong; none where nothing was found.
        remark: What must be known to read the rest; empty for chains.
    """

    quantities: tuple[Quantity, ...]
    num_chains: int
    num_draws: int
    is_independent: bool
    num_divergences: int | None
    bfmi: Array
    problems: tuple[str, ...]
    remark: str

    def __getitem__(self, name: str) -> Quantity:
        return named(self.quantities, name, "variable")

    def __str__(self) -> str:
        head = ("variable", "entries", "R-hat, largest", "share <= 1.01", "ESS, least", "MCSE / sd, largest")
        rows = [head, *(_cells(each) for each in self.quantities)]
        return "\n".join([*aligned(rows, right=[1, 2, 3, 4, 5]), *filter(None, [self.remark]), *self.problems])


def convergence(data: Container, *, most_entries: int | None = MOST_ENTRIES, max_tree_depth: int = 10) -> Convergence:
    """R-hat, effective sample sizes and Monte Carlo errors of every variable, and what is wrong in words.

    Args:
        data: What `posterior.to_arviz` gives, or another library's container in ArviZ's scheme.
        most_entries: Of a variable with more, so many are looked at, evenly spread; None looks at all. An entry of
            4 x 1,000 draws takes some 5 ms.
        max_tree_depth: At which NUTS was told to stop.

    Raises:
        TypeError: No container.
        ValueError: No draws in it.

    Example:
        >>> from bayesuq.to_arviz.container import Variable, build
        >>> draws = np.random.default_rng(0).standard_normal((4000, 2))
        >>> mu = Variable.of_draws(draws, 4, ("point",))
        >>> found = convergence(build({"posterior": {"mu": mu}}, attributes={}))
        >>> bool(found["mu"].worst_r_hat < 1.01), found.problems
        (True, ())
    """
    variables = _variables(data)
    if not variables:
        raise ValueError("`data` has no draws; it needs a group `posterior`, or `predictions`, of (chain, draw, ...).")
    first = next(iter(variables.values()))
    num_chains, num_draws = first.sizes["chain"], first.sizes["draw"]
    is_independent = bool(_mark(data, "independent_draws", 0))
    functions = _mark(data, "function_values", "").rpartition("/")[2]
    quantities = tuple(
        measured(name, values, name == functions, most_entries, is_independent=is_independent)
        for name, values in variables.items()
    )
    statistics = {} if is_independent else dict(group(data, "sample_stats").data_vars)
    divergences = int(statistics["diverging"].sum()) if "diverging" in statistics else None
    energies = bfmi(statistics["energy"].values) if "energy" in statistics else np.zeros(0)
    looked_at = [each for each in quantities if each.is_function] or list(quantities)
    problems = [sentence for each in looked_at for sentence in _problems(each, num_chains)]
    problems += _weight_problems([each for each in quantities if each not in looked_at], num_chains)
    if not is_independent:
        problems = [
            *_sampler_problems(divergences, energies, num_chains * num_draws),
            *_depth_problems(statistics, max_tree_depth),
            *_shape_problems(num_chains, num_draws),
            *problems,
        ]
    remark = INDEPENDENT if is_independent else ""
    return Convergence(
        quantities, num_chains, num_draws, is_independent, divergences, energies, tuple(problems), remark
    )


def bfmi(energy: Array) -> Array:
    """Bayesian fraction of missing information of each chain, (C,), from energies (C, D); NaN where they stand still.

    The mean squared step of the energy over its variance: below 0.3 the momenta hardly reach the tails.

    Reference:
        Betancourt 2016, Diagnosing Suboptimal Cotangent Disintegrations in Hamiltonian Monte Carlo, eq. (6).
    """
    values = np.asarray(energy, dtype=np.float64)
    if values.shape[1] < 2:
        return np.full(len(values), math.nan)
    spread = values.var(axis=1, ddof=1)
    steps = np.square(np.diff(values, axis=1)).mean(axis=1)
    return np.divide(steps, spread, out=np.full(len(values), math.nan), where=spread > 0)


def function_values(data: Container) -> Any:
    """E[y* | x, draw] of a container as `xarray.DataArray` (chain, draw, point, ...); None where it has none."""
    where, _, name = str(_mark(data, "function_values", "")).partition("/")
    return group(data, where)[name] if name else None


def _mark(data: Container, name: str, default: Any) -> Any:
    """An attribute of the container or of its draws."""
    own = getattr(data, "attrs", {})
    return own.get(name, group(data, "posterior").attrs.get(name, default))


def _variables(data: Container) -> dict[str, Any]:
    """The function's values, then the sites."""
    chosen = function_values(data)
    variables = {} if chosen is None else {str(chosen.name): chosen}
    for name, values in group(data, "posterior").data_vars.items():
        if {"chain", "draw"} <= set(values.dims):
            variables.setdefault(str(name), values)
    return variables


def _problems(quantity: Quantity, num_chains: int) -> list[str]:
    """What is wrong with the draws of one variable."""
    name, found = quantity.name, []
    if quantity.num_not_finite:
        found.append(f"{name}: {quantity.num_not_finite} entries have draws that are not finite.")
    high = int((quantity.r_hat > LARGEST_R_HAT).sum())
    if high:
        found.append(
            f"{name}: R-hat is above {LARGEST_R_HAT} in {high} of {int((~np.isnan(quantity.r_hat)).sum())} entries, at "
            f"most {quantity.worst_r_hat:.3f}: the chains do not agree. Draw more, or warm up longer."
        )
    if quantity.least_ess < FEWEST_PER_CHAIN * num_chains:
        found.append(
            f"{name}: the least effective sample size is {quantity.least_ess:.0f}, below {FEWEST_PER_CHAIN} a chain. "
            "Draw more."
        )
    return found


def _weight_problems(weights: list[Quantity], num_chains: int) -> list[str]:
    """One sentence for all sites, where the function itself is looked at."""
    wrong = [each for each in weights if _problems(each, num_chains)]
    if not wrong:
        return []
    r_hats = [each.worst_r_hat for each in wrong if not math.isnan(each.worst_r_hat)]
    sizes = [each.least_ess for each in wrong if not math.isnan(each.least_ess)]
    told = f"R-hat is up to {max(r_hats):.3f}, " if r_hats else ""
    told += f"effective sample sizes are down to {min(sizes):.0f}, " if sizes else ""
    told += f"in {', '.join(each.name for each in wrong)}."
    return [f"Weights: {told} Permuted sets of weights are one function: alone, this is no fault of the predictions."]


def _sampler_problems(divergences: int | None, energies: Array, num_draws: int) -> list[str]:
    found = []
    if divergences:
        found.append(
            f"{divergences} of {num_draws} draws diverged: there are regions that the chains cannot enter, so that "
            "every number may be biased. Raise `target_acceptance`, or change the model."
        )
    low = np.flatnonzero(energies < SMALLEST_BFMI)
    if len(low):
        told = ", ".join(f"chain {chain} {energies[chain]:.2f}" for chain in low)
        found.append(f"BFMI is below {SMALLEST_BFMI} ({told}): the energy moves too slowly to reach the tails.")
    return found


def _depth_problems(statistics: dict[str, Any], max_tree_depth: int) -> list[str]:
    depths = statistics["tree_depth"].values if "tree_depth" in statistics else np.zeros(0)
    reached = int((depths >= max_tree_depth).sum())
    told = (
        f"{reached} of {depths.size} trajectories stopped at the tree depth of {max_tree_depth}, before they turned: "
        "valid, but slow to mix. Raise `max_tree_depth`."
    )
    return [told] if reached else []


def _shape_problems(num_chains: int, num_draws: int) -> list[str]:
    found = []
    if num_chains < 2:
        found.append("There is one chain, so that R-hat has nothing to compare. Run four.")
    if num_draws < FEWEST_DRAWS:
        found.append(f"Chains of {num_draws} draws are too short for R-hat and effective sample sizes. Draw more.")
    return found


def _cells(quantity: Quantity) -> tuple[str, ...]:
    looked_at = len(quantity.mean)
    entries = f"{quantity.size}" if looked_at == quantity.size else f"{looked_at} of {quantity.size}"
    numbers = (quantity.worst_r_hat, quantity.share_converged, quantity.least_ess, quantity.worst_relative_error)
    return (quantity.name, entries, *(_told(number, form) for number, form in zip(numbers, FORMS, strict=True)))


FORMS = (".3f", ".3f", ".0f", ".3f")


def _told(number: float, form: str) -> str:
    return "-" if math.isnan(number) else format(number, form)
