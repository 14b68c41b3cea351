"""The table of a posterior's parameters: natural units, the program's names, R-hat as ArviZ has it."""

import json
import math

import arviz
import numpy as np
import pytest
import torch

import bayesuq as bq
from bayesuq.inference import gp, hmc, variational
from bayesuq.models import gp as processes
from bayesuq.summary import rank_r_hat, summarise


def data(number: int = 25) -> bq.Dataset:
    noise = torch.Generator().manual_seed(0)
    x = 1000 * torch.rand(number, 1, generator=noise)
    return bq.Dataset(x, (x[:, 0] / 150).sin() + 0.1 * torch.randn(number, generator=noise))


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_hyperparameters_of_a_process_are_in_the_units_of_x_and_y() -> None:
    posterior = gp.fit(processes.GaussianProcess(processes.Scale(processes.RBF())), data(), num_restarts=2, seed=0)
    summary = posterior.summary()
    length = summary["kernel.base_kernel.lengthscale"]
    assert 100 < length.mean < 500  # of x, and no logarithm
    assert length.sd == 0
    assert 0.03 < summary["likelihood.scale"].mean < 0.3
    assert str(summary).startswith("point values\n")
    kernel = posterior.prior.kernel
    assert length.mean == pytest.approx(float(kernel.base_kernel.lengthscale), rel=1e-9)
    told = json.loads(
        posterior.to_arviz(data().x, data().y, num_prior_samples=0, num_samples=5).attrs["hyperparameters"]
    )
    assert told["kernel.base_kernel.lengthscale"] == pytest.approx(length.mean)
    sampled = gp.fit(
        processes.GaussianProcess(processes.Scale(processes.RBF())),
        data(),
        hyperparameters="sample",
        num_samples=4,
        num_warmup=5,
        num_chains=2,
        seed=0,
    )
    drawn = sampled.summary()
    assert set(drawn.to_dict()) == set(summary.to_dict())
    assert drawn["kernel.base_kernel.lengthscale"].sd > 0
    assert drawn["kernel.base_kernel.lengthscale"].r_hat is not None


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_a_network_tells_few_numbers_one_by_one_and_a_layer_in_a_line() -> None:
    net = bq.models.networks.mlp(1, (20,), 1)
    model = bq.models.BayesianNetwork(net, bq.models.priors.Normal(), bq.models.likelihoods.Normal())
    rows = data()
    posterior = variational.fit(model, bq.Dataset(rows.x / 300 - 1.5, rows.y), num_epochs=3, seed=0, progress=False)
    summary = posterior.summary(num_samples=50, seed=1)
    layer = next(line for line in summary.lines if line.count == 20)
    draws = posterior.sample_weights(50, seed=1)[layer.name].reshape(50, -1)
    assert layer.sd == pytest.approx(float(draws.std(dim=0).median()), rel=1e-5)
    assert layer.mean == pytest.approx(float(draws.mean()), abs=1e-6)
    assert any(line.count == 1 for line in summary.lines)
    assert "(20 numbers)" in str(summary)
    assert "R-hat" not in str(summary)


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_chains_have_the_r_hat_of_arviz() -> None:
    draws = np.random.default_rng(0).standard_normal((4, 50, 3)) + np.arange(4)[:, None, None] * [0.0, 0.5, 0.0]
    draws[..., 2] = np.round(draws[..., 2])  # ties
    expected = [float(arviz.rhat(draws[..., k], method="z_scale")) for k in range(3)]
    np.testing.assert_allclose(rank_r_hat(torch.as_tensor(draws)), expected, rtol=1e-6)
    constant = summarise({"w": torch.ones(8, 2)}, 2)
    assert constant["w[1]"].r_hat is None
    assert constant["w[0]"].sd == 0
    with pytest.raises(KeyError, match="there are w"):
        _ = constant["v"]
    model = bq.models.BayesianNetwork(
        bq.models.networks.mlp(1, (), 1), bq.models.priors.Normal(), bq.models.likelihoods.Normal(scale=0.5)
    )
    rows = bq.Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
    summary = hmc.fit(model, rows, num_samples=60, num_warmup=60, num_chains=2, seed=0).summary()
    assert summary.num_chains == 2
    assert all(line.r_hat is not None and math.isfinite(line.r_hat) for line in summary.lines)
