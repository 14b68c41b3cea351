"""The predictive of real-valued images: depths, synthesised contrasts, what was painted over; a law for every pixel.

Pixels are the points of an ordinary predictive of real targets, whose columns are the channels; so a mixture of draws
is one at every pixel, and what holds draws in bounded memory holds them here. Measures of real targets take `pixels`
with `pixel_targets(y)`; beware of their standard errors, for pixels of one image are far from independent:
`bayesuq.evaluation.real_maps` has the image as the unit.

Letters: S draws, N images, C channels, P pixels of an image, `...` the axes of an image.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, as_targets
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive, chosen_points

__all__ = ["RealMaps"]
__dir__ = __all__.copy


@dataclass(frozen=True, eq=False, repr=False)
class RealMaps(PredictiveDistribution):
    """Laws of the pixels of N images.

    Attributes:
        pixels: Of N P points, image after image, with a column for each channel.
        size: Of the images, (...).

    Example:
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> means = torch.tensor([[[[1.0, 5.0]]], [[[3.0, 5.0]]]])  # two draws of one image of one channel
        >>> maps = RealMaps.of_draws(means, lambda f: GaussianPredictive(mean=f, noise_variance=0.25))
        >>> maps.mean, maps.epistemic
        (tensor([[[2., 5.]]], dtype=torch.float64), tensor([[[1., 0.]]], dtype=torch.float64))
    """

    pixels: RealPredictive
    size: torch.Size

    @classmethod
    def of_draws(cls, f: Tensor, predictive: Callable[[Tensor], RealPredictive]) -> Self:
        """From network outputs.

        Args:
            f: Outputs, (S, N, K, ...).
            predictive: From outputs at points, (S, N P, K), to their predictive.
        """
        return cls(predictive(at_pixels(f)), f.shape[3:])

    def with_pixels(self, pixels: RealPredictive) -> Self:
        """Images of the same size with other laws."""
        return type(self)(pixels, self.size)

    def as_maps(self, values: Tensor) -> Tensor:
        """Numbers of points (..., N P, C) as (..., N, C, ...)."""
        return values.unflatten(-2, (-1, *self.size)).movedim(-1, -1 - len(self.size))

    def pixel_targets(self, y: ArrayLike) -> Tensor:
        """Images (N, C, ...) as targets of the points, (N P, C).

        Raises:
            TypeError: See `bayesuq.arrays.to_tensor`.
            ValueError: Another shape; values that are not finite.
        """
        targets, expected = as_targets(y, maps=True), tuple(self.mean.shape)
        if targets.shape == (*expected[:1], *expected[2:]) and expected[1] == 1:
            targets = targets.unsqueeze(1)
        if tuple(targets.shape) != expected:
            raise ValueError(f"`y` must have shape {expected} as the predictive has; got {tuple(targets.shape)}.")
        return at_pixels(targets.unsqueeze(0))[0]

    def at(self, points: slice | ArrayLike) -> Self:
        """The predictive of some of its images: see `RealPredictive.at`."""
        number = self.size.numel()
        images = torch.arange(self.pixels.shape[1] // number, device=self.pixels.device)
        chosen = images[chosen_points(points, len(images), self.pixels.device)]
        pixels = chosen.unsqueeze(1) * number + torch.arange(number, device=self.pixels.device)
        return self.with_pixels(self.pixels.at(pixels.flatten()))

    @property
    def num_samples(self) -> int:
        """S, the number of draws in the mixture."""
        return self.pixels.num_samples

    @property
    def mean(self) -> Tensor:
        """E[y*], (N, C, ...), in units of y."""
        return self.as_maps(self.pixels.mean)

    @property
    def total(self) -> Tensor:
        """Variance, (N, C, ...), in units of y squared."""
        return self.as_maps(self.pixels.total)

    @property
    def aleatoric(self) -> Tensor:
        """Mean noise variance, (N, C, ...), in units of y squared."""
        return self.as_maps(self.pixels.aleatoric)

    @property
    def epistemic(self) -> Tensor:
        """Variance of the draws' means, (N, C, ...), in units of y squared."""
        return self.as_maps(self.pixels.epistemic)

    def quantile(self, level: float) -> Tensor:
        """Of each pixel, (N, C, ...), in units of y."""
        return self.as_maps(self.pixels.quantile(level))

    def cdf(self, y: ArrayLike) -> Tensor:
        """P(y* <= y) at each pixel, (N, C, ...)."""
        return self.as_maps(self.pixels.cdf(self.pixel_targets(y)))

    def log_prob(self, y: ArrayLike) -> Tensor:
        """log density of each pixel, jointly over its channels, (N, ...), in nats."""
        return self.pixels.log_prob(self.pixel_targets(y)).unflatten(0, (-1, *self.size))

    def component_log_prob(self, y: ArrayLike) -> Tensor:
        """log density of each pixel under each draw, (S, N, ...), in nats."""
        return self.pixels.component_log_prob(self.pixel_targets(y)).unflatten(1, (-1, *self.size))

    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Images whose pixels are independent given x*, (num_samples, N, C, ...)."""
        return self.as_maps(self.pixels.sample(num_samples, seed=seed))

    def component_sample(self, *, seed: int | None = None) -> Tensor:
        """An image from each draw, (S, N, C, ...)."""
        return self.as_maps(self.pixels.component_sample(seed=seed))

    def to(self, device: torch.device | str) -> Self:
        """The same predictive on another device."""
        return self.with_pixels(self.pixels.to(device))

    @classmethod
    def mixture(cls, parts: Iterable[Self]) -> Self:
        """The equal mixture of the draws of all parts, at the same images."""
        collected = list(parts)
        _check_size(collected)
        kind: Any = type(collected[0].pixels)
        return collected[0].with_pixels(kind.mixture([part.pixels for part in collected]))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The images of all parts, in order; each must have the same size and number of draws."""
        _check_size(parts)
        kind: Any = type(parts[0].pixels)
        return parts[0].with_pixels(kind.concatenate([part.pixels for part in parts]))

    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        """The predictive of loc + scale * y*, by channel, (C,) each, or one number."""
        return self.with_pixels(self.pixels.rescale(loc, scale))


def at_pixels(f: Tensor) -> Tensor:
    """(S, N, K, ...) as (S, N P, K)."""
    return f.movedim(2, -1).flatten(1, -2)


def _check_size(parts: Sequence[RealMaps]) -> None:
    if len({part.size for part in parts}) != 1:
        raise ValueError(
            f"Only images of one size are put together; got {sorted({tuple(part.size) for part in parts})}. Predict "
            "them batch by batch."
        )
