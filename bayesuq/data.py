"""Data as every method takes it: inputs, targets and weights, their splits, and their units."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from bayesuq import optional
from bayesuq.arrays import (
    ArrayLike,
    check_count,
    check_finite,
    check_fraction,
    check_inputs,
    check_positive,
    chosen_rows,
    column_names,
    to_floating,
    to_tensor,
    warn_of_other_order,
)
from bayesuq.inputs import (
    Given,
    as_rows,
    checked,
    described,
    in_columns,
    joined,
    named_leaves,
    places_of,
    require_tensor,
    structure,
    without_scale,
)
from bayesuq.notebook import table
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.randomness import derive_seed, generator
from bayesuq.storage import read, write

__all__ = ["Batch", "Dataset", "Split", "Standardizer", "split_dataset"]
__dir__ = __all__.copy

FILE_KIND = "standardizer"
SMALLEST_SPREAD = 1e-150  # of a target: the square of a smaller one is no float
MOST_DISTINCT = 0.5  # of the targets, where they are taken as rounded
FAR = 10  # standard deviations, of which normal features reach five in a million rows
MOST_SKEWED = 1.0
PredictiveT = TypeVar("PredictiveT", bound=PredictiveDistribution)


class Batch(NamedTuple):
    """Some rows: inputs, (B, ...), their targets, and their weights or None."""

    x: Any  # a tensor, or a tuple, mapping or dataclass of tensors with B rows each
    y: Tensor
    weight: Tensor | None = None

    def at(self, rows: Tensor | slice) -> "Batch":
        """Some of the rows, by their places."""
        weight = None if self.weight is None else self.weight[rows]
        return Batch(as_rows(self.x)[rows], self.y[rows], weight)


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Dataset:
    """N inputs with their targets.

    Attributes:
        x: Inputs, (N, D) or (N, channels, ...), float32 (float64 where given so); whole numbers are int64. Or several
            parts with N rows each: a tuple, mapping or dataclass, as the network takes it. With scales, a
            `bayesuq.Given` of the inputs and these.
        y: Real targets (N, D), of real-valued images (N, channels, ...), or int64 labels (N, ...): the dtype that comes
            in decides. A likelihood of labels takes whole numbers that came as reals for labels.
        weight: Of each row (N,), or of each target, at least 0; None is 1. Weights multiply the log-likelihood.
        columns: Names of the columns of x, where it came as a data frame; else None.

    Example:
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.5, 1.5, 2.5])
        >>> len(data), data.y.shape
        (3, torch.Size([3, 1]))
    """

    x: Any
    y: Tensor
    weight: Tensor | None
    columns: tuple[str, ...] | None

    def __init__(
        self, x: Any, y: ArrayLike, weight: ArrayLike | None = None, *, scale: ArrayLike | None = None
    ) -> None:
        """Check and convert.

        Args:
            x: Inputs, (N, D) or (N, channels, ...). Whole numbers stay whole until a network asks for floats; bytes and
                booleans become float32, their scale unchanged. Of several parts, such as a mapping of token ids and
                masks, booleans stay, and each may be (N,).
            y: Targets: floats (N, D), (N,) being taken as D = 1, or images (N, channels, ...);
                whole numbers and booleans are labels (N, ...).
            weight: (N,), or of y's shape. Where it is 0, a target may be missing (NaN); `y` then holds another one of
                its column in its place.
            scale: The known scale of the noise, in units of y and above 0: of each row (N,), or of each target (N, D);
                for a likelihood of `scale="given"`.

        Raises:
            TypeError: Sparse, masked, complex, text, date or object arrays.
            ValueError: Empty, not finite (of y: where it counts), one-dimensional x, numbers of rows that differ,
                negative weights.

        Warns:
            UserWarning: Pandas objects whose rows have the same labels in another order.
        """
        warn_of_other_order(x, y)
        inputs = checked(x if scale is None else _with_scale(x, scale))
        targets = to_tensor(y, "y")
        if targets.ndim == 0 or len(targets) != len(inputs):
            raise ValueError(
                f"`y` must have N = {len(inputs)} rows as `x` has; got shape {tuple(targets.shape)} for "
                f"{described(inputs)}."
            )
        targets = _check_targets(targets.to(inputs.device))
        weights = None if weight is None else _check_weight(weight, targets)
        object.__setattr__(self, "x", structure(inputs))
        object.__setattr__(self, "y", _filled(targets, weights, is_tensor=isinstance(y, Tensor)))
        object.__setattr__(self, "weight", weights)
        object.__setattr__(self, "columns", column_names(x))

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Dataset({', '.join(f'{name}: {shape} {dtype}' for name, shape, dtype in self._parts)})"

    def _repr_html_(self) -> str:
        return table(f"Dataset of {len(self)} rows", ("part", "shape", "dtype"), self._parts)

    @property
    def _parts(self) -> list[tuple[str, str, str]]:
        """Name, shape and dtype of each tensor."""
        parts = named_leaves(self.x) | {"y": self.y} | ({} if self.weight is None else {"weight": self.weight})
        return [(name, str(tuple(part.shape)), str(part.dtype)[6:]) for name, part in parts.items()]

    @property
    def is_labelled(self) -> bool:
        """Whether the targets are labels."""
        return not self.y.is_floating_point()

    def rows(self, index: ArrayLike | range) -> Self:
        """The rows that `index` names, in its order.

        Args:
            index: Whole numbers, negative ones counted from the end, or booleans (N,).

        Raises:
            TypeError: Fractions.
            ValueError: More than one dimension, booleans of another length, or no row left.
            IndexError: No such row.
        """
        chosen = chosen_rows(index, len(self)).to(self.y.device)
        x = structure(as_rows(self.x)[chosen])
        return self._named(type(self)(x, self.y[chosen], None if self.weight is None else self.weight[chosen]))

    def reweighted(self, factor: Tensor) -> Self:
        """The same rows, the weight of each multiplied by a factor, (N,)."""
        factor = factor.to(self.y.device)
        if self.weight is None:
            return self._named(type(self)(self.x, self.y, factor))
        return self._named(type(self)(self.x, self.y, self.weight * factor.reshape(-1, *[1] * (self.weight.ndim - 1))))

    def concatenate(self, *others: Self) -> Self:
        """The rows of all, on the device of the first; a missing weight counts as 1, and columns go by their names.

        Raises:
            ValueError: Inputs or targets of different shape or kind, or columns of other names.
        """
        parts = [self, *(other.in_columns(self.columns).to(self.y.device) for other in others)]
        for other in others:
            _check_alike(self, other)
        weight = None
        if any(part.weight is not None for part in parts):
            per_target = any(part.weight is not None and part.weight.ndim == part.y.ndim for part in parts)
            weight = torch.cat([_weight_or_one(part, per_target=per_target) for part in parts])
        x = structure(joined([as_rows(part.x) for part in parts]))
        return self._named(type(self)(x, torch.cat([part.y for part in parts]), weight))

    def to(self, device: torch.device | str) -> Self:
        """The same data on another device."""
        weight = None if self.weight is None else self.weight.to(device)
        return self._named(type(self)(structure(as_rows(self.x).to(device)), self.y.to(device), weight))

    def in_columns(self, names: tuple[str, ...] | None) -> Self:
        """The same data with the columns of x in this order; where columns have no names, as they are.

        Raises:
            ValueError: Columns that are missing, or further ones.
        """
        if names is None or self.columns is None or names == self.columns:
            return self
        places = places_of(names, self.columns)
        x = self.x._replace(x=self.x.x[:, places]) if isinstance(self.x, Given) else self.x[:, places]
        other = type(self)(x, self.y, self.weight)
        object.__setattr__(other, "columns", names)
        return other

    def _named(self, other: Self) -> Self:
        """Other rows of the same columns."""
        object.__setattr__(other, "columns", self.columns)
        return other


@dataclass(frozen=True, eq=False)
class Truth:
    """The law that generated a synthetic data set.

    Attributes:
        mean: E[y | x], (N, D) inputs to (N, 1) in units of y.
        scale: Standard deviation of y given x, likewise.
    """

    mean: Callable[[Tensor], Tensor]
    scale: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Split:
    """One data set, divided.

    Attributes:
        train: To fit on.
        val: For early stopping, temperature and choices.
        test: For reported numbers only.
        ood: Inputs of another kind, where the set has some.
        truth: The generating law, for synthetic sets.
    """

    train: Dataset
    val: Dataset
    test: Dataset
    ood: Dataset | None = None
    truth: Truth | None = None

    def _repr_html_(self) -> str:
        parts = {"train": self.train, "val": self.val, "test": self.test, "ood": self.ood}
        rows = [
            (name, str(len(part)), ", ".join(f"{leaf}: {shape} {dtype}" for leaf, shape, dtype in part._parts))
            for name, part in parts.items()
            if part is not None
        ]
        return table("Split", ("part", "rows", "tensors"), rows)

    @property
    def refit(self) -> Dataset:
        """Training and validation rows together, to fit once more when all choices are made."""
        return self.train.concatenate(self.val)


def split_dataset(dataset: Dataset, *, val_fraction: float = 0.1, test_fraction: float = 0.2, seed: int = 0) -> Split:
    """Divide at random; in classification each part keeps the classes' shares (stratified, by scikit-learn).

    Args:
        dataset: All rows.
        val_fraction: Share of all rows that becomes `val`, rounded to whole rows, at least one.
        test_fraction: Share of all rows that becomes `test`, likewise.
        seed: Of the permutation.

    Raises:
        TypeError: A seed that is not a whole number.
        ValueError: Fractions outside (0, 1) or summing to 1 or more; classes too small to stratify.
    """
    val_fraction, test_fraction = (
        check_fraction(val_fraction, "val_fraction"),
        check_fraction(test_fraction, "test_fraction"),
    )
    if val_fraction + test_fraction >= 1:
        raise ValueError(f"`val_fraction` + `test_fraction` must be below 1; got {val_fraction + test_fraction}.")
    labels = dataset.y.cpu().numpy() if dataset.is_labelled and dataset.y.ndim == 1 else None
    random_state = derive_seed(check_count(seed, "seed", minimum=0)) % 2**32  # all that scikit-learn takes

    def divide(rows: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        strata = None if labels is None else labels[rows]
        num = max(1, round(fraction * len(dataset)))  # a share of a share would be rounded up to a row too many
        try:
            first, second = optional.model_selection.train_test_split(
                rows, test_size=num, random_state=random_state, stratify=strata
            )
        except ValueError as error:
            raise ValueError(
                f"The {len(dataset)} rows cannot be divided into {val_fraction} for validation and {test_fraction} for "
                f"testing: {error} Take other shares, or merge or drop the smallest classes."
            ) from error
        return first, second

    rest, test = divide(np.arange(len(dataset)), test_fraction)
    train, val = divide(rest, val_fraction)
    return Split(train=dataset.rows(train), val=dataset.rows(val), test=dataset.rows(test))


def split_last_tenth(train: Dataset, test: Dataset, *, seed: int = 0) -> Split:
    """Keep a given test set; the last 10 % of a seeded permutation of the training rows become the validation rows.

    Raises:
        TypeError: A seed that is not a whole number.
        ValueError: Fewer than two training rows, a negative seed.
    """
    if len(train) < 2:
        raise ValueError(f"`train` must have at least 2 rows, one of them for validation; got {len(train)}.")
    order = torch.randperm(len(train), generator=generator(check_count(seed, "seed", minimum=0)))
    num_val = max(1, len(train) // 10)
    return Split(train=train.rows(order[:-num_val]), val=train.rows(order[-num_val:]), test=test)


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Units of zero mean and unit variance for inputs and real targets, and the way back.

    Features are columns, or channels of images. A constant feature is only centred. Labels have no unit.

    A feature that is read by its logarithm goes on straight below the least value m that was fitted, with the slope
    there: log m + x / m - 1. Any new value has its place so, 0 and negative ones too.

    Attributes:
        x_loc: Feature means, of logarithms where these are read, shaped to broadcast over x.
        x_scale: Feature standard deviations, likewise.
        y_loc: Target means, (D,), of images by channel; None for labels.
        y_scale: Target standard deviations, likewise; None for labels.
        clip: Standard deviations from its mean that a feature is held within; None holds none.
        columns: Names of the features, where they came as a data frame's; data frames are then read by name.
        x_least: Least fitted values of features that are read by their logarithms, and 0 of others, shaped as `x_loc`;
            None where none is.

    Example:
        >>> data = Dataset([[30_000.0], [50_000.0], [70_000.0]], [10.0, 20.0, 30.0])
        >>> units = Standardizer.fit(data)
        >>> units.inputs([[50_000.0]])
        tensor([[0.]], dtype=torch.float64)
    """

    x_loc: Tensor
    x_scale: Tensor
    y_loc: Tensor | None = None
    y_scale: Tensor | None = None
    clip: float | None = None
    columns: tuple[str, ...] | None = None
    x_least: Tensor | None = None

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        *,
        clip: float | None = None,
        flags: ArrayLike | None = None,
        logarithms: bool = False,
    ) -> Self:
        """Means and standard deviations (ddof 0) of the rows given; fit on training rows only.

        Targets of weight 0, which may be missing, are left out.

        Args:
            dataset: Training rows.
            clip: Features further from their mean than so many standard deviations are moved to that distance, in
                all data that are transformed: a network's outputs grow with its inputs, and a few rows far away can
                decide every mean error.
            flags: Which features are only centred, (D,), boolean: those that are 0 or 1, of which a rare one would be
                far from its mean in its own standard deviations.
            logarithms: Whether features that are positive throughout, and whose skewness is above 1 and nearer to 0 of
                their logarithms, are read by these: ages, counts, amounts.

        Raises:
            TypeError: Not a Dataset; flags that are not booleans.
            ValueError: Another number of flags than features; a spread above about 1e154, whose square overflows, or of
                a target below 1e-150, whose square vanishes; a `clip` that is not positive.

        Warns:
            UserWarning: Features further than 10 standard deviations from their mean, which nothing clips.
        """
        _check_dataset(dataset)
        if clip is not None:
            check_positive(clip, "clip")
        x = without_scale(dataset.x)
        x_least = _least_of_skewed(x) if logarithms else None
        x = x if x_least is None else _with_logarithms(x, x_least)
        x_loc, x_scale = _moments(x)
        if flags is not None:
            x_scale = torch.where(_checked_flags(flags, x_scale), 1.0, x_scale)
        if clip is None:
            _warn_of_far_features(x, x_loc, x_scale, dataset.columns)
        if dataset.is_labelled:
            return cls(x_loc, x_scale, clip=clip, columns=dataset.columns, x_least=x_least)
        y_loc, y_scale = _moments(dataset.y, dataset.weight)
        others = [dim for dim in range(dataset.y.ndim) if dim != 1]
        spread = dataset.y.double().amax(dim=others) - dataset.y.double().amin(dim=others)
        if ((spread > 0) & (spread < SMALLEST_SPREAD)).any():
            raise ValueError(
                "The spread of a target is too small for its square in float64. Give it in a smaller unit."
            )
        return cls(x_loc, x_scale, y_loc.flatten(), y_scale.flatten(), clip, dataset.columns, x_least)

    def transform(self, dataset: Dataset) -> Dataset:
        """The data in standard units, scales of the noise included; columns that have names are read by these.

        Raises:
            TypeError: Not a Dataset.
            ValueError: Another number of features or target columns, columns of other names, or labels where real
                targets were fitted or the reverse.
        """
        _check_dataset(dataset)
        dataset = dataset.in_columns(self.columns)
        x = self._features(without_scale(dataset.x))
        if dataset.is_labelled != (self.y_loc is None):
            raise ValueError("The standardizer was fitted on targets of another kind: labels or real numbers.")
        if self.y_loc is None or self.y_scale is None:
            return Dataset(x, dataset.y, dataset.weight)
        self._check_columns(tuple(dataset.y.shape[1:2]), "y")
        loc, scale = (each.to(dataset.y).view(-1, *[1] * (dataset.y.ndim - 2)) for each in (self.y_loc, self.y_scale))
        y = (dataset.y - loc) / scale
        noise = self._noise(dataset.x.scale) if isinstance(dataset.x, Given) else None
        return Dataset(x, y, dataset.weight, scale=noise)

    def inputs(self, x: Any) -> Any:
        """Inputs alone in standard units, as a posterior that was fitted in them takes new rows.

        Args:
            x: Raw inputs, (N, D) or (N, channels, ...): an array or, read by the names of its columns, a data frame; or
                a `bayesuq.Given` of inputs and the scales of their noise.

        Returns:
            Features, a tensor of the same shape; of a `Given` another one.

        Raises:
            TypeError: Inputs that are not numbers.
            ValueError: Another number of features or dimensions than the fitted data had, columns of other names,
                values that are not finite.
        """
        if isinstance(x, Given):
            return Given(self.inputs(x.x), self._noise(to_floating(x.scale, "scale")))
        return self._features(check_inputs(in_columns(x, self.columns)))

    def _features(self, x: Tensor) -> Tensor:
        if x.ndim != self.x_loc.ndim or x.shape[1] != self.x_loc.shape[1]:
            raise ValueError(
                f"`x` must have {self.x_loc.shape[1]} features in {self.x_loc.ndim} dimensions as the fitted data had; "
                f"got {tuple(x.shape)}."
            )
        x = x if x.is_floating_point() else x.double()  # whole numbers of any size
        x = x if self.x_least is None else _with_logarithms(x, self.x_least.to(x))
        x = (x - self.x_loc.to(x)) / self.x_scale.to(x)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def feature(self, column: int, value: float) -> float:
        """A standard value of one feature of rows (N, D) in its own unit.

        Example:
            >>> units = Standardizer.fit(Dataset([[30_000.0], [50_000.0], [70_000.0]], [10.0, 20.0, 30.0]))
            >>> units.feature(0, 0.0)
            50000.0
        """
        read = float(self.x_loc.flatten()[column] + self.x_scale.flatten()[column] * value)
        least = 0.0 if self.x_least is None else float(self.x_least.flatten()[column])
        if least <= 0:
            return read
        below = read - math.log(least)
        return math.exp(read) if below >= 0 else least * (1 + below)

    def _noise(self, scale: Tensor) -> Tensor:
        """Scales of the noise in standard units, (N, D); of targets without units as they are."""
        if self.y_scale is None:
            return scale
        return (scale if scale.ndim > 1 else scale.unsqueeze(1)).to(self.y_scale) / self.y_scale.to(scale.device)

    def inverse(self, predictive: PredictiveT) -> PredictiveT:
        """The predictive in y's own units; its log density then includes the Jacobian, -log scale of each column.

        Raises:
            TypeError: Not a predictive.
            ValueError: Another number of target columns.
        """
        if not isinstance(predictive, PredictiveDistribution):
            raise TypeError(f"`predictive` must be what `predict` returns; got {type(predictive).__name__}.")
        if self.y_loc is None or self.y_scale is None:
            return predictive
        self._check_columns(tuple(predictive.mean.shape[1:2]), "predictive")
        return predictive.rescale(self.y_loc, self.y_scale)

    def tensors(self) -> dict[str, Tensor]:
        """Its means and standard deviations by name, without those of targets that have none."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to one file, which `Standardizer.load` reads.

        Raises:
            OSError: The folder does not exist or cannot be written.
        """
        write(path, {"kind": FILE_KIND, "clip": self.clip, "columns": self.columns}, self.tensors())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """The one that `save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: A broken file, or one of another kind.
        """
        header, tensors = read(path)
        known = {"x_loc", "x_scale", "y_loc", "y_scale", "x_least"}
        if header.get("kind") != FILE_KIND or not {"x_loc", "x_scale"} <= tensors.keys() <= known:
            raise ValueError(f"{fspath(path)} holds no standardizer.")
        columns = header.get("columns")
        parts: dict[str, Any] = {name: part.to(torch.float64) for name, part in tensors.items()}
        return cls(**parts, clip=header.get("clip"), columns=None if columns is None else tuple(columns))

    def _check_columns(self, columns: tuple[int, ...], name: str) -> None:
        if self.y_loc is not None and columns != tuple(self.y_loc.shape):  # one column would broadcast to many
            raise ValueError(
                f"`{name}` must have {len(self.y_loc)} target columns as the fitted data had; got {columns}."
            )


def _check_dataset(value: object) -> None:
    if not isinstance(value, Dataset):
        raise TypeError(
            f"`dataset` must be a bayesuq.Dataset, of inputs and targets together; got {type(value).__name__}. Take "
            "one part of a Split; of arrays, pass Dataset(x, y); of new inputs alone, call `inputs(x)`."
        )
    require_tensor(without_scale(value.x), "A Standardizer")


def _checked_flags(flags: ArrayLike, like: Tensor) -> Tensor:
    """Booleans by feature, shaped as means are.

    Raises:
        TypeError: Not booleans.
        ValueError: Another number of them than features.
    """
    given = to_tensor(flags, "flags")
    if given.dtype != torch.bool:
        raise TypeError(f"`flags` must be booleans, whether a feature is 0 or 1; got {given.dtype}.")
    if given.numel() != like.numel():
        raise ValueError(f"`flags` must be {like.numel()} booleans, as there are features; got {given.numel()}.")
    return given.reshape(like.shape).to(like.device)


def _check_alike(one: Dataset, other: Dataset) -> None:
    """Raise a ValueError unless the rows of two data sets can stand in one."""
    mine, others = named_leaves(one.x), named_leaves(other.x)
    shapes, other_shapes = ({name: leaf.shape[1:] for name, leaf in leaves.items()} for leaves in (mine, others))
    if shapes != other_shapes or one.y.shape[1:] != other.y.shape[1:]:
        raise ValueError(
            f"Only data of the same shape concatenate; got {described(one.x)} and {described(other.x)}, "
            f"y {tuple(one.y.shape)} and {tuple(other.y.shape)}."
        )
    if one.is_labelled != other.is_labelled:
        raise ValueError("Labels and real targets do not concatenate.")
    for name, leaf in mine.items():
        if leaf.is_floating_point() != others[name].is_floating_point():  # float32 would not hold all whole numbers
            raise ValueError(
                f"Whole-number and real inputs do not concatenate; got `{name}` of {leaf.dtype} and "
                f"{others[name].dtype}. Make both real, as by `x.double()`."
            )


def _with_scale(x: Any, scale: ArrayLike) -> Given:
    """Inputs with the scale of each row's noise.

    Raises:
        ValueError: Inputs that bring scales already.
    """
    if isinstance(x, Given):
        raise ValueError("`x` brings scales already, and `scale` is given too. Pass one of them.")
    return Given(structure(checked(x)), to_floating(scale, "scale"))


def _check_targets(targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        targets = to_floating(targets, "y")
        targets = targets.unsqueeze(-1) if targets.ndim == 1 else targets
        if targets.ndim < 2 or targets[0].numel() == 0:
            raise ValueError(
                f"`y` must have shape (N, D), (N,) or (N, channels, ...) for real targets; got {tuple(targets.shape)}."
            )
        return targets
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets.squeeze(1)  # a column, as of a data frame, which can only be one label or count a row
    return targets.long()


def _filled(y: Tensor, weight: Tensor | None, *, is_tensor: bool) -> Tensor:
    """Targets whose missing entries, of weight 0, hold the median of their column; a copy only where some are missing.

    Raises:
        ValueError: Missing or infinite entries that count.
    """
    if not y.is_floating_point() or all(extreme.isfinite() for extreme in y.aminmax()):
        return y
    missing = ~y.isfinite()
    counts = missing if weight is None else missing & (_per_target(weight, y.ndim) > 0)
    if counts.any():
        rows = counts.flatten(1).any(dim=1)
        where = "y.isfinite()" if is_tensor else "np.isfinite(y)"
        if not y.isinf().any():
            where = "~y.isnan()" if is_tensor else "~np.isnan(y)"
        raise ValueError(
            f"`y` must be finite; {int(rows.sum())} of {len(y)} rows hold NaN or infinite values that count, the first "
            f"is row {int(rows.nonzero()[0])}. Missing targets are entries of weight 0: pass weight={where}."
        )
    columns = y.masked_fill(missing, torch.nan).movedim(1, -1).flatten(0, -2)
    median = columns.nanmedian(dim=0).values.nan_to_num()
    return torch.where(missing, median.view(-1, *[1] * (y.ndim - 2)), y)


def _per_target(weight: Tensor, ndim: int) -> Tensor:
    """Weights with as many dimensions as targets."""
    return weight.reshape(weight.shape + (1,) * (ndim - weight.ndim))


def _check_weight(weight: ArrayLike, y: Tensor) -> Tensor:
    tensor = to_floating(weight, "weight").to(y.device)
    if tensor.ndim > 1 and _without_channel(tensor.shape) == _without_channel(y.shape):
        tensor = tensor.reshape(y.shape)
    if tensor.shape not in (y.shape[:1], y.shape):
        raise ValueError(
            f"`weight` must have shape {tuple(y.shape[:1])}, or {tuple(y.shape)} as `y`; got {tuple(tensor.shape)}."
        )
    check_finite(tensor, "weight")
    if (tensor < 0).any():
        raise ValueError(f"`weight` must be at least 0; got a minimum of {float(tensor.min())}.")
    return tensor


def _weight_or_one(dataset: Dataset, *, per_target: bool) -> Tensor:
    shape = dataset.y.shape if per_target else dataset.y.shape[:1]
    if dataset.weight is None:
        return torch.ones(shape, device=dataset.y.device)
    return _per_target(dataset.weight, len(shape)).expand(shape)


def _without_channel(shape: torch.Size) -> torch.Size:
    """The shape less its second dimension where that is 1, which maps come with or without."""
    return shape[:1] + shape[2:] if shape[1:2] == (1,) else shape


def _warn_of_far_features(x: Tensor, loc: Tensor, scale: Tensor, names: tuple[str, ...] | None) -> None:
    """Tell where a feature is so far from its mean that a few rows decide what a network does."""
    others = [dim for dim in range(x.ndim) if dim != 1]
    reach = torch.maximum(x.amax(dim=others) - loc.flatten(), loc.flatten() - x.amin(dim=others)) / scale.flatten()
    far = int((reach > FAR).sum())
    if far:
        place = int(reach.argmax())
        warnings.warn(
            f"{far} of {len(reach)} features reach further than {FAR} standard deviations from their mean, feature "
            f"{place if names is None else repr(names[place])} as far as {float(reach.max()):.3g}. A network's outputs "
            "grow with them, so that a few rows can decide every mean error. Pass `clip=5`, as in "
            "`Standardizer.fit(data, clip=5)`, or `logarithms=True`.",
            UserWarning,
            stacklevel=3,
        )


def _moments(values: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Means and standard deviations by column or channel, of the entries that count."""
    others = [dim for dim in range(values.ndim) if dim != 1]
    exact = values.double()
    if weight is not None and (weight == 0).any():
        counts = (_per_target(weight, values.ndim) > 0).expand_as(exact)
        number = counts.sum(dim=others, keepdim=True).clamp(min=1)
        loc = (exact * counts).sum(dim=others, keepdim=True) / number
        scale = ((exact - loc).square() * counts).sum(dim=others, keepdim=True).div(number).sqrt()
    else:
        loc = exact.mean(dim=others, keepdim=True)
        scale = exact.std(dim=others, correction=0, keepdim=True)
    if not scale.isfinite().all():
        raise ValueError("The spread of a feature or target overflows float64. Give it in a larger unit.")
    # Rounding leaves a constant feature of size m a spread of about 1e-16 m: dividing by that would blow up noise.
    constant = scale <= 1e-12 * loc.abs().clamp(min=1e-300)
    return loc, torch.where(constant | (scale == 0), 1.0, scale)


def _least_of_skewed(x: Tensor) -> Tensor | None:
    """Least values of positive features whose logarithms are nearer to symmetry, shaped as means; 0 of others.

    None where there is no such feature.
    """
    others = [dim for dim in range(x.ndim) if dim != 1]
    exact = x.double()
    least = exact.amin(dim=others, keepdim=True)
    positive = torch.where(least > 0, exact, 1.0)
    skew, skew_of_logarithms = _skewness(positive), _skewness(positive.log())
    chosen = (least > 0) & (skew > MOST_SKEWED) & (skew_of_logarithms.abs() < skew)
    return torch.where(chosen, least, 0.0) if bool(chosen.any()) else None


def _skewness(values: Tensor) -> Tensor:
    """Third moment of each feature in standard units; 0 of a constant one."""
    others = [dim for dim in range(values.ndim) if dim != 1]
    loc, scale = _moments(values)
    return ((values - loc) / scale).pow(3).mean(dim=others, keepdim=True)


def _with_logarithms(x: Tensor, least: Tensor) -> Tensor:
    """Features with a positive least value by their logarithms, which go on straight below it."""
    chosen = least > 0
    least = torch.where(chosen, least, 1.0)
    above = x.maximum(least)
    return torch.where(chosen, above.log() + (x - above) / least, x)


def rounding_scale(y: Tensor) -> float:
    """The deviation of what rounding took from targets (N, D), in units of y, in the column where it is largest.

    A column of which more than half of the values repeat another one is taken as rounded to its smallest difference:
    that over the root of 12. 0 where none is. A network that tells the noise of each row could else meet
    some targets exactly, with a density without bound.
    """
    scales = [0.0]
    for column in y.double().unbind(dim=1):
        values = torch.unique(column)
        if 1 < len(values) < MOST_DISTINCT * len(column):
            scales.append(float(values.diff().min()) / math.sqrt(12))
    return max(scales)
