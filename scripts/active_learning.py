"""How many labels does BALD save? MNIST labelled step by step, where dropout's draws disagree and by chance.

Both begin with the same two images of each digit, and every fit begins from the same initial weights. A line of JSON
for each score and seed, which holds its curve; lines that are there are skipped. The optimiser and the rates of
dropout were chosen by validation images; those of the test only judge.

References:
    Gal, Islam, Ghahramani, "Deep Bayesian active learning with image data", ICML 2017: the experiment, with ten labels
        at a time, a larger network and accuracies of draws.
"""

import argparse
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import bayesuq as bq
from bayesuq.evaluation.scores import accuracy
from bayesuq.inference.dropout import DropoutPosterior
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.models import BayesianNetwork, likelihoods, priors
from bayesuq.randomness import generator, isolated
from scripts.recording import Records, versions

DOCS = Path(__file__).parents[1] / "docs"
SCORES: tuple[Literal["bald", "random"], ...] = ("bald", "random")
COLOURS = {"bald": "#0072B2", "random": "#555555"}
LEVELS = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is labelled, and how each fit is made.

    Attributes:
        of_each_class: Labels of every class at the start.
        num_labels: Labels at the end.
        at_a_time: Labels between two fits.
        candidates: Images of the pool that are looked at for a choice, drawn anew each time.
        num_choosing: Draws by which images are chosen.
        num_steps: Of Adam, at least, whatever the number of labels.
        learning_rate: Of Adam at the start.
        batch_size: Images in a minibatch.
    """

    of_each_class: int = 2
    num_labels: int = 500
    at_a_time: int = 40
    candidates: int = 1000
    num_choosing: int = 20
    num_steps: int = 250
    learning_rate: float = 0.003
    batch_size: int = 32


def network(seed: int) -> BayesianNetwork:
    """Two convolutions and two dense layers for images of 28 x 28, with dropout behind all but the first and last."""
    with isolated(seed):
        net = nn.Sequential(
            *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
            *(nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Dropout(0.25), nn.Linear(128, 10)),
        )
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())


def balanced(y: Tensor, of_each_class: int, seed: int) -> Tensor:
    """Numbers of as many rows of each class, drawn by the seed."""
    order = torch.randperm(len(y), generator=generator(seed))
    return torch.cat([order[y[order] == label][:of_each_class] for label in y.unique()])


def without_dropout(posterior: bq.Posterior) -> MapPosterior:
    """The network with all its units, one pass of which takes the place of many draws."""
    if not isinstance(posterior, DropoutPosterior):
        raise TypeError(f"Dropout was fitted; got {type(posterior).__name__}.")
    parts = {name: getattr(posterior, name) for name in ("model", "values", "buffers", "history")}
    return MapPosterior(**parts)


def label(
    pool: bq.Dataset, judged: bq.Dataset, score: Literal["bald", "random"], seed: int, setting: Setting
) -> bq.active.Curve:
    """Accuracy on other images with every number of labels."""

    def fit(data: bq.Dataset) -> bq.Posterior:
        num_epochs = math.ceil(setting.num_steps / math.ceil(len(data.x) / setting.batch_size))
        how = {"batch_size": setting.batch_size, "learning_rate": setting.learning_rate}
        return bq.inference.dropout.fit(network(seed), data, num_epochs=num_epochs, seed=seed, progress=False, **how)

    def judge(posterior: bq.Posterior) -> float:
        return float(accuracy(without_dropout(posterior).predict(judged.x), judged.y))

    return bq.active.learn(
        fit,
        pool.x,
        lambda rows: pool.y[rows],
        judge,
        start=balanced(pool.y, setting.of_each_class, seed),
        num_labels=setting.num_labels,
        at_a_time=setting.at_a_time,
        score=score,
        num_samples=setting.num_choosing,
        candidates=setting.candidates,
        seed=seed,
    )


def run(pool: bq.Dataset, judged: bq.Dataset, records: Records, seeds: Sequence[int], setting: Setting) -> None:
    """Every score and seed that has no line yet."""
    for seed in seeds:
        for score in SCORES:
            if records.has(score=score, seed=seed):
                continue
            begin = process_time()
            curve = label(pool, judged, score, seed, setting)
            needed = {str(level): curve.labels_for(level) for level in LEVELS}
            found = {"num_labels": curve.num_labels, "accuracy": curve.values, "labels_for": needed}
            cost = {"cpu_seconds": round(process_time() - begin, 1), "versions": versions()}
            records.append({"score": score, "seed": seed, **found, **cost})
            print(f"{score}, seed {seed}: labels needed {needed}, at the end {curve.values[-1]:.4f}", flush=True)


def draw(records: Records) -> Figure:
    """Accuracy over labels: the mean of the seeds, and each of them."""
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    panel = figure.subplots()
    for score in SCORES:
        lines = [line for line in records.read() if line["score"] == score]
        for line in lines:
            panel.plot(line["num_labels"], line["accuracy"], color=COLOURS[score], alpha=0.3, linewidth=0.8)
        mean = torch.tensor([line["accuracy"] for line in lines]).mean(dim=0)
        panel.plot(lines[0]["num_labels"], mean, color=COLOURS[score], label={"bald": "BALD"}.get(score, score))
    for level in LEVELS:
        panel.axhline(level, color="#999999", linewidth=0.6, linestyle=":")
    panel.set(xlabel="labels", ylabel="accuracy on test images")
    panel.legend(frameon=False, loc="lower right")
    return figure


def main(options: argparse.Namespace) -> None:
    """Run what is missing, and draw all."""
    split, records = bq.datasets.load("mnist"), Records(options.out)
    run(split.train, split.test, records, range(options.num_seeds), Setting())
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    draw(records).savefig(options.figure, dpi=110)
    print(f"Picture: {options.figure.resolve()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, default=DOCS / "results" / "active-learning.jsonl", help="file of JSON lines"
    )
    parser.add_argument("--figure", type=Path, default=DOCS / "figures" / "active-learning.png")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", bq.ConvergenceWarning)  # a fit to some images is stopped after so many steps
    main(parser.parse_args())
