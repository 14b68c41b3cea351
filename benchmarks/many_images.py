"""Ten thousand images by twenty draws through predict and evaluate, in how much memory of the process's own.

Images are made when they are asked for, a disc each whose border has noisy labels, and go one by one: what stays of one
are its counts. What is measured is the streaming, so that the network is two small convolutions, under mean field.
Anonymous memory is read from /proc while it runs. A line of JSON for each two-hundredth of them says how far it came;
the same command goes on after the last one, and the report is of the images of the process that ends.

    python -m benchmarks.many_images --images 10000 --side 512 --out many_images.jsonl
"""

import argparse
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from time import process_time, sleep
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import bayesuq as bq
from bayesuq.evaluation.segmentation.reporting import evaluate_segmentation
from bayesuq.models import BayesianNetwork, likelihoods, priors
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.randomness import generator, isolated
from benchmarks.many_rows import anonymous

DRAWS, NUM_LINES = 20, 200
BORDER, NOISE = 2.0, 0.3  # pixels over which labels turn; of the image


class Discs(Dataset[tuple[Tensor, Tensor]]):
    """Images (1, H, W) and their labels (H, W), made from their number."""

    def __init__(self, first: int, end: int, side: int) -> None:
        self.first, self.end, self.side = first, end, side

    def __len__(self) -> int:
        return self.end - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = generator(0, self.first + index)
        row, column, radius = (torch.rand(3, generator=noise) * 0.5 + 0.25).tolist()
        rows, columns = torch.meshgrid(torch.arange(self.side), torch.arange(self.side), indexing="ij")
        away = ((rows - row * self.side).square() + (columns - column * self.side).square()).sqrt()
        inside = torch.sigmoid((0.5 * radius * self.side - away) / BORDER)
        y = (torch.rand(inside.shape, generator=noise) < inside).long()
        return (inside + NOISE * torch.randn(inside.shape, generator=noise))[None], y


def fitted() -> Posterior:
    """Mean field over two convolutions, from a few small images."""
    images, labels = (torch.stack(parts) for parts in zip(*(Discs(0, 16, 64)[k] for k in range(16)), strict=True))
    with isolated(0):
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    options: dict[str, Any] = {"num_epochs": 60, "batch_size": 4, "learning_rate": 1e-2, "seed": 0, "progress": False}
    return bq.inference.variational.fit(model, bq.Dataset(images, labels), **options)


class Watch:
    """The most anonymous memory since it was last asked for, MiB."""

    def __init__(self) -> None:
        self.peak = anonymous()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous())
            sleep(0.01)

    def taken(self) -> float:
        """It, and begin anew."""
        peak, self.peak = self.peak, anonymous()
        return peak


def stream(posterior: Posterior, data: Discs, out: Path) -> Iterator[tuple[PredictiveDistribution, Tensor]]:
    """Predictions with their truth, and a line for each two-hundredth of the images up to the last."""
    watch, begin = Watch(), process_time()
    for done, (x, y) in enumerate(DataLoader(data, batch_size=1), start=data.first + 1):
        yield posterior.predict(x, num_samples=DRAWS, seed=0), y
        if done % max(1, data.end // NUM_LINES) == 0:
            seconds, peak = round(process_time() - begin, 1), round(watch.taken(), 1)
            line = {"images": done, "side": data.side, "cpu_seconds": seconds, "peak_mib": peak}
            begin = process_time()
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def main() -> None:
    """Go on where the lines end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--out", type=Path, default=Path("many_images.jsonl"))
    chosen = parser.parse_args()
    lines = chosen.out.read_text(encoding="utf-8").splitlines() if chosen.out.exists() else []
    first = json.loads(lines[-1])["images"] if lines else 0
    torch.set_num_threads(1)
    posterior = fitted()
    print(f"before images: {anonymous():.0f} MiB; from image {first}", flush=True)
    data = Discs(first, chosen.images, chosen.side)
    result = evaluate_segmentation(stream(posterior, data, chosen.out))
    print(result.report["dice"], result.report["negative_log_likelihood"], sep="\n")


if __name__ == "__main__":
    main()
