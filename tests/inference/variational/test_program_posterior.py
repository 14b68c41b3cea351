"""Pyro programs of the user's own: exact posteriors, the family of `y`, and what is refused."""

import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Dataset
from bayesuq.evaluation.report.reporting import evaluate
from bayesuq.fit_warnings import ConvergenceWarning
from bayesuq.inference import ensemble, map_estimate, sgmcmc, variational
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.variational.program_posterior import ProgramPosterior
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive
from tests.inference.examples import labelled, measured, noise

UNRECORDED = pytest.mark.filterwarnings("ignore:A (guide|model) of your own cannot be recorded:UserWarning")
NUM_GROUPS, NOISE, BETWEEN = 6, 0.4, 0.8


def line(x, y=None, num_data=None):
    """Bayesian linear regression without intercept; float32."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
        return pyro.sample("y", dist.Normal(x @ slope, 0.2), obs=y)


def hierarchical(x, y=None, num_data=None):
    """Intercepts of groups around a mean of their own; x holds the group and one input."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", NUM_GROUPS):
        intercept = pyro.sample("intercept", dist.Normal(mean, BETWEEN))
    with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
        return pyro.sample("y", dist.Normal(intercept[x[:, 0].long()] + slope * x[:, 1], NOISE), obs=y)


def grouped_data(num_points=120):
    """Groups of unequal size: the first has nearly all rows, the last just one."""
    group = torch.arange(num_points).remainder(NUM_GROUPS - 1)
    group[: num_points // 2] = 0
    group[-1] = NUM_GROUPS - 1
    x = torch.stack([group.double(), noise(0, num_points)], dim=1)
    truth = 1.0 + BETWEEN * noise(1, NUM_GROUPS)
    return Dataset(x, truth[group] + 0.5 * x[:, 1] + NOISE * noise(2, num_points))


def exact_hierarchical(data):
    """Mean and covariance of (mean, slope, intercepts...): a Gaussian, written out from the joint's quadratic form."""
    design = torch.zeros(len(data), 2 + NUM_GROUPS, dtype=torch.float64)
    design[:, 1] = data.x[:, 1]
    design[torch.arange(len(data)), 2 + data.x[:, 0].long()] = 1.0
    precision = design.T @ design / NOISE**2
    precision[0, 0] += 1.0 + NUM_GROUPS / BETWEEN**2
    precision[1, 1] += 1.0
    precision[0, 2:] -= 1 / BETWEEN**2
    precision[2:, 0] -= 1 / BETWEEN**2
    precision[2:, 2:] += torch.eye(NUM_GROUPS, dtype=torch.float64) / BETWEEN**2
    return torch.linalg.solve(precision, design.T @ data.y[:, 0] / NOISE**2), precision.inverse()


def test_hierarchical_regression_from_the_program_to_the_report():
    data = grouped_data()
    mean, covariance = exact_hierarchical(data)
    posterior = variational.fit(hierarchical, data, guide=AutoMultivariateNormal, num_epochs=400, num_draws=2, seed=0)
    draws = posterior.sample_weights(400, seed=1)
    flat = torch.cat([draws[name].reshape(400, -1) for name in ("mean", "slope", "intercept")], dim=1).double()
    scales = covariance.diag().sqrt()
    # Adam's last steps leave the means within a few tenths of a posterior scale; 400 draws add 4 % to the scales.
    assert ((flat.mean(dim=0) - mean) / scales).abs().max() < 0.3
    torch.testing.assert_close(flat.std(dim=0), scales, rtol=0.2, atol=0)
    # What the program is for: the group of one row leans on the others, its scale between noise and prior.
    assert scales[2] < 0.1 < 0.3 < scales[-1] < BETWEEN

    predictive = posterior.predict(data.x, num_samples=100, seed=0)
    assert isinstance(predictive, GaussianPredictive)
    design = torch.zeros(len(data), 2 + NUM_GROUPS, dtype=torch.float64)
    design[:, 1] = data.x[:, 1]
    design[torch.arange(len(data)), 2 + data.x[:, 0].long()] = 1.0
    spread = (design @ covariance * design).sum(dim=1)
    torch.testing.assert_close(predictive.epistemic[:, 0].double(), spread, rtol=0.5, atol=0)
    torch.testing.assert_close(predictive.aleatoric, torch.full_like(predictive.aleatoric, NOISE**2))
    report = evaluate(predictive, data.y)
    assert report["root_mean_squared_error"].value == pytest.approx(NOISE, rel=3 / math.sqrt(2 * len(data)))


def test_a_program_gives_what_the_same_model_as_a_network_gives():
    data = measured()
    net = nn.Linear(3, 1, bias=False)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.2))
    fits = [
        variational.fit(one, data, guide=AutoDelta, num_epochs=200, learning_rate=0.1, seed=0) for one in (line, model)
    ]
    one, other = (fit.predict(data.x, num_samples=1).mean for fit in fits)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # both at the one mode


def test_minibatches_find_what_all_rows_find():
    data = measured(200)
    options = {"guide": AutoDelta, "num_epochs": 120, "learning_rate": 0.1, "seed": 0}
    fits = [variational.fit(line, data, batch_size=size, **options) for size in (200, 50)]
    one, other = (fit.sample_weights(1)["slope"] for fit in fits)
    torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # the posterior scale is 0.2 / sqrt(200) = .014


def test_the_default_guide_is_mean_field_and_its_file_needs_the_program_alone(tmp_path):
    posterior = variational.fit(line, measured(), num_epochs=5, seed=0)
    with pytest.warns(UserWarning, match=r"A model of your own cannot be recorded") as record:
        posterior.save(tmp_path / "posterior")
    assert [warning.filename for warning in record] == [__file__]
    loaded = load(tmp_path / "posterior", model=line)
    assert isinstance(loaded, ProgramPosterior)
    one, other = (p.predict(measured().x, num_samples=3, seed=0) for p in (loaded, posterior))
    assert torch.equal(one.component_means, other.component_means)
    with pytest.raises(ValueError, match=r"parts of your own\. Pass it"):
        load(tmp_path / "posterior")
    network = BayesianNetwork(networks.mlp(3, (), 1), priors.Normal(), likelihoods.Normal())
    with pytest.raises(TypeError, match="must be a Pyro program, as in the file; got BayesianNetwork"):
        load(tmp_path / "posterior", model=network)
    with pytest.raises(ValueError, match="not the one that was fitted"):
        load(tmp_path / "posterior", model=hierarchical)


def columns(x, y=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ slope, torch.tensor([0.1, 0.3])).to_event(1), obs=y)


def classes(x, y=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3, 3), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Categorical(logits=x @ slope), obs=y)


def coins(x, y=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=x @ slope), obs=y)


def coins_by_probability(x, y=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3, 1), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(torch.sigmoid(x @ slope)).to_event(1), obs=y)


FLIPS = Dataset(labelled().x, (labelled().y > 1).long())
PAIRS = Dataset(measured().x, torch.cat([measured().y, -measured().y], dim=1))


@pytest.mark.parametrize(
    ("program", "data", "kind"),
    [
        (line, measured(), GaussianPredictive),
        (columns, PAIRS, GaussianPredictive),
        (classes, labelled(), CategoricalPredictive),
        (coins, FLIPS, CategoricalPredictive),
        (coins_by_probability, FLIPS, CategoricalPredictive),
    ],
    ids=["normal", "two columns", "categorical", "bernoulli", "bernoulli column"],
)
def test_the_family_of_y_decides_the_predictive(program, data, kind):
    posterior = variational.fit(program, data, guide=AutoDelta, num_epochs=30, seed=0)
    predictive = posterior.predict(data.x, num_samples=1)
    assert type(predictive) is kind
    slope = posterior.sample_weights(1)["slope"][0]
    x, y = data.x.float(), data.y.float() if data.y.is_floating_point() or "coin" in program.__name__ else data.y
    y = y if program in (columns, coins_by_probability) else y.reshape(len(x))
    y = y.reshape(len(x), 1) if program is coins_by_probability else y
    trace = pyro.poutine.trace(pyro.poutine.condition(program, data={"slope": slope})).get_trace(x, y)
    torch.testing.assert_close(
        predictive.log_prob(data.y).float(), trace.nodes["y"]["fn"].log_prob(y), rtol=1e-4, atol=1e-5
    )
    for epoch in (0, 29):
        assert math.isfinite(posterior.history.loss[epoch])
    assert posterior.history.loss[29] < posterior.history.loss[0]


class Module(PyroModule):
    """A program with a parameter of its own, learned as a point value."""

    def __init__(self):
        super().__init__()
        self.slope = PyroSample(dist.Normal(torch.zeros(3), 1.0).to_event(1))
        self.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

    def forward(self, x, y=None):
        mean = x @ self.slope
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, self.scale), obs=y)


def scaled(x, y=None):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ slope, scale), obs=y)


@pytest.mark.parametrize("program", [scaled, Module()], ids=["function", "module"])
def test_parameters_of_the_program_are_learned_and_the_users_stay_as_they_are(program):
    x = noise(0, 400, 3).float()
    data = Dataset(x, x.sum(dim=1) + 0.3 * noise(1, 400).float())
    posterior = variational.fit(program, data, num_epochs=125, seed=0)
    learned = float(posterior.predict(x[:2], num_samples=1).aleatoric[0]) ** 0.5
    assert learned == pytest.approx(0.3, rel=3 / math.sqrt(2 * 400) + 0.03)  # and 3 % for the last steps' noise
    assert list(pyro.get_param_store()) == []
    if isinstance(program, nn.Module):
        assert float(program.scale.detach()) == 1.0


def test_predictions_are_the_same_by_loader_by_row_and_by_seed():
    data = measured()
    posterior = variational.fit(line, data, num_epochs=3, seed=0)
    whole = posterior.predict(data.x, num_samples=4, seed=5).component_means
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=7)
    for other in (
        posterior.predict(loader, num_samples=4, seed=5).component_means,
        torch.cat([posterior.predict(row, num_samples=4, seed=5).component_means for row in data.x.split(1)], dim=1),
    ):
        torch.testing.assert_close(other, whole, rtol=1e-5, atol=1e-5)
    state = torch.get_rng_state()
    assert torch.equal(posterior.predict(data.x, num_samples=4, seed=5).component_means, whole)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(posterior.predict(data.x, num_samples=4, seed=6).component_means, whole)
    draws = posterior.sample_weights(4, seed=5)["slope"]
    torch.testing.assert_close((data.x.float() @ draws.T).T, whole[..., 0].float(), rtol=1e-4, atol=1e-4)


def test_kept_samples_are_the_draws():
    predictive = variational.fit(classes, labelled(), num_epochs=3, seed=0).predict(
        labelled().x, num_samples=4, keep_samples=True
    )
    torch.testing.assert_close(predictive.samples.mean(dim=0), predictive.mean, rtol=1e-5, atol=1e-6)


def local(x, y=None):
    with pyro.plate("data", len(x)):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def local_without_plate(x, y=None):
    level = pyro.sample("level", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def counts(x, y=None):
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Poisson(rate), obs=y)


def outliers(x, y=None):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.StudentT(4.0, level, 0.5), obs=y)


def waiting(x, y=None):
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Gamma(1.0, rate), obs=y)


def test_counts_have_their_conjugate_posterior_and_a_mixture():
    y = torch.tensor([3, 5, 2, 4, 6, 3, 1, 4])
    posterior = variational.fit(counts, Dataset(torch.zeros(8, 1), y), num_epochs=250, seed=0)
    predictive = posterior.predict(torch.zeros(2, 1), num_samples=400, seed=0)
    assert isinstance(predictive, MixturePredictive)
    exact = (1 + 28) / (1 + 8)  # the posterior is Gamma(29, 9), whose log-normal fit has nearly its mean
    torch.testing.assert_close(predictive.mean, torch.full((2, 1), exact).double(), rtol=0.05, atol=0)
    torch.testing.assert_close(predictive.epistemic, torch.full((2, 1), 29 / 81).double(), rtol=0.3, atol=0)
    assert evaluate(posterior.predict(torch.zeros(8, 1), seed=0), y)["crps"].value > 0


def test_targets_with_outliers_give_a_mixture():
    y = torch.cat([torch.linspace(0.5, 1.5, 30), torch.tensor([80.0])])
    posterior = variational.fit(outliers, Dataset(torch.zeros(31, 1), y), num_epochs=300, seed=0)
    predictive = posterior.predict(torch.zeros(2, 1), num_samples=100, seed=0)
    assert isinstance(predictive, MixturePredictive)
    torch.testing.assert_close(predictive.mean, torch.ones(2, 1).double(), rtol=0.1, atol=0)


def named_otherwise(x, y=None):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("obs", dist.Normal(level, 1.0), obs=y)


def one_for_all(x, y=None):  # noqa: ARG001
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    return pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def without_num_data(x, y=None):
    return line(x, y)


def heedless(x, y=None, num_data=None):  # noqa: ARG001
    return line(x, y)


def heedless_of_any(x, y=None, **others):  # noqa: ARG001
    return line(x, y)


@pytest.mark.parametrize(
    ("program", "options", "error", "words"),
    [
        (counts, {}, ValueError, "Some targets are no values of 'y': the support of its Poisson"),
        (named_otherwise, {"observed": "y"}, ValueError, "observes no site 'y'; it observes obs, and samples level"),
        (one_for_all, {}, ValueError, r"observes 'y' in shape \(\); the targets come in \(48,\)"),
        (without_num_data, {"batch_size": 16}, ValueError, "Minibatches need a program that takes `num_data`"),
        (heedless, {"batch_size": 16}, ValueError, r"does not scale to it: .* in place of .*subsample=.*batch_size="),
        (heedless_of_any, {"batch_size": 16}, ValueError, "takes `num_data`, but does not scale to it"),
        (columns, {}, ValueError, r"`y` of shape \(48, 1\) is no value of what the program observes, \(48, 2\)"),
        (nn.Linear(3, 1), {}, TypeError, "a Pyro program with an observed site; got Linear"),
        (line, {"guide": variational.low_rank(2)}, TypeError, "For a Pyro program pass mean_field or full_rank"),
        (line, {"guide": partial(variational.full_rank)}, TypeError, "For a Pyro program pass mean_field or full_rank"),
        ("program", {}, TypeError, "a Pyro program with an observed site; got str"),
    ],
    ids=[
        "fractions",
        "no y",
        "scalar y",
        "minibatch",
        "heedless",
        "heedless of any",
        "columns",
        "network",
        "low rank",
        "full rank with options",
        "name",
    ],
)
def test_what_has_no_posterior_predictive_is_refused_before_any_work(program, options, error, words):
    with pytest.raises(error, match=words):
        variational.fit(program, measured(), num_epochs=1, seed=0, **options)


@pytest.mark.parametrize("program", [local, local_without_plate])
def test_latents_of_single_rows_are_fitted_to_all_rows_and_predict_at_these(program):
    """Each level has the law N(y / 2, 1 / 2), and a further target of its row the variance 3 / 2."""
    data = Dataset(torch.zeros(6, 1), torch.linspace(-2.0, 2.0, 6))
    posterior = variational.fit(program, data, num_epochs=300, seed=0)
    levels = posterior.sample_weights(1000, seed=0)["level"]
    assert (levels.mean(dim=0) - data.y[:, 0] / 2).abs().max() < 4 * math.sqrt(0.5 / 1000) + 0.05
    torch.testing.assert_close(levels.std(dim=0), torch.full((6,), math.sqrt(0.5)), rtol=0.15, atol=0)
    torch.testing.assert_close(
        posterior.predict(data.x, num_samples=200, seed=0).total, torch.full((6, 1), 1.5).double(), rtol=0.2, atol=0
    )
    with pytest.raises(ValueError, match="level"):
        posterior.predict(torch.zeros(7, 1))


@pytest.mark.parametrize("fit", [map_estimate.fit, sgmcmc.fit, ensemble.fit], ids=["map", "sgmcmc", "ensemble"])
def test_every_word_refuses_minibatches_of_what_does_not_scale(fit):
    with pytest.raises(ValueError, match=r"does not scale to it"):
        fit(heedless, measured(), batch_size=16, seed=0)


def scaled_without_a_plate(x, y=None, num_data=None):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.poutine.scale(scale=(num_data or len(x)) / len(x)):
        return pyro.sample("y", dist.Normal(level.expand(len(x)), 1.0).to_event(1), obs=y)


def test_a_program_that_scales_by_hand_takes_minibatches():
    variational.fit(scaled_without_a_plate, measured(), num_epochs=1, batch_size=16, seed=0)


def test_weights_need_a_program_that_takes_them():
    data = Dataset(measured().x, measured().y, weight=torch.ones(48))
    with pytest.raises(ValueError, match=r"takes no argument `weight`.*weight=None.*poutine.scale\("):
        variational.fit(line, data, num_epochs=1, seed=0)


def test_two_columns_are_never_broadcast_over_a_single_one():
    with pytest.raises(ValueError, match=r"`y` of shape \(48, 2\) is no value of what the program observes, \(48,\)"):
        variational.fit(line, PAIRS, num_epochs=1, seed=0)


@UNRECORDED
def test_a_module_moves_with_its_posterior(tmp_path):
    posterior = variational.fit(Module(), measured(), num_epochs=3, seed=0)
    moved = posterior.to("cpu")
    one, other = (p.predict(measured().x, num_samples=3, seed=0).component_means for p in (posterior, moved))
    assert torch.equal(one, other)
    posterior.save(tmp_path / "posterior")
    loaded = load(tmp_path / "posterior", model=Module())
    assert torch.equal(loaded.predict(measured().x, num_samples=3, seed=0).component_means, one)


@UNRECORDED
def test_posteriors_loaded_with_one_module_stay_apart_and_leave_it_as_it_was(tmp_path):
    module, x = Module(), measured().x
    paths = [tmp_path / "straight", tmp_path / "reversed"]
    for path, sign in zip(paths, (1.0, -1.0), strict=True):
        variational.fit(module, Dataset(x, sign * measured().y), num_epochs=3, seed=0).save(path)
    alone = load(paths[0], model=module).predict(x, num_samples=3, seed=0)
    first, _ = [load(path, model=module) for path in paths]
    again = first.predict(x, num_samples=3, seed=0)
    assert torch.equal(again.component_means, alone.component_means)
    assert torch.equal(again.noise_variance, alone.noise_variance)
    assert float(module.scale.detach()) == 1.0


@pytest.mark.usefixtures("every_look")
def test_spreads_that_were_not_learned_are_told():
    """Three latents whose guide starts wider than their posterior; ratios are well behaved, so that k says nothing.

    Such a program is fitted for longer without a word in `tests/inference/training/test_convergence.py`.
    """
    seeded = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=seeded)
    rows = Dataset(x, x @ torch.tensor([1.0, -1.0]) + 0.3 * torch.randn(60, generator=seeded))

    def program(x, y=None):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(5.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ slopes, scale), obs=y)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        variational.fit(program, rows, guide=AutoNormal, num_epochs=100, seed=0, progress=False)
    messages = [str(one.message) for one in found if issubclass(one.category, ConvergenceWarning)]
    assert messages
    assert all("scales were not learned" in message for message in messages)


def test_a_family_beside_the_usual_ones_is_fitted_and_predicted():
    y = torch.distributions.Gamma(2.0, 0.5).sample((60,))
    posterior = variational.fit(waiting, Dataset(torch.zeros(60, 3), y), num_epochs=300, seed=0, progress=False)
    predictive = posterior.predict(torch.zeros(2, 3), num_samples=50, seed=0)
    assert isinstance(predictive, MixturePredictive)
    torch.testing.assert_close(predictive.mean, y.double().mean().expand(2, 1), rtol=0.1, atol=0)


def test_a_flat_prior_without_draws_is_refused_and_its_remedy_works():
    def flat(law):
        def program(x, y=None):
            level = pyro.sample("level", law)
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(level, 1.0).expand([len(x)]), obs=y)

        return program

    data = Dataset(torch.zeros(25, 1), torch.arange(25.0))
    improper = dist.ImproperUniform(dist.constraints.real, (), ())
    with pytest.raises(ValueError, match="Write a flat prior as `dist"):
        variational.fit(flat(improper), data, num_epochs=5, seed=0, progress=False)
    law = dist.Normal(0.0, 1.0).mask(False)
    posterior = variational.fit(flat(law), data, num_epochs=200, seed=0, progress=False)
    assert float(posterior.sample_weights(200, seed=0)["level"].mean()) == pytest.approx(12.0, abs=0.06)


TWENTY = Dataset(torch.zeros(20, 1), torch.ones(20))


def coming_and_going(x, y=None):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    if level > 0:
        level = level + pyro.sample("more", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(level, 1.0).expand([len(x)]), obs=y)


def one_for_each_ten(x, y=None):
    level = sum(pyro.sample(f"level_{k}", dist.Normal(0.0, 1.0)) for k in range(len(x) // 10))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(level, 1.0).expand([len(x)]), obs=y)


@pytest.mark.parametrize("guide", [variational.mean_field, AutoNormal])
@pytest.mark.filterwarnings("ignore:Found:UserWarning")  # Pyro's, of sites that its guide does not have
def test_sites_that_come_and_go_are_refused_whatever_the_guide(guide):
    with pytest.raises(ValueError, match="its sites must not change"):
        variational.fit(coming_and_going, TWENTY, guide=guide, num_epochs=20, seed=0)


@pytest.mark.parametrize("guide", [variational.mean_field, AutoNormal, variational.autoguide(AutoNormal)])
def test_sites_that_go_with_the_number_of_rows_are_fitted_to_these(guide):
    posterior = variational.fit(one_for_each_ten, TWENTY, guide=guide, num_epochs=20, seed=0)
    assert list(posterior.sample_weights(1, seed=0)) == ["level_0", "level_1"]
    with pytest.raises(ValueError, match="level_0"):
        posterior.predict(torch.zeros(30, 1))
