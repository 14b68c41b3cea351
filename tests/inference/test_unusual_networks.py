"""Networks that are called, return, hold or compute in ways of their own: right as they come, or refused by name.

Every remedy that a refusal names is run.
"""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from bayesuq.data import Dataset
from bayesuq.inference import features, laplace
from bayesuq.inference.adoption import adopt
from bayesuq.models import likelihoods
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.inference.examples import SHORT_FIT, built, noise

NUM_ROWS = 60
X = noise(0, NUM_ROWS, 3).float()
Y = torch.arange(NUM_ROWS) % 3
DATA = Dataset(X, Y)


def plain() -> nn.Sequential:
    return built(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)))


class Around(nn.Module):
    """A network whose forward pass is a function of it and what it is called on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()


class KeywordOnly(Around):
    def forward(self, *, pixels: Tensor, labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return self.net(pixels)


class AnyKeywords(Around):
    def forward(self, **batch: Tensor) -> Tensor:
        return self.net(batch["pixels"])


class SomeKeywords(Around):
    def forward(self, pixels: Tensor | None = None, **others: Tensor) -> Tensor:
        return self.net(pixels + others["more"])


class Handing(Around):
    """As PEFT's wrappers, which hand on what they get."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)


class AnyNumber(Around):
    def forward(self, *parts: Tensor) -> Tensor:
        return self.net(torch.stack(parts).sum(dim=0))


class Batch(Around):
    def forward(self, batch: dict[str, Tensor], **_options: Any) -> Tensor:
        return self.net(batch["pixels"])


class Dictionary(Around):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.net[:2](x)
        return {"hidden": hidden, "logits": self.net[2](hidden)}


CALLED: dict[str, tuple[Callable[[], nn.Module], Any, Callable[[nn.Module], Tensor]]] = {
    "keyword only": (KeywordOnly, {"pixels": X}, lambda net: net(pixels=X)),
    "any keywords": (AnyKeywords, {"pixels": X}, lambda net: net(pixels=X)),
    "some keywords": (SomeKeywords, {"pixels": X, "more": 2 * X}, lambda net: net(pixels=X, more=2 * X)),
    "handing on a tensor": (Handing, X, lambda net: net(X)),
    "handing on a mapping": (Handing, {"input": X}, lambda net: net(input=X)),
    "any number": (AnyNumber, (X, 2 * X), lambda net: net(X, 2 * X)),
    "a batch and options": (Batch, {"pixels": X}, lambda net: net({"pixels": X})),
    "a dictionary of outputs": (Dictionary, X, lambda net: net(X)["logits"]),
}


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("name", CALLED)
def test_forward_is_called_as_its_signature_has_it(name: str) -> None:
    build, x, by_hand = CALLED[name]
    net = build().eval().requires_grad_(False)
    adopted = adopt(net, likelihoods.Categorical())
    expected = CategoricalPredictive.from_logits(by_hand(net).unsqueeze(0))
    assert torch.equal(adopted.predict(x).mean, expected.mean)
    assert laplace.fit(adopted, Dataset(x, Y)).predict(x, num_samples=4, seed=0).epistemic.max() > 0


class Adapter(nn.Module):
    """What a low-rank adapter adds to a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.ones(size, 1)) for size in weight.shape)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down.T


def adapted(net: nn.Sequential) -> None:
    parametrize.register_parametrization(net[2], "weight", Adapter(net[2].weight))


COMPUTED: dict[str, Callable[[nn.Sequential], object]] = {
    "weight norm": lambda net: parametrizations.weight_norm(net[2]),
    "weight norm by hooks": lambda net: nn.utils.weight_norm(net[2]),
    "adapter": adapted,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_features_of_a_last_layer_whose_weight_is_computed(name: str) -> None:
    net = plain()
    COMPUTED[name](net)
    taken = features.take(adopt(net, likelihoods.Categorical()), DATA)
    with torch.no_grad():
        assert torch.equal(taken.features, net[:2](X))
        net(X)
        assert torch.equal(taken.weight, net[2].weight)
        assert torch.equal(taken.logits, net(X))
    assert features.fit(taken, scores=["energy", "virtual_logit"])(taken)["virtual_logit"].isfinite().all()


class Locked(Around):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TwoHeads(nn.Module):
    """The last layer is not run."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.used, self.other = nn.Linear(3, 8), nn.Linear(8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(self.body(x).tanh())


class WithoutGradients(Around):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Pair(Around):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.net[:2](x)
        return self.net[2](hidden), hidden


class Guarded(Around):
    """Refuses other numbers of rows than it was made for, as a program of torch.export does."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == NUM_ROWS, f"Guard failed: x.size()[0] == {NUM_ROWS}"
        return self.net(x)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(3, 3)


def loaded(net: nn.Module) -> nn.Module:
    net.to_empty(device="cpu").load_state_dict(nn.Linear(3, 3).state_dict())
    return net


def run(net: nn.Module) -> nn.Module:
    net(X)
    return net


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(3, 8), nn.Tanh()))


REFUSED: dict[
    str, tuple[Callable[[], nn.Module], str, Callable[[nn.Module], tuple[nn.Module, dict[str, Any], Any]]]
] = {
    "a lock": (Locked, r"`net\.lock` cannot be", lambda net: (net.net, {}, X)),
    "keywords alone": (KeywordOnly, "passed by its keys", lambda net: (net, {}, {"pixels": X})),
    "a pair": (Pair, "say which are f", lambda net: (net, {"output": lambda found: found[0]}, X)),
    "another head": (TwoHeads, r"do not move with .* other\.weight", lambda net: (net, {"random": "used.*"}, X)),
    "no gradients": (WithoutGradients, "let gradients through", lambda net: (net.net, {}, X)),
    "rows of a program": (Guarded, "Dim.DYNAMIC", lambda net: (net.net, {}, X)),
    "on meta": (on_meta, "to_empty", lambda net: (loaded(net), {}, X)),
    "lazy": (lambda: nn.LazyLinear(3), "Run it once", lambda net: (run(net), {}, X)),
    "scripted": (
        lambda: nn.Sequential(scripted(), nn.Linear(8, 3)),
        r"`net\.0` is compiled by torch\.jit",
        lambda net: (net[1], {}, net[0](X).detach()),
    ),
}


@pytest.mark.filterwarnings(*SHORT_FIT, "ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_with_a_remedy_that_works(name: str) -> None:
    build, message, mended = REFUSED[name]
    net = build()
    with pytest.raises((TypeError, ValueError), match=message):
        laplace.fit(adopt(net, likelihoods.Categorical()), DATA)
    again, options, x = mended(net)
    data = Dataset(x, Y)
    posterior = laplace.fit(adopt(again, likelihoods.Categorical(), **options), data)
    assert posterior.predict(x, num_samples=4, seed=0).epistemic.max() > 0


def test_a_network_without_random_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keep the last layer as a torch\.nn\.Linear in float"):
        adopt(nn.Sequential(nn.Flatten()), likelihoods.Categorical())


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_weights_that_were_made_in_inference_mode_are_adopted() -> None:
    with torch.inference_mode():
        net = plain()
    fitted = laplace.fit(adopt(net, likelihoods.Categorical()), DATA)
    assert fitted.predict(X, num_samples=4, seed=0).epistemic.max() > 0


def test_a_softmax_before_a_likelihood_of_logits_is_told_once(recwarn: pytest.WarningsRecorder) -> None:
    net = nn.Sequential(*plain(), nn.Softmax(dim=1)).requires_grad_(False)
    adopted = adopt(net, likelihoods.Categorical())
    twice = [adopted.predict(X).mean for _ in range(2)]
    assert ["output=torch.log" in str(one.message) for one in recwarn.list] == [True]
    assert float((twice[1] - net(X)).abs().max()) > 0.05  # what the word is about
    mended = adopt(net, likelihoods.Categorical(), output=torch.log).predict(X).mean
    torch.testing.assert_close(mended, net(X).double(), rtol=1e-5, atol=1e-6)
    assert len(recwarn.list) == 1


class Centred(Around):
    """Subtracts the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean(dim=0))


def test_rows_that_depend_on_each_other_are_told() -> None:
    with pytest.warns(UserWarning, match="which other rows come with it"):
        adopt(Centred(), likelihoods.Categorical()).predict(X)
