"""The flat joint against the model's own log joint and autograd, in both readings."""

import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Batch
from bayesuq.inference.joint.energy import FlatJoint, JointFunction
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.network import point_vectors
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import built, noise

Y = noise(2, 6, 2)
MODELS = {
    "normal": (priors.Normal(0.3, 2.0), likelihoods.Normal(scale=0.5), "all"),
    "inferred scale": (priors.Normal(), likelihoods.Normal(scale=priors.HalfNormal()), "all"),
    "learned scale": ({"3.*": priors.Laplace(), "*": priors.Normal()}, likelihoods.Normal(), "all"),
    "last layer": (priors.StudentT(), likelihoods.StudentT(df=priors.Gamma(2.0, 0.5)), "last_layer"),
}
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def model_of(name: str) -> BayesianNetwork:
    prior, likelihood, random = MODELS[name]
    net = built(lambda: networks.mlp(3, (4,), 2, activation="tanh")).double()
    return BayesianNetwork(net, prior, likelihood, random=random)


def expected(model: BayesianNetwork, layout: Layout, flat: Tensor, batch: Batch, *, volume: bool) -> tuple[Tensor, ...]:
    """U and its gradient by the model's own density, of 60 rows in all."""
    flat = flat.clone().requires_grad_()
    theta = {**model.points, **layout.split(flat)}
    energy = -model.log_joint(theta, batch.x, batch.y, 60, batch.weight)
    if volume:
        energy = energy - layout.log_abs_det_jacobian(flat)
    return energy.detach(), torch.autograd.grad(energy, flat)[0]


@pytest.mark.parametrize("weight", [None, noise(5, 6).abs()], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", MODELS)
def test_samplers_move_in_the_density_of_the_vector(name, weight):
    model, batch = model_of(name), Batch(noise(1, 6, 3), Y, weight)
    joint, function = (kind.of_random(model, model.points, {}) for kind in (FlatJoint, JointFunction))
    vector = joint.vectors["random"]
    flats = vector.values + 0.3 * noise(3, 3, vector.layout.size)
    flats.requires_grad_()
    values = function.energies(flats, tuple(part.expand(3, *part.shape) for part in batch if part is not None), 10.0)
    gradients = torch.autograd.grad(values.sum(), flats)[0]
    for flat, value, gradient in zip(flats.detach(), values.detach(), gradients, strict=True):
        truth = expected(model, vector.layout, flat, batch, volume=True)
        vector.values.copy_(flat)
        torch.testing.assert_close((joint.value_and_grad(batch, 10.0), vector.grad), truth, **TIGHT)
        torch.testing.assert_close((value, gradient), truth, **TIGHT)


@pytest.mark.parametrize("name", MODELS)
def test_modes_are_of_the_density_of_the_sites(name):
    model, batch = model_of(name), Batch(noise(1, 6, 3), Y, None)
    vectors = point_vectors(model, [*model.laws, *model.points])
    joint = FlatJoint(model, vectors)
    value = joint.value_and_grad(batch, 10.0)
    layout = Layout.of(model, [name for vector in vectors.values() for name in vector.layout.shapes])
    truth = expected(model, layout, torch.cat([one.values for one in vectors.values()]), batch, volume=False)
    torch.testing.assert_close((value, torch.cat([one.grad for one in vectors.values()])), truth, **TIGHT)
    function = JointFunction(model, {kind: one.layout for kind, one in vectors.items()}, model.net)
    at = {kind: one.values for kind, one in vectors.items()}
    rows = (batch.x, batch.y)
    torch.testing.assert_close(-function.log_prior(at) - 10 * function.log_likelihood(at, *rows), truth[0], **TIGHT)


def test_the_row_of_padding_stays_where_the_model_holds_it():
    table = built(lambda: nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 2))).double()
    model = BayesianNetwork(table, priors.Normal(), likelihoods.Normal(scale=0.5))
    batch = Batch(torch.tensor([[1, 0], [0, 4], [2, 3]]), Y[:3], None)
    joint = FlatJoint.of_random(model, {}, {})
    vector = joint.vectors["random"]
    vector.values.copy_(noise(3, vector.layout.size))  # of which the first three numbers are padding's
    truth = expected(model, vector.layout, vector.values, batch, volume=True)
    torch.testing.assert_close((joint.value_and_grad(batch, 20.0), vector.grad), truth, **TIGHT)


def test_chunks_add_up_and_priors_count_once():
    model, batch = model_of("last layer"), Batch(noise(1, 6, 3), Y, None)
    joint = FlatJoint.of_random(model, model.points, {}, torch.float64)
    vector = joint.vectors["random"]
    whole, gradient = joint.descend(batch, 1.0), vector.grad.clone()
    vector.grad.zero_()
    parts = [Batch(batch.x[part], batch.y[part], None) for part in (slice(0, 4), slice(4, 6))]
    total = sum(joint.descend(part, 1.0, with_prior=number == 0) for number, part in enumerate(parts))
    torch.testing.assert_close((total, vector.grad), (whole, gradient), **TIGHT)
