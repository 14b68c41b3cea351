"""For `test_reporting`: evaluate images with few draws and with more, and tell by how many bytes memory rose."""

import ctypes
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bayesuq.evaluation.segmentation.reporting import evaluate_segmentation, predictions
from bayesuq.inference.from_samples import from_samples
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.posterior import Posterior

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # glibc's names of what `mallopt` sets


def drawn(number: int) -> Posterior:
    """Weights from nowhere: what is measured is prediction and evaluation, and a fit would take longer."""
    torch.manual_seed(0)
    model = BayesianNetwork(networks.unet(3, 11, depth=2, width=4), priors.Normal(), likelihoods.Categorical())
    samples = {name: value + 0.1 * torch.randn(number, *value.shape) for name, value in model.initial().items()}
    return from_samples(model, samples, by_chain=False)


def peak() -> int:
    """Of this process's own memory, in bytes; `getrusage` would begin at that of the process that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def return_at_once() -> None:
    """Let every larger block of memory be mapped and returned on its own: the peak is then that of the tensors.

    What glibc else keeps of freed memory differs by a quarter from run to run.
    """
    libc = ctypes.CDLL(None)
    for setting, value in {ARENA_MAX: 1, MMAP_THRESHOLD: 65536, TRIM_THRESHOLD: 65536}.items():
        libc.mallopt(setting, value)
    libc.malloc_trim(0)


def rises(num_images: int, *numbers: int) -> list[int]:
    """By how much memory has risen after each number of draws."""
    posterior = drawn(max(numbers))
    x, y = torch.rand(num_images, 3, 120, 160), torch.randint(11, (num_images, 120, 160))
    before, found = peak(), []
    for num_draws in numbers:  # ascending: a peak never falls
        predict = partial(posterior.predict, num_samples=num_draws, seed=0)
        evaluate_segmentation(predictions(predict, x, y, batch_size=4))
        found.append(peak() - before)
    return found


def send(connection: Any, num_images: int, *numbers: int) -> None:
    """What a process does whose memory is measured."""
    return_at_once()
    connection.send(rises(num_images, *numbers))


if __name__ == "__main__":
    print(*rises(*map(int, sys.argv[1:])), sep="\n")  # noqa: T201
