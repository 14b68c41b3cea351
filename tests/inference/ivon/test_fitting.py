"""Variational online Newton: against the exact factorised posterior, and that widths, clipping and resuming act."""

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesuq.data import Batch, Dataset
from bayesuq.fit_warnings import ConvergenceWarning
from bayesuq.inference import ensemble, ivon
from bayesuq.inference.ivon import stretches
from bayesuq.inference.ivon.newton import Newton, NewtonObjective, Rule
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.variational.factorised import VariationalPosterior
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, built, labelled, measured

NOISE = 0.3
quietly = pytest.mark.filterwarnings(*SHORT_FIT)


def linear(prior: priors.Prior | None = None) -> BayesianNetwork:
    net = built(lambda: networks.mlp(6, (), 1)).double()
    return BayesianNetwork(net, prior or priors.Normal(), likelihoods.Normal(NOISE))


def rows(number: int) -> Dataset:
    source = torch.Generator().manual_seed(2)
    x = torch.randn(number, 6, generator=source).double() * torch.logspace(-0.5, 0.5, 6).double()
    noise = NOISE * torch.randn(number, generator=source).double()
    return Dataset(x, x @ torch.randn(6, generator=source).double() + noise)


def exact(data: Dataset, precision: float = 1.0) -> tuple[Tensor, Tensor]:
    """Means of the conjugate posterior, and scales of the factorised Gaussian nearest to it: by the precisions."""
    inputs = torch.cat([data.x, torch.ones(len(data), 1).double()], dim=1)
    information = inputs.T @ inputs / NOISE**2 + precision * torch.eye(7).double()
    return torch.linalg.solve(information, inputs.T @ data.y.reshape(-1) / NOISE**2), information.diag().rsqrt()


# Samples z^2 of a curvature have variance 2 and the cross terms as much again; averaged over the last third of 3,000
# steps their mean has a relative deviation of some sqrt(4 / 1,600) = 5 %, a scale half of that: 7 % are three of them.
# Of minibatches of a tenth, opposite draws leave the same.
@quietly
@pytest.mark.parametrize(("batch_size", "num_draws"), [(200, 1), (20, 2)])
def test_scales_are_those_of_the_exact_factorised_posterior(batch_size: int, num_draws: int) -> None:
    data = rows(200)
    num_epochs = 3000 * batch_size // (100 * (num_draws + 1))  # 3,000 steps, and 2,000 of two draws
    fitted = ivon.fit(linear(), data, num_epochs=num_epochs, batch_size=batch_size, num_draws=num_draws, seed=1)
    mean, scale = exact(data)
    torch.testing.assert_close(fitted.scale, scale, rtol=0.07, atol=0)
    assert ((fitted.loc - mean) / scale).abs().max() < 0.2


# At a constant rate a, noise of minibatches moves a mean by a N / (2 B) posterior variances: one by default, where
# 0.2 makes it 20. The root mean square of seven has a relative deviation of 1 / sqrt(14); the bound is three of them.
@quietly
def test_the_default_rate_keeps_the_noise_of_minibatches_within_the_posterior() -> None:
    data, options = rows(2000), {"batch_size": 10, "num_draws": 2, "num_epochs": 5, "schedule": "constant", "seed": 1}
    mean, scale = exact(data)
    away = [
        float(((ivon.fit(linear(), data, learning_rate=rate, **options).loc - mean) / scale).square().mean().sqrt())
        for rate in (None, 0.2)
    ]
    assert away[0] < 1 + 3 / 14**0.5
    assert away[1] > 2.5


@quietly
def test_a_prior_without_closed_form_is_followed_as_well() -> None:
    """A Student law of a thousand degrees of freedom is a normal one but for its class."""
    data = rows(20)
    fitted = ivon.fit(linear(priors.StudentT(df=1000.0)), data, num_epochs=500, seed=1)
    torch.testing.assert_close(fitted.scale, exact(data)[1], rtol=0.14, atol=0)  # of a quarter as many steps


@quietly
def test_by_default_several_layers_remember_half_of_the_fit_and_one_layer_learns_its_widths() -> None:
    net, data = built(lambda: networks.mlp(6, (4,), 1)).double(), rows(30)
    options: dict[str, Any] = {"num_epochs": 20, "batch_size": 2, "seed": 1}  # 15 minibatches, 300 steps

    def scale(random: str, **changed: Any) -> Tensor:
        model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(NOISE), random=random)
        return ivon.fit(model, data, **options, **changed).scale

    assert torch.equal(scale("all"), scale("all", memory=150, learning_rate=0.2))
    for random, changed in (("last_layer", {}), ("all", {"schedule": "constant"})):
        learned = scale(random, **changed)
        assert torch.equal(learned, scale(random, learning_rate=2 / 15, **changed))
        assert not torch.equal(learned, scale(random, memory=150, learning_rate=2 / 15, **changed))
    start = 0.5 * 0.05  # of the prior's scale: where data say nothing, a memory of half of the steps lets it grow to e
    assert scale("all").median() < start * math.e < scale("all", schedule="constant").median()


def test_too_few_steps_for_means_to_move_are_told() -> None:
    net, data = built(lambda: networks.mlp(6, (4,), 1)).double(), rows(30)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(NOISE))
    with pytest.warns(ConvergenceWarning, match="The fit has 299 steps, .* to 300 steps at least"):
        ivon.fit(model, data, num_epochs=299, batch_size=30, seed=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The fit has")
        ivon.fit(model, data, num_epochs=300, batch_size=30, seed=1)
        ivon.fit(linear(), data, num_epochs=9, batch_size=30, seed=1)


def test_a_memory_longer_than_half_of_the_fit_is_told() -> None:
    data = rows(50)
    with pytest.warns(ConvergenceWarning, match="curvature remembers 100000 steps of a fit of 40"):
        stuck = ivon.fit(linear(), data, num_epochs=40, memory=1e5, seed=1)
    assert stuck.scale_movement < 0.01


@quietly
def test_the_best_epoch_keeps_means_and_widths_together() -> None:
    data = labelled()
    model = BayesianNetwork(built(lambda: networks.mlp(3, (8,), 3)), priors.Normal(), likelihoods.Categorical())
    options = {"batch_size": 8, "schedule": "constant", "seed": 1}
    rows = labelled(40, seed=9)
    wrong = Dataset(rows.x, torch.where(torch.arange(40) < 20, (rows.y + 1) % 3, rows.y))  # worse where it is sure
    watched = ivon.fit(model, data, num_epochs=30, validation=wrong, **options)
    best = watched.history.best_epoch
    assert 0 < best < 29  # else the next line says nothing
    alone = ivon.fit(model, data, num_epochs=best + 1, **options)
    assert torch.equal(watched.loc, alone.loc)
    assert torch.equal(watched.log_scale, alone.log_scale)


@quietly
def test_clipping_bounds_the_curvature_too() -> None:
    """One step from one state: the gradient is as long as it may be, the curvature.s sample as much shorter."""
    data, model = rows(50), linear()
    steps = []
    for bound in (None, 1e-3):
        newton = NewtonObjective(model, len(data), Rule(1, None, bound))
        newton.loss_and_grads(Batch(data.x, data.y, None), torch.Generator().manual_seed(0))
        steps.append((newton.gradient.norm(), newton.products.clone()))
    (free, whole), (norm, products) = steps
    torch.testing.assert_close(norm, torch.tensor(1e-3 * len(data)).double())
    torch.testing.assert_close(products, whole * (norm / free))


@pytest.mark.parametrize("prior", [priors.Normal(), priors.FanIn(priors.Normal(loc=0.1))])
@pytest.mark.parametrize("num_draws", [1, 2])
def test_a_step_goes_over_stretches_as_over_the_whole(
    monkeypatch: pytest.MonkeyPatch, prior: priors.Prior, num_draws: int
) -> None:
    """Loss, curvature and means of three steps; the noise is the same to the last bit, sums differ by rounding."""
    data = measured()
    net = built(lambda: networks.mlp(3, (40,), 1)).double()
    batch = Batch(data.x.double(), data.y.double(), None)
    results = []
    for length in (10**6, 16):
        monkeypatch.setattr(stretches, "LENGTH", length)
        model = BayesianNetwork(net, prior, likelihoods.Normal(NOISE))
        newton = NewtonObjective(model, len(data), Rule(num_draws, None, 1.0))
        assert (len(newton.stretches) > 1) == (length == 16)
        optimizer, noise = Newton(newton, 0.1), torch.Generator().manual_seed(0)
        losses = []
        for _ in range(3):
            losses.append(newton.loss_and_grads(batch, noise))
            optimizer.step()
        results.append([*losses, newton.precision, newton.loc])
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


@quietly
def test_members_stopped_and_resumed_are_those_of_one_go(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(progress: object) -> None:
        if progress.epoch == 2:  # type: ignore[attr-defined]
            raise StopError

    model = BayesianNetwork(
        built(lambda: networks.mlp(3, (8,), 1, batch_norm=True)), priors.Normal(), likelihoods.Normal("learned")
    )
    fit = partial(
        ensemble.fit, model, measured(), member_fit=ivon.fit, num_members=2, num_epochs=5, batch_size=16, seed=1
    )
    whole = fit()
    with pytest.raises(StopError):
        fit(callbacks=[stop], checkpoint=Checkpoint(tmp_path / "fit", every_steps=1))
    resumed = fit(checkpoint=tmp_path / "fit")
    for one, other in zip(whole.members, resumed.members, strict=True):
        assert isinstance(one, VariationalPosterior)
        for name in ("loc", "log_scale", "points"):
            assert torch.equal(getattr(one, name), getattr(other, name))


@quietly
def test_the_network_at_the_means_is_one_member_without_epistemic_uncertainty() -> None:
    data = measured()
    model = BayesianNetwork(built(lambda: networks.mlp(3, (8,), 1)), priors.Normal(), likelihoods.Normal("learned"))
    fitted = ivon.fit(model, data, num_epochs=5, seed=1)
    predictive = fitted.at_mean.predict(data.x)
    assert predictive.num_samples == 1
    theta = fitted.at_mean.sample_weights()
    f = model.forward({name: value[0] for name, value in theta.items()}, data.x.float())
    torch.testing.assert_close(predictive.mean, f.double(), rtol=1e-5, atol=1e-6)
