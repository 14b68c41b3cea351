"""Large networks: how much memory is taken beside the weights, measured in a process of its own."""

import ctypes
import sys
import warnings
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import nn

import bayesuq as bq
from bayesuq.inference import laplace
from bayesuq.models import likelihoods

MAP_FROM = -3  # M_MMAP_THRESHOLD of malloc.h
WIDTH, DEPTH = 512, 80  # 21 million weights


def network(width: int, depth: int) -> nn.Module:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def adopted_and_saved(net: nn.Module, width: int, path: Path) -> None:
    adopted = bq.adopt(net, likelihoods.Categorical())
    data = bq.Dataset(torch.randn(20, width), torch.arange(20) % 10)
    posterior = laplace.fit(adopted, data)
    posterior.predict(data.x, num_samples=10, seed=0)
    posterior.save(path)


def kilobytes(name: str) -> int:
    """What Linux says of this process under that name; its peak begins where the fork left it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))


def measure(folder: Path) -> None:
    """What a forked process does: larger blocks are mapped on their own, so that none takes what the tests left."""
    warnings.simplefilter("ignore")
    ctypes.CDLL(None).mallopt(MAP_FROM, 2**16)
    adopted_and_saved(network(3, 1), 3, folder / "posterior")  # what is loaded once
    net = network(WIDTH, DEPTH)
    size = sum(parameter.numel() * 4 for parameter in net.parameters()) / 2**10
    resident = kilobytes("VmRSS")
    adopted_and_saved(net, WIDTH, folder / "posterior")
    (folder / "share").write_text(str((kilobytes("VmHWM") - resident) / size))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_adopting_and_laplace_take_one_copy_of_the_weights(tmp_path: Path) -> None:
    """Adopt, the law of the last layer, predictions and a file: at the peak 1.3 times the weights, one being a copy."""
    process = get_context("fork").Process(target=measure, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert 0.9 < float((tmp_path / "share").read_text()) < 1.3
