"""MC dropout: train with dropout, keep the masks random when predicting, and read their spread as uncertainty.

A draw is one mask for every input and layer. What is random when `net.train()` runs the network is random here:
dropout layers, dropout inside of attention and recurrent layers, `functional.dropout`, stochastic depth, noise.
Statistics, such as BatchNorm's, are held, and the network that was passed in stays as it was.

Reference:
    Gal & Ghahramani 2016, Dropout as a Bayesian Approximation, section 4 (eq. 6 and 7).
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Unpack

from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.functions import Functions
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.masked_network import MaskedNetwork, draws_in_training, is_random
from bayesuq.inference.posteriors.memorised import warn_if_memorised
from bayesuq.inference.posteriors.network import NetworkPosterior
from bayesuq.inference.posteriors.network_mode import LEARNING_RATE, MapPosterior, ModeObjective
from bayesuq.inference.posteriors.one_pass import FEWEST_FOR_ONE_PASS, Beginning
from bayesuq.inference.posteriors.prediction import differentiated, draw_indices, predict_in_chunks
from bayesuq.inference.posteriors.prior import prior_of
from bayesuq.inference.training.history import History
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.options import Training, TrainingOptions, session, training_options
from bayesuq.inference.training.workers import Group
from bayesuq.inputs import named_leaves, row_kind
from bayesuq.loaders import Data
from bayesuq.models import networks
from bayesuq.models.added_dropout import with_dropout
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.randomness import resolve_seed
from bayesuq.to_arviz.groups import Drawn, Wanted
from bayesuq.windows import WindowOptions, Windows

__all__ = ["around", "fit"]
__dir__ = __all__.copy


@training_options(learning_rate=LEARNING_RATE)
def fit(
    model: BayesianNetwork,
    data: Data,
    *,
    data_parallel: bool | Group = False,
    **options: Unpack[TrainingOptions],
) -> "DropoutPosterior":
    """Train the network with its dropout layers on; the prior acts as weight decay.

    Args:
        model: The joint density; its network drops units in training mode, by layers or by other means of torch's.
        data: Rows to fit, or a DataLoader of them.
        data_parallel: Whether the processes that `torchrun` has started, or those of a `torch.distributed` group, fit
            one posterior together: each reads its part of `data`, or rows of its own, in minibatches of `batch_size`.
        learning_rate: Adam's step size at the start; scales of the likelihood move ten times as fast.
        validation: Rows whose predictive log density is watched, with the dropout layers off: the weights of the best
            epoch are kept.

    Returns:
        A posterior without end of draws, one mask each.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: A network that draws nothing in training mode, or in a way that cannot be repeated row by row; data
            that the network or the likelihood does not take; options out
            of range.
        FloatingPointError: The loss stopped being finite.

    Warns:
        ConvergenceWarning: The loss was still falling, at the same rows under the same masks; or the mode predicts its
            own rows no better than a constant; or what it memorised of them leaves its noise, or labels that are noise,
            far too certain (of more weights than rows, without `validation`).

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> net = networks.mlp(1, (20,), 1, dropout=0.1)
        >>> model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> fit(model, data, num_epochs=3, seed=0).predict(data.x, num_samples=10).num_samples
        10
    """
    training = Training.of(options, data_parallel=data_parallel)
    with session(model, data, training, takes_losses=True) as (model, source, watched):
        _check_draws(model, source.rows.x)
        objective = ModeObjective(model, source.num_data)
        mode = objective.posterior(minimise(objective.objective(), source, watched, training))
        if watched is None and not source.workers.are_together:
            warn_if_memorised(mode, source, keeps_masks=True)
    return DropoutPosterior(model=mode.model, values=mode.values, buffers=mode.buffers, history=mode.history)


def around(mode: MapPosterior, *, put_in: Mapping[str, float] | None = None) -> "DropoutPosterior":
    """MC dropout around a network that is trained already, such as `bayesuq.adopt` gives, without training it.

    Args:
        mode: The network. What draws in it in training mode is random when the result predicts.
        put_in: Dropout in front of modules that had none: the probability by a module's path or a pattern of paths,
            such as `{"fc": 0.1}`. The network was not trained for it, so choose the rate on held-out rows.

    Raises:
        TypeError: No mode; rates that are no mapping.
        ValueError: A pattern that matches no module; a rate outside [0, 1). When it predicts, a network that draws
            nothing in training mode.

    Example:
        >>> from torch import nn
        >>> from bayesuq.inference.adoption import adopt
        >>> from bayesuq.models.likelihoods import Categorical
        >>> net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 3))
        >>> posterior = around(adopt(net, Categorical()), put_in={"2": 0.1})
        >>> posterior.predict(torch.ones(4, 2), num_samples=10, seed=0).num_samples
        10
    """
    if not isinstance(mode, MapPosterior):
        raise TypeError(f"`mode` must be of `bayesuq.adopt` or `map_estimate.fit`; got {type(mode).__name__}.")
    model = mode.model
    if put_in is not None:
        net = with_dropout(model.net, put_in)
        model = BayesianNetwork(net, model.prior, model.likelihood, random=model.random)
    return DropoutPosterior(model=model, values=mode.values, buffers=mode.buffers, history=mode.history)


def _check_draws(model: BayesianNetwork, x: Tensor) -> None:
    """Refuse a network without anything random, and one whose draws cannot be repeated row by row."""
    if not draws_in_training(model, x):
        raise ValueError(
            "MC dropout needs a network with dropout layers, or one that draws in training mode by other means; this "
            f"one draws nothing, or all its layers have p = 0. {_remedy(model)}"
        )
    MaskedNetwork(model, x)


def _check_random(network: "MaskedNetwork") -> None:
    """Refuse to predict with a network that nothing is random in, for its draws would all be one."""
    if not is_random(network.model, network.mode):
        raise ValueError(
            "The network draws nothing in training mode, so that all draws are the same. Name modules to put dropout "
            'in front of: `dropout.around(mode, put_in={"fc": 0.1})`.'
        )


def _remedy(model: BayesianNetwork) -> str:
    """How to build the network with dropout: of one that bayesuq has built, the line itself."""
    recipe = getattr(model.net, "recipe", None)
    if recipe is None or "dropout" not in recipe.arguments:
        return "Put modules such as `torch.nn.Dropout(0.1)` into it, before the layers whose inputs they drop."
    own = inspect.signature(getattr(networks, recipe.builder)).parameters
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in {**recipe.arguments, "dropout": 0.1}.items()
        if own[name].default != value
    }
    written = ", ".join(
        repr(value) if own[name].default is inspect.Parameter.empty else f"{name}={value!r}"
        for name, value in arguments.items()
    )
    return f"Build it so:\n    net = bayesuq.models.networks.{recipe.builder}({written})"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DropoutPosterior(NetworkPosterior):
    """One set of weights whose units are dropped at random.

    Attributes:
        model: The joint density.
        values: The flat vector (P,) of every site.
        buffers: The network's buffers as trained.
        history: How the fit went.
    """

    model: BayesianNetwork
    values: Tensor
    buffers: Mapping[str, Tensor]
    history: History
    draws_are: ClassVar[str] = "masks, one for each row"

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
        differentiable: bool = False,
        **windows: Unpack[WindowOptions],
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D), a mask a draw and input: see `Posterior.predict`."""
        with differentiated(x, differentiable=differentiable):
            return self._predict(x, num_samples, seed, keep_samples=keep_samples, windows=Windows.of(windows))

    def functions(
        self, x: ArrayLike, *, num_samples: int | None = None, seed: int | None = None, differentiable: bool = False
    ) -> Functions:
        """Draws of functions, each of one mask that all rows share: see `Posterior.functions`."""
        with differentiated(x, differentiable=differentiable):
            return Functions.of(self._predict(x, num_samples, seed, keep_samples=True, shares_masks=True))

    def _predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        num_samples: int | None,
        seed: int | None,
        *,
        keep_samples: bool,
        shares_masks: bool = False,
        windows: Windows | None = None,
    ) -> PredictiveDistribution:
        indices = draw_indices(num_samples, None)
        key = resolve_seed(seed)
        theta = Layout.of(self.model).split(self.values)
        likelihood = self.model.likelihood_given(theta)
        masked: dict[tuple[Any, ...], MaskedNetwork] = {}  # by the kind of rows

        def network_of(rows: Tensor) -> MaskedNetwork:
            network = masked.get(row_kind(rows))
            if network is None:
                network = masked[row_kind(rows)] = MaskedNetwork(self.model, rows)
                _check_random(network)
            return network

        def parts(rows: Tensor, start: int, width: int) -> Iterator[PredictiveDistribution]:  # noqa: ARG001
            network = network_of(rows if windows is None else windows.first(rows))
            beginning = None
            for index in indices:
                place = None if shares_masks else start
                if windows is not None:  # the same masks in each

                    def kept(window: Tensor, index: int = index, place: int | None = place) -> PredictiveDistribution:
                        f = network_of(window)(theta, window, self.buffers, key=(key, index), start=place)
                        return likelihood.predictive(f.unsqueeze(0), keep_samples=True)

                    yield windows.whole(rows, kept, keep_samples=keep_samples)
                    continue
                run = partial(network, theta, rows, self.buffers, key=(key, index), start=place)
                if beginning is None and len(indices) >= FEWEST_FOR_ONE_PASS:
                    tensors = [*theta.values(), *network.tree.parameters(), *network.tree.buffers()]
                    tensors += [*self.buffers.values(), *named_leaves(rows).values()]
                    beginning, f = Beginning.of(run, tensors, network.num_drawn)
                else:
                    with beginning if beginning is not None and beginning.is_of_use else nullcontext():
                        f = run()
                yield likelihood.predictive(f.unsqueeze(0), keep_samples=keep_samples)

        tree = share_tensors(self.model.net)
        return predict_in_chunks(
            self.model, self.by_name(x), tree, parts, num_draws=len(indices), keep_samples=keep_samples, windows=windows
        )

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: functions of x only, for a draw is a mask."""
        return Drawn(
            method=type(self).__name__,
            weights={},
            predict=partial(self.predict, num_samples=wanted.num_samples, seed=wanted.seed, keep_samples=True),
            **prior_of(self.model, Layout.of(self.model).split(self.values.unsqueeze(0)), self.buffers),
        )
