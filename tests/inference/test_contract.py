"""Every method's posterior keeps the promises of `tests.posterior_contract`."""

from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal

from bayesuq.inference import dropout, ensemble, laplace, map_estimate, variational
from bayesuq.inference.guides import autoguide
from bayesuq.posterior import Posterior
from bayesuq.predictive import GaussianPredictive
from tests.inference.examples import SHORT_FIT
from tests.posterior_contract import (
    NEW_X,
    NUM_DRAWS,
    EndlessPosteriorContract,
    PosteriorContract,
    assert_same_draws,
    draws_of,
)


class TestMapEstimate(PosteriorContract):
    fit = map_estimate.fit
    num_members = default_num_samples = 1


@pytest.mark.filterwarnings(*SHORT_FIT)
class TestVariational(EndlessPosteriorContract):
    fit = variational.fit


@pytest.mark.filterwarnings(*SHORT_FIT)
class TestLowRank(EndlessPosteriorContract):
    fit = partial(variational.fit, guide=variational.low_rank(2))


@pytest.mark.filterwarnings(*SHORT_FIT)
class TestFullRank(EndlessPosteriorContract):
    fit = partial(variational.fit, guide=variational.full_rank)


@pytest.mark.filterwarnings("ignore:A guide of your own cannot be recorded:UserWarning")
class TestGuideOfPyro(EndlessPosteriorContract):
    fit = partial(variational.fit, guide=autoguide(AutoLowRankMultivariateNormal, rank=2))
    load_options: ClassVar = {"guide": autoguide(AutoLowRankMultivariateNormal, rank=2)}


class TestDropout(EndlessPosteriorContract):
    fit = dropout.fit
    dropout = 0.2
    rows_share_draws = False


class TestEnsemble(PosteriorContract):
    fit = ensemble.fit
    options = PosteriorContract.options | {"num_members": 3}
    num_members = default_num_samples = 3


class TestEnsembleWithRegularisingDropout(TestEnsemble):
    dropout = 0.2


@pytest.mark.filterwarnings(*SHORT_FIT)
class TestEnsembleOfVariational(PosteriorContract):
    fit = partial(ensemble.fit, member_fit=variational.fit)
    options = PosteriorContract.options | {"num_members": 2}
    default_num_samples = 200


class TestEnsembleOfDropout(PosteriorContract):
    fit = partial(ensemble.fit, member_fit=dropout.fit)
    options = PosteriorContract.options | {"num_members": 2}
    default_num_samples = 200
    dropout = 0.2
    rows_share_draws = False


class LinearisedContract(EndlessPosteriorContract):
    """Real targets have one exact Gaussian, whatever the seed and the number of draws; labels have draws."""

    def test_total_is_aleatoric_plus_epistemic(self, either: Posterior) -> None:
        predictive = draws_of(either, NEW_X)
        torch.testing.assert_close(predictive.total, predictive.aleatoric + predictive.epistemic, rtol=1e-9, atol=1e-9)
        assert predictive.epistemic.min() > 1e-6

    def test_the_predictive_tells_its_number_of_draws(self, either: Posterior) -> None:
        exact = isinstance(either.predict(NEW_X[:2], seed=0), GaussianPredictive)
        for number in (1, 2, 5, 1000, None):
            expected = 1 if exact else (number or 100)
            assert either.predict(NEW_X[:2], num_samples=number, seed=0).num_samples == expected

    def test_a_seed_repeats_the_draws_and_another_one_changes_them(self, either: Posterior) -> None:
        one, same, other = (either.predict(NEW_X, num_samples=NUM_DRAWS, seed=seed) for seed in (3, 3, 4))
        assert_same_draws(one, same)
        assert torch.equal(one.mean, other.mean) == isinstance(one, GaussianPredictive)


class TestLaplaceDiagonal(LinearisedContract):
    fit = partial(laplace.fit, structure="diagonal")


class TestLaplaceKronecker(LinearisedContract):
    fit = laplace.fit


class TestLaplaceFull(LinearisedContract):
    fit = partial(laplace.fit, structure="full")


class TestLaplaceOfTheLastLayer(LinearisedContract):
    fit = partial(laplace.fit, structure="full", subset="last_layer", prior_factors="one")


def sampled_laplace(model: Any, data: Any, **options: Any) -> Posterior:
    return laplace.fit(model, data, **options).sampled


class TestLaplaceSampled(EndlessPosteriorContract):
    fit = sampled_laplace
