"""Known posteriors: that they are known, and what the exact and the wrong methods' rows say of them."""

import math

import pytest
import torch

from bayesuq.inference import hmc
from scripts import known_posteriors
from scripts.known_posteriors import METHODS, QUIET, Known, errors, gaussian, regression


@pytest.mark.parametrize("known", [regression(), gaussian()])
def test_the_posterior_is_the_log_joints(known: Known) -> None:
    model = known.model()

    def log_joint(weight: torch.Tensor) -> torch.Tensor:
        return model.log_joint({"weight": weight.unsqueeze(0)}, known.data.x, known.data.y)

    gradient = torch.func.grad(log_joint)(known.mean)
    hessian = torch.autograd.functional.hessian(log_joint, known.mean)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    torch.testing.assert_close(-hessian, known.precision, rtol=1e-9, atol=1e-9)
    # A Gaussian's integral: log Z = log p(mode) + d/2 log 2 pi - 1/2 log det P.
    size, log_det = len(known.mean), torch.logdet(known.precision)
    evidence = log_joint(known.mean) + size / 2 * math.log(2 * math.pi) - log_det / 2
    assert known.log_evidence == pytest.approx(float(evidence), rel=1e-10)


def test_the_target_has_the_precisions_it_names() -> None:
    found = torch.linalg.eigvalsh(gaussian().precision)
    torch.testing.assert_close(found, torch.logspace(0.05, 3, 10, dtype=torch.float64), rtol=1e-9, atol=0)


def test_laplace_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_posteriors, "NUM_DRAWS", 5000)
    known = regression()
    found = errors(known, METHODS["Laplace, full"](known.model(), known.data, num_epochs=700, seed=0))
    assert found["evidence"] < 1e-6
    assert found["predictive_variance"] < 1e-6
    # 5,000 draws: relative errors of some sqrt(6 / 5,000) = .035 over all entries
    assert found["mean"] < 4 / 5000**0.5
    assert found["covariance"] < 4 * (6 / 5000) ** 0.5


def test_one_network_has_no_covariance() -> None:
    known = regression()
    found = errors(known, METHODS["MAP"](known.model(), known.data, num_epochs=700, seed=0))
    assert found["mean"] < 1e-6
    assert (found["covariance"], found["predictive_variance"], found["widest"]) == (1, 1, 0)
    assert math.isnan(found["evidence"])


def test_chains_are_as_far_off_as_their_effective_draws_say() -> None:
    known = gaussian()
    chains = hmc.fit(known.model(), known.data, num_samples=60, num_warmup=60, num_chains=2, seed=0, **QUIET)
    found = errors(known, chains)
    assert 20 < found["effective_sample_size"] < 1000
    assert found["mean"] < 4 / found["effective_sample_size"] ** 0.5
