"""Temperature scaling of any posterior over labels: divide every draw's logits by one T, chosen on held-out data.

    T* = argmin_T  - sum_n log (1 / S) sum_s softmax(f_s(x_n) / T)[y_n]

The likelihood is the mixture's, so an ensemble's or a Bayesian network's own averaging is part of what is calibrated.
Dividing each draw, and not the log of the mean, leaves aleatoric and epistemic uncertainty defined. For one draw no
T > 0 changes the predicted class; for a mixture it may, so both accuracies are told.

`vector=True` gives each class a slope and a bias of its own instead, under weak priors around 1 and 0, and
`matrix=True` whole matrices of the logits and of their probabilities, whose entries are as large as the evidence asks
for (see `evidence`); of many classes one of the logits, as large as cross-validation allows (see `scaling`). Choose T
on data that neither training nor early stopping has used.

Reference:
    Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, ClassVar, Literal, cast, overload

import torch

from bayesuq.arrays import ArrayLike
from bayesuq.columns import keeps_names
from bayesuq.data import Dataset
from bayesuq.inference.posteriors.packing import read_through
from bayesuq.inference.posteriors.wrapping import WrappingPosterior
from bayesuq.inference.temperature.evidence import MOST_CLASSES, matrix_by_evidence
from bayesuq.inference.temperature.outside import TemperatureScaling, check_mixable, held_out_of, one_temperature
from bayesuq.inference.temperature.scaling import (
    HeldOut,
    Scaling,
    check_matrix,
    matrix_by_folds,
    temperature_scaling,
    vector_scaling,
)
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.identity import Identity, digest
from bayesuq.inference.training.lbfgs import Evaluations
from bayesuq.loaders import Data, in_memory, only_targets
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.scaled_logits import ScaledLogits
from bayesuq.options import suggests_names
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.randomness import resolve_seed

Kind = Literal["temperature", "vector", "matrix"]


@overload
def fit(
    posterior: Posterior,
    data: Data,
    *,
    vector: bool = False,
    matrix: bool = False,
    num_samples: int | None = None,
    seed: int | None = None,
    checkpoint: Checkpoint | str | PathLike[str] | None = None,
) -> "TemperaturePosterior": ...


@overload
def fit(
    posterior: CategoricalPredictive,
    data: ArrayLike,
    *,
    vector: bool = False,
    matrix: bool = False,
    num_samples: None = None,
    seed: int | None = None,
    checkpoint: Checkpoint | str | PathLike[str] | None = None,
) -> TemperatureScaling: ...


@suggests_names
@keeps_names
def fit(
    posterior: Posterior | CategoricalPredictive,
    data: Data | ArrayLike,
    *,
    vector: bool = False,
    matrix: bool = False,
    num_samples: int | None = None,
    seed: int | None = None,
    checkpoint: Checkpoint | str | PathLike[str] | None = None,
) -> "TemperaturePosterior | TemperatureScaling":
    """Choose the temperature that gives held-out labels the highest probability.

    Args:
        posterior: A fitted posterior over labels, which stays as it is; or a predictive of anyone's making at held-out
            inputs, its draws kept, as `CategoricalPredictive.from_probs` and `.from_logits` keep them.
        data: Held-out rows, or a DataLoader of them, in order; of a predictive, the labels at its points.
        vector: Whether to fit a slope and a bias for each class instead of one temperature.
        matrix: Whether each logit also takes a share of each other one and, of up to 20 classes, of their
            probabilities; 2 C^2 numbers, for a thousand labels and more.
        num_samples: Draws of the mixture that is calibrated, as for `predict`; predict with as many. A predictive has
            its own.
        seed: Of the draws, and of the folds that a matrix of many classes is chosen by.
        checkpoint: A path, or a `Checkpoint` of one, that the fit writes to as it goes, an evaluation of the loss being
            a step; the same fit called again draws the same logits, goes on from there and ends with the same bits.
            Where the file is there and `seed` is None, its seed is taken.

    Returns:
        The same posterior, read at scaled logits; of a predictive, the scaling, whose `scaled` reads others so.

    Raises:
        TypeError: A posterior over real targets, a predictive of them, unknown options.
        ValueError: Labels that a predictive holds impossible; data that the posterior does not take; both `vector` and
            `matrix`; a matrix of one output; a checkpoint of another fit, or no whole one.

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
    if vector and matrix:
        raise ValueError("`vector` and `matrix` are two scalings; choose one.")
    kind: Kind = "matrix" if matrix else "vector" if vector else "temperature"
    file = Checkpoint.of(checkpoint)
    seed = file.seed() if file is not None and seed is None else seed
    if isinstance(posterior, PredictiveDistribution):
        if num_samples is not None:
            raise ValueError("`num_samples` is of a posterior; a predictive has its draws already. Leave it out.")
        held_out = held_out_of(posterior, only_targets(data))
        if matrix:
            check_mixable(held_out)
        return TemperatureScaling(**_chosen(held_out, kind, file, resolve_seed(seed)))
    likelihood, key = _likelihood(posterior), resolve_seed(seed)
    rows = in_memory(cast(Data, data), key)
    predictive = posterior.predict(rows.x, num_samples=num_samples, seed=key, keep_samples=True)
    chosen = _chosen(_held_out(likelihood, predictive, rows), kind, file, key)
    numbers = {item.name: chosen[item.name] for item in fields(Scaling)}
    return TemperaturePosterior(posterior=read_through(posterior, lambda base: ScaledLogits(base, **numbers)), **chosen)


def _chosen(held_out: HeldOut, kind: Kind, file: Checkpoint | None, seed: int) -> dict[str, Any]:
    """The scaling that gives held-out labels the highest probability, and their scores before and after."""
    told = {"seed": seed, "scaling": kind, "data": digest(vars(held_out))}
    record = Evaluations(file, Identity(told, before=told))
    if kind == "matrix":
        check_matrix(held_out)
        few = held_out.logits.shape[2] <= MOST_CLASSES
        scaling = matrix_by_evidence(held_out, record) if few else matrix_by_folds(held_out, record, seed=seed)
    else:
        scaling = vector_scaling(held_out, record) if kind == "vector" else temperature_scaling(held_out, record)
    before, after = Scaling().scores(held_out), scaling.scores(held_out)
    return {
        **vars(scaling),
        "negative_log_likelihood": (before[0], after[0]),
        "accuracy": (before[1], after[1]),
    }


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TemperaturePosterior(WrappingPosterior):
    """A posterior read at scaled logits.

    A file of a network of the user's own holds no likelihood, and the model that `bayesuq.load` is given has the plain
    one: it is scaled here.

    Attributes:
        posterior: The posterior, its likelihood scaled.
        slopes: 1 / T, or a slope for each class.
        biases: 0, or a bias for each class, in nats.
        mixing: What each logit (row) takes of each other one (column) under matrix scaling; else none.
        pulls: What it takes of each class's probability, in nats, under matrix scaling of few classes; else none.
        slope: Of the logits that these are the probabilities of.
        negative_log_likelihood: Of the held-out labels before and after, nats a label.
        accuracy: On them before and after, fractions.
    """

    changes_functions: ClassVar[bool] = False
    posterior: Posterior
    slopes: tuple[float, ...]
    biases: tuple[float, ...]
    mixing: tuple[tuple[float, ...], ...]
    negative_log_likelihood: tuple[float, float]
    accuracy: tuple[float, float]
    pulls: tuple[tuple[float, ...], ...] = ()
    slope: float = 1.0

    def __post_init__(self) -> None:
        numbers: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(Scaling)}
        likelihood = getattr(getattr(self.posterior, "model", None), "likelihood", None)
        if isinstance(likelihood, Likelihood) and not _is_scaled_by(likelihood, numbers):
            scaled = read_through(self.posterior, lambda base: ScaledLogits(base, **numbers))
            object.__setattr__(self, "posterior", scaled)

    @property
    def temperature(self) -> float:
        """T, above 1 where the posterior was too sure.

        Raises:
            ValueError: Vector and matrix scaling have no one temperature.
        """
        return one_temperature(self.slopes, self.biases)


def _is_scaled_by(likelihood: Likelihood, numbers: Mapping[str, Any]) -> bool:
    """Whether a likelihood is read at logits scaled so, perhaps among others."""
    while isinstance(likelihood, ScaledLogits):
        if all(getattr(likelihood, name) == value for name, value in numbers.items()):
            return True
        likelihood = likelihood.base
    return False


def _likelihood(posterior: Posterior) -> Likelihood:
    model = getattr(posterior, "model", None)
    # Of a network, or of a process, whose class is not named here: it would bring in GPyTorch.
    likelihood = getattr(model, "likelihood", None) if hasattr(model, "with_likelihood") else None
    if likelihood is None:
        raise TypeError(
            f"`posterior` must be a fitted posterior over labels; got {type(posterior).__name__}. Its outputs are "
            "scaled at every prediction, so pass what gives them, such as `map_estimate.fit(model, data)`, and "
            "held-out inputs with their labels."
        )
    if not likelihood.has_labels:
        raise TypeError(
            f"Temperature scaling needs a posterior over labels; got {type(posterior).__name__} with the likelihood "
            f"{type(likelihood).__name__}. For real targets take `quantile_calibration.fit(posterior, data)`."
        )
    return likelihood


def _held_out(likelihood: Likelihood, predictive: PredictiveDistribution, rows: Dataset) -> HeldOut:
    if not isinstance(predictive, CategoricalPredictive) or predictive.draws is None:
        raise TypeError(f"Temperature scaling needs single draws of class probabilities; got {predictive!r}.")
    base = ScaledLogits(likelihood, (1.0,)).takes_logits
    logits = predictive.draws.double()
    labels = base.targets(rows.y, num_outputs=logits.shape[2]).to(logits.device)
    logits = logits[:, :, 1:] if likelihood.has_one_logit else logits
    labels = labels.reshape(predictive.entropy_sum.shape)
    weight = torch.ones_like(labels, dtype=torch.float64)
    if rows.weight is not None:
        given = rows.weight.to(weight)
        weight = weight * given.reshape(
            labels.shape if given.numel() == labels.numel() else (-1, *[1] * (labels.ndim - 1))
        )
    if base.ignore_index is not None:
        ignored = labels == base.ignore_index
        labels, weight = labels.masked_fill(ignored, 0), weight.masked_fill(ignored, 0.0)
    if not weight.sum() > 0:
        raise ValueError("`data` has no label of positive weight to choose the temperature by.")
    return HeldOut(logits, labels, weight)
