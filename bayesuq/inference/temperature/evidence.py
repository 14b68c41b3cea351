"""Matrix scaling of few classes, its priors as wide as the evidence of the held-out labels asks for.

    g(x) = h + W^T (h, 1, softmax(h)),  h = f(x) / T,  W_ij ~ N(0, 1 / a_k) for (i, j) in group k

are the scaled logits of a draw f, with T the best single temperature. The groups are each logit's own share, shares of
the other logits, biases, and the pulls of a class's own and of the other probabilities. Logits are unbounded and
probabilities are not: with both, a network may be too sure of what it is sure of, and not of the rest.

Newton steps move W at the curvature H of the energy, and each takes the precisions to where the evidence of the Laplace
approximation around W is stationary (MacKay 1992, eq. 4.9),

    a_k = (g_k + 1) / (sum_k W_ij^2 + s^2),  g_k = sum_k (1 - a_k (H^-1)_ij,ij)

with one weight more of size s = `TYPICAL` in each group, so that a group of few weights has a width. For a mixture of
draws H is the mean of the draws' own curvatures under their shares in each label's probability, which is no less than
the mixture's: the steps are those of expectation and maximisation, and never climb.

References:
    MacKay 1992, Bayesian Interpolation.
    Kull et al. 2019, Beyond temperature scaling, section 3, for matrices under priors.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesuq.inference.temperature.scaling import HeldOut, Scaling, likely_slope
from bayesuq.inference.training.lbfgs import Evaluation, Evaluations, Recall, Result

MOST_CLASSES = 20  # for which H is worth its time, which grows with their fourth power
TYPICAL = 0.1
NUM_GROUPS = 5
MAX_STEPS, PRIORS_A_STEP = 50, 5
SETTLED_WIDTH = 0.03  # of the logarithm of a precision, a step
SETTLED = 1e-5  # of a weight, a step
ROWS_AT_A_TIME = 2**10
MOST_HALVINGS = 30
ROUNDING = 1e-12  # of an energy


def matrix_by_evidence(held_out: HeldOut, record: Evaluations) -> Scaling:
    """The scaling at the mode of W, under the priors that the evidence chooses; for at least two classes.

    Every step is an evaluation of the record.
    """
    regression = _Regression.of(held_out, likely_slope(held_out, record))
    size = (2 * regression.num_classes + 1) * regression.num_classes
    start = held_out.logits.new_zeros(size + NUM_GROUPS)
    start[size:] = -2 * math.log(TYPICAL)
    for name, moves_priors in (("priors", True), ("matrix", False)):
        start = _fixed_point(regression, start, record, name, moves_priors=moves_priors)
    return regression.scaling(start[:size])


def _fixed_point(
    regression: "_Regression", start: Tensor, record: Evaluations, name: str, *, moves_priors: bool
) -> Tensor:
    """Where steps from a start lead: weights, and logarithms of the precisions of the groups."""
    bounds = torch.full_like(start, SETTLED)
    bounds[-NUM_GROUPS:] = SETTLED_WIDTH
    if moves_priors:
        bounds[:-NUM_GROUPS] = SETTLED_WIDTH  # the weights are settled afterwards

    def run(recall: Recall) -> Result:
        state = start
        for _ in range(MAX_STEPS):
            there = recall(state, lambda: regression.step(state, moves_priors=moves_priors))[1].to(state)  # noqa: B023
            is_settled = bool(((there - state).abs() <= bounds).all())
            state = there
            if is_settled:
                break
        return {"state": state}

    return record.search(name, run)["state"].to(start)


@dataclass(frozen=True, eq=False)
class _Regression:
    """Labels given features of logits.

    Attributes:
        logits: f / T, (S, N, C).
        labels: (N,).
        weight: (N,).
        slope: 1 / T.
        groups: That each of W's entries is in, (2 C + 1, C).
    """

    logits: Tensor
    labels: Tensor
    weight: Tensor
    slope: float
    groups: Tensor

    @classmethod
    def of(cls, held_out: HeldOut, slope: float) -> "_Regression":
        logits = slope * held_out.logits.movedim(2, -1).flatten(1, -2)
        others = 1 - torch.eye(logits.shape[2], dtype=torch.int64, device=logits.device)
        groups = torch.cat([others, torch.full_like(others[:1], 2), others + 3])
        return cls(logits, held_out.labels.flatten(), held_out.weight.flatten(), slope, groups)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[2]

    def step(self, state: Tensor, *, moves_priors: bool) -> Evaluation:
        """The energy at weights and precisions, in nats, and the next ones."""
        start, precisions = state[:-NUM_GROUPS], state[-NUM_GROUPS:].exp()
        energy, gradient, curvature = self._sums(start)
        pull = curvature @ start - gradient  # of the quadratic that the likelihood is taken for
        for _ in range(PRIORS_A_STEP if moves_priors else 0):
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(curvature + self._by_weight(precisions).diag()))
            learned = self._by_group(1 - self._by_weight(precisions) * inverse.diagonal())
            precisions = (learned + 1) / (self._by_group((inverse @ pull).square()) + TYPICAL**2)
        by_weight = self._by_weight(precisions)
        root = torch.linalg.cholesky(curvature + by_weight.diag())
        move = torch.cholesky_solve(pull.unsqueeze(1), root).squeeze(1) - start
        share = self._share(start, move, by_weight, float(energy))
        return energy, torch.cat([start + share * move, precisions.log()])

    def _share(self, start: Tensor, move: Tensor, by_weight: Tensor, energy: float) -> float:
        """The largest share of a move, halved as often as need be, at which the energy has not grown."""
        most = energy + 0.5 * float(by_weight @ start.square())
        for halvings in range(MOST_HALVINGS):
            there = start + 0.5**halvings * move
            if float(self._energy(there) + 0.5 * (by_weight @ there.square())) <= most + ROUNDING * abs(most):
                return 0.5**halvings
        return 0.0

    def _by_weight(self, precisions: Tensor) -> Tensor:
        return precisions[self.groups.flatten()]

    def _by_group(self, parts: Tensor) -> Tensor:
        return parts.new_zeros(NUM_GROUPS).index_add(0, self.groups.flatten(), parts)

    def _energy(self, weights: Tensor) -> Tensor:
        """Minus the log likelihood of the labels, in nats, 0-d."""
        return sum((self._at(weights, rows).energy for rows in self._chunks()), weights.new_zeros(()))

    def _sums(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same with its gradient, (P,), and its curvature, (P, P)."""
        num_features, num_classes = self.groups.shape
        of_features, of_classes = (torch.tril_indices(size, size) for size in self.groups.shape)
        energy, gradient = weights.new_zeros(()), weights.new_zeros(num_features, num_classes)
        pairs = weights.new_zeros(of_features.shape[1], of_classes.shape[1], dtype=torch.float32)  # a step is no worse
        for rows in self._chunks():
            at = self._at(weights, rows)
            energy = energy + at.energy
            gradient += at.features.mT @ (at.shares * at.errors)
            features, probs = (part.float().mT.contiguous() for part in (at.features, at.probs))
            covariance = probs[of_classes[0]] * -probs[of_classes[1]]
            covariance[of_classes[0] == of_classes[1]] += probs
            products = features[of_features[0]] * features[of_features[1]]
            pairs += products @ (covariance * at.shares.float().mT).mT
        curvature = pairs.double()[_place_of_pairs(num_features)][:, :, _place_of_pairs(num_classes)]
        size = num_features * num_classes
        return energy, gradient.flatten(), curvature.permute(0, 2, 1, 3).reshape(size, size)

    def _chunks(self) -> list[slice]:
        num_rows, together = len(self.labels), max(1, ROWS_AT_A_TIME // len(self.logits))
        return [slice(first, first + together) for first in range(0, num_rows, together)]

    def _at(self, weights: Tensor, rows: slice) -> "_Likelihood":
        """What some rows say of weights."""
        logits, labels = self.logits[:, rows], self.labels[rows].expand(len(self.logits), -1)
        features = features_of(logits)
        log_probs = (logits + features @ weights.view(self.groups.shape)).log_softmax(dim=-1)
        own = log_probs.gather(2, labels.unsqueeze(2)).squeeze(2)
        mixture = own.logsumexp(dim=0)
        energy = self.weight[rows] @ (math.log(len(logits)) - mixture)
        shares = self.weight[rows] * (own - mixture).exp()
        probs = log_probs.exp()
        errors = probs.scatter_add(2, labels.unsqueeze(2), probs.new_full((), -1.0).expand(*labels.shape, 1))
        return _Likelihood(energy, *(part.flatten(0, 1) for part in (features, probs, errors, shares.unsqueeze(2))))

    def scaling(self, weights: Tensor) -> Scaling:
        """As slopes, mixing, biases and pulls."""
        size = self.num_classes
        own, biases, pulls = weights.view(self.groups.shape).split([size, 1, size])
        slopes = self.slope * (1 + own.diagonal())
        mixing = self.slope * (own - own.diagonal().diag())
        shares, taken = (tuple(tuple(row) for row in part.T.tolist()) for part in (mixing, pulls))
        return Scaling(tuple(slopes.tolist()), tuple(biases[0].tolist()), shares, taken, self.slope)


@dataclass(frozen=True, eq=False)
class _Likelihood:
    """Of some rows by draws, B of them in all, and of their labels.

    Attributes:
        energy: Minus the log likelihood, in nats, 0-d.
        features: (B, 2 C + 1).
        probs: Of the classes, (B, C).
        errors: How far they are above the labels, (B, C).
        shares: Of a draw in its label's probability, times the row's weight, (B, 1).
    """

    energy: Tensor
    features: Tensor
    probs: Tensor
    errors: Tensor
    shares: Tensor


def features_of(logits: Tensor) -> Tensor:
    """What W multiplies, (S, N, 2 C + 1), of f / T, (S, N, C)."""
    return torch.cat([logits, torch.ones_like(logits[..., :1]), logits.softmax(dim=-1)], dim=-1)


def _place_of_pairs(size: int) -> Tensor:
    """Where the pair of row and column stands among those of the lower triangle, (size, size)."""
    one, other = torch.tril_indices(size, size)
    place = torch.empty(size, size, dtype=torch.int64)
    place[one, other] = place[other, one] = torch.arange(len(one))
    return place
