"""Large networks: how much memory is taken beside the weights, measured in a process of its own."""

import subprocess
import sys

MEASURED = """
import sys, torch, warnings
from pathlib import Path
from torch import nn
import bayesuq as bq
from bayesuq.inference import laplace
from bayesuq.models import likelihoods

warnings.simplefilter("ignore")
torch.set_num_threads(1)


def all_of(net, width, path):
    adopted = bq.adopt(net, likelihoods.Categorical())
    data = bq.Dataset(torch.randn(20, width), torch.arange(20) % 10)
    posterior = laplace.fit(adopted, data)
    posterior.predict(data.x, num_samples=10, seed=0)
    posterior.save(path)


def network(width, depth):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


all_of(network(3, 1), 3, sys.argv[1])  # what is loaded once
net = network(512, 80)  # 21 million weights
size = sum(parameter.numel() * 4 for parameter in net.parameters()) / 2**10
resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4
all_of(net, 512, sys.argv[1])
status = Path("/proc/self/status").read_text()  # its peak is this process' own, and not what it inherits
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
print((peak - resident) / size)
"""


def test_adopting_and_laplace_take_one_copy_of_the_weights(tmp_path: object) -> None:
    """Adopt, the law of the last layer, predictions and a file: at the peak 1.3 times the weights, one being a copy."""
    command = [sys.executable, "-c", MEASURED, f"{tmp_path}/posterior"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < 1.3
