"""What posteriors share that stand on another one: they keep it as it is, and read it in another way."""

from os import PathLike
from typing import Self

import torch

from bayesuq.inference.posteriors.packing import move, save
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior


class WrappingPosterior(Posterior):
    """A posterior on another one, which is its field `posterior`."""

    posterior: Posterior

    @property
    def model(self) -> BayesianNetwork:
        """The joint density of the posterior underneath."""
        return self.posterior.model  # type: ignore[attr-defined]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.posterior.device

    def to(self, device: torch.device | str) -> Self:
        """The same posterior on another device."""
        return move(self, device)

    def save(self, path: "str | PathLike[str]") -> None:
        """Write it to one file: see `Posterior.save`."""
        getattr(self.posterior, "save_around", save)(self, path)  # a process has a file of its own kind

    def save_around(self, outer: Posterior, path: "str | PathLike[str]") -> None:
        """Write a posterior that stands on this one."""
        getattr(self.posterior, "save_around", save)(outer, path)
