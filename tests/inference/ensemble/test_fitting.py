"""Ensembles are mixtures, never averages; their members start, and see the data, each in its own way."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Dataset
from bayesuq.inference import dropout, ensemble, map_estimate, swag, temperature, variational
from bayesuq.inference.posteriors.ensemble import EnsemblePosterior
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.inference.examples import SHORT_FIT, built, labelled, measured, noise
from tests.zoo.pretrained import ConvNext, VisionTransformer, adapted, start_adapters

ORIGIN = torch.zeros(1, 1)
OPTIONS = {"num_epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "seed": 0}
SHORT = pytest.mark.filterwarnings(*SHORT_FIT)


def bias_model(num_outputs: int = 1, likelihood=None) -> BayesianNetwork:
    """f = w x + b, so that f = b at 0."""
    net = nn.Linear(1, num_outputs)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.1) if likelihood is None else likelihood)


def members_at(model: BayesianNetwork, values: list[list[float]], **fields: Tensor) -> EnsemblePosterior:
    """Members of w = 0 and the biases given."""
    fitted = ensemble.fit(model, Dataset(ORIGIN, torch.zeros(1)), num_members=len(values), num_epochs=1, seed=0)
    slopes = [0.0] * len(values[0])
    members = [
        dataclasses.replace(member, values=torch.tensor(slopes + biases), **fields)
        for member, biases in zip(fitted.members, values, strict=True)
    ]
    return EnsemblePosterior.of(members)


# The mixture


def test_two_members_a_distance_apart_have_the_mixtures_spread_and_density():
    predictive = members_at(bias_model(), [[-1.0], [1.0]]).predict(ORIGIN)
    assert float(predictive.mean) == pytest.approx(0)
    assert float(predictive.total.sqrt()) == pytest.approx(1.005, abs=1e-4)  # not the averaged 0.1
    assert float(predictive.aleatoric) == pytest.approx(0.01)
    assert float(predictive.epistemic) == pytest.approx(1.0)
    exact = math.log(0.5 * math.exp(-0.5 * 20**2) + 0.5) - math.log(0.1) - 0.5 * math.log(2 * math.pi)
    assert float(predictive.log_prob([1.0])) == pytest.approx(exact, rel=1e-6)  # not the averaged -48.6
    assert float(predictive.log_prob([0.0])) == pytest.approx(
        -50 - math.log(0.1) - 0.5 * math.log(2 * math.pi), rel=1e-6
    )


def test_members_with_noise_of_their_own_are_not_weighted_by_it():
    model = bias_model(2, likelihoods.HeteroscedasticNormal())
    predictive = members_at(model, [[0.0, math.log(0.1**2)], [10.0, 0.0]]).predict(ORIGIN)
    assert float(predictive.mean) == pytest.approx(5.0)
    assert float(predictive.total.sqrt()) == pytest.approx(math.sqrt(25 + 0.505), rel=1e-6)


def test_sure_members_that_disagree_are_uncertain_together():
    model = bias_model(2, likelihoods.Categorical())
    predictive = members_at(model, [[50.0, 0.0], [0.0, 50.0]]).predict(ORIGIN)
    torch.testing.assert_close(predictive.mean, torch.full((1, 2), 0.5, dtype=torch.float64))
    assert float(predictive.total) == pytest.approx(math.log(2))
    assert float(predictive.epistemic) == pytest.approx(math.log(2))
    assert float(predictive.aleatoric) == pytest.approx(0, abs=1e-12)


@SHORT
def test_a_mixture_of_gaussian_posteriors_adds_the_variance_within_and_between():
    fitted = ensemble.fit(bias_model(), measured(num_features=1), num_members=2, member_fit=variational.fit, **OPTIONS)
    members = [
        dataclasses.replace(member, loc=torch.tensor([0.0, bias]), log_scale=torch.tensor([-20.0, math.log(0.5)]))
        for member, bias in zip(fitted.members, (-1.0, 1.0), strict=True)
    ]
    predictive = EnsemblePosterior.of(members).predict(ORIGIN, num_samples=8000, seed=0)
    assert predictive.num_samples == 8000
    # Equal halves N(-1, 1/4) and N(1, 1/4) have mean 0, variance 5/4 and fourth moment 1 + 6/4 + 3/16.
    assert abs(float(predictive.mean)) < 4.5 * (0.25 / 8000) ** 0.5
    assert abs(float(predictive.epistemic) - 1.25) < 4.5 * ((43 / 16 - 1.25**2) / 8000) ** 0.5


# Members of models of their own


class OnFeatures(nn.Module):
    """A head on a frozen layer, with a buffer."""

    def __init__(self, shift: float):
        super().__init__()
        self.features, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.features.requires_grad_(False)
        self.register_buffer("shift", torch.tensor([shift]))

    def forward(self, x):
        return self.head(self.features(x).tanh()) + self.shift


def members_of_their_own() -> list[map_estimate.MapPosterior]:
    """Fits of other frozen features, other buffers and other noise, each."""
    models = [
        BayesianNetwork(built(partial(OnFeatures, seed), seed), priors.Normal(), likelihoods.Normal(scale=0.1 + seed))
        for seed in range(3)
    ]
    return [map_estimate.fit(model, measured(), **OPTIONS) for model in models]


def test_members_keep_their_own_frozen_weights_buffers_and_likelihood(tmp_path):
    members, x = members_of_their_own(), noise(4, 5, 3)
    posterior = EnsemblePosterior.of(members)
    expected = [member.predict(x) for member in members]
    for found in (posterior, posterior.to("cpu")):
        predictive = found.predict(x)
        for number, alone in enumerate(expected):
            assert torch.equal(predictive.component_means[number], alone.component_means[0])
        torch.testing.assert_close(predictive.aleatoric, torch.stack([one.aleatoric for one in expected]).mean(dim=0))
    with pytest.warns(UserWarning, match="was not built by bayesuq"):
        posterior.save(tmp_path / "posterior")
    again = load(tmp_path / "posterior", model=members[0].model)
    assert torch.equal(again.predict(x).component_means, posterior.predict(x).component_means)
    assert torch.equal(again.predict(x).noise_variance, posterior.predict(x).noise_variance)


def test_members_of_several_networks_are_a_mixture_and_a_file(tmp_path):
    data, x = measured(), noise(4, 5, 3).float()
    likelihood = likelihoods.Normal(scale=0.2)
    nets = [built(lambda width=width: networks.mlp(3, (width,), 1)) for width in (4, 7)]
    members = [map_estimate.fit(BayesianNetwork(net, priors.Normal(), likelihood), data, **OPTIONS) for net in nets]
    posterior = EnsemblePosterior.of(members)
    expected = torch.cat([member.predict(x).component_means for member in members])
    assert torch.equal(posterior.predict(x).component_means, expected)
    posterior.save(tmp_path / "posterior")
    assert torch.equal(load(tmp_path / "posterior").predict(x).component_means, expected)
    with pytest.raises(ValueError, match="The members' sites differ in names or shapes"):
        posterior.sample_weights()


def test_members_that_differ_in_their_start_only_share_one_model():
    posterior = ensemble.fit(mlp_model(), measured(), num_members=2, vectorised=False, **OPTIONS)
    assert all(member.model is posterior.model for member in posterior.members)


def test_wrapped_members_keep_what_they_are_wrapped_in(tmp_path):
    members = [
        temperature.fit(
            map_estimate.fit(
                BayesianNetwork(networks.mlp(3, (4,), 3), priors.Normal(), likelihoods.Categorical()),
                labelled(),
                **OPTIONS,
            ),
            labelled(seed=seed),
            seed=0,
        )
        for seed in (0, 5)
    ]
    posterior, x = EnsemblePosterior.of(members), noise(4, 5, 3).float()
    expected = torch.stack([member.predict(x).mean for member in members]).mean(dim=0)
    torch.testing.assert_close(posterior.predict(x).mean, expected, rtol=1e-12, atol=1e-12)
    posterior.save(tmp_path / "posterior")
    torch.testing.assert_close(load(tmp_path / "posterior").predict(x).mean, expected, rtol=1e-12, atol=1e-12)


def test_an_ensemble_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one member; got none"):
        EnsemblePosterior.of([])


# Which members take part


@pytest.mark.parametrize(
    ("num_samples", "expected"),
    [
        (1, [2]),
        (2, [1, 3]),
        (3, [0, 2, 4]),
        (4, [0, 1, 3, 4]),
        (5, [0, 1, 2, 3, 4]),
        (9, [0, 1, 2, 3, 4]),
        (None, range(5)),
    ],
)
def test_fewer_draws_than_members_take_an_even_thinning(num_samples, expected):
    posterior = members_at(bias_model(), [[float(number)] for number in range(5)])
    predictive = posterior.predict(ORIGIN, num_samples=num_samples, seed=3)
    assert predictive.component_means.flatten().tolist() == list(expected)
    assert posterior.sample_weights(num_samples, seed=3)["bias"].flatten().tolist() == list(expected)


@SHORT
@pytest.mark.parametrize(("num_samples", "shares"), [(1, [0, 1]), (2, [1, 1]), (7, [4, 3]), (None, [100, 100])])
def test_draws_are_shared_out_to_within_one(num_samples, shares):
    fitted = ensemble.fit(bias_model(), measured(num_features=1), num_members=2, member_fit=variational.fit, **OPTIONS)
    members = [
        dataclasses.replace(member, loc=torch.tensor([0.0, bias]), log_scale=torch.full((2,), -9.0))
        for member, bias in zip(fitted.members, (-1.0, 1.0), strict=True)
    ]
    draws = EnsemblePosterior.of(members).predict(ORIGIN, num_samples=num_samples, seed=0).component_means
    assert [int((draws < 0).sum()), int((draws > 0).sum())] == shares


def test_masks_are_no_weights_to_sample():
    net = networks.mlp(3, (4,), 1, dropout=0.2)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.1))
    posterior = ensemble.fit(model, measured(), num_members=2, member_fit=dropout.fit, **OPTIONS)
    with pytest.raises(TypeError, match="DropoutPosterior is not a posterior over weights"):
        posterior.sample_weights(4)


# How members are fitted


def mlp_model(seed: int = 0, **options) -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (6,), 1, activation="tanh", **options), seed)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.2))


def test_members_start_from_weights_of_their_own_not_from_the_networks():
    fits = [
        ensemble.fit(mlp_model(seed), measured(), num_members=3, num_epochs=1, learning_rate=1e-9, seed=0)
        for seed in (0, 1)
    ]
    starts = torch.stack([member.values for member in fits[0].members])
    assert len(starts.unique(dim=0)) == 3
    assert torch.equal(starts, torch.stack([member.values for member in fits[1].members]))
    weights = starts[:, :18]  # of the first layer, uniform within 1 / sqrt(fan-in) as torch initialises
    assert weights.abs().max() < 3**-0.5
    assert weights.std(dim=0).min() > 0.01


def test_members_see_the_data_in_an_order_of_their_own():
    class Shift(nn.Module):
        """One weight that starts at 0 in every member, so that only the order can differ."""

        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(1))

        def reset_parameters(self):
            nn.init.zeros_(self.shift)

        def forward(self, x):
            return 0 * x + self.shift

    model = BayesianNetwork(Shift(), priors.Normal(), likelihoods.Normal(scale=1.0))
    options = {"num_members": 3, "num_epochs": 1, "learning_rate": 1e-2, "seed": 0}
    apart = ensemble.fit(model, measured(num_features=1), batch_size=4, **options)
    assert len({float(member.values) for member in apart.members}) == 3
    together = ensemble.fit(model, measured(num_features=1), batch_size=999, **options)
    values = [float(member.values) for member in together.members]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_further_members_do_not_change_the_first():
    two, three = (ensemble.fit(mlp_model(), measured(), num_members=number, **OPTIONS) for number in (2, 3))
    for one, other in zip(two.members, three.members, strict=False):
        torch.testing.assert_close(one.values, other.values)  # one pass over three rounds otherwise than one over two


def test_a_member_is_what_its_fit_gives_and_predicts_by_itself():
    model = mlp_model(batch_norm=True)
    posterior = ensemble.fit(model, measured(), num_members=3, **OPTIONS)
    x = noise(4, 5, 3)
    whole = posterior.predict(x, seed=0)
    assert isinstance(whole, GaussianPredictive)
    for number, member in enumerate(posterior.members):
        assert isinstance(member, map_estimate.MapPosterior)
        assert torch.equal(member.predict(x).component_means[0], whole.component_means[number])
    assert len({float(member.buffers["2.running_mean"][0]) for member in posterior.members}) == 3


@SHORT
def test_a_methods_own_options_are_bound_to_its_fit():
    member_fit = partial(variational.fit, guide=partial(variational.mean_field, initial_scale=0.3), num_draws=2)
    posterior = ensemble.fit(
        mlp_model(), measured(), num_members=2, member_fit=member_fit, num_epochs=1, learning_rate=1e-9, seed=0
    )
    for member in posterior.members:
        torch.testing.assert_close(member.scale, torch.full_like(member.scale, 0.3), rtol=1e-5, atol=0)


def test_each_member_keeps_its_own_best_epoch():
    posterior = ensemble.fit(
        mlp_model(),
        measured(24, seed=0),
        num_members=3,
        num_epochs=40,
        batch_size=8,
        learning_rate=0.05,
        validation=measured(40, seed=50),
        seed=0,
    )
    held_out = measured(40, seed=50)
    for member in posterior.members:
        score = -member.predict(held_out.x).log_prob(held_out.y).mean()
        assert float(score) == pytest.approx(min(member.history.validation_loss), rel=1e-5)


def test_callbacks_are_called_for_every_member_in_turn():
    epochs = []
    ensemble.fit(mlp_model(), measured(), num_members=2, callbacks=[lambda p: epochs.append(p.epoch)], **OPTIONS)
    assert epochs == [0, 1, 0, 1]


def test_more_members_predict_better_than_one_on_average():
    data, held_out = labelled(60), labelled(400, seed=9)
    net = built(lambda: networks.mlp(3, (20,), 3))
    model = BayesianNetwork(net, priors.Normal(scale=3.0), likelihoods.Categorical())
    posterior = ensemble.fit(model, data, num_members=4, num_epochs=60, batch_size=20, learning_rate=3e-2, seed=0)
    single = torch.stack([m.predict(held_out.x).log_prob(held_out.y).mean() for m in posterior.members]).mean()
    # By Jensen's inequality, for every data set: the log of a mean is above the mean of the logs.
    assert posterior.predict(held_out.x).log_prob(held_out.y).mean() > single + 1e-3


# What it refuses


@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (-2, ValueError), (2.5, TypeError)])
def test_the_number_of_members_must_be_a_count(number, error):
    with pytest.raises(error, match="`num_members`"):
        ensemble.fit(mlp_model(), measured(), num_members=number, **OPTIONS)


def test_a_member_fit_that_is_no_function_is_refused():
    with pytest.raises(TypeError):
        ensemble.fit(mlp_model(), measured(), member_fit="map", **OPTIONS)


def test_weights_that_nothing_initialises_are_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.slope * x

    model = BayesianNetwork(Own(), priors.Normal(), likelihoods.Normal(scale=0.1))
    with pytest.raises(ValueError, match=r"no layer resets slope.*reset_parameters"):
        ensemble.fit(model, measured(num_features=1), num_members=2, **OPTIONS)


def test_members_keep_their_own_learning_rate_unless_one_is_given():
    given = []

    def member_fit(model, data, **options):
        given.append(options.get("learning_rate"))
        return map_estimate.fit(model, data, **options)

    for rate in (None, 0.5):
        options = {**OPTIONS, "learning_rate": rate}
        ensemble.fit(mlp_model(), measured(), num_members=1, member_fit=member_fit, **options)
    assert given == [None, 0.5]


# What members start from


def starts_of(posterior: EnsemblePosterior) -> list[dict[str, Tensor]]:
    return [{name: value[0] for name, value in member.sample_weights().items()} for member in posterior.members]


PRETRAINED = {"vision transformer": VisionTransformer, "convolutions": ConvNext}
FROZEN_STEPS = {"num_members": 2, "num_epochs": 1, "batch_size": 8, "learning_rate": 1e-9, "seed": 0}


@pytest.mark.parametrize("build", PRETRAINED.values(), ids=PRETRAINED)
@pytest.mark.parametrize("initialise", ["last_layer", "keep"])
@pytest.mark.parametrize("vectorised", [None, False])
def test_pretrained_networks_become_members(build, initialise, vectorised):
    model = BayesianNetwork(built(build), priors.Normal(), likelihoods.Categorical())
    data = Dataset(noise(0, 20, 1, 4, 4), torch.arange(20) % 3)
    with pytest.raises(ValueError, match="no layer resets"):
        ensemble.fit(model, data, **FROZEN_STEPS)
    posterior = ensemble.fit(model, data, initialise=initialise, vectorised=vectorised, **FROZEN_STEPS)
    first, second = starts_of(posterior)
    for name, own in model.initial().items():
        close = torch.allclose(first[name], own, atol=1e-6)
        assert close == torch.allclose(first[name], second[name], atol=1e-6)
        assert close == (initialise == "keep" or not name.startswith("head"))


@pytest.mark.parametrize("member_fit", [map_estimate.fit, partial(swag.fit, rank=2, swa_learning_rate=1e-9)])
def test_a_function_starts_members_of_any_method(member_fit):
    model = BayesianNetwork(built(adapted), priors.Normal(), likelihoods.Categorical())
    data = labelled()
    options = {"num_members": 2, "num_epochs": 2, "batch_size": 16, "learning_rate": 1e-9, "seed": 0}
    with pytest.warns(UserWarning, match=r"of which .*lora_B\.weight.* look trained"):
        ensemble.fit(model, data, member_fit=member_fit, **options)
    posterior = ensemble.fit(model, data, initialise=start_adapters, member_fit=member_fit, **options)
    plain = map_estimate.fit(model, data, num_epochs=1, learning_rate=1e-12, seed=0).predict(data.x).mean
    for member in posterior.members:  # adapters that start at nothing
        torch.testing.assert_close(member.predict(data.x, num_samples=1, seed=0).mean, plain, rtol=1e-4, atol=1e-4)
    first, second = starts_of(posterior)
    assert not torch.equal(first["0.lora_A.weight"], second["0.lora_A.weight"])


def test_members_that_a_function_gives_other_constants_keep_them():
    def initialise(net: nn.Module, _seed: int) -> nn.Module:
        nn.init.normal_(net.features.weight)
        return net

    model = BayesianNetwork(OnFeatures(0.0), priors.Normal(), likelihoods.Normal(scale=0.1))
    posterior = ensemble.fit(model, measured(), num_members=2, initialise=initialise, **OPTIONS)
    first, second = (member.model.net.features.weight for member in posterior.members)
    assert not torch.equal(first, second)


def test_a_trained_network_is_reset_with_a_word_unless_that_is_asked_for():
    model = mlp_model()
    with torch.no_grad():
        model.net[1].weight.mul_(20)
    with pytest.warns(UserWarning, match=r"of which 1\.weight look trained .* 'last_layer' or 'keep'") as record:
        silent = ensemble.fit(model, measured(), num_members=3, **OPTIONS)
    assert record[0].filename == __file__
    asked = ensemble.fit(model, measured(), num_members=3, initialise="reset", **OPTIONS)
    for one, other in zip(silent.members, asked.members, strict=True):
        assert torch.equal(one.values, other.values)


def test_members_that_nothing_tells_apart_are_told():
    with pytest.warns(UserWarning, match="all the same. Pass `bootstrap=True`"):
        ensemble.fit(mlp_model(), measured(), initialise="keep", **{**OPTIONS, "batch_size": 99})
    ensemble.fit(mlp_model(), measured(), initialise="keep", bootstrap=True, **{**OPTIONS, "batch_size": 99})


# Bootstrap


def test_each_bootstrap_member_gets_rows_of_its_own_drawn_with_replacement():
    data = Dataset(torch.arange(40.0).unsqueeze(1), torch.arange(40.0))
    seen = []

    def member_fit(model, data, **options):
        seen.append(data.x.flatten().long())
        return map_estimate.fit(model, data, **{**options, "num_epochs": 1})

    for num_members in (30, 4):
        ensemble.fit(bias_model(), data, num_members=num_members, bootstrap=True, member_fit=member_fit, **OPTIONS)
    first, again = seen[:30], seen[30:]
    assert all(torch.equal(one, other) for one, other in zip(first[:4], again, strict=True))
    assert all(len(rows) == 40 for rows in first)
    assert len({tuple(rows.tolist()) for rows in first}) == 30
    missing = sum(40 - len(rows.unique()) for rows in first) / (30 * 40)
    # A row is missing with probability (1 - 1/40)^40; members have about 0.1 standard deviations of correlation.
    assert missing == pytest.approx((1 - 1 / 40) ** 40, abs=4 * (0.25 / 1200) ** 0.5)


def test_rows_of_a_loader_cannot_be_drawn():
    loader = DataLoader(TensorDataset(measured().x, measured().y), batch_size=8)
    with pytest.raises(TypeError, match="`bootstrap` draws rows of a Dataset; got DataLoader"):
        ensemble.fit(mlp_model(), loader, bootstrap=True, **OPTIONS)


# Adversarial training


def first_loss(model: BayesianNetwork, data: Dataset, **options) -> float:
    """Loss per row at the network's own weights."""
    return map_estimate.fit(model, data, num_epochs=1, batch_size=len(data), seed=0, **options).history.loss[0]


@pytest.mark.filterwarnings("ignore:.*far from unit size")
def test_half_of_an_adversarial_loss_is_that_of_inputs_moved_by_a_hundredth_of_their_range():
    net = nn.Linear(2, 1).double()
    weight, bias = net.weight.detach().flatten(), net.bias.detach()
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))
    data = Dataset(noise(3, 30, 2) * torch.tensor([1.0, 50.0]), noise(4, 30))

    def loss(x: Tensor) -> Tensor:
        residuals = data.y.flatten() - x @ weight - bias
        return (0.5 * (residuals / 0.5) ** 2 + math.log(0.5) + 0.5 * math.log(2 * math.pi)).sum()

    step = 0.01 * (data.x.amax(0) - data.x.amin(0))
    residuals = data.y.flatten() - data.x @ weight - bias
    moved = data.x - step * (residuals.unsqueeze(1) * weight).sign()  # d log p / dx = residual w / scale^2
    prior = sum((0.5 * p**2 + 0.5 * math.log(2 * math.pi)).sum() for p in (weight, bias))
    assert loss(moved) > loss(data.x)
    assert first_loss(model, data, adversarial=True) == pytest.approx(
        float(prior + 0.5 * (loss(data.x) + loss(moved))) / 30, rel=1e-12
    )
    assert first_loss(model, data) == pytest.approx(float(prior + loss(data.x)) / 30, rel=1e-12)


def test_the_range_of_a_loaders_inputs_is_that_of_all_its_batches():
    data = measured()
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=7)
    options = {"num_epochs": 1, "learning_rate": 1e-2, "seed": 0, "adversarial": True}
    model = mlp_model()
    from_rows = map_estimate.fit(model, Dataset(data.x[:7], data.y[:7]), batch_size=7, **options)
    from_loader = map_estimate.fit(model, loader, **options)
    assert from_rows.history.loss != from_loader.history.loss
    assert torch.equal(
        Source(NetworkReader(model), loader, 7).input_range(), Source(NetworkReader(model), data, 7).input_range()
    )


def test_an_adversarial_ensemble_is_one_of_adversarial_members():
    given = []

    def member_fit(model, data, **options):
        given.append(options.get("adversarial", False))
        return map_estimate.fit(model, data, **options)

    for adversarial in (True, False):
        ensemble.fit(mlp_model(), measured(), num_members=1, adversarial=adversarial, member_fit=member_fit, **OPTIONS)
    assert given == [True, False]
    with pytest.raises(TypeError, match="no option 'adversarial'"):
        ensemble.fit(mlp_model(), measured(), adversarial=True, member_fit=variational.fit, **OPTIONS)
