"""Every method's posterior keeps the promises of `tests.posterior_contract`."""

from functools import partial
from typing import ClassVar

import pytest
from pyro.infer.autoguide import AutoLowRankMultivariateNormal

from bayesuq.inference import dropout, ensemble, map_estimate, variational
from bayesuq.inference.guides import autoguide
from tests.inference.examples import SHORT_FIT
from tests.posterior_contract import EndlessPosteriorContract, PosteriorContract


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
