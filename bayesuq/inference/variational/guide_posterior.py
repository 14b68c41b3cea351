"""Posteriors whose draws come from a Pyro guide: an autoguide, or one written by hand."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from bayesuq.arrays import check_count
from bayesuq.data import Batch
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.network import TrainingNetwork
from bayesuq.inference.joint.programs import GuideBuilder
from bayesuq.inference.posteriors.importance import log_joints
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.training.convergence import ScaleSlope, warn_unless_learned
from bayesuq.inference.training.history import History
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.options import GLOBAL, QUALITY, Training, session
from bayesuq.inference.variational.guided_program import GuidedProgram, ProgramObjective
from bayesuq.inputs import require_tensor
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import derive_seed, resolve_seed

NUM_DRAWS = 32  # that a guide's scales are judged by


def fit_guide(
    model: BayesianNetwork, data: Data, training: Training, build: GuideBuilder, *, num_draws: int, scale_rate: float
) -> "GuidePosterior":
    """Fit a guide of any kind by Pyro's ordinary route; the options are those of `variational.fit`."""
    with session(model, data, training) as (model, source, validation):
        require_tensor(source.rows.x, "A Pyro guide")
        example = Batch(source.rows.x[:1].clone(), source.rows.y[:1].clone(), None)
        pair = GuidedProgram(model, build, example, seed=training.key(GLOBAL))
        network = TrainingNetwork(model, {}, dropout=False)
        network.prepare(source.rows.x)
        objective = ProgramObjective(
            pair,
            source.num_data,
            num_draws=num_draws,
            scale_rate=scale_rate,
            training=_on(model, network.training),
            evaluation=_on(model, network.evaluation),
            buffers=network.buffers,
            statistics=network.statistics,
        )
        key = training.key(QUALITY)
        start = _spread(pair, key)
        history = minimise(objective.objective(), source, validation, training)
        buffers = {name: buffer.clone() for name, buffer in network.buffers.items()}
        posterior = GuidePosterior(
            model=model,
            build=build,
            values=pair.values(),
            example={"x": example.x, "y": example.y},
            buffers=buffers,
            history=history,
        )
        end = _spread(pair, key)
        if (start > 0).all() and (end > 0).all():  # and the guide is no point
            movement = float((end / start).log().abs().median())
            warn_unless_learned(_scale_slope(posterior, source, key), movement, len(history.loss))
        return posterior


def _spread(pair: GuidedProgram, key: int) -> Tensor:
    """Standard deviations of the latents by some draws, (R,)."""
    draws = [pair.draw(derive_seed(key, index)) for index in range(NUM_DRAWS)]
    return torch.stack([torch.cat([value.reshape(-1) for value in draw.values()]) for draw in draws]).std(dim=0)


def _scale_slope(posterior: "GuidePosterior", source: Source, key: int) -> ScaleSlope:
    """The slope along all scales at once of whatever guide, where latents are on the real line.

    With g = -d log p(theta, y | x) / d theta at draws of q, it is E[g (theta - E theta)] - 1, averaged over weights.
    The entropy's own slope is the -1.
    """
    model, names = posterior.model, posterior.model.random_weights
    theta = posterior.sample_weights(NUM_DRAWS, seed=key)
    means = {name: theta[name].mean(dim=0) for name in names}
    correction = NUM_DRAWS / (NUM_DRAWS - 1)  # for means over the same draws
    batches = (batch for epoch in range(NUM_DRAWS) for batch in source.shuffled_epoch(key, epoch))
    slopes = []
    for index, batch in zip(range(NUM_DRAWS), batches, strict=False):
        point = {name: value[index].detach().requires_grad_(name in means) for name, value in theta.items()}
        energy = -model.log_joint(point, batch.x, batch.y, source.num_data, batch.weight)
        gradients = torch.autograd.grad(energy, [point[name] for name in names])
        parts = [
            (gradient * (point[name] - means[name])).detach().reshape(-1).double()
            for name, gradient in zip(names, gradients, strict=True)
        ]
        slopes.append(correction * torch.cat(parts).mean() - 1)
    values = torch.stack(slopes)
    return ScaleSlope(float(values.mean()), float(values.std()) / NUM_DRAWS**0.5)


def _on(model: BayesianNetwork, net: nn.Module) -> BayesianNetwork:
    """The same program, run on another tree of its network's modules."""
    program = copy.copy(model)
    program.net = net
    return program


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class GuidePosterior(WeightPosterior):
    """q = the guide at the fitted values of its parameters.

    Attributes:
        model: The joint density.
        build: From the model to the guide, as it was passed.
        values: The guide's parameters, and the point values of the model, by name, unconstrained.
        example: A row of the data, `x` and `y`, which guides get to see though they must not use it.
        buffers: The network's buffers as trained.
        history: How the fit went.
    """

    model: BayesianNetwork
    build: GuideBuilder
    values: Mapping[str, Tensor]
    example: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    history: History
    num_members: ClassVar[None] = None  # draws are without end

    def __post_init__(self) -> None:
        self.pair.put(self.values)  # now, so that a guide that is not the fitted one is refused at once

    @cached_property
    def pair(self) -> GuidedProgram:
        """The model and a guide of this posterior's own."""
        return GuidedProgram(self.model, self.build, Batch(**self.example, weight=None), seed=0)

    def draw(self, index: int, seed: int) -> Tensor:
        """The guide's sites at one draw, and the point values."""
        return self._layout.join(self.pair.draw(derive_seed(seed, index)) | self._points)

    def log_importance_ratios(self, data: Data, *, num_samples: int = 500, seed: int | None = None) -> Tensor:
        """log p(theta, y | x) - log q(theta) at S draws of q: see `VariationalPosterior.log_importance_ratios`."""
        key = resolve_seed(seed)
        seeds = [derive_seed(key, index) for index in range(check_count(num_samples, "num_samples"))]
        draws, densities = zip(*map(self.pair.draw_with_density, seeds), strict=True)
        flat = torch.stack([self._layout.join(draw | self._points) for draw in draws])
        return log_joints(self.model, flat, data, self.buffers) - torch.stack(densities)

    @cached_property
    def _layout(self) -> Layout:
        return Layout.of(self.model)

    @cached_property
    def _points(self) -> dict[str, Tensor]:
        return {name: self.pair.parameter(name) for name in self.model.points}
