"""Every family of torch and Pyro: a predictive of single numbers evaluates it, or says in words what is missing."""

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import pyro.distributions as pyro_laws
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch import distributions as torch_laws

import bayesuq as bq
from bayesuq.evaluation import calibration, scores
from bayesuq.predictive.laws import kinds, unwrapped
from bayesuq.predictive.mixture import MixturePredictive

S, N = 2, 25


def numbers(seed: int, low: float = 0.5, high: float = 2.0) -> Tensor:
    return low + (high - low) * torch.rand(S, N, 1, generator=torch.Generator().manual_seed(seed))


A, B, P, M = numbers(0), numbers(1), numbers(2, 0.2, 0.8), numbers(3, -1.0, 1.0)
TEN = torch.full((S, N, 1), 10.0)
SHARES = torch_laws.Categorical(numbers(4).expand(S, N, 1).unsqueeze(-1) ** torch.arange(2.0))

ZOO: dict[str, Callable[[], Any]] = {
    "AffineBeta": lambda: pyro_laws.AffineBeta(A, B, M, B),
    "AsymmetricLaplace": lambda: pyro_laws.AsymmetricLaplace(M, A, B),
    "Bernoulli": lambda: torch_laws.Bernoulli(P),
    "Beta": lambda: torch_laws.Beta(A, B),
    "BetaBinomial": lambda: pyro_laws.BetaBinomial(A, B, TEN),
    "Binomial": lambda: torch_laws.Binomial(TEN, logits=M),
    "Cauchy": lambda: torch_laws.Cauchy(M, A),
    "Chi2": lambda: torch_laws.Chi2(2 * A),
    "ContinuousBernoulli": lambda: torch_laws.ContinuousBernoulli(P),
    "Exponential": lambda: torch_laws.Exponential(A),
    "ExtendedBetaBinomial": lambda: pyro_laws.ExtendedBetaBinomial(A, B, TEN),
    "ExtendedBinomial": lambda: pyro_laws.ExtendedBinomial(TEN, P),
    "FisherSnedecor": lambda: torch_laws.FisherSnedecor(2 * A, 5 + B),
    "FoldedDistribution": lambda: pyro_laws.FoldedDistribution(torch_laws.Normal(M, A)),
    "Gamma": lambda: torch_laws.Gamma(A, B),
    "GammaPoisson": lambda: pyro_laws.GammaPoisson(A, B),
    "GeneralizedPareto": lambda: torch_laws.GeneralizedPareto(M, A, 0.2 * B),
    "Geometric": lambda: torch_laws.Geometric(P),
    "Gumbel": lambda: torch_laws.Gumbel(M, A),
    "HalfCauchy": lambda: torch_laws.HalfCauchy(A),
    "HalfNormal": lambda: torch_laws.HalfNormal(A),
    "InverseGamma": lambda: torch_laws.InverseGamma(3 + A, B),
    "Kumaraswamy": lambda: torch_laws.Kumaraswamy(A, B),
    "Laplace": lambda: torch_laws.Laplace(M, A),
    "LogNormal": lambda: torch_laws.LogNormal(M, 0.5 * A),
    "LogNormalNegativeBinomial": lambda: pyro_laws.LogNormalNegativeBinomial(TEN, M, 0.3 * A),
    "Logistic": lambda: pyro_laws.Logistic(M, A),
    "MaskedMixture": lambda: pyro_laws.MaskedMixture(M > 0, torch_laws.Normal(M, A), torch_laws.Normal(M - 2, B)),
    "MixtureSameFamily": lambda: torch_laws.MixtureSameFamily(
        SHARES, torch_laws.Gamma(torch.stack([A, 3 * A], -1), torch.stack([B, B], -1))
    ),
    "NanMaskedNormal": lambda: pyro_laws.NanMaskedNormal(M, A),
    "NegativeBinomial": lambda: torch_laws.NegativeBinomial(TEN, P),
    "Normal": lambda: torch_laws.Normal(M, A),
    "Pareto": lambda: torch_laws.Pareto(A, 3 + B),
    "Poisson": lambda: torch_laws.Poisson(3 * A),
    "RelaxedBernoulli": lambda: torch_laws.RelaxedBernoulli(torch.tensor(1.5), probs=P),
    "RelaxedBernoulliStraightThrough": lambda: pyro_laws.RelaxedBernoulliStraightThrough(torch.tensor(1.5), probs=P),
    "SkewLogistic": lambda: pyro_laws.SkewLogistic(M, A, B),
    "SoftAsymmetricLaplace": lambda: pyro_laws.SoftAsymmetricLaplace(M, A, B, 0.5 * A),
    "SoftLaplace": lambda: pyro_laws.SoftLaplace(M, A),
    "Stable": lambda: pyro_laws.Stable(1 + 0.5 * P, M.clamp(-0.9, 0.9), A, M),
    "StudentT": lambda: torch_laws.StudentT(3 + A, M, B),
    "TransformedDistribution": lambda: torch_laws.TransformedDistribution(
        torch_laws.Normal(M, A), [torch_laws.AffineTransform(M, -B), torch_laws.SoftplusTransform()]
    ),
    "Uniform": lambda: torch_laws.Uniform(M - A, M + B),
    "VonMises": lambda: torch_laws.VonMises(M, 4 * A),
    "Weibull": lambda: torch_laws.Weibull(A, B),
    "ZeroInflatedDistribution": lambda: pyro_laws.ZeroInflatedDistribution(torch_laws.Poisson(3 * A), gate=P),
    "ZeroInflatedNegativeBinomial": lambda: pyro_laws.ZeroInflatedNegativeBinomial(TEN, probs=P, gate=P),
    "ZeroInflatedPoisson": lambda: pyro_laws.ZeroInflatedPoisson(3 * A, gate_logits=M),
}
BY_DRAWS = {"SoftAsymmetricLaplace", "Stable"}  # whose distribution function is not known
HEAVY = {"Stable", "Pareto", "GeneralizedPareto", "InverseGamma", "FisherSnedecor"}  # tails


def every_family() -> dict[str, type[Any]]:
    named = [pair for module in (torch_laws, pyro_laws) for pair in vars(module).items()]
    return {name: one for name, one in named if inspect.isclass(one) and issubclass(one, torch_laws.Distribution)}


VECTORS_AND_OTHERS: dict[str, Callable[[], Any]] = {
    "Categorical": lambda: torch_laws.Categorical(A),
    "OrderedLogistic": lambda: pyro_laws.OrderedLogistic(M, torch.tensor([-1.0, 0.0, 1.0])),
    "OneHotCategorical": lambda: torch_laws.OneHotCategorical(A),
    "Delta": lambda: pyro_laws.Delta(M),
    "Dirichlet": lambda: torch_laws.Dirichlet(numbers(0).expand(S, N, 3)),
    "Empirical": lambda: pyro_laws.Empirical(M, torch.zeros(S)),
    "ImproperUniform": lambda: pyro_laws.ImproperUniform(torch_laws.constraints.real, (S, N, 1), ()),
    "MultivariateNormal": lambda: torch_laws.MultivariateNormal(M, torch.eye(1)),
    "Multinomial": lambda: torch_laws.Multinomial(3, A),
    "VonMises3D": lambda: pyro_laws.VonMises3D(torch.ones(S, N, 3)),
    "TruncatedPolyaGamma": lambda: pyro_laws.TruncatedPolyaGamma(torch.zeros(()), validate_args=False).expand(
        (S, N, 1)
    ),
    "Unit": lambda: pyro_laws.Unit(M),
    "Rejector": lambda: pyro_laws.Rejector(
        torch_laws.Normal(M, A), lambda x: -x, torch.zeros(()), batch_shape=(S, N, 1)
    ),
}


@pytest.fixture(autouse=True)
def fixed() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_family_is_evaluated_sampled_and_inverted(name: str) -> None:
    law = ZOO[name]()
    predictive = MixturePredictive(law)
    y = predictive.marginal_sample(1, seed=0)[0]
    report = bq.evaluation.report.evaluate(predictive, y)
    told = {measure.name: measure for measure in report.measures}
    assert math.isfinite(told["negative_log_likelihood"].value)
    if name != "GeneralizedPareto":  # which torch has in one dtype only
        with pyro.validation_enabled(is_validate=False):
            law = ZOO[name]()
            each = torch.where(law.support.check(y.float()), law.log_prob(y.float()), -math.inf)
        exact = each.squeeze(2).logsumexp(dim=0) - math.log(S)
        torch.testing.assert_close(predictive.log_prob(y), exact.double(), rtol=1e-3, atol=1e-3)
    assert told["crps"].standard_error > 0
    assert ("by 4000 draws" in told["interval_coverage"].remark) == (name in BY_DRAWS)
    assert abs(told["interval_coverage"].value - 0.9) < 5 * (0.09 / N) ** 0.5
    # Draws, distribution function and quantiles are of one law.
    many = predictive.sample(2000, seed=1)
    for level in (0.1, 0.93):
        at = predictive.quantile(level)
        upto, before = ((compare(many, at)).double().mean(dim=0) for compare in (torch.le, torch.lt))
        error = 5 * (level * (1 - level) / 2000 + level * (1 - level) / 4000 * (name in BY_DRAWS)) ** 0.5
        assert bool((upto >= level - error).all())
        assert bool((before <= level + error).all())
    transforms = calibration.probability_integral_transform(predictive, y, seed=77)
    assert scipy.stats.kstest(transforms.flatten(), "uniform").pvalue > 1e-4
    if bool(predictive.total.isfinite().all()) and name not in HEAVY:
        off = (many.mean(dim=0) - predictive.mean) / (predictive.total / 2000).sqrt()
        assert float(off.abs().max()) < 6
        assert float((many.var(dim=0) / predictive.total).log().mean().abs()) < 0.1


@pytest.mark.parametrize("name", sorted(ZOO))
def test_points_components_units_and_merges_of_a_family(name: str) -> None:
    predictive = MixturePredictive(ZOO[name]())
    y = predictive.sample(1, seed=0)[0]
    parts = [predictive.at(slice(0, 7)), predictive.at(slice(7, None))]
    again = MixturePredictive.concatenate(parts)
    halves = [predictive.components_at(torch.tensor(chosen)) for chosen in ([0], [1])]
    for other in (again, MixturePredictive.mixture(halves), predictive.to("cpu")):
        torch.testing.assert_close(other.log_prob(y), predictive.log_prob(y), rtol=1e-9, atol=1e-12)
        if name not in BY_DRAWS:
            torch.testing.assert_close(other.cdf(y), predictive.cdf(y), rtol=1e-9, atol=1e-12)
    loc, scale = torch.tensor([3.0]), torch.tensor([2.0])
    if predictive.is_discrete:
        with pytest.raises(ValueError, match="counts have no unit"):
            predictive.rescale(loc, scale)
        return
    moved = predictive.rescale(loc, scale)
    torch.testing.assert_close(moved.log_prob(3 + 2 * y), predictive.log_prob(y) - math.log(2), rtol=1e-6, atol=1e-6)
    if name not in BY_DRAWS:
        torch.testing.assert_close(moved.quantile(0.3), 3 + 2 * predictive.quantile(0.3), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(moved.mean, 3 + 2 * predictive.mean, rtol=1e-2, atol=0.2, equal_nan=True)


def test_no_family_fails_without_a_word() -> None:
    """All classes of both libraries are in one of the two lists, or cannot be laws of single numbers."""
    shapes = torch.ones(S, N, 1)
    for name, make in VECTORS_AND_OTHERS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            law = make()
        with pytest.raises((TypeError, ValueError, NotImplementedError)) as told:
            bq.evaluation.report.evaluate(MixturePredictive(law), shapes[0])
        assert len(str(told.value)) > 40, name
    told_of = set(ZOO) | set(VECTORS_AND_OTHERS)
    single = {
        name
        for name, one in every_family().items()
        if name not in told_of and not inspect.isabstract(one) and getattr(one, "arg_constraints", None)
    }
    vectors = {"AVFMultivariateNormal", "CoalescentTimes", "CoalescentTimesWithRate", "DirichletMultinomial"}
    vectors |= {"DiscreteHMM", "GaussianScaleMixture", "GroupedNormalNormal", "LKJ", "LKJCholesky", "LKJCorrCholesky"}
    vectors |= {"LogisticNormal", "LowRankMultivariateNormal", "MixtureOfDiagNormals", "MultivariateStudentT"}
    vectors |= {"MixtureOfDiagNormalsSharedCovariance", "NanMaskedMultivariateNormal", "OMTMultivariateNormal"}
    vectors |= {"OneHotCategoricalStraightThrough", "OneOneMatching", "OneTwoMatching", "ProjectedNormal"}
    vectors |= {"RelaxedOneHotCategorical", "RelaxedOneHotCategoricalStraightThrough", "SineBivariateVonMises"}
    vectors |= {"SineSkewed", "SpanningTree", "Wishart"}
    others = {"Distribution", "ExponentialFamily", "TorchDistribution", "StableWithLogProb"}
    assert single - vectors - others == set()


LISTED = ("Gamma", "LogNormal", "NegativeBinomial", "Binomial", "Beta", "Laplace", "ZeroInflatedPoisson")
LISTED += ("MixtureSameFamily", "Uniform", "StudentT", "Exponential")


@pytest.mark.parametrize("name", LISTED)
def test_the_score_of_draws_is_the_integral_of_its_definition(name: str) -> None:
    """CRPS = integral of (F(x) - 1[y <= x])^2 dx, for counts a sum over whole numbers."""
    predictive = MixturePredictive(ZOO[name]()).at(slice(0, 3))
    y = predictive.marginal_sample(1, seed=0)[0]
    low, high = float(predictive.quantile(1e-3).min()), float(predictive.quantile(1 - 1e-3).max())
    low, high = min(low, float(y.min())), max(high, float(y.max()))
    step = 1.0 if predictive.is_discrete else (high - low) / 120
    first = low if predictive.is_discrete else low + step / 2
    grid = torch.arange(first, high + 0.1 * step, step, dtype=torch.float64)
    each = torch.stack([(predictive.cdf(torch.full_like(y, float(x))) - (y <= x).double()).square() for x in grid])
    exact, found = step * each.sum(dim=0), scores.pointwise_crps(predictive, y)
    spread = torch.stack([predictive.quantile(level) for level in (0.16, 0.84)]).diff(dim=0)[0] / 2
    assert float(((found - exact) / spread).abs().max()) < 0.2  # five standard errors of 1,000 draws, and half a step


def test_moments_and_quantiles_against_scipy() -> None:
    laws = {
        "Gamma": (ZOO["Gamma"](), scipy.stats.gamma(A.double(), scale=1 / B.double())),
        "Beta": (ZOO["Beta"](), scipy.stats.beta(A.double(), B.double())),
        "Weibull": (ZOO["Weibull"](), scipy.stats.weibull_min(B.double(), scale=A.double())),
        "Binomial": (ZOO["Binomial"](), scipy.stats.binom(10, torch.sigmoid(M.double()))),
        "NegativeBinomial": (ZOO["NegativeBinomial"](), scipy.stats.nbinom(10, 1 - P.double())),
        "BetaBinomial": (ZOO["BetaBinomial"](), scipy.stats.betabinom(10, A.double(), B.double())),
        "FisherSnedecor": (ZOO["FisherSnedecor"](), scipy.stats.f(2 * A.double(), 5 + B.double())),
        "Geometric": (ZOO["Geometric"](), scipy.stats.geom(P.double(), loc=-1)),
    }
    for name, (law, exact) in laws.items():
        predictive = MixturePredictive(law)
        y = predictive.sample(1, seed=0)[0]
        expected = torch.as_tensor(exact.cdf(y.numpy())).mean(dim=0)
        torch.testing.assert_close(predictive.cdf(y), expected, rtol=1e-5, atol=1e-6, msg=name)
        one = predictive.components_at(torch.tensor([0]))
        level = 0.37
        found = torch.as_tensor(exact.cdf(one.quantile(level).expand(S, N, 1).numpy()))[0]
        if predictive.is_discrete:
            assert bool((found >= level - 1e-6).all()), name
        else:
            torch.testing.assert_close(found, torch.full_like(found, level), rtol=1e-4, atol=1e-5, msg=name)


def test_an_angle_is_a_number_with_moments_of_its_own_and_no_circular_ones() -> None:
    law = torch_laws.VonMises(torch.tensor([[[0.3]], [[2.9]]]), torch.tensor([[[2.0]], [[0.7]]]))
    predictive = MixturePredictive(law)
    grid = torch.linspace(-math.pi, math.pi, 200_001, dtype=torch.float64)
    for k in range(2):
        one = predictive.components_at(torch.tensor([k]))
        density = torch_laws.VonMises(law.loc[k].double(), law.concentration[k].double()).log_prob(grid).exp()[0]
        mean = torch.trapezoid(grid * density, grid)
        torch.testing.assert_close(one.mean.squeeze(), mean, rtol=1e-6, atol=1e-8)
        variance = torch.trapezoid((grid - mean).square() * density, grid)
        torch.testing.assert_close(one.total.squeeze(), variance, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(
            one.cdf([1.0]).squeeze(), torch.trapezoid(density[grid <= 1.0], grid[grid <= 1.0]), rtol=1e-4, atol=1e-5
        )


def test_draws_of_the_score_take_a_component_of_their_own_at_each_point() -> None:
    """Far components: shared choices would move all points together, and rows' errors would not tell."""
    loc = torch.tensor([-5.0, 5.0]).reshape(2, 1, 1).expand(2, 400, 1)
    predictive = MixturePredictive(torch_laws.Laplace(loc, 0.1))
    near = bq.GaussianPredictive(mean=loc, noise_variance=0.02)
    y = near.sample(1, seed=3)[0]
    found = bq.evaluation.report.evaluate(predictive, y)["crps"]
    assert abs(found.value - float(scores.crps(near, y))) < 0.02
    drawn = predictive.marginal_sample(50, seed=0)
    assert 0.4 < float((drawn > 0).double().mean(dim=1).min()) < float((drawn > 0).double().mean(dim=1).max()) < 0.6


def test_what_lies_outside_the_support_of_all_or_of_some_draws() -> None:
    low = torch.tensor([0.0, 1.0]).reshape(2, 1, 1)
    uniform = MixturePredictive(torch_laws.Uniform(low, low + 2))
    torch.testing.assert_close(uniform.log_prob([0.5]), torch.tensor([math.log(0.25)]).double())
    assert uniform.log_prob([9.0]).tolist() == [-math.inf]
    assert "1 of probability 0" in bq.evaluation.report.evaluate(uniform, [9.0])["negative_log_likelihood"].remark
    gamma = MixturePredictive(torch_laws.Gamma(1 + low, 1.0))
    with pytest.raises(ValueError, match="support of Gamma"):
        gamma.log_prob([-1.0])
    assert gamma.cdf([-1.0]).tolist() == [[0.0]]
    assert "Poisson" in kinds(pyro_laws.Poisson(1.0))


def test_a_law_that_does_not_expand_by_itself_comes_to_an_end() -> None:
    class Own(pyro_laws.TorchDistribution):
        arg_constraints: ClassVar[dict[str, Any]] = {}

    law = Own(validate_args=False).expand(torch.Size([3]))
    assert unwrapped(law.to_event(1)) is law


def test_a_law_without_density_is_still_measured_by_draws() -> None:
    law = torch_laws.TransformedDistribution(torch_laws.Normal(M, A), [torch_laws.AbsTransform()])
    predictive = MixturePredictive(law)
    y = predictive.marginal_sample(1, seed=0)[0]
    report = bq.evaluation.report.evaluate(predictive, y)
    assert "no density that is known" in report["negative_log_likelihood"].remark
    assert report["aleatoric_variance"].remark == "from 1000 draws of y from each component"
    folded = MixturePredictive(ZOO["FoldedDistribution"]())
    assert report["crps"].value == pytest.approx(float(scores.crps(folded, y)), rel=0.05)
    torch.testing.assert_close(predictive.quantile(0.6), folded.quantile(0.6), rtol=0.1, atol=0.1)
    with pytest.raises(NotImplementedError, match="no density that is known"):
        predictive.log_prob(y)
