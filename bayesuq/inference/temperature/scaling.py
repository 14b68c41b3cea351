"""How logits are scaled so that held-out labels become most probable: by a number, by class, or by a matrix.

    loss(A, b) = - (1 / N) sum_n log (1 / S) sum_s softmax(A f_s(x_n) + b)[y_n]

over S draws of the logits f, with A = 1 / T (temperature), diagonal (vector) or whole (matrix). The three are nested:
priors draw a vector's slopes and biases towards 1 and 0, and a matrix's off-diagonal entries towards 0, by a width that
cross-validation on the held-out labels chooses, so that a matrix is no worse than a vector by more than chance.

References:
    Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
    Kull et al. 2019, Beyond temperature scaling, section 3: off-diagonal and intercept regularisation (ODIR). Its
    lambda is C (C - 1) / (2 N width^2) here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.training.lbfgs import Evaluation, Evaluations, Recall, Result
from bayesuq.inference.training.quasi_newton import minimum
from bayesuq.models.scaled_logits import rescaled
from bayesuq.randomness import generator

LARGEST_LOG_TEMPERATURE = math.log(100.0)
MAX_ITERATIONS = 200
SETTLED = 1e-3  # nats over all labels: none of them is in doubt, so none asks for a higher temperature
WIDTHS = (0.003, 0.01, 0.03, 0.1, 0.3)  # of the prior of a matrix's off-diagonal entries, to choose from
NUM_FOLDS = 5
SHARP, ROUGH = 1e-9, 1e-3  # on the gradient, in nats a label; rough ones only compare widths


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a scaling is chosen by.

    Attributes:
        logits: (S, N, C, ...), float64; of one output where labels are binary.
        labels: (N, ...), int64.
        weight: (N, ...), float64, 0 where a label is ignored.
    """

    logits: Tensor
    labels: Tensor
    weight: Tensor

    def rows(self, index: Tensor) -> "HeldOut":
        """Some of the N rows."""
        return HeldOut(self.logits[:, index], self.labels[index], self.weight[index])

    def loss(self, logits: Tensor) -> Tensor:
        """Mean negative log likelihood of the labels at these logits, in nats a label, 0-d."""
        log_probs = _log_mixture(logits).gather(1, self.labels.unsqueeze(1)).squeeze(1)
        return -(self.weight * log_probs).sum() / self.weight.sum()

    def loss_by_class(self, logits: Tensor) -> Tensor:
        """The same at logits with the classes first, (C, S N ...), in time that is half or less of it."""
        both = torch.cat([torch.zeros_like(logits), logits]) if len(logits) == 1 else logits
        labels = self.labels.expand(len(self.logits), *self.labels.shape)
        own = both.log_softmax(dim=0).gather(0, labels.reshape(1, -1)).view(labels.shape)
        log_probs = own[0] if len(own) == 1 else own.logsumexp(dim=0) - math.log(len(own))
        return -(self.weight * log_probs).sum() / self.weight.sum()


@dataclass(frozen=True)
class Scaling:
    """slopes * f + mixing f + biases + pulls softmax(slope f); see `bayesuq.models.scaled_logits.ScaledLogits`.

    Attributes:
        slopes: One, or one for each output.
        biases: Likewise, in nats.
        mixing: C rows of C numbers, or none.
        pulls: C rows of C numbers, in nats, or none.
        slope: Of the logits whose probabilities pull.
    """

    slopes: tuple[float, ...] = (1.0,)
    biases: tuple[float, ...] = (0.0,)
    mixing: tuple[tuple[float, ...], ...] = ()
    pulls: tuple[tuple[float, ...], ...] = ()
    slope: float = 1.0

    def scores(self, held_out: HeldOut) -> tuple[float, float]:
        """Negative log likelihood of the labels in nats a label, and accuracy."""
        logits = rescaled(held_out.logits, 2, self.slopes, self.biases, self.mixing, self.pulls, self.slope)
        correct = (_log_mixture(logits).argmax(dim=1) == held_out.labels).double()
        weight = held_out.weight
        return float(held_out.loss(logits)), float((weight * correct).sum() / weight.sum())


def temperature_scaling(held_out: HeldOut, record: Evaluations) -> Scaling:
    """One slope 1 / T; log T is searched where T lies in [0.01, 100], and the search is recorded."""
    log_slope = torch.zeros(1, dtype=torch.float64, device=held_out.logits.device)

    def loss() -> Tensor:
        return held_out.loss(held_out.logits * log_slope.exp())

    _minimise([log_slope], loss, record, "temperature", largest=LARGEST_LOG_TEMPERATURE)
    slope, settled = float(log_slope.exp()), float(loss()) * float(held_out.weight.sum()) < SETTLED
    if settled or abs(float(log_slope)) >= LARGEST_LOG_TEMPERATURE:
        warn_of_fit(
            f"The held-out labels do not say how sure to be: the temperature stopped at T = {1 / slope:.3g}. "
            "Use more of them, or some that were not trained on.",
            UserWarning,
        )
    return Scaling(slopes=(slope,))


def likely_slope(held_out: HeldOut, record: Evaluations) -> float:
    """As `temperature_scaling`'s, under a standard normal prior on its logarithm, which no labels take to a bound."""
    log_slope = torch.zeros(1, dtype=torch.float64, device=held_out.logits.device)
    total = held_out.weight.sum()

    def energy() -> Tensor:
        return held_out.loss(held_out.logits * log_slope.exp()) + 0.5 * log_slope.square().sum() / total

    _minimise([log_slope], energy, record, "slope")
    return float(log_slope.exp())


def vector_scaling(held_out: HeldOut, record: Evaluations) -> Scaling:
    """A slope and a bias for each class, the mode under standard normal priors on log slopes and biases.

    Without a prior they would run away as soon as some slopes and biases predict every held-out label.
    """
    return _by_class(held_out, None, record, "vector")


def check_matrix(held_out: HeldOut) -> None:
    """Refuse what no matrix can be chosen for.

    Raises:
        ValueError: One output, which has no other to mix with; fewer rows than folds.
    """
    num_rows, num_outputs = held_out.logits.shape[1:3]
    if num_outputs < 2:
        raise ValueError("Matrix scaling needs at least 2 outputs; a binary likelihood has 1. Use vector=True.")
    if num_rows < NUM_FOLDS:
        raise ValueError(f"Matrix scaling needs at least {NUM_FOLDS} rows to choose by; got {num_rows}.")


def matrix_by_folds(held_out: HeldOut, record: Evaluations, *, seed: int) -> Scaling:
    """As `vector_scaling`, and each logit takes a share of each other one, under N(0, width^2) priors.

    The width is the one of `WIDTHS` that predicts labels left out of the fit best, over five folds of the rows.
    """
    num_rows = held_out.logits.shape[1]
    order = torch.randperm(num_rows, generator=generator(seed)).to(held_out.logits.device)
    folds = order.tensor_split(NUM_FOLDS)
    losses = dict.fromkeys(WIDTHS, 0.0)
    found: dict[float, Scaling] = {}
    for number, left_out in enumerate(folds):
        others = torch.cat([fold for k, fold in enumerate(folds) if k != number])
        for width, (scaling, loss) in _of_fold(held_out, others, left_out, record, f"fold {number}").items():
            found[width] = scaling
            losses[width] += loss
    best = min(losses, key=lambda width: losses[width])
    return _by_class(held_out, best, record, "matrix", start=found.get(best))


def _of_fold(
    held_out: HeldOut, others: Tensor, left_out: Tensor, record: Evaluations, name: str
) -> dict[float, tuple[Scaling, float]]:
    """The matrix that some rows choose, and its negative log likelihood summed over rows left out, by width.

    A matrix is searched from that of the width before, and in float32, which is precise enough to compare widths.
    """
    rows, unseen = held_out.rows(others), held_out.rows(left_out)
    if not (unseen.weight.sum() > 0 and rows.weight.sum() > 0):
        return {}  # all of it ignored
    rough = HeldOut(rows.logits.float(), rows.labels, rows.weight.float())
    found, start = {}, Scaling()
    for width in WIDTHS:
        start = _by_class(rough, width, record, f"width {width}, {name}", ROUGH, start)
        found[width] = start, start.scores(unseen)[0] * float(unseen.weight.sum())
    return found


def _by_class(
    held_out: HeldOut,
    width: float | None,
    record: Evaluations,
    name: str,
    tolerance: float = SHARP,
    start: Scaling | None = None,
) -> Scaling:
    """The mode of slopes, biases and, where their prior has a width, off-diagonal entries; searched from a start."""
    num_outputs, new = held_out.logits.shape[2], held_out.logits.new_tensor
    start = Scaling() if start is None else start
    log_slopes = new(start.slopes).log().expand(num_outputs).clone()
    biases = new(start.biases).expand(num_outputs).clone()
    others = ~torch.eye(num_outputs, dtype=torch.bool, device=biases.device)
    entries = held_out.logits.new_zeros(0 if width is None else num_outputs * (num_outputs - 1))
    if start.mixing and width is not None:
        entries = new(start.mixing)[others] / width

    def mixing() -> Tensor:
        """Its entries are told in widths, so that all unknowns are of one size."""
        if width is None:
            return entries
        return entries.new_zeros(num_outputs, num_outputs).masked_scatter(others, width * entries)

    by_class = held_out.logits.movedim(2, 0).flatten(1).contiguous()  # where operators over classes run side by side

    def energy() -> Tensor:
        squares = sum(part.square().sum() for part in (log_slopes, biases, entries))
        scaled = by_class * log_slopes.exp().unsqueeze(1) + biases.unsqueeze(1)
        scaled = scaled if width is None else scaled + mixing() @ by_class
        return held_out.loss_by_class(scaled) + 0.5 * squares / held_out.weight.sum()

    _minimise([log_slopes, biases, *([] if width is None else [entries])], energy, record, name, tolerance)
    rows = () if width is None else tuple(tuple(row) for row in mixing().tolist())
    return Scaling(tuple(log_slopes.exp().tolist()), tuple(biases.tolist()), rows)


def _minimise(
    parameters: list[Tensor],
    loss: Callable[[], Tensor],
    record: Evaluations,
    name: str,
    tolerance: float = SHARP,
    largest: float | None = None,
) -> None:
    """Move the parameters to the minimum of a smooth loss of few of them, in place, by L-BFGS.

    Args:
        parameters: Where the search begins.
        loss: At where they are, 0-d.
        record: Of the evaluations.
        name: That this search has there.
        tolerance: On the gradient where it ends.
        largest: Bound of all parameters on either side.
    """

    def compute() -> Evaluation:
        value = loss()
        return value.detach(), _flat(torch.autograd.grad(value, parameters))

    def run(recall: Recall) -> Result:
        def evaluate(point: Tensor) -> Evaluation:
            _put(point, parameters)
            value, gradient = recall(point, compute)
            return value, gradient.to(point)

        start = _flat(parameters)
        return {"place": minimum(evaluate, start, max_iterations=MAX_ITERATIONS, tolerance=tolerance, largest=largest)}

    for parameter in parameters:
        parameter.requires_grad_()
    _put(record.search(name, run)["place"], parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@torch.no_grad()
def _put(flat: Tensor, parameters: Sequence[Tensor]) -> None:
    """The inverse, into the parameters."""
    for part, each in zip(flat.split([each.numel() for each in parameters]), parameters, strict=True):
        each.copy_(part.view_as(each))


def _log_mixture(logits: Tensor) -> Tensor:
    """log of the mean over draws of the class probabilities, (N, C, ...); one output is the logit of label 1."""
    both = torch.cat([torch.zeros_like(logits), logits], dim=2) if logits.shape[2] == 1 else logits
    log_probs = both.log_softmax(dim=2)
    return log_probs[0] if len(logits) == 1 else log_probs.logsumexp(dim=0) - math.log(len(logits))
