"""Whether a fit has converged, in the words of warnings: its loss, its predictions, and a posterior's scales.

A loss that still falls is read from its course (`bayesuq.inference.training.trend`), and where masks hide that, from
looks at it under the same masks (`bayesuq.inference.training.looks`). Predictions are held against those
of a constant in the network's place, on rows that were fitted: a fit that says no more of them has learned nothing, or
there is nothing to learn.

A mean-field posterior that was trained too briefly keeps the scales it started from and looks sure of everything. Two
facts tell: how far the log scales have moved, and the slope

    r = mean over weights of  d(-ELBO) / d log_scale,   in nats per nat

which is 0 at an optimum and -1 where the scales are far too small for the likelihood to notice them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.trend import Trend
from bayesuq.pareto import GOOD_K, tail_shape
from bayesuq.randomness import generator

STILL_FALLING = 0.01  # nats a data point, for another tenth of the fit
FEWEST_ROWS, ENOUGH_ROWS, ENOUGH_LABELS = 20, 512, 2**18  # that predictions are compared on
LEAST_GAIN, GAIN_ERRORS = 0.02, 2.0  # nats a row, and standard errors, over a constant: one of them says something
FEWEST_RATIOS, MOST_RATIOS = 100, 500  # draws that k is read from
NEAR = 1.25  # times too wide or too narrow, at most, of any number that is taken for right
WIDE, FEWEST_WORTH = 1.4, 15.0  # times too wide; draws that the weighed ones must be worth
TIGHT = 0.9  # times too narrow, all numbers together; false alarms are 0 to 4 % (docs/results.md)
ALIKE = 0.99  # of the draws: what the weighed ones are worth where the two laws are within .005 nats of each other
LEAST_WORTH = 0.25  # of the draws: spreads too narrow by ten show in k of 500 draws as .6 to 1.2, in this as .2
SHIFTED = 0.25  # standard deviations, beyond two standard errors, of any mean
NARROW_REMEDY = "Take chains (`hmc`), or guide=variational.full_rank where this is a narrower guide."
CHEAP_SHARE = 0.02  # of a fit's cost, up to which networks are looked at too
MIN_GRADIENTS, MAX_GRADIENTS = 8, 64
WEIGHTS_IN_ALL = (
    512  # over all gradients: with fewer, the skewed slopes of single weights look more certain than they are
)
SMALL_MOVEMENT = 1.0  # nats, of the median log scale
LEARNED_SLOPE = 0.1  # nats a weight and nat; scales that have hardly moved but lie below it may well have started right
RISING_SLOPE = 0.25


def warn_if_falling(trends: Iterable[Trend | None], num_epochs: int, rate_option: str) -> None:
    """Warn where the loss was still falling at the end of so many epochs, by the first trend that is sure of it."""
    trend = next((trend for trend in trends if trend is not None and trend.exceeds(STILL_FALLING)), None)
    if trend is not None:
        warn_of_fit(
            f"The loss was still falling when the fit ended, after {num_epochs} epochs: another tenth of them would "
            f"have gained {trend.fall:.2g} nats a data point. What it predicts is that of an unfinished fit. Raise "
            f"`num_epochs` or `{rate_option}`."
        )


def warn_if_uninformed(
    log_prob: Callable[[Batch, torch.Generator], Tensor],
    log_constant: Callable[[Batch], Tensor],
    source: Source,
    seed: int,
) -> None:
    """Warn where a fit predicts the rows that it was fitted to no better than a constant would.

    Args:
        log_prob: Log predictive density of each row, (B,), in nats.
        log_constant: The same of the best constant.
        source: Of the rows, of which some hundreds are looked at.
        seed: Of their choice, and of draws.
    """
    batch = _some_rows(source, seed)
    if batch is None:
        return
    noise = generator(seed, 2, device=source.device)
    with torch.no_grad():
        level = log_constant(batch).double()
        gain = log_prob(batch, noise).double() - level
    error = float(gain.std()) / len(gain) ** 0.5
    if float(gain.mean()) < min(LEAST_GAIN, GAIN_ERRORS * error):
        warn_of_fit(
            f"The fit predicts its own rows no better than a constant would: their mean log density is "
            f"{float((level + gain).mean()):.3g} nats, a constant's {float(level.mean()):.3g} (difference "
            f"{float(gain.mean()):.2g} ± {error:.1g}, {len(gain)} rows). It has not converged, or the prior and the "
            "noise leave no room for a signal, or there is none. Raise `num_epochs`, standardise the data, widen the "
            "prior, or take another method."
        )


def num_ratios(num_steps: int) -> int:
    """Draws that tell how far a program's posterior reaches: fewer after a fit that was quicker than they."""
    return min(max(num_steps // 4, FEWEST_RATIOS), MOST_RATIOS)


def is_cheap(num_epochs: int) -> bool:
    """Whether the most draws, a forward pass of all rows each, cost little beside the passes of a network's fit."""
    return CHEAP_SHARE * 3 * num_epochs >= MOST_RATIOS  # a pass forwards and backwards counts as three


def warn_unless_reaching(log_ratios: Tensor, remedy: str, draws: Iterable[Tensor] = ()) -> None:
    """Warn where the posterior misses parts of the model's, by the tail of p / q at draws of q, or by what they weigh.

    A normal law has lighter tails than most posteriors, which k alone tells at means and spreads that are right: where
    enough of the weighed draws count, and have the posterior's own means and spreads, nothing is said of k.

    Args:
        log_ratios: log p(theta, y | x) - log q(theta), (S,), in nats.
        remedy: What to do about it, a sentence.
        draws: Of each latent, (S, ...), where they are known.
    """
    ratios = log_ratios.detach().cpu().numpy()
    if not np.isfinite(ratios).all():
        warn_of_fit(
            f"Of {len(ratios)} draws of the posterior {int((~np.isfinite(ratios)).sum())} lie where the model's "
            f"density is 0, or is no number: it is no approximation there. {remedy}"
        )
        return
    weight = np.exp(ratios - ratios.max())
    worth = float(weight.sum() ** 2 / (weight**2).sum())
    if worth > ALIKE * len(ratios):  # the shape of a tail that weighs nothing says nothing
        return
    k, enough = tail_shape(ratios), worth >= LEAST_WORTH * len(ratios)  # k of few draws is uncertain by .3
    parts = list(draws)
    weighed = Weighed.of(cut(log_ratios), parts) if parts else None
    if enough and (k <= GOOD_K or (weighed is not None and weighed.agrees)):
        return
    wrong = "Means and spreads may be wrong." if weighed is None else weighed.sentence
    if k > GOOD_K:
        warn_of_fit(
            f"The posterior misses parts of the model's: the ratios of the two at {len(ratios)} draws have Pareto k "
            f"{k:.2g}, where {GOOD_K} is the limit up to which they can be trusted. {wrong} {remedy}"
        )
    else:
        warn_of_fit(
            f"The posterior is far from the model's: of {len(ratios)} draws, weighed by the ratios of the two, no more "
            f"than {worth:.0f} count. {wrong} {remedy}"
        )


def cut(log_ratios: Tensor) -> Tensor:
    """The ratios, none of them above sqrt(S) times their mean, so that no single draw decides; (S,), in nats.

    Reference:
        Ionides 2008, Truncated Importance Sampling, eq. (4).
    """
    mean = log_ratios.double().logsumexp(dim=0) - math.log(len(log_ratios))
    return log_ratios.double().clamp(max=mean + 0.5 * math.log(len(log_ratios)))


@dataclass(frozen=True)
class Weighed:
    """What draws of a posterior are when they are weighed by the model's density, each a number of a latent, (K,).

    Attributes:
        wider: The posterior's spreads over the weighed ones.
        shift: The distance of the means, in weighed spreads.
        error: The standard error of that.
        worth: Independent draws that the weighed ones are worth.
    """

    wider: Tensor
    shift: Tensor
    error: Tensor
    worth: float

    @classmethod
    def of(cls, log_ratios: Tensor, draws: Iterable[Tensor]) -> "Weighed | None":
        """None where too few of the draws have any weight, or none moves.

        Args:
            log_ratios: log p(theta, y | x) - log q(theta), (S,), in nats.
            draws: Of each latent, (S, ...).
        """
        weight = (log_ratios.double() - log_ratios.double().max()).exp()
        weight = weight / weight.sum()
        values = torch.cat([draw.double().reshape(len(weight), -1) for draw in draws], dim=1)
        worth = float(1 / weight.square().sum())
        if not bool(values.isfinite().all() & weight.isfinite().all()) or worth < FEWEST_WORTH:
            return None
        centred = values - weight @ values
        own, told = (weight @ centred.square()).sqrt(), values.std(dim=0)
        moving = (own > 0) & (told > 0)
        if not bool(moving.any()):
            return None
        shift, error = centred.mean(dim=0).abs() / own, (weight.square() @ centred.square()).sqrt() / own
        return cls((told / own)[moving], shift[moving], error[moving], worth)

    @property
    def together(self) -> float:
        """How many times as wide as the weighed draws the posterior is, all numbers together (a geometric mean)."""
        return float(self.wider.log().mean().exp())

    @property
    def is_narrow(self) -> bool:
        """Whether it is too narrow by more than one number's weighed spread is uncertain by."""
        return self.together < TIGHT * math.exp(-((2 * self.worth) ** -0.5))

    @property
    def agrees(self) -> bool:
        """Whether means and spreads are the weighed ones', as far as matters."""
        return float(self.shift.max()) <= SHIFTED and float(self.wider.log().abs().max()) <= math.log(NEAR)

    @property
    def sentence(self) -> str:
        """What the weighed draws say of the posterior."""
        low, high, furthest = float(self.wider.min()), float(self.wider.max()), int(self.shift.argmax())
        return (
            f"Weighed by them, its draws have means up to {float(self.shift[furthest]):.2g} (± "
            f"{float(self.error[furthest]):.1g}) standard deviations away, and its spreads are {low:.2g} to {high:.2g} "
            "times the weighed ones."
        )


def warn_if_wide(
    log_ratios: Tensor,
    draws: Iterable[Tensor],
    *,
    subject: str = "The posterior scales were not learned",
    remedy: str = "Raise `num_epochs` or `learning_rate`.",
) -> None:
    """Warn where the posterior is much wider than the model's, stands beside it, or is narrower.

    Draws that are weighed by the ratios have the model's own means and spreads. Spreads are asked of all numbers
    together, so that noise in one of them raises no alarm; a posterior that is much too narrow shows in
    `warn_unless_reaching` too. The mean of any number tells, beyond the noise of the weighed one.

    Args:
        log_ratios: log p(theta, y | x) - log q(theta), (S,), in nats.
        draws: Of each latent, (S, ...).
        subject: What a posterior that is too wide is called.
        remedy: What to do about it, a sentence.
    """
    weighed = Weighed.of(log_ratios, draws)
    if weighed is None:
        return
    if weighed.together > WIDE:
        warn_of_fit(
            f"{subject}: its spreads are {weighed.together:.1f} times those that its draws have when they are weighed "
            f"by the model's density. Its uncertainty is too large. {remedy}"
        )
    elif float((weighed.shift - 2 * weighed.error).max()) > SHIFTED:
        warn_of_fit(
            f"The posterior stands beside the model's: weighed by the model's density, the mean of one of its numbers "
            f"lies {float(weighed.shift.max()):.1f} standard deviations from where it is. {remedy}"
        )
    elif weighed.is_narrow:
        warn_of_fit(
            f"The posterior is narrower than the model's: its spreads are {weighed.together:.2g} times those that its "
            f"draws have when they are weighed by the model's density. Its uncertainty is too small. {NARROW_REMEDY}"
        )


def _some_rows(source: Source, seed: int) -> Batch | None:
    """Some hundreds of rows in random order; None where they are few, or their targets all alike.

    Of a loader these are the first minibatch, which is in memory.
    """
    rows = source.rows
    count = min(len(rows.y), max(FEWEST_ROWS, min(ENOUGH_ROWS, ENOUGH_LABELS // max(source.num_labels, 1))))
    if count < FEWEST_ROWS or bool((rows.y == rows.y[:1]).all()):
        return None
    chosen = torch.randperm(len(rows.y), generator=generator(seed, 3))[:count].to(rows.y.device)
    return rows.at(chosen)


@dataclass(frozen=True)
class ScaleSlope:
    """The slope of -ELBO along the log scales, averaged over weights, in nats per nat.

    Attributes:
        mean: Over weights and gradient draws.
        standard_error: Of that mean, over gradient draws.
    """

    mean: float
    standard_error: float

    def exceeds(self, tolerance: float) -> bool:
        """Whether it is beyond the tolerance, by three standard errors."""
        return abs(self.mean) - 3 * self.standard_error > tolerance


def scale_slope(
    slope: Callable[[Batch, torch.Generator], Tensor], num_weights: int, source: Source, seed: int
) -> ScaleSlope:
    """Estimate the slope at the current state from a few minibatches.

    Args:
        slope: Of one minibatch at a fresh draw, averaged over weights.
        num_weights: How many it averages over.
        source: Of the minibatches.
        seed: Of their order and of the draws.
    """
    shuffle, noise = generator(seed, 0), generator(seed, 1, device=source.device)
    count = min(max(MIN_GRADIENTS, WEIGHTS_IN_ALL // num_weights), MAX_GRADIENTS)
    batches = islice((batch for _ in range(count) for batch in source.epoch(shuffle)), count)
    values = torch.stack([slope(batch, noise) for batch in batches])
    return ScaleSlope(float(values.mean()), float(values.std()) / count**0.5)


def warn_unless_learned(slope: ScaleSlope, movement: float, num_epochs: int) -> None:
    """Warn where the scales were not learned, or else where the ELBO was still rising along them.

    Args:
        slope: At the end of the fit.
        movement: Median over weights of how far the log scales moved, in nats.
        num_epochs: Of the fit.
    """
    direction = "wider" if slope.mean < 0 else "narrower"
    if movement < SMALL_MOVEMENT and slope.exceeds(LEARNED_SLOPE):
        warn_of_fit(
            f"The posterior scales were not learned: after {num_epochs} epochs the median log scale has moved "
            f"{movement:.2g} nats, and the ELBO still asks for {direction} ones (slope {slope.mean:.2g} nats a weight "
            "and nat). The uncertainty says little. Raise `num_epochs`, `learning_rate` or `scale_rate`."
        )
    elif slope.exceeds(RISING_SLOPE):
        warn_of_fit(
            f"The ELBO was still rising after {num_epochs} epochs: it asks for {direction} posterior scales (slope "
            f"{slope.mean:.2g} nats a weight and nat). Raise `num_epochs` or `learning_rate`."
        )
