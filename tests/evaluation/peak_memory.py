"""A script: evaluate images with few draws and with more, and print by how many bytes memory rose."""

import sys
from functools import partial
from pathlib import Path

import torch

from bayesuq.evaluation.segmentation.reporting import evaluate_segmentation, predictions
from bayesuq.inference.hmc.from_samples import from_samples
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.posterior import Posterior


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


def main(num_images: int, *numbers: int) -> None:
    posterior = drawn(max(numbers))
    x, y = torch.rand(num_images, 3, 120, 160), torch.randint(11, (num_images, 120, 160))
    before = peak()
    for num_draws in numbers:  # ascending: a peak never falls
        predict = partial(posterior.predict, num_samples=num_draws, seed=0)
        evaluate_segmentation(predictions(predict, x, y, batch_size=num_images))
        sys.stdout.write(f"{peak() - before}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
