"""Temperature scaling on noisy digits: of the network that validation picks, and of an overtrained one.

Noise on the pixels makes digits look alike, so that a good network is often in doubt. The first one stops where its
validation loss is least; the second goes on until it knows all training labels by heart. A third of the training rows,
which neither has seen, choose T. How small an ECE can be is simulated: labels drawn from the predictive itself, which
is then calibrated.
"""

import argparse
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

import bayesuq as bq
from bayesuq.evaluation.calibration import expected_calibration_error
from bayesuq.evaluation.scores import accuracy, negative_log_likelihood
from bayesuq.inference import map_estimate, temperature
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

PIXEL_NOISE, NUM_SIMULATIONS = 0.4, 1000


@dataclass(frozen=True)
class Judged:
    """How one predictive does on the test rows.

    Attributes:
        error: Expected calibration error.
        floor: The range that holds 95 % of what it is for a predictive that is calibrated.
        loss: Negative log-likelihood, nats.
        accuracy: Share of right labels.
    """

    error: float
    floor: tuple[float, float]
    loss: float
    accuracy: float

    @classmethod
    def of(cls, predictive: bq.CategoricalPredictive, y: torch.Tensor, seed: int) -> Self:
        """Judge and simulate."""
        simulated = predictive.sample(NUM_SIMULATIONS, seed=seed)
        errors = [float(expected_calibration_error(predictive, labels)) for labels in simulated]
        lower, upper = np.quantile(errors, [0.025, 0.975])
        loss = float(negative_log_likelihood(predictive, y))
        return cls(
            float(expected_calibration_error(predictive, y)), (lower, upper), loss, float(accuracy(predictive, y))
        )

    def __str__(self) -> str:
        lower, upper = self.floor
        error = f"ECE {self.error:.3f} (floor {lower:.3f} to {upper:.3f})"
        return f"{error}  NLL {self.loss:.3f}  accuracy {self.accuracy:.3f}"

    @property
    def is_calibrated(self) -> bool:
        """Whether its error is one that a calibrated predictive would have."""
        return self.floor[0] <= self.error <= self.floor[1]


def load(seed: int) -> tuple[bq.Dataset, bq.Dataset, bq.Dataset, bq.Dataset]:
    """Rows to train on, to stop by, to choose T by, and to test on, their pixels blurred by noise."""
    split = bq.datasets.load("digits")
    noise = torch.Generator().manual_seed(seed)
    train, watched, test = (
        bq.Dataset(part.x + PIXEL_NOISE * torch.randn(part.x.shape, generator=noise), part.y)
        for part in (split.train, split.val, split.test)
    )
    order, two_thirds = torch.randperm(len(train), generator=noise), 2 * len(train) // 3
    return train.rows(order[:two_thirds]), watched, train.rows(order[two_thirds:]), test


def compare(seed: int, num_epochs: int) -> dict[str, tuple[float, Judged, Judged]]:
    """T, before, and after, for both networks."""
    train, watched, held_out, test = load(seed)
    torch.manual_seed(seed)
    net = networks.mlp(64, (200, 200), 10)
    model = BayesianNetwork(net, prior=priors.Normal(scale=10.0), likelihood=likelihoods.Categorical())
    fits = {
        "validation-best": map_estimate.fit(model, train, num_epochs=num_epochs, validation=watched, seed=seed),
        "overtrained": map_estimate.fit(model, train, num_epochs=num_epochs, seed=seed),
    }
    results = {}
    for name, fit in fits.items():
        scaled = temperature.fit(fit, held_out)
        before, after = (Judged.of(one.predict(test.x), test.y, seed) for one in (fit, scaled))
        results[name] = (scaled.temperature, before, after)
    return results


def main(num_seeds: int, num_epochs: int) -> None:
    """Print each seed, then how many are calibrated."""
    calibrated = []
    for seed in range(num_seeds):
        for name, (t, before, after) in compare(seed, num_epochs).items():
            print(f"seed {seed}, {name}: T = {t:.2f}\n  before  {before}\n  after   {after}")
            calibrated.append((before.is_calibrated, after.is_calibrated))
    counts = [sum(column) for column in zip(*calibrated, strict=True)]
    print(f"ECE within the floor: {counts[0]} of {len(calibrated)} before, {counts[1]} after")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--num-epochs", type=int, default=200)
    arguments = parser.parse_args()
    main(arguments.num_seeds, arguments.num_epochs)
