"""What a confidence learns from: the last features of a fitted network, and how probable it makes the true class.

Where the classifier has dropout layers they act while the head is trained: a row has other features in each epoch, and
less certain ones, without which a classifier that fits its training rows would have no errors to learn from (Corbiere
et al. 2019, section 2.3, whose last phase alone is without).
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, WeightedRandomSampler
from torch.utils.data import Dataset as Rows

from bayesuq.arrays import ArrayLike
from bayesuq.data import Batch, Dataset
from bayesuq.inference.posteriors.network import at_values, over_network
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.posteriors.prediction import activations_per_row, batches_of, rows_at_a_time
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inputs import Inputs, apply, as_rows, checked
from bayesuq.loaders import Data, in_memory
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.layers import DROPOUT, NORMALISATION, is_dropout, is_plain_dropout
from bayesuq.models.network_inputs import cast_inputs
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.randomness import isolated

NUM_AT_ONCE = 1024  # rows whose masked targets are looked at together


def network_of(posterior: Posterior, seed: int) -> nn.Module:
    """A copy of the posterior's network at the weights of one of its members.

    Args:
        posterior: With weights, or with another one inside that has.
        seed: Of the draw, where it has no members.

    Raises:
        TypeError: A posterior without weights.
    """
    inner = over_network(posterior)
    theta = at_values(inner)
    if theta is None and isinstance(inner, WeightPosterior):
        theta = {name: value[0] for name, value in inner.sample_weights(1, seed=seed).items()}
    if inner is None or theta is None:
        raise TypeError(
            f"A confidence needs a posterior over a network's weights; got {type(posterior).__name__}. Fit one "
            "first, such as `map_estimate.fit(model, data)`."
        )
    net = copy.deepcopy(inner.model.net)
    names = net.state_dict().keys()
    known = {name: value.detach() for name, value in {**theta, **inner.buffers}.items() if name in names}
    net.load_state_dict(known, strict=False)
    return net.eval()


class _NoDropout(nn.Identity):
    """In the place of a dropout layer: attention reads a layer's `p` and drops by itself."""

    p = 0.0


def features_of(net: nn.Module) -> nn.Module:
    """A copy whose last layer and dropout layers hand their inputs on, and whose normalisation stays as it is."""
    own = without_last_layer(net)
    for path, module in list(own.named_modules(remove_duplicate=False)):
        if isinstance(module, DROPOUT) and not is_plain_dropout(module):
            module.p = 0.0  # what else it does stays
        elif isinstance(module, DROPOUT):
            if path == "":
                return nn.Identity()
            own.set_submodule(path, _NoDropout())
        if isinstance(module, NORMALISATION):
            module.requires_grad_(False)
    return own


def without_last_layer(net: nn.Module) -> nn.Module:
    """A copy, in evaluation mode, whose last layer with parameters hands its inputs on."""
    own = copy.deepcopy(net).eval()
    modules = own.named_modules(remove_duplicate=False)  # one in two places is left in the other
    layers = [path for path, module in modules if any(True for _ in module.parameters(recurse=False))]
    last = layers[-1].partition("parametrizations.")[0].rstrip(".")  # torch's modules that compute a layer's weights
    if last == "":  # a single layer: its inputs are the features
        return nn.Identity()
    own.set_submodule(last, nn.Identity())
    return own


def with_targets(posterior: Posterior, data: Data, num_samples: int | None, seed: int) -> Dataset:
    """Rows as the network was fitted to them, with their true class probabilities, (N, 1), in place of their labels.

    Raises:
        TypeError: A posterior over real targets.
        ValueError: Labels of pixels.
    """
    rows = in_memory(data, seed)
    predictive = posterior.predict(rows.x, num_samples=num_samples, seed=seed)
    dtype = posterior.model.dtype  # type: ignore[attr-defined]
    return Dataset(posterior.as_fitted(rows.x), true_class_probs(predictive, rows.y).to(dtype), rows.weight)


def true_class_probs(predictive: PredictiveDistribution, y: ArrayLike) -> Tensor:
    """What a predictive gives to the true labels, (N, 1)."""
    if not isinstance(predictive, CategoricalPredictive):
        raise TypeError(
            f"A confidence is of a posterior over labels; got {type(predictive).__name__}. Real targets have "
            "`quantile_calibration.fit` and `bayesuq.conformal`."
        )
    if predictive.mean.ndim != 2:
        raise ValueError(f"A confidence needs one label a row; got {tuple(predictive.mean.shape)} probabilities.")
    return predictive.mean.gather(1, predictive.labels(y).unsqueeze(1))


def as_it_is(value: Any) -> Any:
    """The same."""
    return value


def of_both(probs: Tensor) -> Tensor:
    """From what the true class has, (N, 1), what all others together and it have, (N, 2)."""
    return torch.cat([1 - probs, probs], dim=1)


def masked_loader(
    posterior: Posterior,
    net: nn.Module,
    data: Dataset,
    labels: Tensor,
    batch_size: int,
    form: Callable[[Tensor], Tensor] = as_it_is,
) -> DataLoader[Any] | None:
    """Minibatches of features under random dropout masks, and of targets; None for a network without dropout.

    Args:
        posterior: Whose confidence is learned. Of a mode, a target is what the network gives to the true class under
            the mask of its features; else that of `data`.
        net: At the weights of the features.
        data: Rows with their true class probabilities.
        labels: The rows' true classes, (N,).
        batch_size: Rows of a minibatch.
        form: From true class probabilities, (B, 1), to targets.
    """
    if not any(is_dropout(module) for module in net.modules()):
        return None
    known = labels if isinstance(posterior, MapPosterior) else None
    rows = _MaskedRows(posterior.model, net, data, known, form)  # type: ignore[attr-defined]
    return DataLoader(rows, batch_size=batch_size, shuffle=True, collate_fn=as_it_is)


class _MaskedRows(Rows[Any]):
    """Rows that are read a minibatch at a time, each under masks of its own."""

    def __init__(
        self,
        model: BayesianNetwork,
        net: nn.Module,
        data: Dataset,
        labels: Tensor | None,
        form: Callable[[Tensor], Tensor],
    ) -> None:
        self.model, self.data, self.labels, self.form = model, data, labels, form
        self.network, self.features = (copy.deepcopy(part).eval() for part in (net, without_last_layer(net)))
        for part in (self.network, self.features):
            for module in part.modules():
                if is_dropout(module):
                    module.train()

    def __len__(self) -> int:
        return len(self.data)

    @torch.no_grad()
    def __getitems__(self, places: list[int]) -> Batch:
        chosen = self.data.rows(places)
        x = cast_inputs(self.model, as_rows(chosen.x))
        key = int(torch.randint(2**62, ()))
        with isolated(key):
            features = apply(self.features, x).flatten(1)
        targets = chosen.y
        if self.labels is not None:
            with isolated(key):  # the same masks
                outputs = apply(self.network, x)
            targets = true_class_probs(self.model.likelihood.predictive(outputs.unsqueeze(0)), self.labels[places])
        return Batch(features, self.form(targets.to(features)), chosen.weight)


class _StoredRows(Rows[Any]):
    """Rows in memory that are read a minibatch at a time."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, places: list[int]) -> Batch:
        chosen = self.data.rows(places)
        return Batch(chosen.x, chosen.y, chosen.weight)


class _WeightedRows(Rows[Any]):
    """The same rows, the weight of each multiplied by a factor."""

    def __init__(self, rows: Any, factor: Tensor) -> None:
        self.rows, self.factor = rows, factor

    def __len__(self) -> int:
        return len(self.factor)

    def __getitems__(self, places: list[int]) -> Batch:
        batch = self.rows.__getitems__(places)
        factor = self.factor[places].to(batch.y)
        if batch.weight is not None:
            factor = batch.weight * factor.reshape(-1, *[1] * (batch.weight.ndim - 1))
        return Batch(batch.x, batch.y, factor)


def by_importance(rows: Dataset | DataLoader[Any], batch_size: int, seed: int) -> DataLoader[Any]:
    """Minibatches that show rows of small true class probability more often, by so much less weight.

    Row n is drawn with probability q_n = (1 + (1 - p_n) / mean(1 - p)) / (2 N) and has the weight 1 / (N q_n), at most
    2, so that a loss has the same mean as over rows drawn alike.

    Args:
        rows: Features with targets whose last column is p; a loader's own masks give p once.
        batch_size: Rows of a minibatch.
        seed: Of those masks.
    """
    shown: Any = rows.dataset if isinstance(rows, DataLoader) else _StoredRows(rows)
    count = len(shown)
    with isolated(seed):
        parts = [shown.__getitems__(part.tolist()).y for part in torch.arange(count).split(NUM_AT_ONCE)]
    doubt = 1 - torch.cat(parts)[:, -1].double().cpu()
    total = doubt.sum()
    chances = 0.5 / count + 0.5 * (doubt / total if total > 0 else torch.full_like(doubt, 1 / count))
    sampler = WeightedRandomSampler(chances.tolist(), count)
    weighted = _WeightedRows(shown, 1 / (count * chances))
    return DataLoader(weighted, batch_size=batch_size, sampler=sampler, collate_fn=as_it_is)


def in_chunks(model: BayesianNetwork, x: "ArrayLike | DataLoader[Any]") -> Iterator[Inputs]:
    """Checked rows, as many at a time as memory takes."""
    for batch in batches_of(x):
        rows = cast_inputs(model, checked(batch))
        yield from rows.split(rows_at_a_time(model.device, activations_per_row(model, rows, share_tensors(model.net))))
