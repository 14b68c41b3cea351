"""The equal mixture of posteriors, each of a model of its own: what an ensemble of any method is, fitted or adopted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.functions import Functions
from bayesuq.inference.posteriors.network import NetworkPosterior, StoredPosterior, model_facts
from bayesuq.inference.posteriors.prediction import differentiated, draw_indices, mixed
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.models.agreement import differ_in_start_only
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.randomness import derive_seed, resolve_seed
from bayesuq.to_arviz.groups import Drawn, Wanted
from bayesuq.windows import WindowOptions


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class EnsemblePosterior(StoredPosterior):
    """The equal mixture of posteriors.

    Attributes:
        model: The first member's joint density.
        members: The members' posteriors, each of its own model: its frozen parameters, its buffers, its likelihood.
    """

    model: BayesianNetwork
    members: tuple[Posterior, ...]

    @classmethod
    def of(cls, members: Sequence[Any]) -> Self:
        """The mixture of fitted members.

        Members whose models differ only in the weights that their fits started from share the first one's.

        Raises:
            ValueError: No member.
        """
        if not members:
            raise ValueError("An ensemble needs at least one member; got none.")
        return cls(model=members[0].model, members=tuple(_sharing(member, members[0].model) for member in members))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def facts(self) -> dict[str, str]:
        """What a notebook shows of it, by name."""
        members = f"{len(self.members)} of {type(self.members[0]).__name__}"
        return model_facts(self.model) | {"members": members} | super().facts()

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
        differentiable: bool = False,
        **windows: Unpack[WindowOptions],
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D): see `Posterior.predict`.

        Members that store one network count as one draw each. Draws of members without end of them are shared out, to
        within one; None takes each member's own default.
        """
        x, key = self.by_name(x), resolve_seed(seed)
        parts = (
            member.predict(x, num_samples=share, seed=own, keep_samples=keep_samples, **windows)
            for member, share, own in self.parts(num_samples, key)
        )
        with differentiated(x, differentiable=differentiable):
            return mixed(parts, keep_samples=keep_samples)

    def functions(
        self, x: ArrayLike, *, num_samples: int | None = None, seed: int | None = None, differentiable: bool = False
    ) -> Functions:
        """Draws of the members' functions, those of a member standing together: see `Posterior.functions`."""
        x, parts = self.by_name(x), self.parts(num_samples, resolve_seed(seed))
        with differentiated(x, differentiable=differentiable):
            found = [member.functions(x, num_samples=share, seed=own) for member, share, own in parts]
        return Functions.of_draws(torch.cat([one.draws for one in found]))

    def fixed_draws(self, num_samples: int | None = None, *, seed: int | None = None) -> Self:
        """The same of fixed draws of the members: see `Posterior.fixed_draws`."""
        parts = self.parts(num_samples, resolve_seed(seed))
        return replace(self, members=tuple(member.fixed_draws(share, seed=own) for member, share, own in parts))

    def sample_weights(self, num_samples: int | None = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of every site by name, (S, ...), those of a member standing together: see `WeightPosterior`.

        Raises:
            TypeError: Members that are not posteriors over weights.
            ValueError: Members of networks with other parameters.
        """
        draws = []
        for member, share, own in self.parts(num_samples, resolve_seed(seed)):
            if not isinstance(member, WeightPosterior):
                raise TypeError(
                    f"A {type(member).__name__} is not a posterior over weights; it draws masks or functions."
                )
            draws.append(member.sample_weights(share, seed=own))
        shapes = [{name: value.shape[1:] for name, value in draw.items()} for draw in draws]
        if any(other != shapes[0] for other in shapes):
            raise ValueError("The members' sites differ in names or shapes. Take draws of each of `members`.")
        return {name: torch.cat([draw[name] for draw in draws]) for name in draws[0]}

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of; of members that are not posteriors over weights, functions of x only."""
        over_weights = all(isinstance(member, WeightPosterior) for member in self.members)
        weights = self.sample_weights(wanted.num_samples, seed=wanted.seed) if over_weights else {}
        first = self.members[0].drawn(replace(wanted, num_samples=1))
        return Drawn(
            method=type(self).__name__,
            weights=weights,
            predict=partial(self.predict, num_samples=wanted.num_samples, seed=wanted.seed, keep_samples=True),
            prior=first.prior,
            prior_predict=first.prior_predict,
        )

    def parts(self, num_samples: int | None, seed: int) -> list[tuple[Posterior, int | None, int]]:
        """The members that take part in `num_samples` draws, each with the number of its own and their seed."""
        count = len(self.members)
        if num_samples is None:
            shares: list[tuple[int, int | None]] = [(m, None) for m in range(count)]
        elif check_count(num_samples, "num_samples") < count:
            shares = [(m, 1) for m in draw_indices(num_samples, count)]
        else:
            shares = [(m, num_samples // count + (m < num_samples % count)) for m in range(count)]
        return [(self.members[m], share, derive_seed(seed, m)) for m, share in shares]


def _sharing(member: Any, model: BayesianNetwork) -> Any:
    """The member on another's model, where that reads its weights as its own does."""
    if isinstance(member, NetworkPosterior) and differ_in_start_only(member.model, model):
        return replace(member, model=model)  # type: ignore[call-arg]  # every one is a dataclass
    return member
