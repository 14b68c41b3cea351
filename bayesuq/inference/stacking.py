"""Stacking of predictive distributions: posteriors mixed by the weights that held-out rows ask for.

    max over w, sum_k w_k = 1, w_k >= 0, of   (1 / N) sum_n log sum_k w_k p_k(y_n | x_n)

It is concave. The steps w_k <- w_k g_k, g_k = mean_n p_k(y_n) / sum_j w_j p_j(y_n), raise it each time and keep w on
the simplex (they are those of EM), and max_k g_k - 1 bounds what is missing to the maximum, in nats a row.

The posteriors stay as they are. A mixture of them is an equal one of so many draws, each posterior's in proportion to
its weight, so that it is measured, calibrated and saved as any other.

Reference:
    Yao, Vehtari, Simpson & Gelman 2018, Using Stacking to Average Bayesian Predictive Distributions, eq. (5).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Self, Unpack, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, check_count, to_floating
from bayesuq.functions import Functions
from bayesuq.inference.posteriors.network import StoredPosterior
from bayesuq.inference.posteriors.packing import save
from bayesuq.inference.posteriors.prediction import differentiated
from bayesuq.inference.posteriors.wrapping import check_fitted, row_weights
from bayesuq.loaders import Data, in_memory
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.randomness import derive_seed, resolve_seed
from bayesuq.to_arviz.groups import Drawn, Wanted
from bayesuq.windows import WindowOptions

__all__ = ["fit"]
__dir__ = __all__.copy

NUM_DRAWS = 400  # of the mixture
LEAST_WEIGHT = 0.02  # which a posterior must have to be worth its time at every prediction
GAP, MOST_STEPS = 1e-5, 5000  # nats a row that may be missing to the maximum


def stacking_weights(log_probs: ArrayLike, *, weight: ArrayLike | None = None) -> Tensor:
    """The weights of the mixture under which held-out targets are most probable, (K,), float64, summing to 1.

    Args:
        log_probs: log p_k(y_n | x_n) of K predictives at N held-out rows, (K, N), in nats.
        weight: What each row counts, (N,), positive, as parts of their sum; None is 1.

    Raises:
        TypeError: See `bayesuq.arrays.to_tensor`.
        ValueError: Another shape, NaN or +inf, or a row that no predictive holds possible; weights below 0.

    Example:
        >>> stacking_weights([[-1.0, -9.0], [-9.0, -1.0]])
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    values = to_floating(log_probs, "log_probs").double()
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"`log_probs` must have shape (K, N), a row for each predictive; got {tuple(values.shape)}.")
    most = values.amax(dim=0)
    if not most.isfinite().all() or values.isnan().any():
        raise ValueError(
            "`log_probs` must not hold NaN or +inf, and some predictive must hold each row possible; row "
            f"{int((~most.isfinite() | values.isnan().any(dim=0)).nonzero()[0])} is not so."
        )
    probs = (values - most).exp()
    share = torch.ones_like(most) if weight is None else to_floating(weight, "weight").to(most)
    if share.shape != most.shape or not (share >= 0).all() or not 0 < float(share.sum()) < torch.inf:
        raise ValueError(f"`weight` must have shape {tuple(most.shape)}, of numbers from 0 on, not all 0; got {share}.")
    share = share / share.sum()
    weights = torch.full((len(probs),), 1 / len(probs), dtype=torch.float64)
    for _ in range(MOST_STEPS):
        gains = (probs / (weights @ probs)) @ share
        if float(gains.max()) - 1 < GAP:
            break
        weights = weights * gains
    return weights / weights.sum()


def fit(
    posteriors: Sequence[Posterior],
    data: Data,
    *,
    num_draws: int = NUM_DRAWS,
    num_samples: int | None = None,
    seed: int | None = None,
) -> "StackedPosterior":
    """Mix posteriors by the weights that held-out rows ask for.

    Args:
        posteriors: Fitted ones over the same targets, in the same units, of any methods.
        data: Held-out rows that no fit has seen, or a DataLoader of them, in order, each counted by its weight.
        num_draws: Draws that a prediction of the mixture has, by default; weights are rounded to a multiple of one
            divided by it.
        num_samples: Draws by which each posterior alone is judged, as for `predict`.
        seed: Of these draws.

    Returns:
        The mixture. A posterior whose weight is below 0.02 is left out.

    Raises:
        TypeError: Something that is no posterior, or posteriors over targets of different kinds.
        ValueError: No posterior; a row that none of them holds possible.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.inference import map_estimate
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> nets = [networks.mlp(1, (), 1, seed=0), networks.mlp(1, (), 1, seed=1)]
        >>> models = [BayesianNetwork(net, priors.Normal(), likelihoods.Normal(0.1)) for net in nets]
        >>> modes = [map_estimate.fit(model, data, num_epochs=n, seed=0) for model, n in zip(models, (1, 900))]
        >>> len(fit(modes, data, seed=0).members)
        1
    """
    if isinstance(posteriors, Posterior):
        raise TypeError(f"`posteriors` must be several, in a list; got one {type(posteriors).__name__}.")
    posteriors = list(posteriors)
    if not posteriors:
        raise ValueError("`posteriors` must hold at least one; got none.")
    check_count(num_draws, "num_draws", minimum=len(posteriors))
    for posterior in posteriors:
        check_fitted(posterior)
    key = resolve_seed(seed)
    rows = in_memory(data, key)
    predictives = [
        one.predict(one.by_name(rows).x, num_samples=num_samples, seed=derive_seed(key, number), keep_samples=True)
        for number, one in enumerate(posteriors)
    ]
    if len({type(predictive) for predictive in predictives}) > 1:
        names = ", ".join(type(predictive).__name__ for predictive in predictives)
        raise TypeError(f"`posteriors` must be over targets of one kind; their predictives are {names}.")
    scores = torch.stack([predictive.log_prob(rows.y).double() for predictive in predictives])
    weight = row_weights(rows).to(scores.device)
    return stacked(posteriors, stacking_weights(scores[:, weight > 0], weight=weight[weight > 0]), num_draws)


def stacked(posteriors: Sequence[Posterior], weights: Tensor, num_draws: int = NUM_DRAWS) -> "StackedPosterior":
    """The mixture by these weights, without those below 0.02."""
    kept = [number for number, weight in enumerate(weights.tolist()) if weight >= min(LEAST_WEIGHT, weights.max())]
    shares = shared(weights[kept], num_draws)
    return StackedPosterior(members=tuple(posteriors[number] for number in kept), shares=tuple(shares))


def shared(weights: Tensor, number: int) -> list[int]:
    """Draws of each, at least one, which sum to the number: by largest remainders."""
    exact = weights / weights.sum() * number
    counts = exact.floor().clamp(min=1)
    while int(counts.sum()) < number:
        counts[(exact - counts).argmax()] += 1
    while int(counts.sum()) > number:
        counts[torch.where(counts > 1, exact - counts, torch.inf).argmin()] -= 1
    return [int(count) for count in counts]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class StackedPosterior(StoredPosterior):
    """A mixture of posteriors, each with a share of the draws.

    Attributes:
        members: The posteriors.
        shares: Draws of each in a prediction of all.
    """

    members: tuple[Posterior, ...]
    shares: tuple[int, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the members in the mixture, summing to 1."""
        return tuple(share / sum(self.shares) for share in self.shares)

    @property
    def model(self) -> Any:
        """The joint density of the first member that is a network; of processes alone, the first one's."""
        models = [member.model for member in self.members]  # type: ignore[attr-defined]
        return next((model for model in models if isinstance(model, BayesianNetwork)), models[0])

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.members[0].device

    def facts(self) -> dict[str, str]:
        """What a notebook shows of it, by name."""
        names = [type(member).__name__ for member in self.members]
        return {name: f"{weight:.0%}" for name, weight in zip(names, self.weights, strict=True)} | super().facts()

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

        None takes the draws that the mixture was made for. A member with fewer of its own than its share repeats them
        evenly, one with more is thinned. Repeated draws of normal laws stand once, with their number.
        """
        shares = self.shares if num_samples is None else self._shares(check_count(num_samples, "num_samples"))
        key = resolve_seed(seed)
        with differentiated(x, differentiable=differentiable):
            parts = [
                repeated(member.predict(x, num_samples=n, seed=derive_seed(key, m), keep_samples=True, **windows), n)
                for m, (member, n) in enumerate(zip(self.members, shares, strict=True))
                if n
            ]
            mixture = type(parts[0]).mixture(parts)
        if isinstance(mixture, CategoricalPredictive) and not keep_samples:
            return replace(mixture, draws=None)
        return mixture

    def functions(
        self, x: ArrayLike, *, num_samples: int | None = None, seed: int | None = None, differentiable: bool = False
    ) -> Functions:
        """Joint draws of functions, where one member has all the weight: see `Posterior.functions`.

        Raises:
            ValueError: Several members, whose functions are of different kinds: each is asked for its own.
        """
        if len(self.members) > 1:
            raise ValueError("A mixture by weights has no joint draws of functions. Take those of each of `members`.")
        return self.members[0].functions(x, num_samples=num_samples, seed=seed, differentiable=differentiable)

    def fixed_draws(self, num_samples: int | None = None, *, seed: int | None = None) -> Self:
        """The same of fixed draws of the members that have some: see `Posterior.fixed_draws`."""
        shares = self.shares if num_samples is None else self._shares(check_count(num_samples, "num_samples"))
        key = resolve_seed(seed)
        members = [
            (member.fixed_draws(share, seed=derive_seed(key, m)), share)
            for m, (member, share) in enumerate(zip(self.members, shares, strict=True))
            if share
        ]
        return replace(self, members=tuple(one for one, _ in members), shares=tuple(share for _, share in members))

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: functions of x."""
        first = self.members[0].drawn(replace(wanted, num_samples=1))
        predict: Callable[..., PredictiveDistribution] = self.predict
        return Drawn(
            method=type(self).__name__,
            weights={},
            predict=lambda x: predict(x, num_samples=wanted.num_samples, seed=wanted.seed, keep_samples=True),
            prior=first.prior,
            prior_predict=first.prior_predict,
        )

    def save_around(self, outer: Posterior, path: "str | PathLike[str]") -> None:
        """Write a posterior that stands on this one, with the models of all members.

        Raises:
            ValueError: Two processes, of which a file holds one.
        """
        entries: list[Mapping[str, Any]] = [
            cast(Any, member).process_entry() for member in self.members if hasattr(member, "process_entry")
        ]
        if len(entries) > 1:
            raise ValueError("A file holds one Gaussian process; this mixture has several. Save its `members` alone.")
        if len(entries) == len(self.members):
            cast(StoredPosterior, self.members[0]).save_around(outer, path)
        else:
            save(outer, path, entries[0] if entries else {})

    def _shares(self, number: int) -> list[int]:
        """Draws of each member, of so many in all; the least of them may have none."""
        if number >= len(self.members):
            return shared(torch.tensor(self.shares, dtype=torch.float64), number)
        order = sorted(range(len(self.members)), key=lambda m: -self.shares[m])
        return [int(m in order[:number]) for m in range(len(self.members))]


def repeated(predictive: PredictiveDistribution, number: int) -> PredictiveDistribution:
    """The same mixture of so many draws, evenly repeated or thinned."""
    have = predictive.num_samples
    if have == number:
        return predictive
    chosen = (torch.arange(number) * have) // number
    if isinstance(predictive, CategoricalPredictive):
        if predictive.draws is None:
            raise TypeError("Draws of class probabilities must be kept to be mixed by weight.")
        made = CategoricalPredictive.from_logits(predictive.draws[chosen.to(predictive.draws.device)])
        return replace(made, is_multilabel=predictive.is_multilabel)
    if isinstance(predictive, GaussianPredictive) and number > have:
        return predictive.repeated(chosen.bincount().tolist())
    real = cast(RealPredictive, predictive)
    return real.components_at(chosen.to(real.device))
