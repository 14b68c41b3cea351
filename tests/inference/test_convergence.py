"""Scales that were not learned are told of; those that were, or that started right, are not."""

import warnings
from functools import partial

import pytest
import torch

from bayesuq import datasets
from bayesuq.inference import ensemble, variational
from bayesuq.inference.convergence import ScaleSlope, warn_unless_learned
from bayesuq.inference.guides import MeanFieldGuide, mean_field
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import Conjugate, built


def digits_model() -> BayesianNetwork:
    net = built(lambda: networks.mlp(64, (100, 100), 9))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())


# The rule


def warned(slope: float, error: float, movement: float) -> str:
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        warn_unless_learned(ScaleSlope(slope, error), movement, 50)
    return str(record[0].message) if record else ""


@pytest.mark.parametrize("slope", [-0.9, -0.2, 0.2, 0.9])
def test_small_movement_with_a_slope_left_warns_with_its_figures(slope):
    message = warned(slope, 0.01, 0.47)
    assert "not learned: after 50 epochs the median log scale has moved 0.47 nats" in message
    assert f"asks for {'wider' if slope < 0 else 'narrower'} ones (slope {slope:.2g} nats" in message
    assert "`num_epochs`" in message


@pytest.mark.parametrize("slope", [-0.9, 0.9])
def test_an_elbo_that_still_rises_warns_though_the_scales_moved(slope):
    message = warned(slope, 0.01, 3.0)
    assert "still rising after 50 epochs" in message
    assert ("wider" if slope < 0 else "narrower") in message


@pytest.mark.parametrize(
    ("slope", "error", "movement"),
    [
        (-0.05, 0.01, 0.0),  # hardly moved, but flat: they started right
        (-0.9, 0.3, 0.0),  # within three standard errors of flat
        (-0.2, 0.01, 1.5),  # moved, and nearly flat
        (0.0, 0.0, 0.0),
    ],
)
def test_a_flat_elbo_or_an_uncertain_slope_is_silent(slope, error, movement):
    assert warned(slope, error, movement) == ""


# Fits


def test_scales_that_hardly_moved_on_digits_are_told_of():
    split = datasets.load("digits-0to8")
    with pytest.warns(UserWarning, match=r"not learned: after 50 epochs .* wider ones") as record:
        posterior = variational.fit(
            digits_model(),
            split.train,
            guide=partial(mean_field, initial_scale=1e-3),
            num_epochs=50,
            batch_size=128,
            learning_rate=1e-3,
            scale_rate=1.0,
            seed=0,
        )
    assert len(record) == 1
    assert record[0].filename == __file__
    assert posterior.scale.median() < 0.01
    predictive = posterior.predict(split.test.x, num_samples=100, seed=0)
    assert predictive.epistemic.mean() < 1e-3  # the fake posterior that the warning is about


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("num_points", "num_features"), [(60, 1), (60, 8), (200, 3)])
def test_a_fit_that_converged_is_silent(num_points, num_features, seed):
    exact = Conjugate(num_points, num_features, 0.5, seed=10 * seed)
    posterior = variational.fit(  # a warning would be an error here
        exact.model, exact.data, num_epochs=1000, batch_size=num_points, learning_rate=0.03, scale_rate=1.0, seed=seed
    )
    assert (posterior.scale / exact.scale).log().abs().max() < 0.2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_features", [1, 5])
def test_a_fit_whose_scales_started_right_is_silent(num_features, seed):
    exact = Conjugate(40, num_features, 0.5, seed=10 * seed)
    guide = MeanFieldGuide(exact.model, exact.mean.float(), exact.scale.log().float())
    posterior = variational.fit(
        exact.model, exact.data, guide=lambda _: guide, num_epochs=100, batch_size=40, learning_rate=1e-3, seed=seed
    )
    assert (posterior.scale / exact.scale).log().abs().max() < 0.2


@pytest.mark.parametrize("factor", [0.05, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_fit_whose_scales_stayed_wrong_is_told_of(factor, seed):
    exact = Conjugate(40, 3, 0.5, seed=10 * seed)
    guide = MeanFieldGuide(exact.model, exact.mean.float(), (factor * exact.scale).log().float())
    direction = "wider" if factor < 1 else "narrower"
    with pytest.warns(UserWarning, match=f"not learned.*{direction}"):
        variational.fit(
            exact.model, exact.data, guide=lambda _: guide, num_epochs=10, batch_size=40, learning_rate=1e-3, seed=seed
        )


def test_members_of_an_ensemble_are_told_of_one_by_one():
    exact = Conjugate(40, 3, 0.5)
    with pytest.warns(UserWarning, match="not learned") as record:
        ensemble.fit(
            exact.model,
            exact.data,
            num_members=2,
            member_fit=partial(variational.fit, guide=partial(mean_field, initial_scale=1e-4)),
            num_epochs=10,
            learning_rate=1e-3,
            seed=0,
        )
    assert len(record) == 2


def test_the_slope_at_the_exact_posterior_is_zero_and_at_tiny_scales_minus_one():
    exact = Conjugate(40, 3, 0.5)
    for factor, expected in ((1.0, 0.0), (1e-3, -1.0)):
        guide = MeanFieldGuide(exact.model, exact.mean.float(), (factor * exact.scale).log().float())
        told = _slope_told(exact, guide)
        assert told is None if factor == 1 else told == pytest.approx(expected, abs=0.05)


def _slope_told(exact: Conjugate, guide: MeanFieldGuide) -> float | None:
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        variational.fit(
            exact.model, exact.data, guide=lambda _: guide, num_epochs=1, batch_size=40, learning_rate=1e-9, seed=0
        )
    if not record:
        return None
    return float(str(record[0].message).partition("(slope ")[2].partition(" ")[0])


def test_the_diagnosis_draws_nothing_from_the_global_generator():
    exact = Conjugate(40, 3, 0.5)
    before = torch.get_rng_state()
    variational.fit(exact.model, exact.data, num_epochs=1000, batch_size=40, learning_rate=0.03, scale_rate=1.0, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
