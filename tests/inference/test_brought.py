"""Networks of the kinds that users bring, with batches as their libraries make them, through all that starts there."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bayesuq.data import Batch, Dataset
from bayesuq.inference import confidence, dropout, ensemble, hmc, ivon, laplace, map_estimate, temperature, variational
from bayesuq.inference.adoption import adopt
from bayesuq.inference.posteriors.saved import load
from bayesuq.inputs import apply, checked
from bayesuq.loaders import Loader
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.inference.examples import SHORT_FIT, weights_of
from tests.zoo.brought import BROUGHT, LABELS, NUM_ROWS

SHORT: dict[str, Any] = {"num_epochs": 2, "batch_size": 8, "seed": 0}
METHODS: dict[str, Callable[[map_estimate.MapPosterior, Dataset, str], Posterior]] = {
    "laplace": lambda adopted, data, _: laplace.fit(adopted, data),
    "variational": lambda adopted, data, _: variational.fit(adopted.model, data, **SHORT),
    "ivon": lambda adopted, data, _: ivon.fit(adopted.model, data, **SHORT),
    "dropout": lambda adopted, _, last: dropout.around(adopted, put_in={last: 0.2}),
    "ensemble": lambda adopted, data, _: ensemble.fit(
        adopted.model, data, num_members=2, initialise="keep", bootstrap=True, **SHORT
    ),
    "temperature": lambda adopted, data, _: temperature.fit(adopted, data),
}


@cache
def brought(name: str) -> tuple[nn.Module, map_estimate.MapPosterior, Dataset]:
    net = BROUGHT[name].net().train()
    return net, adopt(net, likelihoods.Categorical()), Dataset(BROUGHT[name].x, LABELS)


@pytest.mark.parametrize("name", BROUGHT)
def test_its_outputs_are_the_networks_own_bit_by_bit(name: str) -> None:
    net, adopted, data = brought(name)
    frozen = BROUGHT[name].net().eval().requires_grad_(False)
    found = adopted.predict(BROUGHT[name].x).mean
    expected = apply(frozen, checked(data.x))
    assert torch.equal(found, CategoricalPredictive.from_logits(expected.unsqueeze(0)).mean)
    for key, value in weights_of(frozen).items():
        assert torch.equal(net.state_dict()[key], value), key


@pytest.mark.filterwarnings(*SHORT_FIT, "ignore:The held-out labels do not say:UserWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BROUGHT)
def test_every_method_takes_it(name: str, method: str, tmp_path: Any, monkeypatch: Any) -> None:
    net, adopted, data = brought(name)
    before = weights_of(net)
    posterior = METHODS[method](adopted, data, BROUGHT[name].last)
    whole = posterior.predict(BROUGHT[name].x, num_samples=4, seed=0)
    assert whole.log_prob(LABELS).isfinite().all()
    assert (whole.epistemic.max() > 0) == (method != "temperature")
    assert net.training
    for key, value in weights_of(net).items():
        assert torch.equal(value, before[key]), key
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a network of the user's is not in the file
        posterior.save(tmp_path / "posterior")
    again = load(tmp_path / "posterior", model=posterior.model).predict(BROUGHT[name].x, num_samples=4, seed=0)
    assert torch.equal(again.mean, whole.mean)
    monkeypatch.setattr("bayesuq.inference.posteriors.prediction.ACTIVATION_BUDGET", 600)  # some rows at a time
    chunks = posterior.predict(data.x, num_samples=4, seed=0)
    torch.testing.assert_close(chunks.mean, whole.mean, rtol=1e-5, atol=1e-6)  # of float32, multiplied in other groups


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("name", ["lstm", "graph network", "transformer"])
def test_a_function_reads_the_batches_of_any_loader(name: str) -> None:
    """Items hold the labels beside the inputs, and what is no input, as loaders of dictionaries do."""
    _, adopted, data = brought(name)
    rows = [{"inputs": data.rows([place]), "path": f"{place}.png"} for place in range(NUM_ROWS)]

    def collated(items: list[dict[str, Any]]) -> dict[str, Any]:
        return {"rows": items[0]["inputs"].concatenate(*(item["inputs"] for item in items[1:])), "path": ["a"]}

    loader = Loader(
        DataLoader(rows, batch_size=5, collate_fn=collated), batch=lambda item: Batch(item["rows"].x, item["rows"].y)
    )
    one, other = laplace.fit(adopted, loader), laplace.fit(adopted, data)
    torch.testing.assert_close(
        one.predict(loader, num_samples=4, seed=0).mean,
        other.predict(data.x, num_samples=4, seed=0).mean,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_confidence_is_learned_of_it(name: str) -> None:
    _, adopted, data = brought(name)
    short: dict[str, Any] = {"num_epochs": 1, "num_fine_tuning_epochs": 1, "seed": 0}
    assert confidence.fit(adopted, data, hidden=(3,), **short).confidence(data.x).shape == (NUM_ROWS,)


class OwnDropout(nn.Module):
    """Attention that reads the rate of a layer and drops by itself, as in Hugging Face's BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.first, self.head = nn.Dropout(0.3), nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rate = self.dropout.p if self.training else 0.0
        return self.head(nn.functional.dropout(self.first(x).tanh(), rate))


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_confidence_is_learned_where_a_rate_is_read_of_a_layer() -> None:
    adopted = adopt(OwnDropout(), likelihoods.Categorical())
    data = Dataset(torch.linspace(-1, 1, 3 * NUM_ROWS).reshape(NUM_ROWS, 3), LABELS)
    short: dict[str, Any] = {"num_epochs": 1, "num_fine_tuning_epochs": 1, "seed": 0}
    assert confidence.fit(adopted, data, hidden=(3,), **short).confidence(data.x).shape == (NUM_ROWS,)


class Summed(nn.Module):
    """The sum of the embeddings of a sequence, padding included, whose row is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens).sum(dim=1))


PADDED: dict[str, Callable[[BayesianNetwork, Dataset], Posterior]] = {
    "map": lambda model, data: map_estimate.fit(model, data, **SHORT),
    "variational": lambda model, data: variational.fit(model, data, **SHORT),
    "low rank": lambda model, data: variational.fit(model, data, guide=variational.low_rank(2), **SHORT),
    "ivon": lambda model, data: ivon.fit(model, data, **SHORT),
    "laplace": lambda model, data: laplace.fit(model, data, structure="diagonal", **SHORT).sampled,
    "hmc": lambda model, data: hmc.fit(
        model, data, num_samples=3, num_warmup=3, num_chains=1, max_tree_depth=3, progress=False, seed=0
    ),
}


@pytest.mark.filterwarnings(*SHORT_FIT, "ignore::UserWarning")
@pytest.mark.parametrize("method", PADDED)
def test_padding_is_no_noise(method: str) -> None:
    """No data move the row of padding, which a posterior would leave to its prior: longer padding changes nothing."""
    tokens = 1 + torch.arange(60).reshape(20, 3) % 8
    longer = torch.cat([tokens, torch.zeros(20, 5, dtype=torch.long)], dim=1)
    model = BayesianNetwork(Summed(), priors.Normal(), likelihoods.Categorical())
    posterior, shorter = (PADDED[method](model, Dataset(x, torch.arange(20) % 3)) for x in (longer, tokens))
    one, other = (posterior.predict(x, num_samples=3, seed=0).mean for x in (tokens, longer))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    expected = shorter.predict(tokens, num_samples=3, seed=0).mean
    torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)  # the fit has not seen it either
