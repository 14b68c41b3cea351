"""Mean-field posteriors that train in one pass, against those that train one after another."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.inference import variational
from bayesuq.inference.training import loop as optimize
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.options import Training
from bayesuq.inference.variational.together import fit_mean_fields
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, built, labelled, measured

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT)
OPTIONS = {"num_epochs": 4, "batch_size": 20, "learning_rate": 0.02}
AT_ONCE = {"kl_weight": 1.0, "estimator": "weights"}  # the whole divergence, and drawn weights


def model(prior=None, likelihood=None, num_outputs: int = 1, random="all", seed: int = 0) -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (6,), num_outputs, activation="tanh"), seed).double()
    return BayesianNetwork(net, prior or priors.Normal(), likelihood or likelihoods.Normal(), random=random)


CASES = {
    "learned noise": (partial(model), measured),
    "noise as output": (partial(model, likelihood=likelihoods.HeteroscedasticNormal(), num_outputs=2), measured),
    "labels": (partial(model, likelihood=likelihoods.Categorical(), num_outputs=3), labelled),
    "several normal priors": (
        partial(model, prior={"*.bias": priors.Normal(0.1, 0.3), "*": priors.Normal()}),
        measured,
    ),
    "last layer": (partial(model, random="last_layer"), measured),
}


def sets(data) -> list[Dataset]:
    return [data(seed=seed) for seed in (0, 10, 20)]


def trainings(checkpoint=None) -> list[Training]:
    return [Training(**OPTIONS, seed=seed, checkpoint=None if seed else checkpoint) for seed in range(3)]


@pytest.mark.parametrize("start", [{}, AT_ONCE], ids=["by default", "at once"])
@pytest.mark.parametrize("case", CASES)
def test_posteriors_together_are_those_one_after_another(case: str, start: dict[str, Any]) -> None:
    build, data = CASES[case]
    models = [build(seed=seed) for seed in range(3)]
    together = fit_mean_fields(models, sets(data), trainings(), **start)
    for seed, (one, density, rows) in enumerate(zip(together, models, sets(data), strict=True)):
        alone = variational.fit(density, rows, seed=seed, **start, **OPTIONS)
        for name in ("loc", "log_scale", "points"):
            torch.testing.assert_close(getattr(one, name), getattr(alone, name), rtol=1e-9, atol=1e-12)
        assert one.history.loss == pytest.approx(alone.history.loss, rel=1e-9)
        assert one.scale_movement == pytest.approx(alone.scale_movement, rel=1e-6)
        assert one.kl_weight == alone.kl_weight
    assert not torch.equal(together[0].loc, together[1].loc)


def test_weighted_rows_and_another_start_are_kept() -> None:
    rows = [Dataset(one.x, one.y, torch.linspace(0, 2, len(one))) for one in sets(measured)]
    guide = partial(variational.mean_field, initial_scale=0.3)
    together = fit_mean_fields([model(seed=seed) for seed in range(3)], rows, trainings(), guide=guide)
    alone = variational.fit(model(seed=2), rows[2], guide=guide, seed=2, **OPTIONS)
    torch.testing.assert_close(together[2].log_scale, alone.log_scale, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("step", [1, 3, 7, 12])
def test_a_stopped_pass_goes_on_with_the_same_bits(tmp_path, monkeypatch, step: int) -> None:
    class StoppedError(Exception):
        pass

    models, steps = [model(seed=seed) for seed in range(3)], []
    whole = fit_mean_fields(models, sets(measured), trainings())
    checkpoint = Checkpoint(tmp_path / "file", every_steps=1)
    write = optimize._Log.note

    def stop(log: optimize._Log) -> None:
        write(log)
        steps.append(log)
        if len(steps) == step:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(optimize._Log, "note", stop)
        with pytest.raises(StoppedError):
            fit_mean_fields(models, sets(measured), trainings(checkpoint))
    for one, other in zip(fit_mean_fields(models, sets(measured), trainings(checkpoint)), whole, strict=True):
        assert torch.equal(one.loc, other.loc)
        assert torch.equal(one.log_scale, other.log_scale)
        assert torch.equal(one.points, other.points)
        assert one.history == other.history


def test_layers_of_which_a_part_is_random_and_flattened_rows_are_drawn_row_by_row() -> None:
    def density(random: str, seed: int) -> BayesianNetwork:
        layers = [nn.Flatten(), nn.Linear(3, 6, bias=False), nn.SiLU(), nn.Dropout(0.5), nn.Linear(6, 1)]
        net = built(lambda: nn.Sequential(*layers), seed).double()
        return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(), random=random)

    for random in ("1.weight", "4.bias", "4.weight"):
        models = [density(random, seed) for seed in range(3)]
        together = fit_mean_fields(models, sets(measured), trainings(), estimator="local")
        alone = variational.fit(models[1], sets(measured)[1], seed=1, estimator="local", **OPTIONS)
        torch.testing.assert_close(together[1].log_scale, alone.log_scale, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(together[1].points, alone.points, rtol=1e-9, atol=1e-12)


def test_estimators_that_have_no_way_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of 'weights', 'local'; got 'flipout'"):
        fit_mean_fields([model()] * 3, sets(measured), trainings(), estimator="flipout")
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)).double()
    density = BayesianNetwork(net, priors.Normal(), likelihoods.Normal())
    with pytest.raises(ValueError, match=r"plain sequences of linear layers"):
        fit_mean_fields([density] * 3, sets(measured), trainings(), estimator="local")


def test_other_priors_buffers_and_several_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"under normal priors; 1.weight has another one"):
        fit_mean_fields([model(prior=priors.Laplace())] * 3, sets(measured), trainings())
    net = networks.mlp(3, (6,), 1, batch_norm=True).double()
    density = BayesianNetwork(net, priors.Normal(), likelihoods.Normal())
    with pytest.raises(ValueError, match=r"Networks with buffers train one after another"):
        fit_mean_fields([density] * 3, sets(measured), trainings())
    with pytest.raises(ValueError, match=r"one size; got \[40, 48\] rows"):
        fit_mean_fields([model()] * 2, [measured(), measured(40)], trainings()[:2])


def test_a_posterior_whose_loss_is_not_finite_is_named() -> None:
    wild = [Training(**{**OPTIONS, "learning_rate": 1e300}, seed=seed) for seed in range(3)]
    with pytest.raises(FloatingPointError, match=r"posterior 0, posterior 1, posterior 2"):
        fit_mean_fields([model(seed=seed) for seed in range(3)], sets(measured), wild)
