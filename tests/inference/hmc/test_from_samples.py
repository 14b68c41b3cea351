"""Draws from elsewhere, in each form that samplers give them, are the posterior that the same draws of ours are."""

from dataclasses import replace
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from torch import Tensor

import bayesuq as bq
from bayesuq.inference import hmc
from bayesuq.inference.hmc.from_samples import from_samples
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

C, D = 2, 30


def program(x: Tensor, y: Tensor | None = None) -> Any:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    mu = pyro.deterministic("mu", x @ weights)
    with pyro.plate("rows", len(x)):
        return pyro.sample("outcome", dist.Normal(mu, scale), obs=y)


@pytest.fixture(scope="module")
def data() -> bq.Dataset:
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=noise)
    return bq.Dataset(x, x @ torch.tensor([1.0, -1.0]) + 0.3 * torch.randn(20, generator=noise))


@pytest.fixture(scope="module")
def samples() -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(1)
    weights = torch.tensor([1.0, -1.0]) + 0.1 * torch.randn(C, D, 2, generator=noise)
    return {"weights": weights, "scale": 0.3 + 0.05 * torch.rand(C, D, generator=noise), "mu": torch.zeros(C, D, 20)}


def forms(samples: dict[str, Tensor]) -> dict[str, Any]:
    arrays = {name: value.numpy() for name, value in samples.items()}
    group = xarray.Dataset(
        {
            "weights": (("chain", "draw", "k"), arrays["weights"]),
            "scale": (("chain", "draw"), arrays["scale"]),
        }
    )
    stats = xarray.Dataset({"diverging": (("chain", "draw"), np.zeros((C, D), dtype=bool))})
    seen = xarray.Dataset({"outcome": (("row",), np.zeros(20))})
    tree = xarray.DataTree.from_dict({"posterior": group, "sample_stats": stats, "observed_data": seen})
    older = int(arviz.__version__.split(".")[0]) < 1
    return {
        "by chain": samples,
        "arrays": arrays,
        "flat": {name: value.flatten(0, 1) for name, value in samples.items()},
        "lists": {name: value.flatten(0, 1).tolist() for name, value in arrays_of(samples).items()},
        "tree": tree,
        "inference data": arviz.from_datatree(tree) if older else tree,
    }


def arrays_of(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in samples.items() if name != "mu"}


FORMS = ("by chain", "arrays", "flat", "lists", "tree", "inference data")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_posterior_and_predicts_by_the_program(form, samples, data) -> None:
    posterior = from_samples(program, forms(samples)[form], data)
    chains = 1 if form in ("flat", "lists") else C
    assert posterior.num_chains == chains
    assert posterior.num_members == C * D
    predictive = posterior.predict(data.x)
    mean = torch.einsum("sk,nk->sn", samples["weights"].flatten(0, 1), data.x).double()
    exact = bq.GaussianPredictive(
        mean=mean.unsqueeze(2), noise_variance=samples["scale"].flatten().square().reshape(-1, 1, 1)
    )
    torch.testing.assert_close(predictive.log_prob(data.y), exact.log_prob(data.y), rtol=1e-4, atol=1e-5)
    report = bq.evaluation.report.evaluate(predictive, data.y)
    assert report["crps"].value == pytest.approx(float(bq.evaluation.scores.crps(exact, data.y)), rel=1e-4)
    summary = posterior.summary()
    assert [line.name for line in summary.lines] == ["weights[0]", "weights[1]", "scale"]
    assert summary["scale"].mean == pytest.approx(float(samples["scale"].mean()), rel=1e-5)
    if form == "by chain":
        container = posterior.to_arviz(data.x, data.y, num_prior_samples=5, seed=0)
        assert container["posterior"]["weights"].shape == (C, D, 2)
        assert container["log_likelihood"]["outcome"].shape == (C, D, 20)
    if form == "tree":
        assert posterior.num_divergences == 0
        assert "diverging" in posterior.statistics


def test_without_data_the_site_is_named_and_the_shapes_are_as_they_come(samples, data) -> None:
    posterior = from_samples(program, samples, observed="outcome", by_chain=True)
    whole = from_samples(program, samples, data)
    torch.testing.assert_close(posterior.predict(data.x).mean, whole.predict(data.x).mean)
    with pytest.raises(ValueError, match="pass `by_chain=`"):
        from_samples(program, {"weights": samples["weights"], "scale": samples["scale"]}, observed="outcome")


def test_it_is_saved_and_a_start_for_chains_of_ours(samples, data, tmp_path) -> None:
    posterior = from_samples(program, samples, data)
    with pytest.warns(UserWarning, match="pass it to `bayesuq.load"):
        posterior.save(tmp_path / "drawn")
    again = bq.load(tmp_path / "drawn", model=program)
    assert torch.equal(again.predict(data.x).mean, posterior.predict(data.x).mean)
    ours = hmc.fit(program, data, start=posterior, num_samples=40, num_warmup=40, num_chains=2, seed=0)
    assert abs(float(ours.draws["weights"][..., 0].mean()) - 1) < 0.3


def test_pyros_own_chains_come_in_as_they_are(data) -> None:
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        kernel = pyro.infer.NUTS(program)
        mcmc = pyro.infer.MCMC(kernel, num_samples=20, warmup_steps=20, disable_progbar=True)
        mcmc.run(data.x, data.y.squeeze(1))
    posterior = from_samples(program, mcmc.get_samples(group_by_chain=True), data)
    assert posterior.num_members == 20
    assert bq.evaluation.report.evaluate(posterior.predict(data.x), data.y)["root_mean_squared_error"].value < 0.5
    pyro.clear_param_store()


def test_draws_of_a_network_are_a_posterior_over_its_weights() -> None:
    net = bq.models.networks.mlp(2, (3,), 1)
    model = bq.models.BayesianNetwork(net, bq.models.priors.Normal(), bq.models.likelihoods.Normal())
    draws = {
        name: 0.5 + torch.rand(4, *value.shape, generator=torch.Generator().manual_seed(0))
        for name, value in model.initial().items()
    }
    posterior = from_samples(model, draws)
    for name, value in posterior.sample_weights().items():
        torch.testing.assert_close(value, draws[name])
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    weights = {name: value for name, value in draws.items() if not name.startswith("likelihood")}
    each = [{name: value[s] for name, value in weights.items()} for s in range(4)]
    mean = torch.stack([torch.func.functional_call(net, one, (x,)) for one in each])
    torch.testing.assert_close(posterior.predict(x).component_means, mean.double(), rtol=1e-5, atol=1e-6)
    assert posterior.num_divergences == 0


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda s: {"weights": s["weights"]}, ValueError, "scale is not among weights"),
        (lambda s: s | {"scale": -s["scale"]}, ValueError, "'scale' lie outside of its support"),
        (lambda s: s | {"weights": s["weights"][:, :5]}, ValueError, "must have shape"),
        (lambda s: s | {"weights": s["weights"][..., :1]}, ValueError, "must have shape"),
        (lambda s: s | {"scale": s["scale"] * float("nan")}, ValueError, "scale"),
        (lambda s: s | {"scale": s["scale"][0]}, ValueError, "All arrays must be"),
        (lambda _: [1.0], TypeError, "`samples` must be arrays"),
    ],
)
def test_draws_that_are_none_of_this_program_are_refused(change, error, told, samples, data) -> None:
    with pytest.raises(error, match=told):
        from_samples(program, change(samples), data)


# The program that a file is read with


def other_program(*, scale: str = "scale", family: Any = dist.Normal, num_weights: int = 2) -> Any:
    def program(x: Tensor, y: Tensor | None = None) -> Any:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(num_weights), 1.0).to_event(1))
        noise = pyro.sample(scale, dist.HalfNormal(1.0))
        with pyro.plate("rows", len(x)):
            return pyro.sample("outcome", family(x @ weights[:2], noise), obs=y)

    return program


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"scale": "sd"}, r"draws of 'scale' with shape \(\), and the program does not sample it"),
        ({"num_weights": 3}, r"draws of 'weights' with shape \(2,\), and the program samples it with shape \(3,\)"),
        ({"family": dist.Laplace}, "the file's 'outcome' is Normal, and the program has Laplace there"),
    ],
    ids=["name", "shape", "family"],
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_program_with_other_sites_than_those_fitted_is_refused(changed, says, is_wrapped, data, samples, tmp_path):
    drawn = {name: value for name, value in samples.items() if name != "mu"}
    posterior: bq.Posterior = from_samples(other_program(), drawn, data=data)
    if is_wrapped:
        posterior = bq.in_units(posterior, bq.Standardizer.fit(data))
    with pytest.warns(UserWarning, match="cannot be recorded"):
        posterior.save(tmp_path / "file")
    loaded = bq.load(tmp_path / "file", model=other_program())
    assert torch.equal(loaded.predict(data.x, seed=0).mean, posterior.predict(data.x, seed=0).mean)
    with pytest.raises(ValueError, match=says):
        bq.load(tmp_path / "file", model=other_program(**changed))


def test_a_draw_of_chains_that_were_cut_short_copies_nothing(data: bq.Dataset, samples: dict[str, Tensor]) -> None:
    """Of 64,000 draws without their first thousand, each that was taken held a copy of all: a thousand were 100 GB."""
    whole = from_samples(program, samples, data)
    late = replace(whole, draws={name: value[:, 5:] for name, value in whole.draws.items()})
    for index in (0, D - 5, 2 * (D - 5) - 1):
        for name, value in late.latents(index, 0).items():
            assert value.untyped_storage().data_ptr() == whole.draws[name].untyped_storage().data_ptr()
            assert torch.equal(value, late.draws[name].flatten(0, 1)[index])


def test_a_draw_of_a_networks_chains_that_were_cut_short_copies_nothing() -> None:
    net = BayesianNetwork(networks.mlp(2, (3,), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
    draws = torch.randn(C, D, sum(parameter.numel() for parameter in net.net.parameters()))
    late = hmc.HmcPosterior(
        model=net, draws=draws[:, ::2], buffers={}, statistics={}, warmup_statistics={}, inverse_mass=torch.ones(())
    )
    for index in (0, D // 2, D - 1):
        assert late.draw(index, 0).untyped_storage().data_ptr() == draws.untyped_storage().data_ptr()
        assert torch.equal(late.draw(index, 0), draws[:, ::2].flatten(0, 1)[index])
