"""Networks that are trained already: outputs to the last bit, and what starts from them leaves them as they were."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bayesuq as bq
from bayesuq.data import Dataset
from bayesuq.inference import (
    confidence,
    dropout,
    ensemble,
    ivon,
    laplace,
    local_temperature,
    quantile_calibration,
    swag,
    temperature,
    variational,
)
from bayesuq.inference.adoption import adopt, adopt_members
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import likelihoods, networks, priors
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.inference.examples import SHORT_FIT, built, labelled, measured, noise, weights_of
from tests.zoo import modules
from tests.zoo.pretrained import ConvNext, VisionTransformer

KINDS = {
    **modules.RANDOM_IN_TRAINING,
    **modules.STATEFUL,
    **{name: kind for name, (kind, _) in modules.SHARED.items()},
    **modules.OTHER,
    "vision transformer": modules.Kind(VisionTransformer, (1, 4, 4)),
    "convnext": modules.Kind(ConvNext, (1, 4, 4)),
}


def trained(seed: int = 0) -> nn.Module:
    """A classifier with BatchNorm, whose statistics are not those of its start."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    net = built(build, seed).train()
    net(noise(3, 64, 3).float() + 1)
    return net


def state(net: nn.Module) -> dict[str, Any]:
    """Everything that must stay: numbers, modes, what is frozen."""
    modes = {path: module.training for path, module in net.named_modules()}
    return {
        "tensors": weights_of(net),
        "modes": modes,
        "frozen": {name: parameter.requires_grad for name, parameter in net.named_parameters()},
    }


def assert_same(net: nn.Module, before: Mapping[str, Any]) -> None:
    after = state(net)
    assert after["modes"] == before["modes"]
    assert after["frozen"] == before["frozen"]
    for name, value in before["tensors"].items():
        assert torch.equal(after["tensors"][name], value), name


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", KINDS)
def test_the_mean_is_the_networks_own_outputs_bit_by_bit(name: str) -> None:
    kind = KINDS[name]
    net, x = kind.net().train(), kind.x(7)
    before = state(net)
    adopted = adopt(net, likelihoods.Normal(scale=1.0))
    found = adopted.predict(x).mean
    assert_same(net, before)
    with torch.no_grad():
        expected = net.eval().requires_grad_(False)(x)  # torch's kernels depend on whether gradients are asked for
    assert torch.equal(found, expected.double())


METHODS = {
    "laplace": lambda a, d: laplace.fit(a, d),
    "laplace, all": lambda a, d: laplace.fit(adopt(a.model.net, likelihoods.Categorical(), random="all"), d),
    "dropout put in": lambda a, _: dropout.around(a, put_in={"3": 0.2}),
    "swag": lambda a, d: swag.fit(a.model, d, mode=a, num_epochs=6, rank=2, seed=0),
    "ensemble": lambda a, d: ensemble.fit(
        a.model, d, num_members=2, initialise="keep", bootstrap=True, num_epochs=2, seed=0
    ),
    "variational": lambda a, d: variational.fit(a.model, d, num_epochs=2, seed=0),
    "ivon": lambda a, d: ivon.fit(a.model, d, num_epochs=2, seed=0),
    "temperature": lambda a, d: temperature.fit(a, d),
}


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("name", METHODS)
def test_what_starts_from_it_leaves_the_network_and_its_body_as_they_were(name: str) -> None:
    net, data = trained(), labelled(64)
    before = state(net)
    adopted = adopt(net, likelihoods.Categorical(), prior=priors.Normal(scale=0.3), is_centred=True)
    posterior = METHODS[name](adopted, data)
    predictive = posterior.predict(data.x, num_samples=8, seed=0)
    assert predictive.log_prob(data.y).isfinite().all()
    assert_same(net, before)
    if name != "laplace, all":  # in which the body is random, but not moved
        for key, value in posterior.model.net.state_dict().items():
            if not key.startswith("3."):
                assert torch.equal(value, before["tensors"][key]), key
    if name not in ("temperature", "laplace, all"):
        assert float(predictive.epistemic.mean()) > 1e-6  # of one network it is 0


def test_statistics_that_a_fit_starts_from_are_held() -> None:
    net, data = trained(), labelled(64)
    adopted = adopt(net, likelihoods.Categorical())
    posterior = variational.fit(adopted.model, data, num_epochs=2, seed=0)
    buffers = dict(net.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in posterior.buffers.items())


def test_a_laplace_posterior_of_an_adopted_network_is_that_of_its_mode() -> None:
    data = labelled(64)
    net = trained()
    adopted = adopt(net, likelihoods.Categorical(), prior=priors.Normal(scale=0.5))
    with pytest.warns(UserWarning, match="trained elsewhere"):
        ours = laplace.fit(adopted, data, structure="full")
    with torch.no_grad():
        features = torch.cat([net.eval()[:3](data.x.float()), torch.ones(64, 1)], dim=1).double()
        p = net(data.x.float()).double().softmax(dim=1)
    fisher = p.diag_embed() - p.unsqueeze(1) * p.unsqueeze(2)
    curvature = torch.einsum("nab,ni,nj->aibj", fisher, features, features).reshape(51, 51)
    covariance = torch.linalg.inv(curvature + 4 * torch.eye(51, dtype=torch.float64))
    jacobian = torch.einsum("ab,ni->nabi", torch.eye(3, dtype=torch.float64), features).reshape(64, 3, 51)
    expected = jacobian @ covariance @ jacobian.mT
    found = ours.law.output_covariance(ours._linear().derivatives(data.x.float())[1])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("is_wholly_frozen", [False, True])
def test_frozen_networks_are_adopted(is_wholly_frozen: bool) -> None:
    net = trained().requires_grad_(not is_wholly_frozen)
    assert list(adopt(net, likelihoods.Categorical()).model.laws) == ["3.weight", "3.bias"]
    assert list(adopt(net, likelihoods.Categorical(), random="0.*").model.laws) == ["0.weight", "0.bias"]


class Answer(NamedTuple):
    hidden: Tensor
    scores: Tensor


class Answering(nn.Module):
    """A network whose outputs are several."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Answer:
        hidden = self.first(x).tanh()
        return Answer(hidden, self.last(hidden))


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_a_function_picks_the_outputs() -> None:
    net, data = built(Answering), labelled(32)
    adopted = adopt(net, likelihoods.Categorical(), output=lambda answer: answer.scores)
    expected = CategoricalPredictive.from_logits(net(data.x.float()).scores.detach().unsqueeze(0))
    assert torch.equal(adopted.predict(data.x).mean, expected.mean)
    assert laplace.fit(adopted, data).predict(data.x, num_samples=4, seed=0).epistemic.mean() > 0


def test_a_committee_is_the_mean_of_its_members() -> None:
    nets, x = [trained(seed) for seed in range(3)], noise(5, 6, 3).float()
    committee = adopt_members(nets, likelihoods.Categorical())
    expected = torch.stack([net.eval()(x).detach() for net in nets])
    torch.testing.assert_close(committee.predict(x).mean, CategoricalPredictive.from_logits(expected).mean)


def test_it_is_saved_and_loaded_with_the_users_network(tmp_path: Any) -> None:
    net, x = trained(), noise(5, 6, 3).float()
    path = tmp_path / "adopted.safetensors"
    adopted = adopt(net, likelihoods.Categorical())
    with pytest.warns(UserWarning, match="pass the same model"):
        adopted.save(path)
    again = load(path, model=adopt(trained(9), likelihoods.Categorical()).model)
    assert torch.equal(again.predict(x).mean, adopted.predict(x).mean)


def test_hooks_are_never_lost_in_a_file(tmp_path: Any) -> None:
    net = networks.mlp(3, (8,), 3, seed=0)
    posterior = dropout.around(adopt(net, likelihoods.Categorical()), put_in={"3": 0.5})
    path = tmp_path / "dropout.safetensors"
    with pytest.warns(UserWarning, match="hooks"):
        posterior.save(path)
    x = noise(5, 6, 3).float()
    again = load(path, model=posterior.model)
    assert torch.equal(again.predict(x, seed=0).mean, posterior.predict(x, seed=0).mean)
    with pytest.raises(ValueError, match="Pass it"):
        load(path)


def test_dropout_that_is_put_in_is_dropout() -> None:
    """Of a linear layer of inputs a, the variance of its outputs is p / (1 - p) sum_i (w_i a_i)^2."""
    net, x = built(lambda: nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1))), noise(5, 2, 3).float()
    posterior = dropout.around(adopt(net, likelihoods.Normal(scale=1.0)), put_in={"1": 0.25})
    found = posterior.predict(x, num_samples=1200, seed=0).epistemic.flatten()
    parts = (net[0](x) * net[1].weight).detach().double()
    expected = (0.25 / 0.75) * parts.square().sum(dim=1)
    np.testing.assert_allclose(found, expected, rtol=5 * (2 / 1200) ** 0.5)  # five standard errors of a variance


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: adopt(3, likelihoods.Categorical()), "torch.nn.Module"),
        (lambda: adopt(trained(), likelihoods.Categorical(), output=3), "`output`"),
        (lambda: adopt(trained(), likelihoods.Categorical(), random="head*"), "matches no trainable"),
        (lambda: adopt_members(trained(), likelihoods.Categorical()), "for one take `adopt`"),
        (partial(dropout.around, 3), "`mode`"),
        (lambda: dropout.around(adopt(trained(), likelihoods.Categorical()), put_in={"fc": 0.1}), "names no module"),
        (
            lambda: dropout.around(adopt(trained(), likelihoods.Categorical())).predict(torch.ones(2, 3)),
            "put dropout",
        ),
    ],
)
def test_mistakes_are_told(call: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        call()


def test_the_face_has_it() -> None:
    assert bq.adopt is adopt
    assert Dataset is bq.Dataset


CALIBRATIONS = {
    "confidence": lambda a, d: confidence.fit(a, d, hidden=(4,), num_epochs=1, num_fine_tuning_epochs=1, seed=0),
    "local temperature": lambda a, d: local_temperature.fit(a, d, num_epochs=3, seed=0),
    "vector scaling": lambda a, d: temperature.fit(a, d, vector=True),
    "variational, all": lambda a, d: variational.fit(
        adopt(a.model.net, likelihoods.Categorical(), random="all", is_centred=True).model, d, num_epochs=1, seed=0
    ),
    "calibrated variational": lambda a, d: temperature.fit(
        variational.fit(a.model, d, num_epochs=2, seed=0), d, seed=0
    ),
}


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("name", CALIBRATIONS)
def test_what_calibrates_it_leaves_the_network_as_it_was(name: str) -> None:
    net, data = trained(), labelled(48)
    before = state(net)
    adopted = adopt(net, likelihoods.Categorical(), prior=priors.Normal(scale=0.3))
    values = adopted.values.clone()
    posterior = CALIBRATIONS[name](adopted, data)
    assert posterior.predict(data.x, num_samples=4, seed=0).log_prob(data.y).isfinite().all()
    assert_same(net, before)
    assert torch.equal(adopted.values, values)


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_quantiles_of_an_adopted_network_are_calibrated() -> None:
    net = built(lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)))
    before, data = state(net), measured(48)
    adopted = adopt(net, likelihoods.Normal(scale=0.5))
    for posterior in (adopted, laplace.fit(adopted, data)):
        calibrated = quantile_calibration.fit(posterior, data, num_pieces=4, seed=0)
        below = data.y <= calibrated.predict(data.x, seed=0).quantile(0.5)
        assert float(below.double().mean()) == pytest.approx(0.5, abs=0.05)
    assert_same(net, before)


def test_a_prior_around_the_network_is_one_word() -> None:
    """Its mode is the network: without data, variational inference and Laplace stay there."""
    net = trained()
    model = adopt(net, likelihoods.Categorical(), random="all", prior=priors.Normal(scale=0.1), is_centred=True).model
    for name, law in model.laws.items():
        assert torch.equal(law.mean, net.get_parameter(name)), name
        assert law.stddev.unique().tolist() == pytest.approx([0.1])
