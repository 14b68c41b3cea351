"""Public sources: every file has a checksum, and files of the true format become the arrays that `load` reads."""

import gzip
import re
import struct

import numpy as np
import pytest

from bayesuq.datasets.named import relative_path
from bayesuq.datasets.sources import SOURCES, Source, idx_images, monthly_co2, published_table


def idx(values):
    """An array as a gzipped idx file, byte by byte as the format's definition says."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(struct.pack(">i", size) for size in values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def images():
    noise = np.random.default_rng(0)
    return {
        "x_train": noise.integers(0, 256, (5, 3, 4)),
        "y_train": noise.integers(0, 10, 5),
        "x_test": noise.integers(0, 256, (2, 3, 4)),
        "y_test": noise.integers(0, 10, 2),
    }


def test_every_source_has_checksums_and_a_place_in_the_folder():
    for name, source in SOURCES.items():
        assert relative_path(name) is not None
        assert source.licence
        assert source.description
        if source.digest is not None:
            assert re.fullmatch("[0-9a-f]{64}", source.digest)
        else:
            assert all(re.fullmatch("md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", value) for value in source.hashes)
    addresses = [address for source in SOURCES.values() for address in source.addresses]
    assert len(set(addresses)) == len(addresses)


def test_a_source_without_checksums_cannot_be_written_down():
    with pytest.raises(ValueError, match="Every file needs a checksum"):
        Source("x", "y", ("http://a", "http://b"), idx_images, hashes=("md5:0",))


def test_idx_files_keep_every_pixel_in_its_place(images):
    arrays = idx_images([idx(values) for values in images.values()])
    assert list(arrays) == list(images)
    for name, values in images.items():
        assert arrays[name].dtype == np.uint8
        np.testing.assert_array_equal(arrays[name], values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda files: [files[0][:40], *files[1:]], "no gzip archive, or is cut off"),
        (lambda files: [b"<html>", *files[1:]], "no gzip archive"),
        (lambda files: [files[1], *files[1:]], "no idx file of bytes in 3 dimensions"),
        (lambda files: [gzip.compress(gzip.decompress(files[0])[:-1]), *files[1:]], r"says \(5, 3, 4\) values but"),
        (lambda files: [gzip.compress(b""), *files[1:]], "no idx file"),
        (lambda files: [files[0], files[3], *files[2:]], "5 images but 2 labels"),
    ],
)
def test_idx_files_that_are_not_whole_are_refused(images, spoil, message):
    with pytest.raises(ValueError, match=message):
        idx_images(spoil([idx(values) for values in images.values()]))


TABLE = b" 1.5\t2 3\r\n4 5.25 6\n7 8 9e1\n\n"
INDICES = [b"0\n2\n", b"1\n", b"0\n1\n", b"2\n0\n", b"2\n", b"1\n"]


def test_a_table_gets_the_columns_and_splits_that_its_index_files_name():
    arrays = published_table([TABLE, *INDICES], num_splits=2)
    np.testing.assert_array_equal(arrays["x"], [[1.5, 3], [4, 6], [7, 90]])
    np.testing.assert_array_equal(arrays["y"], [2, 5.25, 8])
    np.testing.assert_array_equal(arrays["train_index"], [[0, 1], [2, 0]])
    np.testing.assert_array_equal(arrays["test_index"], [[2], [1]])
    assert arrays["train_index"].dtype == np.int32


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([b"1 2 oops", *INDICES], "could not convert"),
        ([b"1 2 3\n4 5", *INDICES], "columns"),
        ([TABLE, b"0\n3\n", *INDICES[1:]], "columns or rows that the table does not have"),
        ([TABLE, *INDICES[:5], b"3\n"], "columns or rows that the table does not have"),
        ([b"\xff\xfe", *INDICES], "decode"),
    ],
)
def test_a_table_of_another_form_is_refused(contents, message):
    with pytest.raises(ValueError, match=message):
        published_table(contents, num_splits=2)


def test_monthly_co2_is_dated_to_the_middle_of_the_month():
    file = b"Year,Month,Average,Interpolated,Trend,Daily_mean\n1959,1,315.62,315.62,315.7,-1\n1964,4,-99.99,322,319,3\n"
    arrays = monthly_co2([file])
    np.testing.assert_allclose(arrays["decimal_year"], [1959 + 0.5 / 12, 1964 + 3.5 / 12])
    np.testing.assert_array_equal(arrays["co2"], [315.62, 322])
    np.testing.assert_array_equal(arrays["co2_average"], [315.62, np.nan])
    for other in (b"", b"a,b\n1,2\n", b"Year,Month,Average,Interpolated,Trend\n1959,1,x,1,1\n"):
        with pytest.raises(ValueError, match=r"NOAA|could not convert"):
            monthly_co2([other])
