"""On a device that is not the host every method fits and predicts, and waits for it no more often than is written here.

The counts are of a device made of torch's modes (`tests.zoo.second_device`): no accelerator is needed. They stand in
docs/performance.md.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.evaluation import calibration, scores, uncertainty
from bayesuq.inference import (
    dropout,
    ensemble,
    gp,
    hmc,
    ivon,
    laplace,
    map_estimate,
    microcanonical,
    sgmcmc,
    swag,
    variational,
)
from bayesuq.inference.posteriors import prediction
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from benchmarks import gpu
from tests.inference.examples import SHORT_FIT, built, measured
from tests.zoo.second_device import SECOND, second_device

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT, "ignore::UserWarning")  # fits and chains that are short on purpose
THERE: dict[str, Any] = {"device": SECOND, "seed": 0, "progress": False}
CHAINS: dict[str, Any] = {"num_samples": 3, "num_warmup": 3, "num_chains": 2, **THERE}


def model(rate: float = 0.0) -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (4,), 1, dropout=rate))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.3))


def test_the_device_refuses_a_mix_and_moves_what_it_is_asked_to() -> None:
    with second_device() as transfers:
        there, here = torch.ones(2, 3, device=SECOND), torch.ones(2, 3)
        for mixed in (lambda: there + here, lambda: there @ here.T, lambda: torch.cat([there, here])):
            with pytest.raises(RuntimeError, match="on the host"):
                mixed()
        with pytest.raises(RuntimeError, match="generator of the host"):
            there.normal_(generator=torch.Generator())
        with pytest.raises(RuntimeError, match="another device's generator"):
            torch.randn(3, device=SECOND, generator=torch.Generator())
        assert (there * torch.tensor(2.0))[torch.tensor([0])].device == SECOND  # single numbers and indices may mix
        net = nn.Linear(3, 2).to(SECOND)
        torch.func.vmap(net)(there.view(2, 1, 3)).sum().backward()
        places = [net.weight.grad, torch.randn(3, device=SECOND, generator=torch.Generator(SECOND)), there.new_zeros(2)]
        assert all(place.device == SECOND and not place.is_cpu for place in places)
        assert (here.device.type, there.to("cpu").device.type) == ("cpu", "cpu")
        assert transfers.total == 1
    assert there.device.type == "cpu"


READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x.all()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "copy": lambda x: torch.empty(4).copy_(x),
    "print": str,
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "cholesky": lambda x: torch.linalg.cholesky(torch.diag_embed(x)),
}


@pytest.mark.parametrize("name", READS)
def test_each_read_is_one_transfer(name: str) -> None:
    with second_device() as transfers:
        x = torch.ones(4, device=SECOND)
        (x + 1).exp_().mean()
        assert transfers.total == 0
        READS[name](x)
    assert transfers.total == 1


STEPS: dict[str, Callable[..., Any]] = {
    "map": map_estimate.fit,
    "mean field": variational.fit,
    "local": partial(variational.fit, estimator="local"),
    "flipout": partial(variational.fit, estimator="flipout"),
    "low rank": partial(variational.fit, guide=variational.low_rank(2)),
    "full rank": partial(variational.fit, guide=variational.full_rank),
    "ivon": ivon.fit,
    "dropout": dropout.fit,
    "ensemble": partial(ensemble.fit, num_members=2, vectorised=True),
    "swag": partial(swag.fit, rank=2, swa_learning_rate=1e-3),
}


@pytest.mark.parametrize("name", STEPS)
def test_no_step_waits_and_an_epoch_twice(name: str) -> None:
    """An epoch's end reads whether all is finite, and its losses; 32 steps more, in another, read nothing."""
    counts = []
    for num_epochs, batch_size in ((2, 24), (3, 4)):
        with second_device() as transfers:
            options = {"num_epochs": num_epochs, "batch_size": batch_size, **THERE}
            STEPS[name](model(0.2 if name == "dropout" else 0.0), measured(), **options)
        counts.append(transfers.total)
    assert counts[1] - counts[0] <= 2


def reads_of(fit: Callable[..., Any], **options: Any) -> int:
    with second_device() as transfers:
        fit(model(), measured(), **options)
    return transfers.total


def test_a_chain_of_minibatches_waits_at_draws_and_once_in_fifty_steps() -> None:
    fit = partial(sgmcmc.fit, batch_size=12, step_size=1e-3, **CHAINS)
    few, many = (reads_of(fit, thinning=thinning) for thinning in (2, 22))  # 60 steps more, 20 of each draw's
    assert many - few <= 2


def test_a_step_of_microcanonical_chains_waits_for_what_a_draw_tells() -> None:
    fit = partial(microcanonical.fit, num_warmup=1, num_members=2, num_epochs=1, **THERE)
    few, many = (reads_of(fit, num_samples=number) for number in (3, 5))
    assert many - few <= 7 * 2


def test_a_leapfrog_waits_for_its_energy() -> None:
    options = {"kernel": "hmc", "step_size": 1e-3, "start": "prior", **CHAINS, "num_warmup": 0, "num_chains": 1}
    few, many = (reads_of(hmc.fit, num_steps=number, **options) for number in (2, 22))
    assert many - few <= 2 * 20 * 3


def process(data: Dataset, **options: Any) -> Any:
    return gp.fit(processes.GaussianProcess(processes.RBF()), data, **options, **THERE)


POSTERIORS: dict[str, tuple[Callable[[Dataset], Any], int, int]] = {  # with reads, in one chunk and in four
    "map": (lambda data: map_estimate.fit(model(), data, num_epochs=1, **THERE), 5, 16),
    "mean field": (lambda data: variational.fit(model(), data, num_epochs=1, **THERE), 5, 16),
    "dropout": (lambda data: dropout.fit(model(0.2), data, num_epochs=1, **THERE), 14, 52),
    "ensemble": (lambda data: ensemble.fit(model(), data, num_members=3, num_epochs=1, **THERE), 17, 50),
    "laplace": (lambda data: laplace.fit(model(), data, num_epochs=1, **THERE), 12, 43),
    "chains": (lambda data: hmc.fit(model(), data, kernel="hmc", num_steps=2, **CHAINS), 5, 16),
    "process": (
        lambda data: process(data, approximation="exact", max_iterations=1, num_restarts=1),
        10,
        35,
    ),
    "sparse process": (lambda data: process(data, approximation="sparse", num_inducing=4, num_epochs=1), 10, 35),
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_prediction_is_there_and_waits_this_often(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, in_one, in_four = POSTERIORS[name]
    counts = []
    with second_device() as transfers:
        posterior, x = fit(measured()), measured().x.to(SECOND)
        posterior.predict(x, num_samples=3, seed=0)
        for width in (48, 12):
            monkeypatch.setattr(prediction, "rows_at_a_time", lambda *_, width=width: width)
            before = transfers.total
            predictive = posterior.predict(x, num_samples=3, seed=0)
            counts.append(transfers.total - before)
            for found in (predictive.mean, predictive.total, predictive.log_prob(measured().y)):
                assert found.device == SECOND
    assert counts[0] <= in_one
    assert counts[1] <= in_four


def test_a_prediction_there_is_that_of_the_host() -> None:
    """Noise comes from generators of another device: the mode draws none."""
    host = map_estimate.fit(model(), measured(), num_epochs=3, seed=0)
    with second_device():
        there = host.to(SECOND).predict(measured().x.to(SECOND))
        mean, log_prob = there.mean.cpu(), there.log_prob(measured().y.to(SECOND)).cpu()
    torch.testing.assert_close(mean, host.predict(measured().x).mean, rtol=0, atol=0)
    torch.testing.assert_close(log_prob, host.predict(measured().x).log_prob(measured().y), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["map_estimate", "sparse process"])
def test_the_command_for_a_first_gpu_finds_the_hosts_numbers(name: str) -> None:
    jobs = dict(gpu.jobs(SECOND, quick=True))
    with second_device():
        found = jobs[f"check {name}"]()
    assert found["ok"], found
    assert found["largest_difference"] <= 1e-6


MEASURES: dict[str, tuple[Callable[..., Any], int]] = {  # with what the host waits for
    "negative_log_likelihood": (scores.negative_log_likelihood, 2),
    "accuracy": (scores.accuracy, 1),
    "brier_score": (scores.brier_score, 1),
    "root_mean_squared_error": (scores.root_mean_squared_error, 1),
    "crps": (scores.crps, 3),
    "weighted_interval_score": (scores.weighted_interval_score, 60),
    "expected_calibration_error": (calibration.expected_calibration_error, 3),
    "regression_calibration_error": (calibration.regression_calibration_error, 5),
    "predictive_entropy": (lambda predictive, _: uncertainty.predictive_entropy(predictive), 0),
    "mutual_information": (lambda predictive, _: uncertainty.mutual_information(predictive), 1),
    "variation_ratio": (lambda predictive, _: uncertainty.variation_ratio(predictive), 0),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_is_there_and_waits_this_often(name: str) -> None:
    measure, most = MEASURES[name]
    logits, labels = labelled_there()
    real = name in ("root_mean_squared_error", "crps", "weighted_interval_score", "regression_calibration_error")
    with second_device() as transfers:
        if real:
            predictive: Any = GaussianPredictive(mean=logits[..., :1].to(SECOND), noise_variance=0.3)
            y = logits[0, :, :1].to(SECOND)
        else:
            predictive, y = CategoricalPredictive.from_logits(logits.to(SECOND)), labels.to(SECOND)
        transfers.counts.clear()
        found = measure(predictive, y)
        assert found.device == SECOND
    assert transfers.total <= most


def labelled_there() -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    return torch.randn(3, 40, 4, generator=noise), torch.randint(4, (40,), generator=noise)
