"""Windows that are slid over images too large for one pass, and what they predict blended into that of the whole.

A draw of weights or masks is one function: it sees all windows of an image, and its class probabilities p_w in window w
are blended before they are mixed with those of other draws,

    p(x) = sum_w k_w(x) p_w(x) / sum_w k_w(x)        for each draw,

k_w being 1, or largest in the middle of a window, whose borders know least of their surroundings. So uncertainties
split as those of whole images do. Of real targets it is means and noise variances that are blended.

Where every pixel that counts has all that it depends on within its window, the result is that of the whole image: pass
the reach of the network as `margin`. A network that halves its resolution also needs windows that begin where its
coarsest pixels do, and one that normalises over an image sees another image in each window.

Reference:
    Isensee et al. 2021, nnU-Net, section "Inference", for half a window of overlap and the weights; their standard
    deviation is an eighth of the window, as MONAI's `sliding_window_inference` has it, too.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypedDict

import numpy as np
import torch
from torch import Tensor

from bayesuq.arrays import check_count, check_one_of, check_probability
from bayesuq.options import nearest
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.maps import RealMaps, at_pixels

__all__ = ["WindowOptions", "Windows", "refuse_windows"]
__dir__ = __all__.copy

Blend = Literal["gaussian", "constant"]
DEVIATION = 1 / 8  # of the Gaussian weights, in sides of a window
LEAST_WEIGHT = 1e-3  # of a window's middle, so that corners count where nothing else covers them
OTHERS = ("num_samples", "seed", "keep_samples", "differentiable")  # that a prediction takes beside windows
Place = tuple[Any, ...]  # of slices


class WindowOptions(TypedDict, total=False):
    """How large images are predicted; see `Posterior.predict`."""

    window: int | Sequence[int] | None
    overlap: float
    blend: Blend
    margin: int


@dataclass(frozen=True)
class Windows:
    """A way to cut images.

    Attributes:
        sides: Pixels along each axis; one number is for all axes.
        overlap: Of neighbouring windows, as a share of their sides.
        blend: By which weights.
        margin: Pixels at the cut edges of a window that do not count.
    """

    sides: tuple[int, ...]
    overlap: float
    blend: Blend
    margin: int

    @classmethod
    def of(cls, options: WindowOptions) -> Self | None:
        """By the options of a prediction; None without a window.

        Raises:
            TypeError: Unknown options; sides or a margin that are not whole numbers.
            ValueError: Sides below 1, an overlap outside [0, 1), an unknown blend; the others without a window.
        """
        known = list(WindowOptions.__annotations__)
        for name in options:
            if name not in known:
                raise TypeError(f"predict() has no argument {name!r}; {nearest(name, [*OTHERS, *known])}.")
        window = options.get("window")
        if window is None:
            if len(options) > ("window" in options):
                raise ValueError("`overlap`, `blend` and `margin` are of windows: pass `window`, such as (96, 96, 96).")
            return None
        if isinstance(window, Tensor | np.ndarray):
            window = window.tolist()
        sides = tuple(window) if isinstance(window, Sequence) and not isinstance(window, str) else (window,)
        overlap = check_probability(options.get("overlap", 0.5), "overlap")
        blend = options.get("blend", "gaussian")
        check_one_of(blend, "blend", Blend)
        margin = check_count(options.get("margin", 0), "margin", minimum=0)
        return cls(tuple(check_count(side, "window") for side in sides), overlap, blend, margin)

    def first(self, rows: Any) -> Tensor:
        """The first window of each image, by which a network's needs are known.

        Raises:
            TypeError: Inputs of several parts.
            ValueError: Inputs without pixels; another number of sides than axes.
        """
        return self._cut(rows, next(self._places(self._check(rows))))

    def whole(
        self, rows: Any, predict: Callable[[Tensor], PredictiveDistribution], *, keep_samples: bool
    ) -> PredictiveDistribution:
        """What some draws predict of whole images.

        Args:
            rows: Images, (N, channels, ...).
            predict: From a window of each image to the predictive of the draws, which must be kept in it.
            keep_samples: Whether they stay available.

        Raises:
            TypeError, ValueError: See `first`.
            ValueError: A network that does not keep the size of images; a margin so wide that pixels are left out.
        """
        size = self._check(rows)
        totals: list[Tensor] = []
        norm = torch.zeros(size, dtype=torch.float64, device=rows.device)
        for place in self._places(size):
            window = self._cut(rows, place)
            part = predict(window)
            weight = self._weight(place, size).to(norm.device)
            norm[place] += weight
            for number, values in enumerate(_blendable(part, window.shape[2:])):
                if number == len(totals):
                    totals.append(values.new_zeros(*values.shape[: values.ndim - len(size)], *size))
                totals[number][(..., *place)] += weight.to(values.device) * values
            kind = type(part)
        if not bool((norm > 0).all()):
            raise ValueError(
                f"`margin` = {self.margin} leaves pixels out of every window {self.sides} at an overlap of "
                f"{self.overlap}. Take an overlap of at least 2 margin / window, or a smaller margin."
            )
        blended = [total / norm.to(total.device) for total in totals]
        return _rebuilt(kind, blended, len(size), keep_samples=keep_samples)

    def _check(self, rows: Any) -> torch.Size:
        """The size of images, or the errors that `first` lists."""
        if not isinstance(rows, Tensor):
            raise TypeError("Windows are cut from one tensor of images; the inputs have several parts.")
        size = rows.shape[2:]
        if not size or len(self.sides) not in (1, len(size)):
            raise ValueError(
                f"`window` must have a side for each axis of images (N, channels, ...); got {self.sides} for inputs of "
                f"shape {tuple(rows.shape)}."
            )
        return size

    def _cut(self, rows: Tensor, place: Place) -> Tensor:
        return rows[(slice(None), slice(None), *place)]

    def _places(self, size: Sequence[int]) -> Iterator[Place]:
        """Of windows, so many apart as the overlap says, the last ones at the far ends."""
        sides = self.sides if len(self.sides) == len(size) else self.sides * len(size)
        starts = []
        for side, whole in zip(sides, size, strict=True):
            length = min(side, whole)
            last, step = whole - length, max(1, int(length * (1 - self.overlap)))
            starts.append([slice(start, start + length) for start in [*range(0, last, step), last]])
        yield from itertools.product(*starts)

    def _weight(self, place: Place, size: Sequence[int]) -> Tensor:
        """k_w at the pixels of a window, float64."""
        weight = torch.ones((), dtype=torch.float64)
        for side in place:
            length = side.stop - side.start
            away = (torch.arange(length, dtype=torch.float64) - (length - 1) / 2) / (DEVIATION * length)
            along = (-0.5 * away.square()).exp() if self.blend == "gaussian" else torch.ones_like(away)
            weight = weight.unsqueeze(-1) * along
        weight = weight.clamp(min=LEAST_WEIGHT)
        for axis, (side, whole) in enumerate(zip(place, size, strict=True)):
            pixels = torch.arange(side.start, side.stop)
            counts = (pixels >= side.start + self.margin) | (side.start == 0)
            counts &= (pixels < side.stop - self.margin) | (side.stop == whole)
            weight = weight * counts.view(-1, *[1] * (len(size) - 1 - axis))
        return weight


def refuse_windows(posterior: object, options: WindowOptions) -> None:
    """Refuse windows where a prediction is not made of draws at the pixels of images.

    Raises:
        ValueError: A window.
    """
    if Windows.of(options) is not None:
        raise ValueError(
            f"A {type(posterior).__name__} predicts rows, not the pixels of images, and takes no `window`. Windows are "
            "for posteriors over networks whose outputs are maps."
        )


def _blendable(part: PredictiveDistribution, size: Sequence[int]) -> list[Tensor]:
    """What is blended of the draws at a window, (S, N, C, ...) each, float64."""
    if isinstance(part, CategoricalPredictive):
        found = [part.samples]
    elif isinstance(part, RealMaps) and isinstance(part.pixels, GaussianPredictive):
        laws = part.pixels
        found = [part.as_maps(each) for each in (laws.component_means, laws.noise_variance, laws.function_variance)]
    else:
        kind = type(part.pixels if isinstance(part, RealMaps) else part).__name__
        raise ValueError(
            f"`window` needs class probabilities of pixels, or their means and noise variances; got a {kind}."
        )
    got = found[0].shape[found[0].ndim - len(size) :]
    if found[0].ndim < 3 + len(size) or tuple(got) != tuple(size):
        raise ValueError(
            f"`window` needs a network that keeps the size of images; of windows of {tuple(size)} pixels it gives "
            f"outputs of shape {tuple(found[0].shape[1:])}."
        )
    return found


def _rebuilt(kind: type[Any], values: Sequence[Tensor], rank: int, *, keep_samples: bool) -> PredictiveDistribution:
    """The predictive of whole images of so many axes."""
    if kind is CategoricalPredictive:
        made = CategoricalPredictive.from_probs(values[0], keep_samples=keep_samples)
        return replace(made, is_multilabel=values[0].ndim > 3 + rank)
    mean, noise, function = map(at_pixels, values)
    laws = GaussianPredictive(mean=mean, noise_variance=noise, function_variance=function)
    return RealMaps(laws, values[0].shape[3:])
