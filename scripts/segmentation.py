"""Segmentation with uncertainty: every method on `membrane`, `camvid` or `shapes`, judged where its maps are wrong.

A line of JSON for each method and seed; lines that are there are skipped, fitted posteriors are kept in a folder, and a
fit that was stopped goes on from its checkpoint: call the same command again. Measures are exact over all labelled
pixels, their errors over images; the thresholds of the overlap are chosen on the validation images.
"""

import argparse
import math
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

import bayesuq as bq
from bayesuq.datasets.named import CLASS_NAMES, WITHOUT_BACKGROUND
from bayesuq.evaluation import plots
from bayesuq.evaluation.segmentation.reporting import SegmentationResult, evaluate_segmentation, predictions
from bayesuq.posterior import Posterior
from bayesuq.randomness import derive_seed
from scripts.recording import Record, Records, digest, versions
from scripts.segmentation_methods import METHODS, STANDS_ON, Setting, fit, read_settings

SETTINGS = Path(__file__).parent / "settings" / "segmentation.toml"
DOCS = Path(__file__).parents[1] / "docs"
NUM_SHOWN = 3  # test images in a picture


def evaluated(
    posterior: Posterior, split: bq.Split, setting: Setting, seed: int, batch_size: int, *, background: bool = False
) -> SegmentationResult:
    """The measures on test images, with the thresholds of the validation images."""
    predict = partial(posterior.predict, num_samples=setting.num_samples, seed=seed)

    def result(part: bq.Dataset, validation: SegmentationResult | None) -> SegmentationResult:
        batches = predictions(predict, part.x, part.y, batch_size=batch_size)
        return evaluate_segmentation(
            batches, ignore_index=setting.ignore_index, validation=validation, background=background
        )

    return result(split.test, result(split.val, None))


def draw(data: str, posterior: Posterior, split: bq.Split, setting: Setting, seed: int, out: Path) -> None:
    """A few test images of a data set with their maps."""
    step = max(1, len(split.test) // NUM_SHOWN)
    shown = split.test.rows(range(0, len(split.test), step)[:NUM_SHOWN])
    predictive = posterior.predict(shown.x, num_samples=setting.num_samples, seed=seed)
    figure = plots.segmentation_maps(
        predictive,  # type: ignore[arg-type]
        shown.x,
        shown.y,
        names=CLASS_NAMES[data],
        ignore_index=setting.ignore_index,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def run(method: str, setting: Setting, split: bq.Split, seed: int, options: argparse.Namespace) -> None:
    """Fit, judge and draw one method, if it has no line yet."""
    records = Records(options.out)
    key: Record = {"data": options.data, "method": method, "seed": seed, "settings": digest(setting)}
    if records.has(**key):
        return
    posterior, seconds = fitted(key, setting, split, options.work)
    result = evaluated(
        posterior,
        split,
        setting,
        derive_seed(seed, 1),
        options.batch_size,
        background=options.data in WITHOUT_BACKGROUND,
    )
    print(f"{method}, seed {seed}\n{result.report}\n", flush=True)
    draw(
        options.data,
        posterior,
        split,
        setting,
        derive_seed(seed, 1),
        options.work / "figures" / posterior_file(Path(), key).with_suffix(".png"),
    )
    measures = {
        measure.name: [measure.value if math.isfinite(measure.value) else None, measure.standard_error, measure.remark]
        for measure in result.report.measures
    }
    found = {"measures": measures, "num_images": len(split.test), "num_draws": result.report.num_samples}
    records.append({**key, **found, "seconds": seconds, "versions": versions()})


def fitted(key: Record, setting: Setting, split: bq.Split, folder: Path) -> tuple[Posterior, float | None]:
    """The posterior of a line, from its file where it is there, and the seconds that an unbroken fit took."""
    file, seconds = posterior_file(folder, key), None
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        base = STANDS_ON.get(key["method"])
        given = None if base is None else bq.load(posterior_file(folder, {**key, "method": base}))
        checkpoint, begin = file.with_suffix(".checkpoint"), perf_counter()
        resumed = any(folder.glob(f"{checkpoint.name}*"))
        fit(key["method"], setting, split, key["seed"], given, checkpoint).save(file)
        seconds = None if resumed else perf_counter() - begin
        for part in folder.glob(f"{checkpoint.name}*"):
            part.unlink()
    return bq.load(file), seconds


def posterior_file(folder: Path, key: Record) -> Path:
    """Where the fitted posterior of a line is kept."""
    return folder / f"{'-'.join(map(str, key.values()))}.safetensors"


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
