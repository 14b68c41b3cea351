"""The README's example by every word: as accurate as the mode, or warned of, or an error that shows what to change."""

import importlib
import warnings
from typing import Any

import pytest
import torch

import bayesuq
from bayesuq import datasets
from bayesuq.data import Split
from bayesuq.inference.catalogue import METHODS
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork

CLOSE = 0.01
WORDS = [method.name for method in METHODS]
KINDS = {method.name: method.kind for method in METHODS}
# Fewer steps than by default, where what is claimed survives it: less training can only add warnings.
SHORTER: dict[str, dict[str, Any]] = {
    "map_estimate": {"num_epochs": 40},
    "variational": {"num_epochs": 10},
    "ivon": {"num_epochs": 10},
    "laplace": {"num_epochs": 40},
    "swag": {"num_epochs": 40},
    "ensemble": {"num_epochs": 40, "num_members": 2},
    "confidence": {"num_epochs": 1},
    "local_temperature": {"num_epochs": 1, "batch_size": 64},
    "microcanonical": {"num_samples": 3, "num_warmup": 6, "thinning": 2, "num_members": 2, "num_epochs": 5},
    "sgmcmc": {"num_samples": 4, "num_warmup": 8, "num_chains": 2},
}
MENDED: dict[str, dict[str, Any]] = {
    "dropout": {"num_epochs": 40},
    "gp": {"num_epochs": 30, "num_inducing": 60},
}
ELSEWHERE = {"quantile_calibration": "For labels take `temperature.fit`"}


@pytest.fixture(scope="module")
def split() -> Split:
    return datasets.load("digits-0to8")


@pytest.fixture(scope="module")
def model() -> BayesianNetwork:
    return example(networks.mlp(64, (100, 100), 9, seed=0))


@pytest.fixture(scope="module")
def mode(split: Split, model: BayesianNetwork) -> Any:
    return fit_of("map_estimate")(model, split.train, num_epochs=40, seed=0)


def fit_of(word: str) -> Any:
    return importlib.import_module(f"bayesuq.inference.{word}").fit


def example(net: torch.nn.Module) -> BayesianNetwork:
    return BayesianNetwork(net, prior=priors.Normal(scale=1.0), likelihood=likelihoods.Categorical())


def accuracy(posterior: Any, split: Split) -> float:
    predicted = posterior.predict(split.test.x, num_samples=100, seed=0).mean.argmax(dim=1)
    return float((predicted == split.test.y).double().mean())


@pytest.mark.parametrize("word", [word for word in WORDS if word not in (*MENDED, *ELSEWHERE, "hmc")])
def test_every_word_is_as_accurate_as_the_mode_or_warns(
    word: str, split: Split, model: BayesianNetwork, mode: Any
) -> None:
    wraps = KINDS[word] == "wrapper"
    given, data = (mode, split.val) if wraps else (model, split.train)
    seed = {} if "temperature" in word else {"seed": 0}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = fit_of(word)(given, data, **seed, **SHORTER.get(word, {}))
    told = any(issubclass(each.category, bayesuq.ConvergenceWarning) for each in caught)
    assert told or accuracy(posterior, split) >= accuracy(mode, split) - CLOSE


@pytest.mark.filterwarnings("error:The chains have some:UserWarning")
def test_hours_of_chains_are_told_before_they_begin(split: Split, model: BayesianNetwork) -> None:
    with pytest.raises(UserWarning, match=r"some [\d.]+ h to go: a gradient over all 1132 rows .*`variational`"):
        fit_of("hmc")(model, split.train, num_samples=50_000, seed=0)


@pytest.mark.parametrize("word", MENDED)
def test_a_word_that_needs_another_model_shows_the_line_that_makes_it(
    word: str, split: Split, model: BayesianNetwork, mode: Any
) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        fit_of(word)(model, split.train, seed=0)
    space: dict[str, Any] = {"bayesuq": bayesuq}
    exec(str(refused.value).splitlines()[-1].strip(), space)
    mended = space["model"] if "model" in space else example(space["net"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = fit_of(word)(mended, split.train, seed=0, **MENDED[word])
    told = any(issubclass(each.category, bayesuq.ConvergenceWarning) for each in caught)
    assert told or accuracy(posterior, split) >= accuracy(mode, split) - CLOSE


@pytest.mark.parametrize("word", ELSEWHERE)
def test_a_word_for_other_targets_names_the_one_for_labels(word: str, split: Split, mode: Any) -> None:
    with pytest.raises(TypeError, match=ELSEWHERE[word]):
        fit_of(word)(mode, split.val)
