"""The weight of the divergence in the ELBO: 1 is Bayes; other weights temper the posterior, or anneal the fit.

    tempered ELBO = E_q[ sum_n log p(y_n | f(x_n; theta)) ] - weight * KL(q || p)

Its optimum among all q is p(theta) p(y | theta)^(1 / weight), normalised: below 1 the data count more than once, above
1 less. A weight that rises to 1 while a fit goes on changes only the way there: the fit begins by finding the signal.

Reference:
    Wenzel et al. 2020, How Good is the Bayes Posterior in Deep Neural Networks Really?, eq. (2) and appendix E (weights
    below 1 in published variational fits); Bowman et al. 2016, Generating Sentences from a Continuous Space, section
    3.1 (annealing).
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from bayesuq.arrays import check_fraction, check_positive

Weight = float | Callable[[float], float]
NUM_LOOKS = 65


class Tempering:
    """The weight at each step of a fit.

    Attributes:
        final: What it ends at: 1 for the Bayesian posterior.
        step: Steps made, 0-d int64, kept with a fit's state.
    """

    def __init__(self, weight: Weight, num_steps: int) -> None:
        """Check the weight at both ends.

        Args:
            weight: A number above 0; or a function of the share of steps made, from 0 to 1, that ends above 0.
            num_steps: Of the fit.

        Raises:
            TypeError: Neither a number nor a function.
            ValueError: A weight that is no finite number, negative, or 0 at the end; the steps look at theirs.
        """
        self._weight: Callable[[float], float] = weight if callable(weight) else lambda _: weight
        if not callable(weight):
            check_positive(weight, "kl_weight")
        self._at(0.0)
        self.final = check_positive(self._at(1.0), "kl_weight at the end")
        self.num_steps = num_steps
        self.step = torch.zeros((), dtype=torch.int64)

    def course(self) -> list[float]:
        """The weight at even shares of the steps, from the first to the last, by which checkpoints tell it."""
        return [self._at(number / (NUM_LOOKS - 1)) for number in range(NUM_LOOKS)]

    def fixed_length(self) -> str | None:
        """Why a fit cannot be made longer afterwards; None where it can."""
        return "`kl_weight` changes with the share of the steps made" if len(set(self.course())) > 1 else None

    def varies(self) -> str | None:
        """Why the steps from now on have other weights; None where they have one, as far as that is looked at."""
        return (
            None
            if self._share(int(self.step)) >= self._settled
            else "`kl_weight` changes with the share of the steps made"
        )

    def advance(self) -> float:
        """The weight of this step."""
        share = self._share(int(self.step))
        self.step += 1
        return self._at(share)

    def reached(self) -> float:
        """The weight of the last step made, which is not the final one where validation kept an early epoch."""
        return self._at(self._share(max(int(self.step) - 1, 0)))

    def _share(self, step: int) -> float:
        return min(step / max(self.num_steps - 1, 1), 1.0)

    @cached_property
    def _settled(self) -> float:
        """The share of the steps from which on the weight moves no more."""
        moving = [number + 1 for number, weight in enumerate(self.course()) if weight != self.final]
        return max(moving, default=0) / (NUM_LOOKS - 1)

    def _at(self, share: float) -> float:
        """The weight after a share of the steps; a function is asked at each, so that each answer is looked at."""
        weight: Any = self._weight(share)
        number = math.nan if weight is None or isinstance(weight, str) else float(weight)
        if not 0 <= number < math.inf:
            raise ValueError(
                f"`kl_weight` must be a finite number, not negative; got {weight!r} after {share:.0%} of the steps."
            )
        return number


def annealed(share: float = 0.3) -> Callable[[float], float]:
    """For `variational.fit(kl_weight=...)`: a weight that rises from 0 to 1 over the first share of the steps.

    Raises:
        ValueError: A share that is not between 0 and 1.

    Example:
        >>> weight = annealed(0.5)
        >>> weight(0.0), weight(0.25), weight(1.0)
        (0.0, 0.5, 1.0)
    """
    check_fraction(share, "share")
    return lambda made: min(made / share, 1.0)
