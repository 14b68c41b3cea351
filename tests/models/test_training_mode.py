"""Networks as `net.train()` runs them: what draws, what moves, and what must not."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader

from bayesuq.data import Dataset
from bayesuq.inference import dropout, ensemble, hmc, laplace, map_estimate, sgmcmc, swag, variational
from bayesuq.inference.dropout import DropoutPosterior
from bayesuq.inference.joint.masked_network import MaskedNetwork
from bayesuq.inference.joint.masks import BLOCK
from bayesuq.inference.joint.network import TrainingNetwork, point_vectors
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.training_mode import training_mode
from tests.inference.examples import SHORT_FIT, weights_of
from tests.zoo.modules import ALWAYS_RANDOM, RANDOM_IN_TRAINING, STATEFUL, WIDTH, Kind, spectral

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT, "ignore::UserWarning")  # fits that are short on purpose

NUM_DRAWS = 150
each_random = pytest.mark.parametrize("kind", RANDOM_IN_TRAINING.values(), ids=RANDOM_IN_TRAINING)
each_stateful = pytest.mark.parametrize("kind", STATEFUL.values(), ids=STATEFUL)


def model_of(kind: Kind, net: nn.Module | None = None) -> BayesianNetwork:
    net = kind.net(dtype=torch.float64) if net is None else net
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))


def data_of(kind: Kind, number: int = 24) -> Dataset:
    x = kind.x(number, dtype=torch.float64)
    return Dataset(x, x.flatten(1).sum(dim=1))


def masked_outputs(model: BayesianNetwork, x: Tensor, number: int, *, start: int = 0) -> Tensor:
    """f of each draw at the network's own weights, (S, N)."""
    masked = MaskedNetwork(model, x)
    buffers = dict(model.net.named_buffers())
    with torch.no_grad():
        draws = [masked(model.initial(), x, buffers, key=(0, draw), start=start) for draw in range(number)]
    return torch.stack(draws)[..., 0]


def plain_outputs(net: nn.Module, x: Tensor, number: int) -> Tensor:
    """f of passes of torch's own, (S, N)."""
    with torch.no_grad():
        return torch.stack([net(x)[..., 0] for _ in range(number)])


def assert_same_law(one: Tensor, other: Tensor) -> None:
    """Means over rows, and spreads around them, are within 4.5 standard errors, draws being independent."""
    centre = other.mean(dim=0)
    for statistic in (lambda f: f.mean(dim=1), lambda f: (f - centre).square().mean(dim=1)):
        first, second = statistic(one), statistic(other)
        error = ((first.var() + second.var()) / len(one)).sqrt()
        assert (first.mean() - second.mean()).abs() < 4.5 * error
    assert one.var(dim=0).mean() > 0


@each_random
def test_masked_draws_have_the_law_of_passes_in_training_mode(kind: Kind) -> None:
    net, x = kind.net(dtype=torch.float64), kind.x(20, dtype=torch.float64)
    masked = masked_outputs(model_of(kind, net), x, NUM_DRAWS)
    torch.manual_seed(0)
    assert_same_law(masked, plain_outputs(net.train(), x, NUM_DRAWS))


@each_random
def test_masks_are_the_same_in_any_chunk(kind: Kind) -> None:
    model, x = model_of(kind), kind.x(BLOCK + 20, dtype=torch.float64)
    whole = masked_outputs(model, x, 3)
    for start, stop in ((0, 7), (7, BLOCK + 1), (BLOCK + 3, BLOCK + 20)):
        part = masked_outputs(model, x[start:stop], 3, start=start)
        torch.testing.assert_close(part, whole[:, start:stop], rtol=1e-9, atol=1e-12)
    assert len(whole.unique(dim=0)) > 1


@each_random
def test_training_draws_by_the_given_generator_alone(kind: Kind) -> None:
    model, x = model_of(kind), kind.x(20, dtype=torch.float64)
    network = TrainingNetwork(model, point_vectors(model, list(model.laws)), dropout=True)
    state = torch.get_rng_state()
    with torch.no_grad():
        noise = torch.Generator().manual_seed(1)
        drawn = torch.stack([network.run(x, noise)[..., 0] for _ in range(NUM_DRAWS)])
        assert torch.equal(network.run(x, torch.Generator().manual_seed(1))[..., 0], drawn[0])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert_same_law(drawn, plain_outputs(copy.deepcopy(model.net).train(), x, NUM_DRAWS))


@each_random
def test_what_draws_is_the_identity_in_other_methods(kind: Kind) -> None:
    model, x = model_of(kind), kind.x(5, dtype=torch.float64)
    network = TrainingNetwork(model, point_vectors(model, list(model.laws)), dropout=False)
    torch.testing.assert_close(network.run(x), model.net(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["dropout layers", "lstm", "layer drop"])
def test_dropout_fits_are_the_same_in_any_thread(kind: str) -> None:
    model, data = model_of(RANDOM_IN_TRAINING[kind]), data_of(RANDOM_IN_TRAINING[kind])

    def fit(method: Any) -> Tensor:
        return method.fit(model, data, num_epochs=2, batch_size=8, seed=0).values

    alone = {method: fit(method) for method in (dropout, map_estimate)}
    with ThreadPoolExecutor(4) as pool:
        running = [(method, pool.submit(fit, method)) for method in (dropout, map_estimate) * 4]
        for method, found in running:
            assert torch.equal(found.result(), alone[method])
    assert torch.equal(alone[dropout], alone[map_estimate])  # both are modes under masks


def test_a_transformer_posterior_is_random_whole_and_in_batches() -> None:
    kind = RANDOM_IN_TRAINING["transformer"]
    posterior = dropout.fit(model_of(kind), data_of(kind), num_epochs=1, batch_size=12, seed=0)
    x = kind.x(10, dtype=torch.float64)
    whole = posterior.predict(x, num_samples=8, seed=2)
    assert float(whole.epistemic.min()) > 1e-4
    parts = posterior.predict(DataLoader(x, batch_size=4), num_samples=8, seed=2)
    torch.testing.assert_close(parts.component_means, whole.component_means, rtol=1e-9, atol=1e-12)


def moved_by_hand(kind: Kind, x: Tensor) -> dict[str, Tensor]:
    net = kind.net(dtype=torch.float64).train()
    net(x)
    return {name: value.detach() for name, value in net.named_buffers()}


@each_stateful
@pytest.mark.parametrize("with_dropout", [True, False])
def test_a_training_pass_moves_the_buffers_that_torchs_own_moves(kind: Kind, with_dropout: bool) -> None:
    model, x = model_of(kind), kind.x(12, dtype=torch.float64)
    before = weights_of(model.net)
    network = TrainingNetwork(model, point_vectors(model, list(model.laws)), dropout=with_dropout)
    held = {name: buffer.clone() for name, buffer in network.buffers.items()}
    network.prepare(x)
    assert all(torch.equal(held[name], buffer) for name, buffer in network.buffers.items())
    network.run(x)
    torch.testing.assert_close(network.buffers, moved_by_hand(kind, x), rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(held[name], buffer) for name, buffer in network.buffers.items())
    for name, value in weights_of(model.net).items():
        assert torch.equal(value, before[name])


@each_stateful
def test_masked_draws_hold_the_buffers(kind: Kind) -> None:
    net = nn.Sequential(kind.net(dtype=torch.float64), nn.Dropout(0.5), nn.Linear(1, 1, dtype=torch.float64))
    model, x = model_of(kind, net), kind.x(5, dtype=torch.float64)
    f = masked_outputs(model, x, 8)
    with torch.no_grad():
        body = model.net[0](x)
        values = torch.stack([model.net[2](scale * body)[:, 0] for scale in (0.0, 2.0)])
    assert ((f - values[:1]).abs().minimum((f - values[1:]).abs()) < 1e-9).all()
    buffers = dict(model.net.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())


@pytest.mark.parametrize("name", ["instance norm", "batch norm"])
def test_statistics_of_frozen_layers_are_held(name: str) -> None:
    kind = STATEFUL[name]
    layers = list(kind.net(dtype=torch.float64))
    net = nn.Sequential(nn.Sequential(*layers[:3]).requires_grad_(False), *layers[3:])  # a pretrained body
    model, x = model_of(kind, net), kind.x(12, dtype=torch.float64)
    network = TrainingNetwork(model, point_vectors(model, list(model.laws)), dropout=True)
    network.run(x)
    assert all(
        torch.equal(buffer, value) for buffer, value in zip(network.buffers.values(), net.buffers(), strict=True)
    )


def largest_singular_value(net: nn.Module, theta: dict[str, Tensor], buffers: Any, x: Tensor) -> float:
    """Of the layers' weights as the network uses them."""
    seen: list[Tensor] = []
    tree = copy.deepcopy(net)
    for layer in tree:
        if isinstance(layer, nn.Linear) and layer.out_features > 1:
            layer.register_forward_hook(lambda module, *_: seen.append(module.weight.detach().clone()))
    torch.func.functional_call(tree, {**theta, **buffers}, (x,))
    return max(float(torch.linalg.matrix_norm(weight, 2)) for weight in seen)


@pytest.mark.parametrize("name", ["spectral norm", "spectral norm, by a hook"])
@pytest.mark.parametrize("method", [map_estimate, ensemble, variational, swag], ids=lambda method: method.__name__)
def test_spectral_norms_hold_after_a_fit(name: str, method: Any) -> None:
    kind = STATEFUL[name]
    x = kind.x(48, dtype=torch.float64)
    data = Dataset(x, 10 * x.sum(dim=1))  # which a network of gain 1 would like to exceed
    options: dict[str, Any] = {"num_members": 2} if method is ensemble else {}
    posterior = method.fit(model_of(kind), data, num_epochs=40, batch_size=12, learning_rate=0.02, seed=0, **options)
    for member in getattr(posterior, "members", [posterior]):
        theta = {site: draw[0] for site, draw in member.sample_weights(1, seed=0).items()}
        assert largest_singular_value(member.model.net, theta, member.buffers, x) < 1.1


DRAWS: dict[str, Any] = {
    "variational": lambda *args: variational.fit(*args, num_epochs=20, batch_size=12, seed=0),
    "swag": lambda *args: swag.fit(*args, num_epochs=8, batch_size=12, rank=2, swa_learning_rate=1e-3, seed=0),
    "sgmcmc": lambda *args: sgmcmc.fit(
        *args, num_samples=3, num_warmup=30, thinning=2, num_chains=2, step_size=1e-2, seed=0
    ),
    "hmc": lambda *args: hmc.fit(*args, num_samples=3, num_warmup=10, num_chains=2, seed=0),
}


@pytest.mark.parametrize("name", ["spectral norm", "spectral norm, by a hook"])
@pytest.mark.parametrize("method", DRAWS)
def test_draws_of_weights_have_spectral_norms_of_their_own(name: str, method: str) -> None:
    kind = STATEFUL[name]
    x = kind.x(24, dtype=torch.float64)
    model = model_of(kind, spectral(STATEFUL_NORMS[name], width=4).double())
    posterior = DRAWS[method](model, Dataset(x, 10 * x.sum(dim=1)))
    theta = posterior.sample_weights(4, seed=1)
    found = posterior.predict(x, num_samples=4, seed=1).component_means
    expected = [by_hand({site: draws[s] for site, draws in theta.items()}, x) for s in range(4)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-12)
    one = {site: draws[0] for site, draws in theta.items()}
    torch.testing.assert_close(model.forward(one, x), expected[0], rtol=1e-9, atol=1e-12)


STATEFUL_NORMS = {"spectral norm": parametrizations.spectral_norm, "spectral norm, by a hook": nn.utils.spectral_norm}


def by_hand(theta: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network of spectral norms, its weights divided by their largest singular values."""
    (first, bias), (second, other), (last, end) = (
        (
            theta[next(name for name in theta if name.startswith(f"{place}.") and "bias" not in name)],
            theta[f"{place}.bias"],
        )
        for place in (0, 2, 4)
    )
    for weight, offset in ((first, bias), (second, other)):
        x = (x @ (weight / torch.linalg.svdvals(weight)[0]).T + offset).relu()
    return x @ last.T + end


class FromNumpy(nn.Module):
    """Noise that torch does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + float(np.random.standard_normal()))  # noqa: NPY002 - what users write


FITS: dict[str, Any] = {
    "map": lambda *args: map_estimate.fit(*args, num_epochs=1, seed=0),
    "variational": lambda *args: variational.fit(*args, num_epochs=1, seed=0),
    "dropout": lambda *args: dropout.fit(*args, num_epochs=1, seed=0),
    "ensemble": lambda *args: ensemble.fit(*args, num_members=2, num_epochs=1, seed=0),
    "laplace": lambda *args: laplace.fit(*args, subset="all", num_epochs=1, seed=0),
    "swag": lambda *args: swag.fit(*args, num_epochs=4, batch_size=8, rank=2, swa_learning_rate=1e-3, seed=0),
    "sgmcmc": lambda *args: sgmcmc.fit(
        *args, num_samples=2, num_warmup=2, thinning=1, num_chains=1, step_size=1e-3, seed=0
    ),
    "hmc": lambda *args: hmc.fit(*args, num_samples=2, num_warmup=2, num_chains=1, seed=0),
}


@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize("kind", [ALWAYS_RANDOM, Kind(FromNumpy)], ids=["torch", "numpy"])
def test_noise_that_no_mode_turns_off_is_refused(method: str, kind: Kind) -> None:
    with pytest.raises(ValueError, match=r"same outputs for the same inputs in evaluation mode.*Draw where"):
        FITS[method](model_of(kind), data_of(kind))


class SkipsByPython(nn.Module):
    """Stochastic depth by a number that no seed reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(x) if self.training and random.random() < 0.5 else x)


class Auxiliary(nn.Module):
    """Further outputs while training, as Inception has them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Any:
        f = self.last(x)
        return (f, f) if self.training else f


class KeepsAsItDraws(nn.Module):
    """A statistic and noise under one switch."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean(dim=0))
            x = x + torch.randn_like(x)
        return self.last(x - self.mean)


class Overwrites(nn.Module):
    """Doubles its inputs where they stand."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.mul_(2))


class RefersBesideModules(nn.Module):
    """Computes with weights that a list refers to, in whose place nothing can be put."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.weights = [self.first.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.linear(x, self.weights[0], self.first.bias).tanh())


class KeepsProducts(nn.Module):
    """Makes its weight once for all passes in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> "KeepsProducts":
        self.kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.kept is None:
            self.kept = self.first.weight @ self.first.weight
        return self.last(functional.linear(x, self.kept).tanh())


class NormsItsRows(nn.Module):
    """An embedding that cuts its own rows to a norm as it looks them up."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.last = nn.Embedding(5, 3, max_norm=0.5), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rows((x[:, 0].abs() * 2).long().clamp(max=4)))


REFUSED = {
    "rows cut to a norm": (NormsItsRows, hmc, "changes its weights in place as it runs, rows.weight.*max_norm = None"),
    "rows cut to a norm, variational": (NormsItsRows, variational, "changes its weights in place"),
    "weights in a list": (RefersBesideModules, map_estimate, "does not compute with the weights that are put in"),
    "kept products": (KeepsProducts, variational, "keeps from one pass to the next.*Compute from `self`'s parameters"),
    "doubled in place": (Overwrites, map_estimate, "changes its inputs in place"),
    "cut in place": (  # the second pass gives what the first one gave
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, 1)),
        dropout,
        "changes its inputs in place",
    ),
    "python's random": (SkipsByPython, map_estimate, "draws from Python's or NumPy's random numbers"),
    "auxiliary outputs": (Auxiliary, map_estimate, "same kind of outputs in training mode"),
    "one switch, dropout": (KeepsAsItDraws, dropout, "keeps statistics in training mode.*modules of their own"),
    "one switch, variational": (KeepsAsItDraws, variational, "draws in training mode.*modules of their own"),
    "rrelu": (lambda: nn.Sequential(nn.Linear(WIDTH, 2), nn.RReLU(), nn.Linear(2, 1)), dropout, "torch.nn.LeakyReLU"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(case: str) -> None:
    build, method, message = REFUSED[case]
    kind = Kind(build)
    with pytest.raises(ValueError, match=message):
        method.fit(model_of(kind), data_of(kind), seed=0, **({} if method is hmc else {"num_epochs": 1}))


def test_a_pass_that_draws_less_often_than_seen_is_an_error() -> None:
    kind = RANDOM_IN_TRAINING["transformer"]
    model, x = model_of(kind), kind.x(4, dtype=torch.float64)
    masked = MaskedNetwork(model, x)
    masked.tree.eval()  # as torch's fused path would have it
    with pytest.raises(RuntimeError, match="drew 0 times where 4 were seen"):
        masked(model.initial(), x, {}, key=(0, 0), start=0)


def test_a_network_is_looked_at_once_for_rows_of_a_shape() -> None:
    kind = RANDOM_IN_TRAINING["lstm"]
    model = model_of(kind)
    assert training_mode(model, kind.x(5, dtype=torch.float64)) is training_mode(model, kind.x(9, dtype=torch.float64))
    assert isinstance(dropout.fit(model, data_of(kind), num_epochs=1, seed=0), DropoutPosterior)
