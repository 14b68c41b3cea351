"""Where the hyperparameters of a Gaussian process are best: L-BFGS on the log marginal likelihood, from several starts.

Reference:
    Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, section 5.4; Byrd, Lu, Nocedal & Zhu 1995, A
    Limited Memory Algorithm for Bound Constrained Optimization.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize

from bayesuq.deadline import Pace
from bayesuq.inference.gp.algebra import NotPositiveDefiniteError
from bayesuq.inference.gp.convergence import STOPPED, warn_of_end
from bayesuq.inference.gp.hyperparameters import COUNTED, HyperparameterVector
from bayesuq.inference.gp.marginal_likelihood import Evidence, Observations
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.cost import warn_if_long
from bayesuq.inference.training.history import History
from bayesuq.inference.training.identity import Identity, digest
from bayesuq.inference.training.lbfgs import Evaluation, Evaluations, Recall, Result
from bayesuq.inference.training.model_contents import probed_energy
from bayesuq.inference.training.workers import ALONE, Workers

FLAT = 1e-5  # nats a data point and unit of a hyperparameter: the slope at which an optimum is reached
FORBIDDEN = 1e25  # what an optimiser is told of hyperparameters without a Cholesky factor


@dataclass(frozen=True)
class Search:
    """How long is searched, and where it is written down.

    Attributes:
        num_restarts: Runs of L-BFGS from different starts.
        max_iterations: Of each.
        seed: Of the starts.
        checkpoint: File of the evaluations; None writes none.
        told: What tells this fit from others, data and options of the search aside.
        counts: See `HyperparameterVector`.
        workers: The processes that share out the runs, each of which has all rows; every one takes part in a search.
    """

    num_restarts: int
    max_iterations: int
    seed: int
    checkpoint: Checkpoint | None = None
    told: Mapping[str, Any] = field(default_factory=dict)
    counts: bool = True
    workers: Workers = ALONE

    def record(self, evidence: Evidence, vector: HyperparameterVector, data: Observations) -> Evaluations:
        """The evaluations of the fit to these data, by this evidence first, from these hyperparameters.

        A deep kernel's network starts at its own weights, and all else in units of what it makes of the inputs: where
        there is a file, the starts are the file's.

        Raises:
            OSError: The checkpoint cannot be written.
            ValueError: The checkpoint is truncated, of another kind, or of another fit.
        """
        if self.checkpoint is None:
            return Evaluations(None, Identity({}))
        record = Evaluations(self.checkpoint, self._identity(evidence, vector, data), vector.start_by_network())
        vector.start |= record.start
        return record

    def _identity(self, evidence: Evidence, vector: HyperparameterVector, data: Observations) -> Identity:
        """What tells this fit from others."""
        given = vector.start_by_network()
        others = {name: value for name, value in vector.start.items() if name not in given}
        own = {
            "max_iterations": self.max_iterations,
            "data": digest({name: getattr(data, name) for name in ("x", "y", "weight", "noise", "known")}),
            **({COUNTED: True} if vector.counts else {}),
        }
        return Identity(
            options={
                **{name: value for name, value in self.told.items() if name != "model"},
                **own,
                "hyperparameters": [leaf.name for leaf in vector.leaves],
            },
            lengths={"num_restarts": self.num_restarts},
            contents={"start of the hyperparameters": digest(others), **vector.contents()},
            numbers=_probed(evidence, vector),
            text=str(self.told.get("model", "")),
            start=digest(given),
            before={**self.told, **own, "num_restarts": self.num_restarts, "start": digest(vector.start)},
        )


def _probed(evidence: Evidence, vector: HyperparameterVector) -> dict[str, list[float]]:
    """The loss and its slope at fixed hyperparameters, near their start unless that depends on a network's."""
    if not vector.leaves:
        return {}
    near = vector.flat().cpu() * (0.0 if vector.start_by_network() else 1.0)
    return probed_energy(lambda at: _evaluate(evidence, vector, near + at), near)


@torch.enable_grad()  # whatever the caller has turned off
def maximise(
    evidence: Evidence,
    vector: HyperparameterVector,
    search: Search,
    record: Evaluations,
    *,
    name: str = "all rows",
    warns: bool = True,
) -> History:
    """Leave the hyperparameters where the evidence, times the density of their priors, is the largest of all runs.

    Args:
        evidence: What is maximised.
        vector: What it is maximised over.
        search: How.
        record: Of the evaluations.
        name: That this call has there.
        warns: Whether to tell of an end that is no optimum.

    Raises:
        NotPositiveDefiniteError: No start has a Cholesky factor.

    Warns:
        ConvergenceWarning: The best run was stopped before it converged, or gave up.
    """
    num_data = float(evidence.data.counts.sum())
    size = log_size(evidence.data, vector) / num_data
    if not vector.leaves:
        return History((-float(evidence().detach()) / num_data,), (), 0)
    _warn_if_long(evidence, vector, search)
    best = _best_of_runs(evidence, vector, search, record, name)
    if warns and search.workers.is_first:
        warn_of_end(best, vector, search.max_iterations)
    vector.put(best["place"].to(evidence.data.x.device))
    course = [value + size for value in best["course"].tolist() or [float(best["loss"])]]  # a start may be a maximum
    return History(tuple(course), (), len(course) - 1)


def _best_of_runs(
    evidence: Evidence, vector: HyperparameterVector, search: Search, record: Evaluations, name: str
) -> Result:
    """The run that ends at the smallest loss, the first of equal ones; of R processes each makes every R-th.

    Raises:
        NotPositiveDefiniteError: No start has a Cholesky factor.
    """
    workers, failure = search.workers, NotPositiveDefiniteError("No start has a covariance with a Cholesky factor.")

    def run(number: int) -> Result | None:
        nonlocal failure
        vector.begin(number, search.seed)
        try:
            return record.search(f"{name}, start {number}", partial(_climb, evidence, vector, search.max_iterations))
        except NotPositiveDefiniteError as error:
            failure = error
            return None

    own = range(workers.rank, search.num_restarts, workers.size)
    runs = workers.agreed(lambda: {number: run(number) for number in own})
    best: Result | None = None
    for number in range(search.num_restarts):
        mine = runs.get(number)
        found = workers.tensors(None if mine is None else dict(mine), number % workers.size)
        if found and (best is None or found["loss"] < best["loss"]):
            best = found
    if best is None:
        raise failure
    return best


def _warn_if_long(evidence: Evidence, vector: HyperparameterVector, search: Search) -> None:
    """Tell of a search that may take long; most runs of L-BFGS end before their last iteration."""
    number = search.num_restarts * search.max_iterations
    place, num_rows = vector.flat().cpu(), len(evidence.data.x)
    with suppress(NotPositiveDefiniteError):  # of which the runs tell
        warn_if_long(
            lambda: _evaluate(evidence, vector, place),
            number,
            number * num_rows**3,
            told=f"up to {number} evaluations over {num_rows} rows",
            remedy="Lower `num_restarts` or `max_iterations`, or pass approximation='sparse' or 'collapsed'.",
        )


def log_size(data: Observations, vector: HyperparameterVector) -> float:
    """log of the unit of each number, summed, in nats: what makes the evidence one of numbers in standard units.

    Without it L-BFGS, which stops at a relative gain, would stop elsewhere in other units.
    """
    return float(data.counts @ vector.units.deviation.log()) if vector.counts else 0.0


def _climb(evidence: Evidence, vector: HyperparameterVector, max_iterations: int, recall: Recall) -> Result:
    """L-BFGS from where the hyperparameters are; the loss is per data point, in nats."""
    course: list[float] = []
    first, pace = True, Pace(max_iterations)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal first
        at = torch.as_tensor(values)

        def compute() -> Evaluation:
            try:
                return _evaluate(evidence, vector, at)
            except NotPositiveDefiniteError:
                if first:
                    raise
                return at.new_tensor(FORBIDDEN), torch.zeros_like(at)

        value, gradient = recall(at, compute)
        first = False  # whether it was computed or recalled
        return value.item(), gradient.numpy()

    def note(intermediate_result: OptimizeResult) -> None:
        course.append(float(intermediate_result.fun))
        pace.advance(len(course))
        if pace.is_over and len(course) < max_iterations:
            raise StopIteration

    options = {"maxiter": max_iterations, "maxfun": 4 * max_iterations, "ftol": 1e-9, "gtol": FLAT, "maxcor": 20}
    start = vector.flat().cpu().numpy()
    search: Any = minimize  # whose types know no bounds beside a callback
    found = search(loss, start, jac=True, method="L-BFGS-B", bounds=vector.bounds(), callback=note, options=options)
    pace.end()
    status = STOPPED if pace.is_over else found.status
    facts = {"loss": found.fun, "gradient": found.jac, "num_iterations": found.nit, "status": status}
    facts |= {"course": course}
    told = {name: torch.tensor(value, dtype=torch.float64) for name, value in facts.items()}
    return told | {"place": torch.tensor(found.x)}


def _evaluate(evidence: Evidence, vector: HyperparameterVector, at: torch.Tensor) -> Evaluation:
    """The loss and its gradient, on the CPU."""
    vector.put(at.to(evidence.data.x.device))
    data = evidence.data
    value = -(evidence() + vector.log_penalty() + log_size(data, vector)) / data.counts.sum()
    value.backward()
    return value.detach().cpu(), vector.gradient().cpu()
