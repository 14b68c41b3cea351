"""Inside of `torch.autocast`, and networks of low precision: what fits learn, and which layers Laplace sees."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bayesuq.fit_warnings import ConvergenceWarning
from bayesuq.inference import (
    dropout,
    ensemble,
    hmc,
    ivon,
    laplace,
    map_estimate,
    microcanonical,
    sgmcmc,
    swag,
    variational,
)
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from tests.inference.examples import NO_MODE, built, labelled

pytestmark = pytest.mark.filterwarnings(NO_MODE)
MIXED = torch.bfloat16
OPTIONS = {"num_epochs": 15, "batch_size": 32, "learning_rate": 0.04, "seed": 0}
CHAINS = {"num_chains": 2, "num_samples": 5, "num_warmup": 50, "thinning": 2, "start": "network", "seed": 0}
FITS = {
    "map": partial(map_estimate.fit, **OPTIONS),
    "adversarial": partial(map_estimate.fit, adversarial=True, **OPTIONS),
    "dropout": partial(dropout.fit, **OPTIONS),
    "ensemble, one by one": partial(ensemble.fit, num_members=2, vectorised=False, **OPTIONS),
    "ensemble, together": partial(ensemble.fit, num_members=2, vectorised=True, **OPTIONS),
    "variational": partial(variational.fit, **OPTIONS),
    "variational, local": partial(variational.fit, estimator="local", **OPTIONS),
    "variational, flipout": partial(variational.fit, estimator="flipout", num_draws=2, **OPTIONS),
    "variational, low rank": partial(variational.fit, guide=variational.low_rank(2), **OPTIONS),
    "ivon": partial(ivon.fit, **{**OPTIONS, "num_epochs": 140, "learning_rate": 0.3}),
    "laplace": partial(laplace.fit, **OPTIONS),
    "swag": partial(swag.fit, rank=4, **OPTIONS),
    "sgmcmc, one by one": partial(sgmcmc.fit, batch_size=32, vectorised=False, **CHAINS),
    "sgmcmc, together": partial(sgmcmc.fit, batch_size=32, vectorised=True, **CHAINS),
}


def model_of(name: str = "") -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (30,), 3, dropout=0.1 if name == "dropout" else 0.0))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())


def loss_of(posterior: Posterior) -> float:
    data = labelled(96)
    return -float(posterior.predict(data.x, num_samples=50, seed=0).log_prob(data.y).mean())


@pytest.mark.filterwarnings("ignore:The posterior scales were not learned", "ignore:The ELBO was still")
@pytest.mark.parametrize("name", FITS)
def test_a_fit_inside_of_autocast_reaches_the_loss_of_one_without(name):
    data = labelled(96)
    plain = FITS[name](model_of(name), data)
    with torch.autocast("cpu", MIXED):
        mixed = FITS[name](model_of(name), data)
        inside = loss_of(mixed)
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled()
    expected = loss_of(plain)
    assert expected < 0.5  # 1.1 would be nothing learned
    # Weights cast once and for all gave losses of 1 to 2,000 nats.
    assert loss_of(mixed) == pytest.approx(expected, abs=0.05)
    assert inside == pytest.approx(loss_of(mixed), abs=0.02)  # 2^-8 of logits of 5 nats


def test_hmc_and_the_linearised_network_are_computed_in_full_precision():
    data, options = labelled(20), {"num_samples": 5, "num_warmup": 5, "num_chains": 1, "seed": 0}
    model = model_of()
    chains, mode = hmc.fit(model, data, **options), map_estimate.fit(model, data, num_epochs=3, seed=0)
    around = laplace.fit(model, data, subset="all", mode=mode)
    expected = around.predict(data.x, num_samples=5, seed=0).mean
    with torch.autocast("cpu", MIXED):
        assert torch.equal(hmc.fit(model, data, **options).draws, chains.draws)
        again = laplace.fit(model, data, subset="all", mode=mode)
        assert torch.equal(again.predict(data.x, num_samples=5, seed=0).mean, expected)
        assert torch.equal(again.draw(3, 0), around.draw(3, 0))


class MixedBody(nn.Module):
    """A body that runs in low precision by itself, and a head that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh())
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", MIXED):
            hidden = self.body(x)
        return self.head(hidden.float())


LOW_PRECISION = {
    "bfloat16": (lambda: networks.mlp(3, (20, 20), 3).to(torch.bfloat16), ("1", "3", "5")),
    "float16": (lambda: networks.mlp(3, (20, 20), 3).to(torch.float16), ("1", "3", "5")),
    "a mixed body": (MixedBody, ("body.0", "body.2", "head")),
}


@pytest.mark.parametrize("name", LOW_PRECISION)
def test_layers_keep_their_factors_in_low_precision(name):
    build, layers = LOW_PRECISION[name]
    model = BayesianNetwork(built(build), priors.Normal(), likelihoods.Categorical())
    posterior = laplace.fit(model, labelled(), subset="all", num_epochs=1, seed=0)
    assert posterior.layers == layers
    exact = BayesianNetwork(built(build).float(), priors.Normal(), likelihoods.Categorical())
    mode = map_estimate.fit(exact, labelled(), num_epochs=1, learning_rate=1e-12, seed=0)
    mode = map_estimate.MapPosterior(model=exact, values=posterior.values.float(), buffers={}, history=mode.history)
    expected = laplace.fit(exact, labelled(), subset="all", mode=mode)
    for name, value in expected.curvature.items():  # sums over 48 rows, each to 2^-8 or so
        torch.testing.assert_close(posterior.curvature[name], value, rtol=0.1, atol=0.05 * float(value.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ensemble, together", "variational", "sgmcmc, together", "hmc", "microcanonical"])
def test_weights_that_lose_small_steps_are_told(name, dtype):
    model = BayesianNetwork(networks.mlp(3, (4,), 3).to(dtype), priors.Normal(), likelihoods.Categorical())
    chains = {"num_samples": 2, "num_warmup": 2, "seed": 0}
    fits = FITS | {"hmc": partial(hmc.fit, **chains), "microcanonical": partial(microcanonical.fit, **chains)}
    remedy = rf"weights of {dtype} lose each step .*`net.float\(\)`; with autocast={dtype} the model runs it in low"
    if name in ("ensemble, together", "variational"):
        with pytest.warns(ConvergenceWarning, match=rf"may stand still.*{remedy}"):
            FITS[name](model, labelled())
    else:
        with pytest.raises(ValueError, match=rf"Chains would stand still: {remedy}"):
            fits[name](model, labelled())


class Elsewhere(nn.Module):
    """A layer whose weight acts in another place too, beside one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.once(nn.functional.linear(self.twice(x).tanh(), self.twice.weight.T))


def test_layers_that_a_kronecker_structure_leaves_out_are_named():
    model = BayesianNetwork(built(Elsewhere), priors.Normal(), likelihoods.Categorical())
    with pytest.warns(UserWarning, match="the gradients of twice do not factor: .* They get a diagonal") as record:
        posterior = laplace.fit(model, labelled(), subset="all", num_epochs=1, seed=0)
    assert posterior.layers == ("once",)
    assert record[0].filename == __file__
    last = BayesianNetwork(built(Elsewhere), priors.Normal(), likelihoods.Categorical(), random="twice.*")
    with pytest.raises(ValueError, match=r"none has any \(the gradients of twice do not factor"):
        laplace.fit(last, labelled(), num_epochs=1, seed=0)
