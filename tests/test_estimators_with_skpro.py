"""Skpro's adapter around the regressor: its laws and scores are those of the predictive."""

import numpy as np
import pandas as pd
import pytest

from bayesuq.estimators import BayesianRegressor


def test_an_adapted_regressor_predicts_and_is_scored_as_it_is() -> None:
    adapters, metrics = (pytest.importorskip(f"skpro.{part}") for part in ("regression.adapters.sklearn", "metrics"))
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(80, 2)), columns=["near", "far"])
    y = pd.DataFrame({"price": 3 * X["near"] + 0.2 * rng.normal(size=80)})
    fitted, new = slice(60), slice(60, None)
    alone = BayesianRegressor("gp", random_state=0).fit(X[fitted], y[fitted]["price"])
    law = adapters.SklearnProbaReg(BayesianRegressor("gp", random_state=0)).fit(X[fitted], y[fitted])
    mean, std = alone.predict(X[new], return_std=True)
    predicted = law.predict_proba(X[new])
    assert predicted.mean()["price"].to_numpy() == pytest.approx(mean)
    assert np.sqrt(predicted.var()["price"].to_numpy()) == pytest.approx(std)
    assert metrics.LogLoss()(y[new], predicted) == pytest.approx(-alone.score(X[new], y[new]["price"]))
