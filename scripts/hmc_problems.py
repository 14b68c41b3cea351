"""What the methods of `scripts/hmc_distance.py` are asked: one split, one model that all share, and its predictives.

Regression: a network of 50 tanh units (smooth, as leapfrog steps want it) and noise of unknown scale. Digits: the same
network with ten outputs.
"""

from abc import ABC, abstractmethod

import torch

import bayesuq as bq
from bayesuq.evaluation.distance import agreement, total_variation, wasserstein
from bayesuq.evaluation.scores import accuracy, negative_log_likelihood, root_mean_squared_error
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.randomness import derive_seed, isolated

NUM_DRAWS = 1000  # of every predictive


class Problem(ABC):
    """Training rows, test inputs and the model.

    Attributes:
        train: What the methods learn from.
        x: Inputs of the test rows.
        model: Network, prior and likelihood.
    """

    train: bq.Dataset
    x: torch.Tensor
    model: BayesianNetwork

    def predict(self, posterior: bq.Posterior) -> PredictiveDistribution:
        """Of the test rows, from the same number of draws for all."""
        return posterior.predict(self.x, num_samples=NUM_DRAWS, seed=0)

    @abstractmethod
    def scores(self, predictive: PredictiveDistribution) -> dict[str, float]:
        """Against the test targets."""

    @abstractmethod
    def distances(self, predictive: PredictiveDistribution, target: PredictiveDistribution) -> dict[str, float]:
        """From the reference's predictive."""


class Regression(Problem):
    """A UCI set, standardised; distances are in standard deviations of y, scores in its own units."""

    def __init__(self, data: str, split: int) -> None:
        rows = bq.datasets.load(f"uci/{data}", split=split)
        self.units = bq.Standardizer.fit(rows.refit)
        self.train, self.y = self.units.transform(rows.refit), rows.test.y
        self.x = self.units.transform(rows.test).x
        noise = likelihoods.Normal(scale=priors.LogNormal(loc=-1.5, scale=0.5), initial_scale=0.3)
        self.model = _model(self.x.shape[1], 1, noise, split)

    def scores(self, predictive: PredictiveDistribution) -> dict[str, float]:
        """Negative log-likelihood, in nats, and root mean squared error."""
        raw = self.units.inverse(_gaussian(predictive))
        rmse = float(root_mean_squared_error(raw, self.y))
        return {"negative_log_likelihood": float(negative_log_likelihood(raw, self.y)), "rmse": rmse}

    def distances(self, predictive: PredictiveDistribution, target: PredictiveDistribution) -> dict[str, float]:
        """Total variation and Wasserstein-1, by quadrature."""
        one, other = _gaussian(predictive), _gaussian(target)
        return {"total_variation": float(total_variation(one, other)), "wasserstein": float(wasserstein(one, other))}


class Digits(Problem):
    """Scikit-learn's digits; the split seeds the network alone."""

    def __init__(self, split: int) -> None:
        rows = bq.datasets.load("digits")
        self.train, self.x, self.y = rows.refit, rows.test.x, rows.test.y
        self.model = _model(self.x.shape[1], 10, likelihoods.Categorical(), split)

    def scores(self, predictive: PredictiveDistribution) -> dict[str, float]:
        """Negative log-likelihood, in nats, and accuracy."""
        labels = _categorical(predictive)
        nll = float(negative_log_likelihood(labels, self.y))
        return {"negative_log_likelihood": nll, "accuracy": float(accuracy(labels, self.y))}

    def distances(self, predictive: PredictiveDistribution, target: PredictiveDistribution) -> dict[str, float]:
        """Total variation, and the share of inputs with the same most probable class."""
        one, other = _categorical(predictive), _categorical(target)
        return {"total_variation": float(total_variation(one, other)), "agreement": float(agreement(one, other))}


def problem(data: str, split: int) -> Problem:
    """By name: `digits`, or a UCI set."""
    return Digits(split) if data == "digits" else Regression(data, split)


def _model(num_inputs: int, num_outputs: int, likelihood: Likelihood, seed: int) -> BayesianNetwork:
    with isolated(derive_seed(0, seed)):
        net = networks.mlp(num_inputs, (50,), num_outputs, activation="tanh")
    return BayesianNetwork(net, priors.FanIn(priors.Normal()), likelihood)


def _gaussian(predictive: PredictiveDistribution) -> GaussianPredictive:
    if not isinstance(predictive, GaussianPredictive):
        raise TypeError("the likelihood is normal")
    return predictive


def _categorical(predictive: PredictiveDistribution) -> CategoricalPredictive:
    if not isinstance(predictive, CategoricalPredictive):
        raise TypeError("the likelihood is categorical")
    return predictive
