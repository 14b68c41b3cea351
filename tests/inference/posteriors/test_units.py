"""A posterior with its units, around that of every class: raw inputs in, units of y out, through one file."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import bayesuq as bq
from bayesuq.inference import confidence, features, map_estimate
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.predictive.base import RealPredictive
from bayesuq.to_arviz.container import group
from tests.files_of_before.cases import POSTERIORS, posterior_file
from tests.inference.examples import SHORT_FIT, built, noise
from tests.posterior_contract import NAMES, framed

BARE = [name for name in POSTERIORS if name not in ("UnitsPosterior", "TablePosterior")]
X_LOC, X_SCALE, Y_LOC, Y_SCALE = 5e4, 2e4, 300.0, 40.0


def units_of(x: torch.Tensor, *, labels: bool) -> bq.Standardizer:
    """Of columns around 50,000, and of targets around 300."""
    shape = (1, x.shape[1], *[1] * (x.ndim - 2))
    loc, scale = (torch.full(shape, value, dtype=torch.float64) for value in (X_LOC, X_SCALE))
    y = () if labels else (torch.tensor([Y_LOC]).double(), torch.tensor([Y_SCALE]).double())
    return bq.Standardizer(loc, scale, *y, clip=9.0)


@pytest.mark.filterwarnings("ignore::UserWarning", *SHORT_FIT)
@pytest.mark.parametrize("name", BARE)
def test_every_posterior_takes_raw_inputs_and_answers_in_units_of_y_from_one_file(name: str, tmp_path: Path) -> None:
    case = POSTERIORS[name]
    inner, x = load(posterior_file(name), **case.loads), case.x.double()
    expected = inner.predict(case.x, num_samples=5, seed=0, keep_samples=True)
    is_real = isinstance(expected, RealPredictive)
    with_units = bq.in_units(inner, units_of(x, labels=not is_real))
    with_units.save(tmp_path / "file")
    posterior = load(tmp_path / "file", **case.loads).to("cpu")
    raw = x * X_SCALE + X_LOC
    found = posterior.predict(raw, num_samples=5, seed=0, keep_samples=True)
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}  # raw inputs carry float64's rounding, networks float32's
    if not isinstance(found, RealPredictive) or not isinstance(expected, RealPredictive):
        torch.testing.assert_close(found.mean, expected.mean, **near)
    else:
        torch.testing.assert_close((found.mean - Y_LOC) / Y_SCALE, expected.mean, **near)
        torch.testing.assert_close(found.epistemic / Y_SCALE**2, expected.epistemic, **near)
        y = expected.mean + 0.1
        density = expected.log_prob(y) - math.log(Y_SCALE)
        torch.testing.assert_close(found.log_prob(y * Y_SCALE + Y_LOC), density, rtol=1e-4, atol=1e-4)
    assert posterior.device == inner.device
    assert "around" in posterior.facts()
    pairs = DataLoader(TensorDataset(raw, raw[:, 0]), batch_size=len(raw))
    torch.testing.assert_close(posterior.predict(pairs, num_samples=5, seed=0).mean, found.mean, **near)


@pytest.fixture(scope="module")
def line() -> tuple[bq.Dataset, bq.Posterior]:
    """Prices of 300 ± 40 against incomes of 50,000 ± 20,000, with the fit in standard units."""
    income = torch.linspace(15e3, 85e3, 40).double()
    data = bq.Dataset(income[:, None], 300 + 40 * (income - 5e4) / 2e4)
    units = bq.Standardizer.fit(data)
    model = BayesianNetwork(networks.mlp(1, (), 1).double(), priors.Normal(), likelihoods.Normal(scale=0.1))
    fitted = map_estimate.fit(model, units.transform(data), num_epochs=150, learning_rate=0.1, seed=0)
    return data, bq.in_units(fitted, units)


def test_raw_income_is_predicted_to_its_noise(line: Any) -> None:
    data, posterior = line
    assert (posterior.predict(data.x).mean - data.y).abs().max() < 4.0  # a tenth of the targets' spread


def test_gradients_are_of_raw_inputs_in_units_of_y(line: Any) -> None:
    data, posterior = line
    x = data.x[:3].clone().requires_grad_()
    (slope,) = torch.autograd.grad(posterior.predict(x, differentiable=True).mean.sum(), x)
    torch.testing.assert_close(slope, torch.full_like(slope, 40 / 2e4), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("name", ["ExactGpPosterior", "EnsemblePosterior"])
def test_joint_draws_of_functions_are_in_units_of_y(name: str) -> None:
    inner, x = load(posterior_file(name)), POSTERIORS[name].x.double()[:3]
    expected = inner.functions(x, num_samples=4, seed=0)
    found = bq.in_units(inner, units_of(x, labels=False)).functions(x * X_SCALE + X_LOC, num_samples=4, seed=0)
    torch.testing.assert_close((found.draws - Y_LOC) / Y_SCALE, expected.draws.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((found.mean - Y_LOC) / Y_SCALE, expected.mean.double(), rtol=1e-4, atol=1e-4)
    assert (found.covariance is None) == (expected.covariance is None) == (name == "EnsemblePosterior")
    if found.covariance is not None:
        torch.testing.assert_close(found.covariance / Y_SCALE**2, expected.covariance, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_arviz_and_further_calibration_are_in_units_of_y(line: Any) -> None:
    data, posterior = line
    drawn = posterior.to_arviz(data.x, data.y, seed=0, num_prior_samples=3)
    mean = posterior.predict(data.x).mean[:, 0]
    for_arviz = torch.tensor(group(drawn, "posterior")["mu"].values).reshape(mean.shape)
    torch.testing.assert_close(for_arviz, mean)
    calibrated = bq.inference.quantile_calibration.fit(posterior, data, num_pieces=2)
    assert 250 < float(calibrated.predict([[5e4]]).median) < 350


def test_columns_are_read_by_their_names(tmp_path: Path) -> None:
    frame = pd.DataFrame({"rooms": [1.0, 2.0, 3.0, 4.0], "income": [3e4, 5e4, 8e4, 2e4]})
    units = bq.Standardizer.fit(bq.Dataset(frame, [1.0, 2.0, 3.0, 4.0]).rows([0, 1, 2, 3]))
    units.save(tmp_path / "units")
    again = bq.Standardizer.load(tmp_path / "units")
    assert again.columns == ("rooms", "income")
    assert torch.equal(again.inputs(frame[["income", "rooms"]]), units.inputs(frame))
    assert torch.equal(again.inputs(frame.to_numpy()), units.inputs(frame))
    with pytest.raises(ValueError, match="it lacks 'income' and 'incom' was not fitted"):
        again.inputs(frame.rename(columns={"income": "incom"}))
    with pytest.raises(ValueError, match=r"`x\['income'\]` must be finite.*first is row 1"):
        again.inputs(frame.assign(income=[3e4, float("nan"), 8e4, 2e4]))
    with pytest.raises(TypeError, match="for 1 of 2 columns: 'rooms' is"):
        again.inputs(frame.assign(rooms=["one", "two", "three", "four"]))
    with pytest.warns(UserWarning, match="feature 'income' as far as"):
        bq.Standardizer.fit(bq.Dataset(pd.DataFrame({"rooms": range(200), "income": [*[1.0] * 199, 2.0]}), range(200)))


@pytest.fixture(scope="module")
def classifier() -> tuple[bq.Dataset, bq.Dataset, bq.Posterior, bq.Posterior]:
    """Raw rows in named columns and standard ones, and a posterior of the latter with its units and without."""
    x = noise(0, 60, 3).float() * torch.tensor([1.0, 100.0, 1e4]) + torch.tensor([5.0, -300.0, 2e5])
    raw = bq.Dataset(framed(x), (x[:, 2] > 2e5).long())
    units = bq.Standardizer.fit(raw)
    model = BayesianNetwork(built(lambda: networks.mlp(3, (8,), 2)), priors.Normal(), likelihoods.Categorical())
    fitted = map_estimate.fit(model, units.transform(raw), num_epochs=20, seed=0)
    return raw, units.transform(raw), bq.in_units(fitted, units), fitted


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("form", ["tensor", "frame", "loader"])
def test_features_and_confidences_read_raw_rows_as_the_network_was_fitted_to_them(classifier: Any, form: str) -> None:
    raw, standard, with_units, fitted = classifier
    forms: dict[str, Any] = {
        "tensor": raw.x,
        "frame": framed(raw.x)[NAMES[::-1]],
        "loader": DataLoader(TensorDataset(raw.x, raw.y), batch_size=17),
    }
    taken = features.take(with_units, forms[form]).features
    torch.testing.assert_close(taken, features.take(fitted, standard.x).features)
    options: dict[str, Any] = {"hidden": (4,), "num_epochs": 3, "num_fine_tuning_epochs": 2, "seed": 0}
    one, other = (confidence.fit(*pair, **options) for pair in ((with_units, raw), (fitted, standard)))
    torch.testing.assert_close(one.confidence(forms[form]), other.confidence(standard.x))
    assert one.confidence(raw.x).std() > 1e-4


def test_a_given_scale_of_the_noise_is_in_units_of_y() -> None:
    data = bq.Dataset([[1.0], [2.0], [3.0]], [100.0, 200.0, 300.0], scale=[10.0, 20.0, 30.0])
    units = bq.Standardizer.fit(data)
    found, expected = units.inputs(data.x), units.transform(data).x
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.scale, expected.scale)


def test_what_is_no_posterior_or_has_its_units_already_is_refused(line: Any, tmp_path: Path) -> None:
    data, posterior = line
    with pytest.raises(TypeError, match="must be a fitted one"):
        bq.in_units(data, posterior.standardizer)
    with pytest.raises(TypeError, match=r"has its units already.*`\.posterior`"):
        bq.in_units(posterior, posterior.standardizer)
    with pytest.raises(TypeError, match=r"must be a bayesuq\.Standardizer"):
        bq.in_units(posterior.posterior, data)
    with pytest.raises(TypeError, match=r"got a Dataset. Pass its `\.x`"):
        posterior.predict(data)
    posterior.save(tmp_path / "file")
    with pytest.raises(ValueError, match="holds no standardizer"):
        bq.Standardizer.load(tmp_path / "file")
