import math

import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset, Standardizer
from bayesuq.inference import gp, laplace
from bayesuq.models import BayesianNetwork, likelihoods, priors
from bayesuq.models import gp as processes
from bayesuq.predictive.gaussian import GaussianPredictive

S, N, D = 4, 6, 3


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEAN, NOISE, ROOT = gaussian(0, S, N, D), gaussian(1, S, N, D).square() + 0.1, gaussian(2, S, N, D, D)
COVARIANCE, Y = ROOT @ ROOT.mT, gaussian(3, N, D)
CORRELATED = GaussianPredictive(mean=MEAN, noise_variance=NOISE, function_covariance=COVARIANCE)


def dense(
    mean: Tensor = MEAN, noise: Tensor = NOISE, covariance: Tensor = COVARIANCE
) -> torch.distributions.Distribution:
    return torch.distributions.MultivariateNormal(mean, covariance + torch.diag_embed(noise))


class TestDensity:
    def test_is_that_of_dense_multivariate_normals(self) -> None:
        expected = dense().log_prob(Y)
        torch.testing.assert_close(CORRELATED.component_log_prob(Y), expected)
        torch.testing.assert_close(CORRELATED.log_prob(Y), expected.logsumexp(dim=0) - math.log(S))

    def test_in_blocks_of_rows_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = CORRELATED.log_prob(Y), CORRELATED.quantile(0.3), CORRELATED.total
        monkeypatch.setattr("bayesuq.predictive.gaussian.BLOCK_NUMBERS", 2 * S * D)
        assert len(list(CORRELATED._parts())) == 3
        for found, expected in zip(
            (CORRELATED.log_prob(Y), CORRELATED.quantile(0.3), CORRELATED.total), whole, strict=True
        ):
            torch.testing.assert_close(found, expected)

    def test_of_observed_columns_is_that_of_their_block(self) -> None:
        observed = torch.tensor([[True, False, True]] * (N - 1) + [[False] * 3])
        found = CORRELATED.component_log_prob(torch.where(observed, Y, 1e6), observed=observed)
        kept = [0, 2]
        block = dense(MEAN[..., kept], NOISE[..., kept], COVARIANCE[..., kept, :][..., kept])
        expected = block.log_prob(Y[:, kept])
        expected[:, -1] = 0  # nothing is known there
        torch.testing.assert_close(found, expected)

    def test_of_a_column_each_is_as_without_correlation(self) -> None:
        apart = GaussianPredictive(
            mean=MEAN, noise_variance=NOISE, function_variance=COVARIANCE.diagonal(dim1=-2, dim2=-1)
        )
        for name in ("mean", "total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(CORRELATED, name), getattr(apart, name))
        torch.testing.assert_close(CORRELATED.cdf(Y), apart.cdf(Y))
        assert not torch.allclose(CORRELATED.log_prob(Y), apart.log_prob(Y), atol=0.1)
        diagonal = GaussianPredictive(
            mean=MEAN, noise_variance=NOISE, function_covariance=torch.diag_embed(apart.function_variance)
        )
        torch.testing.assert_close(diagonal.log_prob(Y), apart.log_prob(Y))

    def test_of_one_column_has_no_matrix(self) -> None:
        one = GaussianPredictive(mean=MEAN[..., :1], noise_variance=1.0, function_covariance=torch.full((1, 1), 2.0))
        assert one.function_covariance is None
        assert (one.function_variance == 2).all()


class TestJoining:
    def test_parts_with_and_without_a_covariance_mix(self) -> None:
        apart = GaussianPredictive(mean=MEAN + 1, noise_variance=0.3)
        whole = CORRELATED.merge(apart)
        logs = torch.cat(
            [dense().log_prob(Y), dense(MEAN + 1, torch.full_like(NOISE, 0.3), 0 * COVARIANCE).log_prob(Y)]
        )
        torch.testing.assert_close(whole.log_prob(Y), logs.logsumexp(dim=0) - math.log(2 * S))
        rows = GaussianPredictive.concatenate([apart, CORRELATED])
        torch.testing.assert_close(rows.component_log_prob(torch.cat([Y, Y])), torch.cat([logs[S:], logs[:S]], dim=1))

    def test_another_unit_keeps_the_correlation(self) -> None:
        data = Dataset(gaussian(7, 30, 2), gaussian(8, 30, D) * torch.tensor([1e-3, 1.0, 50.0]) + 7)
        standardizer = Standardizer.fit(data)
        moved = standardizer.inverse(CORRELATED)
        y = standardizer.inverse(GaussianPredictive(mean=Y.unsqueeze(0), noise_variance=1.0)).mean
        change = CORRELATED.component_log_prob(Y) - moved.component_log_prob(y)
        torch.testing.assert_close(change, change[0, 0].expand(S, N))  # the Jacobian, of all points and draws alike
        torch.testing.assert_close(change[0, 0], (moved.total / CORRELATED.total).sqrt().log()[0].sum())


class TestDraws:
    def test_have_the_covariance(self) -> None:
        one = GaussianPredictive(mean=MEAN[:1], noise_variance=NOISE[:1], function_covariance=COVARIANCE[:1])
        count = 20_000
        whole = (COVARIANCE + torch.diag_embed(NOISE))[0, 0]
        size = whole.diagonal().sqrt()
        repeated = GaussianPredictive(
            mean=MEAN[:1].expand(count, -1, -1), noise_variance=NOISE[:1], function_covariance=COVARIANCE[:1]
        )
        for drawn in (one.sample(count, seed=0)[:, 0], repeated.component_sample(seed=0)[:, 0]):
            # Five standard errors: of a covariance at most sqrt(2) sd sd' / sqrt(S).
            assert ((drawn.T.cov() - whole).abs() < 5 * math.sqrt(2 / count) * size[:, None] * size).all()

    def test_of_a_singular_covariance_stay_on_its_line(self) -> None:
        line = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        flat = GaussianPredictive(
            mean=torch.zeros(1, 1, 3), noise_variance=0.0, function_covariance=torch.outer(line, line)
        )
        drawn = flat.sample(100, seed=0)[:, 0]
        torch.testing.assert_close(drawn, drawn[:, :1] * line, rtol=1e-6, atol=1e-6)
        with pytest.raises(ValueError, match="noise scale above 0"):
            flat.log_prob(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("covariance", "reason"),
    [
        (torch.eye(2), "broadcast"),
        (torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), "symmetric"),
        (torch.diag(torch.tensor([1.0, 1.0, -0.1])), "positive semidefinite"),
        (torch.full((3, 3), math.inf), "finite"),
    ],
)
def test_what_is_no_covariance_is_refused(covariance: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        GaussianPredictive(mean=MEAN, noise_variance=1.0, function_covariance=covariance)


def test_a_variance_beside_a_covariance_is_refused() -> None:
    with pytest.raises(ValueError, match="got both"):
        GaussianPredictive(mean=MEAN, noise_variance=1.0, function_variance=1.0, function_covariance=COVARIANCE)


class Tied(nn.Module):
    """Two columns from the same weights: f = (w x, w M x)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))
        self.register_buffer("turn", torch.tensor([[1.0, 0.4], [-0.7, 1.2]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x @ self.weight, x @ self.turn @ self.weight], dim=1)


def test_laplace_of_linear_regression_gives_the_joint_density_of_two_columns() -> None:
    x, new = gaussian(0, 25, 2), gaussian(1, 8, 2)
    net = Tied()
    y = net(x).detach() + 0.5 * gaussian(2, 25, 2)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))
    predictive = laplace.fit(
        model, Dataset(x, y), structure="full", num_epochs=600, learning_rate=0.05, seed=0
    ).predict(new)
    design = torch.cat([x, x @ net.turn])
    covariance = torch.linalg.inv(design.T @ design / 0.25 + torch.eye(2))
    jacobian = torch.stack([new, new @ net.turn], dim=1)  # (N, D, P)
    of_f = jacobian @ covariance @ jacobian.mT
    torch.testing.assert_close(predictive.function_covariance[0], of_f, rtol=1e-6, atol=1e-9)
    law = torch.distributions.MultivariateNormal(predictive.mean, of_f + 0.25 * torch.eye(2))
    target = gaussian(3, 8, 2)
    torch.testing.assert_close(predictive.log_prob(target), law.log_prob(target), rtol=1e-6, atol=1e-8)


def test_coregionalised_outputs_are_predicted_jointly() -> None:
    x, new = gaussian(0, 20, 2), gaussian(1, 9, 2)
    y = torch.sin(x.sum(dim=1))
    data = Dataset(x, torch.stack([y, 0.5 * y], dim=1) + 0.1 * gaussian(2, 20, 2))
    kernel = processes.Coregionalised(processes.RBF(lengthscale=0.8))
    model = processes.GaussianProcess(kernel, processes.ZeroMean(), likelihoods.Normal(scale=0.2))
    posterior = gp.fit(model, data, seed=0, max_iterations=50)
    mean, covariance = posterior.joint(new)
    of_f = covariance.reshape(2, 9, 2, 9).diagonal(dim1=1, dim2=3).movedim(2, 0)
    assert (of_f[:, 0, 1].abs() > 1e-3).any()
    predictive, target = posterior.predict(new), gaussian(3, 9, 2)
    torch.testing.assert_close(predictive.function_covariance[0], of_f, rtol=1e-7, atol=1e-9)
    law = torch.distributions.MultivariateNormal(mean.reshape(2, 9).T, of_f + 0.04 * torch.eye(2))
    torch.testing.assert_close(predictive.log_prob(target), law.log_prob(target), rtol=1e-7, atol=1e-8)
