import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from bayesuq.models import priors
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.counts import Poisson
from bayesuq.models.likelihoods.labels import Bernoulli, Categorical
from bayesuq.models.likelihoods.noisy_logits import HeteroscedasticCategorical
from bayesuq.models.likelihoods.real import HeteroscedasticNormal, Laplace, Normal, StudentT
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive
from tests.models import formulas

CLASS_WEIGHTS = (0.2, 1.5, 3.1)


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def labels(num_classes: int, *shape: int) -> Tensor:
    """Every class, and the classes in no order."""
    return torch.arange(math.prod(shape)).mul(7).remainder(num_classes).reshape(shape)


@pytest.mark.parametrize("inner", [(), (3,), (2, 3)])
def test_categorical_log_prob_is_the_log_of_the_softmax(inner: tuple[int, ...]) -> None:
    f, y = gaussian(5, 3, *inner), labels(3, 5, *inner)
    expected = formulas.categorical(f, y)
    torch.testing.assert_close(Categorical().elementwise_log_prob(f, y), expected)
    torch.testing.assert_close(Categorical().log_prob(f, y), expected.reshape(5, -1).sum(dim=1))
    torch.testing.assert_close(Categorical().distribution(f).log_prob(y), expected.reshape(5, -1).sum(dim=1))


@pytest.mark.parametrize("inner", [(), (2, 3)])
def test_class_weights_multiply_the_log_prob_of_the_true_class(inner: tuple[int, ...]) -> None:
    f, y = gaussian(5, 3, *inner), labels(3, 5, *inner)
    weights = torch.tensor(CLASS_WEIGHTS, dtype=torch.float64)[y]
    found = Categorical(class_weights=CLASS_WEIGHTS).elementwise_log_prob(f, y)
    torch.testing.assert_close(found, weights * formulas.categorical(f, y), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("ignored", [255, -1, 1])
def test_ignored_pixels_add_nothing_to_the_value_or_the_gradient(ignored: int) -> None:
    f, y = gaussian(4, 3, 2, 3), labels(3, 4, 2, 3)
    void = torch.zeros(4, 2, 3, dtype=torch.bool)
    void[0, 1, 2] = void[2] = True
    y = y.masked_fill(void, ignored)
    kept = y != ignored
    f.requires_grad_()
    found = Categorical(ignore_index=ignored).log_prob(f, y)
    terms = torch.where(kept, formulas.categorical(f, y.clamp(0, 2)), 0.0)
    torch.testing.assert_close(found, terms.sum(dim=(1, 2)))
    assert (found[2] == 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), f)
    assert (gradient.movedim(1, -1)[~kept] == 0).all()
    assert (gradient.movedim(1, -1)[kept] != 0).all()


@pytest.mark.parametrize("inner", [(), (2, 3)])
@pytest.mark.parametrize("class_weights", [None, (0.3, 1.7)])
def test_bernoulli_log_prob_is_minus_the_weighted_binary_cross_entropy(
    inner: tuple[int, ...], class_weights: tuple[float, float] | None
) -> None:
    f, y = gaussian(6, 1, *inner), labels(2, 6, *inner)
    terms = formulas.bernoulli(f, y.unsqueeze(1))
    if class_weights is not None:
        terms = terms * torch.tensor(class_weights, dtype=torch.float64)[y.unsqueeze(1)]
    likelihood = Bernoulli(class_weights=class_weights)
    for same in (y, y.unsqueeze(1)):
        found = likelihood.log_prob(f, same)
        torch.testing.assert_close(found, terms.reshape(6, -1).sum(dim=1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
def test_log_prob_of_sure_outputs_is_finite_with_finite_gradient(likelihood: Likelihood) -> None:
    f = torch.tensor([[-2000.0], [2000.0]]).requires_grad_()
    outputs = torch.cat([torch.zeros_like(f), f], dim=1) if isinstance(likelihood, Categorical) else f
    found = likelihood.log_prob(outputs, torch.tensor([1, 1]))
    torch.testing.assert_close(found, torch.tensor([-2000.0, 0.0]))
    (gradient,) = torch.autograd.grad(found.sum(), f)
    torch.testing.assert_close(gradient, torch.tensor([[1.0], [0.0]]))


@pytest.mark.parametrize("scale", [0.3, torch.tensor(0.3, dtype=torch.float64)])
@pytest.mark.parametrize("columns", [1, 3])
def test_normal_log_prob_sums_the_gaussian_density_over_columns(scale: float | Tensor, columns: int) -> None:
    f, y = gaussian(5, columns), gaussian(5, columns)
    expected = formulas.normal(y, f, 0.3).sum(dim=1)
    likelihood = Normal(scale=scale)
    torch.testing.assert_close(likelihood.log_prob(f, y), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(likelihood.distribution(f).log_prob(y), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("minimum_scale", [0.0, 0.4])
@pytest.mark.parametrize("columns", [1, 2])
def test_heteroscedastic_log_prob_takes_means_then_log_variances(minimum_scale: float, columns: int) -> None:
    f, y = gaussian(5, 2 * columns), gaussian(5, columns)
    scale = (f[:, columns:].exp() + minimum_scale**2).sqrt()
    expected = formulas.normal(y, f[:, :columns], scale).sum(dim=1)
    likelihood = HeteroscedasticNormal(minimum_scale)
    torch.testing.assert_close(likelihood.log_prob(f, y), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(likelihood.distribution(f).log_prob(y), expected, rtol=1e-12, atol=1e-12)


def test_a_minimum_scale_bounds_the_density_where_the_variance_collapses() -> None:
    f = torch.tensor([[1.0, -200.0]]).requires_grad_()
    found = HeteroscedasticNormal(minimum_scale=0.5).log_prob(f, torch.tensor([[1.0]]))
    torch.testing.assert_close(found, torch.tensor([-math.log(0.5) - 0.5 * math.log(2 * math.pi)]))
    (gradient,) = torch.autograd.grad(found.sum(), f)
    assert gradient.isfinite().all()


@dataclass(frozen=True)
class Case:
    """A likelihood with outputs f and targets y that it takes, in float64."""

    likelihood: Likelihood
    outputs: tuple[int, ...]  # C, ...
    classes: int | None = None  # None for real targets

    @property
    def f(self) -> Tensor:
        return gaussian(5, *self.outputs)

    @property
    def y(self) -> Tensor:
        if self.classes is not None:
            return labels(self.classes, 5, *self.outputs[1:])
        if isinstance(self.likelihood, Poisson):
            return labels(4, 5, *self.outputs).double()
        return gaussian(5, self.outputs[0] // (2 if isinstance(self.likelihood, HeteroscedasticNormal) else 1))


CASES = {
    "categorical": Case(Categorical(), (3,), 3),
    "weighted categorical": Case(Categorical(CLASS_WEIGHTS, ignore_index=2), (3,), 3),
    "categorical pixels": Case(Categorical(CLASS_WEIGHTS, ignore_index=2), (3, 2, 4), 3),
    "bernoulli": Case(Bernoulli(), (1,), 2),
    "weighted bernoulli": Case(Bernoulli((0.3, 1.7)), (1,), 2),
    "bernoulli pixels": Case(Bernoulli((0.3, 1.7)), (1, 2, 4), 2),
    "normal": Case(Normal(scale=0.7), (1,)),
    "normal columns": Case(Normal(scale=0.7), (3,)),
    "laplace": Case(Laplace(0.7), (1,)),
    "laplace columns": Case(Laplace([0.7, 0.2, 1.5]), (3,)),
    "student": Case(StudentT(3.5, 0.7), (1,)),
    "student columns": Case(StudentT(torch.tensor(2.0).double(), torch.tensor(0.7).double()), (3,)),
    "poisson": Case(Poisson(), (1,)),
    "poisson columns": Case(Poisson(), (3,)),
    "noisy logits": Case(HeteroscedasticCategorical(8), (6,), 3),
    "weighted noisy logits": Case(HeteroscedasticCategorical(32, CLASS_WEIGHTS, ignore_index=2), (6,), 3),
    "noisy logits of pixels": Case(HeteroscedasticCategorical(32, CLASS_WEIGHTS, ignore_index=2), (6, 2, 4), 3),
    "heteroscedastic": Case(HeteroscedasticNormal(), (2,)),
    "heteroscedastic columns": Case(HeteroscedasticNormal(0.1), (6,)),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
weighted = pytest.mark.parametrize("name", [name for name in CASES if CASES[name].likelihood.reweights_classes])


@each
def test_derivative_of_log_prob_agrees_with_finite_differences(case: Case) -> None:
    y = case.y
    assert gradcheck(lambda f: case.likelihood.log_prob(f, y), case.f.requires_grad_())


@each
def test_a_row_weight_multiplies_the_rows_log_prob(case: Case) -> None:
    f, y, weight = case.f, case.y, torch.tensor([0.0, 1.0, 0.5, 2.0, 3.3], dtype=torch.float64)
    found = case.likelihood.log_prob(f, y, weight)
    torch.testing.assert_close(found, weight * case.likelihood.log_prob(f, y), rtol=1e-13, atol=0.0)


@each
def test_weights_of_targets_multiply_before_the_sum(case: Case) -> None:
    f, y = case.f, case.y
    terms = case.likelihood.elementwise_log_prob(f, case.likelihood.align(f, y))
    weight = torch.rand(y.shape, dtype=torch.float64)
    expected = (terms * weight.reshape(terms.shape)).reshape(5, -1).sum(dim=1)
    torch.testing.assert_close(case.likelihood.log_prob(f, y, weight), expected, rtol=1e-13, atol=0.0)
    aligned = weight.reshape(terms.shape)
    torch.testing.assert_close(case.likelihood.log_prob(f, y, aligned), expected, rtol=1e-13, atol=0.0)


@each
def test_the_total_is_the_sum_of_the_rows(case: Case) -> None:
    f, y, weight = case.f, case.y, torch.rand(5, dtype=torch.float64)
    for given in (None, weight):
        total = case.likelihood.total_log_prob(f, y, given)
        torch.testing.assert_close(total, case.likelihood.log_prob(f, y, given).sum(), rtol=1e-13, atol=0.0)


@each
def test_rows_do_not_depend_on_each_other(case: Case) -> None:
    f, y = case.f, case.y
    together = case.likelihood.log_prob(f, y)
    alone = torch.cat([case.likelihood.log_prob(f[n : n + 1], y[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=0.0)


@weighted
def test_distribution_and_predictive_do_not_know_class_weights(name: str) -> None:
    case = CASES[name]
    plain = type(case.likelihood)()
    f, draws = case.f, gaussian(4, 5, *case.outputs)
    y = case.y
    torch.testing.assert_close(case.likelihood.distribution(f).log_prob(_event(f, y)), plain.log_prob(f, y))
    torch.testing.assert_close(case.likelihood.predictive(draws).mean, plain.predictive(draws).mean)
    assert not torch.allclose(case.likelihood.log_prob(f, y), plain.log_prob(f, y))


def _event(f: Tensor, y: Tensor) -> Tensor:
    """`y` as the law of a point's targets takes it."""
    return y.unsqueeze(1).to(f.dtype) if f.shape[1] == 1 else y


def test_only_likelihoods_that_weigh_classes_say_so() -> None:
    assert not any(likelihood.reweights_classes for likelihood in (Categorical(), Bernoulli(), Normal(1.0)))
    assert Categorical(CLASS_WEIGHTS).reweights_classes
    assert Categorical(ignore_index=0).reweights_classes
    assert Bernoulli((1.0, 2.0)).reweights_classes


def test_distributions_draw_targets_of_their_law() -> None:
    count = 4000
    f = torch.tensor([[0.3, -0.8, 1.1]])
    drawn = Categorical().distribution(f.expand(count, 3)).sample()
    probs = f.softmax(dim=1)[0]
    frequency = torch.bincount(drawn, minlength=3) / count
    assert ((frequency - probs).abs() < 4.5 * (probs * (1 - probs) / count).sqrt()).all()
    ones = Bernoulli().distribution(f[:, :1].expand(count, 1)).sample()
    prob = 1 / (1 + math.exp(-0.3))
    assert abs(float(ones.mean()) - prob) < 4.5 * (prob * (1 - prob) / count) ** 0.5
    real = HeteroscedasticNormal(0.5).distribution(f[:, :2].expand(count, 2)).sample()
    variance = math.exp(-0.8) + 0.25
    assert abs(float(real.mean()) - 0.3) < 4.5 * (variance / count) ** 0.5
    assert abs(float(real.var()) - variance) < 4.5 * variance * (2 / count) ** 0.5


@pytest.mark.parametrize("inner", [(), (2, 3)])
@pytest.mark.parametrize("keep_samples", [True, False])
def test_categorical_predictive_is_the_mean_softmax(inner: tuple[int, ...], keep_samples: bool) -> None:
    f = gaussian(4, 5, 3, *inner)
    predictive = Categorical(CLASS_WEIGHTS, ignore_index=1).predictive(f, keep_samples=keep_samples)
    assert isinstance(predictive, CategoricalPredictive)
    expected = (f.exp() / f.exp().sum(dim=2, keepdim=True)).mean(dim=0)
    torch.testing.assert_close(predictive.mean, expected)
    assert (predictive.draws is not None) == keep_samples


@pytest.mark.parametrize("inner", [(), (2, 3)])
@pytest.mark.parametrize("keep_samples", [True, False])
def test_bernoulli_predictive_has_two_classes_with_the_mean_probability(
    inner: tuple[int, ...], keep_samples: bool
) -> None:
    f = 3 * gaussian(4, 5, 1, *inner)
    predictive = Bernoulli((0.1, 2.0)).predictive(f, keep_samples=keep_samples)
    prob = (1 / (1 + torch.exp(-f))).mean(dim=0)
    torch.testing.assert_close(predictive.mean, torch.cat([1 - prob, prob], dim=1))
    y = labels(2, 5, *inner)
    torch.testing.assert_close(predictive.log_prob(y), torch.where(y == 1, prob[:, 0], 1 - prob[:, 0]).log())


@pytest.mark.parametrize(
    "scale",
    [0.3, torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.2, 2.0], dtype=torch.float64)],
    ids=["number", "one value", "a value for each draw"],
)
@pytest.mark.parametrize("columns", [1, 3])
def test_normal_predictive_is_the_mixture_of_its_draws(scale: float | Tensor, columns: int) -> None:
    f, y = gaussian(4, 5, columns), gaussian(5, columns)
    scales = torch.as_tensor(scale, dtype=torch.float64).expand(4)
    predictive = Normal(scale=0.9).given({"scale": scale}).predictive(f)
    assert isinstance(predictive, GaussianPredictive)
    components = formulas.normal(y, f, scales.reshape(4, 1, 1)).sum(dim=2)
    torch.testing.assert_close(predictive.log_prob(y), components.exp().mean(dim=0).log())
    torch.testing.assert_close(predictive.mean, f.mean(dim=0))
    torch.testing.assert_close(predictive.aleatoric, scales.square().mean().expand(5, columns))
    torch.testing.assert_close(predictive.epistemic, (f - f.mean(dim=0)).square().mean(dim=0))


@pytest.mark.parametrize("minimum_scale", [0.0, 0.4])
@pytest.mark.parametrize("columns", [1, 2])
def test_heteroscedastic_predictive_is_the_mixture_of_its_draws(minimum_scale: float, columns: int) -> None:
    f, y = gaussian(4, 5, 2 * columns), gaussian(5, columns)
    means, variances = f[..., :columns], f[..., columns:].exp() + minimum_scale**2
    predictive = HeteroscedasticNormal(minimum_scale).predictive(f)
    components = formulas.normal(y, means, variances.sqrt()).sum(dim=2)
    torch.testing.assert_close(predictive.log_prob(y), components.exp().mean(dim=0).log())
    torch.testing.assert_close(predictive.aleatoric, variances.mean(dim=0))
    torch.testing.assert_close(predictive.epistemic, (means - means.mean(dim=0)).square().mean(dim=0))


def test_a_normal_scale_is_fixed_learned_or_inferred() -> None:
    assert Normal(scale=0.3).unknowns == {}
    learned = Normal(initial_scale=0.2).unknowns["scale"]
    assert (learned.prior, learned.initial) == (None, 0.2)
    prior = priors.HalfNormal(2.0)
    inferred = Normal(scale=prior, initial_scale=0.5).unknowns["scale"]
    assert (inferred.prior, inferred.initial) == (prior, 0.5)
    for likelihood in (Categorical(), Bernoulli(), HeteroscedasticNormal()):
        assert likelihood.unknowns == {}
        assert likelihood.given({}) is likelihood


@pytest.mark.parametrize("scale", ["learned", priors.HalfCauchy()])
def test_a_scale_without_a_value_is_an_error(scale: object) -> None:
    likelihood, f = Normal(scale=scale), gaussian(2, 1)
    for use in (likelihood.distribution, lambda f: likelihood.predictive(f[None]), lambda f: likelihood.log_prob(f, f)):
        with pytest.raises(ValueError, match="no value yet"):
            use(f)
    given = likelihood.given({"scale": torch.tensor(0.5, dtype=torch.float64)})
    torch.testing.assert_close(given.log_prob(f, f), formulas.normal(f, f, 0.5)[:, 0])


@pytest.mark.parametrize(
    "prior",
    [
        priors.Normal(loc=5.0),
        priors.Laplace(),
        priors.StudentT(),
        priors.ScaleMixture(),
        priors.FanIn(priors.Normal()),
    ],
)
def test_a_noise_scale_needs_a_prior_over_positive_numbers(prior: priors.Prior) -> None:
    with pytest.raises(ValueError, match=r"`scale` needs a prior over positive numbers, such as HalfNormal"):
        Normal(scale=prior)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, None, True, "fixed", "0.1"])
def test_noise_scales_that_are_not_positive_numbers_are_refused(bad: object) -> None:
    with pytest.raises((ValueError, TypeError), match="`scale`"):
        Normal(scale=bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, "1", None])
def test_initial_scales_that_are_not_positive_numbers_are_refused(bad: object) -> None:
    with pytest.raises((ValueError, TypeError), match="`initial_scale`"):
        Normal(initial_scale=bad)


@pytest.mark.parametrize("columns", [1, 3])
def test_student_log_prob_is_the_density_and_its_predictive_the_mixture(columns: int) -> None:
    f, y = gaussian(4, 5, columns), gaussian(5, columns)
    df, scale = (torch.linspace(low, 5.0, 4).double() for low in (2.5, 0.3))
    components = torch.stack([formulas.student_t(y, df[s], f[s], scale[s]).sum(dim=1) for s in range(4)])
    given = StudentT("learned", "learned").given({"df": df[0], "scale": scale[0]})
    torch.testing.assert_close(given.log_prob(f[0], y), components[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(given.distribution(f[0]).log_prob(y), components[0], rtol=1e-12, atol=1e-12)
    predictive = StudentT("learned", "learned").given({"df": df, "scale": scale}).predictive(f)
    assert isinstance(predictive, MixturePredictive)
    torch.testing.assert_close(predictive.log_prob(y), components.exp().mean(dim=0).log())
    variance = (scale**2 * df / (df - 2)).mean()
    torch.testing.assert_close(predictive.aleatoric, variance.expand(5, columns))


def test_student_s_pull_of_a_far_target_falls_with_its_distance() -> None:
    f = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64)
    (pull,) = torch.autograd.grad(StudentT(4.0, 1.0).log_prob(f, y).sum(), f)
    torch.testing.assert_close(pull[:, 0], 5 * y / (4 + y**2))  # (df + 1) r / (df + r^2), which falls as 1 / r


@pytest.mark.parametrize("columns", [1, 3])
def test_poisson_log_prob_is_the_formula_and_its_predictive_the_mixture(columns: int) -> None:
    f, y = gaussian(4, 5, columns), labels(4, 5, columns)
    components = torch.stack([formulas.poisson(one, y).sum(dim=1) for one in f])
    torch.testing.assert_close(Poisson().log_prob(f[0], y), components[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(Poisson().distribution(f[0]).log_prob(y.double()), components[0])
    predictive = Poisson().predictive(f)
    torch.testing.assert_close(predictive.log_prob(y), components.exp().mean(dim=0).log())
    torch.testing.assert_close(predictive.mean, f.exp().mean(dim=0))


@pytest.mark.parametrize("name", ["df", "scale"])
def test_student_parameters_are_fixed_learned_or_inferred(name: str) -> None:
    prior = priors.HalfNormal(2.0)
    fixed = {"df": 4.0, "scale": 1.0}
    assert StudentT(**fixed).unknowns == {}
    for value, law in (("learned", None), (prior, prior)):
        unknown = StudentT(**fixed | {name: value, f"initial_{name}": 0.7}).unknowns
        assert {key: (one.prior, one.initial) for key, one in unknown.items()} == {name: (law, 0.7)}
    with pytest.raises(ValueError, match=f"{name} has no value yet"):
        StudentT(**fixed | {name: "learned"}).distribution(gaussian(2, 1))
    with pytest.raises(ValueError, match=f"`{name}` needs a prior over positive numbers"):
        StudentT(**fixed | {name: priors.Normal()})
    for bad in (0.0, -1.0, math.nan, "fixed", None):
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            StudentT(**fixed | {name: bad})
        with pytest.raises((ValueError, TypeError), match=f"`initial_{name}`"):
            StudentT(**fixed | {f"initial_{name}": bad})


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, "0", None])
def test_minimum_scales_below_zero_are_refused(bad: object) -> None:
    with pytest.raises((ValueError, TypeError), match="`minimum_scale`"):
        HeteroscedasticNormal(minimum_scale=bad)


@pytest.mark.parametrize("kind", [Categorical, Bernoulli])
@pytest.mark.parametrize("bad", [(1.0,), (-1.0, 2.0), (math.nan, 1.0), (math.inf, 1.0), (0.0, 0.0), ()])
def test_class_weights_that_are_no_weights_are_refused(kind: type, bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="`class_weights`"):
        kind(class_weights=bad)


def test_class_weights_must_be_as_many_as_classes() -> None:
    with pytest.raises(ValueError, match="two entries"):
        Bernoulli((1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"one entry for each of 4 classes; got 3"):
        Categorical(CLASS_WEIGHTS).log_prob(gaussian(2, 4), torch.tensor([0, 1]))


@pytest.mark.parametrize("bad", [1.5, "255", True, math.nan])
def test_ignored_labels_that_are_not_whole_numbers_are_refused(bad: object) -> None:
    with pytest.raises(TypeError, match="`ignore_index`"):
        Categorical(ignore_index=bad)


def test_class_weights_come_as_any_sequence_of_numbers() -> None:
    expected = Categorical((0.5, 1.0, 2.0), ignore_index=255)
    for weights in ([0.5, 1, 2], np.array([0.5, 1.0, 2.0]), torch.tensor([0.5, 1.0, 2.0])):
        assert Categorical(weights, ignore_index=np.int64(255)) == expected


@pytest.mark.parametrize(
    ("likelihood", "y", "expected"),
    [
        (Categorical(), np.array([0.0, 2.0, 1.0]), torch.tensor([0, 2, 1])),
        (Categorical(), [[0], [2]], torch.tensor([[0], [2]])),
        (Categorical(), torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[[0, 1], [2, 2]]])),
        (Categorical(ignore_index=255), [0, 255, 2], torch.tensor([0, 255, 2])),
        (Categorical(ignore_index=-1), [0, -1, 2], torch.tensor([0, -1, 2])),
        (Bernoulli(), [True, False], torch.tensor([1, 0])),
        (Bernoulli(), [1.0, 0.0], torch.tensor([1, 0])),
        (Normal(1.0), [1, 2], torch.tensor([[1.0], [2.0]])),
        (Normal(1.0), np.zeros((2, 3)), torch.zeros(2, 3, dtype=torch.float64)),
        (HeteroscedasticNormal(), [1, 2], torch.tensor([[1.0], [2.0]])),
        (StudentT(), [1, 2], torch.tensor([[1.0], [2.0]])),
        (Poisson(), [0, 7], torch.tensor([[0.0], [7.0]])),
        (Poisson(), np.array([[0.0, 2.0]]), torch.tensor([[0.0, 2.0]], dtype=torch.float64)),
    ],
)
def test_targets_come_out_as_log_prob_takes_them(likelihood: Likelihood, y: object, expected: Tensor) -> None:
    torch.testing.assert_close(likelihood.targets(y, num_outputs=3), expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("likelihood", "y", "error", "message"),
    [
        (Categorical(), [0, 3], ValueError, "labels from 0 to 2; got 0 to 3"),
        (Categorical(), [0, -1], ValueError, "labels from 0 to 2; got -1 to 0"),
        (Categorical(), [0, -100], ValueError, "labels from 0 to 2; got -100 to 0"),
        (Categorical(ignore_index=255), [0, 254], ValueError, "labels from 0 to 2; got 0 to 254"),
        (Categorical(), [0.0, math.nan], ValueError, "`y` must be finite"),
        (Categorical(), [0.5, 1.0], TypeError, "fractions"),
        (Categorical(), ["a", "b"], TypeError, "`y` must hold numbers"),
        (Bernoulli(), [0, 2], ValueError, "labels from 0 to 1; got 0 to 2"),
        (Bernoulli(), [-1, 1], ValueError, "labels from 0 to 1; got -1 to 1"),
        (Bernoulli(), [0.3, 1.0], TypeError, "fractions"),
        (Normal(1.0), [0.0, math.inf], ValueError, "`y` must be finite"),
        (Normal(1.0), torch.tensor(1.0), ValueError, r"`y` must have shape \(N, D\) or \(N,\)"),
        (HeteroscedasticNormal(), [0.0, math.nan], ValueError, "`y` must be finite"),
        (StudentT(), [0.0, math.nan], ValueError, "`y` must be finite"),
        (Poisson(), [0.0, math.inf], ValueError, "`y` must be finite"),
        (Poisson(), [0, -1], ValueError, "counts, at least 0; got a minimum of -1"),
        (Poisson(), [0.5, 1.0], TypeError, "counts, whole numbers; got fractions"),
        (Poisson(), [2**24, 1], ValueError, "counts below 16777216"),
    ],
)
def test_targets_outside_the_support_are_refused(
    likelihood: Likelihood, y: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        likelihood.targets(y, num_outputs=3)


def test_one_class_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"at least 2 outputs; got 1. Use Bernoulli"):
        Categorical().targets([0, 0], num_outputs=1)
    with pytest.raises(ValueError, match=r"at least 2 outputs; got 1. Use Bernoulli"):
        Categorical().log_prob(gaussian(2, 1), torch.tensor([0, 0]))


def test_a_label_that_no_one_ignores_is_never_ignored() -> None:
    with pytest.raises(IndexError):  # torch ignores -100 unless told otherwise
        Categorical().log_prob(gaussian(2, 3), torch.tensor([0, -100]))


@pytest.mark.parametrize(
    ("likelihood", "f", "y"),
    [
        (Categorical(), (5, 3), (5, 1)),
        (Bernoulli(), (5, 1), (5,)),
        (Bernoulli(), (5, 1, 2, 3), (5, 2, 3)),
        (Normal(1.0), (5, 1), (5,)),
        (HeteroscedasticNormal(), (5, 2), (5,)),
        (StudentT(4.0, 1.0), (5, 1), (5,)),
        (Poisson(), (5, 1), (5, 1)),
    ],
)
def test_one_column_comes_with_its_dimension_or_without(
    likelihood: Likelihood, f: tuple[int, ...], y: tuple[int, ...]
) -> None:
    outputs, targets = gaussian(*f), labels(2, *y)
    same = targets.squeeze(1) if y[1:] == (1,) else targets.unsqueeze(1)
    found = likelihood.log_prob(outputs, targets)
    assert found.shape == (5,)
    torch.testing.assert_close(found, likelihood.log_prob(outputs, same), rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("likelihood", "f", "y"),
    [
        (Categorical(), (5, 3), (4,)),
        (Categorical(), (5, 3), (1,)),
        (Categorical(), (5, 3), ()),
        (Categorical(), (5, 3), (5, 3)),
        (Categorical(), (5, 3), (1, 5)),
        (Categorical(), (5, 3, 2, 4), (5, 4, 2)),
        (Categorical(), (5, 3, 2, 4), (5,)),
        (Categorical(), (5, 3, 2, 4), (5, 3, 2, 4)),
        (Bernoulli(), (5, 1), (1,)),
        (Bernoulli(), (5, 1), (5, 2)),
        (Bernoulli(), (5, 1, 2, 4), (5, 4, 2)),
        (Normal(1.0), (5, 1), (1,)),
        (Normal(1.0), (5, 1), (1, 5)),
        (Normal(1.0), (5, 1), (5, 5)),
        (Normal(1.0), (5, 3), (5,)),
        (Normal(1.0), (5, 3), (5, 1)),
        (Normal(1.0), (5, 3), (3,)),
        (StudentT(4.0, 1.0), (5, 1), (1, 5)),
        (StudentT(4.0, 1.0), (5, 3), (5, 1)),
        (Poisson(), (5, 3), (5,)),
        (HeteroscedasticNormal(), (5, 2), (5, 2)),
        (HeteroscedasticNormal(), (5, 4), (5,)),
        (HeteroscedasticNormal(), (5, 4), (5, 1)),
    ],
)
def test_shapes_that_would_broadcast_are_refused_with_both_shapes(
    likelihood: Likelihood, f: tuple[int, ...], y: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="`y` must have shape") as caught:
        likelihood.log_prob(gaussian(*f), labels(1, *y))
    assert f"got {y}." in str(caught.value)


@pytest.mark.parametrize(
    ("likelihood", "shape", "message"),
    [
        (Bernoulli(), (5, 2), r"\(N, 1, ...\) for Bernoulli; got \(5, 2\)"),
        (Bernoulli(), (5,), r"\(N, 1, ...\) for Bernoulli; got \(5,\)"),
        (HeteroscedasticNormal(), (5, 3), r"Double its outputs"),
        (HeteroscedasticNormal(), (5, 3, 1), r"\(N, 2 D, ...\), means and then log variances; got \(5, 3, 1\)"),
        (Normal(1.0), (5,), r"f of shape \(N, C, ...\); got \(5,\)"),
        (Categorical(), (5,), r"f of shape \(N, C, ...\); got \(5,\)"),
    ],
)
def test_outputs_that_a_likelihood_does_not_take_are_refused(
    likelihood: Likelihood, shape: tuple[int, ...], message: str
) -> None:
    f = gaussian(*shape)
    with pytest.raises(ValueError, match=message):
        likelihood.log_prob(f, labels(2, 5))
    if isinstance(likelihood, Bernoulli) and len(shape) > 1:
        return  # outputs of two labels a row
    if isinstance(likelihood, Bernoulli | HeteroscedasticNormal):  # where a wrong number of columns has another meaning
        with pytest.raises(ValueError, match=message):
            likelihood.distribution(f)
        with pytest.raises(ValueError, match="The network must give f"):
            likelihood.predictive(f.expand(4, *shape))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 5), (5, 2), (5, 4, 2), (5, 2, 4, 1), (40,)])
def test_weights_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    f, y = gaussian(5, 3, 2, 4), labels(3, 5, 2, 4)
    with pytest.raises(ValueError, match=r"`weight` must have shape \(5,\), or \(5, 2, 4\) as `y`"):
        Categorical().log_prob(f, y, torch.ones(shape))
