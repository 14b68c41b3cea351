"""ConfidNet: a second network that learns how probable a fitted classifier makes the true class.

At an error the largest probability is still large; that of the true class (TCP) is small. It needs the label, so a
network c(x) in (0, 1) learns it from inputs, on rows whose labels are known. With p_n = p(y_n | x_n, D) the loss is the
cross-entropy

    loss = -(1 / N) sum_n (p_n log c(x_n) + (1 - p_n) log(1 - c(x_n)))

or, as in the paper, the mean square

    loss = (1 / N) sum_n (c(x_n) - p_n)^2

Both are least where c(x) is the mean of p_n over the rows at x. What differs is the way there: in the logit of c, the
gradient of a square is 2 c (1 - c) (c - p_n), which vanishes where c is 1 although p_n is not; that of the cross-
entropy is c - p_n.

There are two stages: a head on the classifier's last features, under its dropout masks where it has some; then the head
together with a copy of the layers below, without dropout and at a smaller step. The posterior itself never changes, nor
does its predictive.

Reference:
    Corbiere et al. 2019, Addressing Failure Prediction by Learning Model Confidence, section 2.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, check_count, check_one_of, check_positive
from bayesuq.data import Dataset
from bayesuq.inference.confidence.true_class import (
    as_it_is,
    by_importance,
    features_of,
    in_chunks,
    masked_loader,
    network_of,
    of_both,
    with_targets,
)
from bayesuq.inference.posteriors.network_mode import fit_mode
from bayesuq.inference.posteriors.wrapping import WrappingPosterior
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.column_scales import TOPIC
from bayesuq.inference.training.history import History
from bayesuq.inference.training.options import Training, TrainingOptions, training_options
from bayesuq.inputs import OneArgument, apply, device_of
from bayesuq.loaders import Data, Loader, in_memory
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.once import is_first
from bayesuq.posterior import Posterior
from bayesuq.randomness import derive_seed, isolated, resolve_seed

Loss = Literal["cross-entropy", "squared"]
HIDDEN = (400, 400, 400, 400)  # as in the paper's MNIST experiments
# Squared loss is a normal log-likelihood of this scale; under so wide a prior only that counts.
LOSS_SCALE, PRIOR_SCALE = 0.1, 10.0


class _BothLogits(nn.Module):
    """0 beside the logit of c, (N, 2), whose softmax is (1 - c, c)."""

    def forward(self, f: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(f), f], dim=1)


@dataclass(frozen=True)
class Criterion:
    """A loss as the negative log-likelihood of a network.

    Attributes:
        last: Makes the layer that follows the logit of c.
        likelihood: Of the outputs of that layer.
        targets: From true class probabilities, (N, 1), to the likelihood's targets.
        starts_at_mean: Whether the head first says the mean of all of them.
    """

    last: Callable[[], nn.Module]
    likelihood: likelihoods.Likelihood
    targets: Callable[[Tensor], Tensor]
    starts_at_mean: bool

    def rows(self, data: Dataset) -> Dataset:
        """Rows with the likelihood's targets in place of true class probabilities."""
        return Dataset(data.x, self.targets(data.y), data.weight)


CRITERIA: Mapping[Loss, Criterion] = {
    "cross-entropy": Criterion(_BothLogits, likelihoods.SoftCategorical(), of_both, True),
    "squared": Criterion(nn.Sigmoid, likelihoods.Normal(scale=LOSS_SCALE), as_it_is, False),
}


@training_options(learning_rate=1e-4, schedule="constant")
def fit(
    posterior: Posterior,
    data: Data,
    *,
    hidden: Sequence[int] = HIDDEN,
    loss: Loss = "cross-entropy",
    importance_sampling: bool = False,
    num_fine_tuning_epochs: int = 20,
    fine_tuning_rate: float = 1e-5,
    num_samples: int | None = None,
    **options: Unpack[TrainingOptions],
) -> "ConfidencePosterior":
    """Learn the true class probability of a fitted posterior.

    Rows on which the posterior is never wrong teach nothing: where it fits its training rows perfectly, give it others.
    Dropout layers act in the first stage, which takes longer for it, and under a mask a classifier is wrong more often.

    Args:
        posterior: A fitted posterior over labels, one a row, that has weights; it stays as it is. Features are those of
            its mode, its first member, or one draw.
        data: Rows with labels, or a DataLoader of them; the paper takes the rows that the classifier was trained on.
        hidden: Widths of the head.
        loss: "cross-entropy", whose head starts at the mean of what it is to learn, or the paper's "squared".
        importance_sampling: Whether the first stage draws half of its rows by how improbable their true class is, and
            weights them back: the same loss, learned in fewer epochs where nearly every row is right.
        num_fine_tuning_epochs: Passes of the second stage; 0 leaves it out.
        fine_tuning_rate: Of the second.
        num_samples: Draws of the predictive whose true class probability is learned.
        num_epochs: Passes of the first stage. None makes 100, and as many as make 2,000 steps where that is more.
        learning_rate: Adam's step size at the start of the first stage.
        validation: Rows with labels, on which the loss is watched: each stage keeps its best epoch.
        checkpoint: A path, or a `Checkpoint` of one, beside which each stage writes a file of its own as it goes; the
            same fit called again goes on from there and ends with the same bits. Where a file is there and `seed` is
            None, its seed is taken.

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
    is_first(TOPIC)  # what the networks below see are features, whose scale is no matter of the user's
    check_one_of(loss, "loss", Loss)
    check_positive(fine_tuning_rate, "fine_tuning_rate")
    check_count(num_fine_tuning_epochs, "num_fine_tuning_epochs", minimum=0)
    file = Checkpoint.of(options["checkpoint"])
    key = resolve_seed(options["seed"]) if file is None else file.claim(options["seed"])
    posterior = posterior if options["device"] is None else posterior.to(options["device"])
    net = network_of(posterior, derive_seed(key, 0))
    rows = in_memory(data, derive_seed(key, 1))
    train = with_targets(posterior, rows, num_samples, derive_seed(key, 1))
    watched = options["validation"]
    if watched is not None:
        watched = with_targets(posterior, in_memory(watched, derive_seed(key, 1)), num_samples, derive_seed(key, 1))
    training = Training.of(
        options,
        validation=watched,
        device=None,
        seed=derive_seed(key, 2),
        checkpoint=None if file is None else file.of_part("head"),
    )
    features = features_of(net)
    model = posterior.model  # type: ignore[attr-defined]
    at = functools.partial(_at, model, features)
    head = _new_head(at(train.rows([0])).x, hidden, derive_seed(key, 3))
    criterion = CRITERIA[loss]
    if criterion.starts_at_mean:
        _start_at_mean(head, train.y)
    shown = masked_loader(posterior, net, train, rows.y, training.batch_size, criterion.targets) or at(train)
    if importance_sampling:
        stored = criterion.rows(shown) if isinstance(shown, Dataset) else shown
        shown = by_importance(stored, training.batch_size, derive_seed(key, 5))
    first = replace(training, validation=None if watched is None else at(watched))
    history = _descend(nn.Sequential(head), shown, first, criterion)
    tuned = None
    if num_fine_tuning_epochs:
        second = replace(
            training,
            num_epochs=num_fine_tuning_epochs,
            learning_rate=fine_tuning_rate,
            seed=derive_seed(key, 4),
            checkpoint=None if file is None else file.of_part("fine-tuning"),
        )
        below = features if isinstance(train.x, Tensor) else OneArgument(features)
        tuned = _descend(nn.Sequential(below, head), train, second, criterion)
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
        history: How the first stage went, in nats: of the cross-entropy, or of a normal of scale 0.1 for the squares.
        fine_tuning_history: How the second went.
    """

    changes_functions: ClassVar[bool] = False
    posterior: Posterior
    hidden: tuple[int, ...]
    features: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    history: History
    fine_tuning_history: History

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
        net, inputs = self._network(), self.as_fitted(x)
        with torch.no_grad():
            found = [net[1:](apply(net[0], rows)).double().squeeze(1) for rows in in_chunks(self.model, inputs)]
        if not found:
            raise ValueError("`x` must not be empty; the loader gave no batch.")
        whole = torch.cat(found)
        return whole if Loader.of(x) is not None else whole.to(device_of(x))

    def _network(self) -> nn.Sequential:
        """From inputs to the estimated probability, (N, 1)."""
        features = features_of(self.model.net)
        num_features = next(iter(self.head.values())).shape[1]
        with torch.device("meta"):  # without drawing weights
            head = networks.mlp(num_features, self.hidden, 1)
        features.load_state_dict(dict(self.features), assign=True)
        head.load_state_dict(dict(self.head), assign=True)
        return nn.Sequential(features, head, nn.Sigmoid()).eval()


def _at(model: BayesianNetwork, features: nn.Module, rows: Dataset) -> Dataset:
    """Rows whose inputs are features, (N, F)."""
    with torch.no_grad():
        found = [apply(features, part).flatten(1) for part in in_chunks(model, rows.x)]
    return Dataset(torch.cat(found), rows.y.to(found[0].device), rows.weight)


def _new_head(x: Tensor, hidden: Sequence[int], seed: int) -> nn.Module:
    """From features such as x, (N, F), to the logit of c, (N, 1)."""
    with isolated(seed):
        return networks.mlp(x.shape[1], hidden, 1).to(x)


def _start_at_mean(head: nn.Module, probs: Tensor) -> None:
    """Put the last bias to the logit of the mean of probabilities, (N, 1), that are 1/2 on one row more."""
    mean = (float(probs.double().sum()) + 0.5) / (len(probs) + 1)  # below 1 where all are 1
    *_, bias = head.parameters()
    nn.init.constant_(bias, math.log(mean / (1 - mean)))


def _descend(net: nn.Sequential, data: Data, training: Training, criterion: Criterion) -> History:
    """Move a network's own weights, whose output is the logit of c, to the least mean loss."""
    whole = nn.Sequential(*net, criterion.last())
    model = BayesianNetwork(whole, priors.Normal(scale=PRIOR_SCALE), criterion.likelihood)
    if isinstance(training.validation, Dataset):
        training = replace(training, validation=criterion.rows(training.validation))
    fitted = fit_mode(model, criterion.rows(data) if isinstance(data, Dataset) else data, training, fixed_start=True)
    whole.load_state_dict({name: value[0] for name, value in fitted.sample_weights(seed=0).items()}, strict=False)
    return fitted.history


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
