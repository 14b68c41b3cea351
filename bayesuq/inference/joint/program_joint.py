"""The flat joint of a Pyro program: log p(theta, y | x) by one run of it, at one unconstrained vector.

    U(u) = -log p(theta(u), y | x) - log |d theta / d u|,      theta_k = T_k(u_k)

T_k is Pyro's bijection onto the support of latent k, so that positive numbers, simplexes, Cholesky factors and bounded
ones are laid side by side in one real vector. The supports may depend on latents drawn before. Plates, scales and masks
count as Pyro counts them: the potential is Pyro's own, `pyro.infer.mcmc.util.initialize_model`'s, to rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, biject_to

from bayesuq.data import Batch
from bayesuq.inference.joint.program_call import ProgramCall
from bayesuq.inference.joint.programs import is_data, is_subsample, private_store, row_log_prob
from bayesuq.predictive.laws import unchecked

PASS_NUMBERS = 2**22  # of the data and the vector, times the products that one pass takes
UNSUPPORTED = (torch.linalg.LinAlgError, ValueError)  # what laws say of parameters that are none


class ChangingSitesError(ValueError):
    """A program has other latent sites at one vector than at another: no law's word, and no density is."""


@dataclass(frozen=True, eq=False)
class ProgramLayout:
    """Where each latent site stands in the flat vector.

    Attributes:
        shapes: Of each site on its own support.
        flat_shapes: Of each site on the real line: a simplex of three numbers has two.
        dtypes: Of each site.
        local: Sites with a number of their own for single rows.
        is_bound: Whether the program runs on these rows alone.
    """

    shapes: Mapping[str, torch.Size]
    flat_shapes: Mapping[str, torch.Size]
    dtypes: Mapping[str, torch.dtype]
    local: tuple[str, ...] = ()
    is_bound: bool = False

    @property
    def sizes(self) -> list[int]:
        """Numbers of each site in the vector."""
        return [shape.numel() for shape in self.flat_shapes.values()]

    @property
    def size(self) -> int:
        """P, numbers in all."""
        return sum(self.sizes)

    def slices(self) -> dict[str, slice]:
        """Where each site stands."""
        edges = pairwise(accumulate(self.sizes, initial=0))
        return {name: slice(*edge) for name, edge in zip(self.flat_shapes, edges, strict=True)}

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The sites (..., *flat shape), still unconstrained, of flat vectors (..., P); views of them."""
        parts = flat.split(self.sizes, dim=-1)
        return {
            name: part.reshape(flat.shape[:-1] + shape)
            for (name, shape), part in zip(self.flat_shapes.items(), parts, strict=True)
        }


@dataclass(eq=False)
class Terms:
    """What one run of a program told.

    Attributes:
        theta: The latents on their own support.
        log_prior: log p(theta) with factors, in nats.
        log_likelihood: log p(y | x, theta), with the program's scales.
        volume: log |d theta / d u|.
        observed: The laws and values of the observed sites.
    """

    theta: dict[str, Tensor] = field(default_factory=dict)
    log_prior: Any = 0.0
    log_likelihood: Any = 0.0
    volume: Any = 0.0
    observed: dict[str, Any] = field(default_factory=dict)


class AtVector(Messenger):
    """A handler that gives each latent the value that a vector holds for it, and adds up the densities."""

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.parts, self.terms = parts, Terms()
        self.unchecked = not Distribution._validate_args

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or is_subsample(msg):
            return
        name, support = msg["name"], msg["fn"].support
        if name not in self.parts:
            raise ChangingSitesError(
                f"The program's site {name!r} was not there when it first ran: its sites must not change."
            )
        transform = biject_to(support)
        part = self.parts[name]
        value = transform(part)
        self.terms.theta[name] = msg["value"] = value
        self.terms.volume = self.terms.volume + transform.log_abs_det_jacobian(part, value).sum()

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg):
            return
        log_prob = unchecked(msg["fn"]).log_prob(msg["value"]) if self.unchecked else msg["fn"].log_prob(msg["value"])
        term = scale_and_mask(log_prob, msg["scale"], None if is_imputed(msg) else msg["mask"]).sum()
        if is_data(msg):
            self.terms.log_likelihood = self.terms.log_likelihood + term
            self.terms.observed[msg["name"]] = msg
        else:
            self.terms.log_prior = self.terms.log_prior + term


def is_imputed(site: Any) -> bool:
    """Whether a site is what `obs_mask` makes of targets that are not there.

    It has numbers for those that are there, too, which Pyro masks out: they would be flat, and no sampler ends. With
    the density of their law they integrate to 1, so that the posterior of all else is the same.
    """
    return site["name"].endswith("_unobserved") and not site["is_observed"]


class ProgramJoint:
    """The joint density of a program, its data aside.

    Attributes:
        call: The program, and how it takes data.
        layout: Of its latents.
        observed: Names of the observed sites.
        device: Where the rows are.
    """

    def __init__(
        self, call: ProgramCall, layout: ProgramLayout, observed: tuple[str, ...], device: torch.device
    ) -> None:
        self.call, self.layout, self.observed, self.device = call, layout, observed, device

    @classmethod
    def of(cls, call: ProgramCall, rows: Batch, num_data: int | None = None) -> "ProgramJoint":
        """Learn the sites from a run on some rows.

        Raises:
            ValueError: Latents that are no real numbers, or none; parameters to be learned; plates that choose rows
                by chance; observed sites that are not those named.
        """
        survey = call.survey(rows, num_data)
        shapes = {name: site["value"].shape for name, site in survey.latents.items()}
        flat = {
            name: biject_to(site["fn"].support).inverse_shape(shapes[name]) for name, site in survey.latents.items()
        }
        dtypes = {name: site["value"].dtype for name, site in survey.latents.items()}
        return cls(
            call,
            ProgramLayout(shapes, flat, dtypes, survey.local, survey.is_bound),
            tuple(survey.observed),
            rows.y.device,
        )

    def terms(self, flat: Tensor, rows: Batch, num_data: int | None = None) -> Terms:
        """What the program tells at a flat vector (P,), within `running`.

        Raises:
            ValueError: Sites that come or go from run to run.
        """
        parts = {name: part.to(self.layout.dtypes[name]) for name, part in self.layout.split(flat).items()}
        with AtVector(parts) as handler:
            self.call.run(rows, num_data)
        if len(handler.terms.theta) != len(parts):
            missing = sorted(parts.keys() - handler.terms.theta.keys())
            raise ChangingSitesError(f"The program left out {', '.join(missing)} this time: its sites must not change.")
        return handler.terms

    def energy(self, flat: Tensor, rows: Batch, num_data: int | None = None, *, with_volume: bool = True) -> Tensor:
        """U at one vector, a 0-d tensor in nats, within `running`."""
        terms = self.terms(flat, rows, num_data)
        total = terms.log_prior + terms.log_likelihood + (terms.volume if with_volume else 0.0)
        return -total

    def value_and_grad(
        self, flat: Tensor, rows: Batch, num_data: int | None = None, *, with_volume: bool = True
    ) -> tuple[Tensor, Tensor]:
        """U and its gradient (P,) at one vector, within `running`; infinite where a law does not take its numbers."""
        leaf = flat.detach().requires_grad_()
        with torch.enable_grad():
            value = self.energy(leaf, rows, num_data, with_volume=with_volume)
            (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient

    def curvature(self, flat: Tensor, rows: Batch) -> Callable[[Tensor], Tensor]:
        """The Hessian d^2 U / du^2 at one vector (P,), as what it makes of rows (K, P): (K, P), float64, on the CPU.

        Each product costs a gradient of the gradient, of which several are taken in one pass.
        """
        leaf = flat.detach().requires_grad_()
        with running(), torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.energy(leaf, rows), leaf, create_graph=True)
        width = max(1, PASS_NUMBERS // (self.layout.size + rows.y.numel()))

        def products(vectors: Tensor) -> Tensor:
            found = [_gradients(gradient, leaf, some.to(leaf)) for some in vectors.split(width) if len(some)]
            return torch.cat(found).double().cpu() if found else vectors.double()

        return products

    def row_log_prob(self, flat: Tensor, batch: Batch) -> Tensor:
        """log p(y | x, theta) of each row at one vector, (B,), over all observed sites, in nats.

        Raises:
            ValueError: A site that has one density of all rows.
        """
        with running(), torch.no_grad():
            return row_log_prob(self.terms(flat, batch).observed.values(), batch)

    def theta(self, flat: Tensor, rows: Batch) -> dict[str, Tensor]:
        """The latents on their own support at one vector."""
        with running(), torch.no_grad():
            return {name: value.detach() for name, value in self.terms(flat, rows).theta.items()}

    def flat(self, theta: Mapping[str, Tensor], rows: Batch) -> Tensor:
        """The vector of latents on their own support; the inverse of `theta`.

        Raises:
            ValueError: A latent that is not there, or has another shape.
        """
        found: dict[str, Tensor] = {}
        for name, shape in self.layout.shapes.items():
            if name not in theta or theta[name].shape != shape:
                given = tuple(theta[name].shape) if name in theta else "none"
                raise ValueError(f"The latent {name} has shape {tuple(shape)}; got {given}.")
        with running(), torch.no_grad(), Inverse(theta, found):
            self.call.run(rows, None)
        return torch.cat([found[name].reshape(-1) for name in self.layout.shapes])

    def __repr__(self) -> str:
        return f"ProgramJoint({getattr(self.call.program, '__qualname__', type(self.call.program).__name__)})"

    def sites(self) -> dict[str, list[list[Any]]]:
        """Names and shapes of the latents, in order."""
        return {"latents": [[name, list(shape)] for name, shape in self.layout.shapes.items()]}

    def probe(self, value: float) -> Tensor:
        """The flat vector (P,) whose numbers are all the same."""
        return torch.full((self.layout.size,), value, dtype=self.dtype, device=self.device)

    def needed(self, rows: Batch) -> Batch:
        """The rows that a run of the program at a draw of its latents needs: one, or all."""
        layout = self.layout
        return rows if layout.local or layout.is_bound else rows.at(slice(1))

    def thetas(self, flats: Tensor, rows: Batch) -> dict[str, Tensor]:
        """The latents on their own support at many vectors (..., P), each (..., *shape)."""
        with running(), torch.no_grad():
            found = [self.terms(flat, rows).theta for flat in flats.reshape(-1, self.layout.size)]
        leading = flats.shape[:-1]
        return {
            name: torch.stack([one[name] for one in found]).reshape(leading + shape)
            for name, shape in self.layout.shapes.items()
        }

    @property
    def dtype(self) -> torch.dtype:
        """Of the flat vector: the widest of the latents'."""
        return max(self.layout.dtypes.values(), key=lambda dtype: torch.finfo(dtype).bits)


class Inverse(Messenger):
    """A handler that gives latents their values, and notes where these stand on the real line."""

    def __init__(self, theta: Mapping[str, Tensor], found: dict[str, Tensor]) -> None:
        super().__init__()
        self.theta, self.found = theta, found

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.theta and not msg["is_observed"]:
            msg["value"] = self.theta[msg["name"]]
            self.found[msg["name"]] = biject_to(msg["fn"].support).inv(msg["value"])


def _gradients(gradient: Tensor, leaf: Tensor, vectors: Tensor) -> Tensor:
    """The Hessian times rows (K, P): in one pass where all of the program's operators can be batched."""
    if not gradient.requires_grad:  # a density that is linear
        return torch.zeros_like(vectors)
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    try:
        return torch.autograd.grad(gradient, leaf, vectors, is_grads_batched=True, **options)[0]
    except RuntimeError:
        return torch.stack([torch.autograd.grad(gradient, leaf, one, **options)[0] for one in vectors])


@contextmanager
def running() -> Iterator[None]:
    """Programs run alone in the process, without Pyro's checks of every law."""
    with private_store(), pyro.validation_enabled(False):
        yield
