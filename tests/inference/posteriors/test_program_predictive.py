"""The families that a program observes: each gives a predictive that is evaluated, sampled and inverted, or a word."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch

import bayesuq as bq
from bayesuq.inference.posteriors.program_predictive import predictive_of
from bayesuq.predictive.categorical import CategoricalPredictive

N = 20
A = torch.linspace(0.5, 2.0, N)
FAMILIES: dict[str, Callable[[], Any]] = {
    "Bernoulli": lambda: dist.Bernoulli(logits=A - 1),
    "Beta": lambda: dist.Beta(A, 2.0),
    "Binomial": lambda: dist.Binomial(9, A / 4),
    "Dirichlet": lambda: dist.Dirichlet(torch.stack([A, 2 * A, 3 * A], dim=1)),
    "Multinomial": lambda: dist.Multinomial(9, torch.stack([A, 2 * A, 3 * A], dim=1)),
    "MultivariateStudentT": lambda: dist.MultivariateStudentT(5.0, torch.stack([A, -A], dim=1), torch.eye(2)),
    "OneHotCategorical": lambda: dist.OneHotCategorical(torch.stack([A, 2 * A, 3 * A], dim=1)),
    "Categorical": lambda: dist.Categorical(logits=torch.stack([A, -A, 0 * A], dim=1)),
    "Gamma": lambda: dist.Gamma(A, 2.0),
    "Laplace": lambda: dist.Laplace(A, 0.3).to_event(1),
    "LogNormal": lambda: dist.LogNormal(A, 0.3),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7]).expand(N, 2)), dist.Normal(torch.stack([A, -A], dim=1), 1.0)
    ),
    "NegativeBinomial": lambda: dist.NegativeBinomial(5, A / 4),
    "Normal, columns": lambda: dist.Normal(A[:, None].expand(N, 2), 1.0).to_event(1),
    "OrderedLogistic": lambda: dist.OrderedLogistic(A, torch.tensor([0.0, 1.0, 2.0])),
    "StudentT": lambda: dist.StudentT(4.0, A, 1.0).mask(torch.ones(N, dtype=torch.bool)),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal(A, 0.5), [dist.transforms.AffineTransform(1.0, 2.0), dist.transforms.ExpTransform()]
    ),
    "Uniform": lambda: dist.Uniform(A - 1, A + 1),
    "ZeroInflatedPoisson": lambda: dist.ZeroInflatedPoisson(rate=3 * A, gate=A / 4),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_program_observes_is_predicted_whatever_its_family(name: str) -> None:
    law = FAMILIES[name]()
    predictive = predictive_of(law, keep_samples=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = law.sample()
    report = bq.evaluation.report.evaluate(predictive, y)
    density = law.log_prob(y).sum() / N
    assert math.isclose(report["negative_log_likelihood"].value, -float(density), rel_tol=1e-4)
    drawn = predictive.sample(3, seed=0)
    assert len(drawn) == 3
    assert drawn.shape[1] == N
    if isinstance(predictive, CategoricalPredictive):
        assert predictive.mean.shape == (N, {"Bernoulli": 2, "Categorical": 3, "OrderedLogistic": 4}[name])
        return
    assert report["crps"].value > 0
    low, high = predictive.quantile(0.1), predictive.quantile(0.9)
    assert bool((low <= high).all())


def test_laws_of_all_rows_and_of_matrices_are_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"one MultivariateNormal of all rows, which depend on each other.*`gp.fit`"):
        predictive_of(dist.MultivariateNormal(torch.zeros(N), torch.eye(N)), keep_samples=False)
    with pytest.raises(TypeError, match=r"LKJCholesky of event shape \(3, 3\).*pyro.infer.Predictive"):
        predictive_of(dist.LKJCholesky(3, A), keep_samples=False)
