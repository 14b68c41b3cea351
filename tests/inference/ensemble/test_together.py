"""Members that train in one pass, against members that train one after another."""

from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Dataset
from bayesuq.inference import dropout, ensemble
from bayesuq.inference.ensemble import fitting as ensemble_fitting
from bayesuq.inference.ensemble import together as vectorised
from bayesuq.inference.posteriors.ensemble import EnsemblePosterior
from bayesuq.inference.posteriors.network_mode import fit_mode
from bayesuq.inference.training import loop as optimize
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.options import Training
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import built, labelled, measured

OPTIONS = {"num_members": 3, "num_epochs": 4, "batch_size": 20, "learning_rate": 0.02, "seed": 5}


def network(num_outputs: int = 1, **options) -> nn.Module:
    return built(lambda: networks.mlp(3, (6,), num_outputs, activation="tanh", **options)).double()


def model(prior=None, likelihood=None, num_outputs: int = 1, random="all") -> BayesianNetwork:
    return BayesianNetwork(
        network(num_outputs), prior or priors.Normal(), likelihood or likelihoods.Normal(), random=random
    )


CASES = {
    "learned noise": (model(), measured()),
    "inferred noise": (model(likelihood=likelihoods.Normal(scale=priors.HalfNormal())), measured()),
    "labels": (model(likelihood=likelihoods.Categorical(), num_outputs=3), labelled()),
    "no normal prior": (model({"*.bias": priors.Laplace(), "*": priors.StudentT()}), measured()),
    "mixed priors": (model({"*.bias": priors.Laplace(), "*": priors.Normal(0.1, 0.3)}), measured()),
    "last layer": (model(random="last_layer"), measured()),
    "weights": (model(), Dataset(measured().x, measured().y, torch.linspace(0, 2, len(measured())))),
}


def members_equal(one: EnsemblePosterior, other: EnsemblePosterior) -> None:
    for first, second in zip(one.members, other.members, strict=True):
        torch.testing.assert_close(first.values, second.values, rtol=1e-9, atol=1e-12)
        assert first.history.loss == pytest.approx(second.history.loss, rel=1e-9)
        assert first.history.best_epoch == second.history.best_epoch


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bootstrap", [False, True])
def test_members_together_are_the_members_one_after_another(case: str, bootstrap: bool) -> None:
    density, data = CASES[case]
    together, apart = (
        ensemble.fit(density, data, vectorised=vectorised, bootstrap=bootstrap, **OPTIONS)
        for vectorised in (True, False)
    )
    members_equal(together, apart)
    assert not torch.equal(together.members[0].values, together.members[1].values)


@pytest.mark.parametrize("case", ["learned noise", "labels", "weights"])
@pytest.mark.parametrize("bootstrap", [False, True])
def test_adversarial_members_together_are_those_one_after_another(case: str, bootstrap: bool) -> None:
    density, data = CASES[case]
    options = {**OPTIONS, "adversarial": True, "bootstrap": bootstrap}
    together, apart = (ensemble.fit(density, data, vectorised=v, **options) for v in (True, False))
    members_equal(together, apart)
    plain = ensemble.fit(density, data, vectorised=True, **{**options, "adversarial": False})
    assert not torch.allclose(together.members[0].values, plain.members[0].values, rtol=1e-6)


def test_networks_of_several_data_sets_together_are_those_one_after_another() -> None:
    sets = [measured(seed=seed) for seed in (0, 10, 20)]
    models = [model().reinitialise(seed) for seed in range(3)]
    trainings = [Training(4, 20, 0.02, seed=seed) for seed in range(3)]
    for adversarial in (False, True):
        together = vectorised.fit_modes(models, sets, trainings, adversarial=adversarial)
        for one, density, data, training in zip(together, models, sets, trainings, strict=True):
            apart = fit_mode(density, data, training, adversarial=adversarial)
            torch.testing.assert_close(one.values, apart.values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("adversarial", [False, True])
def test_masks_together_are_those_one_after_another(adversarial: bool) -> None:
    sets = [measured(seed=seed) for seed in (0, 10, 20)]
    twice = nn.Dropout(0.4)
    layers = [nn.Dropout(0.1), nn.Linear(3, 6), nn.Tanh(), twice, nn.Linear(6, 6), twice, nn.Linear(6, 1)]
    start = BayesianNetwork(nn.Sequential(*layers).double(), priors.Normal(), likelihoods.Normal())
    models = [start.reinitialise(seed) for seed in range(3)]
    trainings = [Training(4, 20, 0.02, seed=seed) for seed in range(3)]
    together = vectorised.fit_modes(models, sets, trainings, adversarial=adversarial)
    for one, density, data, training in zip(together, models, sets, trainings, strict=True):
        apart = fit_mode(density, data, training, adversarial=adversarial)
        torch.testing.assert_close(one.values, apart.values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("step", [1, 5, 12])
def test_a_stopped_pass_with_masks_goes_on_with_the_same_bits(tmp_path, monkeypatch, step: int) -> None:
    class StoppedError(Exception):
        pass

    density = BayesianNetwork(network(dropout=0.3), priors.Normal(), likelihoods.Normal())
    models, sets, steps = [density.reinitialise(seed) for seed in range(2)], [measured(), measured(seed=10)], []
    write, path = optimize._Log.note, Checkpoint(tmp_path / "file", every_steps=1)

    def fit(checkpoint: Checkpoint | None = None) -> list[torch.Tensor]:
        trainings = [Training(4, 20, 0.02, seed=seed, checkpoint=None if seed else checkpoint) for seed in range(2)]
        return [one.values for one in vectorised.fit_modes(models, sets, trainings)]

    def stop(log: optimize._Log) -> None:
        write(log)
        steps.append(log)
        if len(steps) == step:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(optimize._Log, "note", stop)
        with pytest.raises(StoppedError):
            fit(path)
    assert all(torch.equal(one, other) for one, other in zip(fit(path), fit(), strict=True))


def test_data_sets_of_several_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one size; got \[40, 48\] rows"):
        vectorised.fit_modes([model(), model()], [measured(), measured(40)], [Training(1, 20, 0.02, seed=0)] * 2)


def test_layers_that_cannot_be_stacked_are_refused() -> None:
    for layer, told in ((nn.AlphaDropout(0.1), "got AlphaDropout"), (nn.BatchNorm1d(3), "running_mean")):
        net = nn.Sequential(layer, nn.Linear(3, 1)).double()
        density = BayesianNetwork(net, priors.Normal(), likelihoods.Normal())
        with pytest.raises(ValueError, match=told):
            vectorised.fit_modes([density] * 2, [measured()] * 2, [Training(1, 20, 0.02, seed=0)] * 2)


def test_a_constant_schedule_is_kept() -> None:
    members_equal(
        *(ensemble.fit(*CASES["labels"], vectorised=v, schedule="constant", **OPTIONS) for v in (True, False))
    )


def test_a_member_does_not_depend_on_how_many_there_are() -> None:
    few, many = (ensemble.fit(*CASES["labels"], vectorised=True, **{**OPTIONS, "num_members": m}) for m in (2, 4))
    torch.testing.assert_close(few.members[1].values, many.members[1].values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("hidden", "batch_size", "together"), [(50, 32, True), (400, 128, False)])
def test_small_members_train_together_and_large_ones_apart(monkeypatch, hidden, batch_size, together) -> None:
    spy = Mock(wraps=vectorised.fit_modes)
    monkeypatch.setattr(ensemble_fitting, "fit_modes", spy)
    density = BayesianNetwork(networks.mlp(3, (hidden, hidden), 1), priors.Normal(), likelihoods.Normal())
    ensemble.fit(density, measured(), num_members=2, num_epochs=1, batch_size=batch_size, seed=0)
    assert spy.called is together


@pytest.mark.parametrize(
    ("net", "options"),
    [
        (network(dropout=0.1), {}),
        (network(batch_norm=True), {}),
        (network(), {"validation": measured()}),
        (network(), {"max_grad_norm": 1.0}),
        (network(), {"callbacks": [lambda progress: progress]}),
        (network(dropout=0.1), {"member_fit": dropout.fit}),
    ],
)
def test_what_members_do_alone_is_not_lost(net: nn.Module, options: dict) -> None:
    density = BayesianNetwork(net, priors.Normal(), likelihoods.Normal())
    with pytest.raises(ValueError, match="Members can train together only as modes"):
        ensemble.fit(density, measured(), vectorised=True, **OPTIONS, **options)
    assert len(ensemble.fit(density, measured(), **OPTIONS, **options).members) == 3


def test_members_that_read_a_loader_train_apart() -> None:
    data = measured()
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=20)
    with pytest.raises(ValueError, match="on a Dataset"):
        ensemble.fit(model(), loader, vectorised=True, **OPTIONS)
    assert len(ensemble.fit(model(), loader, **OPTIONS).members) == 3


def test_a_member_whose_loss_is_not_finite_is_named() -> None:
    with pytest.raises(FloatingPointError, match=r"step \d+ .*member 0, member 1, member 2"):
        ensemble.fit(model(), measured(), vectorised=True, **{**OPTIONS, "learning_rate": 1e300})


def test_the_global_random_state_stays() -> None:
    before = torch.get_rng_state()
    ensemble.fit(*CASES["labels"], vectorised=True, bootstrap=True, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), before)
