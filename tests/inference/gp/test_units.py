"""Gaussian processes answer alike in all units of x and y: predictives, evidence, draws, and what they report."""

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesuq.data import Dataset
from bayesuq.inference.gp.fitting import fit
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import gp, likelihoods
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.to_arviz.container import group
from tests.inference.examples import noise
from tests.zoo.units import APPROXIMATIONS, PROCESSES, SCALINGS, ProcessCase, Scaling

pytestmark = pytest.mark.filterwarnings(
    "ignore:The hyperparameters had not converged:UserWarning",  # searches are short on purpose
    "ignore:.* draws follow a trajectory that diverged:UserWarning",
)
NEW_X = noise(1, 5, 2)
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def fitted(case: ProcessCase, scaling: Scaling) -> Any:
    data = case.data()
    y = data.y if case.classes else scaling.y(data.y)
    return fit(case.model(), Dataset(scaling.x(data.x), y), seed=0, **case.options)


@cache
def plain(name: str) -> Any:
    return fitted(PROCESSES[name], Scaling())


def evidence(posterior: Any, case: ProcessCase) -> float:
    """Of all targets, in nats; where there is none in closed form, the last bound."""
    return getattr(posterior, "log_marginal_likelihood", -case.counted * posterior.history.loss[-1])


def in_plain_units(predictive: PredictiveDistribution, scaling: Scaling) -> tuple[Tensor, Tensor]:
    if isinstance(predictive, CategoricalPredictive):
        return predictive.mean, predictive.total
    return (predictive.mean - scaling.shift_y) / scaling.of_y, predictive.total / scaling.of_y**2


@pytest.mark.parametrize(("name", "scaling"), [*zip(PROCESSES, itertools.cycle(SCALINGS))])
def test_units_and_origins_cancel(name: str, scaling: str) -> None:
    """Rounding of the data is 1e-15, of shifted data 1e-12, and a search by L-BFGS multiplies it."""
    case = PROCESSES[name]
    there = case.scaled(SCALINGS[scaling])
    one, other = plain(name), fitted(case, there)
    ours = one.predict(NEW_X, num_samples=4, seed=0), other.predict(there.x(NEW_X), num_samples=4, seed=0)
    for expected, found in zip(in_plain_units(ours[0], Scaling()), in_plain_units(ours[1], there), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    if hasattr(one, "history"):
        jacobian = 0.0 if case.classes else case.data().y.numel() * math.log(there.of_y)
        assert evidence(other, case) == pytest.approx(evidence(one, case) - jacobian, rel=1e-6, abs=1e-6)


def test_hyperparameters_are_reported_in_the_units_of_x_and_y() -> None:
    case, there = PROCESSES["exact, linear mean"], SCALINGS["tiny y, huge x"]
    one, other = plain("exact, linear mean"), fitted(case, there)
    kernels, means = [each.prior.kernel for each in (one, other)], [each.prior.mean for each in (one, other)]
    lengthscales = [kernel.base_kernel.lengthscale for kernel in kernels]
    torch.testing.assert_close(lengthscales[1], there.of_x * lengthscales[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(kernels[1].outputscale, there.of_y**2 * kernels[0].outputscale, rtol=1e-6, atol=0)
    torch.testing.assert_close(other.noise, there.of_y**2 * one.noise, rtol=1e-6, atol=0)
    torch.testing.assert_close(other.likelihood.scale, there.of_y * one.likelihood.scale, rtol=1e-6, atol=0)
    slope = there.of_y / there.of_x
    torch.testing.assert_close(means[1].weights, slope * means[0].weights, rtol=1e-6, atol=0)
    # m(x) of plain units, taken to the new ones: of_y (w^T (x' - shift) / of_x + c) + shift
    level = there.of_y * means[0].bias + there.shift_y - slope * there.shift_x * means[0].weights.sum(dim=1)
    torch.testing.assert_close(means[1].bias, level, rtol=1e-6, atol=0)
    constants = [fitted(PROCESSES["exact, constant mean"], each).prior.mean.constant for each in (Scaling(), there)]
    torch.testing.assert_close(constants[1], there.y(constants[0]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["sampled, linear mean", "coregionalised, sampled"])
def test_draws_of_hyperparameters_are_told_in_the_units_of_x_and_y(name: str) -> None:
    case, there = PROCESSES[name], PROCESSES[name].scaled(SCALINGS["huge y, tiny x"])
    one, other = plain(name), fitted(case, there)
    x, y = case.data().x, case.data().y
    drawn = [
        posterior.to_arviz(scaling.x(x), scaling.y(y), num_prior_samples=2, seed=0)
        for posterior, scaling in ((one, Scaling()), (other, there))
    ]
    for part in ("posterior", "prior"):
        told = [group(each, part) for each in drawn]
        known = {"likelihood.scale": there.of_y}
        if "linear" in name:
            known |= {"kernel.base_kernel.lengthscale": there.of_x, "mean.weights": there.of_y / there.of_x}
        else:
            known |= {"kernel.kernel.lengthscale": there.of_x, "kernel.outputs.covar_factor": there.of_y}
            known |= {"kernel.outputs.var": there.of_y**2, "mean.constant": there.of_y}
        for site, factor in known.items():
            ours, theirs = (torch.as_tensor(each[site].values) for each in told)
            shift = there.shift_y if site == "mean.constant" else 0.0
            torch.testing.assert_close(theirs, factor * ours + shift, rtol=1e-6, atol=1e-6 * factor)


@pytest.mark.parametrize(
    "name", ["exact, constant mean", "sparse, linear mean", "sampled, constant mean", "deep exact"]
)
def test_draws_of_functions_are_in_the_units_of_y(name: str) -> None:
    case, there = PROCESSES[name], PROCESSES[name].scaled(SCALINGS["tiny y, huge x"])
    one, other = plain(name), fitted(case, there)
    ours, theirs = one.sample_functions(NEW_X, 3, seed=0), other.sample_functions(there.x(NEW_X), 3, seed=0)
    torch.testing.assert_close((theirs - there.shift_y) / there.of_y, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["deep exact", "deep sparse", "deep sampled", "sampled, linear mean"])
def test_a_file_keeps_what_the_network_sees_its_inputs_in(name: str, tmp_path: Any) -> None:
    deep = ProcessCase(PROCESSES["deep exact"].model, PROCESSES["sampled, zero mean"].options)
    posterior = fitted(PROCESSES.get(name, deep), SCALINGS["tiny y, huge x"])
    posterior.save(tmp_path / "file")
    x = SCALINGS["tiny y, huge x"].x(NEW_X)
    one, other = posterior.predict(x), load(tmp_path / "file").predict(x)
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.total, other.total)


def test_a_network_may_see_its_inputs_as_they_are() -> None:
    case, there = PROCESSES["deep exact"], Scaling(of_x=3.0)
    kernel = case.model().kernel
    model = gp.GaussianProcess(gp.Deep(kernel.net, kernel.kernel, standardises=False))
    ours, theirs = (fit(model, Dataset(each.x(case.data().x), case.data().y), seed=0, **case.options)
                    for each in (Scaling(), there))  # fmt: skip
    net = ours.prior.kernel.net
    assert torch.equal(ours.prior.features(NEW_X), net(NEW_X))
    assert not torch.allclose(ours.predict(NEW_X).mean, theirs.predict(there.x(NEW_X)).mean, rtol=1e-3)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_float32_targets_of_any_unit_are_predicted_alike(unit: float) -> None:
    """Rounding to float32 is 6e-8 of a target, here some 3e-6 of the noise's scale."""
    data = PROCESSES["exact, constant mean"].data()
    y = (unit * (5 + data.y)).float()
    predictive = fit(gp.GaussianProcess(), Dataset(data.x.float(), y), num_restarts=1, seed=0).predict(NEW_X.float())
    expected = fit(gp.GaussianProcess(), Dataset(data.x, 5 + data.y), num_restarts=1, seed=0).predict(NEW_X)
    torch.testing.assert_close(predictive.mean / unit, expected.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(predictive.total / unit**2, expected.total, rtol=1e-2, atol=0)


@pytest.mark.parametrize("approximation", ["exact", "collapsed", "sparse"])
def test_columns_with_noise_of_their_own_have_units_of_their_own(approximation: str) -> None:
    case, scale = PROCESSES["two outputs"], torch.tensor([1e-6, 1e5], dtype=torch.float64)
    data, model = case.data(), gp.GaussianProcess(likelihood=likelihoods.Normal(per_column=True))
    options = {**APPROXIMATIONS[approximation], "seed": 0}
    one = fit(model, data, **options).predict(NEW_X)
    other = fit(model, Dataset(data.x, data.y * scale + scale), **options).predict(NEW_X)
    torch.testing.assert_close((other.mean - scale) / scale, one.mean, **CLOSE)
    torch.testing.assert_close(other.total / scale**2, one.total, **CLOSE)
    assert float(one.aleatoric[0, 0]) != float(one.aleatoric[0, 1])
