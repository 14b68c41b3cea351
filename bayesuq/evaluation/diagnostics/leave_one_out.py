"""How well would each row be predicted from all the others? PSIS-LOO, and methods compared by it; free of torch.

    elpd = sum_n log p(y_n | x_n, all rows but n)

from draws given all rows, by importance weights 1 / p(y_n | draw) whose tail is smoothed. It needs the log likelihoods
of the rows that were fitted: of held-out rows, the plain log score is the right number. The draws are taken to be draws
of the posterior; where they are of an approximation that is too narrow, so is the answer.

Reference:
    Vehtari, Gelman & Gabry 2017, Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation; Yao et al.
    2018, Using Stacking to Average Bayesian Predictive Distributions.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesuq import optional
from bayesuq.evaluation.diagnostics.pareto import ALL_EQUAL
from bayesuq.evaluation.report.tables import aligned, named
from bayesuq.pareto import tail_shape
from bayesuq.to_arviz.container import IS_ARVIZ_BEFORE_1, Container, Variable, build, group, observed_variable

__all__ = ["compare", "loo"]
__dir__ = __all__.copy

FEWEST_DRAWS = 25  # fewer have no tail to fit
OBSERVED = "y"
APPROXIMATE = (
    "LOO reweights draws as if they were the posterior's; these are of an approximation. Where it is too narrow, or "
    "its networks were only optimised, the number is close to the score of the training rows: use held-out rows."
)
APART = 1e-9  # nats between equal ratios, at most, so that ArviZ 1 fits their tail, as which they have none
PARETO_WARNING = "Estimated shape parameter of Pareto distribution"

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """The expected log predictive density, left one out.

    Attributes:
        elpd: Sum over rows, in nats; larger is better.
        standard_error: Of it, over rows.
        num_parameters: p, the effective number of parameters: the log density of all rows minus `elpd`.
        pointwise: Each row's part of `elpd`, (N,).
        pareto_k: How heavy the tail of a row's importance weights is, (N,).
        good_k: Up to which that is reliable, for so many draws.
        num_draws: S.
        is_approximate: Whether the draws are independent ones of an approximation, and no chains of the posterior.
    """

    elpd: float
    standard_error: float
    num_parameters: float
    pointwise: Array
    pareto_k: Array
    good_k: float
    num_draws: int
    is_approximate: bool

    @property
    def num_unreliable(self) -> int:
        """Rows whose Pareto k is above `good_k`."""
        return int((self.pareto_k > self.good_k).sum())

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences, each telling one thing that is wrong; none where nothing was found."""
        told = (
            f"LOO: Pareto k is above {self.good_k:.2f} for {self.num_unreliable} of {len(self.pareto_k)} rows: they "
            "change the posterior so much that it cannot be reweighted to do without them. Draw more, or refit on "
            "held-out folds."
        )
        return (told,) if self.num_unreliable else ()

    def __str__(self) -> str:
        first = (
            f"elpd {self.elpd:.1f} ± {self.standard_error:.1f} nats over {len(self.pointwise)} rows, {self.num_draws} "
            f"draws; effective parameters {self.num_parameters:.1f}"
        )
        return "\n".join([first, *filter(None, [self.remark]), *self.problems])

    @property
    def remark(self) -> str:
        """What must be known to read it; empty for chains."""
        return APPROXIMATE if self.is_approximate else ""


@dataclass(frozen=True)
class Ranked:
    """A method's place in a comparison.

    Attributes:
        name: Of the method.
        elpd: In nats; larger is better.
        standard_error: Of it.
        difference: The best method's elpd minus its own, in nats.
        difference_error: Standard error of that over the rows, which are the same for both; 0 for the best.
        weight: Its share in the mixture of all methods that would predict best (stacking), a fraction.
        num_parameters: Effective number of parameters.
        num_unreliable: Rows whose Pareto k is too high.
    """

    name: str
    elpd: float
    standard_error: float
    difference: float
    difference_error: float
    weight: float
    num_parameters: float
    num_unreliable: int


@dataclass(frozen=True)
class Ranking:
    """Methods by their expected log predictive density, the best first.

    Attributes:
        methods: One row each.
        remark: What must be known to read it; empty where all draws are chains'.
    """

    methods: tuple[Ranked, ...]
    remark: str

    def __getitem__(self, name: str) -> Ranked:
        return named(self.methods, name, "method")

    def __str__(self) -> str:
        head = ("method", "elpd", "below the best", "weight", "parameters", "rows of bad k")
        rows = [
            (
                each.name,
                f"{each.elpd:.1f} ± {each.standard_error:.1f}",
                f"{each.difference:.1f} ± {each.difference_error:.1f}",
                f"{each.weight:.2f}",
                f"{each.num_parameters:.1f}",
                str(each.num_unreliable),
            )
            for each in self.methods
        ]
        return "\n".join([*aligned([head, *rows], right=[1, 2, 3, 4, 5]), *filter(None, [self.remark])])


def loo(data: Container, *, site: str | None = None) -> LeaveOneOut:
    """PSIS-LOO of a container with the log likelihood of every draw and fitted row.

    Chains are less worth than as many independent draws: the effective sample size is that of the rows' likelihoods,
    averaged over rows, where ArviZ's own default takes that of the weights. An image counts as one row.

    Args:
        data: What `posterior.to_arviz(x, y)` gives for the rows that were fitted.
        site: The observed site, where a program has several.

    Raises:
        TypeError: No container.
        ValueError: No log likelihood, of fewer than 25 draws, or not finite.

    Example:
        >>> terms = np.random.default_rng(0).normal(-1.0, 0.1, (400, 30))
        >>> y = Variable.of_draws(terms, 4, ("point",))
        >>> print(loo(build({"log_likelihood": {"y": y}}, attributes={})))
        elpd -30.1 ± 0.0 nats over 30 rows, 400 draws; effective parameters 0.3
    """
    return _told(_arviz_loo(data, site), is_approximate=_is_approximate(data))


def compare(data: Mapping[str, Container], *, site: str | None = None) -> Ranking:
    """Several methods fitted to the same rows, ranked by `loo`.

    Args:
        data: A container for each method, as for `loo`.
        site: See there.

    Raises:
        TypeError: See `loo`.
        ValueError: See `loo`; fewer than two methods, or different rows.
    """
    if len(data) < 2:
        raise ValueError(f"A comparison needs at least two methods; got {', '.join(data) or 'none'}.")
    _check_same_rows(data, site)
    raw = {name: _arviz_loo(one, site) for name, one in data.items()}
    told = {name: _told(one, is_approximate=_is_approximate(data[name])) for name, one in raw.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # ArviZ 0.23 on pandas 3
        options = {} if IS_ARVIZ_BEFORE_1 else {"round_to": "none"}
        weights = optional.arviz.compare(raw, method="stacking", **options)["weight"]
    order = sorted(told, key=lambda name: -told[name].elpd)
    best = told[order[0]]
    methods = tuple(_ranked(name, told[name], best, float(weights[name])) for name in order)
    return Ranking(methods, APPROXIMATE if any(one.is_approximate for one in told.values()) else "")


def _ranked(name: str, own: LeaveOneOut, best: LeaveOneOut, weight: float) -> Ranked:
    gap = best.pointwise - own.pointwise
    return Ranked(
        name=name,
        elpd=own.elpd,
        standard_error=own.standard_error,
        difference=float(gap.sum()),
        difference_error=float(math.sqrt(len(gap)) * gap.std()),
        weight=weight,
        num_parameters=own.num_parameters,
        num_unreliable=own.num_unreliable,
    )


def _is_approximate(data: Container) -> bool:
    return bool(group(data, "log_likelihood").attrs.get("independent_draws", 0))


def _arviz_loo(data: Container, site: str | None) -> Any:
    terms = _log_likelihood(data, site)
    share = 1.0 if _is_approximate(data) else _relative_efficiency(terms)
    without_tail = _without_tail(terms)
    steps = np.linspace(0.0, APART, terms[:, :, 0].size).reshape(*terms.shape[:2], 1)
    y = Variable(terms + without_tail * steps, ("chain", "draw", "point"))
    # ArviZ asks for a posterior, of which it takes nothing where the efficiency is given.
    plain = build({"log_likelihood": {OBSERVED: y}, "posterior": {OBSERVED: y}}, attributes={})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", PARETO_WARNING, UserWarning)  # `problems` says it, with the number of rows
        found = optional.arviz.loo(plain, pointwise=True, var_name=OBSERVED, reff=share)
    # Of a row that every draw holds as probable, such as one that all are sure of, each draw is worth the same.
    alike = np.ptp(terms, axis=(0, 1)) < ALL_EQUAL
    found.pareto_k[...] = np.where(alike, 0.0, np.where(without_tail, np.inf, found.pareto_k))
    return found


def _without_tail(terms: Array) -> Array:
    """Rows whose largest ratios are a few values over and over, as of few networks, (N,), boolean."""
    ratios = -terms.reshape(-1, terms.shape[2]).T
    return np.array([math.isinf(tail_shape(row)) for row in ratios], dtype=bool)


def _log_likelihood(data: Container, site: str | None) -> Array:
    """Of each draw and row, (C, D, N), in nats; an image's pixels are summed."""
    found = group(data, "log_likelihood")
    variable = observed_variable(found, "log_likelihood", site)
    values = variable.transpose("chain", "draw", ...).values.astype(np.float64)
    terms = values.reshape(*values.shape[:3], -1).sum(axis=3)
    if terms.shape[0] * terms.shape[1] < FEWEST_DRAWS:
        raise ValueError(f"LOO needs at least {FEWEST_DRAWS} draws; there are {terms.shape[0] * terms.shape[1]}.")
    wrong = int((~np.isfinite(terms)).any(axis=(0, 1)).sum())
    if wrong:
        raise ValueError(
            f"The log likelihood must be finite; for {wrong} of {terms.shape[2]} rows some draw gives the observed "
            "target no probability at all."
        )
    return terms


def _relative_efficiency(terms: Array) -> float:
    """Effective over actual draws, of the rows' likelihoods, each scaled to a largest of 1."""
    if terms.shape[1] < 4:
        return 1.0
    likelihoods = np.exp(terms - terms.max(axis=(0, 1)))
    data = optional.xarray.Dataset({"v": (("chain", "draw", "point"), likelihoods)})
    effective = optional.arviz.ess(data, method="mean")["v"].values
    return float(np.nanmean(effective)) / (terms.shape[0] * terms.shape[1])


def _told(raw: Any, *, is_approximate: bool) -> LeaveOneOut:
    is_old = hasattr(raw, "elpd_loo")  # the names of 0.x
    pointwise = np.asarray((raw.loo_i if is_old else raw.elpd_i).values, dtype=np.float64).ravel()
    return LeaveOneOut(
        elpd=float(raw.elpd_loo if is_old else raw.elpd),
        standard_error=float(raw.se),
        num_parameters=float(raw.p_loo if is_old else raw.p),
        pointwise=pointwise,
        pareto_k=np.asarray(raw.pareto_k.values, dtype=np.float64).ravel(),
        good_k=float(raw.good_k),
        num_draws=int(raw.n_samples),
        is_approximate=is_approximate,
    )


def _check_same_rows(data: Mapping[str, Container], site: str | None) -> None:
    groups = {name: group(one, "observed_data") for name, one in data.items()}
    (first, rows), *others = (
        (name, observed_variable(one, "observed_data", site).values if one.data_vars else None)
        for name, one in groups.items()
    )
    for name, other in others:
        if rows is None or other is None or not np.array_equal(rows, other):
            raise ValueError(f"Only methods fitted to the same rows compare; {first} and {name} observed others.")
