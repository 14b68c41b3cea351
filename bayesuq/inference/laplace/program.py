"""Laplace's approximation of a Pyro program: a normal law of its flat vector around the mode there.

    q(u) = N(u*, H^-1),     H = d^2 U / du^2 at u*,     U(u) = -log p(theta(u), y | x) - log |d theta / d u|

The vector is unconstrained, so that the law of a scale is log-normal. H is the Hessian itself, by autograd twice.

Reference:
    Tierney & Kadane 1986, Accurate Approximations for Posterior Moments and Marginal Densities.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.data import Batch, Dataset
from bayesuq.inference.joint.program_call import Observed, ProgramCall
from bayesuq.inference.joint.program_joint import ProgramJoint
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.joint.programs import Program
from bayesuq.inference.posteriors.modes import Mode, find_modes, sharpened, solved, warn_of_modes
from bayesuq.inference.posteriors.program import LatentPosterior, from_parts, parts_of
from bayesuq.inference.posteriors.program_mode import ProgramSession, find_mode, program_session
from bayesuq.inference.posteriors.program_reader import ProgramRows
from bayesuq.inference.training.convergence import warn_if_wide, warn_unless_reaching
from bayesuq.inference.training.history import History
from bayesuq.inference.training.minibatches import Data
from bayesuq.inference.training.options import QUALITY, STARTS, Training
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
        factor: A lower triangular L with covariance L L^T, (P, P).
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
        factor = self.factor.double()
        white = torch.linalg.solve_triangular(factor, (draws - self.mean).double().T, upper=False)
        log_volume = 0.5 * len(self.mean) * math.log(2 * math.pi) + factor.diagonal().log().sum()
        log_q = -0.5 * white.square().sum(dim=0) - log_volume
        return torch.tensor([-potential.at(draw)[0] for draw in draws], dtype=torch.float64) - log_q.cpu(), draws

    def _vector(self, seed: int) -> Tensor:
        white = torch.randn(len(self.mean), dtype=self.factor.dtype, generator=generator(seed)).to(self.mean.device)
        return (self.mean.to(self.factor) + self.factor @ white).to(self.mean)

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
        mode = _mode(opened, potential, flat, training.key(STARTS))
        mean, precision = mode.flat, mode.precision
        if structure == "diagonal":
            precision = precision.diagonal().diag()
        factor = torch.linalg.cholesky(torch.linalg.inv(precision))
        posterior = _posterior(opened, mean, factor, -potential.at(mean)[0], history)
    _warn_by_ratios(posterior, potential, training.key(QUALITY))
    return posterior


def _posterior(
    opened: ProgramSession, mean: Tensor, factor: Tensor, log_density: float, history: History
) -> ProgramLaplace:
    joint = opened.joint
    needed = joint.needed(opened.source.rows)
    log_volume = 0.5 * len(mean) * math.log(2 * math.pi) + float(factor.diagonal().log().sum())
    return ProgramLaplace(
        program=joint.call.program,
        observed=joint.observed,
        local=joint.layout.local,
        rows=parts_of(needed.x),
        targets=needed.y,
        mean=mean,
        factor=factor,
        log_marginal_likelihood=log_density + log_volume,
        history=history,
    )


def _mode(opened: ProgramSession, potential: ProgramPotential, flat: Tensor, key: int) -> Mode:
    """The mode that holds most, of the search's and of further ones.

    Raises:
        ValueError: The Hessian is not positive definite: there is no mode.
    """
    flat, precision = sharpened(potential, flat)
    if solved(precision, flat.double()) is None:
        names = [name for name, where in opened.joint.layout.slices().items() if _is_flat(precision, where)]
        raise ValueError(
            "The program's density has no mode where the search ended: its curvature is not positive"
            f"{f' in {chr(44).join(names)}' if names else ''}. A hierarchy's scale that runs to 0 does that, as do "
            "latents that the data do not determine. Take `hmc.fit`, or narrower priors."
        )
    log_mass = 0.5 * len(flat) * math.log(2 * math.pi) - potential.at(flat)[0] - 0.5 * float(precision.logdet())
    modes = find_modes(potential, key, [Mode(flat, precision, log_mass)])
    warn_of_modes(modes, REMEDY)
    return modes[0]


def _is_flat(precision: Tensor, where: slice) -> bool:
    block = precision[where, where]
    return bool(torch.linalg.eigvalsh(block).min() <= 0) if block.isfinite().all() else True


def _warn_by_ratios(posterior: ProgramLaplace, potential: ProgramPotential, key: int) -> None:
    """Look at p / q at draws of the law."""
    ratios, draws = posterior._ratios(potential, NUM_RATIOS, key)
    latents = [draw.cpu() for draw in potential.latents(draws).values()]
    warn_unless_reaching(ratios, REMEDY, latents)
    warn_if_wide(ratios, latents, subject="The normal law around the mode is too wide", remedy=REMEDY)
