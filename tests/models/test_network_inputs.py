"""Whole-number inputs through every method: they stay whole where the network takes them, and are cast exactly else."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Dataset, Standardizer
from bayesuq.inference import dropout, ensemble, gp, hmc, laplace, map_estimate, sgmcmc, swag, temperature, variational
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.models.network_inputs import cast_inputs, takes_whole_numbers

NUM_TOKENS = 2**24 + 3  # more than float32 tells apart
TOKENS = torch.tensor([[2**24, 1], [2**24 + 1, 2], [2**24 + 2, 1], [5, 2]]).repeat(3, 1)
LABELS = torch.tensor([0, 1, 0, 1]).repeat(3)
LAST = 2**24


class Tokens(nn.Module):
    """A table of few rows, by which whole numbers are looked up, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.int64:
            raise RuntimeError(f"indices must be whole numbers; got {x.dtype}")
        places = torch.where(x >= LAST, x - LAST + 1, torch.zeros_like(x))
        return self.head(self.drop(self.table(places).mean(dim=1)))


@cache
def of_tokens() -> BayesianNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Tokens()
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())


@cache
def regression(dtype: torch.dtype = torch.float32) -> BayesianNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = networks.mlp(2, (), 1).to(dtype)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))


CHAINS: dict[str, Any] = {"num_samples": 3, "num_warmup": 3, "num_chains": 1, "progress": False}
METHODS = {
    "map_estimate": lambda model, data: map_estimate.fit(model, data, num_epochs=2, seed=0),
    "variational": lambda model, data: variational.fit(model, data, num_epochs=2, seed=0),
    "guide": lambda model, data: variational.fit(model, data, guide=variational.low_rank(1), num_epochs=2, seed=0),
    "dropout": lambda model, data: dropout.fit(model, data, num_epochs=2, seed=0),
    "ensemble": lambda model, data: ensemble.fit(model, data, num_members=2, num_epochs=2, seed=0),
    "laplace": lambda model, data: laplace.fit(model, data, subset="last_layer", num_epochs=2, seed=0),
    "swag": lambda model, data: swag.fit(model, data, num_epochs=16, batch_size=4, seed=0),
    "hmc": lambda model, data: hmc.fit(model, data, **CHAINS, seed=0),
    "sgmcmc": lambda model, data: sgmcmc.fit(
        model, data, num_samples=3, num_warmup=5, thinning=1, batch_size=4, seed=0
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # such short fits have not converged
@pytest.mark.parametrize("method", METHODS)
def test_tokens_stay_whole_in_every_method(method: str, tmp_path: Any) -> None:
    model, data = of_tokens(), Dataset(TOKENS, LABELS)
    assert data.x.dtype == torch.int64
    loader = DataLoader(TensorDataset(TOKENS, LABELS), batch_size=12)
    fitted = METHODS[method](model, data)
    assert METHODS[method](model, loader).predict(TOKENS, num_samples=2, seed=0).mean.shape == (12, 2)
    predicted = fitted.predict(TOKENS, num_samples=3, seed=0).mean
    for again in (TOKENS.numpy(), DataLoader(TOKENS, batch_size=12)):
        assert torch.equal(fitted.predict(again, num_samples=3, seed=0).mean, predicted)
    if method != "dropout":  # whose masks belong to rows
        assert len(torch.unique(predicted[:4], dim=0)) == 4  # all four are told apart
    if method not in ("hmc", "ensemble"):  # chains and members of the user's module are read in the same way
        fitted.save(tmp_path / "posterior")
        read = load(tmp_path / "posterior", model=model, guide=variational.low_rank(1) if method == "guide" else None)
        assert torch.equal(read.predict(TOKENS, num_samples=3, seed=0).mean, predicted)
    fitted.to_arviz(TOKENS, LABELS, num_samples=2, seed=0, num_prior_samples=2)
    assert len(temperature.fit(fitted, loader, num_samples=3, seed=0).slopes) == 1


def test_a_network_of_floats_sees_whole_numbers_as_floats() -> None:
    whole, real = Dataset([[3, 4], [5, -6]], [0.0, 1.0]), Dataset([[3.0, 4.0], [5.0, -6.0]], [0.0, 1.0])
    one, other = (map_estimate.fit(regression(), data, num_epochs=3, seed=0) for data in (whole, real))
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.predict(whole.x).mean, other.predict(real.x).mean)
    adversarial = (
        map_estimate.fit(regression(), data, adversarial=True, num_epochs=3, seed=0) for data in (whole, real)
    )
    assert torch.equal(*(fitted.values for fitted in adversarial))


def test_bytes_and_flags_are_pixels_whose_scale_is_unchanged() -> None:
    net = networks.convnet(1, 2)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    pixels = torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8)
    fitted = map_estimate.fit(model, Dataset(pixels / 255, LABELS[:6]), num_epochs=1, seed=0)
    assert Dataset(pixels, LABELS[:6]).x.dtype == torch.float32
    assert torch.equal(fitted.predict(pixels).mean, fitted.predict(pixels.float()).mean)
    assert torch.equal(fitted.predict(pixels > 9).mean, fitted.predict((pixels > 9).float()).mean)


TIMES = 1_700_000_000 + torch.arange(3)  # seconds, which float32 holds to 128


def test_float64_keeps_times_apart() -> None:
    x = torch.stack([TIMES, TIMES - TIMES], dim=1)
    model = regression(torch.float64)
    fitted = map_estimate.fit(model, Dataset(x - x[0], [0.0, 1.0, 2.0]), num_epochs=2, seed=0)
    mean = fitted.predict(x).mean
    assert torch.equal(mean, fitted.predict(x.double()).mean)
    assert len(torch.unique(mean)) == 3
    process = gp.fit(GaussianProcess(), Dataset(TIMES.unsqueeze(1), [0.0, 1.0, 0.0]), seed=0)
    assert len(torch.unique(process.predict(TIMES[:2].unsqueeze(1)).mean)) == 2


def test_float32_says_that_it_does_not() -> None:
    x = torch.stack([TIMES, TIMES - TIMES], dim=1)
    fitted = map_estimate.fit(regression(), Dataset(x - x[0], [0.0, 1.0, 2.0]), num_epochs=2, seed=0)
    with pytest.warns(UserWarning, match=r"2 of 3 rows .* change in torch.float32.* up to 16777216"):
        fitted.predict(x)
    # The remedies, without a word.
    fitted.predict(x - x[0])
    wide = map_estimate.fit(regression(torch.float64), Dataset(x - x[0], [0.0, 1.0, 2.0]), num_epochs=1, seed=0)
    wide.predict(x)


def test_standard_units_of_whole_numbers_are_exact() -> None:
    data = Dataset(TIMES.unsqueeze(1), [0.0, 1.0, 2.0])
    standard = Standardizer.fit(data).transform(data)
    expected = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) * 1.5**0.5
    torch.testing.assert_close(standard.x.flatten(), expected, rtol=1e-12, atol=1e-12)


def test_tokens_as_floats_are_refused_with_the_way_out() -> None:
    model = of_tokens()
    few = TOKENS[3:4]
    with pytest.raises(ValueError, match=r"are whole numbers: pass `x.long\(\)`"):
        map_estimate.fit(model, Dataset(few.double(), [1]), num_epochs=1)
    fitted = map_estimate.fit(model, Dataset(few, [1]), num_epochs=1, seed=0)
    with pytest.raises(ValueError, match=r"are whole numbers: pass `x.long\(\)`"):
        fitted.predict(few.double())
    assert torch.equal(fitted.predict(few.double().long()).mean, fitted.predict(few).mean)


def test_tokens_that_the_table_lacks_are_not_taken_for_quantities() -> None:
    table = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 2))
    model = BayesianNetwork(table, priors.Normal(), likelihoods.Categorical())
    with pytest.raises(ValueError, match="index out of range"):
        map_estimate.fit(model, Dataset([[0, 1], [2, 9]], [0, 1]), num_epochs=1)


def test_tokens_cannot_be_moved_a_little() -> None:
    with pytest.raises(ValueError, match="adversarial=False"):
        map_estimate.fit(of_tokens(), Dataset(TOKENS, LABELS), adversarial=True, num_epochs=1)
    with pytest.raises(ValueError, match="adversarial=False"):
        ensemble.fit(of_tokens(), Dataset(TOKENS, LABELS), adversarial=True, num_members=2, num_epochs=1)


def test_the_network_is_asked_which_it_takes() -> None:
    assert takes_whole_numbers(of_tokens(), TOKENS)
    assert not takes_whole_numbers(of_tokens(), TOKENS.double())
    assert not takes_whole_numbers(regression(), TOKENS)
    assert cast_inputs(of_tokens(), TOKENS).dtype == torch.int64
    assert cast_inputs(regression(torch.float64), TOKENS).dtype == torch.float64
    assert Dataset(np.array([[1], [2]], dtype=np.uint32), [0.0, 1.0]).x.dtype == torch.int64


def test_whole_and_real_inputs_do_not_concatenate() -> None:
    whole = Dataset([[1], [2]], [0, 1])
    with pytest.raises(ValueError, match=r"by `x\.double\(\)`"):
        whole.concatenate(Dataset([[0.5]], [1]))
    assert len(Dataset(whole.x.double(), whole.y).concatenate(Dataset([[0.5]], [1]))) == 3
