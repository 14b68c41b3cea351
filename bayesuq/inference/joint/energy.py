"""The flat joint: minus the log joint of flat vectors, and its gradient, which all methods over weights stand on.

    U = -log p(theta) - scale sum_b w_b log p(y_b | f(x_b; theta)) [ - log |d theta / d u| ],   theta = theta(u)

in nats, over minibatches with scale = N / B. It has two readings. `FlatJoint` runs the plain network at vectors that
move in place, as optimisers and single chains do: autograd does the likelihood and what is not normal, and the gradient
of normal priors is written by hand, one kernel over P numbers. `JointFunction` is the same as a pure function, which
can be differentiated and vectorised over many vectors at once.

Both ask of a model what it says of its sites (`laws`, `points`, `initial`, `support`) and for the terms of the
likelihood; what is a network in them is `joint.network` alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import add

import torch
from torch import Tensor, nn

from bayesuq.data import Batch
from bayesuq.inference.joint.layout import FlatPrior, Layout
from bayesuq.inference.joint.network import FlatVector, TrainingNetwork, write_gradients
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork, share_tensors
from bayesuq.models.spectral import with_exact_norms

LogLikelihood = Callable[[Mapping[str, Tensor], Batch, torch.Generator | None], Tensor]


class FlatJoint:
    """Minus the log joint at flat vectors that move in place.

    Attributes:
        model: The joint density.
        vectors: The vectors, by the names of their kinds; their gradients gather in `.grad`.
        network: The network on their leaves.
        priors: Of each vector.
        with_volume: Whether the density is that of the vectors, so that positive sites with a prior add
            log |d theta / d u|, or that of the sites on their own support.
    """

    def __init__(
        self,
        model: BayesianNetwork,
        vectors: Mapping[str, FlatVector],
        *,
        dropout: bool = False,
        with_volume: bool = False,
        log_likelihood: LogLikelihood | None = None,
    ) -> None:
        """Put the network on the vectors' leaves.

        Args:
            model: The joint density.
            vectors: Of all sites that move.
            dropout: Whether what draws in training mode does.
            with_volume: See the attributes.
            log_likelihood: Of a minibatch, a 0-d tensor, by the sites, the minibatch and a generator; None is that of
                the network in training mode.
        """
        self.model, self.vectors, self.with_volume = model, vectors, with_volume
        self.network = TrainingNetwork(model, vectors, dropout=dropout)
        self.priors = {kind: FlatPrior.of(model, vector.layout) for kind, vector in vectors.items()}
        self._log_likelihood = log_likelihood or self._in_training
        self._theta = self.network.theta if len(vectors) > 1 else next(iter(vectors.values())).theta
        self._unknowns: dict[str, Tensor] = {}
        self._beginnings: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}

    @classmethod
    def of_random(
        cls,
        model: BayesianNetwork,
        fixed: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
    ) -> "FlatJoint":
        """The density of one vector of the random sites, "random", all else being held; as samplers move in.

        The network evaluates, with norms that are exact.

        Args:
            model: The joint density.
            fixed: Values on their own support of the sites learned as point values.
            buffers: Values for the network's buffers instead of its own.
            dtype: That terms of the likelihood are summed in; None is their own.
        """
        layout = Layout.of(model, model.laws)
        vector = FlatVector(layout, layout.join(model.initial()))

        def evaluated(theta: Mapping[str, Tensor], batch: Batch, _noise: torch.Generator | None) -> Tensor:
            f = joint.network.evaluate(batch.x)
            return model.likelihood_given(theta).log_prob(f, batch.y, batch.weight).sum(dtype=dtype)

        joint = cls(model, {"random": vector}, with_volume=True, log_likelihood=evaluated)
        joint._hold(fixed, buffers)
        with_exact_norms(joint.network.evaluation)
        return joint

    def value_and_grad(self, batch: Batch, scale: float, noise: torch.Generator | None = None) -> Tensor:
        """U of a minibatch where the vectors stand, a 0-d tensor; its gradient is left in theirs.

        Args:
            batch: Rows, as the network takes them.
            scale: N / B.
            noise: Of what the network draws.
        """
        for vector in self.vectors.values():
            vector.grad.zero_()
        value = self.descend(batch, scale, noise)
        for kind, vector in self.vectors.items():
            self.priors[kind].add_normal_gradient(vector.values, vector.grad)
            value = value + self._normal_energy(kind)
        return value

    def descend(
        self,
        batch: Batch,
        scale: float,
        noise: torch.Generator | None = None,
        *,
        with_prior: bool = True,
        written: Sequence[FlatVector] = (),
    ) -> Tensor:
        """All of U but the normal priors, whose gradient is added to the vectors'.

        Args:
            batch: See `value_and_grad`.
            scale: See `value_and_grad`.
            noise: See `value_and_grad`.
            with_prior: Whether priors that are not normal, and volumes, count: once for rows that come in chunks.
            written: Vectors whose gradient becomes that of this alone, whatever it was.
        """
        theta = self._theta()
        if self._unknowns:
            theta |= self._unknowns
        log_likelihood = self._log_likelihood(theta, batch, noise)
        terms = list(self.irregular(theta)) if with_prior else []
        if not terms:  # the factor is where the gradient begins: an operator less, forwards and backwards
            write_gradients(log_likelihood, written, self._beginning(log_likelihood, -scale))
            return log_likelihood.detach() * -scale
        loss = log_likelihood * -scale
        for term in terms:
            loss = loss - term
        write_gradients(loss, written)
        return loss.detach()

    def by_rows(self, batch: Batch, num_data: int, noise: torch.Generator | None = None) -> Tensor:
        """U / N as each row of a minibatch alone has it in training mode, (B,): their mean estimates it."""
        theta = self._theta()
        shared = reduce(add, (self._normal_energy(kind) for kind in self.vectors)) - sum(self.irregular(theta))
        return shared / num_data - self.network.row_log_prob(theta, batch, noise)

    def irregular(self, theta: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """log p of each site whose prior is not normal, and each log |d theta / d u| where these count."""
        for prior in self.priors.values():
            for name, law in prior.others.items():
                yield law.log_prob(theta[name])
        for vector in self.vectors.values() if self.with_volume else ():
            for name, transform in vector.layout.transforms.items():
                if name in self.model.laws:  # a point value has no density
                    yield transform.log_abs_det_jacobian(vector.leaves[name], theta[name]).sum()

    def _normal_energy(self, kind: str) -> Tensor:
        return self.priors[kind].normal_energy(self.vectors[kind].values) - self.priors[kind].log_normaliser

    def _in_training(self, theta: Mapping[str, Tensor], batch: Batch, noise: torch.Generator | None) -> Tensor:
        return self.network.total_log_prob(theta, batch, noise)

    def _beginning(self, value: Tensor, factor: float) -> Tensor:
        """The factor as a tensor like the value, which is made once for all steps of one size."""
        key = (factor, value.dtype, value.device)
        if key not in self._beginnings:
            self._beginnings[key] = torch.full_like(value, factor, requires_grad=False)
        return self._beginnings[key]

    def _hold(self, fixed: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Put values into what does not move."""
        self._unknowns = {name: value for name, value in fixed.items() if name.startswith(LIKELIHOOD)}
        with torch.no_grad():
            for name, value in buffers.items():
                self.network.buffers[name].copy_(value)
            for name, parameter in self.network.training.named_parameters():
                if name in fixed:
                    parameter.requires_grad_(False).copy_(fixed[name])


@dataclass(frozen=True, eq=False)
class JointFunction:
    """The log joint as a pure function of flat vectors by kind, for one or, under vmap, many of them.

    Attributes:
        model: The joint density.
        layouts: Of the vectors, by the names of their kinds.
        tree: The module tree that runs, in the mode that is wanted.
        fixed: Values of all sites that stand in no vector.
        buffers: Of the network; None are its own.
    """

    model: BayesianNetwork
    layouts: Mapping[str, Layout]
    tree: nn.Module
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] | None = None

    @classmethod
    def of_random(
        cls, model: BayesianNetwork, fixed: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> "JointFunction":
        """The function that `FlatJoint.of_random` is."""
        layouts = {"random": Layout.of(model, model.laws)}
        return cls(model, layouts, with_exact_norms(share_tensors(model.net)), fixed, buffers)

    def theta(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All sites by name, on their own support."""
        parts = [self.layouts[kind].split(flat) for kind, flat in vectors.items()]
        return {name: value for part in parts for name, value in part.items()} | dict(self.fixed)

    def log_prior(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """log p(theta), on the sites' own support, a 0-d tensor in nats."""
        return self._log_prior(vectors, self.theta(vectors))

    def log_likelihood(
        self, vectors: Mapping[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """The sum over rows of w log p(y | x, theta), a 0-d tensor in nats."""
        return self._log_likelihood(self.theta(vectors), x, y, weight)

    def log_probs(self, vectors: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """w log p(y | x, theta) of each row, (B,), in nats."""
        theta = self.theta(vectors)
        return self.model.likelihood_given(theta).log_prob(self._forward(theta, batch.x), batch.y, batch.weight)

    def energy(
        self, vectors: Mapping[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None = None, *, scale: float
    ) -> Tensor:
        """U, with the volume, a 0-d tensor in nats; `scale` is N / B."""
        theta = self.theta(vectors)
        log_density = self._log_prior(vectors, theta)
        for kind, flat in vectors.items():
            log_density = log_density + self.layouts[kind].log_abs_det_jacobian(flat)
        return -log_density - scale * self._log_likelihood(theta, x, y, weight)

    def energies(self, flats: Tensor, batches: tuple[Tensor, ...], scale: float) -> Tensor:
        """U (C,) at C vectors of the random sites, in one vectorised pass.

        Args:
            flats: (C, P).
            batches: x (C, B, ...), y (C, B, ...) and weights, where there are some: a minibatch each.
            scale: N / B.
        """

        def energy(one: Tensor, *rows: Tensor) -> Tensor:
            return self.energy({"random": one}, *rows, scale=scale)

        return torch.func.vmap(energy)(flats, *batches)

    def _log_prior(self, vectors: Mapping[str, Tensor], theta: Mapping[str, Tensor]) -> Tensor:
        return reduce(add, (self._priors[kind].log_prob(flat, theta) for kind, flat in vectors.items()))

    def _log_likelihood(self, theta: Mapping[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        return self.model.likelihood_given(theta).total_log_prob(self._forward(theta, x), y, weight)

    def _forward(self, theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return self.model.forward(theta, x, net=self.tree, buffers=self.buffers)

    @cached_property
    def _priors(self) -> dict[str, FlatPrior]:
        return {kind: FlatPrior.of(self.model, layout) for kind, layout in self.layouts.items()}
