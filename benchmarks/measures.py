"""What measures of a million predictions cost, beside plain torch, torchmetrics and netcal.

Every contestant starts from the class probabilities and labels that it takes: bayesuq from a predictive that streamed
them, the others from the same float64 probabilities. torchmetrics' ECE and AUROC are timed although they are wrong at
times (a confidence of 1, more than 2^24 points in a bin, scores outside [0, 1]). The target: at most the time of each.
"""

import argparse
from collections.abc import Callable, Mapping
from itertools import pairwise

import netcal.metrics
import torch
import torchmetrics.functional.classification as peers
from timing import median_seconds
from torch import Tensor

from bayesuq.evaluation.calibration import expected_calibration_error
from bayesuq.evaluation.detection import aurc, auroc
from bayesuq.evaluation.scores import accuracy, brier_score, negative_log_likelihood
from bayesuq.predictive.categorical import CategoricalPredictive

NUM_BINS = 15
NUM_DRAWS = 5
OURS, PLAIN, TORCHMETRICS, NETCAL = "bayesuq", "plain torch", "torchmetrics", "netcal"
Contest = Mapping[str, Callable[[], object]]


def plain_calibration_error(probs: Tensor, y: Tensor) -> Tensor:
    """ECE as it is written everywhere: a mask for each bin."""
    confidence, label = probs.max(dim=1)
    correct, error = (label == y).double(), probs.new_zeros(())
    edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=probs.dtype)
    for lower, upper in pairwise(edges):
        held = (confidence > lower) & (confidence <= upper)
        if held.any():
            error += held.double().mean() * (correct[held].mean() - confidence[held].mean()).abs()
    return error


def plain_auroc(scores: Tensor, positives: Tensor) -> Tensor:
    """The trapezoid under the curve of all thresholds, without regard for ties."""
    found = positives[scores.argsort(descending=True)].double()
    true_rate, false_rate = found.cumsum(0) / found.sum(), (1 - found).cumsum(0) / (1 - found).sum()
    return torch.trapezoid(true_rate, false_rate)


def plain_aurc(scores: Tensor, errors: Tensor) -> Tensor:
    """The mean selective risk, without regard for ties."""
    lost = errors[scores.argsort()].double().cumsum(0)
    return (lost / torch.arange(1, len(lost) + 1)).mean()


def plain_entropies(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of the mean, and mutual information."""
    mean = draws.mean(dim=0)
    total = -torch.xlogy(mean, mean).sum(dim=1)
    return total, total + torch.xlogy(draws, draws).sum(dim=2).mean(dim=0)


def our_entropies(draws: Tensor) -> tuple[Tensor, Tensor]:
    """The same from a predictive, whose making counts."""
    predictive = CategoricalPredictive.from_probs(draws, keep_samples=False)
    return predictive.total, predictive.epistemic


def contests(num_points: int, num_classes: int) -> dict[str, Contest]:
    """What is timed: for each measure the contestants that have it."""
    torch.manual_seed(0)
    logits = 6 * torch.randn(num_points, num_classes, dtype=torch.float64)
    y = torch.distributions.Categorical(logits=0.7 * logits).sample()  # overconfident, a quarter wrong
    draws = (logits + torch.randn(NUM_DRAWS, 1, num_classes, dtype=torch.float64)).softmax(dim=2)
    predictive = CategoricalPredictive.from_logits(logits[None], keep_samples=False)
    probs = predictive.mean
    wrong, scores = probs.argmax(dim=1) != y, 1 - probs.amax(dim=1)
    options = {"num_classes": num_classes, "validate_args": False}
    arrays = probs.numpy(), y.numpy()
    return {
        "accuracy": {
            OURS: lambda: accuracy(predictive, y),
            PLAIN: lambda: (probs.argmax(dim=1) == y).double().mean(),
            TORCHMETRICS: lambda: peers.multiclass_accuracy(probs, y, average="micro", **options),
        },
        "log score": {
            OURS: lambda: negative_log_likelihood(predictive, y),
            PLAIN: lambda: -probs.gather(1, y[:, None]).log().mean(),
        },
        "Brier score": {
            OURS: lambda: brier_score(predictive, y),
            PLAIN: lambda: (probs - torch.nn.functional.one_hot(y, num_classes)).square().sum(dim=1).mean(),
        },
        f"ECE, {NUM_BINS} bins": {
            OURS: lambda: expected_calibration_error(predictive, y, NUM_BINS),
            PLAIN: lambda: plain_calibration_error(probs, y),
            TORCHMETRICS: lambda: peers.multiclass_calibration_error(probs, y, n_bins=NUM_BINS, **options),
            NETCAL: lambda: netcal.metrics.ECE(NUM_BINS).measure(*arrays),
        },
        "AUROC of errors": {
            OURS: lambda: auroc(scores, wrong),
            PLAIN: lambda: plain_auroc(scores, wrong),
            TORCHMETRICS: lambda: peers.binary_auroc(scores, wrong.int(), validate_args=False),
        },
        "AURC": {
            OURS: lambda: aurc(scores, wrong),
            PLAIN: lambda: plain_aurc(scores, wrong),
        },
        f"entropy and MI, {NUM_DRAWS} draws": {
            OURS: lambda: our_entropies(draws),
            PLAIN: lambda: plain_entropies(draws),
        },
    }


def compare(num_points: int, num_classes: int, rounds: int) -> None:
    """Print a row for each measure: milliseconds of ours, and each peer's time over it."""
    print(f"\n{num_points:,} x {num_classes} probabilities: CPU ms of bayesuq, and how often that is each peer's time")
    print(f"  {'':26s} {OURS:>9s}" + "".join(f" {peer:>13s}" for peer in (PLAIN, TORCHMETRICS, NETCAL)))
    for name, contest in contests(num_points, num_classes).items():
        seconds = median_seconds(contest, rounds=rounds, repeats=1)
        ratios = [
            f"{seconds[peer] / seconds[OURS]:12.2f}x" if peer in seconds else ""
            for peer in (PLAIN, TORCHMETRICS, NETCAL)
        ]
        print(f"  {name:26s} {1e3 * seconds[OURS]:9.1f}" + "".join(f" {ratio:>13s}" for ratio in ratios))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    compare(chosen.points, chosen.classes, chosen.rounds)
