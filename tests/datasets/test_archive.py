"""Files are not trusted: what is not a plain array of the form asked for is refused by file and array."""

import contextlib
import io
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

from bayesuq.datasets.archive import pixels, read_arrays, real_numbers, whole_numbers

FORMS = {"x": real_numbers(2), "y": whole_numbers(1)}
X, Y = np.arange(6.0).reshape(3, 2), np.array([2, 0, 1], dtype=np.int32)


class Bomb:
    """Would create the file `path` when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.npz"


def read(path, forms=None):
    with read_arrays(path, FORMS if forms is None else forms) as arrays:
        return arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_tensors_of_the_same_numbers(path, save):
    save(path, x=X, y=Y.astype(">i2"), other=["text"])
    arrays = read(path)
    assert set(arrays) == {"x", "y"}
    assert arrays["x"].dtype == torch.float64
    np.testing.assert_array_equal(arrays["x"], X)
    np.testing.assert_array_equal(arrays["y"], Y)


def test_an_object_array_is_refused_and_nothing_in_it_is_run(path, tmp_path):
    planted = tmp_path / "planted"
    np.savez(path, x=np.array([Bomb(planted)], dtype=object), y=Y)
    with pytest.raises(ValueError, match=rf"{path}: `x` cannot be read.*allow_pickle=False"):
        read(path)
    assert not planted.exists()


def test_a_bare_pickle_is_refused_and_not_run(path, tmp_path):
    planted = tmp_path / "planted"
    path.write_bytes(pickle.dumps(Bomb(planted)))
    with pytest.raises(ValueError, match="`x` cannot be read"):
        read(path)
    assert not planted.exists()


def test_files_that_are_no_npz_are_refused(path):
    bare = io.BytesIO()
    np.save(bare, X)
    for content in (b"", b"no archive", bare.getvalue(), b"PK\x03\x04 and so on"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path}: `x` cannot be read: the file must be an .npz"):
            read(path)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path}: `x` cannot be read"):
        read(path)


def test_a_member_that_is_no_array_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"bytes")
    with pytest.raises(ValueError, match="`x` is not an array"):
        read(path)


def test_a_missing_array_is_named_with_those_that_are_there(path):
    np.savez(path, x=X, labels=Y)
    with pytest.raises(ValueError, match=rf"{path}: `y` is missing; the file holds x, labels\."):
        read(path)
    np.savez(path)
    with pytest.raises(ValueError, match="`x` is missing; the file holds nothing"):
        read(path)


@pytest.mark.parametrize(
    ("x", "form", "says"),
    [
        (X, real_numbers(1, 3), r"with 1 or 3 dimensions; got float64 of shape \(3, 2\)"),
        (X, whole_numbers(2), "must be integer .*got float64"),
        (X, pixels(2), "must be uint8 .*got float64"),
        (Y, pixels(1), "must be uint8 .*got int32"),
        (X + 1j, real_numbers(2), "must be floating or integer or bool .*got complex128"),
        (X.astype(str), real_numbers(2), "got <U"),
        (X.astype("datetime64[s]"), real_numbers(2), "got datetime64"),
        (np.where(X == 3, np.nan, X), real_numbers(2), "must be finite; 1 of 3 rows .*row 1"),
        (np.array([2**64 - 1], dtype=np.uint64), whole_numbers(1), "must fit int64"),
    ],
)
def test_an_array_of_another_form_is_refused(path, x, form, says):
    np.savez(path, x=x)
    with pytest.raises(ValueError, match=rf"{path}: `x` .*{says}"):
        read(path, {"x": form})


def test_an_error_while_the_arrays_are_used_names_the_file_too(path):
    np.savez(path, x=X, y=Y)
    with pytest.raises(ValueError, match=rf"{path}: rows differ"), read_arrays(path, FORMS):
        raise ValueError("rows differ")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_read_or_refused_and_left_closed(path, save):
    save(path, x=X, y=Y)
    intact, noise = path.read_bytes(), random.Random(0)
    for trial in range(150):
        damaged = bytearray(intact)
        if trial % 2:
            del damaged[noise.randrange(len(damaged)) :]
        else:
            damaged[noise.randrange(len(damaged))] ^= 1 << noise.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):  # nothing else may come; a file left open would be a ResourceWarning
            read(path)
