"""Which data are told to be far from unit size, and that every method for networks tells it once."""

import contextlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq import datasets
from bayesuq.data import Dataset, Standardizer
from bayesuq.fit_warnings import ConvergenceWarning
from bayesuq.inference import confidence, dropout, ensemble, gp, hmc, laplace, map_estimate, sgmcmc, swag, variational
from bayesuq.inference.training.column_scales import far_columns
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp.process import GaussianProcess

NUM_ROWS = 400


def normal(mean: float = 0.0, scale: float = 1.0, *shape: int) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    return mean + scale * torch.randn(*(shape or (NUM_ROWS, 1)), generator=noise)


def flags(share: float, size: float = 1.0) -> Tensor:
    return size * (torch.arange(NUM_ROWS) < share * NUM_ROWS).float().unsqueeze(1)


NEAR = {
    "standard": normal(),
    "a tenth": normal(0.0, 0.1),
    "ten": normal(5.0, 10.0),
    "in [0, 1]": torch.rand(NUM_ROWS, 1, generator=torch.Generator().manual_seed(0)),
    "grey levels 0 to 16": torch.arange(NUM_ROWS).remainder(17).float().unsqueeze(1),
    "a constant": torch.full((NUM_ROWS, 1), 3.0),
    "zeros": torch.zeros(NUM_ROWS, 1),
    "a rare class": flags(0.005),
    "a frequent class": flags(0.998),
    "a flag": flags(0.5),
    "the border of images": 0.01 * flags(0.02),
    "images in [0, 1]": torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    "normalised images": normal(0.0, 1.0, 20, 3, 8, 8),
    "a dark channel with a bright spot": 0.02 * normal(0.0, 1.0, 20, 1, 8, 8).abs() + 0.5 * (torch.arange(8) == 3),
    "one row": torch.tensor([[3.0]]),
    "few rows that are close by chance": torch.tensor([[0.52], [0.53], [0.54]]),
}
FAR = {
    "large": normal(0.0, 1e5),
    "tiny": normal(0.0, 1e-5),
    "far off": normal(1e3, 1.0),
    "a year": normal(2000.0, 10.0),
    "hardly varying": normal(5.0, 0.1),
    "a large constant": torch.full((NUM_ROWS, 1), 1e5),
    "large flags": flags(0.01, 1e5),
    "bytes": 255 * torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("name", NEAR)
def test_columns_of_about_unit_size_pass(name: str) -> None:
    assert not far_columns(NEAR[name])[0].any()


@pytest.mark.parametrize("name", FAR)
def test_columns_far_from_it_do_not(name: str) -> None:
    far, _, _ = far_columns(FAR[name])
    assert far.all()
    columns = torch.cat([FAR[name], torch.zeros_like(FAR[name])], dim=1)
    assert int(far_columns(columns)[0].sum()) == FAR[name].shape[1]


@pytest.mark.parametrize("name", ["digits", "shapes", "toy/linear", "toy/sine-gap", "toy/heteroscedastic"])
def test_data_that_come_with_the_package_pass(name: str) -> None:
    train = datasets.load(name).train
    assert not far_columns(train.x)[0].any()
    assert train.is_labelled or not far_columns(train.y)[0].any()


def test_a_sample_of_many_rows_is_enough() -> None:
    x = normal(0.0, 1e5, 100_000, 3)
    far, mean, scale = far_columns(x)
    assert far.all()
    torch.testing.assert_close(scale, torch.full((3,), 1e5, dtype=torch.float64), rtol=0.1, atol=0)
    assert (mean.abs() < 1e4).all()


def model(likelihood: Any = None, net: nn.Module | None = None) -> BayesianNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = networks.mlp(2, (3,), 1, dropout=0.1) if net is None else net
    return BayesianNetwork(net, priors.Normal(), likelihood or likelihoods.Normal(scale=0.5))


X = torch.cat([normal(), 1e5 * normal()], dim=1)
LARGE = Dataset(X, 1e6 * normal())
SHORT: dict[str, Any] = {"num_epochs": 1, "seed": 0}
CHAINS: dict[str, Any] = {"num_samples": 2, "num_warmup": 2, "num_chains": 2, "thinning": 1, "seed": 0}
METHODS = {
    "map_estimate": lambda m, data: map_estimate.fit(m, data, **SHORT),
    "a loader": lambda m, data: map_estimate.fit(m, DataLoader(TensorDataset(data.x, data.y), 200), **SHORT),
    "variational": lambda m, data: variational.fit(m, data, **SHORT),
    "guide": lambda m, data: variational.fit(m, data, guide=variational.full_rank, **SHORT),
    "dropout": lambda m, data: dropout.fit(m, data, **SHORT),
    "ensemble": lambda m, data: ensemble.fit(m, data, num_members=2, **SHORT),
    "ensemble of guides": lambda m, data: ensemble.fit(m, data, num_members=2, member_fit=variational.fit, **SHORT),
    "laplace": lambda m, data: laplace.fit(m, data, structure="diagonal", **SHORT),
    "swag": lambda m, data: swag.fit(m, data, num_epochs=4, seed=0),
    "sgmcmc": lambda m, data: sgmcmc.fit(m, data, **CHAINS),
    "hmc": lambda m, data: hmc.fit(m, data, progress=False, **CHAINS),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_for_networks_tells_it_once(method: str) -> None:
    diverged = contextlib.suppress(FloatingPointError, ValueError)  # which such data may end in
    with warnings.catch_warnings(record=True) as caught, diverged:
        warnings.simplefilter("always")
        METHODS[method](model(), LARGE)
    told = [str(warning.message) for warning in caught if "far from unit size" in str(warning.message)]
    assert len(told) == 1
    assert told[0].startswith("1 of 2 columns of `x` (1: ")
    assert " and 1 of 1 columns of `y` (0: " in told[0]


def test_the_remedy_ends_the_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so short a fit
        units = Standardizer.fit(LARGE)
        fitted = map_estimate.fit(model(), units.transform(LARGE), **SHORT)
        predictive = units.inverse(fitted.predict(units.transform(LARGE).x))
    assert predictive.mean.std() > 1e3  # in units of y


def test_what_has_no_unit_is_not_told() -> None:
    counts, labels = 1e3 * flags(0.5), flags(0.5).long().flatten()
    tokens = Dataset(torch.full((NUM_ROWS, 1), 10**6), labels)
    table = nn.Sequential(nn.EmbeddingBag(10**6 + 1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        map_estimate.fit(model(likelihoods.Poisson()), Dataset(X[:, :1].expand(-1, 2), counts), **SHORT)
        map_estimate.fit(model(likelihoods.Categorical(), table), tokens, **SHORT)
        gp.fit(GaussianProcess(), Dataset(X[:30], LARGE.y[:30]), seed=0)
        two = model(likelihoods.Categorical(), networks.mlp(1, (3,), 2))
        sure = map_estimate.fit(two, Dataset(X[:, :1], labels), **SHORT)
        confidence.fit(sure, Dataset(X[:, :1], labels), hidden=(2,), num_fine_tuning_epochs=0, **SHORT)
