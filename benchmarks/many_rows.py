"""Ten million rows of twenty columns through fit, predict and evaluate, in how much memory of the process's own.

Rows lie in memory-mapped files, whose pages the system takes back as it likes; what counts is anonymous memory, read
from /proc while each part runs. The model is a network of 20-32-1 whose targets are a known function with noise of
scale 0.3: the log score of the truth is told beside the fit's.

    python benchmarks/many_rows.py --rows 10000000
"""

import argparse
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time, sleep
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import bayesuq as bq
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

torch.set_num_threads(1)

T = TypeVar("T")
COLUMNS, NOISE, CHUNK = 20, 0.3, 500_000


def anonymous() -> float:
    """MiB of memory that no file stands behind."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return float(next(row for row in rows if row.startswith("RssAnon")).split()[1]) / 1024


def measured(name: str, work: Callable[[], T]) -> T:
    """Say what it took."""
    peak, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak.append(anonymous())
            sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begin = process_time()
    result = work()
    seconds = process_time() - begin
    done.set()
    watcher.join()
    print(f"{name:28s} {seconds:8.1f} CPU s, at most {max(peak):7.0f} MiB of its own", flush=True)
    return result


def write(folder: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y in files, by chunks."""
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, COLUMNS))
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.float32, (rows,))
    draws = np.random.default_rng(0)
    for first in range(0, rows, CHUNK):
        part = draws.standard_normal((min(CHUNK, rows - first), COLUMNS), dtype=np.float32)
        x[first : first + CHUNK] = part
        noise = NOISE * draws.standard_normal(len(part), dtype=np.float32)
        y[first : first + CHUNK] = np.sin(part[:, 0]) + 0.5 * part[:, 1] + noise
    x.flush()
    y.flush()
    return np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy", mmap_mode="r")


def main() -> None:
    """Write, fit by a Dataset and by a loader, predict and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        x, y = write(Path(folder), chosen.rows)
        data = measured("Dataset", lambda: bq.Dataset(x, y))
        net = networks.mlp(COLUMNS, (32,), 1, seed=0)
        model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=NOISE))
        options = {"num_epochs": 1, "batch_size": 4096, "learning_rate": 1e-2, "seed": 0, "progress": False}
        fit = partial(bq.inference.variational.fit, model, data, checkpoint=f"{folder}/fit", **options)
        posterior = measured("fit of the Dataset", fit)
        rows = TensorDataset(torch.from_numpy(x[: chosen.rows // 10]), torch.from_numpy(y[: chosen.rows // 10, None]))
        loader = DataLoader(rows, batch_size=4096)
        measured("fit of a loader, a tenth", lambda: bq.inference.map_estimate.fit(model, loader, **options))
        predictive = measured("predict, 4 draws", lambda: posterior.predict(data.x, num_samples=4, seed=0))
        print(predictive)
        del predictive

        def batches() -> object:
            for first in range(0, chosen.rows, CHUNK):
                part = slice(first, first + CHUNK)
                yield posterior.predict(data.x[part], num_samples=4, seed=0), data.y[part]

        report = measured("evaluate, by batches", lambda: bq.evaluation.report.evaluate(batches()))
        truth = 0.5 * np.log(2 * np.pi * NOISE**2) + 0.5
        print(report["negative_log_likelihood"], f"; of the truth {truth:.4f}")


if __name__ == "__main__":
    main()
