"""What `variational.fit` takes for options that are None: the rate, and how a fit of a network starts.

A noise that is to be learned begins at the size of the targets. Seen through so much of it the data do not pay for a
unit's divergence, the unit returns to the prior before the noise has fallen, and what it would have explained stays
noise: the fit ends in a poor optimum. Two things keep units alive until then: the divergence counts for nothing at
first (`annealed`), and gradients are less noisy where each row has a draw of its own (`estimator="local"`). Labels have
no such noise, and gain from neither. docs/methods/variational.md has the experiment.
"""

from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.inference.joint.layout import FlatPrior, Layout
from bayesuq.inference.joint.perceptrons import is_perceptron
from bayesuq.inference.training.minibatches import Source, count_batches
from bayesuq.inference.training.options import Training, default_epochs
from bayesuq.inference.training.workers import Group, Workers
from bayesuq.inference.variational.activation_noise import Estimator
from bayesuq.inference.variational.tempering import Weight, annealed
from bayesuq.loaders import Data
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork, share_tensors

LARGEST_RATE, STEPS_AT_LARGEST = 0.05, 500


def default_learning_rate(
    data: Data, num_epochs: int | None, batch_size: int, data_parallel: bool | Group = False
) -> float:
    """The learning rate that `fit` takes for None; of several processes, by the rows that the first one was given."""
    num_batches = count_batches(data, check_count(batch_size, "batch_size"))
    num_batches = Workers.of(data_parallel).numbers(num_batches)[0]
    epochs = default_epochs(num_batches) if num_epochs is None else check_count(num_epochs, "num_epochs")
    steps = epochs * num_batches
    return LARGEST_RATE * min(1.0, (STEPS_AT_LARGEST / max(steps, 1)) ** 0.5)


def default_weight(model: BayesianNetwork, training: Training) -> Weight:
    """The weight of the divergence that `fit` takes for None.

    1 throughout where there is no noise to be learned; where the fit may be made longer, of which no share of the steps
    is known; and where the prior has a mean, so that it knows a function that is not to be forgotten first.
    """
    knows = FlatPrior.of(model, Layout.of(model, model.laws)).loc
    is_centred = not bool((knows != 0).any()) if isinstance(knows, Tensor) else knows == 0
    return annealed() if learns_noise(model) and is_centred and training.schedule == "cosine" else 1.0


def default_estimator(model: BayesianNetwork, source: Source) -> Estimator:
    """Where the noise of a step of a mean-field fit enters: "local" where it is exact, and there is noise to learn."""
    x = source.rows.x
    if not learns_noise(model) or not isinstance(x, Tensor) or not is_perceptron(share_tensors(model.net), x):
        return "weights"
    others = FlatPrior.of(model, Layout.of(model, model.laws)).others
    return "local" if all(name.startswith(LIKELIHOOD) for name in others) else "weights"


def learns_noise(model: BayesianNetwork) -> bool:
    """Whether targets are real numbers whose noise is found with the weights."""
    likelihood = model.likelihood
    return likelihood.has_units and (bool(likelihood.unknowns) or likelihood.noise_is_output)
