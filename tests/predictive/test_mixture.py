"""Mixtures of Student and Poisson laws: the contract, and truths by scipy, quadrature and sums."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Categorical, Exponential, Gamma, Independent, Normal, Poisson, StudentT

from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive
from tests.predictive.contract import NUM_DRAWS, NUM_POINTS, ROUNDING, Components, PredictiveContract


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class MixtureContract(PredictiveContract):
    num_columns = 1

    def sample_errors(self, predictive: PredictiveDistribution, samples: Tensor) -> Tensor:
        centred = samples - predictive.mean
        of_mean = centred.mean(dim=0) / (predictive.total / len(samples)).sqrt()
        squares = centred.square()
        of_variance = (squares.mean(dim=0) - predictive.total) / (squares.std(dim=0) / len(samples) ** 0.5)
        return torch.stack([of_mean, of_variance])

    def test_points_are_those_of_a_slice(self, predictive: MixturePredictive) -> None:
        self.assert_same(
            MixturePredictive.concatenate([predictive.at(slice(0, 3)), predictive.at(slice(3, None))]), predictive
        )

    def test_cdf_is_the_share_of_the_draws_below(self, predictive: MixturePredictive) -> None:
        y, count = self.targets().double(), 20_000
        share = (predictive.sample(count, seed=5) <= y).double().mean(dim=0)
        expected = predictive.cdf(y)
        assert ((share - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt()).all()


class TestStudentTContract(MixtureContract):
    def components(self, num_draws: int = NUM_DRAWS, num_points: int = NUM_POINTS) -> Components:
        shape = (NUM_DRAWS, NUM_POINTS, self.num_columns)
        # At least nine degrees of freedom: the standard error of a variance needs a fourth moment.
        df = 9 + gaussian(0, *shape).square()
        whole = {"df": df, "loc": gaussian(1, *shape), "scale": 0.4 + gaussian(2, *shape).abs()}
        return {name: value[:num_draws, :num_points].clone() for name, value in whole.items()}

    def build(self, components: Components) -> MixturePredictive:
        return MixturePredictive(StudentT(**components, validate_args=False))

    def targets(self, num_points: int = NUM_POINTS) -> Tensor:
        return torch.linspace(-1, 1, num_points * self.num_columns, dtype=torch.float64).reshape(num_points, -1)

    def mass(self, predictive: PredictiveDistribution) -> Tensor:
        # Over x = sinh(u), where the integrand decays like exp(-9 u) and the trapezoid rule is exact to rounding.
        step = 0.05
        u = torch.arange(-5.0, 5.0, step, dtype=torch.float64)
        axis, width = u.sinh(), u.cosh() * step
        grid = torch.cartesian_prod(*[axis] * self.num_columns).reshape(-1, self.num_columns)
        widths = torch.cartesian_prod(*[width] * self.num_columns).reshape(-1, self.num_columns).prod(dim=1)
        law = predictive.at(slice(0, 1)).components
        values = {name: getattr(law, name).expand(-1, len(grid), -1) for name in ("df", "loc", "scale")}
        return (self.build(values).log_prob(grid).exp() * widths).sum()

    def test_it_is_the_mixture_that_scipy_writes(self, predictive: MixturePredictive) -> None:
        laws = scipy.stats.t(**{name: value.numpy() for name, value in self.components().items()})
        y = self.targets()
        density = np.exp(laws.logpdf(y.numpy()).sum(axis=2)).mean(axis=0)
        np.testing.assert_allclose(predictive.log_prob(y), np.log(density), rtol=1e-10)
        np.testing.assert_allclose(predictive.cdf(y), laws.cdf(y.numpy()).mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(predictive.aleatoric, laws.var().mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(predictive.epistemic, laws.mean().var(axis=0), rtol=1e-10)

    def test_quantile_inverts_cdf(self, predictive: MixturePredictive) -> None:
        for level in (1e-6, 0.05, 0.5, 0.9, 1 - 1e-6):
            found = predictive.cdf(predictive.quantile(level))
            torch.testing.assert_close(found, torch.full_like(found, level), rtol=1e-9, atol=0)

    def test_rescaling_moves_and_stretches_everything(self, predictive: MixturePredictive) -> None:
        loc, scale = gaussian(5, self.num_columns), gaussian(6, self.num_columns).exp()
        rescaled, y = predictive.rescale(loc, scale), self.targets()
        torch.testing.assert_close(rescaled.mean, loc + scale * predictive.mean, **ROUNDING)
        for name in ("total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(rescaled, name), scale**2 * getattr(predictive, name), **ROUNDING)
        jacobian = scale.log().sum()
        torch.testing.assert_close(rescaled.log_prob(loc + scale * y), predictive.log_prob(y) - jacobian, **ROUNDING)
        with pytest.raises(ValueError, match="`loc` and `scale` must have shape"):
            predictive.rescale(torch.zeros(3), torch.ones(3))


class TestStudentTOfTwoColumnsContract(TestStudentTContract):
    num_columns = 2


class TestPoissonContract(MixtureContract):
    def components(self, num_draws: int = NUM_DRAWS, num_points: int = NUM_POINTS) -> Components:
        rate = gaussian(0, NUM_DRAWS, NUM_POINTS, self.num_columns).exp() * 2
        return {"rate": rate[:num_draws, :num_points].clone()}

    def build(self, components: Components) -> MixturePredictive:
        return MixturePredictive(Poisson(**components, validate_args=False))

    def targets(self, num_points: int = NUM_POINTS) -> Tensor:
        return (torch.arange(num_points * self.num_columns) % 4).reshape(num_points, -1)

    def mass(self, predictive: PredictiveDistribution) -> Tensor:
        grid = torch.cartesian_prod(*[torch.arange(60)] * self.num_columns).reshape(-1, self.num_columns)
        rate = predictive.components.rate[:, :1].expand(-1, len(grid), -1)
        return self.build({"rate": rate}).log_prob(grid).exp().sum()

    def test_it_is_the_mixture_that_scipy_writes(self, predictive: MixturePredictive) -> None:
        laws = scipy.stats.poisson(self.components()["rate"].numpy())
        y = self.targets()
        np.testing.assert_allclose(
            predictive.log_prob(y), np.log(np.exp(laws.logpmf(y).sum(axis=2)).mean(axis=0)), rtol=1e-10
        )
        for point in (y, y - 1, y + 0.5):
            np.testing.assert_allclose(predictive.cdf(point), laws.cdf(point).mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(predictive.total, laws.mean().mean(axis=0) + laws.mean().var(axis=0), rtol=1e-10)

    @pytest.mark.parametrize("level", [1e-6, 0.05, 0.5, 0.9, 1 - 1e-9])
    def test_quantile_is_the_first_count_that_reaches_the_level(
        self, predictive: MixturePredictive, level: float
    ) -> None:
        found = predictive.quantile(level)
        assert (predictive.cdf(found) >= level).all()
        assert (predictive.cdf(found - 1) < level).all()

    def test_counts_have_no_other_unit(self, predictive: MixturePredictive) -> None:
        with pytest.raises(ValueError, match="Poisson cannot be rescaled: counts have no unit"):
            predictive.rescale(torch.zeros(()), torch.ones(()))

    @pytest.mark.parametrize("bad", [-1.0, 0.5])
    def test_what_is_no_count_has_no_probability(self, predictive: MixturePredictive, bad: float) -> None:
        with pytest.raises(ValueError, match=r"`y` must lie in the support of Poisson"):
            predictive.log_prob(torch.full_like(predictive.mean, bad))


class TestPoissonOfTwoColumnsContract(TestPoissonContract):
    num_columns = 2


def student(df: float, loc: tuple[float, ...] = (0.0, 2.0)) -> MixturePredictive:
    locs = torch.tensor(loc).reshape(-1, 1, 1)
    return MixturePredictive(StudentT(df, locs, torch.ones_like(locs)))


def test_two_degrees_of_freedom_leave_an_infinite_variance() -> None:
    for df, finite in ((2.0, False), (1.5, False), (2.5, True)):
        predictive = student(df)
        assert bool(predictive.total.isfinite().all()) == finite
        assert bool(predictive.aleatoric.isposinf().all()) != finite
        torch.testing.assert_close(predictive.mean, torch.ones(1, 1).double())
        torch.testing.assert_close(predictive.epistemic, torch.ones(1, 1).double())
        merged = predictive.merge(student(30.0))  # one component without variance is enough
        assert bool(merged.total.isfinite().all()) == finite


def test_one_degree_of_freedom_leaves_no_mean_but_quantiles() -> None:
    predictive = student(1.0, (0.0,))
    assert predictive.mean.isnan().all()
    assert predictive.total.isnan().all()
    torch.testing.assert_close(predictive.quantile(0.75), torch.ones(1, 1).double())  # Cauchy's quartile
    torch.testing.assert_close(predictive.log_prob([0.0]), torch.tensor([-math.log(math.pi)]).double())


def test_many_degrees_of_freedom_are_the_gaussian_mixture() -> None:
    means, scales = gaussian(0, 3, 4, 2), gaussian(1, 3, 4, 2).exp()
    found = MixturePredictive(StudentT(1e9, means, scales))
    expected = GaussianPredictive(mean=means, noise_variance=scales.square())
    y = gaussian(2, 4, 2)
    for name in ("mean", "total", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.log_prob(y), expected.log_prob(y), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.cdf(y), expected.cdf(y), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.quantile(0.1), expected.quantile(0.1), rtol=1e-7, atol=1e-9)


def test_large_rates_have_quantiles_near_the_normal_ones() -> None:
    predictive = MixturePredictive(Poisson(torch.full((1, 1, 1), 1e6)))
    assert abs(float(predictive.quantile(0.9)) - (1e6 + 1.2815515655 * 1e3)) < 2


def test_families_beside_the_package_s_own_work_as_far_as_torch_knows_them() -> None:
    rates = torch.tensor([[[1.0]], [[3.0]]])
    exponential = MixturePredictive(Exponential(rates))
    torch.testing.assert_close(exponential.cdf(exponential.quantile(0.3)), torch.full((1, 1), 0.3).double())
    gamma = MixturePredictive(Gamma(2.0, rates))
    torch.testing.assert_close(gamma.mean, torch.tensor([[(2 + 2 / 3) / 2]]).double())
    torch.testing.assert_close(gamma.cdf(gamma.quantile(0.3)), torch.full((1, 1), 0.3).double())
    event = MixturePredictive(Independent(Exponential(rates), 1))
    torch.testing.assert_close(event.mean, exponential.mean)


def test_predictives_of_two_families_do_not_join() -> None:
    with pytest.raises(ValueError, match="one family join; got Exponential, StudentT"):
        student(4.0).merge(MixturePredictive(Exponential(torch.ones(2, 1, 1))))


@pytest.mark.parametrize(
    ("law", "error", "message"),
    [
        (
            Poisson(torch.ones(3, 2)),
            ValueError,
            r"\(S, N, D\) with no empty dimension, and no event shape; got \(3, 2\)",
        ),
        (Poisson(torch.ones(0, 3, 2)), ValueError, "no empty dimension"),
        (torch.distributions.Dirichlet(torch.ones(1, 1, 1, 2)), ValueError, r"no event shape; got .* and \(2,\)"),
        (Categorical(torch.ones(1, 1, 1, 2)), TypeError, "A Categorical is of labels"),
        (torch.ones(1, 1, 1), TypeError, "got Tensor"),
        (Normal(torch.tensor([[[math.inf]]]), 1.0, validate_args=False), ValueError, "`loc` must be finite"),
    ],
)
def test_what_is_no_mixture_of_single_numbers_is_refused(law: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MixturePredictive(law)  # type: ignore[arg-type]


class Ramp(torch.distributions.Distribution):
    """A law of one's own on [0, top], whose argument's constraint says nothing of its dimensions."""

    arg_constraints = {"top": torch.distributions.constraints.dependent}  # noqa: RUF012 - as torch's own are
    support = torch.distributions.constraints.nonnegative

    def __init__(self, top, validate_args=None):
        self.top = top
        super().__init__(top.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return Ramp(self.top.expand(batch_shape))

    def log_prob(self, value):
        return (2 * value / self.top**2).log()

    def sample(self, sample_shape=()):
        return self.top * torch.rand(*sample_shape, *self.batch_shape, dtype=self.top.dtype).sqrt()


def test_a_law_whose_constraints_tell_no_dimensions_is_taken():
    top = torch.linspace(1.0, 3.0, 8).double().reshape(2, 4, 1)
    predictive = MixturePredictive(Ramp(top))
    y = torch.full((4, 1), 0.5).double()
    expected = (1.0 / top**2).mean(dim=0).log()
    torch.testing.assert_close(predictive.log_prob(y).reshape(4, 1), expected)
    assert predictive.at(slice(1, 3)).shape == (2, 2, 1)
