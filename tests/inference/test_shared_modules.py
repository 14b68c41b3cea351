"""One module in two places, one parameter in two modules: one set of weights, for every method and every thread."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event
from typing import Any

import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.inference import ensemble, hmc, laplace, map_estimate, sgmcmc, swag, variational
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, weights_of
from tests.zoo.modules import SHARED, Kind, UsedTwice, in_two_places

OPTIONS = {"num_epochs": 2, "batch_size": 16, "seed": 0}
CHAINS: dict[str, Any] = {"num_samples": 4, "num_warmup": 4, "num_chains": 2, "thinning": 1, "seed": 0}
FITS: dict[str, Callable[..., Any]] = {
    "map": partial(map_estimate.fit, **OPTIONS),
    "variational": partial(variational.fit, **OPTIONS),
    "low rank": partial(variational.fit, guide=variational.low_rank(2), **OPTIONS),
    "ensemble": partial(ensemble.fit, num_members=2, vectorised=False, **OPTIONS),
    "stacked ensemble": partial(ensemble.fit, num_members=2, vectorised=True, **OPTIONS),
    "swag": partial(swag.fit, rank=2, swa_learning_rate=1e-3, **OPTIONS),
    "sgmcmc": partial(sgmcmc.fit, step_size=1e-3, **CHAINS),
    "hmc": partial(hmc.fit, **CHAINS),
}
STRUCTURES = ("diagonal", "kronecker", "full")

pytestmark = [
    pytest.mark.filterwarnings(*SHORT_FIT, "ignore::UserWarning"),  # fits and chains that are short on purpose
]


def model_and_data(kind: Kind) -> tuple[BayesianNetwork, Dataset]:
    x = kind.x(32, dtype=torch.float64)
    model = BayesianNetwork(kind.net(dtype=torch.float64), priors.Normal(), likelihoods.Normal(scale=0.5))
    return model, Dataset(x, x.sum(dim=1))


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("method", FITS)
def test_shared_weights_act_as_the_function_written_out(name: str, method: str, tmp_path) -> None:
    kind, function = SHARED[name]
    model, data = model_and_data(kind)
    before = weights_of(model.net)
    posterior = FITS[method](model, data)
    predictive = posterior.predict(data.x, num_samples=2, seed=1)
    theta = posterior.sample_weights(2, seed=1)
    expected = [
        function({site: draws[s] for site, draws in theta.items()}, data.x) for s in range(predictive.num_samples)
    ]
    torch.testing.assert_close(predictive.component_means, torch.stack(expected), rtol=1e-9, atol=1e-12)
    assert theta.keys() == model.initial().keys()
    for site, value in weights_of(model.net).items():
        assert torch.equal(value, before[site])
    if method in ("map", "hmc"):
        posterior.save(tmp_path / "posterior")
        again = load(tmp_path / "posterior", model=model).predict(data.x, num_samples=2, seed=1)
        torch.testing.assert_close(again.component_means, predictive.component_means, rtol=0, atol=0)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_laplace_takes_a_layer_in_two_places_as_one_called_twice(structure: str) -> None:
    shared, called = Kind(in_two_places), Kind(UsedTwice)
    posteriors = []
    for kind in (shared, called):
        model, data = model_and_data(kind)
        named = dict(zip(model.initial(), SHARED_VALUES, strict=True))
        net = copy.deepcopy(model.net)
        net.load_state_dict(named, strict=False)
        started = BayesianNetwork(net, model.prior, model.likelihood)
        posteriors.append(laplace.fit(started, data, structure=structure, subset="all", **OPTIONS))
    one, other = (posterior.predict(data.x) for posterior in posteriors)
    torch.testing.assert_close(one.epistemic, other.epistemic, rtol=1e-6, atol=0)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-9, atol=1e-12)


SHARED_VALUES = list(Kind(UsedTwice).net(dtype=torch.float64).state_dict().values())


def test_the_last_layer_is_the_last_place() -> None:
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), layer)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(), random="last_layer")
    assert [name for name in model.laws if name != "likelihood.scale"] == ["0.weight", "0.bias"]


def test_an_activation_in_two_places_acts_in_both_for_chains_together() -> None:
    tanh = nn.Tanh()
    shared = Kind(lambda: nn.Sequential(nn.Linear(3, 4), tanh, nn.Linear(4, 4), tanh, nn.Linear(4, 1)))
    model, data = model_and_data(shared)
    chains = hmc.fit(model, data, **CHAINS)
    apart = nn.Sequential(*(layer if isinstance(layer, nn.Linear) else nn.Tanh() for layer in model.net))
    own = hmc.fit(BayesianNetwork(apart, model.prior, model.likelihood), data, **CHAINS)
    torch.testing.assert_close(chains.sample_weights(8), own.sample_weights(8), rtol=0, atol=0)


def test_a_model_and_its_copies_run_after_a_copy_and_a_pickle() -> None:
    kind, _ = SHARED["module in two places"]
    model, data = model_and_data(kind)
    expected = model.forward(model.initial(), data.x)
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other.forward(other.initial(), data.x), expected, rtol=0, atol=0)


THREADED: dict[str, Callable[..., WeightPosterior]] = {
    name: FITS[name] for name in ("map", "variational", "low rank", "swag", "sgmcmc", "hmc")
}


def test_methods_in_threads_give_what_they_give_alone() -> None:
    model, data = model_and_data(SHARED["module in two places"][0])
    alone = {name: fit(model, data).sample_weights(2, seed=3) for name, fit in THREADED.items()}
    state = torch.get_rng_state()
    with ThreadPoolExecutor(len(THREADED)) as pool:
        running = {name: [pool.submit(fit, model, data) for _ in range(2)] for name, fit in THREADED.items()}
        for name, fits in running.items():
            for fit in fits:
                torch.testing.assert_close(fit.result().sample_weights(2, seed=3), alone[name], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_is_refitted_while_four_threads_predict() -> None:
    model, data = model_and_data(SHARED["module in two places"][0])
    posterior = FITS["variational"](model, data)
    expected = posterior.predict(data.x, num_samples=3, seed=1).component_means
    theta = model.initial()
    outputs, joint = model.forward(theta, data.x), model.log_joint(theta, data.x, data.y)
    done = Event()

    def predict() -> int:
        count = 0
        while not done.is_set() or count == 0:
            found = posterior.predict(data.x, num_samples=3, seed=1).component_means
            assert torch.equal(found, expected)
            assert torch.equal(model.forward(theta, data.x), outputs)
            assert torch.equal(model.log_joint(theta, data.x, data.y), joint)
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        predicting = [pool.submit(predict) for _ in range(4)]
        try:
            again = [FITS["variational"](model, data) for _ in range(3)]
        finally:
            done.set()
        assert all(thread.result() > 0 for thread in predicting)
    for one in again:
        torch.testing.assert_close(one.sample_weights(2, seed=3), posterior.sample_weights(2, seed=3), rtol=0, atol=0)


MEETING = Barrier(2)


class Met(nn.Module):
    """Looks at its weight when another thread is in it too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        MEETING.wait(20)
        found = x * self.weight
        MEETING.wait(20)
        return found


def test_threads_that_are_in_one_network_at_once_have_each_their_own_weights() -> None:
    model, x = BayesianNetwork(Met(), priors.Normal(), likelihoods.Normal()), torch.ones(2, 1)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda weight: model.forward({"weight": torch.full((1,), weight)}, x), (1.0, 2.0)))
    assert [float(f[0]) for f in found] == [1.0, 2.0]


@pytest.mark.parametrize("inner", ["", "1."])
def test_a_wrapped_network_is_refused(inner: str) -> None:
    net: nn.Module = nn.DataParallel(nn.Linear(3, 1))
    net = nn.Sequential(nn.Flatten(), net) if inner else net
    with pytest.raises(ValueError, match=r"is wrapped in DataParallel.*Pass the network inside, `net.module`"):
        BayesianNetwork(net, priors.Normal(), likelihoods.Normal())


class DistributedDataParallel(nn.Module):
    """Stands for torch's, which needs a group of processes."""


def test_wrappers_of_several_processes_are_known_by_name() -> None:
    with pytest.raises(ValueError, match="`net` is wrapped in DistributedDataParallel"):
        BayesianNetwork(DistributedDataParallel(), priors.Normal(), likelihoods.Normal())
