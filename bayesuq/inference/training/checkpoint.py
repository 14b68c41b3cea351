"""Checkpoints: how far a fit is, on disk, so that one that was stopped goes on as if it never had been.

A resumed fit ends with the same bits as an uninterrupted one: the file holds the weights, the optimiser's memory, every
random state, the place in the epoch, and what early stopping remembers. It is written to a temporary file, synced and
renamed, so that a kill at any moment leaves a whole one. Which fit it belongs to is told by `identity`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import check_count, check_positive
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.training.identity import Identity, warn_of_versions
from bayesuq.inference.training.workers import SEED_BITS, Workers
from bayesuq.randomness import resolve_seed
from bayesuq.storage import read, write
from bayesuq.writing import check_place

KIND = "checkpoint"
FORMAT = 2
NAMES_ONLY = 1  # the format that tells fits apart by names

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

    def claim(self, seed: int | None, identity: Identity | None = None) -> int:
        """The seed of a fit of several parts: that of the file, or else the one given, which is written down.

        Args:
            seed: As the user passes it.
            identity: What tells the fit from others beside it.

        Raises:
            ValueError: Another seed than the file's, or another kind of file, or of another fit.
            OSError: The folder does not exist or cannot be written.
        """
        there = self.seed()
        key = resolve_seed(seed) if there is None else there if seed is None else seed
        own = Identity({}) if identity is None else identity
        own = replace(own, options={"seed": key, **own.options}, before={"seed": key, **own.before})
        if there is None or self.load(own) is None:
            self.save(own, ({}, {}))
        return key

    def seed(self) -> int | None:
        """The seed of the fit in the file; None where there is none yet.

        Raises:
            ValueError: Another kind of file.
        """
        return int(self.told()["seed"]) if self.path.exists() else None

    def told(self) -> Mapping[str, Any]:
        """What the file says tells its fit from others; nothing where there is none yet.

        Raises:
            ValueError: Another kind of file.
        """
        return self._read()[0]["fit"] if self.path.exists() else {}

    def load(self, identity: Identity) -> State | None:
        """The state in the file, None where there is none yet.

        Args:
            identity: What tells this fit from others; all of it must be as in the file.

        Raises:
            OSError: There is none, and none can be written: the folder does not exist, or the path is one.
            ValueError: A truncated file, one of another kind, or of another fit.

        Warns:
            UserWarning: The file was written by another version, or the fit in it began at other weights than the
                network's, which it goes on from.
        """
        if not self.path.exists():
            check_place(self.path)  # now, and not after the first minute of work
            return None
        header, tensors = self._read()
        fit, place = header["fit"], fspath(self.path)
        is_old = header["format"] == NAMES_ONLY
        different = identity.difference_before(fit) if is_old else identity.difference(fit)
        if different is not None:
            raise ValueError(
                f"The checkpoint {place!r} belongs to another fit: {different}. It stays as it is; for this fit, "
                "choose another path."
            )
        if is_old:
            warn_of_fit(
                f"The checkpoint {place!r} is of an earlier version, which told fits apart by the names of their "
                "parts. It goes on; make sure that prior, network and data are those that it began with.",
                UserWarning,
            )
        else:
            warn_of_versions(place, fit["versions"])
            if identity.start is not None and fit["start"] != identity.start:
                warn_of_fit(
                    f"The fit in the checkpoint {place!r} began at other weights than the network has, which are drawn "
                    "anew where it is built without a seed. It goes on from its own; to fit from these, choose another "
                    "path.",
                    UserWarning,
                )
        return header["state"], tensors

    def save(self, identity: Identity, state: State) -> None:
        """Replace the file by a new one.

        Raises:
            OSError: The folder does not exist or cannot be written.
        """
        values, tensors = state
        write(self.path, {"kind": KIND, "format": FORMAT, "fit": identity.record(), "state": values}, tensors)

    def _read(self) -> State:
        header, tensors = read(self.path)
        if header.get("kind") != KIND or header.get("format") not in (NAMES_ONLY, FORMAT):
            raise ValueError(f"{fspath(self.path)!r} is no checkpoint of this version of bayesuq.")
        return header, tensors


def claimed_seed(workers: Workers, file: Checkpoint | None, seed: int | None, identity: Identity | None = None) -> int:
    """The seed of a fit of several parts, which the first of several processes writes down: see `Checkpoint.claim`."""

    def own() -> int:
        return resolve_seed(seed) if file is None or not workers.is_first else file.claim(seed, identity)

    key = workers.agreed(own)
    return workers.numbers(key % 2**SEED_BITS)[0] if workers.are_together else key


def random_states(device: torch.device, loader: DataLoader[Any] | None) -> dict[str, Tensor]:
    """The states of the generators that a loader draws from: torch's global ones and its own. None without a loader."""
    if loader is None:
        return {}
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    if loader.generator is not None:
        states["loader"] = loader.generator.get_state()
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device, loader: DataLoader[Any] | None) -> None:
    """Put them back; those of a file that was written without need are not touched."""
    if loader is None:
        return
    torch.set_rng_state(states["cpu"])
    if "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)
    if "loader" in states and loader.generator is not None:
        loader.generator.set_state(states["loader"])


def put_back(target: Tensor, part: Tensor, name: str, *, must_be_finite: bool = False) -> None:
    """Copy what a checkpoint holds into the tensor that it is the state of.

    Raises:
        ValueError: It has another shape or dtype, which a copy would stretch or round without a word; or it should be
            finite and is not.
    """
    if part.shape != target.shape or part.dtype != target.dtype:
        raise ValueError(
            f"its {name} is {tuple(part.shape)} {part.dtype}, and that of such a fit {tuple(target.shape)} "
            f"{target.dtype}"
        )
    if must_be_finite and not bool(part.isfinite().all()):
        raise ValueError(f"its {name} is not finite")
    with torch.no_grad():
        target.copy_(part)
