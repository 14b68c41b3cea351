"""Temperature scaling of any posterior over labels: divide every draw's logits by one T, chosen on held-out data.

    T* = argmin_T  - sum_n log (1 / S) sum_s softmax(f_s(x_n) / T)[y_n]

The likelihood is the mixture's, so an ensemble's or a Bayesian network's own averaging is part of what is calibrated.
Dividing each draw, and not the log of the mean, leaves aleatoric and epistemic uncertainty defined. For one draw no
T > 0 changes the predicted class; for a mixture it may, so both accuracies are told.

`vector=True` gives each class a slope and a bias of its own instead, under weak priors around 1 and 0. Choose T on data
that neither training nor early stopping has used.

Reference:
    Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.data import Dataset
from bayesuq.export import Drawn, Wanted
from bayesuq.inference.minibatches import Data
from bayesuq.inference.packing import move, read_through, save
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.labels import Bernoulli, Categorical
from bayesuq.models.scaled_logits import ScaledLogits
from bayesuq.options import suggests_names
from bayesuq.posterior import Posterior
from bayesuq.predictive import CategoricalPredictive, PredictiveDistribution
from bayesuq.randomness import resolve_seed

LARGEST_LOG_TEMPERATURE = math.log(100.0)
MAX_ITERATIONS = 200
SETTLED = 1e-3  # nats over all labels: none of them is in doubt, so none asks for a higher temperature


@suggests_names
def fit(
    posterior: Posterior,
    data: Data,
    *,
    vector: bool = False,
    num_samples: int | None = None,
    seed: int | None = None,
) -> "TemperaturePosterior":
    """Choose the temperature that gives held-out labels the highest probability.

    Args:
        posterior: A fitted posterior over labels; it stays as it is.
        data: Held-out rows, or a DataLoader of them, in order.
        vector: Whether to fit a slope and a bias for each class instead of one temperature.
        num_samples: Draws of the mixture that is calibrated, as for `predict`; predict with as many.
        seed: Of the draws.

    Returns:
        The same posterior, read at scaled logits.

    Raises:
        TypeError: A posterior over real targets, unknown options.
        ValueError: Data that the posterior does not take.

    Warns:
        UserWarning: No held-out label is in doubt, or the best temperature lies outside [0.01, 100].

    Example:
        >>> from bayesuq.inference import map_estimate
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 2), priors.Normal(), likelihoods.Categorical())
        >>> data = Dataset([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1])
        >>> scaled = fit(map_estimate.fit(model, data, num_epochs=3, seed=0), data)
        >>> scaled.temperature > 0
        True
    """
    likelihood = _likelihood(posterior)
    key = resolve_seed(seed)
    rows = _in_memory(data)
    predictive = posterior.predict(rows.x, num_samples=num_samples, seed=key, keep_samples=True)
    logits, labels, weight = _held_out(likelihood, predictive, rows)
    slopes, biases = _vector_scaling(logits, labels, weight) if vector else _temperature(logits, labels, weight)
    scaled = read_through(posterior, lambda base: ScaledLogits(base, slopes, biases))
    before, after = (_scores(_scaled(logits, *pair), labels, weight) for pair in (((1.0,), (0.0,)), (slopes, biases)))
    return TemperaturePosterior(
        posterior=scaled,
        slopes=slopes,
        biases=biases,
        negative_log_likelihood=(before[0], after[0]),
        accuracy=(before[1], after[1]),
    )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TemperaturePosterior(Posterior):
    """A posterior read at scaled logits.

    Attributes:
        posterior: The posterior, its likelihood scaled.
        slopes: 1 / T, or a slope for each class.
        biases: 0, or a bias for each class, in nats.
        negative_log_likelihood: Of the held-out labels before and after, nats a label.
        accuracy: On them before and after, fractions.
    """

    posterior: Posterior
    slopes: tuple[float, ...]
    biases: tuple[float, ...]
    negative_log_likelihood: tuple[float, float]
    accuracy: tuple[float, float]

    @property
    def temperature(self) -> float:
        """T, above 1 where the posterior was too sure.

        Raises:
            ValueError: Vector scaling has no one temperature.
        """
        if len(self.slopes) > 1 or self.biases != (0.0,):
            raise ValueError("Vector scaling has a slope and a bias for each class: see `slopes` and `biases`.")
        return 1 / self.slopes[0]

    @property
    def model(self) -> BayesianNetwork:
        """The joint density, with the scaled likelihood."""
        return self.posterior.model  # type: ignore[attr-defined]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.posterior.device

    def to(self, device: torch.device | str) -> Self:
        """The same posterior on another device."""
        return move(self, device)

    def save(self, path: "str | PathLike[str]") -> None:
        """Write it to one file: see `Posterior.save`."""
        save(self, path)

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D) at scaled logits: see `Posterior.predict`."""
        return self.posterior.predict(x, num_samples=num_samples, seed=seed, keep_samples=keep_samples)

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: that of the posterior, whose likelihood is scaled."""
        return replace(self.posterior.drawn(wanted), method=type(self).__name__)


def _temperature(logits: Tensor, labels: Tensor, weight: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """One slope 1 / T; log T is searched where T lies in [0.01, 100]."""
    log_slope = torch.zeros(1, dtype=torch.float64, device=logits.device)

    def slope() -> Tensor:
        return log_slope.clamp(-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE).exp()

    def loss() -> Tensor:
        return _loss(_at(logits, slope(), torch.zeros_like(log_slope)), labels, weight)

    _minimise([log_slope], loss)
    settled = float(loss()) * float(weight.sum()) < SETTLED
    if settled or abs(float(log_slope)) >= LARGEST_LOG_TEMPERATURE:
        warnings.warn(
            f"The held-out labels do not say how sure to be: the temperature stopped at T = {1 / float(slope()):.3g}. "
            "Use more of them, or some that were not trained on.",
            UserWarning,
            stacklevel=4,
        )
    return (float(slope()),), (0.0,)


def _vector_scaling(logits: Tensor, labels: Tensor, weight: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A slope and a bias for each class, the mode under standard normal priors on log slopes and biases.

    Without a prior they would run away as soon as some slopes and biases predict every held-out label.
    """
    log_slopes = torch.zeros(logits.shape[2], dtype=torch.float64, device=logits.device)
    biases = torch.zeros_like(log_slopes)

    def energy() -> Tensor:
        energy_of_prior = 0.5 * (log_slopes.square().sum() + biases.square().sum()) / weight.sum()
        return _loss(_at(logits, log_slopes.exp(), biases), labels, weight) + energy_of_prior

    _minimise([log_slopes, biases], energy)
    return tuple(log_slopes.exp().tolist()), tuple(biases.tolist())


def _minimise(parameters: list[Tensor], loss: Callable[[], Tensor]) -> None:
    """Move the parameters to the minimum of a smooth loss of few of them, in place, by L-BFGS."""
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=MAX_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    for parameter in parameters:
        parameter.requires_grad_(False)


def _at(logits: Tensor, slopes: Tensor, biases: Tensor) -> Tensor:
    shape = (-1, *[1] * (logits.ndim - 3))
    return logits * slopes.reshape(shape) + biases.reshape(shape)


def _scaled(logits: Tensor, slopes: tuple[float, ...], biases: tuple[float, ...]) -> Tensor:
    return _at(logits, logits.new_tensor(slopes), logits.new_tensor(biases))


def _log_mixture(logits: Tensor) -> Tensor:
    """log of the mean over draws of the class probabilities, (N, C, ...); one output is the logit of label 1."""
    both = torch.cat([torch.zeros_like(logits), logits], dim=2) if logits.shape[2] == 1 else logits
    return both.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))


def _loss(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    return -(weight * _log_mixture(logits).gather(1, labels.unsqueeze(1)).squeeze(1)).sum() / weight.sum()


def _scores(logits: Tensor, labels: Tensor, weight: Tensor) -> tuple[float, float]:
    """Negative log likelihood in nats a label, and accuracy."""
    correct = (_log_mixture(logits).argmax(dim=1) == labels).double()
    return float(_loss(logits, labels, weight)), float((weight * correct).sum() / weight.sum())


def _likelihood(posterior: Posterior) -> Likelihood:
    model = getattr(posterior, "model", None)
    likelihood = model.likelihood if isinstance(model, BayesianNetwork) else None
    if not isinstance(likelihood, Categorical | Bernoulli | ScaledLogits):
        raise TypeError(
            f"Temperature scaling needs a fitted posterior over labels; got {type(posterior).__name__} with the "
            f"likelihood {likelihood!r}."
        )
    return likelihood


def _held_out(
    likelihood: Likelihood, predictive: PredictiveDistribution, rows: Dataset
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (S, N, C, ...), of one output where labels are binary; labels (N, ...); weights, 0 where ignored."""
    base = likelihood
    while isinstance(base, ScaledLogits):
        base = base.base
    if not isinstance(predictive, CategoricalPredictive) or predictive.draws is None:
        raise TypeError(f"Temperature scaling needs single draws of class probabilities; got {predictive!r}.")
    logits = predictive.draws.double()
    logits = logits[:, :, 1:] if isinstance(base, Bernoulli) else logits
    labels = base.targets(rows.y, num_outputs=logits.shape[2]).to(logits.device)
    labels = labels.reshape(predictive.entropy_sum.shape)
    weight = torch.ones_like(labels, dtype=torch.float64)
    if rows.weight is not None:
        given = rows.weight.to(weight)
        weight = weight * given.reshape(
            labels.shape if given.numel() == labels.numel() else (-1, *[1] * (labels.ndim - 1))
        )
    ignored = labels == base.ignore_index if isinstance(base, Categorical) and base.ignore_index is not None else None
    if ignored is not None:
        labels, weight = labels.masked_fill(ignored, 0), weight.masked_fill(ignored, 0.0)
    if not weight.sum() > 0:
        raise ValueError("`data` has no label of positive weight to choose the temperature by.")
    return logits, labels, weight


def _in_memory(data: Data) -> Dataset:
    """All rows of a Dataset or a loader."""
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, DataLoader):
        raise TypeError(f"`data` must be a bayesuq.Dataset or a DataLoader; got {type(data).__name__}.")
    parts = [Dataset(*batch) for batch in data]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.concatenate(part)
    return whole
