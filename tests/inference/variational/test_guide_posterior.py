"""Guides by Pyro's ordinary route: against conjugate posteriors, and in peace with Pyro's global state."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide as pyro_guides
from torch import nn
from torch.distributions import transform_to

from bayesuq.data import Batch, Dataset
from bayesuq.inference import variational
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.variational.guide_posterior import GuidePosterior
from bayesuq.inference.variational.guided_program import GuidedProgram
from bayesuq.inference.variational.guides import autoguide
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import Conjugate, built, measured

UNRECORDED = pytest.mark.filterwarnings("ignore:A guide of your own cannot be recorded:UserWarning")
EXACT = Conjugate(60, 2, 0.5, dtype=torch.float64)


def flat_draws(posterior, num_samples=4000):
    draws = posterior.sample_weights(num_samples, seed=3)
    return torch.cat([draws["weight"].flatten(1), draws["bias"].flatten(1)], dim=1)


def hand_written(x, y=None, num_data=None, weight=None):  # noqa: ARG001
    """Mean field over `Conjugate`, its parameters in Pyro's store."""
    for name, shape in (("weight", (1, 2)), ("bias", (1,))):
        loc = pyro.param(f"loc.{name}", torch.zeros(shape, dtype=torch.float64))
        scale = pyro.param(
            f"scale.{name}", torch.full(shape, 0.05, dtype=torch.float64), constraint=dist.constraints.positive
        )
        pyro.sample(name, dist.Normal(loc, scale).to_event(len(shape)))


SHARED = pyro_guides.AutoNormal(EXACT.model)


def first_rows(conjugate, num_rows=1):
    return Batch(conjugate.data.x[:num_rows].to(conjugate.dtype), conjugate.data.y[:num_rows].to(conjugate.dtype), None)


def all_rows(conjugate):
    return first_rows(conjugate, len(conjugate.data))


def test_at_the_exact_posterior_every_draw_of_the_loss_is_minus_the_log_evidence():
    pair = GuidedProgram(EXACT.model, pyro_guides.AutoMultivariateNormal, first_rows(EXACT), seed=0)
    root = torch.linalg.cholesky(EXACT.precision.inverse())
    scale = transform_to(pyro_guides.AutoMultivariateNormal.scale_constraint).inv(root.diag())
    tril = transform_to(pyro_guides.AutoMultivariateNormal.scale_tril_constraint).inv(root / root.diag()[:, None])
    exact = {"loc": EXACT.mean, "scale": scale, "scale_tril": tril}
    pair.put({name: exact[name.rpartition(".")[2]] for name in pair.leaves})
    with pair.active(0):
        losses = torch.stack([pair.loss(all_rows(EXACT), 60, num_draws=3) for _ in range(5)])
    # float64 sums over 60 points; Pyro makes the guide's unit triangle in float32 steps of 1e-7
    torch.testing.assert_close(losses, -EXACT.log_evidence.expand(5), rtol=1e-6, atol=0)


# Adam's last steps leave the means within a few tenths of a posterior scale: the gradient noise of two draws a step.
@pytest.mark.parametrize(
    ("guide", "num_epochs"),
    [
        (autoguide(pyro_guides.AutoLowRankMultivariateNormal, rank=3), 200),
        (pyro_guides.AutoMultivariateNormal, 150),
    ],
    ids=["low rank", "full rank, from the prior's median"],
)
def test_a_guide_that_contains_the_posterior_finds_it(guide, num_epochs):
    conjugate = Conjugate(60, 2, 0.5)
    posterior = variational.fit(
        conjugate.model, conjugate.data, guide=guide, num_epochs=num_epochs, num_draws=2, seed=0
    )
    draws, exact = flat_draws(posterior, 500).double(), conjugate.precision.inverse()
    deviations = (draws.mean(dim=0) - conjugate.mean) / exact.diag().sqrt()
    assert deviations.abs().max() < 0.3
    torch.testing.assert_close(draws.T.cov(), exact, rtol=0.25, atol=0.25 * float(exact.diag().max()))


@pytest.mark.parametrize("guide", [autoguide(pyro_guides.AutoNormal), lambda _: hand_written], ids=["auto", "by hand"])
def test_a_factorised_guide_finds_the_exact_mean_field_scales(guide):
    posterior = variational.fit(EXACT.model, EXACT.data, guide=guide, num_epochs=200, num_draws=2, seed=0)
    draws = flat_draws(posterior, 300)
    assert ((draws.mean(dim=0) - EXACT.mean) / EXACT.scale).abs().max() < 0.3
    torch.testing.assert_close(draws.std(dim=0), EXACT.scale, rtol=0.15, atol=0)  # .04 of it by chance


def test_minibatches_are_scaled_to_the_whole_data():
    pair = GuidedProgram(EXACT.model, pyro_guides.AutoDelta, first_rows(EXACT), seed=0)  # no noise
    rows = all_rows(EXACT)
    with torch.no_grad(), pair.active():
        whole = pair.loss(rows, 60, num_draws=1)
        parts = [Batch(rows.x[k : k + 20], rows.y[k : k + 20], None) for k in (0, 20, 40)]
        mean = torch.stack([pair.loss(part, 60, num_draws=1) for part in parts]).mean()
    torch.testing.assert_close(mean, whole, rtol=1e-12, atol=0)


def test_weights_of_rows_count_as_copies_of_them():
    rows = all_rows(EXACT)
    twice = torch.cat([rows.x, rows.x[:5]]), torch.cat([rows.y, rows.y[:5]])
    weight = torch.ones(60, dtype=torch.float64)
    weight[:5] = 2.0
    pair = GuidedProgram(EXACT.model, pyro_guides.AutoDelta, first_rows(EXACT), seed=0)
    with torch.no_grad(), pair.active():
        one = pair.loss(Batch(rows.x, rows.y, weight), 60, num_draws=1)
        other = pair.loss(Batch(*twice, None), 65, num_draws=1)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_a_learned_noise_scale_is_a_point_value_of_the_posterior():
    exact = Conjugate(400, 1, 0.3)
    model = BayesianNetwork(exact.model.net, priors.Normal(), likelihoods.Normal(scale="learned"))
    guide = autoguide(pyro_guides.AutoNormal)
    posterior = variational.fit(model, exact.data, guide=guide, num_epochs=60, scale_rate=3.0, seed=0)
    scales = posterior.sample_weights(3, seed=0)["likelihood.scale"]
    assert (scales == scales[0]).all()
    assert (
        abs(float(scales[0]) / 0.3 - 1) < 3 / (2 * 400) ** 0.5
    )  # standard error of a scale from 400 rows, three times
    assert float(posterior.predict(exact.data.x[:1], num_samples=2).aleatoric) == pytest.approx(float(scales[0]) ** 2)


def test_batch_norm_learns_in_the_fit_and_rests_in_the_posterior():
    model = BayesianNetwork(
        built(lambda: networks.mlp(3, (8,), 1, batch_norm=True)), priors.Normal(), likelihoods.Normal(scale=0.2)
    )
    posterior = variational.fit(
        model, measured(), guide=autoguide(pyro_guides.AutoNormal), num_epochs=2, batch_size=16, seed=0
    )
    counts = [value for name, value in posterior.buffers.items() if name.endswith("num_batches_tracked")]
    assert [int(count) for count in counts] == [6]
    assert not any(bool(value) for name, value in model.net.named_buffers() if name.endswith("num_batches_tracked"))


def test_fits_and_predictions_leave_pyros_store_and_torchs_generator_alone():
    pyro.param("theirs", torch.tensor(1.0))
    before = torch.get_rng_state()
    try:
        posterior = variational.fit(EXACT.model, EXACT.data, guide=lambda _: hand_written, num_epochs=2, seed=0)
        posterior.predict(EXACT.data.x, num_samples=2, seed=0)
        assert list(pyro.get_param_store()) == ["theirs"]
        assert torch.equal(before, torch.get_rng_state())
        assert pyro.settings.get("module_local_params") is False
    finally:
        pyro.clear_param_store()


@pytest.mark.parametrize("guide", [pyro_guides.AutoNormal, lambda _: hand_written], ids=["auto", "by hand"])
def test_two_posteriors_of_one_guide_predict_each_for_itself(guide):
    fits = [
        variational.fit(EXACT.model, EXACT.data, guide=guide, num_epochs=epochs, seed=0, learning_rate=0.05)
        for epochs in (1, 20)
    ]
    one, other, again = (fits[k].predict(EXACT.data.x, num_samples=3, seed=0).mean for k in (0, 1, 0))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


@UNRECORDED
@pytest.mark.filterwarnings("ignore:the network Linear was not built by bayesuq:UserWarning")
def test_a_hand_written_guide_comes_back_from_its_file(tmp_path):
    guide = lambda _: hand_written  # noqa: E731
    posterior = variational.fit(EXACT.model, EXACT.data, guide=guide, num_epochs=3, seed=0)
    posterior.save(tmp_path / "posterior")
    loaded = load(tmp_path / "posterior", guide=guide, model=EXACT.model)
    assert isinstance(loaded, GuidePosterior)
    one, other = (p.predict(EXACT.data.x, num_samples=3, seed=0).mean for p in (loaded, posterior))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"guide is of your own\. Pass it: `bayesuq\.load\(path, guide="):
        load(tmp_path / "posterior", model=EXACT.model)
    with pytest.raises(ValueError, match="not the one that was fitted: 8 parameters differ, the first is AutoNormal"):
        load(tmp_path / "posterior", guide=pyro_guides.AutoNormal, model=EXACT.model)
    for other in ("AutoNormal", pyro_guides.AutoNormal(EXACT.model)):
        with pytest.raises(TypeError, match="`guide` must be a function from the model to a Pyro guide; got"):
            load(tmp_path / "posterior", guide=other, model=EXACT.model)


def test_saving_says_that_the_guide_must_be_passed(tmp_path):
    model = BayesianNetwork(networks.mlp(3, (2,), 1), priors.Normal(), likelihoods.Normal())
    posterior = variational.fit(model, measured(), guide=pyro_guides.AutoNormal, num_epochs=1, seed=0)
    with pytest.warns(UserWarning, match=r"A guide of your own cannot be recorded; pass it") as record:
        posterior.save(tmp_path / "posterior")
    assert record[0].filename == __file__


def leaves_out(x, y=None, **_):  # noqa: ARG001
    pyro.sample("weight", dist.Normal(torch.zeros(1, 2, dtype=torch.float64), 1.0).to_event(2))


def adds(x, y=None, **_):  # noqa: ARG001
    hand_written(x)
    pyro.sample("other", dist.Normal(0.0, 1.0))


def of_another_shape(x, y=None, **_):  # noqa: ARG001
    pyro.sample("weight", dist.Normal(torch.zeros(2, 1), 1.0).to_event(2))
    pyro.sample("bias", dist.Normal(torch.zeros(1), 1.0).to_event(1))


def of_the_inputs(x, y=None, **_):  # noqa: ARG001
    pyro.sample("weight", dist.Normal(x[:1], 1.0).to_event(2))
    pyro.sample("bias", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("guide", "error", "words"),
    [
        (pyro_guides.AutoNormal(EXACT.model), TypeError, r"must be a function from the model to a new guide"),
        ("mean_field", TypeError, "must be a function from the model to a new guide"),
        (lambda _: None, TypeError, r"it gave NoneType.*lambda model: my_guide"),
        (pyro_guides.AutoLaplaceApproximation, TypeError, "is a point until"),
        (lambda _: SHARED, ValueError, "a new guide at each call"),
        (lambda _: leaves_out, ValueError, "It lacks bias"),
        (lambda _: adds, ValueError, "The model does not have other"),
        (lambda _: of_another_shape, ValueError, r"draws weight of shape \(2, 1\); the model's has \(1, 2\)"),
        (lambda _: of_the_inputs, ValueError, "draws of weight depend on x"),
    ],
    ids=["instance", "name", "nothing", "laplace", "shared", "missing", "strange", "shape", "amortised"],
)
def test_what_is_no_guide_of_the_model_is_refused(guide, error, words):
    with pytest.raises(error, match=words):
        variational.fit(EXACT.model, EXACT.data, guide=guide, num_epochs=1, seed=0)


def test_a_loss_that_is_not_finite_names_the_parameters():
    class Overflowing(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 1e200

    model = BayesianNetwork(
        built(lambda: Overflowing(2, 1, dtype=torch.float64)), priors.Normal(), likelihoods.Normal(scale=0.1)
    )
    fit = partial(variational.fit, model, EXACT.data, guide=pyro_guides.AutoNormal, num_epochs=3, seed=0)
    with pytest.raises(FloatingPointError, match="stopped being finite at step 0"):
        fit()


def test_validation_keeps_the_best_epoch():
    data = Dataset(EXACT.data.x[:40], EXACT.data.y[:40])
    watched = Dataset(EXACT.data.x[40:], EXACT.data.y[40:])
    posterior = variational.fit(
        EXACT.model, data, guide=autoguide(pyro_guides.AutoNormal), num_epochs=15, validation=watched, seed=0
    )
    losses = posterior.history.validation_loss
    assert posterior.history.best_epoch == min(range(15), key=losses.__getitem__)
    assert losses[posterior.history.best_epoch] < losses[0]
