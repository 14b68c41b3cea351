"""A ResNet-20 that somebody trained on CIFAR-10, from its arrays: adopted, it is the very network, its buffers too."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.inference import features, laplace, variational
from bayesuq.inference.adoption import adopt
from bayesuq.models import likelihoods
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.inference.examples import SHORT_FIT, noise

FILE = Path(os.environ.get("BAYESUQ_DATA", "shared/data")) / "cifar" / "resnet20.npz"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="no weights of ResNet-20 here")


class Block(nn.Module):
    """Two convolutions around which the inputs go."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            if stride > 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet20(nn.Module):
    """As the description of the arrays has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean(dim=(2, 3)))


def pretrained() -> ResNet20:
    net = ResNet20()
    net.load_state_dict({name: torch.from_numpy(value) for name, value in np.load(FILE).items()})
    return net.requires_grad_(False).eval()


@pytest.mark.filterwarnings(*SHORT_FIT, "ignore:The weights are no mode")
def test_it_is_adopted_bit_by_bit_and_stays_as_it_is() -> None:
    net, x = pretrained(), noise(0, 24, 3, 32, 32).float()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    f = net(x)
    adopted = adopt(net, likelihoods.Categorical())
    taken = features.take(adopted, x)
    assert torch.equal(taken.logits, f)
    assert torch.equal(adopted.predict(x).mean, CategoricalPredictive.from_logits(f.unsqueeze(0)).mean)
    data = Dataset(x, f.argmax(dim=1))
    fits = [laplace.fit(adopted, data), variational.fit(adopted.model, data, num_epochs=2, seed=0)]
    for posterior in fits:
        assert posterior.predict(x, num_samples=5, seed=0).epistemic.mean() > 0
        for name, value in posterior.buffers.items():
            assert torch.equal(value, before[name]), name
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
