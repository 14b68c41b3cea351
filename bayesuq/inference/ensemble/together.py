"""Several modes fitted at once: members stacked along a leading dimension, one vectorised pass for all of them.

Small networks spend their time in calls, not in arithmetic; M of them in one call cost little more than one. Each
member sees the minibatches that it would see alone, in the same order, so the numbers are those of `map_estimate.fit`
one after another, to rounding. The loss is the sum over members, never their mean: each member's gradient is its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayesuq.data import Batch, Dataset
from bayesuq.inference.ensemble.stacked_dropout import StackedMasks
from bayesuq.inference.joint.energy import JointFunction
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.masks import MaskedLayer, with_masks
from bayesuq.inference.joint.network import point_vectors
from bayesuq.inference.posteriors.memorised import warn_if_memorised
from bayesuq.inference.posteriors.network_mode import SCALE_RATE, MapPosterior, adversarial_step, check_moves
from bayesuq.inference.training.history import History
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.training.options import NOISE, Training, session
from bayesuq.inference.training.stacking import StackedSource, Streams, check_stackable
from bayesuq.inputs import as_rows
from bayesuq.loaders import Data
from bayesuq.models.attention import has_attention
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.layers import is_changed
from bayesuq.models.network_inputs import cast_inputs
from bayesuq.models.training_mode import training_mode

LARGEST_WORK = 2**19  # weights times rows of a minibatch, up to which one pass was measured to be faster on a CPU


def is_faster(model: BayesianNetwork, batch_size: int) -> bool:
    """Whether members of this size train faster together than one after another.

    On a CPU as benchmarks/ensembles.py has it; an accelerator, which waits for calls all the more, always.
    """
    return model.device.type != "cpu" or Layout.of(model).size * batch_size <= LARGEST_WORK


def is_possible(model: BayesianNetwork, data: Data, training: Training) -> bool:
    """Whether nothing that members do alone would be lost.

    Networks with buffers, or that draw in training mode, data that are loaded batch by batch, and what is watched or
    clipped member by member (validation, patience, callbacks, gradient norms) are left to one fit after another.
    """
    watched = training.validation is not None or training.callbacks or training.max_grad_norm is not None
    buffers = dict(model.net.named_buffers())
    if watched or buffers or not isinstance(data, Dataset) or not _follows(model, data):
        return False
    return not training_mode(model, cast_inputs(model, as_rows(data.x)[:3])).calls


def _follows(model: BayesianNetwork, data: Dataset) -> bool:
    """Whether vmap can follow the network and its derivative: not where it branches on values.

    Nor where it has torch's attention, or cannot take the data at all.
    """
    if has_attention(model.net):
        return False  # vmap has no rules for its fused kernels
    if not isinstance(data.x, Tensor):  # several parts do not stack
        return False
    twice = {name: torch.stack([value, value]).requires_grad_() for name, value in model.initial().items()}
    try:
        x = cast_inputs(model, data.x[:1])
        with torch.enable_grad():
            f = torch.func.vmap(lambda theta: model.forward(theta, x, net=share_tensors(model.net)))(twice)
            torch.autograd.grad(f.sum(), list(twice.values()), allow_unused=True)
    except (RuntimeError, IndexError, ValueError):  # the last of values that overflow, which fits refuse in full
        return False
    return True


def fit_modes(
    models: Sequence[BayesianNetwork],
    data: Sequence[Data],
    trainings: Sequence[Training],
    *,
    adversarial: bool = False,
) -> list[MapPosterior]:
    """A mode for each model, on data sets of one size: bootstrap rows, splits of one set, or the same data for all.

    Args:
        models: M of them, alike but for the weights that they start from.
        data: M data sets.
        trainings: M of them, alike but for their seeds; the first one's checkpoint holds all members.
        adversarial: See `map_estimate.fit`; the ranges are those of each member's own data.

    Raises:
        ValueError: Data sets of several sizes; networks with buffers, or with dropout layers other than
            `torch.nn.Dropout`.
        FloatingPointError: A member's loss stopped being finite.
    """
    check_stackable(models[0], data)
    first = trainings[0]
    with session(models[0], data[0], first, takes_losses=True) as (model, source, _):
        _check_draws(model, source.rows.x)
        models = [model, *(other.to(model.device) for other in models[1:])]
        sources = [source, *(Source(NetworkReader(model), rows, first.batch_size) for rows in data[1:])]
        steps = torch.stack([adversarial_step(one) for one in sources]) if adversarial else None
        num_steps = first.epochs(source.num_batches) * source.num_batches
        streams = Streams([training.key(NOISE) for training in trainings], model.device)
        modes = StackedModes(models, source.num_data, streams, num_steps=num_steps, adversarial_steps=steps)
        minimise(modes.objective(), StackedSource(sources, trainings), None, first)  # type: ignore[arg-type]
        members = modes.posteriors(source.num_batches)
        if not adversarial:
            warn_if_memorised(members[0], source)
        return members


def _check_draws(model: BayesianNetwork, x: Tensor) -> None:
    drawing = [model.net.get_submodule(path) for path in training_mode(model, x).drawing]
    others = [type(one).__name__ for one in drawing if type(one) is not nn.Dropout or is_changed(one)]
    if others:
        raise ValueError(
            f"Of what draws in training mode, only torch.nn.Dropout can be stacked; got {', '.join(others)}."
        )


class StackedModes:
    """Minus the log joints of M members as a function of their weights and unknowns, (M, P) and (M, U).

    With adversarial steps, (M, ...) as a row of x for each member, half of a likelihood is that of moved inputs, as in
    `ModeObjective`.
    """

    def __init__(
        self,
        models: Sequence[BayesianNetwork],
        num_data: int,
        streams: Streams,
        *,
        num_steps: int,
        adversarial_steps: Tensor | None = None,
    ) -> None:
        self.model, self.num_data, self.num_members = models[0], num_data, len(models)
        self.adversarial_steps = None if adversarial_steps is None else adversarial_steps.unsqueeze(1)
        names = [*self.model.laws, *self.model.points]
        starts = [point_vectors(model, names) for model in models]
        self.layouts = {kind: vector.layout for kind, vector in starts[0].items()}
        self.leaves = {kind: torch.stack([start[kind].values for start in starts]) for kind in self.layouts}
        for leaf in self.leaves.values():
            leaf.requires_grad_()
        self.streams = streams
        self.tree = with_masks(share_tensors(self.model.net).train(), StackedMasks(streams.members))
        self.joint = JointFunction(self.model, self.layouts, self.tree)
        self.drops = any(isinstance(module, MaskedLayer) for module in self.tree.modules())
        self.losses = next(iter(self.leaves.values())).new_zeros(num_steps, self.num_members, requires_grad=False)
        self.step = torch.zeros((), dtype=torch.int64)

    def objective(self) -> Objective:
        """What the loop needs."""
        kind = "modes" if self.adversarial_steps is None else "adversarial modes"
        return Objective(
            leaves=self.leaves,
            rates={"unknowns": SCALE_RATE},
            buffers={"losses": self.losses, "step": self.step, "streams": self.streams.states},
            loss_and_grads=self.loss_and_grads,
            log_predictive=self._not_watched,
            culprits=self.culprits,
            identity=f"{self.num_members} {kind} of {self.model}",
            num_fits=self.num_members,
            model=self.model,
            from_network=("weights",),
            per_step=("losses",),
        )

    def loss_and_grads(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        """The sum of the members' losses, in nats."""
        for leaf in self.leaves.values():
            leaf.grad = None
        if self.drops:
            self.streams.begin()
        log_prior = torch.func.vmap(self.joint.log_prior)(self.leaves)
        losses = -log_prior - self.num_data / batch.x.shape[1] * self._log_likelihoods(batch)
        losses.sum().backward()
        if self.drops:
            self.streams.keep()
        self.losses[int(self.step)] = losses.detach()
        self.step += 1
        return losses.detach().sum()

    def culprits(self, _batch: Batch, _noise: torch.Generator) -> list[str]:
        """The members whose loss is not finite."""
        return [
            f"member {number}" for number in (~self.losses[int(self.step) - 1].isfinite()).nonzero().flatten().tolist()
        ]

    def posteriors(self, num_batches: int) -> list[MapPosterior]:
        """The fitted members."""
        losses = self.losses[: int(self.step)].double().unflatten(0, (-1, num_batches)).mean(dim=1) / self.num_data
        layout = Layout.of(self.model)
        members = []
        for number in range(self.num_members):
            parts = [self.layouts[kind].split(leaf.detach()[number]) for kind, leaf in self.leaves.items()]
            values = layout.join({name: value for part in parts for name, value in part.items()})
            history = History(tuple(losses[:, number].tolist()), (), len(losses) - 1)
            members.append(MapPosterior(model=self.model, values=values, buffers={}, history=history))
        return members

    def _log_likelihoods(self, batch: Batch) -> Tensor:
        """Each member's, of its own minibatch, as `map_estimate` has it; (M,), in nats."""
        rest = (batch.y,) if batch.weight is None else (batch.y, batch.weight)
        of_members = torch.func.vmap(self.joint.log_likelihood)
        if self.adversarial_steps is None:
            return of_members(self.leaves, batch.x, *rest)
        x = batch.x.detach().requires_grad_()
        clean = of_members(self.leaves, x, *rest)
        # A member's x moves its own term alone.
        (direction,) = torch.autograd.grad(clean.sum(), [x], retain_graph=True, allow_unused=True)
        check_moves(direction)
        moved = batch.x - self.adversarial_steps * direction.sign()
        return 0.5 * (clean + of_members(self.leaves, moved, *rest))

    def _not_watched(self, _batch: Batch, _noise: torch.Generator) -> Tensor:
        raise RuntimeError("members with validation rows are fitted one after another")
