"""MAPIE's conformal intervals and sets around the estimators, which cover what they promise."""

from typing import Any

import numpy as np
import pytest

from bayesuq.estimators import BayesianClassifier, BayesianRegressor

classification = pytest.importorskip("mapie.classification")
regression = pytest.importorskip("mapie.regression")
QUICK = {"num_epochs": 60, "batch_size": 1000, "learning_rate": 0.03}
LEVEL, HELD_OUT, NEW = 0.9, 300, 2000
# Of the new rows, and of the held-out rows that the width is of: their coverage has a beta law of that variance.
ERROR = float(np.sqrt(LEVEL * (1 - LEVEL) * (1 / NEW + 1 / HELD_OUT)))


def rows(number: int, seed: int) -> tuple[Any, Any]:
    """A line of slope 300 with noise of standard deviation 20, in columns of very different size."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(number, 2)) * [1.0, 1000.0]
    return X, 300.0 * X[:, 0] + 20.0 * rng.normal(size=number) - 1e4


def test_conformal_intervals_of_a_fitted_regressor_cover() -> None:
    regressor = BayesianRegressor("map", hidden=(), options=QUICK, random_state=0).fit(*rows(200, 0))
    around = regression.SplitConformalRegressor(regressor, confidence_level=LEVEL, prefit=True)
    around.conformalize(*rows(HELD_OUT, 1))
    X, y = rows(NEW, 2)
    mean, ends = around.predict_interval(X)
    assert np.array_equal(mean, regressor.predict(X))
    inside = (ends[:, 0, 0] <= y) & (y <= ends[:, 1, 0])
    assert abs(inside.mean() - LEVEL) < 2 * ERROR
    own = np.diff(regressor.predict_interval(X, LEVEL), axis=1).mean()
    assert np.diff(ends[:, :, 0], axis=1).mean() == pytest.approx(own, rel=0.25)  # which knew it without them


def test_conformal_intervals_from_cross_validation_cover() -> None:
    regressor = BayesianRegressor("map", hidden=(), options=QUICK, random_state=0)
    around = regression.CrossConformalRegressor(regressor, confidence_level=LEVEL, cv=3)
    around.fit_conformalize(*rows(HELD_OUT, 1))
    X, y = rows(NEW, 2)
    _, ends = around.predict_interval(X)
    inside = (ends[:, 0, 0] <= y) & (y <= ends[:, 1, 0])
    assert 2 * LEVEL - 1 < inside.mean() < LEVEL + 2 * ERROR  # the lower end is all that the method promises


def test_conformal_sets_of_a_fitted_classifier_cover() -> None:
    def labelled(number: int, seed: int) -> tuple[Any, Any]:
        X, y = rows(number, seed)
        noisy = y + 200 * np.random.default_rng(seed + 10).normal(size=number)
        return X, np.where(noisy > -9.8e3, "above", np.where(noisy < -1.02e4, "below", "about"))

    classifier = BayesianClassifier("map", hidden=(), options=QUICK, random_state=0).fit(*labelled(300, 0))
    around = classification.SplitConformalClassifier(classifier, confidence_level=LEVEL, prefit=True)
    around.conformalize(*labelled(HELD_OUT, 1))
    X, y = labelled(NEW, 2)
    labels, sets = around.predict_set(X)
    assert np.array_equal(labels, classifier.predict(X))
    inside = sets[np.arange(NEW), np.searchsorted(classifier.classes_, y), 0]
    assert abs(inside.mean() - LEVEL) < 2 * ERROR
