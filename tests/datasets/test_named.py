"""Named data sets: the same numbers as their sources, divided as promised, from files that may be wrong."""

import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from scipy import stats

from bayesuq.datasets import named as datasets
from bayesuq.datasets.named import CLASS_NAMES, available, load

BUILT_IN = ("digits", "digits-0to8", "shapes", "toy/linear", "toy/sine-gap", "toy/heteroscedastic", "toy/cubic")
UCI = {"boston": (506, 20), "concrete": (1030, 20), "energy": (768, 20), "power-plant": (9568, 20)} | {
    "protein": (45730, 5),
    "yacht": (308, 20),
}

# The laws as the docstring states them: mean, variance, where inputs are, where they are not, training rows.
LAWS = {
    "toy/linear": (lambda x: 1 + 2 * x, lambda x: 0.25 + 0 * x, [(-2, 2)], [], 100),
    "toy/sine-gap": (lambda x: np.sin(2 * x), lambda x: 0.01 + 0 * x, [(-3, -1), (1, 3)], [(-1, 1)], 200),
    "toy/heteroscedastic": (lambda x: 2 * np.sin(x), lambda x: np.exp(x - 3), [(-3, 3)], [], 400),
    "toy/cubic": (lambda x: x**3, lambda x: 9 + 0 * x, [(-4, 4)], [(-6, -4), (4, 6)], 20),
}


def needs(name):
    """Skip where the folder of real data does not hold that set."""
    return pytest.mark.skipif(name not in available(), reason=f"the folder BAYESUQ_DATA does not hold {name}")


def table(*parts):
    """Inputs and targets side by side, in lexicographic order: equal for equal multisets of rows."""
    rows = np.concatenate([np.c_[part.x.flatten(1), part.y] for part in parts])
    return rows[np.lexsort(rows.T)]


def sorted_rows(x, y):
    rows = np.c_[x, y]
    return rows[np.lexsort(rows.T)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder, empty, for tests that take BAYESUQ_DATA away."""
    monkeypatch.setattr(datasets, "user_cache_path", lambda name, **_: tmp_path / "cache" / name)
    return tmp_path / "cache" / "bayesuq"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of data sets."""
    monkeypatch.setenv("BAYESUQ_DATA", str(tmp_path))
    for name in ("images", "segmentation", "series", "uci"):
        (tmp_path / name).mkdir()
    return tmp_path


def write_uci(folder, name="mine", **changes):
    """A set of 30 rows with 3 splits, some of whose arrays may be changed, or left out as None."""
    noise = np.random.default_rng(0)
    order = np.array([noise.permutation(30) for _ in range(3)])
    arrays = {
        "x": noise.normal(size=(30, 4)),
        "y": noise.normal(size=30),
        "train_index": order[:, :25].astype(np.int32),
        "test_index": order[:, 25:].astype(np.int32),
    } | changes
    arrays = {key: value for key, value in arrays.items() if value is not None}
    np.savez(folder / f"uci/{name}.npz", **arrays)
    return arrays


def write_images(folder, name, seed=0, num_train=5004):
    noise = np.random.default_rng(seed)
    arrays = {
        "x_train": noise.integers(0, 256, size=(num_train, 3, 4), dtype=np.uint8),
        "y_train": noise.integers(0, 10, size=num_train, dtype=np.uint8),
        "x_test": noise.integers(0, 256, size=(7, 3, 4), dtype=np.uint8),
        "y_test": noise.integers(0, 10, size=7, dtype=np.uint8),
    }
    np.savez(folder / f"images/{name}.npz", **arrays)
    return arrays


# Digits


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_are_scikit_learns_up_to_their_order(seed):
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    split = load("digits", seed=seed)
    np.testing.assert_array_equal(table(split.train, split.val, split.test), sorted_rows(x / 16, y))
    assert [len(part) for part in (split.train, split.val, split.test)] == [1258, 180, 359]
    assert split.train.x.dtype == torch.float32
    assert split.ood is None


@pytest.mark.parametrize("name", ["digits", "digits-0to8"])
def test_each_part_of_digits_has_its_share_of_every_class_within_a_row(name):
    split = load(name)
    parts = {0.7: split.train, 0.1: split.val, 0.2: split.test}
    counts = {share: np.bincount(part.y) for share, part in parts.items()}
    total = sum(counts.values())
    for share, count in counts.items():
        assert (abs(count - share * total) <= 1).all()


def test_digits_without_nines_have_all_of_them_out_of_distribution():
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    split = load("digits-0to8")
    np.testing.assert_array_equal(table(split.train, split.val, split.test), sorted_rows(x[y < 9] / 16, y[y < 9]))
    np.testing.assert_array_equal(table(split.ood), sorted_rows(x[y == 9] / 16, y[y == 9]))
    assert len(split.ood) == 180


def test_digits_are_divided_by_their_seed_alone():
    first, again, other = load("digits"), load("digits", seed=0), load("digits", seed=1)
    assert torch.equal(first.train.x, again.train.x)
    assert not torch.equal(first.test.y, other.test.y)


# Toy sets


@pytest.mark.parametrize("name", LAWS)
def test_toy_inputs_lie_where_the_law_says(name):
    _, _, regions, outside, num_train = LAWS[name]
    split = load(name)
    assert split.train.x.shape == split.train.y.shape == (num_train, 1)
    assert len(split.val) == num_train // 4
    for part in (split.train, split.val, split.test):
        x = part.x.numpy()
        assert np.any([(x >= low) & (x <= high) for low, high in regions], axis=0).all()
    for low, high in regions:  # the test covers each region evenly, to its ends
        inside = np.sort(split.test.x[(split.test.x >= low) & (split.test.x <= high)])
        np.testing.assert_allclose(np.r_[low, inside, high], np.linspace(low, high, len(inside) + 2), atol=0.005)
    if not outside:
        assert split.ood is None
        return
    x = split.ood.x.numpy()
    shares = [((x > low) & (x < high)).mean() for low, high in outside]
    assert shares == [1 / len(outside)] * len(outside)


@pytest.mark.parametrize("name", LAWS)
def test_toy_training_inputs_are_uniform(name):
    regions = LAWS[name][2]
    x = torch.cat([load(name, seed=seed).train.x for seed in range(20)]).numpy().ravel()
    width = sum(high - low for low, high in regions)

    def cdf(at):
        return sum(np.clip(at - low, 0, high - low) for low, high in regions) / width

    assert stats.kstest(x, cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", LAWS)
def test_the_truth_of_a_toy_set_is_the_law_of_its_docstring(name):
    mean, variance, *_ = LAWS[name]
    truth = load(name).truth
    x = torch.linspace(-6, 6, 101, dtype=torch.float64).unsqueeze(1)
    np.testing.assert_allclose(truth.mean(x), mean(x.numpy()), atol=1e-12)
    np.testing.assert_allclose(truth.scale(x) ** 2, variance(x.numpy()), rtol=1e-12)
    assert truth.mean(x).dtype == truth.scale(x).dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "part"),
    [(name, part) for name in LAWS for part in ("train", "val", "test", "ood") if part != "ood" or LAWS[name][3]],
)
def test_toy_residuals_are_standard_normal(name, part):
    splits = [load(name, seed=seed) for seed in range(40)]
    parts = [getattr(split, part) for split in splits]
    truth = splits[0].truth
    x, y = torch.cat([data.x for data in parts]).double(), torch.cat([data.y for data in parts]).double()
    z = ((y - truth.mean(x)) / truth.scale(x)).flatten()
    assert abs(z.mean()) < 4 / len(z) ** 0.5
    assert abs(z.square().mean() - 1) < 4 * (2 / len(z)) ** 0.5
    for half in (x.flatten() < 0, x.flatten() >= 0):  # no dependence of the scale on x is left
        assert abs(z[half].square().mean() - 1) < 4 * (2 / int(half.sum())) ** 0.5
    assert stats.kstest(z, "norm").pvalue > 1e-3


@pytest.mark.parametrize("name", LAWS)
def test_toy_sets_depend_on_their_seed_alone_and_their_parts_are_independent(name):
    before = torch.get_rng_state()
    first, again, other = load(name), load(name), load(name, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.train.y, again.train.y)
    assert torch.equal(first.test.y, again.test.y)
    assert not torch.equal(first.train.x, other.train.x)
    assert torch.equal(first.test.x, other.test.x)
    assert not torch.equal(first.test.y, other.test.y)
    num = len(first.val)
    assert not torch.equal(first.train.x[:num], first.val.x)
    z = [(part.y - first.truth.mean(part.x)) / first.truth.scale(part.x) for part in (first.train, first.val)]
    assert not torch.allclose(z[0][:num], z[1], atol=0.1)


# Regression with published splits


def test_a_set_never_seen_before_loads_from_the_folder(folder):
    arrays = write_uci(folder)
    assert "uci/mine" in available()
    x, y = arrays["x"], arrays["y"]
    for k in range(3):
        split = load("uci/mine", split=k)
        train, test = arrays["train_index"][k], arrays["test_index"][k]
        np.testing.assert_array_equal(split.test.x, x[test])
        np.testing.assert_array_equal(split.test.y[:, 0], y[test])
        np.testing.assert_array_equal(table(split.refit), sorted_rows(x[train], y[train]))
        assert (len(split.train), len(split.val)) == (23, 2)
        assert split.train.x.dtype == split.train.y.dtype == torch.float64


def test_no_split_is_the_first_and_the_seed_moves_validation_only(folder):
    write_uci(folder)
    first, none, other = load("uci/mine", split=0), load("uci/mine"), load("uci/mine", seed=1)
    assert torch.equal(first.val.x, none.val.x)
    assert torch.equal(first.test.x, other.test.x)
    assert not torch.equal(first.val.x, other.val.x)
    np.testing.assert_array_equal(table(first.refit), table(other.refit))


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.uint8, bool])
def test_whole_number_targets_of_a_regression_set_are_real(folder, dtype):
    y = (np.arange(30) % 2).astype(dtype)
    write_uci(folder, y=y, x=np.arange(60).reshape(30, 2).astype(dtype))
    split = load("uci/mine", split=np.int64(1))
    assert split.train.y.dtype == split.train.x.dtype == torch.float64
    assert not split.train.is_labelled


def test_several_targets_and_big_endian_arrays_load(folder):
    y = np.arange(60.0).reshape(30, 2)
    arrays = write_uci(folder, y=y.astype(">f8"), train_index=np.arange(25)[None].astype(">i8"), test_index=[[25, 29]])
    split = load("uci/mine", split=0)
    assert split.train.y.shape == (23, 2)
    np.testing.assert_array_equal(split.test.y, y[[25, 29]])
    np.testing.assert_array_equal(split.test.x, arrays["x"][[25, 29]])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_index": None}, "`train_index` is missing; the file holds x, y, test_index"),
        ({"y": None}, "`y` is missing"),
        ({"x": np.zeros(30)}, r"`x` must be .* with 2 dimensions; got float64 of shape \(30,\)"),
        ({"x": np.zeros((29, 4))}, "`y` must have N = 29 rows"),
        ({"x": np.full((30, 4), np.nan)}, "`x` must be finite; 30 of 30 rows"),
        ({"x": np.full((30, 4), "a")}, "`x` must be floating .*got <U1"),
        ({"y": np.full(30, None)}, "`y` cannot be read.*allow_pickle"),
        ({"y": np.zeros((30, 1, 1))}, "`y` must be .* with 1 or 2 dimensions"),
        ({"train_index": np.full((3, 25), 30)}, "`train_index` must hold rows from 0 to 29; got 30 to 30"),
        ({"test_index": np.full((3, 5), -1)}, "`test_index` must hold rows from 0 to 29; got -1 to -1"),
        ({"test_index": np.zeros((3, 5), dtype=int)}, "`train_index` and `test_index` must name no row twice"),
        ({"test_index": np.arange(30)[None].repeat(3, 0)}, "must name no row twice"),
        ({"test_index": np.zeros((2, 5), dtype=int)}, "`test_index` must have a row for each of the 3 splits .*got 2"),
        ({"test_index": np.zeros((3, 0), dtype=int)}, "must not be empty"),
        ({"train_index": np.zeros((3, 25))}, "`train_index` must be integer .*got float64"),
        ({"train_index": np.arange(25)}, "`train_index` must be integer with 2 dimensions"),
    ],
)
def test_a_malformed_set_is_refused_by_file_and_array(folder, changes, says):
    write_uci(folder, **changes)
    with pytest.raises(ValueError, match=rf"uci/mine\.npz: .*{says}"):
        load("uci/mine", split=0)


def test_a_file_that_is_no_npz_is_refused_by_name(folder):
    (folder / "uci/mine.npz").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match=r"uci/mine\.npz: `x` cannot be read: the file must be an \.npz"):
        load("uci/mine")


def test_a_split_out_of_range_says_how_many_there_are(folder):
    write_uci(folder)
    with pytest.raises(ValueError, match="`split` must be below 3, the number of published splits; got 3"):
        load("uci/mine", split=3)
    with pytest.raises(ValueError, match="`split` must be at least 0; got -1"):
        load("uci/mine", split=-1)
    for split in (1.0, True, "0"):
        with pytest.raises(TypeError, match="`split` must be a whole number"):
            load("uci/mine", split=split)


def test_a_split_of_a_set_without_splits_is_refused(folder):
    write_images(folder, "mnist")
    for name in (*BUILT_IN, "mnist"):
        with pytest.raises(ValueError, match=f"`split` must be None for '{name}', which has one division only; got 0"):
            load(name, split=0)


# Images, segmentation, series: small files of the same form


def test_images_are_bytes_divided_by_255_in_their_order(folder):
    arrays = write_images(folder, "mnist")
    split = load("mnist")
    np.testing.assert_allclose(split.train.x[:, 0], arrays["x_train"][:4] / 255, rtol=1e-6)
    np.testing.assert_allclose(split.val.x[:, 0], arrays["x_train"][4:] / 255, rtol=1e-6)
    np.testing.assert_allclose(split.test.x[:, 0], arrays["x_test"] / 255, rtol=1e-6)
    np.testing.assert_array_equal(
        torch.cat([split.train.y, split.val.y, split.test.y]), [*arrays["y_train"], *arrays["y_test"]]
    )
    assert split.train.x.dtype == torch.float32
    assert split.train.x.is_contiguous()
    assert split.ood is None


def test_each_image_set_has_the_other_for_out_of_distribution(folder):
    digits, clothes = write_images(folder, "mnist", 0), write_images(folder, "fashion_mnist", 1)
    np.testing.assert_allclose(load("mnist").ood.x[:, 0], clothes["x_test"] / 255, rtol=1e-6)
    np.testing.assert_array_equal(load("fashion_mnist").ood.y, digits["y_test"])


def test_pixels_must_be_bytes_and_there_must_be_enough(folder):
    write_images(folder, "mnist", num_train=5000)
    with pytest.raises(ValueError, match=r"images/mnist\.npz: `x` must not be empty"):
        load("mnist")
    np.savez(folder / "images/mnist.npz", x_train=np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match=r"images/mnist\.npz: `x_train` must be uint8 .*got float64"):
        load("mnist")
    (folder / "images/mnist.npz").unlink()
    write_images(folder, "fashion_mnist")
    (folder / "images/mnist.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"images/mnist\.npz: `x_test` cannot be read"):
        load("fashion_mnist")


def test_camvid_puts_channels_first_and_keeps_the_void_label(folder):
    noise = np.random.default_rng(0)
    arrays = {}
    for num, part in ((5, "train"), (3, "val"), (4, "test")):
        arrays[f"x_{part}"] = noise.integers(0, 256, size=(num, 6, 8, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = noise.integers(0, 12, size=(num, 6, 8), dtype=np.uint8)
    path = folder / "segmentation/camvid_120x160.npz"
    np.savez(path, **arrays)
    split = load("camvid")
    for part in ("train", "val", "test"):
        data = getattr(split, part)
        np.testing.assert_allclose(data.x, arrays[f"x_{part}"].transpose(0, 3, 1, 2) / 255, rtol=1e-6)
        np.testing.assert_array_equal(data.y, arrays[f"y_{part}"])
        assert data.x.is_contiguous()
    assert (split.train.y == 11).any()
    np.savez(path, **(arrays | {"y_val": arrays["y_val"][:, :5]}))
    with pytest.raises(ValueError, match=r"camvid_120x160\.npz: Labels must have a pixel .*\(3, 5, 8\)"):
        load("camvid")


def test_membrane_follows_its_index_arrays(folder):
    noise = np.random.default_rng(0)
    arrays = {
        "x": noise.integers(0, 256, size=(6, 4, 5), dtype=np.uint8),
        "y": noise.integers(0, 2, size=(6, 4, 5), dtype=np.uint8),
        "train_index": np.array([4, 0, 1]),
        "val_index": np.array([2]),
        "test_index": np.array([5, 3]),
    }
    path = folder / "segmentation/membrane_256.npz"
    np.savez(path, **arrays)
    split = load("membrane")
    np.testing.assert_allclose(split.train.x[:, 0], arrays["x"][[4, 0, 1]] / 255, rtol=1e-6)
    np.testing.assert_array_equal(split.val.y, arrays["y"][[2]])
    np.testing.assert_array_equal(split.test.y, arrays["y"][[5, 3]])
    np.savez(path, **(arrays | {"val_index": np.array([4])}))
    with pytest.raises(ValueError, match=r"membrane_256\.npz: `train_index` and `val_index` and .* no row twice"):
        load("membrane")


def test_co2_is_divided_in_time(folder):
    years = 1950 + np.arange(320) / 12
    path = folder / "series/co2.npz"
    np.savez(path, decimal_year=years, co2=300 + years)
    split = load("co2")
    assert [len(part) for part in (split.train, split.val, split.test)] == [180, 20, 120]
    together = torch.cat([split.train.x, split.val.x, split.test.x]).flatten()
    np.testing.assert_array_equal(together, years)
    np.testing.assert_array_equal(split.refit.y[:, 0], 300 + years[:200])
    assert split.train.x.dtype == torch.float64
    for bad in (years[:121], years[::-1], np.zeros(200)):
        np.savez(path, decimal_year=bad, co2=bad)
        with pytest.raises(ValueError, match=r"co2\.npz: `decimal_year` must increase, over more than 121 months"):
            load("co2")


# Names


def test_available_names_load_and_follow_the_folder(monkeypatch, folder):
    assert available() == BUILT_IN
    write_images(folder, "fashion_mnist")
    write_uci(folder, "b")
    write_uci(folder, "a.2")
    (folder / "uci/notes.json").write_text("{}")
    (folder / "uci/._a.npz").write_text("left by a file manager")
    (folder / "uci/folder.npz").mkdir()
    assert available() == (*BUILT_IN, "fashion_mnist", "uci/a.2", "uci/b")
    for name in available():
        assert len(load(name).train) > 0
    monkeypatch.setenv("BAYESUQ_DATA", "")
    assert available() == BUILT_IN
    monkeypatch.delenv("BAYESUQ_DATA")
    assert available() == BUILT_IN


@pytest.mark.usefixtures("folder")
def test_the_cache_folder_serves_where_no_folder_is_named(cache, monkeypatch):
    (cache / "uci").mkdir(parents=True)
    write_uci(cache, "cached")
    assert "uci/cached" not in available()  # the folder that is named is the only one
    monkeypatch.delenv("BAYESUQ_DATA")
    assert datasets.folder() == cache
    assert available() == (*BUILT_IN, "uci/cached")
    assert len(load("uci/cached", split=2).train) > 0


def test_splits_are_counted(folder):
    write_uci(folder)
    assert datasets.num_splits("uci/mine") == 3
    assert [datasets.num_splits(name) for name in BUILT_IN] == [1] * len(BUILT_IN)
    with pytest.raises(ValueError, match="Did you mean 'uci/mine'"):
        datasets.num_splits("uci/mime")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("digts", "digits"),
        ("Digits", "digits"),
        ("toy/cubik", "toy/cubic"),
        ("linear", "toy/linear"),
        ("uci/mime", "uci/mine"),
        ("mine", "uci/mine"),
        ("fashion-mnist", "fashion_mnist"),
        ("MNIST", "mnist"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_and_what_there_is(folder, name, nearest):
    write_uci(folder)
    with pytest.raises(
        ValueError, match=rf"`name` must be one of digits, .*uci/mine; got '{name}'\. Did you mean '{nearest}'"
    ):
        load(name)


def test_a_name_like_no_other_gets_what_there_is(monkeypatch):
    monkeypatch.delenv("BAYESUQ_DATA", raising=False)
    with pytest.raises(ValueError, match=r"`name` must be one of digits, digits-0to8, .*toy/cubic; got 'zzz'\.$"):
        load("zzz")


@pytest.mark.parametrize(("name", "file"), [("mnist", "images/mnist.npz"), ("uci/boston", "uci/boston.npz")])
def test_an_absent_set_of_the_folder_says_where_it_is_looked_for(monkeypatch, tmp_path, name, file):
    monkeypatch.delenv("BAYESUQ_DATA", raising=False)
    with pytest.raises(ValueError, match=f"{file} is read from the folder .* BAYESUQ_DATA names; it is not set: that"):
        load(name)
    for place in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setenv("BAYESUQ_DATA", str(place))
        with pytest.raises(ValueError, match=f"BAYESUQ_DATA names; it is {place}, and {file} is not there"):
            load(name)


def test_a_misspelt_set_of_an_absent_folder_says_both(monkeypatch):
    monkeypatch.delenv("BAYESUQ_DATA", raising=False)
    with pytest.raises(ValueError, match=r"Did you mean 'mnist'\? images/mnist.npz is read from .*it is not set"):
        load("mnits")


@pytest.mark.parametrize(
    "name",
    [
        "uci/../../secret",
        "uci/../secret",
        "uci/..",
        "uci/.secret",
        "uci/sub/secret",
        "uci//secret",
        "uci\\..\\secret",
        "uci/secret\n",
        "uci/secret\0",
        "../secret",
        "/secret",
        "uci/",
        "",
    ],
)
def test_names_do_not_lead_out_of_the_folder(folder, monkeypatch, name):
    inner = folder / "inner"
    for place in (inner / "uci", inner / "uci/sub"):
        place.mkdir(parents=True)
    write_uci(folder, "secret")
    secret = (folder / "uci/secret.npz").read_bytes()
    for place in (folder, inner, inner / "uci/sub"):
        (place / "secret.npz").write_bytes(secret)
    (inner / "uci/.secret.npz").write_bytes(secret)
    monkeypatch.setenv("BAYESUQ_DATA", str(inner))
    with pytest.raises(ValueError, match="`name` must be one of"):
        load(name)
    with pytest.raises(ValueError, match="`name` must be one of"):
        load(str(folder / "secret"))


@pytest.mark.parametrize("name", [None, 3, Path("digits"), ("digits",)])
def test_a_name_is_a_string(name):
    with pytest.raises(TypeError, match=r"`name` must be a string such as 'digits'"):
        load(name)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (0.5, TypeError), (True, TypeError), (None, TypeError)])
def test_a_seed_is_a_whole_number_from_zero(seed, error):
    for name in ("digits", "toy/linear"):
        with pytest.raises(error, match="`seed` must be"):
            load(name, seed=seed)


def test_importing_reads_no_data(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("data were read")

    for module, name in ((np, "load"), (sklearn.datasets, "load_digits"), (Path, "open")):
        monkeypatch.setattr(module, name, refuse)
    assert callable(runpy.run_path(datasets.__file__)["load"])


def test_what_is_loaded_is_the_callers_own():
    first = load("digits")
    first.train.x.zero_()
    assert load("digits").train.x.max() == 1


# Real data


@pytest.mark.parametrize("name", UCI)
def test_published_splits_cover_every_row_once_and_differ(name):
    if f"uci/{name}" not in available():
        pytest.skip(f"the folder BAYESUQ_DATA does not hold uci/{name}")
    num_rows, num_splits = UCI[name]
    with np.load(Path(os.environ["BAYESUQ_DATA"], f"uci/{name}.npz"), allow_pickle=False) as archive:
        x, y, train_index = archive["x"], archive["y"], archive["train_index"]
    first, last = load(f"uci/{name}", split=0), load(f"uci/{name}", split=num_splits - 1)
    for k, split in ((0, first), (num_splits - 1, last)):
        everything = table(split.train, split.val, split.test)
        assert len(everything) == num_rows
        np.testing.assert_array_equal(everything, sorted_rows(x, y))
        rows = train_index[k]
        np.testing.assert_array_equal(table(split.refit), sorted_rows(x[rows], y[rows]))
        assert len(split.val) == len(rows) // 10
    assert not torch.equal(first.test.x, last.test.x)
    with pytest.raises(ValueError, match=f"below {num_splits}"):
        load(f"uci/{name}", split=num_splits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "scale"),
    [
        pytest.param("mnist", 0.13066, 0.30811, marks=needs("mnist")),
        pytest.param("fashion_mnist", 0.28604, 0.35302, marks=needs("fashion_mnist")),
    ],
)
def test_real_images_have_their_published_moments_and_counts(name, mean, scale):
    split = load(name)
    assert [len(part) for part in (split.train, split.val, split.test)] == [55000, 5000, 10000]
    assert split.train.x.shape[1:] == (1, 28, 28)
    pixels = torch.cat([split.train.x.flatten(), split.val.x.flatten()])  # moments of all 60,000
    assert float(pixels.mean(dtype=torch.float64)) == pytest.approx(mean, abs=1e-5)
    assert float(pixels.square().mean(dtype=torch.float64)) == pytest.approx(mean**2 + scale**2, abs=1e-5)
    assert float(pixels.min()) == 0
    assert float(pixels.max()) == 1
    if name == "mnist":
        counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert np.bincount(torch.cat([split.train.y, split.val.y])).tolist() == counts
    else:
        assert np.bincount(torch.cat([split.train.y, split.val.y])).tolist() == [6000] * 10
    assert split.ood is None or len(split.ood) == 10000


@pytest.mark.slow
@needs("camvid")
def test_real_camvid_has_its_frames_and_labels():
    split = load("camvid")
    assert [len(part) for part in (split.train, split.val, split.test)] == [367, 101, 233]
    for part in (split.train, split.val, split.test):
        assert part.x.shape[1:] == (3, 120, 160)
        assert part.y.shape[1:] == (120, 160)
        assert 0 <= part.x.min() < part.x.max() <= 1
        assert (torch.bincount(part.y.flatten()) > 0).tolist() == [True] * 12
    with np.load(Path(os.environ["BAYESUQ_DATA"]) / "segmentation/camvid_120x160.npz") as file:
        published = [str(name).lower() for name in file["class_names"]]
    named = [name.replace("sign", "signsymbol") for name in CLASS_NAMES["camvid"]]
    assert named == published[:11]


@needs("membrane")
def test_real_membrane_has_its_blocks_of_sections():
    split = load("membrane")
    assert [len(part) for part in (split.train, split.val, split.test)] == [20, 5, 5]
    labels = torch.cat([split.train.y, split.val.y, split.test.y])
    assert float(labels.double().mean()) == pytest.approx(0.238, abs=5e-4)
    shade = torch.cat([split.train.x, split.val.x, split.test.x])[:, 0]
    assert shade[labels == 1].mean() < shade[labels == 0].mean()  # membranes are dark


@needs("co2")
def test_real_co2_has_its_last_ten_years_for_testing():
    split = load("co2")
    assert [len(part) for part in (split.train, split.val, split.test)] == [541, 60, 120]
    assert float(split.train.x[0]) == pytest.approx(1959 + 0.5 / 12)
    assert float(split.test.x[0]) == pytest.approx(2009 + 1.5 / 12)
    assert float(split.test.x[-1]) == pytest.approx(2019 + 0.5 / 12)
    assert split.train.y.mean() < split.val.y.mean() < split.test.y.mean()
    assert float(split.test.y[-1]) == pytest.approx(410.8, abs=0.5)  # ppm, January 2019
