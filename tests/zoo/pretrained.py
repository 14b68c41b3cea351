"""Networks whose initial weights are more than what `reset_parameters` gives, as pretrained ones are."""

import torch
from torch import Tensor, nn


class VisionTransformer(nn.Module):
    """Patches, a class token and positions that are bare parameters, one encoder layer, a head; x (N, 1, 4, 4)."""

    def __init__(self, num_classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 5, width))
        self.encoder = nn.TransformerEncoderLayer(width, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1) + self.positions
        return self.head(self.encoder(tokens)[:, 0])


class ConvNext(nn.Module):
    """One block with a layer scale, a bare parameter; x (N, 1, 4, 4)."""

    def __init__(self, num_classes: int = 3, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 2, stride=2)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.pointwise = nn.LayerNorm(width), nn.Linear(width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-2))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        changed = self.pointwise(self.norm(self.depthwise(maps).movedim(1, -1)))
        maps = maps + (self.gamma * nn.functional.gelu(changed)).movedim(-1, 1)
        return self.head(maps.mean(dim=(2, 3)))


class LowRank(nn.Module):
    """A frozen linear layer and an adapter, B A x, which starts at nothing: B is 0 (Hu et al. 2021)."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False)
        self.start()

    def start(self) -> None:
        """As the paper initialises it."""
        nn.init.normal_(self.lora_A.weight, std=0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.lora_B(self.lora_A(x))


def adapted(width: int = 30) -> nn.Module:
    """A network of two frozen layers with adapters; x (N, 3)."""
    return nn.Sequential(LowRank(nn.Linear(3, width)), nn.Tanh(), LowRank(nn.Linear(width, 3)))


def start_adapters(net: nn.Module, _seed: int) -> nn.Module:
    """What to pass as `initialise` for it."""
    for module in net.modules():
        if isinstance(module, LowRank):
            module.start()
    return net
