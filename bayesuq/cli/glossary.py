"""What a newcomer would ask of each row of a report: plain words for measures and methods."""

from dataclasses import dataclass, replace

from bayesuq.cli.methods import Method
from bayesuq.inference.catalogue import BY_COMMAND

PREDICTIONS, CALIBRATION, UNCERTAINTY, ERRORS, OOD, FIT, FURTHER = (
    "Are the predictions good?",
    "Do its probabilities come true?",
    "How unsure is it, and why?",
    "Does it notice its own errors?",
    "Does it notice data of another kind?",
    "Did the fit come to its end?",
    "Further measures",
)
LARGER, SMALLER = "Larger is better.", "Smaller is better."
SECTIONS = (PREDICTIONS, CALIBRATION, UNCERTAINTY, ERRORS, OOD, FIT, FURTHER)


@dataclass(frozen=True)
class Entry:
    """What a measure is.

    Attributes:
        section: Under which of `SECTIONS` it stands.
        title: Its name in words.
        text: What it says; empty where nothing is written of it here.
        better: `LARGER` or `SMALLER`; empty where neither is better.
    """

    section: str
    title: str
    text: str = ""
    better: str = ""


MEASURES: dict[str, Entry] = {
    "accuracy": Entry(PREDICTIONS, "Accuracy", "Share of rows whose most probable class is the true one.", LARGER),
    "pixel_accuracy": Entry(PREDICTIONS, "Pixel accuracy", "Share of pixels whose class is the true one.", LARGER),
    "intersection_over_union": Entry(
        PREDICTIONS,
        "Intersection over union",
        "Pixels that truth and prediction share, over those of either: mean over classes, or the foreground's.",
        LARGER,
    ),
    "dice": Entry(
        PREDICTIONS,
        "Dice",
        "Twice the pixels that truth and prediction share, over those of both: mean over classes, or the foreground's.",
        LARGER,
    ),
    "predictive_entropy_overlap": Entry(
        UNCERTAINTY,
        "Overlap with errors, entropy",
        "Whether the pixels of large entropy are the wrong ones: 1 is exactly those. Compare it with the floor below.",
        LARGER,
    ),
    "mutual_information_overlap": Entry(
        UNCERTAINTY, "Overlap with errors, mutual information", "Likewise, of the epistemic part alone.", LARGER
    ),
    "maximum_probability_overlap": Entry(
        UNCERTAINTY, "Overlap with errors, probability", "Likewise, by the largest probability of a pixel.", LARGER
    ),
    "overlap_floor": Entry(
        UNCERTAINTY,
        "Floor of the overlap",
        "What an uncertainty without information reaches: all pixels are uncertain.",
    ),
    "patch_accuracy_against_uncertainty": Entry(
        UNCERTAINTY,
        "Patches, accuracy against uncertainty",
        "Share of patches of 4 x 4 pixels that are right and sure, or wrong and unsure.",
        LARGER,
    ),
    "root_mean_squared_error": Entry(
        PREDICTIONS,
        "Root mean squared error",
        "How far the predicted mean is from the truth, large errors counting more.",
        SMALLER,
    ),
    "negative_log_likelihood": Entry(
        PREDICTIONS,
        "Negative log likelihood",
        "Mean surprise: minus the log of the probability (or density) given to the truth. Sure and wrong costs most.",
        SMALLER,
    ),
    "brier_score": Entry(
        PREDICTIONS,
        "Brier score",
        "Squared distance from the predicted probabilities to the truth: 1 for the true class, 0 for the others.",
        SMALLER,
    ),
    "crps": Entry(
        PREDICTIONS,
        "CRPS",
        "Distance from the whole predicted distribution to the truth; the absolute error where it is a point.",
        SMALLER,
    ),
    "expected_calibration_error": Entry(
        CALIBRATION,
        "Expected calibration error",
        "Mean gap between confidence and accuracy: of predictions made with 80 % confidence, 80 % should be right.",
        SMALLER,
    ),
    "interval_coverage": Entry(
        CALIBRATION,
        "Interval coverage",
        "Share of truths inside the central intervals that should hold 90 % of them. Below, it is too sure; above, not "
        "sure enough.",
    ),
    "interval_width": Entry(
        CALIBRATION, "Interval width", "Of these intervals: the narrower the better, if they hold what they should."
    ),
    "interval_score": Entry(
        CALIBRATION,
        "Interval score",
        "Both in one number: the width of the intervals, and a fine for each truth outside.",
        SMALLER,
    ),
    "temperature": Entry(
        CALIBRATION,
        "Temperature",
        "What the logits were divided by to fit held-out rows best. Above 1 the method had been too sure; below 1, not "
        "sure enough.",
    ),
    "predictive_entropy": Entry(
        UNCERTAINTY,
        "Predictive entropy",
        "The total uncertainty of a prediction: 0 is certain. It is the sum of the two rows below; less is not better.",
    ),
    "expected_entropy": Entry(
        UNCERTAINTY,
        "Expected entropy",
        "The aleatoric part: what each single draw is unsure of, such as a smudged digit. More training data would not "
        "remove it.",
    ),
    "mutual_information": Entry(
        UNCERTAINTY,
        "Mutual information",
        "The epistemic part: how far the draws disagree, which is what the model does not know yet. 0 for one network.",
    ),
    "aleatoric_variance": Entry(
        UNCERTAINTY,
        "Aleatoric variance",
        "The noise that the method sees in the targets; more data would not remove it.",
    ),
    "epistemic_variance": Entry(
        UNCERTAINTY,
        "Epistemic variance",
        "How far the draws disagree on the mean, which is what the model does not know yet. 0 for one network.",
    ),
    "misclassification_auroc": Entry(
        ERRORS,
        "Predictive entropy, AUROC",
        "Chance that a wrong prediction is less sure (by its entropy) than a right one: 0.5 is a coin, 1 perfect.",
        LARGER,
    ),
    "aurc": Entry(
        ERRORS,
        "Predictive entropy, area under risk-coverage",
        "Error rate of the rows that are kept when the least sure are refused, averaged over how many are kept.",
        SMALLER,
    ),
    "elbo_rise": Entry(
        FIT,
        "Rise of the ELBO",
        "What the objective gained over the last tenth of the epochs, at rates that fell. Well above 0, train longer.",
    ),
    "scale_movement": Entry(
        FIT,
        "Movement of the scales",
        "How far the posterior's scales went from where they started. Below about 1 they were hardly learned, and the "
        "uncertainty is made up.",
    ),
    "kl_weight": Entry(
        FIT,
        "Weight of the divergence",
        "1 is Bayes, and is not shown. Any other weight tempers the posterior: below 1 the data count more than once.",
    ),
    "pareto_k": Entry(
        FIT,
        "Pareto k-hat",
        "Whether the approximation reaches wherever the true posterior does: below 0.7 it does, above 1 it misses "
        "parts. For a neural network's weights that is usual; what it costs, the measures on test rows tell.",
    ),
}

# By what is sought, and then by the end of a measure's name: what it is called, and what it says of the score.
DETECTION: dict[str, tuple[str, dict[str, tuple[str, str, str]]]] = {
    "ood_": (
        OOD,
        {
            "auroc": (
                "AUROC",
                "Chance that a row of another kind gets a larger {score} than a test row: 0.5 is a coin, 1 perfect.",
                LARGER,
            ),
            "average_precision": (
                "average precision",
                "Share of the other kind among the rows of largest {score}, averaged over thresholds.",
                LARGER,
            ),
            "false_positive_rate": (
                "false positive rate",
                "Share of test rows above the {score} that 95 % of the other kind exceed: false alarms.",
                SMALLER,
            ),
        },
    ),
    "error_": (
        ERRORS,
        {
            "auroc": (
                "AUROC",
                "Chance that a wrong prediction has a smaller {score} than a right one: 0.5 is a coin, 1 perfect.",
                LARGER,
            ),
            "average_precision": (
                "average precision",
                "Share of wrong predictions among those of smallest {score}, averaged over thresholds.",
                LARGER,
            ),
            "false_positive_rate": (
                "false positive rate",
                "Share of right predictions below the {score} that 95 % of the wrong ones stay under: false alarms.",
                SMALLER,
            ),
        },
    ),
}


def explain(name: str) -> Entry:
    """What is written of a measure; of an unknown one its name in words.

    Example:
        >>> explain("ood_mutual_information_auroc").title
        'Mutual information, AUROC'
        >>> explain("interval_coverage[1]").title
        'Interval coverage, column 1'
    """
    if name in MEASURES:
        return MEASURES[name]
    if name.endswith("]") and "[" in name:  # of one target column
        whole, _, column = name[:-1].rpartition("[")
        entry = explain(whole)
        return replace(entry, title=f"{entry.title}, column {column}")
    for sought, (section, kinds) in DETECTION.items():
        for kind, (title, text, better) in kinds.items():
            if name.startswith(sought) and name.endswith(f"_{kind}"):
                score = name.removeprefix(sought).removesuffix(f"_{kind}").replace("_", " ")
                return Entry(section, f"{score.capitalize()}, {title}", text.format(score=score), better)
    return Entry(FURTHER, name.replace("_", " ").capitalize())


AROUND = {  # what is done otherwise around a network that is trained already
    "map": "The network as it was trained: the baseline, without any uncertainty about its weights.",
    "ensemble": "copies of the network, of which each goes on training what is random, on rows drawn with replacement.",
}


def describe(method: Method, num_members: int, *, is_around: bool = False) -> str:
    """What a method is, in a sentence; around a network that is trained already or from initial weights."""
    if is_around and method.kind == "map":
        return AROUND["map"]
    if method.base is None:
        return BY_COMMAND[method.kind].sentence
    if method.kind == "ensemble":
        what = "" if method.base.kind == "map" else f" Each is itself a posterior: {method.base.name}."
        if is_around:
            return f"{num_members} {AROUND['ensemble']}{what}"
        return f"{num_members} networks trained from different starts; their disagreement is the uncertainty.{what}"
    base = method.base.name
    if method.kind == "confidence":
        return (
            f"{base}, beside a second network that has learned from training and validation rows how probable it makes "
            "the true class (ConfidNet). The predictions are the same; the learned confidence says which to trust."
        )
    if method.kind == "quantile_calibration":
        return f"{base}, with the quantiles of its predictions moved to where the validation rows say that they are."
    return (
        f"{base}, with the logits of its draws divided by one number, the temperature, that fits the validation rows."
    )
