"""Estimators of scikit-learn: its own checks, what wraps estimators, and the numbers against the package's own way."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import check_estimator

import bayesuq as bq
from bayesuq.estimators import BayesianClassifier, BayesianRegressor
from bayesuq.evaluation.report.reporting import evaluate

QUICK = {"num_epochs": 60, "batch_size": 1000, "learning_rate": 0.03}
SHORT = {**QUICK, "num_epochs": 15}
CHAINS = {"num_samples": 5, "num_warmup": 5, "thinning": 1, "num_chains": 1, "progress": False}
FEW = {
    "map": SHORT,
    "variational": SHORT,
    "dropout": SHORT,
    "laplace": SHORT,
    "ensemble": {**SHORT, "num_members": 2},
    "swag": {**QUICK, "num_epochs": 20},
    "sgmcmc": {
        "num_samples": 5,
        "num_warmup": 50,
        "thinning": 2,
        "num_chains": 1,
        "start": "network",
        "step_size": 0.003,
    },
    "hmc": CHAINS,
    "gp": {"approximation": "collapsed", "num_inducing": 5, "max_iterations": 3},
}


def table(seed: int = 0, rows: int = 120) -> tuple[Any, Any]:
    """A line with noise of standard deviation 20 around slopes of 300 and 0."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 2)) * [1.0, 1000.0]
    return X, 300.0 * X[:, 0] + 20.0 * rng.normal(size=rows) - 1e4


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BayesianRegressor, BayesianClassifier])
def test_scikit_learns_own_checks_pass(kind: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bq.ConvergenceWarning)
        warnings.simplefilter("ignore", SkipTestWarning)  # its array API needs a package of its own
        warnings.simplefilter("ignore", UserWarning)  # that it lets fit columns far from unit size
        few = {**QUICK, "num_epochs": 6, "learning_rate": 0.3}
        results = check_estimator(kind("map", hidden=(8,), options=few, random_state=0))
    assert len(results) > 50
    assert {result["status"] for result in results} <= {"passed", "skipped"}


@pytest.mark.parametrize("method", FEW)
def test_every_method_is_taken_by_its_name(method: str) -> None:
    X, y = table(rows=40)
    regressor = BayesianRegressor(method, hidden=(4,), options=FEW[method], num_samples=5, random_state=0).fit(X, y)
    mean, std = regressor.predict(X, return_std=True)
    assert mean.shape == std.shape == (40,)
    assert (std > 0).all()
    assert np.array_equal(mean, regressor.predict(X))  # the same draws again
    options = {"num_inducing": 5, "num_epochs": 3} if method == "gp" else FEW[method]
    classifier = BayesianClassifier(method, hidden=(4,), options=options, num_samples=5, random_state=0)
    probabilities = classifier.fit(X, np.where(y > y.mean(), "above", "below")).predict_proba(X)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(40))


BRIEF = {name: {**options, "num_epochs": 5} if "num_epochs" in options else options for name, options in FEW.items()}
BRIEF |= {
    "ivon": {"num_epochs": 5, "batch_size": 1000},
    "swag": {**QUICK, "num_epochs": 12},
    "microcanonical": {"num_members": 2, "num_epochs": 2, "num_warmup": 20, "num_samples": 2, "progress": False},
}


@pytest.mark.parametrize("method", BRIEF)
@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning", "ignore::UserWarning")
def test_the_unit_of_y_does_not_change_a_fit(method: str) -> None:
    X, y = table(rows=40)
    y = (y - y.mean()) / y.std()
    regressor = BayesianRegressor(method, hidden=(4,), options=BRIEF[method], num_samples=5, random_state=0)
    found = {unit: clone(regressor).fit(X, unit * y).predict(X, return_std=True) for unit in (1e-6, 1e6)}
    mean, std = (one / 1e-6 for one in found[1e-6])
    large_mean, large_std = (one / 1e6 for one in found[1e6])
    assert large_mean == pytest.approx(mean, rel=1e-5, abs=1e-5)
    assert large_std == pytest.approx(std, rel=1e-5)
    assert 1e-3 < np.median(std) < 10


def test_whole_numbers_that_repeat_themselves_have_the_noise_of_rounding() -> None:
    """The network may meet most of them exactly, with a noise of nothing, and be wrong by 1 at the next row."""
    rng, unit = np.random.default_rng(0), 1e6
    X = rng.normal(size=(400, 2))
    y = unit * np.round(1.5 * X[:, 0] + 0.2 * rng.normal(size=400))
    options = {"num_epochs": 400, "batch_size": 1000, "learning_rate": 0.03}
    regressor = BayesianRegressor("map", hidden=(16,), heteroscedastic=True, options=options, random_state=0)
    found = regressor.fit(X[:120], y[:120]).predictive(X[120:])
    assert float(found.component_variances.sqrt().min()) >= 0.999 * unit / 12**0.5
    assert regressor.score(X[120:], y[120:]) > -0.6 - np.log(unit)  # -0.65 without a floor


def test_a_gaussian_process_answers_in_the_units_of_y() -> None:
    """Of a line of slope 300 and noise 20, in inputs of very different size."""
    X, y = table()
    regressor = BayesianRegressor("gp", random_state=0).fit(X, y)
    new, truth = table(seed=1, rows=1000)
    mean, std = regressor.predict(new, return_std=True)
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 25.0  # 20 of noise alone
    ends = regressor.predict_interval(new, level=0.8)
    inside = ((ends[:, 0] < truth) & (truth < ends[:, 1])).mean()
    assert abs(inside - 0.8) < 0.1
    assert ends == pytest.approx(np.stack([mean - 1.2816 * std, mean + 1.2816 * std], axis=1), rel=1e-4)
    expected = stats.norm.logpdf(truth, mean, std).mean()
    assert regressor.score(new, truth) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", [BayesianRegressor, BayesianClassifier])
def test_a_fit_is_of_a_weighted_set_of_rows(kind: Any) -> None:
    """Neither their order nor whether one is repeated or has weight 2 changes a bit; one of weight 0 is no row."""
    X, y = table(rows=30)
    if kind is BayesianClassifier:
        y = (y > y.mean()).astype(int)
    estimator = kind("map", hidden=(4,), options={**SHORT, "batch_size": 7}, random_state=0)
    weight = np.ones(30)
    weight[:5], weight[5] = 2.0, 0.0
    repeated = np.concatenate([np.arange(30), np.arange(5)])[::-1]
    repeated = repeated[repeated != 5]
    one = clone(estimator).fit(X, y, sample_weight=weight).predictive(X).mean
    other = clone(estimator).fit(X[repeated], y[repeated]).predictive(X).mean
    assert (one == other).all()


def test_frames_pipelines_searches_and_cross_validation() -> None:
    X, y = table(rows=60)
    frame, target = pd.DataFrame(X, columns=["near", "far"]), pd.Series(y, name="price")
    process = BayesianRegressor("gp", options={"num_restarts": 1}, random_state=0)
    line = make_pipeline(PolynomialFeatures(1, include_bias=False), process)
    scores = cross_val_score(line, frame, target, cv=3)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()
    search = GridSearchCV(
        BayesianRegressor("map", hidden=(4,), options=QUICK, random_state=0), {"prior_scale": [1e-3, 1.0]}, cv=2
    ).fit(frame, target)
    assert search.best_params_ == {"prior_scale": 1.0}  # the other's weights cannot leave 0
    assert list(search.best_estimator_.feature_names_in_) == ["near", "far"]
    with pytest.raises(ValueError, match=r"(?s)feature names should match.*wide"):
        search.best_estimator_.predict(frame.rename(columns={"far": "wide"}))


def test_labels_come_back_as_they_came() -> None:
    X, y = table()
    names = np.array(["low", "middle", "high"], dtype=object)[np.digitize(y, np.quantile(y, [1 / 3, 2 / 3]))]
    classifier = BayesianClassifier("map", options=QUICK, random_state=0).fit(X, names)
    assert list(classifier.classes_) == ["high", "low", "middle"]
    assert (classifier.predict(X) == names).mean() > 0.8
    log_probs = np.log(classifier.predict_proba(X))[np.arange(len(X)), np.searchsorted(classifier.classes_, names)]
    assert classifier.score(X, names) == pytest.approx(log_probs.mean(), rel=1e-12)
    frame = classifier.predict_frame(pd.DataFrame(X, index=[f"row {n}" for n in range(len(X))]))
    assert list(frame)[:4] == ["label", "p_high", "p_low", "p_middle"]
    assert frame["label"].tolist() == classifier.predict(X).tolist()
    assert frame.index[3] == "row 3"
    assert classifier.predict_frame(X.tolist())["p_low"].tolist() == frame["p_low"].tolist()
    assert classifier.predictive(X).log_prob(names).mean().item() == pytest.approx(log_probs.mean(), rel=1e-12)
    with pytest.raises(ValueError, match="the class 'top', which is not one"):
        classifier.score(X[:1], ["top"])


def test_rows_of_weight_0_do_not_count_in_a_score_whatever_their_density() -> None:
    X, y = table()
    regressor = BayesianRegressor("map", options=SHORT, random_state=0).fit(X, y)
    rows, targets, weight = np.vstack([X, X[:1]]), np.append(y, 1e200), np.append(np.ones(len(y)), 0.0)
    assert regressor.score(rows, targets) == -np.inf
    assert regressor.score(rows, targets, weight) == pytest.approx(regressor.score(X, y), rel=1e-12)


NUMBERED: dict[str, tuple[list[Any], list[str]]] = {
    "places": ([0, 1, 2], ["p_0", "p_1", "p_2"]),
    "from one": ([1, 2, 3], ["p_1", "p_2", "p_3"]),
    "below zero": ([-1, 4, 7], ["p_-1", "p_4", "p_7"]),
    "reals": ([1.0, 2.0, 3.0], ["p_1", "p_2", "p_3"]),
    "words": (["1", "2", "3"], ["p_1", "p_2", "p_3"]),
    "truths": ([False, True], ["p_False", "p_True"]),
}


@pytest.mark.parametrize("kind", NUMBERED)
def test_labels_that_are_numbers_are_told_as_they_came_and_are_no_places(kind: str) -> None:
    """Labels 1 to 3 were told as 0 to 2, and where no row had a 3 they were measured as if they were places."""
    (classes, columns), (X, y) = NUMBERED[kind], table()
    labels = np.array(classes)[np.digitize(y, np.quantile(y, [1 / 3, 2 / 3][: len(classes) - 1]))]
    classifier = BayesianClassifier("map", options=QUICK, random_state=0).fit(X, labels)
    frame, said, few = classifier.predict_frame(X), classifier.predict(X), labels != classes[-1]
    assert frame["label"].tolist() == said.tolist()
    assert list(frame)[1 : 1 + len(classes)] == columns
    log_probs = np.log(classifier.predict_proba(X))[np.arange(len(X)), np.searchsorted(classes, labels)]
    assert classifier.score(X[few], labels[few]) == pytest.approx(log_probs[few].mean(), rel=1e-12)
    for rows in (slice(None), few):
        predictive, truth = classifier.predictive(X[rows]), labels[rows]
        if rows is few and kind in ("from one", "reals"):  # 1 and 2 of 1 to 3 may be places, too
            with pytest.raises(ValueError, match=r"may be names of classes \(1, 2, 3\) or their places"):
                evaluate(predictive, truth)
            truth = labels[rows].astype(int).astype(str)
        assert evaluate(predictive, truth)["accuracy"].value == pytest.approx((said == labels)[rows].mean())


def test_class_weights_are_weights_of_the_rows_as_scikit_learn_has_them() -> None:
    X, y = table(rows=40)
    names = np.where(y > np.quantile(y, 0.8), "rare", "often")
    plain = BayesianClassifier("map", hidden=(4,), options=QUICK, random_state=0)
    found = clone(plain).set_params(class_weight="balanced").fit(X, names).predict_proba(X)
    by_rows = clone(plain).fit(X, names, sample_weight=compute_sample_weight("balanced", names)).predict_proba(X)
    assert np.array_equal(found, by_rows)
    assert found[:, 1].mean() > clone(plain).fit(X, names).predict_proba(X)[:, 1].mean() + 0.05
    given = clone(plain).set_params(class_weight={"rare": 3.0}).fit(X, names, sample_weight=2.0).predict_proba(X)
    weight = 2.0 * np.where(names == "rare", 3.0, 1.0)
    assert np.array_equal(given, clone(plain).fit(X, names, sample_weight=weight).predict_proba(X))
    with pytest.raises(ValueError, match="not in class_weight"):
        clone(plain).set_params(class_weight={"seldom": 3.0}).fit(X, names)


def test_masked_cells_are_not_taken_for_numbers() -> None:
    X, y = table(rows=20)
    regressor = BayesianRegressor("map", options=QUICK, random_state=0)
    for inputs, target in ((np.ma.masked_array(X, X > 0), y), (X, np.ma.masked_array(y, y > y.mean()))):
        with pytest.raises(ValueError, match="has masked cells"):
            clone(regressor).fit(inputs, target)
    assert clone(regressor).fit(np.ma.masked_array(X, mask=False), y).predict(X).shape == (20,)
    with pytest.raises(TypeError, match="hidden"):
        BayesianRegressor("map", hidden=50).fit(X, y)


def test_words_dates_and_labels_of_two_kinds_are_told_by_name() -> None:
    X, y = table(rows=20)
    frame = pd.DataFrame(X, columns=["size", "rooms"])
    regressor = BayesianRegressor("map", options=QUICK, random_state=0)
    for cells in (pd.Series(["Oslo", "Bergen"] * 10), pd.Series(pd.date_range("2020-01-05", periods=20))):
        for given in (cells, cells.astype("category")):
            with pytest.raises(ValueError, match=r"Columns 'city' of `X` hold words or dates.*read_table"):
                clone(regressor).fit(frame.assign(city=given), y)
    assert clone(regressor).fit(frame.astype(object), y).predict(frame.astype("Float64")).shape == (20,)
    for labels, kinds in ((["a", None] * 10, "NoneType and str"), (["a", 1] * 10, "int and str")):
        with pytest.raises(ValueError, match=f"labels of one kind, all words or all numbers; got {kinds}"):
            BayesianClassifier("map").fit(X, np.array(labels, dtype=object))
    with pytest.raises(ValueError, match="not all zero"):
        clone(regressor).fit(X, y).score(X, y, np.zeros(20))
    with pytest.raises(ValueError, match=r"spread of a target is too small.*smaller unit"):
        clone(regressor).fit(X, 1e-200 * y)


def test_a_feature_far_away_is_held_within_the_clip() -> None:
    X, y = table(rows=60)
    regressor = BayesianRegressor("map", clip=2.0, options=QUICK, random_state=0).fit(X, y)
    low, far, farther = regressor.predict([[1.0, 0.0], [1e3, 0.0], [1e9, 0.0]])
    assert low < far == farther


def test_several_targets() -> None:
    X, y = table(rows=40)
    both = BayesianRegressor("map", options=QUICK, heteroscedastic=True, random_state=0).fit(X, np.stack([y, -y], 1))
    mean, std = both.predict(X, return_std=True)
    assert mean.shape == std.shape == (40, 2)
    assert both.predict_interval(X).shape == (40, 2, 2)


def test_names_that_are_no_method_are_told() -> None:
    X, y = table(rows=10)
    with pytest.raises(ValueError, match="no method 'variation'; did you mean 'variational'"):
        BayesianRegressor("variation").fit(X, y)
    with pytest.raises(ValueError, match=r"fitted to a posterior and further rows.*inference\.temperature\.fit"):
        BayesianClassifier("temperature").fit(X, y > y.mean())
    with pytest.raises(ValueError, match="shape \\(10,\\), a weight for each row; got \\(9,\\)"):
        BayesianRegressor("map").fit(X, y, sample_weight=np.ones(9))
