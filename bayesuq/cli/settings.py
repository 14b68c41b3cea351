"""What the commands can be told: groups of options, each a frozen dataclass with a line of help for every field.

An option has one name on the command line (`--num_epochs 200`) and in a file (`num_epochs = 200`): the field's.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from jsonargparse.typing import NonNegativeInt, OpenUnitInterval, PositiveInt, restricted_number_type

from bayesuq.inference.catalogue import commands

FinitePositive = restricted_number_type("FinitePositive", float, [(">", 0), ("<", math.inf)])
METHODS = commands()
AUTO = "auto"
NetworkKind = Literal["auto", "mlp", "convnet", "unet"]
NETWORKS: tuple[str, ...] = get_args(NetworkKind)
RandomKind = Literal["last_layer", "all"]
LikelihoodKind = Literal["auto", "categorical", "normal", "heteroscedastic"]
ActivationKind = Literal["relu", "tanh", "silu", "gelu"]
Part = Literal["train", "val", "test", "all"]
TargetKind = Literal["auto", "numbers", "labels"]


class UsageError(ValueError):
    """The command cannot begin as it was called: exit code 2."""


class About(NamedTuple):
    """An option's line of help, and the type by which the parser checks it where that is narrower than its own."""

    text: str
    kind: Any = None
    is_place: bool = False  # given by its place, without a name


def _separated(convert: Callable[[str], Any], what: str) -> Callable[[Any], list[Any] | None]:
    """A type for lists: `a,b` on the command line, the same or a list in a file; errors call them `what`."""

    def items(value: Any) -> list[Any] | None:
        if value is None:
            return None
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        return [convert(str(part).strip()) for part in parts if str(part).strip()]

    items.__name__ = what
    return items


def _width(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"a width must be a whole number of at least 1; got {text!r}")
    return int(text)


def is_import_path(network: str) -> bool:
    """Whether a network is one of the user's own, `package.module:function`, and none that bayesuq builds."""
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", network) is not None


def _import_path(text: str) -> str:
    if not is_import_path(text):
        raise ValueError(f"a network of your own is named as package.module:function; got {text!r}")
    return text


def _network(text: str) -> str:
    return text if text in NETWORKS else _import_path(text)


_network.__name__ = f"one of {', '.join(NETWORKS)}, or package.module:function"
_import_path.__name__ = "import path, package.module:function"
WIDTHS, NAMES = _separated(_width, "list of widths"), _separated(str, "list of methods")
COLUMNS = _separated(str, "list of columns")
RULES: dict[Any, str] = {  # what an option must be, by the type that checks it
    PositiveInt: "a whole number of at least 1",
    NonNegativeInt: "a whole number of at least 0",
    FinitePositive: "a finite number above 0",
    OpenUnitInterval: "a number above 0 and below 1",
    WIDTHS: "widths, whole numbers of at least 1, with commas between them",
    NAMES: "names of methods, with commas between them",
    COLUMNS: "names of columns, with commas between them",
    str: "text",
    Path: "the name of a file or folder",
    bool: "true or false",
}


def rule(kind: Any) -> str:
    """What a value of an option must be, to go on after "must be"."""
    chosen = [each for each in get_args(kind) if each is not type(None)]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(chosen)}"
    return rule(chosen[0]) if chosen else RULES.get(kind, kind.__name__)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data."""

    data: Annotated[
        str,
        About(
            "A table (.csv, .tsv, .parquet, .gz), a folder of NIfTI volumes, or a set of `bayesuq data list`.",
        ),
    ]
    split: Annotated[
        int | None, About("Which published split of a uci/ set, from 0; none is the first.", NonNegativeInt | None)
    ] = None
    target: Annotated[str | None, About("Column of a table that is predicted.")] = None
    target_kind: Annotated[TargetKind, About("auto: words, yes and no, and 0 and 1 are labels, else numbers.")] = "auto"
    categories: Annotated[
        list[str] | None, About("Columns of numbers that are categories, such as codes, comma-separated.", COLUMNS)
    ] = None
    leave_out: Annotated[list[str] | None, About("Columns that are not read, comma-separated.", COLUMNS)] = None
    delimiter: Annotated[str | None, About("Between the cells of a table; none finds it out.")] = None
    encoding: Annotated[str | None, About("Of a table's text; none finds it out.")] = None


@dataclass(frozen=True, kw_only=True)
class NewRowsOptions:
    """Which posterior predicts, which rows, and where to."""

    posterior: Annotated[Path, About("Folder that `bayesuq fit` wrote of a table, or the posterior in it.")]
    data: Annotated[Path, About("Table with the columns that were fitted.")]
    out: Annotated[Path, About("CSV file that is written, a row for each row; with .gz it is compressed.")]
    level: Annotated[float, About("Probability of the intervals of numbers.", OpenUnitInterval)] = 0.9
    delimiter: Annotated[str | None, About("Between the cells of the table; none finds it out.")] = None
    encoding: Annotated[str | None, About("Of the table's text; none finds it out.")] = None
    overwrite: Annotated[bool, About("Replace a file that is there.")] = False


@dataclass(frozen=True, kw_only=True)
class MethodsOption:
    """Which methods are compared."""

    methods: Annotated[
        list[str],
        About(
            f"Comma-separated, of {', '.join(METHODS)}; ensemble:METHOD is an ensemble of another method, "
            "temperature:METHOD scales another method's logits, confidence:METHOD learns where it is wrong (alone: of "
            "map).",
            NAMES,
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class MethodOption:
    """Which method is fitted."""

    method: Annotated[
        str,
        About(
            f"One of {', '.join(METHODS)}; the last three also as KIND:METHOD. auto: for real targets "
            "quantile_calibration, of gp for up to 1,000 rows of numbers, else of variational; for labels variational.",
        ),
    ] = AUTO


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The network, its prior and the likelihood."""

    network: Annotated[
        str,
        About(
            f"{', '.join(NETWORKS)}, or one that you have trained, package.module:function, with --weights. auto: unet "
            "for a label a pixel, convnet for other images, else mlp. A function is imported and called without "
            "arguments, and only if it is named on the command line itself.",
            _network,
        ),
    ] = "auto"
    weights: Annotated[
        Path | None,
        About("Of a network of your own: a safetensors file of its state_dict. Its body is not trained."),
    ] = None
    random: Annotated[RandomKind, About("Which weights of a network of your own methods are unsure about.")] = (
        "last_layer"
    )
    centred: Annotated[bool, About("Put the prior around the weights of a network of your own, instead of 0.")] = False
    hidden: Annotated[
        list[int] | None,
        About("Widths of an mlp's hidden layers, as 100,100. Default: 100,100 for labels, 50 for numbers.", WIDTHS),
    ] = None
    activation: Annotated[ActivationKind, About("Of an mlp's hidden layers.")] = "relu"
    dropout: Annotated[
        float,
        About("Probability of dropping a unit; only the method dropout has dropout layers.", OpenUnitInterval),
    ] = 0.1
    prior_scale: Annotated[
        float, About("Standard deviation of the Normal prior of every weight.", FinitePositive)
    ] = 1.0  # fmt: skip
    clip: Annotated[
        float | None,
        About(
            "Standard deviations from its mean that an input of numbers is held within; none holds none.",
            FinitePositive | None,
        ),
    ] = None
    likelihood: Annotated[
        LikelihoodKind,
        About(
            "auto: categorical for labels; for numbers normal, whose one noise scale is learned. heteroscedastic: the "
            "noise depends on the input; of labels, the noise of their logits.",
        ),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a posterior is fitted."""

    num_epochs: Annotated[
        int | None,
        About("Passes over the training data; none makes 100, and at least 2,000 steps.", PositiveInt | None),
    ] = None
    batch_size: Annotated[int, About("Rows in a minibatch, at most.", PositiveInt)] = 128
    learning_rate: Annotated[
        float | None, About("Of Adam, at the start; none leaves it to each method.", FinitePositive | None)
    ] = None
    num_members: Annotated[int, About("Members of an ensemble.", PositiveInt)] = 5


@dataclass(frozen=True, kw_only=True)
class CheckpointOption:
    """What a fit that was stopped goes on from."""

    checkpoint: Annotated[
        Path | None,
        About(
            "Folder that fits are written to as they go, instead of one in --out that is gone at the end. After a "
            "stop, the same command goes on from there and ends with the same bits.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """How long the chains of sgmcmc and hmc are."""

    num_chains: Annotated[int, About("Chains of sgmcmc and hmc.", PositiveInt)] = 4
    num_warmup: Annotated[int, About("Steps of each chain before the first draw is kept.", PositiveInt)] = 1000
    num_draws: Annotated[int, About("Draws of each chain that are kept.", PositiveInt)] = 250


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """How predictions are made, from which random numbers, and where."""

    num_samples: Annotated[int, About("Draws from the posterior in each prediction.", PositiveInt)] = 100
    seed: Annotated[int, About("Of initial weights, fits and predictions.", NonNegativeInt)] = 0
    device: Annotated[str | None, About("Where to compute, such as cuda; none is the CPU.")] = None
    num_threads: Annotated[int, About("Of the CPU. More than one slows small networks down.", PositiveInt)] = 1


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where results go."""

    out: Annotated[Path, About("Folder for the results; it is made.")]
    overwrite: Annotated[bool, About("Replace the results of an earlier run in that folder.")] = False


@dataclass(frozen=True, kw_only=True)
class PosteriorOption:
    """Which posterior is evaluated, and on what."""

    posterior: Annotated[Path, About("File that `posterior.save` wrote, or a folder that `bayesuq fit` did.")]
    part: Annotated[Part, About("Part of the data to evaluate on; all rows of a table of which none was fitted.")] = (
        "test"
    )


@dataclass(frozen=True, kw_only=True)
class OwnNetworkOption:
    """The network of a posterior that was fitted around one of your own."""

    network: Annotated[
        str | None, About("The package.module:function that it was fitted with, on the command line.", _import_path)
    ] = None


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions:
    """What is diagnosed, and from how many draws and rows."""

    run: Annotated[Path, About("Folder that `bayesuq fit` or `bayesuq compare` wrote.", is_place=True)]
    num_samples: Annotated[
        int | None,
        About("Draws; none takes all of a posterior that stores them, 400 of others.", PositiveInt | None),
    ] = None
    num_rows: Annotated[int, About("Training rows, and as many test rows, that are looked at.", PositiveInt)] = 500
    num_threads: Annotated[int, About("Of the CPU. More than one slows small networks down.", PositiveInt)] = 1
    overwrite: Annotated[bool, About("Replace earlier diagnostics of that run.")] = False


GROUPS: dict[str, tuple[type, ...]] = {
    "compare": (
        *(DataOptions, MethodsOption, ModelOptions, TrainingOptions, ChainOptions, PredictionOptions),
        *(CheckpointOption, OutputOptions),
    ),
    "fit": (
        *(DataOptions, MethodOption, ModelOptions, TrainingOptions, ChainOptions, PredictionOptions),
        *(CheckpointOption, OutputOptions),
    ),
    "evaluate": (PosteriorOption, OwnNetworkOption, DataOptions, PredictionOptions, OutputOptions),
    "predict": (NewRowsOptions, PredictionOptions),
    "diagnose": (DiagnoseOptions, OwnNetworkOption),
}
