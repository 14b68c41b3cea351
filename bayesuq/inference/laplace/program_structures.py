"""What a Laplace approximation of a Pyro program keeps of the Hessian.

"full" keeps all of it, and so does "plates", in less room: the members of a plate are independent given all else, so
that the Hessian is that of an arrowhead, whose head are the latents outside of the plate. "sites" keeps a block for
each latent site and "diagonal" a number for each of their numbers, which is all of it where these are independent given
the data.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from bayesuq.inference.joint.program_joint import ProgramLayout
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.posteriors.arrowhead import Arrowhead, CoupledError, Pattern
from bayesuq.inference.posteriors.modes import Curvature

ProgramStructure = Literal["full", "plates", "sites", "diagonal"]
LARGEST_FULL = 20_000  # numbers: 3.2 GB in float64, as much again for its factor


def curvature_of(structure: str, potential: ProgramPotential) -> Curvature:
    """The Hessian at a point, as far as a structure keeps it.

    Raises:
        ValueError: A full structure of more than 20,000 numbers; plates of a program that has no latents in one.
    """
    layout = potential.joint.layout
    patterns = PATTERNS[structure](potential)
    if patterns[0].num_stored > LARGEST_FULL**2:
        raise ValueError(
            f"structure={structure!r} of {layout.size} latent numbers holds {patterns[0].num_stored:.2g} of them; at "
            f"most {LARGEST_FULL**2:.2g} are taken. Pass structure='plates' where latents stand in a plate, 'sites' "
            "or 'diagonal'."
        )

    def curvature(potential: ProgramPotential, flat: Tensor) -> Arrowhead:
        products = potential.joint.curvature(flat, potential.rows)
        for pattern in patterns:
            try:
                return Arrowhead.measured(products, pattern)
            except CoupledError:
                continue
        raise ValueError(
            "Latents in a plate of the program depend on other members of it, so that structure='plates' would not be "
            "exact. Pass structure='full', or 'sites'."
        )

    return curvature


def _full(potential: ProgramPotential) -> list[Pattern]:
    return [Pattern.dense(potential.joint.layout.size)]


def _diagonal(potential: ProgramPotential) -> list[Pattern]:
    size = potential.joint.layout.size
    return [Pattern.around((torch.arange(size).unsqueeze(1),), size, is_whole=False)]


def _sites(potential: ProgramPotential) -> list[Pattern]:
    layout = potential.joint.layout
    blocks = tuple(torch.arange(layout.size)[where].unsqueeze(0) for where in layout.slices().values())
    return [Pattern.around(blocks, layout.size, is_whole=False)]


def _plates(potential: ProgramPotential) -> list[Pattern]:
    """One for each choice of plates whose members are blocks, the one that stores least first."""
    joint = potential.joint
    nodes = joint.call.trace(potential.rows).nodes
    frames = {name: _frames(nodes[name]) for name in joint.layout.shapes}
    choices = {frozenset(found) for found in frames.values()} | {frozenset({one}) for f in frames.values() for one in f}
    patterns = [_of_plates(joint.layout, frames, choice) for choice in choices if choice]
    if not patterns:
        raise ValueError(
            "No latent of the program stands in a plate of several members, so that structure='plates' has no blocks. "
            "Pass structure='full', or 'sites'."
        )
    return sorted(patterns, key=lambda pattern: pattern.num_stored)


PATTERNS: Mapping[str, Callable[[ProgramPotential], list[Pattern]]] = {
    "full": _full,
    "plates": _plates,
    "sites": _sites,
    "diagonal": _diagonal,
}


def _frames(site: Any) -> dict[str, int]:
    """Plates of several members that a site stands in, and which of its dimensions each is."""
    batch = len(site["fn"].batch_shape)
    return {
        frame.name: batch + frame.dim for frame in site["cond_indep_stack"] if frame.dim is not None and frame.size > 1
    }


def _of_plates(layout: ProgramLayout, frames: Mapping[str, Mapping[str, int]], choice: frozenset[str]) -> Pattern:
    """A block for each member of some plates, or for each combination of members."""
    order = sorted(choice)
    parts = []
    for name, where in layout.slices().items():
        if choice <= frames[name].keys():
            places = torch.arange(layout.size)[where].view(layout.flat_shapes[name])
            dims = [frames[name][plate] for plate in order]
            number = math.prod(places.shape[dim] for dim in dims)
            parts.append(places.movedim(dims, [*range(len(dims))]).reshape(number, -1))
    return Pattern.around((torch.cat(parts, dim=1),), layout.size, is_whole=True)
