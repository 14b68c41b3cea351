"""The methods of `bayesuq compare` by two processes: each fits some of them, and both get what one finds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayesuq.cli import sharing
from bayesuq.cli.methods import FitOptions, Fitted, Method, fit
from bayesuq.cli.problem import Problem
from bayesuq.cli.settings import ChainOptions, ModelOptions, PredictionOptions, TrainingOptions
from bayesuq.datasets import load
from bayesuq.inference.training.workers import Workers
from tests.inference.training.together import in_processes

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
METHODS = [Method.of(name) for name in ("temperature:ensemble", "map", "variational", "ensemble", "gp")]
OPTIONS = FitOptions(TrainingOptions(num_epochs=2, num_members=2), ChainOptions(), PredictionOptions(), alone=True)


def problem() -> Problem:
    digits = load("digits")
    return Problem.of("digits", replace(digits, train=digits.train.rows(range(200))), ModelOptions(hidden=[4]), None)


def fitted_here(rank: int, folder: str) -> None:
    """What a process fits, and what it gets."""
    own: list[str] = []

    def noted(method: Method, *arguments: object) -> Fitted:
        own.append(method.name)
        return fit(method, *arguments)  # type: ignore[arg-type]

    sharing.fit = noted
    found = sharing.fit_shared_out(METHODS, problem(), OPTIONS, Workers.of(True))
    torch.save([own, {name: told(one) for name, one in found.items()}], f"{folder}/{rank}.pt")


def told(fitted: Fitted) -> dict[str, object]:
    probs = fitted.posterior.predict(load("digits").test.x[:20], num_samples=3, seed=0).mean
    quality = [str(measure) for measure in fitted.quality]
    return {"probs": probs, "losses": fitted.losses, "warnings": fitted.warnings, "quality": quality}


def test_each_method_is_fitted_once_and_both_processes_have_the_bits_of_one(tmp_path: Path) -> None:
    alone: dict[str, Fitted] = {}
    for method in (*METHODS[1:], METHODS[0]):
        alone[method.key] = fit(method, problem(), OPTIONS, alone)
    in_processes(fitted_here, 2, str(tmp_path))
    (first, found), (second, also) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert (first, second) == (["map", "ensemble", "temperature:ensemble"], ["variational", "gp"])
    for name, one in alone.items():
        for process in (found, also):
            assert torch.equal(process[name].pop("probs"), told(one)["probs"]), name
            assert process[name] == {kind: value for kind, value in told(one).items() if kind != "probs"}, name
