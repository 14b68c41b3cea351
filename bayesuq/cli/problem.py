"""A data set by name made into a task: its parts in the units that are fitted, the network for it, and the way back."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesuq.arrays import check_device
from bayesuq.cli.settings import DataOptions, ModelOptions, PredictionOptions, UsageError
from bayesuq.data import Dataset, Split, Standardizer
from bayesuq.datasets import named as datasets
from bayesuq.datasets.sources import SOURCES
from bayesuq.models import gp, likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import isolated
from bayesuq.storage import read, write

LABEL_WIDTHS, NUMBER_WIDTHS = [100, 100], [50]
UNET_DEPTH, UNET_WIDTH = 3, 16
STANDARDIZER = "standardizer.safetensors"  # beside the posterior that was fitted in its units


def load_split(options: DataOptions) -> Split:
    """The named data.

    Its division has a seed of its own, always 0: with another one, `evaluate` would test on rows that were trained on.

    Raises:
        UsageError: No such set here, or no such split of it.
        ValueError: A file that does not have the form of its set.
    """
    known = options.data in datasets.available()
    try:
        return datasets.load(options.data, split=options.split)
    except ValueError as error:
        if known and options.split is None:
            raise
        fetch = f" Fetch it by `bayesuq data get {options.data}`." if not known and options.data in SOURCES else ""
        raise UsageError(f"{error}{fetch}") from error


def use_computer(options: PredictionOptions) -> None:
    """Take as many threads as asked for.

    Raises:
        UsageError: This machine does not have the device, or not so many cores.
    """
    cores = os.cpu_count() or 1
    if options.num_threads > cores:  # far too many end the process
        raise UsageError(f"`num_threads` must be at most {cores}, this machine's cores; got {options.num_threads}.")
    try:
        check_device("cpu" if options.device is None else options.device)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    torch.set_num_threads(options.num_threads)


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be learned.

    Attributes:
        name: Of the data set.
        split: Its parts in raw units.
        options: Of the model, with nothing left to choose.
        standardizer: Of real targets and their inputs, from the training rows; None for labels.
    """

    name: str
    split: Split
    options: ModelOptions
    standardizer: Standardizer | None

    @classmethod
    def of(cls, name: str, split: Split, options: ModelOptions) -> "Problem":
        """Choose what the options leave open.

        Raises:
            UsageError: A likelihood or network that does not go with the data.
        """
        train = split.train
        is_map = train.is_labelled and train.y.ndim > 1
        if is_map != (options.network == "unet") and options.network != "auto":
            kind = (
                "a label for every pixel, which needs a unet" if is_map else "no label for every pixel, as a unet needs"
            )
            raise UsageError(f"The network {options.network} does not go with {name}, which has {kind}.")
        if options.likelihood == ("normal" if train.is_labelled else "categorical"):
            others = "labels: categorical" if train.is_labelled else "real targets: normal"
            kind = f"{others} or heteroscedastic"
            raise UsageError(f"The likelihood {options.likelihood} does not go with {name}, which has {kind}.")
        if options.network == "convnet" and train.x.ndim != 4:
            raise UsageError(f"A convnet takes images; {name} has inputs of shape {tuple(train.x.shape)}.")
        widths = LABEL_WIDTHS if train.is_labelled else NUMBER_WIDTHS
        choice = ModelOptions(
            network="unet" if is_map else "convnet" if train.x.ndim == 4 else "mlp",
            likelihood="categorical" if train.is_labelled else "normal",
        )
        resolved = replace(
            options,
            network=choice.network if options.network == "auto" else options.network,
            likelihood=choice.likelihood if options.likelihood == "auto" else options.likelihood,
            hidden=widths if options.hidden is None else options.hidden,
        )
        return cls(name, split, resolved, None if train.is_labelled else Standardizer.fit(train))

    def in_fitted_units(self, part: Dataset) -> Dataset:
        """A part of the data as the network sees it."""
        return part if self.standardizer is None else self.standardizer.transform(part)

    def model(self, *, seed: int, with_dropout: bool = False, infers_noise: bool = False) -> BayesianNetwork:
        """The joint density, its network at initial weights that the seed decides.

        Args:
            seed: Of the initial weights.
            with_dropout: Whether the network has dropout layers.
            infers_noise: Whether a noise scale is one of the unknowns, under a half-normal prior of the scale of y,
                instead of a point value: chains cannot learn those.
        """
        options, dropout = self.options, self.options.dropout if with_dropout else 0.0
        with isolated(seed):
            if options.network == "unet":
                channels = self.split.train.x.shape[1]
                net: nn.Module = networks.unet(
                    channels, self.num_outputs, depth=UNET_DEPTH, width=UNET_WIDTH, dropout=dropout
                )
            elif options.network == "convnet":
                net = networks.convnet(self.split.train.x.shape[1], self.num_outputs, dropout)
            else:
                widths = options.hidden or []
                net = networks.mlp(
                    self.split.train.x[0].numel(), widths, self.num_outputs, dropout, activation=options.activation
                )
        likelihood = self._likelihood(infers_noise=infers_noise)
        return BayesianNetwork(net, priors.Normal(scale=options.prior_scale), likelihood)

    def process(self, *, seed: int) -> "gp.GaussianProcess":
        """The prior over functions in place of a network's; for images, of the network's outputs as features."""
        likelihood, number = self._likelihood(infers_noise=False), self.num_outputs
        if self.split.train.x.ndim == 2:
            return gp.GaussianProcess(likelihood=likelihood, num_outputs=number)
        kernel = gp.Deep(self.model(seed=seed).net, gp.Scale(gp.Matern()))
        return gp.GaussianProcess(kernel, likelihood=likelihood, num_outputs=number)

    def _likelihood(self, *, infers_noise: bool) -> likelihoods.Likelihood:
        """Of the targets in the units that are fitted."""
        if self.options.likelihood == "categorical":
            return likelihoods.Categorical(ignore_index=self.ignore_index)
        if self.options.likelihood == "heteroscedastic":
            of_labels = self.split.train.is_labelled
            noisy = likelihoods.HeteroscedasticCategorical(ignore_index=self.ignore_index)
            return noisy if of_labels else likelihoods.HeteroscedasticNormal()
        return likelihoods.Normal(scale=priors.HalfNormal() if infers_noise else "learned")

    @property
    def is_map(self) -> bool:
        """Whether there is a label for every pixel."""
        return self.split.train.is_labelled and self.split.train.y.ndim > 1

    @property
    def ignore_index(self) -> int | None:
        """The label of void pixels, where the set has one."""
        return datasets.IGNORED.get(self.name)

    @property
    def num_outputs(self) -> int:
        """Classes, or target columns: twice as many where the noise is an output too."""
        each = 2 if self.options.likelihood == "heteroscedastic" else 1
        if self.split.train.is_labelled:
            parts = (self.split.train, self.split.val, self.split.test)
            return each * (1 + max(int(part.y[part.y != self.ignore_index].max()) for part in parts))
        return each * self.split.train.y.shape[1]


def write_standardizer(standardizer: Standardizer | None, folder: Path) -> None:
    """Put it beside the posteriors; nothing where there is none."""
    if standardizer is not None:
        tensors = {name: part for name, part in vars(standardizer).items() if isinstance(part, torch.Tensor)}
        write(folder / STANDARDIZER, {"kind": "standardizer"}, tensors)


def read_standardizer(folder: Path) -> Standardizer | None:
    """The one that lies beside a posterior, or None.

    Raises:
        ValueError: A broken file, or one of another kind.
    """
    path = folder / STANDARDIZER
    if not path.exists():
        return None
    header, tensors = read(path)
    if header.get("kind") != "standardizer" or not {"x_loc", "x_scale"} <= tensors.keys() <= _FIELDS:
        raise ValueError(f"{path} holds no standardizer.")
    parts: dict[str, Any] = {name: part.to(torch.float64) for name, part in tensors.items()}
    return Standardizer(**parts)


_FIELDS = set(Standardizer.__dataclass_fields__) - {"clip"}  # which the commands do not set
