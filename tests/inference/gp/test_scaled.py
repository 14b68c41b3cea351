"""What stands on a posterior over functions: temperatures of its labels, local ones, and what does not fit it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesuq.data import Dataset
from bayesuq.inference import confidence, gp, local_temperature, quantile_calibration, temperature
from bayesuq.inference.posteriors.packing import read_through
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods
from bayesuq.models.scaled_logits import ScaledLogits
from bayesuq.posterior import Posterior
from bayesuq.to_arviz.container import group
from tests.inference.examples import labelled, measured, noise
from tests.posterior_contract import assert_same_draws

KERNEL = processes.Scale(processes.RBF(per_input=False))
NEW_X = noise(5, 9, 3)


def of_sparse() -> Posterior:
    model = processes.GaussianProcess(KERNEL, likelihood=likelihoods.Categorical())
    return gp.fit(model, labelled(60), num_inducing=10, num_epochs=5, seed=0)


def of_signs() -> Posterior:
    data = labelled(60)
    model = processes.GaussianProcess(KERNEL, likelihood=likelihoods.Bernoulli())
    return gp.fit(model, Dataset(data.x, data.y.clamp(max=1)), num_inducing=10, num_epochs=5, seed=0)


def of_dirichlet() -> Posterior:
    model = processes.GaussianProcess(KERNEL, likelihood=likelihoods.Categorical())
    return gp.fit(model, labelled(60), approximation="dirichlet", num_restarts=1, seed=0)


FITS: dict[str, Callable[[], Posterior]] = {"sparse": of_sparse, "signs": of_signs, "dirichlet": of_dirichlet}


@cache
def fitted(name: str) -> Posterior:
    return FITS[name]()


def sharpened(posterior: Posterior, slope: float) -> Posterior:
    """The same posterior with a likelihood that is surer by a factor."""
    return read_through(posterior, lambda base: ScaledLogits(base, (slope,)))


def drawn_labels(posterior: Posterior, x: Tensor) -> Dataset:
    """Labels from the very mixture of 20 draws that a fit of seed 3 looks at."""
    probs = posterior.predict(x, num_samples=20, seed=3).mean
    return Dataset(x, torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(0)).squeeze(1))


@pytest.mark.parametrize("name", FITS)
def test_a_temperature_of_one_leaves_the_predictive_as_it_is(name: str) -> None:
    one, same = (each.predict(NEW_X, num_samples=5, seed=0) for each in (fitted(name), sharpened(fitted(name), 1.0)))
    assert_same_draws(one, same)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_likelihood_that_is_too_sure_by_a_factor_is_found_out(name: str, factor: float) -> None:
    posterior = fitted(name)
    data = drawn_labels(posterior, noise(6, 4_000, 3))
    found = temperature.fit(sharpened(posterior, factor), data, num_samples=20, seed=3)
    # Of the slope at the truth: the Fisher information is the sum of E (d log p(y) / d slope)^2.
    at = [sharpened(posterior, slope).predict(data.x, num_samples=20, seed=3).mean for slope in (0.999, 1.001)]
    derivative = (at[1].log() - at[0].log()) / 0.002
    information = float((posterior.predict(data.x, num_samples=20, seed=3).mean * derivative.square()).sum())
    assert information > 50
    # The slope of f is factor / T.
    assert factor / found.temperature == pytest.approx(1.0, abs=4 * information**-0.5)
    assert found.negative_log_likelihood[1] < found.negative_log_likelihood[0]


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("scaling", [{}, {"vector": True}], ids=["temperature", "vector"])
def test_it_comes_back_from_a_file_and_tells_arviz(name: str, scaling: dict[str, bool], tmp_path: Any) -> None:
    posterior = fitted(name)
    scaled = temperature.fit(posterior, drawn_labels(posterior, noise(6, 80, 3)), num_samples=20, seed=3, **scaling)
    assert scaled.to("cpu").slopes == scaled.slopes
    twice = temperature.fit(scaled, drawn_labels(posterior, noise(7, 80, 3)), num_samples=20, seed=3)
    for number, each in enumerate((scaled, twice)):
        each.save(tmp_path / str(number))
        loaded = load(tmp_path / str(number))
        assert type(loaded) is type(each)
        one, other = (p.predict(NEW_X, num_samples=5, seed=0, keep_samples=True) for p in (loaded, each))
        assert_same_draws(one, other)
    told = scaled.to_arviz(NEW_X, torch.arange(9) % 2, num_samples=4, seed=0, num_prior_samples=3)
    draws = scaled.predict(NEW_X, num_samples=4, seed=0, keep_samples=True)
    values = torch.as_tensor(group(told, "posterior")["p"].values).flatten(0, 1)
    torch.testing.assert_close(values, draws.samples, rtol=0, atol=0)
    assert group(told, "log_likelihood")["y"].shape == (1, 4, 9)
    assert group(told, "posterior").attrs["method"] == "TemperaturePosterior"


def test_matrix_scaling_takes_classes_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayesuq.inference.temperature.scaling.WIDTHS", (0.1,))
    posterior = fitted("dirichlet")
    data = drawn_labels(posterior, noise(6, 60, 3))
    scaled = temperature.fit(posterior, data, matrix=True, num_samples=5, seed=3)
    assert scaled.predict(NEW_X, num_samples=5, seed=0).mean.shape == (9, 3)
    assert scaled.negative_log_likelihood[1] < scaled.negative_log_likelihood[0]


def test_local_temperatures_are_told_by_a_process_too(tmp_path: Any) -> None:
    posterior = fitted("sparse")
    data = drawn_labels(posterior, noise(6, 300, 3).float())
    too_sure = sharpened(posterior, 4.0)
    scaled = local_temperature.fit(too_sure, data, num_epochs=20, batch_size=50, num_samples=20, seed=3)
    assert float(scaled.temperatures(NEW_X.float(), num_samples=20, seed=0).mean()) > 1.5
    assert scaled.negative_log_likelihood[1] < scaled.negative_log_likelihood[0] - 0.02
    scaled.save(tmp_path / "file")
    one, other = (p.predict(NEW_X, num_samples=5, seed=0) for p in (load(tmp_path / "file"), scaled))
    assert_same_draws(one, other)


def test_quantiles_of_a_process_are_calibrated_and_come_back(tmp_path: Any) -> None:
    posterior = gp.fit(processes.GaussianProcess(KERNEL), measured(40), num_restarts=1, seed=0)
    calibrated = quantile_calibration.fit(posterior, measured(60, seed=5))
    calibrated.save(tmp_path / "file")
    one, other = (p.predict(NEW_X) for p in (load(tmp_path / "file"), calibrated))
    torch.testing.assert_close(one.mean, other.mean, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.* draws follow a trajectory that diverged:UserWarning")
def test_what_has_no_labels_or_no_weights_is_refused() -> None:
    short = {"num_samples": 2, "num_warmup": 2, "num_chains": 1}
    exact = gp.fit(processes.GaussianProcess(KERNEL), measured(20), num_restarts=1, max_iterations=100, seed=0)
    sampled = gp.fit(processes.GaussianProcess(KERNEL), measured(20), hyperparameters="sample", seed=0, **short)
    for posterior in (exact, sampled):
        with pytest.raises(TypeError, match=r"needs a posterior over labels; got .*GpPosterior"):
            temperature.fit(posterior, labelled(20))
    with pytest.raises(TypeError, match="needs a posterior over a network's weights; got SparseGpPosterior"):
        confidence.fit(fitted("sparse"), labelled(20), num_epochs=1, seed=0)
