"""Maximum a posteriori: the one network that maximises the joint density; the softmax baseline.

    theta* = argmax log p(theta) + sum_n log p(y_n | f(x_n; theta))

by Adam on minibatches. The density is that of the sites on their own support (no Jacobian for a noise scale). Dropout
layers act while it trains, as a regulariser, and are the identity afterwards.
"""

from typing import Unpack, cast

from bayesuq.inference.posteriors.heads import on_features
from bayesuq.inference.posteriors.network_mode import LEARNING_RATE, fit_mode
from bayesuq.inference.posteriors.network_mode import MapPosterior as MapPosterior
from bayesuq.inference.posteriors.program_mode import ProgramMode, fit_program_mode
from bayesuq.inference.training.options import Training, TrainingOptions, training_options
from bayesuq.inference.training.workers import Group, check_alone
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.program import Observed, Program, check_unnamed, is_program

__all__ = ["fit"]
__dir__ = __all__.copy


@training_options(learning_rate=LEARNING_RATE)
@on_features(drops=True)
def fit(
    model: BayesianNetwork | Program,
    data: Data,
    *,
    observed: Observed = None,
    adversarial: bool = False,
    data_parallel: bool | Group = False,
    **options: Unpack[TrainingOptions],
) -> MapPosterior | ProgramMode:
    """Find the mode of the posterior, from the network's own weights.

    Args:
        model: The joint density: a network, or a Pyro program, whose mode is sought from numbers between -2 and 2 on
            the real line, by Adam and then, where all rows are in memory, by L-BFGS.
        data: Rows to fit, or a DataLoader of them.
        observed: Of a program, the names of its observed sites: see `hmc.fit`.
        adversarial: Whether half of the likelihood is that of inputs moved by 1 % of their range, each in the direction
            that makes its target least likely (Goodfellow et al. 2015; Lakshminarayanan et al. 2017, section 2.3).
        data_parallel: Whether the processes that `torchrun` has started, or those of a `torch.distributed` group, fit
            one posterior together: each reads its part of `data`, or rows of its own, in minibatches of `batch_size`.
        learning_rate: Adam's step size at the start; scales of the likelihood move ten times as fast.

    Returns:
        A posterior of one member: a `MapPosterior`, or the `ProgramMode` of a program.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the network or the likelihood does not take; options out of range.
        FloatingPointError: The loss stopped being finite.

    Warns:
        ConvergenceWarning: The loss was still falling; the mode predicts its own rows no better than a constant; the
            noise that it learned is what it could not memorise, or it memorised labels that are noise (of more
            weights than rows, which have up to 1,000 outputs in all).

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> fit(model, data, num_epochs=3, seed=0).predict(data.x).mean.shape
        torch.Size([3, 1])
    """
    if is_program(model):
        if adversarial:
            raise ValueError("`adversarial` moves the inputs of a network; leave it out for a program.")
        check_alone(data_parallel, "the mode of a program")
        return fit_program_mode(model, data, Training.of(options), observed)
    check_unnamed(observed)
    training = Training.of(options, data_parallel=data_parallel)
    return fit_mode(cast(BayesianNetwork, model), data, training, adversarial=adversarial)
