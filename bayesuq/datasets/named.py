"""Named data sets, each as one `Split`: embedded in scikit-learn, drawn from a known law, or read from files.

| name | inputs, targets | parts |
|---|---|---|
| `digits` | scikit-learn's 1,797 digits, (N, 64) in [0, 1]; labels 0 to 9 | 70/10/20 %, stratified |
| `digits-0to8` | the same without nines, labels 0 to 8 | likewise; `.ood` holds all 180 nines |
| `shapes` | drawn, (N, 3, 48, 48) in [0, 1]; labels (N, 48, 48), 0 to 2 | 200/40/60; `.ood` with an object 3 |
| `toy/linear` | x ~ U(-2, 2), y = 1 + 2 x + N(0, 0.5²) | 100/25/1,000 |
| `toy/sine-gap` | x ~ U([-3, -1] and [1, 3]), y = sin(2 x) + N(0, 0.1²) | 200/50/1,000; `.ood` in the gap |
| `toy/heteroscedastic` | x ~ U(-3, 3), y = 2 sin(x) + N(0, exp(x - 3)): the log variance is linear | 400/100/1,000 |
| `toy/cubic` | x ~ U(-4, 4), y = x³ + N(0, 9) | 20/5/1,000; `.ood` where 4 < abs(x) < 6 |
| `mnist`, `fashion_mnist` | (N, 1, 28, 28) in [0, 1]; labels 0 to 9 | `.ood`: the other's test set, if it is there |
| `uci/<name>` | (N, D), (N, 1) float64 in raw units | published splits, chosen by `split=k` |
| `camvid` | (N, 3, 120, 160) in [0, 1]; labels (N, 120, 160), 0 to 10, and 11 = void | published |
| `membrane` | (N, 1, 256, 256) in [0, 1]; labels (N, 256, 256), 1 = membrane | sections 0-19, 20-24, 25-29 |
| `co2` | decimal years (N, 1), ppm (N, 1), float64, monthly, Mauna Loa | in time; the last ten years are `.test` |

Images are float32, toy sets too. From `mnist` on, sets are .npz files in one folder, looked up at each call: the one
that the environment variable BAYESUQ_DATA names, or else the user's cache folder. `bayesuq data get NAME` fetches many
of them into it. Nothing is unpickled, and nothing is kept in memory.

References:
    `toy/cubic`, and the protocol of `uci/<name>`: Hernandez-Lobato & Adams (2015), "Probabilistic Backpropagation"; the
    splits themselves: Gal & Ghahramani (2016), "Dropout as a Bayesian Approximation".
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from bayesuq import optional
from bayesuq.arrays import check_count
from bayesuq.data import Dataset, Split, Truth, split_dataset, split_last_tenth
from bayesuq.datasets import shapes
from bayesuq.datasets.archive import pixels, read_arrays, real_numbers, whole_numbers
from bayesuq.randomness import generator

FOLDER = "BAYESUQ_DATA"
PUBLISHED = re.compile(r"uci/[A-Za-z0-9][A-Za-z0-9_.-]*")  # one file name: no separator, so no way out of the folder
NUM_TOY_TEST = 1000
NUM_TOY_OOD = 500
NUM_IMAGE_VAL = 5000
NUM_CO2_TEST = 120  # months
IGNORED = {"camvid": 11}  # labels of void pixels: the likelihood's and the measures' `ignore_index`
WITHOUT_BACKGROUND = {"camvid"}  # whose class 0 is one as the others
CLASS_NAMES: Mapping[str, Sequence[str]] = {  # of pixels
    "camvid": (
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    "membrane": ("interior", "membrane"),
    "shapes": shapes.CLASS_NAMES[: shapes.UNFAMILIAR],
}

Regions = tuple[tuple[float, float], ...]


def load(name: str, *, split: int | None = None, seed: int = 0) -> Split:
    """The data set of that name, divided; read anew at each call.

    Args:
        name: One of `available()`; the module's docstring says what each holds.
        split: Which published split of a `uci/` set, counted from 0; None is the first. Other sets have none.
        seed: Of the division of `digits`, of the draws of `shapes` and of a toy set, and of the validation rows of a
            `uci/` set; the other sets are divided in one way only.

    Returns:
        Training, validation and test data; `.ood` and `.truth` where the set has them. The labels of `.ood` are of its
        own classes. The void label 11 of `camvid` stays in y: it is the likelihood's `ignore_index`.

    Raises:
        TypeError: A name, split or seed of another type.
        ValueError: No such set here, no such split, or a file that does not have the form of its set.

    Example:
        >>> data = load("digits")
        >>> data.train.x.shape, len(data.val), len(data.test)
        (torch.Size([1258, 64]), 180, 359)
    """
    if not isinstance(name, str):
        raise TypeError(f"`name` must be a string such as 'digits'; got {name!r} of type {type(name).__name__}.")
    seed = check_count(seed, "seed", minimum=0)
    if split is not None:
        split = check_count(split, "split", minimum=0)
        if name in _BUILT_IN or name in _FILES:
            raise ValueError(f"`split` must be None for {name!r}, which has one division only; got {split}.")
    if name in _BUILT_IN:
        return _BUILT_IN[name](seed)
    path = _find(name)
    if name in _FILES:
        return _FILES[name].read(path)
    return _read_published(path, split or 0, seed)


def available() -> tuple[str, ...]:
    """The names that `load` takes right now: built in, and what `folder()` holds.

    Example:
        >>> available()[:2]
        ('digits', 'digits-0to8')
    """
    place = folder()
    files = [name for name, file in _FILES.items() if (place / file.path).is_file()]
    published = [f"uci/{path.stem}" for path in sorted(place.glob("uci/*.npz")) if path.is_file()]
    return (*_BUILT_IN, *files, *filter(PUBLISHED.fullmatch, published))


def num_splits(name: str) -> int:
    """How many published splits a set has for `load(name, split=...)`; 1 for those with one division only.

    Raises:
        ValueError: No such set here, or a file that does not have the form of its set.

    Example:
        >>> num_splits("digits")
        1
    """
    if name in _BUILT_IN or name in _FILES:
        return 1
    with read_arrays(_find(name), {"train_index": whole_numbers(2)}) as arrays:
        return len(arrays["train_index"])


def folder() -> Path:
    """Where files are looked for right now: the folder that BAYESUQ_DATA names, or else the user's cache folder."""
    value = os.environ.get(FOLDER)
    return Path(value).expanduser() if value else user_cache_path("bayesuq", appauthor=False)


def relative_path(name: str) -> str | None:
    """Where in the folder the set of that name would lie; None where it could not lie there.

    Example:
        >>> relative_path("uci/boston")
        'uci/boston.npz'
    """
    if name in _FILES:
        return _FILES[name].path
    return f"{name}.npz" if PUBLISHED.fullmatch(name) else None


def _find(name: str) -> Path:
    """The file of that set, or a ValueError that says what there is and what is missing."""
    place, relative = folder(), relative_path(name)
    if relative is not None and (place / relative).is_file():
        return place / relative
    known = available()
    near = difflib.get_close_matches(name.lower(), (*known, *_FILES), n=1)
    message = f"`name` must be one of {', '.join(known)}; got {name!r}."
    if near and near[0] != name:
        message += f" Did you mean {near[0]!r}?"
    wanted = relative or (relative_path(near[0]) if near else None)
    if wanted is not None and not (place / wanted).is_file():
        state = "is" if os.environ.get(FOLDER) else "is not set: that is"
        message += (
            f" {wanted} is read from the folder that the environment variable {FOLDER} names; it {state} {place}, and "
            f"{wanted} is not there. `bayesuq data list` tells what can be fetched."
        )
    raise ValueError(message)


def _split_digits(seed: int, *, num_known: int) -> Split:
    """The digits below `num_known`, divided; the others, where there are any, are out of distribution."""
    x, y = optional.sklearn_datasets.load_digits(return_X_y=True)
    whole = Dataset((x / 16).astype(np.float32), y)  # grey levels are 0 to 16: exact in float32
    known = whole.y < num_known
    split = split_dataset(whole.rows(known), val_fraction=0.1, test_fraction=0.2, seed=seed)
    return split if known.all() else replace(split, ood=whole.rows(~known))


@dataclass(frozen=True)
class _Law:
    """One-dimensional regression with inputs uniform over `regions`; `outside` has no training inputs."""

    truth: Truth
    regions: Regions
    num_train: int
    outside: Regions = ()

    def draw(self, seed: int) -> Split:
        """Training and validation inputs at random, test and out-of-distribution inputs evenly spaced in order."""
        train = torch.rand(self.num_train, generator=generator(seed, 0), dtype=torch.float64)
        val = torch.rand(self.num_train // 4, generator=generator(seed, 1), dtype=torch.float64)
        return Split(
            train=self._observe(train, self.regions, generator(seed, 2)),
            val=self._observe(val, self.regions, generator(seed, 3)),
            test=self._observe(_midpoints(NUM_TOY_TEST), self.regions, generator(seed, 4)),
            ood=self._observe(_midpoints(NUM_TOY_OOD), self.outside, generator(seed, 5)) if self.outside else None,
            truth=self.truth,
        )

    def _observe(self, fractions: Tensor, regions: Regions, noise: torch.Generator) -> Dataset:
        x = _place(fractions, regions).float()
        return Dataset(x, self.truth.mean(x) + self.truth.scale(x) * torch.randn(x.shape, generator=noise))


def _midpoints(num: int) -> Tensor:
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


def _place(fractions: Tensor, regions: Regions) -> Tensor:
    """The points, (N, 1), that lie these fractions of the way through the regions laid end to end."""
    x = regions[0][0] + fractions * sum(end - start for start, end in regions)
    for (_, end), (start, _) in pairwise(regions):
        x = torch.where(x > end, x + (start - end), x)
    return x.unsqueeze(-1)


_BUILT_IN: dict[str, Callable[[int], Split]] = {
    "digits": partial(_split_digits, num_known=10),
    "digits-0to8": partial(_split_digits, num_known=9),
    "shapes": shapes.split,
    "toy/linear": _Law(
        Truth(mean=lambda x: 1 + 2 * x, scale=lambda x: torch.full_like(x, 0.5)),
        regions=((-2, 2),),
        num_train=100,
    ).draw,
    "toy/sine-gap": _Law(
        Truth(mean=lambda x: torch.sin(2 * x), scale=lambda x: torch.full_like(x, 0.1)),
        regions=((-3, -1), (1, 3)),
        num_train=200,
        outside=((-1, 1),),
    ).draw,
    "toy/heteroscedastic": _Law(
        Truth(mean=lambda x: 2 * torch.sin(x), scale=lambda x: torch.exp((x - 3) / 2)),
        regions=((-3, 3),),
        num_train=400,
    ).draw,
    "toy/cubic": _Law(
        Truth(mean=lambda x: x**3, scale=lambda x: torch.full_like(x, 3.0)),
        regions=((-4, 4),),
        num_train=20,
        outside=((-6, -4), (4, 6)),
    ).draw,
}


def _read_images(path: Path, *, other: str) -> Split:
    form = {"x_train": pixels(3), "y_train": whole_numbers(1), "x_test": pixels(3), "y_test": whole_numbers(1)}
    with read_arrays(path, form) as arrays:
        x, y = arrays["x_train"].unsqueeze(1), arrays["y_train"]
        train = _image_dataset(x[:-NUM_IMAGE_VAL], y[:-NUM_IMAGE_VAL])
        val = _image_dataset(x[-NUM_IMAGE_VAL:], y[-NUM_IMAGE_VAL:])
        test = _image_dataset(arrays["x_test"].unsqueeze(1), arrays["y_test"])
    ood = None
    if path.with_name(other).is_file():
        with read_arrays(path.with_name(other), {"x_test": pixels(3), "y_test": whole_numbers(1)}) as arrays:
            ood = _image_dataset(arrays["x_test"].unsqueeze(1), arrays["y_test"])
    return Split(train=train, val=val, test=test, ood=ood)


def _read_camvid(path: Path) -> Split:
    def part(name: str) -> Dataset:
        with read_arrays(path, {f"x_{name}": pixels(4), f"y_{name}": whole_numbers(3)}) as arrays:
            return _image_dataset(arrays[f"x_{name}"].permute(0, 3, 1, 2), arrays[f"y_{name}"])

    return Split(train=part("train"), val=part("val"), test=part("test"))


def _read_membrane(path: Path) -> Split:
    index = dict.fromkeys(("train_index", "val_index", "test_index"), whole_numbers(1))
    with read_arrays(path, {"x": pixels(3), "y": whole_numbers(3)} | index) as arrays:
        whole = _image_dataset(arrays["x"].unsqueeze(1), arrays["y"])
        train, val, test = _parts(whole, {name: arrays[name] for name in index})
    return Split(train=train, val=val, test=test)


def _read_co2(path: Path) -> Split:
    """In time throughout: the test extrapolates, and months drawn at random would validate interpolation instead."""
    with read_arrays(path, {"decimal_year": real_numbers(1), "co2": real_numbers(1)}) as arrays:
        years = arrays["decimal_year"].double()
        num_past = len(years) - NUM_CO2_TEST
        num_train = num_past - max(1, num_past // 10)
        if num_train < 1 or (years.diff() <= 0).any():
            raise ValueError(f"`decimal_year` must increase, over more than {NUM_CO2_TEST + 1} months.")
        whole = Dataset(years.unsqueeze(1), arrays["co2"].double())
    train, val, test = (whole.rows(rows) for rows in torch.arange(len(whole)).tensor_split((num_train, num_past)))
    return Split(train=train, val=val, test=test)


def _read_published(path: Path, split: int, seed: int) -> Split:
    index = dict.fromkeys(("train_index", "test_index"), whole_numbers(2))
    with read_arrays(path, {"x": real_numbers(2), "y": real_numbers(1, 2)} | index) as arrays:
        num_splits = len(arrays["train_index"])
        if len(arrays["test_index"]) != num_splits:
            raise ValueError(
                f"`test_index` must have a row for each of the {num_splits} splits of `train_index`; got "
                f"{len(arrays['test_index'])}."
            )
        if split >= num_splits:
            raise ValueError(f"`split` must be below {num_splits}, the number of published splits; got {split}.")
        whole = Dataset(arrays["x"].double(), arrays["y"].double())  # whole-number targets are real targets here
        train, test = _parts(whole, {name: arrays[name][split] for name in index})
        return split_last_tenth(train, test, seed=seed)


@dataclass(frozen=True)
class _File:
    """Where in the folder a set lies, and how it is read."""

    path: str
    read: Callable[[Path], Split]


_FILES: dict[str, _File] = {
    "mnist": _File("images/mnist.npz", partial(_read_images, other="fashion_mnist.npz")),
    "fashion_mnist": _File("images/fashion_mnist.npz", partial(_read_images, other="mnist.npz")),
    "camvid": _File("segmentation/camvid_120x160.npz", _read_camvid),
    "membrane": _File("segmentation/membrane_256.npz", _read_membrane),
    "co2": _File("series/co2.npz", _read_co2),
}


def _image_dataset(images: Tensor, labels: Tensor) -> Dataset:
    """Images (N, channels, H, W) in [0, 1] of bytes in the same layout, with labels (N,) or (N, H, W)."""
    if labels.ndim > 1 and labels.shape[1:] != images.shape[2:]:
        raise ValueError(f"Labels must have a pixel for each of {tuple(images.shape)}; got {tuple(labels.shape)}.")
    scaled = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)  # in place: one float copy
    return Dataset(scaled, labels)


def _parts(whole: Dataset, index: dict[str, Tensor]) -> list[Dataset]:
    """The rows that each array names, none of them twice: a test row seen in training would flatter every number."""
    for name, rows in index.items():
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(whole)):
            raise ValueError(
                f"`{name}` must hold rows from 0 to {len(whole) - 1}; got {int(rows.min())} to {int(rows.max())}."
            )
    together = torch.cat([rows.long() for rows in index.values()])
    if len(together.unique()) != len(together):
        raise ValueError(f"{' and '.join(f'`{name}`' for name in index)} must name no row twice.")
    return [whole.rows(rows) for rows in index.values()]
