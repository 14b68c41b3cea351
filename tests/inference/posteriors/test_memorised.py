"""Rows that a network memorised: what it would say of each left out, against fits without them; who is told."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.inference import dropout, ensemble, laplace, map_estimate, swag
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.posteriors import memorised
from bayesuq.inference.posteriors.memorised import Mode, left_out_outputs
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from tests.inference.examples import noise

WIDTH = 12


def model(hidden: tuple[int, ...] = (40, 40), prior: Any = None, likelihood: Any = None) -> BayesianNetwork:
    net = networks.mlp(WIDTH, hidden, 1, seed=0).double()
    return BayesianNetwork(net, prior or priors.Normal(), likelihood or likelihoods.Normal(scale="learned"))


def rows(number: int) -> Dataset:
    """y has a standard deviation of about one, of which noise has as much as the signal."""
    x = noise(0, number, WIDTH)
    return Dataset(x, 0.7 * x[:, 0] + 0.7 * noise(1, number))


def coverage_of(fitted: Any, data: Dataset, **options: bool) -> float | None:
    mode = Mode.of(fitted, Source(NetworkReader(fitted.model), data, len(data)), **options)
    return None if mode is None else mode.left_out_coverage()


def test_of_a_linear_network_it_is_what_fits_without_each_row_hold() -> None:
    """Ridge regression in closed form, with each of the rows left out, under the noise that stands in the mode."""
    data, scale = Dataset(noise(0, 10, WIDTH), noise(1, 10)), 0.1
    mode = MapPosterior.of(model((), likelihood=likelihoods.Normal(scale="learned", initial_scale=scale)))
    inputs, y = torch.cat([data.x, torch.ones(10, 1)], dim=1), data.y.reshape(-1)
    held = []
    for out in range(10):
        kept = torch.arange(10) != out
        precision = inputs[kept].T @ inputs[kept] / scale**2 + torch.eye(WIDTH + 1)
        weights = torch.linalg.solve(precision, inputs[kept].T @ y[kept] / scale**2)
        held.append(bool((y[out] - inputs[out] @ weights).abs() < 1.6449 * scale))
    assert 0 < sum(held) < 10
    assert coverage_of(mode, data) == sum(held) / 10


def test_outputs_of_rows_left_out_are_those_of_the_quadratic_fit_to_the_others() -> None:
    """A mean and a log variance: the weights that minimise the quadratic of all rows but one, by their own solve."""
    likelihood, num_rows, size = likelihoods.HeteroscedasticNormal(), 6, 20
    f, y, mode = noise(0, num_rows, 2), noise(1, num_rows, 1), noise(2, size)
    derivatives = noise(3, num_rows, 2, size)
    at = f.clone().requires_grad_()
    (score,) = torch.autograd.grad(likelihood.log_prob(at, y).sum(), at)
    information = likelihood.fisher_root(f) @ likelihood.fisher_root(f).mT
    found = left_out_outputs(likelihood, f, y, derivatives, derivatives @ mode)
    for out in range(num_rows):
        kept = torch.arange(num_rows) != out
        curvature = torch.einsum("nkr,nkl,nls->rs", derivatives[kept], information[kept], derivatives[kept])
        slope = torch.einsum("nkr,nk->r", derivatives[kept], score[kept]) - mode
        step = torch.linalg.solve(curvature + torch.eye(size), slope)
        torch.testing.assert_close(found[out], f[out] + derivatives[out] @ step)


def masked(rate: float, hidden: tuple[int, ...] = (40, 40), prior: Any = None) -> BayesianNetwork:
    net = networks.mlp(WIDTH, hidden, 1, dropout=rate, seed=0).double()
    return BayesianNetwork(net, prior or priors.Normal(), likelihoods.Normal(scale="learned", initial_scale=0.3))


def test_masks_of_one_linear_layer_hold_its_weights_as_ridge_regression_under_them_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Inputs dropped at a half: their curvature has x^2 more on its diagonal, and the bias nothing.

    Of values that are 0 or 2 x the variance by M masks is off by 1 / M of itself at most, but for their share of ones.
    """
    monkeypatch.setattr(memorised, "NUM_MASKS", 40)
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 1)).double()
    built = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale="learned", initial_scale=0.3))
    data = Dataset(noise(0, 10, WIDTH), noise(1, 10))
    mode = Mode.of(MapPosterior.of(built), Source(NetworkReader(built), data, 10))
    assert mode is not None
    (f, features, moved), (outputs, derivatives) = mode.linear(), mode._derivatives()
    mean = derivatives.mean(0)
    precision = (mean / features).square().median(dim=0).values[0]
    expected = 1 + torch.cat([data.x.square().sum(0), torch.zeros(1)]) / 0.3**2
    torch.testing.assert_close(precision, expected, rtol=0.1, atol=0.0)
    y = data.y.double()
    slope = torch.einsum("mnkr,mnk->r", derivatives, y - outputs) / 40 / 0.3**2 - mode.layout.join(mode.theta)
    curvature = torch.einsum("nkr,nks->rs", mean, mean) / 0.3**2 + precision.diag()
    for out in range(10):  # the step of the whole objective, and then without the row, whose masks stay
        kept = curvature - torch.outer(mean[out, 0], mean[out, 0]) / 0.3**2
        own = mean[out, 0] * (y[out] - f[out]) / 0.3**2
        step = torch.linalg.solve(kept, slope - own)
        found = left_out_outputs(mode.likelihood, f, mode.y, features, moved)[out]
        torch.testing.assert_close(found, f[out] + mean[out] @ step)


def test_rows_that_are_there_twice_raise_nothing() -> None:
    data = rows(6).rows([0, 1, 2, 3, 4, 5] * 2)
    likelihood = likelihoods.Normal(scale="learned", initial_scale=1e-12)
    assert coverage_of(MapPosterior.of(model(likelihood=likelihood)), data) in (None, 0.0)


def test_one_row_raises_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert coverage_of(MapPosterior.of(model()), rows(1)) is None


def told(fit: Callable[..., Any], built: BayesianNetwork, data: Dataset, **options: Any) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(built, data, num_epochs=300, batch_size=60, learning_rate=1e-2, seed=0, progress=False, **options)
    return any("memorise" in str(one.message) for one in caught)


@pytest.mark.parametrize("fit", [map_estimate.fit, ensemble.fit, laplace.fit, swag.fit])
def test_a_noise_that_was_memorised_is_told(fit: Callable[..., Any]) -> None:
    options = {"num_members": 2} if fit is ensemble.fit else {}
    assert told(fit, model(), rows(60), **options)


@pytest.mark.parametrize("fit", [dropout.fit, map_estimate.fit])
def test_a_noise_that_was_memorised_under_masks_is_told(fit: Callable[..., Any]) -> None:
    assert told(fit, masked(0.05), rows(60))


def test_where_masks_leave_little_to_memorise_rows_left_out_are_nearly_as_often_held_as_new_ones() -> None:
    x = noise(0, 460, WIDTH)
    data = Dataset(x, x[:, 0].abs() + 0.1 * noise(5, 460))
    known, new = data.rows(range(200)), data.rows(range(200, 460))
    options: dict[str, Any] = {"num_epochs": 300, "batch_size": 200, "learning_rate": 1e-2, "seed": 0}
    fitted = dropout.fit(masked(0.1, (40,)), known, progress=False, **options)
    lower, upper = fitted.predict(new.x, num_samples=50, seed=0, keep_samples=True).interval(0.9)
    mode = MapPosterior(model=fitted.model, values=fitted.values, buffers=fitted.buffers, history=fitted.history)
    found = coverage_of(mode, known, keeps_masks=True)
    assert found is not None
    assert 0.6 < found < float(((lower <= new.y) & (new.y <= upper)).double().mean()) < 0.95


def test_of_several_columns_the_one_that_was_memorised_is_told() -> None:
    """The second has noise alone, the first next to none; and one column has the coverage that it has by itself."""
    data = rows(60)
    both = Dataset(data.x, torch.cat([data.x[:, :1], data.y], dim=1))
    scales = likelihoods.Normal(scale="learned", initial_scale=(0.2, 0.2))
    wide = BayesianNetwork(networks.mlp(WIDTH, (40, 40), 2, seed=0).double(), priors.Normal(), scales)
    assert told(map_estimate.fit, wide, both)


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (likelihoods.StudentT(), 1),
        (likelihoods.Laplace(scale="learned"), 1),
        (likelihoods.HeteroscedasticNormal(), 2),
    ],
    ids=lambda one: type(one).__name__,
)
def test_any_noise_that_was_memorised_is_told(likelihood: likelihoods.Likelihood, outputs: int) -> None:
    net = networks.mlp(WIDTH, (40, 40), outputs, seed=0).double()
    assert told(map_estimate.fit, BayesianNetwork(net, priors.Normal(), likelihood), rows(60))


def labels(number: int, share_turned: float) -> Dataset:
    """The sign of the first input, a share of them turned."""
    x = noise(0, number, WIDTH)
    turned = torch.arange(number) < share_turned * number
    return Dataset(x, ((x[:, 0] > 0) ^ turned).long())


@pytest.mark.parametrize("outputs", [1, 2])
def test_labels_of_noise_that_were_memorised_are_told(outputs: int) -> None:
    """Half of the labels are turned, so that nothing can be learned; then none, beside wide and rising inputs."""
    likelihood = likelihoods.Bernoulli() if outputs == 1 else likelihoods.Categorical()

    def built() -> BayesianNetwork:
        return BayesianNetwork(networks.mlp(WIDTH, (40, 40), outputs, seed=0).double(), priors.Normal(), likelihood)

    assert told(map_estimate.fit, built(), labels(100, 0.5))
    assert not told(map_estimate.fit, built(), labels(100, 0.0))


def test_losses_of_labels_left_out_are_those_of_fits_without_them() -> None:
    """A linear network, whose joint is convex: 12 fits without each row by Newton's method, against one formula."""
    data = labels(12, 0.3)
    model = BayesianNetwork(networks.mlp(WIDTH, (), 1).double(), priors.Normal(scale=0.5), likelihoods.Bernoulli())
    inputs, y = torch.cat([data.x, torch.ones(12, 1)], dim=1), data.y.double()

    def fitted(kept: Tensor) -> Tensor:
        weights = torch.zeros(WIDTH + 1, dtype=torch.float64)
        for _ in range(30):
            p = (inputs @ weights).sigmoid()
            slope = inputs.T @ (kept * (y - p)) - weights / 0.25
            weights = weights + torch.linalg.solve(
                inputs.T @ (inputs * (kept * p * (1 - p))[:, None]) + torch.eye(WIDTH + 1) / 0.25, slope
            )
        return weights

    weights = fitted(torch.ones(12))
    values = Layout.of(model).join({"1.weight": weights[None, :-1], "1.bias": weights[-1:]})
    mode = Mode.of(replace(MapPosterior.of(model), values=values), Source(NetworkReader(model), data, 12))
    assert mode is not None
    expected = [float(inputs[out] @ fitted((torch.arange(12) != out).double())) for out in range(12)]
    f, features, moved = mode.linear()
    found = left_out_outputs(mode.likelihood, f, mode.y, features, moved)
    torch.testing.assert_close(found[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=0.2, atol=0.1)


def test_what_is_not_memorised_or_cannot_be_seen_is_not_told() -> None:
    data = rows(60)
    weighted = Dataset(data.x, data.y, torch.linspace(0.5, 1.5, 60))
    assert not told(map_estimate.fit, model(()), data)
    assert not told(map_estimate.fit, model(likelihood=likelihoods.Normal(scale=0.7)), data)
    assert not told(map_estimate.fit, model(), data, validation=rows(61))
    assert not told(map_estimate.fit, model(), weighted)
    assert not told(map_estimate.fit, model(prior=priors.Normal(scale=0.05)), data)


def test_held_out_rows_mend_what_is_told() -> None:
    data, new = rows(60), rows(200).rows(list(range(60, 200)))
    options: dict[str, Any] = {"num_epochs": 300, "batch_size": 60, "learning_rate": 1e-2, "seed": 0, "progress": False}
    alone = map_estimate.fit(model(), data, **options).predict(new.x).log_prob(new.y).mean()
    watched = map_estimate.fit(model(), data, validation=new, **options).predict(new.x).log_prob(new.y).mean()
    assert watched > alone + 10.0
