"""How a loader's items are read, and that every method counts the rows that it sees."""

import warnings
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler, TensorDataset, WeightedRandomSampler

import bayesuq as bq
from bayesuq.data import Batch, Dataset
from bayesuq.inference import confidence, hmc, laplace, map_estimate, temperature, variational
from bayesuq.inference.posteriors.program_reader import ProgramRows
from bayesuq.inference.training.minibatches import NetworkReader, Source, all_rows
from bayesuq.loaders import Loader, in_memory
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import NO_MODE
from tests.zoo import loaders as zoo
from tests.zoo.loaders import NUM_ROWS, ROWS, X, Y

CASES = zoo.cases()
# Where training never sees some rows, which only a complete pass has.
SAME_ROWS_DROPPED = {"in order, last batch dropped", "batch sampler", "a stream, last batch dropped"}
# Where each pass shows the same rows in the same batches.
SAME_ORDER = (
    "in order",
    "a shard",
    "own sampler",
    "own sampler that repeats",
    "own batches",
    "a stream",
    "a stream of batches",
)
INDEX = torch.arange(NUM_ROWS)


def line() -> BayesianNetwork:
    """One weight and a bias, whose posterior is exact in Laplace's approximation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = networks.mlp(1, (), 1).double()
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.3))


def places_of(x: Tensor) -> Tensor:
    """Which rows these are."""
    return ((x + 1) * (NUM_ROWS - 1) / 2).round().long().flatten()


def told(case: zoo.Case) -> Any:
    return nullcontext() if case.warns is None else pytest.warns(UserWarning, match=case.warns)


# Rows seen = rows counted


@pytest.mark.parametrize("name", CASES)
def test_a_complete_pass_holds_the_rows_that_are_counted(name: str) -> None:
    case = zoo.cases()[name]
    with told(case):
        source = Source(NetworkReader(line()), case.loader, 99)
        rows = all_rows(source)
    seen = torch.zeros(NUM_ROWS, dtype=torch.float64)
    weight = torch.ones(len(rows.y), dtype=torch.float64) if rows.weight is None else rows.weight
    seen.index_add_(0, places_of(rows.x), weight)
    torch.testing.assert_close(seen, case.counts, rtol=1e-12, atol=0)
    assert source.num_data == pytest.approx(float(case.counts.sum()), rel=1e-12)


@pytest.mark.parametrize("name", sorted(CASES.keys() - SAME_ROWS_DROPPED))
def test_training_shows_rows_as_often_as_a_complete_pass_counts_them(name: str) -> None:
    case = zoo.cases()[name]
    with told(case):
        source = Source(NetworkReader(line()), case.loader, 99)
        shown = torch.cat([batch.x for _ in range(25) for batch in source.epoch(None)])
    shares = torch.bincount(places_of(shown), minlength=NUM_ROWS) / len(shown)
    expected = case.counts / case.counts.sum()
    # Five standard errors of a share of draws with replacement; without, it varies less.
    assert ((shares - expected).abs() <= 5 * (expected * (1 - expected) / len(shown)).sqrt() + 1e-12).all()


@pytest.mark.parametrize("name", SAME_ORDER)
@pytest.mark.filterwarnings("ignore:The DataLoader's sampler shows", "ignore:The DistributedSampler repeats")
def test_rows_of_small_batches_count_as_others_where_the_order_stays(name: str) -> None:
    case = zoo.cases()[name]
    source = Source(NetworkReader(line()), case.loader, 99)
    counted, steps = torch.zeros(NUM_ROWS, dtype=torch.float64), 0
    for batch in source.epoch(None):
        weight = torch.ones(len(batch.y), dtype=torch.float64) if batch.weight is None else batch.weight
        counted.index_add_(0, places_of(batch.x), weight * source.num_data / len(batch.y))
        steps += 1
    torch.testing.assert_close(counted / steps, case.counts, rtol=1e-12, atol=0)


def test_a_mode_by_a_loader_in_order_is_that_of_all_rows() -> None:
    y = Y.clone()
    y[-1] = 5.0  # alone in its batch
    options: dict[str, Any] = {"num_epochs": 120, "learning_rate": 0.1, "seed": 0}
    found = map_estimate.fit(line(), DataLoader(TensorDataset(X, y), batch_size=22), **options)
    expected = map_estimate.fit(line(), Dataset(X, y), **options)
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0.02)


def test_programs_weigh_rows_of_small_batches_or_say_that_they_do_not() -> None:
    def heedless(x: Tensor, y: Tensor | None = None, num_data: int | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
            pyro.sample("y", dist.Normal(slope * x[:, 0], 1.0), obs=y)

    def heeding(x: Tensor, y: Tensor | None = None, num_data: int | None = None, weight: Tensor | None = None) -> None:
        with poutine.scale(scale=torch.ones(len(x)) if weight is None else weight):
            heedless(x, y, num_data)

    counted = []
    for batch in Source(ProgramRows(heeding, None, None), DataLoader(ROWS, batch_size=22), 99).epoch(None):
        assert batch.weight is not None
        counted.append(float(batch.weight[0]) / len(batch.y))
    assert counted == pytest.approx([2 / 23] * 2)
    source = Source(ProgramRows(heedless, None, None), DataLoader(ROWS, batch_size=22), 99)
    with pytest.warns(UserWarning, match="minibatches of unequal size, one of 22 where 11.5 are the mean"):
        assert all(batch.weight is None for batch in source.epoch(None))


class Shuffling(Sampler[int]):
    """All rows, in another order each time."""

    def __iter__(self):
        yield from torch.randperm(NUM_ROWS).tolist()


class ShuffledBuckets(Sampler[list[int]]):
    """Batches that stay, in another order each time."""

    def __iter__(self):
        parts = [places.tolist() for places in torch.arange(NUM_ROWS).split(5)]
        yield from (parts[place] for place in torch.randperm(len(parts)).tolist())


@pytest.mark.parametrize(
    "options",
    [{"sampler": Shuffling(), "batch_size": 5}, {"batch_sampler": ShuffledBuckets()}],
    ids=["sampler", "batch sampler"],
)
def test_samplers_of_ones_own_that_shuffle_are_refused_where_the_order_matters(options: dict[str, Any]) -> None:
    fitted = map_estimate.fit(line(), Dataset(X, Y), num_epochs=1, seed=0)
    with pytest.raises(ValueError, match="keeps the order of its rows; this one shuffles"):
        fitted.predict(DataLoader(ROWS, **options))
    backwards = DataLoader(ROWS, sampler=list(range(NUM_ROWS))[::-1], batch_size=5)  # type: ignore[arg-type]
    torch.testing.assert_close(fitted.predict(backwards).mean, fitted.predict(X.flip(0)).mean)


@pytest.mark.filterwarnings(NO_MODE)
@pytest.mark.parametrize("name", CASES)
def test_laplace_counts_each_row_as_often_as_its_loader_does(name: str) -> None:
    case, model = zoo.cases()[name], line()
    mode = map_estimate.fit(model, Dataset(X, Y), num_epochs=1, seed=0)
    with told(case):
        found = laplace.fit(model, case.loader, subset="all", mode=mode, structure="full", seed=0)
    expected = laplace.fit(model, Dataset(X, Y, case.counts), subset="all", mode=mode, structure="full", seed=0)
    assert found.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-12)
    for part, value in expected.curvature.items():
        torch.testing.assert_close(found.curvature[part], value, rtol=1e-12, atol=1e-12)


def test_chains_see_the_rows_that_the_loader_drops() -> None:
    dropping = DataLoader(ROWS, batch_size=20, shuffle=True, drop_last=True)
    options: dict[str, Any] = {"num_samples": 5, "num_warmup": 5, "num_chains": 1, "seed": 0, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few draws have not mixed
        one, other = hmc.fit(line(), dropping, **options), hmc.fit(line(), Dataset(X, Y), **options)
    assert torch.equal(one.predict(X).mean, other.predict(X).mean)


def test_validation_sees_the_rows_that_the_loader_drops() -> None:
    histories = [
        map_estimate.fit(line(), Dataset(X, Y), validation=validation, num_epochs=2, seed=0).history
        for validation in (Dataset(X, Y), DataLoader(ROWS, batch_size=20, drop_last=True))
    ]
    assert histories[0].validation_loss == pytest.approx(histories[1].validation_loss, rel=1e-12)


def test_prediction_sees_the_rows_that_the_loader_drops() -> None:
    fitted = map_estimate.fit(line(), Dataset(X, Y), num_epochs=1, seed=0)
    found = fitted.predict(DataLoader(ROWS, batch_size=20, drop_last=True)).mean
    torch.testing.assert_close(found, fitted.predict(X).mean)


def test_batches_that_hold_more_rows_than_the_data_set_are_told() -> None:
    def twice(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, y = (torch.stack(part) for part in zip(*rows, strict=True))
        return torch.cat([x, x]), torch.cat([y, y])

    with pytest.warns(UserWarning, match="gave 46 rows, where its data set and sampler say 23"):
        map_estimate.fit(line(), DataLoader(ROWS, batch_size=8, collate_fn=twice), num_epochs=1, seed=0)


def test_what_cannot_be_counted_is_refused_with_a_remedy() -> None:
    class Endless(Sampler[int]):
        def __iter__(self):
            while True:
                yield 0

    class Nameless(IterableDataset):
        def __iter__(self):
            yield from zip(X, Y, strict=True)

    unequal = WeightedRandomSampler(zoo.SKEWED + 1, num_samples=5, replacement=False)
    for loader, error, message in (
        (DataLoader(ROWS, batch_size=5, sampler=unequal), ValueError, "replacement=True"),
        (DataLoader(ROWS, batch_size=5, sampler=Endless()), ValueError, "does not end"),
        (DataLoader(Nameless(), batch_size=5), TypeError, "`__len__` that returns the number of its rows"),
        (DataLoader(ROWS, batch_size=24, drop_last=True), ValueError, "drop_last=True"),
    ):
        with pytest.raises(error, match=message):
            map_estimate.fit(line(), loader, num_epochs=1)


def test_the_loader_and_the_global_generator_are_left_alone() -> None:
    own = torch.Generator().manual_seed(3)
    loader = DataLoader(ROWS, batch_size=5, sampler=RandomSampler(ROWS, generator=own), drop_last=True)
    before = own.get_state(), torch.get_rng_state()
    assert Loader(loader).num_rows == NUM_ROWS
    assert torch.equal(own.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


# What an item holds


Pair = namedtuple("Pair", "x y")


@dataclass
class Weighted:
    x: Tensor
    y: Tensor
    weight: Tensor


WEIGHT = torch.linspace(0.0, 2.0, NUM_ROWS)
NAMED = {
    "a pair": lambda rows: rows[:2],
    "a mapping": lambda rows: {"x": rows[0], "y": rows[1], "weight": rows[2]},
    "a Batch": lambda rows: Batch(*rows),
    "a named tuple": lambda rows: Pair(*rows[:2]),
    "a dataclass": lambda rows: Weighted(*rows),
    "a Dataset": lambda rows: Dataset(*rows),
}


def collated(rows: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(part) for part in zip(*rows, strict=True))


@pytest.mark.parametrize("name", NAMED)
def test_parts_are_read_by_their_names(name: str) -> None:
    rows = DataLoader(TensorDataset(X, Y, WEIGHT), batch_size=8, collate_fn=lambda items: NAMED[name](collated(items)))
    whole = in_memory(rows, 0)
    assert torch.equal(whole.x, X)
    assert torch.equal(whole.y.flatten(), Y)
    if name in ("a pair", "a named tuple"):
        assert whole.weight is None
    else:
        assert torch.equal(whole.weight, WEIGHT)
    fitted = map_estimate.fit(line(), rows, num_epochs=1, seed=0)
    torch.testing.assert_close(fitted.predict(rows).mean, fitted.predict(X).mean)


@pytest.mark.parametrize("third", [INDEX, WEIGHT, X], ids=["index", "weight", "second input"])
def test_a_bare_third_element_is_never_a_weight(third: Tensor) -> None:
    loader = DataLoader(TensorDataset(X, Y, third), batch_size=8)
    fitted = map_estimate.fit(line(), Dataset(X, Y), num_epochs=1, seed=0)
    looks = "looks like an index" if third is INDEX else "never taken for a weight"
    for use in (
        lambda: map_estimate.fit(line(), loader, num_epochs=1),
        lambda: map_estimate.fit(line(), Dataset(X, Y), validation=loader, num_epochs=1),
        lambda: variational.fit(line(), loader, num_epochs=1),
        lambda: laplace.fit(line(), loader, num_epochs=1),
        lambda: hmc.fit(line(), loader, num_samples=2, num_warmup=2),
        lambda: in_memory(loader, 0),  # temperature, confidence, quantile calibration
        lambda: fitted.predict(loader),
    ):
        with pytest.raises(TypeError, match=looks) as caught:
            use()
        assert "bayesuq.Loader(loader, batch=lambda item: bayesuq.Batch(x=item[0], y=item[1]))" in str(caught.value)
    # The remedy, as the message has it.
    remedy = bq.Loader(loader, batch=lambda item: bq.Batch(x=item[0], y=item[1]))
    plain = map_estimate.fit(line(), DataLoader(ROWS, batch_size=8), num_epochs=2, seed=0)
    mended = map_estimate.fit(line(), remedy, num_epochs=2, seed=0)
    assert torch.equal(mended.values, plain.values)
    assert torch.equal(fitted.predict(remedy).mean, fitted.predict(X).mean)


def test_a_function_reads_batches_wherever_a_loader_is_taken() -> None:
    labels = (Y > 0).long()
    keyed = [{"image": x, "label": y, "name": str(n)} for n, (x, y) in enumerate(zip(X, labels, strict=True))]
    loader = bq.Loader(DataLoader(keyed, batch_size=8), batch=lambda item: bq.Batch(item["image"], item["label"]))
    with torch.random.fork_rng(devices=[]):
        net = networks.mlp(1, (4,), 2)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    fitted = map_estimate.fit(model, loader, validation=loader, num_epochs=60, learning_rate=0.03, seed=0)
    known = Dataset(X, labels)
    assert temperature.fit(fitted, loader, seed=0).slopes == temperature.fit(fitted, known, seed=0).slopes
    sure = confidence.fit(fitted, loader, hidden=(3,), num_epochs=1, num_fine_tuning_epochs=1, seed=0)
    torch.testing.assert_close(sure.confidence(loader), sure.confidence(X))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"x": X[0], "label": Y[0]}], "has the parts x, label; only x, y and weight"),
        ([{"x": X[0], "y": Y[0], "weights": Y[0]}], "has the parts x, y, weights; only"),
        ([X[0]], "must give batches"),
    ],
    ids=["other names", "a name too many", "inputs"],
)
def test_parts_of_other_names_are_refused(items: list[Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        in_memory(DataLoader(items), 0)


def test_a_function_must_return_a_batch() -> None:
    with pytest.raises(TypeError, match=r"must return a bayesuq\.Batch"):
        in_memory(Loader(DataLoader(ROWS), batch=tuple), 0)


# What is no data


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ((X, Y), r"pass bayesuq\.Dataset\(x, y\)"),
        (X, r"pass bayesuq\.Dataset\(x, y\), with their targets"),
        (X.numpy(), r"pass bayesuq\.Dataset\(x, y\), with their targets"),
        (ROWS, r"pass a torch\.utils\.data\.DataLoader"),
    ],
    ids=["a pair", "inputs", "an array", "a torch data set"],
)
def test_what_is_no_data_is_refused_with_the_way_to_make_it_so(data: Any, remedy: str) -> None:
    for use in (lambda: map_estimate.fit(line(), data), lambda: in_memory(data, 0)):
        with pytest.raises(TypeError, match=remedy):
            use()
