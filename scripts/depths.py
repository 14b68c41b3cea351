"""Depths with their noise: the figures of Kendall & Gal (2017), where truth and noise of every pixel are known.

Domes under banks of haze, which makes the measurements noisy. One method knows one noise for all pixels, the other, an
ensemble of networks that tell it pixel by pixel, knows both kinds of uncertainty. Three pictures: the maps; the error
of the pixels kept when the unsurest go first (their figure 2); and intervals of pixels against what they promise (their
figure 3).
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import bayesuq as bq
from bayesuq.datasets import shapes
from bayesuq.evaluation import plots
from bayesuq.evaluation.calibration import probability_integral_transform
from bayesuq.evaluation.real_maps import evaluate_maps
from bayesuq.inference import ensemble
from bayesuq.models import likelihoods, priors
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.posterior import Posterior
from bayesuq.predictive.maps import RealMaps
from bayesuq.randomness import isolated

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "depths.png"
ONE, EACH = "one noise for all pixels", "a noise for each pixel"
NUM_SHOWN = 3


def learned(likelihood: Likelihood, num_outputs: int, seen: shapes.Depths, options: argparse.Namespace) -> Posterior:
    """An ensemble from some images."""
    with isolated(options.seed):
        net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Tanh(), nn.Conv2d(8, num_outputs, 1))
    model = bq.models.BayesianNetwork(net, priors.Normal(scale=3.0), likelihood)
    return ensemble.fit(
        model,
        bq.Dataset(seen.x, seen.y),
        num_members=4,
        num_epochs=options.num_epochs,
        batch_size=4,
        learning_rate=0.05,
        seed=options.seed,
    )


def maps_of(posterior: Posterior, x: Tensor) -> RealMaps:
    """What it says of images."""
    predictive = posterior.predict(x)
    if not isinstance(predictive, RealMaps):
        raise TypeError(f"Depths have real maps; got {type(predictive).__name__}.")
    return predictive


def main(options: argparse.Namespace) -> None:
    """Fit both, measure, draw."""
    seen, new = shapes.depths(16, seed=options.seed), shapes.depths(12, seed=options.seed + 1)
    posteriors = {
        ONE: learned(likelihoods.Normal(scale="learned"), 1, seen, options),
        EACH: learned(likelihoods.HeteroscedasticNormal(), 2, seen, options),
    }
    maps = {name: maps_of(posterior, new.x) for name, posterior in posteriors.items()}
    for name, each in maps.items():
        off = float((each.aleatoric.sqrt() / new.noise).log().abs().mean())
        print(f"{name}: noise off by a factor of {torch.tensor(off).exp():.2f}\n{evaluate_maps(each, new.y)}\n")
    figures = {
        "": plots.real_maps(maps_of(posteriors[EACH], new.x[:NUM_SHOWN]), new.x[:NUM_SHOWN], new.y[:NUM_SHOWN]),
        "-kept": plots.kept_error_curves({name: (each, new.y) for name, each in maps.items()}),
        "-calibration": plots.interval_calibration(
            {
                name: probability_integral_transform(each.pixels, each.pixel_targets(new.y))
                for name, each in maps.items()
            }
        ),
    }
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    for suffix, figure in figures.items():
        figure.savefig(options.figure.with_stem(options.figure.stem + suffix), dpi=110)
    print(f"Pictures: {options.figure.resolve()} and beside it")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-epochs", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    torch.set_num_threads(1)
    main(parser.parse_args())
