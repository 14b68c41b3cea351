"""The MNIST table: methods on 60,000 images, a line of JSON for each seed and method, with its curve over the epochs.

Settings are fixed in a committed file. Lines that are there are skipped, and a fit that was stopped goes on from its
checkpoint: call the same command again. `--part val` fits 55,000 images and judges by the other 5,000, to choose by.
The fitted posteriors stay in the folder of the checkpoints, for `scripts/mnist_shift.py`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch

from bayesuq.inference.training.options import Progress
from scripts.mnist_methods import Images, Setting, fit, measures, read_settings
from scripts.recording import Record, Records, digest, versions

SETTINGS = Path(__file__).parent / "settings" / "mnist.toml"
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "mnist.jsonl"


def run(name: str, setting: Setting, images: Images, seed: int, options: argparse.Namespace) -> None:
    """Fit one method from one seed, if it has no line yet."""
    records = Records(options.out)
    key = key_of(name, setting, options.part, seed)
    if records.has(**key):
        print(f"{name}, seed {seed}: is there", flush=True)
        return
    file = posterior_file(options.work, key)
    checkpoint = file.with_suffix(".checkpoint")

    def tell(progress: Progress) -> None:
        seen = "" if progress.validation_loss is None else f", validation {progress.validation_loss:.4f}"
        told = f"loss {progress.loss:.4f}{seen} nats after {progress.seconds:.0f} s"
        print(f"{name}, seed {seed}, epoch {progress.epoch}: {told}", flush=True)

    resumed, begin = checkpoint.exists(), perf_counter()
    posterior = fit(setting, images, seed, checkpoint, [tell])
    seconds = None if resumed else perf_counter() - begin
    posterior.save(file)
    found = measures(setting, posterior, images, seed)
    size = {"num_train": len(images.train), "num_judged": len(images.judged)}
    how = {"seconds": seconds, "threads": torch.get_num_threads(), "versions": versions()}
    records.append({**key, **found, **size, **how})
    for part in file.parent.glob(f"{checkpoint.name}*"):
        part.unlink()
    print(f"{name}, seed {seed}: error {100 * found['error']:.2f} %", flush=True)


def key_of(name: str, setting: Setting, part: str, seed: int) -> Record:
    """What makes one line: other settings are another line."""
    return {"method": name, "part": part, "seed": seed, "settings": digest(setting)}


def posterior_file(folder: Path, key: Record) -> Path:
    """Where the fitted posterior of a line is kept."""
    return folder / f"{'-'.join(map(str, key.values()))}.safetensors"


def main(methods: Sequence[str] | None, options: argparse.Namespace) -> None:
    """Every seed and method in turn."""
    settings = read_settings(options.settings)
    options.work.mkdir(parents=True, exist_ok=True)
    images = Images.load(options.part)
    for seed in range(options.num_seeds):
        for name in methods or settings:
            run(name, settings[name], images, seed, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", help="comma-separated tables of the settings; default: all")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="TOML file with a table a method")
    parser.add_argument("--part", choices=("test", "val"), default="test", help="images to judge by; val is to choose")
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of JSON lines")
    parser.add_argument("--work", type=Path, default=Path("runs/mnist"), help="folder for checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    main(arguments.methods and arguments.methods.split(","), arguments)
