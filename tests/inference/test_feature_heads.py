"""A last layer fitted on features that were taken once is that of a fit of the whole network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.inference import (
    dropout,
    ensemble,
    features,
    hmc,
    laplace,
    map_estimate,
    sgmcmc,
    swag,
    temperature,
    variational,
)
from bayesuq.inference.adoption import adopt
from bayesuq.models import likelihoods, priors
from tests.inference.examples import SHORT_FIT, built, labelled, noise


class Net(nn.Module):
    """A body with statistics, and a head deep in it."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 12), nn.BatchNorm1d(12), nn.Tanh())
        self.top = nn.Sequential(nn.Dropout(rate), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.body(x))


class Rows(TorchDispatchMode):
    """Counts rows that go through the activation of the body."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += len(args[0]) if function is torch.ops.aten.tanh.default else 0
        return function(*args, **(kwargs or {}))


FITS: dict[str, Callable[[Any, Any], Any]] = {
    "laplace": lambda mode, data: laplace.fit(mode, data),
    "sampled": lambda mode, data: laplace.fit(mode, data).sampled,
    "variational": lambda mode, data: variational.fit(mode.model, data, num_epochs=3, seed=0),
    "low rank": lambda mode, data: variational.fit(
        mode.model, data, guide=variational.low_rank(2), num_epochs=2, seed=0
    ),
    "hmc": lambda mode, data: hmc.fit(
        mode.model, data, num_samples=5, num_warmup=5, num_chains=1, max_tree_depth=3, seed=0
    ),
    "sgmcmc": lambda mode, data: sgmcmc.fit(
        mode.model, data, num_samples=4, num_warmup=4, num_chains=1, thinning=1, seed=0
    ),
    "swag": lambda mode, data: swag.fit(mode.model, data, mode=mode, num_epochs=16, rank=2, seed=0),
    "map": lambda mode, data: map_estimate.fit(mode.model, data, num_epochs=2, seed=0),
    "ensemble": lambda mode, data: ensemble.fit(mode.model, data, num_members=2, num_epochs=1, seed=0),
    "temperature": lambda mode, data: temperature.fit(laplace.fit(mode, data), data, seed=0),
}


def adopted() -> Any:
    net = built(Net)
    net.train()(noise(3, 64, 3).float() + 1)
    return adopt(net, likelihoods.Categorical(), prior=priors.Normal(scale=0.5), is_centred=True)


@pytest.mark.filterwarnings(
    *SHORT_FIT, "ignore:The weights are no mode", "ignore:.*R-hat", "ignore:The held-out labels"
)
@pytest.mark.parametrize("name", FITS)
def test_a_fit_on_features_is_that_of_the_whole_network(name: str) -> None:
    mode, data = adopted(), labelled(64)
    last = features.head(mode, data)
    on_features = adopt(last.model.net, likelihoods.Categorical(), prior=priors.Normal(scale=0.5), is_centred=True)
    start = on_features if name in ("laplace", "sampled", "swag", "temperature") else _Model(last.model)
    with Rows() as rows:
        fitted = FITS[name](start, last.data)
    assert rows.count == 0
    ours, theirs = last.whole(fitted), FITS[name](mode, data)
    assert type(ours) is type(theirs)
    mine, other = (one.predict(data.x, num_samples=6, seed=0) for one in (ours, theirs))
    torch.testing.assert_close(mine.mean, other.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mine.epistemic, other.epistemic, rtol=1e-2, atol=1e-4)


class _Model:
    """Where fits take a mode's model."""

    def __init__(self, model: Any) -> None:
        self.model = model


def test_loaders_files_and_other_rows_are_the_same_features() -> None:
    mode, data = adopted(), labelled(40)
    expected = features.head(mode, data)
    loader = DataLoader(TensorDataset(data.x.float(), data.y), batch_size=16, shuffle=True)
    for last in (features.head(mode, loader, memory=300), features.head(mode, data, memory=300)):
        torch.testing.assert_close(last.data.x, expected.data.x, rtol=1e-6, atol=1e-6)
        assert torch.equal(last.data.y, data.y)
    assert torch.equal(expected.rows(data).x, expected.data.x)
    body = mode.model.net.eval().body
    assert torch.equal(expected.data.x, body(data.x.float()).detach())


def test_dropout_that_no_longer_acts_is_told() -> None:
    with pytest.warns(UserWarning, match="drops"):
        features.head(adopt(built(lambda: Net(0.1)), likelihoods.Categorical()), labelled(8))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: features.head(adopt(built(Net), likelihoods.Categorical(), random="all"), labelled(8)), "moves too"),
        (lambda: features.head(dropout.around(adopted()), labelled(8)), "bayesuq.adopt"),
        (
            lambda: features.head(
                adopt(nn.Sequential(built(Net), nn.LogSoftmax(1)), likelihoods.Categorical()), labelled(8)
            ),
            "goes on after it",
        ),
        (lambda: features.head(adopted(), labelled(8).x), "Dataset"),
    ],
)
def test_mistakes_are_told(call: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        call()
