"""The public door: what comes in comes out unchanged, or the error says what is wrong and what to do."""

import datetime
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from bayesuq.arrays import (
    as_labels,
    as_targets,
    check_count,
    check_device,
    check_finite,
    check_finite_number,
    check_fraction,
    check_inputs,
    check_positive,
    check_probability,
    to_floating,
    to_tensor,
)

ROWS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


@pytest.mark.parametrize(
    "value",
    [
        ROWS,
        tuple(map(tuple, ROWS)),
        np.array(ROWS),
        np.array(ROWS, dtype=">f8"),
        np.array(ROWS, dtype=np.longdouble),
        np.array(ROWS, dtype=np.float16),
        np.array(ROWS, dtype=np.uint16),
        np.array(ROWS, dtype=">u4"),
        np.array(ROWS, order="F"),
        np.array(ROWS)[::-1][::-1, ::-1][:, ::-1],
        np.repeat(np.array(ROWS), 2, axis=0)[::2],
        torch.tensor(ROWS),
        torch.tensor(ROWS, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.tensor(ROWS)),
        pd.DataFrame(ROWS),
        [torch.tensor(row) for row in ROWS],
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_all_kinds_of_array_give_the_same_numbers(value):
    tensor = to_tensor(value, "x")
    assert tensor.double().tolist() == ROWS
    assert not tensor.requires_grad


@pytest.mark.parametrize("reverse", [False, True])
def test_a_read_only_or_reversed_array_is_copied_without_a_warning(reverse):
    array = np.array(ROWS)[::-1] if reverse else np.array(ROWS)
    array.flags.writeable = reverse
    assert to_tensor(array, "x").tolist() == array.tolist()


def test_floats_keep_float64_and_all_else_becomes_float32_with_its_scale():
    assert to_floating(np.array([0.1]), "x").dtype == torch.float64
    assert to_floating(np.array([0.5], dtype=np.float16), "x").dtype == torch.float32
    image = to_floating(np.array([0, 128, 255], dtype=np.uint8), "x")
    assert image.dtype == torch.float32
    assert image.tolist() == [0.0, 128.0, 255.0]
    assert to_floating([True, False], "x").tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.eye(2).to_sparse(), r"dense.*sparse_coo.*to_dense"),
        (sparse.eye(2, format="csr"), r"dense.*csr.*toarray"),
        (np.ma.masked_less(np.array(ROWS), 2), "masked.*[Dd]rop or fill"),
        (torch.ones(2, dtype=torch.complex64), "real.*complex64.*columns"),
        (np.ones(2, dtype=complex), "real.*complex"),
        (["a", "b"], r"numbers.*<U1.*[Ee]ncode"),
        ([b"a"], "numbers"),
        ([1.0, None], "numbers.*object"),
        (np.array([datetime.datetime(2020, 1, 1)], dtype="datetime64[s]"), "numbers.*datetime64"),
        (pd.Series(["a", "b"], dtype="category"), "numbers.*object"),
        ([[1.0], [1.0, 2.0]], "rectangular"),
        ([torch.ones(2, requires_grad=True) * 2], "rectangular.*detach"),
        ({"a": 1}, "numbers.*got a dict"),
        (None, "numbers.*got a NoneType"),
        ([10**30], "numbers.*object"),
        (np.array([(1, 2.0)], dtype="i4,f4"), "numbers"),
    ],
)
def test_what_is_no_dense_real_array_is_refused_by_name(value, says):
    with pytest.raises(TypeError, match=f"(?s)`features`.*{says}"):
        to_tensor(value, "features")


def test_an_unsigned_integer_beyond_int64_does_not_wrap_to_a_negative_one():
    assert to_tensor(np.array([2**63 - 1], dtype=np.uint64), "x").tolist() == [2**63 - 1]
    with pytest.raises(ValueError, match=r"`x` must fit int64; got 18446744073709551615.*astype"):
        to_tensor(np.array([1, 2**64 - 1], dtype=np.uint64), "x")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_that_are_not_finite_are_counted_and_located(bad, dtype):
    x = torch.zeros(100, 3, 2, dtype=dtype)
    check_finite(x, "x")
    x[40, 1, 1] = x[40, 2, 0] = x[77, 0, 0] = bad
    with pytest.raises(ValueError, match=r"`x` must be finite; 2 of 100 rows .*first is row 40.*[Dd]rop or impute"):
        check_finite(x, "x")


@pytest.mark.parametrize("position", range(37))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_entry_is_found_wherever_it_stands(position, bad):
    x = torch.linspace(-1, 1, 37)
    x[position] = bad
    with pytest.raises(ValueError, match=f"first is row {position}"):
        check_finite(x, "x")


def test_integers_empty_arrays_and_extreme_floats_are_finite():
    check_finite(torch.ones(3, dtype=torch.int64), "x")
    check_finite(torch.empty(0, 3), "x")
    check_finite(torch.tensor([torch.finfo(torch.float32).max, torch.finfo(torch.float32).min]), "x")
    with pytest.raises(ValueError, match="1 of 1 rows"):
        check_finite(torch.tensor(math.nan), "x")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1.0, 2.0], r"\(N, D\).*\(2,\).*`x.reshape\(-1, 1\)`.*`x.reshape\(1, -1\)`"),
        (1.0, r"\(N, D\).*\(\)"),
        (np.empty((0, 3)), r"empty.*\(0, 3\)"),
        (np.empty((3, 0)), r"empty.*\(3, 0\)"),
        ([[math.nan]], "finite"),
    ],
)
def test_inputs_have_rows_and_features(value, says):
    with pytest.raises(ValueError, match=f"`x`.*{says}"):
        check_inputs(value)


def test_inputs_keep_any_number_of_further_dimensions():
    assert check_inputs(np.zeros((2, 3, 4, 5), dtype=np.uint8)).shape == (2, 3, 4, 5)


def test_labels_are_int64_of_the_shape_they_came_in():
    labels = as_labels(np.array([[0, 2], [1, 0]], dtype=np.uint8), num_classes=3)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [[0, 2], [1, 0]]
    assert as_labels([0.0, 1.0]).tolist() == [0, 1]
    assert as_labels([True, False]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("y", "error", "says"),
    [
        ([0, 3], ValueError, "0 to 2; got 0 to 3.*[Rr]enumber"),
        ([-1, 0], ValueError, "0 to 2; got -1 to 0"),
        ([0.5, 1.0], TypeError, "whole-number.*regression"),
        ([0.0, math.nan], ValueError, "finite"),
        (["cat"], TypeError, "numbers"),
    ],
)
def test_labels_out_of_range_or_not_whole_are_refused(y, error, says):
    with pytest.raises(error, match=f"`y`.*{says}"):
        as_labels(y, num_classes=3)


def test_targets_are_columns():
    assert as_targets([1.0, 2.0, 3.0]).tolist() == [[1.0], [2.0], [3.0]]
    assert as_targets(np.ones((3, 2))).shape == (3, 2)
    with pytest.raises(ValueError, match=r"`y` must have shape \(N, D\) or \(N,\); got \(2, 2, 2\)"):
        as_targets(np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match="`y` must be finite"):
        as_targets([1.0, math.inf])


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_positive, [1, 1e-300, np.float32(2), np.int64(3)], [0, -1.0, math.nan, math.inf]),
        (check_finite_number, [0, -1e300, np.float64(2)], [math.nan, math.inf, -math.inf]),
        (check_fraction, [0.5, 1e-9, np.float32(0.25)], [0, 1, -0.1, 1.1, math.nan]),
        (check_probability, [0, 0.5, 0.999], [1, -1e-9, math.nan, math.inf]),
    ],
)
def test_numbers_are_checked_by_name_and_shown_as_given(check, good, bad):
    for value in good:
        result = check(value, "scale")
        assert type(result) is float
        assert result == float(value)
    for value in bad:
        with pytest.raises(ValueError, match=r"`scale` must .*; got (-|0|1|nan|inf)"):
            check(value, "scale")
    for value in ("1", None, True, [0.5], torch.tensor(0.5), 1j):
        with pytest.raises(TypeError, match=r"(?s)`scale` must be a number; got .* of type"):
            check(value, "scale")


def test_counts_are_whole_numbers_from_a_minimum():
    assert check_count(np.int32(3), "num_samples") == 3
    assert type(check_count(np.int32(3), "num_samples")) is int
    assert check_count(0, "num_warmup", minimum=0) == 0
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"`num_samples` must be at least 1; got {value}"):
            check_count(value, "num_samples")
    for value in (1.0, "1", None, True, np.bool_(True), np.float64(2)):
        with pytest.raises(TypeError, match=r"`num_samples` must be a whole number; got .* of type"):
            check_count(value, "num_samples")


@pytest.mark.parametrize("device", ["cuda:77", "nowhere"])
def test_a_device_that_is_not_there_is_refused_and_never_replaced(device: str) -> None:
    with pytest.raises(ValueError, match=f"`device` '{device}' cannot be used here"):
        check_device(device)


def test_a_read_only_array_is_shared_and_not_copied(tmp_path):
    own = np.arange(12.0).reshape(4, 3)
    np.save(tmp_path / "x.npy", own)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    tensor = to_tensor(mapped, "x")
    assert tensor.data_ptr() == mapped.ctypes.data
    assert tensor.tolist() == own.tolist()
    part = to_tensor(mapped[1:, ::-1], "x")  # torch has no negative strides
    assert part.tolist() == own[1:, ::-1].tolist()
    del mapped
    assert tensor.tolist() == own.tolist()  # the tensor keeps the map open


# Pandas objects


INTEGERS = pd.array([1, 2, 3], dtype="Int64")


@pytest.mark.parametrize(
    ("value", "numbers", "dtype"),
    [
        (pd.Series(INTEGERS), [1, 2, 3], torch.int64),
        (INTEGERS, [1, 2, 3], torch.int64),
        (pd.DataFrame({"a": INTEGERS, "b": pd.array([4, 5, 6], dtype="Int8")}), [[1, 4], [2, 5], [3, 6]], torch.int64),
        (pd.DataFrame({"a": INTEGERS, "b": [0.5, 1.5, 2.5]}), [[1, 0.5], [2, 1.5], [3, 2.5]], torch.float64),
        (pd.Series([True, False], dtype="boolean"), [True, False], torch.bool),
        (pd.Series([0.5, 1.5], dtype="Float32"), [0.5, 1.5], torch.float32),
    ],
    ids=["series", "array", "frame", "mixed", "flags", "fractions"],
)
def test_columns_that_know_missing_values_are_numbers(value, numbers, dtype):
    tensor = to_tensor(value, "x")
    assert tensor.tolist() == numbers
    assert tensor.dtype == dtype


@pytest.mark.parametrize("dtype", ["Int64", "UInt8", "boolean", "Float64", "Float32"])
def test_what_is_missing_in_them_is_told_as_missing(dtype):
    column = pd.array([1, None, 0], dtype=dtype)
    assert to_tensor(column, "x").isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"`x\['b'\]` must be finite; 1 of 3 rows .*row 1"):
        check_inputs(pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": column}))


def test_a_frame_of_numbers_and_others_names_the_others():
    frame = pd.DataFrame({"a": INTEGERS, "b": pd.Categorical(list("xyz")), "c": [1.0, 2.0, 3.0]})
    with pytest.raises(TypeError, match="for 1 of 3 columns: 'b' is category"):
        to_tensor(frame, "x")
