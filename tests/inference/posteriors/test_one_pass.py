"""What all draws share of a network is run once, and no number is another for it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bayesuq.data import Dataset
from bayesuq.inference import dropout, hmc, laplace, variational
from bayesuq.inference import dropout as dropouts
from bayesuq.inference.adoption import adopt
from bayesuq.inference.posteriors import weights
from bayesuq.inference.posteriors.one_pass import Beginning
from bayesuq.models import likelihoods
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.priors import Normal
from tests.inference.examples import SHORT_FIT, built, labelled, noise
from tests.zoo import modules
from tests.zoo.pretrained import ConvNext, VisionTransformer

KINDS = {
    **modules.RANDOM_IN_TRAINING,
    **modules.STATEFUL,
    **{name: kind for name, (kind, _) in modules.SHARED.items()},
    **modules.OTHER,
    "vision transformer": modules.Kind(VisionTransformer, (1, 4, 4)),
    "convnext": modules.Kind(ConvNext, (1, 4, 4)),
}


class Square(torch.autograd.Function):
    """An operator that torch does not show to those who look on."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.square()


class Computed(TorchDispatchMode):
    """Counts how often the activations of 40 rows are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten.tanh.default and len(args[0]) == 40
        return function(*args, **(kwargs or {}))


def plain(monkeypatch: pytest.MonkeyPatch, predict: Callable[[], Any]) -> Any:
    """A prediction in which every draw runs the whole network."""
    with monkeypatch.context() as patch:
        patch.setattr(weights, "FEWEST_FOR_ONE_PASS", 10**9)
        patch.setattr(dropouts, "FEWEST_FOR_ONE_PASS", 10**9)
        return predict()


@cache
def fitted(name: str) -> variational.VariationalPosterior:
    kind = KINDS[name]
    net, x = kind.net().eval(), kind.x(7)
    adopted = adopt(net, likelihoods.Normal(scale=1.0))
    return variational.fit(adopted.model, Dataset(x, adopted.predict(x).mean), num_epochs=1, seed=0)


@pytest.mark.filterwarnings(*SHORT_FIT, "ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("budget", [0, weights.VECTORISED_BUDGET])
def test_draws_of_a_last_layer_are_those_of_whole_passes(
    name: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    posterior, x = fitted(name), KINDS[name].x(7)
    monkeypatch.setattr(weights, "VECTORISED_BUDGET", budget)  # 0: one draw after another

    def predict() -> Tensor:
        return posterior.predict(x, num_samples=5, seed=0, keep_samples=True).component_means

    torch.testing.assert_close(predict(), plain(monkeypatch, predict), rtol=1e-5, atol=1e-5)


def last_layer(kind: str) -> Callable[[int], Any]:
    """From a number of draws to a prediction by some posterior over the last layer, or of dropout before it."""
    net, data = built(lambda: nn.Sequential(nn.Linear(3, 200), nn.Tanh(), nn.Linear(200, 3))), labelled(40)
    adopted = adopt(net, likelihoods.Categorical())
    if kind == "points":
        model = BayesianNetwork(net, Normal(), likelihoods.Categorical(), random="last_layer")
        posterior: Any = variational.fit(model, data, num_epochs=1, seed=0)
    elif kind == "laplace":
        posterior = laplace.fit(adopt(net, likelihoods.Categorical(), random="all"), data, subset="last_layer").sampled
    elif kind == "hmc":
        posterior = hmc.fit(adopted.model, data, num_samples=6, num_warmup=10, num_chains=1, max_tree_depth=3, seed=0)
    else:
        posterior = dropout.around(adopted, put_in={"2": 0.3})
    return lambda number: posterior.predict(data.x, num_samples=number, seed=0)


@pytest.mark.filterwarnings(*SHORT_FIT, "ignore:The weights are no mode", "ignore:R-hat")
@pytest.mark.parametrize("kind", ["points", "laplace", "hmc", "dropout"])
def test_the_body_runs_once_for_all_draws(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = last_layer(kind)
    monkeypatch.setattr(weights, "VECTORISED_BUDGET", 0)
    found, expected = predict(6), plain(monkeypatch, lambda: predict(6))
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.epistemic, expected.epistemic, rtol=1e-5, atol=1e-7)
    counts = []
    for number in (3, 6):
        with Computed() as computed:
            predict(number)
        counts.append(computed.count)
    assert counts[0] == counts[1]
    assert 1 <= counts[0] <= 2  # the second asks whether the network draws in training mode


def reading_before_writing(x: Tensor, fixed: Tensor, moving: Tensor) -> Tensor:
    hidden = x * fixed
    early = (hidden * moving).sum(dim=1, keepdim=True)
    return early + hidden.add_(1)


def writing_what_moves(x: Tensor, fixed: Tensor, moving: Tensor) -> Tensor:
    return (x * fixed).add_(moving)


def hidden_from_sight(x: Tensor, fixed: Tensor, moving: Tensor) -> Tensor:
    hidden = x * fixed
    early = Square.apply(hidden)
    return early + hidden.add_(1) * moving


def writing_in_new_tensors(x: Tensor, fixed: Tensor, moving: Tensor) -> Tensor:
    first, second = torch.zeros(2), torch.zeros(2)
    first += moving
    return x * fixed + first + second


def branching(x: Tensor, fixed: Tensor, moving: Tensor) -> Tensor:
    return x * fixed if moving.sum() > 0 else x.tanh() * fixed + moving


def in_lists(x: Tensor, fixed: Tensor, moving: Tensor) -> Tensor:
    parts = torch.stack([x * fixed, x.relu_() + fixed])
    both, _ = torch.cat([parts[0, :, :1], parts[1, ..., 1:]], dim=1).topk(2, dim=1)
    return both.split(1, dim=1)[0] * moving


@pytest.mark.parametrize(
    "compute",
    [reading_before_writing, writing_what_moves, hidden_from_sight, writing_in_new_tensors, branching, in_lists],
)
def test_what_is_written_into_and_what_branches_gives_the_same_bits(compute: Callable[..., Tensor]) -> None:
    x, fixed, draws = noise(0, 4, 2), noise(1, 2), noise(2, 5, 2)
    x = x.abs() if compute is in_lists else x  # which is written into, and stays as it is
    expected = [compute(x, fixed, moving) for moving in draws]
    beginning, first = Beginning.of(lambda: compute(x, fixed, draws[0]), [x, fixed])
    found = [first.clone()]
    for moving in draws[1:]:
        with beginning:
            found.append(compute(x, fixed, moving).clone())
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))
    assert beginning.is_of_use == (compute in (branching, in_lists, hidden_from_sight))


@pytest.mark.parametrize("pays", [True, False])
def test_nothing_is_taken_from_before_where_that_would_save_little(pays: bool) -> None:
    """Of a small network with dropout throughout, telling operators apart took longer than those that stay."""
    x, fixed, moving = noise(0, 4, 2), noise(1, 2), noise(2, 2)
    passes = []

    def compute() -> Tensor:
        passes.append(0)
        f = x * fixed
        for _ in range(3 if pays else 0):
            f = f.tanh()
        return (f * moving).tanh()

    beginning, first = Beginning.of(compute, [x, fixed])
    assert beginning.is_of_use == pays
    assert len(passes) == (2 if pays else 1)
    torch.testing.assert_close(first, compute(), rtol=0, atol=0)
