"""A volume to leaf through: slices with their maps, which scroll on a screen and lie one below the other on paper."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.image import imsave

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.evaluation.plots.segmentation import COLUMNS, RIGHT, VOID, WRONG, Maps, check_axis, class_colours
from bayesuq.predictive.categorical import CategoricalPredictive

LONGEST_SIDE = 128  # pixels of a map; larger ones are thinned
GAP = 1 / 24  # of a map's width, between two of them
SCALE = "magma"
STYLE = """
.bayesuq-slices { container-type: inline-size; }
.bayesuq-slices .leaves { overflow: auto; scroll-snap-type: y mandatory; border: 1px solid #8888;
  height: calc(max(100cqw, 40rem) * RATIO + 4rem); background: #fff; color: #1c2024; font-size: .85rem; }
.bayesuq-slices .names { position: sticky; top: 0; z-index: 1; display: grid; grid-template-columns: repeat(7, 1fr);
  background: #fff; min-width: 40rem; text-align: center; padding: .2rem 0; }
.bayesuq-slices .leaf { scroll-snap-align: end; min-width: 40rem; }
.bayesuq-slices .leaf img { display: block; width: 100%; image-rendering: pixelated; border: 0; border-radius: 0;
  padding: 0; }
.bayesuq-slices .leaf span { display: block; padding: .1rem .4rem; }
.bayesuq-slices .key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; margin: 0 0 .4rem; }
.bayesuq-slices .key i { display: inline-block; width: .8em; height: .8em; border: 1px solid #8888;
  margin-right: .3em; }
@media print {
  .bayesuq-slices .leaves { height: auto; overflow: visible; width: 80%; }
  .bayesuq-slices .names { position: static; min-width: 0; }
  .bayesuq-slices .leaf { min-width: 0; break-inside: avoid; }
}
"""


@dataclass(frozen=True)
class VolumeSlices:
    """The slices of one volume with their maps; a notebook shows them, and `html` goes into any page.

    Attributes:
        places: Of the slices along the axis.
        pictures: A PNG of each: image, truth, prediction, error, total, aleatoric and epistemic uncertainty, side by
            side.
        ratio: Height over width of a picture.
        share_wrong: Of the voxels of each slice, a fraction.
        highest: The uncertainty that is lightest in all of them, nats.
        classes: Name and colour of each class.
    """

    places: tuple[int, ...]
    pictures: tuple[bytes, ...]
    ratio: float
    share_wrong: tuple[float, ...]
    highest: float
    classes: tuple[tuple[str, str], ...]

    @property
    def html(self) -> str:
        """A fragment that needs no script and no other file: it scrolls slice by slice, and prints all of them."""
        style = STYLE.replace("RATIO", f"{self.ratio:.4f}")
        names = "".join(f"<span>{name}</span>" for name in COLUMNS)
        leaves = "".join(map(self._leaf, self.places, self.pictures, self.share_wrong))
        entries = [*self.classes, ("wrong", WRONG)]
        key = "".join(f'<span><i style="background: {colour}"></i>{escape(name)}</span>' for name, colour in entries)
        scale = f"<span>uncertainties from 0 (black) to {self.highest:.3g} nats (light)</span>"
        label = f"{len(self.places)} slices of a volume, to scroll through"
        return (
            f'<div class="bayesuq-slices"><style>{style}</style><div class="key">{key}{scale}</div>'
            f'<div class="leaves" tabindex="0" role="region" aria-label="{label}"><div class="names">{names}</div>'
            f"{leaves}</div></div>"
        )

    def _repr_html_(self) -> str:
        return self.html

    def _leaf(self, place: int, picture: bytes, wrong: float) -> str:
        words = f"slice {place}: {100 * wrong:.1f} % of the voxels wrong"
        source = base64.b64encode(picture).decode("ascii")
        return f'<div class="leaf"><img src="data:image/png;base64,{source}" alt="{words}"><span>{words}</span></div>'


def segmentation_slices(
    predictive: CategoricalPredictive,
    images: ArrayLike,
    y: ArrayLike,
    *,
    volume: int = 0,
    num_slices: int = 24,
    axis: int = 0,
    names: Sequence[str] | None = None,
    ignore_index: int | None = None,
) -> VolumeSlices:
    """Slices of one volume to scroll through, with the maps of `segmentation_maps` on one colour scale.

    Args:
        predictive: Of N volumes, with a mean (N, C, D, H, W).
        images: (N, D, H, W) or (N, channels, D, H, W).
        y: Labels, (N, D, H, W).
        volume: Which of the N.
        num_slices: At most, evenly through the volume. Sides above 128 pixels are thinned.
        axis: The axis that is cut across: 0 is the first after channels.
        names: Of the classes, for the key.
        ignore_index: The label of void voxels.

    Raises:
        TypeError: Not numbers.
        ValueError: See `segmentation_montage`.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.full((1, 1, 2, 4, 3, 3), 0.5))
        >>> slices = segmentation_slices(predictive, torch.rand(1, 4, 3, 3), torch.zeros(1, 4, 3, 3), num_slices=2)
        >>> slices.places, slices.html.count("<img")
        ((1, 3), 2)
    """
    maps = Maps.of(predictive, images, y, ignore_index=ignore_index)
    places, cuts = maps.through(volume, num_slices=check_count(num_slices, "num_slices"), axis=check_axis(axis))
    highest, colours = max(float(cuts.parts[0].max()), 1e-12), class_colours(cuts.num_classes)
    step = -(-max(cuts.truth.shape[1:]) // LONGEST_SIDE)
    rows = [_row(cuts.at([k]), highest, step) for k in range(len(places))]
    known = ~cuts.void
    wrong = ((cuts.said != cuts.truth) & known).flatten(1).sum(dim=1) / known.flatten(1).sum(dim=1).clamp(min=1)
    labels = [names[k] if names is not None and k < len(names) else str(k) for k in range(cuts.num_classes)]
    return VolumeSlices(
        places=tuple(places),
        pictures=tuple(map(_png, rows)),
        ratio=rows[0].shape[0] / rows[0].shape[1],
        share_wrong=tuple(wrong.tolist()),
        highest=highest,
        classes=tuple((name, str(colours.colors[k])) for k, name in enumerate(labels)),  # type: ignore[index]
    )


def _row(one: Maps, highest: float, step: int) -> np.ndarray:
    """Seven maps side by side, white between them, (H, W, 3) in [0, 1]."""
    pixels, truth, said = (np.asarray(values[0]) for values in (one.pixels, one.truth, one.said))
    void, colours = np.asarray(one.void[0])[..., None], class_colours(one.num_classes)
    grey = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
    classes = [np.where(void, to_rgb(VOID), _painted(colours, labels)) for labels in (truth, said)]
    error = np.where((said != truth)[..., None], to_rgb(WRONG), to_rgb(RIGHT))
    unsure = [colormaps[SCALE](np.asarray(part[0]) / highest)[..., :3] for part in one.parts]
    maps = [each[::step, ::step] for each in (grey, *classes, np.where(void, to_rgb(VOID), error), *unsure)]
    between = np.ones((len(maps[0]), max(1, round(GAP * maps[0].shape[1])), 3))
    return np.concatenate([part for each in maps for part in (each, between)][:-1], axis=1)


def _painted(colours: ListedColormap, labels: np.ndarray) -> np.ndarray:
    return colours(labels.clip(0, colours.N - 1))[..., :3]


def _png(row: np.ndarray) -> bytes:
    file = BytesIO()
    imsave(file, (255 * row).round().astype(np.uint8), format="png")
    return file.getvalue()
