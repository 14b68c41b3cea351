"""`to_arviz` where methods differ: chains and their thinning, programs, masks, images, and what it refuses."""

from pathlib import Path

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesuq as bq
from bayesuq.data import Dataset, Standardizer
from bayesuq.evaluation.diagnostics.convergence import convergence
from bayesuq.evaluation.diagnostics.leave_one_out import loo
from bayesuq.evaluation.diagnostics.worst_entries import worst_entries
from bayesuq.inference import laplace, map_estimate, temperature, variational
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.posteriors.chains import ChainPosterior
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.to_arviz.container import group, group_names
from tests.inference.examples import SHORT_FIT, Conjugate, built, labelled, noise

NUM_CHAINS, NUM_DRAWS = 3, 9


def network(num_outputs: int = 1) -> torch.nn.Module:
    return built(lambda: networks.mlp(2, (4,), num_outputs, activation="tanh"))


def chains(likelihood: likelihoods.Likelihood | None = None, num_outputs: int = 1) -> ChainPosterior:
    model = BayesianNetwork(network(num_outputs), priors.Normal(), likelihood or likelihoods.Normal(scale=0.2))
    size = Layout.of(model).size
    statistics = {"energy": noise(1, NUM_CHAINS, NUM_DRAWS), "diverging": noise(2, NUM_CHAINS, NUM_DRAWS) > 1}
    return ChainPosterior(
        model=model,
        draws=noise(0, NUM_CHAINS, NUM_DRAWS, size).float(),
        buffers={},
        statistics=statistics,
        warmup_statistics={"energy": noise(3, NUM_CHAINS, 5)},
    )


X, Y = noise(4, 9, 2).float(), noise(5, 9).float()


def test_chains_stay_chains() -> None:
    posterior = chains()
    told = posterior.to_arviz(X, Y, new_x=X[:4], seed=0)
    sites = posterior.sample_weights(seed=0)
    weight = group(told, "posterior")["1.weight"]
    assert weight.dims == ("chain", "draw", "1.weight_dim_0", "1.weight_dim_1")
    np.testing.assert_array_equal(weight.values, sites["1.weight"].reshape(NUM_CHAINS, NUM_DRAWS, 4, 2).numpy())
    means = posterior.predict(X).component_means[..., 0]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(group(told, "posterior")["mu"].values.reshape(-1, 9), means.numpy())
    np.testing.assert_array_equal(group(told, "sample_stats")["energy"].values, posterior.statistics["energy"].numpy())
    assert group(told, "warmup_sample_stats")["energy"].shape == (NUM_CHAINS, 5)
    assert group(told, "posterior").attrs["function_values"] == "predictions/mu"
    assert group(told, "posterior").attrs["independent_draws"] == 0
    assert convergence(told).num_chains == NUM_CHAINS


def test_classes_stand_under_their_names_where_a_table_has_some(tmp_path: Path) -> None:
    kinds = ["rose", "iris", "aster"]
    rows = [f"{a:.4f},{b:.4f},{kinds[n % 3]}" for n, (a, b) in enumerate(noise(6, 60, 2).tolist())]
    (tmp_path / "flowers.csv").write_text("\n".join(["long,wide,kind", *rows]))
    split, columns = bq.read_table(tmp_path / "flowers.csv", target="kind").split()
    inner = chains(likelihoods.Categorical(), num_outputs=3)
    posterior = bq.of_table(bq.in_units(inner, Standardizer.fit(split.train)), columns, split.train)
    x, y = split.train.x.float(), split.train.y
    told = posterior.to_arviz(x, y, new_x=x[:2], seed=0, num_prior_samples=2)
    predictive = posterior.predict(x, keep_samples=True)
    assert predictive.names == ("aster", "iris", "rose")  # type: ignore[attr-defined]
    for name in ("posterior", "predictions", "prior"):
        assert group(told, name)["p"].coords["class"].values.tolist() == ["aster", "iris", "rose"]
    of_rose = group(told, "posterior")["p"].sel({"class": "rose"}).values.reshape(-1, len(x))
    np.testing.assert_allclose(of_rose, predictive.samples[:, :, 2].numpy(), atol=1e-6)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(group(told, "observed_data")["y"].values, y.numpy())
    told.to_netcdf(str(tmp_path / "draws.nc"))
    read = arviz.from_netcdf(str(tmp_path / "draws.nc"))
    assert read["posterior"]["p"].coords["class"].values.tolist() == ["aster", "iris", "rose"]
    shown = group(worst_entries(told, 2), "posterior").data_vars
    assert all(str(name).rstrip("]").split(", ")[1] in kinds for name in shown)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 12, 24, 100])
def test_chains_are_thinned_evenly_with_their_statistics(number: int) -> None:
    posterior = chains()
    told = posterior.to_arviz(X, Y, num_samples=number, seed=0)
    kept = min(NUM_DRAWS, max(1, number // NUM_CHAINS))
    chosen = [(2 * place + 1) * NUM_DRAWS // (2 * kept) for place in range(kept)]
    expected = posterior.draws[:, chosen]
    values = group(told, "posterior")["3.bias"].values[..., 0]
    np.testing.assert_array_equal(values, Layout.of(posterior.model).split(expected)["3.bias"][..., 0].numpy())
    energies = group(told, "sample_stats")["energy"].values
    np.testing.assert_array_equal(energies, posterior.statistics["energy"][:, chosen].numpy())


def test_function_values_agree_where_permuted_weights_do_not() -> None:
    """Two chains in two permutations of the same hidden units: one function, and R-hat says so of it alone."""
    model = BayesianNetwork(network(), priors.Normal(), likelihoods.Normal(scale=0.2))
    layout = Layout.of(model)
    centre = {name: value.double() for name, value in layout.split(noise(0, layout.size)).items()}
    draws = layout.join({name: value + 0.01 * noise(7, 2, 400, *value.shape) for name, value in centre.items()})
    sites = layout.split(draws[1])
    order = [2, 3, 0, 1]
    permuted = {
        **sites,
        "1.weight": sites["1.weight"][:, order],
        "1.bias": sites["1.bias"][:, order],
        "3.weight": sites["3.weight"][:, :, order],
    }
    both = torch.stack([draws[0], layout.join(permuted)]).float()
    posterior = ChainPosterior(model=model, draws=both, buffers={}, statistics={}, warmup_statistics={})
    found = convergence(posterior.to_arviz(X, Y, seed=0))
    assert found["mu"].worst_r_hat < 1.03  # 2 x 400 independent draws
    assert found["1.weight"].worst_r_hat > 1.5


def test_replicates_have_the_law_of_the_predictive() -> None:
    """Exact Gaussian predictive of a conjugate linear model: mean and variance within 5 standard errors."""
    conjugate = Conjugate(num_points=20, num_features=2, noise_scale=0.5)
    posterior = laplace.fit(
        conjugate.model, conjugate.data, structure="full", num_epochs=500, learning_rate=0.05, seed=0
    )
    told = posterior.to_arviz(conjugate.data.x, conjugate.data.y, num_samples=1000, seed=0, num_prior_samples=1000)
    exact = posterior.predict(conjugate.data.x)
    replicates = group(told, "posterior_predictive")["y"].values[0]
    sd = exact.total[:, 0].sqrt().numpy()
    assert (np.abs(replicates.mean(axis=0) - exact.mean[:, 0].numpy()) < 5 * sd / np.sqrt(1000)).all()
    np.testing.assert_allclose(replicates.var(axis=0), sd**2, rtol=5 * np.sqrt(2 / 1000))
    prior = group(told, "prior_predictive")["y"].values[0]
    design = torch.cat([conjugate.data.x, torch.ones(20, 1)], dim=1).numpy()
    np.testing.assert_allclose(prior.var(axis=0), (design**2).sum(axis=1) + 0.25, rtol=5 * np.sqrt(2 / 1000))
    assert loo(told).num_parameters == pytest.approx(3.0, abs=1.5)


def test_learned_point_values_have_no_prior_and_never_move() -> None:
    model = BayesianNetwork(network(), priors.Normal(), likelihoods.Normal(scale="learned"))
    posterior = laplace.fit(model, Dataset(X, Y), num_epochs=2, seed=0)
    told = posterior.to_arviz(X, Y, seed=0, num_samples=30)
    assert "likelihood.scale" in group(told, "posterior")
    assert "likelihood.scale" not in group(told, "prior")
    assert convergence(told)["likelihood.scale"].num_constant == 1
    assert "prior_predictive" in group_names(told)


def test_weights_can_be_left_out() -> None:
    told = chains().to_arviz(X, Y, seed=0, include_weights=False)
    assert set(group(told, "posterior").data_vars) == {"mu"}
    assert set(group(told, "prior").data_vars) == {"mu"}


def test_several_columns_and_counts_are_told() -> None:
    told = chains(num_outputs=2).to_arviz(X, noise(5, 9, 2), seed=0)
    assert group(told, "posterior")["mu"].dims == ("chain", "draw", "point", "output")
    assert group(told, "log_likelihood")["y"].dims == ("chain", "draw", "point")
    assert group(told, "observed_data")["y"].dims == ("point", "output")
    counts = chains(likelihoods.Poisson()).to_arviz(X, torch.arange(9.0), seed=0)
    replicates = group(counts, "posterior_predictive")["y"].values
    assert (replicates == np.round(replicates)).all()


def test_images_keep_their_pixels() -> None:
    net = built(lambda: torch.nn.Conv2d(1, 3, 1))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    x, y = noise(0, 4, 1, 2, 5).float(), torch.zeros(4, 2, 5, dtype=torch.int64)
    told = map_estimate.fit(model, Dataset(x, y), num_epochs=1, seed=0).to_arviz(x, y, seed=0, num_prior_samples=2)
    assert group(told, "posterior")["p"].dims == ("chain", "draw", "point", "class", "y_dim_1", "y_dim_2")
    assert group(told, "log_likelihood")["y"].shape == (1, 1, 4, 2, 5)
    assert group(told, "constant_data")["x"].dims == ("point", "x_dim_1", "x_dim_2", "x_dim_3")


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_a_program_tells_its_latents_under_their_names() -> None:
    def program(x: Tensor, y: Tensor | None = None) -> Tensor:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))  # the name of function values, too
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mu + x[:, 0], 0.5), obs=y)

    posterior = variational.fit(program, Dataset(X, Y), num_epochs=3, seed=0)
    told = posterior.to_arviz(X, Y, num_samples=50, seed=0, num_prior_samples=400)
    sites = posterior.sample_weights(50, seed=0)
    np.testing.assert_array_equal(group(told, "posterior")["mu"].values[0], sites["mu"].numpy())
    function = sites["mu"][:, None] + X[:, 0]
    np.testing.assert_allclose(group(told, "posterior")["y_mu"].values[0], function.numpy(), rtol=1e-6, atol=1e-6)
    prior = group(told, "prior")["mu"].values[0]
    assert prior.std() == pytest.approx(3.0, rel=5 / np.sqrt(800))
    replicates = group(told, "prior_predictive")["y"].values[0]
    assert replicates[:, 0].std() == pytest.approx(np.sqrt(9.25), rel=5 / np.sqrt(800))


@pytest.mark.filterwarnings("ignore:The held-out labels:UserWarning")
def test_a_temperature_scales_what_is_told() -> None:
    data = labelled()
    model = BayesianNetwork(built(lambda: networks.mlp(3, (4,), 3)), priors.Normal(), likelihoods.Categorical())
    scaled = temperature.fit(map_estimate.fit(model, data, num_epochs=3, seed=0), data)
    told = scaled.to_arviz(data.x, data.y, seed=0)
    np.testing.assert_allclose(group(told, "posterior")["p"].values[0, 0], scaled.predict(data.x).mean.numpy())
    assert group(told, "posterior").attrs["method"] == "TemperaturePosterior"


def test_a_prior_too_wide_for_floats_is_left_out_with_a_warning() -> None:
    net = networks.mlp(2, (8,), 1, activation="relu")  # whose outputs become the difference of two infinities
    model = BayesianNetwork(net, priors.Normal(scale=1e25), likelihoods.Normal(scale=0.1))
    posterior = map_estimate.fit(model, Dataset(X, Y), num_epochs=1, seed=0)
    with pytest.warns(UserWarning, match="There is no prior predictive") as caught:
        told = posterior.to_arviz(X, Y, seed=0)
    assert caught[0].filename == __file__
    assert "prior_predictive" not in group_names(told)
    assert "1.weight" in group(told, "prior")


def test_the_file_is_read_by_plain_arviz(tmp_path: Path) -> None:
    told = chains().to_arviz(X, Y, seed=0)
    told.to_netcdf(str(tmp_path / "draws.nc"))
    read = arviz.from_netcdf(str(tmp_path / "draws.nc"))
    r_hat = arviz.rhat(group(read, "posterior"))["mu"].values
    np.testing.assert_array_equal(r_hat, arviz.rhat(group(told, "posterior"))["mu"].values)
    assert loo(read).elpd == loo(told).elpd


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"y": Y}, ValueError, "`y` needs the inputs"),
        ({"x": X, "new_x": X}, ValueError, "pass one of the two"),
        ({"x": X, "y": Y[:3]}, ValueError, "`y` must have shape"),
        ({"x": X[:, :1]}, ValueError, "does not take `x`"),
        ({"x": X, "num_samples": 0}, ValueError, "`num_samples` must be at least 1"),
        ({"x": X, "num_prior_samples": -1}, ValueError, "`num_prior_samples` must be at least 0"),
        ({"x": X, "seed": 0.5}, TypeError, "`seed`"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        chains().to_arviz(**options)
