"""Datasets, splits and units."""

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats

from bayesuq.data import Dataset, Split, Standardizer, split_dataset, split_last_tenth
from bayesuq.estimators import BayesianClassifier, BayesianRegressor
from bayesuq.evaluation.scores import crps
from bayesuq.inference import laplace, map_estimate
from bayesuq.inference.automatic import classify, regress
from bayesuq.inference.posteriors.prediction import differentiated
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive

X = np.arange(12.0).reshape(6, 2)
Y = np.arange(6.0) / 2


def rows_of(*datasets):
    """Inputs and targets side by side, in lexicographic order: equal for equal multisets of rows."""
    table = np.concatenate([np.c_[part.x.flatten(1), part.y.reshape(len(part), -1)] for part in datasets])
    return table[np.lexsort(table.T)]


# Dataset: what comes in


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", [torch.as_tensor, np.asarray, pd.DataFrame])
def test_inputs_of_any_kind_keep_values_and_precision(form, dtype):
    data = Dataset(form(X.astype(dtype)), Y)
    np.testing.assert_array_equal(data.x, X)
    assert data.x.dtype == (torch.float64 if dtype is np.float64 else torch.float32)
    assert len(data) == 6


@pytest.mark.parametrize("y", [list(Y), Y, Y[:, None], torch.tensor(Y), pd.Series(Y), pd.DataFrame({"y": Y})])
def test_real_targets_become_columns(y):
    data = Dataset(X, y)
    np.testing.assert_array_equal(data.y, Y[:, None])
    assert not data.is_labelled


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.uint16, np.int32, ">i4", np.uint64])
def test_whole_numbers_are_labels(dtype):
    labels = np.array([0, 1, 1, 0, 1, 0])
    data = Dataset(X, labels.astype(dtype))
    assert data.is_labelled
    assert data.y.dtype == torch.int64
    np.testing.assert_array_equal(data.y, labels)


def test_bytes_and_booleans_are_cast_with_their_scale_unchanged_and_whole_numbers_stay_whole():
    assert Dataset(np.array([[255], [0]], dtype=np.uint8), [0.0, 1.0]).x.flatten().tolist() == [255.0, 0.0]
    assert Dataset([[True], [False]], [0.0, 1.0]).x.flatten().tolist() == [1.0, 0.0]
    whole = Dataset(np.array([[3], [-(2**53) - 1]], dtype=np.int64), [0.0, 1.0]).x
    assert whole.dtype == torch.int64
    assert whole.flatten().tolist() == [3, -(2**53) - 1]


def test_images_keep_their_shape_and_pixel_labels_theirs():
    data = Dataset(np.zeros((4, 3, 5, 7)), np.zeros((4, 5, 7), dtype=np.uint8))
    assert data.x.shape == (4, 3, 5, 7)
    assert data.y.shape == (4, 5, 7)


def test_a_column_of_labels_or_counts_is_one_a_row():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(Dataset(torch.zeros(3, 1), torch.tensor([[0], [2], [1]])).y, torch.tensor([0, 2, 1]))


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.where(X == 4, np.nan, X), Y, "`x` must be finite; 1 of 6 rows .*row 2"),
        (np.where(X > 8, np.inf, X), Y, "`x` must be finite; 2 of 6 rows .*row 4"),
        (X, np.where(Y > 1, np.nan, Y), "`y` must be finite; 3 of 6 rows .*row 3"),
        (X, np.where(Y > 2, -np.inf, Y), "`y` must be finite; 1 of 6 rows"),
        (X[:0], Y[:0], r"`x` must not be empty; got shape \(0, 2\)"),
        (X[:, :0], Y, r"`x` must not be empty; got shape \(6, 0\)"),
        (X, Y[:5], r"`y` must have N = 6 rows as `x` has; got shape \(5,\) for `x` of shape \(6, 2\)"),
        (X, Y[None], r"`y` must have N = 6 rows .*\(1, 6\)"),
        (X, 1.0, r"`y` must have N = 6 rows .*\(\)"),
        (X[:, 0], Y, r"`x` must have shape .*\(6,\).*reshape\(-1, 1\)"),
        (X, np.zeros((6, 0)), r"`y` must have shape \(N, D\)"),
    ],
)
def test_wrong_values_are_refused_with_what_came(x, y, says):
    with pytest.raises(ValueError, match=says):
        Dataset(x, y)


@pytest.mark.parametrize(
    "bad",
    [
        sparse.csr_array(X),
        torch.eye(6).to_sparse(),
        np.ma.masked_less(X, 3),
        X.astype(complex),
        X.astype(object),
        X.astype(str),
        X.astype("datetime64[s]"),
        pd.DataFrame({"a": list("abcdef")}),
    ],
    ids=["sparse", "torch-sparse", "masked", "complex", "object", "str", "datetime", "pandas-text"],
)
def test_wrong_kinds_are_refused_for_inputs_targets_and_weights(bad):
    with pytest.raises(TypeError, match="`x` must"):
        Dataset(bad, Y)
    with pytest.raises(TypeError, match="`y` must"):
        Dataset(X, bad)
    with pytest.raises(TypeError, match="`weight` must"):
        Dataset(X, Y, bad)


@pytest.mark.parametrize(
    ("labels", "is_told"),
    [("abcdef", False), ("fedcba", True), (range(6), False), ("abcdeg", False), ("aaaaaa", False)],
    ids=["same", "other order", "numbered anew", "other rows", "one"],
)
@pytest.mark.parametrize("door", [Dataset, regress, classify, BayesianRegressor().fit, BayesianClassifier().fit])
def test_rows_with_the_same_labels_in_another_order_are_told(door, labels, is_told):
    x, y = pd.DataFrame(X * np.nan, index=list("abcdef")), pd.Series([0, 1, 2, 0, 1, 2], index=list(labels))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match=r"finite|NaN"):
            door(x, y)
    assert any("another order: row 0 is a in `x` and f in `y`" in str(one.message) for one in told) == is_told


@pytest.mark.parametrize("weight", [np.arange(6), np.arange(6.0)[:, None], list(range(6))])
def test_weights_are_of_rows_or_of_targets(weight):
    data = Dataset(X, Y, weight)
    assert data.weight is not None
    assert data.weight.flatten().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (-np.arange(6.0), "at least 0; got a minimum of -5.0"),
        (np.where(Y > 2, np.nan, Y), "finite; 1 of 6 rows"),
        (np.where(Y > 2, np.inf, Y), "finite; 1 of 6 rows"),
        (np.ones(5), r"shape \(6,\), or \(6, 1\) as `y`; got \(5,\)"),
        (np.ones((6, 2)), r"shape \(6,\), or \(6, 1\)"),
        (1.0, r"shape \(6,\)"),
    ],
)
def test_weights_of_wrong_shape_or_value_are_refused(weight, says):
    with pytest.raises(ValueError, match=f"`weight` must .*{says}"):
        Dataset(X, Y, weight)


def test_a_dataset_is_frozen_and_copies():
    data = Dataset(X, Y, np.ones(6))
    with pytest.raises(AttributeError):
        data.x = torch.zeros(1)
    twin = copy.deepcopy(data)
    assert torch.equal(twin.x, data.x)
    assert twin.x is not data.x


# Dataset: rows, concatenation, devices


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16, ">i8"])
def test_rows_are_taken_in_order_whatever_integers_name_them(dtype):
    data = Dataset(X, Y, np.arange(6)).rows(np.array([5, 0, 0, 3], dtype=dtype))
    assert data.y.flatten().tolist() == [2.5, 0.0, 0.0, 1.5]
    assert data.x[:, 0].tolist() == [10.0, 0.0, 0.0, 6.0]
    assert data.weight.tolist() == [5.0, 0.0, 0.0, 3.0]


def test_rows_by_mask_from_the_end_and_by_tensor():
    data = Dataset(X, Y)
    assert data.rows(Y > 1).y.flatten().tolist() == [1.5, 2.0, 2.5]
    assert data.rows([-1, 0]).y.flatten().tolist() == [2.5, 0.0]
    assert data.rows(torch.tensor([2])).y.shape == (1, 1)


@pytest.mark.parametrize(
    ("index", "error", "says"),
    [
        ([0.0, 1.0], TypeError, "`index` must hold whole numbers or booleans; got torch.float64"),
        (3, ValueError, r"`index` must have one dimension.*\(\)"),
        ([[0, 1]], ValueError, r"`index` must have one dimension.*\(1, 2\)"),
        ([True, False], ValueError, r"N = 6 entries if boolean; got \(2,\)"),
        ([], ValueError, "empty"),
        (np.zeros(6, dtype=bool), ValueError, "empty"),
        ([6], IndexError, "out of bounds"),
        (["0"], TypeError, "`index` must hold numbers"),
    ],
)
def test_rows_that_are_none_are_refused(index, error, says):
    with pytest.raises(error, match=says):
        Dataset(X, Y).rows(index)


def test_concatenation_keeps_rows_in_order_and_a_missing_weight_is_one():
    first, second = Dataset(X, Y), Dataset(X + 100, Y + 100, np.arange(6))
    assert first.concatenate(first).weight is None
    both = first.concatenate(second)
    np.testing.assert_array_equal(both.x, np.r_[X, X + 100])
    np.testing.assert_array_equal(both.y[:, 0], np.r_[Y, Y + 100])
    assert both.weight.tolist() == [1, 1, 1, 1, 1, 1, 0, 1, 2, 3, 4, 5]
    assert second.concatenate(first).weight.tolist() == [0, 1, 2, 3, 4, 5, 1, 1, 1, 1, 1, 1]


def test_weights_of_rows_and_of_targets_concatenate_to_weights_of_targets():
    targets = np.c_[Y, Y]
    by_target = Dataset(X, targets, np.arange(12.0).reshape(6, 2))
    by_row = Dataset(X, targets, np.arange(6.0))
    assert by_target.concatenate(Dataset(X, targets)).weight[6:].tolist() == [[1.0, 1.0]] * 6
    assert by_row.concatenate(by_target).weight[:6].tolist() == [[k, k] for k in range(6)]
    pixels = np.zeros((6, 4, 4), dtype=int)
    mixed = Dataset(X, pixels, np.arange(6.0)).concatenate(Dataset(X, pixels, np.ones((6, 4, 4))))
    assert mixed.weight.shape == (12, 4, 4)
    assert mixed.weight.sum() == 16 * 15 + 96


def test_concatenation_of_mixed_precision_keeps_the_higher():
    both = Dataset(X.astype(np.float32), Y).concatenate(Dataset(X + 0.1, Y))
    assert both.x.dtype == torch.float64
    np.testing.assert_array_equal(both.x[6:], X + 0.1)


@pytest.mark.parametrize(
    "other",
    [Dataset(X[:, :1], Y), Dataset(X, np.c_[Y, Y]), Dataset(X, np.zeros(6, dtype=int)), Dataset(X[None], Y[:1])],
)
def test_data_of_other_shape_or_kind_do_not_concatenate(other):
    with pytest.raises(ValueError, match="concatenate"):
        Dataset(X, Y).concatenate(other)
    labels = Dataset(X, np.zeros((6, 3), dtype=int))
    with pytest.raises(ValueError, match="Labels and real targets"):
        labels.concatenate(Dataset(X, np.zeros((6, 3))))


def test_to_keeps_values():
    data = Dataset(X, Y, np.arange(6)).to("cpu")
    assert data.x.device.type == "cpu"
    np.testing.assert_array_equal(data.weight, np.arange(6))
    assert Dataset(X, Y).to(torch.device("cpu")).weight is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_targets_and_weights_follow_the_inputs_to_their_device():
    data = Dataset(torch.tensor(X, device="cuda"), Y, np.ones(6))
    assert data.y.is_cuda
    assert data.weight.is_cuda
    both = data.concatenate(Dataset(X, Y))
    assert both.x.is_cuda
    assert both.weight.is_cuda
    assert data.rows([0, 1]).x.is_cuda
    assert len(split_last_tenth(data, data).val) == 1
    np.testing.assert_allclose(Standardizer.fit(data).transform(data).x.cpu().mean(dim=0), 0, atol=1e-6)


# Splits


@pytest.mark.parametrize("num", [5, 10, 97, 100, 1000])
@pytest.mark.parametrize(("val", "test"), [(0.1, 0.2), (0.05, 0.15), (0.3, 0.1), (0.25, 0.5)])
def test_parts_of_a_split_cover_the_rows_once_in_the_shares_asked_for(num, val, test):
    data = Dataset(np.arange(num)[:, None], np.arange(float(num)))
    split = split_dataset(data, val_fraction=val, test_fraction=test)
    np.testing.assert_array_equal(rows_of(split.train, split.val, split.test), rows_of(data))
    assert abs(len(split.val) - val * num) <= max(0.5, 1 - val * num)
    assert abs(len(split.test) - test * num) <= max(0.5, 1 - test * num)
    assert split.ood is None
    assert split.truth is None


def test_a_split_of_labels_is_stratified():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    split = split_dataset(Dataset(np.arange(1000)[:, None], labels))
    assert np.bincount(split.train.y).tolist() == [420, 210, 70]
    assert np.bincount(split.val.y).tolist() == [60, 30, 10]
    assert np.bincount(split.test.y).tolist() == [120, 60, 20]


def test_a_split_depends_on_its_seed_alone():
    data = Dataset(np.arange(50)[:, None], np.arange(50.0))
    before = torch.get_rng_state()
    first, again, other = (split_dataset(data, seed=seed) for seed in (0, 0, 2**40))
    assert torch.equal(first.train.x, again.train.x)
    assert set(first.test.x.flatten().tolist()) != set(other.test.x.flatten().tolist())
    tenth, tenth_again, tenth_other = (split_last_tenth(data, data, seed=seed) for seed in (0, 0, 2**40))
    assert torch.equal(tenth.val.x, tenth_again.val.x)
    assert not torch.equal(tenth.val.x, tenth_other.val.x)
    assert torch.equal(torch.get_rng_state(), before)


def test_pixel_labels_are_split_without_strata_and_weights_travel():
    data = Dataset(np.arange(10)[:, None], np.zeros((10, 2, 2), dtype=int), np.arange(10.0))
    split = split_dataset(data)
    for part in (split.train, split.val, split.test):
        assert part.weight.tolist() == part.x.flatten().tolist()


@pytest.mark.parametrize(
    ("fractions", "says"),
    [
        ({"val_fraction": 0.0}, r"`val_fraction` must lie strictly between 0 and 1; got 0.0"),
        ({"test_fraction": 1.0}, "`test_fraction` must lie strictly"),
        ({"test_fraction": math.nan}, "`test_fraction`"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "must be below 1; got 1.0"),
    ],
)
def test_fractions_leave_something_to_train_on(fractions, says):
    with pytest.raises(ValueError, match=says):
        split_dataset(Dataset(X, Y), **fractions)


def test_what_cannot_be_divided_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"(?s)30 rows cannot be divided into 0.1 .*0.2 .*merge or drop"):
        split_dataset(Dataset(np.zeros((30, 1)), np.r_[0, np.ones(29)].astype(int)))
    with pytest.raises(ValueError, match="2 rows cannot be divided"):
        split_dataset(Dataset(X[:2], Y[:2]))


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)])
def test_seeds_of_splits_are_whole_numbers_from_zero(seed, error):
    data = Dataset(X, Y)
    with pytest.raises(error, match="`seed` must be"):
        split_dataset(data, seed=seed)
    with pytest.raises(error, match="`seed` must be"):
        split_last_tenth(data, data, seed=seed)


@pytest.mark.parametrize(("num", "num_val"), [(2, 1), (9, 1), (19, 1), (20, 2), (455, 45)])
def test_the_last_tenth_validates_and_the_test_stays(num, num_val):
    train = Dataset(np.arange(num)[:, None], np.arange(float(num)))
    test = Dataset([[-1.0]], [-1.0])
    split = split_last_tenth(train, test)
    assert len(split.val) == num_val
    np.testing.assert_array_equal(rows_of(split.train, split.val), rows_of(train))
    assert split.test is test


def test_one_training_row_leaves_none_to_validate():
    with pytest.raises(ValueError, match=r"`train` must have at least 2 rows.*got 1"):
        split_last_tenth(Dataset(X[:1], Y[:1]), Dataset(X, Y))


def test_refit_is_train_and_val():
    split = Split(train=Dataset(X, Y), val=Dataset(X + 100, Y), test=Dataset(X, Y))
    np.testing.assert_array_equal(split.refit.x, np.r_[X, X + 100])


# Units


def correlated(num=200, dtype=np.float64):
    """Features and targets of very different units, around offsets of 10 scales."""
    noise = np.random.default_rng(0)
    scales = np.array([1e-30, 1.0, 1e30])
    return Dataset(
        (scales * (noise.normal(size=(num, 3)) + 10)).astype(dtype),
        (np.array([5.0, 1e4]) * noise.normal(size=(num, 2))),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standard_units_have_zero_mean_and_unit_variance_at_every_scale(dtype):
    data = correlated(dtype=dtype)
    standard = Standardizer.fit(data).transform(data)
    tolerance = 1e-4 if dtype is np.float32 else 1e-12  # float32 keeps 6e-8 of values at 10 scales
    np.testing.assert_allclose(standard.x.double().mean(dim=0), 0, atol=tolerance)
    np.testing.assert_allclose(standard.x.double().std(dim=0, correction=0), 1, atol=tolerance)
    np.testing.assert_allclose(standard.y.mean(dim=0), 0, atol=1e-12)
    np.testing.assert_allclose(standard.y.std(dim=0, correction=0), 1, atol=1e-12)


def test_transform_is_undone_by_the_stored_units():
    data = correlated()
    standardizer = Standardizer.fit(data)
    standard = standardizer.transform(data)
    np.testing.assert_allclose(standard.x * standardizer.x_scale + standardizer.x_loc, data.x, rtol=1e-13)
    np.testing.assert_allclose(standard.y * standardizer.y_scale + standardizer.y_loc, data.y, rtol=1e-12)


def test_units_come_from_the_fitted_rows_and_weights_travel():
    train, test = Dataset(X, Y), Dataset(X + 1, Y + 1, np.arange(6))
    standard = Standardizer.fit(train).transform(test)
    np.testing.assert_allclose(standard.x, (X + 1 - X.mean(axis=0)) / X.std(axis=0))
    np.testing.assert_allclose(standard.y[:, 0], (Y + 1 - Y.mean()) / Y.std())
    np.testing.assert_array_equal(standard.weight, np.arange(6))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6, 1e6 + 0.1, -1e30, 1e-30])
def test_a_constant_feature_is_only_centred(constant, dtype):
    x = np.c_[np.full(101, constant), np.linspace(0, 1, 101)].astype(dtype)
    standardizer = Standardizer.fit(Dataset(x, np.full(101, constant)))
    standard = standardizer.transform(Dataset(x, np.full(101, constant)))
    np.testing.assert_allclose(standard.x[:, 0], 0, atol=abs(constant) * 1e-14)
    np.testing.assert_allclose(standard.y, 0, atol=abs(constant) * 1e-14)
    assert standardizer.x_scale[0, 0] == 1
    assert float(standard.x[-1, 1]) == pytest.approx(0.5 / np.linspace(0, 1, 101).std(), rel=1e-6)


def test_images_are_standardised_by_channel():
    noise = np.random.default_rng(0)
    images = noise.normal(size=(20, 3, 6, 5)) * np.array([1.0, 10.0, 100.0])[:, None, None] + 7
    standardizer = Standardizer.fit(Dataset(images, np.zeros(20, dtype=int)))
    standard = standardizer.transform(Dataset(images, np.zeros(20, dtype=int)))
    np.testing.assert_allclose(standard.x.mean(dim=(0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(standard.x.std(dim=(0, 2, 3), correction=0), 1, atol=1e-12)
    other_size = standardizer.transform(Dataset(images[:, :, :2, :2], np.zeros(20, dtype=int)))
    np.testing.assert_allclose(other_size.x, standard.x[:, :, :2, :2])


def test_labels_have_no_unit():
    data = Dataset(X, [0, 1, 2, 0, 1, 2])
    standardizer = Standardizer.fit(data)
    assert standardizer.y_loc is None
    assert torch.equal(standardizer.transform(data).y, data.y)
    predictive = CategoricalPredictive.from_probs(torch.full((1, 6, 3), 1 / 3))
    assert standardizer.inverse(predictive) is predictive


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Dataset(X[:, :1], Y), r"`x` must have 2 features in 2 dimensions .*\(6, 1\)"),
        (Dataset(X[:, :, None], Y), r"`x` must have 2 features in 2 dimensions .*\(6, 2, 1\)"),
        (Dataset(X, np.zeros(6, dtype=int)), "labels or real numbers"),
        (Dataset(X, np.c_[Y, Y]), r"`y` must have 1 target columns .*\(2,\)"),
    ],
)
def test_data_of_another_form_are_not_transformed(data, says):
    with pytest.raises(ValueError, match=says):
        Standardizer.fit(Dataset(X, Y)).transform(data)


@pytest.mark.parametrize("bare", [X, Y, split_dataset(Dataset(X, Y))], ids=["inputs", "targets", "split"])
def test_bare_arrays_have_no_place_where_a_dataset_or_a_predictive_is_asked_for(bare):
    standardizer = Standardizer.fit(Dataset(X, Y))
    for use in (Standardizer.fit, standardizer.transform):
        with pytest.raises(TypeError, match=r"a bayesuq\.Dataset, .*pass Dataset\(x, y\)"):
            use(bare)
    with pytest.raises(TypeError, match="what `predict` returns"):
        standardizer.inverse(bare)


def test_one_target_column_does_not_broadcast_to_many():
    standardizer = Standardizer.fit(Dataset(X, np.c_[Y, 10 * Y]))
    with pytest.raises(ValueError, match=r"`y` must have 2 target columns .*\(1,\)"):
        standardizer.transform(Dataset(X, Y))
    with pytest.raises(ValueError, match=r"`predictive` must have 2 target columns .*\(1,\)"):
        standardizer.inverse(GaussianPredictive(mean=torch.zeros(2, 6, 1), noise_variance=1.0))


def test_a_spread_beyond_float64_is_refused_not_made_zero():
    with pytest.raises(ValueError, match=r"overflows float64.*larger unit"):
        Standardizer.fit(Dataset(X * 1e200, Y))


def test_the_inverse_predictive_is_in_raw_units_and_its_log_score_has_the_jacobian():
    noise = np.random.default_rng(0)
    data = Dataset(X, np.c_[Y * 40 + 7, noise.normal(size=6) * 1e-3])
    standardizer = Standardizer.fit(data)
    means, variances = noise.normal(size=(4, 6, 2)), noise.uniform(0.1, 2, size=(4, 6, 2))
    function = noise.uniform(0, 1, size=(4, 6, 2))
    standard = GaussianPredictive(mean=means, noise_variance=variances, function_variance=function)
    raw = standardizer.inverse(standard)
    loc, scale = data.y.numpy().mean(axis=0), data.y.numpy().std(axis=0)

    jacobian = -np.log(scale).sum()
    target = standardizer.transform(data).y
    np.testing.assert_allclose(raw.log_prob(data.y) - standard.log_prob(target), jacobian, rtol=1e-12)
    density = stats.norm(loc + scale * means, scale * np.sqrt(variances + function)).logpdf(data.y.numpy())
    expected = np.logaddexp.reduce(density.sum(axis=2), axis=0) - np.log(4)
    np.testing.assert_allclose(raw.log_prob(data.y), expected, rtol=1e-12)

    np.testing.assert_allclose(raw.mean, loc + scale * means.mean(axis=0))
    np.testing.assert_allclose(raw.aleatoric, scale**2 * variances.mean(axis=0))
    np.testing.assert_allclose(raw.epistemic, scale**2 * (function.mean(axis=0) + means.var(axis=0)))


def test_scores_in_raw_units_do_not_depend_on_the_unit_of_y_beyond_its_jacobian():
    metres, millimetres = Dataset(X, Y), Dataset(X, 1000 * Y)
    standard = GaussianPredictive(mean=torch.zeros(1, 6, 1), noise_variance=1.0)
    one = Standardizer.fit(metres).inverse(standard).log_prob(metres.y)
    other = Standardizer.fit(millimetres).inverse(standard).log_prob(millimetres.y)
    np.testing.assert_allclose(one - other, math.log(1000), rtol=1e-12)


def test_a_dataset_shows_its_shapes_and_not_its_numbers() -> None:
    assert repr(Dataset(torch.zeros(2, 1), [0, 1])) == "Dataset(x: (2, 1) float32, y: (2,) int64)"


# Missing targets


GAPS = torch.tensor([[1.0, torch.nan], [torch.nan, 2.0], [3.0, 4.0], [5.0, torch.nan]])
FOUR = torch.arange(8.0).reshape(4, 2)


@pytest.mark.parametrize(
    "form", [lambda y: y, lambda y: y.numpy(), lambda y: y.tolist()], ids=["tensor", "array", "list"]
)
@pytest.mark.parametrize("fill", [torch.nan, torch.inf])
def test_missing_targets_are_refused_with_the_weights_that_leave_them_out(form, fill):
    y = form(GAPS.masked_fill(GAPS.isnan(), fill))
    with pytest.raises(ValueError, match=r"3 of 4 rows .* first is row 0.* pass weight=") as caught:
        Dataset(FOUR, y)
    remedy = str(caught.value).rpartition("weight=")[2].rstrip(".")
    data = Dataset(FOUR, y, weight=eval(remedy, {"y": y, "np": np}))
    assert torch.equal(data.weight, (~GAPS.isnan()).float())
    assert torch.equal(data.y, torch.tensor([[1.0, 2.0], [3.0, 2.0], [3.0, 4.0], [5.0, 2.0]]))


def test_a_row_of_weight_zero_may_lack_its_target_and_no_other_row():
    data = Dataset(FOUR, [1.0, float("nan"), 3.0, 5.0], weight=[1.0, 0.0, 1.0, 2.0])
    assert data.y.flatten().tolist() == [1.0, 3.0, 3.0, 5.0]
    with pytest.raises(ValueError, match=r"1 of 4 rows .* that count, the first is row 1"):
        Dataset(FOUR, [1.0, float("nan"), 3.0, 5.0], weight=[0.0, 1.0, 1.0, 1.0])
    empty = Dataset(FOUR, torch.full((4, 1), torch.nan), weight=torch.zeros(4))
    assert empty.y.flatten().tolist() == [0.0] * 4


def test_the_units_of_targets_are_those_of_the_ones_that_count():
    units = Standardizer.fit(Dataset(FOUR, GAPS, weight=~GAPS.isnan()))
    assert units.y_loc.tolist() == [3.0, 3.0]
    torch.testing.assert_close(units.y_scale, torch.tensor([8 / 3, 1.0], dtype=torch.float64).sqrt())
    by_row = Standardizer.fit(Dataset(FOUR, [1.0, 100.0, 3.0, 5.0], weight=[1.0, 0.0, 2.0, 1.0]))
    assert by_row.y_loc.tolist() == [3.0]


@pytest.mark.filterwarnings("ignore:The weights are no mode")
def test_a_fit_with_missing_targets_is_one_without_their_rows():
    y = torch.tensor([0.5, torch.nan, 2.5, torch.nan])
    kept = ~y.isnan()
    model = BayesianNetwork(networks.mlp(2, (), 1), priors.Normal(), likelihoods.Normal(scale=0.5))
    whole, part = Dataset(FOUR, y, weight=kept), Dataset(FOUR[kept], y[kept])
    modes = [map_estimate.fit(model, data, num_epochs=20, seed=0) for data in (whole, part)]
    torch.testing.assert_close(modes[0].values, modes[1].values)
    fits = [laplace.fit(model, data, mode=modes[1], structure="full", seed=0) for data in (whole, part)]
    for name, value in fits[1].curvature.items():
        torch.testing.assert_close(fits[0].curvature[name], value)


# Maps


def test_maps_of_real_numbers_are_taken_whole_or_not():
    x, depth = torch.rand(3, 1, 4, 5), torch.rand(3, 1, 4, 5)
    for each in (depth, depth.round()):
        assert torch.equal(Dataset(x, each).y, each)
        assert not Dataset(x, each).is_labelled


def test_weights_of_pixels_come_with_a_channel_or_without():
    x, y, weight = torch.rand(3, 1, 4, 5, 6), torch.zeros(3, 4, 5, 6, dtype=torch.int64), torch.rand(3, 4, 5, 6)
    assert torch.equal(Dataset(x, y, weight.unsqueeze(1)).weight, weight)
    assert torch.equal(Dataset(x, y.unsqueeze(1), weight).weight, weight.unsqueeze(1))


def test_a_memory_map_is_read_where_it_lies(tmp_path):
    for name, values in (("x", np.ones((50, 3), dtype=np.float32)), ("y", np.ones((50, 1), dtype=np.float32))):
        np.save(tmp_path / f"{name}.npy", values)
    x, y = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "y"))
    data = Dataset(x, y)
    assert (data.x.data_ptr(), data.y.data_ptr()) == (x.ctypes.data, y.ctypes.data)
    model = BayesianNetwork(networks.mlp(3, (), 1), priors.Normal(), likelihoods.Normal(scale=0.5))
    source = Source(NetworkReader(model), data, 10)
    assert source.rows.x.data_ptr() == x.ctypes.data
    map_estimate.fit(model, data, num_epochs=1, seed=0, checkpoint=tmp_path / "checkpoint").predict(x)


def test_many_parts_are_joined_in_one_go(monkeypatch):
    parts = [Dataset(torch.full((2, 3), float(number)), torch.zeros(2), torch.ones(2)) for number in range(50)]
    calls = []
    monkeypatch.setattr(torch, "cat", lambda tensors, cat=torch.cat: calls.append(len(tensors)) or cat(tensors))
    whole = parts[0].concatenate(*parts[1:])
    assert calls == [50, 50, 50]
    assert whole.x[:, 0].tolist() == [float(number) for number in range(50) for _ in range(2)]


def far_row() -> Dataset:
    """4,000 rows, one of whose features is 51 standard deviations away in the first."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, generator=generator)
    x[0, 1] = 85.0
    return Dataset(x, torch.sin(x[:, 0]) + 0.1 * torch.randn(4000, generator=generator))


def test_a_feature_far_from_its_mean_is_told_and_clipped() -> None:
    data = far_row()
    with pytest.warns(
        UserWarning, match=r"1 of 2 features .* feature 1 as far as 5\d.*Standardizer.fit\(data, clip=5\)"
    ):
        plain = Standardizer.fit(data)
    units = Standardizer.fit(data, clip=5)  # a warning would be an error here
    clipped, free = units.transform(data), plain.transform(data)
    assert free.x[0, 1] > 50
    assert clipped.x[0, 1] == 5
    assert torch.equal(clipped.x[1:], free.x[1:])
    assert torch.equal(clipped.y, free.y)
    with pytest.raises(ValueError, match="`clip` must be"):
        Standardizer.fit(data, clip=-1.0)


def test_of_a_row_far_away_mean_and_crps_stay_within_bounds_by_default() -> None:
    """A network of ReLUs grows no faster than linearly, and the noise not above 10 units of y.

    So |m(r x)| <= r max |m| + (r - 1) |m(0)| along a ray from 0, and CRPS <= |y - m| + 10 sqrt(2 / pi).
    """
    with pytest.warns(UserWarning, match="further than 10"):
        units = Standardizer.fit(far_row())
    data = units.transform(far_row())
    net = networks.mlp(2, (50,), 2, seed=0)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.HeteroscedasticNormal())
    posterior = map_estimate.fit(model, data, num_epochs=5, seed=0)
    far = posterior.predict(data.x[:1])
    reach = float(data.x[0].norm())
    theta = posterior.sample_weights()
    weights = [theta[name][0] for name in theta if theta[name].ndim == 3]
    assert len(weights) == 2
    steepest = float(torch.linalg.matrix_norm(weights[0], 2) * weights[1][0].norm())
    at_zero = float(posterior.predict(torch.zeros(1, 2)).mean.abs())
    assert float(far.mean.abs()) <= at_zero + steepest * reach
    assert float(far.total.sqrt()) <= 10.0 * (1 + 1e-6)
    bound = float((data.y[:1] - far.mean).abs()) + 10 * math.sqrt(2 / math.pi)
    assert float(crps(far, data.y[:1])) <= bound


def test_new_inputs_alone_are_standardised_as_data_are() -> None:
    data = Dataset([[0.0, 10.0], [2.0, 30.0], [4.0, 20.0]], [1.0, 2.0, 3.0])
    standardizer = Standardizer.fit(data, clip=1.0)
    assert torch.equal(standardizer.inputs(data.x), standardizer.transform(data).x)
    assert torch.equal(standardizer.inputs(data.x[1:].long()), standardizer.inputs(data.x[1:].double()))
    with pytest.raises(ValueError, match=r"2 features in 2 dimensions as the fitted data had; got \(3, 1\)"):
        standardizer.inputs(data.x[:, :1])


def skewed(unit: float = 1.0) -> Dataset:
    """A feature of powers of two, a symmetric one, one with a 0, one that is skewed to the left, and a constant one."""
    powers = 2.0 ** torch.arange(11.0).double()
    features = [powers * unit, torch.arange(1.0, 12.0), powers - 1, 1025 - powers, torch.full((11,), 5.0)]
    return Dataset(torch.stack([each.double() for each in features], dim=1), torch.arange(11.0))


def test_positive_skewed_features_are_read_by_their_logarithms_in_any_unit() -> None:
    data = skewed()
    units, plain = Standardizer.fit(data, logarithms=True), Standardizer.fit(data, clip=9.0)
    assert units.x_least is not None
    assert units.x_least.flatten().tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert plain.x_least is None
    standard = units.transform(data).x
    torch.testing.assert_close(standard[:, 0], (torch.arange(11.0).double() - 5) / 10**0.5)
    assert torch.equal(standard[:, 1:], plain.transform(data).x[:, 1:])
    other = Standardizer.fit(skewed(1e-9), logarithms=True)
    torch.testing.assert_close(other.transform(skewed(1e-9)).x, standard, rtol=1e-9, atol=1e-9)


def test_logarithms_go_on_straight_below_the_least_fitted_value() -> None:
    units = Standardizer.fit(skewed(2.0), logarithms=True)
    x = skewed(2.0).x[:4].clone().requires_grad_()
    with torch.no_grad():
        x[:, 0] = torch.tensor([2.0, 1.0, 0.0, -4.0])
    with differentiated(x, differentiable=True):
        standard = units.inputs(x)[:, 0] * units.x_scale.flatten()[0] + units.x_loc.flatten()[0]
    torch.testing.assert_close(standard.detach(), math.log(2) + torch.tensor([0.0, -0.5, -1.0, -3.0]).double())
    (slope,) = torch.autograd.grad(standard.sum(), x)
    assert slope.isfinite().all()
    torch.testing.assert_close(slope[1:, 0], torch.full((3,), 0.5).double())


def test_a_standardizer_with_logarithms_is_read_as_it_was_saved(tmp_path: Path) -> None:
    units = Standardizer.fit(skewed(), clip=2.0, logarithms=True)
    units.save(tmp_path / "units.safetensors")
    found = Standardizer.load(tmp_path / "units.safetensors")
    assert torch.equal(found.inputs(skewed().x), units.inputs(skewed().x))
    assert Standardizer.fit(Dataset([[-1.0], [1.0]], [0.0, 1.0]), logarithms=True).x_least is None


def test_data_sets_are_joined_and_standardised_by_the_names_of_their_columns():
    frame = pd.DataFrame(X, columns=["a", "b"])
    one, moved = Dataset(frame, Y), Dataset(frame[["b", "a"]], Y)
    assert torch.equal(one.concatenate(moved).x, torch.cat([one.x, one.x]))
    units = Standardizer.fit(one)
    assert torch.equal(units.transform(moved).x, units.transform(one).x)
    given = Dataset(frame[["b", "a"]], Y, scale=np.ones(6))
    assert torch.equal(given.in_columns(("a", "b")).x.x, one.x)
    for use in (one.concatenate, units.transform):
        with pytest.raises(ValueError, match=r"must have the columns 'a', 'b' .* it lacks 'b' and 'c' was not fitted"):
            use(Dataset(frame.rename(columns={"b": "c"}), Y))


@pytest.mark.parametrize(
    ("flags", "error", "says"),
    [([True, False], ValueError, "must be 3 booleans.*got 2"), ([0, 1, 1], TypeError, "must be booleans.*int64")],
)
def test_flags_that_are_none_of_the_features_are_refused(flags: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"`flags` {says}"):
        Standardizer.fit(Dataset(torch.arange(12.0).view(4, 3), torch.arange(4.0)), flags=flags)
