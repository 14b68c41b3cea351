"""What every likelihood p(y | f) is: the class that the models take, its unknown parameters, and the shapes of y.

Letters: S draws, N points, C outputs, D target columns, `...` further dimensions such as an image's height and width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, as_targets, check_positive
from bayesuq.models.likelihoods.derived import fisher_information, label_log_probs, root_of
from bayesuq.models.priors import Prior
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.maps import RealMaps

LOGITS, MEANS = "logits", "means"
Parameter = float | Sequence[float] | Literal["learned", "given"] | Prior | Tensor


@dataclass(frozen=True)
class Unknown:
    """A positive parameter of a likelihood that is not fixed.

    Attributes:
        prior: Its law, which makes it one of the inferred sites; None where it is learned as a point value.
        initial: Where a fit starts it: one number, or one for each target column.
    """

    prior: Prior | None
    initial: float | Sequence[float]


class Likelihood(ABC):
    """p(y | f), independent over points and, given f, over the targets of a point."""

    @property
    def unknowns(self) -> dict[str, Unknown]:
        """The parameters that are not fixed, by name."""
        return {}

    def given(self, values: Mapping[str, Tensor]) -> Self:  # noqa: ARG002 - most likelihoods have no parameters
        """The likelihood at these values of its unknowns, each of the shape of its start, or of S draws of it."""
        return self

    def for_outputs(self, num_outputs: int | None) -> Self:  # noqa: ARG002 - most likelihoods are the same for any number
        """The likelihood of a network of C outputs, its unknowns as many as it has target columns.

        Raises:
            ValueError: Their number depends on C, and C is not known (None) or another.
        """
        return self

    @property
    def output_kinds(self) -> tuple[str, ...]:
        """What columns of f are that may be any real number, in groups of equal width: means and log variances, say.

        A network that bounds them is told of. Empty, as by default, says nothing.
        """
        return ()

    @property
    def takes_scale(self) -> bool:
        """Whether f holds the known scales of the noise behind its own columns: see `bayesuq.inputs.Given`."""
        return False

    @property
    def is_density(self) -> bool:
        """Whether gradients of `log_prob` are those of its values; else it is a loss, for methods that descend it."""
        return True

    def check_density(self) -> None:
        """Refuse a loss that has no posterior.

        Raises:
            ValueError: Gradients that are not those of a density.
        """
        if not self.is_density:
            raise ValueError(
                f"{self!r} weights its gradients: it is a loss to descend, and no density that could have a posterior. "
                "Take `map_estimate`, `ensemble` or `dropout`, or leave the weighting out."
            )

    @property
    def reweights_classes(self) -> bool:
        """Whether `log_prob` differs from `distribution(f).log_prob(y)` also where no weight is given."""
        return False

    @property
    def has_labels(self) -> bool:
        """Whether targets are labels, so that the predictive is one of class probabilities."""
        return not _takes(self, [0]).is_floating_point()

    @property
    def has_units(self) -> bool:
        """Whether targets are real numbers of either sign, which are counted in some unit, as f is."""
        return _takes(self, [-0.5]).numel() > 0

    @property
    def has_normal_noise(self) -> bool:
        """Whether y is normal around the first columns of f, so that under a normal f it is normal too."""
        return False

    @property
    def noise_is_output(self) -> bool:
        """Whether columns of f are the noise of the targets."""
        return False

    @property
    def has_one_logit(self) -> bool:
        """Whether `logits` has one number for two classes, the logit of the second."""
        return False

    @property
    def takes_logits(self) -> "Likelihood | None":
        """The likelihood of the same targets whose outputs are what `logits` gives; None is `Categorical()`."""
        return None

    @property
    def outputs_are_logits(self) -> bool:
        """Whether `logits` gives the network's outputs themselves."""
        return self.takes_logits is self

    @property
    def ignore_index(self) -> int | None:
        """The label that adds nothing, where there is one."""
        return None

    @abstractmethod
    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:
        """Checked targets of the dtype that `log_prob` takes.

        Args:
            y: Targets as a user passes them.
            num_outputs: C, where it is known; labels must then be below it.

        Raises:
            TypeError: Labels where real numbers belong, or fractions where labels belong.
            ValueError: Values outside the likelihood's support.
        """

    def check_size(self, y: Tensor) -> None:  # noqa: B027 - most likelihoods have no parameters in units of y
        """Warn where the parameters do not suit targets of this size, which `targets` gave."""

    @abstractmethod
    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """`y` in the shape that f asks for.

        Raises:
            ValueError: Shapes of f and y that do not belong together; nothing is ever broadcast.
        """

    @abstractmethod
    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log p of each target in nats, of y's shape, class weights inside; `y` is aligned."""

    @abstractmethod
    def distribution(self, f: Tensor) -> Any:
        """The law of y as a Pyro distribution of batch shape (N,)."""

    @abstractmethod
    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> PredictiveDistribution:
        """The equal mixture over S draws of f, (S, N, C, ...)."""

    def fisher_root(self, f: Tensor) -> Tensor:
        """The root R of the curvature in f that a Gauss-Newton matrix is made of, (N, K, K), float64.

            R R^T = Lambda = E[ -d^2 log p(y | f) / df df^T ]  over y ~ p(y | f)

        K is the number of outputs of a row, in the order of `f.flatten(1)`. By default it is derived from
        `distribution`: see `bayesuq.models.likelihoods.derived.fisher_information`. Weights of classes have no part in
        it: see `target_weights`.
        """
        return root_of(fisher_information(self.distribution, f))

    def target_weights(self, y: Tensor) -> Tensor:
        """What the likelihood itself multiplies log p of each target by, of y's shape, float64; `y` is aligned.

        Raises:
            NotImplementedError: A likelihood that says `reweights_classes`, but not by what.
        """
        if self.reweights_classes:
            raise NotImplementedError(
                f"{type(self).__name__} says that it reweights classes, but not by what. Define `target_weights(y)`."
            )
        return torch.ones(y.shape, dtype=torch.float64, device=y.device)

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor | None:  # noqa: ARG002
        """E log p of each target under independent f ~ N(mean, variance), (N, D), in closed form.

        None, as by default, leaves it to quadrature or draws.

        Args:
            mean: Of f, (N, C).
            variance: Of f, (N, C).
            y: Targets, aligned.
        """
        return None

    @property
    def is_elementwise(self) -> bool:
        """Whether each target has one output of its own, so that expectations over f have one dimension."""
        return False

    def num_outputs(self, y: Tensor) -> int:
        """C for these targets, which `targets` gave, where no network tells it."""
        if not self.has_labels:
            return y.shape[1] if y.ndim > 1 else 1
        try:
            binary = self.logits(torch.zeros(1, 1)).shape[1] == 2
        except (TypeError, ValueError, IndexError, RuntimeError):  # however a likelihood refuses one output
            binary = False
        return 1 if binary else max(2, int(y.max()) + 1)

    def logits(self, f: Tensor, dim: int = 1) -> Tensor:
        """What a temperature divides: log p of each class, by default normalised, with the classes in dimension `dim`.

        Args:
            f: Network outputs, with the C channels in dimension `dim`.
            dim: 1, or 2 for f of S draws, (S, N, C, ...).

        Raises:
            TypeError: No likelihood of labels.
        """
        leading = f.shape[:dim]
        found = label_log_probs(self.distribution(f.flatten(0, dim - 1)))
        if found.ndim == f.ndim - dim + 2 and f.shape[dim] == 1:  # (N, 2, 1, ...): a channel for one label
            found = found.squeeze(2)
        return found.unflatten(0, leading)

    def log_prob(self, f: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """log p(y | f) of each point, summed over its targets, weighted; (N,), in nats.

        Args:
            f: Network outputs, (N, C, ...).
            y: Targets, of f's shape less the channel where the likelihood says so.
            weight: (N,), or of y's shape.

        Raises:
            ValueError: Shapes that do not belong together.
        """
        terms = self._weighted_terms(f, y, weight)
        return terms.flatten(1).sum(dim=1) if terms.ndim > 1 else terms

    def log_prob_and_slope(self, f: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`log_prob`, (N,), and its gradient in f, (N, C, ...), both without a graph.

        By default autograd's. A likelihood that chains of small networks are run with gains by writing it out.
        """
        leaf = f.detach().requires_grad_()
        with torch.enable_grad():
            log_probs = self.log_prob(leaf, y, weight)
            return log_probs.detach(), torch.autograd.grad(log_probs.sum(), leaf)[0]

    def total_log_prob(self, f: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """The sum of `log_prob` over points, a 0-d tensor, in nats."""
        return self._weighted_terms(f, y, weight).sum()

    def _weighted_terms(self, f: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        terms = self.elementwise_log_prob(f, self.align(f, y))
        return terms if weight is None else terms * aligned_weight(weight, terms)


class RealTargets(Likelihood):
    """Real targets (N, D), or maps of them, (N, D, ...), whose pixels are points with a law each."""

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:  # noqa: ARG002
        """Real targets, (N, D) or (N, D, ...)."""
        return as_targets(y, maps=True)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> RealPredictive | RealMaps:  # noqa: ARG002
        """The mixture of S laws; its components are the single draws, which it always keeps."""
        return RealMaps.of_draws(f, self._of_points) if f.ndim > 3 else self._of_points(f)

    @abstractmethod
    def _of_points(self, f: Tensor) -> RealPredictive:
        """The mixture over S draws of f at points, (S, N, C)."""


def checked_parameter(value: Any, name: str, *, may_be_given: bool = False) -> Parameter:
    """What a user gives as a likelihood's positive parameter: a number, one for each column, "learned", or a prior.

    Args:
        value: As passed.
        name: Of the parameter.
        may_be_given: Whether "given", by the data, is one of its values.

    Raises:
        ValueError: Anything else; a tensor of several numbers, which may be of columns, of rows or of draws.
    """
    if isinstance(value, str):
        if value == "given" and may_be_given:
            return "given"
        if value != "learned":
            words = "'learned', 'given'" if may_be_given else "'learned'"
            raise ValueError(f"`{name}` must be a number, {words} or a prior; got {value!r}.")
        return "learned"
    if isinstance(value, Prior):
        _check_positive_support(value, name)
        return value
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"`{name}` must have one number for each target column; got none.")
        return tuple(check_positive(each, name) for each in value)
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        raise ValueError(
            f"`{name}` must be a number, a list of one for each target column, 'learned' or a prior; got an array of "
            f"shape {tuple(value.shape)}. For columns write {name}=[0.1, 0.2]. Where each row's noise is known, write "
            "scale='given', and give the scales with the rows, as Dataset(x, y, scale=...)."
        )
    return check_positive(value.item() if isinstance(value, Tensor | np.ndarray) else value, name)


def unknown_parameters(values: Mapping[str, tuple[Parameter, float | Sequence[float]]]) -> dict[str, Unknown]:
    """Those that are not fixed, of parameters that come with their initial values."""
    return {
        name: Unknown(value if isinstance(value, Prior) else None, initial)
        for name, (value, initial) in values.items()
        if isinstance(value, Prior) or (isinstance(value, str) and value == "learned")
    }


def parameter_value(value: Parameter, name: str) -> float | Sequence[float] | Tensor:
    """`value` as a number, one for each column, or a tensor.

    Raises:
        ValueError: It is learned or inferred, and has not been given.
    """
    if isinstance(value, str | Prior):
        raise ValueError(f"The noise's {name} has no value yet. Call `given({{'{name}': value}})` first.")
    return value


def aligned(f: Tensor, y: Tensor, *, channels: tuple[int, ...]) -> Tensor:
    """`y` as (N, *channels, ...) for f of (N, C, ...), where the two agree but for the channel dimension."""
    if f.ndim < 2:
        raise ValueError(f"The network must give f of shape (N, C, ...); got {tuple(f.shape)}. Use f.unsqueeze(-1).")
    expected = (len(f), *channels, *f.shape[2:])
    if y.shape == expected:
        return y
    accepted = {expected}
    if channels in ((), (1,)):  # one column may come with its dimension or without; both hold the same numbers
        accepted |= {(len(f), *f.shape[2:]), (len(f), 1, *f.shape[2:])}
    if tuple(y.shape) not in accepted:
        raise ValueError(
            f"`y` must have shape {expected} for network outputs f of shape {tuple(f.shape)}; got {tuple(y.shape)}."
        )
    return y.reshape(expected)


def _takes(likelihood: Likelihood, y: list[float]) -> Tensor:
    """What the likelihood makes of these targets; of those that it does not take, no numbers."""
    try:
        return likelihood.targets(np.asarray(y))
    except (TypeError, ValueError):
        return torch.empty(0)


def aligned_weight(weight: Tensor, terms: Tensor) -> Tensor:
    """`weight` so that it multiplies the terms of log p."""
    if weight.shape == terms.shape[:1]:
        return weight.reshape(-1, *[1] * (terms.ndim - 1))
    if _without_column(weight.shape) != _without_column(terms.shape):
        raise ValueError(
            f"`weight` must have shape {tuple(terms.shape[:1])}, or {tuple(terms.shape)} as `y`; got "
            f"{tuple(weight.shape)}."
        )
    return weight.reshape(terms.shape)


def _without_column(shape: torch.Size) -> torch.Size:
    """The shape less its second dimension, where that is 1: a single column comes with its dimension or without."""
    return shape[:1] + shape[2:] if shape[1:2] == (1,) else shape


def _check_positive_support(prior: Prior, name: str) -> None:
    support = prior.entry(torch.zeros(())).support
    if getattr(support, "lower_bound", -math.inf) < 0:
        raise ValueError(f"`{name}` needs a prior over positive numbers, such as HalfNormal; got {prior!r}.")
