"""Plain networks, with no probability in them. Any `torch.nn.Module` of the user's does as well.

Their outputs f are what a likelihood takes: (N, C) for C classes or columns, (N, C, ...) for those of pixels. Dropout
layers act only where a method says so (`inference.dropout` above all); elsewhere they are the identity.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesuq.arrays import check_count, check_each, check_one_of, check_positive, check_probability
from bayesuq.randomness import isolated, resolve_seed

__all__ = ["convnet", "mlp", "unet"]
__dir__ = __all__.copy

Activation = Literal["relu", "tanh", "silu", "gelu"]
Norm = Literal["batch", "group"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class _Layers:
    """Torch's layers for images of one spatial rank."""

    convolution: type[nn.Module]
    transposed: type[nn.Module]
    pool: type[nn.Module]
    dropout: type[nn.Module]
    batch_norm: type[nn.Module]

    def norm(self, name: str, channels: int) -> nn.Module:
        """The normalisation of that name."""
        return self.batch_norm(channels) if name == "batch" else nn.GroupNorm(math.gcd(8, channels), channels)


_BY_RANK = {
    1: _Layers(nn.Conv1d, nn.ConvTranspose1d, nn.MaxPool1d, nn.Dropout1d, nn.BatchNorm1d),
    2: _Layers(nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.Dropout2d, nn.BatchNorm2d),
    3: _Layers(nn.Conv3d, nn.ConvTranspose3d, nn.MaxPool3d, nn.Dropout3d, nn.BatchNorm3d),
}
Sizes = int | tuple[int, ...]
Distances = tuple[float, ...] | None


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
    seed: int | None = None,
) -> Network:
    """A multilayer perceptron; inputs of more than two dimensions are flattened.

    Args:
        in_features: Number of input features, after flattening.
        hidden: Widths of the hidden layers; an empty sequence gives a linear model.
        out_features: Number of outputs.
        dropout: Probability of dropping each hidden unit, in [0, 1); 0 adds no dropout layers.
        activation: Of the hidden layers.
        batch_norm: Whether a BatchNorm layer stands before each activation.
        seed: Of the initial weights, which are then the same in every process; None draws them from torch's generator.

    Returns:
        A network from (N, in_features) or (N, channels, ...) to (N, out_features).

    Raises:
        TypeError: Widths that are not whole numbers, one number as `hidden`.
        ValueError: Widths below 1, `dropout` outside [0, 1), an unknown activation.

    Example:
        >>> mlp(64, (100, 100), 10)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    widths = [check_count(in_features, "in_features"), *check_each(hidden, "hidden", check_count)]
    out_features = check_count(out_features, "out_features")
    dropout = check_probability(dropout, "dropout")
    check_one_of(activation, "activation", Activation)
    layers: list[nn.Module] = [nn.Flatten()]
    with _drawn_from(seed):
        for before, after in pairwise(widths):
            layers.append(nn.Linear(before, after))
            layers += [nn.BatchNorm1d(after)] if batch_norm else []
            layers.append(_ACTIVATIONS[activation]())
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
    seed: int | None = None,
) -> Network:
    """A small convolutional network in the manner of LeNet (LeCun et al. 1998): two convolutions, two dense layers.

    Args:
        in_channels: Channels of the images, whose height and width may be any of at least 4.
        out_features: Number of outputs.
        dropout: Probability of dropping whole channels after the convolutions and units after the dense layer.
        channels: Channels of the two convolutions.
        hidden: Width of the dense layer.
        batch_norm: Whether BatchNorm follows each convolution.
        seed: Of the initial weights, which are then the same in every process; None draws them from torch's generator.

    Returns:
        A network from (N, in_channels, H, W) to (N, out_features).

    Raises:
        TypeError: Sizes that are not whole numbers.
        ValueError: Sizes below 1, or `dropout` outside [0, 1).

    Example:
        >>> convnet(1, 10)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """
    widths = [check_count(in_channels, "in_channels"), *check_each(channels, "channels", check_count)]
    out_features = check_count(out_features, "out_features")
    hidden = check_count(hidden, "hidden")
    dropout = check_probability(dropout, "dropout")
    layers: list[nn.Module] = []
    with _drawn_from(seed):
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


class UNet(nn.Module):
    """Encoder, bottom and decoder joined by skips; see `unet`.

    Attributes:
        recipe: The call that built it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        block: Callable[..., nn.Module],
        strides: Sequence[Sizes],
        layers: _Layers,
        recipe: Recipe | None,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        levels = range(len(strides))
        before = [in_channels, *widths]
        self.encoder = nn.ModuleList(block(before[level], widths[level], level) for level in levels)
        # An odd row or column goes on alone, and is cropped on the way up.
        self.pools = nn.ModuleList(layers.pool(stride, ceil_mode=True) for stride in strides)
        self.bottom = block(widths[-2], widths[-1], len(strides))
        self.up = nn.ModuleList(
            layers.transposed(widths[level + 1], widths[level], strides[level], stride=strides[level])
            for level in levels
        )
        self.decoder = nn.ModuleList(block(2 * widths[level], widths[level], level) for level in levels)
        self.head = layers.convolution(widths[0], out_channels, kernel_size=1)  # last, as "last_layer" wants it

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, ...) to (N, out_channels, ...)."""
        skips = []
        for block, pool in zip(self.encoder, self.pools, strict=True):
            skips.append(block(x))
            x = pool(skips[-1])
        x = self.bottom(x)
        for level in reversed(range(len(skips))):
            skip = skips[level]
            inside = (slice(None), slice(None), *(slice(size) for size in skip.shape[2:]))
            x = self.decoder[level](torch.cat([skip, self.up[level](x)[inside]], dim=1))
        return self.head(x)


class PatchedUNet(nn.Module):
    """A U-Net whose pixels are patches of the image, and a last layer over features of single pixels; see `unet`.

    Attributes:
        recipe: The call that built it.
    """

    def __init__(self, patches: UNet, head: nn.Module, sides: Sequence[int], recipe: Recipe) -> None:
        super().__init__()
        self.recipe, self.sides = recipe, tuple(sides)
        self.patches = patches
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, ...) to (N, out_channels, ...)."""
        inside = (slice(None), slice(None), *(slice(size) for size in x.shape[2:]))
        features = functional.relu(self.patches(self._gathered(x)))
        return self.head(self._spread(features)[inside])

    def _gathered(self, x: Tensor) -> Tensor:
        """The pixels of a patch as channels; what lacks at the far ends is as the last pixels are."""
        missing = [(0, -size % side) for size, side in zip(x.shape[2:], self.sides, strict=True)]
        if any(more for _, more in missing):
            x = functional.pad(x, [number for pair in reversed(missing) for number in pair], mode="replicate")
        rank = len(self.sides)
        parts = [number for size, side in zip(x.shape[2:], self.sides, strict=True) for number in (size // side, side)]
        apart = x.reshape(*x.shape[:2], *parts)
        return apart.permute(0, 1, *range(3, 2 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2)).flatten(1, 1 + rank)

    def _spread(self, x: Tensor) -> Tensor:
        """Channels of a patch as those of its pixels."""
        rank = len(self.sides)
        apart = x.unflatten(1, (-1, *self.sides))
        order = [place for axis in range(rank) for place in (2 + rank + axis, 2 + axis)]
        size = [number * side for number, side in zip(x.shape[2:], self.sides, strict=True)]
        return apart.permute(0, 1, *order).reshape(*apart.shape[:2], *size)


def unet(
    in_channels: int,
    out_channels: int,
    *,
    depth: int = 4,
    width: int = 32,
    dropout: float = 0.0,
    norm: Norm | None = "batch",
    spatial_dims: int = 2,
    spacing: Sequence[float] | None = None,
    patch_size: int = 1,
    seed: int | None = None,
) -> UNet | PatchedUNet:
    """A U-Net (Ronneberger, Fischer & Brox 2015) that keeps an image's size, whatever it is.

    Each level has two convolutions of 3 pixels a side, and half the resolution and twice the channels of the one above;
    skips carry each level of the encoder to the decoder. Unlike the paper's, convolutions are padded. Whole channels
    are dropped where Bayesian SegNet (Kendall, Badrinarayanan & Cipolla 2017, section 4: the central layers) has its
    dropout: after the blocks of the deeper half of the levels, in encoder and decoder, and after the bottom.

    Slices of a volume that lie far apart are neither convolved nor halved across while their distance is at least twice
    the smallest spacing of the level: the rule of nnU-Net (Isensee et al. 2021).

    Args:
        in_channels: Channels of the images, of any size.
        out_channels: Outputs for each pixel: one for each class, or 1 for Bernoulli.
        depth: Times that the resolution is halved.
        width: Channels of the first level.
        dropout: Probability of dropping a channel, in [0, 1); 0 adds no dropout layers.
        norm: After each 3 x 3 convolution: "batch" for BatchNorm, which wants batches of several images; "group" for
            GroupNorm (Wu & He 2018) in at most 8 groups, which does not; or None.
        spatial_dims: 1 for signals (N, channels, L), 2 for images (N, channels, H, W), 3 for volumes
            (N, channels, D, H, W).
        spacing: Distance of neighbouring pixels along each axis, in any unit, such as (5, 1, 1) of thick slices; None
            is the same along all.
        patch_size: Pixels a side that the first level takes as one, their values as its channels, along the axes that
            are near. The last layer sees width / patch_size features of every pixel. With 2, a step takes a third of
            the time.
        seed: Of the initial weights, which are then the same in every process; None draws them from torch's generator.

    Returns:
        A network from (N, in_channels, ...) to (N, out_channels, ...), whose last layer is a convolution of one pixel.

    Raises:
        TypeError: Sizes that are not whole numbers.
        ValueError: Sizes below 1, `dropout` outside [0, 1), an unknown `norm`, another rank than 1, 2 or 3, another
            number of spacings than axes or one that is not above 0.

    Example:
        >>> unet(3, 11, depth=2, width=8)(torch.zeros(2, 3, 15, 20)).shape
        torch.Size([2, 11, 15, 20])
        >>> unet(1, 2, depth=2, width=4, spatial_dims=3, spacing=(5, 1, 1))(torch.zeros(1, 1, 6, 16, 16)).shape
        torch.Size([1, 2, 6, 16, 16])
    """
    in_channels, out_channels = check_count(in_channels, "in_channels"), check_count(out_channels, "out_channels")
    depth, width = check_count(depth, "depth"), check_count(width, "width")
    dropout = check_probability(dropout, "dropout")
    if norm is not None:
        check_one_of(norm, "norm", Norm)
    if check_count(spatial_dims, "spatial_dims") not in _BY_RANK:
        raise ValueError(f"`spatial_dims` must be 1, 2 or 3; got {spatial_dims}.")
    layers, distances = _BY_RANK[spatial_dims], _check_spacing(spacing, spatial_dims)
    arguments = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "depth": depth,
        "width": width,
        "dropout": dropout,
        "norm": norm,
        "spatial_dims": spatial_dims,
        "spacing": None if distances is None else list(distances),
    }
    side = check_count(patch_size, "patch_size")
    if side > 1:
        arguments["patch_size"] = side  # of others it is left out, so that files of before and of now are alike
    sides, distances = _patch(side, distances, spatial_dims)
    kernels, strides = _sizes(distances, depth)

    def block(before: int, after: int, level: int) -> nn.Module:
        kernel = kernels[level]
        padding = kernel // 2 if isinstance(kernel, int) else tuple(size // 2 for size in kernel)
        parts: list[nn.Module] = []
        for channels in (before, after):
            parts.append(layers.convolution(channels, after, kernel_size=kernel, padding=padding))
            parts += [] if norm is None else [layers.norm(norm, after)]
            parts.append(nn.ReLU())
        return nn.Sequential(*parts, *([layers.dropout(dropout)] if dropout and 2 * level >= depth else []))

    widths, recipe = [width * 2**level for level in range(depth + 1)], Recipe("unet", arguments)
    with _drawn_from(seed):
        if side == 1:
            return UNet(in_channels, out_channels, widths, block, strides, layers, recipe)
        features, pixels = max(1, width // side), math.prod(sides)
        patches = UNet(in_channels * pixels, features * pixels, widths, block, strides, layers, None)
        return PatchedUNet(patches, layers.convolution(features, out_channels, kernel_size=1), sides, recipe)


def _patch(side: int, spacing: Distances, spatial_dims: int) -> tuple[list[int], Distances]:
    """Pixels a side along each axis, and the distances of patches."""
    if spacing is None:
        return [side] * spatial_dims, None
    sides = [side if distance < 2 * min(spacing) else 1 for distance in spacing]
    return sides, tuple(distance * number for distance, number in zip(spacing, sides, strict=True))


def _check_spacing(spacing: Sequence[float] | None, spatial_dims: int) -> tuple[float, ...] | None:
    """The distances, or a ValueError unless there is one above 0 for each axis."""
    if spacing is None:
        return None
    distances = check_each(spacing, "spacing", check_positive)
    if len(distances) != spatial_dims:
        raise ValueError(f"`spacing` must have {spatial_dims} numbers, one for each axis; got {len(distances)}.")
    return distances


def _sizes(spacing: tuple[float, ...] | None, depth: int) -> tuple[list[Sizes], list[Sizes]]:
    """Kernels of the levels, the bottom's too, and the strides from one to the next."""
    if spacing is None:
        return [3] * (depth + 1), [2] * depth
    kernels: list[Sizes] = []
    strides: list[Sizes] = []
    for _ in range(depth + 1):
        near = [distance < 2 * min(spacing) for distance in spacing]
        kernels.append(tuple(3 if is_near else 1 for is_near in near))
        strides.append(tuple(2 if is_near else 1 for is_near in near))
        spacing = tuple(distance * (2 if is_near else 1) for distance, is_near in zip(spacing, near, strict=True))
    return kernels, strides[:-1]


def _drawn_from(seed: int | None) -> AbstractContextManager[None]:
    """Layers made within draw their weights by this seed and leave torch's generator as it is; None draws from that."""
    return nullcontext() if seed is None else isolated(resolve_seed(seed))
