"""The methods of the out-of-distribution table: one setting each, two networks, and the width of each posterior.

Two are Gaussian processes: `svgp` on the pixels, without a network, and `deep-kernel` on the outputs of a network that
is learned with it.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import bayesuq as bq
from bayesuq.inference import dropout, ensemble, gp, laplace, map_estimate, swag, temperature, variational
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.models.gp import RBF, Deep, GaussianProcess, Matern, Scale
from bayesuq.posterior import Posterior
from bayesuq.randomness import derive_seed, isolated

NetworkKind = Literal["mlp", "convnet"]
NETWORKS: tuple[NetworkKind, ...] = ("mlp", "convnet")
METHODS = ("map", "temperature", "dropout", "ensemble", "variational", "swag", "laplace", "svgp", "deep-kernel")
STANDS_ON_MAP = ("temperature", "swag", "laplace")
WITHOUT_NETWORK = ("svgp",)
NUM_WIDTH_DRAWS = 30  # of a weight, for its scale: to an eighth


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How one method is fitted.

    Attributes:
        num_epochs: Passes over the images.
        learning_rate: At the start.
        dropout: Probability of dropping a hidden unit.
        num_members: Of an ensemble.
        batch_size: Images in a minibatch.
        hidden: Widths of the perceptron.
        channels: Of the convolutional network.
        num_inducing: Points of a Gaussian process.
        num_samples: Draws of a prediction, where there is no end of them.
    """

    num_epochs: int = 1
    learning_rate: float = 1e-3
    dropout: float = 0.0
    num_members: int = 5
    batch_size: int = 128
    hidden: Sequence[int] = (400, 400)
    channels: Sequence[int] = field(default=(32, 64))
    num_inducing: int = 100
    num_samples: int = 100

    def model(self, kind: NetworkKind, data: bq.Dataset, seed: int) -> BayesianNetwork:
        """The network for these images and labels, at initial weights that the seed decides."""
        row, num_classes = data.x[0], int(data.y.max()) + 1
        with isolated(seed):
            if kind == "mlp":
                net = networks.mlp(row.numel(), self.hidden, num_classes, self.dropout)
            else:
                first, second = self.channels
                net = networks.convnet(len(row), num_classes, self.dropout, channels=(first, second))
        return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())


def read_settings(path: Path) -> dict[str, Setting]:
    """Settings by method, from a TOML file with a table for each.

    Raises:
        TypeError: Unknown options.
        ValueError: An unknown method.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    unknown = sorted(set(tables) - set(METHODS))
    if unknown:
        raise ValueError(f"Methods must be among {', '.join(METHODS)}; got {', '.join(unknown)}.")
    return {name: Setting(**table) for name, table in tables.items()}


def fit(
    method: str, setting: Setting, kind: NetworkKind, split: bq.Split, seed: int, file: Path, mode: Posterior | None
) -> Posterior:
    """Fit the method, from the checkpoint where it is there; `mode` is what some stand on."""
    key = derive_seed(seed, 1)
    if method == "temperature":
        return temperature.fit(_mode(mode), split.val, seed=key)
    if method == "laplace":
        model = _mode(mode).model
        return laplace.fit(model, split.train, subset="last_layer", mode=_mode(mode), seed=key)
    options: dict[str, Any] = {
        "num_epochs": setting.num_epochs,
        "learning_rate": setting.learning_rate,
        "batch_size": setting.batch_size,
        "seed": key,
        "progress": False,
        "checkpoint": file,
    }
    if method == "swag":
        return swag.fit(_mode(mode).model, split.train, mode=_mode(mode), **options)
    model = setting.model(kind, split.train, derive_seed(seed, 0))
    if method in ("svgp", "deep-kernel"):
        kernel = Deep(model.net, Scale(Matern())) if method == "deep-kernel" else on_pixels()
        process = GaussianProcess(kernel, likelihood=model.likelihood, num_outputs=int(split.train.y.max()) + 1)
        return gp.fit(process, split.train, num_inducing=setting.num_inducing, **options)
    if method == "ensemble":
        return ensemble.fit(model, split.train, num_members=setting.num_members, **options)
    fits: dict[str, Any] = {"map": map_estimate.fit, "dropout": dropout.fit, "variational": variational.fit}
    return fits[method](model, split.train, **options)


def on_pixels() -> Deep:
    """A kernel on images of any shape: one lengthscale for all pixels."""
    return Deep(nn.Flatten(), Scale(RBF(per_input=False)))


def posterior_width(posterior: Posterior, seed: int) -> float | None:
    """Median standard deviation of the weights that have one, the prior's being 1; None where draws are no weights."""
    if not isinstance(posterior, swag.SwagPosterior | laplace.LaplacePosterior | variational.VariationalPosterior):
        return None
    if isinstance(posterior, variational.VariationalPosterior):
        return float(posterior.scale.median())
    readable = posterior.sampled if isinstance(posterior, laplace.LaplacePosterior) else posterior
    drawn = readable.sample_weights(NUM_WIDTH_DRAWS, seed=seed)
    scales = torch.cat([value.flatten(1).std(dim=0) for value in drawn.values()])
    return float(scales[scales > 0].median())


def _mode(mode: Posterior | None) -> Any:
    if mode is None:
        raise ValueError("This method stands on the mode of `map`: fit that first.")
    return mode
