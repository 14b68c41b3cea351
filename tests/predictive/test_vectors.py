"""Mixtures of laws of vectors: the contract, and truths by scipy, sums and integrals."""

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor

from bayesuq.evaluation.report import evaluate
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.vectors import VectorPredictive
from tests.predictive.contract import NUM_DRAWS, NUM_POINTS, Components, PredictiveContract

TOTAL = 4


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class VectorContract(PredictiveContract):
    def first(self, whole: Components, num_draws: int, num_points: int) -> Components:
        return {name: value[:num_draws, :num_points].clone() for name, value in whole.items()}

    def sample_errors(self, predictive: PredictiveDistribution, samples: Tensor) -> Tensor:
        centred = samples - predictive.mean
        squares = centred.square()
        of_variance = (squares.mean(dim=0) - predictive.total) / (squares.std(dim=0) / len(samples) ** 0.5)
        return torch.stack([centred.mean(dim=0) / (predictive.total / len(samples)).sqrt(), of_variance])

    def test_columns_have_the_shares_of_their_draws_below(self, predictive: VectorPredictive) -> None:
        y = self.targets().double()
        share = (predictive.sample(4000, seed=5) <= y).double().mean(dim=0)
        assert ((share - predictive.cdf(y)).abs() < 5 * (2 * 0.25 / 4000) ** 0.5).all()


class TestSharesContract(VectorContract):
    def components(self, num_draws: int = NUM_DRAWS, num_points: int = NUM_POINTS) -> Components:
        return self.first({"concentration": 1 + 3 * uniform(0, NUM_DRAWS, NUM_POINTS, 2)}, num_draws, num_points)

    def build(self, components: Components) -> VectorPredictive:
        return VectorPredictive(dist.Dirichlet(**components, validate_args=False))

    def targets(self, num_points: int = NUM_POINTS) -> Tensor:
        first = torch.linspace(0.2, 0.7, num_points, dtype=torch.float64)
        return torch.stack([first, 1 - first], dim=1)

    def mass(self, predictive: PredictiveDistribution) -> Tensor:
        nodes, weights = np.polynomial.legendre.leggauss(300)
        share = torch.tensor(0.5 * (nodes + 1))
        law = self.build({"concentration": predictive.at(slice(0, 1)).components.concentration.expand(-1, 300, -1)})
        return (law.log_prob(torch.stack([share, 1 - share], dim=1)).exp() * torch.tensor(0.5 * weights)).sum()

    def test_it_is_the_mixture_that_scipy_writes(self, predictive: VectorPredictive) -> None:
        y, concentration = self.targets().numpy(), self.components()["concentration"].numpy()
        for n in range(NUM_POINTS):
            laws = [scipy.stats.dirichlet(one) for one in concentration[:, n]]
            density = np.mean([law.pdf(y[n]) for law in laws])
            np.testing.assert_allclose(predictive.log_prob(y)[n], np.log(density), rtol=1e-10)
            np.testing.assert_allclose(predictive.aleatoric[n], np.mean([law.var() for law in laws], axis=0))


class TestCountsContract(VectorContract):
    def components(self, num_draws: int = NUM_DRAWS, num_points: int = NUM_POINTS) -> Components:
        return self.first({"logits": 3 * uniform(1, NUM_DRAWS, NUM_POINTS, 3)}, num_draws, num_points)

    def build(self, components: Components) -> VectorPredictive:
        return VectorPredictive(dist.Multinomial(TOTAL, **components, validate_args=False))

    def targets(self, num_points: int = NUM_POINTS) -> Tensor:
        return torch.tensor([[4.0, 0.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 3.0], [2.0, 2.0, 0.0], [0.0, 0.0, 4.0]])[
            :num_points
        ]

    def mass(self, predictive: PredictiveDistribution) -> Tensor:
        every = [[i, j, TOTAL - i - j] for i in range(TOTAL + 1) for j in range(TOTAL + 1 - i)]
        return torch.stack([predictive.log_prob(torch.tensor([y] * NUM_POINTS)).exp() for y in every]).sum(dim=0)

    def test_a_report_measures_them(self, predictive: VectorPredictive) -> None:
        y = self.targets()[:NUM_POINTS]
        told = evaluate(predictive, y)
        assert told["negative_log_likelihood"].value == pytest.approx(-float(predictive.log_prob(y).mean()), rel=1e-9)


@pytest.mark.parametrize(
    "law",
    [
        dist.DirichletMultinomial(torch.tensor([[[1.0, 2.0, 3.0]], [[2.0, 2.0, 2.0]]]), torch.tensor(6.0)),
        dist.OneHotCategorical(torch.tensor([[[0.2, 0.3, 0.5]], [[0.6, 0.2, 0.2]]])),
        dist.MultivariateStudentT(
            9.0, torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]), torch.tensor([[1.0, 0.0], [0.5, 2.0]])
        ),
        dist.ProjectedNormal(torch.tensor([[[0.5, 1.0]], [[1.0, 0.2]]])),
    ],
    ids=lambda law: type(law).__name__,
)
def test_other_laws_of_vectors_have_their_density_and_the_moments_of_their_draws(law) -> None:
    predictive = VectorPredictive(law)
    draws = predictive.sample(20_000, seed=1)
    errors = (draws.mean(dim=0) - predictive.mean) / (predictive.total / 20_000 + predictive.aleatoric / 2000).sqrt()
    assert errors.abs().max() < 5
    torch.testing.assert_close(draws.var(dim=0), predictive.total, rtol=0.15, atol=0)
    y = draws[0]
    expected = law.log_prob(y.float()).double().logsumexp(dim=0) - torch.tensor(2.0).log().double()
    torch.testing.assert_close(predictive.log_prob(y), expected, rtol=1e-4, atol=1e-4)


def test_only_vectors_with_a_unit_are_rescaled() -> None:
    law = dist.MultivariateStudentT(9.0, torch.tensor([[[0.0, 1.0]]]), torch.tensor([[1.0, 0.0], [0.5, 2.0]]))
    predictive, loc, scale = VectorPredictive(law), torch.tensor([5.0, -1.0]), torch.tensor([2.0, 3.0])
    moved, y = predictive.rescale(loc, scale), torch.tensor([[0.3, -2.0]])
    torch.testing.assert_close(moved.log_prob(loc + scale * y), predictive.log_prob(y) - scale.double().log().sum())
    torch.testing.assert_close(moved.total, scale.double().square() * predictive.total)
    with pytest.raises(ValueError, match="Targets of Dirichlet cannot be rescaled"):
        VectorPredictive(dist.Dirichlet(torch.ones(1, 1, 3))).rescale(loc, scale)


def test_what_is_no_vector_of_the_family_is_refused() -> None:
    predictive = VectorPredictive(dist.Dirichlet(torch.ones(2, 1, 3)))
    with pytest.raises(ValueError, match="must lie in the support of Dirichlet, Simplex"):
        predictive.log_prob([[0.5, 0.4, 0.4]])
    with pytest.raises(ValueError, match="one density of all 3 numbers of a row; some are missing"):
        predictive.log_prob([[0.2, 0.3, 0.5]], observed=torch.tensor([[True, False, True]]))
    with pytest.raises(ValueError, match="Only predictives of one family join"):
        predictive.merge(VectorPredictive(dist.OneHotCategorical(torch.ones(2, 1, 3))))
    with pytest.raises(ValueError, match=r"\(S, N, D\)"):
        VectorPredictive(dist.Normal(torch.zeros(2, 1, 3), 1.0))


def test_one_number_for_all_of_a_vector_keeps_its_length():
    flat = VectorPredictive(torch.distributions.Dirichlet(torch.ones(()).expand(2, 4, 3)))  # of stride 0
    assert flat.shape == (2, 4, 3)
    torch.testing.assert_close(flat.log_prob(torch.full((4, 3), 1 / 3)), torch.full((4,), 2.0).double().log())
