"""The potential energy that Hamiltonian methods move in: minus the log joint, read from the flat unconstrained vector.

    U(u) = -log p(theta) - sum_n w_n log p(y_n | f(x_n; theta)) - log |d theta / d u|,   theta = theta(u)

Rows are summed in chunks, each with a backward pass of its own, so that memory does not grow with their number. The
gradient of normal priors is written by hand; autograd does the likelihood. Values are float64 whatever the network's
dtype: what an integrator is judged by are small differences of them. Of small networks on the CPU, all of this is
recorded once and then played (`bayesuq.inference.joint.tape`): their operators cost more to call than to compute.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.joint.energy import FlatJoint
from bayesuq.inference.joint.layout import FlatPrior
from bayesuq.inference.joint.perceptrons import ForwardPass, forward_together, is_perceptron
from bayesuq.inference.joint.program_joint import running
from bayesuq.inference.joint.tape import Played, recorded
from bayesuq.inference.posteriors.prediction import kept_activations_per_row
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork, share_tensors
from bayesuq.models.precision import full_precision
from bayesuq.models.spectral import with_exact_norms

MOST_RECORDED = 2**17  # weights and activations of a network, above which arithmetic takes the time
MOST_RECORDED_BY_HAND = 2**20  # of those whose gradient is written out, which has fewer of torch's operators to save
ACTIVATION_BUDGET = 2**23  # numbers that the forward pass of one chunk keeps for the backward pass, over all chains


class Potential(Protocol):
    """An energy that chains move in, with its gradient."""

    def at(self, position: Tensor) -> tuple[float, Tensor]:
        """U in nats and dU/du (P,), which is the caller's to keep, at one vector (P,); where U is not finite, any."""

    def at_rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """U (C,) in float64 and dU/du (C, P) at C vectors (C, P)."""


class NetworkPotential:
    """The potential of a Bayesian network on given rows.

    Attributes:
        model: The joint density.
        layout: Of the random sites, which alone move.
        buffers: The network's buffers, constants here.
    """

    def __init__(
        self,
        model: BayesianNetwork,
        rows: Batch,
        *,
        fixed: Mapping[str, Tensor] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Lay out the sites.

        Args:
            model: The joint density.
            rows: All data, checked and cast.
            fixed: Values on their own support for all sites that are learned as point values.
            buffers: Values for the network's buffers instead of its own.
        """
        self.model, self.rows = model, rows
        self._fixed = dict(fixed or {})
        self._joint = FlatJoint.of_random(model, self._fixed, buffers or {}, torch.float64)
        self._vector, self._prior = self._joint.vectors["random"], self._joint.priors["random"]
        self.layout, self.buffers = self._vector.layout, self._joint.network.buffers
        self._energy_prior = _in_float64(self._prior)
        self._tree = with_exact_norms(share_tensors(model.net))  # for many chains at once
        self._is_perceptron = isinstance(rows.x, Tensor) and is_perceptron(self._tree, rows.x)
        self._width = kept_activations_per_row(model, rows.x, share_tensors(model.net))
        self._played: dict[int, Played | None] = {}  # by number of chains
        self._is_plain = False
        weights = {name for name, _ in model.net.named_parameters()}
        self._is_by_hand = self._is_perceptron and weights >= self.layout.shapes.keys() and not self._is_irregular
        self._columns: dict[int, list[tuple[Tensor, Batch]]] = {}  # by number of chains: inputs, and rows of all

    def at(self, position: Tensor) -> tuple[float, Tensor]:
        """U and its gradient at one vector (P,)."""
        played = self._recorded(1)
        if played is not None:
            value, gradient = played(position)
            value = float(value)
            return value if abs(value) < torch.inf else torch.inf, gradient
        return self._computed_at(position)

    def _computed_at(self, position: Tensor) -> tuple[float, Tensor]:
        vector = self._vector
        vector.values.copy_(position)
        vector.grad.zero_()
        if self._prior.others and not self._in_support(position):
            return torch.inf, vector.grad.clone()
        value = -self._energy_prior.log_normaliser
        try:
            for number, part in enumerate(self._chunks(1)):
                value += self._joint.descend(part, 1.0, with_prior=number == 0).item()
        except ValueError:  # of the likelihood
            if self._in_support(position):
                raise
            return torch.inf, vector.grad.clone()
        self._prior.add_normal_gradient(vector.values, vector.grad)
        value += float(self._energy_prior.normal_energy(vector.values.double()))
        return value, vector.grad.clone()

    def at_rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """U (C,) and its gradients (C, P) at C vectors, in one vectorised pass.

        The chains' gradients are independent, so that one backward pass through the sum of their energies gives all.
        """
        if len(positions) == 1:
            value, gradient = self.at(positions[0])
            return torch.tensor([value], dtype=torch.float64, device=positions.device), gradient.unsqueeze(0)
        played = self._recorded(len(positions))
        if played is not None:
            found, gradient = played(positions.reshape(-1))
            values = torch.as_tensor(found)
            return values.masked_fill(~values.isfinite(), torch.inf), gradient.view_as(positions)
        if self._is_by_hand and not self._is_plain:
            return self._written_by_hand(positions)
        outside = None
        if self._prior.others:  # outside of their support there is no density: look at the other rows alone
            outside = ~self._rows_in_support(positions)
            positions = positions.masked_fill(outside.unsqueeze(1), 0.0)
        values, gradients = self._normal_energies(positions)
        flat = positions.detach().requires_grad_()
        for number, part in enumerate(self._chunks(len(positions))):
            theta = self.layout.split(flat)
            losses = -self._log_likelihoods(theta, part, len(positions))
            if number == 0:
                losses = losses - self._irregular_log_priors(theta, self._parts(flat))
            gradients += torch.autograd.grad(losses.sum(), flat)[0]
            values += losses.detach()
        return values if outside is None else values.masked_fill(outside, torch.inf), gradients

    def compute_plainly(self) -> None:
        """Leave recordings aside from now on: their sums have other last bits."""
        self._is_plain = True

    def _recorded(self, num_chains: int) -> Played | None:
        """The potential of so many chains as it was recorded; None of larger networks, and where it cannot be."""
        if self._is_plain:
            return None
        if num_chains not in self._played:
            most = MOST_RECORDED_BY_HAND if self._is_by_hand and num_chains > 1 else MOST_RECORDED
            small = self.work() * num_chains <= most and self.model.device.type == "cpu"
            self._played[num_chains] = self._record(num_chains) if small else None
        return self._played[num_chains]

    @full_precision()  # what is recorded is played outside of the context, too
    def _record(self, num_chains: int) -> Played | None:
        start = self._vector.values.detach().clone()
        tries = [(start * factor).repeat(num_chains) for factor in (1.0, 0.7)]
        try:
            with running():
                return recorded(self._written_out if num_chains > 1 else self._written_out_once, tries)
        except (RuntimeError, IndexError, ValueError):  # a network that vmap cannot follow
            return None

    def _written_out_once(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """U and its gradient at one vector, as a function without a trace."""
        values, gradients = self._normal_energies(flat.unsqueeze(0))
        leaf = flat.detach().requires_grad_()
        theta = self.layout.split(leaf)
        loss = -self._log_likelihood(theta, self._forward(theta, self.rows.x), self.rows)
        if self._is_irregular:
            chain = leaf.unsqueeze(0)
            loss = loss - self._irregular_log_priors(self.layout.split(chain), self._parts(chain))[0]
        return values[0] + loss.detach(), gradients[0] + torch.autograd.grad(loss, leaf)[0]

    def _written_out(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The same of several chains, one after another in the vector."""
        positions = flat.view(-1, self.layout.size)
        if self._is_by_hand:
            values, gradients = self._written_by_hand(positions)
            return values, gradients.reshape(-1)
        values, gradients = self._normal_energies(positions)
        leaf = positions.detach().requires_grad_()
        theta = self.layout.split(leaf)
        losses = -self._log_likelihoods(theta, self.rows, len(positions))
        if self._is_irregular:
            losses = losses - self._irregular_log_priors(theta, self._parts(leaf))
        return values + losses.detach(), (gradients + torch.autograd.grad(losses.sum(), leaf)[0]).reshape(-1)

    @torch.no_grad()
    def _written_by_hand(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The same of perceptrons whose weights alone move, under normal priors, without autograd's graph."""
        number = len(positions)
        values, gradients = self._normal_energies(positions)
        theta = {**self.layout.split(positions), **self._fixed}
        likelihood = self.model.likelihood_given(theta)
        for columns, rows in self._by_columns(number):
            forward = ForwardPass.of(self._tree, theta, columns, number)
            f = forward.outputs.transpose(0, 1).flatten(1).T  # chains as further rows
            log_probs, slopes = likelihood.log_prob_and_slope(f, rows.y, rows.weight)
            values = values - log_probs.unflatten(0, (number, -1)).sum(dim=1, dtype=torch.float64)
            found = forward.gradients(slopes.T.unflatten(1, (number, -1)).transpose(0, 1))
            gradients = gradients - torch.cat([found[name].flatten(1) for name in self.layout.shapes], dim=1)
        return values, gradients

    def _by_columns(self, num_chains: int) -> list[tuple[Tensor, Batch]]:
        """Chunks of rows for so many chains: inputs as columns, (D, N), and targets once for each chain."""
        if num_chains not in self._columns:
            self._columns = {num_chains: [_in_columns(part, num_chains) for part in self._chunks(num_chains)]}
        return self._columns[num_chains]

    @property
    def _is_irregular(self) -> bool:
        """Whether a site has another prior than a normal one, or another support than the real line."""
        return bool(self._prior.others or self.layout.transforms)

    def can_vectorise(self) -> bool:
        """Whether vmap can follow the network: not where it branches on values."""
        start = self.layout.join(
            {name: value for name, value in self.model.initial().items() if name in self.layout.shapes}
        )
        try:
            self.at_rows(torch.stack([start, start]))
        except (RuntimeError, IndexError):
            return False
        return True

    def work(self) -> int:
        """Numbers that one evaluation makes: weights, and activations of all rows."""
        return self.layout.size + self._width * len(self.rows.x)

    def _chunks(self, num_chains: int) -> Iterator[Batch]:
        size = max(1, ACTIVATION_BUDGET // (self._width * num_chains))
        for first in range(0, len(self.rows.x), size):
            yield self.rows.at(slice(first, first + size))

    def _log_likelihoods(self, theta: Mapping[str, Tensor], part: Batch, num_chains: int) -> Tensor:
        """sum_n w_n log p(y_n | f) of each chain, (C,); `theta` is (C, *shape)."""
        if not self._is_perceptron:
            return torch.func.vmap(lambda one: self._log_likelihood(one, self._forward(one, part.x), part))(theta)
        f = forward_together(self._tree, {**theta, **self._fixed}, part.x, num_chains)
        if self.model.likelihood.unknowns:
            unknowns = {name: value for name, value in theta.items() if name.startswith(LIKELIHOOD)}
            return torch.func.vmap(lambda one, f: self._log_likelihood(one, f, part))(unknowns, f)
        weight = None if part.weight is None else _repeated(part.weight, num_chains)
        # Chains as further rows.
        terms = self.model.likelihood.log_prob(f.flatten(0, 1), _repeated(part.y, num_chains), weight)
        return terms.unflatten(0, (num_chains, -1)).sum(dim=1, dtype=torch.float64)

    def _forward(self, theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return self.model.forward({**theta, **self._fixed}, x, net=self._tree, buffers=self.buffers)

    def _log_likelihood(self, theta: Mapping[str, Tensor], f: Tensor, part: Batch) -> Tensor:
        """Of one chain; of `theta`, only what the likelihood needs."""
        likelihood = self.model.likelihood_given({**theta, **self._fixed})
        return likelihood.log_prob(f, part.y, part.weight).sum(dtype=torch.float64)

    def _irregular_log_priors(self, theta: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> Tensor:
        """log p of the sites whose priors are not normal, and log |d theta / d u|, of each chain, (C,), in float64."""
        num_chains = len(next(iter(parts.values())))
        total = self._vector.values.new_zeros(num_chains, dtype=torch.float64)
        for name, law in self._prior.others.items():
            total = total + law.log_prob(theta[name])
        for name, transform in self.layout.transforms.items():
            terms = transform.log_abs_det_jacobian(parts[name], theta[name])
            total = total + terms.reshape(num_chains, -1).sum(dim=-1)
        return total

    def _parts(self, flat: Tensor) -> dict[str, Tensor]:
        """The sites by name, still unconstrained."""
        parts = flat.split(self.layout.sizes, dim=-1)
        return {
            name: part.reshape(*flat.shape[:-1], *shape)
            for (name, shape), part in zip(self.layout.shapes.items(), parts, strict=True)
        }

    def _normal_energies(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Of the normal sites, with gradients."""
        prior = self._prior
        centred = positions - prior.loc
        gradients = centred * prior.precision
        energies = 0.5 * (centred.double() * gradients).sum(dim=1)
        return energies - prior.log_normaliser, gradients

    def _in_support(self, position: Tensor) -> bool:
        return bool(self._rows_in_support(position.unsqueeze(0)))

    def _rows_in_support(self, positions: Tensor) -> Tensor:
        """Which rows, (C,), are numbers that the laws take; exp over- and underflows far out."""
        inside = positions.isfinite().all(dim=1)
        theta = self.layout.split(positions)
        for name, law in self._prior.others.items():
            inside = inside & law.support.check(theta[name])
        return inside


def _in_float64(prior: FlatPrior) -> FlatPrior:
    loc, precision = (value.double() if isinstance(value, Tensor) else value for value in (prior.loc, prior.precision))
    return replace(prior, loc=loc, precision=precision)


def _in_columns(part: Batch, count: int) -> tuple[Tensor, Batch]:
    weight = None if part.weight is None else _repeated(part.weight, count)
    return part.x.flatten(1).T.contiguous(), Batch(part.x, _repeated(part.y, count), weight)


def _repeated(rows: Tensor, count: int) -> Tensor:
    """The same rows again and again, (count N, ...)."""
    return rows.repeat(count, *[1] * (rows.ndim - 1))
