"""A captured step is the step itself; a tape of operators stands in the place of a CUDA graph (`tests.zoo.tape`)."""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Batch, Dataset
from bayesuq.inference import (
    confidence,
    dropout,
    ensemble,
    ivon,
    laplace,
    map_estimate,
    microcanonical,
    swag,
    variational,
)
from bayesuq.inference.catalogue import METHODS
from bayesuq.inference.gp import fit as gp_fit
from bayesuq.inference.ivon.newton import NewtonObjective, Rule
from bayesuq.inference.posteriors.network_mode import ModeObjective, adversarial_step
from bayesuq.inference.training import captured
from bayesuq.inference.training.captured import CapturedStep
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.variational.correlated import CorrelatedObjective
from bayesuq.inference.variational.factorised import EvidenceObjective
from bayesuq.inference.variational.guides import low_rank, mean_field
from bayesuq.models import gp, likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.randomness import generator
from benchmarks import gpu
from tests.inference.examples import SHORT_FIT, built, measured, noise
from tests.inference.training.test_checkpoint import assert_same
from tests.zoo.tape import Tape

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT)
OPTIONS: dict[str, Any] = {"num_epochs": 6, "batch_size": 5, "seed": 1, "progress": False}
ONE_BY_ONE = "one by one, not as a captured graph: "
FITS: dict[str, Callable[..., Any]] = {
    "map": map_estimate.fit,
    "clipped": partial(map_estimate.fit, max_grad_norm=0.1),
    "adversarial": partial(map_estimate.fit, adversarial=True),
    "watched": partial(map_estimate.fit, validation=measured(20, seed=5)),
    "dropout": dropout.fit,
    "mean field": partial(variational.fit, estimator="weights"),
    "two draws": partial(variational.fit, estimator="weights", num_draws=2),
    "local": partial(variational.fit, estimator="local"),
    "flipout": partial(variational.fit, estimator="flipout"),
    "low rank": partial(variational.fit, guide=variational.low_rank(2)),
    "full rank": partial(variational.fit, guide=variational.full_rank),
    "ivon": ivon.fit,
    "ivon, two draws": partial(ivon.fit, num_draws=2),
    "swag": partial(swag.fit, rank=2, swa_learning_rate=1e-3),
    "ensemble": partial(ensemble.fit, num_members=2, vectorised=False),
}


VARIATIONAL = ("mean field", "two draws", "local", "flipout", "low rank", "full rank")


def model(
    rate: float = 0.0,
    likelihood: Likelihood | None = None,
    num_outputs: int = 1,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (4,), num_outputs, dropout=rate, **options)).to(dtype)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal() if likelihood is None else likelihood)


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    own = Tape()
    monkeypatch.setitem(captured.RECORDERS, "cpu", own)
    return own


@pytest.mark.parametrize("name", FITS)
def test_a_fit_by_a_captured_step_has_the_bits_of_one_without(name: str, tape: Tape) -> None:
    own, data = model(0.2 if name == "dropout" else 0.0), measured(20)
    known = FITS[name](own, data, **OPTIONS)
    assert not tape.num_recorded
    found = FITS[name](own, data, captured=True, **OPTIONS)
    assert_same(found, known)
    assert tape.num_recorded == (2 if name in ("swag", "ensemble") else 1)
    annealed = 8 if name in VARIATIONAL else 0  # steps until the weight of the divergence stands
    steps = (2 if name == "ensemble" else 1) * 24 - annealed
    assert tape.num_repeated == steps + tape.num_recorded * captured.NUM_CHECKED


def assert_close(found: list[Tensor], known: list[Tensor]) -> None:
    assert len(found) == len(known)
    for one, other in zip(found, known, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def outcome(step: Callable[[Batch, torch.Generator], Tensor], objective: Objective, batch: Batch) -> list[Tensor]:
    """The loss and the gradients of a step, at the same noise each time."""
    loss = step(batch, generator(3))
    return [loss.clone(), *(leaf.grad.clone() for leaf in objective.leaves.values() if leaf.grad is not None)]


def of_evidence(own: BayesianNetwork, source: Source, **options: Any) -> Objective:
    guide = mean_field(own)
    if "estimator" in options:  # the noise of single rows is of other numbers: hold what is left without it
        with torch.no_grad():
            guide.log_scale.fill_(-30.0)
    return EvidenceObjective(own, guide, source.num_data, 1, 1.0, **options).objective()


def of_newton(own: BayesianNetwork, source: Source) -> Objective:
    return NewtonObjective(own, source.num_data, Rule(num_draws=2, memory=None, max_grad_norm=0.1)).objective()


OBJECTIVES: dict[str, Callable[[BayesianNetwork, Source], Objective]] = {
    "map": lambda own, source: ModeObjective(own, source.num_data).objective(),
    "adversarial": lambda own, source: ModeObjective(
        own, source.num_data, adversarial_step=adversarial_step(source)
    ).objective(),
    "mean field": of_evidence,
    "local": partial(of_evidence, estimator="local"),
    "flipout": partial(of_evidence, estimator="flipout"),
    "low rank": lambda own, source: CorrelatedObjective(own, low_rank(2)(own), source.num_data, 1, 1.0).objective(),
    "ivon": of_newton,
}
LIKELIHOODS: dict[str, tuple[Likelihood, int, Tensor]] = {  # with the outputs that they take, and targets
    "normal": (likelihoods.Normal(), 1, noise(1, 7, 1)),
    "normal of two columns": (likelihoods.Normal(scale=[0.5, 2.0]), 2, noise(1, 7, 2)),
    "heteroscedastic": (likelihoods.HeteroscedasticNormal(minimum_scale=0.1), 2, noise(1, 7, 1)),
    "student": (likelihoods.StudentT(df="learned"), 1, noise(1, 7, 1)),
    "poisson": (likelihoods.Poisson(), 1, torch.arange(7.0).unsqueeze(1)),
    "bernoulli": (likelihoods.Bernoulli(class_weights=(1.0, 3.0)), 1, torch.arange(7) % 2),
    "categorical": (likelihoods.Categorical(), 3, torch.arange(7) % 3),
    "ignored": (likelihoods.Categorical(class_weights=(1.0, 2.0, 0.5), ignore_index=2), 3, torch.arange(7) % 3),
    "noisy logits": (likelihoods.HeteroscedasticCategorical(), 6, torch.arange(7) % 3),
}


def assert_fills_up(objective: Objective, source: Source, tape: Tape) -> None:
    """Minibatches of four rows and of three have the loss and the gradients of steps that are not captured."""
    step = CapturedStep(objective, source, tape)
    batches = list(source.shuffled_epoch(0, 0)) * 2
    assert [len(batch.y) for batch in batches] == [4, 3, 4, 3]
    for batch in batches:
        known = outcome(objective.loss_and_grads, objective, batch)
        assert_close(outcome(step, objective, batch), known)
    assert step.num_repeated == 4


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_rows_of_weight_zero_leave_loss_and_gradient_those_of_the_short_minibatch(name: str, weighted: bool) -> None:
    likelihood, num_outputs, y = LIKELIHOODS[name]
    own = model(likelihood=likelihood, num_outputs=num_outputs, dtype=torch.float64)
    data = Dataset(noise(0, 7, 3), y, weight=torch.arange(1.0, 8.0) if weighted else None)
    source = Source(NetworkReader(own), data, 4)
    assert_fills_up(OBJECTIVES["mean field"](own, source), source, Tape())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_minibatch_is_filled_up_by_every_method(name: str) -> None:
    own = model(dtype=torch.float64)
    source = Source(NetworkReader(own), measured(7), 4)
    assert_fills_up(OBJECTIVES[name](own, source), source, Tape())


def test_a_pixel_has_the_weight_of_its_own_and_of_its_row() -> None:
    net = built(lambda: nn.Conv2d(2, 3, 1)).double()
    own = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    data = Dataset(noise(0, 7, 2, 2, 2), torch.arange(28).view(7, 2, 2) % 3, weight=noise(2, 7, 2, 2).abs())
    source = Source(NetworkReader(own), data, 4)
    assert_fills_up(OBJECTIVES["mean field"](own, source), source, Tape())


@pytest.mark.parametrize("name", ["map", "mean field", "dropout", "local"])
def test_a_loaders_last_minibatch_is_filled_up(name: str, tape: Tape) -> None:
    own, data = model(0.2 if name == "dropout" else 0.0, dtype=torch.float64), measured(18)
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=5)
    found, known = (FITS[name](own, loader, captured=on, **OPTIONS | {"num_epochs": 10}) for on in (True, False))
    assert tape.num_repeated >= 40 - 14  # the first ones are annealed
    if name in ("map", "mean field"):  # the others draw noise for rows of weight zero, too
        torch.testing.assert_close(found.predict(data.x, seed=0).mean, known.predict(data.x, seed=0).mean)


def test_a_captured_fit_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tape: Tape, tmp_path: Any) -> None:
    class Stopped(Exception):  # noqa: N818 - no error
        pass

    def stop(progress: Any) -> None:
        if progress.epoch == 2:
            raise Stopped

    fit = partial(variational.fit, model(0.2), measured(20), captured=True, **OPTIONS)
    file = Checkpoint(tmp_path / "fit")
    with pytest.raises(Stopped):
        fit(checkpoint=file, callbacks=[stop])
    assert_same(fit(checkpoint=file), fit())
    assert tape.num_recorded == 3


def told(own: BayesianNetwork, fit: Callable[..., Any] = map_estimate.fit, data: Any = None, **options: Any) -> str:
    """Why steps are made one by one; the fit must be that without a capture."""
    data = measured(20) if data is None else data
    with pytest.warns(UserWarning, match=ONE_BY_ONE) as records:
        found = fit(own, data, captured=True, **OPTIONS | options)
    assert_same(found, fit(own, data, **OPTIONS | options))
    (message,) = [str(record.message) for record in records if ONE_BY_ONE in str(record.message)]
    return message.partition(ONE_BY_ONE)[2]


def test_a_device_that_captures_nothing_is_told_of() -> None:
    assert told(model()) == "that takes a CUDA device, and this fit is on cpu."


def mode_of(own: BayesianNetwork, data: Dataset) -> map_estimate.MapPosterior:
    return map_estimate.fit(own, data, num_epochs=1, seed=0)


def plane(x: Tensor, y: Tensor | None = None) -> Tensor:
    """A program."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        return pyro.sample("y", dist.Normal(x @ slopes, 0.3), obs=y)


LABELS = Dataset(measured(20).x, torch.arange(20) % 2)
PROCESS = gp.GaussianProcess()
SMALL: dict[str, Any] = {"num_members": 2, "num_samples": 2, "num_warmup": 1, "thinning": 1}
OTHERS: dict[str, tuple[str, Callable[..., object]]] = {  # with the method, and a fit that cannot be captured
    "map": ("map_estimate", lambda **on: map_estimate.fit(model(), measured(20), **on)),
    "mode of a program": ("map_estimate", lambda **on: map_estimate.fit(plane, measured(20), **on)),
    "mean field": ("variational", lambda **on: variational.fit(model(), measured(20), **on)),
    "guide of a program": ("variational", lambda **on: variational.fit(plane, measured(20), **on)),
    "dropout": ("dropout", lambda **on: dropout.fit(model(0.2), measured(20), **on)),
    "ivon": ("ivon", lambda **on: ivon.fit(model(), measured(20), **on)),
    "swag": ("swag", lambda **on: swag.fit(model(), measured(20), rank=2, collect_every=1, batch_size=5, **on)),
    "ensemble": ("ensemble", lambda **on: ensemble.fit(model(), measured(20), num_members=2, **on)),
    "laplace": ("laplace", lambda **on: laplace.fit(model(), measured(20), **on)),
    "around a mode": (
        "laplace",
        lambda **on: laplace.fit(model(), measured(20), mode=mode_of(model(), measured(20)), **on),
    ),
    "confidence": (
        "confidence",
        lambda **on: confidence.fit(
            mode_of(model(likelihood=likelihoods.Categorical(), num_outputs=2), LABELS), LABELS, **on
        ),
    ),
    "sparse process": ("gp", lambda **on: gp_fit(PROCESS, measured(20), approximation="sparse", num_inducing=3, **on)),
    "exact process": ("gp", lambda **on: gp_fit(PROCESS, measured(20), max_iterations=1, num_restarts=1, **on)),
    "chains": ("microcanonical", lambda **on: microcanonical.fit(model(), measured(20), **SMALL, **on)),
    "chains from a mode": (
        "microcanonical",
        lambda **on: microcanonical.fit(model(), measured(20), start=mode_of(model(), measured(20)), **SMALL, **on),
    ),
    "chains of a program": (
        "microcanonical",
        lambda **on: microcanonical.fit(plane, measured(20), **SMALL, **on),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_method_that_takes_the_option_says_why_it_comes_to_nothing(name: str) -> None:
    with pytest.warns(UserWarning, match=ONE_BY_ONE):
        OTHERS[name][1](captured=True, num_epochs=1, seed=0, progress=False)


def test_every_method_that_takes_the_option_was_asked() -> None:
    fits = {method.name: import_module(f"bayesuq.inference.{method.name}").fit for method in METHODS}
    taking = {name for name, fit in fits.items() if "captured" in inspect.signature(fit).parameters}
    assert taking == {method for method, _ in OTHERS.values()}


def test_a_network_with_hooks_is_told_of(tape: Tape) -> None:
    own = model()
    next(own.net.children()).register_forward_hook(lambda *_: None)
    assert "hooks" in told(own)
    assert not tape.num_recorded


def test_a_weight_that_moves_to_the_end_is_told_of(tape: Tape) -> None:
    assert "`kl_weight` changes" in told(model(), variational.fit, kl_weight=lambda share: 0.5 + 0.5 * share)
    assert tape.num_recorded == 1  # the last step


class Reading(nn.Module):
    """Asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1.0 if float(x.detach().sum()) > 0 else 2.0)


@pytest.mark.usefixtures("tape")
def test_a_step_that_asks_for_a_value_is_told_of() -> None:
    own = BayesianNetwork(built(Reading), priors.Normal(), likelihoods.Normal())
    assert told(own) == "RuntimeError: aten::_local_scalar_dense is asked for a value."


def test_rows_that_depend_on_each_other_are_captured_in_one_size_alone(tape: Tape) -> None:
    own = model(batch_norm=True)
    assert "depend on each other" in told(own, data=measured(18))
    found, known = (map_estimate.fit(own, measured(20), captured=on, **OPTIONS) for on in (True, False))
    assert_same(found, known)
    assert tape.num_recorded == 2


@pytest.mark.parametrize("name", ["map", "mean field", "low rank"])
def test_a_noise_with_a_prior_is_captured(name: str, tape: Tape) -> None:
    """A law that looked at each value it is given would have to wait for its device."""
    own = model(likelihood=likelihoods.Normal(scale=priors.LogNormal()))
    found, known = (FITS[name](own, measured(20), captured=on, **OPTIONS) for on in (True, False))
    assert_same(found, known)
    assert tape.num_recorded == 1


@pytest.mark.usefixtures("tape")
def test_a_minibatch_larger_than_the_first_is_told_of_and_made_as_it_is() -> None:
    data = measured(20)
    sizes = [list(range(3)), list(range(3, 10)), list(range(10, 15)), list(range(15, 18)), [18, 19]]
    loader = DataLoader(TensorDataset(data.x, data.y), batch_sampler=sizes)
    own = model(dtype=torch.float64)
    with pytest.warns(UserWarning, match="a minibatch of 7 rows has more than the first one's 3"):
        found = map_estimate.fit(own, loader, captured=True, **OPTIONS)
    known = map_estimate.fit(own, loader, **OPTIONS)
    torch.testing.assert_close(found.predict(data.x).mean, known.predict(data.x).mean)


class Counted:
    """A loss that Python changes from step to step, which a repetition does not see."""

    def __init__(self, first: int) -> None:
        self.leaf, self.count, self.first = torch.ones(3), 0, first
        self.leaves, self.buffers, self.model, self.varies = {"leaf": self.leaf}, {}, None, lambda: None
        self.after_step = None

    def loss_and_grads(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        self.count += 1
        factor = max(1.0, self.count - self.first)
        self.leaf.grad = factor * batch.x.sum(dim=0)
        return self.leaf.grad.sum()


@pytest.mark.parametrize("first", [0, 2])  # of which the second shows at the second minibatch alone
def test_a_number_that_python_has_fixed_is_told_of(first: int) -> None:
    source = Source(NetworkReader(model()), measured(20), 5)
    step = CapturedStep(Counted(first), source, Tape())  # type: ignore[arg-type]
    batches = source.epoch(None)
    if first:
        step(next(batches), generator(0))
    with pytest.warns(UserWarning, match="another loss or gradient"):
        step(next(batches), generator(0))
    assert step.is_given_up


def test_members_that_train_side_by_side_are_told_of(tape: Tape) -> None:
    fit = partial(ensemble.fit, num_members=2, vectorised=True)
    assert "side by side" in told(model(), fit)
    assert not tape.num_recorded


def test_the_command_for_a_first_gpu_finds_captured_steps_the_same(tape: Tape) -> None:
    found = gpu.captured_steps(torch.device("cpu"), "map_estimate", (4,), quick=True)
    assert found["ok"]
    assert found["not_captured"] == []
    assert found["largest_difference"] == 0
    assert tape.num_recorded == 5  # one compared; two lengths, each once before it is timed


def test_nothing_is_told_of_a_fit_that_is_captured(tape: Tape) -> None:
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        map_estimate.fit(model(), measured(20), captured=True, **OPTIONS)
    assert tape.num_recorded == 1
    assert not [record for record in records if ONE_BY_ONE in str(record.message)]
