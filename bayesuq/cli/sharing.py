"""The methods of `compare` among several processes: each fits some of them, alone, and all get all posteriors.

Posteriors travel as the files that they are saved in, so that processes need no folder in common.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from bayesuq.cli.methods import FitOptions, Fitted, Method, fit
from bayesuq.cli.problem import Problem
from bayesuq.cli.reading import load_fitted
from bayesuq.evaluation.report.measure import Measure
from bayesuq.inference.training.workers import Workers


def fit_shared_out(
    methods: Sequence[Method], problem: Problem, options: FitOptions, workers: Workers
) -> dict[str, Fitted]:
    """Fit all of them; the first process fits numbers 0, R, 2 R, ... of R processes.

    What others stand on comes first, so that it is fitted once; those that stand on it are then shared out likewise.

    Args:
        methods: Which; every process has the same.
        problem: To what.
        options: How; each fit is that of one process.
        workers: Every one of them takes part in this.

    Returns:
        By `Method.key`.

    Raises:
        Exception: What a fit in any process has raised: in all of them.
    """
    fitted: dict[str, Fitted] = {}
    for wraps in (False, True):
        chosen = [method for method in methods if method.wraps is wraps]
        mine = partial(_fit_each, chosen[workers.rank :: workers.size], problem, options, fitted)
        found = workers.agreed(mine)
        for number, method in enumerate(chosen):
            fitted[method.key] = _sent(workers, number % workers.size, found.get(method.key), problem)
    return fitted


def _fit_each(
    methods: Sequence[Method], problem: Problem, options: FitOptions, fitted: Mapping[str, Fitted]
) -> dict[str, Fitted]:
    return {method.key: fit(method, problem, options, fitted) for method in methods}


def _sent(workers: Workers, owner: int, fitted: Fitted | None, problem: Problem) -> Fitted:
    """A fit, from the process that has it."""
    with TemporaryDirectory(prefix="bayesuq-") as folder:
        path = Path(folder) / "posterior.safetensors"
        facts, content = workers.agreed(lambda: _packed(fitted, path))
        facts, content = workers.text(facts, owner), workers.tensor(content, owner)
        if fitted is not None:
            return fitted
        path.write_bytes(content.numpy(force=True).tobytes())
        told = json.loads(facts)
        quality = tuple(Measure(**measure) for measure in told["quality"])
        return Fitted(load_fitted(path, problem), told["seconds"], tuple(told["warnings"]), quality)


def _packed(fitted: Fitted | None, path: Path) -> tuple[str, Tensor]:
    """What another process needs to know; of those that have no fit, nothing."""
    if fitted is None:
        return "", torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a network of the user's own, which every process has
        fitted.posterior.save(path)
    facts = {**fitted.to_dict(), "quality": [asdict(measure) for measure in fitted.quality]}
    return json.dumps(facts), torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
