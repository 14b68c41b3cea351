"""ConfidNet: a second network that learns how probable a fitted classifier makes the true class.

At an error the largest probability is still large; that of the true class (TCP) is small. It needs the label, so a
network c(x) in (0, 1) learns it from inputs, by squared loss on rows whose labels are known:

    loss = (1 / N) sum_n (c(x_n) - p(y_n | x_n, D))^2

in two stages: a head on the classifier's last features, under its dropout masks where it has some; then the head
together with a copy of the layers below, without dropout and at a smaller step. The posterior itself never changes, nor
does its predictive.

Reference:
    Corbiere et al. 2019, Addressing Failure Prediction by Learning Model Confidence, section 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, check_count, check_positive
from bayesuq.data import Dataset
from bayesuq.inference.confidence.true_class import features_of, in_chunks, masked_loader, network_of, with_targets
from bayesuq.inference.joint.layout import Layout
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

HIDDEN = (400, 400, 400, 400)  # as in the paper's MNIST experiments
# Squared loss is a normal log-likelihood of this scale; under so wide a prior only that counts.
LOSS_SCALE, PRIOR_SCALE = 0.1, 10.0


@training_options(learning_rate=1e-4, schedule="constant")
def fit(
    posterior: Posterior,
    data: Data,
    *,
    hidden: Sequence[int] = HIDDEN,
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
    loader = masked_loader(posterior, net, train, rows.y, training.batch_size)
    model = posterior.model  # type: ignore[attr-defined]
    head, history = _fit_head(model, features, train, loader, training, hidden, derive_seed(key, 3))
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
        tuned = _fine_tune(nn.Sequential(below, head), train, second)
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
        net = self._network()
        with torch.no_grad():
            found = [net[1:](apply(net[0], rows)).double().squeeze(1) for rows in in_chunks(self.model, x)]
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


def _fit_head(
    model: BayesianNetwork,
    features: nn.Module,
    data: Dataset,
    loader: DataLoader[Any] | None,
    training: Training,
    hidden: Sequence[int],
    seed: int,
) -> tuple[nn.Module, History]:
    """The first stage, on the minibatches of the loader; without one, on features that are computed once."""

    def at(rows: Dataset) -> Dataset:
        with torch.no_grad():
            found = [apply(features, part).flatten(1) for part in in_chunks(model, rows.x)]
        return Dataset(torch.cat(found), rows.y.to(found[0].device), rows.weight)

    inner = at(data) if loader is None else at(data.rows([0]))
    with isolated(seed):
        head = networks.mlp(inner.x.shape[1], hidden, 1).to(inner.x)
    watched = at(training.validation) if isinstance(training.validation, Dataset) else None
    net = nn.Sequential(head, nn.Sigmoid())
    return head, _fit_squares(net, loader or inner, replace(training, validation=watched))


def _fine_tune(net: nn.Sequential, data: Dataset, training: Training) -> History:
    """The second stage, of features and head together."""
    return _fit_squares(nn.Sequential(*net, nn.Sigmoid()), data, training)


def _fit_squares(net: nn.Sequential, data: Data, training: Training) -> History:
    """Move a network's own weights to the least mean squared distance of its outputs from the targets."""
    likelihood = likelihoods.Normal(scale=LOSS_SCALE)
    model = BayesianNetwork(net, priors.Normal(scale=PRIOR_SCALE), likelihood)
    fitted = fit_mode(model, data, training, fixed_start=True)
    net.load_state_dict(Layout.of(fitted.model).split(fitted.values), strict=False)
    return fitted.history


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
