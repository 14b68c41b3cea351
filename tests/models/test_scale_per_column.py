"""A noise scale for each target column: Normal and StudentT, fixed, learned or inferred."""

import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.inference import ensemble, gp, laplace, map_estimate, sequential, variational
from bayesuq.inference.posteriors import saved
from bayesuq.models import BayesianNetwork, networks, priors
from bayesuq.models import gp as processes
from bayesuq.models.likelihoods import Normal, StudentT
from bayesuq.models.records import build_model, model_record

NOISE = torch.tensor([0.1, 1.0], dtype=torch.float64)
SCALES = ["learned", priors.HalfNormal(1.0)]


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_columns(number: int = 100) -> Dataset:
    x = gaussian(0, number, 2)
    return Dataset(x, x @ gaussian(1, 2, 2) + NOISE * gaussian(2, number, 2))


def model_of(likelihood: Normal | StudentT) -> BayesianNetwork:
    torch.manual_seed(0)
    return BayesianNetwork(networks.mlp(2, (8,), 2).double(), priors.Normal(), likelihood)


@pytest.mark.parametrize("pixels", [(), (3, 4)])
@pytest.mark.parametrize("family", [Normal, StudentT])
def test_each_column_has_its_own_density(family: type[Normal], pixels: tuple[int, ...]) -> None:
    f, y = gaussian(0, 5, 2, *pixels), gaussian(1, 5, 2, *pixels)
    both = family(scale=[0.1, 1.0])
    inside = family(per_column=2).given({"scale": NOISE})
    for column, scale in enumerate((0.1, 1.0)):
        alone = family(scale=scale)
        expected = alone.elementwise_log_prob(f[:, column : column + 1], y[:, column : column + 1])
        for likelihood in (both, inside):
            found = likelihood.elementwise_log_prob(f, y)[:, column : column + 1]
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(both.distribution(f).log_prob(y), both.log_prob(f, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", [Normal, StudentT])
def test_draws_of_the_scales_are_not_taken_for_columns(family: type[Normal]) -> None:
    f, y = gaussian(0, 2, 5, 2), gaussian(1, 5, 2)  # as many draws as columns
    scales = gaussian(2, 2, 2).exp()
    predictive = family(per_column=2).given({"scale": scales}).predictive(f)
    each = [family(scale=scales[s].tolist()).log_prob(f[s], y) for s in range(2)]
    torch.testing.assert_close(predictive.component_log_prob(y), torch.stack(each))
    one = family(per_column=2).given({"scale": scales[0]}).predictive(f)
    torch.testing.assert_close(one.component_log_prob(y)[0], each[0])


@pytest.mark.parametrize("scale", SCALES, ids=["learned", "inferred"])
@pytest.mark.parametrize("family", [Normal, StudentT])
def test_a_model_has_as_many_scales_as_its_network_outputs(family: type[Normal], scale: object) -> None:
    model, data = model_of(family(scale=scale, per_column=True, initial_scale=0.5)), two_columns(6)
    assert torch.equal(model.initial()["likelihood.scale"], torch.full((2,), 0.5, dtype=torch.float64))
    theta = {**model.initial(), "likelihood.scale": NOISE}
    # The Pyro program's trace and log_joint are one density.
    trace = poutine.trace(poutine.condition(model, data=theta)).get_trace(data.x, data.y)
    if scale == "learned":
        theta["likelihood.scale"] = model.points["likelihood.scale"]
    torch.testing.assert_close(trace.log_prob_sum(), model.log_joint(theta, data.x, data.y), rtol=1e-10, atol=1e-10)
    again = build_model(model_record(model))
    torch.testing.assert_close(
        again.log_joint({**theta}, data.x, data.y), model.log_joint(theta, data.x, data.y), rtol=0, atol=0
    )


FITS = {
    "mode": lambda model, data: map_estimate.fit(model, data, num_epochs=60, learning_rate=0.05, seed=0),
    "variational": lambda model, data: variational.fit(model, data, num_epochs=60, learning_rate=0.05, seed=0),
    "ensemble": lambda model, data: ensemble.fit(model, data, num_members=2, num_epochs=60, learning_rate=0.05, seed=0),
    "laplace": lambda model, data: laplace.fit(model, data, num_epochs=60, learning_rate=0.05, seed=0),
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("scale", SCALES, ids=["learned", "inferred"])
def test_fits_find_each_columns_noise_and_files_keep_it(name: str, scale: object, tmp_path) -> None:
    data = two_columns()
    posterior = FITS[name](model_of(Normal(scale=scale, per_column=True)), data)
    predictive = posterior.predict(data.x, num_samples=20, seed=0)
    # The noises differ by 10; sixty epochs of a network that also has to find the line leave no less than 3.
    first, second = predictive.aleatoric.mean(dim=0).sqrt().tolist()
    assert 0.05 < first < second / 3 < 0.5
    posterior.save(tmp_path / "posterior")
    again = saved.load(tmp_path / "posterior").predict(data.x, num_samples=20, seed=0)
    assert torch.equal(again.log_prob(data.y), predictive.log_prob(data.y))


@pytest.mark.parametrize("kernel", [processes.RBF(), processes.Coregionalised(processes.RBF())], ids=["apart", "one"])
def test_processes_take_fixed_and_learned_scales(kernel: processes.Kernel) -> None:
    data = two_columns(30)
    fixed = processes.GaussianProcess(kernel, likelihood=Normal(scale=[0.1, 1.0]))
    predictive = gp.fit(fixed, data, num_restarts=1, seed=0).predict(data.x)
    torch.testing.assert_close(predictive.aleatoric, NOISE.square().expand(30, 2))
    learned = processes.GaussianProcess(kernel, likelihood=Normal(per_column=True))
    found = gp.fit(learned, data, num_restarts=1, seed=0).predict(data.x)
    first, second = found.aleatoric.sqrt()[0].tolist()
    assert 0.05 < first < second / 3 < 0.5


class TestWhatIsRefused:
    @pytest.mark.parametrize("shape", [(25,), (25, 1), (2,)])
    @pytest.mark.parametrize("family", [Normal, StudentT])
    def test_an_array_of_scales_names_the_two_remedies(self, family: type[Normal], shape: tuple[int, ...]) -> None:
        with pytest.raises(
            ValueError, match=r"`scale` must be a number, a list .* shape .*scale='given'.*Dataset\(x, y, scale"
        ):
            family(scale=torch.full(shape, 0.1))

    def test_known_noise_of_rows_as_weights_gives_the_exact_posterior(self) -> None:
        x, noise = gaussian(0, 25, 1), gaussian(1, 25).exp()
        y = 0.7 * x[:, 0] + noise * gaussian(2, 25)
        model = BayesianNetwork(nn.Linear(1, 1, bias=False).double(), priors.Normal(), Normal(scale=1.0))
        data = Dataset(x, y, weight=noise**-2)
        mode = map_estimate.fit(model, data, num_epochs=600, batch_size=25, learning_rate=0.05, seed=0)
        posterior = laplace.fit(model, data, mode=mode, structure="full", seed=0)
        precision = 1 + (x[:, 0] / noise).square().sum()
        predictive = posterior.predict(torch.ones(1, 1, dtype=torch.float64))
        torch.testing.assert_close(predictive.epistemic.squeeze(), 1 / precision, rtol=1e-6, atol=0)
        mean = (x[:, 0] * y / noise.square()).sum() / precision
        torch.testing.assert_close(predictive.mean.squeeze(), mean, rtol=1e-4, atol=0)

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({"scale": 0.1, "per_column": True}, r"Write a list, scale=\[0.1, 0.2\]"),
            ({"scale": [0.1, 0.2], "per_column": 3}, "of as many columns"),
            ({"scale": []}, "one number for each target column"),
            ({"scale": [0.1, -0.2]}, "above 0"),
            ({"initial_scale": priors.HalfNormal(1.0)}, "`initial_scale`"),
        ],
    )
    def test_columns_that_do_not_fit(self, arguments: dict, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            Normal(**arguments)

    def test_scales_of_other_columns_than_the_networks(self) -> None:
        f = gaussian(0, 5, 3)
        for use in (Normal(scale=[0.1, 1.0]).distribution, lambda f: Normal(scale=[0.1, 1.0]).predictive(f[None])):
            with pytest.raises(ValueError, match="scales for 2 columns; the network gives 3"):
                use(f)

    def test_a_network_whose_last_layer_tells_no_width_takes_the_number(self) -> None:
        class Bare(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(2, 2))

            def forward(self, x: Tensor) -> Tensor:
                return x @ self.weight

        with pytest.raises(ValueError, match="per_column=2"):
            BayesianNetwork(Bare(), priors.Normal(), Normal(per_column=True))
        assert len(BayesianNetwork(Bare(), priors.Normal(), Normal(per_column=2)).initial()["likelihood.scale"]) == 2

    @pytest.mark.filterwarnings("ignore:The posterior scales")
    def test_several_inferred_scales_are_no_prior_for_the_next_data(self) -> None:
        inferred = model_of(Normal(scale=priors.HalfNormal(1.0), per_column=True))
        posterior = variational.fit(inferred, two_columns(20), num_epochs=1, seed=0)
        with pytest.raises(ValueError, match="scale='learned'"):
            sequential.updated_model(posterior)
        learned = variational.fit(model_of(Normal(per_column=True)), two_columns(20), num_epochs=1, seed=0)
        assert isinstance(sequential.updated_model(learned).likelihood.initial_scale, tuple)
