"""Rows that a network memorised: what a mode would say of each if it were left out of the fit.

A mode of more weights than rows can explain each row by weights of its own. A noise that is learned beside them is
what is left then, and the probabilities of labels that are noise are nearly 0 and 1. In the network made linear around
the mode, with the log likelihood made quadratic, outputs are those of a Gaussian process. With J the derivatives of the
outputs, N(m_0, P^-1) the prior, R R^T the Fisher information of the outputs and s their score d log p(y | f) / df,

    B = (I + R^T J P^-1 J^T R)^-1,      c = R^-1 s + R^T J (theta* - m_0),

and the outputs of row n given all the others are f_n + R_n^-T (R_n^-1 s_n - B_nn^-1 [B c]_n), where n counts blocks of
a row's outputs. For normal noise of one scale that is the exact formula of a process. How many targets lie in the 90 %
interval around those outputs is what intervals hold of rows left out. On splits of four UCI sets that was .76 and .77
where the intervals held .80 and .77 of new rows, and .10 to .60 where they held .09 to .74. Of made rows, under
Student's t, Laplace's law, a noise that is an output, and for three outputs, it was .58 to .83 where they held .63 to
.85, and at most .09 where they held .02 or less.

Of labels it is the log loss. Of 400 made rows of two classes, a fifth of the labels turned, it was 3.0 and 5.5 nats (50
and 50-50 units) where new rows had 1.4 and 1.7 and a constant .69; with none turned, .28 and .36 where they had .08. It
errs on the side of too much, so that a network is told of above twice a constant's.

A network that was fitted under random masks is not the mode of any one of these networks, and what its masks hold would
be moved by the formula. With J_m and f_m under mask m, and J and f their means, the objective's curvature is
P + sum_n E J_mn^T R_n R_n^T J_mn: that of the means, and that of what masks spread around them, which is taken as a
precision of each weight by itself,

    P' = P + diag(sum_n E (J_mn - J_n)^T R_n R_n^T (J_mn - J_n)),      P' (theta* - m_0') = P (theta* - m_0) + d,

with d = sum_n J_n^T s(f_n) - E J_mn^T s(f_mn). Of masks on the inputs of one linear layer that is the curvature itself.
Intervals of MC dropout, of 100 made rows or 410 of `boston`, held .03 to .47 of rows left out where they held .12 to
.68 of new ones, and .56 to .94 where they held .62 to .98: less than of new rows, so that it is told of below a half.

Reference:
    Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, eq. (5.12); Rad & Maleki 2020, A scalable
    estimate of the out-of-sample prediction error via approximate leave-one-out cross-validation; Immer, Korzepa &
    Bauer 2021, Improving Predictions of Bayesian Neural Nets via Local Linearization; Wager, Wang & Liang 2013,
    Dropout Training as Adaptive Regularization, section 2.1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.joint.constant import best_constant
from bayesuq.inference.joint.layout import FlatPrior, Layout
from bayesuq.inference.joint.masked_network import MaskedNetwork, draws_in_training
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.training.minibatches import Source
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.predictive.base import RealPredictive

MOST_OUTPUTS, MOST_DERIVATIVES = 1000, 20_000_000  # of which looking takes some half of a second
MOST_MASKED = 2000  # outputs under all masks
SMALL_NOISE = 0.3  # of y's standard deviation: above it, little was memorised
NUM_MASKS, NUM_DRAWS, MASKS = 4, 20, 0  # under which derivatives are taken, of which a predictive is made; their seed
LEVEL, LEAST_COVERAGE, LEAST_OF_MASKS = 0.9, 0.6, 0.5  # of intervals, and what they must hold of rows left out
NORMAL_WIDTH = 3.29  # of that interval of a normal law, in standard deviations
SMALL_LOSS, MOST_LOSS = 0.5, 2.0  # of a constant's: labels above the one are not certain; what rows left out may have
NUM_ERRORS = 2.0  # standard errors by which they must have more
SINGULAR = 1e-6  # added to roots of labels, whose logits may all be moved, and whose probabilities may be 0 and 1


def warn_if_memorised(posterior: WeightPosterior, source: Source, *, keeps_masks: bool = False) -> None:
    """Warn where each row, left out of the linear network, would be predicted much worse than the fit says.

    Args:
        posterior: Of one network, fitted without held-out rows.
        source: Of the rows that it was fitted to.
        keeps_masks: Whether it predicts by random masks, as MC dropout does.
    """
    mode = Mode.of(posterior, source, keeps_masks=keeps_masks)
    if mode is None:
        return
    if mode.likelihood.has_labels:
        _warn_of_labels(mode.left_out_loss(), mode.constant_loss)
    else:
        _warn_of_noise(mode.left_out_coverage(), LEAST_OF_MASKS if keeps_masks else LEAST_COVERAGE)


def _warn_of_noise(coverage: float | None, least: float) -> None:
    if coverage is not None and coverage < least:
        warn_of_fit(
            "The noise that was learned is what the network could not memorise: with the network made linear, the 90 % "
            f"intervals of this one network hold {coverage:.0%} of the rows, each by all the others, so that they are "
            "far too narrow. Hold rows out (`validation=`), which keeps the epoch that predicts them best; or pass a "
            "known scale, fewer weights or a narrower prior; or take `bq.regress`."
        )


def _warn_of_labels(losses: Tensor | None, constant: float) -> None:
    if losses is None:
        return
    loss, error = float(losses.mean()), float(losses.std()) / len(losses) ** 0.5
    if loss - NUM_ERRORS * error > MOST_LOSS * constant:
        warn_of_fit(
            "The network memorised its rows: made linear, it would predict each by all the others with a log loss of "
            f"{loss:.2g} ± {error:.1g} nats, where a constant has {constant:.2g}, so that this one network is far too "
            "sure. Hold rows out (`validation=`), which keeps the epoch that predicts them best; or take fewer weights "
            "or a narrower prior; or `temperature.fit` on rows that were held out; or `bq.classify`."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Mode:
    """A mode of one network and the rows that it was fitted to, N of them with K outputs each.

    Attributes:
        posterior: The mode.
        layout: Of its weights under priors, R of them.
        prior: Of these, all normal.
        theta: The values of all sites.
        likelihood: At these.
        x: Inputs, as the network takes them.
        y: Targets, aligned with the outputs.
        masked: The network under the masks that it was fitted under; None without any.
        drawn: Outputs that it predicts by, (S, N, K): those of the mode, or of S masks.
    """

    posterior: WeightPosterior
    layout: Layout
    prior: FlatPrior
    theta: Mapping[str, Tensor]
    likelihood: Likelihood
    x: Tensor
    y: Tensor
    masked: MaskedNetwork | None
    drawn: Tensor

    @classmethod
    def of(cls, posterior: WeightPosterior, source: Source, *, keeps_masks: bool = False) -> Self | None:
        """None where it is not looked at.

        It is of labels, and of real targets whose noise was learned by a scale or by an output, under normal
        priors of more weights than rows, which have at most 1,000 outputs in all and are in memory and without weights.
        """
        model = posterior.model
        layout = Layout.of(model, model.random_weights)
        prior = FlatPrior.of(model, layout) if _is_asked(model, layout.size, source) else None
        if prior is None or prior.others:
            return None
        batches = list(source.complete())
        x, y = torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches])
        theta = Layout.of(model).split(posterior.draw(0, 0))
        with torch.no_grad():
            f = model.forward(theta, x, buffers=posterior.buffers)
        if any(batch.weight is not None for batch in batches) or f.ndim != 2:
            return None
        try:
            masked = MaskedNetwork(model, x) if draws_in_training(model, x) else None
        except ValueError:  # of draws that cannot be repeated row by row
            return None
        if not _is_quick(f.numel(), layout.size, is_masked=masked is not None):
            return None
        drawn = f[None]
        if keeps_masks and masked is not None:
            with torch.no_grad():
                drawn = torch.stack(
                    [masked(theta, x, posterior.buffers, key=(MASKS, draw), start=0) for draw in range(NUM_DRAWS)]
                )
        likelihood = model.likelihood_given(theta)
        return cls(
            posterior=posterior,
            layout=layout,
            prior=prior,
            theta=theta,
            likelihood=likelihood,
            x=x,
            y=_raised(likelihood.align(f, y)),
            masked=masked,
            drawn=drawn.double(),
        )

    def left_out_coverage(self) -> float | None:
        """What 90 % intervals hold of real targets left out; None where their noise is not small.

        Of several target columns it is the one of which least is held, among those whose noise is small.
        """
        lower, upper = self._interval(self.drawn.mean(0, keepdim=True))
        is_small = (upper - lower).mean(0) < SMALL_NOISE * NORMAL_WIDTH * self.y.std(0, correction=0)
        drawn = self._left_out() if is_small.any() else None
        if drawn is None:
            return None
        lower, upper = self._interval(drawn)
        return float(((lower <= self.y) & (self.y <= upper)).double().mean(0)[is_small].min())

    def left_out_loss(self) -> Tensor | None:
        """Minus log p of each row left out, (N,), in nats; None where labels are not nearly certain."""
        is_certain = float(self._losses(self.drawn).mean()) < SMALL_LOSS * self.constant_loss
        drawn = self._left_out() if is_certain else None
        return None if drawn is None else self._losses(drawn)

    @cached_property
    def constant_loss(self) -> float:
        """Minus the mean log p of the rows under the constant that fits them best, in nats."""
        return -float(best_constant(self.likelihood, self.drawn[0], self.y, None).double().mean())

    def _interval(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        predictive = cast(RealPredictive, self.likelihood.predictive(drawn, keep_samples=True))
        return predictive.interval(LEVEL)

    def _losses(self, drawn: Tensor) -> Tensor:
        log_probs = torch.stack([self.likelihood.log_prob(f, self.y) for f in drawn])
        return math.log(len(drawn)) - log_probs.logsumexp(dim=0)

    def _left_out(self) -> Tensor | None:
        """`drawn` of each row given all the others, (S, N, K); None where the formula has no number."""
        linear = self.linear()
        outputs = left_out_outputs(self.likelihood, linear.f, self.y, linear.features, linear.moved)
        return self.drawn + (outputs - linear.f) if outputs.isfinite().all() else None

    def linear(self) -> "LinearNetwork":
        """The network made linear around the mode, under four masks where it was fitted under masks."""
        outputs, derivatives = self._derivatives()
        f, mean, precision = outputs.mean(0), derivatives.mean(0), self.prior.precision
        pull = (precision * (self.layout.join(self.theta) - self.prior.loc)).double()
        if self.masked is not None:
            root = self.likelihood.fisher_root(f)
            pull = pull + torch.einsum("nkr,nk->r", mean, _score(self.likelihood, f, self.y))
            for at, own in zip(outputs, derivatives, strict=True):
                precision = precision + (root.mT @ (own - mean)).square().sum((0, 1)) / (NUM_MASKS - 1)
                pull = pull - torch.einsum("nkr,nk->r", own, _score(self.likelihood, at, self.y)) / NUM_MASKS
        return LinearNetwork(f, mean / precision**0.5, mean @ (pull / precision))

    def _derivatives(self) -> tuple[Tensor, Tensor]:
        """A row's outputs, (M, N, K), and theirs in the weights, (M, N, K, R), under M masks, or under none with M = 1.

        Row by row, for what runs them at once takes longer to import.
        """
        model, tree, buffers = self.posterior.model, share_tensors(self.posterior.model.net), self.posterior.buffers
        weights = {name: self.theta[name].detach().requires_grad_() for name in self.layout.shapes}
        theta = {**self.theta, **weights}

        def run(row: Tensor, number: int, mask: int) -> Tensor:
            if self.masked is None:
                return model.forward(theta, row, net=tree, buffers=buffers)
            return self.masked(theta, row, buffers, key=(MASKS, mask), start=number)

        outputs, rows = [], []
        with torch.enable_grad():
            for mask in range(1 if self.masked is None else NUM_MASKS):
                for number, row in enumerate(self.x.split(1)):
                    f = run(row, number, mask).flatten()
                    outputs.append(f.detach())
                    for output in f.unbind():
                        slopes = torch.autograd.grad(
                            output, [*weights.values()], allow_unused=True, materialize_grads=True, retain_graph=True
                        )
                        rows.append(self.layout.join(dict(zip(weights, slopes, strict=True))))
        shape = (-1, *self.drawn.shape[1:])
        return torch.stack(outputs).double().reshape(shape), torch.stack(rows).double().reshape(
            *shape, self.layout.size
        )


class LinearNetwork(NamedTuple):
    """A network made linear around a mode.

    Attributes:
        f: The outputs there, (N, K).
        features: J P^-1/2, (N, K, R).
        moved: J (theta* - m_0), (N, K).
    """

    f: Tensor
    features: Tensor
    moved: Tensor


def left_out_outputs(likelihood: Likelihood, f: Tensor, y: Tensor, features: Tensor, moved: Tensor) -> Tensor:
    """The outputs of each row given all the others, (N, K), not finite where the formula has no number.

    Args:
        likelihood: At the values of the mode.
        f: The outputs, (N, K), float64.
        y: Their targets, aligned.
        features: J P^-1/2, (N, K, R).
        moved: J (theta* - m_0), (N, K).
    """
    num_rows, width = f.shape
    score = _score(likelihood, f, y)
    root = likelihood.fisher_root(f)
    if likelihood.has_labels:
        root = root + SINGULAR * torch.eye(width).to(root)
    scaled = (root.mT @ features).flatten(0, 1)
    own = torch.linalg.solve_ex(root, score[..., None]).result
    inverse = torch.linalg.inv_ex(torch.eye(len(scaled)).to(scaled) + scaled @ scaled.mT).inverse
    pushed = inverse @ (own + root.mT @ moved[..., None]).flatten()
    rows = torch.arange(num_rows)
    blocks = inverse.reshape(num_rows, width, num_rows, width)[rows, :, rows]
    alone = torch.linalg.solve_ex(blocks, pushed.reshape(num_rows, width, 1)).result
    return f + torch.linalg.solve_ex(root.mT, own - alone).result[..., 0]


def _score(likelihood: Likelihood, f: Tensor, y: Tensor) -> Tensor:
    """d log p(y | f) / df, as f."""
    with torch.enable_grad():
        at = f.detach().requires_grad_()
        (score,) = torch.autograd.grad(likelihood.elementwise_log_prob(at, y).sum(), at)
    return score


def _is_asked(model: BayesianNetwork, size: int, source: Source) -> bool:
    likelihood = model.likelihood
    knows_curvature = type(likelihood).fisher_root is not Likelihood.fisher_root
    is_in_memory = source.loader is None and isinstance(source.rows.x, Tensor)
    if not (
        knows_curvature
        and is_in_memory
        and source.num_data <= size
        and _is_quick(source.num_data, size, is_masked=False)
    ):
        return False
    learns = bool(likelihood.unknowns) or likelihood.noise_is_output or likelihood.has_labels
    leaves_rows_alone = likelihood.ignore_index is None and not likelihood.reweights_classes
    return learns and (likelihood.has_units or likelihood.has_labels) and leaves_rows_alone and likelihood.is_density


def _is_quick(num_outputs: int, size: int, *, is_masked: bool) -> bool:
    passes = NUM_MASKS * num_outputs if is_masked else num_outputs
    return passes <= min(MOST_MASKED if is_masked else MOST_OUTPUTS, MOST_DERIVATIVES // size)


def _raised(y: Tensor) -> Tensor:
    return y.double() if y.is_floating_point() else y
