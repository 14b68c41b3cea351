"""Plain networks, with no probability in them. Any `torch.nn.Module` of the user's does as well.

Their outputs f are what a likelihood takes: (N, C) for C classes or columns. Dropout layers act only where a method
says so (`inference.dropout` above all); elsewhere they are the identity.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import nn

from bayesuq.arrays import check_count, check_probability

Activation = Literal["relu", "tanh", "silu", "gelu"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class Recipe:
    """The call that built a network: what `save` writes so that `load` can build it again."""

    builder: str
    arguments: Mapping[str, Any]


class Network(nn.Sequential):
    """Layers in sequence that remember their recipe; a slice of them, being another network, has none."""

    def __init__(self, *layers: Any, recipe: Recipe | None = None) -> None:
        super().__init__(*layers)
        self.recipe = recipe


def mlp(
    in_features: int,
    hidden: Sequence[int],
    out_features: int,
    dropout: float = 0.0,
    *,
    activation: Activation = "relu",
    batch_norm: bool = False,
) -> Network:
    """A multilayer perceptron; inputs of more than two dimensions are flattened.

    Args:
        in_features: Number of input features, after flattening.
        hidden: Widths of the hidden layers; an empty sequence gives a linear model.
        out_features: Number of outputs.
        dropout: Probability of dropping each hidden unit, in [0, 1); 0 adds no dropout layers.
        activation: Of the hidden layers.
        batch_norm: Whether a BatchNorm layer stands before each activation.

    Returns:
        A network from (N, in_features) or (N, channels, ...) to (N, out_features).

    Raises:
        TypeError: Widths that are not whole numbers, one number as `hidden`.
        ValueError: Widths below 1, `dropout` outside [0, 1), an unknown activation.

    Example:
        >>> mlp(64, (100, 100), 10)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    if not isinstance(hidden, Iterable):
        raise TypeError(f"`hidden` must be a sequence of widths, such as (100,); got {hidden!r}.")
    widths = [check_count(in_features, "in_features"), *(check_count(width, "hidden") for width in hidden)]
    out_features = check_count(out_features, "out_features")
    dropout = check_probability(dropout, "dropout")
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers.append(nn.Linear(before, after))
        layers += [nn.BatchNorm1d(after)] if batch_norm else []
        layers.append(_activation(activation))
        layers += [nn.Dropout(dropout)] if dropout else []
    layers.append(nn.Linear(widths[-1], out_features))
    arguments = {
        "in_features": widths[0],
        "hidden": widths[1:],
        "out_features": out_features,
        "dropout": dropout,
        "activation": activation,
        "batch_norm": batch_norm,
    }
    return Network(*layers, recipe=Recipe("mlp", arguments))


def convnet(
    in_channels: int,
    out_features: int,
    dropout: float = 0.0,
    *,
    channels: tuple[int, int] = (32, 64),
    hidden: int = 128,
    batch_norm: bool = False,
) -> Network:
    """A small convolutional network in the manner of LeNet (LeCun et al. 1998): two convolutions, two dense layers.

    Args:
        in_channels: Channels of the images, whose height and width may be any of at least 4.
        out_features: Number of outputs.
        dropout: Probability of dropping whole channels after the convolutions and units after the dense layer.
        channels: Channels of the two convolutions.
        hidden: Width of the dense layer.
        batch_norm: Whether BatchNorm follows each convolution.

    Returns:
        A network from (N, in_channels, H, W) to (N, out_features).

    Raises:
        TypeError: Sizes that are not whole numbers.
        ValueError: Sizes below 1, or `dropout` outside [0, 1).

    Example:
        >>> convnet(1, 10)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """
    widths = [check_count(in_channels, "in_channels"), *(check_count(width, "channels") for width in channels)]
    out_features = check_count(out_features, "out_features")
    hidden = check_count(hidden, "hidden")
    dropout = check_probability(dropout, "dropout")
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(nn.Conv2d(before, after, kernel_size=5, padding=2))
        layers += [nn.BatchNorm2d(after)] if batch_norm else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Dropout2d(dropout)] if dropout else []
    layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten()]  # a 4 x 4 grid for any size of image
    layers += [nn.Linear(16 * widths[-1], hidden), nn.ReLU()]
    layers += [nn.Dropout(dropout)] if dropout else []
    layers.append(nn.Linear(hidden, out_features))
    arguments = {
        "in_channels": widths[0],
        "out_features": out_features,
        "dropout": dropout,
        "channels": widths[1:],
        "hidden": hidden,
        "batch_norm": batch_norm,
    }
    return Network(*layers, recipe=Recipe("convnet", arguments))


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {', '.join(_ACTIVATIONS)}; got {name!r}.")
    return _ACTIVATIONS[name]()
