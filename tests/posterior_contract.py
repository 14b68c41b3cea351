"""What every posterior promises. A test class inherits `PosteriorContract` and says how to fit one."""

import copy
import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from bayesuq.data import Dataset
from bayesuq.inference.posteriors import prediction, weights
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.to_arviz.container import group, group_names
from bayesuq.to_arviz.groups import Wanted
from tests.inference.examples import built, labelled, measured, noise, recorded_steps, weights_of

NUM_FEATURES, NUM_CLASSES, NUM_DRAWS = 3, 3, 6
NAMES = ["first", "second", "third"]  # of the features
# float32 sums over at most 20 activations, in another order: relative errors of some 20 x 1.2e-7, with room.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
LEARNING = {"num_epochs": 15, "batch_size": 16, "learning_rate": 0.1}
NEW_X = noise(7, 130, NUM_FEATURES).float()  # two blocks of 64 rows and a rest
# Names of tests that ask a method's door, not what is behind it, end so: refusals, loaders, seeds, Pyro's store, kinds
# of inputs, devices, networks of the user's own.
DOORS = (
    *("_refused", "_must_be_a_count", "_a_loader_fits_as_data_in_memory_do", "_inputs_of_any_kind_give_the_same"),
    *("_takes_one_number_from_the_global_generator", "_is_taken_from_the_global_generator_and_no_more"),
    *("_parameter_store_stays_as_it_was", "_no_global_state_changes", "_with_an_order_of_its_own_is_taken"),
    *("_to_the_same_device_changes_nothing", "_of_the_users_own_is_passed_when_loading"),
    *("_that_vmap_cannot_follow_gives_the_same", "_leaves_the_network_and_the_data_as_they_were"),
    *("_frozen_parameters_come_back", "_frozen_parameters_are_constants", "_predicted_in_turn_are_independent"),
)
FOURTH_ROW = torch.arange(130)[:, None] == 3


class Branching(nn.Module):
    """Two layers and a branch on their values, which `vmap` cannot follow."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(NUM_FEATURES, 4), nn.Linear(4, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.first(x).tanh())
        if hidden.sum() > 1e6:
            return self.last(hidden) + 1
        return self.last(hidden)


class Plain(Branching):
    """The same without the branch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.first(x).tanh()))


class OwnOrder(Sampler[int]):
    """An order of the user's own that is no shuffling."""

    def __iter__(self) -> Any:
        return iter(range(len(NEW_X)))


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in a posterior, in order, the model's own weights and buffers among them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, BayesianNetwork):
        return list(value.net.state_dict().values())
    if isinstance(value, Posterior):
        return [tensor for item in dataclasses.fields(value) for tensor in tensors_of(getattr(value, item.name))]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return [tensor for item in inner for tensor in tensors_of(item)]


def assert_same_draws(one: PredictiveDistribution, other: PredictiveDistribution, **tolerance: float) -> None:
    """Equal draw by draw, and to the bit where no tolerance is given."""
    assert one.num_samples == other.num_samples
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    if isinstance(one, GaussianPredictive):
        torch.testing.assert_close(one.component_means, other.component_means, **tolerance)
        torch.testing.assert_close(one.noise_variance, other.noise_variance, **tolerance)
    elif one.draws is not None and other.draws is not None:
        torch.testing.assert_close(one.draws.softmax(dim=2), other.draws.softmax(dim=2), **tolerance)
    for name in ("mean", "total", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **tolerance)


def draws_of(posterior: Posterior, x: Any, *, seed: int = 0) -> PredictiveDistribution:
    """A prediction from a few draws, each of them kept."""
    return posterior.predict(x, num_samples=NUM_DRAWS, seed=seed, keep_samples=True)


@cache
def whole_of(posterior: Posterior) -> PredictiveDistribution:
    """The draws at all of `NEW_X`, predicted once for all tests that hold others against them."""
    return draws_of(posterior, NEW_X)


def rows_of(predictive: PredictiveDistribution, rows: slice) -> Tensor:
    """What every draw says of some rows."""
    if isinstance(predictive, GaussianPredictive):
        return predictive.component_means[:, rows]
    return predictive.samples[:, rows]


def framed(x: Tensor) -> pd.DataFrame:
    """Inputs in columns with names."""
    return pd.DataFrame(x.numpy(), columns=NAMES)


def _named(data: Dataset) -> Dataset:
    return Dataset(framed(data.x), data.y)


def network(num_outputs: int, *, dropout: float, batch_norm: bool = False) -> nn.Module:
    return built(
        lambda: networks.mlp(NUM_FEATURES, (8,), num_outputs, dropout=dropout, activation="tanh", batch_norm=batch_norm)
    )


def of_real_targets(net: nn.Module) -> BayesianNetwork:
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.2))


# No fit may change its model, so that all fits share two, about which what they look for is found out once.


@cache
def regression(dropout: float) -> BayesianNetwork:
    return of_real_targets(network(1, dropout=dropout))


@cache
def classification(dropout: float) -> BayesianNetwork:
    return BayesianNetwork(network(NUM_CLASSES, dropout=dropout), priors.Normal(), likelihoods.Categorical())


class PosteriorContract:
    """Subclasses say how to `fit`, and what their draws are.

    Attributes:
        fit: The method.
        options: What makes its fits short.
        learning: What makes a fit long enough to learn labels.
        num_members: M of a posterior that stores its draws, else None.
        default_num_samples: Draws for `num_samples=None`.
        dropout: Of the networks.
        rows_share_draws: Whether a draw is a function of x, the same in each row.
        load_options: What `load` must be given.
        has_functions: Whether its draws are those of functions.
    """

    fit: ClassVar[Callable[..., Posterior]]
    other_path: ClassVar = FLOAT32  # how near a fit by other operators comes
    options: ClassVar[dict[str, Any]] = {"num_epochs": 2, "batch_size": 24, "learning_rate": 1e-2, "seed": 1}
    learning: ClassVar[dict[str, Any]] = LEARNING
    num_members: ClassVar[int | None] = None
    default_num_samples: ClassVar[int] = 100
    dropout: ClassVar[float] = 0.0
    rows_share_draws: ClassVar[bool] = True
    load_options: ClassVar[dict[str, Any]] = {}
    has_functions: ClassVar[bool] = True

    def __init_subclass__(cls, *, doors_of: str | None = None) -> None:
        """Doors are tested once: a class of the same `fit` and `predict` names the one that tests them."""
        super().__init_subclass__()
        if doors_of is not None:
            for name in dir(cls):
                if name.startswith("test_") and name.endswith(DOORS) and name not in vars(cls):
                    setattr(cls, name, None)

    def network(self, num_outputs: int = 1, *, batch_norm: bool = False) -> nn.Module:
        return network(num_outputs, dropout=self.dropout, batch_norm=batch_norm)

    def regression(self, net: nn.Module | None = None) -> BayesianNetwork:
        return regression(self.dropout) if net is None else of_real_targets(net)

    def classification(self) -> BayesianNetwork:
        return classification(self.dropout)

    def posterior(self, model: BayesianNetwork, data: Dataset | DataLoader, **options: Any) -> Posterior:
        return type(self).fit(model, data, **{**self.options, **options})

    @classmethod
    @cache
    def fitted(cls, kind: str) -> Posterior:
        """Fitted once for all tests, none of which can change it."""
        self = cls()
        if kind == "regression":
            return self.posterior(self.regression(), _named(measured()))
        if kind == "batch norm":
            return self.posterior(self.regression(self.network(batch_norm=True)), measured())
        return self.posterior(self.classification(), _named(labelled()))

    @classmethod
    @cache
    def learned(cls) -> Posterior:
        """From labels in memory, long enough to have learned them."""
        self = cls()
        return self.posterior(self.classification(), labelled(), **self.learning)

    @pytest.fixture(params=["regression", "classification"])
    def either(self, request: pytest.FixtureRequest) -> Posterior:
        return self.fitted(request.param)

    @pytest.fixture
    def regressor(self) -> Posterior:
        return self.fitted("regression")

    @property
    def num_samples(self) -> int:
        """The draws that a prediction asked for NUM_DRAWS has."""
        return min(NUM_DRAWS, self.num_members or NUM_DRAWS)

    # What a prediction is

    def test_the_likelihood_decides_the_kind_of_predictive(self) -> None:
        real = self.fitted("regression").predict(NEW_X, num_samples=NUM_DRAWS, seed=0)
        assert isinstance(real, GaussianPredictive)
        assert real.mean.shape == (len(NEW_X), 1)
        labels = self.fitted("classification").predict(NEW_X, num_samples=NUM_DRAWS, seed=0)
        assert isinstance(labels, CategoricalPredictive)
        assert labels.mean.shape == (len(NEW_X), NUM_CLASSES)

    def test_total_is_aleatoric_plus_epistemic(self, either: Posterior) -> None:
        predictive = draws_of(either, NEW_X)
        torch.testing.assert_close(predictive.total, predictive.aleatoric + predictive.epistemic, rtol=1e-9, atol=1e-9)
        many = predictive.num_samples > 1
        assert (predictive.epistemic.mean() > 1e-6) == many

    def test_the_draws_disagree_unless_there_is_one(self, regressor: Posterior) -> None:
        draws = draws_of(regressor, NEW_X).component_means
        assert len(torch.unique(draws[:, 0])) == len(draws)

    def test_the_noise_is_the_likelihoods(self, regressor: Posterior) -> None:
        noise_variance = draws_of(regressor, NEW_X).noise_variance
        torch.testing.assert_close(noise_variance, torch.full_like(noise_variance, 0.2**2), rtol=1e-6, atol=0)

    def test_the_fit_has_seen_the_data(self) -> None:
        data = labelled()
        before = self.posterior(self.classification(), data, num_epochs=1, learning_rate=1e-9)
        gain = [p.predict(data.x, num_samples=20, seed=0).log_prob(data.y).mean() for p in (before, self.learned())]
        assert gain[1] > gain[0] + 0.3

    # Which draws it takes

    @pytest.mark.parametrize(
        ("number", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), ("3", TypeError), (True, TypeError)]
    )
    def test_the_number_of_draws_must_be_a_count(
        self, regressor: Posterior, number: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error, match="`num_samples`"):
            regressor.predict(NEW_X, num_samples=number)

    def test_the_predictive_tells_its_number_of_draws(self, either: Posterior) -> None:
        assert either.predict(NEW_X[:2], seed=0).num_samples == self.default_num_samples
        for number in (1, 2, 9):  # the last is more than any has members
            expected = number if self.num_members is None else min(number, self.num_members)
            assert either.predict(NEW_X[:2], num_samples=number, seed=0).num_samples == expected

    def test_a_seed_repeats_the_draws_and_another_one_changes_them(self, either: Posterior) -> None:
        one, same, other = (either.predict(NEW_X, num_samples=NUM_DRAWS, seed=seed) for seed in (3, 3, 4))
        assert_same_draws(one, same)
        assert torch.equal(one.mean, other.mean) == (self.num_members is not None)

    def test_without_a_seed_one_number_is_taken_from_the_global_generator_and_no_more(self, either: Posterior) -> None:
        torch.manual_seed(5)
        key = int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64))
        expected_state = torch.get_rng_state()
        torch.manual_seed(5)
        one = either.predict(NEW_X, num_samples=NUM_DRAWS)
        assert torch.equal(torch.get_rng_state(), expected_state)
        assert_same_draws(one, either.predict(NEW_X, num_samples=NUM_DRAWS, seed=key))

    @pytest.mark.parametrize("form", [lambda x: x, lambda x: DataLoader(x, batch_size=70)], ids=["tensor", "loader"])
    def test_with_a_seed_no_global_state_changes(
        self, either: Posterior, form: Callable[[Tensor], Tensor | DataLoader]
    ) -> None:
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        draws_of(either, form(NEW_X))
        assert torch.equal(torch.get_rng_state(), before)
        assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002

    # How its rows and draws go through memory

    # Rows and draws that go through memory at a time: one, a few, all.
    @pytest.mark.parametrize(("activations", "vectorised"), [(1, 2**40), (700, 2000), (2**40, 1)])
    def test_chunks_of_any_size_give_the_same_draws(
        self, either: Posterior, monkeypatch: pytest.MonkeyPatch, activations: int, vectorised: int
    ) -> None:
        x = NEW_X[:7] if activations == 1 else NEW_X  # a row at a time is slow
        whole = whole_of(either) if len(x) == len(NEW_X) else draws_of(either, x)
        monkeypatch.setattr(prediction, "ACTIVATION_BUDGET", activations)
        monkeypatch.setattr(weights, "VECTORISED_BUDGET", vectorised)
        assert_same_draws(draws_of(either, x), whole, **FLOAT32)

    @pytest.mark.parametrize(("batch_size", "has_targets"), [(1, False), (7, True), (100, False)])
    def test_batches_of_a_loader_are_the_whole(self, either: Posterior, batch_size: int, has_targets: bool) -> None:
        x = NEW_X[: {1: 5, 7: 70}.get(batch_size, len(NEW_X))]  # few rows at a time are slow; 70 are more than a block
        dataset = TensorDataset(x, torch.zeros(len(x))) if has_targets else x
        loaded, whole = draws_of(either, DataLoader(dataset, batch_size=batch_size)), whole_of(either)
        rows = slice(0, len(x))
        torch.testing.assert_close(rows_of(loaded, rows), rows_of(whole, rows), **FLOAT32)
        if len(x) == len(NEW_X):
            assert_same_draws(loaded, whole, **FLOAT32)

    @pytest.mark.parametrize("number", [1, 63, 65])
    def test_further_rows_do_not_change_the_first(self, either: Posterior, number: int) -> None:
        whole, part = whole_of(either), draws_of(either, NEW_X[:number])
        rows = slice(0, number)
        torch.testing.assert_close(rows_of(part, rows), rows_of(whole, rows), **FLOAT32)

    def test_a_row_of_a_batch_is_a_batch_of_one(self, either: Posterior) -> None:
        whole = whole_of(either)
        for row in (0, 5, 129) if self.rows_share_draws else (0,):
            alone = draws_of(either, NEW_X[row : row + 1])
            torch.testing.assert_close(rows_of(alone, slice(0, 1)), rows_of(whole, slice(row, row + 1)), **FLOAT32)

    def test_a_function_has_one_value_in_equal_rows(self, either: Posterior) -> None:
        x = NEW_X[[3, 9, 3]]
        if not self.has_functions and hasattr(either, "posterior"):
            with pytest.raises(ValueError, match=r"posterior\.posterior\.functions"):
                either.functions(x)
            return
        found = either.functions(x, num_samples=NUM_DRAWS, seed=0)
        assert found.draws.shape[1:] == found.mean.shape == either.predict(x, num_samples=2, seed=0).mean.shape
        # A process' covariance is singular here: 1e-9 of its variance, on the diagonal, parts equal rows by 3e-5 sd.
        torch.testing.assert_close(found.draws[:, 0], found.draws[:, 2], rtol=1e-4, atol=1e-3)
        if len(found.draws) > 1:
            assert found.draws.std(dim=0).min() > 1e-6
        if isinstance(either, WeightPosterior):
            torch.testing.assert_close(found.draws, rows_of(draws_of(either, x), slice(None)), rtol=0, atol=0)

    def test_streamed_draws_give_what_kept_ones_give(self, either: Posterior) -> None:
        streamed, kept = (
            either.predict(NEW_X, num_samples=NUM_DRAWS, seed=0, keep_samples=keep) for keep in (False, True)
        )
        assert_same_draws(streamed, kept)
        if isinstance(streamed, CategoricalPredictive):
            assert kept.samples.shape == (self.num_samples, len(NEW_X), NUM_CLASSES)
            with pytest.raises(ValueError, match="keep_samples=True"):
                _ = streamed.samples

    def test_threads_at_once_give_what_one_after_another_gives(self, either: Posterior) -> None:
        def mean(seed: int) -> Tensor:
            return either.predict(NEW_X, num_samples=NUM_DRAWS, seed=seed).mean

        expected = [mean(seed) for seed in range(4)]
        with ThreadPoolExecutor(4) as pool:
            for one, other in zip(pool.map(mean, range(4)), expected, strict=True):
                assert torch.equal(one, other)

    def test_a_network_that_vmap_cannot_follow_gives_the_same(self) -> None:
        branching, plain = (
            self.posterior(self.regression(built(lambda kind=kind: kind(self.dropout))), measured()).predict(
                NEW_X, num_samples=NUM_DRAWS, seed=0
            )
            for kind in (Branching, Plain)
        )
        assert_same_draws(branching, plain, **self.other_path)

    # What it takes, and what it gives back

    @pytest.mark.parametrize("form", [Tensor.double, Tensor.numpy, Tensor.tolist, framed, lambda x: x[None][0]])
    def test_inputs_of_any_kind_give_the_same(self, regressor: Posterior, form: Callable[[Tensor], Any]) -> None:
        one = draws_of(regressor, form(NEW_X[:5]))
        assert_same_draws(one, draws_of(regressor, NEW_X[:5]))
        assert one.mean.device.type == "cpu"

    def test_a_data_frame_is_read_by_the_names_of_its_columns(self, regressor: Posterior, tmp_path: Any) -> None:
        regressor.save(tmp_path / "posterior.safetensors")
        kept = [load(tmp_path / "posterior.safetensors", **self.load_options)]
        with suppress(ValueError):  # draws that are no sets of weights
            kept.append(regressor.fixed_draws(NUM_DRAWS, seed=0))
        x = NEW_X[:5]
        moved, other = framed(x)[NAMES[::-1]], framed(x).rename(columns={"second": "fourth"})
        whole = draws_of(regressor, x)
        for posterior in (regressor, *kept):
            assert_same_draws(draws_of(posterior, moved), whole)
            with pytest.raises(ValueError, match="it lacks 'second' and 'fourth' was not fitted"):
                posterior.predict(other)
        if self.has_functions:
            functions = [regressor.functions(rows, num_samples=NUM_DRAWS, seed=0).draws for rows in (x, moved)]
            assert torch.equal(*functions)
            told = [regressor.to_arviz(rows, num_samples=NUM_DRAWS, num_prior_samples=0, seed=0) for rows in (x, moved)]
            one, two = (group(each, "predictions") for each in told)
            assert all((one[name].values == two[name].values).all() for name in one.data_vars)
            assert len(one.data_vars) > 1

    def test_a_float64_network_computes_in_float64(self) -> None:
        model = self.regression(self.network().double())
        posterior = self.posterior(model, measured())
        whole = draws_of(posterior, NEW_X.double())
        alone = draws_of(posterior, NEW_X[:1].double())
        floating = [tensor for tensor in tensors_of(posterior) if tensor.is_floating_point()]
        assert {tensor.dtype for tensor in floating} == {torch.float64}
        torch.testing.assert_close(alone.component_means, whole.component_means[:, :1], rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(
        ("x", "error", "says"),
        [
            (NEW_X[0], ValueError, r"reshape\(1, -1\)"),
            (NEW_X[:0], ValueError, "must not be empty"),
            (NEW_X[:, :2], ValueError, r"does not take `x` of shape \(130, 2\)"),
            (torch.where(FOURTH_ROW, torch.nan, NEW_X), ValueError, "1 of 130 rows .*row 3"),
            (torch.where(FOURTH_ROW, torch.inf, NEW_X), ValueError, "1 of 130 rows .*row 3"),
            (NEW_X.double() * 1e200, ValueError, "in torch.float32.* must be finite"),
            (NEW_X.to_sparse(), TypeError, "dense"),
            ([["a"]], TypeError, "numbers"),
            (measured(), TypeError, "got a Dataset. Pass its `.x`"),
            (DataLoader(NEW_X[:, :2], batch_size=7), ValueError, r"does not take `x` of shape \(7, 2\)"),
        ],
    )
    def test_inputs_that_the_network_does_not_take_are_refused(
        self, regressor: Posterior, x: Any, error: type[Exception], says: str
    ) -> None:
        with pytest.raises(error, match=says):
            draws_of(regressor, x)

    @pytest.mark.parametrize(
        "options",
        [
            {"shuffle": True},
            {"sampler": RandomSampler(NEW_X)},
            {"sampler": SubsetRandomSampler(range(5))},
            {"sampler": WeightedRandomSampler(torch.ones(130), 5)},
            {"batch_sampler": BatchSampler(RandomSampler(NEW_X), 5, drop_last=False)},
        ],
        ids=lambda options: str(next(iter(options.values()))).split()[0].rpartition(".")[2],
    )
    def test_a_loader_that_shuffles_is_refused(self, regressor: Posterior, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="shuffle=False"):
            draws_of(regressor, DataLoader(NEW_X, **options))

    def test_a_loader_with_an_order_of_its_own_is_taken(self, regressor: Posterior) -> None:
        loader = DataLoader(NEW_X, batch_size=20, sampler=OwnOrder())
        assert_same_draws(draws_of(regressor, loader), whole_of(regressor), **FLOAT32)

    def test_a_loader_without_rows_is_refused(self, regressor: Posterior) -> None:
        with pytest.raises(ValueError, match="must not be empty"):
            draws_of(regressor, DataLoader(NEW_X[:0]))

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_it_computes_on_its_device_and_answers_on_that_of_x(self, either: Posterior) -> None:
        moved = either.to("cuda")
        assert moved.device.type == "cuda"
        assert draws_of(moved, NEW_X).mean.device.type == "cpu"
        assert draws_of(moved, NEW_X.cuda()).mean.is_cuda
        assert draws_of(moved, DataLoader(NEW_X, batch_size=50)).mean.is_cuda
        assert either.device.type == "cpu"

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_it_fits_on_a_gpu_repeatably(self) -> None:
        fits = [self.posterior(self.regression(), measured(), device="cuda") for _ in range(2)]
        assert fits[0].device.type == "cuda"
        one, other = (draws_of(fit, NEW_X) for fit in fits)
        assert_same_draws(one, other, **FLOAT32)

    # What stays as it was

    def test_moving_to_the_same_device_changes_nothing(self, either: Posterior) -> None:
        one, other = (draws_of(p, NEW_X) for p in (either.to("cpu"), either))
        assert_same_draws(one, other)

    def test_predicting_leaves_the_posterior_and_the_inputs_as_they_were(self, either: Posterior) -> None:
        before, x = [tensor.clone() for tensor in tensors_of(either)], NEW_X.clone()
        modes = [module.training for module in either.model.net.modules()]
        draws_of(either, x)
        assert torch.equal(x, NEW_X)
        assert modes == [module.training for module in either.model.net.modules()]
        for tensor, old in zip(tensors_of(either), before, strict=True):
            assert torch.equal(tensor, old)

    @pytest.mark.parametrize("training", [True, False])
    def test_fitting_leaves_the_network_and_the_data_as_they_were(self, training: bool) -> None:
        net, data = self.network(batch_norm=True).train(training), measured()
        model = self.regression(net)
        before, own, x, y = weights_of(net), weights_of(model.net), data.x.clone(), data.y.clone()
        modes = [module.training for module in net.modules()]
        self.posterior(model, data)
        assert modes == [module.training for module in net.modules()]
        for now, then in ((weights_of(net), before), (weights_of(model.net), own)):
            assert all(torch.equal(now[name], then[name]) for name in then)
        assert all(parameter.grad is None for parameter in [*net.parameters(), *model.net.parameters()])
        assert torch.equal(data.x, x)
        assert torch.equal(data.y, y)

    def test_batch_norm_learns_its_statistics_in_the_fit_and_never_when_predicting(self) -> None:
        net, posterior = self.network(batch_norm=True), self.fitted("batch norm")
        for member in getattr(posterior, "members", (posterior,)):
            assert not torch.equal(member.buffers["2.running_mean"], net[2].running_mean)
            assert int(member.buffers["2.num_batches_tracked"]) == 4  # two epochs of two batches
        before = [tensor.clone() for tensor in tensors_of(posterior)]
        one = draws_of(posterior, NEW_X)
        assert_same_draws(draws_of(posterior, NEW_X), one)
        assert all(torch.equal(tensor, old) for tensor, old in zip(tensors_of(posterior), before, strict=True))

    def test_predictions_use_the_statistics_of_the_fit(self) -> None:
        posterior = self.fitted("batch norm")
        for member in getattr(posterior, "members", (posterior,)):
            shifted = {name: value + 1 for name, value in member.buffers.items()}
            one, other = (draws_of(p, NEW_X) for p in (member, dataclasses.replace(member, buffers=shifted)))
            assert (one.mean - other.mean).abs().max() > 1e-2

    def test_frozen_parameters_are_constants(self) -> None:
        net = self.network()
        net[1].requires_grad_(False)
        posterior = self.posterior(self.regression(net), measured())
        assert torch.equal(posterior.model.net[1].weight, net[1].weight)
        with torch.no_grad():  # the prediction moves when the frozen layer does, and only then
            zeroed = copy.deepcopy(posterior.model)
            zeroed.net[1].weight.zero_()
            zeroed.net[1].bias.zero_()
        assert "1.weight" not in posterior.model.laws
        members = getattr(posterior, "members", ())
        replaced = (
            {"members": tuple(dataclasses.replace(member, model=zeroed) for member in members)} if members else {}
        )
        flat = dataclasses.replace(posterior, model=zeroed, **replaced).predict(NEW_X, num_samples=1, seed=0)
        assert flat.component_means.std(dim=1).max() < 1e-6
        assert posterior.predict(NEW_X, num_samples=1, seed=0).component_means.std(dim=1).min() > 1e-3

    # What a fit promises

    def test_a_seed_makes_the_fit_repeatable_and_leaves_the_global_generator(self) -> None:
        before = torch.get_rng_state()
        seed = self.options["seed"]
        again = [self.posterior(self.classification(), labelled(), seed=number) for number in (seed, seed + 1)]
        fits = [self.fitted("classification"), *again]
        assert torch.equal(torch.get_rng_state(), before)
        one, same, other = (tensors_of(dataclasses.replace(fit, model=fits[0].model)) for fit in fits)
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    def test_a_fit_without_a_seed_takes_one_number_from_the_global_generator(self) -> None:
        torch.manual_seed(5)
        key = int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64))
        expected_state = torch.get_rng_state()
        torch.manual_seed(5)
        one = self.posterior(self.regression(), measured(), seed=None)
        assert torch.equal(torch.get_rng_state(), expected_state)
        same = self.posterior(self.regression(), measured(), seed=key)
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(same), strict=True))

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_a_loader_fits_as_data_in_memory_do(self, shuffle: bool) -> None:
        data = labelled()
        batch_size = self.learning["batch_size"]
        loader = DataLoader(TensorDataset(data.x, data.y), batch_size=batch_size, shuffle=shuffle)
        before = torch.get_rng_state()
        if shuffle:
            fits = [self.posterior(self.classification(), loader) for _ in range(2)]
            assert torch.equal(torch.get_rng_state(), before)
            assert all(torch.equal(a, b) for a, b in zip(*map(tensors_of, fits), strict=True))
            return
        loaded = self.posterior(self.classification(), loader, **self.learning)
        assert torch.equal(torch.get_rng_state(), before)
        scores = [p.predict(data.x, num_samples=20, seed=0).log_prob(data.y).mean() for p in (loaded, self.learned())]
        assert abs(scores[0] - scores[1]) < 0.1  # nats; the orders of the batches differ

    def test_pyros_parameter_store_stays_as_it_was(self) -> None:
        pyro.clear_param_store()
        pyro.param("1.weight", torch.zeros(2))  # a name that the fit could use too
        self.posterior(self.regression(), measured()).predict(NEW_X, num_samples=2, seed=0)
        assert list(pyro.get_param_store()) == ["1.weight"]
        pyro.clear_param_store()

    def test_two_posteriors_predicted_in_turn_are_independent(self) -> None:
        one = self.fitted("regression")
        expected = one.predict(NEW_X, num_samples=2, seed=0)
        other = self.posterior(self.regression(), measured(seed=10))
        there = other.predict(NEW_X, num_samples=2, seed=0)
        assert_same_draws(one.predict(NEW_X, num_samples=2, seed=0), expected)
        assert_same_draws(other.predict(NEW_X, num_samples=2, seed=0), there)
        assert not torch.equal(there.mean, expected.mean)

    # What it refuses, before it makes a step

    @pytest.mark.parametrize(
        ("options", "error", "says"),
        [
            ({"num_epochs": 0}, ValueError, "`num_epochs` must be at least 1"),
            ({"num_epochs": 2.5}, TypeError, "`num_epochs` must be a whole number"),
            ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
            ({"learning_rate": 0.0}, ValueError, "`learning_rate` must be a finite number above 0"),
            ({"learning_rate": -1e-3}, ValueError, "`learning_rate`"),
            ({"learning_rate": math.nan}, ValueError, "`learning_rate`"),
            ({"learning_rate": math.inf}, ValueError, "`learning_rate`"),
            ({"learning_rate": "fast"}, TypeError, "`learning_rate` must be a number"),
            ({"schedule": "linear"}, ValueError, "`schedule` must be one of 'cosine', 'constant'"),
            ({"captured": "yes"}, TypeError, "`captured` must be True or False"),
            ({"max_grad_norm": 0.0}, ValueError, "`max_grad_norm`"),
            ({"patience": 3}, ValueError, "`patience` needs `validation`"),
            ({"patience": 0, "validation": measured()}, ValueError, "`patience` must be at least 1"),
            ({"validation": labelled(num_features=2)}, ValueError, "does not take `x`"),
            ({"validation": 3}, TypeError, "Dataset or a DataLoader"),
            ({"callbacks": [3]}, TypeError, "`callbacks` must be a list of functions"),
            ({"callbacks": print}, TypeError, "`callbacks` must be a list of functions"),
            ({"callbacks": None}, TypeError, "`callbacks` must be a list of functions"),
            ({"callbacks": iter([print])}, TypeError, "`callbacks` must be a list of functions"),
            ({"seed": -1}, ValueError, "`seed` must be at least 0"),
            ({"seed": 0.5}, TypeError, "`seed` must be a whole number"),
            ({"num_epoch": 3}, TypeError, "no option 'num_epoch'; did you mean 'num_epochs'"),
            ({"lr": 3}, TypeError, "no option 'lr'.*There are: .*learning_rate"),
        ],
        ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
    )
    def test_options_out_of_range_are_refused(self, options: dict[str, Any], error: type[Exception], says: str) -> None:
        with recorded_steps() as steps, pytest.raises(error, match=says):
            self.posterior(self.regression(), measured(), **options)
        assert steps == []

    @pytest.mark.parametrize(
        ("x", "y", "error", "says"),
        [
            (noise(0, 9, 2), noise(1, 9), ValueError, r"does not take `x` of shape \(9, 2\)"),
            (noise(0, 9, 3, 5), noise(1, 9), ValueError, r"does not take `x` of shape \(9, 3, 5\)"),
            (noise(0, 9, 3), noise(1, 9, 2), ValueError, "`y` must have shape"),
            (1e200 * noise(0, 9, 3), noise(1, 9), ValueError, "`x in torch.float32` must be finite; 9 of 9"),
            (noise(0, 9, 3), 1e200 * noise(1, 9), ValueError, "`y in torch.float32` must be finite; 9 of 9"),
        ],
    )
    def test_real_data_that_do_not_fit_the_model_are_refused(
        self, x: Tensor, y: Tensor, error: type[Exception], says: str
    ) -> None:
        for data in (Dataset(x, y), DataLoader(TensorDataset(x, y), batch_size=9)):
            with recorded_steps() as steps, pytest.raises(error, match=says):
                self.posterior(self.regression(), data)
            assert steps == []

    @pytest.mark.parametrize(
        ("y", "error", "says"),
        [
            (torch.arange(9) % 4, ValueError, "`y` must hold labels from 0 to 2; got 0 to 3"),
            (torch.arange(9) % 3 - 1, ValueError, "`y` must hold labels from 0 to 2; got -1 to 1"),
            (noise(1, 9), TypeError, "got fractions"),
            (torch.zeros(9, 2, dtype=torch.int64), ValueError, "`y` must have shape"),
        ],
    )
    def test_labels_that_do_not_fit_the_model_are_refused(self, y: Tensor, error: type[Exception], says: str) -> None:
        x = noise(0, 9, 3)
        for data in (Dataset(x, y), DataLoader(TensorDataset(x, y), batch_size=9)):
            with recorded_steps() as steps, pytest.raises(error, match=says):
                self.posterior(self.classification(), data)
            assert steps == []

    def test_weights_that_overflow_are_refused(self) -> None:
        data = Dataset(noise(0, 9, 3), noise(1, 9), weight=torch.full((9,), 1e200, dtype=torch.float64))
        with recorded_steps() as steps, pytest.raises(ValueError, match=r"`weight in torch\.float32` must be finite"):
            self.posterior(self.regression(), data)
        assert steps == []

    @pytest.mark.parametrize("data", [None, (noise(0, 9, 3), noise(1, 9)), noise(0, 9, 3)], ids=["None", "pair", "x"])
    def test_data_of_another_type_are_refused(self, data: Any) -> None:
        with pytest.raises(TypeError, match="Dataset or a DataLoader; got"):
            self.posterior(self.regression(), data)

    @pytest.mark.parametrize(
        "batches", [DataLoader(noise(0, 9, 3)), DataLoader(TensorDataset(*[noise(0, 9, 3)] * 4))], ids=["x", "four"]
    )
    def test_a_loader_of_other_batches_is_refused(self, batches: DataLoader) -> None:
        with pytest.raises(TypeError, match=r"must give batches \(x, y\)"):
            self.posterior(self.regression(), batches)

    @pytest.mark.parametrize("model", [nn.Linear(3, 1), None, "mlp"], ids=str)
    def test_a_model_of_another_type_is_refused(self, model: Any) -> None:
        with pytest.raises(TypeError, match="BayesianNetwork"):
            self.posterior(model, measured())

    # What it tells ArviZ

    def test_arviz_is_told_of_every_draw_that_is_predicted_with(self, either: Posterior) -> None:
        x, labels = NEW_X[:7], isinstance(draws_of(either, NEW_X[:1]), CategoricalPredictive)
        y = torch.arange(7) % NUM_CLASSES if labels else noise(5, 7)
        told = either.to_arviz(x, y, num_samples=NUM_DRAWS, seed=0, num_prior_samples=3)
        terms = torch.as_tensor(group(told, "log_likelihood")["y"].values).flatten(0, 1)
        assert terms.shape == (self.num_samples, 7)
        wanted = Wanted.of(x, y, new_x=None, num_samples=NUM_DRAWS, seed=0, num_prior_samples=0, include_weights=False)
        predictive = either.drawn(wanted).predict(x)
        expected = predictive.log_prob(y) + math.log(self.num_samples)
        torch.testing.assert_close(terms.logsumexp(dim=0), expected, rtol=1e-9, atol=1e-9)
        function = torch.as_tensor(group(told, "posterior")["p" if labels else "mu"].values).flatten(0, 1)
        draws = predictive.samples if labels else predictive.component_means[..., 0]
        torch.testing.assert_close(function, draws, rtol=0, atol=0)
        if predictive.num_samples == draws_of(either, x).num_samples:  # it has no closed form instead
            assert_same_draws(predictive, draws_of(either, x))
        assert (group(told, "observed_data")["y"].values == np.asarray(y)).all()
        marks = group(told, "posterior").attrs
        assert (marks["independent_draws"], marks["seed"]) == (not hasattr(either, "num_chains"), 0)
        assert {"prior", "prior_predictive", "posterior_predictive"} <= set(group_names(told))

    def test_arviz_is_told_of_new_inputs_and_of_the_same_weights(self, regressor: Posterior) -> None:
        told = regressor.to_arviz(NEW_X[:5], num_samples=NUM_DRAWS, seed=0, num_prior_samples=0)
        chains = getattr(regressor, "num_chains", 1)
        assert group(told, "predictions")["y"].shape == (chains, self.num_samples // chains, 5)
        assert not {"log_likelihood", "posterior_predictive", "observed_data", "prior"} & set(group_names(told))
        if not self.rows_share_draws:
            assert "posterior" not in group_names(told)  # a draw is a mask, and no set of weights
            with pytest.raises(ValueError, match="Nothing of a"):
                regressor.to_arviz(seed=0)
            return
        sites = getattr(regressor, "sampled", regressor).sample_weights(NUM_DRAWS, seed=0)
        for name, draws in sites.items():
            values = group(told, "posterior")[name].values
            np.testing.assert_array_equal(values.reshape(draws.shape), draws.numpy())

    # Its file

    def test_a_saved_posterior_predicts_the_same_to_the_bit(self, either: Posterior, tmp_path: Any) -> None:
        either.save(tmp_path / "posterior.safetensors")
        loaded = load(tmp_path / "posterior.safetensors", **self.load_options)
        assert type(loaded) is type(either)
        assert loaded.model.prior == either.model.prior
        for one, other in zip(tensors_of(loaded), tensors_of(either), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        one, other = (draws_of(p, NEW_X) for p in (loaded, either))
        assert_same_draws(one, other)

    def test_batch_norm_and_frozen_parameters_come_back(self, tmp_path: Any) -> None:
        net = self.network(batch_norm=True)
        net[-1].bias.requires_grad_(False)
        posterior = self.posterior(self.regression(net), measured())
        posterior.save(tmp_path / "posterior")
        loaded = load(tmp_path / "posterior", **self.load_options)
        assert not loaded.model.net[-1].bias.requires_grad
        assert list(loaded.model.laws) == list(posterior.model.laws)
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(loaded), tensors_of(posterior), strict=True))
        one, other = (draws_of(p, NEW_X) for p in (loaded, posterior))
        assert_same_draws(one, other)

    def test_a_network_of_the_users_own_is_passed_when_loading(self, tmp_path: Any) -> None:
        model = self.regression(built(lambda: Plain(self.dropout)))
        posterior = self.posterior(model, measured())
        with pytest.warns(UserWarning, match="Plain was not built by bayesuq; pass the same model") as record:
            posterior.save(tmp_path / "posterior")
        assert record[0].filename == __file__
        with pytest.raises(ValueError, match=r"load\(path, model=model\)"):
            load(tmp_path / "posterior", **self.load_options)
        again = self.regression(built(lambda: Plain(self.dropout), seed=9))
        before = weights_of(again.net)
        loaded = load(tmp_path / "posterior", model=again, **self.load_options)
        one, other = (draws_of(p, NEW_X) for p in (loaded, posterior))
        assert_same_draws(one, other)
        assert all(torch.equal(value, before[name]) for name, value in weights_of(again.net).items())


class EndlessPosteriorContract(PosteriorContract):
    """Of posteriors that draw without end, one draw after another."""

    def test_fewer_draws_are_the_first_of_more(self, regressor: Posterior) -> None:
        few, many = (regressor.predict(NEW_X, num_samples=number, seed=3) for number in (3, 7))
        torch.testing.assert_close(few.component_means, many.component_means[:3], **FLOAT32)
