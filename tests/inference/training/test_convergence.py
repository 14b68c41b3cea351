"""Fits that are unfinished, that learned nothing or not their scales are told of; those that converged are not."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bayesuq import datasets
from bayesuq.data import Dataset
from bayesuq.inference import dropout, ensemble, map_estimate, variational
from bayesuq.inference.training.convergence import (
    ScaleSlope,
    is_cheap,
    num_ratios,
    warn_if_wide,
    warn_unless_learned,
    warn_unless_reaching,
)
from bayesuq.inference.training.options import Training, default_epochs
from bayesuq.inference.variational.guides import MeanFieldGuide, mean_field
from bayesuq.inference.variational.together import fit_mean_fields
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import Conjugate, built, labelled, noise, recorded_warnings

pytestmark = [pytest.mark.usefixtures("every_look"), pytest.mark.filterwarnings("error::bayesuq.ConvergenceWarning")]


def digits_model() -> BayesianNetwork:
    net = built(lambda: networks.mlp(64, (100, 100), 9))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())


# The rule


def warned(slope: float, error: float, movement: float) -> str:
    with recorded_warnings() as record:
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
    with recorded_warnings() as record:
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
    falling, scales = (str(one.message) for one in record)
    assert "still falling when the fit ended, after 50 epochs" in falling
    assert re.search(r"not learned: after 50 epochs .* wider ones", scales)
    assert {one.filename for one in record} == {__file__}
    assert posterior.scale.median() < 0.01
    predictive = posterior.predict(split.test.x, num_samples=100, seed=0)
    assert predictive.epistemic.mean() < 1e-3  # the fake posterior that the warning is about


@pytest.mark.parametrize(("num_points", "num_features", "seed"), [(60, 1, 0), (60, 8, 1), (200, 3, 0)])
def test_a_fit_that_converged_is_silent(num_points, num_features, seed):
    exact = Conjugate(num_points, num_features, 0.5, seed=10 * seed)
    posterior = variational.fit(  # a warning would be an error here
        exact.model, exact.data, num_epochs=500, batch_size=num_points, learning_rate=0.03, scale_rate=1.0, seed=seed
    )
    assert (posterior.scale / exact.scale).log().abs().max() < 0.2


@pytest.mark.parametrize("seed", range(3))
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
    with recorded_warnings() as record:
        variational.fit(
            exact.model, exact.data, guide=lambda _: guide, num_epochs=10, batch_size=40, learning_rate=1e-3, seed=seed
        )
    assert any(re.search(f"not learned.*{direction}", str(one.message)) for one in record)


def test_members_of_an_ensemble_are_told_of_one_by_one():
    exact = Conjugate(40, 3, 0.5)
    with recorded_warnings() as record:
        ensemble.fit(
            exact.model,
            exact.data,
            num_members=2,
            member_fit=partial(variational.fit, guide=partial(mean_field, initial_scale=1e-4)),
            num_epochs=10,
            learning_rate=1e-3,
            seed=0,
        )
    assert sum("not learned" in str(one.message) for one in record) == 2


def test_the_slope_at_the_exact_posterior_is_zero_and_at_tiny_scales_minus_one():
    exact = Conjugate(40, 3, 0.5)
    for factor, expected in ((1.0, 0.0), (1e-3, -1.0)):
        guide = MeanFieldGuide(exact.model, exact.mean.float(), (factor * exact.scale).log().float())
        told = _slope_told(exact, guide)
        assert told is None if factor == 1 else told == pytest.approx(expected, abs=0.05)


def _slope_told(exact: Conjugate, guide: MeanFieldGuide) -> float | None:
    with recorded_warnings() as record:
        variational.fit(
            exact.model, exact.data, guide=lambda _: guide, num_epochs=1, batch_size=40, learning_rate=1e-9, seed=0
        )
    told = [str(one.message) for one in record if "(slope " in str(one.message)]
    if not told:
        return None
    return float(told[0].partition("(slope ")[2].partition(" ")[0])


def test_the_diagnosis_draws_nothing_from_the_global_generator():
    exact = Conjugate(40, 3, 0.5)
    before = torch.get_rng_state()
    variational.fit(exact.model, exact.data, num_epochs=20, batch_size=40, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


# The loss, and the predictions


SMALL: dict[str, Callable[..., Any]] = {
    "map_estimate": map_estimate.fit,
    "dropout": dropout.fit,
    "ensemble": partial(ensemble.fit, num_members=1),
}


def told_by(fit: Callable[[], Any]) -> list[str]:
    with recorded_warnings() as record:
        fit()
    return [str(one.message) for one in record]


def waves(num_points: int) -> Dataset:
    x = noise(0, num_points, 1)
    return Dataset(x, torch.sin(2 * x[:, 0]) + 0.1 * noise(1, num_points))


def waves_model(*, scale: float | Literal["learned"] = "learned", **options: float) -> BayesianNetwork:
    net = built(lambda: networks.mlp(1, (50,), 1, **options))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=scale))


@pytest.mark.parametrize("name", SMALL)
def test_sixty_rows_are_learned_by_default_and_a_hundred_epochs_of_them_are_told_of(name):
    data, model = waves(60), waves_model(**({"dropout": 0.1} if name == "dropout" else {}))
    short = told_by(lambda: SMALL[name](model, data, num_epochs=100, seed=0))
    assert any("still falling" in one for one in short)
    if name == "ensemble":
        return  # its one member is the fit of map_estimate
    posterior = SMALL[name](model, data, seed=0)  # a warning would be an error here
    rest = data.y - posterior.predict(data.x, num_samples=30, seed=0).mean
    assert rest.std() < 0.35 * data.y.std()


def test_num_epochs_of_none_makes_at_least_two_thousand_steps_and_a_hundred_epochs():
    assert [default_epochs(num_batches) for num_batches in (1, 3, 19, 20, 500)] == [2000, 667, 106, 100, 100]


def test_a_posterior_that_says_no_more_than_a_constant_tells_so():
    data = waves(60)
    at_once = {"kl_weight": 1.0, "estimator": "weights"}  # whose noise buries the waves
    told = told_by(lambda: variational.fit(waves_model(), data, num_epochs=500, seed=0, **at_once))
    assert any("no better than a constant" in one for one in told)
    far = Dataset(data.x, data.y + 1000.0)
    told = told_by(lambda: map_estimate.fit(waves_model(scale=1.0), far, num_epochs=200, seed=0))
    assert any("no better than a constant" in one for one in told)


def test_labels_without_a_signal_are_told_of_and_those_with_one_are_not():
    net = built(lambda: nn.Linear(3, 3))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    data = labelled(60)
    assert told_by(lambda: map_estimate.fit(model, data, num_epochs=400, learning_rate=0.05, seed=0)) == []
    none = Dataset(0 * data.x, data.y)
    told = told_by(lambda: map_estimate.fit(model, none, num_epochs=200, seed=0))
    assert any("no better than a constant" in one for one in told)


def test_weights_that_validation_chose_before_the_end_are_not_called_unfinished():
    data, other = waves(60), Dataset(waves(40).x, -waves(40).y)  # the best epoch is the first
    told = told_by(lambda: map_estimate.fit(waves_model(), data, validation=other, num_epochs=100, seed=0))
    assert not any("still falling" in one for one in told)


def test_a_fit_that_was_resumed_tells_what_it_would_have_told(tmp_path):
    data, model = waves(60), waves_model()
    path = tmp_path / "fit"
    first = told_by(lambda: map_estimate.fit(model, data, num_epochs=100, seed=0, checkpoint=path))
    assert told_by(lambda: map_estimate.fit(model, data, num_epochs=100, seed=0, checkpoint=path)) == first != []


def test_a_fit_of_a_few_long_epochs_has_a_course_too():
    x = 0.1 * noise(0, 2000, 3)
    data = Dataset(x, x.sum(dim=1) + 3)  # nearly the same loss in every minibatch
    model = BayesianNetwork(built(lambda: nn.Linear(3, 1)), priors.Normal(3.0), likelihoods.Normal(scale=0.5))
    told = told_by(lambda: map_estimate.fit(model, data, num_epochs=2, batch_size=20, seed=0))
    assert any("still falling" in one for one in told)


# Guides of every kind, and programs


NARROW = 1e-4
STUCK: dict[str, Callable[..., Any]] = {
    "low rank": partial(variational.fit, guide=variational.low_rank(2, initial_scale=NARROW)),
    "full rank": partial(variational.fit, guide=partial(variational.full_rank, initial_scale=NARROW)),
    "local": partial(variational.fit, guide=partial(mean_field, initial_scale=NARROW), estimator="local"),
    "flipout": partial(variational.fit, guide=partial(mean_field, initial_scale=NARROW), estimator="flipout"),
    "autoguide": partial(variational.fit, guide=variational.autoguide(AutoNormal, init_scale=NARROW)),
}


@pytest.mark.parametrize("name", STUCK)
def test_every_guide_tells_that_its_scales_were_not_learned(name):
    exact = Conjugate(40, 3, 0.5)
    told = told_by(lambda: STUCK[name](exact.model, exact.data, num_epochs=50, learning_rate=1e-3, seed=0))
    assert any("not learned" in one or "still falling" in one for one in told)


def test_members_that_train_together_tell_that_they_are_unfinished():
    exact = Conjugate(40, 3, 0.5)
    trainings = [
        Training(num_epochs=50, batch_size=40, learning_rate=1e-3, schedule="constant", seed=seed) for seed in (0, 1)
    ]
    build = partial(mean_field, initial_scale=NARROW)
    told = told_by(lambda: fit_mean_fields([exact.model] * 2, [exact.data] * 2, trainings, guide=build))
    assert any("still falling" in one for one in told)


def line(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(10.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ slope, scale), obs=y)


def test_a_program_whose_slopes_are_known_to_a_thousandth_of_the_prior_is_right_by_default():
    x = 5.0 * noise(0, 100, 2)
    data = Dataset(x, x @ torch.tensor([3.0, 8.0], dtype=torch.float64) + 0.963 * noise(1, 100))
    posterior = variational.fit(line, data, seed=0)  # a warning would be an error here; k is .4 to .8 by its draws
    draws = posterior.sample_weights(200, seed=0)
    least_squares = torch.linalg.lstsq(x, data.y).solution[:, 0]
    rest = (data.y[:, 0] - x @ least_squares).square().sum().div(98).sqrt()
    assert float(draws["scale"].mean()) == pytest.approx(float(rest), rel=0.05)
    assert (draws["slope"].mean(dim=0) - least_squares).abs().max() < 0.02


def test_a_program_whose_posterior_is_missed_is_told_of():
    x = 5.0 * noise(0, 100, 2)
    x[:, 1] = x[:, 0] + 0.01 * x[:, 1]  # slopes that only a correlated guide reaches
    data = Dataset(x, x.sum(dim=1) + 0.963 * noise(1, 100))
    told = told_by(lambda: variational.fit(line, data, num_epochs=500, seed=0))
    assert any("misses parts of the model's" in one and "variational.full_rank" in one for one in told)


def test_a_network_is_asked_for_k_where_that_costs_little():
    assert not is_cheap(2000)
    assert is_cheap(10_000)
    assert [num_ratios(steps) for steps in (1, 1000, 10**6)] == [100, 250, 500]


# Draws weighed by the model's density


def told_of(mean: float, scale: float, size: int, rule: Callable[..., None]) -> str:
    """What is said of N(mean, scale^2) in each of so many numbers, where the model's law is N(0, 1)."""
    draws = mean + scale * noise(0, 500, size)
    ratios = (-0.5 * draws.square() + 0.5 * ((draws - mean) / scale).square()).sum(dim=1)
    with recorded_warnings() as record:
        rule(ratios, draws)
    return " ".join(str(one.message) for one in record)


def test_a_law_beside_the_models_or_wider_than_it_is_told_and_one_like_it_is_not() -> None:
    def rule(ratios: torch.Tensor, draws: torch.Tensor) -> None:
        warn_unless_reaching(ratios, "R.")
        warn_if_wide(ratios, [draws], subject="Wide", remedy="R.")

    assert told_of(0.0, 1.0, 4, rule) == told_of(0.1, 1.05, 4, rule) == ""
    assert "stands beside the model's" in told_of(0.8, 1.2, 1, rule)
    assert "Wide: its spreads are 1.6 times" in told_of(0.0, 1.6, 3, rule)
    places = (torch.arange(67).double() + 0.5) / 67  # of a Pareto tail of k = .4, of all that have any weight
    tail = (((1 - places) ** -0.4 - 1) / 0.4).log()
    with recorded_warnings() as record:
        warn_unless_reaching(torch.cat([tail, -30 - torch.linspace(0, 1, 433).double()]), "R.")
    assert "no more than 21 count" in str(record[0].message)


def test_a_law_a_fifth_too_narrow_is_told_where_its_tail_says_nothing_and_one_within_a_tenth_is_not() -> None:
    """Of 500 draws of N(0, s^2) for N(0, 1), over twenty seeds: k is below .7 for nearly all of them."""

    def share(scale: float, size: int) -> float:
        told = 0
        for seed in range(20):
            draws = scale * noise(seed, 500, size)
            ratios = (0.5 * (draws / scale).square() - 0.5 * draws.square()).sum(dim=1)
            with recorded_warnings() as record:
                warn_if_wide(ratios, [draws])
            told += any("narrower than the model's: its spreads are 0." in str(one.message) for one in record)
        return told / 20

    assert share(0.95, 1) == share(0.95, 5) == share(1.05, 5) == 0
    assert share(0.78, 1) > 0.6
    assert share(0.78, 5) > 0.9


def test_the_shape_of_a_tail_is_no_alarm_where_the_ratios_hardly_vary() -> None:
    places = (torch.arange(500).double() + 0.5) / 500
    tail = 1 / (1 - places)  # log ratios whose own tail has k = 1, of .93 and 1.4 at these scales as ratios
    for scale, is_told in ((4e-4, False), (0.01, True)):
        with recorded_warnings() as record:
            warn_unless_reaching(scale * tail, "R.")
        assert ["Pareto k" in str(one.message) for one in record] == [True] * is_told


def test_light_tails_are_no_alarm_where_means_and_spreads_are_right_and_else_say_by_how_much_they_are_not() -> None:
    """Of N(0, 1) for Student's t law of 8 degrees and variance 1, k is .93 though its draws are worth 98 %."""
    even = torch.special.ndtri((torch.arange(1000).double() + 0.5) / 1000)
    heavy = torch.distributions.StudentT(8.0, 0.0, 0.75**0.5)
    ratios = heavy.log_prob(even) + 0.5 * even.square()
    other = even[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    for scale, words in (
        (1.0, ""),
        (0.85, ""),
        (0.45, r"no more than 217 count.* its spreads are 0\.58 to 1 times"),
        (0.35, r"Pareto k 0\.73.* its spreads are 0\.55 to 1 times"),
    ):
        draws = scale * other  # of N(0, scale^2), for N(0, 1)
        with recorded_warnings() as record:
            warn_unless_reaching(ratios + 0.5 * (other.square() - draws.square()), "R.", [even, draws])
        told = " ".join(str(one.message) for one in record)
        assert re.search(words, told) if words else not told
    with recorded_warnings() as record:
        warn_unless_reaching(ratios, "R.")
    assert "Pareto k 0.93" in str(record[0].message)
