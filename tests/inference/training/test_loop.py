"""The minibatch loop: what it feeds, how it steps, which weights it keeps, what it tells and when it gives up."""

import dataclasses
import math
import sys
import warnings
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from bayesuq.data import Batch, Dataset
from bayesuq.inference import dropout, map_estimate, variational
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.training.options import Progress, Training
from bayesuq.loaders import Loader
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import generator
from tests.inference.examples import SHORT_FIT, built, labelled, measured, recorded_steps

METHODS = {"map_estimate": map_estimate.fit, "variational": variational.fit, "dropout": dropout.fit}


def line(slope: float = 1.0, num_points: int = 40) -> Dataset:
    x = torch.linspace(-1, 1, num_points, dtype=torch.float64)[:, None]
    return Dataset(x, slope * x[:, 0])


@cache
def linear_model(**options) -> BayesianNetwork:
    """y = w x with w at 0, and a prior so wide that it does not act."""
    net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(net.weight)
    return BayesianNetwork(net, priors.Normal(scale=1e3), likelihoods.Normal(scale=0.1), **options)


@cache
def mlp_model(num_outputs: int = 1, likelihood=None, **options) -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (6,), num_outputs, activation="tanh", **options).double())
    likelihood = likelihoods.Normal(scale=0.2) if likelihood is None else likelihood
    return BayesianNetwork(net, priors.Normal(), likelihood)


def fit(model: BayesianNetwork, data, **options):
    return map_estimate.fit(
        model, data, **{"num_epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "seed": 0, **options}
    )


# The minibatches of an epoch


@pytest.mark.parametrize("num_points", [1, 7, 40, 129, 1000])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 128, 5000])
def test_every_row_comes_once_an_epoch_in_batches_equal_to_within_one(num_points, batch_size):
    data = Dataset(torch.arange(float(num_points)).reshape(-1, 1), -torch.arange(float(num_points)))
    source = Source(NetworkReader(linear_model()), data, batch_size)
    batches = list(source.epoch(generator(0)))
    sizes = [len(batch.x) for batch in batches]
    assert len(batches) == source.num_batches == math.ceil(num_points / batch_size)
    assert max(sizes) <= batch_size
    assert sizes == sorted(sizes, reverse=True)  # as for every file of before
    assert max(sizes) - min(sizes) <= 1
    x = torch.cat([batch.x for batch in batches]).flatten()
    assert torch.equal(x.sort().values, torch.arange(num_points, dtype=torch.float64))
    assert torch.equal(torch.cat([batch.y for batch in batches]).flatten(), -x)


def test_each_epoch_has_an_order_of_its_own_and_a_seed_repeats_them():
    source = Source(NetworkReader(linear_model()), line(), 8)

    def orders(seed):
        shuffle = generator(seed)
        return [torch.cat([batch.x for batch in source.epoch(shuffle)]).flatten().tolist() for _ in range(3)]

    assert orders(0) == orders(0)
    assert len({tuple(order) for order in orders(0) + orders(1)}) == 6


def test_without_noise_rows_come_in_order():
    data = line()
    x = torch.cat([batch.x for batch in Source(NetworkReader(linear_model()), data, 7).epoch(None)])
    assert torch.equal(x, data.x)


def test_weights_travel_with_their_rows():
    data = Dataset(torch.arange(90.0).reshape(-1, 1), torch.arange(90.0), weight=torch.arange(90.0))
    for batch in Source(NetworkReader(linear_model()), data, 8).epoch(generator(0)):
        assert torch.equal(batch.weight, batch.x.flatten())
    loader = DataLoader(TensorDataset(data.x, data.y, data.weight), batch_size=8, shuffle=True)
    loader = Loader(loader, batch=lambda item: Batch(*item))
    for batch in Source(NetworkReader(linear_model()), loader, 99).epoch(generator(0)):
        assert torch.equal(batch.weight, batch.x.flatten())


def test_a_loader_keeps_its_own_batches():
    data = line()
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=16)
    source = Source(NetworkReader(linear_model()), loader, 99)
    assert (source.num_batches, source.num_data) == (3, 40)
    assert [len(batch.x) for batch in source.epoch(generator(0))] == [16, 16, 8]


def test_the_data_of_a_loader_are_the_rows_that_it_visits():
    data = line()
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=16, sampler=SubsetRandomSampler(range(10)))
    assert Source(NetworkReader(linear_model()), loader, 99).num_data == 10


def test_an_error_of_shape_tells_the_shape_that_came():
    with pytest.raises(ValueError, match=r"must have shape \(40, 1\).* got \(40, 2\)"):
        Source(NetworkReader(linear_model()), Dataset(line().x, line().y.expand(40, 2)), 99)


def test_a_loader_of_unknown_length_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from zip(line().x, line().y, strict=True)

    with pytest.raises(TypeError, match="must have a length"):
        fit(linear_model(), DataLoader(Stream(), batch_size=4))


# The gradient of a minibatch


@pytest.mark.parametrize("form", ["dataset", "loader", "loader of 16, 16 and 8 rows"])
def test_minibatches_estimate_the_whole_without_bias(form):
    data = measured(40)
    size = 16 if form.endswith("rows") else 8
    batched = data if form == "dataset" else DataLoader(TensorDataset(data.x, data.y), batch_size=size)
    with recorded_steps() as steps:
        fit(mlp_model(), batched, num_epochs=1, learning_rate=1e-12)
    with recorded_steps() as whole:
        fit(mlp_model(), data, num_epochs=1, batch_size=40, learning_rate=1e-12)
    assert (len(steps), len(whole)) == (-(-40 // size), 1)
    # A rate of 1e-12 leaves the weights in place, up to some 1e-10 in the gradient.
    mean = torch.stack([step["gradients"][0] for step in steps]).mean(dim=0)
    torch.testing.assert_close(mean, whole[0]["gradients"][0], rtol=1e-7, atol=1e-7)


def test_a_short_last_batch_of_a_loader_that_shuffles_counts_as_much_as_the_others():
    data = Dataset(torch.ones(40, 1, dtype=torch.float64), torch.ones(40))
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=16, shuffle=True)
    with recorded_steps() as steps:
        fit(linear_model(), loader, num_epochs=1, learning_rate=1e-12)
    for step in steps:
        # N mean of d/dw (y - w x)^2 / (2 noise^2) at w = 0
        assert float(step["gradients"][0]) == pytest.approx(-40 / 0.1**2, rel=1e-6)


@pytest.mark.parametrize("bound", [1e-3, 1.0])
def test_max_grad_norm_bounds_the_gradient_per_data_point_and_keeps_its_direction(bound):
    with recorded_steps() as free:
        fit(mlp_model(), measured(40), num_epochs=1, learning_rate=1e-12)
    with recorded_steps() as clipped:
        fit(mlp_model(), measured(40), num_epochs=1, learning_rate=1e-12, max_grad_norm=bound)
    for one, other in zip(free, clipped, strict=True):
        gradient = one["gradients"][0]
        assert gradient.norm() > 40 * bound
        torch.testing.assert_close(other["gradients"][0], 40 * bound * gradient / gradient.norm(), rtol=1e-5, atol=1e-9)


def test_a_max_grad_norm_above_all_norms_changes_nothing():
    fits = [fit(mlp_model(), measured(40), max_grad_norm=bound) for bound in (None, 1e9)]
    assert torch.equal(fits[0].values, fits[1].values)


# The learning rate


def test_the_cosine_schedule_falls_from_the_rate_to_almost_nothing():
    with recorded_steps() as steps:
        fit(linear_model(), line(), num_epochs=10, batch_size=8, learning_rate=0.02, schedule="cosine")
    expected = [0.01 * (1 + math.cos(math.pi * step / 50)) for step in range(50)]
    assert [step["rates"][0] for step in steps] == pytest.approx(expected, rel=1e-12)
    assert expected[-1] < 0.001 * 0.02


def test_the_constant_schedule_does_not_fall():
    with recorded_steps() as steps:
        fit(linear_model(), line(), learning_rate=0.02, schedule="constant")
    assert {step["rates"][0] for step in steps} == {0.02}


# What it keeps


@pytest.mark.parametrize("batch_norm", [False, True])
def test_validation_keeps_the_weights_and_the_statistics_of_the_best_epoch(batch_norm):
    train, held_out = measured(24, seed=0), measured(40, seed=50)
    posterior = fit(
        mlp_model(batch_norm=batch_norm),
        train,
        num_epochs=60,
        learning_rate=0.05,
        validation=held_out,
        schedule="constant",
    )
    history = posterior.history
    assert len(history.loss) == len(history.validation_loss) == 60
    assert history.best_epoch == min(range(60), key=history.validation_loss.__getitem__)
    assert history.validation_loss[-1] > min(history.validation_loss) + 0.1
    score = -posterior.predict(held_out.x).log_prob(held_out.y).mean()
    assert float(score) == pytest.approx(min(history.validation_loss), rel=1e-9)


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("method", METHODS)
def test_statistics_are_those_of_the_epoch_kept(method):
    posterior = METHODS[method](
        mlp_model(batch_norm=True, dropout=0.1),
        measured(24, seed=0),
        num_epochs=40,
        batch_size=8,
        learning_rate=0.05,
        validation=measured(40, seed=50),
        seed=0,
    )
    assert posterior.history.best_epoch < 39
    assert int(posterior.buffers["2.num_batches_tracked"]) == 3 * (posterior.history.best_epoch + 1)


def test_without_validation_the_last_epoch_is_kept():
    history = fit(linear_model(), line(), num_epochs=4).history
    assert history.best_epoch == 3
    assert history.validation_loss == ()


def test_patience_stops_after_epochs_without_a_better_one():
    # w climbs from 0 towards 1 by some 0.05 an epoch, and passes the held-out slope of 0.3 on the way.
    options = {
        "num_epochs": 60,
        "batch_size": 40,
        "learning_rate": 0.05,
        "schedule": "constant",
        "validation": line(0.3),
    }
    whole, stopped = (fit(linear_model(), line(), patience=patience, **options) for patience in (None, 4))
    assert len(whole.history.loss) == 60
    assert 3 < stopped.history.best_epoch < 10
    assert len(stopped.history.loss) == stopped.history.best_epoch + 5
    assert torch.equal(stopped.values, whole.values)
    assert float(stopped.values) == pytest.approx(0.3, abs=0.06)


def test_a_better_epoch_within_the_patience_goes_on():
    history = fit(linear_model(), line(), num_epochs=20, learning_rate=1e-3, validation=line(), patience=1).history
    assert len(history.loss) == 20


@pytest.mark.parametrize("method", ["map_estimate", "variational"])
@pytest.mark.filterwarnings(*SHORT_FIT)
def test_validation_may_come_from_a_loader(method):
    data = labelled(40, seed=5)
    losses = [
        METHODS[method](
            mlp_model(3, likelihoods.Categorical()),
            labelled(40),
            num_epochs=3,
            batch_size=8,
            learning_rate=1e-2,
            validation=validation,
            seed=0,
        ).history.validation_loss
        for validation in (data, DataLoader(TensorDataset(data.x, data.y), batch_size=8))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


# What it tells


def test_callbacks_get_the_numbers_of_every_epoch():
    told: list[Progress] = []
    posterior = fit(linear_model(), line(), num_epochs=4, batch_size=16, validation=line(), callbacks=[told.append])
    assert [progress.epoch for progress in told] == [0, 1, 2, 3]
    assert [progress.step for progress in told] == [3, 6, 9, 12]
    assert tuple(progress.loss for progress in told) == posterior.history.loss
    assert tuple(progress.validation_loss for progress in told) == posterior.history.validation_loss
    seconds = [progress.seconds for progress in told]
    assert 0 < seconds[0] <= seconds[1] <= seconds[2] <= seconds[3] < 60


def test_callbacks_get_no_validation_loss_where_there_is_none():
    told: list[Progress] = []
    fit(linear_model(), line(), callbacks=[told.append])
    assert [progress.validation_loss for progress in told] == [None] * 3


def test_the_loss_told_is_minus_the_log_joint_per_data_point():
    model, data = mlp_model(), measured(40)
    history = fit(model, data, num_epochs=1, batch_size=40, learning_rate=1e-12).history
    expected = -model.log_joint(model.initial(), data.x, data.y) / 40
    assert history.loss[0] == pytest.approx(float(expected), rel=1e-9)


def test_what_a_callback_raises_ends_the_fit_which_leaves_the_global_generator_alone():
    def stop(_progress: Progress) -> None:
        raise KeyboardInterrupt

    model, before = linear_model(), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        fit(model, line(), callbacks=[stop])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("progress", "terminal", "shown"),
    [(None, False, False), (None, True, True), (True, False, True), (False, True, False)],
)
def test_a_bar_shows_on_a_terminal_only_unless_asked_for(progress, terminal, shown, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    fit(linear_model(), line(), progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("epoch" in captured.err) == shown
    assert bool(captured.err) == shown


# When it gives up


class Root(nn.Module):
    """f = (w + sqrt(0 v^2)) x, finite, with a gradient of v that is NaN."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return (self.w + (0 * self.v**2).sqrt()) * x


@pytest.mark.parametrize("method", ["map_estimate", "variational"])
@pytest.mark.parametrize(
    ("prior", "likelihood", "rate", "step"),
    [
        (priors.Normal(), likelihoods.Categorical(), 1e30, 1),
        (priors.StudentT(), likelihoods.Categorical(), 1e30, 1),
        (priors.Normal(), likelihoods.Normal(), 1e30, 1),
        (priors.Laplace(), likelihoods.Categorical(), 1e38, 0),  # the weights themselves overflow
    ],
    ids=str,
)
def test_a_loss_that_overflows_is_raised_with_its_step_and_sites(method, prior, likelihood, rate, step):
    data = labelled(20) if isinstance(likelihood, likelihoods.Categorical) else measured(20)
    model = BayesianNetwork(nn.Linear(3, 3 if data.is_labelled else 1), prior, likelihood)
    with pytest.raises(
        FloatingPointError, match=rf"step {step} \(epoch {step}\)\. The terms of weight, bias.* are not finite"
    ):
        METHODS[method](model, data, num_epochs=5, batch_size=20, learning_rate=rate, seed=0)


@pytest.mark.parametrize("method", ["map_estimate", "variational"])
@pytest.mark.parametrize("prior", [priors.Normal(), priors.StudentT(), priors.Laplace()], ids=str)
@pytest.mark.parametrize("num_epochs", [1, 3])
def test_a_gradient_that_is_not_a_number_is_raised_with_the_site_it_spoils(method, prior, num_epochs):
    model = BayesianNetwork(Root(), prior, likelihoods.Normal(scale=0.1))
    with pytest.raises(FloatingPointError, match=r"The terms of v, y are not finite"):
        METHODS[method](model, line(), num_epochs=num_epochs, batch_size=40, learning_rate=0.1, seed=0)


@pytest.mark.filterwarnings("ignore:.*far from unit size")
def test_inputs_that_overflow_inside_the_network_are_raised_at_the_first_step():
    data = Dataset(torch.full((10, 1), 1e30), torch.zeros(10))
    model = BayesianNetwork(nn.Linear(1, 1), priors.Normal(), likelihoods.Normal(scale=0.1))
    with pytest.raises(FloatingPointError, match=r"step 0 \(epoch 0\)\. The terms of y are"):
        fit(model, data)


# Weights of rows and classes


@pytest.mark.parametrize("method", ["map_estimate", "variational"])
@pytest.mark.filterwarnings(*SHORT_FIT)
def test_a_row_of_weight_zero_is_absent_and_one_of_weight_two_is_there_twice(method):
    data = measured(20)
    weight = torch.ones(20)
    weight[:5], weight[5:8] = 0, 2
    weighted = Dataset(data.x, data.y, weight)
    repeated = data.rows(torch.cat([torch.arange(5, 20), torch.arange(5, 8)]))
    ends = []
    for rows in (weighted, repeated):
        posterior = METHODS[method](mlp_model(), rows, num_epochs=50, batch_size=100, learning_rate=1e-2, seed=0)
        ends.append(posterior.sample_weights(2, seed=0))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-7, atol=1e-9)


def test_class_weights_are_weights_of_the_rows_of_that_class():
    data = labelled(30)
    shares = torch.tensor([0.0, 1.0, 3.0])
    by_class = mlp_model(3, likelihoods.Categorical(class_weights=(0.0, 1.0, 3.0)))
    by_row = mlp_model(3, likelihoods.Categorical())
    one = fit(by_class, data, num_epochs=50, batch_size=100)
    other = fit(by_row, Dataset(data.x, data.y, shares[data.y]), num_epochs=50, batch_size=100)
    torch.testing.assert_close(one.values, other.values, rtol=1e-7, atol=1e-9)
    unweighted = fit(by_row, data, num_epochs=50, batch_size=100)
    assert (one.values - unweighted.values).abs().max() > 0.1


# What the best epoch keeps, and what the optimiser is


def quadratic(optimizer, **options) -> tuple[Objective, Tensor]:
    """Half the squared distance of a leaf from 1; validated by its closeness to 0.5, which it passes."""
    leaf = torch.zeros(1, dtype=torch.float64)

    def loss_and_grads(_batch, _noise) -> Tensor:
        leaf.grad = leaf - 1
        return ((leaf - 1) ** 2).sum() / 2

    def log_predictive(batch, _noise) -> Tensor:
        return -((leaf - 0.5) ** 2).expand(len(batch.x))

    objective = Objective(
        {"x": leaf}, loss_and_grads, log_predictive, lambda *_: [], "test", optimizer=optimizer, **options
    )
    return objective, leaf


@pytest.mark.parametrize("resumed", [False, True])
def test_the_best_epoch_keeps_the_optimisers_state_that_it_names(resumed, tmp_path):
    made: list[torch.optim.Optimizer] = []

    def optimizer(objective: Objective, rate: float) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(objective.leaves.values(), rate, momentum=0.9))
        return made[-1]

    seen: dict[int, tuple[float, float]] = {}

    def note(progress) -> None:
        seen[progress.epoch] = float(leaf), float(made[-1].state[leaf]["momentum_buffer"])
        if resumed and progress.epoch == 15 and len(made) == 1:
            raise KeyboardInterrupt

    state = tmp_path / "state" if resumed else None
    training = Training(20, 40, 0.05, seed=0, schedule="constant", progress=False, callbacks=[note], checkpoint=state)
    source = Source(NetworkReader(linear_model()), line(), 40)
    while True:
        objective, leaf = quadratic(optimizer, optimizer_state=("momentum_buffer",), comes_to_rest=False)
        try:
            history = minimise(objective, source, source, training)
            break
        except KeyboardInterrupt:
            continue
    assert history.best_epoch < 12
    assert len(made) == 1 + resumed
    assert (float(leaf), float(made[-1].state[leaf]["momentum_buffer"])) == seen[history.best_epoch]


@pytest.mark.parametrize("nowhere", [math.nan, -math.inf])
@pytest.mark.parametrize("beginning", [0, 3, 12])
def test_epochs_whose_validation_loss_is_not_finite_are_chosen_by_none_and_told_where_all_are(beginning, nowhere):
    epochs, places = iter(range(12)), []

    def log_predictive(batch, _noise) -> Tensor:
        epoch = next(epochs)
        places.append(float(leaf))
        return torch.full((len(batch.x),), nowhere if epoch < beginning else -float(epoch), dtype=torch.float64)

    objective, leaf = quadratic(None)
    objective = dataclasses.replace(objective, log_predictive=log_predictive, comes_to_rest=False)
    training = Training(12, 40, 0.05, seed=0, schedule="constant", progress=False)
    source = Source(NetworkReader(linear_model()), line(), 40)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        history = minimise(objective, source, source, training)
    assert history.best_epoch == min(beginning, 11)
    assert float(leaf) == places[history.best_epoch]
    assert [("not finite after any epoch" in str(one.message)) for one in told] == [True] * (beginning == 12)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_an_optimiser_that_knows_no_initial_rate_is_scheduled_too(schedule):
    made: list[torch.optim.Optimizer] = []
    rates: list[float] = []

    def optimizer(objective: Objective, rate: float) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(objective.leaves.values(), rate))
        return made[-1]

    objective, _ = quadratic(optimizer, comes_to_rest=False)
    note = lambda _: rates.append(made[0].param_groups[0]["lr"])  # noqa: E731
    training = Training(4, 40, 0.1, seed=0, schedule=schedule, progress=False, callbacks=[note])
    minimise(objective, Source(NetworkReader(linear_model()), line(), 40), None, training)
    expected = [0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)] if schedule == "cosine" else [0.1] * 4
    assert rates == pytest.approx(expected)
