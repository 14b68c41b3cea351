"""Guides of a network: Gaussians over the flat vector of its random sites, and Pyro's autoguides at a good start."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide, init_to_value
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayesuq.arrays import check_count, check_positive
from bayesuq.inference.joint.layout import Layout
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import generator

__all__ = [
    "CorrelatedGuide",
    "FullRankGuide",
    "LowRankGuide",
    "MeanFieldGuide",
    "autoguide",
    "full_rank",
    "low_rank",
    "mean_field",
]
__dir__ = __all__.copy

DEFAULT_RANK = 5
INITIAL_FACTOR = 0.01  # of the scales: enough to break the symmetry between columns
LOG_TWO_PI = math.log(2 * math.pi)
INITIAL_SCALE = 0.05  # of the prior's scale: small enough to train at once, large enough to be learned


class MeanFieldGuide(PyroModule):
    """q = N(loc, diag scale^2) on the flat vector of a model's random sites; a Pyro guide with a site for each.

    A site whose support is not the real line is the image of its normal under the support's bijection.

    Attributes:
        loc: Means, (R,).
        log_scale: Logarithms of the standard deviations, (R,).
    """

    def __init__(self, model: BayesianNetwork, loc: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.layout = Layout.of(model, model.laws)
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(log_scale)

    def laws(self, *, validate_args: bool | None = None) -> dict[str, Any]:
        """The law of each site, by name, on its own support.

        Args:
            validate_args: Whether torch looks at means and scales, which an accelerator waits for; None is its default.
        """
        locs = self.loc.split(self.layout.sizes)
        scales = self.log_scale.exp().split(self.layout.sizes)
        laws = {}
        for (name, shape), loc, scale in zip(self.layout.shapes.items(), locs, scales, strict=True):
            law = dist.Normal(loc.view(shape), scale.view(shape), validate_args=validate_args)
            if name in self.layout.transforms:
                law = dist.TransformedDistribution(law, self.layout.transforms[name])
            laws[name] = law.to_event(len(shape))
        return laws

    def forward(self, *_args: Any, **_kwargs: Any) -> dict[str, Tensor]:
        """Sample every site (the Pyro program of the guide)."""
        return {name: pyro.sample(name, law) for name, law in self.laws().items()}


def mean_field(model: BayesianNetwork, *, initial_scale: float = INITIAL_SCALE) -> MeanFieldGuide:
    """The factorised Gaussian guide where a fit starts it.

    Its means are the network's own weights, its scales a share of the prior's.

    Args:
        model: The joint density.
        initial_scale: Starting standard deviations, as a share of the prior's (of 1 where that has none).

    Raises:
        TypeError: A Pyro program, of which `variational.fit` takes this function alone, for Pyro's own guide.
        ValueError: `initial_scale` not above 0.
    """
    if not isinstance(model, BayesianNetwork):
        raise TypeError(
            "mean_field and full_rank with options, and low_rank, are guides of networks. For a Pyro program pass "
            "mean_field or full_rank as they are, or a guide of Pyro's, such as "
            "autoguide(AutoLowRankMultivariateNormal, rank=5)."
        )
    check_positive(initial_scale, "initial_scale")
    layout = Layout.of(model, model.laws)
    scales = torch.ones(layout.size, dtype=model.dtype, device=model.device)
    for name, where in layout.slices().items():
        variance = model.laws[name].variance.reshape(-1) if name not in layout.transforms else scales[where]
        usable = variance.isfinite() & (variance > 0)
        scales[where] = torch.where(usable, variance, 1.0).sqrt()
    return MeanFieldGuide(model, layout.join(model.initial()), (initial_scale * scales).log())


class CorrelatedGuide(PyroModule):
    """q = N(loc, Cov) on the flat vector of a model's random sites; also a Pyro guide, with a site for each.

    Attributes:
        loc: Means, (R,).
        log_scale: Logarithms of s, (R,).
        factor: A, (R, rank), or U, (R, R).
    """

    def __init__(self, model: BayesianNetwork, loc: Tensor, log_scale: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.layout = Layout.of(model, model.laws)
        self.loc, self.log_scale, self.factor = nn.Parameter(loc), nn.Parameter(log_scale), nn.Parameter(factor)

    @property
    @abstractmethod
    def num_noise(self) -> int:
        """Standard normal numbers in a draw."""

    @abstractmethod
    def transform(self, noise: Tensor) -> Tensor:
        """The flat vector (R,) of noise (num_noise,)."""

    @abstractmethod
    def marginal_scale(self) -> Tensor:
        """Standard deviation of each entry, (R,)."""

    @abstractmethod
    def log_det(self) -> Tensor:
        """log |det of a root of Cov|, 0-d."""

    @abstractmethod
    def law(self) -> Any:
        """The law of the flat vector, as a distribution of torch."""

    def entropy(self) -> Tensor:
        """Of q on the flat vector, in nats."""
        return 0.5 * len(self.loc) * (1 + LOG_TWO_PI) + self.log_det()

    def forward(self, *_args: Any, **_kwargs: Any) -> dict[str, Tensor]:
        """Sample every site (the Pyro program of the guide)."""
        flat = pyro.sample("_flat", self.law(), infer={"is_auxiliary": True})
        theta = self.layout.split(flat)
        parts = flat.split(self.layout.sizes)
        for (name, value), part in zip(theta.items(), parts, strict=True):
            transform = self.layout.transforms.get(name)
            volume = 0.0 if transform is None else -transform.log_abs_det_jacobian(part.view(value.shape), value).sum()
            pyro.sample(name, dist.Delta(value, log_density=volume, event_dim=value.ndim))
        return theta


class LowRankGuide(CorrelatedGuide):
    """Cov = S (I + A A^T) S."""

    @property
    def num_noise(self) -> int:
        """R + rank."""
        return self.factor.shape[0] + self.factor.shape[1]

    def transform(self, noise: Tensor) -> Tensor:
        """loc + s * (eps_1 + A eps_2)."""
        own, shared = noise.split([len(self.loc), self.factor.shape[1]])
        return self.loc + self.log_scale.exp() * (own + self.factor @ shared)

    def marginal_scale(self) -> Tensor:
        """s * sqrt(1 + the rows' squared length in A)."""
        return self.log_scale.exp() * (1 + self.factor.square().sum(dim=1)).sqrt()

    def log_det(self) -> Tensor:
        """Sum of log s, and half of log det(I + A^T A)."""
        gram = self.factor.T @ self.factor
        root, _ = torch.linalg.cholesky_ex(gram + torch.eye(len(gram)).to(gram))  # which looks at no number
        return self.log_scale.sum() + root.diagonal().log().sum()

    def law(self) -> Any:
        """A low-rank normal law."""
        scale = self.log_scale.exp()
        return dist.LowRankMultivariateNormal(self.loc, scale[:, None] * self.factor, scale.square())


class FullRankGuide(CorrelatedGuide):
    """Cov = S (I + U)(I + U)^T S with U strictly lower triangular: O(R^2) memory and time a step."""

    @property
    def num_noise(self) -> int:
        """R."""
        return len(self.loc)

    def transform(self, noise: Tensor) -> Tensor:
        """loc + s * (eps + U eps)."""
        return self.loc + self.log_scale.exp() * (noise + self.factor.tril(-1) @ noise)

    def marginal_scale(self) -> Tensor:
        """s * sqrt(1 + the rows' squared length in U)."""
        return self.log_scale.exp() * (1 + self.factor.tril(-1).square().sum(dim=1)).sqrt()

    def log_det(self) -> Tensor:
        """Sum of log s."""
        return self.log_scale.sum()

    def law(self) -> Any:
        """A normal law by its triangular root."""
        root = torch.eye(len(self.loc)).to(self.loc) + self.factor.tril(-1)
        return dist.MultivariateNormal(self.loc, scale_tril=self.log_scale.exp()[:, None] * root)


def low_rank(
    rank: int = DEFAULT_RANK, *, initial_scale: float = INITIAL_SCALE
) -> Callable[[BayesianNetwork], LowRankGuide]:
    """For `variational.fit(guide=...)`: a normal law with `rank` directions in which all weights move together.

    Args:
        rank: Columns of A.
        initial_scale: Starting scales, as a share of the prior's.

    Raises:
        ValueError: A rank below 1; `initial_scale` not above 0.
    """
    check_count(rank, "rank")

    def build(model: BayesianNetwork) -> LowRankGuide:
        start = mean_field(model, initial_scale=initial_scale)
        noise = torch.randn(len(start.loc), rank, generator=generator(rank))
        factor = (INITIAL_FACTOR * noise).to(start.loc)
        return LowRankGuide(model, start.loc.detach(), start.log_scale.detach(), factor)

    return build


def full_rank(model: BayesianNetwork, *, initial_scale: float = INITIAL_SCALE) -> FullRankGuide:
    """A normal law with any covariance, where a fit starts it: see `low_rank`; O(R^2) memory."""
    start = mean_field(model, initial_scale=initial_scale)
    size = len(start.loc)
    return FullRankGuide(model, start.loc.detach(), start.log_scale.detach(), start.loc.new_zeros(size, size))


def autoguide(kind: Callable[..., AutoGuide], **options: Any) -> Callable[[Any], AutoGuide]:
    """One of Pyro's autoguides, its means starting at the network's own weights.

    An autoguide alone starts near the prior's median, where all units of a layer are nearly the same and a network
    hardly trains. That of a Pyro program starts where Pyro has it.

    Args:
        kind: Such as `pyro.infer.autoguide.AutoLowRankMultivariateNormal`; it must take `init_loc_fn`.
        **options: Passed to it.

    Returns:
        For `variational.fit(guide=...)`.
    """

    def build(model: Any) -> AutoGuide:
        start = {"init_loc_fn": init_to_value(values=model.initial())} if isinstance(model, BayesianNetwork) else {}
        return kind(model, **start, **options)

    return build
