"""Calibration under shift: MNIST's test images turned, and under noise, for every posterior that `mnist.py` has fitted.

A line of JSON for each posterior; lines that are there are skipped. The picture shows ECE, log score, Brier score and
error against the amount of shift, mean over seeds with a band of one standard error (after Ovadia et al. 2019).
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import bayesuq as bq
from bayesuq.evaluation.calibration import expected_calibration_error
from bayesuq.evaluation.plots.shift import shift_curves
from bayesuq.evaluation.scores import accuracy, brier_score, negative_log_likelihood
from bayesuq.randomness import derive_seed, generator
from scripts.mnist import SETTINGS, key_of, posterior_file
from scripts.mnist_methods import Images, read_settings
from scripts.recording import Records, digest, versions

DOCS = Path(__file__).parents[1] / "docs"
ROTATION, NOISE = "rotation, degrees", "noise, its scale as a share of white"
AMOUNTS = {ROTATION: [*range(0, 91, 15), 120, 150, 180], NOISE: [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
NUM_SAMPLES = 20  # draws, where there is no end of them
MEASURES = {
    "ECE": expected_calibration_error,
    "NLL, nats": negative_log_likelihood,
    "Brier score": brier_score,
    "error": lambda predictive, y: 1 - accuracy(predictive, y),
}


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images (N, 1, H, W) turned counterclockwise about their centre, bilinear, black beyond the edges."""
    angle = math.radians(degrees)
    turn = images.new_tensor(
        [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    ).expand(len(images), 2, 3)
    return functional.grid_sample(
        images, functional.affine_grid(turn, images.shape, align_corners=False), align_corners=False
    )


def noisy(images: Tensor, scale: float, seed: int) -> Tensor:
    """Images with Gaussian noise of a scale that is a share of white, cut off at black and at white."""
    white = images.max()
    noise = torch.randn(images.shape, generator=generator(seed))
    return (images + scale * white * noise).clamp(torch.zeros_like(white), white)


def shifted(images: Tensor, seed: int) -> Iterator[tuple[str, float, Tensor]]:
    """Every kind and amount of shift, with its images; the noise is the same for all methods."""
    for degrees in AMOUNTS[ROTATION]:
        yield ROTATION, degrees, rotated(images, degrees)
    for number, scale in enumerate(AMOUNTS[NOISE]):
        yield NOISE, scale, noisy(images, scale, derive_seed(seed, number))


def measures(posterior: bq.Posterior, images: bq.Dataset, seed: int) -> dict[str, dict[str, list[float]]]:
    """By kind of shift and measure, at each amount."""
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in MEASURES} for kind in AMOUNTS}
    for kind, _, x in shifted(images.x, seed=0):
        predictive = posterior.predict(x, num_samples=NUM_SAMPLES, seed=seed)
        for name, measure in MEASURES.items():
            found[kind][name].append(float(measure(predictive, images.y)))
    return found


def picture(records: list[dict[str, Any]], out: Path) -> None:
    """Draw the lines of all methods."""
    methods = list(dict.fromkeys(record["method"] for record in records))

    def repeats(kind: str, measure: str, method: str) -> list[list[float]]:
        return [record["shift"][kind][measure] for record in records if record["method"] == method]

    curves: Mapping[str, Any] = {
        kind: {measure: {method: repeats(kind, measure, method) for method in methods} for measure in MEASURES}
        for kind in AMOUNTS
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    shift_curves(curves, AMOUNTS).savefig(out, dpi=110)


def main(options: argparse.Namespace) -> None:
    """Every seed and method that was fitted, and the picture of all lines."""
    records, images = Records(options.out), Images.load("test").judged
    settings = read_settings(options.settings)
    for seed in range(options.num_seeds):
        for name, setting in settings.items():
            file = posterior_file(options.work, key_of(name, setting, "test", seed))
            key = {"method": name, "seed": seed, "settings": digest(setting), "num_samples": NUM_SAMPLES}
            if file.exists() and not records.has(**key):
                found = measures(bq.load(file), images, derive_seed(seed, 4))
                records.append({**key, "shift": found, "num_judged": len(images), "versions": versions()})
                print(f"{name}, seed {seed}: done", flush=True)
    wanted = {(name, digest(setting)) for name, setting in settings.items()}
    if lines := [line for line in records.read() if (line["method"], line["settings"]) in wanted]:
        picture(lines, options.figure)
        print(f"Picture: {options.figure.resolve()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="TOML file with a table a method")
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/mnist"), help="folder of the fitted posteriors")
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "mnist-shift.jsonl", help="file of JSON lines")
    parser.add_argument("--figure", type=Path, default=DOCS / "figures" / "mnist-shift.png")
    torch.set_num_threads(1)
    main(parser.parse_args())
