"""Which kind of predictive a measure is defined for: labels or real targets. Checked once, at the measure's door.

Counts are real targets here: they have a mean, quantiles and a CRPS.
"""

from typing import Literal

from bayesuq.predictive.base import RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.maps import RealMaps


def check_categorical(predictive: object, remedy: str) -> None:
    """Raise a TypeError that ends in `remedy` unless `predictive` is over labels."""
    if not isinstance(predictive, CategoricalPredictive):
        raise TypeError(f"`predictive` must be a CategoricalPredictive; got {type(predictive).__name__}. {remedy}")


def check_real(predictive: object, remedy: str) -> RealPredictive:
    """`predictive`, or a TypeError that ends in `remedy` unless it is over real targets or counts."""
    if isinstance(predictive, RealPredictive):
        return predictive
    _refuse_maps(predictive)
    raise TypeError(
        "`predictive` must be a RealPredictive, such as a GaussianPredictive; got "
        f"{type(predictive).__name__}. {remedy}"
    )


def check_known(predictive: object) -> CategoricalPredictive | RealPredictive:
    """`predictive`, or a TypeError unless it is over labels, real targets or counts."""
    if isinstance(predictive, CategoricalPredictive | RealPredictive):
        return predictive
    _refuse_maps(predictive)
    raise TypeError(
        "`predictive` must be a CategoricalPredictive or a RealPredictive, such as a GaussianPredictive; got "
        f"{type(predictive).__name__}. Pass what `posterior.predict(x)` returns."
    )


def _refuse_maps(predictive: object) -> None:
    """Raise a TypeError for images, whose pixels are no independent points."""
    if isinstance(predictive, RealMaps):
        raise TypeError(
            "`predictive` is of real-valued images, a RealMaps. Take `bayesuq.evaluation.real_maps.evaluate_maps`, "
            "whose standard errors are over images; or pass `predictive.pixels` with `predictive.pixel_targets(y)`."
        )


def kind_of_targets(predictive: object) -> Literal["labels", "counts", "real targets"]:
    """What y is; densities and probabilities do not compare. The error is that of `check_known`."""
    known = check_known(predictive)
    if isinstance(known, CategoricalPredictive):
        return "labels"
    return "counts" if known.is_discrete else "real targets"
