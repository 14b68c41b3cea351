"""Folders of NIfTI files and saved folds of nnU-Net, read as they lie; loaders of dictionaries as others have them.

The reader of the files is a stand-in with nibabel's names, which is an extra; by hand it was nibabel 5.4.2's own.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.bridges.nnunet import SavedFolds
from bayesuq.cli.problem import load_data
from bayesuq.cli.settings import DataOptions, UsageError
from bayesuq.data import Batch
from bayesuq.datasets.nifti import NiftiFolder
from bayesuq.inference import map_estimate
from bayesuq.loaders import Loader
from bayesuq.models import BayesianNetwork, likelihoods, priors
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.inference.examples import NO_MODE, built


def load(path: Path) -> Any:
    """As nibabel's: the array where it lies, and a header with the spacing."""
    with path.open("rb") as file:
        return SimpleNamespace(dataobj=np.load(file), header=SimpleNamespace(get_zooms=lambda: (5.0, 1.0, 1.5)))


def written(root: Path, arrays: dict[str, np.ndarray]) -> Path:
    for name, array in arrays.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("wb") as file:
            np.save(file, array)
    return root


@pytest.fixture(autouse=True)
def _reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", SimpleNamespace(load=load))


def volumes(number: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    names = [f"case_{n}.nii.gz" for n in range(number)]
    return {f"images/{name}": draw.random((3, 4, 5)) for name in names} | {
        f"masks/{name}": draw.integers(0, 2, (3, 4, 5)).astype(float) for name in names
    }


def test_images_and_masks_of_a_case_belong_together(tmp_path: Path) -> None:
    arrays = volumes(3)
    folder = NiftiFolder.of(written(tmp_path, arrays))
    for volume in folder:
        np.testing.assert_allclose(volume.x[0], arrays[f"images/{volume.name}.nii.gz"], rtol=1e-6)
        np.testing.assert_array_equal(volume.y, arrays[f"masks/{volume.name}.nii.gz"])
        assert volume.spacing == (5.0, 1.0, 1.5)
    data = folder.dataset()
    assert (data.x.shape, data.y.shape, data.y.dtype) == ((3, 1, 3, 4, 5), (3, 3, 4, 5), torch.int64)


def test_channels_of_nnunet_are_stacked_in_order(tmp_path: Path) -> None:
    arrays = {f"imagesTr/a_1_000{c}.nii.gz": np.full((2, 2, 2), float(c)) for c in (1, 0)}
    (volume,) = NiftiFolder.of(written(tmp_path, arrays | {"labelsTr/a_1.nii.gz": np.ones((2, 2, 2))}))
    assert volume.name == "a_1"
    assert volume.x[:, 0, 0, 0].tolist() == [0.0, 1.0]


def test_a_number_of_four_digits_is_the_cases_where_the_mask_has_it_too(tmp_path: Path) -> None:
    """`patient_0001` was the channel of a case `patient`, which had no mask."""
    arrays = {f"{part}/patient_000{n}.nii.gz": np.full((2, 2), n) for part in ("images", "masks") for n in (1, 2)}
    cases = {volume.name: volume.x.flatten().tolist() for volume in NiftiFolder.of(written(tmp_path, arrays))}
    assert cases == {"patient_0001": [1.0] * 4, "patient_0002": [2.0] * 4}


def test_the_command_line_divides_a_folder_as_it_does_rows(tmp_path: Path) -> None:
    split = load_data(DataOptions(data=str(written(tmp_path, volumes(10))))).split
    assert (len(split.train), len(split.val), len(split.test)) == (7, 1, 2)
    assert split.train.y.ndim == 4


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images/a.nii": np.ones((2, 2))}, "folders of images and masks"),
        ({"images/a.nii": np.ones((2, 2)), "masks/b.nii": np.ones((2, 2))}, "has no mask"),
        ({"images/a.nii": np.ones((2, 2)), "masks/a.nii": np.ones((2, 3))}, "has .2, 3. voxels"),
        ({"images/a.nii": np.ones((2, 2)), "masks/a.nii": np.full((2, 2), 0.5)}, "must hold whole numbers"),
        (
            {f"{part}/{n}.nii": np.ones((2, n + 2)) for part in ("images", "masks") for n in range(2)},
            "Cases of one size",
        ),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        NiftiFolder.of(written(tmp_path, arrays)).dataset()
    if "images" in message or "size" in message:
        return
    with pytest.raises(UsageError, match=message):
        load_data(DataOptions(data=str(tmp_path)))


@pytest.mark.parametrize(("name", "dtype"), [("probabilities", np.float32), ("softmax", np.float16)])
def test_five_folds_are_an_ensemble(tmp_path: Path, name: str, dtype: Any) -> None:
    probs = (
        torch.randn(5, 2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=2).numpy().astype(dtype)
    )
    folders = [tmp_path / f"fold_{fold}" for fold in range(5)]
    for fold, folder in enumerate(folders):
        folder.mkdir()
        for case in range(2):
            np.savez_compressed(folder / f"case_{case}.npz", **{name: probs[fold, case]})
    folds = SavedFolds(folders)
    assert folds.cases == ("case_0", "case_1")
    found = folds.predictive("case_1", keep_samples=True)
    expected = CategoricalPredictive.from_probs(torch.from_numpy(probs)[:, 1:])
    for part in ("mean", "total", "epistemic"):
        torch.testing.assert_close(getattr(found, part), getattr(expected, part))
    assert found.num_samples == 5
    regions = folds.predictive("case_0", kind="bernoulli")
    torch.testing.assert_close(regions.mean[0, 1], torch.from_numpy(probs[:, 0]).double().mean(dim=0))
    (folders[3] / "case_1.npz").unlink()
    with pytest.raises(ValueError, match="'case_1' is in"):
        SavedFolds(folders)


class Described(Tensor):
    """A tensor that carries what others know of it, as MONAI's MetaTensor does."""


@pytest.mark.filterwarnings(NO_MODE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dictionaries_of_tensors_with_metadata_give_plain_tensors() -> None:
    items = [
        {"image": torch.randn(1, 5, 4, 3).as_subclass(Described), "label": torch.ones(1, 5, 4, 3), "path": "a.nii"}
        for _ in range(4)
    ]
    loader = Loader(DataLoader(items, batch_size=2), batch=lambda item: Batch(x=item["image"], y=item["label"].long()))
    net = built(lambda: nn.Conv3d(1, 2, 3, padding=1))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    posterior = map_estimate.fit(model, loader, num_epochs=1, seed=0)
    for x in (items[0]["image"][None], loader):
        predictive = posterior.predict(x)
        assert type(predictive.mean) is type(predictive.total) is type(predictive.votes) is Tensor
    assert type(posterior.predict(items[0]["image"][None], window=3).mean) is Tensor


@pytest.mark.filterwarnings(NO_MODE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_subjects_of_nested_dictionaries_are_read_by_a_function() -> None:
    """As TorchIO collates its subjects: data, affine and path of each image; the fit is that of plain pairs."""
    x, y = torch.randn(4, 1, 5, 4, 3), torch.randint(2, (4, 1, 5, 4, 3))

    def image(values: Tensor, name: str) -> dict[str, object]:
        return {"data": values, "affine": torch.eye(4, dtype=torch.float64), "path": name, "stem": name, "type": name}

    subjects = [{"t1": image(x[n], "t1"), "label": image(y[n].float(), "label"), "age": 40 + n} for n in range(4)]
    nested = Loader(
        DataLoader(subjects, batch_size=2),
        batch=lambda item: Batch(x=item["t1"]["data"], y=item["label"]["data"][:, 0].long()),
    )
    plain = DataLoader(TensorDataset(x, y[:, 0]), batch_size=2)
    net = built(lambda: nn.Conv3d(1, 2, 3, padding=1))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    fits = [map_estimate.fit(model, loader, num_epochs=2, seed=0) for loader in (nested, plain)]
    assert torch.equal(fits[0].values, fits[1].values)
    assert torch.equal(fits[0].predict(nested, window=3).mean, fits[1].predict(x, window=3).mean)
