"""Parts of a fit that several processes have made, each some of them, and then all have."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from bayesuq.inference.posteriors.packing import pack, unpack
from bayesuq.inference.posteriors.saved import CLASSES
from bayesuq.inference.training.workers import Workers
from bayesuq.posterior import Posterior


def shared_out(workers: Workers, models: Sequence[Any], fit: Callable[[int], Posterior]) -> list[Posterior]:
    """One posterior for each model: the first process fits numbers 0, R, 2 R, ... of R processes, and all get all.

    Args:
        workers: Every one of them takes part in this.
        models: That the posteriors are of, the same in all processes.
        fit: Of the model of a number.

    Raises:
        Exception: What a fit in any process has raised: the same in all.
    """
    own = workers.agreed(lambda: {n: fit(n) for n in range(workers.rank, len(models), workers.size)})
    return [_sent(workers, number, own.get(number), model) for number, model in enumerate(models)]


def _sent(workers: Workers, number: int, posterior: Posterior | None, model: Any) -> Posterior:
    """The posterior of a number, from the process that has it."""
    owner = number % workers.size
    body: dict[str, Any] | None = None
    tensors: dict[str, Tensor] | None = None
    if posterior is not None:
        body, tensors = pack(posterior)
    told, found = json.loads(workers.text(json.dumps(body), owner)), workers.tensors(tensors, owner)
    return unpack(told, found, {"model": model, "guide": None}, CLASSES) if posterior is None else posterior
