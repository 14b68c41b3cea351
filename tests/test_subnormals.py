"""Numbers too small to be normal are zero while a fit trains, and what they were afterwards."""

from contextlib import nullcontext

import pytest
import torch

import bayesuq as bq
from bayesuq.data import Dataset
from bayesuq.inference import dropout, ivon, laplace, map_estimate, sgmcmc, swag, variational
from bayesuq.inference.training import loop
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.subnormals import are_flushed, flushed
from tests.inference.examples import built

FITS = (map_estimate, variational, dropout, ivon, swag)


def rows() -> Dataset:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    return Dataset(x, x.sum(1))


def model() -> BayesianNetwork:
    net = built(lambda: networks.mlp(2, (3,), 1, dropout=0.1))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))


@pytest.mark.parametrize("before", [False, True])
def test_it_is_as_before_afterwards(before):
    torch.set_flush_denormal(before)
    try:
        with flushed():
            assert are_flushed()
            assert float(torch.tensor(1e-40) * 1.0) == 0.0
        assert are_flushed() == before
        with pytest.raises(KeyError), flushed():
            raise KeyError
        assert are_flushed() == before
    finally:
        torch.set_flush_denormal(False)


SEEN = []


class Asking(torch.nn.Linear):
    """A layer that notes how it was computed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        SEEN.append(are_flushed())
        return super().forward(x)


ASKED = {
    "predict": lambda mode: mode.predict(rows().x, seed=0),
    "laplace": lambda mode: laplace.fit(mode, rows(), structure="diagonal", seed=0),
    "sgmcmc": lambda mode: sgmcmc.fit(
        mode.model, rows(), num_chains=1, num_warmup=2, num_samples=2, thinning=1, seed=0
    ),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_predictions_curvatures_and_chains_are_made_so(ask):
    mode = bq.adopt(Asking(2, 1), likelihoods.Normal(scale=0.5))
    SEEN.clear()
    ask(mode)
    assert any(SEEN)
    assert not are_flushed()


def test_a_default_device_is_not_asked():
    with torch.device("meta"), flushed():
        assert are_flushed()


@pytest.mark.parametrize("method", FITS, ids=lambda method: method.__name__.rsplit(".")[-1])
def test_every_method_trains_so(method):
    seen = []
    method.fit(model(), rows(), num_epochs=8, seed=0, callbacks=[lambda _: seen.append(are_flushed())])
    assert seen
    assert all(seen)
    assert not are_flushed()


def test_weights_that_other_threads_made_subnormal_are_zero_after_an_epoch(monkeypatch):
    monkeypatch.setattr(loop, "flushed", nullcontext)  # as to a thread of torch's own
    net = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(net.weight, 1e-40)
    fitted = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))
    nothing = Dataset(torch.zeros(20, 2), torch.zeros(20))
    posterior = map_estimate.fit(fitted, nothing, num_epochs=1, batch_size=20, learning_rate=1e-9, seed=0)
    assert not posterior.sample_weights(1, seed=0)["weight"].any()
