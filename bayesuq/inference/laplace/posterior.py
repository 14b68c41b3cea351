"""The posterior of a Laplace approximation, in three readings: linearised, by probit, and sampled through the network.

The network is made linear around the mode, as its curvature was,

    f(x; theta) ~ f(x; theta*) + J(x) (theta - theta*)      so that      f(x) ~ N(f(x; theta*), J Sigma J^T).

Reference:
    Immer, Korzepa & Bauer 2021, Improving Predictions of Bayesian Neural Nets via Local Linearization.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, Self, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, check_one_of
from bayesuq.functions import Functions
from bayesuq.gradients import are_kept
from bayesuq.inference.joint.layout import Layout, normal_base
from bayesuq.inference.laplace.evidence import best_factors, log_evidence
from bayesuq.inference.laplace.factors import Derivatives
from bayesuq.inference.laplace.linearisation import BUDGET, Linearisation, as_outputs
from bayesuq.inference.laplace.structures import STRUCTURES, NormalWeights
from bayesuq.inference.posteriors.network import NetworkPosterior, NormalMarginals
from bayesuq.inference.posteriors.prediction import (
    differentiated,
    draw_indices,
    mixed,
    predict_in_chunks,
)
from bayesuq.inference.posteriors.prior import prior_of
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.training.history import History
from bayesuq.inputs import checked
from bayesuq.loaders import Loader
from bayesuq.models.attention import PlainAttention, PlainNorms
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.network_inputs import cast_inputs
from bayesuq.models.precision import full_precision
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.maps import RealMaps
from bayesuq.randomness import derive_seed, generator, resolve_seed
from bayesuq.to_arviz.groups import Drawn, Wanted
from bayesuq.windows import WindowOptions, Windows

PriorFactors = Literal["one", "each"]
VARIANCE_DRAWS, VARIANCE_SEED = 100, 0  # that a large map's variance is estimated from: to 14 %, one standard error
FEW_ROWS = 32  # at which outputs are drawn instead of weights, where these would be more than
MANY_WEIGHTS = 2**23  # numbers in all draws
COVARIANCE_BUDGET = 2**28  # products of parameters, noise and outputs that a covariance over rows may take
DEVIATIONS_BUDGET = 2**26  # numbers in the draws of weights held at a time: 256 MiB in float32


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LaplacePosterior(NetworkPosterior):
    """N(theta*, (H + P)^-1) over some of the weights, all else at the mode, with the network made linear there.

    For real targets the predictive is one Gaussian, exact for the linear network, whatever `num_samples`; a
    heteroscedastic noise is that of the mode. For labels it is the mixture of draws of the linear network, each a
    function of x, from N(f(x; theta*), J Sigma J^T) at a row.

    Attributes:
        model: The joint density.
        values: The flat vector (P,) of every site at the mode.
        buffers: The network's buffers as trained.
        history: How the fit of the mode went.
        structure: "diagonal", "kronecker" or "full".
        names: The parameters that are approximated.
        layers: Paths of the layers whose derivatives are taken in factors.
        curvature: H, as the structure has it (see `curvature_structures`), float64.
        log_likelihood: Of the data at the mode, weighted, in nats.
        prior_factors: What multiplies the prior's precisions, for each of `names`.
        is_probit: Whether labels get the closed form of `probit`.
    """

    model: BayesianNetwork
    values: Tensor
    buffers: Mapping[str, Tensor]
    history: History
    structure: str
    names: tuple[str, ...]
    layers: tuple[str, ...]
    curvature: Mapping[str, Tensor]
    log_likelihood: float
    prior_factors: tuple[float, ...]
    is_probit: bool = False
    draws_are: ClassVar[str] = (
        "those of a network made linear, or it has a closed form (its `sampled` reads the same law by weights)"
    )

    @property
    def sampled(self) -> "SampledLaplacePosterior":
        """The same law read through the network itself: draws of weights, as other posteriors over weights have them.

        Far from the mode the quadratic that the law stands on does not hold; it underfits where the linearised reading
        does not (Immer et al. 2021).
        """
        return SampledLaplacePosterior(
            model=self.model, buffers=self.buffers, laplace=self, feature_names=self.feature_names
        )

    @property
    def probit(self) -> Self:
        """The same, with E[softmax f] ~ softmax(f* / sqrt(1 + pi/8 diag(J Sigma J^T))) instead of draws of labels.

        It has one component, so that all of its uncertainty counts as aleatoric.

        Reference:
            Spiegelhalter & Lauritzen 1990, Sequential Updating of Conditional Probabilities; Daxberger et al. 2021,
            Laplace Redux, for more than two classes.
        """
        same = replace(self, is_probit=True)
        vars(same)["law"] = self.law  # whose decompositions may have been made
        return same

    @property
    def log_marginal_likelihood(self) -> float:
        """log p(y | x), the evidence, in nats; given what is not approximated.

        Exact for networks that are linear in the weights under a normal likelihood, at prior factors of 1 and a mode
        that was reached.
        """
        prior = self.prior_precision()
        return float(log_evidence(self.log_likelihood, self._squares(), prior, self.law.log_det()))

    def tuned(self, kind: PriorFactors) -> Self:
        """The same with the prior's precisions multiplied by what maximises the evidence, the mode being held fixed.

        Args:
            kind: "one" factor for all, or "each" parameter's own.

        Raises:
            ValueError: Another kind.

        Warns:
            UserWarning: There is no best factor within [1e-8, 1e8].
        """
        check_one_of(kind, "kind", PriorFactors)
        prior = _precisions(self.model, self.names)

        def law(scaled: Mapping[str, Tensor]) -> NormalWeights:
            return STRUCTURES[self.structure](self.curvature, scaled, self._linear().layers)

        return replace(self, prior_factors=best_factors(law, prior, self._squares(), each=kind == "each"))

    def prior_precision(self) -> dict[str, Tensor]:
        """Precisions of the prior by parameter, (*shape), float64, in units of weights to the power -2."""
        prior = _precisions(self.model, self.names)
        return {name: factor * value for (name, value), factor in zip(prior.items(), self.prior_factors, strict=True)}

    def marginals(self) -> NormalMarginals | None:
        """The law itself where it is diagonal and of all random sites; else None."""
        prior = self.prior_precision()
        if self.structure != "diagonal" or prior.keys() != self.model.laws.keys():
            return None
        scales = [(self.curvature[name] + prior[name]).rsqrt().reshape(-1) for name in self.model.laws]
        return NormalMarginals.of(self.model, self.values, torch.cat(scales).to(self.values))

    def slope(self, log_likelihood: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of the log joint at the mode, (*shape) by parameter, from that of the log-likelihood."""
        prior, away = self.prior_precision(), self._away()
        return {name: log_likelihood[name] - prior[name] * away[name] for name in self.names}

    @cached_property
    def law(self) -> NormalWeights:
        """The normal law of the deviations from the mode."""
        return STRUCTURES[self.structure](self.curvature, self.prior_precision(), self._linear().layers)

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
        differentiable: bool = False,
        **windows: Unpack[WindowOptions],
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D) of the linear network: see `Posterior.predict`.

        Of a last layer of many classes, at up to 32 rows of a tensor, the outputs are drawn, all rows together, instead
        of the weights: the law is the same, and the draws are not those of `sample_weights`.

        O(K^2) memory a row for K outputs. Maps of more than 1,024 outputs, all positions counted, take O(K): their
        draws come from forward derivatives, and the variances of `probit` from 100 draws. A last convolution alone is
        exact.
        """
        x = self.by_name(x)
        with differentiated(x, differentiable=differentiable), ExitStack() as modes:
            for mode in (PlainAttention(), PlainNorms()) if are_kept() else ():  # derivatives that have derivatives
                modes.enter_context(mode)
            return self._predict(x, num_samples, seed, keep_samples=keep_samples, windows=Windows.of(windows))

    def functions(
        self, x: ArrayLike, *, num_samples: int | None = None, seed: int | None = None, differentiable: bool = False
    ) -> Functions:
        """Draws of the linear network: see `Posterior.functions`.

        The covariance J Sigma J^T of real targets is given where P^2 N D is at most 2^28, of P parameters that are
        approximated.
        """
        x = self.by_name(x)
        with differentiated(x, differentiable=differentiable), ExitStack() as modes:
            for mode in (PlainAttention(), PlainNorms()) if are_kept() else ():
                modes.enter_context(mode)
            found = Functions.of(self._predict(x, num_samples, seed, keep_samples=True, by_draws=True))
            law = self._joint_law(x, found.draws.shape[2])
            return found if law is None else replace(found, mean=law[0], covariance=law[1])

    def _joint_law(self, x: ArrayLike, num_columns: int) -> tuple[Tensor, Tensor] | None:
        """The mean (N, D) and the covariance (N, D, N, D) of the linear network's means of y; None if too much."""
        size = self.law.layout.size
        rows: Any = cast_inputs(self.model, checked(x))
        fits = size * size * len(rows) * num_columns <= COVARIANCE_BUDGET
        if not self.model.likelihood.has_normal_noise or not fits:
            return None
        linear = self._linear()
        f, derivatives = linear.derivatives(rows)
        at_mode: Any = self.model.likelihood_given(linear.theta).predictive(f.unsqueeze(0))
        mean: Tensor = at_mode.component_means[0]
        covariance = torch.zeros(mean.numel(), mean.numel(), dtype=torch.float64, device=self.device)
        for noise in torch.eye(size, dtype=torch.float64, device=self.device).split(max(1, BUDGET // size)):
            moved = derivatives.pushed(self.law.layout.split(self.law.deviation(noise)))
            moved = moved[:, :, :num_columns].flatten(1).double()
            covariance = covariance + moved.T @ moved
        return mean, covariance.view(*mean.shape, *mean.shape)

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: draws of the linear network, also where `predict` has a closed form."""

        def predict(x: Tensor) -> PredictiveDistribution:
            return self._predict(x, wanted.num_samples, wanted.seed, keep_samples=True, by_draws=True)

        weights = self.sampled.sample_weights(wanted.num_samples, seed=wanted.seed)
        prior = prior_of(self.model, weights, self.buffers)
        return Drawn(method=type(self).__name__, weights=weights, predict=predict, **prior)

    @full_precision()
    def _predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        num_samples: int | None,
        seed: int | None,
        *,
        keep_samples: bool,
        by_draws: bool = False,
        windows: Windows | None = None,
    ) -> PredictiveDistribution:
        """The predictive, in closed form where there is one and draws are not asked for."""
        indices = draw_indices(num_samples, None)
        key = resolve_seed(seed)
        linear = self._linear()
        few = not by_draws and self._at_few_rows(x, len(indices))

        def parts(rows: Tensor, start: int, width: int) -> Iterator[PredictiveDistribution]:  # noqa: ARG001
            if len(rows) == few and windows is None and linear.is_head(rows):
                f, derivatives = linear.derivatives(rows)
                outputs = self.law.outputs_at(derivatives)
                if outputs is not None:
                    draws = f + outputs.draws(self._noise(indices, key, (f.shape[1], len(f))))
                    yield self.model.likelihood_given(linear.theta).predictive(draws, keep_samples=keep_samples)
                    return
            for noise in self._groups(indices, key, by_draws=by_draws):
                if windows is not None:
                    yield windows.whole(rows, partial(at, noise, keep_samples=True), keep_samples=keep_samples)
                else:
                    yield at(noise, rows, keep_samples=keep_samples)

        def at(noise: Tensor | None, rows: Tensor, *, keep_samples: bool) -> PredictiveDistribution:
            num_columns = 1 if linear.is_large(rows) else None
            size = linear.rows_at_a_time(rows, dense=self.structure == "full", num_columns=num_columns)
            done = [self._predict_rows(linear, one, noise, keep_samples=keep_samples) for one in rows.split(size)]
            return type(done[0]).concatenate(done)

        return predict_in_chunks(
            self.model, x, linear.tree, parts, num_draws=len(indices), keep_samples=keep_samples, windows=windows
        )

    def draw(self, index: int, seed: int) -> Tensor:
        """The flat vector (P,) of draw number `index` of the weights; it depends on `index` and `seed` alone."""
        layout = Layout.of(self.model)
        theta = layout.split(self.values)
        deviations = self._deviations(self._noise([index], seed))
        return layout.join({**theta, **{name: theta[name] + value[0] for name, value in deviations.items()}})

    def sample_weights(self, num_samples: int | None = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of every site by name, (S, ...), all but the weights approximated at the mode: see `WeightPosterior`.

        They are those of the linear network that `predict` draws at the same seed.
        """
        return self.sampled.sample_weights(num_samples, seed=seed)

    def _groups(self, indices: Sequence[int], seed: int, *, by_draws: bool) -> Iterator[Tensor | None]:
        """The noise of draws, as many at a time as memory takes; one None where none are needed."""
        if not by_draws and self._is_closed:
            yield None
            return
        together = max(1, DEVIATIONS_BUDGET // self.law.layout.size)
        for first in range(0, len(indices), together):
            yield self._noise(indices[first : first + together], seed)

    @property
    def _is_closed(self) -> bool:
        """Whether the predictive has a closed form, in which nothing is drawn."""
        likelihood = self.model.likelihood
        return likelihood.has_normal_noise or (self.is_probit and likelihood.outputs_are_logits)

    def _at_few_rows(self, x: "ArrayLike | DataLoader[Any]", num_draws: int) -> int:
        """The number of rows where they are few and the draws of weights would be many; else 0."""
        if num_draws * self.law.layout.size < MANY_WEIGHTS or self._is_closed or are_kept() or Loader.of(x) is not None:
            return 0
        number = len(checked(x))
        return number if number <= FEW_ROWS else 0

    def _noise(self, indices: Sequence[int], seed: int, shape: tuple[int, ...] | None = None) -> Tensor:
        """Standard normal noise of draws, (S, *shape), in the model's dtype; by default of the parameters, (S, R)."""
        own = (self.law.layout.size,) if shape is None else shape
        noise = torch.empty(len(indices), *own, dtype=self.model.dtype, device=self.device)
        for row, index in zip(noise, indices, strict=True):
            row.normal_(generator=generator(derive_seed(seed, index), device=self.device))
        return noise

    @full_precision()
    def _deviations(self, noise: Tensor) -> dict[str, Tensor]:
        """Draws of the parameters' distances from the mode, (S, *shape), of their noise."""
        parts = noise.split(max(1, BUDGET // self.law.layout.size))
        return self.law.layout.split(torch.cat([self.law.deviation(part) for part in parts]))

    def _predict_rows(
        self, linear: Linearisation, rows: Tensor, noise: Tensor | None, *, keep_samples: bool
    ) -> PredictiveDistribution:
        """The predictive of some rows, from the noise of draws or, without it, in closed form."""
        likelihood = self.model.likelihood_given(linear.theta)
        if linear.is_large(rows):
            return self._predict_maps(linear, rows, noise, keep_samples=keep_samples)
        f, derivatives = linear.derivatives(rows)
        if noise is not None:
            draws = self._draws(f, derivatives, noise)
            return mixed(likelihood.predictive(one, keep_samples=keep_samples) for one in draws)
        if self.is_probit:
            f = self._probit(f, derivatives)
        predictive = likelihood.predictive(f.unsqueeze(0), keep_samples=keep_samples)
        if isinstance(predictive, RealMaps) and isinstance(predictive.pixels, GaussianPredictive):
            return predictive.with_pixels(self._widened(predictive.pixels, derivatives))  # each pixel is a row
        return self._widened(predictive, derivatives) if isinstance(predictive, GaussianPredictive) else predictive

    def _predict_maps(
        self, linear: Linearisation, rows: Tensor, noise: Tensor | None, *, keep_samples: bool
    ) -> PredictiveDistribution:
        """The predictive of large maps of labels, in time and memory linear in pixels."""
        likelihood = self.model.likelihood_given(linear.theta)
        f = linear.forward(rows)
        if noise is not None:
            pushed = (linear.pushed(rows, deviation) for deviation in _one_by_one(self._deviations(noise)))
            return mixed(likelihood.predictive((f + one).unsqueeze(0), keep_samples=keep_samples) for one in pushed)
        variance = torch.zeros_like(f, dtype=torch.float64)
        for deviation in _one_by_one(self._deviations(self._noise(range(VARIANCE_DRAWS), VARIANCE_SEED))):
            variance += linear.pushed(rows, deviation).double().square() / VARIANCE_DRAWS
        f = (f / (1 + math.pi / 8 * variance).sqrt()).to(f.dtype)
        return likelihood.predictive(f.unsqueeze(0), keep_samples=keep_samples)

    def _draws(self, f: Tensor, derivatives: Derivatives, noise: Tensor) -> Iterator[Tensor]:
        """Draws of the linear network's outputs, (S, N, C, ...), some at a time."""
        num_rows = (
            next(len(factors.inputs) for factors in derivatives.layers.values()) if derivatives.layers else len(f)
        )
        together = max(1, BUDGET // (num_rows * derivatives.width()))
        for group in noise.split(together):
            yield f + as_outputs(self.law.pushed(derivatives, group), f.shape)

    def _probit(self, f: Tensor, derivatives: Derivatives) -> Tensor:
        """f* / sqrt(1 + pi/8 diag(J Sigma J^T)), (N, C, ...); real targets stay as they are."""
        if self.model.likelihood.has_normal_noise:
            return f
        variance = as_outputs(self.law.output_variance(derivatives).clamp(min=0), f.shape)
        return (f / (1 + math.pi / 8 * variance).sqrt()).to(f.dtype)

    def _widened(self, at_mode: GaussianPredictive, derivatives: Derivatives) -> GaussianPredictive:
        """The predictive at the mode with the covariance of f, whose first columns are the means."""
        num_columns = at_mode.component_means.shape[2]
        covariance = self.law.output_covariance(derivatives)[:, :num_columns, :num_columns]
        return GaussianPredictive(
            mean=at_mode.component_means,
            noise_variance=at_mode.noise_variance,
            function_covariance=covariance.unsqueeze(0),
        )

    def _linear(self) -> Linearisation:
        theta = Layout.of(self.model).split(self.values)
        return Linearisation(self.model, theta, self.buffers, self.names, self.layers)

    def _away(self) -> dict[str, Tensor]:
        """theta* - loc by parameter, (*shape), float64."""
        theta = Layout.of(self.model).split(self.values)
        return {name: (theta[name] - _law(self.model, name).loc).double() for name in self.names}

    def _squares(self) -> dict[str, Tensor]:
        return {name: value.square() for name, value in self._away().items()}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SampledLaplacePosterior(WeightPosterior):
    """A Laplace approximation read through the network itself.

    Attributes:
        model: The joint density.
        buffers: The network's buffers as trained.
        laplace: The law of the weights.
    """

    model: BayesianNetwork
    buffers: Mapping[str, Tensor]
    laplace: LaplacePosterior

    @property
    def num_members(self) -> None:
        """None: draws are without end."""
        return

    def draw(self, index: int, seed: int) -> Tensor:
        """A draw of the weights approximated, all else at the mode."""
        return self.laplace.draw(index, seed)

    def steady_sites(self) -> list[str]:
        """Those at the mode."""
        return [name for name in Layout.of(self.model).shapes if name not in self.laplace.names]


def _one_by_one(deviations: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Draws (S, *shape) by name, one after another."""
    for values in zip(*deviations.values(), strict=True):
        yield dict(zip(deviations, values, strict=True))


def _law(model: BayesianNetwork, name: str) -> Any:
    """The normal law of a parameter's entries."""
    return normal_base(model.laws[name])


def _precisions(model: BayesianNetwork, names: Sequence[str]) -> dict[str, Tensor]:
    """Of the priors as the model has them, (*shape), float64."""
    shapes = Layout.of(model, names).shapes
    return {name: _law(model, name).scale.double().expand(shapes[name]) ** -2 for name in names}
