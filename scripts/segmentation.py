"""Segmentation with uncertainty: every method on `membrane`, `camvid` or `shapes`, judged where its maps are wrong.

A line of JSON for each method and seed; lines that are there are skipped, and fitted posteriors are kept in a folder,
so that the command can be stopped and called again. Measures are exact over all labelled pixels, their errors over
images; the thresholds of the overlap are chosen on the validation images.
"""

import argparse
import math
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

import bayesuq as bq
from bayesuq.evaluation import plots
from bayesuq.evaluation.segmentation_report import SegmentationResult, evaluate_segmentation, predictions
from bayesuq.inference.map_estimate import MapPosterior
from bayesuq.posterior import Posterior
from bayesuq.randomness import derive_seed
from scripts.recording import Record, Records, digest, versions
from scripts.segmentation_methods import METHODS, ON_MAP, Setting, fit, read_settings

SETTINGS = Path(__file__).parent / "settings" / "segmentation.toml"
DOCS = Path(__file__).parents[1] / "docs"
NUM_SHOWN = 3  # test images in a picture


def evaluated(
    posterior: Posterior, split: bq.Split, setting: Setting, seed: int, batch_size: int
) -> SegmentationResult:
    """The measures on test images, with the thresholds of the validation images."""
    predict = partial(posterior.predict, num_samples=setting.num_samples, seed=seed)

    def result(part: bq.Dataset, validation: SegmentationResult | None) -> SegmentationResult:
        batches = predictions(predict, part.x, part.y, batch_size=batch_size)
        return evaluate_segmentation(batches, ignore_index=setting.ignore_index, validation=validation)

    return result(split.test, result(split.val, None))


def draw(posterior: Posterior, split: bq.Split, setting: Setting, seed: int, out: Path) -> None:
    """A few test images with their maps."""
    x, y = split.test.x[:: max(1, len(split.test) // NUM_SHOWN)], split.test.y[:: max(1, len(split.test) // NUM_SHOWN)]
    x, y = x[:NUM_SHOWN], y[:NUM_SHOWN]
    predictive = posterior.predict(x, num_samples=setting.num_samples, seed=seed)
    figure = plots.segmentation_maps(predictive, x, y, ignore_index=setting.ignore_index)  # type: ignore[arg-type]
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def run(method: str, setting: Setting, split: bq.Split, seed: int, options: argparse.Namespace) -> None:
    """Fit, judge and draw one method, if it has no line yet."""
    records = Records(options.out)
    key: Record = {"data": options.data, "method": method, "seed": seed, "settings": digest(setting)}
    if records.has(**key):
        return
    name = "-".join(map(str, key.values()))
    file, begin = options.work / f"{name}.safetensors", perf_counter()
    mode = bq.load(options.work / f"{name.replace(method, 'map', 1)}.safetensors") if method in ON_MAP else None
    seconds = None
    if not file.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        fit(method, setting, split, seed, mode if isinstance(mode, MapPosterior) else None).save(file)
        seconds = perf_counter() - begin
    posterior = bq.load(file)
    result = evaluated(posterior, split, setting, derive_seed(seed, 1), options.batch_size)
    print(f"{method}, seed {seed}\n{result.report}\n", flush=True)
    draw(posterior, split, setting, derive_seed(seed, 1), options.work / "figures" / f"{name}.png")
    measures = {
        measure.name: [measure.value if math.isfinite(measure.value) else None, measure.standard_error, measure.remark]
        for measure in result.report.measures
    }
    found = {"measures": measures, "num_images": len(split.test), "num_draws": result.report.num_samples}
    records.append({**key, **found, "seconds": seconds, "versions": versions()})


def main(options: argparse.Namespace) -> None:
    """Every seed and method, those that others stand on first."""
    torch.set_num_threads(options.num_threads)
    setting, split = read_settings(options.settings)[options.data], bq.datasets.load(options.data)
    for seed in range(options.num_seeds):
        for method in sorted(options.methods.split(","), key=METHODS.index):
            run(method, setting, split, seed, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["membrane", "camvid", "shapes"])
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them, with commas between")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="TOML file with a table a data set")
    parser.add_argument("--num-seeds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4, help="images predicted at a time")
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/segmentation"), help="folder of posteriors, pictures")
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "segmentation.jsonl", help="JSON lines")
    main(parser.parse_args())
