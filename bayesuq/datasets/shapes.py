"""Images to segment, drawn by code: discs and squares whose borders have noisy labels, and an object never trained on.

Of a pixel at signed distance d inside an object, the label is the object's with probability sigmoid(d / BORDER), drawn
for each pixel by itself: how sure one can be at a border is known, and no amount of data makes it more. The image is
blurred alike. The unfamiliar object, a disc of a colour that no other pixel has, is in `.ood` only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesuq.data import Dataset, Split
from bayesuq.randomness import generator

BACKGROUND, DISC, SQUARE, UNFAMILIAR = range(4)
CLASS_NAMES = ("background", "disc", "square", "unfamiliar")
SIDE = 48  # pixels
BORDER = 1.0  # pixels over which a label turns from one class to the other
COLOURS = ((0.25, 0.25, 0.25), (0.75, 0.25, 0.25), (0.25, 0.25, 0.75), (0.25, 0.9, 0.25))  # by class
NOISE = 0.05  # of the image, in each colour
VOLUME_SPACING = (2.0, 1.0, 1.0)  # of slices, rows and columns
LEAST_SPREAD, MOST_SPREAD = 0.05, 0.4  # of the noise of heights, where the haze is thin and thick
NUM_TRAIN, NUM_VAL, NUM_TEST, NUM_OOD = 200, 40, 60, 20


@dataclass(frozen=True, eq=False)
class Scene:
    """N images with what is known of them.

    Attributes:
        x: Colours in [0, 1], (N, 3, H, W).
        probs: The true law of each pixel's label, (N, 4, H, W).
        y: Labels, (N, H, W).
    """

    x: Tensor
    probs: Tensor
    y: Tensor


def split(seed: int) -> Split:
    """Training, validation and test images; `.ood` has the unfamiliar object in each, its pixels labelled 3."""
    parts = [
        draw(number, seed=seed, part=part, unfamiliar=part == 3)
        for part, number in enumerate((NUM_TRAIN, NUM_VAL, NUM_TEST, NUM_OOD))
    ]
    train, val, test, ood = (Dataset(scene.x, scene.y) for scene in parts)
    return Split(train=train, val=val, test=test, ood=ood)


def draw(number: int, *, seed: int, part: int = 0, unfamiliar: bool = False) -> Scene:
    """So many images, each with a disc and a square, and where asked for with an unfamiliar object over them."""
    noise = generator(seed, part)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    inside = [_disc(*_place(number, noise), rows, columns), _square(*_place(number, noise), rows, columns, noise)]
    covered = [torch.sigmoid(distance / BORDER) for distance in inside]
    if unfamiliar:
        covered.append(torch.sigmoid(_disc(*_place(number, noise), rows, columns) / BORDER))
    else:
        covered.append(torch.zeros_like(covered[0]))
    probs = _stacked(covered)
    image = torch.einsum("nkhw,kc->nchw", probs, torch.tensor(COLOURS))
    x = (image + NOISE * torch.randn(image.shape, generator=noise)).clamp(0, 1)
    y = torch.multinomial(probs.movedim(1, -1).reshape(-1, len(CLASS_NAMES)), 1, generator=noise)
    return Scene(x=x, probs=probs, y=y.view(number, SIDE, SIDE))


def _place(number: int, noise: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of centres, and sizes, each (N, 1, 1), in pixels."""
    uniform = torch.rand(3, number, 1, 1, generator=noise)
    return 8 + (SIDE - 16) * uniform[0], 8 + (SIDE - 16) * uniform[1], 5 + 4 * uniform[2]


def _disc(row: Tensor, column: Tensor, radius: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Signed distance from its border, positive inside."""
    return radius - ((rows - row).square() + (columns - column).square()).sqrt()


def _square(row: Tensor, column: Tensor, half: Tensor, rows: Tensor, columns: Tensor, noise: torch.Generator) -> Tensor:
    """Likewise, of one that is turned by some angle."""
    angle = torch.pi / 2 * torch.rand(row.shape, generator=noise)
    down, right = rows - row, columns - column
    turned = down * angle.cos() - right * angle.sin(), down * angle.sin() + right * angle.cos()
    return half - torch.maximum(turned[0].abs(), turned[1].abs())


def _stacked(covered: list[Tensor]) -> Tensor:
    """The law of labels, (N, 1 + K, H, W), of K objects each of which lies over those before it."""
    left, probs = torch.ones_like(covered[0]), []
    for share in reversed(covered):
        probs.append(left * share)
        left = left * (1 - share)
    return torch.stack([left, *reversed(probs)], dim=1)


@dataclass(frozen=True, eq=False)
class Depths:
    """N images of heights, measured with a noise that depends on place, and what is known of them.

    Attributes:
        x: What is seen, (N, 2, H, W): the height, dimmed, and the haze before it, from 0 to 1.
        y: Heights as measured, (N, 1, H, W).
        mean: Heights as they are, (N, 1, H, W).
        noise: Standard deviation of the measurements, (N, 1, H, W): it grows with the haze.
    """

    x: Tensor
    y: Tensor
    mean: Tensor
    noise: Tensor


def depths(number: int, *, seed: int, side: int = 24) -> Depths:
    """So many images of a dome each under a bank of haze, whose noise is known pixel by pixel.

    Args:
        number: N.
        seed: Of all that is drawn.
        side: H and W, in pixels.
    """
    noise = generator(seed, 4)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    row, column, radius = ((0.25 + 0.5 * torch.rand(3, number, 1, 1, generator=noise)) * side).unbind()
    mean = (1 - ((rows - row).square() + (columns - column).square()) / radius.square()).clamp(min=0).unsqueeze(1)
    haze = torch.sigmoid(6 * (columns / side - torch.rand(number, 1, 1, generator=noise))).unsqueeze(1)
    haze = haze.expand(mean.shape)
    spread = LEAST_SPREAD + (MOST_SPREAD - LEAST_SPREAD) * haze
    y = mean + spread * torch.randn(mean.shape, generator=noise)
    return Depths(x=torch.cat([0.5 * mean, haze], dim=1), y=y, mean=mean, noise=spread)


@dataclass(frozen=True, eq=False)
class Volumes:
    """N volumes with what is known of them.

    Attributes:
        x: Intensities, (N, 1, D, H, W).
        probs: The true law of each voxel's label, (N, 3, D, H, W).
        y: Labels: 0 is background, 1 an organ, 2 a lesion in it, (N, D, H, W).
        is_degraded: Which were taken badly: almost without contrast, and noisy, (N,).
    """

    x: Tensor
    probs: Tensor
    y: Tensor
    is_degraded: Tensor


def volumes(
    number: int, *, seed: int, part: int = 0, size: tuple[int, int, int] = (8, 16, 16), degraded: float = 0.0
) -> Volumes:
    """So many volumes of thick slices, twice as far apart as voxels in them, whose borders have noisy labels.

    Args:
        number: N.
        seed: Of all that is drawn.
        part: Another one draws other volumes.
        size: D, H and W, in voxels.
        degraded: Share of them that is taken badly.
    """
    noise = generator(seed, 5, part)
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in size), indexing="ij")
    places = torch.stack(axes) * torch.tensor(VOLUME_SPACING).view(3, 1, 1, 1)
    ends = torch.tensor([float(side) * step for side, step in zip(size, VOLUME_SPACING, strict=True)])
    uniform = torch.rand(number, 8, generator=noise)
    centre = (0.4 + 0.2 * uniform[:, :3]) * ends
    radius = (0.3 + 0.1 * uniform[:, 3:4]) * ends.min()
    inner = centre + 0.6 * radius * (uniform[:, 4:7] - 0.5)
    inside = [
        length.view(-1, 1, 1, 1) - (places - middle.view(-1, 3, 1, 1, 1)).square().sum(dim=1).sqrt()
        for middle, length in ((centre, radius), (inner, radius * (0.5 + 0.2 * uniform[:, 7:8])))
    ]
    organ, lesion = (torch.sigmoid(4 * distance / BORDER) for distance in inside)
    lesion = lesion * organ
    probs = torch.stack([1 - organ, organ - lesion, lesion], dim=1)
    is_degraded = torch.rand(number, generator=noise) < degraded
    contrast = torch.where(is_degraded, 0.25, 1.0).view(-1, 1, 1, 1)
    spread = torch.where(is_degraded, 4.0, 1.0).view(-1, 1, 1, 1) * NOISE
    image = 0.2 + contrast * (0.3 * probs[:, 1] + 0.7 * probs[:, 2])
    x = (image + spread * torch.randn(image.shape, generator=noise)).unsqueeze(1)
    y = torch.multinomial(probs.movedim(1, -1).reshape(-1, 3), 1, generator=noise).view(number, *size)
    return Volumes(x=x, probs=probs, y=y, is_degraded=is_degraded)
