"""SWAG: the law of SGD's iterates on a quadratic, its moments, its draws, and what it does not touch."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from bayesuq import datasets
from bayesuq.data import Batch, Dataset
from bayesuq.evaluation.scores import accuracy
from bayesuq.inference import ensemble, map_estimate, swag
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.posteriors.network_mode import ModeObjective
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.swag import iterates
from bayesuq.inference.swag.iterates import SgdIterates
from bayesuq.inference.training import loop as optimize
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.history import History
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import generator
from tests.inference.examples import Conjugate, built, measured, noise
from tests.posterior_contract import tensors_of


class Shifts(nn.Module):
    """f = scale * shift, whatever x is: a quadratic whose curvature is the same on every minibatch."""

    def __init__(self, scales):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros_like(scales))
        self.register_buffer("scales", scales)

    def forward(self, x):
        return (self.scales * self.shift).expand(len(x), -1)


def shifts(scales, num_points=64, prior_scale=1e4):
    """The model, and rows whose noise is independent from column to column."""
    model = BayesianNetwork(Shifts(scales), priors.Normal(scale=prior_scale), likelihoods.Normal(scale=1.0))
    return model, Dataset(torch.zeros(num_points, 1, dtype=torch.float64), noise(3, num_points, len(scales)))


@cache
def mlp_model(likelihood=None, *, batch_norm=False, dropout=0.0, **options):
    net = built(lambda: networks.mlp(3, (6,), 1, activation="tanh", batch_norm=batch_norm, dropout=dropout))
    return BayesianNetwork(net, priors.Normal(), likelihood or likelihoods.Normal(scale=0.2), **options)


def fit(model=None, data=None, **options):
    options = {"num_epochs": 8, "batch_size": 16, "learning_rate": 1e-2, "seed": 1} | options
    return swag.fit(mlp_model() if model is None else model, measured() if data is None else data, **options)


# Where SGD wanders


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_iterates_have_the_stationary_variance_of_constant_sgd(momentum):
    # theta' = theta - rate v', v' = momentum v + a (theta - mode) + xi, Var xi = c: the stationary variance is
    # rate c (1 + m) / ((1 - m) a (2 (1 + m) - rate a)), and in the limit of small rates that of Mandt, Hoffman &
    # Blei's Ornstein-Uhlenbeck process, rate c / (2 a (1 - m)).
    curvatures = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    replicas, batch_size, rate, num_steps = 200, 4, 0.2 * (1 - momentum), 1000
    model, data = shifts(curvatures.sqrt().repeat_interleave(replicas))
    sgd = SgdIterates(ModeObjective(model, len(data)), every=1, rank=0, momentum=momentum)
    sgd.mode.move_to(data.y.mean(dim=0) / model.net.scales)
    objective = sgd.objective()
    optimizer = objective.optimizer(objective, rate)
    rows = torch.randint(len(data), (num_steps, batch_size), generator=generator(0))
    for chosen in rows:  # drawn afresh each time, as the theory has it
        objective.loss_and_grads(Batch(data.x[chosen], data.y[chosen], None), generator(0))
        optimizer.step()
        objective.after_step()
    a = curvatures.repeat_interleave(replicas)
    noise_variance = a * data.y.var(dim=0, correction=0) / batch_size
    limit = rate * noise_variance / (2 * a * (1 - momentum))
    exact = limit / (1 - rate * a / (2 * (1 + momentum)))
    ratios = (sgd.moments.variance / exact).reshape(3, replicas)
    # A mean over n correlated values misses the variance of that mean: 2 / (n r), r the relaxation a step.
    lost = 2 * (1 - momentum) / (num_steps * rate * curvatures)
    error = ratios.std(dim=1) / math.sqrt(replicas)
    assert error.max() < 0.02
    assert ((ratios.mean(dim=1) - (1 - lost)).abs() < 4 * error).all()
    assert ((exact / limit - 1).abs() < 0.26).all()  # rate a / 2 at most 0.2: 1 / (1 - 0.2) - 1


def test_an_epoch_without_replacement_makes_the_law_narrower():
    # What the documentation warns of: the noises of one epoch cancel, so that slow directions hardly spread.
    model, data = shifts(torch.full((50,), 0.3, dtype=torch.float64))
    mode = map_estimate.fit(model, data, num_epochs=100, batch_size=64, learning_rate=0.1, seed=0)
    options = {"rank": 0, "num_epochs": 120, "batch_size": 4, "swa_learning_rate": 0.05, "momentum": 0.0}
    variance = fit(model, data, mode=mode, **options).variance.mean()
    independent = 0.05 * float(data.y.var(dim=0, correction=0).mean()) / (2 * 4)
    assert variance < 0.4 * independent


def test_the_default_rate_is_mandts_where_that_is_stable():
    model, data = shifts(torch.full((40,), 0.7, dtype=torch.float64), num_points=400)
    source = Source(NetworkReader(model), data, 10)
    sgd = SgdIterates(ModeObjective(model, len(data)), every=1, rank=0, momentum=0.9)
    sgd.mode.move_to(data.y.mean(dim=0) / 0.7)
    trace = 0.49 * float(data.y.var(dim=0).sum()) / 10  # of a minibatch's gradient
    found = [sgd.default_rate(source, seed) for seed in range(6)]
    assert np.mean(found) == pytest.approx((1 - 0.9) * 2 * 40 / (400 * trace), rel=0.05)  # 800 squares a rate: 5 %
    assert torch.equal(sgd.mode.flat(), (data.y.mean(dim=0) / 0.7))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_default_rate_is_a_tenth_of_the_largest_stable_one_where_mandts_is_more(momentum):
    model, data = shifts(torch.tensor([30.0, 0.1, 0.1], dtype=torch.float64))
    source = Source(NetworkReader(model), Dataset(data.x, data.y * 1e-3), 16)  # hardly any noise
    sgd = SgdIterates(ModeObjective(model, len(data)), every=1, rank=0, momentum=momentum)
    assert sgd.default_rate(source, 0) == pytest.approx(0.1 * 2 * (1 + momentum) / 30.0**2, rel=1e-6)


@pytest.fixture(scope="module")
def certain():
    """A classifier that fits its labels with certainty, where the loss is flat at the mode and steep around it."""
    split = datasets.load("digits")
    net = built(lambda: networks.mlp(64, (50,), 10))
    model = BayesianNetwork(net, priors.Normal(scale=3.0), likelihoods.Categorical())
    options = {"batch_size": 32, "seed": 0, "progress": False}
    mode = map_estimate.fit(model, split.train, num_epochs=40, learning_rate=0.01, **options)
    return split, {"model": model, "data": split.train, "mode": mode, "num_epochs": 4, "rank": 4, **options}


def test_the_default_rate_stays_at_a_mode_that_is_flat_and_steep_around(certain):
    split, options = certain
    posterior = swag.fit(**options)
    assert posterior.history.loss[-1] < options["mode"].history.loss[-1] + iterates.LOST
    assert accuracy(posterior.predict(split.test.x, num_samples=10, seed=0), split.test.y) > 0.95


def test_the_trial_of_a_rate_counts_the_labels_of_images():
    net = built(lambda: nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 1)))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    x = noise(0, 16, 1, 16, 16).float()
    images = Dataset(x, (x[:, 0] + noise(1, 16, 16, 16) > 0).long())  # labels that no network fits with certainty
    options = {"batch_size": 4, "seed": 0, "progress": False}
    mode = map_estimate.fit(model, images, num_epochs=40, learning_rate=0.02, **options)
    source = Source(NetworkReader(model), images, 4)
    sgd = SgdIterates(ModeObjective(model, len(images)), every=1, rank=0, momentum=0.9)
    sgd.mode.move_to(mode.values)
    at_mode = [mode.history.loss[-1] / 256] * iterates.TRIAL_STEPS
    rate = next(rate for rate in 0.5 ** np.arange(20) if sgd._stays(rate, source, 0, at_mode))
    posterior = swag.fit(
        model, images, mode=mode, swa_learning_rate=float(rate), num_epochs=128, swa_share=0.5, **options
    )
    lost = posterior.history.loss[-1] - mode.history.loss[-1]
    assert iterates.LOST < lost < 256 * iterates.LOST  # nats an image of 256 pixels; and nobody warned


def test_the_rate_of_the_theory_leaves_such_a_mode_and_says_so(certain, monkeypatch):
    monkeypatch.setattr(SgdIterates, "_stays", lambda *_: True)
    with pytest.warns(UserWarning, match=r"SGD has left the mode: its loss is .* Pass a `swa_learning_rate` below 0\."):
        swag.fit(**certain[1])


def test_a_trial_leaves_the_weights_where_they_were(certain):
    _, options = certain
    model, data = options["model"], options["data"]
    sgd = SgdIterates(ModeObjective(model, len(data)), every=1, rank=0, momentum=0.9)
    sgd.mode.move_to(options["mode"].values)
    before, source = sgd.mode.flat().clone(), Source(NetworkReader(model), data, 32)
    rate = sgd.default_rate(source, 0)
    assert torch.equal(sgd.mode.flat(), before)
    assert sgd.default_rate(source, 0) == rate


def test_the_trial_of_a_rate_is_no_longer_than_what_it_is_for(monkeypatch):
    calls, original = [], SgdIterates._loss
    monkeypatch.setattr(SgdIterates, "_loss", lambda self, *args: calls.append(0) or original(self, *args))
    fit()  # six steps of SGD, over three minibatches
    halvings = (len(calls) - 3 - 6) / 6  # the noise of the three, the six at the mode, and trials of six at most
    assert 1 <= halvings < 4  # 256 and more were made, whatever the data


def test_the_default_rate_leaves_the_statistics_of_batches_alone():
    model = mlp_model(batch_norm=True)
    sgd = SgdIterates(ModeObjective(model, 48), every=1, rank=0, momentum=0.9)
    before = {name: value.clone() for name, value in sgd.mode.network.buffers.items()}
    assert 0 < sgd.default_rate(Source(NetworkReader(model), measured(), 16), 0) < math.inf
    assert all(torch.equal(value, before[name]) for name, value in sgd.mode.network.buffers.items())


def test_full_batches_without_noise_stay_at_the_mode():
    case = Conjugate(40, 2, 0.5, dtype=torch.float64)
    posterior = fit(case.model, case.data, num_epochs=600, batch_size=40, swa_share=0.5, learning_rate=0.05)
    torch.testing.assert_close(posterior.mean, case.mean, rtol=1e-6, atol=1e-6)
    assert posterior.variance.max() < 1e-9


# What is collected, and the law that it makes


@pytest.mark.parametrize(("rank", "collect_every"), [(0, 2), (2, 1), (4, None), (50, 3)])
def test_the_moments_are_those_of_the_recorded_iterates(rank, collect_every, monkeypatch):
    recorded = []
    original = SgdIterates._collect

    def record(self):
        recorded.append(self.mode.flat().double().numpy().copy())
        original(self)

    monkeypatch.setattr(SgdIterates, "_collect", record)
    posterior = fit(mlp_model(likelihoods.Normal(scale=priors.Gamma(3.0, 2.0))), rank=rank, collect_every=collect_every)
    assert len(recorded) == 6  # two epochs of three steps
    every = collect_every or 1  # an epoch would give two iterates of the four
    iterates = np.stack(recorded)[every - 1 :: every]
    assert iterates.shape == (6 // every, 32)
    mean = iterates.mean(axis=0)
    np.testing.assert_allclose(posterior.mean, mean, rtol=1e-6, atol=1e-7)  # kept in float32
    np.testing.assert_allclose(posterior.variance, iterates.var(axis=0), rtol=1e-6, atol=1e-12)
    assert len(posterior.deviations) == min(rank, len(iterates))
    kept = sorted(map(tuple, posterior.deviations.double().numpy()))
    expected = sorted(map(tuple, (iterates - mean)[max(0, len(iterates) - rank) :])) if rank else []
    np.testing.assert_allclose(kept, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("rank", [0, 2, 3])
def test_draws_have_half_of_each_covariance(rank, scale):
    case = Conjugate(10, 3, 0.5, dtype=torch.float64)
    variance, deviations = noise(1, 4).square(), noise(2, rank, 4)
    posterior = swag.SwagPosterior(
        model=case.model,
        mean=noise(0, 4),
        variance=variance,
        deviations=deviations,
        scale=scale,
        buffers={},
        history=History((0.0,), (), 0),
    )
    covariance = torch.diag(variance)
    if rank:
        covariance = 0.5 * covariance + deviations.T @ deviations / (2 * (rank - 1))
    covariance = scale * covariance
    count = 1500
    draws = posterior._draws(range(count), 0)
    error = ((covariance.diag().outer(covariance.diag()) + covariance.square()) / count).sqrt()  # Wishart
    assert ((draws.T.cov() - covariance).abs() < 4 * error).all()
    assert ((draws.mean(dim=0) - posterior.mean).abs() < 4 * (covariance.diag() / count).sqrt()).all()


def test_the_mean_alone_predicts_as_one_network():
    posterior = fit()
    x = measured().x
    alone = posterior.averaged.predict(x)
    theta = Layout.of(posterior.model).split(posterior.mean)
    expected = posterior.model.forward(theta, x.float()).double()
    torch.testing.assert_close(alone.mean, expected, rtol=1e-6, atol=1e-6)
    assert alone.num_samples == 1
    assert alone.epistemic.max() == 0
    assert posterior.predict(x, seed=0).epistemic.min() > 0


@pytest.mark.parametrize("rank", [0, 5])
def test_point_values_do_not_spread(rank):
    model = mlp_model(likelihoods.Normal(scale="learned"), random="last_layer")
    posterior = fit(model, rank=rank)
    draws = posterior.sample_weights(8, seed=0)
    for name in model.points:
        assert torch.equal(draws[name], draws[name][:1].expand_as(draws[name]))
        assert not torch.equal(draws[name][0], model.initial()[name])  # learned, though
    assert all(draws[name].std(dim=0).min() > 0 for name in model.laws)


def test_statistics_of_normalisation_are_those_at_the_mean():
    model, data = mlp_model(batch_norm=True, dropout=0.3), measured()
    posterior = fit(model, data, batch_size=len(data), num_epochs=16)
    theta = Layout.of(model).split(posterior.mean)
    hidden = torch.nn.functional.linear(data.x.float(), theta["1.weight"], theta["1.bias"])
    torch.testing.assert_close(posterior.buffers["2.running_mean"], hidden.mean(dim=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(posterior.buffers["2.running_var"], hidden.var(dim=0), rtol=1e-5, atol=1e-6)


# The course of a fit


def test_sgd_starts_from_a_given_mode_and_from_its_statistics():
    model = mlp_model(likelihoods.Normal(scale="learned"), batch_norm=True)
    mode = map_estimate.fit(model, measured(), num_epochs=5, seed=0)
    posterior = fit(model, mode=mode, swa_learning_rate=1e-12)
    torch.testing.assert_close(posterior.mean, mode.values, rtol=0, atol=1e-6)
    assert len(posterior.history.loss) == 5 + 2
    assert int(posterior.buffers["2.num_batches_tracked"]) == int(mode.buffers["2.num_batches_tracked"]) + 6


def test_the_way_to_the_mode_is_map_estimates_and_its_validation_picks_the_start():
    told = []
    posterior = fit(
        validation=measured(20, seed=5), callbacks=[told.append], swa_learning_rate=1e-12, learning_rate=0.3
    )
    assert [progress.epoch for progress in told] == list(range(8))
    assert [progress.step for progress in told] == list(range(3, 25, 3))
    assert len(posterior.history.loss) == 8
    assert len(posterior.history.validation_loss) == 6
    best = min(posterior.history.validation_loss)
    x, y = measured(20, seed=5).x, measured(20, seed=5).y
    assert -float(posterior.averaged.predict(x).log_prob(y).mean()) == pytest.approx(best, rel=1e-4)


def test_a_single_epoch_is_sgds():
    posterior = fit(num_epochs=1)
    assert len(posterior.history.loss) == 1
    assert len(posterior.deviations) == 3


CASES = {
    "plain": {},
    "learned noise, dropout, batch norm": {"likelihood": "learned", "dropout": 0.3, "batch_norm": True},
    "given rate": {"swa_learning_rate": 1e-4, "rank": 2},
}


class StoppedError(Exception):
    """As if the power had failed."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop_after", [1, 8, 11])
def test_a_stopped_fit_goes_on_to_the_same_bits(case, stop_after, tmp_path, monkeypatch):
    own = dict(CASES[case])
    law = likelihoods.Normal(scale="learned") if own.pop("likelihood", None) else None
    model = mlp_model(law, dropout=own.pop("dropout", 0.0), batch_norm=own.pop("batch_norm", False))
    options = {"num_epochs": 4, "swa_share": 0.5} | own
    checkpoint = Checkpoint(tmp_path / "state", every_steps=1)
    uninterrupted = fit(model, checkpoint=tmp_path / "other", **options)  # which has files, but is not stopped
    steps, original = itertools.count(), optimize._Run._step

    def step(self, batch):
        if next(steps) == stop_after:
            raise StoppedError
        original(self, batch)

    monkeypatch.setattr(optimize._Run, "_step", step)
    with pytest.raises(StoppedError):
        fit(model, checkpoint=checkpoint, **options)
    monkeypatch.setattr(optimize._Run, "_step", original)
    resumed = fit(model, checkpoint=checkpoint.path, **(options | {"seed": None}))  # which writes at the end alone
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(resumed), tensors_of(uninterrupted), strict=True))
    assert resumed.history == uninterrupted.history


def test_a_checkpoint_changes_nothing(tmp_path):
    one, other = fit(checkpoint=tmp_path / "state"), fit()
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))
    assert {path.name for path in tmp_path.iterdir()} == {"state", "state.mode", "state.iterates"}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_multi_swag_is_an_ensemble_of_it(tmp_path):
    posterior = ensemble.fit(
        mlp_model(), measured(), num_members=3, member_fit=swag.fit, num_epochs=8, batch_size=16, seed=0
    )
    assert [type(member).__name__ for member in posterior.members] == ["SwagPosterior"] * 3
    x = measured().x
    predictive = posterior.predict(x, num_samples=30, seed=0)
    alone = torch.stack([member.averaged.predict(x).mean for member in posterior.members])
    assert predictive.num_samples == 30
    assert (predictive.epistemic.mean() > alone.var(dim=0, correction=0).mean() / 2).all()
    posterior.save(tmp_path / "posterior")
    again = load(tmp_path / "posterior").predict(x, num_samples=30, seed=0)
    assert torch.equal(again.mean, predictive.mean)
    assert torch.equal(again.epistemic, predictive.epistemic)


# What it refuses


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"rank": 1}, ValueError, "`rank` must be 0 or at least 2"),
        ({"rank": -1}, ValueError, "`rank` must be at least 0"),
        ({"rank": 2.0}, TypeError, "`rank` must be a whole number"),
        ({"swa_share": 0.0}, ValueError, "`swa_share` must lie strictly between 0 and 1"),
        ({"swa_learning_rate": 0.0}, ValueError, "`swa_learning_rate` must be a finite number above 0"),
        ({"momentum": 1.0}, ValueError, r"`momentum` must lie in \[0, 1\)"),
        ({"collect_every": 0}, ValueError, "`collect_every` must be at least 1"),
        ({"collect_every": 4}, ValueError, "at least two iterates; 6 steps of SGD give 1, one every 4"),
        ({"scale": 0.0}, ValueError, "`scale` must be a finite number above 0"),
        ({"num_epochs": 1, "batch_size": 99}, ValueError, "at least two iterates; 1 steps of SGD give 1"),
        ({"mode": 3}, TypeError, "`mode` must be a posterior of `map_estimate.fit`; got int"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_options_out_of_range_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        fit(**options)


def test_a_mode_of_another_model_is_refused():
    mode = map_estimate.fit(mlp_model(likelihoods.Normal(scale="learned")), measured(), num_epochs=1, seed=0)
    with pytest.raises(ValueError, match="`mode` must be of the same model"):
        fit(mode=mode)


def test_a_rate_that_diverges_names_itself():
    with pytest.raises(FloatingPointError, match="Lower `swa_learning_rate`, set"):
        fit(swa_learning_rate=1e3, num_epochs=80)
