"""ConfidNet: it learns the true class probability, leaves the posterior as it was, and finds errors."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Dataset
from bayesuq.evaluation.report.detection_tasks import evaluate_misclassification
from bayesuq.inference import confidence, dropout, ensemble, laplace, map_estimate, temperature, variational
from bayesuq.inference.confidence.fitting import ConfidencePosterior
from bayesuq.inference.confidence.true_class import (
    by_importance,
    features_of,
    masked_loader,
    network_of,
    with_targets,
    without_last_layer,
)
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.options import Progress
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from tests.inference.examples import SHORT_FIT, built, measured
from tests.models import formulas
from tests.posterior_contract import tensors_of

BRIEF: dict[str, Any] = {"hidden": (16,), "num_epochs": 3, "num_fine_tuning_epochs": 2, "seed": 1}


def rings(num_rows: int, seed: int) -> Dataset:
    """Two classes that a line tells apart on the right half, and labels that are noise on the left half."""
    noise = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(num_rows, 2, generator=noise) - 1
    clear = x[:, 1] > 0
    guess = torch.rand(num_rows, generator=noise) < 0.5
    return Dataset(x, torch.where(x[:, 0] > 0, clear, guess).long())


def classifier(data: Dataset, **options: Any) -> Posterior:
    net = built(lambda: networks.mlp(2, (32,), 2, **options))
    model = BayesianNetwork(net, priors.Normal(scale=3.0), likelihoods.Categorical())
    return map_estimate.fit(model, data, num_epochs=60, learning_rate=1e-2, seed=0)


@pytest.fixture(scope="module")
def fitted() -> Posterior:
    return classifier(rings(600, 0))


@pytest.fixture(scope="module")
def confident(fitted: Posterior) -> ConfidencePosterior:
    options = {"hidden": (32, 32), "num_epochs": 60, "num_fine_tuning_epochs": 20, "learning_rate": 2e-3}
    return confidence.fit(fitted, rings(600, 0), **options, fine_tuning_rate=2e-4, seed=0)


def true_probs(posterior: Posterior, data: Dataset) -> Tensor:
    return posterior.predict(data.x).mean.gather(1, data.y[:, None]).squeeze(1)


def test_it_learns_the_mean_probability_of_the_true_class(confident: ConfidencePosterior) -> None:
    new = rings(4000, 1)
    found, truth = confident.confidence(new.x), true_probs(confident, new)
    assert found.shape == (4000,)
    assert found.dtype == torch.float64
    assert bool(((found >= 0) & (found <= 1)).all())
    # Of noise the true class has probability 1/2 on average, of the clear half nearly 1.
    noisy, clear = new.x[:, 0] < -0.1, (new.x[:, 0] > 0.1) & (new.x[:, 1].abs() > 0.2)
    assert float(found[noisy].mean()) == pytest.approx(float(truth[noisy].mean()), abs=0.04)
    assert float(found[clear].mean()) > 0.9
    constant = float((truth - truth.mean()).square().mean())
    assert float((found - truth).square().mean()) < 0.9 * constant


def test_its_score_goes_through_the_same_measures(confident: ConfidencePosterior) -> None:
    new = rings(4000, 1)
    predictive = confident.predict(new.x)
    found = evaluate_misclassification(predictive, new.y, scores={"confidence": 1 - confident.confidence(new.x)})
    assert found.table.measures["confidence"][0].value > 0.75


def test_the_posterior_and_its_predictive_stay_as_they_were(fitted: Posterior) -> None:
    data = rings(100, 0)
    before, predicted = [tensor.clone() for tensor in tensors_of(fitted)], fitted.predict(data.x).mean
    state = torch.get_rng_state()
    found = confidence.fit(fitted, data, **BRIEF)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(fitted), strict=True))
    assert torch.equal(found.predict(data.x).mean, predicted)


def test_the_first_stage_leaves_the_features_and_the_second_moves_them(fitted: Posterior) -> None:
    data = rings(100, 0)
    original = features_of(network_of(fitted, 0)).state_dict()
    first = confidence.fit(fitted, data, **{**BRIEF, "num_fine_tuning_epochs": 0})
    both = confidence.fit(fitted, data, **BRIEF)
    assert all(torch.equal(value, original[name]) for name, value in first.features.items())
    assert not any(torch.equal(value, original[name]) for name, value in both.features.items())
    assert first.fine_tuning_history.loss == ()
    assert len(both.fine_tuning_history.loss) == 2
    assert first.history == both.history


STILL: dict[str, Any] = {
    "hidden": (16,),
    "num_epochs": 1,
    "num_fine_tuning_epochs": 0,
    "learning_rate": 1e-9,
    "batch_size": 300,
    "seed": 0,
}


def test_the_loss_is_the_squared_distance_from_the_true_class_probability(fitted: Posterior) -> None:
    data = rings(300, 0)
    found = confidence.fit(fitted, data, loss="squared", **STILL)
    squares = (found.confidence(data.x) - true_probs(fitted, data)).square().mean() / (2 * 0.1**2)
    weights = torch.cat([value.flatten() for value in found.head.values()])
    prior = formulas.normal(weights.double(), 0.0, 10.0).sum() / 300
    constant = math.log(0.1 * math.sqrt(math.tau))
    assert found.history.loss[0] == pytest.approx(float(squares + constant - prior), rel=1e-5)


def test_the_other_loss_is_the_cross_entropy_and_begins_at_the_mean(fitted: Posterior) -> None:
    data = rings(300, 0)
    found = confidence.fit(fitted, data, **STILL)
    c, p = found.confidence(data.x), true_probs(fitted, data)
    entropy = -(p * c.log() + (1 - p) * (1 - c).log()).mean()
    weights = torch.cat([value.flatten() for value in found.head.values()])
    prior = formulas.normal(weights.double(), 0.0, 10.0).sum() / 300
    assert found.history.loss[0] == pytest.approx(float(entropy - prior), rel=1e-5)
    *_, bias = found.head.values()
    assert float(bias.sigmoid()) == pytest.approx(float((p.sum() + 0.5) / 301), rel=1e-5)


@pytest.mark.parametrize("importance_sampling", [False, True])
@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_either_loss_is_least_at_the_mean_probability_of_the_true_class(loss: Any, importance_sampling: bool) -> None:
    # At x = 1 the label is noise, at x = -1 it is clear but for one in ten: what a classifier gives to the true class
    # has a mean there that the rows tell exactly.
    y = torch.tensor([0, 1] * 10 + [1] * 18 + [0] * 2)
    data = Dataset(torch.tensor([[1.0]] * 20 + [[-1.0]] * 20), y)
    net = built(lambda: networks.mlp(1, (8,), 2))
    model = BayesianNetwork(net, priors.Normal(scale=3.0), likelihoods.Categorical())
    posterior = map_estimate.fit(model, data, num_epochs=50, learning_rate=1e-2, seed=0)
    options: dict[str, Any] = {"hidden": (16,), "num_epochs": 300, "learning_rate": 1e-2, "num_fine_tuning_epochs": 0}
    fit = confidence.fit(posterior, data, loss=loss, importance_sampling=importance_sampling, **options, seed=0)
    found = fit.confidence(data.x)
    truth = true_probs(posterior, data).view(2, 20).mean(dim=1)
    assert found.view(2, 20)[:, 0].tolist() == pytest.approx(truth.tolist(), abs=0.02)


def features_at(posterior: Posterior) -> dict[str, Tensor]:
    model = posterior.model  # type: ignore[attr-defined]
    return dict(Layout.of(model).split(posterior.values))  # type: ignore[attr-defined]


def test_features_are_the_inputs_of_the_last_layer(fitted: Posterior) -> None:
    x = rings(9, 0).x
    theta = features_at(fitted)
    expected = (x @ theta["1.weight"].T + theta["1.bias"]).relu()
    torch.testing.assert_close(features_of(network_of(fitted, 0))(x), expected)


def with_dropout(data: Dataset) -> MapPosterior:
    posterior = classifier(data, dropout=0.5)
    assert isinstance(posterior, MapPosterior)
    return posterior


@pytest.mark.parametrize("kind", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_last_layer_whose_weight_is_computed_gives_way_as_a_whole(kind: Any) -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), kind(nn.Linear(4, 3)))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(without_last_layer(net)(x), net[:2](x))


def test_features_and_targets_of_a_mode_are_those_of_the_same_masks() -> None:
    data = rings(64, 0)
    posterior = with_dropout(data)
    theta = features_at(posterior)
    rows = Dataset(data.x, data.y, torch.arange(64.0) + 1)  # weights tell which row is which
    net = network_of(posterior, 0)
    loader = masked_loader(posterior, net, with_targets(posterior, rows, 3, 0), rows.y, 16)
    assert loader is not None
    whole = (data.x @ theta["1.weight"].T + theta["1.bias"]).relu()
    epochs = [list(loader) for _ in range(2)]
    for features, targets, weight in epochs[0]:
        places = weight.long() - 1
        outputs = features @ theta["4.weight"].T + theta["4.bias"]
        torch.testing.assert_close(targets, outputs.softmax(dim=1).gather(1, data.y[places, None]))
        dropped = features == 0
        torch.testing.assert_close(features[~dropped], 2 * whole[places][~dropped])
        assert 0.3 < float(dropped[whole[places] > 0].float().mean()) < 0.7
    first, second = (torch.cat([batch[1] for batch in epoch])[:, 0] for epoch in epochs)
    order, other = (torch.cat([batch[2] for batch in epoch]).argsort() for epoch in epochs)
    assert not torch.equal(order, other)
    assert float((first[order] - second[other]).abs().max()) > 0.01


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("method", [dropout, ensemble, laplace, variational], ids=lambda method: method.__name__)
def test_targets_of_a_mixture_are_its_own_whatever_the_masks_of_the_features(method: Any) -> None:
    data = rings(64, 0)
    mixture = method.fit(with_dropout(data).model, data, num_epochs=2, seed=0)
    train = with_targets(mixture, data, 5, 0)
    loader = masked_loader(mixture, network_of(mixture, 0), train, data.y, 64)
    assert loader is not None
    ((_, targets, _),) = loader
    torch.testing.assert_close(targets.sort(dim=0).values, train.y.sort(dim=0).values)


def test_a_network_without_dropout_needs_no_loader(fitted: Posterior) -> None:
    data = rings(10, 0)
    assert masked_loader(fitted, network_of(fitted, 0), with_targets(fitted, data, None, 0), data.y, 5) is None


def test_importance_sampling_shows_doubtful_rows_often_and_leaves_every_mean_as_it_is() -> None:
    # A tenth of the rows have a true class probability of .1, the others of .99, so that the mean of 1 - p is .099.
    probs = torch.tensor([0.1] * 10 + [0.99] * 90).unsqueeze(1)
    own = torch.rand(100, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    loader = by_importance(Dataset(torch.arange(100.0).unsqueeze(1), probs, own), 20, seed=0)
    batches = [batch for _ in range(200) for batch in loader]
    places, weight = (torch.cat([batch[part].flatten() for batch in batches]) for part in (0, 2))
    doubtful = places < 10
    chance = 0.1 * 0.5 * (1 + 0.9 / 0.099)  # of any of the ten
    assert float(doubtful.float().mean()) == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 20_000) ** 0.5)
    assert float((weight / own[places.long()]).max()) < 2
    for rows, truth in ((doubtful, own[:10].sum() / 100), (~doubtful, own[10:].sum() / 100)):
        terms = weight * rows
        assert float(terms.mean()) == pytest.approx(float(truth), abs=4 * float(terms.std()) / 20_000**0.5)


def test_importance_sampling_goes_by_masked_targets_and_leaves_masks_and_targets_as_they_are() -> None:
    data = rings(64, 0)
    posterior = with_dropout(data)
    theta = features_at(posterior)
    loader = masked_loader(posterior, network_of(posterior, 0), with_targets(posterior, data, 3, 0), data.y, 16)
    assert loader is not None
    torch.manual_seed(0)
    mean, drawn = float(torch.cat([batch[1] for _ in range(20) for batch in loader]).mean()), []
    doubtful = by_importance(loader, 64, seed=0)
    for features, targets, weight in [batch for _ in range(20) for batch in doubtful]:
        outputs = features @ theta["4.weight"].T + theta["4.bias"]
        assert bool((outputs.softmax(dim=1) - targets).abs().amin(dim=1).lt(1e-5).all())
        drawn.append(torch.stack([targets[:, 0], weight]))
    targets, weight = torch.cat(drawn, dim=1)
    assert len(targets) == 20 * 64
    error = 0.3 * (2 / len(targets)) ** 0.5  # of the difference of two means, targets having a deviation of .3
    assert float(targets.mean()) < mean - 2 * error
    assert float((weight * targets).mean()) == pytest.approx(mean, abs=4 * error)


def test_fine_tuning_is_without_dropout_and_batch_statistics_stay() -> None:
    data = rings(100, 0)
    posterior = classifier(data, dropout=0.5, batch_norm=True)
    net = features_of(network_of(posterior, 0))
    assert not any(isinstance(module, nn.Dropout) for module in net.modules())
    before = {name: value for name, value in net.state_dict().items() if "running" in name or "tracked" in name}
    found = confidence.fit(posterior, data, **BRIEF)
    assert before
    assert all(torch.equal(found.features[name], value) for name, value in before.items())
    assert torch.equal(found.confidence(data.x), found.confidence(data.x))
    alone = torch.cat([found.confidence(row[None]) for row in data.x])
    torch.testing.assert_close(alone, found.confidence(data.x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("method", [map_estimate, dropout, ensemble, variational], ids=lambda method: method.__name__)
def test_every_method_has_a_confidence_that_comes_back_from_a_file(method: Any, tmp_path: Path) -> None:
    data = rings(80, 0)
    model = BayesianNetwork(networks.mlp(2, (6,), 2, dropout=0.2), priors.Normal(), likelihoods.Categorical())
    posterior = method.fit(model, data, num_epochs=2, seed=0)
    found = confidence.fit(posterior, data, num_samples=5, **BRIEF)
    found.save(tmp_path / "confident")
    again = load(tmp_path / "confident")
    assert isinstance(again, ConfidencePosterior)
    assert torch.equal(again.confidence(data.x), found.confidence(data.x))
    assert again.history == found.history
    one, other = (p.predict(data.x, num_samples=5, seed=2).mean for p in (found, again))
    assert torch.equal(one, other)


def test_a_scaled_posterior_and_a_convnet_have_one() -> None:
    noise = torch.Generator().manual_seed(0)
    data = Dataset(torch.randn(40, 1, 8, 8, generator=noise), torch.arange(40) % 3)
    model = BayesianNetwork(
        networks.convnet(1, 3, channels=(2, 3), hidden=5), priors.Normal(), likelihoods.Categorical()
    )
    scaled = temperature.fit(map_estimate.fit(model, data, num_epochs=2, seed=0), data)
    found = confidence.fit(scaled, data, **BRIEF)
    assert found.confidence(data.x).shape == (40,)
    assert found.head["1.weight"].shape == (16, 5)


def test_inputs_of_any_kind_give_the_same(confident: ConfidencePosterior) -> None:
    x = rings(50, 3).x
    whole = confident.confidence(x)
    loader = DataLoader(TensorDataset(x, torch.zeros(50)), batch_size=7)
    for form in (x.numpy(), x.tolist(), loader):
        torch.testing.assert_close(confident.confidence(form), whole, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="shuffles"):
        confident.confidence(DataLoader(x, shuffle=True))
    with pytest.raises(TypeError, match=r"Pass its `\.x`"):
        confident.confidence(rings(5, 0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not take `x`"):
        confident.confidence(x[:, :1])


def test_validation_keeps_the_best_epoch_and_a_loader_is_its_rows(fitted: Posterior) -> None:
    data, held_out = rings(100, 0), rings(50, 5)
    found = confidence.fit(fitted, data, validation=held_out, **BRIEF)
    assert len(found.history.validation_loss) == 3
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=10)
    assert torch.equal(
        confidence.fit(fitted, loader, **BRIEF).confidence(data.x),
        confidence.fit(fitted, data, **BRIEF).confidence(data.x),
    )


class StoppedError(Exception):
    """The machine went away."""


@pytest.mark.parametrize("after", [2, 4])
@pytest.mark.parametrize("is_masked", [False, True])
def test_a_stopped_fit_goes_on_and_ends_with_the_same_bits(tmp_path: Path, after: int, is_masked: bool) -> None:
    data = rings(300, 0)
    fitted = classifier(data, dropout=0.5 if is_masked else 0.0)
    whole = confidence.fit(fitted, data, **BRIEF)
    seen: list[int] = []

    def stop(progress: Progress) -> None:
        seen.append(progress.epoch)
        if len(seen) == after:
            raise StoppedError

    file = Checkpoint(tmp_path / "fit", every_steps=1)
    with pytest.raises(StoppedError):
        confidence.fit(fitted, data, checkpoint=file, callbacks=[stop], **BRIEF)
    resumed = confidence.fit(fitted, data, checkpoint=file.path, **BRIEF)  # which writes at the end alone
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(resumed), tensors_of(whole), strict=True))
    with pytest.raises(ValueError, match="another fit"):
        confidence.fit(fitted, data, checkpoint=file, **{**BRIEF, "seed": 7})


def test_what_has_no_true_class_probability_is_refused(fitted: Posterior) -> None:
    real = map_estimate.fit(
        BayesianNetwork(networks.mlp(3, (4,), 1), priors.Normal(), likelihoods.Normal(scale=1.0)),
        measured(),
        num_epochs=1,
        seed=0,
    )
    with pytest.raises(TypeError, match="posterior over labels; got GaussianPredictive"):
        confidence.fit(real, measured())
    with pytest.raises(TypeError, match="over a network's weights; got object"):
        confidence.fit(object(), rings(10, 0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`num_fine_tuning_epochs` must be at least 0"):
        confidence.fit(fitted, rings(10, 0), num_fine_tuning_epochs=-1)
    with pytest.raises(ValueError, match="`loss` must be one of 'cross-entropy', 'squared'; got 'mse'"):
        confidence.fit(fitted, rings(10, 0), loss="mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`fine_tuning_rate`"):
        confidence.fit(fitted, rings(10, 0), fine_tuning_rate=0.0)
    with pytest.raises(TypeError, match="no option 'hiden'; did you mean 'hidden'"):
        confidence.fit(fitted, rings(10, 0), hiden=(3,))  # type: ignore[call-arg]
    assert dataclasses.is_dataclass(fitted)
