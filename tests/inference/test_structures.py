"""Inputs of several parts through every method for networks: the numbers of a network that unpacks one tensor."""

from typing import Any

import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bayesuq as bq
from bayesuq.data import Batch, Dataset
from bayesuq.inference import (
    confidence,
    dropout,
    ensemble,
    gp,
    hmc,
    laplace,
    local_temperature,
    map_estimate,
    sgmcmc,
    swag,
    temperature,
    variational,
)
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.inference.variational.guides import autoguide
from bayesuq.loaders import Loader
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp.process import GaussianProcess
from tests.zoo import structures as zoo
from tests.zoo.structures import AGE, IMAGE, LABELS, NUM_ROWS

CASES = zoo.cases()
SHORT: dict[str, Any] = {"num_epochs": 2, "batch_size": 5, "seed": 0}
METHODS = {
    "map_estimate": lambda model, data: map_estimate.fit(model, data, validation=data, **SHORT),
    "variational": lambda model, data: variational.fit(model, data, **SHORT),
    "ensemble": lambda model, data: ensemble.fit(model, data, num_members=2, vectorised=False, **SHORT),
    "laplace, kronecker": lambda model, data: laplace.fit(model, data, subset="all", **SHORT),
    "laplace, full": lambda model, data: laplace.fit(model, data, structure="full", subset="all", **SHORT),
    "laplace, last layer": lambda model, data: laplace.fit(model, data, subset="last_layer", **SHORT),
    "swag": lambda model, data: swag.fit(model, data, num_epochs=16, batch_size=5, seed=0),
    "hmc": lambda model, data: hmc.fit(
        model, data, num_samples=3, num_warmup=3, num_chains=2, max_tree_depth=3, progress=False, seed=0
    ),
    "sgmcmc": lambda model, data: sgmcmc.fit(
        model, data, num_samples=3, num_warmup=5, thinning=1, batch_size=5, seed=0
    ),
}


class Unpacked(nn.Module):
    """The same network of one tensor, (N, 4)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, :3], x[:, 3])


def model_of(net: nn.Module) -> BayesianNetwork:
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())


@pytest.mark.filterwarnings("ignore::UserWarning")  # such short fits have not converged
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_numbers_of_one_tensor(method: str) -> None:
    net = CASES["two arguments"].net
    joined = torch.cat([IMAGE, AGE.unsqueeze(1)], dim=1)
    one = METHODS[method](model_of(net), Dataset((IMAGE, AGE), LABELS))
    other = METHODS[method](model_of(Unpacked(net)), Dataset(joined, LABELS))
    found = one.predict((IMAGE, AGE), num_samples=4, seed=0)
    expected = other.predict(joined, num_samples=4, seed=0)
    torch.testing.assert_close(found.mean, expected.mean, rtol=2e-4, atol=2e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_every_structure_goes_through_fit_predict_and_files(name: str, tmp_path: Any, monkeypatch: Any) -> None:
    case = CASES[name]
    data, model = Dataset(case.x, LABELS), model_of(case.net)
    mode = map_estimate.fit(model, data, **SHORT, checkpoint=tmp_path / "checkpoint")
    again = map_estimate.fit(model, data, **SHORT, checkpoint=tmp_path / "checkpoint")
    assert torch.equal(mode.values, again.values)
    moved = data.rows(torch.arange(NUM_ROWS).roll(1))
    with pytest.raises(ValueError, match="another fit"):
        map_estimate.fit(model, Dataset(moved.x, LABELS), **SHORT, checkpoint=tmp_path / "checkpoint")
    whole = mode.predict(case.x).mean
    assert whole.shape == (NUM_ROWS, 2)
    monkeypatch.setattr("bayesuq.inference.posteriors.prediction.ACTIVATION_BUDGET", 40)  # a row or two at a time
    torch.testing.assert_close(mode.predict(case.x).mean, whole)
    mode.save(tmp_path / "posterior")
    assert torch.equal(
        bq.load(tmp_path / "posterior", model=model).predict(data.rows([3]).x).mean, mode.predict(data.rows([3]).x).mean
    )
    fitted = laplace.fit(model, data, mode=mode, structure="diagonal", subset="all", seed=0)
    fitted.to_arviz(case.x, LABELS, num_samples=2, seed=0, num_prior_samples=2)
    scaled = temperature.fit(fitted, data, num_samples=3, seed=0)
    assert scaled.predict(case.x, num_samples=3, seed=0).mean.shape == (NUM_ROWS, 2)
    sure = confidence.fit(mode, data, hidden=(3,), num_epochs=1, num_fine_tuning_epochs=1, seed=0)
    assert sure.confidence(case.x).shape == (NUM_ROWS,)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dropout_masks_tokens_and_keeps_draws_whatever_the_chunks(monkeypatch: Any) -> None:
    case = CASES["tokens"]
    fitted = dropout.fit(model_of(case.net), Dataset(case.x, LABELS), **SHORT)
    whole = fitted.predict(case.x, num_samples=5, seed=0)
    assert whole.epistemic.max() > 0
    monkeypatch.setattr("bayesuq.inference.posteriors.prediction.ACTIVATION_BUDGET", 60)
    torch.testing.assert_close(fitted.predict(case.x, num_samples=5, seed=0).mean, whole.mean)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"tokens"}))  # whose dropout masks belong to places
def test_loaders_collate_structures(name: str) -> None:
    case = CASES[name]
    data, model = Dataset(case.x, LABELS), model_of(case.net)
    whole = map_estimate.fit(model, data, num_epochs=2, batch_size=NUM_ROWS, seed=0)
    rows = [data.rows([place]) for place in range(NUM_ROWS)]

    def collate(some: list[Dataset]) -> Batch:
        found = some[0].concatenate(*some[1:])
        return Batch(found.x, found.y)

    loader = DataLoader(rows, batch_size=NUM_ROWS, collate_fn=collate)
    fitted = map_estimate.fit(model, loader, num_epochs=2, seed=0)
    # The order of the rows in the one batch differs, and with it the rounding.
    torch.testing.assert_close(fitted.values, whole.values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fitted.predict(loader).mean, fitted.predict(case.x).mean)


def test_torchs_own_collation_of_tuples_and_mappings_is_read() -> None:
    pairs = [((image, age), label) for image, age, label in zip(IMAGE, AGE, LABELS, strict=True)]
    model = model_of(CASES["two arguments"].net)
    loader = DataLoader(pairs, batch_size=5)
    fitted = map_estimate.fit(model, loader, num_epochs=1, seed=0)
    torch.testing.assert_close(fitted.predict(loader).mean, fitted.predict((IMAGE, AGE)).mean)
    case = CASES["tokens"]
    items = [{**{key: part[n] for key, part in case.x.items()}, "labels": LABELS[n]} for n in range(NUM_ROWS)]
    named = Loader(
        DataLoader(items, batch_size=5),
        batch=lambda item: Batch({key: item[key] for key in ("input_ids", "attention_mask")}, item["labels"]),
    )
    tokens = map_estimate.fit(model_of(case.net), named, num_epochs=1, seed=0)
    torch.testing.assert_close(tokens.predict(named).mean, tokens.predict(case.x).mean)


def test_whole_numbers_and_flags_of_a_structure_stay() -> None:
    case = CASES["tokens"]
    source = Source(NetworkReader(model_of(case.net)), Dataset(case.x, LABELS), 5)
    for batch in source.epoch(torch.Generator().manual_seed(0)):
        assert {key: part.dtype for key, part in batch.x.value.items()} == {
            "input_ids": torch.int64,
            "attention_mask": torch.bool,
        }
    of_floats = model_of(zoo.TwoInputs().double())
    counts = Dataset(((10 * IMAGE).long(), (10 * AGE).long()), LABELS)
    assert {part.dtype for part in Source(NetworkReader(of_floats), counts, 5).rows.x.value} == {torch.float64}


def test_what_takes_one_tensor_refuses_several() -> None:
    data = Dataset((IMAGE, AGE), LABELS)
    model = model_of(CASES["two arguments"].net)
    mode = map_estimate.fit(model, data, **SHORT)
    for use, message in (
        (lambda: gp.fit(GaussianProcess(likelihood=likelihoods.Categorical()), data), "A Gaussian process takes"),
        (lambda: variational.fit(model, data, guide=autoguide(AutoNormal), **SHORT), "A Pyro guide takes"),
        (lambda: local_temperature.fit(mode, data), "A temperature for each pixel"),
    ):
        with pytest.raises(TypeError, match=message):
            use()
    with pytest.raises(ValueError, match="one tensor of real numbers"):
        map_estimate.fit(model, data, adversarial=True, num_epochs=1)
