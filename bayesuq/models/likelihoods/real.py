"""Likelihoods of real targets: Normal, HeteroscedasticNormal, and StudentT and Laplace for targets with outliers.

Letters: see `bayesuq.models.likelihoods.base`.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from bayesuq.arrays import check_finite_number, check_positive
from bayesuq.models.likelihoods.base import (
    MEANS,
    RealTargets,
    aligned,
    aligned_weight,
    checked_parameter,
    parameter_value,
)
from bayesuq.models.likelihoods.derived import normal_points
from bayesuq.models.likelihoods.far_rows import LARGEST_LOG, within_floats
from bayesuq.models.likelihoods.scaled_noise import ScaledNoise, halves, of_draws, over_columns
from bayesuq.models.priors import Prior
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive

LOG_TWO_PI = math.log(2 * math.pi)
MAXIMUM_SCALE = 10.0  # of the noise, where y has standard deviation 1
SMALLEST_SCALE = 1e-5  # likewise


@dataclass(frozen=True, eq=False)
class Normal(ScaledNoise):
    """Real targets y ~ N(f, scale^2), f and y being (N, D), with one noise scale for all columns or one for each.

    Attributes:
        scale: The noise scale in units of y: a number, or a list of one for each column; "learned", a point value found
            with the weights; a prior over positive numbers, which makes it one of the unknowns; or "given", each row's
            own, which comes with the data, `Dataset(x, y, scale=...)`, and with the inputs of a prediction,
            `bayesuq.Given(x, scale)`. (Inside a method: a tensor.)
        initial_scale: Where a fit starts a scale that is learned or inferred, or a list of one for each column.
        per_column: Whether each target column has a scale of its own. A model takes their number from its network; for
            a network whose last layer does not tell it, give D itself.
    """

    has_normal_noise = True

    parameters: ClassVar[tuple[str, ...]] = ("scale",)

    scale: float | Sequence[float] | Literal["learned", "given"] | Prior | Tensor = "learned"
    initial_scale: float | Sequence[float] = 1.0
    per_column: bool | int = False

    def __post_init__(self) -> None:
        self._check_scales()

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log N(y; f, scale^2), (N, D)."""
        scale = None if self.takes_scale else parameter_value(self.scale, "scale")
        if not isinstance(scale, float):
            f, scale = self._located(f)
            return -0.5 * (((y - f) / scale) ** 2 + LOG_TWO_PI) - scale.log()
        squares = functional.mse_loss(f, y, reduction="none")  # one kernel, forward and backward
        return squares * (-0.5 / scale**2) - (math.log(scale) + 0.5 * LOG_TWO_PI)

    def distribution(self, f: Tensor) -> Any:
        """Normal law with event shape (D,)."""
        mean, scale = self._located(f)
        return dist.Normal(mean, scale).to_event(f.ndim - 1)

    def _of_points(self, f: Tensor) -> GaussianPredictive:
        mean, scale = self._located_draws(f)
        return GaussianPredictive(mean=within_floats(mean), noise_variance=scale.double() ** 2)

    def fisher_root(self, f: Tensor) -> Tensor:
        """1 / scale on the diagonal, (N, K, K)."""
        f = f.double()
        _, scale = self._located(f)
        return self._diagonal_root(1 / scale, f)

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """log N(y; mean, scale^2) - variance / (2 scale^2), (N, D)."""
        _, scale = self._located(mean)
        variance = halves(variance, 1)[0] if self.takes_scale else variance
        return self.elementwise_log_prob(mean, y) - 0.5 * variance / scale.square()


@dataclass(frozen=True)
class HeteroscedasticNormal(RealTargets):
    """Real targets with a noise variance of their own at every input: y ~ N(f_mean, v(f_log_variance)).

    f has 2 D columns, D means and then D log variances g; y is (N, D).

    A network's g is a line far from its data, and exp(g) overflows on rows that are fifty standard deviations out. So
    it is bent, v(g) = exp(b(g)) + minimum_scale^2: b(g) = g as long as exp(g / 2) stays 2.2 times above 1e-5 and below
    `maximum_scale`, and nears these two without reaching them, as the arc tangent of what is beyond. b rises
    everywhere; its slope 1 / (1 + excess^2) is never 0, and continuous with its own slope. Both ends are in units of y,
    and meant for a y of standard deviation 1, as `bayesuq.data.Standardizer` makes it; a fit to a y of another size
    warns. Gaussian processes, whose g returns to its mean, leave the default bend away.

    Attributes:
        minimum_scale: A floor under the noise, in units of y. Targets with repeated values let the density grow as far
            as the network can go; 0.05 standard deviations of y keep it sane.
        maximum_scale: What the noise never reaches, but for the floor, in units of y; None leaves g as it is.
        beta: In [0, 1]: rows are weighted by v^beta where a fit descends. The gradient of log N(y; m, v) in m is
            (y - m) / v, so that rows that are thought noisy teach the mean little, and may stay badly fitted and
            thought noisy for ever. With beta the gradient in weights is that of

                sum_n stop(v_n)^beta log N(y_n; m_n, v_n),

            stop(v) being v as a constant: at 1 the mean descends squared errors, at 0 (the default) the likelihood.
            Values, such as losses, scores and predictions, are those of log N itself. Above 0 it is a loss and no
            density, for methods that optimise; chains and Gaussian processes refuse it. v is in units of y squared:
            standardise y.

    Reference:
        Nix & Weigend 1994; Lakshminarayanan et al. 2017, eq. (1). For beta, Seitzer, Tavakoli, Antic & Martius 2022, On
        the Pitfalls of Heteroscedastic Uncertainty Estimation with Probabilistic Neural Networks, eq. (5), who
        recommend 0.5.
    """

    output_kinds = (MEANS, "log variances")
    has_normal_noise = True
    noise_is_output = True

    minimum_scale: float = 0.0
    maximum_scale: float | None = MAXIMUM_SCALE
    beta: float = 0.0

    def __post_init__(self) -> None:
        if check_finite_number(self.minimum_scale, "minimum_scale") < 0:
            raise ValueError(f"`minimum_scale` must be at least 0; got {self.minimum_scale}.")
        if self.maximum_scale is not None:
            check_positive(self.maximum_scale, "maximum_scale")
            if self.maximum_scale < 10 * max(SMALLEST_SCALE, self.minimum_scale):
                raise ValueError(
                    f"`maximum_scale` must be at least 10 times `minimum_scale` and {SMALLEST_SCALE:g}; got "
                    f"{self.maximum_scale} and {self.minimum_scale}. Standardise y."
                )
        if not 0 <= check_finite_number(self.beta, "beta") <= 1:
            raise ValueError(f"`beta` must be between 0, the likelihood, and 1, squared errors; got {self.beta}.")

    @property
    def is_density(self) -> bool:
        """Whether gradients are those of the density."""
        return self.beta == 0

    def check_size(self, y: Tensor) -> None:
        """Warn where the bounds on the noise do not suit a y of this size."""
        if self.maximum_scale is None or len(y) < 2:
            return
        spread = y.double().std(dim=0)
        wide, narrow = spread > self.maximum_scale / 2, (spread < 100 * SMALLEST_SCALE) & (spread > 0)
        if bool((wide | narrow).any()):
            warnings.warn(
                f"The noise is bounded between {SMALLEST_SCALE:g} and {self.maximum_scale:g} in units of y, whose "
                f"standard deviation is {float(spread.amin()):.0e} to {float(spread.amax()):.0e}. Standardise y "
                "(`bayesuq.data.Standardizer`), or give HeteroscedasticNormal a `maximum_scale` of its size, or None "
                "for no bounds.",
                UserWarning,
                stacklevel=2,
            )

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Targets of shape (N, D), in f's dtype."""
        mean, _ = self._parts(f, dim=1)
        return aligned(mean, y, channels=mean.shape[1:2]).to(f.dtype)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log N(y; mean, variance), (N, D)."""
        mean, log_variance = self._parts(f, dim=1)
        log_variance = self.log_variance(log_variance)
        log_prob = -0.5 * ((y - mean) ** 2 * torch.exp(-log_variance) + log_variance + LOG_TWO_PI)
        if self.beta == 0:
            return log_prob
        return log_prob.detach() + (self.beta * log_variance.detach()).exp() * (log_prob - log_prob.detach())

    def log_prob_and_slope(self, f: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """With e = y - m: e / v in m, and (e^2 / v - 1) / 2 times the slope of log v in g."""
        is_own = type(self) is HeteroscedasticNormal  # a subclass may have another density
        if self.maximum_scale is None or self.beta > 0 or f.ndim > 2 or not is_own:
            return super().log_prob_and_slope(f, y, weight)
        (mean, g), errors = self._parts(f, dim=1), self.align(f, y)
        excess = g - g.clamp(*self._ends())
        signal = (g - excess + excess.atan()).exp()
        variance = signal + self.minimum_scale**2
        errors = errors - mean
        scaled = errors / variance
        squares = errors * scaled
        terms = -0.5 * (squares + variance.log() + LOG_TWO_PI)
        slope = 0.5 * (squares - 1) * signal / (variance * (1 + excess * excess))
        if weight is not None:
            shares = aligned_weight(weight, terms)
            terms, scaled, slope = terms * shares, scaled * shares, slope * shares
        return terms.sum(dim=1), torch.cat([scaled.T, slope.T]).T

    def distribution(self, f: Tensor) -> Any:
        """Normal law with event shape (D,)."""
        mean, log_variance = self._parts(f, dim=1)
        return dist.Normal(mean, torch.exp(0.5 * self.log_variance(log_variance))).to_event(mean.ndim - 1)

    def _of_points(self, f: Tensor) -> GaussianPredictive:
        mean, log_variance = self._parts(f, dim=2)
        log_variance = self.log_variance(log_variance.double())
        variance = within_floats(log_variance, highest=2 * LARGEST_LOG, lowest=-2 * LARGEST_LOG).exp()
        return GaussianPredictive(mean=within_floats(mean).contiguous(), noise_variance=variance)

    def num_outputs(self, y: Tensor) -> int:
        """A mean and a log variance for each target."""
        return 2 * super().num_outputs(y)

    def fisher_root(self, f: Tensor) -> Tensor:
        """Of N(m, v) the information is 1 / v in m and 1 / 2 in log v, (N, K, K)."""
        mean, g = self._parts(f.double(), dim=1)
        inverse_scale = torch.exp(-0.5 * self.log_variance(g))
        return torch.cat([inverse_scale.expand_as(mean), self.log_variance_slope(g) / 2**0.5], dim=1).diag_embed()

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """-(((y - E m)^2 + Var m) E[1 / v] + E[log v] + log 2 pi) / 2, (N, D), m and v being independent.

        Where v = exp(g) the two expectations are exp(-E g + Var g / 2) and E g; a floor or a ceiling of the noise takes
        quadrature.
        """
        (m, g), (m_variance, g_variance) = (each.chunk(2, dim=1) for each in (mean, variance))
        squares = (y - m).square() + m_variance
        if self.maximum_scale is None and self.minimum_scale == 0:
            inverse, log_variance = (0.5 * g_variance - g).exp(), g
        else:
            points, shares = normal_points(g, g_variance.clamp(min=1e-20).sqrt())
            at_points = self.log_variance(points)
            inverse = torch.einsum("q,qnd->nd", shares, (-at_points).exp())
            log_variance = torch.einsum("q,qnd->nd", shares, at_points)
        return -0.5 * (squares * inverse + log_variance + LOG_TWO_PI)

    def log_variance(self, g: Tensor) -> Tensor:
        """log v(g), of g's shape."""
        g = self._bent(g)
        if self.minimum_scale > 0:
            g = torch.logaddexp(g, g.new_tensor(2 * math.log(self.minimum_scale)))
        return g

    def log_variance_slope(self, g: Tensor) -> Tensor:
        """d log v / d g, of g's shape, above 0 and at most 1."""
        lower, upper = self._ends()
        excess = (g - upper).clamp(min=0) + (lower - g).clamp(min=0)
        bent = self._bent(g)
        return (bent - self.log_variance(g)).exp() / (1 + excess.square())

    def _bent(self, g: Tensor) -> Tensor:
        """b(g): in one piece between the ends, and beyond them by an arc tangent, whose slope has no rounding."""
        lower, upper = self._ends()
        if math.isinf(upper):
            return g
        return g.clamp(lower, upper) + (g - upper).clamp(min=0).atan() - (lower - g).clamp(min=0).atan()

    def _ends(self) -> tuple[float, float]:
        """Between which b(g) = g."""
        if self.maximum_scale is None:
            return -math.inf, math.inf
        return 2 * math.log(SMALLEST_SCALE) + math.pi / 2, 2 * math.log(self.maximum_scale) - math.pi / 2

    def _parts(self, f: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        if f.ndim < dim + 1 or f.shape[dim] % 2:
            raise ValueError(
                f"The network must give f of shape (N, 2 D, ...), means and then log variances; got {tuple(f.shape)}. "
                "Double its outputs."
            )
        mean, log_variance = f.chunk(2, dim=dim)
        return mean, log_variance


@dataclass(frozen=True, eq=False)
class StudentT(ScaledNoise):
    """Real targets with outliers: y = f + scale * t, t of Student's law with `df` degrees of freedom; f, y are (N, D).

    A target far away pulls on f with a force that falls with its distance, where a normal one pulls the harder. With
    `df` at most 2 the predictive's variance is infinite, and with at most 1 its mean is undefined (NaN); log score,
    quantiles and coverage remain.

    Attributes:
        df: Degrees of freedom, the same for all columns: a number; "learned", a point value found with the weights; or
            a prior over positive numbers. (Inside a method: a tensor, () or (S,).)
        scale: The spread in units of y, in the same three ways, a list of one for each column, or "given", each row's
            own: see `Normal`. Not the standard deviation, which is scale sqrt(df / (df - 2)).
        initial_df: Where a fit starts a `df` that is learned or inferred.
        initial_scale: Where a fit starts a scale that is learned or inferred, or a list of one for each column.
        per_column: Whether each target column has a scale of its own: see `Normal`.

    Reference:
        Lange, Little and Taylor 1989, Robust Statistical Modeling Using the t Distribution.
    """

    parameters: ClassVar[tuple[str, ...]] = ("df", "scale")

    df: float | Literal["learned"] | Prior | Tensor = 4.0
    scale: float | Sequence[float] | Literal["learned", "given"] | Prior | Tensor = "learned"
    initial_df: float = 4.0
    initial_scale: float | Sequence[float] = 1.0
    per_column: bool | int = False

    def __post_init__(self) -> None:
        check_positive(self.initial_df, "initial_df")
        df = checked_parameter(self.df, "df")
        if isinstance(df, tuple):
            raise ValueError(f"`df` must be one number for all columns; got {df}.")
        object.__setattr__(self, "df", df)
        self._check_scales()

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log t(y; df, f, scale), (N, D)."""
        df, f, scale = self._parameters(f)
        # log Gamma((df + 1) / 2) - log Gamma(df / 2) - log(pi df) / 2 - log scale: everything that f has no part in
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (math.pi * df).log() - scale.log()
        return constant - 0.5 * (df + 1) * torch.log1p(((y - f) / scale).square() / df)

    def distribution(self, f: Tensor) -> Any:
        """Student's law with event shape (D,)."""
        df, mean, scale = self._parameters(f)
        return dist.StudentT(df, mean, scale).to_event(f.ndim - 1)

    def _of_points(self, f: Tensor) -> MixturePredictive:
        df = of_draws(parameter_value(self.df, "df"), f.double(), per_column=False)
        mean, scale = self._located_draws(f)
        return MixturePredictive(dist.StudentT(df, within_floats(mean).double(), scale.double()))

    def fisher_root(self, f: Tensor) -> Tensor:
        """sqrt((df + 1) / (df + 3)) / scale on the diagonal, (N, K, K): Lange et al. 1989, section 2."""
        df, _, scale = self._parameters(f.double())
        return self._diagonal_root(((df + 1) / (df + 3)).sqrt() / scale, f.double())

    def _parameters(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The degrees of freedom, the means and the scales."""
        df = over_columns(parameter_value(self.df, "df"), f, per_column=False)
        return df, *self._located(f)


@dataclass(frozen=True, eq=False)
class Laplace(ScaledNoise):
    """Real targets with heavy tails: y = f + scale * e, e of Laplace's law exp(-|e|) / 2; f and y are (N, D).

    Its mode minimises absolute errors, as networks for depth and optical flow do. The variance is 2 scale^2.

    Attributes:
        scale: In units of y, in the ways of `Normal`; the mean absolute error, not the standard deviation.
        initial_scale: See `Normal`.
        per_column: See `Normal`.

    Reference:
        Kendall & Gal 2017, What uncertainties do we need in Bayesian deep learning for computer vision?, section 4.
    """

    parameters: ClassVar[tuple[str, ...]] = ("scale",)

    scale: float | Sequence[float] | Literal["learned", "given"] | Prior | Tensor = "learned"
    initial_scale: float | Sequence[float] = 1.0
    per_column: bool | int = False

    def __post_init__(self) -> None:
        self._check_scales()

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log p, (N, D): -|y - f| / scale - log(2 scale)."""
        f, scale = self._located(f)
        return -(y - f).abs() / scale - (2 * scale).log()

    def distribution(self, f: Tensor) -> Any:
        """Laplace's law with event shape (D,)."""
        mean, scale = self._located(f)
        return dist.Laplace(mean, scale).to_event(f.ndim - 1)

    def _of_points(self, f: Tensor) -> MixturePredictive:
        mean, scale = self._located_draws(f)
        return MixturePredictive(dist.Laplace(within_floats(mean).double(), scale.double()))

    def fisher_root(self, f: Tensor) -> Tensor:
        """1 / scale on the diagonal, (N, K, K): the information of a location, though -log p has no curvature."""
        f = f.double()
        _, scale = self._located(f)
        return self._diagonal_root(1 / scale, f)
