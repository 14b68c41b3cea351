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
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesuq.inference.training.lbfgs import Evaluation, Evaluations, Recall, Result
from bayesuq.models.scaled_logits import affine
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


@dataclass(frozen=True)
class Scaling:
    """slopes * f + mixing f + biases; see `bayesuq.models.scaled_logits.ScaledLogits`.

    Attributes:
        slopes: One, or one for each output.
        biases: Likewise, in nats.
        mixing: C rows of C numbers, or none.
    """

    slopes: tuple[float, ...] = (1.0,)
    biases: tuple[float, ...] = (0.0,)
    mixing: tuple[tuple[float, ...], ...] = ()

    def scores(self, held_out: HeldOut) -> tuple[float, float]:
        """Negative log likelihood of the labels in nats a label, and accuracy."""
        parts = (held_out.logits.new_tensor(part) for part in (self.slopes, self.biases, self.mixing))
        logits = affine(held_out.logits, 2, *parts)
        correct = (_log_mixture(logits).argmax(dim=1) == held_out.labels).double()
        weight = held_out.weight
        return float(held_out.loss(logits)), float((weight * correct).sum() / weight.sum())


def temperature_scaling(held_out: HeldOut, record: Evaluations) -> Scaling:
    """One slope 1 / T; log T is searched where T lies in [0.01, 100], and the search is recorded."""
    log_slope = torch.zeros(1, dtype=torch.float64, device=held_out.logits.device)

    def slope() -> Tensor:
        return log_slope.clamp(-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE).exp()

    def loss() -> Tensor:
        return held_out.loss(held_out.logits * slope())

    _minimise([log_slope], loss, record, "temperature")
    settled = float(loss()) * float(held_out.weight.sum()) < SETTLED
    if settled or abs(float(log_slope)) >= LARGEST_LOG_TEMPERATURE:
        warnings.warn(
            f"The held-out labels do not say how sure to be: the temperature stopped at T = {1 / float(slope()):.3g}. "
            "Use more of them, or some that were not trained on.",
            UserWarning,
            stacklevel=4,
        )
    return Scaling(slopes=(float(slope()),))


def vector_scaling(held_out: HeldOut, record: Evaluations) -> Scaling:
    """A slope and a bias for each class, the mode under standard normal priors on log slopes and biases.

    Without a prior they would run away as soon as some slopes and biases predict every held-out label.
    """
    return _by_class(held_out, None, record, "vector")


def matrix_scaling(held_out: HeldOut, record: Evaluations, *, seed: int) -> Scaling:
    """As `vector_scaling`, and each logit takes a share of each other one, under N(0, width^2) priors.

    The width is the one of `WIDTHS` that predicts labels left out of the fit best, over five folds of the rows.

    Raises:
        ValueError: One output, which has no other to mix with; fewer rows than folds.
    """
    num_rows, num_outputs = held_out.logits.shape[1:3]
    if num_outputs < 2:
        raise ValueError("Matrix scaling needs at least 2 outputs; a binary likelihood has 1. Use vector=True.")
    if num_rows < NUM_FOLDS:
        raise ValueError(f"Matrix scaling needs at least {NUM_FOLDS} rows to choose by; got {num_rows}.")
    order = torch.randperm(num_rows, generator=generator(seed)).to(held_out.logits.device)
    folds = order.tensor_split(NUM_FOLDS)
    losses = {
        width: sum(_loss_left_out(held_out, folds, k, width, record) for k in range(NUM_FOLDS)) for width in WIDTHS
    }
    return _by_class(held_out, min(losses, key=lambda width: losses[width]), record, "matrix")


def _loss_left_out(
    held_out: HeldOut, folds: tuple[Tensor, ...], number: int, width: float, record: Evaluations
) -> float:
    """Sum over one fold of the negative log likelihood, of the matrix that the others choose."""
    left_out = held_out.rows(folds[number])
    others = held_out.rows(torch.cat([fold for k, fold in enumerate(folds) if k != number]))
    if not (left_out.weight.sum() > 0 and others.weight.sum() > 0):
        return 0.0  # all of it ignored
    scaling = _by_class(others, width, record, f"width {width}, fold {number}", ROUGH)
    return scaling.scores(left_out)[0] * float(left_out.weight.sum())


def _by_class(
    held_out: HeldOut, width: float | None, record: Evaluations, name: str, tolerance: float = SHARP
) -> Scaling:
    """The mode of slopes, biases and, where their prior has a width, off-diagonal entries."""
    num_outputs = held_out.logits.shape[2]
    log_slopes = held_out.logits.new_zeros(num_outputs)
    biases = torch.zeros_like(log_slopes)
    entries = held_out.logits.new_zeros(0 if width is None else num_outputs * (num_outputs - 1))
    others = ~torch.eye(num_outputs, dtype=torch.bool, device=entries.device)

    def mixing() -> Tensor:
        """Its entries are told in widths, so that all unknowns are of one size."""
        if width is None:
            return entries
        return entries.new_zeros(num_outputs, num_outputs).masked_scatter(others, width * entries)

    def energy() -> Tensor:
        squares = sum(part.square().sum() for part in (log_slopes, biases, entries))
        logits = affine(held_out.logits, 2, log_slopes.exp(), biases, mixing())
        return held_out.loss(logits) + 0.5 * squares / held_out.weight.sum()

    _minimise([log_slopes, biases, *([] if width is None else [entries])], energy, record, name, tolerance)
    rows = () if width is None else tuple(tuple(row) for row in mixing().tolist())
    return Scaling(tuple(log_slopes.exp().tolist()), tuple(biases.tolist()), rows)


def _minimise(
    parameters: list[Tensor], loss: Callable[[], Tensor], record: Evaluations, name: str, tolerance: float = SHARP
) -> None:
    """Move the parameters to the minimum of a smooth loss of few of them, in place, by L-BFGS.

    Args:
        parameters: Where the search begins.
        loss: At where they are, 0-d.
        record: Of the evaluations.
        name: That this search has there.
        tolerance: On the gradient where it ends.
    """

    def compute() -> Evaluation:
        value = loss()
        return value.detach(), _flat(torch.autograd.grad(value, parameters))

    def run(recall: Recall) -> Result:
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=MAX_ITERATIONS,
            tolerance_grad=tolerance,
            tolerance_change=1e-3 * tolerance,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            value, gradient = recall(_flat(parameters), compute)
            for parameter, part in zip(parameters, _parts(gradient, parameters), strict=True):
                parameter.grad = part
            return value

        optimizer.step(closure)
        return {"place": _flat(parameters)}

    for parameter in parameters:
        parameter.requires_grad_()
    found = record.search(name, run)["place"]
    for parameter, part in zip(parameters, _parts(found, parameters), strict=True):
        parameter.requires_grad_(False).copy_(part)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse, each with memory of its own."""
    sizes = [tensor.numel() for tensor in like]
    return [part.view_as(each).to(each, copy=True) for part, each in zip(flat.split(sizes), like, strict=True)]


def _log_mixture(logits: Tensor) -> Tensor:
    """log of the mean over draws of the class probabilities, (N, C, ...); one output is the logit of label 1."""
    both = torch.cat([torch.zeros_like(logits), logits], dim=2) if logits.shape[2] == 1 else logits
    log_probs = both.log_softmax(dim=2)
    return log_probs[0] if len(logits) == 1 else log_probs.logsumexp(dim=0) - math.log(len(logits))
