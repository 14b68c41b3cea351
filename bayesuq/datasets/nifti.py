"""Folders of volumes in NIfTI files, as medical images lie on disk: one file an image, one a mask.

    images/case_01.nii.gz and masks/case_01.nii.gz, or nnU-Net's imagesTr/case_01_0000.nii.gz and
    labelsTr/case_01.nii.gz

The axes are those of the file, whatever its orientation; nothing is resampled. nibabel reads them
(`pip install bayesuq[nifti]`).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayesuq import optional
from bayesuq.data import Dataset

__all__ = ["NiftiFolder", "Volume", "is_nifti_folder"]
__dir__ = __all__.copy

ENDINGS = (".nii.gz", ".nii")
PAIRS = (("images", "masks"), ("images", "labels"), ("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"))
CHANNEL = "_0000"  # behind the name of a case in nnU-Net's folders, counted up by channels


@dataclass(frozen=True, eq=False)
class Volume:
    """One case.

    Attributes:
        name: Of the case.
        x: Intensities, (channels, ...), float32.
        y: Labels, (...), int64.
        spacing: Of voxels along each axis, in the file's unit, as a rule millimetres.
    """

    name: str
    x: Tensor
    y: Tensor
    spacing: tuple[float, ...]


@dataclass(frozen=True)
class NiftiFolder:
    """Cases with an image and a mask each, read one by one when they are asked for.

    Attributes:
        cases: Files of the channels and of the mask, by name, in the order of names.
    """

    cases: dict[str, tuple[tuple[Path, ...], Path]]

    @classmethod
    def of(cls, folder: "str | PathLike[str]") -> "NiftiFolder":
        """Find the cases.

        Raises:
            FileNotFoundError: No pair of folders of images and masks, or no case in them.
            ValueError: An image without a mask.
        """
        root = Path(folder)
        pair = next((pair for pair in PAIRS if all((root / name).is_dir() for name in pair)), None)
        if pair is None:
            names = " or ".join(f"{one}/ and {other}/" for one, other in PAIRS)
            raise FileNotFoundError(f"{root} must hold folders of images and masks: {names}.")
        masks = _by_case(root / pair[1])
        images = _by_case(root / pair[0], masks)
        cases: dict[str, tuple[tuple[Path, ...], Path]] = {}
        for name, files in images.items():
            if name not in masks:
                raise ValueError(f"The image {files[0]} has no mask {root / pair[1] / name}{ENDINGS[0]}.")
            cases[name] = tuple(files), masks[name][0]
        if not cases:
            raise FileNotFoundError(f"{root / pair[0]} holds no image, a file that ends in {' or '.join(ENDINGS)}.")
        return cls(cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Volume]:
        """Read one case after another.

        Raises:
            ImportError: nibabel cannot be imported.
            ValueError: A mask of another size than its image, or with values that are no whole numbers.
        """
        for name, (channels, mask) in self.cases.items():
            parts = [optional.nibabel.load(path) for path in channels]
            x = np.stack([np.asarray(part.dataobj, dtype=np.float32) for part in parts])
            y = np.asarray(optional.nibabel.load(mask).dataobj)
            if y.shape != x.shape[1:]:
                raise ValueError(f"The mask of {name} has {y.shape} voxels, its image {x.shape[1:]}.")
            if not (y == np.round(y)).all():
                raise ValueError(f"The mask of {name} must hold whole numbers.")
            spacing = tuple(float(size) for size in parts[0].header.get_zooms()[: y.ndim])
            yield Volume(name, torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)), spacing)

    def dataset(self) -> Dataset:
        """All cases in memory, which must be of one size.

        Raises:
            ImportError: See `__iter__`.
            ValueError: See `__iter__`; cases of several sizes, which go one by one.
        """
        volumes = list(self)
        sizes = sorted({tuple(volume.x.shape) for volume in volumes})
        if len(sizes) > 1:
            raise ValueError(
                f"Cases of one size make a data set; got {len(sizes)}, such as {sizes[0]} and {sizes[1]}. Predict them "
                "one by one: `evaluate_segmentation((posterior.predict(v.x[None]), v.y[None]) for v in folder)`."
            )
        return Dataset(torch.stack([v.x for v in volumes]), torch.stack([v.y for v in volumes]))


def is_nifti_folder(path: "str | PathLike[str]") -> bool:
    """Whether a path is a folder of images and masks."""
    return any(all((Path(path) / name).is_dir() for name in pair) for pair in PAIRS)


def _by_case(folder: Path, masks: Collection[str] | None = None) -> dict[str, list[Path]]:
    """Files by the name of their case; of images, where the names of masks are known, channels in order.

    A number behind the name is a channel's, unless a mask has it, too: then it is the case's, as of `patient_0001`.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending is not None:
            name = path.name.removesuffix(ending)
            case, mark, channel = name.rpartition("_")
            is_channel = mark and len(channel) == len(CHANNEL) - 1 and channel.isdigit()
            is_cases = masks is None or name in masks
            found.setdefault(case if is_channel and not is_cases else name, []).append(path)
    return found
