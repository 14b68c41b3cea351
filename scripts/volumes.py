"""Volumes from end to end: a 3-d U-Net in windows, its maps, and which volumes were segmented badly.

Balls with a lesion in them, drawn by code in thick slices; borders have noisy labels, and some of the new volumes were
taken almost without contrast. Members of an ensemble disagree on these, and the uncertainty of a whole volume, which
does not see the truth, finds those of low Dice.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

import bayesuq as bq
from bayesuq.datasets import shapes
from bayesuq.evaluation import plots, segmentation
from bayesuq.evaluation.segmentation.reporting import predictions
from bayesuq.inference import ensemble
from bayesuq.models import likelihoods, networks, priors

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "volumes.png"
NAMES = ("background", "organ", "lesion")
WINDOW = (8, 12, 12)


def members(options: argparse.Namespace) -> ensemble.EnsemblePosterior:
    """The ensemble, trained on volumes that were taken well."""
    seen = shapes.volumes(options.num_train, seed=options.seed)
    net = networks.unet(1, 3, depth=1, width=6, spatial_dims=3, spacing=shapes.VOLUME_SPACING, seed=options.seed)
    model = bq.models.BayesianNetwork(net, priors.Normal(scale=1.0), likelihoods.Categorical())
    return ensemble.fit(
        model,
        bq.Dataset(seen.x, seen.y),
        num_members=options.num_members,
        num_epochs=options.num_epochs,
        batch_size=4,
        learning_rate=1e-2,
        seed=options.seed,
    )


def main(options: argparse.Namespace) -> None:
    """Fit, predict in windows, measure, draw."""
    posterior = members(options)
    new = shapes.volumes(options.num_test, seed=options.seed, part=1, degraded=0.3)
    predict = partial(posterior.predict, window=WINDOW, overlap=0.5, blend="gaussian", keep_samples=True)
    batches = list(predictions(predict, new.x, new.y, batch_size=10))
    result = segmentation.evaluate_segmentation(batches, foreground_radius=2)
    failures = segmentation.image_failures(batches, failed_below=options.failed_below)
    print(f"seed {options.seed}\n{result.report}\n\n{result.class_report(NAMES)}\n\n{failures.report}\n")
    predictive, truth = batches[0]
    borders = segmentation.surface_distances(predictive, truth, spacing=shapes.VOLUME_SPACING)
    print(
        f"95 % Hausdorff distance of the organ, median of {len(truth)}: {float(borders.hausdorff[:, 0].median()):.2f}"
    )

    chosen = [int(new.is_degraded.float().argmin()), int(new.is_degraded.float().argmax())]
    x, y = new.x[chosen], new.y[chosen]
    figure = plots.segmentation_maps(predict(x), x, y, names=NAMES, labels=["taken well", "taken badly"])
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=110)
    montage = plots.segmentation_montage(predict(x), x, y, volume=1, num_slices=4, names=NAMES)
    montage.savefig(options.figure.with_stem(f"{options.figure.stem}-montage"), dpi=110)
    print(f"Pictures: {options.figure.resolve()}, and its slices beside it")


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line; None is the one that was called."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-members", type=int, default=4)
    parser.add_argument("--num-epochs", type=int, default=40)
    parser.add_argument("--num-train", type=int, default=32)
    parser.add_argument("--num-test", type=int, default=40)
    parser.add_argument("--failed-below", type=float, default=0.6, help="Dice below which a volume has failed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(parsed())
