"""Networks that run in low precision, or compiled: what is inside of the pass, and what stays as it was."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesuq as bq
from bayesuq.data import Dataset
from bayesuq.inference import dropout, ensemble, hmc, ivon, laplace, map_estimate, sgmcmc, swag, variational
from bayesuq.inference.adoption import adopt
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.models import likelihoods, networks, priors, running
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import isolated

pytestmark = pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning", "ignore:The posterior scales")
LOW = torch.bfloat16
OPTIONS: dict[str, Any] = {"num_epochs": 4, "batch_size": 16, "seed": 0}
FITS: dict[str, Any] = {
    "map": map_estimate.fit,
    "dropout": dropout.fit,
    "ensemble": partial(ensemble.fit, num_members=2, initialise="keep", bootstrap=True),
    "swag": partial(swag.fit, rank=3),
    "variational": variational.fit,
    "local": partial(variational.fit, estimator="local"),
    "flipout": partial(variational.fit, estimator="flipout"),
}


class Seen(nn.Module):
    """Notes the dtype of what comes by."""

    dtypes: tuple[torch.dtype, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        Seen.dtypes = (*Seen.dtypes, x.dtype)
        return x


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    Seen.dtypes = ()
    torch._dynamo.reset()


def net(*, drops: bool = False, spies: bool = False) -> nn.Module:
    with isolated(0):
        between = [nn.Dropout(0.2)] if drops else []
        return nn.Sequential(
            nn.Linear(4, 16), *([Seen()] if spies else []), nn.Tanh(), *between, nn.Linear(16, 3), nn.Identity()
        )


def rows() -> Dataset:
    with isolated(1):
        x = torch.randn(48, 4)
    return Dataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def model(name: str = "map", *, spies: bool = False, **options: Any) -> BayesianNetwork:
    own = net(drops=name == "dropout", spies=spies)
    return BayesianNetwork(own, priors.Normal(), likelihoods.Categorical(), **options)


@pytest.mark.parametrize("name", FITS)
def test_low_precision_acts_inside_of_fits_and_predictions_and_nowhere_else(name: str) -> None:
    data = rows()
    posterior = FITS[name](model(name, spies=True, autocast=LOW), data, **OPTIONS)
    assert Seen.dtypes.count(LOW) >= 12  # steps; the step size of SWAG is measured in full, by second derivatives
    assert name == "swag" or set(Seen.dtypes) == {LOW}
    Seen.dtypes = ()
    predictive = posterior.predict(data.x, num_samples=4, seed=0, keep_samples=True)
    assert set(Seen.dtypes) == {LOW}
    assert predictive.draws.dtype == torch.float32  # not rounded to 8 bits: the likelihood sees the network's own dtype
    inner = posterior.members[0] if name == "ensemble" else posterior
    stored = inner.values if hasattr(inner, "values") else inner.sample_weights(1)["0.weight"]
    assert stored.dtype == torch.float32
    assert not torch.equal(stored, stored.to(LOW).float())  # weights of more than 8 bits
    plain = FITS[name](model(name), data, **OPTIONS).predict(data.x, num_samples=4, seed=0)
    # Outputs of order 1 carry errors of 2^-8 a product; a few of them, through 12 steps of Adam.
    assert (predictive.mean - plain.mean).abs().max() < 0.03


def test_an_adopted_network_gives_what_autocast_gives_and_exact_methods_stay_exact() -> None:
    data, own = rows(), net()
    adopted = adopt(own, likelihoods.Categorical(), autocast=LOW)
    with torch.no_grad(), torch.autocast("cpu", LOW):
        expected = own.eval()(data.x)
    assert expected.dtype == LOW
    assert torch.equal(adopted.predict(data.x, keep_samples=True).draws[0], expected.float())  # type: ignore[attr-defined]
    assert type(own) is nn.Sequential  # the user's stays as it is
    exact = adopt(own, likelihoods.Categorical())
    one, other = laplace.fit(adopted, data), laplace.fit(exact, data)
    assert torch.equal(one.predict(data.x, seed=0).mean, other.predict(data.x, seed=0).mean)
    chains = [hmc.fit(each.model, data, num_samples=2, num_warmup=2, num_chains=1, seed=0) for each in (adopted, exact)]
    assert torch.equal(chains[0].draws, chains[1].draws)  # type: ignore[union-attr]


def test_the_precision_is_written_into_a_file(tmp_path: Path) -> None:
    own = networks.mlp(4, (16,), 3, seed=0)
    plain = BayesianNetwork(own, priors.Normal(), likelihoods.Categorical())
    low = BayesianNetwork(own, priors.Normal(), likelihoods.Categorical(), autocast=LOW, compile="eager")
    posterior = map_estimate.fit(low, rows(), **OPTIONS)
    posterior.save(tmp_path / "low.safetensors")
    loaded = bq.load(tmp_path / "low.safetensors").predict(rows().x).mean
    assert torch.equal(loaded, posterior.predict(rows().x).mean)
    values = map_estimate.MapPosterior(model=plain, values=posterior.values, buffers={}, history=posterior.history)  # type: ignore[union-attr]
    assert not torch.equal(loaded, values.predict(rows().x).mean)


WAYS: dict[str, Any] = {
    "plain": ({}, nullcontext),
    "low": ({"autocast": LOW}, nullcontext),
    "around": ({}, partial(torch.autocast, "cpu", LOW)),
    "compiled": ({"compile": "eager"}, nullcontext),
}


IN_LOW = "its precision is 'bfloat16', this one's 'float32'"


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        *((name, "low", "plain", IN_LOW) for name in [*FITS, "ivon", "sgmcmc"]),
        ("map", "around", "plain", IN_LOW),
        ("map", "plain", "around", "its precision is 'float32', this one's 'bfloat16'"),
        ("map", "low", "around", None),
        ("map", "plain", "compiled", "its compiler is 'none', this one's 'eager'"),
    ],
)
def test_a_stopped_fit_goes_on_in_the_precision_that_it_began_in(
    name: str, before: str, after: str, told: str | None, tmp_path: Path
) -> None:
    fits = {
        **FITS,
        "ivon": ivon.fit,
        "sgmcmc": partial(sgmcmc.fit, num_samples=2, num_warmup=2, thinning=1, num_chains=1),
    }
    options = {"seed": 0, "checkpoint": Checkpoint(tmp_path / "file", every_steps=1)}
    options |= {} if name == "sgmcmc" else {"num_epochs": 4, "batch_size": 16}

    def fit(way: str) -> Any:
        own, around = WAYS[way]
        with around():
            return fits[name](model(name, **own), rows(), **options)

    fit(before)
    if told is None:
        fit(after)
    else:
        with pytest.raises(ValueError, match=f"belongs to another fit: {told}"):
            fit(after)


class Compiled:
    """A backend that counts what it compiles, and how often that runs."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _example: object) -> Any:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiled]:
    """In the place of "eager"; classes that were compiled by another one are forgotten."""
    own, original = Compiled(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: original(function, backend=own))
    running._kind.cache_clear()
    yield own
    running._kind.cache_clear()


@pytest.mark.parametrize("name", ["map", "dropout", "variational"])
def test_compiled_networks_are_fitted_to_the_same_numbers(name: str, backend: Compiled) -> None:
    data = rows()
    plain = FITS[name](model(name), data, **OPTIONS)
    before = backend.runs
    compiled = FITS[name](model(name, compile="eager"), data, **OPTIONS)
    arguments = {"num_samples": 3, "seed": 0}
    assert torch.equal(compiled.predict(data.x, **arguments).mean, plain.predict(data.x, **arguments).mean)
    if name != "dropout":  # passes of a plain network: 12 steps, and more
        assert backend.runs - before >= 12
        assert backend.graphs <= 8  # one serves all copies, by kinds of tensors and gradients


def test_predictions_of_an_adopted_network_are_compiled_once_for_all(backend: Compiled) -> None:
    data, own = rows(), net()
    adopted = adopt(own, likelihoods.Categorical(), compile="eager")
    first = adopted.predict(data.x).mean
    graphs, runs = backend.graphs, backend.runs
    assert torch.equal(first, adopt(own, likelihoods.Categorical()).predict(data.x).mean)
    for _ in range(12):  # each by a module tree of its own
        adopted.predict(data.x)
    assert backend.graphs == graphs
    assert backend.runs - runs >= 12
    own[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"`net.0` has hooks.*Leave `compile` out"):
        adopt(own, likelihoods.Categorical(), compile="eager")


def test_what_this_machine_cannot_do_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="`autocast` must be"):
        adopt(net(), likelihoods.Categorical(), autocast=torch.float32)
    with pytest.raises(TypeError, match="`autocast` must be"):
        adopt(net(), likelihoods.Categorical(), autocast="bfloat16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no backend of torch.compile: 'inducter'.*There are .*inductor"):
        adopt(net(), likelihoods.Categorical(), compile="inducter")

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", fails)
    running._check_backend.cache_clear()
    with pytest.raises(ValueError, match=r"'aot_eager': InvalidCxxCompiler.* leave `compile` out"):
        adopt(net(), likelihoods.Categorical(), compile="aot_eager")
    running._check_backend.cache_clear()
