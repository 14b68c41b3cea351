"""Temperatures of pixels: found where they are known, harmless where there is nothing to mend."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import bayesuq as bq
from bayesuq.data import Dataset
from bayesuq.inference import dropout, ensemble, local_temperature, map_estimate, temperature
from bayesuq.inference.local_temperature import LocalTemperaturePosterior
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from tests.inference.examples import before_each_step, built, measured, noise

VOID = 7


def given_logits(num_classes: int = 3) -> map_estimate.MapPosterior:
    """A posterior whose logits are the first channels of its images; the last channel is for the temperature alone."""
    net = built(lambda: nn.Conv2d(num_classes + 1, num_classes, 1, bias=False))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical(ignore_index=VOID))
    weight = torch.eye(num_classes, num_classes + 1).flatten()
    few = images(1.0, num=1)
    return replace(map_estimate.fit(model, few, num_epochs=1, seed=0), values=weight)


def images(right: float, *, left: float = 1.0, seed: int = 0, num: int = 8) -> Dataset:
    """Logits that are so many times too large, in either half; the last channel says which half it is."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(num, 3, 16, 16, generator=generator)
    half = (torch.arange(16) >= 8).float().expand(num, 1, 16, 16)
    factor = torch.where(half == 1, right, left)
    y = torch.distributions.Categorical(logits=logits.movedim(1, -1))
    labels = torch.multinomial(y.probs.reshape(-1, 3), 1, generator=generator).view(num, 16, 16)
    return Dataset(torch.cat([factor * logits, half], dim=1), labels)


def test_temperatures_are_found_where_they_are_known() -> None:
    """Right halves are three times too sure, which one temperature cannot mend; most of the gain is found."""
    data, fresh = images(3.0, num=48), images(3.0, seed=1, num=16)
    scaled = local_temperature.fit(given_logits(), data, num_epochs=20, seed=0)
    found = scaled.temperatures(fresh.x)
    assert found[..., 2:6].log().mean().exp().item() == pytest.approx(1.0, rel=0.3)
    assert found[..., 10:14].log().mean().exp().item() == pytest.approx(3.0, rel=0.3)
    one = temperature.fit(given_logits(), data, seed=0)
    losses = [float(-p.predict(fresh.x).log_prob(fresh.y).mean()) for p in (given_logits(), one, scaled)]
    truth = fresh.x[:, :3] / torch.where(fresh.x[:, 3:] == 1, 3.0, 1.0)
    best = float(torch.nn.functional.cross_entropy(truth, fresh.y))
    assert losses[2] - best < 0.5 * (losses[1] - best)
    assert losses[1] < losses[0]


def test_where_one_temperature_is_right_it_is_as_good() -> None:
    data, fresh = images(2.0, left=2.0, num=16), images(2.0, left=2.0, seed=1, num=16)
    one = temperature.fit(given_logits(), data, seed=0)
    local = local_temperature.fit(given_logits(), data, num_epochs=25, seed=0)
    losses = [float(-p.predict(fresh.x).log_prob(fresh.y).mean()) for p in (one, local)]
    assert losses[1] == pytest.approx(losses[0], abs=0.01)


def test_it_begins_as_no_scaling_and_tells_what_it_gained() -> None:
    data = images(3.0)
    scaled = local_temperature.fit(given_logits(), data, num_epochs=20, seed=0)
    before, after = scaled.negative_log_likelihood
    assert before == pytest.approx(float(-given_logits().predict(data.x).log_prob(data.y).mean()), rel=1e-5)
    assert after == pytest.approx(float(-scaled.predict(data.x).log_prob(data.y).mean()), rel=1e-5)
    assert after < before


def test_the_class_of_one_draw_does_not_change() -> None:
    data = images(3.0)
    scaled = local_temperature.fit(given_logits(), data, num_epochs=5, seed=0)
    assert torch.equal(scaled.predict(data.x).mean.argmax(1), given_logits().predict(data.x).mean.argmax(1))


def test_draws_are_divided_one_by_one() -> None:
    data = images(1.0)
    few = Dataset(data.x[:, :1], data.y)
    net = built(lambda: networks.unet(1, 3, depth=1, width=2))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    members = ensemble.fit(model, few, num_members=3, num_epochs=2, seed=0)
    scaled = local_temperature.fit(members, few, num_epochs=5, seed=0)
    logits = members.predict(few.x, keep_samples=True).draws
    expected = (logits / scaled.temperatures(few.x).unsqueeze(1)).softmax(dim=2)
    predictive = scaled.predict(few.x, keep_samples=True)
    torch.testing.assert_close(predictive.samples, expected.double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(predictive.total, predictive.aleatoric + predictive.epistemic)
    assert float(predictive.epistemic.max()) > 0


@pytest.mark.parametrize("hide", ["void", "weight"])
def test_pixels_that_do_not_count_may_have_any_label(hide: str) -> None:
    data = images(3.0)
    hidden = torch.rand(data.y.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    fits = []
    for label in (0, 2):
        if hide == "void":
            few = Dataset(data.x, data.y.masked_fill(hidden, VOID))
        else:
            few = Dataset(data.x, data.y.masked_fill(hidden, label), (~hidden).float())
        fits.append(local_temperature.fit(given_logits(), few, num_epochs=3, seed=0))
    for name, value in fits[0].weights.items():
        assert torch.equal(value, fits[1].weights[name])


def test_groups_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(3.0)
    scaled = local_temperature.fit(given_logits(), data, num_epochs=3, seed=0)
    whole = scaled.predict(data.x).mean
    monkeypatch.setattr(local_temperature, "DRAWS_BUDGET", 1)
    torch.testing.assert_close(scaled.predict(data.x).mean, whole, rtol=1e-5, atol=1e-7)


def test_it_is_saved_with_what_it_scales(tmp_path) -> None:
    data = Dataset(noise(0, 4, 1, 8, 8).float(), (noise(1, 4, 8, 8) > 0).long())
    net = built(lambda: networks.unet(1, 1, depth=1, width=2, dropout=0.5))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Bernoulli())
    posterior = dropout.fit(model, data, num_epochs=1, seed=0)
    scaled = local_temperature.fit(posterior, data, num_samples=3, num_epochs=2, seed=0)
    scaled.save(tmp_path / "scaled")
    again = bq.load(tmp_path / "scaled")
    assert isinstance(again, LocalTemperaturePosterior)
    assert tuple(again.negative_log_likelihood) == scaled.negative_log_likelihood
    one, other = (p.predict(data.x, num_samples=3, seed=1) for p in (scaled, again))
    assert torch.equal(one.mean, other.mean)


def test_a_seed_makes_it_repeatable_and_leaves_the_global_generator() -> None:
    data, before = images(3.0), torch.get_rng_state()
    fits = [local_temperature.fit(given_logits(), data, num_epochs=2, seed=s) for s in (0, 0, 1)]
    assert torch.equal(fits[0].weights["0.weight"], fits[1].weights["0.weight"])
    assert not torch.equal(fits[0].weights["0.weight"], fits[2].weights["0.weight"])
    after: Tensor = torch.get_rng_state()
    assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"hidden": 0}, ValueError, "hidden"),
        ({"num_epochs": 1.5}, TypeError, "num_epochs"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"hiden": 3}, TypeError, "did you mean 'hidden'"),
    ],
)
def test_options_out_of_range_are_refused(options, error, says) -> None:
    with pytest.raises(error, match=says):
        local_temperature.fit(given_logits(), images(1.0), **options)


def test_what_has_no_temperature_is_refused() -> None:
    net = built(lambda: networks.mlp(3, (), 1))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.1))
    with pytest.raises(TypeError, match="single draws of class probabilities"):
        local_temperature.fit(map_estimate.fit(model, measured(), num_epochs=1, seed=0), measured())
    with pytest.raises(TypeError, match=r"must be a bayesuq\.Dataset"):
        local_temperature.fit(given_logits(), [images(1.0)])
    data = images(1.0)
    with pytest.raises(ValueError, match="no label of positive weight"):
        local_temperature.fit(given_logits(), Dataset(data.x, torch.full_like(data.y, VOID)))


def test_labels_that_are_no_maps_take_few_steps() -> None:
    """Two minibatches an epoch, whatever the rows: 100 epochs twice are 400 steps."""
    net = networks.mlp(2, (), 2, seed=0)
    data = Dataset(torch.randn(300, 2), torch.arange(300) % 2)
    mode = map_estimate.fit(
        BayesianNetwork(net, priors.Normal(), likelihoods.Categorical()), data, num_epochs=20, seed=0
    )
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    with before_each_step(count):
        local_temperature.fit(mode, data, seed=0)
    assert steps == 400


def of_rank(rank: int) -> tuple[map_estimate.MapPosterior, Dataset]:
    """One convolution over signals, images or volumes."""
    x = noise(2, 4, 1, *(7, 8, 9)[:rank]).float()
    data = Dataset(x, (x[:, 0] > 0).long())
    net = built(lambda: local_temperature.CONVOLUTIONS[rank](1, 2, 1))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    return map_estimate.fit(model, data, num_epochs=2, seed=0), data


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_temperature_is_told_from_its_neighbours_along_all_axes(rank: int) -> None:
    """A pixel is seen from two away on each axis and from no further."""
    posterior, data = of_rank(rank)
    scaled = local_temperature.fit(posterior, data, num_epochs=3, seed=0)
    centre = (0, *(3,) * rank)
    moved = data.x.clone()
    moved[0, 0, *centre[1:]] += 3.0
    changed = (scaled.temperatures(moved) != scaled.temperatures(data.x)).nonzero()
    expected = torch.zeros(scaled.temperatures(data.x).shape, dtype=torch.bool)
    expected[(0, *(slice(1, 6),) * rank)] = True
    assert torch.equal(changed, expected.nonzero())


def test_weights_of_before_see_volumes_as_the_rows_that_they_were_fitted_to() -> None:
    posterior, data = of_rank(3)
    rows = {"0.weight": noise(3, 2, 3, 3, 3), "0.bias": noise(4, 2), "2.weight": noise(5, 1, 2, 3, 3)}
    weights = {name: value.float() for name, value in rows.items()} | {"2.bias": torch.zeros(1)}
    scaled = LocalTemperaturePosterior(posterior=posterior, weights=weights, negative_log_likelihood=(1.0, 1.0))
    seen = torch.cat([data.x, posterior.predict(data.x).mean.log().float()], dim=1).flatten(2)
    hidden = nn.functional.conv1d(seen, weights["0.weight"][..., 1], weights["0.bias"], padding=1).relu()
    expected = nn.functional.conv1d(hidden, weights["2.weight"][..., 1], padding=1).exp()
    torch.testing.assert_close(scaled.temperatures(data.x).flatten(1), expected[:, 0], rtol=1e-4, atol=1e-5)


AXES = nn.Sequential(nn.Flatten(2, 3), nn.Conv3d(1, 2, 1), nn.Unflatten(2, (2, 2)))


@pytest.mark.parametrize(
    ("net", "likelihood", "size", "y"),
    [
        (nn.Conv2d(1, 2, 1), likelihoods.Bernoulli(), (4, 4), (2, 4, 4)),
        (nn.Conv2d(1, 2, 1, stride=2), likelihoods.Categorical(), (4, 4), (2, 2)),
        (AXES, likelihoods.Categorical(), (2, 2, 2, 2), (2, 2, 2, 2)),
    ],
    ids=["regions", "coarser labels", "four axes"],
)
def test_labels_without_one_pixel_each_are_refused(
    net: nn.Module, likelihood: likelihoods.Likelihood, size: tuple[int, ...], y: tuple[int, ...]
) -> None:
    data = Dataset(noise(0, 3, 1, *size).float(), (noise(1, 3, *y) > 0).long())
    posterior = map_estimate.fit(BayesianNetwork(net, priors.Normal(), likelihood), data, num_epochs=1, seed=0)
    with pytest.raises(ValueError, match=r"needs one label at each pixel.*Take one temperature for all"):
        local_temperature.fit(posterior, data, seed=0)
