"""Pyro programs in every form that users give them, whose posterior of `level` is known, and ones that are no density.

y_i ~ N(level, 1) and level ~ N(0, 1) on the same rows, if nothing else is said: `RIGHT` names a program, how its data
come, and the precision of the posterior with its precision times its mean; `NO_DENSITY` names what is told of a program
that has none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from bayesuq.data import Dataset
from tests.inference.examples import noise

N = 12
X = noise(0, N, 1).float()
Y = 1 + noise(1, N).float()
PAIRS = torch.stack([Y, Y + 1], dim=1)
HALF = torch.arange(N) < N // 2


def level() -> Tensor:
    return pyro.sample("level", dist.Normal(0.0, 1.0))


def around(mean: Any, x: Any, y: Any, name: str = "y") -> Tensor:
    with pyro.plate("data", len(x)):
        return pyro.sample(name, dist.Normal(mean, 1.0).expand([len(x)]), obs=y)


def scaled(x, y=None):
    mean = level()
    with poutine.scale(scale=2.0):
        return around(mean, x, y)


def masked(x, y=None):
    mean = level()
    with poutine.mask(mask=HALF[: len(x)]):
        return around(mean, x, y)


def with_factor(x, y=None):
    mean = level()
    pyro.factor("near 3", -0.5 * (mean - 3) ** 2)
    return around(mean, x, y)


def by_factor_alone(x, y):  # noqa: ARG001
    pyro.factor("likelihood", dist.Normal(level(), 1.0).log_prob(y).sum())


def flat(x, y=None):
    return around(pyro.sample("level", dist.ImproperUniform(dist.constraints.real, (), ())), x, y)


def worked_out(x, y=None):
    return around(pyro.deterministic("double", 2 * level()) / 2, x, y)


def in_double(x, y=None):
    return around(pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)), x, y)


def of_so_many_rows(x, y=None):
    mean = level()
    with pyro.plate("data", N):
        return pyro.sample("y", dist.Normal(mean + 0 * x[:, 0], 1.0), obs=y)


def inputs_enclosed(y=None):
    return of_so_many_rows(X, y)


def targets_enclosed(x):
    return around(level(), x, torch.zeros(len(x)))  # the fit's own take their place


def inputs_by_name(*, heights, y=None):
    return around(level(), heights, y)


def targets_by_name(x, *, target=None):
    return around(level(), x, target, "obs")


def whatever_comes(**given):
    return around(level(), given["heights"], given.get("y"))


def columns(x, y=None):
    with pyro.plate("outputs", 2, dim=-1):
        mean = level()
        with pyro.plate("data", len(x), dim=-2):
            return pyro.sample("y", dist.Normal(mean, 1.0).expand([len(x), 2]), obs=y)


def vectors(x, y=None):
    mean = pyro.sample("level", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(mean.expand(len(x), 2), 1.0).to_event(1), obs=y)


ROWS, NAMED = Dataset(X, Y), Dataset({"heights": X[:, 0]}, Y)
USUAL = (N + 1, Y.sum())


@dataclass(frozen=True, eq=False)
class Case:
    """A program, its data, and its posterior's precision with that times the mean."""

    program: Callable[..., Any]
    data: Dataset = ROWS
    exact: tuple[float, Tensor] = USUAL
    predicts: bool = True


RIGHT = {
    case.program.__name__: case
    for case in (
        Case(scaled, exact=(2 * N + 1, 2 * Y.sum())),
        Case(masked, exact=(N // 2 + 1, Y[HALF].sum())),
        Case(with_factor, exact=(N + 2, Y.sum() + 3)),
        Case(by_factor_alone, predicts=False),
        Case(flat, exact=(N, Y.sum())),
        Case(worked_out),
        Case(in_double),
        Case(of_so_many_rows),
        Case(inputs_enclosed),
        Case(targets_enclosed),
        Case(inputs_by_name),
        Case(targets_by_name),
        Case(whatever_comes, NAMED),
        Case(columns, Dataset(X, PAIRS), (N + 1, PAIRS.sum(dim=0))),
        Case(vectors, Dataset(X, PAIRS), (N + 1, PAIRS.sum(dim=0))),
    )
}


def draws_by_torch(x, y=None):
    return around(level() + torch.rand(len(x)), x, y)


def draws_by_numpy(x, y=None):
    return around(level() + float(np.random.default_rng().random()), x, y)


def draws_by_a_law(x, y=None):
    return around(level() + dist.Normal(0.0, 1.0).sample(), x, y)


def chooses_rows(x, y=None):
    mean = level()
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        return pyro.sample("y", dist.Normal(mean, 1.0).expand([4]), obs=None if y is None else y[rows])


@config_enumerate
def enumerated(x, y=None):
    kind = pyro.sample("kind", dist.Bernoulli(0.5))
    return around(level() + kind, x, y)


@config_enumerate
def enumerated_by_row(x, y=None):
    mean = level()
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Bernoulli(0.5))
        return pyro.sample("y", dist.Normal(mean + kind, 1.0), obs=y)


def a_point(x, y=None):
    return around(pyro.sample("double", dist.Delta(2 * level())) / 2, x, y)


def two_precisions(x, y=None):
    slope = pyro.sample("level", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
    return around(x @ slope, x, y)


def no_inputs():
    return around(level(), X, Y)


def two_by_name(*, heights, widths, y=None):
    return around(level() + 0 * widths, heights, y)


def targets_nowhere(x):
    return around(level(), x, None, "obs")


def one_for_all_rows(x, y=None):  # noqa: ARG001
    return pyro.sample("y", dist.Normal(level(), 1.0), obs=y)


BESIDE = r"draws numbers beside its sites.*Draw them by pyro.sample"
DISCRETE = r"latents kind are discrete.*Sum them out"

NO_DENSITY: Mapping[Callable[..., Any], str] = {
    draws_by_torch: BESIDE,
    draws_by_numpy: BESIDE,
    draws_by_a_law: BESIDE,
    chooses_rows: r"plate 'data' chooses 4 of 12 rows.*Leave `subsample_size` out",
    enumerated: DISCRETE,
    enumerated_by_row: DISCRETE,
    a_point: r"latents double have a law of one point.*pyro.deterministic",
    two_precisions: r"meets two precisions.*torch.float32.*x.new_zeros",
    no_inputs: r"takes no inputs.*program\(x, y=None\)",
    two_by_name: r"inputs by name \(heights, widths\).*mapping",
    targets_nowhere: r"targets reach no site.*samples level, obs.*observed=",
    one_for_all_rows: r"a row for each row|would be repeated",
}
