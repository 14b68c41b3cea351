"""A last layer as a network of its own on features that are taken once: fits at its cost, and no other numbers.

    last = head(bq.adopt(net, likelihood), data)                     # one pass of the network over the data
    posterior = last.whole(variational.fit(last.model, last.data))   # and predicts at the network's own inputs

Any method fits it, as it fits any model. The names of the weights are those in the whole network, so that what was
fitted is a posterior of that, to be read and saved as if the fit had run all of it each time.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch

from bayesuq.arrays import check_count
from bayesuq.data import Dataset
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.features.taking import MEMORY, FeatureNetwork
from bayesuq.inference.posteriors.heads import grown, head_of
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.posteriors.row_store import RowStore
from bayesuq.inputs import checked
from bayesuq.loaders import Data, Loader, check_data
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork
from bayesuq.models.network_inputs import cast_inputs
from bayesuq.models.training_mode import training_mode
from bayesuq.posterior import Posterior
from bayesuq.randomness import isolated

PosteriorT = TypeVar("PosteriorT", bound=Posterior)


@dataclass(frozen=True, eq=False)
class Head:
    """The last layer of a network, and rows of what it gets.

    Attributes:
        adopted: The whole network.
        model: Of the last layer alone, under the same prior and likelihood.
        data: The features of the rows, their targets and weights.
    """

    adopted: MapPosterior
    model: BayesianNetwork
    data: Dataset
    memory: int = MEMORY

    def rows(self, data: Data) -> Dataset:
        """Other rows by their features, such as those of `validation`.

        Raises:
            TypeError: Neither a Dataset nor a loader.
            ValueError: See `head`.
        """
        return _taken(self.adopted, data, self.memory)

    def whole(self, posterior: PosteriorT) -> PosteriorT:
        """A posterior of the last layer as one of the whole network, which predicts at the network's own inputs.

        Raises:
            TypeError: A posterior of another kind, such as a process, which is one of features.
            ValueError: A posterior of another model.
        """
        found: PosteriorT = grown(posterior, self.model, self.adopted.model, self.adopted.buffers)
        return found


def head(adopted: MapPosterior, data: Data, *, memory: int = MEMORY) -> Head:
    """The last layer of an adopted network, on the features of rows.

    Args:
        adopted: Of `bayesuq.adopt`; all that is random must be in the layer that its network ends in.
        data: Rows, a Dataset or a loader; a loader's are read once, as one pass gives them, so that augmentation
            that draws is drawn once.
        memory: Bytes of features that are held; beyond them they go to a temporary file.

    Warns:
        UserWarning: The network draws in training mode, as dropout does, which its features do not.

    Raises:
        TypeError: No mode; neither a Dataset nor a loader.
        ValueError: A network with something random, or learned, before its last layer, or that goes on after it.

    Example:
        >>> from torch import nn
        >>> from bayesuq.inference.adoption import adopt
        >>> from bayesuq.models.likelihoods import Categorical
        >>> net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 3))
        >>> head(adopt(net, Categorical()), Dataset(torch.ones(4, 2), [0, 1, 2, 0])).data
        Dataset(x: (4, 50) float32, y: (4,) int64)
    """
    if not isinstance(adopted, MapPosterior):
        raise TypeError(f"`adopted` must be of `bayesuq.adopt`; got {type(adopted).__name__}.")
    check_count(memory, "memory")
    model, path = adopted.model, FeatureNetwork.of(adopted).path
    inside = [name for name in (*model.laws, *model.points) if not name.startswith(LIKELIHOOD)]
    prefix = f"{path}." if path else ""
    before = [name for name in inside if not name.startswith(prefix)]
    if before:
        raise ValueError(
            f"Only the last layer, `net.{path}`, may be random; {', '.join(before[:3])} moves too. Adopt the network "
            "with random='last_layer', its default."
        )
    rows = _taken(adopted, data, memory)
    _warn_if_drawing(model, data)
    return Head(adopted, head_of(model, path), rows, memory)


def _warn_if_drawing(model: BayesianNetwork, data: Data) -> None:
    loader = Loader.of(data)
    first = data if loader is None else loader.first()
    if training_mode(model, cast_inputs(model, checked(first.x)[:2])).calls:  # type: ignore[union-attr]
        warn_of_fit(
            "The network draws in training mode, and its features are those of evaluation mode. `map_estimate`, "
            "`ensemble` and `swag`, in which it drops units while they fit the whole network, drop none on features.",
            UserWarning,
        )


def _taken(adopted: MapPosterior, data: Data, memory: int) -> Dataset:
    """Rows by their features.

    Raises:
        ValueError: A network that goes on after its last layer.
    """
    check_data(data)
    network, features = FeatureNetwork.of(adopted), RowStore(memory)
    loader = Loader.of(data)
    targets: list[Dataset] = []
    with torch.no_grad(), isolated(0):
        for batch in [data] if loader is None else loader.complete():
            for rows in network.chunks(batch.x):  # type: ignore[union-attr]
                some, f = network(rows)
                if not network.is_end(some, f):
                    raise ValueError(
                        f"The network must end in its last layer, `net.{network.path}`; it goes on after it, so that "
                        "the layer alone is another model. Fit the whole network."
                    )
                features.add(some.to(batch.y.device))  # type: ignore[union-attr]
            targets.append(Dataset(torch.zeros(len(batch.y), 1), batch.y, batch.weight))  # type: ignore[union-attr]
    joined = targets[0].concatenate(*targets[1:])
    return Dataset(features.whole(), joined.y, joined.weight)
