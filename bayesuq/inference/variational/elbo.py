"""The ELBO of a mean-field guide, with the gradient of its divergence written out.

    ELBO(loc, scale) = E_q[ sum_n log p(y_n | f(x_n; theta)) ] - KL(q || p),   q = N(loc, diag scale^2)

With one draw theta = loc + scale * eps, and g = -(N / B) d sum log p(y | f) / d theta at it, the gradient of -ELBO is,
for a N(loc_0, scale_0^2) prior,

    d loc       = g + (loc - loc_0) / scale_0^2
    d log_scale = g * eps * scale + scale^2 / scale_0^2 - 1

The KL is summed over all weights, never averaged, and its gradient is exact: only the likelihood's part is noisy.

Reference:
    Blundell et al. 2015, Weight Uncertainty in Neural Networks, section 3.2 (with the KL in closed form).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO
from pyro.params import param_with_module_name
from torch import Tensor
from torch.distributions import kl_divergence

from bayesuq.arrays import check_count
from bayesuq.inference.joint.layout import FlatPrior
from bayesuq.inference.variational.guides import MeanFieldGuide
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.scale_mixture import NormalScaleMixture, ScaleMixtureKernel

LOG_TWO_PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Divergence:
    """KL(q || p) between a mean-field guide and the prior, site by site in the best way there is.

    Normal sites: in closed form, in one kernel over the flat vector. Sites for which torch registers a closed form:
    that one. All others: log q - log p at the draw, for scale mixtures in one kernel, too.

    Attributes:
        prior: The prior, read from the flat vector.
        closed: Laws of the sites, not normal, that have a closed form.
        sampled: Laws of the sites that have none.
        mixtures: The scale mixtures among these, as kernels over stretches of the flat vector.
        constant: Nats that depend neither on the guide nor on the draw.
    """

    prior: FlatPrior
    closed: Mapping[str, Any]
    sampled: Mapping[str, Any]
    mixtures: tuple[tuple[ScaleMixtureKernel, slice], ...]
    constant: float

    @classmethod
    def of(cls, model: BayesianNetwork, guide: MeanFieldGuide) -> "Divergence":
        """Sort the sites of a model."""
        prior = FlatPrior.of(model, guide.layout)
        with torch.no_grad():
            laws = guide.laws()
            closed = {name: law for name, law in prior.others.items() if _has_closed_form(laws[name], law)}
        sampled = {name: law for name, law in prior.others.items() if name not in closed}
        slices = guide.layout.slices()
        num_sampled = sum(slices[name].stop - slices[name].start for name in sampled)
        num_closed = sum(slices[name].stop - slices[name].start for name in closed)
        num_normal = guide.layout.size - num_sampled - num_closed
        # Normal sites: sum of log scale_0 - 1/2; sampled ones: -log(2 pi) / 2 of log q.
        constant = -prior.log_normaliser - 0.5 * num_normal * (LOG_TWO_PI + 1) - 0.5 * num_sampled * LOG_TWO_PI
        return cls(prior, closed, sampled, _mixtures(sampled, slices), constant)

    def value(self, loc: Tensor, log_scale: Tensor, scale: Tensor) -> Tensor:
        """The fused part and the constant, in nats: all of KL(q || p) where every prior is normal."""
        return self.prior.normal_energy(loc, scale) - log_scale.sum() + self.constant

    def add_gradient(
        self, loc: Tensor, scale: Tensor, grad_loc: Tensor, grad_log_scale: Tensor, weight: float = 1.0
    ) -> None:
        """Add `weight` times the gradient of `value`, in place: precision (loc - loc_0) and precision scale^2 - 1."""
        self.prior.add_normal_gradient(loc, grad_loc, weight)
        grad_log_scale.add_(self.begin_scale_gradient(scale, torch.empty_like(scale), weight))

    def begin_scale_gradient(self, scale: Tensor, out: Tensor, weight: float = 1.0) -> Tensor:
        """`weight` times the gradient of `value` along the log scales, precision scale^2 - 1, put into `out`."""
        start, precision = scale.new_full((), -weight), self.prior.precision
        if isinstance(precision, float):
            return torch.addcmul(start, scale, scale, value=weight * precision, out=out)
        return torch.addcmul(start, scale.square(), precision, value=weight, out=out)

    @property
    def has_graph(self) -> bool:
        """Whether `others` has terms beside those of the mixtures."""
        return bool(self.closed) or any(scale_mixture(law) is None for law in self.sampled.values())

    def add_mixtures(self, noise: Tensor, flat: Tensor, gradient: Tensor, weight: float = 1.0) -> Tensor:
        """`weight` times what the scale mixtures add to `value` at a draw; the gradient along it is added in place.

        Args:
            noise: Of the draw, (R,).
            flat: The draw, (R,).
            gradient: Of the loss along the draw, (R,).
            weight: A factor.
        """
        total = noise.new_zeros(())
        for kernel, where in self.mixtures:
            total += kernel.energy(flat[where], gradient[where], weight) - 0.5 * noise[where].dot(noise[where])
        return weight * total

    def others(
        self,
        guide: MeanFieldGuide,
        noise: Tensor,
        theta: Mapping[str, Tensor],
        flat: Tensor,
        *,
        mixtures: bool = True,
    ) -> Tensor:
        """What the sites that are not normal add to `value`, which is -sum log_scale for them; a function of the draw.

        Args:
            guide: The guide.
            noise: Of the draw, (R,).
            theta: The draw by site, on the sites' own support.
            flat: The draw, (R,).
            mixtures: Whether the scale mixtures count, or `add_mixtures` adds them.
        """
        slices = guide.layout.slices()
        total = noise.new_zeros(())
        if self.closed:
            laws = guide.laws(validate_args=False)
            for name, law in self.closed.items():
                total = total + kl_divergence(laws[name], law) + guide.log_scale[slices[name]].sum()
        for name, law in self.sampled.items():
            if not mixtures and scale_mixture(law) is not None:
                continue
            total = total - 0.5 * noise[slices[name]].square().sum() - law.log_prob(theta[name])
            if name in guide.layout.transforms:
                u = flat[slices[name]].view(theta[name].shape)
                total = total - guide.layout.transforms[name].log_abs_det_jacobian(u, theta[name]).sum()
        return total


class _Reparameterised(torch.autograd.Function):
    """(loc, log_scale, eps) -> (loc + scale eps, `Divergence.value`)."""

    @staticmethod
    def forward(
        ctx: Any, loc: Tensor, log_scale: Tensor, noise: Tensor, divergence: Divergence
    ) -> tuple[Tensor, Tensor]:
        scale = log_scale.exp()
        ctx.save_for_backward(loc, scale, noise)
        ctx.divergence = divergence
        return torch.addcmul(loc, scale, noise), divergence.value(loc, log_scale, scale)

    @staticmethod
    def backward(ctx: Any, grad_flat: Tensor, grad_value: Tensor) -> tuple[Tensor, Tensor, None, None]:
        loc, scale, noise = ctx.saved_tensors
        grad_loc, grad_log_scale = grad_flat.clone(), grad_flat * noise * scale
        ctx.divergence.add_gradient(loc, scale, grad_loc, grad_log_scale, float(grad_value))
        return grad_loc, grad_log_scale, None, None


class MeanFieldELBO(ELBO):
    """The ELBO of a `BayesianNetwork` and its `MeanFieldGuide`, with the gradient written out.

    The same estimator as Pyro's `TraceMeanField_ELBO`, draw for draw from the same seed, at a fraction of its time. It
    can be the loss of `pyro.infer.SVI`. A model wrapped in Pyro's handlers is refused: they would have no effect.

    Args:
        num_particles: Draws of the weights a step.
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=check_count(num_particles, "num_particles"))

    def differentiable_loss(
        self,
        model: Any,
        guide: Any,
        x: Tensor,
        y: Tensor,
        num_data: int | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Minus the ELBO in nats, estimated from `num_particles` draws, with its gradient.

        The arguments are the model's.

        Raises:
            TypeError: A model or a guide of another kind, or wrapped in handlers.
            RuntimeError: Another guide's parameters stand in Pyro's global store.
        """
        if not isinstance(model, BayesianNetwork) or not isinstance(guide, MeanFieldGuide):
            raise TypeError(
                f"MeanFieldELBO takes a bare BayesianNetwork and its MeanFieldGuide; got {type(model).__name__} and "
                f"{type(guide).__name__}. Use pyro.infer.TraceMeanField_ELBO for others."
            )
        _register(guide)
        points = {name: pyro.param(name, v.clone(), constraint=model.support(name)) for name, v in model.points.items()}
        divergence = Divergence.of(model, guide)
        scale = 1.0 if num_data is None else num_data / len(x)
        losses = []
        for _ in range(self.num_particles):
            # Site by site, as Pyro draws: one flat draw would take other numbers from the same seed.
            noise = torch.cat([torch.randn_like(part) for part in guide.loc.detach().split(guide.layout.sizes)])
            flat, nats = _Reparameterised.apply(guide.loc, guide.log_scale, noise, divergence)
            theta = guide.layout.split(flat)
            nats = nats + divergence.others(guide, noise, theta, flat)
            theta |= points
            log_likelihood = model.likelihood_given(theta).total_log_prob(model.forward(theta, x), y, weight)
            losses.append(nats - scale * log_likelihood)
        return torch.stack(losses).mean()

    def _get_trace(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError("MeanFieldELBO makes no traces.")  # Pyro's base class asks for this method

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Minus the ELBO in nats."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Minus the ELBO in nats; its gradient is added to the parameters' `.grad`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())


def _register(guide: MeanFieldGuide) -> None:
    """Tell SVI the parameters to train; without this it would train nothing and say nothing."""
    pyro.module("guide", guide)  # which keeps what the store has, and leaves the guide alone
    stored = [pyro.param(param_with_module_name("guide", name)) for name, _ in guide.named_parameters()]
    if any(one is not other for one, other in zip(stored, guide.parameters(), strict=True)):
        raise RuntimeError(
            "Pyro's parameter store holds another guide's parameters. Call `pyro.clear_param_store()` before this fit."
        )


def scale_mixture(law: Any) -> NormalScaleMixture | None:
    """The scale mixture that is the law of a site's single entries, or None where it is of another family."""
    while isinstance(law, dist.Independent):
        law = law.base_dist
    return law if isinstance(law, NormalScaleMixture) else None


def _mixtures(laws: Mapping[str, Any], slices: Mapping[str, slice]) -> tuple[tuple[ScaleMixtureKernel, slice], ...]:
    """The scale mixtures' kernels, neighbours of one law together."""
    found: list[tuple[ScaleMixtureKernel, slice]] = []
    for name, law in laws.items():
        mixture = scale_mixture(law)
        if mixture is None:
            continue
        kernel, where = mixture.kernel(), slices[name]
        if found and found[-1][0] == kernel and found[-1][1].stop == where.start:
            where = slice(found.pop()[1].start, where.stop)
        found.append((kernel, where))
    return tuple(found)


def _has_closed_form(law: Any, prior: Any) -> bool:
    try:
        kl_divergence(law, prior)
    except NotImplementedError:
        return False
    return True
