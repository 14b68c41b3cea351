import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import biject_to

from bayesuq.models import priors
from tests.models import formulas

# Each prior with its log density by formula.
REAL = {
    "normal": (priors.Normal(0.3, 1.4), lambda w: formulas.normal(w, 0.3, 1.4)),
    "laplace": (priors.Laplace(-0.2, 0.6), lambda w: formulas.laplace(w, -0.2, 0.6)),
    "student_t": (priors.StudentT(3.5, 0.1, 0.7), lambda w: formulas.student_t(w, 3.5, 0.1, 0.7)),
    "scale_mixture": (
        priors.ScaleMixture((1.0, 0.1, 0.01), (0.5, 0.3, 0.2)),
        lambda w: formulas.scale_mixture(w, (1.0, 0.1, 0.01), (0.5, 0.3, 0.2)),
    ),
}
POSITIVE = {
    "half_normal": (priors.HalfNormal(0.8), lambda s: formulas.half_normal(s, 0.8)),
    "half_cauchy": (priors.HalfCauchy(0.5), lambda s: formulas.half_cauchy(s, 0.5)),
    "log_normal": (priors.LogNormal(-0.4, 0.9), lambda s: formulas.log_normal(s, -0.4, 0.9)),
    "gamma": (priors.Gamma(2.5, 1.7), lambda s: formulas.gamma(s, 2.5, 1.7)),
}
ALL = REAL | POSITIVE
CENTRE = {"normal": 0.3, "laplace": -0.2, "student_t": 0.1, "scale_mixture": 0.0}

each = pytest.mark.parametrize("name", ALL)
each_real = pytest.mark.parametrize("name", REAL)
each_positive = pytest.mark.parametrize("name", POSITIVE)


def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def values(name: str, *shape: int) -> Tensor:
    """Values in the support, both near the centre and far out."""
    drawn = 3 * torch.randn(shape, dtype=torch.float64)
    return drawn if name in REAL else drawn.exp()


@each
def test_log_density_of_an_entry_is_the_textbook_formula(name: str) -> None:
    prior, formula = ALL[name]
    value = values(name, 200)
    torch.testing.assert_close(prior.entry(zeros()).log_prob(value), formula(value), rtol=1e-11, atol=1e-11)


@each
def test_log_density_of_a_parameter_is_the_sum_over_its_entries(name: str) -> None:
    prior, formula = ALL[name]
    value = values(name, 4, 3, 2)
    law = prior.distribution(zeros(4, 3, 2))
    assert (law.batch_shape, law.event_shape) == ((), (4, 3, 2))
    torch.testing.assert_close(law.log_prob(value), formula(value).sum(), rtol=1e-11, atol=0.0)
    scalar = prior.distribution(zeros())
    torch.testing.assert_close(scalar.log_prob(value[0, 0, 0]), formula(value[0, 0, 0]), rtol=1e-11, atol=1e-11)


@each
def test_density_integrates_to_one(name: str) -> None:
    """Midpoint rule over u in x = centre + tan(u), which reaches infinity; kinks at the centre fall between cells."""
    cells = 200_000
    u = (torch.arange(cells, dtype=torch.float64) + 0.5) * (math.pi / 2 / cells)
    tails = [1.0, -1.0] if name in REAL else [1.0]
    law = ALL[name][0].entry(zeros())
    mass = 0.0
    for sign in tails:
        density = law.log_prob(CENTRE.get(name, 0.0) + sign * torch.tan(u)).exp()
        mass += float((density / torch.cos(u) ** 2).sum() * (math.pi / 2 / cells))
    assert mass == pytest.approx(1.0, abs=1e-7)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("normal", stats.norm(0.3, 1.4)),
        ("laplace", stats.laplace(-0.2, 0.6)),
        ("student_t", stats.t(3.5, 0.1, 0.7)),
        ("half_normal", stats.halfnorm(scale=0.8)),
        ("half_cauchy", stats.halfcauchy(scale=0.5)),
        ("log_normal", stats.lognorm(0.9, scale=math.exp(-0.4))),
        ("gamma", stats.gamma(2.5, scale=1 / 1.7)),
    ],
)
def test_samples_follow_the_law(name: str, law: "stats.rv_continuous") -> None:
    count = 4000
    draws = ALL[name][0].distribution(zeros(count)).sample()
    distance = stats.kstest(draws.numpy(), law.cdf).statistic
    assert distance < 2.2 / count**0.5  # P(Kolmogorov's distance > t / sqrt(n)) is about 2 exp(-2 t^2): 1 in 8,000


def test_samples_of_a_scale_mixture_follow_the_law() -> None:
    count, scales, weights = 20_000, (1.0, 0.1, 0.01), (0.5, 0.3, 0.2)
    draws = priors.ScaleMixture(scales, weights).distribution(zeros(100, 200)).sample()
    assert draws.shape == (100, 200)
    standardised = draws.reshape(-1, 1) / torch.tensor(scales)
    ranks = (torch.special.ndtr(standardised) * torch.tensor(weights)).sum(dim=1)  # F(draw)
    assert stats.kstest(ranks.numpy(), "uniform").statistic < 2.2 / count**0.5
    rows = draws.reshape(100, 200)
    correlation = float((rows[:, 1:] * rows[:, :-1]).mean() / rows.square().mean())
    assert abs(correlation) < 4.5 / count**0.5  # entries are independent


@pytest.mark.parametrize(
    ("name", "mean", "variance", "fourth"),
    [
        ("normal", 0.3, 1.4**2, 3 * 1.4**4),
        ("laplace", -0.2, 2 * 0.6**2, 24 * 0.6**4),
        ("scale_mixture", 0.0, 0.5 + 0.3 * 0.01 + 0.2 * 1e-4, 3 * (0.5 + 0.3 * 1e-4 + 0.2 * 1e-8)),
        ("half_normal", 0.8 * math.sqrt(2 / math.pi), 0.64 * (1 - 2 / math.pi), None),
        ("log_normal", math.exp(-0.4 + 0.405), (math.exp(0.81) - 1) * math.exp(-0.8 + 0.81), None),
        ("gamma", 2.5 / 1.7, 2.5 / 1.7**2, None),
    ],
)
def test_moments_are_exact_and_samples_have_them(name: str, mean: float, variance: float, fourth: float | None) -> None:
    law = ALL[name][0].entry(zeros())
    assert float(law.mean) == pytest.approx(mean, rel=1e-12)
    assert float(law.variance) == pytest.approx(variance, rel=1e-12)
    count = 20_000
    draws = law.sample((count,))
    assert abs(float(draws.mean()) - mean) < 4.5 * (variance / count) ** 0.5
    if fourth is not None:  # the central fourth moment gives the standard error of a variance
        error = ((fourth - variance**2) / count) ** 0.5
        assert abs(float((draws - mean).square().mean()) - variance) < 4.5 * error


@each_real
@pytest.mark.parametrize("factor", [0.1, 1.0, 3.0])
def test_narrowing_multiplies_the_distance_from_the_centre(name: str, factor: float) -> None:
    prior, formula = REAL[name]
    narrowed, value, centre = prior.narrowed(factor), values(name, 50), CENTRE[name]
    found = narrowed.entry(zeros()).log_prob(centre + factor * (value - centre))
    torch.testing.assert_close(found, formula(value) - math.log(factor), rtol=1e-10, atol=1e-10)


@each_real
@pytest.mark.parametrize(
    ("shape", "fan_in"), [((5, 4), 4), ((2, 3, 5), 15), ((6, 2, 3, 3), 18), ((1, 9), 9), ((7,), 1), ((), 1)]
)
def test_fan_in_narrows_weights_by_the_root_of_the_inputs_and_leaves_biases(
    name: str, shape: tuple[int, ...], fan_in: int
) -> None:
    (prior, formula), centre, root = REAL[name], CENTRE[name], math.sqrt(fan_in)
    value = values(name, *shape) / root
    expected = (formula(centre + (value - centre) * root) + math.log(root)).sum()
    found = priors.FanIn(prior).distribution(zeros(*shape)).log_prob(value)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_fan_in_keeps_the_size_of_a_layers_outputs() -> None:
    for width in (10, 1000):
        weight = priors.FanIn(priors.Normal(scale=1.5)).distribution(zeros(2000, width)).sample()
        outputs = weight @ torch.ones(width, dtype=torch.float64)
        # The variance of 2,000 normal outputs has relative standard error sqrt(2 / 2000).
        assert abs(float(outputs.var()) / 1.5**2 - 1) < 4.5 * math.sqrt(2 / 2000)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_laws_have_the_dtype_of_their_parameter(name: str, dtype: torch.dtype) -> None:
    for prior in [ALL[name][0], *([priors.FanIn(ALL[name][0])] if name in REAL else [])]:
        law = prior.distribution(zeros(3, 2, dtype=dtype))
        draw = law.sample()
        assert draw.dtype == law.log_prob(draw).dtype == dtype


@each
def test_derivative_of_the_log_density_agrees_with_finite_differences(name: str) -> None:
    law = ALL[name][0].entry(zeros())
    value = (values(name, 20) if name in REAL else values(name, 20).clamp(0.05, 20)).requires_grad_()
    assert gradcheck(law.log_prob, value, eps=1e-7, atol=1e-5)


@each_positive
def test_laws_of_scales_have_positive_support(name: str) -> None:
    law = POSITIVE[name][0].distribution(zeros())
    assert not law.support.check(torch.tensor(-1.0))
    assert law.support.check(torch.tensor(1.0))
    assert (law.sample((1000,)) > 0).all()
    with pytest.raises(ValueError, match="support"):
        law.log_prob(torch.tensor(-1.0, dtype=torch.float64))


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e17), (torch.float64, 1e150)])
def test_scale_mixture_is_finite_far_out_and_at_its_narrow_peak(dtype: torch.dtype, far: float) -> None:
    value = torch.tensor([0.0, 1e-30, -1e-3, 50.0, -far, far], dtype=dtype, requires_grad=True)
    log_prob = priors.ScaleMixture().entry(zeros(dtype=dtype)).log_prob(value)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert value.grad is not None
    assert value.grad.isfinite().all()
    # Far out only the wide component is left: log(0.5) + log N(w; 0, 1), with derivative -w.
    expected = math.log(0.5) + formulas.normal(value[3].double(), 0.0, 1.0)
    torch.testing.assert_close(log_prob[3].double(), expected, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(value.grad[3:], -value[3:].detach(), rtol=1e-6, atol=0.0)


def test_scale_mixture_of_one_component_is_the_normal() -> None:
    value = values("normal", 30)
    mixture = priors.ScaleMixture(scales=(0.7,), weights=(1.0,)).entry(zeros())
    torch.testing.assert_close(mixture.log_prob(value), formulas.normal(value, 0.0, 0.7), rtol=1e-12, atol=1e-12)


def test_scale_mixture_expands_to_independent_entries_and_maps_to_the_real_line() -> None:
    law = priors.ScaleMixture().entry(zeros()).expand((2, 3))
    assert law.batch_shape == (2, 3)
    assert law.sample((5,)).shape == (5, 2, 3)
    assert law.variance.shape == law.mean.shape == law.log_prob(zeros(2, 3)).shape == (2, 3)
    assert law.expand((4, 2, 3)).sample().shape == (4, 2, 3)
    value = values("normal", 4)
    torch.testing.assert_close(biject_to(law.support)(value), value)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, "1", None, True, torch.ones(2)])
@pytest.mark.parametrize(
    ("kind", "argument"),
    [
        (priors.Normal, "scale"),
        (priors.Laplace, "scale"),
        (priors.StudentT, "scale"),
        (priors.StudentT, "df"),
        (priors.HalfNormal, "scale"),
        (priors.HalfCauchy, "scale"),
        (priors.LogNormal, "scale"),
        (priors.Gamma, "concentration"),
        (priors.Gamma, "rate"),
    ],
)
def test_arguments_that_are_not_positive_numbers_are_refused_by_name(kind: type, argument: str, bad: object) -> None:
    with pytest.raises((ValueError, TypeError), match=f"`{argument}`"):
        kind(**{argument: bad})


@pytest.mark.parametrize("bad", [math.nan, math.inf, "0", None])
@pytest.mark.parametrize("kind", [priors.Normal, priors.Laplace, priors.StudentT, priors.LogNormal])
def test_centres_that_are_not_finite_numbers_are_refused_by_name(kind: type, bad: object) -> None:
    with pytest.raises((ValueError, TypeError), match="`loc`"):
        kind(loc=bad)


@pytest.mark.parametrize(
    ("scales", "weights", "argument"),
    [
        ((1.0, 0.0), (0.5, 0.5), "scales"),
        ((1.0, math.nan), (0.5, 0.5), "scales"),
        ((1.0, 0.1), (0.5, 0.4), "weights"),
        ((1.0, 0.1), (1.5, -0.5), "weights"),
        ((1.0, 0.1), (1.0,), "weights"),
        ((1.0, 0.1), (math.nan, 0.5), "weights"),
        ((), (), "weights"),
    ],
)
def test_mixtures_that_are_no_distribution_are_refused_by_name(
    scales: tuple[float, ...], weights: tuple[float, ...], argument: str
) -> None:
    with pytest.raises(ValueError, match=f"`{argument}`"):
        priors.ScaleMixture(scales, weights)


@pytest.mark.parametrize("base", [priors.HalfNormal(), priors.FanIn(priors.Normal()), 1.0, priors.Normal])
def test_fan_in_takes_priors_on_the_real_line_only(base: object) -> None:
    with pytest.raises(TypeError, match="`base`"):
        priors.FanIn(base)


def test_numbers_of_numpy_do_as_arguments() -> None:
    prior = priors.Normal(np.float32(0.5), np.int64(2))
    torch.testing.assert_close(prior.entry(zeros()).log_prob(zeros()), formulas.normal(zeros(), 0.5, 2.0))
