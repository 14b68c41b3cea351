"""The methods of the segmentation table: how each is fitted to the images of a set, with one network and training."""

import tomllib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import bayesuq as bq
from bayesuq.inference import (
    dropout,
    ensemble,
    laplace,
    local_temperature,
    map_estimate,
    swag,
    temperature,
    variational,
)
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.posterior import Posterior
from bayesuq.randomness import derive_seed, isolated

DROPOUT = 0.5  # of the central layers, as in Bayesian SegNet
NUM_MEMBERS = 5
HELD_OUT_DRAWS = 10  # of a mixture whose temperatures are fitted: all draws of the validation images are in memory
NARROW: Mapping[str, Any] = {  # as on MNIST, where it errs less than the defaults: see `settings/mnist.toml`
    "guide": partial(variational.mean_field, initial_scale=0.02),
    "scale_rate": 0.1,
}
COUNTS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # for how many labels a pixel's label may count, and its inverse widen a law
ON_MAP = ("temperature", "local-temperature", "laplace", "laplace-held-out", "swag")
TRAINED = ("map", "swag", "dropout", "variational", "variational-narrow", "ensemble")
METHODS = (
    *("map", *ON_MAP, "swag-held-out", "dropout", "variational", "variational-narrow", "ensemble"),
    "ensemble-temperature",
)
STANDS_ON = {  # the fitted posterior of another one
    **dict.fromkeys(ON_MAP, "map"),
    "swag-held-out": "swag",
    "ensemble-temperature": "ensemble",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What holds for all methods of a data set.

    Attributes:
        likelihood: Of a pixel's label.
        network: Options of `networks.unet`.
        training: Of every fit: epochs, batch size, learning rate.
        augments: Whether training images are flipped left to right, at random.
        turns: Whether they are then turned by quarters, too, as images without an upside may be.
        precision: Of the network while it is trained.
        num_classes: C; a Bernoulli has two.
        ignore_index: The label of void pixels.
        num_samples: Draws of a prediction, where there is no end of them.
    """

    likelihood: Literal["bernoulli", "categorical"]
    network: Mapping[str, Any]
    training: Mapping[str, Any]
    augments: bool = False
    turns: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    num_classes: int = 2
    ignore_index: int | None = None
    num_samples: int = 50


def read_settings(path: str | PathLike[str]) -> dict[str, Setting]:
    """By data set, from a TOML file."""
    return {name: Setting(**table) for name, table in tomllib.loads(Path(path).read_text(encoding="utf-8")).items()}


def model(setting: Setting, in_channels: int, *, seed: int, with_dropout: bool = False) -> BayesianNetwork:
    """A U-Net of new weights under N(0, 1) priors."""
    is_binary = setting.likelihood == "bernoulli"
    with isolated(seed):
        net = networks.unet(
            in_channels,
            1 if is_binary else setting.num_classes,
            dropout=DROPOUT if with_dropout else 0.0,
            **setting.network,
        )
    likelihood = likelihoods.Bernoulli() if is_binary else likelihoods.Categorical(ignore_index=setting.ignore_index)
    return BayesianNetwork(net, priors.Normal(scale=1.0), likelihood)


def training_data(setting: Setting, train: bq.Dataset) -> bq.Dataset | DataLoader[Any]:
    """The training images, flipped and turned anew in each epoch where the setting says so, masks with images."""
    if not setting.augments:
        return train
    rows = TensorDataset(train.x, train.y)
    size = int(setting.training["batch_size"])
    moved = turned if setting.turns else augmented
    return DataLoader(rows, batch_size=size, shuffle=True, drop_last=len(train) > size, collate_fn=moved)


def augmented(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch of images (N, channels, H, W) and labels (N, H, W), each flipped left to right or not, at random.

    By hand what `docs/guide/data.md` shows with a library: one flip is all that road scenes allow.
    """
    x, y = (torch.stack(parts) for parts in zip(*rows, strict=True))
    flips = torch.rand(len(x)) < 0.5
    x[flips], y[flips] = x[flips].flip(-1), y[flips].flip(-1)
    return x.contiguous(memory_format=torch.channels_last), y  # a fifth faster where channels are few


def turned(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch of square images and labels, each flipped or not and turned by some quarters, at random."""
    x, y = augmented(rows)
    quarters = torch.randint(4, (len(x),)).tolist()
    for number, quarter in enumerate(quarters):
        x[number], y[number] = x[number].rot90(quarter, (-2, -1)), y[number].rot90(quarter, (-2, -1))
    return x, y


def fit(
    method: str, setting: Setting, split: bq.Split, seed: int, base: Posterior | None, checkpoint: Path | None = None
) -> Posterior:
    """One posterior of one set.

    Args:
        method: One of `METHODS`.
        setting: Of the set.
        split: Its images.
        seed: Of everything.
        base: What `STANDS_ON` names, under the same seed.
        checkpoint: File from which a stopped fit goes on.

    Raises:
        ValueError: No such method, or nothing to stand on where it must.
    """
    if method in STANDS_ON and base is None:
        raise ValueError(f"{method} stands on {STANDS_ON[method]}; fit that first.")
    given: Any = base
    options = dict(setting.training) | {"seed": seed, "checkpoint": checkpoint}
    chosen = model(setting, split.train.x.shape[1], seed=derive_seed(seed, 0), with_dropout=method == "dropout")
    data = training_data(setting, split.train)
    last_layer: dict[str, Any] = {"subset": "last_layer", "batch_size": 4, "seed": seed}
    fits: dict[str, Callable[[], Posterior]] = {
        "map": lambda: map_estimate.fit(chosen, data, **options),
        "temperature": lambda: temperature.fit(given, split.val, seed=seed),
        "local-temperature": lambda: local_temperature.fit(given, split.val, num_epochs=30, seed=seed),
        "laplace": lambda: laplace.fit(chosen, split.train, mode=given, **last_layer),
        "laplace-held-out": lambda: best_of(
            lambda count: laplace.fit(chosen, counted(split.train, count), mode=given, **last_layer),
            setting,
            split.val,
            seed,
        ),
        "swag": lambda: swag.fit(chosen, data, mode=given, **options),
        "swag-held-out": lambda: best_of(lambda count: replace(given, scale=1 / count), setting, split.val, seed),
        "dropout": lambda: dropout.fit(chosen, data, **options),
        "variational": lambda: variational.fit(chosen, data, **options),
        "variational-narrow": lambda: variational.fit(chosen, data, **NARROW, **options),
        "ensemble": lambda: ensemble.fit(chosen, data, num_members=NUM_MEMBERS, **options),
        "ensemble-temperature": lambda: temperature.fit(given, split.val, num_samples=HELD_OUT_DRAWS, seed=seed),
    }
    if method not in fits:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {method!r}.")
    with lowered(setting, method):
        return fits[method]()


def lowered(setting: Setting, method: str) -> AbstractContextManager[Any]:
    """Where methods that train a network do so in the setting's precision."""
    is_low = setting.precision == "bfloat16" and method in TRAINED
    return torch.autocast("cpu", torch.bfloat16, enabled=is_low)


def counted(data: bq.Dataset, count: float) -> bq.Dataset:
    """The images, each pixel's label counting for so many: neighbours say in part the same."""
    return data.reweighted(torch.full((len(data),), count))


def best_of(made: Callable[[float], Posterior], setting: Setting, val: bq.Dataset, seed: int) -> Posterior:
    """The posterior of that one of `COUNTS` which gives the labels of validation images the highest probability."""
    void = torch.zeros_like(val.y, dtype=torch.bool) if setting.ignore_index is None else val.y == setting.ignore_index
    losses = {}
    for count in COUNTS:
        probs = made(count).predict(val.x, num_samples=HELD_OUT_DRAWS, seed=seed).mean
        of_truth = probs.gather(1, val.y.masked_fill(void, 0).unsqueeze(1)).squeeze(1)
        losses[count] = -float(of_truth[~void].log().mean())
    chosen = min(losses, key=losses.__getitem__)
    print(f"nats a validation pixel by count: {losses}; chosen: {chosen}", flush=True)
    return made(chosen)
