"""A temperature for predictives that were made elsewhere: chosen on one with its labels, applied to others like it.

    scaling = temperature.fit(CategoricalPredictive.from_probs(held_out), labels)
    scaling.scaled(CategoricalPredictive.from_probs(new))

Log probabilities of a draw are logits of it, so that what is known of a predictive is all that a scaling needs.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike
from bayesuq.inference.temperature.scaling import HeldOut
from bayesuq.models.scaled_logits import rescaled
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive

LOWEST = -1e30  # a logit of probability 0 that can be multiplied


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling:
    """How the logits of each draw are scaled; from `fit(predictive, y)`.

    Attributes:
        slopes: 1 / T, or a slope for each class.
        biases: 0, or a bias for each class, in nats.
        mixing: What each logit (row) takes of each other one (column) under matrix scaling; else none.
        pulls: What it takes of each class's probability, in nats, under matrix scaling of few classes; else none.
        slope: Of the logits that these are the probabilities of.
        negative_log_likelihood: Of the held-out labels before and after, nats a label.
        accuracy: On them before and after, fractions.
    """

    slopes: tuple[float, ...]
    biases: tuple[float, ...]
    mixing: tuple[tuple[float, ...], ...]
    negative_log_likelihood: tuple[float, float]
    accuracy: tuple[float, float]
    pulls: tuple[tuple[float, ...], ...] = ()
    slope: float = 1.0

    @property
    def temperature(self) -> float:
        """T, above 1 where the predictive was too sure.

        Raises:
            ValueError: Vector and matrix scaling have no one temperature.
        """
        return one_temperature(self.slopes, self.biases)

    def scaled(self, predictive: CategoricalPredictive) -> CategoricalPredictive:
        """A predictive of the same making at scaled logits, its draws kept.

        Raises:
            TypeError: Not a CategoricalPredictive.
            ValueError: One whose draws were not kept; another number of classes than slopes, biases or rows of mixing.
        """
        logits = logits_of(predictive)
        sizes = {len(part) for part in (self.slopes, self.biases, self.mixing, self.pulls) if part}
        if sizes - {1, logits.shape[2]}:
            raise ValueError(f"The scaling is of {max(sizes)} classes; `predictive` has {logits.shape[2]}.")
        logits = rescaled(logits, 2, self.slopes, self.biases, self.mixing, self.pulls, self.slope)
        made = CategoricalPredictive.from_logits(logits.clamp(min=LOWEST))
        return replace(made, is_multilabel=predictive.is_multilabel)


def one_temperature(slopes: tuple[float, ...], biases: tuple[float, ...]) -> float:
    """T of a scaling that has one.

    Raises:
        ValueError: It has none.
    """
    if len(slopes) > 1 or biases != (0.0,):
        raise ValueError(
            "Vector and matrix scaling have a slope and a bias for each class: see `slopes`, `biases` and `mixing`."
        )
    return 1 / slopes[0]


def logits_of(predictive: PredictiveDistribution) -> Tensor:
    """Of each draw, (S, N, C, ...), float64; a finite number for a probability of 0.

    Raises:
        TypeError: Not a CategoricalPredictive.
        ValueError: One whose draws were not kept.
    """
    if not isinstance(predictive, CategoricalPredictive):
        raise TypeError(
            f"Temperature scaling needs a predictive of labels; got {type(predictive).__name__}. For real targets take "
            "`quantile_calibration.fit(predictive, y)`."
        )
    if predictive.draws is None:
        raise ValueError(
            "`predictive` must have its draws, each of which is scaled. Call `predict(..., keep_samples=True)`; of "
            "mean probabilities alone make one draw: `CategoricalPredictive.from_probs(predictive.mean[None])`."
        )
    return predictive.draws.double().clamp(min=LOWEST)


def held_out_of(predictive: PredictiveDistribution, y: ArrayLike) -> HeldOut:
    """What a scaling is chosen by.

    Raises:
        TypeError: See `logits_of`; labels that are not whole numbers.
        ValueError: See `logits_of`; labels outside of the classes, or that no draw holds possible.
    """
    logits = logits_of(predictive)
    labels = predictive.labels(y)  # type: ignore[attr-defined]  # it is one of labels
    own = logits.gather(2, labels.expand(len(logits), *labels.shape).unsqueeze(2)).squeeze(2)
    impossible = (own <= LOWEST).all(dim=0)
    if bool(impossible.any()):
        raise ValueError(
            f"{int(impossible.sum())} of {impossible.numel()} labels have probability 0, which no temperature changes. "
            f"Mix in a little of all classes first, such as 0.999 * probs + 0.001 / {logits.shape[2]}."
        )
    return HeldOut(logits, labels, torch.ones_like(labels, dtype=torch.float64))


def check_mixable(held_out: HeldOut) -> None:
    """Refuse to mix logits that are infinite.

    Raises:
        ValueError: Some class has probability 0.
    """
    if held_out.logits.amin() <= LOWEST or not math.isfinite(float(held_out.logits.sum())):
        raise ValueError("Matrix scaling needs probabilities above 0. Mix in a little of all classes, or leave it out.")
