"""A checkpoint goes on with its own fit, and with no other one, however much alike the two are."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset
from torch.utils.data import Dataset as Rows

from bayesuq.inference.training import held_arrays
from bayesuq.inference.training.first_batches import UNREPEATABLE, loader_digest
from bayesuq.inference.training.held_arrays import held_digests
from bayesuq.inference.training.identity import Identity, digest, fill, is_elaboration, pieces
from bayesuq.loaders import Loader
from tests.inference.examples import SHORT_FIT, measured
from tests.posterior_contract import tensors_of
from tests.zoo.other_fits import PAIRS, Read, mode, read

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:The hyperparameters had not converged",
        "ignore:.*diverged",
        "ignore:The held-out labels do not say",
        "ignore:SGD has left",
        "ignore:.*greatest length",
        *SHORT_FIT,
    ),
]


@pytest.fixture(autouse=True)
def _fast_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def tensors(fit: Callable[..., Any], path: Path) -> list[torch.Tensor]:
    return tensors_of(fit(checkpoint=path))


@pytest.mark.parametrize("name", PAIRS)
def test_another_fit_is_refused_by_name_and_the_same_goes_on(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name]
    first = tensors(pair.fit, tmp_path / "state")
    written = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"belongs to another fit: .*{pair.words}.*choose another path"):
        pair.other(checkpoint=tmp_path / "state")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == written
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The fit in the checkpoint")
        again = tensors(pair.fit, tmp_path / "state")
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


class Augmented(Rows[Any]):
    """Rows that are others each time, by numbers that no generator of torch's, numpy's or Python's own reaches."""

    noise = np.random.default_rng(0)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.as_tensor(self.noise.normal(size=3)).float()
        return x, x[:1] + index / 24


def test_rows_that_are_others_each_time_tell_no_fits_apart(tmp_path: Path) -> None:
    rows = DataLoader(Augmented(), batch_size=12)
    assert loader_digest(Loader(rows), torch.device("cpu"))[0] == UNREPEATABLE
    first, again = (tensors(mode(data=rows), tmp_path / "state") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


class Together(Rows[Any]):
    """Rows that torch's loaders read together, and not one by one."""

    def __len__(self) -> int:
        return 48

    def __getitems__(self, places: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(measured().x[place], measured().y[place]) for place in places]


def test_rows_that_are_read_together_are_told_apart_too() -> None:
    one_by_one, together = (
        loader_digest(Loader(DataLoader(rows, batch_size=12)), torch.device("cpu"))[0] for rows in (Read(), Together())
    )
    assert one_by_one.split(", ")[0] == together
    assert " rows=" in together


def test_a_file_of_before_does_not_know_rows_that_are_read_late() -> None:
    name, _ = loader_digest(Loader(read()), torch.device("cpu"))
    before, rows = name.split(", ")[0].split(" rows=")
    assert Identity({"data": name}).difference(Identity({"data": before}).record()) is None
    assert Identity({"data": before}).difference(Identity({"data": name}).record()) is not None
    assert rows not in loader_digest(Loader(read(factor=2.0)), torch.device("cpu"))[0]


class Brought(Rows[Any]):
    """Rows read from whatever holds them, or from a file; some are augmented, or kept once they have been read."""

    def __init__(self, held: Any, *, noise: float = 0.0, kept: Any = None, name: str = "") -> None:
        self.held, self.noise, self.kept, self.name = held, noise, kept, name

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.linspace(index, index + 1, 3)
        if self.kept is not None:
            self.kept[index] = np.asarray(x)
        return x + self.noise * float(Augmented.noise.normal()), x[:1]


def name_of(rows: Rows[Any]) -> str:
    return loader_digest(Loader(DataLoader(rows, batch_size=12)), torch.device("cpu"))[0]


def mapped(values: np.ndarray, path: Path) -> np.ndarray:
    values.tofile(path)
    return np.memmap(path, dtype=values.dtype, mode="r", shape=values.shape)


HOLDERS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "an array": lambda values, _: values,
    "its columns from behind": lambda values, _: values.T[::-1],
    "a memory map": mapped,
    "a tensor": lambda values, _: torch.from_numpy(values),
    "by name": lambda values, _: {"images": list(values), "scale": 2.0 * values},
    "a data frame": lambda values, _: pd.DataFrame(values).assign(text="none"),
    "rows within rows": lambda values, _: ConcatDataset([TensorDataset(torch.from_numpy(values)), Brought(values)]),
    "plain numbers": lambda values, _: values[:, 0].tolist(),
}


@pytest.mark.parametrize("kind", HOLDERS)
@pytest.mark.parametrize("noise", [0.0, 1.0], ids=["as they are", "augmented"])
def test_one_other_row_that_is_never_looked_at_is_another_data_set(kind: str, noise: float, tmp_path: Path) -> None:
    values = np.arange(141.0).reshape(47, 3)  # another number than that of the rows: windows of a series, say
    other = values.copy()
    other[22] += 1e-9
    one, same, changed = (
        name_of(Brought(HOLDERS[kind](each, tmp_path / str(number)), noise=noise, name=f"/data/{number}"))
        for number, each in enumerate((values, values.copy(), other))
    )
    assert one == same
    assert changed.rpartition("held=")[0] == one.rpartition("held=")[0] != ""
    refused = Identity({"data": changed}).difference(Identity({"data": one}).record())
    assert refused is not None
    before = one.split(", ")[0]  # as files of before have it
    assert Identity({"data": one}).difference(Identity({"data": before}).record()) is None


@pytest.mark.parametrize("kept", [dict, lambda: [None] * 48, lambda: np.zeros((48, 3))], ids=["dict", "list", "array"])
def test_rows_that_are_kept_once_read_make_no_other_data_set(kept: Callable[[], Any]) -> None:
    rows = Brought(np.arange(48.0), kept=kept())
    first, again = name_of(rows), name_of(rows)
    assert "kept" not in first
    assert Identity({"data": again}).difference(Identity({"data": first}).record()) is None


def test_arrays_above_the_bound_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(held_digests(Brought(np.arange(48.0)))) == ["held"]
    monkeypatch.setattr(held_arrays, "MOST_BYTES", 383)
    assert held_digests(Brought(np.arange(48.0))) == {}


def test_looking_at_a_loader_leaves_every_random_state_as_it_was() -> None:
    own = torch.Generator().manual_seed(5)
    rows = DataLoader(TensorDataset(measured().x, measured().y), batch_size=24, shuffle=True, generator=own)
    before = own.get_state(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    name, _ = loader_digest(Loader(rows), torch.device("cpu"))
    for one, other in zip(before, (own.get_state(), torch.get_rng_state(), np.random.get_state()[1]), strict=True):  # noqa: NPY002
        assert np.array_equal(one, other)
    own.manual_seed(9)
    assert loader_digest(Loader(rows), torch.device("cpu"))[0] == name


def test_a_digest_depends_on_bits_shape_dtype_and_name_and_on_nothing_else() -> None:
    whole = fill(torch.zeros(300, 7), 0)
    assert digest({"a": whole}) == digest({"a": whole.T.contiguous().T})  # however it lies in memory
    assert digest({"a": whole[:1]}) == digest({"a": whole[:1].clone()})
    others = [whole.T, whole.double(), whole + torch.finfo(whole.dtype).eps, whole.reshape(-1)]
    assert len({digest({"a": whole}), digest({"b": whole}), *(digest({"a": other}) for other in others)}) == 6


def test_a_digest_of_contiguous_rows_copies_nothing() -> None:
    rows = torch.zeros(1000)
    view = next(iter(pieces(rows)))
    rows[0] = 1.0
    assert view.tobytes() == rows.numpy().tobytes()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("mode of Net(a=1), Normal(scale=0.2)", "mode of Net(a=1), Normal(scale=0.2, per_column=False)", True),
        ("Normal(scale=0.2)", "Normal(scale=0.3)", False),
        ("Normal(scale=0.2)", "StudentT(scale=0.2)", False),
        ("Normal(scale=0.2, loc=1.0)", "Normal(scale=0.2)", False),
        ("(0): Linear(in_features=3)", "(0): Linear(in_features=3) (1): Tanh()", False),
    ],
)
def test_a_longer_description_of_the_same_is_known_from_one_of_something_else(old, new, expected) -> None:
    assert is_elaboration(old, new) is expected
