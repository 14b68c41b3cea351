"""What a training step costs beside a plain deterministic one, and a fit beside its steps.

The targets: a step of `ivon` of 784-400-400-10 at most 1.6 of a default Adam step, a mean-field step of 784-400-400-10
at most 1.9 of a default Adam step and 2.3 of a fused one, of 8-50-1 at most 1.3 and 1.6; by local reparameterisation at
most 2.4 of a default one of the large network; under a scale mixture at most 1.4 of its step under a normal prior; a
whole `fit` at most 1.1 of its steps alone.
"""

import copy
from collections.abc import Callable

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from timing import median_seconds, print_ratios
from torch import Tensor, nn
from torch.nn import functional

from bayesuq.data import Dataset
from bayesuq.inference import variational
from bayesuq.inference.ivon.newton import Newton, NewtonObjective, Rule
from bayesuq.inference.posteriors.network_mode import ModeObjective
from bayesuq.inference.training.loop import adam
from bayesuq.inference.training.minibatches import Batch
from bayesuq.inference.variational.activation_noise import Estimator
from bayesuq.inference.variational.factorised import EvidenceObjective
from bayesuq.inference.variational.guides import mean_field
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

NUM_DATA = 10_000


def plain_step(net: nn.Module, x: Tensor, y: Tensor, *, fused: bool) -> Callable[[], object]:
    """A deterministic step as a plain PyTorch script makes it."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True) if fused else torch.optim.Adam(net.parameters())
    loss_function = functional.mse_loss if y.is_floating_point() else functional.cross_entropy

    def step() -> None:
        optimizer.zero_grad()
        loss = loss_function(net(x), y)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def mean_field_step(
    model: BayesianNetwork, x: Tensor, y: Tensor, *, estimator: Estimator = "weights"
) -> Callable[[], object]:
    """A step of `variational.fit`."""
    evidence = EvidenceObjective(model, mean_field(model), NUM_DATA, num_draws=1, scale_rate=1.0, estimator=estimator)
    optimizer = adam(evidence.objective(), learning_rate=1e-3)
    noise, batch = torch.Generator().manual_seed(0), Batch(x, y, None)

    def step() -> None:
        evidence.loss_and_grads(batch, noise).item()
        optimizer.step()

    return step


def mode_step(model: BayesianNetwork, x: Tensor, y: Tensor) -> Callable[[], object]:
    """A step of `map_estimate.fit`."""
    mode = ModeObjective(model, NUM_DATA)
    optimizer = adam(mode.objective(), learning_rate=1e-3)
    noise, batch = torch.Generator().manual_seed(0), Batch(x, y, None)

    def step() -> None:
        mode.loss_and_grads(batch, noise).item()
        optimizer.step()

    return step


def newton_step(model: BayesianNetwork, x: Tensor, y: Tensor) -> Callable[[], object]:
    """A step of `ivon.fit`."""
    newton = NewtonObjective(model, NUM_DATA, Rule(num_draws=1, memory=None, max_grad_norm=None))
    optimizer = Newton(newton, rate=0.05)
    noise, batch = torch.Generator().manual_seed(0), Batch(x, y, None)

    def step() -> None:
        newton.loss_and_grads(batch, noise).item()
        optimizer.step()

    return step


def pyro_step(model: BayesianNetwork, x: Tensor, y: Tensor) -> Callable[[], object]:
    """A step of stock Pyro on the same program, with its defaults."""
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    return lambda: svi.step(x, y, NUM_DATA)


def compare_steps(widths: tuple[int, ...], batch_size: int, *, rounds: int, repeats: int) -> None:
    """Print the steps of one architecture."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    net = networks.mlp(widths[0], widths[1:-1], widths[-1])
    x = torch.randn(batch_size, widths[0])
    classifies = widths[-1] > 1
    y = torch.randint(widths[-1], (batch_size,)) if classifies else torch.randn(batch_size, 1)
    likelihood = likelihoods.Categorical() if classifies else likelihoods.Normal(scale=0.1)
    model = BayesianNetwork(net, priors.Normal(), likelihood)
    mixture = BayesianNetwork(net, priors.ScaleMixture(), likelihood)
    steps = {
        "default Adam": plain_step(net, x, y, fused=False),
        "fused Adam": plain_step(net, x, y, fused=True),
        "bayesuq map_estimate": mode_step(model, x, y),
        "bayesuq ivon": newton_step(model, x, y),
        "bayesuq variational, mean field": mean_field_step(model, x, y),
        "the same by local reparameterisation": mean_field_step(model, x, y, estimator="local"),
        "the same by flipout": mean_field_step(model, x, y, estimator="flipout"),
        "the same under a scale mixture": mean_field_step(mixture, x, y),
        "stock Pyro, AutoNormal, Trace_ELBO": pyro_step(model, x, y),
    }
    seconds = median_seconds(steps, rounds=rounds, repeats=repeats)
    title = f"one step of {'-'.join(map(str, widths))}, batch {batch_size}"
    print_ratios(title, seconds, ("default Adam", "fused Adam"))


def compare_fit(widths: tuple[int, ...], batch_size: int, *, num_batches: int, num_epochs: int, rounds: int) -> None:
    """Print a whole `variational.fit` beside its steps alone."""
    torch.manual_seed(0)
    num_rows = num_batches * batch_size
    x = torch.randn(num_rows, widths[0])
    classifies = widths[-1] > 1
    y = torch.randint(widths[-1], (num_rows,)) if classifies else torch.randn(num_rows, 1)
    likelihood = likelihoods.Categorical() if classifies else likelihoods.Normal(scale=0.1)
    model = BayesianNetwork(networks.mlp(widths[0], widths[1:-1], widths[-1]), priors.Normal(), likelihood)
    data = Dataset(x, y)
    step = mean_field_step(model, x[:batch_size], data.y[:batch_size])

    def fit() -> None:
        variational.fit(model, data, num_epochs=num_epochs, batch_size=batch_size, learning_rate=1e-2, seed=0)

    def steps() -> None:
        for _ in range(num_epochs * num_batches):
            step()

    seconds = median_seconds({"its steps alone": steps, "whole fit": fit}, rounds=rounds, repeats=1)
    title = f"fit of {'-'.join(map(str, widths))}, {num_epochs} epochs of {num_batches} batches of {batch_size}"
    print_ratios(title, seconds, ("its steps alone",))


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore", UserWarning)  # random targets leave nothing to learn
    compare_steps((784, 400, 400, 10), 128, rounds=25, repeats=5)
    compare_steps((8, 50, 1), 32, rounds=25, repeats=100)
    compare_fit((784, 400, 400, 10), 128, num_batches=80, num_epochs=5, rounds=5)
    compare_fit((8, 50, 1), 32, num_batches=40, num_epochs=100, rounds=7)
