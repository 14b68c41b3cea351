"""What is predicted where floats run out."""

import math
import warnings

import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.evaluation import scores, uncertainty
from bayesuq.inference import map_estimate, variational
from bayesuq.models import BayesianNetwork, likelihoods, priors
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.predictive.categorical import CategoricalPredictive

REAL: dict[str, tuple[Likelihood, int]] = {
    "normal": (likelihoods.Normal(scale=0.1), 1),
    "heteroscedastic": (likelihoods.HeteroscedasticNormal(), 2),
    "heteroscedastic without bounds": (likelihoods.HeteroscedasticNormal(maximum_scale=None), 2),
    "student": (likelihoods.StudentT(scale=0.1), 1),
    "poisson": (likelihoods.Poisson(), 1),
}
LABELS: dict[str, tuple[Likelihood, int]] = {
    "categorical": (likelihoods.Categorical(), 3),
    "bernoulli": (likelihoods.Bernoulli(), 1),
    "noisy logits": (likelihoods.HeteroscedasticCategorical(), 6),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*REAL, *LABELS])
def test_infinite_outputs_are_cut_and_told_and_every_measure_is_finite(name: str, dtype: torch.dtype) -> None:
    likelihood, num_outputs = (REAL | LABELS)[name]
    f = torch.randn(3, 4, num_outputs, generator=torch.Generator().manual_seed(0)).to(dtype)
    usual = likelihood.predictive(f)
    f[0, 1], f[2, 3, -1] = math.inf, torch.finfo(dtype).max
    f[1, 3, 0] = math.inf
    with pytest.warns(UserWarning, match="outputs overflow at 2 of 4 rows"):
        predictive = likelihood.predictive(f)
    y = torch.zeros(4, dtype=torch.long if name in LABELS else torch.float64)
    for told in (predictive.mean, predictive.total, predictive.aleatoric, predictive.epistemic, predictive.log_prob(y)):
        assert told.isfinite().all()
    torch.testing.assert_close(predictive.log_prob(y)[::2], usual.log_prob(y)[::2], rtol=1e-12, atol=1e-12)
    if isinstance(predictive, CategoricalPredictive):
        assert uncertainty.predictive_entropy(predictive).isfinite().all()
    elif name != "poisson":  # of which no draw of 1e100 is a count that floats tell
        assert scores.crps(predictive, y).isfinite()


@pytest.mark.parametrize("name", [*REAL, *LABELS])
def test_rows_without_a_number_are_named(name: str) -> None:
    likelihood, num_outputs = (REAL | LABELS)[name]
    f = torch.zeros(2, 4, num_outputs)
    f[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"NaN at 1 of 4 rows, the first is row 2 .*Leave these rows out"):
        likelihood.predictive(f)
    likelihood.predictive(f[:, [0, 1, 3]])


def test_a_class_that_is_ruled_out_stays_so_and_is_not_told() -> None:
    logits = torch.tensor([[[0.0, -math.inf, 1.0]]])
    assert likelihoods.Categorical().predictive(logits).mean[0, 1] == 0


@pytest.mark.filterwarnings("ignore:The posterior scales")
def test_a_prediction_tells_its_far_rows_once_whatever_the_draws_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 1)
    model = BayesianNetwork(nn.Linear(1, 2), priors.Normal(), likelihoods.HeteroscedasticNormal(maximum_scale=None))
    posterior = variational.fit(model, Dataset(x, x), num_epochs=1, seed=0)
    inputs = torch.cat([x, torch.full((3, 1), 3e38), torch.full((2, 1), -3e38)])
    monkeypatch.setattr("bayesuq.inference.posteriors.prediction.ACTIVATION_BUDGET", 20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predictive = posterior.predict(inputs, num_samples=5, seed=0)
    assert [str(one.message)[:42] for one in caught] == ["The network's outputs overflow at 5 rows, "]
    assert predictive.total.isfinite().all()
    torch.testing.assert_close(predictive.mean[:20], posterior.predict(x, num_samples=5, seed=0).mean)


def test_detection_by_uncertainty_goes_on_over_far_rows() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 1)
    model = BayesianNetwork(nn.Linear(1, 3), priors.Normal(), likelihoods.Categorical())
    posterior = map_estimate.fit(model, Dataset(x, (x[:, 0] > 0).long()), num_epochs=1, seed=0)
    entropy = uncertainty.predictive_entropy(posterior.predict(torch.cat([x, torch.full((1, 1), 1e38)])))
    assert entropy.isfinite().all()
