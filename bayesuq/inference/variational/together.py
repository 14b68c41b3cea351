"""Several mean-field posteriors fitted at once: as `bayesuq.inference.ensemble.together` does it for modes.

Each one sees the minibatches and the noise that it would see alone, so the numbers are those of `variational.fit` one
after another, to rounding, from the same start. The losses are summed, never averaged: each posterior's gradient is its
own.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from bayesuq.arrays import check_one_of
from bayesuq.data import Batch, Dataset
from bayesuq.inference.joint.energy import JointFunction
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.network import point_vectors
from bayesuq.inference.joint.perceptrons import forward_with_noise, is_perceptron
from bayesuq.inference.training.history import History
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.training.options import NOISE, Training, session
from bayesuq.inference.training.stacking import StackedSource, Streams, check_stackable
from bayesuq.inference.variational.defaults import default_estimator, default_weight
from bayesuq.inference.variational.elbo import Divergence
from bayesuq.inference.variational.factorised import FORGETTING, VariationalPosterior
from bayesuq.inference.variational.guides import MeanFieldGuide, mean_field
from bayesuq.inference.variational.tempering import Tempering, Weight
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork, share_tensors

StackedEstimator = Literal["weights", "local"]


def fit_mean_fields(
    models: Sequence[BayesianNetwork],
    data: Sequence[Dataset],
    trainings: Sequence[Training],
    *,
    guide: Callable[[BayesianNetwork], MeanFieldGuide] = mean_field,
    kl_weight: Weight | None = None,
    estimator: StackedEstimator | None = None,
) -> list[VariationalPosterior]:
    """A mean-field posterior for each model, on data sets of one size, by one draw a step.

    Nothing is said of scales that were not learned; each posterior tells its `scale_movement`.

    Args:
        models: M of them, alike but for the weights that they start from.
        data: M data sets.
        trainings: M of them, alike but for their seeds; the first one's checkpoint holds all.
        guide: See `variational.fit`.
        kl_weight: See `variational.fit`.
        estimator: See `variational.fit`: "weights", or "local" for perceptrons.

    Raises:
        ValueError: Data sets of several sizes; networks with buffers; priors other than normal ones; an estimator that
            the networks do not allow.
        FloatingPointError: The sum of the losses stopped being finite.
    """
    check_stackable(models[0], data)
    first = trainings[0]
    with session(models[0], data[0], first) as (model, source, _):
        models = [model, *(other.to(model.device) for other in models[1:])]
        sources = [source, *(Source(NetworkReader(model), rows, first.batch_size) for rows in data[1:])]
        if kl_weight is None:
            kl_weight = default_weight(model, first)
        tempering = Tempering(kl_weight, first.epochs(source.num_batches) * source.num_batches)
        chosen = estimator or ("local" if default_estimator(model, source) == "local" else "weights")
        evidence = StackedEvidence(models, [guide(one) for one in models], source, trainings, tempering, chosen)
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
        source: Source,
        trainings: Sequence[Training],
        tempering: Tempering,
        estimator: StackedEstimator,
    ) -> None:
        self.model, self.num_data = models[0], source.num_data
        self.tempering, self.estimator = tempering, estimator
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
        self.variances = torch.empty_like(self.loc).requires_grad_()
        self.streams = Streams([training.key(NOISE) for training in trainings], self.loc.device)
        layouts = {"random": self.layout, **self.layouts}
        self.joint = JointFunction(self.model, layouts, share_tensors(self.model.net))
        self.losses = self.loc.new_zeros(tempering.num_steps, len(models))
        _check_estimator(estimator, self.model, source)

    def objective(self) -> Objective:
        """What the loop needs."""
        return Objective(
            leaves={"loc": self.loc, "log_scale": self.log_scale, **self.points},
            buffers={"losses": self.losses, "step": self.tempering.step, "streams": self.streams.states},
            loss_and_grads=self.loss_and_grads,
            log_predictive=self._not_watched,
            culprits=self.culprits,
            identity=f"{len(self.loc)} mean fields of {self.model}, KL weight {self.tempering.final}, "
            f"estimator {self.estimator}",
            options={"estimator": self.estimator, "kl_weight": self.tempering.course},
            fixed_length=self.tempering.fixed_length,
            varies=self.tempering.varies,
            num_fits=len(self.loc),
            model=self.model,
            per_step=("losses",),
            from_network=("loc", "weights"),
            forgetting=FORGETTING,
        )

    def loss_and_grads(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        """The sum of minus the ELBOs, each estimated from a minibatch and one draw, in nats."""
        scale, weight = self.log_scale.exp(), self.tempering.advance()
        for leaf in (self.weights, self.variances, *self.points.values()):
            leaf.grad = None
        estimate = self._at_a_draw if self.estimator == "weights" else self._locally
        losses = estimate(batch, scale) * (-self.num_data / batch.x.shape[1])
        losses.sum().backward()
        self.loc.grad, self.log_scale.grad = self._gradients(scale)
        self.divergence.add_gradient(self.loc, scale, self.loc.grad, self.log_scale.grad, weight)
        divergences = torch.func.vmap(self.divergence.value)(self.loc, self.log_scale, scale)
        losses = losses.detach() + weight * divergences
        self.losses[int(self.tempering.step) - 1] = losses
        return losses.sum()

    def culprits(self, _batch: Batch, _noise: torch.Generator) -> list[str]:
        """The posteriors whose loss is not finite."""
        wrong = ~self.losses[int(self.tempering.step) - 1].isfinite()
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
                    kl_weight=self.tempering.reached(),
                )
            )
        return found

    def _at_a_draw(self, batch: Batch, scale: Tensor) -> Tensor:
        """Log-likelihoods (M,) of a minibatch at loc + scale * eps, with fresh eps from each posterior's own stream."""
        self.streams.begin()
        _fill(self.noise, self.streams)
        self.streams.keep()
        with torch.no_grad():
            torch.addcmul(self.loc, scale, self.noise, out=self.weights)
        rest = (batch.y,) if batch.weight is None else (batch.y, batch.weight)
        return torch.func.vmap(self.joint.log_likelihood)({"random": self.weights, **self.points}, batch.x, *rest)

    def _locally(self, batch: Batch, scale: Tensor) -> Tensor:
        """Log-likelihoods (M,) of a minibatch at outputs of linear layers that are drawn for each row."""
        with torch.no_grad():
            self.weights.copy_(self.loc)
            torch.mul(scale, scale, out=self.variances)
        theta = self.joint.theta({"random": self.weights, **self.points})
        self.streams.begin()
        f = forward_with_noise(
            self.model.net, theta, self.layout.split(self.variances), batch.x, lambda noise: _fill(noise, self.streams)
        )
        self.streams.keep()
        unknowns = {name: value for name, value in theta.items() if name.startswith(LIKELIHOOD)}

        def log_likelihood(own: dict[str, Tensor], *rows: Tensor) -> Tensor:
            return self.model.likelihood_given(own).total_log_prob(*rows)

        rest = (batch.y,) if batch.weight is None else (batch.y, batch.weight)
        return torch.func.vmap(log_likelihood)(unknowns, f, *rest)

    def _gradients(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the likelihood along the means and along the log scales, (M, R) each."""
        gradient, of_variances = self.weights.grad, self.variances.grad
        if gradient is None:
            raise RuntimeError("the likelihood does not depend on the weights")
        if of_variances is None:
            return gradient.clone(), gradient.mul_(self.noise).mul_(scale)
        return gradient.clone(), of_variances.mul_(scale).mul_(scale).mul_(2.0)

    def _not_watched(self, _batch: Batch, _noise: torch.Generator) -> Tensor:
        raise RuntimeError("posteriors with validation rows are fitted one after another")


def _fill(noise: Tensor, streams: Streams) -> Tensor:
    """Standard normal numbers for each posterior, (M, ...), from its own stream, in place."""
    for own, stream in zip(noise, streams.members, strict=True):
        own.normal_(generator=stream)
    return noise


def _check_estimator(estimator: str, model: BayesianNetwork, source: Source) -> None:
    check_one_of(estimator, "estimator", StackedEstimator)
    x = source.rows.x
    if estimator == "local" and not (isinstance(x, Tensor) and is_perceptron(share_tensors(model.net), x)):
        raise ValueError("estimator='local' is for plain sequences of linear layers. Use estimator='weights'.")
