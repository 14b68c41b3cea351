"""Local reparameterisation and flipout: exact expectations, covariances between rows and uses, and what is refused."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesuq.data import Batch, Dataset
from bayesuq.inference import variational
from bayesuq.inference.variational.factorised import EvidenceObjective
from bayesuq.inference.variational.guides import mean_field
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import generator
from tests.inference.examples import SHORT_FIT, Conjugate, built, labelled, measured, noise

NUM_DATA, NUM_STEPS = 40, 250
ESTIMATORS = ("weights", "local", "flipout")
NEW = ESTIMATORS[1:]


def evidence(net: nn.Module, estimator: str, likelihood=None, *, scale: float = 0.3, **options) -> EvidenceObjective:
    model = BayesianNetwork(net.double(), priors.Normal(), likelihood or likelihoods.Normal(scale=0.5), **options)
    guide = mean_field(model, initial_scale=scale)
    return EvidenceObjective(model, guide, NUM_DATA, num_draws=1, scale_rate=1.0, estimator=estimator)


def gradients(objective: EvidenceObjective, x: Tensor, y: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Losses (count,) and gradients along means and log scales, (count, 2 R)."""
    stream, batch = generator(seed), Batch(x, objective.model.likelihood.targets(y), None)
    losses, found = [], []
    for _ in range(count):
        losses.append(objective.loss_and_grads(batch, stream).detach().clone())
        found.append(torch.cat([objective.grad_loc, objective.grad_log_scale]))
    return torch.stack(losses), torch.stack(found)


def assert_mean(draws: Tensor, expected: Tensor, errors: float = 5.0) -> None:
    """Each of some tens of means exceeds five standard errors with probability 6e-7."""
    standard = (draws.var(dim=0) / len(draws)).sqrt()
    assert ((draws.mean(dim=0) - expected).abs() < errors * standard + 1e-9).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_linear_regression_has_its_exact_elbo_and_gradient_on_average(estimator: str) -> None:
    x, y = noise(0, 6, 3), noise(1, 6, 1)
    objective = evidence(built(lambda: nn.Linear(3, 1)), estimator)
    losses, found = gradients(objective, x, y, 600)
    design = torch.cat([x, torch.ones(6, 1).double()], dim=1)
    loc, scale, factor = objective.loc, objective.scale, NUM_DATA / 6 / 0.25
    residual = design @ loc - y[:, 0]
    along_loc = factor * design.T @ residual + loc
    along_scale = factor * design.square().sum(dim=0) * scale**2 + scale**2 - 1
    assert_mean(found, torch.cat([along_loc, along_scale]))
    squares = residual.square() + design.square() @ scale**2
    log_likelihood = (-0.5 * squares / 0.25 - 0.5 * torch.log(torch.tensor(2 * torch.pi * 0.25))).sum()
    divergence = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum()
    assert_mean(losses, divergence - NUM_DATA / 6 * log_likelihood)


class Positions(nn.Module):
    """A layer used at two positions and once more at another depth, a norm, and a scale that is in no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.shared(x.unflatten(1, (2, 3))).tanh())
        return (self.shared(input=hidden) * self.scale).sum(dim=1)


class Images(nn.Module):
    """Convolutions in groups, with strides and another padding, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")
        self.second = nn.Conv2d(4, 4, 2, stride=2, groups=2, bias=False)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x.view(-1, 1, 2, 3)).relu()).mean(dim=(2, 3)))


NETS = {
    "perceptron, local": (lambda: networks.mlp(6, (4,), 2, activation="tanh"), "local", {}),
    "perceptron, flipout": (lambda: networks.mlp(6, (4,), 2, activation="tanh"), "flipout", {}),
    "last layer, local": (lambda: networks.mlp(6, (4,), 2), "local", {"random": "last_layer"}),
    "biases, local": (lambda: networks.mlp(6, (4,), 2), "local", {"random": "*.bias"}),
    "weights without biases, flipout": (lambda: networks.mlp(6, (4,), 2), "flipout", {"random": "*.weight"}),
    "inferred noise, local": (
        lambda: networks.mlp(6, (4,), 2, activation="tanh"),
        "local",
        {"likelihood": likelihoods.Normal(scale=priors.HalfNormal(1.0))},
    ),
    "images, flipout": (Images, "flipout", {}),
}


@pytest.mark.parametrize("name", NETS)
def test_the_expected_gradient_is_that_of_drawn_weights(name: str) -> None:
    build, estimator, options = NETS[name]
    x, y = noise(0, 5, 6), noise(1, 5, 2)
    net = built(build)
    (_, one), (_, other) = (
        gradients(evidence(net, kind, scale=0.2, **options), x, y, NUM_STEPS, seed)
        for seed, kind in enumerate(("weights", estimator))
    )
    error = ((one.var(dim=0) + other.var(dim=0)) / NUM_STEPS).sqrt()
    assert ((one.mean(dim=0) - other.mean(dim=0)).abs() < 5 * error + 1e-9).all()


@pytest.mark.parametrize("estimator", NEW)
def test_the_gradient_of_a_batch_is_less_noisy(estimator: str) -> None:
    x, y = noise(0, 64, 6), noise(1, 64, 2)
    net = built(lambda: networks.mlp(6, (20,), 2))
    spread = {
        kind: gradients(evidence(net, kind, scale=0.1), x, y, 300)[1].var(dim=0).sum()
        for kind in ("weights", estimator)
    }
    assert spread[estimator] < 0.5 * spread["weights"]


def passes(objective: EvidenceObjective, x: Tensor, count: int) -> Tensor:
    """Outputs of several passes, (count, N, ...)."""
    stream, found = generator(3), []
    with torch.no_grad():
        torch.exp(objective.log_scale, out=objective.scale)
        for _ in range(count):
            if objective.activations is None:
                objective._draw(stream)
            else:
                objective.activations.draw(x, objective.loc, objective.scale, objective.noise, stream)
            found.append(objective.network.training(x))
    return torch.stack(found)


def covariance(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Of two series, with its standard error."""
    products = (one - one.mean()) * (other - other.mean())
    return products.mean(), products.std() / len(products) ** 0.5


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_outputs_have_the_variance_of_drawn_weights_and_no_covariance_between_rows(estimator: str) -> None:
    x = noise(0, 2, 3)
    objective = evidence(built(lambda: nn.Linear(3, 1)), estimator)
    f = passes(objective, x, 4000)[..., 0]
    design = torch.cat([x, torch.ones(2, 1).double()], dim=1)
    exact = design @ (objective.scale**2).diag() @ design.T
    for row in range(2):
        found, error = covariance(f[:, row], f[:, row])
        assert abs(found - exact[row, row]) < 5 * error
    found, error = covariance(f[:, 0], f[:, 1])
    assert abs(found - (exact[0, 1] if estimator == "weights" else 0.0)) < 5 * error
    assert abs(exact[0, 1]) > 10 * error  # so that the difference shows


def test_flipout_uses_one_draw_at_all_positions_of_a_row() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.layer(x), self.layer(1.1 * x + 0.05)], dim=1)

    x = noise(0, 2, 3)
    f = {kind: passes(evidence(built(Twice), kind), x, 3000) for kind in ("weights", "flipout")}
    for row in range(2):
        correlation = {kind: torch.corrcoef(draws[:, row].T)[0, 1] for kind, draws in f.items()}
        assert correlation["weights"] > 0.98  # where two independent noises would have none
        assert abs(correlation["flipout"] - correlation["weights"]) < 0.005
    assert torch.corrcoef(f["flipout"][:, :, 0].T)[0, 1].abs() < 0.08  # four standard errors, between rows


@pytest.mark.parametrize("build", [Images, Positions], ids=["convolutions", "positions"])
def test_flipout_is_a_network_of_its_own_for_every_row(build) -> None:
    x = noise(0, 4, 6)
    objective = evidence(built(build), "flipout", scale=0.5)
    found = passes(objective, x, 1)[0]
    noisy, layout = objective.activations, objective.guide.layout
    theta = layout.split(objective.weights.values)
    deviations = layout.split(noisy.twin.values)
    for row in range(4):
        own = dict(theta)
        for path, (at_input, at_output) in noisy.memory.items():
            weight, groups = deviations[f"{path}.weight"], getattr(noisy.layers[path], "groups", 1)
            columns = at_input[row].view(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
            signs = at_output[row][:, None] * columns
            own[f"{path}.weight"] = theta[f"{path}.weight"] + weight * signs.view(
                *signs.shape, *[1] * (weight.ndim - 2)
            )
            if f"{path}.bias" in deviations:
                own[f"{path}.bias"] = theta[f"{path}.bias"] + deviations[f"{path}.bias"] * at_output[row]
        expected = functional_call(objective.model.net, own, (x[row : row + 1],))
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("estimator", NEW)
def test_a_fit_finds_the_exact_mean_field_scales(estimator: str) -> None:
    example = Conjugate(num_points=60, num_features=4, noise_scale=0.3)
    posterior = variational.fit(example.model, example.data, estimator=estimator, num_epochs=300, seed=0)
    design = torch.cat([example.data.x, torch.ones(60, 1)], dim=1).double()
    precision = (design.square().sum(dim=0) / 0.09 + 1.0).float()
    torch.testing.assert_close(posterior.scale, precision.rsqrt(), rtol=0.2, atol=0)
    one, same = (
        variational.fit(example.model, example.data, estimator=estimator, num_epochs=5, seed=0) for _ in range(2)
    )
    assert torch.equal(one.loc, same.loc)


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_dropout_layers_which_do_not_act_here_change_nothing(estimator: str) -> None:
    x = torch.linspace(-1, 1, 5).unsqueeze(1)
    found = []
    for layers in ([nn.Tanh()], [nn.Dropout(0.5), nn.Tanh()]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 3), nn.Sequential(*layers), nn.Linear(3, 1))
        model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))
        found.append(variational.fit(model, Dataset(x, x), estimator=estimator, num_epochs=2, seed=0))
    assert torch.equal(found[0].loc, found[1].loc)


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_images_train_by_flipout_and_predict_by_drawn_weights() -> None:
    net = built(lambda: networks.convnet(1, 3))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    data = Dataset(noise(0, 48, 1, 8, 8).float(), labelled().y)
    posterior = variational.fit(model, data, estimator="flipout", num_epochs=3, seed=0)
    one, same = (posterior.predict(data.x, num_samples=4, seed=1, keep_samples=True) for _ in range(2))
    assert torch.equal(one.samples, same.samples)
    assert posterior.history.loss[-1] < posterior.history.loss[0]


@pytest.mark.parametrize("estimator", NEW)
def test_a_row_of_zeros_has_a_finite_gradient(estimator: str) -> None:
    x = noise(0, 4, 6)
    x[1] = 0.0
    objective = evidence(built(lambda: nn.Linear(6, 2, bias=False)), estimator)
    losses, found = gradients(objective, x, noise(1, 4, 2), 5)
    assert losses.isfinite().all()
    assert found.isfinite().all()


class Elsewhere(nn.Module):
    """A layer whose weight is used in another way too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh() @ self.layer.weight


class Flattened(nn.Module):
    """A layer that sees rows and positions in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(-1, 3)).view(len(x), 2, 2).sum(dim=1)


class Again(nn.Module):
    """A layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))


def positions() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 1), nn.Flatten())


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("build", "estimator", "words"),
    [
        (Images, "local", r"first.weight is not a parameter of one. Use estimator='flipout'"),
        (normed, "local", r"1.weight is not a parameter of one. Use estimator='flipout'"),
        (Again, "local", r"`layer` is used twice. Use estimator='flipout'"),
        (positions, "local", r"got inputs of shape \(4, 2, 3\). Use estimator='flipout'"),
        (Flattened, "local", "got 8 for 4 rows. Use estimator='weights'"),
        (Flattened, "flipout", "got 8 for 4 rows. Use estimator='weights'"),
        (Elsewhere, "local", "act elsewhere, too. Use estimator='weights'"),
        (Elsewhere, "flipout", "act elsewhere, too. Use estimator='weights'"),
        (tied, "local", "tied weights one draw in two places: 0.weight"),
        (tied, "flipout", "tied weights one draw in two places: 0.weight"),
        (partial(networks.mlp, 6, (4,), 2, batch_norm=True), "local", "takes statistics of its batch"),
        (partial(networks.mlp, 6, (4,), 2, batch_norm=True), "flipout", "takes statistics of its batch"),
    ],
)
def test_networks_without_an_exact_estimate_are_refused(build, estimator: str, words: str) -> None:
    x, net = noise(0, 4, 6), built(build).double()
    y = noise(1, *net(x).shape)
    with pytest.raises(ValueError, match=words):
        gradients(evidence(net, estimator), x, y, 1)


@pytest.mark.parametrize("estimator", NEW)
def test_priors_and_guides_that_need_draws_are_refused(estimator: str) -> None:
    net, data = built(lambda: networks.mlp(3, (4,), 1)), measured()
    model = BayesianNetwork(net, priors.Laplace(), likelihoods.Normal(scale=0.5))
    with pytest.raises(ValueError, match=r"prior of 1.weight needs a draw. Use normal priors"):
        variational.fit(model, data, estimator=estimator, num_epochs=1, seed=0)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))
    with pytest.raises(ValueError, match="is for networks and the mean-field guide"):
        variational.fit(model, data, guide=variational.low_rank(2), estimator=estimator, num_epochs=1, seed=0)


def test_other_estimators_are_refused() -> None:
    model = BayesianNetwork(nn.Linear(3, 1), priors.Normal(), likelihoods.Normal(scale=0.5))
    with pytest.raises(ValueError, match="`estimator` must be one of 'weights', 'local', 'flipout'; got 'flip'"):
        variational.fit(model, measured(), estimator="flip", num_epochs=1, seed=0)  # type: ignore[arg-type]
