"""Every method's posterior keeps the promises of `tests.posterior_contract`."""

import math
from functools import cache, partial
from typing import Any, ClassVar

import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Dataset
from bayesuq.inference import (
    confidence,
    dropout,
    ensemble,
    gp,
    hmc,
    ivon,
    laplace,
    local_temperature,
    map_estimate,
    microcanonical,
    sgmcmc,
    swag,
    variational,
)
from bayesuq.inference.posteriors import prediction
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.variational.guides import autoguide
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.inference.examples import NO_MODE, SHORT_FIT, labelled, measured
from tests.posterior_contract import (
    NEW_X,
    NUM_CLASSES,
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
class TestIvon(EndlessPosteriorContract):
    """Its learning rate is a share of a Newton step."""

    fit = ivon.fit
    options: ClassVar = EndlessPosteriorContract.options | {"learning_rate": 0.2}
    learning: ClassVar = {"num_epochs": 200, "batch_size": 16, "learning_rate": 0.2}


@pytest.mark.filterwarnings(*SHORT_FIT)
class TestLowRank(EndlessPosteriorContract, doors_of="TestVariational"):
    fit = partial(variational.fit, guide=variational.low_rank(2))


@pytest.mark.filterwarnings(*SHORT_FIT)
class TestFullRank(EndlessPosteriorContract, doors_of="TestVariational"):
    fit = partial(variational.fit, guide=variational.full_rank)


@pytest.mark.filterwarnings("ignore:A guide of your own cannot be recorded:UserWarning")
class TestGuideOfPyro(EndlessPosteriorContract):
    fit = partial(variational.fit, guide=autoguide(AutoLowRankMultivariateNormal, rank=2))
    learning: ClassVar = {"num_epochs": 10, "batch_size": 24, "learning_rate": 0.2}
    load_options: ClassVar = {"guide": autoguide(AutoLowRankMultivariateNormal, rank=2)}


class TestDropout(EndlessPosteriorContract):
    fit = dropout.fit
    dropout = 0.2
    rows_share_draws = False


class TestEnsemble(PosteriorContract):
    fit = ensemble.fit
    options = PosteriorContract.options | {"num_members": 3}
    num_members = default_num_samples = 3


class TestEnsembleWithRegularisingDropout(TestEnsemble, doors_of="TestEnsemble"):
    dropout = 0.2


@pytest.mark.filterwarnings(*SHORT_FIT)
class TestEnsembleOfVariational(PosteriorContract, doors_of="TestEnsemble"):
    fit = partial(ensemble.fit, member_fit=variational.fit)
    options = PosteriorContract.options | {"num_members": 2}
    default_num_samples = 200


class TestEnsembleOfDropout(PosteriorContract, doors_of="TestEnsemble"):
    fit = partial(ensemble.fit, member_fit=dropout.fit)
    options = PosteriorContract.options | {"num_members": 2}
    default_num_samples = 200
    dropout = 0.2
    rows_share_draws = False


@pytest.mark.filterwarnings(NO_MODE)
class LinearisedContract(EndlessPosteriorContract):
    """Real targets have one exact Gaussian, whatever the seed and the number of draws; labels have draws."""

    def test_total_is_aleatoric_plus_epistemic(self, either: Posterior) -> None:
        predictive = draws_of(either, NEW_X)
        torch.testing.assert_close(predictive.total, predictive.aleatoric + predictive.epistemic, rtol=1e-9, atol=1e-9)
        assert predictive.epistemic.min() > 1e-6

    def test_the_predictive_tells_its_number_of_draws(self, either: Posterior) -> None:
        exact = isinstance(either.predict(NEW_X[:2], seed=0), GaussianPredictive)
        for number in (1, 2, 9, None):
            expected = 1 if exact else (number or 100)
            assert either.predict(NEW_X[:2], num_samples=number, seed=0).num_samples == expected

    def test_a_seed_repeats_the_draws_and_another_one_changes_them(self, either: Posterior) -> None:
        one, same, other = (either.predict(NEW_X, num_samples=NUM_DRAWS, seed=seed) for seed in (3, 3, 4))
        assert_same_draws(one, same)
        assert torch.equal(one.mean, other.mean) == isinstance(one, GaussianPredictive)


class TestLaplaceDiagonal(LinearisedContract, doors_of="TestLaplaceKronecker"):
    fit = partial(laplace.fit, structure="diagonal", subset="all")


class TestLaplaceKronecker(LinearisedContract):
    fit = partial(laplace.fit, subset="all")


class TestLaplaceFull(LinearisedContract, doors_of="TestLaplaceKronecker"):
    fit = partial(laplace.fit, structure="full", subset="all")


class TestLaplaceOfTheLastLayer(LinearisedContract, doors_of="TestLaplaceKronecker"):
    fit = partial(laplace.fit, structure="full", subset="last_layer", prior_factors="one")


def sampled_laplace(model: Any, data: Any, **options: Any) -> Posterior:
    return laplace.fit(model, data, subset="all", **options).sampled


@pytest.mark.filterwarnings(NO_MODE)
class TestLaplaceSampled(EndlessPosteriorContract, doors_of="TestLaplaceKronecker"):
    fit = sampled_laplace


class ChainContract(PosteriorContract):
    """Chains that learn no buffers: a network's statistics stay as they were."""

    def test_batch_norm_learns_its_statistics_in_the_fit_and_never_when_predicting(self) -> None:
        net = self.network(batch_norm=True)
        with torch.no_grad():
            net[2].running_mean.fill_(0.3)
        posterior = self.posterior(self.regression(net), measured())
        assert torch.equal(posterior.buffers["2.running_mean"], net[2].running_mean)
        draws_of(posterior, NEW_X)
        assert torch.equal(posterior.buffers["2.running_mean"], net[2].running_mean)
        assert int(posterior.buffers["2.num_batches_tracked"]) == 0


@pytest.mark.filterwarnings("ignore:.* of the trajectories had the greatest length:UserWarning")
@pytest.mark.filterwarnings("ignore:.* draws follow a trajectory that diverged:UserWarning")
class TestHmc(ChainContract):
    """Chains that are far too short, of a method that reads all data at every step."""

    fit = hmc.fit
    options: ClassVar = {"num_samples": 4, "num_warmup": 8, "num_chains": 2, "max_tree_depth": 3, "seed": 1}
    num_members = default_num_samples = 8
    other_path: ClassVar = {"rtol": 1e-3, "atol": 1e-4}  # rounding grows along a trajectory

    def test_the_fit_has_seen_the_data(self) -> None:
        data, model = labelled(), self.classification()
        before = self.posterior(model, data, num_warmup=0, step_size=1e-9)  # stays where the prior's draws are
        after = self.posterior(model, data, num_warmup=25, max_tree_depth=4)
        gain = [p.predict(data.x).log_prob(data.y).mean() for p in (before, after)]
        assert gain[1] > gain[0] + 0.3

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_a_loader_fits_as_data_in_memory_do(self, shuffle: bool) -> None:
        data = labelled()
        loader = DataLoader(TensorDataset(data.x, data.y), batch_size=20, shuffle=shuffle)
        before = torch.get_rng_state()
        loaded = self.posterior(self.classification(), loader)
        assert torch.equal(torch.get_rng_state(), before)
        # Rows are read in order, whatever the loader does in training.
        assert torch.equal(loaded.draws, self.fitted("classification").draws)

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


class TestSwagDiagonal(EndlessPosteriorContract, doors_of="TestSwag"):
    fit = partial(swag.fit, rank=0)


class TestMultiSwag(PosteriorContract, doors_of="TestEnsemble"):
    fit = partial(ensemble.fit, member_fit=swag.fit)
    options = PosteriorContract.options | {"num_members": 2}
    default_num_samples = 200


class TestSgmcmc(ChainContract):
    """Chains that are far too short."""

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
    long: ClassVar = {"num_warmup": 80, "num_samples": 10, "step_size": 0.1, "start": "network"}
    num_members = default_num_samples = 8

    @classmethod
    @cache
    def learned(cls) -> Posterior:
        self = cls()
        return self.posterior(self.classification(), labelled(), **self.long)

    def test_the_fit_has_seen_the_data(self) -> None:
        data, model = labelled(), self.classification()
        before = self.posterior(model, data, num_warmup=0, step_size=1e-9)  # stays where the prior's draws are
        gain = [p.predict(data.x).log_prob(data.y).mean() for p in (before, self.learned())]
        assert gain[1] > gain[0] + 0.3

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_a_loader_fits_as_data_in_memory_do(self, shuffle: bool) -> None:
        data = labelled()
        loader = DataLoader(TensorDataset(data.x, data.y), batch_size=16, shuffle=shuffle)
        before = torch.get_rng_state()
        if not shuffle:  # rows in one order are learned if rows in any are
            fits = [self.posterior(self.classification(), loader) for _ in range(2)]
            assert torch.equal(torch.get_rng_state(), before)
            assert all(torch.equal(a, b) for a, b in zip(*map(tensors_of, fits), strict=True))
            return
        loaded = self.posterior(self.classification(), loader, **self.long)
        scores = [p.predict(data.x).log_prob(data.y).mean() for p in (loaded, self.learned())]
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
            ({"start": "mode"}, ValueError, "`start` must be 'reset', 'network', 'prior' or a posterior"),
            ({"start": 3}, TypeError, "`start` must be 'reset', 'network', 'prior' or a posterior"),
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


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
class TestMicrocanonical(PosteriorContract):
    """Chains from trained networks: their starts learn from minibatches, and they from all rows."""

    fit = microcanonical.fit
    options: ClassVar = PosteriorContract.options | {
        "num_members": 2,
        "num_samples": 4,
        "num_warmup": 20,
        "thinning": 2,
    }
    num_members = default_num_samples = 8
    test_a_network_that_vmap_cannot_follow_gives_the_same = None  # chaos: its own tests compare the energies

    def test_the_fit_has_seen_the_data(self) -> None:
        data = labelled()
        other = self.posterior(self.classification(), Dataset(data.x, (data.y + 1) % NUM_CLASSES), **self.learning)
        score = [p.predict(data.x).log_prob(data.y).mean() for p in (other, self.learned())]
        assert score[1] > max(score[0], -math.log(NUM_CLASSES)) + 0.3


class TestSgld(TestSgmcmc, doors_of="TestSgmcmc"):
    fit = partial(sgmcmc.fit, sampler="sgld", schedule="cyclical", num_cycles=2, vectorised=False)

    def test_options_out_of_range_are_refused(self) -> None:
        """The sampler's own, above."""


class NoisyLabelsContract(PosteriorContract):
    """Labels whose logits have noise of their own: two outputs a class."""

    def classification(self) -> BayesianNetwork:
        net = self.network(2 * NUM_CLASSES)
        return BayesianNetwork(net, priors.Normal(), likelihoods.HeteroscedasticCategorical(8))


class TestMapOfNoisyLabels(NoisyLabelsContract, doors_of="TestMapEstimate"):
    fit = map_estimate.fit
    num_members = default_num_samples = 1


@pytest.mark.filterwarnings(NO_MODE)
class TestLaplaceOfNoisyLabels(NoisyLabelsContract, LinearisedContract, doors_of="TestLaplaceKronecker"):
    fit = partial(laplace.fit, subset="all")


def confident(model: Any, data: Any, **options: Any) -> Posterior:
    """A mode with a confidence, where there are labels to have it of."""
    posterior = map_estimate.fit(model, data, **options)
    if isinstance(model.likelihood, likelihoods.Normal):
        return posterior
    device = options.get("device")
    return confidence.fit(posterior, data, hidden=(4,), num_epochs=1, num_fine_tuning_epochs=1, device=device, seed=0)


class TestConfidence(PosteriorContract):
    fit = confident
    num_members = default_num_samples = 1

    def test_a_seed_makes_the_fit_repeatable_and_leaves_the_global_generator(self) -> None:
        before = torch.get_rng_state()
        one, same, other = (
            tensors_of(self.posterior(self.classification(), labelled(), seed=seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def locally_scaled(model: Any, data: Any, **options: Any) -> Posterior:
    """A mode read at local temperatures, where there are labels to have them of."""
    posterior = map_estimate.fit(model, data, **options)
    if isinstance(model.likelihood, likelihoods.Normal) or isinstance(data, DataLoader):
        return posterior
    return local_temperature.fit(posterior, data, hidden=4, num_epochs=1, seed=0)


class TestLocalTemperature(TestConfidence):
    fit = locally_scaled
    has_functions = False


class ProcessContract(LinearisedContract):
    """Of functions instead of networks: no weights, no buffers, and always float64; a prior for every method."""

    options: ClassVar = EndlessPosteriorContract.options | {"num_inducing": 16, "num_restarts": 1}
    learning: ClassVar = {"num_epochs": 40, "batch_size": 24, "learning_rate": 0.1}
    rows_share_draws = False

    test_a_network_that_vmap_cannot_follow_gives_the_same = None
    test_a_float64_network_computes_in_float64 = None
    test_fitting_leaves_the_network_and_the_data_as_they_were = None
    test_batch_norm_learns_its_statistics_in_the_fit_and_never_when_predicting = None
    test_predictions_use_the_statistics_of_the_fit = None
    test_frozen_parameters_are_constants = None
    test_batch_norm_and_frozen_parameters_come_back = None
    test_a_network_of_the_users_own_is_passed_when_loading = None
    test_weights_that_overflow_are_refused = None
    test_real_data_that_do_not_fit_the_model_are_refused = None

    def regression(self, net: Any = None) -> Any:  # noqa: ARG002 - there is none
        return processes.GaussianProcess(processes.Scale(processes.RBF()), likelihood=likelihoods.Normal(scale=0.2))

    def classification(self) -> Any:
        return processes.GaussianProcess(likelihood=likelihoods.Categorical(), num_outputs=NUM_CLASSES)

    @pytest.mark.parametrize("activations", [1, 700, 2**40])
    def test_chunks_of_any_size_give_the_same_draws(
        self, either: Posterior, monkeypatch: pytest.MonkeyPatch, activations: int
    ) -> None:
        x = NEW_X[:7] if activations == 1 else NEW_X  # a row at a time is slow
        whole = draws_of(either, x)
        monkeypatch.setattr(prediction, "ACTIVATION_BUDGET", activations)
        assert_same_draws(draws_of(either, x), whole, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("model", [torch.nn.Linear(3, 1), None, "rbf"], ids=str)
    def test_a_model_of_another_type_is_refused(self, model: Any) -> None:
        with pytest.raises(TypeError, match=r"must be a bayesuq\.models\.gp\.GaussianProcess"):
            self.posterior(model, measured())

    @pytest.mark.parametrize(
        ("x", "error", "says"),
        [
            (NEW_X[0], ValueError, r"reshape\(1, -1\)"),
            (NEW_X[:0], ValueError, "must not be empty"),
            (NEW_X[:, :2], ValueError, r"does not take `x` of shape \(130, 2\)"),
            (torch.full((5, 3), torch.nan), ValueError, "5 of 5 rows"),
            ([["a"]], TypeError, "numbers"),
            (measured(), TypeError, "got a Dataset. Pass its `.x`"),
            (DataLoader(NEW_X[:, :2], batch_size=7), ValueError, r"does not take `x` of shape \(7, 2\)"),
        ],
    )
    def test_inputs_that_the_network_does_not_take_are_refused(
        self, regressor: Posterior, x: Any, error: type[Exception], says: str
    ) -> None:
        with pytest.raises(error, match=says):
            draws_of(regressor, x)

    def test_predicting_leaves_the_posterior_and_the_inputs_as_they_were(self, either: Posterior) -> None:
        before, x = [tensor.clone() for tensor in tensors_of(either)], NEW_X.clone()
        draws_of(either, x)
        assert torch.equal(x, NEW_X)
        for tensor, old in zip(tensors_of(either), before, strict=True):
            assert torch.equal(tensor, old)

    def test_a_saved_posterior_predicts_the_same_to_the_bit(self, either: Posterior, tmp_path: Any) -> None:
        either.save(tmp_path / "posterior.safetensors")
        loaded = load(tmp_path / "posterior.safetensors")
        assert type(loaded) is type(either)
        assert loaded.model.kernel == either.model.kernel
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(loaded), tensors_of(either), strict=True))
        one, other = (draws_of(p, NEW_X) for p in (loaded, either))
        assert_same_draws(one, other)


class ExactContract(ProcessContract):
    """Of fits whose starts no seed changes."""

    def test_a_seed_makes_the_fit_repeatable_and_leaves_the_global_generator(self) -> None:
        before = torch.get_rng_state()
        fits = [tensors_of(self.posterior(self.classification(), labelled(), seed=seed)) for seed in (1, 1, 2)]
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*fits, strict=True))


class RealProcessContract(ProcessContract):
    """Of methods for real targets, which labels are taken as."""

    test_options_out_of_range_are_refused = None  # its own tests have them
    test_the_likelihood_decides_the_kind_of_predictive = None  # one likelihood
    test_labels_that_do_not_fit_the_model_are_refused = None

    @pytest.fixture
    def either(self) -> Posterior:
        return self.fitted("regression")

    def classification(self) -> Any:
        return self.regression()

    def test_the_fit_has_seen_the_data(self) -> None:
        data = measured()
        other = self.posterior(self.regression(), Dataset(data.x, -data.y))
        score = [p.predict(data.x).log_prob(data.y).mean() for p in (other, self.fitted("regression"))]
        assert score[1] > score[0] + 0.3

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_a_loader_fits_as_data_in_memory_do(self, shuffle: bool) -> None:
        data = measured()
        loader = DataLoader(TensorDataset(data.x, data.y), batch_size=16, shuffle=shuffle)
        before = torch.get_rng_state()
        one = tensors_of(self.posterior(self.regression(), loader))
        assert torch.equal(torch.get_rng_state(), before)
        in_memory = tensors_of(self.fitted("regression"))
        # Rows are read in order, whatever the loader does in training.
        assert all(torch.equal(a, b) for a, b in zip(one, in_memory, strict=True))


class TestGp(ExactContract, RealProcessContract):
    """Real targets by exact inference; labels are taken by sparse, which has its own."""

    fit = partial(gp.fit, approximation="exact")


class TestSparseGp(ProcessContract):
    fit = partial(gp.fit, approximation="sparse")


def of_labels(model: Any, data: Any, **options: Any) -> Posterior:
    """Dirichlet classification of labels; real targets have exact inference of their own."""
    has_labels = isinstance(getattr(model, "likelihood", None), likelihoods.Categorical)
    return gp.fit(model, data, approximation="dirichlet" if has_labels else "exact", **options)


class TestDirichletGp(ExactContract):
    """Draws of labels from exact inference, whose fit has three starts."""

    fit = of_labels
    test_options_out_of_range_are_refused = None  # the tests of gp have them
    test_the_draws_disagree_unless_there_is_one = None  # of real targets, as of TestGp
    test_the_noise_is_the_likelihoods = None
    test_fewer_draws_are_the_first_of_more = None

    @pytest.fixture
    def either(self) -> Posterior:
        return self.fitted("classification")

    @pytest.fixture
    def regressor(self) -> Posterior:
        return self.fitted("classification")

    def test_the_fit_has_seen_the_data(self) -> None:
        data = labelled()
        other = self.posterior(self.classification(), Dataset(data.x, (data.y + 1) % NUM_CLASSES))
        score = [p.predict(data.x, seed=0).log_prob(data.y).mean() for p in (other, self.fitted("classification"))]
        assert score[1] > max(score[0], -math.log(NUM_CLASSES)) + 0.3


@pytest.mark.filterwarnings("ignore:.* draws follow a trajectory that diverged:UserWarning")
class TestSampledGp(RealProcessContract):
    """Chains that are far too short."""

    fit = gp.fit
    options: ClassVar = {
        "hyperparameters": "sample",
        "num_samples": 2,
        "num_warmup": 2,
        "num_chains": 2,
        "seed": 2,  # at which every transition moves
    }
    num_members = default_num_samples = 4
    rows_share_draws = True  # a draw has hyperparameters that ArviZ is told of
    test_fewer_draws_are_the_first_of_more = None  # of stored draws they are a thinning
    test_the_predictive_tells_its_number_of_draws = PosteriorContract.test_the_predictive_tells_its_number_of_draws
    test_a_seed_repeats_the_draws_and_another_one_changes_them = (
        PosteriorContract.test_a_seed_repeats_the_draws_and_another_one_changes_them
    )
