"""Checkpoints: how far a fit is, on disk, so that one that was stopped goes on as if it never had been.

A resumed fit ends with the same bits as an uninterrupted one: the file holds the weights, the optimiser's memory, every
random state, the place in the epoch, and what early stopping remembers. It is written to a temporary file, synced and
renamed, so that a kill at any moment leaves a whole one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import check_count, check_positive
from bayesuq.randomness import resolve_seed
from bayesuq.storage import check_place, read, write

KIND = "checkpoint"
FORMAT = 1
DIGESTED_AT_ONCE = 2**18  # numbers that are copied, where a copy is needed, so that data of any size have a digest

State = tuple[dict[str, Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit writes its checkpoints, and how often.

    The same fit with the same checkpoint goes on where the file says; after its end, it returns at once. What a
    callback has kept is not in the file, nor is a random state other than torch's.

    Attributes:
        path: Of the file. An ensemble keeps its seed there, and each member's state beside it: `.member-0`, ...
        every_seconds: Wall time between two writes.
        every_steps: Steps between two writes, counted beside the time; None counts none.
    """

    path: Path
    every_seconds: float = 60.0
    every_steps: int | None = None

    def __post_init__(self) -> None:
        check_positive(self.every_seconds, "every_seconds")
        if self.every_steps is not None:
            check_count(self.every_steps, "every_steps")
        object.__setattr__(self, "path", Path(self.path))

    @classmethod
    def of(cls, value: "Checkpoint | str | PathLike[str] | None") -> "Checkpoint | None":
        """From what a user passes.

        Raises:
            TypeError: Neither a checkpoint nor a path.
        """
        if value is None or isinstance(value, Checkpoint):
            return value
        if not isinstance(value, str | PathLike):
            raise TypeError(f"`checkpoint` must be a path or a Checkpoint; got {type(value).__name__}.")
        return cls(Path(value))

    def of_part(self, name: str) -> Self:
        """For one part of a fit that consists of several, as an ensemble does."""
        return replace(self, path=self.path.with_name(f"{self.path.name}.{name}"))

    def claim(self, seed: int | None) -> int:
        """The seed of a fit of several parts: that of the file, or else the one given, which is written down.

        Raises:
            ValueError: Another seed than the file's, or another kind of file.
            OSError: The folder does not exist or cannot be written.
        """
        there = self.seed()
        if there is None:
            there = resolve_seed(seed)
            self.save({"seed": there}, ({}, {}))
        elif seed is not None and seed != there:
            self.load({"seed": seed})
        return there

    def seed(self) -> int | None:
        """The seed of the fit in the file; None where there is none yet.

        Raises:
            ValueError: Another kind of file.
        """
        return int(self._read()[0]["fit"]["seed"]) if self.path.exists() else None

    def told(self) -> Mapping[str, Any]:
        """What the file says tells its fit from others; nothing where there is none yet.

        Raises:
            ValueError: Another kind of file.
        """
        return self._read()[0]["fit"] if self.path.exists() else {}

    def load(self, fit: Mapping[str, Any]) -> State | None:
        """The state in the file, None where there is none yet.

        Args:
            fit: What tells this fit from others; all of it must be as in the file.

        Raises:
            OSError: There is none, and none can be written: the folder does not exist, or the path is one.
            ValueError: A truncated file, one of another kind, or of another fit.
        """
        if not self.path.exists():
            check_place(self.path)  # now, and not after the first minute of work
            return None
        header, tensors = self._read()
        for name, value in fit.items():
            there = header["fit"].get(name)
            if there != value:
                raise ValueError(
                    f"The checkpoint {fspath(self.path)!r} belongs to another fit: its {name} is {there!r}, this one's "
                    f"{value!r}. Delete it, or choose another path."
                )
        return header["state"], tensors

    def save(self, fit: Mapping[str, Any], state: State) -> None:
        """Replace the file by a new one.

        Raises:
            OSError: The folder does not exist or cannot be written.
        """
        values, tensors = state
        write(self.path, {"kind": KIND, "format": FORMAT, "fit": dict(fit), "state": values}, tensors)

    def _read(self) -> State:
        header, tensors = read(self.path)
        if header.get("kind") != KIND or header.get("format") != FORMAT:
            raise ValueError(f"{fspath(self.path)!r} is no checkpoint of this version of bayesuq.")
        return header, tensors


def digest(tensors: Mapping[str, Tensor | None]) -> str:
    """A short name for the bits of some tensors."""
    state = hashlib.sha256()
    for name, tensor in tensors.items():
        if tensor is not None:
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            rows = tensor.detach().reshape(tensor.shape or (1,))
            for block in rows.split(max(1, DIGESTED_AT_ONCE * len(rows) // max(1, rows.numel()))):
                state.update(block.cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return state.hexdigest()[:16]


def random_states(device: torch.device, loader: DataLoader[Any] | None) -> dict[str, Tensor]:
    """The states of torch's global generators, on the CPU and on the device, and of a loader's own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    if loader is not None and loader.generator is not None:
        states["loader"] = loader.generator.get_state()
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device, loader: DataLoader[Any] | None) -> None:
    """Put them back."""
    torch.set_rng_state(states["cpu"])
    if "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)
    if "loader" in states and loader is not None and loader.generator is not None:
        loader.generator.set_state(states["loader"])


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse."""
    return {prefix + name: tensor for name, tensor in tensors.items()}
