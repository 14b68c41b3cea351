"""Whether chains predict the rows that they were fitted to as well as what is known to be reachable.

Where draws are of the posterior, the mean log density of fitted rows lies below that at the mode by d / (2 N) nats, d
the number of directions that the data decide: no more than N for one number a row (the rank of the Gauss-Newton
matrix). A chain whose draws together predict these rows by more than half a nat a label worse than the fitted posterior
that it began at, than another chain, or than a constant, is no run through one posterior. Nor is one from whose end a
short descent (`bayesuq.inference.chains.descent`) gains a third of a nat a label.

Reference:
    MacKay 1992, A Practical Bayesian Framework for Backpropagation Networks, section 4 (the number of well-determined
    parameters).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.chains.descent import Descent
from bayesuq.inference.joint.constant import best_constant
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.posteriors.chains import ChainPosterior
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.models.bnn import BayesianNetwork

MOST_ROWS, MOST_DRAWS = 128, 25  # that are looked at, of each chain
MOST_LABELS = 2**18  # of the rows
SLACK, SLACK_OF_DESCENT = 0.5, 0.3  # nats a label
ERRORS = 2.0  # standard errors beyond it


def warn_unless_scored(
    posterior: ChainPosterior, rows: Batch, start: object = None, descent: Descent | None = None
) -> None:
    """Warn where chains predict rows that were fitted much worse than something else does.

    Args:
        posterior: The chains.
        rows: That were fitted, of which some are looked at.
        start: What the chains began at; a posterior's draws are held against them.
        descent: Down the chains' energy; where it leads from the last draw of the best of them is held against them.
    """
    count = min(len(rows.y), MOST_ROWS, max(MOST_LABELS // rows.y[0].numel(), 1))
    if count < 2:
        return
    some = torch.linspace(0, len(rows.y) - 1, count).round().long().to(rows.y.device)
    few = rows.at(some)
    model, buffers = posterior.model, posterior.buffers
    chains = torch.stack([_scores(model, _thinned(chain), buffers, few) for chain in posterior.draws])
    best = chains[chains.mean(dim=1).argmax()]
    known = {"the best of them": best, "a constant": _constant(posterior, few)}
    if isinstance(start, WeightPosterior):
        size = min(start.num_members or MOST_DRAWS, MOST_DRAWS)
        draws = torch.stack([start.draw(number, 0).to(model.device, model.dtype) for number in range(size)])
        known["what they began at"] = _scores(model, draws, start.buffers, few)
    name = max(known, key=lambda one: float(known[one].mean()))
    if _behind(chains, known[name], few, SLACK).any():
        _warn(chains, known[name], name, few, SLACK)
    elif descent is not None and descent.num_steps:
        last = posterior.draws[int(chains.mean(dim=1).argmax()), -1]
        reached = _scores(model, descent.end(last).unsqueeze(0), buffers, few)
        if _behind(chains, reached, few, SLACK_OF_DESCENT).any():
            name = f"what {descent.num_steps} steps down from the last draw of the best of them reach"
            _warn(chains, reached, name, few, SLACK_OF_DESCENT)


def _behind(chains: Tensor, best: Tensor, rows: Batch, slack: float) -> Tensor:
    """Which chains are surely behind, (C,), by scores of rows, (C, B) and (B,)."""
    gaps = best - chains
    error = gaps.std(dim=1) / math.sqrt(len(best))
    return gaps.mean(dim=1) - ERRORS * error > slack * rows.y[0].numel()


def _warn(chains: Tensor, best: Tensor, name: str, rows: Batch, slack: float) -> None:
    """Say how far which of them is behind what."""
    gaps, count = best - chains, len(best)
    worst = int(gaps.mean(dim=1).argmax())
    gap, error = float(gaps[worst].mean()), float(gaps[worst].std()) / math.sqrt(count)
    warn_of_fit(
        f"{int(_behind(chains, best, rows, slack).sum())} of {len(chains)} chains predict the rows that they were "
        f"fitted to much worse than {name}: the mean log density of chain {worst} is "
        f"{float(chains[worst].mean()):.3g} nats, there {float(best.mean()):.3g} (difference {gap:.2g} ± {error:.1g}, "
        f"{count} rows). They have not arrived. Raise `num_warmup`, or `start` from a fitted posterior."
    )


def _thinned(draws: Tensor) -> Tensor:
    """Some draws (K, P) of a chain's, evenly."""
    kept = torch.linspace(0, len(draws) - 1, min(len(draws), MOST_DRAWS)).round().long()
    return draws[kept.to(draws.device)]


def _scores(model: BayesianNetwork, flats: Tensor, buffers: Mapping[str, Tensor], rows: Batch) -> Tensor:
    """log of the mean over draws of p(y | x, theta), (B,), float64, in nats."""
    layout = Layout.of(model)
    with torch.no_grad():
        scores = []
        for flat in flats:
            theta = layout.split(flat)
            f = model.forward(theta, rows.x, buffers=buffers)
            scores.append(model.likelihood_given(theta).log_prob(f, rows.y, rows.weight).double())
    return torch.stack(scores).logsumexp(dim=0) - math.log(len(scores))


def _constant(posterior: ChainPosterior, rows: Batch) -> Tensor:
    """The same of the best constant in the network's place, at the last draw's other unknowns."""
    model = posterior.model
    theta = Layout.of(model).split(posterior.draws[0, -1])
    with torch.no_grad():
        f = model.forward(theta, rows.x, buffers=posterior.buffers)
    return best_constant(model.likelihood_given(theta), f, rows.y, rows.weight).double()
