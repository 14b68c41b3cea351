"""The heteroscedastic likelihoods through the methods: one predictive type, both uncertainties, saved and loaded."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bayesuq.data import Dataset
from bayesuq.evaluation.report.reporting import evaluate
from bayesuq.inference import dropout, ensemble, hmc, laplace, map_estimate, sgmcmc, swag, temperature, variational
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.inference.examples import SHORT_FIT, built

METHODS = {
    "map": map_estimate.fit,
    "variational": variational.fit,
    "dropout": dropout.fit,
    "ensemble": partial(ensemble.fit, num_members=2),
    "laplace": laplace.fit,
    "swag": swag.fit,
}
SHORT_CHAINS = ("ignore:.*draws:UserWarning", "ignore:.*trajector:UserWarning", "ignore:.*chain:UserWarning")


def flipped(num_rows: int, seed: int) -> Dataset:
    """Two classes told by the sign of one input; half of the labels are flipped where the other input is above 0."""
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, 2, generator=noise)
    flip = (x[:, 1] > 0) & (torch.rand(num_rows, generator=noise) < 0.5)
    return Dataset(x, ((x[:, 0] > 0) ^ flip).long())


@cache
def model_of(share: float = 0.1, **options: Any) -> BayesianNetwork:
    net = built(lambda: networks.mlp(2, (16,), 4, dropout=share))
    return BayesianNetwork(net, priors.Normal(), likelihoods.HeteroscedasticCategorical(16, **options))


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_labels_with_both_uncertainties(name: str, tmp_path: Path) -> None:
    data, new = flipped(400, 0), flipped(600, 1)
    posterior = METHODS[name](model_of(), data, num_epochs=30, learning_rate=2e-2, seed=0)
    predictive = posterior.predict(new.x, num_samples=10, seed=1)
    assert isinstance(predictive, CategoricalPredictive)
    assert predictive.mean.shape == (600, 2)
    noisy = new.x[:, 1] > 0.3
    clear = (new.x[:, 1] < -0.3) & (new.x[:, 0].abs() > 0.5)
    assert float(predictive.aleatoric[noisy].mean()) > float(predictive.aleatoric[clear].mean()) + 0.25
    assert bool((predictive.epistemic.mean() > 0) == (name != "map"))
    assert evaluate(predictive, new.y)["negative_log_likelihood"].value < 0.6  # a guess has .69
    posterior.save(tmp_path / "posterior")
    again = load(tmp_path / "posterior").predict(new.x, num_samples=10, seed=1)
    assert torch.equal(again.mean, predictive.mean)
    scaled = temperature.fit(posterior, flipped(300, 2), num_samples=10, seed=0)
    assert 0.3 < scaled.temperature < 3


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_targets_with_both_uncertainties(name: str) -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(400, 2, generator=noise)
    scale = torch.where(x[:, 1] > 0, 1.0, 0.1)
    y = x[:, 0] + scale * torch.randn(400, generator=noise)
    net = built(lambda: networks.mlp(2, (16,), 2, dropout=0.1))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.HeteroscedasticNormal())
    posterior = METHODS[name](model, Dataset(x, y), num_epochs=40, learning_rate=2e-2, seed=0)
    inside = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    predictive = posterior.predict(torch.cat([inside, 10 * inside]), num_samples=10, seed=1)
    assert isinstance(predictive, GaussianPredictive)
    noisy, quiet = predictive.aleatoric[:2, 0]
    assert 0.5 < noisy.sqrt() < 1.6  # 1
    assert quiet.sqrt() < 0.5  # 0.1
    assert bool((predictive.epistemic > 0).all()) == (name != "map")
    if name != "map":  # what the model does not know grows away from the data
        assert float(predictive.epistemic[2:].mean()) > 2 * float(predictive.epistemic[:2].mean())


@pytest.mark.filterwarnings(*SHORT_CHAINS)
def test_chains_draw_under_it() -> None:
    data = flipped(60, 0)
    chains = hmc.fit(model_of(), data, num_samples=3, num_warmup=20, num_chains=1, max_tree_depth=4, seed=0)
    assert float(chains.predict(data.x).log_prob(data.y).mean()) > -1.5
    langevin = sgmcmc.fit(model_of(), data, num_warmup=20, num_samples=3, thinning=1, num_chains=1, seed=0)
    assert chains.predict(data.x).mean.shape == langevin.predict(data.x).mean.shape == (60, 2)


def test_members_that_train_together_are_those_that_train_alone() -> None:
    data = flipped(80, 0)
    net = built(lambda: networks.mlp(2, (6,), 4)).double()
    model = BayesianNetwork(net, priors.Normal(), likelihoods.HeteroscedasticCategorical(8))
    together, alone = (
        ensemble.fit(model, data, num_members=3, num_epochs=3, vectorised=vectorised, seed=0)
        for vectorised in (True, False)
    )
    torch.testing.assert_close(together.predict(data.x).mean, alone.predict(data.x).mean, rtol=1e-8, atol=1e-10)


def test_probit_draws_where_it_has_no_formula() -> None:
    data = flipped(80, 0)
    posterior = laplace.fit(model_of(), data, num_epochs=10, seed=0)
    means = [one.predict(data.x, num_samples=20, seed=3).mean for one in (posterior.probit, posterior)]
    torch.testing.assert_close(*means, rtol=1e-12, atol=0)


def test_class_weights_and_ignored_labels_count_in_the_curvature() -> None:
    data = flipped(80, 0)
    void = Dataset(data.x, torch.where(torch.arange(80) < 40, 255, data.y))
    options = {"num_epochs": 40, "learning_rate": 1e-2, "batch_size": 80, "seed": 0, "structure": "diagonal"}
    ignoring = laplace.fit(model_of(0.0, ignore_index=255), void, **options)
    fewer = laplace.fit(model_of(0.0), data.rows(range(40, 80)), **options)
    for name, value in ignoring.curvature.items():
        torch.testing.assert_close(value, fewer.curvature[name], rtol=2e-2, atol=1e-4)
