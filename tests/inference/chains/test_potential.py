"""The potential is minus the log joint of the model, with the Jacobian, whatever the chunks and however many chains."""

import pytest
import torch
from torch import nn

from bayesuq.data import Batch, Dataset
from bayesuq.inference.chains import potential as potential_module
from bayesuq.inference.chains.potential import NetworkPotential
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.perceptrons import is_perceptron
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import built, labelled, measured, noise, weights_of

REAL = measured(20)
LABELS = labelled(20)
SIGNS = Dataset(REAL.x, REAL.x[:, 0] > 0)
WEIGHT = noise(9, 20).abs()


def rows(data, weight=None):
    return Batch(data.x, data.y, weight)


def network(num_outputs=1, *, batch_norm=False, dtype=torch.float64):
    net = built(lambda: networks.mlp(3, (4,), num_outputs, activation="tanh", batch_norm=batch_norm))
    return net.to(dtype)


def inferred_scale(prior):
    return BayesianNetwork(network(), priors.Normal(), likelihoods.Normal(scale=prior))


PRIORS = {
    "normal": priors.Normal(0.3, 0.7),
    "fan-in": priors.FanIn(priors.Normal()),
    "laplace": priors.Laplace(),
    "student": priors.StudentT(),
    "mixture": priors.ScaleMixture(),
    "several": {"*.weight": priors.Normal(scale=2.0), "1.bias": priors.Laplace(), "3.bias": priors.Normal(loc=1.0)},
}
MODELS = {
    **{
        f"prior {name}": (BayesianNetwork(network(), prior, likelihoods.Normal(scale=0.3)), rows(REAL))
        for name, prior in PRIORS.items()
    },
    "inferred scale": (inferred_scale(priors.HalfNormal()), rows(REAL)),
    "half Cauchy": (inferred_scale(priors.HalfCauchy()), rows(REAL)),
    "log-normal": (inferred_scale(priors.LogNormal()), rows(REAL)),
    "gamma": (inferred_scale(priors.Gamma()), rows(REAL)),
    "two unknowns": (
        BayesianNetwork(network(), priors.Normal(), likelihoods.StudentT(df=priors.Gamma(), scale=priors.HalfNormal())),
        rows(REAL),
    ),
    "counts": (
        BayesianNetwork(network(), priors.Normal(), likelihoods.Poisson()),
        Batch(REAL.x, (3 * REAL.y.abs()).round(), None),
    ),
    "two columns": (
        BayesianNetwork(network(2), priors.Normal(), likelihoods.HeteroscedasticNormal()),
        rows(REAL, WEIGHT),
    ),
    "one label": (BayesianNetwork(network(), priors.Normal(), likelihoods.Bernoulli()), rows(SIGNS)),
    "weights": (inferred_scale(priors.HalfNormal()), rows(REAL, WEIGHT)),
    "labels": (BayesianNetwork(network(3), priors.Normal(), likelihoods.Categorical()), rows(LABELS)),
    "class weights": (
        BayesianNetwork(
            network(3), priors.Normal(), likelihoods.Categorical(class_weights=(1.0, 2.0, 0.5), ignore_index=1)
        ),
        rows(LABELS, WEIGHT),
    ),
    "batch norm": (
        BayesianNetwork(network(batch_norm=True), priors.Normal(), likelihoods.Normal(scale=0.3)),
        rows(REAL),
    ),
}


@pytest.fixture(params=MODELS)
def case(request):
    return MODELS[request.param]


def expected(model, layout, position, batch):
    """By the model's own log joint and autograd."""
    flat = position.clone().requires_grad_()
    energy = -model.log_joint(layout.split(flat), batch.x, batch.y, weight=batch.weight)
    energy = energy - layout.log_abs_det_jacobian(flat)
    return energy.detach(), torch.autograd.grad(energy, flat)[0]


def test_it_is_minus_the_log_joint_and_the_log_jacobian(case):
    model, batch = case
    potential = NetworkPotential(model, batch)
    position = noise(3, potential.layout.size)
    value, gradient = potential.at(position)
    truth, slope = expected(model, potential.layout, position, batch)
    assert value == pytest.approx(float(truth), rel=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-9)


def test_many_chains_at_once_are_each_chain_alone(case):
    model, batch = case
    potential = NetworkPotential(model, batch)
    assert potential.can_vectorise()
    positions = noise(4, 5, potential.layout.size)
    values, gradients = potential.at_rows(positions)
    for c, position in enumerate(positions):
        value, gradient = potential.at(position)
        assert float(values[c]) == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(gradients[c], gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_chains", [1, 3])
def test_chunks_of_any_size_give_the_same_and_bound_the_rows_of_a_pass(case, num_chains, monkeypatch):
    model, batch = case
    potential = NetworkPotential(model, batch)
    positions = noise(5, num_chains, potential.layout.size)
    whole, slopes = potential.at_rows(positions)
    seen = []
    align = type(model.likelihood).align

    def note(self, f, y):
        seen.append(len(f))
        return align(self, f, y)

    monkeypatch.setattr(type(model.likelihood), "align", note)
    monkeypatch.setattr(potential_module, "ACTIVATION_BUDGET", 7 * potential._width * num_chains)
    monkeypatch.setattr(potential_module, "MOST_RECORDED", 0)
    monkeypatch.setattr(potential_module, "MOST_RECORDED_BY_HAND", 0)
    values, gradients = NetworkPotential(model, batch).at_rows(positions)
    assert seen in ([7, 7, 6], [7 * num_chains, 7 * num_chains, 6 * num_chains])  # vmap shows one chain of all
    torch.testing.assert_close(values, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, slopes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        (lambda: [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1, bias=False)], (3,)),
        (lambda: [nn.Flatten(), nn.Linear(6, 4), nn.GELU(), nn.Dropout(0.5), nn.Linear(4, 2), nn.SiLU()], (2, 3)),
    ],
    ids=["without flattening", "images"],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_perceptrons_take_the_short_way_to_what_vmap_gives(layers, shape, frozen):
    plain = built(lambda: nn.Sequential(*layers())).double()
    if frozen:
        next(m for m in plain if isinstance(m, nn.Linear)).requires_grad_(False)
    x = noise(0, 9, *shape)
    batch = Batch(x, noise(1, 9, plain(x).shape[1]), None)
    models = [
        BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.3)) for net in (plain, nn.Sequential(plain))
    ]
    short, general = (NetworkPotential(model, batch) for model in models)
    assert (short._is_perceptron, general._is_perceptron) == (True, False)
    positions = noise(4, 3, short.layout.size)
    for one, other in zip(short.at_rows(positions), general.at_rows(positions), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def tied():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, second)


def hooked():
    net = nn.Sequential(nn.Linear(3, 3))
    net[0].register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return net


@pytest.mark.parametrize(
    "net",
    [nn.Linear(3, 1), tied(), hooked(), nn.Sequential(nn.Flatten(0, 1)), nn.Sequential(nn.Linear(3, 3), nn.Softmax(1))],
    ids=["no sequence", "tied", "hooked", "flattens rows", "softmax"],
)
def test_other_networks_are_no_perceptrons(net):
    assert not is_perceptron(net, noise(0, 5, 3))
    assert not is_perceptron(nn.Sequential(nn.Linear(3, 3)), noise(0, 5, 2, 3))


def test_values_of_a_float32_network_are_summed_in_float64():
    model = BayesianNetwork(network(dtype=torch.float32), priors.Normal(), likelihoods.Normal(scale=1e-3))
    many = measured(20_000)
    batch = Batch(many.x.float(), many.y.float(), None)
    potential = NetworkPotential(model, batch)
    position = 0.1 * noise(3, potential.layout.size).float()
    theta = potential.layout.split(position)
    terms = model.likelihood.log_prob(model.forward(theta, batch.x), batch.y).double().sum()
    exact = -float(terms) - float(model.log_prior({name: value.double() for name, value in theta.items()}))
    # Some 1e10 nats: a sum in float32 would be off by hundreds, and no integrator could be judged by it.
    assert potential.at(position)[0] == pytest.approx(exact, abs=1e-3)
    assert potential.at(position)[1].dtype == torch.float32


def test_point_values_and_buffers_stay_where_they_are_put():
    net = network(batch_norm=True)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale="learned"), random="last_layer")
    fixed = {name: noise(6, *value.shape).abs() for name, value in model.points.items()}
    buffers = {"2.running_mean": noise(7, 4), "2.running_var": noise(8, 4).abs()}
    potential = NetworkPotential(model, rows(REAL), fixed=fixed, buffers=buffers)
    assert list(potential.layout.shapes) == ["4.weight", "4.bias"]
    position = noise(3, potential.layout.size)
    theta = potential.layout.split(position) | fixed
    f = model.forward(theta, REAL.x, buffers=buffers)
    truth = -model.likelihood_given(theta).log_prob(f, REAL.y).sum() - model.log_prior(theta)
    assert potential.at(position)[0] == pytest.approx(float(truth), rel=1e-12)
    values, gradients = potential.at_rows(torch.stack([position, position]))
    torch.testing.assert_close(values, truth.expand(2), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[0], potential.at(position)[1], rtol=1e-9, atol=1e-9)


def test_frozen_parameters_are_constants():
    net = network()
    net[1].requires_grad_(False)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.3))
    potential = NetworkPotential(model, rows(REAL))
    position = noise(3, potential.layout.size)
    truth, _ = expected(model, potential.layout, position, rows(REAL))
    assert list(potential.layout.shapes) == ["3.weight", "3.bias"]
    assert potential.at(position)[0] == pytest.approx(float(truth), rel=1e-12)


@pytest.mark.parametrize("far", [1e4, -1e4, torch.nan, torch.inf])
def test_where_a_law_refuses_a_value_the_energy_is_infinite(far):
    model = inferred_scale(priors.HalfNormal())
    potential = NetworkPotential(model, rows(REAL))
    position = noise(3, potential.layout.size)
    beyond = position.clone()
    beyond[potential.layout.slices()["likelihood.scale"]] = far
    assert not potential.at(beyond)[0] < torch.inf
    values, gradients = potential.at_rows(torch.stack([beyond, position]))
    assert not values[0] < torch.inf
    value, gradient = potential.at(position)
    assert float(values[1]) == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(gradients[1], gradient, rtol=1e-9, atol=1e-9)


def test_an_error_of_the_network_is_not_hidden():
    class Refusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.limit = torch.inf

        def forward(self, x):
            if len(x) > self.limit:
                raise ValueError("too many rows")
            return self.linear(x)

    net = Refusing().double()
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=priors.HalfNormal()))
    potential = NetworkPotential(model, rows(REAL))
    for tree in (potential._joint.network.evaluation, potential._tree):
        tree.limit = 5
    with pytest.raises(ValueError, match="too many rows"):
        potential.at(noise(3, potential.layout.size))


def test_the_model_stays_as_it_was(case):
    model, batch = case
    before = weights_of(model.net)
    potential = NetworkPotential(model, batch, buffers={n: b + 1 for n, b in model.net.named_buffers()})
    potential.at(noise(3, potential.layout.size))
    potential.at_rows(noise(3, 2, potential.layout.size))
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model.net).items())
    assert Layout.of(model).shapes.keys() == potential.layout.shapes.keys()


@pytest.mark.parametrize("most_recorded", [0, 2**30], ids=["torch", "played"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "gelu"])
def test_gradients_of_perceptrons_are_written_out(activation, most_recorded, monkeypatch):
    """Noise of its own at every row, beyond both ends too, where it is bent; autograd is not called at all."""
    net = built(lambda: networks.mlp(3, (5, 4), 2, activation=activation)).double()
    model = BayesianNetwork(net, priors.Normal(), likelihoods.HeteroscedasticNormal(minimum_scale=0.05))
    batch = rows(REAL, WEIGHT)
    positions = noise(1, 3, NetworkPotential(model, batch).layout.size) * torch.tensor([[1.0], [4.0], [12.0]])
    plain = NetworkPotential(model, batch)
    plain.compute_plainly()
    expected_values, expected_slopes = plain.at_rows(positions)
    monkeypatch.setattr(potential_module, "MOST_RECORDED_BY_HAND", most_recorded)
    monkeypatch.setattr(torch.autograd, "grad", None)
    values, slopes = NetworkPotential(model, batch).at_rows(positions)
    torch.testing.assert_close(values, expected_values, rtol=1e-12, atol=0)
    torch.testing.assert_close(slopes, expected_slopes, rtol=1e-9, atol=1e-9)
