"""What a program must make of weights and of minibatches, held against what it does with them."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from bayesuq.data import Dataset
from bayesuq.inference.joint.program_call import ProgramCall
from bayesuq.inference.posteriors.program_reader import ProgramRows
from tests.inference.examples import noise

X = noise(0, 8, 1).float()
Y = (2 * X[:, 0] + noise(1, 8).float()).contiguous()
SOME = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
HEAVY = torch.tensor([1.0, 2.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0])


def ones(weight, x):
    return torch.ones(len(x)) if weight is None else weight


def plate(x, num_data):
    return pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x)))


def slope() -> Tensor:
    return pyro.sample("slope", dist.Normal(0.0, 1.0))


def scaled(x, y=None, num_data=None, weight=None):
    w = slope()
    with plate(x, num_data), poutine.scale(scale=ones(weight, x)):
        pyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y)


def masked(x, y=None, num_data=None, weight=None):
    w = slope()
    with plate(x, num_data), poutine.mask(mask=ones(weight, x) > 0):
        pyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y)


def precise(x, y=None, num_data=None, weight=None):
    """Of a meaning of its own: how precise each target is."""
    w = slope()
    with plate(x, num_data):
        pyro.sample("y", dist.Normal(w * x[:, 0], 1 / (ones(weight, x) + 1e-3).sqrt()), obs=y)


def at_once(x, y=None, num_data=None, weight=None):  # noqa: ARG001 - one density of all rows
    w = slope()
    scales = (ones(weight, x) + 1e-3) ** -0.5
    pyro.sample("y", dist.Normal(w * x[:, 0], scales).to_event(1), obs=y)


def heedless(x, y=None, num_data=None, weight=None):  # noqa: ARG001
    return scaled(x, y, num_data)


def heedless_of_any(x, y=None, **_options):
    return scaled(x, y)


def heedless_at_once(x, y=None, num_data=None, weight=None):  # noqa: ARG001
    return at_once(x, y)


def half_heedless(x, y=None, num_data=None, weight=None):
    w = slope()
    with plate(x, num_data):
        with poutine.scale(scale=ones(weight, x)):
            pyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y)
        pyro.sample("again", dist.Normal(w * x[:, 0], 2.0), obs=y)


def opened(program: Callable[..., Any], weight: Tensor | None) -> ProgramRows:
    reader = ProgramRows(program, None, None)
    reader.open(Dataset(X, Y, weight))
    return reader


@pytest.mark.parametrize(
    ("program", "weight"),
    [
        *((program, weight) for program in (scaled, precise, at_once) for weight in (SOME, HEAVY)),
        (masked, SOME),
        (heedless, torch.ones(8)),
        (heedless, None),
    ],
)
def test_programs_may_use_weights_as_they_like(program, weight):
    opened(program, weight)


@pytest.mark.parametrize(
    ("program", "weight", "told"),
    [
        (heedless, SOME, r"'y' does not go by it: 2 of 8 densities"),
        (heedless, HEAVY, r"'y' does not go by it: 3 of 8 densities.*poutine.scale\(.*poutine.mask\("),
        (heedless_of_any, SOME, r"'y' does not go by it"),
        (heedless_at_once, SOME, r"'y' does not go by it: 1 of 1 densities"),
        (half_heedless, HEAVY, r"'again' does not go by it: 3 of 8"),
        (masked, HEAVY, r"'y' does not go by it: 2 of 8"),
    ],
)
def test_programs_that_take_weights_and_ignore_them_are_refused(program, weight, told):
    with pytest.raises(ValueError, match=told):
        opened(program, weight)


@pytest.mark.parametrize(
    ("program", "multiplies"), [(scaled, True), (masked, False), (precise, False), (at_once, False)]
)
def test_whether_weights_multiply_is_seen(program, multiplies):
    assert opened(program, None).weighs == multiplies


def log_density(w, x, y):
    return dist.Normal(w * x[:, 0], 1.0).log_prob(y)


def beside_the_plate(x, y=None, num_data=None):
    w = slope()
    with plate(x, num_data):
        pyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y)
    if y is not None:
        pyro.factor("further", log_density(w, x, y).sum())


def alone(x, y=None, num_data=None):  # noqa: ARG001
    w = slope()
    if y is not None:
        pyro.factor("further", log_density(w, x, y).sum())


def within_the_plate(x, y=None, num_data=None):
    w = slope()
    with plate(x, num_data):
        pyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y)
        if y is not None:
            pyro.factor("further", log_density(w, x, y))


def penalised(x, y=None, num_data=None):
    w = slope()
    pyro.factor("prior", -((w - 3) ** 2))
    pyro.factor("mean", -((w - x) ** 2).mean())
    pyro.factor("nothing", 0.0 * w)
    with plate(x, num_data):
        pyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y)


@pytest.mark.parametrize("program", [beside_the_plate, alone])
def test_sums_over_rows_that_do_not_scale_are_refused_in_minibatches(program):
    reader = opened(program, None)
    with pytest.raises(ValueError, match=r"'further' is a sum over rows, and does not scale.*subsample="):
        ProgramCall.of(program).check_minibatches(reader.read(Dataset(X, Y)))


@pytest.mark.parametrize("program", [within_the_plate, penalised])
def test_factors_that_scale_or_are_no_sums_may_come_in_minibatches(program):
    reader = opened(program, None)
    ProgramCall.of(program).check_minibatches(reader.read(Dataset(X, Y)))
