"""Sums of probabilities over draws that tell 1e-400 from 0.

A float64 holds nothing below 1e-308, which is a gap of 709 between two logits. A sum is a plain number wherever that
says all of it, and its logarithm, by log-sum-exp over draws, stands beside it where some probability is smaller: a
log score stays what it is, and what is of ordinary size costs no logarithm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

LEAST = 1e-290  # so that what falls out of a sum, below 1e-308, is no more than the rounding of what stays


@dataclass(eq=False)
class ProbabilitySum:
    """A running sum over draws, of any shape.

    Attributes:
        value: The sum, float64.
        log: Its logarithm, where `value` has lost some of it; None where every entry is 0 or at least `LEAST`.
    """

    value: Tensor
    log: Tensor | None = None

    @classmethod
    def of_draws(cls, probs: Tensor, log_probs: Tensor) -> Self:
        """The sum over draws of probabilities, (S, ...), float64, that come with their logarithms."""
        return cls(probs.sum(dim=0), log_probs.logsumexp(dim=0) if _is_too_small(log_probs) else None)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The sums of all parts, one after another in the first dimension."""
        value = torch.cat([part.value for part in parts])
        if all(part.log is None for part in parts):
            return cls(value)
        return cls(value, torch.cat([part.full_log() for part in parts]))

    def add(self, other: Self) -> None:
        """Add, in place, the sum over further draws."""
        if self.log is not None or other.log is not None:
            self.log = torch.logaddexp(self.full_log(), other.full_log())
        self.value += other.value

    def full_log(self) -> Tensor:
        """The logarithm of every entry."""
        return self.value.log() if self.log is None else self.log

    def settled(self) -> Self:
        """The same sum, without a logarithm that larger draws have made needless."""
        return self if self.log is None or _is_too_small(self.log) else type(self)(self.value)


def _is_too_small(logs: Tensor) -> bool:
    """Whether some entry is below `LEAST` and not 0; of an accelerator it is taken to be, which is not waited for."""
    if logs.device.type != "cpu":
        return True
    bound = math.log(LEAST)
    return bool(logs.amin() < bound) and bool(((logs < bound) & (logs > -math.inf)).any())
