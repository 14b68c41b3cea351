"""The figures of a report as pictures inside the page: drawn by `evaluation.plots`, and told in words."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from bayesuq.cli.judging import Judged
from bayesuq.cli.methods import Fitted
from bayesuq.data import Split
from bayesuq.evaluation import calibration, detection, scores
from bayesuq.evaluation.kinds import check_real
from bayesuq.evaluation.plots import classification, images, regression, training
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.thinned import at_all_points

LARGEST_SVG = 400_000  # bytes; a figure of more marks is a PNG
DOTS_PER_INCH = 160
MOST_CLASSES = 12  # whose bars stay legible
NUM_BARS, NUM_IMAGES = 4, 16
UNSEEN = "Is it less sure of what it has never seen?"
LARGEST_ERRORS = 0.1  # share of rows

Labelled = dict[str, tuple[CategoricalPredictive, Tensor]]
Real = dict[str, tuple[RealPredictive, Tensor]]


@dataclass(frozen=True)
class Picture:
    """One figure of the page.

    Attributes:
        title: What it shows.
        caption: How to read it.
        alternative: Its content in words.
        source: As a data URI, so that the page needs no other file.
        width: In CSS pixels.
        leads: Whether it stands above the table, with what is to be seen at a glance.
        fragment: A piece of page that is shown instead of one image; empty where there is an image.
    """

    title: str
    caption: str
    alternative: str
    source: str
    width: int
    leads: bool = False
    fragment: str = ""

    @classmethod
    def of(cls, figure: Any, title: str, caption: str, alternative: str, *, leads: bool = False) -> Self:
        """From a matplotlib figure."""
        kind, content = "svg+xml", _written(figure, "svg")
        if len(content) > LARGEST_SVG:
            kind, content = "png", _written(figure, "png")
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
        return cls(title, caption, alternative, source, round(96 * figure.get_figwidth()), leads)


def draw(data: str, split: Split, judged: Mapping[str, Judged], fitted: Mapping[str, Fitted]) -> list[Picture]:
    """All figures that the data and the predictions allow.

    Args:
        data: Name of the data set.
        split: Its parts.
        judged: What was predicted of its test rows, by method.
        fitted: How each method was fitted.
    """
    predicted = {name: (result.predictive, result.y) for name, result in judged.items()}
    labelled: Labelled = {n: (p, y) for n, (p, y) in predicted.items() if isinstance(p, CategoricalPredictive)}
    real: Real = {n: (p, y) for n, (p, y) in predicted.items() if isinstance(p, RealPredictive)}
    pictures = []
    if labelled:
        confidences = {name: result.confidence for name, result in judged.items() if result.confidence is not None}
        pictures += [_reliability(labelled), *_right_and_wrong(judged), _risk_coverage(labelled, confidences)]
    if real and split.test.x.ndim == 2 and split.test.x.shape[1] == 1:
        pictures.append(_bands(split, judged))
    if real:
        pictures += [_intervals(real), *_right_and_wrong(judged)]
    if split.ood is not None:
        pictures.append(_in_and_out(judged))
    if labelled and shows_images(data, split):
        pictures += _images(split, labelled)
    if any(result.losses for result in fitted.values()):
        pictures.append(loss_picture(fitted))
    return pictures


def _reliability(labelled: Labelled) -> Picture:
    curves = {name: calibration.reliability(*pair) for name, pair in labelled.items()}
    gaps = [f"{name} {float(curve.expected_calibration_error):.3f}" for name, curve in curves.items()]
    return Picture.of(
        classification.reliability_diagram(curves),
        "Does confidence come true?",
        "Each dot is a group of test rows predicted with about the same confidence; its height is the share of them "
        "that was right. On the diagonal the two agree; below it the method is too sure, above it not sure enough. The "
        "grey bars count the rows in each group, on a logarithmic axis.",
        f"Reliability diagrams, one a method. Expected calibration error: {', '.join(gaps)}.",
        leads=True,
    )


def _right_and_wrong(judged: Mapping[str, Judged]) -> list[Picture]:
    """Of the methods that are wrong somewhere, and right elsewhere; nothing where there are none."""
    is_labelled, (quantity, unit) = _uncertainty(judged)
    wrong = {name: _is_wrong(result) for name, result in judged.items()}
    unsure = {
        name: _spread(judged[name].predictive) for name, flags in wrong.items() if 0 < flags.sum() < flags.numel()
    }
    if not unsure:
        return []
    right, errors = ({name: values[wrong[name] == side] for name, values in unsure.items()} for side in (False, True))
    blue, orange = ("right predictions", "wrong ones") if is_labelled else ("other rows", "the tenth of largest errors")
    means = [f"{name} {float(right[name].mean()):.2g} and {float(errors[name].mean()):.2g}" for name in unsure]
    figure = classification.entropy_histogram(
        right, errors, in_label=blue, out_label=orange, quantity=quantity, unit=unit
    )
    return [
        Picture.of(
            figure,
            "Is it unsure where it is wrong?",
            f"Blue: the {quantity} of {blue}. Orange: that of {orange}. The farther the orange lies to the right of "
            "the blue, the better the uncertainty says which predictions not to trust.",
            f"Histograms of the {quantity} of {blue} and of {orange}, one a method. Means in {unit}: "
            f"{'; '.join(means)}.",
            leads=True,
        )
    ]


def _is_wrong(judged: Judged) -> Tensor:
    """Of labels, whether the prediction is; of real targets, the tenth of rows whose error is largest."""
    predictive, y = judged.predictive, judged.y
    if isinstance(predictive, CategoricalPredictive):
        return scores.pointwise_accuracy(predictive, y) == 0
    squares = scores.pointwise_squared_error(check_real(predictive, ""), y.nan_to_num())
    errors = squares.where(~y.isnan(), 0.0).sum(dim=1)  # of the columns that are known
    return errors.argsort().argsort() >= len(errors) - math.ceil(LARGEST_ERRORS * len(errors))


def _risk_coverage(labelled: Labelled, confidences: Mapping[str, Tensor]) -> Picture:
    wrong = {name: scores.pointwise_accuracy(*pair) == 0 for name, pair in labelled.items()}
    unsure = {name: 1 - confidences[name] if name in confidences else labelled[name][0].total for name in labelled}
    curves = {name: detection.risk_coverage(unsure[name], wrong[name]) for name in labelled}
    risks = {name: (float(curve.risk[-1]), float(curve.risk[len(curve.risk) // 2])) for name, curve in curves.items()}
    rates = [
        f"{name} {every:.3f} of all rows and {half:.3f} of the surer half" for name, (every, half) in risks.items()
    ]
    learned = f" (of {', '.join(confidences)}: of smallest learned confidence)" if confidences else ""
    return Picture.of(
        classification.risk_coverage_curves(curves),
        "What if it may refuse to answer?",
        f"From right to left, ever more of the rows of largest predictive entropy{learned} are refused. The height is "
        "the error rate among those that are still answered: the lower and the faster to fall, the better the "
        "uncertainty.",
        f"Error rate against the share of rows answered, a line for each method. Error rates: {'; '.join(rates)}.",
    )


def _bands(split: Split, judged: Mapping[str, Judged]) -> Picture:
    parts = [split.test.x] if split.ood is None else [split.test.x, split.ood.x]
    x = torch.cat(parts)
    predictives = {name: _everywhere(result) for name, result in judged.items()}
    truth = None if split.truth is None else split.truth.mean(x)
    figure = regression.regression_bands(predictives, x, data=(split.train.x, split.train.y), truth=truth)
    return Picture.of(
        figure,
        "What does it predict, and how surely?",
        "The line is the predicted mean. The inner band is the epistemic uncertainty, of what the method does not know "
        "yet; the outer one adds the noise. Both are of two standard deviations. Dots are training rows. Where there "
        "are none, the inner band should open.",
        f"Predicted mean with bands of uncertainty over the input, from {float(x.min()):.3g} to {float(x.max()):.3g}, "
        f"one panel for each method: {', '.join(judged)}.",
        leads=True,
    )


def _everywhere(judged: Judged) -> RealPredictive:
    """At the test points, then at those of another kind."""
    return at_all_points([part for part in (judged.predictive, judged.ood) if isinstance(part, RealPredictive)])


def _intervals(real: Real) -> Picture:
    transforms = {name: calibration.probability_integral_transform(*pair, seed=0) for name, pair in real.items()}
    shares = [f"{name} {float(calibration.interval_coverage(*pair, 0.9)):.2f}" for name, pair in real.items()]
    return Picture.of(
        regression.interval_calibration(transforms),
        "Do its intervals hold what they promise?",
        "For intervals that should hold a given share of the truths, the share that they do hold. On the diagonal the "
        "two agree; below it the intervals are too narrow, above it too wide. The grey band is what chance allows.",
        f"Share of truths inside central intervals against the promised share. At 90 %: {', '.join(shares)}.",
        leads=True,
    )


def _in_and_out(judged: Mapping[str, Judged]) -> Picture:
    _, (quantity, unit) = _uncertainty(judged)
    inside = {name: _spread(result.predictive) for name, result in judged.items()}
    outside = {name: _spread(result.ood) for name, result in judged.items() if result.ood is not None}
    means = [f"{name} {float(inside[name].mean()):.2g} and {float(outside[name].mean()):.2g}" for name in judged]
    return Picture.of(
        classification.entropy_histogram(
            inside, outside, in_label="test rows", out_label="rows of another kind", quantity=quantity, unit=unit
        ),
        UNSEEN,
        f"Blue: the {quantity} of test rows, which are like the training rows. Orange: that of rows of another kind. A "
        "good method puts the blue to the left and the orange to the right.",
        f"Histograms of the {quantity} of test rows and of rows of another kind, one a method. Means in {unit}: "
        f"{'; '.join(means)}.",
    )


def _images(split: Split, labelled: Labelled) -> list[Picture]:
    """Of the method with the best log score: the images that it is least sure of."""
    best = best_scored(labelled)
    predictive, y = labelled[best]
    guess = predictive.mean.max(dim=1).indices
    first = predictive.total.argsort(descending=True)[:NUM_IMAGES]
    told = [f"{int(guess[i])} for {int(y[i])}" for i in first]
    pictures = [
        Picture.of(
            images.most_uncertain(
                split.test.x, predictive.total, predicted=guess, y=y, names=predictive.names, number=NUM_IMAGES
            ),
            "What is it least sure of?",
            f"The test images of largest predictive entropy under {best}, whose log score is best. If the uncertainty "
            "means something, these are hard for you, too.",
            f"The {len(first)} test images of largest entropy under {best}. Predicted for true: {', '.join(told)}.",
            leads=True,
        )
    ]
    if predictive.mean.shape[1] <= MOST_CLASSES:
        rows = first[:NUM_BARS]
        few = {name: CategoricalPredictive.from_probs(p.mean[rows].unsqueeze(0)) for name, (p, _) in labelled.items()}
        pictures.append(
            Picture.of(
                images.class_probabilities(few, split.test.x[rows], y=y[rows], names=predictive.names),
                "What does each method say of them?",
                "The probability of each class for the first of these images. The bar of the true class is blue.",
                f"Class probabilities of {len(rows)} images, a column for each method: {', '.join(labelled)}.",
            )
        )
    return pictures


def best_scored(predicted: Mapping[str, tuple[PredictiveDistribution, Tensor]]) -> str:
    """The method with the best log score."""
    losses = {name: float(scores.negative_log_likelihood(*pair)) for name, pair in predicted.items()}
    return min(losses, key=lambda name: math.inf if math.isnan(losses[name]) else losses[name])


def loss_picture(fitted: Mapping[str, Fitted]) -> Picture:
    """Of a method that trains several networks, the mean of theirs; of one that trains none, nothing."""
    trained = {name: result for name, result in fitted.items() if result.losses}  # chains have no loss
    own = {name: result.losses for name, result in trained.items() if not result.is_scaled}
    own = own or {name: result.losses for name, result in trained.items()}
    curves = {name: np.mean(losses, axis=0) for name, losses in own.items()}
    ends = [f"{name} from {curve[0]:.3g} to {curve[-1]:.3g}" for name, curve in curves.items()]
    return Picture.of(
        training.loss_curves(curves),
        "Was it trained long enough?",
        "What the training minimised, over its passes through the data. The curves should have come to rest. Their "
        "heights do not compare, since methods minimise different things. Of an ensemble, the mean over its networks.",
        f"Training loss over epochs, one panel for each method, in nats a data point: {'; '.join(ends)}.",
    )


def _uncertainty(judged: Mapping[str, Judged]) -> tuple[bool, tuple[str, str]]:
    """Whether the targets are labels; and what `_spread` is, and its unit."""
    is_labelled = isinstance(next(iter(judged.values())).predictive, CategoricalPredictive)
    return is_labelled, ("predictive entropy", "nats") if is_labelled else ("standard deviation", "units of y")


def _spread(predictive: PredictiveDistribution) -> Tensor:
    """Total uncertainty of each row: entropy in nats, or the standard deviation in units of y."""
    return predictive.total if isinstance(predictive, CategoricalPredictive) else predictive.total.sum(dim=1).sqrt()


def shows_images(data: str, split: Split) -> bool:
    """Pictures as such, or the digits of scikit-learn, which are pictures laid out flat."""
    shape = split.test.x.shape[1:]
    return (len(shape) == 3 and shape[0] in (1, 3)) or (
        data.startswith("digits") and math.isqrt(shape[0]) ** 2 == shape[0]
    )


def _written(figure: Any, kind: str) -> bytes:
    stream = BytesIO()
    figure.savefig(stream, format=kind, dpi=DOTS_PER_INCH, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()
