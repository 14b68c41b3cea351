"""Active learning: which rows of a pool to label next, and the loop that labels them.

A row is worth its label where the posterior's draws disagree on it, which is what epistemic uncertainty measures; a row
that is noisy for every draw is not. Several rows at once are chosen together, so that they do not say the same.

References:
    Houlsby, Huszár, Ghahramani, Lengyel, "Bayesian active learning for classification and preference learning", 2011,
    eq. (2): BALD, the mutual information of a label and the draws.
    Gal, Islam, Ghahramani, "Deep Bayesian active learning with image data", ICML 2017.
    Kirsch, van Amersfoort, Gal, "BatchBALD", NeurIPS 2019, eqs. (8) to (13), algorithm 1: of several labels together.
    Krause, Singh, Guestrin, "Near-optimal sensor placements in Gaussian processes", JMLR 2008: the same of a process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count, check_one_of, to_tensor
from bayesuq.data import Dataset
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.randomness import derive_seed, generator, resolve_seed

__all__ = ["learn", "select"]
__dir__ = __all__.copy

Score = Literal["bald", "batch_bald", "entropy", "least_confidence", "variance", "random"]
OF_LABELS, OF_REAL_TARGETS = ("bald", "entropy", "least_confidence"), ("variance",)
MOST_CONFIGURATIONS = 4096  # of labels that are summed over exactly
LEAST_NOISE = 1e-200  # a variance, so that rows without noise are chosen by the function's
BLOCK = 2**24  # numbers at a time


def select(
    posterior: Posterior,
    x: ArrayLike,
    number: int,
    *,
    score: Score = "bald",
    num_samples: int | None = None,
    seed: int | None = None,
) -> Tensor:
    """The rows of a pool whose labels would tell most, best first, (number,), int64.

    Args:
        posterior: Fitted to the rows that have labels.
        x: The pool, (N, ...).
        number: How many rows to label.
        score: Of labels, "bald", the mutual information of a label and the draws, row by row; "batch_bald", that of all
            chosen labels together; "entropy" and "least_confidence", which take noise for ignorance. Of real targets
            "variance", the epistemic one, and "batch_bald" where the functions have a normal law. Of either "random",
            which the others are held against.
        num_samples: Draws, as for `Posterior.predict`.
        seed: Of the draws, and of "random".

    Raises:
        TypeError: Counts that are not whole.
        ValueError: More rows than the pool has; another score, or one for another kind of target.

    Example:
        >>> from bayesuq.inference import gp
        >>> from bayesuq.models.gp import GaussianProcess
        >>> posterior = gp.fit(GaussianProcess(), Dataset([[0.0], [0.1], [0.2]], [0.0, 0.1, 0.2]), seed=0)
        >>> select(posterior, [[0.1], [5.0], [5.1], [-5.0]], 2, score="batch_bald", seed=0).tolist()
        [1, 3]
    """
    check_one_of(score, "score", Score)
    pool = to_tensor(x, "x")
    if check_count(number, "number") > len(pool):
        raise ValueError(f"`number` must be at most the {len(pool)} rows of the pool; got {number}.")
    key = resolve_seed(seed)
    if score == "random":
        return torch.randperm(len(pool), generator=generator(key))[:number]
    if score == "batch_bald":
        return _together(posterior, x, number, num_samples, key)
    predictive = posterior.predict(x, num_samples=num_samples, seed=key)
    values = _scores(predictive, score)
    return values.argsort(descending=True, stable=True)[:number].cpu()


def _scores(predictive: PredictiveDistribution, score: str) -> Tensor:
    """Of each row, (N,); of several labels or columns in a row, their sum."""
    is_labelled = isinstance(predictive, CategoricalPredictive)
    offered = OF_LABELS if is_labelled else OF_REAL_TARGETS
    if score not in offered:
        kind = "labels" if is_labelled else "real targets"
        raise ValueError(f"The score {score!r} is not one of {kind}: take {', '.join(map(repr, offered))}.")
    if score == "entropy":
        values = predictive.total
    elif score == "least_confidence":
        values = 1 - predictive.mean.amax(dim=1)
    else:
        values = predictive.epistemic
    return values.flatten(1).sum(dim=1) if values.ndim > 1 else values


def _together(posterior: Posterior, x: ArrayLike, number: int, num_samples: int | None, seed: int) -> Tensor:
    found = posterior.functions(x, num_samples=num_samples, seed=seed)
    predictive = posterior.predict(to_tensor(x, "x")[:1], num_samples=1, seed=seed)
    if isinstance(predictive, CategoricalPredictive):
        if found.draws.ndim != 3:
            raise ValueError("'batch_bald' is of one label a row; for maps take 'bald'.")
        return batch_bald(found.draws, number, seed=seed)[0]
    if found.covariance is None or not isinstance(predictive, GaussianPredictive) or found.mean.shape[1] != 1:
        raise ValueError(
            "Of real targets 'batch_bald' needs functions with a normal law and one column: a Gaussian process, or "
            "Laplace. Take 'variance'."
        )
    noise = posterior.predict(x, num_samples=num_samples, seed=seed).aleatoric[:, 0]
    return _of_normal(found.covariance[:, 0, :, 0].double(), noise.clamp(min=LEAST_NOISE), number)


def _of_normal(covariance: Tensor, noise: Tensor, number: int) -> Tensor:
    """Greedy by log det(I + K / noise): each row's variance given those chosen (Krause et al. 2008, algorithm 1).

    Args:
        covariance: K, of the function at N rows, (N, N).
        noise: Variance of each row's target given the function, (N,), above 0.
        number: How many rows.
    """
    chosen: list[int] = []
    for _ in range(number):
        told = covariance.diagonal() / noise
        told[chosen] = -torch.inf
        best = int(told.argmax())
        column = covariance[:, best]
        covariance = covariance - torch.outer(column, column) / (column[best] + noise[best])
        chosen.append(best)
    return torch.tensor(chosen)


def batch_bald(probs: ArrayLike, number: int, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows whose labels together tell most of the draws, chosen greedily: Kirsch et al. (2019), algorithm 1.

    The mutual information I[y_1, ..., y_k; draws] = H[y_1, ..., y_k] - sum_i E H[y_i | draw] of k labels sums over all
    C^k configurations, exactly while these are at most 4,096; beyond, over configurations that are drawn from the
    predictive, eq. (13).

    Args:
        probs: Class probabilities of S draws at N rows, (S, N, C); a draw is one function at all rows, as
            `posterior.functions(x).draws` are.
        number: K, how many rows.
        seed: Of the configurations, where they are drawn.

    Returns:
        The rows in the order in which they are chosen, (K,), int64; and the mutual information of the first 1, 2, ...,
        K of them, in nats, (K,), float64, which draws of configurations make a little uncertain.

    Raises:
        TypeError: Not numbers; `number` not whole.
        ValueError: Another shape, numbers that are no probabilities; more rows than there are.

    Example:
        >>> twice = [[[0.9, 0.1], [0.9, 0.1], [0.8, 0.2]], [[0.1, 0.9], [0.1, 0.9], [0.8, 0.2]]]
        >>> rows, information = batch_bald(twice, 2)
        >>> information  # the second row says some of what the first does
        tensor([0.3681, 0.5144], dtype=torch.float64)
    """
    p = to_tensor(probs, "probs").double()
    if p.ndim != 3 or 0 in p.shape:
        raise ValueError(f"`probs` must have shape (S, N, C); got {tuple(p.shape)}.")
    if bool((p < 0).any()) or not torch.allclose(p.sum(dim=2), torch.ones(()).to(p), atol=1e-5):
        raise ValueError("`probs` must be probabilities: at least 0, with a sum of 1 over classes.")
    num_draws, num_rows, _ = p.shape
    if check_count(number, "number") > num_rows:
        raise ValueError(f"`number` must be at most the {num_rows} rows of `probs`; got {number}.")
    noise = generator(resolve_seed(seed), device=p.device)
    own = _entropy(p).mean(dim=0)  # E H[y | draw], (N,)
    joint = torch.ones(1, num_draws).to(p)  # p(configuration | draw), (M, S)
    weight = torch.ones(1).to(p)  # 1 / (M q) of each configuration that was drawn from q; 1 where all are there
    chosen: list[int] = []
    told: list[Tensor] = []
    for _ in range(number):
        gains = _joint_entropies(joint, weight, p) - own - own[chosen].sum()
        gains[chosen] = -torch.inf
        best = int(gains.argmax())
        chosen.append(best)
        told.append(gains[best])
        joint, weight = _extended(joint, weight, p[:, best], noise)
    return torch.tensor(chosen), torch.stack(told)


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(dim=-1)


def _joint_entropies(joint: Tensor, weight: Tensor, p: Tensor) -> Tensor:
    """H of the configurations' labels and each row's own, (N,)."""
    num_draws, _, num_classes = p.shape
    step = max(1, BLOCK // (len(joint) * num_classes))
    parts = []
    for rows in p.split(step, dim=1):
        mixed = (joint @ rows.flatten(1) / num_draws).view(len(joint), -1, num_classes)
        parts.append((weight[:, None] * _entropy(mixed)).sum(dim=0))
    return torch.cat(parts)


def _extended(joint: Tensor, weight: Tensor, p: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """The configurations with one label more, of probabilities (S, C): all, or as many as are drawn."""
    longer = (joint[:, None, :] * p.T[None]).flatten(0, 1)
    weight = weight.repeat_interleave(p.shape[1])
    if len(longer) <= MOST_CONFIGURATIONS:
        return longer, weight
    law = weight * longer.mean(dim=1)
    law = law / law.sum()
    drawn = torch.multinomial(law, MOST_CONFIGURATIONS, replacement=True, generator=noise)
    return longer[drawn], weight[drawn] / (MOST_CONFIGURATIONS * law[drawn])


@dataclass(frozen=True, eq=False)
class Curve:
    """How a model got better with its labels.

    Attributes:
        num_labels: Labels that each fit had, rising.
        values: What `evaluate` said of each.
        chosen: Rows of the pool in the order in which they were labelled, those of the start among them.
        posterior: The last fit.
    """

    num_labels: tuple[int, ...]
    values: tuple[float, ...]
    chosen: Tensor
    posterior: Posterior

    def labels_for(self, value: float) -> int | None:
        """The fewest labels whose fit reached this value or more; None where none did."""
        return next((n for n, v in zip(self.num_labels, self.values, strict=True) if v >= value), None)


def learn(
    fit: Callable[[Dataset], Posterior],
    x: ArrayLike,
    label: Callable[[Tensor], ArrayLike],
    evaluate: Callable[[Posterior], float],
    *,
    start: int | ArrayLike,
    num_labels: int,
    at_a_time: int = 1,
    score: Score = "bald",
    num_samples: int | None = None,
    candidates: int | None = None,
    seed: int | None = None,
) -> Curve:
    """Fit, choose rows of a pool, ask for their labels, and so on: pool-based active learning.

    Args:
        fit: From the labelled rows to a posterior, such as `lambda data: dropout.fit(model, data, seed=0)`.
        x: The pool, (N, ...).
        label: From numbers of rows, (B,), int64, to their targets.
        evaluate: What is measured of each fit, such as its accuracy on rows that are not in the pool.
        start: How many rows are labelled first, taken at random by `seed`; or their numbers.
        num_labels: How many labels there are at the end.
        at_a_time: Rows that are labelled between two fits.
        score: See `select`; "random" gives the curve that others are held against.
        num_samples: Draws, as for `Posterior.predict`.
        candidates: Rows of the pool that are looked at for a choice, taken at random anew; None looks at all.
        seed: The same seed starts from the same rows, whatever the score.

    Raises:
        TypeError: See `select`.
        ValueError: See `select`; fewer labels at the end than at the start, or more than the pool has rows.

    Example:
        >>> import bayesuq as bq
        >>> split = bq.datasets.load("toy/linear")
        >>> fit = lambda data: bq.inference.gp.fit(bq.models.gp.GaussianProcess(), data, seed=0)
        >>> unsure = lambda posterior: -float(posterior.predict(split.test.x).epistemic.mean())
        >>> label = lambda rows: split.train.y[rows]
        >>> curve = learn(fit, split.train.x, label, unsure, start=4, num_labels=6, score="variance", seed=0)
        >>> curve.num_labels
        (4, 5, 6)
    """
    pool, key = to_tensor(x, "x"), resolve_seed(seed)
    check_count(at_a_time, "at_a_time")
    if candidates is not None:
        check_count(candidates, "candidates")
    labelled = _first(start, len(pool), key)
    if not len(labelled) <= check_count(num_labels, "num_labels") <= len(pool):
        raise ValueError(
            f"`num_labels` must be from the {len(labelled)} of the start to the {len(pool)} rows of the pool; got "
            f"{num_labels}."
        )
    y = _labels_of(label, labelled)
    counts, values = [], []
    while True:
        posterior = fit(Dataset(pool[labelled], y))
        counts.append(len(labelled))
        values.append(float(evaluate(posterior)))
        if len(labelled) >= num_labels:
            return Curve(tuple(counts), tuple(values), labelled, posterior)
        rest = torch.ones(len(pool), dtype=torch.bool)
        rest[labelled] = False
        others = rest.nonzero()[:, 0]
        place = derive_seed(key, len(counts))
        if candidates is not None:
            others = others[torch.randperm(len(others), generator=generator(place))[:candidates]]
        number = min(at_a_time, num_labels - len(labelled), len(others))
        found = select(posterior, pool[others], number, score=score, num_samples=num_samples, seed=place)
        labelled = torch.cat([labelled, others[found]])
        y = torch.cat([y, _labels_of(label, others[found])])


def _labels_of(label: Callable[[Tensor], ArrayLike], rows: Tensor) -> Tensor:
    """What the function says of these rows.

    Raises:
        ValueError: It does not say as many labels as it was asked for.
    """
    labels = to_tensor(label(rows), "label(rows)")
    if labels.shape[:1] != rows.shape:
        raise ValueError(f"`label` must return {len(rows)} labels, one for each row; got shape {tuple(labels.shape)}.")
    return labels


def _first(start: int | ArrayLike, num_rows: int, seed: int) -> Tensor:
    """Numbers of the rows that are labelled first.

    Raises:
        TypeError: No numbers.
        ValueError: More rows than the pool has, none, a row twice, or one that the pool does not have.
    """
    given = start.item() if isinstance(start, np.integer) else start
    if not isinstance(given, int):
        rows = to_tensor(given, "start")
        if rows.ndim != 1 or rows.dtype.is_floating_point or not _are_different_rows(rows.tolist(), num_rows):
            raise ValueError(f"`start` must be a number, or different rows of the pool's {num_rows}; got {start}.")
        return rows.long()
    if check_count(given, "start") > num_rows:
        raise ValueError(f"`start` must be at most the {num_rows} rows of the pool; got {start}.")
    return torch.randperm(num_rows, generator=generator(seed))[:given]


def _are_different_rows(rows: list[int], num_rows: int) -> bool:
    return bool(rows) and len(set(rows)) == len(rows) and 0 <= min(rows) <= max(rows) < num_rows
