"""Noise that is only what a network could not memorise: what a mode would say of rows left out of its fit.

A mode that learns its noise beside more weights than rows can explain each row by weights of its own, and takes what is
left for the noise. In the network made linear around the mode, rows are those of a Gaussian process,

    C = J P^-1 J^T + sigma^2 I,      r = y - f + J (theta* - m_0)

with J the derivatives of the outputs, N(m_0, P^-1) the prior and sigma the noise learned, and the error of row n by all
the others is [C^-1 r]_n / [C^-1]_nn. How many lie within 1.645 sigma is what 90 % intervals hold of rows left out. On
splits of four UCI sets that was .76 and .77 where the intervals held .80 and .77 of new rows, and .10 to .60 where they
held .09 to .74.

Reference:
    Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, eq. (5.12); Immer, Korzepa & Bauer 2021,
    Improving Predictions of Bayesian Neural Nets via Local Linearization.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.joint.layout import FlatPrior, Layout
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.training.minibatches import Source
from bayesuq.models.bnn import BayesianNetwork, share_tensors

MOST_ROWS, MOST_DERIVATIVES = 1000, 20_000_000  # of which looking takes some half of a second
SMALL_NOISE = 0.3  # of y's standard deviation: above it, little was memorised
LEVEL, LEAST_COVERAGE = 0.9, 0.6  # of intervals, and what they must hold of rows left out


def warn_if_memorised(posterior: WeightPosterior, source: Source) -> None:
    """Warn where intervals of the noise that was learned hold few of the rows, each left out of the linear network.

    Args:
        posterior: Of one network, fitted without held-out rows.
        source: Of the rows that it was fitted to.
    """
    coverage = left_out_coverage(posterior, source)
    if coverage is not None and coverage < LEAST_COVERAGE:
        warn_of_fit(
            "The noise that was learned is what the network could not memorise: with the network made linear, its 90 % "
            f"intervals hold {coverage:.0%} of the rows, each by all the others. They will be far too narrow. Hold "
            "rows out (`validation=`), which keeps the epoch that predicts them best; or pass a known scale, fewer "
            "weights or a narrower prior; or take `bq.regress`."
        )


def left_out_coverage(posterior: WeightPosterior, source: Source) -> float | None:
    """What 90 % intervals of the noise hold of rows left out of the linear network; None where it is not looked at.

    That is for one real output with normal noise of one scale that was learned, under normal priors of more weights
    than rows, at most 1,000 of these, in memory and without weights.
    """
    model = posterior.model
    names = model.random_weights
    layout = Layout.of(model, names)
    if not _is_asked(model, layout.size, source):
        return None
    prior = FlatPrior.of(model, layout)
    if prior.others:
        return None
    batches = list(source.complete())
    x, y = torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches])
    if any(batch.weight is not None for batch in batches) or y[0].numel() != 1:
        return None
    theta = Layout.of(model).split(posterior.draw(0, 0))
    with torch.no_grad():
        f = model.forward(theta, x, buffers=posterior.buffers)
        scale = float(model.likelihood_given(theta).distribution(f).variance.double().mean().sqrt())
    if not scale < SMALL_NOISE * float(y.double().std()):
        return None
    derivatives = _derivatives(posterior, theta, layout, x).double()
    targets = (y.reshape(-1) - f.reshape(-1)).double() + derivatives @ (layout.join(theta) - prior.loc).double()
    covariance = derivatives / prior.precision @ derivatives.T
    covariance.diagonal().add_(scale**2)
    inverse = torch.linalg.inv_ex(covariance).inverse
    errors = inverse @ targets / inverse.diagonal()
    within = scale * torch.special.ndtri(errors.new_tensor((1 + LEVEL) / 2))
    return float((errors.abs() <= within).double().mean()) if errors.isfinite().all() else None


def _is_asked(model: BayesianNetwork, size: int, source: Source) -> bool:
    likelihood, num_rows = model.likelihood, source.num_data
    learns_one_scale = likelihood.has_normal_noise and bool(likelihood.unknowns) and not likelihood.noise_is_output
    is_small = num_rows <= min(MOST_ROWS, size, MOST_DERIVATIVES // size)
    return learns_one_scale and is_small and source.loader is None and isinstance(source.rows.x, Tensor)


def _derivatives(posterior: WeightPosterior, theta: Mapping[str, Tensor], layout: Layout, x: Tensor) -> Tensor:
    """Of each row's output in the weights, (N, R), row by row: what runs them at once takes longer to import."""
    model, tree = posterior.model, share_tensors(posterior.model.net)
    weights = {name: theta[name].detach().requires_grad_() for name in layout.shapes}
    rows = []
    with torch.enable_grad():
        for row in x.split(1):
            f = model.forward({**theta, **weights}, row, net=tree, buffers=posterior.buffers)
            found = torch.autograd.grad(f.sum(), [*weights.values()], allow_unused=True, materialize_grads=True)
            rows.append(layout.join(dict(zip(weights, found, strict=True))))
    return torch.stack(rows)
