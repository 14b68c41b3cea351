"""Which kind of predictive a measure is defined for: labels or real targets. Checked once, at the measure's door."""

from bayesuq.predictive import CategoricalPredictive, GaussianPredictive


def check_categorical(predictive: object, remedy: str) -> None:
    """Raise a TypeError that ends in `remedy` unless `predictive` is over labels."""
    if not isinstance(predictive, CategoricalPredictive):
        raise TypeError(f"`predictive` must be a CategoricalPredictive; got {type(predictive).__name__}. {remedy}")


def check_gaussian(predictive: object, remedy: str) -> None:
    """Raise a TypeError that ends in `remedy` unless `predictive` is over real targets."""
    if not isinstance(predictive, GaussianPredictive):
        raise TypeError(f"`predictive` must be a GaussianPredictive; got {type(predictive).__name__}. {remedy}")


def check_known(predictive: object) -> CategoricalPredictive | GaussianPredictive:
    """`predictive`, or a TypeError unless it is over labels or real targets."""
    if isinstance(predictive, CategoricalPredictive | GaussianPredictive):
        return predictive
    raise TypeError(
        "`predictive` must be a CategoricalPredictive or a GaussianPredictive; got "
        f"{type(predictive).__name__}. Pass what `posterior.predict(x)` returns."
    )
