"""The predictive distribution p(y* | x*, D), the one type that every measure, plot and report consumes.

A posterior approximation gives S draws of the network's function; their equal mixture is the predictive. For labels it
is `CategoricalPredictive` (its state is of fixed size, whatever S); all of real targets and counts are a
`RealPredictive`: `GaussianPredictive`, `bayesuq.predictive.mixture.MixturePredictive` of other families, and your own.

Each splits its total uncertainty into an aleatoric part (the mean uncertainty of the draws, what stays when the weights
are known) and an epistemic part (the disagreement of the draws): in nats by entropies for labels, in units of y squared
by the law of total variance for real targets. total = aleatoric + epistemic always.

Letters: S draws, N points, C classes, D target columns, `...` further dimensions such as an image's height and width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from bayesuq import optional
from bayesuq.arrays import ArrayLike, as_targets, check_fraction, chosen_rows
from bayesuq.predictive.by_point import MOST_ROWS, Columns, as_html, named_columns
from bayesuq.waiting import check

SHOWN_LEVEL = 0.9  # of the interval that data frames and notebooks show
BLOCK_NUMBERS = 2**18  # that fit a processor's cache in float64
ACCELERATOR_NUMBERS = 2**24  # for which an accelerator is not asked too often


class PredictiveDistribution(ABC):
    """The distribution of y* at N new inputs, after the weights have been integrated out."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """S, the number of draws in the mixture."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[y*]: class probabilities (N, C, ...), or target means (N, D)."""

    @property
    @abstractmethod
    def total(self) -> Tensor:
        """Total uncertainty: entropy in nats (N, ...), or variance (N, D)."""

    @property
    @abstractmethod
    def aleatoric(self) -> Tensor:
        """Mean uncertainty of the single draws, of the same shape and unit as `total`."""

    @property
    @abstractmethod
    def epistemic(self) -> Tensor:
        """Disagreement between the draws, of the same shape and unit as `total`."""

    @abstractmethod
    def log_prob(self, y: ArrayLike) -> Tensor:
        """log p(y | x*, D) of the mixture, in nats: (N, ...) for labels, (N,) jointly over columns of real targets."""

    @abstractmethod
    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Draws of y*, (num_samples, N, ...) or (num_samples, N, D)."""

    @abstractmethod
    def component_log_prob(self, y: ArrayLike) -> Tensor:
        """log p(y | x*, draw) of each draw, in nats, (S, N, ...) for labels and (S, N) for real targets.

        Its logsumexp over draws is `log_prob(y)` + log S.
        """

    @abstractmethod
    def component_sample(self, *, seed: int | None = None) -> Tensor:
        """One y* from each draw, in the draws' order, (S, N, ...) or (S, N, D)."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same predictive on another device."""

    @classmethod
    @abstractmethod
    def mixture(cls, parts: Iterable[Self]) -> Self:
        """The equal mixture of the draws of all parts, at the same points."""

    @classmethod
    @abstractmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The predictive at the points of all parts, in order; each part must have the same number of draws."""

    @abstractmethod
    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        """The predictive of loc + scale * y* for real targets; labels have no unit and stay as they are."""

    def columns(self) -> Columns:
        """What `to_pandas` tells of each point, by name, (N,) each: uncertainties, of maps the means over pixels."""
        uncertainties = {"total": self.total, "aleatoric": self.aleatoric, "epistemic": self.epistemic}
        return {name: values.reshape(len(values), -1).mean(dim=1) for name, values in uncertainties.items()}

    def to_pandas(self) -> Any:
        """A data frame of a row for each point.

        Of real targets: `mean`, `std`, its parts `aleatoric_std` and `epistemic_std`, `median`, and the ends `lower`
        and `upper` of the central interval of 90 %, all in units of y; several target columns have their number at the
        end, as in `mean_0`. Of labels: the most probable `label`, the probabilities `p_0`, `p_1`, ..., and `total`,
        `aleatoric` and `epistemic` in nats, classes by their names where they have such; of maps, the means over an
        image's pixels of the last three.

        Returns:
            `pandas.DataFrame`.

        Raises:
            ImportError: pandas cannot be imported.
        """
        return optional.pandas.DataFrame(
            {name: told.cpu().numpy() if isinstance(told, Tensor) else told for name, told in self.columns().items()}
        )

    def shown_columns(self, number: int) -> Columns:
        """What a notebook shows of the first points, by name."""
        return {name: values[:number] for name, values in self.columns().items()}

    def _repr_html_(self) -> str:
        return as_html(repr(self), self.shown_columns(MOST_ROWS), len(self.mean))

    def __repr__(self) -> str:
        draws = f"{self.num_samples} draw{'' if self.num_samples == 1 else 's'}"
        return f"{type(self).__name__}({draws}, mean: {tuple(self.mean.shape)})"

    def merge(self, other: Self) -> Self:
        """The equal mixture of the draws of both, at the same points.

        Raises:
            ValueError: Predictives at different points.
        """
        return type(self).mixture([self, other])


class RealPredictive(PredictiveDistribution):
    """A predictive of real targets or counts: S laws, one a draw, each with a mean and variance, and quantiles of all.

    Whatever implements it is measured, reported, drawn and made conformal as the package's own are. `log_prob` also
    takes `observed`, boolean, (N, D): which targets are known, the density being theirs alone.
    """

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(S, N, D): components, points and target columns."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its numbers are."""

    @property
    @abstractmethod
    def is_discrete(self) -> bool:
        """Whether targets are counts, whose cdf has steps."""

    @property
    @abstractmethod
    def component_means(self) -> Tensor:
        """Mean of each component, (S, N, D), in units of y."""

    @property
    @abstractmethod
    def component_variances(self) -> Tensor:
        """Variance of each component, (S, N, D), in units of y squared."""

    @abstractmethod
    def log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density or log probability of the mixture, jointly over the observed columns, (N,), in nats."""

    @abstractmethod
    def cdf(self, y: ArrayLike) -> Tensor:
        """P(y* <= y) column by column, (N, D)."""

    @abstractmethod
    def quantile(self, level: float) -> Tensor:
        """The smallest value that y* does not exceed with probability at least `level`, column by column, (N, D)."""

    def quantiles_at(self, levels: Sequence[float]) -> Sequence[Tensor]:
        """The quantiles at several levels, (N, D) each; see `quantile`."""
        return [self.quantile(level) for level in levels]

    @property
    def has_steps(self) -> bool:
        """Whether the cdf jumps, so that the ends of an interval have a probability of their own."""
        return self.is_discrete

    @property
    def without_density(self) -> str:
        """Why `log_prob` is not there, in words; empty where it is."""
        return ""

    @property
    def moments_basis(self) -> str:
        """What must be known to read the mean and the variances, in words; as a rule nothing."""
        return ""

    @property
    def density_basis(self) -> str:
        """What must be known to read a log score, in words; as a rule nothing."""
        return ""

    @property
    def without_split(self) -> str:
        """Why `aleatoric` and `epistemic` are not there, in words, but only their sum `total`; empty where they are."""
        return ""

    def interval_remark(self, level: float) -> str:  # noqa: ARG002 - most have nothing to say
        """What must be known to read the central interval of probability `level`, in words; as a rule nothing."""
        return ""

    def transform_ends(self, y: ArrayLike) -> tuple[Tensor, Tensor]:
        """P(y* < y) and P(y* <= y), (N, D) each, between which the probability integral transform lies."""
        target = self.targets(y)
        at_most = self.cdf(target)
        return (self.cdf(target - 1) if self.is_discrete else at_most), at_most

    def marginal_sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Draws of y*, (num_samples, N, D), right at each single point; how points go together is left open."""
        return self.sample(num_samples, seed=seed)

    @abstractmethod
    def at(self, points: slice | ArrayLike) -> Self:
        """The predictive at some of its points, in their order.

        Args:
            points: A slice; or whole numbers, negative ones counted from the end, or booleans (N,).

        Raises:
            TypeError: Fractions.
            ValueError: One number, which is no list of them; booleans of another length.
            IndexError: No such point.
        """

    @abstractmethod
    def components_at(self, chosen: Tensor) -> Self:
        """The mixture of some of its components, by their numbers, (K,), int64."""

    @classmethod
    @abstractmethod
    def joined(cls, parts: Sequence[Self], dim: int) -> Self:
        """The components of all parts at the same points (dim 0), or their points one after another (dim 1).

        `mixture` and `concatenate` have checked that the parts go together.
        """

    @property
    def num_samples(self) -> int:
        """S, the number of components in the mixture."""
        return self.shape[0]

    @property
    def total(self) -> Tensor:
        """Var[y*] by the law of total variance, (N, D), in units of y squared."""
        return self.aleatoric + self.epistemic

    @property
    def std(self) -> Tensor:
        """Standard deviation of y*, the root of `total`, (N, D), in units of y."""
        return self.total.sqrt()

    @property
    def median(self) -> Tensor:
        """Median of y*, column by column, (N, D), in units of y."""
        return self.quantile(0.5)

    def interval(self, level: float = SHOWN_LEVEL) -> tuple[Tensor, Tensor]:
        """The central interval that holds y* with probability `level`: its lower and upper ends, each (N, D).

        They are the quantiles (1 - level) / 2 and (1 + level) / 2 of the mixture, in units of y. Of counts it holds y*
        with probability `level` or more.

        Raises:
            TypeError: A level that is not a number.
            ValueError: A level outside (0, 1).
        """
        lower, upper = self.quantiles_at(central_levels(level))
        return lower, upper

    def columns(self) -> Columns:
        """Mean, standard deviation and its parts, median and 90 % interval of each point, by name, (N,) each.

        A predictive whose variance is not split has no parts.
        """
        lower, upper = self.interval()
        parts = {} if self.without_split else {"aleatoric_std": self.aleatoric, "epistemic_std": self.epistemic}
        return named_columns(
            {
                "mean": self.mean,
                "std": self.std,
                **{name: variance.sqrt() for name, variance in parts.items()},
                "median": self.median,
                "lower": lower,
                "upper": upper,
            }
        )

    def shown_columns(self, number: int) -> Columns:
        """What a notebook shows of the first points, by name."""
        return self.at(slice(0, number)).columns()

    def targets(self, y: ArrayLike) -> Tensor:
        """`y` as float64 of shape (N, D) on this predictive's device.

        Raises:
            TypeError: See `bayesuq.arrays.to_tensor`.
            ValueError: Another shape than (N, D), or (N,) for D = 1; values that are not finite.
        """
        target, expected = as_targets(y), self.shape[1:]
        if target.shape != expected:
            raise ValueError(
                f"`y` must have shape {tuple(expected)} as the predictive has, or (N,) for one column; got "
                f"{tuple(target.shape)}."
            )
        return target.to(self.device, torch.float64)

    @classmethod
    def mixture(cls, parts: Iterable[Self]) -> Self:
        """The equal mixture of the components of all parts, at the same points."""
        collected = list(parts)
        if not collected:
            raise ValueError("A mixture must have at least one part; got none.")
        for part in collected[1:]:
            check_mergeable(collected[0].shape[1:], part.shape[1:])
        return cls.joined(collected, dim=0)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The predictive at the points of all parts, in order; each part must have the same number of components."""
        check_concatenable([part.num_samples for part in parts], [part.shape[2:] for part in parts])
        return cls.joined(parts, dim=1)

    def check_columns(self, loc: Tensor, scale: Tensor) -> None:
        """Raise a ValueError unless a shift and a stretch above 0 are each one number or one a column."""
        columns = self.shape[2:]
        check((scale > 0).all(), lambda: ValueError(f"`scale` must be above 0; got {float(scale.min())}."))
        if not {loc.shape, scale.shape} <= {torch.Size(), columns}:
            raise ValueError(
                f"`loc` and `scale` must have shape () or {tuple(columns)}; got {tuple(loc.shape)} and "
                f"{tuple(scale.shape)}."
            )


def central_levels(level: float) -> tuple[float, float]:
    """Of the quantiles between which lies the central interval of this probability.

    Raises:
        TypeError: A level that is not a number.
        ValueError: A level outside (0, 1).
    """
    level = check_fraction(level, "level")
    return (1 - level) / 2, (1 + level) / 2


def block_size(numbers: int, one: Tensor) -> int:
    """How many like `one` are computed with at a time: so many numbers, which a cache holds; on accelerators more."""
    return max(1, (numbers if one.device.type == "cpu" else ACCELERATOR_NUMBERS) // one.numel())


def check_draws(values: Tensor, name: str, shape: str, mend: str) -> None:
    """Raise a ValueError unless values have a dimension of draws, one of points and one more, and none is empty."""
    if values.ndim < 3 or values.numel() == 0:
        raise ValueError(
            f"`{name}` must have shape {shape} with no empty dimension; got {tuple(values.shape)}. "
            f"Use `{mend}` for one draw."
        )


def over_columns(log_probs: Tensor, observed: Tensor | None) -> Tensor:
    """Sum over the last dimension of what is observed, (N, D), of independent columns' log densities, (S, N, D)."""
    return (log_probs if observed is None else torch.where(observed, log_probs, 0.0)).sum(dim=-1)


def check_mergeable(one: torch.Size, other: torch.Size) -> None:
    """Raise a ValueError unless two predictives, by the shape of their state, stand at the same points."""
    if one != other:
        raise ValueError(
            f"Only predictives at the same points merge; got shapes {tuple(one)} and {tuple(other)}. "
            "Use `concatenate` for further points."
        )


def check_concatenable(counts: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise a ValueError unless predictives differ only in their points, by their draws and the shape of a point."""
    if len(set(counts)) != 1:
        raise ValueError(f"Parts must have the same number of draws, at least one part; got {sorted(set(counts))}.")
    if len(set(shapes)) != 1:
        raise ValueError(f"Parts may differ only in their points; got points of shapes {sorted(set(shapes))}.")


def chosen_points(points: slice | ArrayLike, number: int, device: torch.device) -> slice | Tensor:
    """Which of N points are meant: see `RealPredictive.at`."""
    return points if isinstance(points, slice) else chosen_rows(points, number, "points").to(device)
