"""A data set by name, or a table, made into a task.

Its parts in the units that are fitted, the network for it, and the way back.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bayesuq.arrays import check_device
from bayesuq.cli.own_network import built, give_weights
from bayesuq.cli.settings import (
    DataOptions,
    LikelihoodKind,
    ModelOptions,
    PredictionOptions,
    UsageError,
    is_import_path,
)
from bayesuq.data import Dataset, Split, Standardizer, split_dataset
from bayesuq.datasets import named as datasets
from bayesuq.datasets.nifti import NiftiFolder, is_nifti_folder
from bayesuq.datasets.sources import SOURCES
from bayesuq.inference.adoption import adopt
from bayesuq.inference.joint.masked_network import draws_in_training
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.posteriors.tables import of_table
from bayesuq.inference.posteriors.units import in_units
from bayesuq.inference.training.minibatches import probe
from bayesuq.models import gp, likelihoods, networks, priors
from bayesuq.models.added_dropout import with_dropout
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.network_inputs import cast_inputs
from bayesuq.posterior import Posterior
from bayesuq.randomness import isolated
from bayesuq.tables.encoding import Columns
from bayesuq.tables.files import look_at, names_a_file
from bayesuq.tables.table import Table, read_as_fitted, read_table

LABEL_WIDTHS, NUMBER_WIDTHS = [100, 100], [50]
UNET_DEPTH, UNET_WIDTH = 3, 16
OF_TABLES = ("target", "target_kind", "categories", "leave_out", "delimiter", "encoding")
STANDARDIZER = "standardizer.safetensors"  # beside the posterior that was fitted in its units


@dataclass(frozen=True, eq=False)
class Loaded:
    """Data, divided.

    Attributes:
        split: The parts in raw units.
        columns: What the columns of a table are; None of a named set.
        said: How a table is read, a line for each column.
        warnings: Told of its cells.
    """

    split: Split
    columns: Columns | None = None
    said: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def load_data(options: DataOptions, fitted: Columns | None = None) -> Loaded:
    """The named data, or the table.

    Its division has a seed of its own, always 0: with another one, `evaluate` would test on rows that were trained on.

    Args:
        options: Which.
        fitted: The columns of a table that a posterior was fitted to, by which this one is read; None finds out what
            they are.

    Raises:
        UsageError: No such set or file here, no such split of it, or options that do not go with it.
        ValueError: A file that does not have the form of its set, or is no table.
    """
    if names_a_file(options.data):
        return _load_table(options, fitted)
    if fitted is not None:
        raise UsageError(f"The posterior was fitted to a table; {options.data} is none. Name a file with its columns.")
    if is_nifti_folder(options.data):
        return Loaded(_load_folder(options))
    given = [name for name in OF_TABLES if getattr(options, name) not in (None, "auto")]
    if given:
        raise UsageError(f"--{given[0]} is of a table; {options.data} is the name of a set.")
    known = options.data in datasets.available()
    try:
        return Loaded(datasets.load(options.data, split=options.split))
    except ValueError as error:
        if known and options.split is None:
            raise
        fetch = f" Fetch it by `bayesuq data get {options.data}`." if not known and options.data in SOURCES else ""
        raise UsageError(f"{error}{fetch}") from error


def _load_folder(options: DataOptions) -> Split:
    """Volumes of a folder, divided as rows of a table are."""
    if options.split is not None:
        raise UsageError("--split is of a uci/ set; a folder is divided in one way.")
    try:
        return split_dataset(NiftiFolder.of(options.data).dataset())
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(str(error)) from error


def _load_table(options: DataOptions, fitted: Columns | None) -> Loaded:
    if options.split is not None:
        raise UsageError("--split is of a uci/ set; a table is divided in one way.")
    if not Path(options.data).is_file():
        raise UsageError(f"There is no file {options.data!r}.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        table = _read_table(options) if fitted is None else _read_as_fitted(options, fitted)
        split, columns_of = table.split(columns=fitted)
    told = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    return Loaded(split, columns_of, tuple(repr(table).splitlines()), told)


def _read_table(options: DataOptions) -> Table:
    if options.target is None:
        columns = ", ".join(look_at(options.data, delimiter=options.delimiter, encoding=options.encoding).columns)
        raise UsageError(f"Say which column is predicted by --target; {options.data} has {columns}.")
    return read_table(
        options.data,
        target=options.target,
        labels=None if options.target_kind == "auto" else options.target_kind == "labels",
        categories=options.categories or (),
        leave_out=options.leave_out or (),
        delimiter=options.delimiter,
        encoding=options.encoding,
    )


def _read_as_fitted(options: DataOptions, fitted: Columns) -> Table:
    if options.target not in (None, fitted.target.name):
        raise UsageError(f"The posterior predicts {fitted.target.name!r}, and not --target {options.target}.")
    return read_as_fitted(options.data, fitted, delimiter=options.delimiter, encoding=options.encoding)


def data_options(settings: Mapping[str, Any]) -> DataOptions:
    """Which data a run was made of, by the settings that it wrote."""
    return DataOptions(**{item.name: settings[item.name] for item in fields(DataOptions) if item.name in settings})


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
        standardizer: Of real targets and their inputs, from the training rows, and of tables; None for other labels,
            and for a network of the user's own, which was trained in units that it knows itself.
        own: That network, with its weights; None for one that bayesuq builds.
        columns: What the columns of a table are; None of a named set.
    """

    name: str
    split: Split
    options: ModelOptions
    standardizer: Standardizer | None
    own: nn.Module | None = None
    columns: Columns | None = None

    @classmethod
    def of(cls, name: str, split: Split, options: ModelOptions, columns: Columns | None = None) -> "Problem":
        """Choose what the options leave open.

        Raises:
            UsageError: A likelihood or network that does not go with the data; a network of the user's own that is not
                there, or whose weights are not.
        """
        train = split.train
        is_map = train.is_labelled and train.y.ndim > 1
        if columns is not None and is_import_path(options.network):
            raise UsageError(
                f"A network of your own knows its units, and {name} is a table, whose inputs are made here. Take a "
                "network of bayesuq's, or fit from Python: `bayesuq.read_table`, `bayesuq.of_table`."
            )
        own = _own(options)
        if own is None and is_map != (options.network == "unet") and options.network != "auto":
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
        likelihood: LikelihoodKind = "categorical" if train.is_labelled else "normal"
        widths = LABEL_WIDTHS if train.is_labelled else NUMBER_WIDTHS
        network = "unet" if is_map else "convnet" if train.x.ndim == 4 else "mlp"
        resolved = replace(
            options,
            network=network if options.network == "auto" else options.network,
            likelihood=likelihood if options.likelihood == "auto" else options.likelihood,
            hidden=widths if options.hidden is None else options.hidden,
        )
        if columns is not None:
            units = Standardizer.fit(train, clip=options.clip, flags=columns.is_flag)
            return cls(name, split, resolved, units, columns=columns)
        standardizer = None if train.is_labelled or own is not None else Standardizer.fit(train, clip=options.clip)
        found = cls(name, split, resolved, standardizer, own)
        if own is not None:
            found.check_own()
        return found

    @classmethod
    def around(cls, net: nn.Module, name: str, split: Split, options: ModelOptions) -> "Problem":
        """As it was for a network of the user's own, with its options as they were resolved then."""
        return cls(name, split, options, None, net)

    def check_own(self) -> None:
        """Refuse a network of the user's own that does not take these rows, or does not give what they need.

        Raises:
            UsageError: With the shapes.
        """
        rows = self.split.test.rows(torch.arange(min(2, len(self.split.test))))
        try:
            f = probe(self.adopted().model, rows.x).f
        except (ValueError, TypeError) as error:
            raise UsageError(f"{self.options.network} does not go with {self.name}: {error}") from error
        expected, shape = self.num_outputs, tuple(f.shape)
        fits = shape[1] >= expected if self.split.train.is_labelled else shape[1] == expected
        if not fits or shape[2:] != tuple(rows.y.shape[1:] if self.is_map else ()):
            raise UsageError(
                f"{self.options.network} gives outputs of shape {shape} for {shape[0]} rows of {self.name}, whose "
                f"targets are of shape {tuple(rows.y.shape)} and need {expected} columns of them."
            )

    @property
    def beside_posteriors(self) -> Standardizer | None:
        """The standardizer, where it is not in their files."""
        return self.standardizer if self.columns is None else None

    def for_file(self, posterior: Posterior) -> Posterior:
        """A posterior as it is saved: of a table, with all that reads its rows."""
        if self.columns is None or self.standardizer is None:
            return posterior
        return of_table(in_units(posterior, self.standardizer), self.columns, self.split.train)

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
        if self.own is not None:
            return self.adopted(with_dropout=with_dropout, infers_noise=infers_noise).model
        options, dropout = self.options, self.options.dropout if with_dropout else 0.0
        with isolated(seed):
            if options.network == "unet":
                x = self.split.train.x
                net: nn.Module = networks.unet(
                    x.shape[1],
                    self.num_outputs,
                    depth=UNET_DEPTH,
                    width=UNET_WIDTH,
                    dropout=dropout,
                    spatial_dims=x.ndim - 2,
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

    def adopted(self, *, with_dropout: bool = False, infers_noise: bool = False) -> MapPosterior:
        """The network of the user's own as a posterior of one member; see `model` for the arguments.

        Where it is to have dropout and draws nothing in training mode, dropout is put in front of its last layer.
        """
        net = cast(nn.Module, self.own)
        if with_dropout:
            plain = self._adopt(net, infers_noise=infers_noise).model
            rows: Any = cast_inputs(plain, self.split.train.x[:2])
            if not draws_in_training(plain, rows):
                net = with_dropout_before_last(net, self.options.dropout)
        return self._adopt(net, infers_noise=infers_noise)

    def _adopt(self, net: nn.Module, *, infers_noise: bool) -> MapPosterior:
        options = self.options
        prior, likelihood = priors.Normal(scale=options.prior_scale), self._likelihood(infers_noise=infers_noise)
        return adopt(net, likelihood, prior=prior, random=options.random, is_centred=options.centred)

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
        if self.own is not None:
            return self._noise_of_own(infers_noise=infers_noise)
        return likelihoods.Normal(scale=priors.HalfNormal() if infers_noise else "learned")

    def _noise_of_own(self, *, infers_noise: bool) -> likelihoods.Normal:
        """Noise that begins at the root mean squared error of the user's network on the validation rows, by column."""
        rows, columns = self.split.val, self.split.train.y.shape[1]
        at_one = adopt(cast(nn.Module, self.own), likelihoods.Normal(scale=1.0))
        squares = (at_one.predict(rows.x).mean - rows.y).double().square().mean(dim=0)
        tiny = torch.finfo(torch.float32).tiny
        errors = squares.sqrt().clamp(min=tiny).tolist()
        prior = priors.HalfNormal(scale=float(self.split.train.y.double().std(dim=0, correction=0).max()))
        return likelihoods.Normal(
            scale=prior if infers_noise else "learned",
            initial_scale=errors if columns > 1 else errors[0],
            per_column=columns if columns > 1 else False,
        )

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
        if self.columns is not None and self.columns.target.classes:
            return each * len(self.columns.target.classes)
        if self.split.train.is_labelled:
            parts = (self.split.train, self.split.val, self.split.test)
            return each * (1 + max(int(part.y[part.y != self.ignore_index].max()) for part in parts))
        return each * self.split.train.y.shape[1]


def _own(options: ModelOptions) -> nn.Module | None:
    """The network at an import path, with its weights; None where bayesuq builds one.

    Raises:
        UsageError: Weights without such a network, or it without weights.
    """
    if not is_import_path(options.network):
        if options.weights is not None or options.random != "last_layer" or options.centred:
            raise UsageError(
                "--weights, --random and --centred are of a network that you have trained: name the function that "
                "builds it, --network package.module:function."
            )
        return None
    if options.weights is None:
        raise UsageError(
            f"{options.network} is taken as it was trained: name the file of its weights, --weights FILE.safetensors."
        )
    net = built(options.network, seed=0)
    give_weights(net, options.weights)
    return net


def with_dropout_before_last(net: nn.Module, rate: float) -> nn.Module:
    """A copy of a network that drops what goes into its last layer, in training mode."""
    path = [
        path for path, module in net.named_modules() if path and any(True for _ in module.parameters(recurse=False))
    ]
    return with_dropout(net, {path[-1]: rate})


def write_standardizer(standardizer: Standardizer | None, folder: Path) -> None:
    """Put it beside the posteriors; nothing where there is none."""
    if standardizer is not None:
        standardizer.save(folder / STANDARDIZER)


def read_standardizer(folder: Path) -> Standardizer | None:
    """The one that lies beside a posterior, or None.

    Raises:
        ValueError: A broken file, or one of another kind.
    """
    path = folder / STANDARDIZER
    return Standardizer.load(path) if path.exists() else None
