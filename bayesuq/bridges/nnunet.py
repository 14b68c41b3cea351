"""Probabilities that nnU-Net has saved: five folds are an ensemble of five networks.

`nnUNetv2_predict -f 0 --save_probabilities` writes a file a case, `case.npz`, whose array `probabilities` (version 1:
`softmax`) is (classes, ...). Predict each fold into a folder of its own; the folds' probabilities are the draws.

    from bayesuq.bridges import nnunet
    folds = nnunet.SavedFolds(["fold_0", "fold_1", "fold_2", "fold_3", "fold_4"])
    result = evaluate_segmentation((folds.predictive(case), truth[case]) for case in folds.cases)

Reference:
    Isensee et al. 2021, nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bayesuq.predictive.categorical import CategoricalPredictive

__all__ = ["SavedFolds"]
__dir__ = __all__.copy

ARRAYS = ("probabilities", "softmax")  # of version 2, and of version 1


@dataclass(frozen=True, init=False)
class SavedFolds:
    """Folders of saved probabilities, one a fold, read case by case.

    Attributes:
        folders: Of the folds.
        cases: Names that all folds have, in order.
    """

    folders: tuple[Path, ...]
    cases: tuple[str, ...]

    def __init__(self, folders: Sequence["str | PathLike[str]"]) -> None:
        """Find the cases.

        Raises:
            ValueError: No folder, or cases that not all folds have.
            FileNotFoundError: A folder without saved probabilities.
        """
        paths = tuple(map(Path, [folders] if isinstance(folders, str | PathLike) else folders))
        if not paths:
            raise ValueError("`folders` must name at least one, of the probabilities of a fold.")
        found = [{path.name.removesuffix(".npz") for path in folder.glob("*.npz")} for folder in paths]
        for folder, names in zip(paths, found, strict=True):
            if not names:
                raise FileNotFoundError(f"{folder} holds no .npz; predict with `--save_probabilities`.")
            if names != found[0]:
                other = sorted(names ^ found[0])[0]
                raise ValueError(f"All folds must have the same cases; {other!r} is in {paths[0]} or {folder} alone.")
        object.__setattr__(self, "folders", paths)
        object.__setattr__(self, "cases", tuple(sorted(found[0])))

    def predictive(
        self, case: str, *, kind: Literal["categorical", "bernoulli"] = "categorical", keep_samples: bool = False
    ) -> CategoricalPredictive:
        """Of one case, (1, C, ...): a draw a fold.

        Args:
            case: One of the cases.
            kind: "bernoulli" of a network trained on regions, whose outputs are sigmoids: (1, 2, K, ...).
            keep_samples: Whether the folds stay available one by one.

        Raises:
            KeyError: No such case.
            ValueError: A file without an array that nnU-Net writes; folds that do not fit each other.
        """
        if case not in self.cases:
            raise KeyError(f"There is no case {case!r}; there are {', '.join(self.cases[:5])} and others.")
        parts = [_read(folder / f"{case}.npz") for folder in self.folders]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"The folds of {case} differ in shape: {sorted({tuple(part.shape) for part in parts})}.")
        draws = torch.stack(parts).unsqueeze(1)
        return CategoricalPredictive.from_probs(draws, kind=kind, keep_samples=keep_samples)


def _read(path: Path) -> Tensor:
    """Probabilities (C, ...) as they were stored."""
    with np.load(path, allow_pickle=False) as arrays:
        name = next((name for name in ARRAYS if name in arrays.files), None)
        if name is None:
            raise ValueError(f"{path} has none of the arrays {', '.join(ARRAYS)}; it has {', '.join(arrays.files)}.")
        return torch.from_numpy(arrays[name])
