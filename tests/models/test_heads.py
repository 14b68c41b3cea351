"""Networks whose last operation bounds what their likelihood takes for any real number are told of."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import bayesuq as bq
from bayesuq.data import Dataset
from bayesuq.inference import map_estimate
from bayesuq.inference.training.minibatches import NetworkReader
from bayesuq.models import BayesianNetwork, likelihoods, priors

X = torch.linspace(-1, 1, 24).reshape(8, 3)
Y = torch.linspace(-2, 2, 8)[:, None]
LABELS, COUNTS = (Y[:, 0] > 0).long(), Y.exp().round()
TWO = nn.functional.one_hot(LABELS, 2)


class Ending(nn.Module):
    """A linear layer and an operation in `forward`."""

    def __init__(self, num_outputs: int, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.end = nn.Linear(3, num_outputs), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.linear(x))


def positive_variance(f: Tensor) -> Tensor:
    """As a head of means and variances is often written."""
    return torch.cat([f[:, :1], softplus(f[:, 1:]) + 1e-4], 1)


def told(net: nn.Module, likelihood: likelihoods.Likelihood, y: Tensor) -> list[str]:
    """What a fit of an epoch says of the network's end."""
    model = BayesianNetwork(net, priors.Normal(), likelihood)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        map_estimate.fit(model, bq.Dataset(X, y), num_epochs=1, seed=0, progress=False)
    return [found for found in (str(w.message) for w in caught) if "network ends" in found or "are prob" in found]


BOUNDED: dict[str, tuple[Any, ...]] = {
    "a layer": (nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()), likelihoods.Bernoulli(), LABELS, "sigmoid.*logits"),
    "in forward": (Ending(1, torch.sigmoid), likelihoods.Bernoulli(), LABELS, "sigmoid.*logits.*torch.logit"),
    "several labels": (Ending(2, torch.sigmoid), likelihoods.Bernoulli(), TWO, "sigmoid.*logits"),
    "a class of a softmax": (Ending(2, lambda f: f.softmax(1)[:, 1:]), likelihoods.Bernoulli(), LABELS, "softmax"),
    "a softmax": (Ending(2, lambda f: f.softmax(1)), likelihoods.Categorical(), LABELS, "are probabilities"),
    "in place": (Ending(2, torch.relu_), likelihoods.Categorical(), LABELS, "ReLU.*never below 0"),
    "moved": (Ending(2, lambda f: f.tanh()[:, None].squeeze(1)), likelihoods.Categorical(), LABELS, "between -1 and 1"),
    "log sigmoid": (Ending(2, nn.functional.logsigmoid), likelihoods.Categorical(), LABELS, "never above 0"),
    "noisy logits": (
        Ending(4, lambda f: torch.cat([f[:, :2], f[:, 2:].exp()], 1)),
        likelihoods.HeteroscedasticCategorical(),
        LABELS,
        "exponential.*log variances of logits",
    ),
    "rates": (Ending(1, torch.exp), likelihoods.Poisson(), COUNTS, "exponential.*log rates.*torch.log"),
    "rates above a floor": (Ending(1, lambda f: softplus(f) + 1e-3), likelihoods.Poisson(), COUNTS, "log rates"),
    "variances": (Ending(2, positive_variance), likelihoods.HeteroscedasticNormal(), Y, "softplus.*log variances"),
    "variances, stacked": (
        Ending(2, lambda f: torch.stack([f[:, 0], f[:, 1].exp()], 1)),
        likelihoods.HeteroscedasticNormal(),
        Y,
        "exponential.*log variances",
    ),
    "means": (Ending(1, torch.relu), likelihoods.Normal(), Y, "ReLU.*means.*50% of the first targets"),
    "means of Student's t": (Ending(1, torch.tanh), likelihoods.StudentT(4.0), Y, "tanh.*means.*between -1 and 1"),
}
FREE: dict[str, tuple[Any, ...]] = {
    "logits": (Ending(1, lambda f: 2 * f.tanh()), likelihoods.Bernoulli(), LABELS),
    "log softmax": (Ending(2, lambda f: f.log_softmax(1)), likelihoods.Categorical(), LABELS),
    "bounded below by -1": (Ending(2, nn.functional.elu), likelihoods.Categorical(), LABELS),
    "shifted rates": (Ending(1, lambda f: softplus(f) - 3), likelihoods.Poisson(), COUNTS),
    "means like their targets": (Ending(1, torch.relu), likelihoods.Normal(), Y.exp()),
    "positive means": (
        Ending(2, lambda f: torch.cat([f[:, :1].exp(), f[:, 1:]], 1)),
        likelihoods.HeteroscedasticNormal(),
        Y.exp(),
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_bounded_end_is_told_of(name: str) -> None:
    net, likelihood, y, said = BOUNDED[name]
    (message,) = told(net, likelihood, y)
    assert re.search(said, message)


@pytest.mark.parametrize("name", FREE)
def test_an_end_that_can_be_right_is_not(name: str) -> None:
    assert told(*FREE[name]) == []


def test_an_adopted_network_is_told_of_where_it_predicts() -> None:
    net = Ending(1, torch.sigmoid)
    with pytest.warns(UserWarning, match="ends in a sigmoid"):
        bq.adopt(net, likelihoods.Bernoulli()).predict(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = bq.adopt(net, likelihoods.Bernoulli(), output=torch.logit).predict(X).mean[:, 1]
    torch.testing.assert_close(expected, net(X)[:, 0].detach().double())


class Watched(nn.Module):
    """Notes of each pass whether derivatives are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.passes: list[bool] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Watched":
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(torch.is_grad_enabled())
        return self.linear(x)


def test_one_pass_with_derivatives_tells_what_rows_what_ends_and_what_is_reached() -> None:
    net = Watched()
    reader = NetworkReader(BayesianNetwork(net, priors.Normal(), likelihoods.Normal()))
    for count in (1, 2):
        reader.open(Dataset(X, Y))
        assert net.passes.count(True) == count
    assert net.passes[-1]  # of other rows of the same kind there is no other pass


class Aside(nn.Module):
    """A layer whose outputs are thrown away, and one whose are not."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.aside = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) + self.aside(x).detach()


@pytest.mark.parametrize("random", ["used.*", "aside.*"])
def test_a_path_of_derivatives_leads_to_random_weights_or_is_missed(random: str) -> None:
    model = BayesianNetwork(Aside(), {random: priors.Normal()}, likelihoods.Normal(), random=random)
    if random == "used.*":
        NetworkReader(model).open(Dataset(X, Y))
        return
    with pytest.raises(ValueError, match=r"do not move with the weights that are to be random, aside\.weight"):
        NetworkReader(model).open(Dataset(X, Y))
