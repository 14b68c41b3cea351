"""Ensembles of fits of one Pyro program: from different starts, and of resampled rows where that is asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bayesuq.inference.posteriors.program import LatentPosterior
from bayesuq.loaders import Data
from bayesuq.models.program import Observed, Program
from bayesuq.randomness import derive_seed


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ProgramEnsemble(LatentPosterior):
    """The equal mixture of posteriors over the latents of one program.

    Attributes:
        program: As in `LatentPosterior`, like the following.
        observed: See there.
        local: See there.
        rows: See there.
        members: The members' posteriors.
    """

    program: Program
    observed: tuple[str, ...]
    local: tuple[str, ...]
    rows: Mapping[str, Tensor]
    members: tuple[LatentPosterior, ...]

    @classmethod
    def of(cls, members: Sequence[LatentPosterior]) -> "ProgramEnsemble":
        """The mixture of fitted members.

        Raises:
            TypeError: Members that are no posteriors over a program.
        """
        first = members[0]
        if not all(isinstance(member, LatentPosterior) for member in members):
            raise TypeError(f"`member_fit` must give posteriors over the program; got a {type(first).__name__}.")
        rows = {name: value.clone() for name, value in first.rows.items()}
        return cls(program=first.program, observed=first.observed, local=first.local, rows=rows, members=tuple(members))

    @property
    def num_members(self) -> int | None:
        """Draws that all members store; None where a member's are without end."""
        counts = [member.num_members for member in self.members]
        return None if None in counts else sum(count for count in counts if count is not None)

    def latents(self, index: int, seed: int) -> dict[str, Tensor]:
        """Draw number `index`: of the members in turn, or, where they store draws, of one member after another."""
        if self.num_members is None:
            number, place = index % len(self.members), index // len(self.members)
            return self.members[number].latents(place, derive_seed(seed, number))
        for number, member in enumerate(self.members):
            if index < (member.num_members or 0):
                return member.latents(index, derive_seed(seed, number))
            index -= member.num_members or 0
        raise IndexError(f"There are {self.num_members} draws; got number {index} beyond them.")


def fit_program(
    program: Program,
    rows: Sequence[Data],
    seeds: Sequence[int],
    member_fit: Callable[..., Any],
    observed: Observed,
    options: Mapping[str, Any],
    files: Sequence[Mapping[str, Any]],
) -> ProgramEnsemble:
    """Fit the members one after another."""
    named = {} if observed is None else {"observed": observed}
    fits = zip(rows, seeds, files, strict=True)
    members = [member_fit(program, one, seed=seed, **named, **options, **file) for one, seed, file in fits]
    return ProgramEnsemble.of(members)
