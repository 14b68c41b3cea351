"""Several mean-field posteriors fitted at once: as `bayesuq.inference.ensemble.together` does it for modes.

Each one sees the minibatches and the noise that it would see alone, so the numbers are those of `variational.fit` with
`kl_weight=1` and `estimator="weights"` one after another, to rounding. The losses are summed, never averaged: each
posterior's gradient is its own.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayesuq.data import Batch, Dataset
from bayesuq.inference.joint.energy import JointFunction
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.network import point_vectors
from bayesuq.inference.training.history import History
from bayesuq.inference.training.loop import Objective, minimise
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.inference.training.options import NOISE, Training, session
from bayesuq.inference.training.stacking import StackedSource, Streams, check_stackable
from bayesuq.inference.variational.elbo import Divergence
from bayesuq.inference.variational.factorised import FORGETTING, VariationalPosterior
from bayesuq.inference.variational.guides import MeanFieldGuide, mean_field
from bayesuq.models.bnn import BayesianNetwork, share_tensors


def fit_mean_fields(
    models: Sequence[BayesianNetwork],
    data: Sequence[Dataset],
    trainings: Sequence[Training],
    *,
    guide: Callable[[BayesianNetwork], MeanFieldGuide] = mean_field,
) -> list[VariationalPosterior]:
    """A mean-field posterior for each model, on data sets of one size, by one draw of the weights a step.

    Nothing is said of scales that were not learned; each posterior tells its `scale_movement`.

    Args:
        models: M of them, alike but for the weights that they start from.
        data: M data sets.
        trainings: M of them, alike but for their seeds; the first one's checkpoint holds all.
        guide: See `variational.fit`.

    Raises:
        ValueError: Data sets of several sizes; networks with buffers; priors other than normal ones.
        FloatingPointError: The sum of the losses stopped being finite.
    """
    check_stackable(models[0], data)
    first = trainings[0]
    with session(models[0], data[0], first) as (model, source, _):
        models = [model, *(other.to(model.device) for other in models[1:])]
        sources = [source, *(Source(NetworkReader(model), rows, first.batch_size) for rows in data[1:])]
        num_steps = first.epochs(source.num_batches) * source.num_batches
        evidence = StackedEvidence(models, [guide(one) for one in models], source.num_data, trainings, num_steps)
        minimise(evidence.objective(), StackedSource(sources, trainings), None, first)  # type: ignore[arg-type]
        return evidence.posteriors(source.num_batches)


class StackedEvidence:
    """Minus the ELBOs of M posteriors as a function of their means and log scales, (M, R), and point values, (M, K).

    The gradient is that of `bayesuq.inference.variational.elbo`, as in `mean_field.EvidenceObjective`.
    """

    def __init__(
        self,
        models: Sequence[BayesianNetwork],
        guides: Sequence[MeanFieldGuide],
        num_data: int,
        trainings: Sequence[Training],
        num_steps: int,
    ) -> None:
        self.model, self.num_data = models[0], num_data
        self.layout, self.divergence = guides[0].layout, Divergence.of(models[0], guides[0])
        if self.divergence.prior.others:
            raise ValueError(
                f"Posteriors train together under normal priors; {next(iter(self.divergence.prior.others))} "
                "has another one."
            )
        self.loc = torch.stack([guide.loc.detach() for guide in guides])
        self.log_scale = torch.stack([guide.log_scale.detach() for guide in guides])
        self.start = self.log_scale.clone()
        points = [point_vectors(model, list(model.points)) for model in models]
        self.layouts = {kind: vector.layout for kind, vector in points[0].items()}
        self.points = {kind: torch.stack([one[kind].values for one in points]) for kind in self.layouts}
        self.weights = self.loc.clone().requires_grad_()
        for leaf in self.points.values():
            leaf.requires_grad_()
        self.noise = torch.empty_like(self.loc)
        self.streams = Streams([training.key(NOISE) for training in trainings], self.loc.device)
        layouts = {"random": self.layout, **self.layouts}
        self.joint = JointFunction(self.model, layouts, share_tensors(self.model.net))
        self.losses = self.loc.new_zeros(num_steps, len(models))
        self.step = torch.zeros((), dtype=torch.int64)

    def objective(self) -> Objective:
        """What the loop needs."""
        return Objective(
            leaves={"loc": self.loc, "log_scale": self.log_scale, **self.points},
            rates={},
            buffers={"losses": self.losses, "step": self.step, "streams": self.streams.states},
            loss_and_grads=self.loss_and_grads,
            log_predictive=self._not_watched,
            culprits=self.culprits,
            identity=f"{len(self.loc)} mean fields of {self.model}",
            num_fits=len(self.loc),
            model=self.model,
            per_step=("losses",),
            from_network=("loc", "weights"),
            forgetting=FORGETTING,
        )

    def loss_and_grads(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        """The sum of minus the ELBOs, each estimated from a minibatch and one draw, in nats."""
        scale = self.log_scale.exp()
        self._draw(scale)
        for leaf in (self.weights, *self.points.values()):
            leaf.grad = None
        rest = (batch.y,) if batch.weight is None else (batch.y, batch.weight)
        fit = torch.func.vmap(self.joint.log_likelihood)({"random": self.weights, **self.points}, batch.x, *rest)
        losses = fit * (-self.num_data / batch.x.shape[1])
        losses.sum().backward()
        gradient = self.weights.grad
        if gradient is None:
            raise RuntimeError("the likelihood does not depend on the weights")
        self.loc.grad, self.log_scale.grad = gradient.clone(), gradient.mul_(self.noise).mul_(scale)
        self.divergence.add_gradient(self.loc, scale, self.loc.grad, self.log_scale.grad)
        losses = losses.detach() + torch.func.vmap(self.divergence.value)(self.loc, self.log_scale, scale)
        self.losses[int(self.step)] = losses
        self.step += 1
        return losses.sum()

    def culprits(self, _batch: Batch, _noise: torch.Generator) -> list[str]:
        """The posteriors whose loss is not finite."""
        wrong = ~self.losses[int(self.step) - 1].isfinite()
        return [f"posterior {number}" for number in wrong.nonzero().flatten().tolist()]

    def posteriors(self, num_batches: int) -> list[VariationalPosterior]:
        """As fitted."""
        losses = self.losses.double().unflatten(0, (-1, num_batches)).mean(dim=1) / self.num_data
        layout = Layout.of(self.model, self.model.points)
        movement = (self.log_scale - self.start).abs().median(dim=1).values
        found = []
        for number in range(len(self.loc)):
            parts = [self.layouts[kind].split(leaf.detach()[number]) for kind, leaf in self.points.items()]
            points = {name: value for part in parts for name, value in part.items()}
            found.append(
                VariationalPosterior(
                    model=self.model,
                    loc=self.loc[number].clone(),
                    log_scale=self.log_scale[number].clone(),
                    points=layout.join(points) if layout.size else self.loc.new_empty(0),
                    buffers={},
                    history=History(tuple(losses[:, number].tolist()), (), len(losses) - 1),
                    scale_movement=float(movement[number]),
                    kl_weight=1.0,
                )
            )
        return found

    def _draw(self, scale: Tensor) -> None:
        """Move the weights to loc + scale * eps, with fresh eps from each posterior's own stream."""
        self.streams.begin()
        for noise, stream in zip(self.noise, self.streams.members, strict=True):
            noise.normal_(generator=stream)
        self.streams.keep()
        with torch.no_grad():
            torch.addcmul(self.loc, scale, self.noise, out=self.weights)

    def _not_watched(self, _batch: Batch, _noise: torch.Generator) -> Tensor:
        raise RuntimeError("posteriors with validation rows are fitted one after another")
