"""Labels whose logits are themselves uncertain: HeteroscedasticCategorical, the network's own word on label noise.

    z = mean(x) + scale(x) eps,  eps ~ N(0, I),      p(y | f) = E_eps softmax(z)_y

The expectation has no closed form. It is taken over K fixed values of eps, the same for every row and every call, so
that p(y | f) is a plain function of f: normalised over labels, smooth, repeatable, the same in a fit, a chain and a
prediction. What it is off by is a bias of this function, and no noise.

Letters: see `bayesuq.models.likelihoods.base`; K draws of the logits' noise.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from scipy.special import ndtri
from torch import Tensor

from bayesuq import optional
from bayesuq.arrays import ArrayLike, check_count, check_finite_number
from bayesuq.models.likelihoods.base import LOGITS, Likelihood
from bayesuq.models.likelihoods.far_rows import within_floats
from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.predictive.categorical import CategoricalPredictive

LARGEST_LOGIT = 1e30  # and scale of a logit's noise: their products are finite in float32
NOISE_SEED = 0  # of the scrambling: part of what this likelihood is


@dataclass(frozen=True)
class HeteroscedasticCategorical(Likelihood):
    """Labels by a softmax of logits with Gaussian noise, whose scale the network gives at every input.

    f has 2 C channels, C means and then C log variances of the logits, (N, 2 C, ...); y is (N, ...).

    The noise is aleatoric: a draw's class probabilities are the mean over it, and their entropy is that draw's
    aleatoric uncertainty. What stays between draws of f is epistemic.

    Attributes:
        num_noise_draws: K, best a power of 2: points of a scrambled Sobol sequence, made normal. Of two classes, with
            means within 4 and scales up to 4, log p is off by .011 nats on average at 32, a tenth of what random
            draws are, and by .0005 at 512; many classes need more.
        class_weights: Multiplies log p(y | f) by the weight of the true class; None is 1 for all.
        ignore_index: A label that adds nothing, such as an image's void pixels.
        minimum_scale: A floor under the noise's scale, in logits.

    Reference:
        Kendall & Gal 2017, What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?, eq. (12).
    """

    output_kinds = (LOGITS, "log variances of logits")

    num_noise_draws: int = 32
    class_weights: tuple[float, ...] | None = None
    ignore_index: int | None = None
    minimum_scale: float = 0.0

    def __post_init__(self) -> None:
        check_count(self.num_noise_draws, "num_noise_draws", minimum=2)
        checked = Categorical(self.class_weights, self.ignore_index)
        object.__setattr__(self, "class_weights", checked.class_weights)
        object.__setattr__(self, "ignore_index", checked.ignore_index)
        if check_finite_number(self.minimum_scale, "minimum_scale") < 0:
            raise ValueError(f"`minimum_scale` must be at least 0; got {self.minimum_scale}.")

    @property
    def categorical(self) -> Categorical:
        """What takes the logits of the mean over the noise: the same weights and ignored label."""
        return Categorical(self.class_weights, self.ignore_index)

    @property
    def reweights_classes(self) -> bool:
        """Whether class weights or an ignored label are set."""
        return self.categorical.reweights_classes

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:
        """Labels, int64."""
        return self.categorical.targets(y, num_outputs=None if num_outputs is None else _num_classes(num_outputs))

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Labels of shape (N, ...)."""
        return self.categorical.align(self._parts(f, dim=1)[0], y)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """Weighted log of the mean over the noise of softmax(z) at y, (N, ...)."""
        return self.categorical.elementwise_log_prob(self.logits(f), y)

    def distribution(self, f: Tensor) -> Any:
        """Categorical law of the mean over the noise, with event shape (...)."""
        return dist.Categorical(logits=self.logits(f).movedim(1, -1)).to_event(f.ndim - 2)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> CategoricalPredictive:
        """The mixture of S laws, each the mean over its noise."""
        f = within_floats(f, highest=LARGEST_LOGIT, lowest=-LARGEST_LOGIT)
        return CategoricalPredictive.from_logits(self.logits(f, dim=2), keep_samples=keep_samples)

    def logits(self, f: Tensor, dim: int = 1) -> Tensor:
        """log E_eps softmax(z), normalised: logits of the same law without noise; O(K) times the memory of f.

        Args:
            f: Network outputs with the 2 C channels in dimension `dim`.
            dim: Of the channels.
        """
        mean, scale = self._parts(f, dim)
        noise = torch.tensor(base_noise(self.num_noise_draws, mean.shape[dim]), dtype=f.dtype, device=f.device)
        noise = noise.reshape(len(noise), *[1] * dim, -1, *[1] * (f.ndim - dim - 1))
        noisy = (mean + scale * noise).log_softmax(dim=dim + 1)
        return noisy.logsumexp(dim=0) - math.log(self.num_noise_draws)

    @property
    def takes_logits(self) -> Categorical:
        """What takes the logits of the mean over the noise."""
        return self.categorical

    def num_outputs(self, y: Tensor) -> int:
        """A mean and a log variance for each class."""
        return 2 * super().num_outputs(y)

    def target_weights(self, y: Tensor) -> Tensor:
        """Of each label's class, and 0 of one that is ignored."""
        return self.categorical.target_weights(y)

    def fisher_root(self, f: Tensor) -> Tensor:
        """Columns sqrt(p_y) d log p_y / df for each label and position, and zeros, (N, K, K)."""
        num_classes, num_positions = f.shape[1] // 2, f[0, 0].numel()
        with torch.enable_grad():
            outputs = f.detach().double().requires_grad_()
            log_probs = self.logits(outputs)
            # Rows and positions do not mix, so that one sum a label has all their gradients.
            slopes = [
                torch.autograd.grad(log_probs[:, k].sum(), outputs, retain_graph=True)[0] for k in range(num_classes)
            ]
        roots = (0.5 * log_probs.detach()).exp()
        columns = torch.stack([roots[:, k, None] * slope for k, slope in enumerate(slopes)], dim=2)  # (N, 2 C, C, ...)
        whole = torch.diag_embed(columns.reshape(len(f), 2 * num_classes, num_classes, num_positions))
        whole = torch.cat([whole, torch.zeros_like(whole)], dim=2)
        return whole.permute(0, 1, 3, 2, 4).reshape(len(f), 2 * num_classes * num_positions, -1)

    def _parts(self, f: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Means and scales of the logits."""
        if f.ndim <= dim or f.shape[dim] % 2 or f.shape[dim] < 4:
            raise ValueError(
                "The network must give f of shape (N, 2 C, ...), C means and then C log variances of the logits, with "
                f"C at least 2; got {tuple(f.shape)}. Double its outputs."
            )
        mean, log_variance = f.chunk(2, dim=dim)
        if self.minimum_scale > 0:
            floor = log_variance.new_tensor(2 * math.log(self.minimum_scale))
            log_variance = torch.logaddexp(log_variance, floor)
        return mean, torch.exp(0.5 * log_variance.clamp(max=2 * math.log(LARGEST_LOGIT)))


@lru_cache(maxsize=64)
def base_noise(num_draws: int, num_classes: int) -> np.ndarray:
    """The K values of eps, (K, C), float64: always the same ones, and read-only."""
    # of SciPy, since vmap allows no draws of torch's
    sobol = optional.qmc.Sobol(num_classes, scramble=True, seed=NOISE_SEED)
    noise = ndtri(sobol.random_base2((num_draws - 1).bit_length())[:num_draws])
    noise.setflags(write=False)
    return noise


def _num_classes(num_outputs: int) -> int:
    if num_outputs % 2 or num_outputs < 4:
        raise ValueError(
            "HeteroscedasticCategorical needs a network of 2 C outputs, means and log variances of at least 2 logits; "
            f"got {num_outputs}. Double its outputs."
        )
    return num_outputs // 2
