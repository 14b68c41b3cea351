"""ConfidNet: a second network that learns how probable a fitted classifier makes the true class.

At an error the largest probability is still large; that of the true class (TCP) is small. It needs the label, so a
network c(x) in (0, 1) learns it from inputs, by squared loss on rows whose labels are known:

    loss = (1 / N) sum_n (c(x_n) - p(y_n | x_n, D))^2

in two stages: a head on the classifier's last features, which stay as they are; then the head together with a copy of
the layers below, at a smaller step. The posterior itself never changes, nor does its predictive.

Reference:
    Corbiere et al. 2019, Addressing Failure Prediction by Learning Model Confidence, section 2.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, check_count, check_positive
from bayesuq.data import Dataset
from bayesuq.export import Drawn, Wanted
from bayesuq.inference.checkpoint import Checkpoint
from bayesuq.inference.history import History
from bayesuq.inference.map_estimate import fit_mode
from bayesuq.inference.minibatches import Data, in_memory
from bayesuq.inference.prediction import ACTIVATION_BUDGET, activations_per_row, cast_inputs, in_order
from bayesuq.inference.training import Callback, Schedule, Training
from bayesuq.inference.training_network import DROPOUT, NORMALISATION
from bayesuq.inference.weights import Layout, WeightPosterior
from bayesuq.inference.wrapping import WrappingPosterior
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.options import suggests_names
from bayesuq.posterior import Posterior
from bayesuq.predictive import CategoricalPredictive, PredictiveDistribution
from bayesuq.randomness import derive_seed, isolated, resolve_seed

HIDDEN = (400, 400, 400, 400)  # as in the paper's MNIST experiments
# Squared loss is a normal log-likelihood of this scale; under so wide a prior only that counts.
LOSS_SCALE, PRIOR_SCALE = 0.1, 10.0


@suggests_names
def fit(
    posterior: Posterior,
    data: Data,
    *,
    hidden: Sequence[int] = HIDDEN,
    num_epochs: int = 100,
    num_fine_tuning_epochs: int = 20,
    batch_size: int = 128,
    learning_rate: float = 1e-4,
    fine_tuning_rate: float = 1e-5,
    schedule: Schedule = "constant",
    max_grad_norm: float | None = None,
    validation: Dataset | None = None,
    patience: int | None = None,
    num_samples: int | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | str | PathLike[str] | None = None,
) -> "ConfidencePosterior":
    """Learn the true class probability of a fitted posterior.

    Rows on which the posterior is never wrong teach nothing: where it fits its training rows perfectly, give it others.

    Args:
        posterior: A fitted posterior over labels, one a row, that has weights; it stays as it is. Features are those of
            its mode, its first member, or one draw.
        data: Rows with labels, or a DataLoader of them; the paper takes the rows that the classifier was trained on.
        hidden: Widths of the head.
        num_epochs: Passes of the first stage; this and the following: see `bayesuq.inference.training.Training`.
        num_fine_tuning_epochs: Passes of the second stage; 0 leaves it out.
        batch_size: See there.
        learning_rate: Of the first stage.
        fine_tuning_rate: Of the second.
        schedule: See there.
        max_grad_norm: See there.
        validation: Rows with labels, on which the loss is watched: each stage keeps its best epoch.
        patience: See there.
        num_samples: Draws of the predictive whose true class probability is learned.
        device: See there.
        seed: See there.
        progress: See there.
        callbacks: See there.
        checkpoint: See there; each stage has a file beside it.

    Returns:
        The same posterior with a `confidence`.

    Raises:
        TypeError: A posterior over real targets, or without weights; arguments of the wrong kind, unknown options.
        ValueError: Labels of pixels; data that the posterior does not take; options out of range.
        FloatingPointError: The loss stopped being finite.

    Example:
        >>> from bayesuq.inference import map_estimate
        >>> model = BayesianNetwork(networks.mlp(1, (4,), 2), priors.Normal(), likelihoods.Categorical())
        >>> data = Dataset([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1])
        >>> classifier = map_estimate.fit(model, data, num_epochs=3, seed=0)
        >>> fit(classifier, data, hidden=(8,), num_epochs=3, seed=0).confidence(data.x).shape
        torch.Size([4])
    """
    check_positive(fine_tuning_rate, "fine_tuning_rate")
    check_count(num_fine_tuning_epochs, "num_fine_tuning_epochs", minimum=0)
    file = Checkpoint.of(checkpoint)
    key = resolve_seed(seed) if file is None else file.claim(seed)
    posterior = posterior if device is None else posterior.to(device)
    features = feature_network(posterior, derive_seed(key, 0))
    train, watched = (
        None if rows is None else _with_targets(posterior, rows, num_samples, derive_seed(key, 1))
        for rows in (data, validation)
    )
    if train is None:
        raise TypeError("`data` must be a bayesuq.Dataset or a DataLoader; got None.")
    training = Training(
        num_epochs=num_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        max_grad_norm=max_grad_norm,
        validation=watched,
        patience=patience,
        seed=derive_seed(key, 2),
        progress=progress,
        callbacks=callbacks,
        checkpoint=None if file is None else file.of_part("head"),
    )
    model = posterior.model  # type: ignore[attr-defined]
    head, history = _fit_head(model, features, train, training, hidden, derive_seed(key, 3))
    tuned = None
    if num_fine_tuning_epochs:
        second = replace(
            training,
            num_epochs=num_fine_tuning_epochs,
            learning_rate=fine_tuning_rate,
            seed=derive_seed(key, 4),
            checkpoint=None if file is None else file.of_part("fine-tuning"),
        )
        tuned = _fine_tune(nn.Sequential(features, head), train, second)
    return ConfidencePosterior(
        posterior=posterior,
        hidden=tuple(hidden),
        features=_tensors(features),
        head=_tensors(head),
        history=history,
        fine_tuning_history=tuned or History((), (), 0),
    )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ConfidencePosterior(WrappingPosterior):
    """A posterior over labels, beside a network that tells how far to trust each prediction.

    Attributes:
        posterior: As it was fitted.
        hidden: Widths of the head.
        features: Weights and buffers of the layers below the head, fine-tuned.
        head: Weights of the head.
        history: How the first stage went, in nats of a normal of scale 0.1.
        fine_tuning_history: How the second went.
    """

    posterior: Posterior
    hidden: tuple[int, ...]
    features: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    history: History
    fine_tuning_history: History

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
    ) -> PredictiveDistribution:
        """The posterior's own predictive distribution: see `Posterior.predict`."""
        return self.posterior.predict(x, num_samples=num_samples, seed=seed, keep_samples=keep_samples)

    def confidence(self, x: "ArrayLike | DataLoader[Any]") -> Tensor:
        """Estimated probability that the predictive gives to the true class; 1 minus it is an uncertainty.

        Args:
            x: Inputs, (N, ...), or a DataLoader whose batches are inputs, or begin with them.

        Returns:
            Fractions in [0, 1], (N,), float64, on the device that x is on (for a loader: the posterior's).

        Raises:
            TypeError: See `Posterior.predict`.
            ValueError: See `Posterior.predict`; a loader that shuffles, or gives no batch.
        """
        net = self._network()
        with torch.no_grad():
            found = [net(rows).double().squeeze(1) for rows in _chunks(self.model, x)]
        if not found:
            raise ValueError("`x` must not be empty; the loader gave no batch.")
        whole = torch.cat(found)
        return whole if isinstance(x, DataLoader) else whole.to(x.device if isinstance(x, Tensor) else "cpu")

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: that of the posterior."""
        return replace(self.posterior.drawn(wanted), method=type(self).__name__)

    def _network(self) -> nn.Module:
        """From inputs to the estimated probability, (N, 1)."""
        features = _stripped(self.model.net)
        num_features = next(iter(self.head.values())).shape[1]
        with torch.device("meta"):  # without drawing weights
            head = networks.mlp(num_features, self.hidden, 1)
        features.load_state_dict(dict(self.features), assign=True)
        head.load_state_dict(dict(self.head), assign=True)
        return nn.Sequential(features, head, nn.Sigmoid()).eval()


def feature_network(posterior: Posterior, seed: int) -> nn.Module:
    """The posterior's network up to its last layer, without dropout, at the weights of one of its members.

    Args:
        posterior: With weights, or with another one inside that has.
        seed: Of the draw, where it has no members.

    Raises:
        TypeError: A posterior without weights.
    """
    members = getattr(posterior, "members", ())
    inner = members[0] if members else getattr(posterior, "posterior", None)
    if inner is not None:
        return feature_network(inner, seed)
    model = getattr(posterior, "model", None)
    if not isinstance(model, BayesianNetwork) or not hasattr(posterior, "buffers"):
        raise TypeError(f"A confidence needs a posterior over a network's weights; got {type(posterior).__name__}.")
    values = getattr(posterior, "values", None)
    if isinstance(values, Tensor):
        theta = Layout.of(model).split(values)
    elif isinstance(posterior, WeightPosterior):
        theta = {name: value[0] for name, value in posterior.sample_weights(1, seed=seed).items()}
    else:
        raise TypeError(f"A confidence needs a posterior over a network's weights; got {type(posterior).__name__}.")
    net = copy.deepcopy(model.net)
    names = net.state_dict().keys()
    known = {name: value.detach() for name, value in {**theta, **posterior.buffers}.items() if name in names}
    net.load_state_dict(known, strict=False)
    return _stripped(net)


def _stripped(net: nn.Module) -> nn.Module:
    """A copy whose last layer and dropout layers hand their inputs on, and whose normalisation stays as it is."""
    own = copy.deepcopy(net).eval()
    layers = [path for path, module in own.named_modules() if any(True for _ in module.parameters(recurse=False))]
    if layers[-1] == "":  # a single layer: its inputs are the features
        return nn.Identity()
    own.set_submodule(layers[-1], nn.Identity())
    for path, module in list(own.named_modules()):
        if isinstance(module, DROPOUT):
            own.set_submodule(path, nn.Identity())
        if isinstance(module, NORMALISATION):
            module.requires_grad_(False)
    return own


def _with_targets(posterior: Posterior, data: Data, num_samples: int | None, seed: int) -> Dataset:
    """Rows with their true class probabilities, (N, 1), in place of their labels."""
    rows = in_memory(data, seed)
    predictive = posterior.predict(rows.x, num_samples=num_samples, seed=seed)
    if not isinstance(predictive, CategoricalPredictive):
        raise TypeError(f"A confidence is of a posterior over labels; got {type(predictive).__name__}.")
    if predictive.mean.ndim != 2:
        raise ValueError(f"A confidence needs one label a row; got {tuple(predictive.mean.shape)} probabilities.")
    dtype = posterior.model.dtype  # type: ignore[attr-defined]
    true_probs = predictive.mean.gather(1, predictive.labels(rows.y).unsqueeze(1)).to(dtype)
    return Dataset(rows.x, true_probs, rows.weight)


def _fit_head(
    model: BayesianNetwork, features: nn.Module, data: Dataset, training: Training, hidden: Sequence[int], seed: int
) -> tuple[nn.Module, History]:
    """The first stage: features are computed once."""

    def at(rows: Dataset) -> Dataset:
        with torch.no_grad():
            found = [features(part).flatten(1) for part in _chunks(model, rows.x)]
        return Dataset(torch.cat(found), rows.y.to(found[0].device), rows.weight)

    inner = at(data)
    with isolated(seed):
        head = networks.mlp(inner.x.shape[1], hidden, 1).to(inner.x)
    watched = at(training.validation) if isinstance(training.validation, Dataset) else None
    return head, _fit_squares(nn.Sequential(head, nn.Sigmoid()), inner, replace(training, validation=watched))


def _fine_tune(net: nn.Sequential, data: Dataset, training: Training) -> History:
    """The second stage, of features and head together."""
    return _fit_squares(nn.Sequential(*net, nn.Sigmoid()), data, training)


def _fit_squares(net: nn.Sequential, data: Dataset, training: Training) -> History:
    """Move a network's own weights to the least mean squared distance of its outputs from the targets."""
    likelihood = likelihoods.Normal(scale=LOSS_SCALE)
    fitted = fit_mode(BayesianNetwork(net, priors.Normal(scale=PRIOR_SCALE), likelihood), data, training)
    net.load_state_dict(Layout.of(fitted.model).split(fitted.values), strict=False)
    return fitted.history


def _chunks(model: BayesianNetwork, x: "ArrayLike | DataLoader[Any]") -> Iterator[Tensor]:
    """Checked rows, as many at a time as memory takes."""
    if isinstance(x, Dataset):
        raise TypeError("`x` must be inputs, or a DataLoader of them; got a Dataset. Pass its `.x`.")
    batches = in_order(x) if isinstance(x, DataLoader) else [x]
    for batch in batches:
        rows = cast_inputs(model, batch[0] if isinstance(x, DataLoader) and isinstance(batch, list | tuple) else batch)
        yield from rows.split(max(1, ACTIVATION_BUDGET // activations_per_row(model, rows, model.net)))


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
