"""What tells chains over all rows from others, so that a checkpoint is gone on with by its own fit alone."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bayesuq.inference.chains.potential import NetworkPotential
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.training.identity import Identity, digest, tolerance_of
from bayesuq.inference.training.model_contents import model_contents, probed_energy, sites_of
from bayesuq.inputs import named_leaves


def identity_of(
    potential: NetworkPotential | ProgramPotential,
    positions: Tensor,
    options: Mapping[str, Any],
    num_samples: int,
    contents: Mapping[str, str],
) -> Identity:
    """That of chains which begin at positions (C, P).

    Args:
        potential: The energy that they move in.
        positions: Where its numbers are probed, too.
        options: Those of the method, as plain JSON data.
        num_samples: Draws of each, of which the same fit may make more.
        contents: Digests of constants beside the network's.
    """
    rows = potential.rows
    weight = {} if rows.weight is None else {"weight": rows.weight}
    data = {"data": f"{len(rows.y)} rows, {digest({**named_leaves(rows.x), 'y': rows.y, **weight})}"}
    if isinstance(potential, NetworkPotential):
        model: Any = potential.model
        sites, own = sites_of(model), model_contents(model)
    else:
        model = potential.joint
        sites, own = model.sites(), {}
    return Identity(
        options={**options, "device": model.device.type, **data, **sites},
        lengths={"num_samples": num_samples},
        contents={**contents, **own},
        numbers=probed_energy(potential.at, positions[0]),
        tolerance=tolerance_of(positions.dtype),
        text=repr(model),
    )
