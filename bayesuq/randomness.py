"""Random numbers that depend on a key alone: never on a global state, the chunk size, or the thread.

A key is a seed followed by what the numbers are for, such as (seed, draw, block of rows). Each key has a generator of
its own, so that draws can be made in any order, in any grouping, and by several threads at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import index

import numpy as np
import torch

from bayesuq.arrays import check_count


def resolve_seed(seed: int | None) -> int:
    """The seed itself, or 63 fresh bits from torch's global generator where it is None.

    That one draw is the only change that bayesuq ever makes to a global random state.

    Raises:
        TypeError: Not a whole number.
        ValueError: Negative.
    """
    if seed is None:
        return int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64))
    return check_count(seed, "seed", minimum=0)


def derive_seed(*key: int) -> int:
    """A 64-bit seed for the key; different keys give unrelated seeds (numpy's SeedSequence hash).

    Args:
        *key: Whole numbers from 0 to 2^64 - 1, at least one.

    Raises:
        TypeError: A part that is not a whole number.
        ValueError: A negative part.
    """
    # As one list, (5,) and (5, 0) would be the same; without two words for each, so would (5, 2^32) and (5, 0, 1).
    words = [word for part in key[1:] for word in divmod(index(part), 2**32)]
    sequence = np.random.SeedSequence(index(key[0]), spawn_key=words)
    return int(sequence.generate_state(1, np.uint64)[0])


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator on `device` whose numbers depend on `key` alone.

    torch's CPU generators keep 32 bits of a seed, so that two given keys share their numbers with probability 2^-32.
    """
    return torch.Generator(device).manual_seed(derive_seed(*key))


@contextmanager
def isolated(*key: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run code that draws from torch's global generators as a function of `key`, then put those back as they were."""
    device = torch.device(device)
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices=devices, device_type=devices[0].type if devices else "cuda"):
        seed = derive_seed(*key)
        torch.default_generator.manual_seed(seed)
        for other in devices:
            module = torch.get_device_module(other)
            with module.device(other):  # `manual_seed` seeds the current device
                module.manual_seed(seed)
        yield
