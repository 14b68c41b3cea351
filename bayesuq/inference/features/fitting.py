"""Several scores of features at once: one pass over the training rows to fit them, one over others to score these.

    scores = features.fit(bq.adopt(net, likelihood), train)
    found = evaluate_ood(posterior.predict(test.x), posterior.predict(ood.x), scores=scores.pairs(test.x, ood.x))

Each is a number of a row, larger where it is less like the training rows, and says nothing of p(y | x): it stands
beside a predictive, in the tables of `evaluate_ood` and `evaluate_misclassification`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.inference.features.energy import Energy
from bayesuq.inference.features.gaussians import ClassDensity, Mahalanobis
from bayesuq.inference.features.neighbours import NearestNeighbours
from bayesuq.inference.features.subspace import VirtualLogit
from bayesuq.inference.features.taken import Features, FeatureScore
from bayesuq.inference.features.taking import MEMORY, take, taken_of
from bayesuq.loaders import Data
from bayesuq.posterior import Posterior
from bayesuq.storage import read, write

Fit = Callable[[Features], FeatureScore]
FORMAT = 1
CLIPPED = 0.9  # of all activations, the share that is not clipped: published
BY_NAME: Mapping[str, Fit] = {
    "mahalanobis": Mahalanobis.of,
    "relative_mahalanobis": partial(Mahalanobis.of, relative=True),
    "class_density": ClassDensity.of,
    "nearest_neighbours": NearestNeighbours.of,
    "energy": Energy.of,
    "clipped_energy": partial(Energy.of, clip=CLIPPED),
    "virtual_logit": VirtualLogit.of,
}
CLASSES = {kind.__name__: kind for kind in (Mahalanobis, ClassDensity, NearestNeighbours, Energy, VirtualLogit)}


def fit(
    posterior: Posterior | Features,
    data: "Data | None" = None,
    *,
    scores: Sequence[str] | Mapping[str, Fit] | None = None,
    layer: str | None = None,
    memory: int = MEMORY,
) -> "FeatureScores":
    """Fit scores of features to training rows, in one pass of the network.

    Args:
        posterior: One network, as `take` has it; or features that are there, of a network or of arrays.
        data: Training rows with labels, a Dataset or a loader; those of weight 0 and of the likelihood's `ignore_index`
            do not count. Left out beside features.
        scores: Which: names among "mahalanobis", "relative_mahalanobis", "class_density" (DDU), "nearest_neighbours",
            "energy", "clipped_energy" (ReAct) and "virtual_logit" (ViM); or, in a mapping, functions from features to a
            score by name, such as `{"k = 5": partial(NearestNeighbours.of, num_neighbours=5)}`, for options of the
            others, too, whose classes are in the files beside this one. None takes all seven.
        layer: See `take`.
        memory: See `take`. "nearest_neighbours" holds the features of all training rows, the others some matrices.

    Raises:
        TypeError: See `take`; data beside features, or none beside a network.
        ValueError: An unknown name; see `take` and each score.

    Example:
        >>> taken = Features([[0.0], [1.0], [9.0], [10.0]], labels=[0, 0, 1, 1])
        >>> scores = fit(taken, scores=["mahalanobis"])
        >>> scores(Features([[0.5], [5.0]]))
        {'mahalanobis': tensor([ 0., 81.], dtype=torch.float64)}
    """
    if isinstance(posterior, Features):
        if data is not None:
            raise TypeError("`data` is for a network; features have their rows already. Leave it out.")
        taken, network = posterior, None
    else:
        if data is None:
            raise TypeError("`data` must be the training rows, such as bayesuq.Dataset(x, y).")
        taken, network = taken_of(posterior, data, layer=layer, memory=memory, leaves_void_out=True), posterior
    chosen = _chosen(scores)
    return FeatureScores(network, {name: of(taken) for name, of in chosen.items()}, layer, memory)


@dataclass(frozen=True, eq=False)
class FeatureScores:
    """Fitted scores by name, and the network that they read.

    Attributes:
        posterior: The network; None where features were given, which others must then be, too.
        scores: By name.
        layer: The path of the layer whose inputs are the features; None is the last one.
        memory: Bytes of features that a call holds, before they go to a file.
    """

    posterior: Posterior | None
    scores: Mapping[str, FeatureScore]
    layer: str | None = None
    memory: int = MEMORY

    def __call__(self, x: "ArrayLike | DataLoader[Any] | Data | Features") -> dict[str, Tensor]:
        """Every score of each row, (N,) float64, by name, in one pass of the network.

        Args:
            x: Inputs, a Dataset or loader, or features.

        Raises:
            TypeError: Inputs, where the scores were fitted to features.
            ValueError: See `take` and each score.
        """
        if isinstance(x, Features):
            taken = x
        elif self.posterior is None:
            raise TypeError("These scores were fitted to features, without a network; pass `Features` here, too.")
        else:
            taken = take(self.posterior, x, layer=self.layer, memory=self.memory)
        return {name: score(taken) for name, score in self.scores.items()}

    def pairs(self, inside: Any, outside: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Each score of the rows inside and of those outside, as `evaluate_ood` takes them; see `__call__`."""
        mine, theirs = self(inside), self(outside)
        return {name: (mine[name], theirs[name]) for name in mine}

    def save(self, path: str | PathLike[str]) -> None:
        """Write the scores, without the network, to one file; `load` reads them beside it."""
        plain: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for name, score in self.scores.items():
            kind = type(score).__name__
            if kind not in CLASSES:
                raise TypeError(f"Only bayesuq's own scores are saved; {name!r} is a {kind}.")
            values = {item.name: getattr(score, item.name) for item in fields(score)}  # type: ignore[arg-type]
            tensors |= {f"{name}.{key}": value for key, value in values.items() if isinstance(value, Tensor)}
            plain[name] = {"kind": kind, **{key: v for key, v in values.items() if not isinstance(v, Tensor)}}
        write(path, {"format": FORMAT, "feature_scores": plain, "layer": self.layer}, tensors)


def load(path: str | PathLike[str], posterior: Posterior | None = None) -> FeatureScores:
    """The scores that `FeatureScores.save` wrote.

    Args:
        path: The file.
        posterior: The network that they were fitted to; None scores features alone.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another kind of file.
    """
    header, tensors = read(path)
    try:
        plain, layer = header["feature_scores"], header["layer"]
        scores = {name: _restored(name, dict(values), tensors) for name, values in plain.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{fspath(path)!r} was not written by `FeatureScores.save`: {error!r}.") from error
    return FeatureScores(posterior, scores, layer)


def _restored(name: str, values: dict[str, Any], tensors: Mapping[str, Tensor]) -> FeatureScore:
    kind = CLASSES[values.pop("kind")]
    own = {item.name: tensors[key] for item in fields(kind) if (key := f"{name}.{item.name}") in tensors}
    if not all(torch.isfinite(value).all() for value in own.values()):
        raise ValueError(f"numbers of {name!r} are not finite")
    parts: dict[str, Any] = {**values, **own}
    score: FeatureScore = kind(**parts)
    return score


def _chosen(scores: Sequence[str] | Mapping[str, Fit] | None) -> Mapping[str, Fit]:
    if scores is None:
        return BY_NAME
    if isinstance(scores, Mapping):
        return scores
    names = [scores] if isinstance(scores, str) else list(scores)
    unknown = [name for name in names if name not in BY_NAME]
    if unknown or not names:
        raise ValueError(f"`scores` must be among {', '.join(BY_NAME)}; got {unknown[0] if unknown else 'none'!r}.")
    return {name: BY_NAME[name] for name in names}
