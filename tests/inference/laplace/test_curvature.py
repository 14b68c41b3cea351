"""Curvature: Fisher roots against Hessians, derivatives against autograd, structures against explicit sums."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn import functional

from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.laplace import linearisation as curvature_layers
from bayesuq.inference.laplace.curvature import output_weights
from bayesuq.inference.laplace.linearisation import Linearisation
from bayesuq.inference.laplace.structures import STRUCTURES
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import built, expectation, noise

TIGHT = {"rtol": 1e-10, "atol": 1e-12}  # float64 sums of some hundred terms


def hessian(likelihood: likelihoods.Likelihood, f: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Of minus the log-likelihood in each row's outputs, (N, K, K)."""

    def loss(f: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        return -likelihood.log_prob(f[None], y[None], None if weight is None else weight[None])[0]

    rows = (f, y) if weight is None else (f, y, weight)
    size = f[0].numel()
    return vmap(jacrev(jacrev(loss)))(*rows).reshape(len(f), size, size)


# The likelihood's part

LABELS = torch.tensor([0, 3, 1, 2, 2])
HESSIANS = {
    "labels": (likelihoods.Categorical(), (4,), LABELS),
    "labels of pixels": (likelihoods.Categorical(), (3, 2, 2), torch.arange(20).view(5, 2, 2) % 3),
    "class weights": (likelihoods.Categorical(class_weights=(1.0, 0.5, 3.0, 0.0)), (4,), LABELS),
    "an ignored label": (
        likelihoods.Categorical(class_weights=(1.0, 2.0, 3.0), ignore_index=255),
        (3,),
        torch.tensor([0, 255, 1, 2, 2]),
    ),
    "ignored pixels": (likelihoods.Categorical(ignore_index=2), (3, 2, 2), torch.arange(20).view(5, 2, 2) % 3),
    "binary": (likelihoods.Bernoulli(), (1,), LABELS % 2),
    "binary with class weights": (likelihoods.Bernoulli(class_weights=(2.0, 0.5)), (1,), LABELS % 2),
    "binary pixels": (likelihoods.Bernoulli(), (1, 2, 2), torch.arange(20).view(5, 2, 2) % 2),
    "real": (likelihoods.Normal(scale=0.3), (2,), noise(1, 5, 2)),
    "counts": (likelihoods.Poisson(), (2,), torch.arange(10.0, dtype=torch.float64).view(5, 2)),
}


@pytest.mark.parametrize("shape", [(6,), (4, 2, 2)])
def test_the_root_of_noisy_logits_squares_to_their_fisher_information(shape):
    likelihood, f = likelihoods.HeteroscedasticCategorical(8), noise(0, 3, *shape)
    root = likelihood.fisher_root(f)
    expected = torch.zeros_like(root)
    num_positions, num_classes = f[0, 0].numel(), shape[0] // 2
    for k in range(num_classes):
        for position in range(num_positions):

            def log_prob(row, k=k, position=position):
                return likelihood.logits(row[None]).reshape(num_classes, -1)[k, position]

            slopes = vmap(torch.func.grad(log_prob))(f).reshape(len(f), -1)
            expected += vmap(log_prob)(f).exp()[:, None, None] * slopes[:, :, None] * slopes[:, None, :]
    torch.testing.assert_close(root @ root.mT, expected, **TIGHT)


@pytest.mark.parametrize("name", HESSIANS)
@pytest.mark.parametrize("weighting", ["none", "rows", "targets"])
def test_the_curvature_is_the_hessian_of_the_log_likelihood(name, weighting):
    likelihood, shape, y = HESSIANS[name]
    f = noise(0, 5, *shape)
    weight = {"none": None, "rows": noise(2, 5).abs(), "targets": noise(3, *y.shape).abs()}[weighting]
    root = likelihood.fisher_root(f) * output_weights(likelihood, f, y, weight).sqrt().unsqueeze(2)
    torch.testing.assert_close(root @ root.mT, hessian(likelihood, f, y, weight), **TIGHT)


@pytest.mark.parametrize("minimum_scale", [0.0, 0.7])
def test_the_curvature_of_unequal_noise_is_its_expected_hessian(minimum_scale):
    likelihood = likelihoods.HeteroscedasticNormal(minimum_scale=minimum_scale)
    f = noise(0, 3, 4)
    law = likelihood.distribution(f).base_dist
    root = likelihood.fisher_root(f)
    for row in range(3):
        for a, b in ((0, 0), (2, 2), (0, 2), (1, 3), (3, 3), (0, 1)):

            def entry(eps, row=row, a=a, b=b):
                y = law.loc[row] + law.scale[row] * eps
                return hessian(likelihood, f[row].expand(len(y), -1), y)[:, a, b]

            expected = expectation(entry, 2, num_nodes=8)  # quadratic in the noise
            torch.testing.assert_close((root @ root.mT)[row, a, b], expected, **TIGHT)


@pytest.mark.parametrize("df", [1.0, 4.0])
def test_the_curvature_of_outliers_is_their_expected_hessian(df):
    likelihood = likelihoods.StudentT(df=df, scale=0.6)
    root = likelihood.fisher_root(noise(0, 3, 2))
    y = 0.6 * torch.arange(-8.0, 8.0, 0.01, dtype=torch.float64).sinh()  # the trapezoid rule, exact on such a grid
    weights = (y / 0.6).square().add(1).sqrt() * 0.6 * 0.01
    f = torch.zeros(len(y), 1, dtype=torch.float64)
    density = likelihood.log_prob(f, y).exp() * weights
    expected = (hessian(likelihood, f, y[:, None])[:, 0, 0] * density).sum()
    torch.testing.assert_close(
        (root @ root.mT), (expected * torch.eye(2)).expand(3, 2, 2).double(), rtol=1e-6, atol=1e-9
    )


# Derivatives of single rows


class Twice(nn.Module):
    """A layer used at two depths and at two positions, one used never, and a scale that is in no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.unused = nn.Linear(3, 3), nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.shared(x.unflatten(1, (2, 3))).tanh_()  # in place, on a layer's output
        return (self.shared(input=hidden) * self.scale).sum(dim=1)


class Tied(nn.Module):
    """A layer whose weight is used in another way too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.layer(x).tanh(), self.layer.weight.T)


class Gathered(nn.Module):
    """A layer that sees rows and positions in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(-1, 3)).tanh().unflatten(0, (-1, 2)).sum(dim=1)


class Branching(nn.Module):
    """A scale, and a branch that vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x) * self.scale
        return hidden if hidden.sum() > 0 else hidden.sin()


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 2, (1, 2), bias=False),
        nn.Conv2d(2, 2, 2, groups=2),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


NETWORKS = {
    "mlp": (lambda: networks.mlp(3, (4,), 2, activation="tanh"), (3,), ["1", "3"]),
    "linear": (lambda: nn.Linear(3, 2), (3,), [""]),
    "batch norm": (lambda: networks.mlp(3, (4,), 2, batch_norm=True), (3,), ["1", "4"]),
    "convolutions": (convolutions, (2, 8, 9), ["0", "2", "7"]),
    "shared": (Twice, (6,), ["shared", "unused"]),
    "tied": (Tied, (3,), []),
    "gathered": (Gathered, (6,), []),
    "branching": (Branching, (3,), ["layer"]),
    "a map of outputs": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh()), (1, 2, 3), ["0"]),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), (3, 4), ["linear1", "linear2"]),
}


def linearised(name: str) -> tuple[Linearisation, Tensor]:
    """Of a network in float64, and some rows for it."""
    build, shape, _ = NETWORKS[name]
    net = built(build).double()
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=1.0))
    x = noise(0, 5, *shape)
    linear = Linearisation(model, model.initial(), dict(model.net.named_buffers()), list(model.laws))
    linear.probe(x[:2])
    return linear, x


def jacobian(linear: Linearisation, x: Tensor) -> Tensor:
    """Row by row and output by output, by autograd alone, (N, K, R)."""
    rows = []
    for row in x:
        theta = {name: value.clone().requires_grad_() for name, value in linear.theta.items()}
        f = linear.model.forward(theta, row[None]).flatten()
        leaves = [theta[name] for name in linear.names]
        gradients = [torch.autograd.grad(one, leaves, retain_graph=True, materialize_grads=True) for one in f]
        rows.append(torch.stack([torch.cat([part.flatten() for part in parts]) for parts in gradients]))
    return torch.stack(rows)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning", "ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_are_those_of_autograd(name):
    linear, x = linearised(name)
    assert [layer.path for layer in linear.layers] == NETWORKS[name][2]
    f, derivatives = linear.derivatives(x)
    expected = jacobian(linear, x)
    torch.testing.assert_close(derivatives.flat(linear.names), expected, **TIGHT)
    torch.testing.assert_close(f, linear.forward(x), rtol=0, atol=0)
    columns = noise(1, *f.flatten(1).shape, 2)
    _, products = linear.derivatives(x, lambda _: columns)
    torch.testing.assert_close(products.flat(linear.names), columns.mT @ expected, **TIGHT)
    layout = Layout.of(linear.model, linear.names)
    deviations = noise(2, 4, layout.size)
    pushed = derivatives.pushed(layout.split(deviations))
    torch.testing.assert_close(pushed, torch.einsum("nkr,sr->snk", expected, deviations), **TIGHT)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning", "ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_covariances_and_squares_in_factors_are_those_of_the_matrix(name):
    linear, x = linearised(name)
    _, derivatives = linear.derivatives(x)
    weight = noise(3, len(x)).abs()
    for layer, factors in derivatives.layers.items():
        matrix = factors.matrix()
        variances = noise(2, *matrix.shape[2:]).abs()
        expected = torch.einsum("nkoi,oi,nloi->nkl", matrix, variances, matrix)
        torch.testing.assert_close(factors.covariance(variances), expected, **TIGHT)
        expected = torch.einsum("n,nkoi,nkoi->oi", weight, matrix, matrix)
        torch.testing.assert_close(factors.squares(weight), expected, **TIGHT)
        matrices = noise(4, 3, *matrix.shape[2:])
        expected = torch.einsum("nkoi,soi->nsk", matrix, matrices)
        torch.testing.assert_close(factors.pushed(matrices), expected, **TIGHT)
        torch.testing.assert_close(layer.join(layer.split(matrix)), matrix, rtol=0, atol=0)


@pytest.mark.parametrize("names", [["3.weight"], ["1.bias", "3.bias"], ["3.bias", "1.weight"]], ids=str)
def test_derivatives_of_some_parameters_only(names):
    linear, x = linearised("mlp")
    some = Linearisation(linear.model, linear.theta, {}, names)
    some.probe(x[:2])
    assert some.other_names == []
    layout = Layout.of(linear.model)
    columns = [jacobian(linear, x)[..., layout.slices()[name]] for name in names]
    torch.testing.assert_close(some.derivatives(x)[1].flat(names), torch.cat(columns, dim=2), **TIGHT)


def test_rows_at_a_time_fill_the_budget(monkeypatch):
    linear, x = linearised("batch norm")
    # K^2, then (inputs + K outputs + K entries) of the layers (4, 3 + 1) and (2, 4 + 1), then K entries of the others.
    numbers = 4 + (4 + 2 * 4 + 2 * 16) + (5 + 2 * 2 + 2 * 10) + 2 * 8
    monkeypatch.setattr(curvature_layers, "BUDGET", 3 * numbers + 1)
    assert linear.rows_at_a_time(x, dense=True) == 3
    monkeypatch.setattr(curvature_layers, "BUDGET", 3 * (numbers - 2 * 16 - 2 * 10) + 1)
    assert linear.rows_at_a_time(x, dense=False) == 3
    monkeypatch.setattr(curvature_layers, "BUDGET", 1)
    assert linear.rows_at_a_time(x, dense=False) == 1


# Structures


def roots(linear: Linearisation, x: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (N, K, 3), and row weights."""
    return noise(4, *linear.forward(x).flatten(1).shape, 3), noise(5, len(x)).abs()


def structure(name: str, linear: Linearisation, x: Tensor, prior: dict[str, Tensor] | None = None):
    """A structure's law, and the explicit B^T B of all rows."""
    columns, weight = roots(linear, x)
    b = (columns * weight.sqrt()[:, None, None]).mT @ jacobian(linear, x)
    _, derivatives = linear.derivatives(x, lambda _: columns)
    sums = STRUCTURES[name].sums(derivatives, weight, linear.names)
    shapes = {name: linear.theta[name].shape for name in linear.names}
    prior = prior or {name: noise(6 + n).abs().expand(shape) + 0.1 for n, (name, shape) in enumerate(shapes.items())}
    return STRUCTURES[name](sums, prior, linear.layers), b.flatten(0, 1).T @ b.flatten(0, 1)


def dense(law) -> Tensor:
    """The covariance, from the map of noise to deviations."""
    size = sum(value.numel() for value in law.prior.values())
    root = law.deviation(torch.eye(size, dtype=torch.float64))
    return root.T @ root


def precision(law, curvature: Tensor) -> Tensor:
    return curvature + torch.cat([value.flatten() for value in law.prior.values()]).diag()


def kronecker(linear: Linearisation, x: Tensor) -> Tensor:
    """The Kronecker-factored curvature, from its definition, in the order of the names."""
    columns, weight = roots(linear, x)
    _, derivatives = linear.derivatives(x, lambda _: columns)
    layout = Layout.of(linear.model, linear.names)
    whole = torch.zeros(layout.size, layout.size, dtype=torch.float64)
    for layer, factors in derivatives.layers.items():
        num_rows, num_positions, _ = factors.inputs.shape
        a, g = 0, 0
        for n in range(num_rows):
            for t in range(num_positions):
                a = a + weight[n] * torch.outer(factors.inputs[n, t], factors.inputs[n, t])
                for k in range(3):
                    g = g + weight[n] * torch.outer(factors.gradients[n, k, t], factors.gradients[n, k, t])
        block = torch.kron(g / (weight.sum() * num_positions), a)
        numbers = dict(zip(linear.names, torch.arange(layout.size).split(layout.sizes), strict=True))
        shaped = {name: numbers[name].view(layout.shapes[name]) for name in layer.names()}
        order = layer.join(shaped).flatten()
        whole[order.unsqueeze(1), order] = block
    _, explicit = structure("full", linear, x)
    for name in linear.other_names:
        where = layout.slices()[name]
        whole[where, where] = explicit[where, where].diag().diag()
    return whole


STRUCTURED = ["linear", "mlp", "batch norm", "convolutions", "shared", "branching", "a map of outputs"]


@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("kind", STRUCTURES)
def test_structures_are_their_definitions(name, kind):
    linear, x = linearised(name)
    law, explicit = structure(kind, linear, x)
    curvature = {
        "full": explicit,
        "diagonal": explicit.diag().diag(),
        "kronecker": kronecker(linear, x),
    }[kind]
    expected = precision(law, curvature)
    covariance = torch.linalg.inv(expected)
    torch.testing.assert_close(dense(law), covariance, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(law.log_det(), torch.logdet(expected), rtol=1e-10, atol=1e-8)
    scaled = precision(law, 0 * curvature) * 1.7 + curvature  # the prior scaled by 1.7
    logs = law.log_det_prior() + (1.7 + law.eigenvalues()).log().sum()
    torch.testing.assert_close(logs, torch.logdet(scaled), rtol=1e-10, atol=1e-8)
    _, derivatives = linear.derivatives(x)
    j = jacobian(linear, x)
    torch.testing.assert_close(law.output_covariance(derivatives), j @ covariance @ j.mT, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_sums_over_batches_are_sums_over_all_rows(kind):
    linear, x = linearised("convolutions")
    columns, weight = roots(linear, x)

    def sums(rows: slice) -> dict[str, Tensor]:
        _, derivatives = linear.derivatives(x[rows], lambda _: columns[rows])
        return STRUCTURES[kind].sums(derivatives, weight[rows], linear.names)

    whole, parts = sums(slice(0, 5)), [sums(slice(0, 2)), sums(slice(2, 3)), sums(slice(3, 5))]
    added = parts[0]
    for part in parts[1:]:
        added = STRUCTURES[kind].added(added, part, linear.layers)
    assert added.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(added[name], value, rtol=1e-12, atol=1e-12)


def test_kronecker_factors_are_exact_for_one_row_and_one_output():
    linear, x = linearised("mlp")
    columns = noise(4, 1, 2, 1)
    _, derivatives = linear.derivatives(x[:1], lambda _: columns)
    one = torch.ones(1, dtype=torch.float64)
    prior = {name: torch.ones_like(linear.theta[name]) for name in linear.names}
    law = STRUCTURES["kronecker"](STRUCTURES["kronecker"].sums(derivatives, one, linear.names), prior, linear.layers)
    b = (columns.mT @ jacobian(linear, x[:1]))[0]
    covariance, edges = dense(law), [0, 16, 26]  # entries of the two layers
    for first, last in pairwise(edges):
        block = slice(first, last)
        exact = torch.linalg.inv(b[:, block].T @ b[:, block] + torch.eye(last - first))
        torch.testing.assert_close(covariance[block, block], exact, **TIGHT)


def test_a_kronecker_structure_needs_one_prior_scale_for_all_outputs():
    linear, x = linearised("mlp")
    prior = {name: torch.ones_like(linear.theta[name]) for name in linear.names}
    prior["3.weight"] = 1 + torch.arange(2.0).double().unsqueeze(1).expand(2, 4)
    law, _ = structure("kronecker", linear, x, prior)
    with pytest.raises(ValueError, match="one prior scale for all outputs of a layer; in layer '3' it differs"):
        law.log_det()
