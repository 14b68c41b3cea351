"""Files that something went wrong with: bytes that changed on the way, and headers that ask for too much."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from bayesuq.storage import CHECKSUM, HEADER, write

HUGE = (2**31, 2**40, 10**9, 10**6, 70_000, -1, 0, 1, 1e308, "os.system", None, True, [], {}, [1] * 60_000)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content with bits flipped, bytes replaced, taken out, put in or swapped, or with its end cut off."""
    bytes_ = bytearray(content)
    place, length = chance.randrange(len(bytes_)), chance.randint(1, 16)
    kind = chance.choice(("bit", "bit", "bit", "byte", "out", "in", "copy", "cut"))
    if kind == "bit":
        for _ in range(chance.choice((1, 1, 1, 3))):
            bytes_[chance.randrange(len(bytes_))] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        bytes_[place] = chance.randrange(256)
    elif kind == "out":
        del bytes_[place : place + length]
    elif kind == "in":
        bytes_[place:place] = chance.randbytes(length)
    elif kind == "copy":
        other = chance.randrange(len(bytes_))
        bytes_[place : place + length] = bytes_[other : other + length]
    else:
        del bytes_[place:]
    return bytes(bytes_)


def rewrite_greedily(path: Path, target: Path, chance: random.Random) -> None:
    """Write the file anew, checksum and all, with something in its header that no file of ours has."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER])
        header.pop(CHECKSUM, None)  # `write` makes another; with both, no reader would come to the rest
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    place = chance.choice(list(_places(header)))
    kind = chance.choice(("value", "value", "value", "drop", "deep", "many"))
    if kind == "drop":
        place.drop()
    elif kind == "deep":
        value = place.value
        for _ in range(chance.choice((50, 900))):
            value = [value]
        place.put(value)
    elif kind == "many":
        place.put([place.value] * 5_000)
    else:
        place.put(chance.choice(HUGE))
    if chance.random() < 0.2:
        tensors.pop(chance.choice(list(tensors)))
    write(target, header, tensors)


class Place:
    """A value within nested JSON data."""

    def __init__(self, owner: Any, key: Any) -> None:
        self.owner, self.key = owner, key
        self.value = owner[key]

    def put(self, value: Any) -> None:
        """Replace it."""
        self.owner[self.key] = value

    def drop(self) -> None:
        """Take it out."""
        del self.owner[self.key]


def _places(data: Any) -> Iterator[Place]:
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        yield Place(data, key)
        yield from _places(data[key])


BOMBS: dict[str, Callable[[dict[str, Any]], None]] = {
    "wide": lambda net: net["arguments"].update(hidden=[40_000, 40_000]),
    "long": lambda net: net["arguments"].update(hidden=[1] * 60_000),
    "large input": lambda net: net["arguments"].update(in_features=2**40),
    "deep": lambda net: net.update(builder="unet", arguments={"in_channels": 1, "out_channels": 1, "depth": 10_000}),
    "wide U-Net": lambda net: net.update(
        builder="unet", arguments={"in_channels": 1, "out_channels": 1, "width": 2**11, "depth": 32}
    ),
}
