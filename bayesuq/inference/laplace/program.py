"""Laplace's approximation of a Pyro program: a normal law of its flat vector around the mode there.

    q(u) = N(u*, H^-1),     H = d^2 U / du^2 at u*,     U(u) = -log p(theta(u), y | x) - log |d theta / d u|

The vector is unconstrained, so that the law of a scale is log-normal. H is the Hessian itself, by autograd twice.

Reference:
    Tierney & Kadane 1986, Accurate Approximations for Posterior Moments and Marginal Densities.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.data import Batch, Dataset
from bayesuq.inference.joint.program_call import ProgramCall
from bayesuq.inference.joint.program_joint import ProgramJoint
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.laplace.program_structures import curvature_of
from bayesuq.inference.posteriors.arrowhead import Root
from bayesuq.inference.posteriors.modes import Mode, find_modes, log_mass, sharpened, warn_of_modes
from bayesuq.inference.posteriors.program import LatentPosterior, from_parts, parts_of
from bayesuq.inference.posteriors.program_mode import ProgramSession, find_mode, program_session
from bayesuq.inference.posteriors.program_reader import ProgramRows
from bayesuq.inference.training.convergence import warn_if_wide, warn_unless_reaching
from bayesuq.inference.training.history import History
from bayesuq.inference.training.options import QUALITY, STARTS, Training
from bayesuq.loaders import Data
from bayesuq.models.program import Observed, Program
from bayesuq.randomness import derive_seed, generator, resolve_seed

NUM_RATIOS = 500
REMEDY = "Take `hmc.fit`, or `variational.fit` with a full-rank guide."


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ProgramLaplace(LatentPosterior):
    """A normal law of a program's flat vector.

    Attributes:
        program: As in `LatentPosterior`, like the following.
        observed: See there.
        local: See there.
        rows: See there.
        targets: Of these rows.
        mean: The mode, (P,).
        factor: A lower triangular L with covariance L L^T, (G, G), of the numbers that stand in no block: all P of a
            full structure, none of "sites" and "diagonal", those outside of the plate of "plates".
        blocks: The law of the others given those, by name: see `bayesuq.inference.posteriors.arrowhead.Root.tensors`.
        log_marginal_likelihood: Laplace's approximation of log p(y | x), in nats.
        history: How the search of the mode went.
    """

    program: Program
    observed: tuple[str, ...]
    local: tuple[str, ...]
    rows: Mapping[str, Tensor]
    targets: Tensor
    mean: Tensor
    factor: Tensor
    log_marginal_likelihood: float
    history: History
    blocks: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def covariance(self) -> Tensor:
        """Of the vector, (P, P), whatever the structure; O(P^2) memory."""
        lines = self._root.coloured(torch.eye(len(self.mean)).to(self.factor))
        return lines.T @ lines

    @property
    def num_members(self) -> None:
        """Draws are without end."""
        return None

    def latents(self, index: int, seed: int) -> dict[str, Tensor]:
        """The latents at a draw of the vector."""
        return self._joint.theta(self._vector(derive_seed(seed, index)), self._example)

    def log_importance_ratios(self, data: Dataset, *, num_samples: int = 500, seed: int | None = None) -> Tensor:
        """log p(u | x, y) + log p(y | x) - log q(u) at S draws u of the vector, (S,), float64, in nats.

        `bayesuq.evaluation.diagnostics.fit_quality.evaluate_fit` reads from them how far q can be trusted.

        Args:
            data: What was fitted.
            num_samples: S.
            seed: The same seed gives the same draws as in `predict`.
        """
        reader = ProgramRows(self.program, self.observed, self.device)
        rows = reader.open(data)
        potential = ProgramPotential(reader.joint, rows)
        return self._ratios(potential, check_count(num_samples, "num_samples"), resolve_seed(seed))[0]

    def _ratios(self, potential: ProgramPotential, num_samples: int, key: int) -> tuple[Tensor, Tensor]:
        """The ratios, and the draws (S, P)."""
        draws = torch.stack([self._vector(derive_seed(key, index)) for index in range(num_samples)])
        white = self._root.whitened((draws - self.mean).to(self.factor))
        log_volume = 0.5 * len(self.mean) * math.log(2 * math.pi) + self._root.log_volume
        log_q = -0.5 * white.square().sum(dim=1) - log_volume
        return torch.tensor([-potential.at(draw)[0] for draw in draws], dtype=torch.float64) - log_q.cpu(), draws

    def _vector(self, seed: int) -> Tensor:
        white = torch.randn(len(self.mean), dtype=self.factor.dtype, generator=generator(seed)).to(self.mean.device)
        return (self.mean.to(self.factor) + self._root.coloured(white.unsqueeze(0))[0]).to(self.mean)

    @cached_property
    def _root(self) -> Root:
        return Root.of_tensors(self.factor, self.blocks)

    @cached_property
    def _example(self) -> Batch:
        return Batch(from_parts(self.rows), self.targets, None)

    @cached_property
    def _joint(self) -> ProgramJoint:
        return ProgramJoint.of(ProgramCall(self.program, self.observed), self._example)


def fit_program(
    program: Program, data: Data, training: Training, observed: Observed, *, structure: str
) -> ProgramLaplace:
    """The law around the mode; the options are those of `laplace.fit`.

    Raises:
        ValueError: See `program_session`; a density without a mode.
    """
    with program_session(program, data, training, observed) as (opened, training):
        if opened.rows is None:
            raise ValueError("Laplace's approximation of a program needs all rows in memory: pass a Dataset.")
        flat, history = find_mode(opened, training, with_volume=True)
        potential = ProgramPotential(opened.joint, opened.rows)
        mode = _mode(opened, potential, flat, structure, training.key(STARTS))
        posterior = _posterior(opened, mode, history)
    _warn_by_ratios(posterior, potential, training.key(QUALITY))
    return posterior


def _posterior(opened: ProgramSession, mode: Mode, history: History) -> ProgramLaplace:
    joint, root = opened.joint, cast(Root, mode.precision.root)
    needed = joint.needed(opened.source.rows)
    return ProgramLaplace(
        program=joint.call.program,
        observed=joint.observed,
        local=joint.layout.local,
        rows=parts_of(needed.x),
        targets=needed.y,
        mean=mode.flat,
        factor=root.factor.to(mode.flat.device),
        log_marginal_likelihood=mode.log_mass,
        history=history,
        blocks={name: values.to(mode.flat.device) for name, values in root.tensors().items()},
    )


def _mode(opened: ProgramSession, potential: ProgramPotential, flat: Tensor, structure: str, key: int) -> Mode:
    """The mode that holds most, of the search's and of further ones.

    Raises:
        ValueError: The Hessian is not positive definite: there is no mode. See `curvature_of`.
    """
    curvature = curvature_of(structure, potential)
    flat, precision, root = sharpened(potential, flat, curvature)
    if root is None:
        names = [name for name, where in opened.joint.layout.slices().items() if precision.is_flat(where)]
        raise ValueError(
            "The program's density has no mode where the search ended: its curvature is not positive"
            f"{f' in {chr(44).join(names)}' if names else ''}. A hierarchy's scale that runs to 0 does that, as do "
            "latents that the data do not determine. Take `hmc.fit`, or narrower priors."
        )
    first = Mode(flat, precision, log_mass(root, potential.at(flat)[0]))
    modes = find_modes(potential, key, [first], curvature)
    warn_of_modes(modes, REMEDY)
    return modes[0]


def _warn_by_ratios(posterior: ProgramLaplace, potential: ProgramPotential, key: int) -> None:
    """Look at p / q at draws of the law."""
    ratios, draws = posterior._ratios(potential, NUM_RATIOS, key)
    latents = [draw.cpu() for draw in potential.latents(draws).values()]
    warn_unless_reaching(ratios, REMEDY, latents)
    warn_if_wide(ratios, latents, subject="The normal law around the mode is too wide", remedy=REMEDY)
