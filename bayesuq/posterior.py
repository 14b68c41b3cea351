"""The posterior q(theta | D): what every inference method returns, and what a user asks for predictions."""

from abc import ABC, abstractmethod
from os import PathLike
from typing import Any, Self

import torch
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.predictive import PredictiveDistribution


class Posterior(ABC):
    """A fitted posterior approximation: a value, never changed by predicting.

    Its random numbers depend on the seed of each call alone, so predicting from several threads is safe.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}(on {self.device})"

    @abstractmethod
    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D).

        Args:
            x: Inputs, (N, ...), or a DataLoader whose batches are inputs, or begin with them. Its batches come in
                order.
            num_samples: S, the number of draws. None takes all members of a posterior that stores them, 100 draws
                of one that does not. A posterior of M members asked for fewer takes an even thinning without
                replacement, asked for more takes all.
            seed: The same seed gives the same draws whatever the chunks, batches and threads. None draws one from
                torch's global generator.
            keep_samples: Whether the draws of class probabilities stay available one by one; O(S N C) memory.

        Returns:
            The mixture over draws, on the device that x is on (for a loader: the posterior's).

        Raises:
            TypeError: Inputs that are not numbers, counts that are not whole.
            ValueError: Inputs that are not finite, of a shape that the network does not take; counts below 1.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same posterior on another device."""

    @abstractmethod
    def save(self, path: "str | PathLike[str]") -> None:
        """Write it to one file, which `bayesuq.load` reads; the file replaces an older one only when it is complete.

        Raises:
            OSError: The folder does not exist or cannot be written.
        """
