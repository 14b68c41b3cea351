"""Every method's posterior keeps the promises of `tests.posterior_contract`."""

import math
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.inference import dropout, ensemble, hmc, laplace, map_estimate, sgmcmc, swag, variational
from bayesuq.inference.guides import autoguide
from bayesuq.posterior import Posterior
from bayesuq.predictive import GaussianPredictive
from tests.inference.examples import SHORT_FIT, labelled, measured
from tests.posterior_contract import (
    NEW_X,
    NUM_DRAWS,
    EndlessPosteriorContract,
    PosteriorContract,
    assert_same_draws,
    draws_of,
    tensors_of,
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


@pytest.mark.filterwarnings("ignore:.* of the trajectories had the greatest length:UserWarning")
@pytest.mark.filterwarnings("ignore:.* draws follow a trajectory that diverged:UserWarning")
class TestHmc(PosteriorContract):
    """Chains that are far too short, of a method that reads all data at every step and learns no buffers."""

    fit = hmc.fit
    options: ClassVar = {"num_samples": 4, "num_warmup": 10, "num_chains": 2, "max_tree_depth": 4, "seed": 1}
    num_members = default_num_samples = 8

    def test_the_fit_has_seen_the_data(self) -> None:
        data, model = labelled(), self.classification()
        before = self.posterior(model, data, num_warmup=0, step_size=1e-9)  # stays where the prior's draws are
        after = self.posterior(model, data, num_warmup=40, max_tree_depth=10)
        gain = [p.predict(data.x).log_prob(data.y).mean() for p in (before, after)]
        assert gain[1] > gain[0] + 0.3

    def test_batch_norm_learns_its_statistics_in_the_fit_and_never_when_predicting(self) -> None:
        net = self.network(batch_norm=True)
        with torch.no_grad():
            net[2].running_mean.fill_(0.3)
        posterior = self.posterior(self.regression(net), measured())
        assert torch.equal(posterior.buffers["2.running_mean"], net[2].running_mean)
        draws_of(posterior, NEW_X)
        assert torch.equal(posterior.buffers["2.running_mean"], net[2].running_mean)
        assert int(posterior.buffers["2.num_batches_tracked"]) == 0

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_a_loader_fits_as_data_in_memory_do(self, shuffle: bool) -> None:
        data = labelled()
        loader = DataLoader(TensorDataset(data.x, data.y), batch_size=20, shuffle=shuffle)
        before = torch.get_rng_state()
        fits = [self.posterior(self.classification(), loader) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(a, b) for a, b in zip(*map(tensors_of, fits), strict=True))
        in_memory = self.posterior(self.classification(), data)
        # Sums over rows in another order differ in their last bits, which chains soon magnify.
        assert torch.equal(fits[0].draws, in_memory.draws) == (not shuffle)
        torch.testing.assert_close(fits[0].draws[:, 0], in_memory.draws[:, 0], rtol=0.02, atol=0.02)

    @pytest.mark.parametrize(
        ("options", "error", "says"),
        [
            ({"num_samples": 0}, ValueError, "`num_samples` must be at least 1"),
            ({"num_samples": 2.5}, TypeError, "`num_samples` must be a whole number"),
            ({"num_warmup": -1}, ValueError, "`num_warmup` must be at least 0"),
            ({"num_chains": 0}, ValueError, "`num_chains` must be at least 1"),
            ({"thinning": 0}, ValueError, "`thinning` must be at least 1"),
            ({"max_tree_depth": 0}, ValueError, "`max_tree_depth` must be at least 1"),
            ({"kernel": "gibbs"}, ValueError, "`kernel` must be one of 'nuts', 'hmc'; got 'gibbs'"),
            ({"chain_method": "fork"}, ValueError, "`chain_method` must be one of 'sequential', 'parallel', 'vec"),
            ({"chain_method": "vectorised"}, ValueError, "NUTS chains .* cannot move together"),
            ({"num_steps": 3}, ValueError, "are of kernel='hmc'"),
            ({"kernel": "hmc", "num_steps": 0}, ValueError, "`num_steps` must be at least 1"),
            ({"kernel": "hmc", "num_steps": 3, "trajectory_length": 1.0}, ValueError, "not both"),
            ({"kernel": "hmc", "trajectory_length": -1.0}, ValueError, "`trajectory_length` must be a finite number"),
            ({"step_size": math.nan}, ValueError, "`step_size` must be a finite number above 0"),
            ({"target_acceptance": 1.0}, ValueError, "`target_acceptance` must"),
            ({"start": "mode"}, ValueError, "`start` must be 'prior' or a posterior"),
            ({"start": 3}, TypeError, "`start` must be 'prior' or a posterior"),
            ({"seed": -1}, ValueError, "`seed` must be at least 0"),
            ({"checkpoint": 3}, TypeError, "`checkpoint` must be a path"),
            ({"num_sample": 3}, TypeError, "no option 'num_sample'; did you mean 'num_samples'"),
        ],
        ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
    )
    def test_options_out_of_range_are_refused(self, options: dict[str, Any], error: type[Exception], says: str) -> None:
        with pytest.raises(error, match=says):
            self.posterior(self.regression(), measured(), **options)


class TestSwag(EndlessPosteriorContract):
    fit = swag.fit


class TestSwagDiagonal(EndlessPosteriorContract):
    fit = partial(swag.fit, rank=0)


class TestMultiSwag(PosteriorContract):
    fit = partial(ensemble.fit, member_fit=swag.fit)
    options = PosteriorContract.options | {"num_members": 2}
    default_num_samples = 200


class TestSgmcmc(PosteriorContract):
    """Chains that are far too short, of a method that learns no buffers."""

    fit = sgmcmc.fit
    options: ClassVar = {
        "num_samples": 4,
        "num_warmup": 10,
        "num_chains": 2,
        "thinning": 2,
        "step_size": 0.01,
        "batch_size": 16,
        "seed": 1,
    }
    num_members = default_num_samples = 8

    def test_the_fit_has_seen_the_data(self) -> None:
        data, model = labelled(), self.classification()
        before = self.posterior(model, data, num_warmup=0, step_size=1e-9)  # stays where the prior's draws are
        after = self.posterior(model, data, num_warmup=400, step_size=0.05)
        gain = [p.predict(data.x).log_prob(data.y).mean() for p in (before, after)]
        assert gain[1] > gain[0] + 0.3

    def test_batch_norm_learns_its_statistics_in_the_fit_and_never_when_predicting(self) -> None:
        net = self.network(batch_norm=True)
        with torch.no_grad():
            net[2].running_mean.fill_(0.3)
        posterior = self.posterior(self.regression(net), measured())
        assert torch.equal(posterior.buffers["2.running_mean"], net[2].running_mean)
        draws_of(posterior, NEW_X)
        assert torch.equal(posterior.buffers["2.running_mean"], net[2].running_mean)
        assert int(posterior.buffers["2.num_batches_tracked"]) == 0

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_a_loader_fits_as_data_in_memory_do(self, shuffle: bool) -> None:
        data = labelled()
        loader = DataLoader(TensorDataset(data.x, data.y), batch_size=16, shuffle=shuffle)
        before = torch.get_rng_state()
        options = {"num_warmup": 400, "num_samples": 40, "step_size": 0.05, "start": "network"}
        fits = [self.posterior(self.classification(), loader, **options) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(a, b) for a, b in zip(*map(tensors_of, fits), strict=True))
        in_memory = self.posterior(self.classification(), data, **options)
        scores = [p.predict(data.x).log_prob(data.y).mean() for p in (fits[0], in_memory)]
        assert abs(scores[0] - scores[1]) < 0.1  # nats; the orders of the batches differ

    @pytest.mark.parametrize(
        ("options", "error", "says"),
        [
            ({"sampler": "nuts"}, ValueError, "`sampler` must be one of 'sgld', 'sghmc'; got 'nuts'"),
            ({"num_samples": 0}, ValueError, "`num_samples` must be at least 1"),
            ({"num_samples": 2.5}, TypeError, "`num_samples` must be a whole number"),
            ({"num_warmup": -1}, ValueError, "`num_warmup` must be at least 0"),
            ({"num_chains": 0}, ValueError, "`num_chains` must be at least 1"),
            ({"thinning": 0}, ValueError, "`thinning` must be at least 1"),
            ({"step_size": math.nan}, ValueError, "`step_size` must be a finite number above 0"),
            ({"step_size": 0.0}, ValueError, "`step_size` must be a finite number above 0"),
            ({"friction": 0.0}, ValueError, "`friction` must be a finite number above 0"),
            ({"friction": 1.5}, ValueError, r"`friction` must lie in \(0, 1\]; got 1.5"),
            ({"preconditioning": "adam"}, ValueError, "`preconditioning` must be one of 'rmsprop'; got 'adam'"),
            ({"preconditioning": "rmsprop", "num_warmup": 0}, ValueError, "learns its scales in the warm-up"),
            ({"schedule": "cosine"}, ValueError, "`schedule` must be one of 'constant', 'cyclical'; got 'cosine'"),
            ({"schedule": "cyclical", "num_cycles": 3}, ValueError, "`num_cycles` must divide `num_samples`"),
            ({"schedule": "cyclical", "num_cycles": 0}, ValueError, "`num_cycles` must be at least 1"),
            ({"start": "mode"}, ValueError, "`start` must be 'prior'"),
            ({"start": 3}, TypeError, "`start` must be 'prior'"),
            ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
            ({"seed": -1}, ValueError, "`seed` must be at least 0"),
            ({"checkpoint": 3}, TypeError, "`checkpoint` must be a path"),
            ({"num_sample": 3}, TypeError, "no option 'num_sample'; did you mean 'num_samples'"),
        ],
        ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
    )
    def test_options_out_of_range_are_refused(self, options: dict[str, Any], error: type[Exception], says: str) -> None:
        with pytest.raises(error, match=says):
            self.posterior(self.regression(), measured(), **options)


class TestSgld(TestSgmcmc):
    fit = partial(sgmcmc.fit, sampler="sgld", schedule="cyclical", num_cycles=2, vectorised=False)

    def test_options_out_of_range_are_refused(self) -> None:
        """The sampler's own, above."""
