"""On a device that is not the host every method fits and predicts, and waits for it no more often than is written here.

The counts are of a device made of torch's modes (`tests.zoo.second_device`): no accelerator is needed. They stand in
docs/performance.md.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.evaluation import calibration, detection, scores, uncertainty
from bayesuq.evaluation.report import reporting
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
from bayesuq.inference.posteriors import one_pass, prediction
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.waiting import check
from benchmarks import gpu
from tests.inference import test_contract as posterior_suites
from tests.inference.examples import SHORT_FIT, built, measured
from tests.predictive import test_predictive as predictive_suites
from tests.predictive.contract import NUM_DRAWS, NUM_POINTS, Components
from tests.zoo.second_device import SECOND, second_device

pytestmark = [
    pytest.mark.filterwarnings(*SHORT_FIT, "ignore::UserWarning"),  # fits and chains that are short on purpose
]
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
    "equal": lambda x: torch.equal(x, x.clone()),
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
    """An epoch's end reads whether all is finite, and its losses; eight steps more, in another, read nothing."""
    counts = []
    for num_epochs, batch_size in ((2, 24), (3, 12)):
        with second_device() as transfers:
            options = {"num_epochs": num_epochs, "batch_size": batch_size, **THERE}
            STEPS[name](model(0.2 if name == "dropout" else 0.0), measured(), **options)
        counts.append(transfers.total)
    assert counts[1] - counts[0] <= 2


OF_NOISE = likelihoods.Normal(scale=priors.LogNormal())


@pytest.mark.parametrize(
    ("name", "prior", "likelihood"),
    [
        *((name, priors.StudentT(), OF_NOISE) for name in ("map", "mean field", "low rank", "ensemble")),
        ("mean field", priors.Laplace(), likelihoods.Normal(scale=0.3)),  # whose divergence is in closed form
    ],
)
def test_no_law_looks_at_the_values_of_a_step(name: str, prior: priors.Prior, likelihood: likelihoods.Normal) -> None:
    """Neither of a noise with a prior, nor of weights."""
    own = BayesianNetwork(built(lambda: networks.mlp(3, (4,), 1)), prior, likelihood)
    few, many = (reads_of(STEPS[name], own, num_epochs=1, batch_size=size, **THERE) for size in (24, 6))
    assert many - few < 6  # steps; what is once a fit varies by a few


def reads_of(fit: Callable[..., Any], own: BayesianNetwork | None = None, **options: Any) -> int:
    with second_device() as transfers:
        fit(model() if own is None else own, measured(), **options)
    return transfers.total


def test_a_chain_of_minibatches_waits_at_draws_and_once_in_fifty_steps() -> None:
    fit = partial(sgmcmc.fit, batch_size=12, step_size=1e-3, **CHAINS)
    few, many = (reads_of(fit, thinning=thinning) for thinning in (2, 22))  # 60 steps more, 20 of each draw's
    assert many - few <= 2


def test_a_step_of_microcanonical_chains_waits_for_what_a_draw_tells() -> None:
    fit = partial(microcanonical.fit, num_warmup=1, num_members=2, num_epochs=1, **THERE)
    few, many = (reads_of(fit, num_samples=number) for number in (2, 3))
    assert many - few <= 7


def test_a_leapfrog_waits_for_its_energy() -> None:
    options = {"kernel": "hmc", "step_size": 1e-3, "start": "prior", **CHAINS, "num_warmup": 0, "num_chains": 1}
    few, many = (reads_of(hmc.fit, num_steps=number, **options) for number in (2, 22))
    assert many - few <= 2 * 20 * 3


def process(data: Dataset, **options: Any) -> Any:
    return gp.fit(processes.GaussianProcess(processes.RBF()), data, **options, **THERE)


POSTERIORS: dict[str, tuple[Callable[[Dataset], Any], int]] = {  # with what the host waits for in a chunk
    "map": (lambda data: map_estimate.fit(model(), data, num_epochs=1, **THERE), 1),
    "mean field": (lambda data: variational.fit(model(), data, num_epochs=1, **THERE), 1),
    "dropout": (lambda data: dropout.fit(model(0.2), data, num_epochs=1, **THERE), 1),
    "ensemble": (lambda data: ensemble.fit(model(), data, num_members=3, num_epochs=1, **THERE), 3),  # one a member
    "laplace": (lambda data: laplace.fit(model(), data, num_epochs=1, **THERE), 1),
    "chains": (lambda data: hmc.fit(model(), data, kernel="hmc", num_steps=2, **CHAINS), 1),
    "labels": (lambda data: variational.fit(classifier(), labels_of(data), num_epochs=1, **THERE), 1),
    "process": (lambda data: process(data, approximation="exact", max_iterations=1, num_restarts=1), 2),  # GPyTorch's
    "sparse process": (lambda data: process(data, approximation="sparse", num_inducing=4, num_epochs=1), 2),
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_prediction_is_there_and_waits_this_often(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, in_chunk = POSTERIORS[name]
    counts = []
    with second_device() as transfers:
        posterior, x = fit(measured()), measured().x[:40].to(SECOND)  # other rows than those of the fit
        posterior.predict(x, num_samples=3, seed=0)
        for width in (40, 12):
            monkeypatch.setattr(prediction, "rows_at_a_time", lambda *_, width=width: width)
            before = transfers.total
            predictive = posterior.predict(x, num_samples=3, seed=0)
            counts.append(transfers.total - before)
            for found in (predictive.mean, predictive.total, predictive.epistemic):
                assert found.device == SECOND
    assert counts[0] == in_chunk
    assert counts[1] <= 4 * in_chunk + name.endswith("process")  # GPyTorch compares inducing points with as many rows


def classifier() -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (4,), 2))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())


def labels_of(data: Dataset) -> Dataset:
    return Dataset(data.x, (data.y[:, 0] > 0).long())


def test_what_is_read_with_a_chunk_is_refused_and_told_as_on_the_host() -> None:
    """Rows that are not finite, and outputs that overflow, in the second chunk alone."""
    host = map_estimate.fit(model(), measured(), num_epochs=1, seed=0)
    bad, far = measured().x.clone(), measured().x.clone()
    bad[30], far[30] = torch.nan, 1e30
    scaled = replace(host, values=1e5 * host.values)
    with second_device():
        with pytest.raises(ValueError, match=r"`x` must be finite; 1 of 48 rows hold NaN .* the first is row 30"):
            host.to(SECOND).predict(bad.to(SECOND))
        with pytest.warns(UserWarning, match="overflow at 1 rows"):
            found = scaled.to(SECOND).predict(far.to(SECOND)).mean.cpu()
    with pytest.warns(UserWarning, match="overflow at 1 rows"):
        torch.testing.assert_close(found, scaled.predict(far).mean, rtol=0, atol=0)


def test_a_pass_that_gives_other_bits_is_made_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network does out of sight is found when the chunk is read, and the chunk is computed anew."""
    host = dropout.fit(model(0.2), measured(), num_epochs=1, seed=0)
    with second_device():
        there, x = host.to(SECOND), measured().x.to(SECOND)
        plain = there.predict(x, num_samples=5, seed=0).mean.cpu()
        with monkeypatch.context() as patched:
            patched.setattr(one_pass, "_are_same", _never_same)
            again = there.predict(x, num_samples=5, seed=0).mean.cpu()
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def _never_same(one: Tensor, _: Tensor) -> bool:
    check((one != one).any(), one_pass.OtherBitsError)
    return True


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


ONE_READ = {
    name: getattr(module, name)
    for module in (scores, calibration, uncertainty, detection)
    for name in module.__all__
    if name != "pointwise"
} | {one.__name__: one for one in (calibration.pointwise_coverage, *scores.POINTWISE, *scores.POINTWISE.values())}
OF_ERRORS = ("augrc", "aurc", "auroc", "average_precision", "false_positive_rate_at", "risk_coverage", "excess_aurc")
OTHERWISE_CALLED = {
    "interval_coverage": (0.9,),
    "interval_score": (0.9,),
    "interval_width": (0.9,),
    "pinball_loss": (0.9,),
    "pointwise_coverage": (0.9,),
    "pointwise_interval_score": (0.9,),
    "pointwise_pinball_loss": (0.9,),
}
WITHOUT_TARGETS = (*uncertainty.__all__, "calibration_error_floor", "interval_width")


@pytest.mark.parametrize("name", sorted(ONE_READ))
def test_a_measure_waits_once(name: str) -> None:
    """Of labels and of real targets, whichever it is of, by whole rows and by weighted ones."""
    measure = ONE_READ[name]
    logits, labels = labelled_there()
    weight = torch.arange(len(labels)) % 3
    asked = 0
    takes_weight = "weight" in inspect.signature(measure).parameters
    for weighed in (False, True) if takes_weight else (False,):
        with second_device() as transfers:
            for arguments in given(name, logits, labels):
                options = {"weight": weight.to(SECOND)} if weighed else {}
                transfers.counts.clear()
                try:
                    found = measure(*arguments, *OTHERWISE_CALLED.get(name, ()), **options)
                except TypeError as error:  # of the other kind of targets
                    assert "must be" in str(error), error  # noqa: PT017
                    continue
                asked += 1
                assert transfers.total <= 1
                assert not isinstance(found, Tensor) or found.device == SECOND
    assert asked


def given(name: str, logits: Tensor, labels: Tensor) -> list[tuple[Any, ...]]:
    """What a measure may be called with, on the device."""
    if name in OF_ERRORS:
        return [(logits[0, :, 0].to(SECOND), (labels == 0).to(SECOND))]
    if name in ("sample_crps", "pointwise_sample_crps"):
        return [(logits.to(SECOND), logits[0].to(SECOND))]
    real = GaussianPredictive(mean=logits[..., :1].to(SECOND), noise_variance=0.3)
    both = [
        (CategoricalPredictive.from_logits(logits.to(SECOND)), labels.to(SECOND)),
        (real, logits[0, :, :1].to(SECOND)),
    ]
    return [(predictive,) for predictive, _ in both] if name in WITHOUT_TARGETS else both


@pytest.mark.parametrize(("kind", "most"), [("labels", 44), ("real targets", 11)])
def test_a_report_waits_this_often(kind: str, most: int) -> None:
    """Nine measures, with their errors and intervals, which come to the host together; ranks read on their way."""
    logits, labels = labelled_there()
    predictive: Any = CategoricalPredictive.from_logits(logits)
    predictive, y = (predictive, labels) if kind == "labels" else real_there(logits)
    with second_device() as transfers:
        there, truth = predictive.to(SECOND), y.to(SECOND)
        transfers.counts.clear()
        found = reporting.evaluate(there, truth)
    assert transfers.total <= most
    for one, other in zip(found.measures, reporting.evaluate(predictive, y).measures, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-9, abs=1e-12)


def real_there(logits: Tensor) -> tuple[GaussianPredictive, Tensor]:
    return GaussianPredictive(mean=logits[..., :1], noise_variance=0.3), logits[0, :, :1]


WEIGHED = (
    detection.auroc,
    detection.average_precision,
    detection.false_positive_rate_at,
    detection.aurc,
    detection.augrc,
)


def test_measures_there_refuse_and_find_what_those_of_the_host_do() -> None:
    logits, labels = labelled_there()
    here = CategoricalPredictive.from_logits(logits)
    errors, uncertain = labels != 0, logits[0, :, 0].round()  # with ties
    weight = torch.arange(40) % 3
    unknown = torch.where(weight > 0, uncertain, torch.nan)
    cases: list[tuple[Callable[..., Any], Tensor, Tensor]] = [
        (measure, uncertain, errors)
        for measure in (detection.auroc, detection.aurc, detection.excess_aurc, detection.average_precision)
    ]
    with second_device():
        there = here.to(SECOND)
        for measure in (
            calibration.expected_calibration_error,
            calibration.adaptive_calibration_error,
            partial(calibration.classwise_calibration_error, threshold=0.2),
        ):
            assert measure(there, labels.to(SECOND)).item() == pytest.approx(measure(here, labels).item(), abs=1e-12)
        for measure, one, other in cases:
            assert measure(one.to(SECOND), other.to(SECOND)).item() == pytest.approx(measure(one, other).item())
        for weighed in WEIGHED:
            known = weighed(uncertain, errors, weight=weight).item()
            found = weighed(unknown.to(SECOND), errors.to(SECOND), weight=weight.to(SECOND)).item()
            assert found == pytest.approx(known, rel=1e-12)
            with pytest.warns(UserWarning, match="no point is") if weighed in WEIGHED[:3] else nullcontext():
                none = weighed(uncertain.to(SECOND), (errors & False).to(SECOND), weight=weight.to(SECOND)).item()
            assert math.isnan(none) if weighed in WEIGHED[:3] else none == 0
        real, y = real_there(logits)
        for measure in (scores.crps, scores.weighted_interval_score, calibration.regression_calibration_error):
            value = measure(real.to(SECOND), y.to(SECOND)).item()
            assert value == pytest.approx(measure(real, y).item(), abs=1e-12)
        with pytest.raises(ValueError, match="labels from 0 to 3; got 0 to 4"):
            scores.brier_score(there, (labels + (labels == 3)).to(SECOND))
        with pytest.raises(ValueError, match="`weight` must be above 0 somewhere"):
            scores.accuracy(there, labels.to(SECOND), weight=torch.zeros(40).to(SECOND))


def labelled_there() -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    return torch.randn(3, 40, 4, generator=noise), torch.randint(4, (40,), generator=noise)


class There:
    """Contract suites whose components are on the device, but for tests that make numbers of their own on the host."""

    test_moving_to_the_same_device_changes_nothing = None
    test_sampling_without_a_seed_follows_the_global_generator = None
    test_one_draw_has_no_disagreement = None
    test_rescaling_moves_and_stretches_everything = None

    @pytest.fixture(autouse=True)
    def there(self) -> Iterator[None]:
        with second_device():
            yield

    def components(self, num_draws: int = NUM_DRAWS, num_points: int = NUM_POINTS) -> Components:
        whole = super().components(num_draws, num_points)  # type: ignore[misc]
        return {name: value.to(SECOND) for name, value in whole.items()}

    def targets(self, num_points: int = NUM_POINTS) -> Tensor:
        return super().targets(num_points).to(SECOND)  # type: ignore[misc,no-any-return]


class TestCategoricalThere(There, predictive_suites.TestStreamedCategoricalContract):
    pass


class TestGaussianThere(There, predictive_suites.TestGaussianProcessContract):
    pass


class TestMeanFieldThere(posterior_suites.TestVariational, doors_of="TestVariational"):
    """Its rows come from the host, and what it predicts goes back there."""

    options: ClassVar = posterior_suites.TestVariational.options | {"device": SECOND}
    # Their own comparisons mix devices: what a loader's rows are answered with stays there, what is loaded is here.
    test_batches_of_a_loader_are_the_whole = None
    test_batch_norm_learns_its_statistics_in_the_fit_and_never_when_predicting = None
    test_a_saved_posterior_predicts_the_same_to_the_bit = None
    test_batch_norm_and_frozen_parameters_come_back = None
    test_arviz_is_told_of_new_inputs_and_of_the_same_weights = None
    test_threads_at_once_give_what_one_after_another_gives = None  # a thread has modes of its own

    @pytest.fixture(autouse=True, scope="class")
    def there(self) -> Iterator[None]:
        with second_device():
            yield
