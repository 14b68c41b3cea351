"""How far SWAG's draws differ on `membrane`, by the rate of its SGD and by the scale of its law: on validation images.

A line for each rate and scale: the median standard deviation of a weight, and of ten draws the mutual information in
nats a pixel, over all pixels and over those predicted wrong, with the log score and the Dice. SGD goes on from a mode
that `segmentation.py` has kept, of the same settings, for a quarter of its epochs.

    python -m scripts.rates_and_draws runs/segmentation/membrane-map-0-*.safetensors
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import bayesuq as bq
from bayesuq.evaluation.segmentation.pixel_counts import PixelCounts
from bayesuq.inference import swag
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.swag import SwagPosterior
from scripts.segmentation import SETTINGS
from scripts.segmentation_methods import HELD_OUT_DRAWS, Setting, lowered, model, read_settings, training_data

RATES = (0.003, 0.03, 0.3)  # of the mean loss over pixels
SCALES = (1.0, 100.0)


def told(posterior: SwagPosterior, val: bq.Dataset) -> str:
    """What its draws say of validation images."""
    predictive = posterior.predict(val.x, num_samples=HELD_OUT_DRAWS, seed=0)
    counts = PixelCounts.of(predictive, val.y).pooled
    wrong = predictive.epistemic[predictive.mean.max(dim=1).indices != val.y].mean()
    return (
        f"sd of a weight {float(posterior.variance.median().sqrt()):.1e}, mutual information "
        f"{float(counts.epistemic):.1e} nats, where wrong {float(wrong):.1e}; "
        f"{float(counts.negative_log_likelihood):.4f} nats, Dice {float(counts.dice):.3f}"
    )


def main(path: Path, setting: Setting) -> None:
    """A fit for each rate."""
    split, mode = bq.datasets.load("membrane"), bq.load(path)
    if not isinstance(mode, MapPosterior):
        raise TypeError(f"{path} must hold a mode; got a {type(mode).__name__}.")
    data, num_pixels = training_data(setting, split.train), split.train.y[0].numel()
    for rate in RATES:
        options = {**setting.training, "seed": 0, "mode": mode, "swa_learning_rate": rate / num_pixels}
        with lowered(setting, "swag"):
            posterior = swag.fit(model(setting, split.train.x.shape[1], seed=0), data, **options)
        for scale in SCALES:
            print(f"rate {rate}, scale {scale:g}: {told(replace(posterior, scale=scale), split.val)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("posterior", type=Path)
    parser.add_argument("--settings", type=Path, default=SETTINGS.with_stem("segmentation-turned"))
    torch.set_num_threads(1)
    chosen = parser.parse_args()
    main(chosen.posterior, read_settings(chosen.settings)["membrane"])
