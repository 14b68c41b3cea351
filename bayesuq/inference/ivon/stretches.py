"""Stretches of long vectors, so short that a processor's cache holds all that a step does to them.

Elementwise passes over vectors of a million numbers fetch each of them from memory again, which takes two to four times
as long as the arithmetic. Where all passes go over one stretch before any goes over the next, each number is fetched
once.
"""

from itertools import pairwise

import torch

LENGTH = 2**17  # numbers for each thread: half a megabyte in single precision, of which a second-level cache holds four


def stretches(size: int, device: torch.device) -> list[slice]:
    """Neighbouring parts of a vector, in its order.

    All but the last have one length, a multiple of sixteen, and that is at least as long: so filling one after the
    other with random numbers gives those of the whole, which torch makes sixteen at a time. An accelerator, which waits
    to be told of each part, has one.

    Args:
        size: Numbers of the vector.
        device: Where it is.
    """
    length = LENGTH * torch.get_num_threads() if device.type == "cpu" else size
    number = max(1, size // max(1, length))
    edges = [length * part for part in range(number)]
    return [slice(begin, end) for begin, end in pairwise([*edges, size])]
