"""Noise that is only what a network could not memorise: what a mode would say of rows left out of its fit.

A mode that learns its noise beside more weights than rows can explain each row by weights of its own, and takes what
is left for the noise. In the network made linear around the mode, with the log likelihood made quadratic, outputs are
those of a Gaussian process. With J the derivatives of the outputs, N(m_0, P^-1) the prior, R R^T the Fisher information
of the outputs and s their score d log p(y | f) / df,

    B = (I + R^T J P^-1 J^T R)^-1,      c = R^-1 s + R^T J (theta* - m_0),

and the outputs of row n given all the others are f_n + R_n^-T (R_n^-1 s_n - B_nn^-1 [B c]_n), where n counts blocks of
a row's outputs. For normal noise of one scale that is the exact formula of a process. How many targets lie in the 90 %
interval around those outputs is what intervals hold of rows left out. On splits of four UCI sets that was .76 and .77
where the intervals held .80 and .77 of new rows, and .10 to .60 where they held .09 to .74. Of made rows, under
Student's t, Laplace's law, a noise that is an output, and for three outputs, it was .58 to .83 where they held .63 to
.85, and at most .09 where they held .02 or less.

Reference:
    Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, eq. (5.12); Rad & Maleki 2020, A scalable
    estimate of the out-of-sample prediction error via approximate leave-one-out cross-validation; Immer, Korzepa &
    Bauer 2021, Improving Predictions of Bayesian Neural Nets via Local Linearization.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.joint.layout import FlatPrior, Layout
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.training.minibatches import Source
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.likelihoods import Likelihood

MOST_OUTPUTS, MOST_DERIVATIVES = 1000, 20_000_000  # of which looking takes some half of a second
SMALL_NOISE = 0.3  # of y's standard deviation: above it, little was memorised
LEVEL, LEAST_COVERAGE = 0.9, 0.6  # of intervals, and what they must hold of rows left out
NORMAL_WIDTH = 3.29  # of that interval of a normal law, in standard deviations


def warn_if_memorised(posterior: WeightPosterior, source: Source) -> None:
    """Warn where intervals of the noise that was learned hold few of the rows, each left out of the linear network.

    Args:
        posterior: Of one network, fitted without held-out rows.
        source: Of the rows that it was fitted to.
    """
    coverage = left_out_coverage(posterior, source)
    if coverage is not None and coverage < LEAST_COVERAGE:
        warn_of_fit(
            "The noise that was learned is what the network could not memorise: with the network made linear, the 90 % "
            f"intervals of this one network hold {coverage:.0%} of the rows, each by all the others, so that they are "
            "far too narrow. Hold rows out (`validation=`), which keeps the epoch that predicts them best; or pass a "
            "known scale, fewer weights or a narrower prior; or take `bq.regress`."
        )


def left_out_coverage(posterior: WeightPosterior, source: Source) -> float | None:
    """What 90 % intervals of the noise hold of rows left out of the linear network; None where it is not looked at.

    That is for real targets whose noise was learned, by a scale or by an output, under normal priors of more weights
    than rows, which have at most 1,000 outputs in all and are in memory and without weights. Of several target
    columns it is the one of which least is held, among those whose noise is small.
    """
    layout = Layout.of(posterior.model, posterior.model.random_weights)
    prior = FlatPrior.of(posterior.model, layout) if _is_asked(posterior.model, layout.size, source) else None
    if prior is None or prior.others:
        return None
    batches = list(source.complete())
    x, y = torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches])
    theta = Layout.of(posterior.model).split(posterior.draw(0, 0))
    with torch.no_grad():
        f = posterior.model.forward(theta, x, buffers=posterior.buffers)
    if any(batch.weight is not None for batch in batches) or f.ndim != 2 or not _is_quick(f.numel(), layout.size):
        return None
    likelihood = posterior.model.likelihood_given(theta)
    y = likelihood.align(f, y).double()
    lower, upper = (end.double() for end in likelihood.predictive(f[None]).interval(LEVEL))
    is_small = (upper - lower).mean(0) < SMALL_NOISE * NORMAL_WIDTH * y.std(0, correction=0)
    if not is_small.any():
        return None
    derivatives = _derivatives(posterior, theta, layout, x).double()
    moved = derivatives @ (layout.join(theta) - prior.loc).double()
    outputs = _left_out_outputs(likelihood, f.double(), y, derivatives / prior.precision**0.5, moved)
    if not outputs.isfinite().all():
        return None
    lower, upper = likelihood.predictive(outputs[None]).interval(LEVEL)
    return float(((lower <= y) & (y <= upper)).double().mean(0)[is_small].min())


def _left_out_outputs(likelihood: Likelihood, f: Tensor, y: Tensor, features: Tensor, moved: Tensor) -> Tensor:
    """The outputs of each row given all the others, (N, K), not finite where the formula has no number.

    Args:
        likelihood: At the values of the mode.
        f: The outputs, (N, K).
        y: Their targets, aligned.
        features: J P^-1/2, (N, K, R).
        moved: J (theta* - m_0), (N, K).
    """
    num_rows, width = f.shape
    with torch.enable_grad():
        at = f.detach().requires_grad_()
        (score,) = torch.autograd.grad(likelihood.elementwise_log_prob(at, y).sum(), at)
    root = likelihood.fisher_root(f)
    scaled = (root.mT @ features).flatten(0, 1)
    own = torch.linalg.solve_ex(root, score[..., None]).result
    inverse = torch.linalg.inv_ex(torch.eye(len(scaled)).to(scaled) + scaled @ scaled.mT).inverse
    pushed = inverse @ (own + root.mT @ moved[..., None]).flatten()
    rows = torch.arange(num_rows)
    blocks = inverse.reshape(num_rows, width, num_rows, width)[rows, :, rows]
    alone = torch.linalg.solve_ex(blocks, pushed.reshape(num_rows, width, 1)).result
    return f + torch.linalg.solve_ex(root.mT, own - alone).result[..., 0]


def _is_asked(model: BayesianNetwork, size: int, source: Source) -> bool:
    likelihood = model.likelihood
    learns_noise = bool(likelihood.unknowns) or likelihood.noise_is_output
    knows_curvature = type(likelihood).fisher_root is not Likelihood.fisher_root
    is_in_memory = source.loader is None and isinstance(source.rows.x, Tensor)
    if not (learns_noise and knows_curvature and is_in_memory and source.num_data <= size):
        return False
    return _is_quick(source.num_data, size) and likelihood.has_units and likelihood.is_density


def _is_quick(num_outputs: int, size: int) -> bool:
    return num_outputs <= min(MOST_OUTPUTS, MOST_DERIVATIVES // size)


def _derivatives(posterior: WeightPosterior, theta: Mapping[str, Tensor], layout: Layout, x: Tensor) -> Tensor:
    """Of each row's outputs in the weights, (N, K, R), row by row: what runs them at once takes longer to import."""
    model, tree = posterior.model, share_tensors(posterior.model.net)
    weights = {name: theta[name].detach().requires_grad_() for name in layout.shapes}
    rows = []
    with torch.enable_grad():
        for row in x.split(1):
            f = model.forward({**theta, **weights}, row, net=tree, buffers=posterior.buffers)
            for output in f.flatten().unbind():
                found = torch.autograd.grad(
                    output, [*weights.values()], allow_unused=True, materialize_grads=True, retain_graph=True
                )
                rows.append(layout.join(dict(zip(weights, found, strict=True))))
    return torch.stack(rows).unflatten(0, (len(x), -1))
