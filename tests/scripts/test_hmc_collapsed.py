"""Chains with the last layer integrated out: the integral, its slope, and the last layer given the rest."""

import torch
from torch import Tensor

import bayesuq as bq
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.randomness import generator
from scripts.hmc_collapsed import CollapsedPotential, fit

NUM_UNITS = 4


def data() -> bq.Dataset:
    x = torch.linspace(-1.5, 1.5, 24).view(12, 2)
    return bq.Dataset(x, torch.sin(2 * x.sum(dim=1, keepdim=True)))


def model() -> BayesianNetwork:
    noise = likelihoods.Normal(scale=priors.LogNormal(loc=-1.5, scale=0.5), initial_scale=0.3)
    net = networks.mlp(2, (NUM_UNITS,), 1, activation="tanh").double()
    return BayesianNetwork(net, priors.FanIn(priors.Normal()), noise)


def positions(potential: CollapsedPotential, count: int) -> Tensor:
    return torch.randn(count, potential.size, dtype=torch.float64, generator=generator(1))


def completed(potential: CollapsedPotential, position: Tensor) -> dict[str, Tensor]:
    """All sites by name."""
    return potential.layout.split(potential.completed(position.unsqueeze(0), generator(0))[0])


def last_layer(theta: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The units at the rows and a one behind them, (N, H + 1), and the prior variances of their weights."""
    units = (data().x.double() @ theta["1.weight"].T + theta["1.bias"]).tanh()
    features = torch.cat([units, torch.ones(len(units), 1, dtype=torch.float64)], dim=1)
    return features, torch.tensor([1 / NUM_UNITS] * NUM_UNITS + [1.0], dtype=torch.float64)


def test_the_potential_is_minus_the_log_density_without_the_last_layer() -> None:
    potential = CollapsedPotential(model(), data())
    rows = positions(potential, 3)
    values, _ = potential.at_rows(rows)
    for position, value in zip(rows, values, strict=True):
        theta = completed(potential, position)
        features, variances = last_layer(theta)
        noise = theta["likelihood.scale"].square() * torch.eye(12, dtype=torch.float64)
        covariance = (features * variances) @ features.T + noise
        marginal = torch.distributions.MultivariateNormal(torch.zeros(12, dtype=torch.float64), covariance)
        torch.testing.assert_close(
            value, 0.5 * position.dot(position) - marginal.log_prob(data().y.double().flatten()), rtol=1e-9, atol=1e-9
        )


def test_its_gradient_is_that_of_differences() -> None:
    potential = CollapsedPotential(model(), data())
    position = positions(potential, 1)[0]
    value, gradient = potential.at(position)
    assert value == potential.at_rows(position.unsqueeze(0))[0].item()
    steps = 1e-5 * torch.eye(potential.size, dtype=torch.float64)
    ahead, behind = (potential.at_rows(position + sign * steps)[0] for sign in (1, -1))
    torch.testing.assert_close(gradient, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-6)


def test_the_last_layer_is_drawn_from_its_conjugate_law() -> None:
    potential, count = CollapsedPotential(model(), data()), 4000
    position = positions(potential, 1)
    drawn = potential.layout.split(potential.completed(position.expand(count, -1), generator(2)))
    weights = torch.cat([drawn["3.weight"].flatten(1), drawn["3.bias"]], dim=1)
    theta = {name: values[0] for name, values in drawn.items()}
    features, variances = last_layer(theta)
    noise = theta["likelihood.scale"].square()
    covariance = torch.linalg.inv(features.T @ features / noise + variances.reciprocal().diag())
    mean = covariance @ features.T @ data().y.double().flatten() / noise
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (weights - mean).T, upper=False)
    # Means of 4,000 numbers ~ N(0, 1), and of their products: five standard errors, of deviation 1 and of at most 2^.5.
    assert float(white.mean(dim=1).abs().max()) < 5 / count**0.5
    eye = torch.eye(NUM_UNITS + 1)
    assert float((white @ white.T / count - eye).abs().max()) < 5 * (2 / count) ** 0.5


def test_noise_of_no_size_and_of_infinite_size_has_no_density() -> None:
    potential = CollapsedPotential(model(), data())
    for extreme in (-1e4, 1e4):
        position = positions(potential, 1)[0]
        position[-1] = extreme
        assert potential.at(position)[0] == torch.inf


def told(potential: CollapsedPotential, flats: Tensor) -> Tensor:
    """Of flat vectors (..., P): log noise, size of the hidden weights, and the function at three rows, (..., 5)."""
    theta = potential.layout.split(flats)
    units = (data().x[::5].double() @ theta["1.weight"].mT + theta["1.bias"].unsqueeze(-2)).tanh()
    f = units @ theta["3.weight"].mT + theta["3.bias"].unsqueeze(-2)
    sizes = theta["1.weight"].square().sum(dim=(-2, -1))
    return torch.cat([torch.stack([theta["likelihood.scale"].log(), sizes], dim=-1), f.squeeze(-1)], dim=-1)


def test_chains_agree_with_weighted_draws_from_the_prior() -> None:
    potential = CollapsedPotential(model(), data())
    prior = positions(potential, 100_000)
    weights = (0.5 * prior.square().sum(dim=1) - potential.at_rows(prior)[0]).softmax(dim=0)
    values = told(potential, potential.completed(prior, generator(0)))
    truth = weights @ values
    error = (weights.square() @ (values - truth).square()).sqrt()
    found = told(potential, fit(model(), data(), num_chains=8, num_warmup=100, num_samples=100).draws).mean(dim=1)
    both = (error.square() + found.var(dim=0) / len(found)).sqrt()
    assert bool(((found.mean(dim=0) - truth).abs() < 4 * both).all())
