"""Laplace approximations: a normal law around the mode, as wide as the curvature of the log joint there says.

    q(theta) = N(theta*, (H + P)^-1),      H = sum_n w_n J_n^T Lambda_n J_n

P are the prior's precisions, J the Jacobian of the network's outputs at the mode, and Lambda the curvature of the
log-likelihood in them: H is the generalised Gauss-Newton matrix, which is never indefinite. The evidence is

    log p(y | x) ~ log p(y | x, theta*) + log p(theta*) + R/2 log(2 pi) - 1/2 log det(H + P)

What it then says of new inputs is in `laplace_posterior`.

Reference:
    MacKay 1992, A Practical Bayesian Framework for Backpropagation Networks; Immer, Korzepa & Bauer 2021, Improving
    Predictions of Bayesian Neural Nets via Local Linearization; Daxberger et al. 2021, Laplace Redux.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple, Unpack, cast

import torch
from torch import Tensor

from bayesuq.arrays import check_one_of
from bayesuq.data import Batch
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.joint.layout import Layout, normal_base
from bayesuq.inference.laplace.curvature import output_weights
from bayesuq.inference.laplace.factors import Derivatives, Factors
from bayesuq.inference.laplace.linearisation import BUDGET, Linearisation, UnevenRowsError
from bayesuq.inference.laplace.posterior import LaplacePosterior, PriorFactors
from bayesuq.inference.laplace.program import ProgramLaplace, fit_program
from bayesuq.inference.laplace.program_structures import LARGEST_FULL, ProgramStructure
from bayesuq.inference.laplace.sketches import TOGETHER, as_rows, num_groups, random_columns
from bayesuq.inference.laplace.structures import STRUCTURES
from bayesuq.inference.posteriors.network import check_same_sites
from bayesuq.inference.posteriors.network_mode import LEARNING_RATE, MapPosterior, fit_mode
from bayesuq.inference.training.captured import warn_of_no_capture
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.options import Training, TrainingOptions, session, training_options
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.layers import is_dropout
from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.models.precision import full_precision
from bayesuq.models.program import Observed, Program, check_unnamed, is_program
from bayesuq.models.rules import ALL, LAST_LAYER, matching_names
from bayesuq.options import shortened
from bayesuq.subnormals import flushed

Structure = Literal["diagonal", "kronecker", "full"]
Subset = Literal["all", "last_layer"]
PROBED = 2  # rows that tell whether the derivatives of a layer factor


@training_options(learning_rate=LEARNING_RATE)
def fit(
    model: BayesianNetwork | MapPosterior | Program,
    data: Data,
    *,
    observed: Observed = None,
    structure: Structure | ProgramStructure | None = None,
    subset: Subset | None = None,
    prior_factors: PriorFactors | None = None,
    mode: MapPosterior | None = None,
    **options: Unpack[TrainingOptions],
) -> LaplacePosterior | ProgramLaplace:
    """Find the mode, and the curvature there in one more pass over the data.

    Args:
        model: The joint density; the priors of the weights that are approximated must be normal. Or a mode that is
            there, as `bayesuq.adopt` and `map_estimate.fit` give it, which stands for its model and for `mode`. Or a
            Pyro program, whose latents of any law are approximated on the real line, by the Hessian itself.
        data: Rows to fit, or a DataLoader of them.
        observed: Of a program, the names of its observed sites: see `hmc.fit`.
        structure: Of the curvature: "diagonal"; "kronecker", factored layer by layer (parameters outside of linear
            layers and plain convolutions get a diagonal); or "full", with O(R^2) memory for R weights. None is
            "kronecker" for networks and "full" for programs. These have no layers, but "sites", a block for each
            latent site, which is exact where they are independent given the data, and "plates", which is "full" in
            less room: members of a plate are independent given the G numbers outside of it, so that n members of b
            numbers take O(G^2 + n b (b + G)) memory and G + b products with the Hessian.
        subset: Which random weights are approximated, "all" or those of the "last_layer". All else, the likelihood's
            unknowns among it, stays at the mode. None is the last layer where targets are labels and nothing
            else was said: logits of labels hold the other weights so little that under N(0, 1) all of them together
            predict worse than the mode. It is all random ones of real targets and counts, of a `random=` of the
            model's own, and of an adopted network.
        prior_factors: Multiplies the prior's precisions by what the evidence asks for, at a fixed mode: "one" factor
            for all, or "each" parameter's own; None leaves the prior as it is.
        mode: A fitted mode of the same model, on the same data, instead of training one; the options of the training
            then say nothing but where to compute.
        learning_rate: Adam's step size at the start; scales of the likelihood move ten times as fast.

    Returns:
        The linearised posterior; its `sampled` and `probit` are other readings of the same law.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Priors that are not normal; a full structure of more than
            20,000 weights; "plates" of a program without latents in a plate, or whose members are coupled; a mode of
            another model; data that the network or the likelihood does not take; options out
            of range.
        FloatingPointError: The loss stopped being finite.

    Warns:
        ConvergenceWarning: Weights that are no mode.
        UserWarning: Linear layers that a Kronecker structure leaves out; the evidence has no best factor within
            [1e-8, 1e8].

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> posterior = fit(model, data, structure="full", num_epochs=500, learning_rate=0.1, seed=0)
        >>> round(posterior.log_marginal_likelihood, 1)
        -1.9
    """
    training = Training.of(options)
    if not isinstance(model, MapPosterior) and is_program(model):
        _check_options_of_program(structure, subset, prior_factors, mode)
        return fit_program(model, data, training, observed, structure=structure or "full")
    check_unnamed(observed)
    structure = "kronecker" if structure is None else structure
    check_one_of(structure, "structure", Structure)
    if subset is not None:
        check_one_of(subset, "subset", Subset)
    if prior_factors is not None:
        check_one_of(prior_factors, "prior_factors", PriorFactors)
    if isinstance(model, MapPosterior):
        mode, model = model if mode is None else mode, model.model
    if mode is not None and not isinstance(mode, MapPosterior):
        raise TypeError(f"`mode` must be a posterior of `map_estimate.fit`; got {type(mode).__name__}.")
    names: list[str] = []
    if isinstance(model, BayesianNetwork):
        names = _names(model, subset or _default_subset(model, mode))
        model.likelihood.check_density()
        _check_model(model, names, structure)
    if mode is None:
        mode = fit_mode(cast(BayesianNetwork, model), data, training)
    elif training.captured:
        warn_of_no_capture("the mode was there, and nothing is trained")
    network = cast(BayesianNetwork, model)  # `session` looks
    with session(network, data, replace(training, validation=None, patience=None)) as (model, source, _):
        posterior = _around(model, mode.to(model.device), source, structure, names)
    return posterior if prior_factors is None else posterior.tuned(prior_factors)


def _check_options_of_program(structure: str | None, subset: str | None, prior_factors: object, mode: object) -> None:
    """Refuse what networks alone have."""
    if structure is not None:
        check_one_of(structure, "structure", ProgramStructure)
    if subset not in (None, "all") or prior_factors is not None or mode is not None:
        raise ValueError("`subset`, `prior_factors` and `mode` are for networks; leave them out for a program.")


def _default_subset(model: BayesianNetwork, mode: MapPosterior | None) -> str:
    """The last layer where targets are labels, if nobody said which weights are random; see `fit`."""
    has_labels = model.likelihood.has_labels or model.likelihood.takes_logits is not None
    is_adopted = mode is not None and not mode.history.loss
    return LAST_LAYER if has_labels and model.random == ALL and not is_adopted else ALL


def _names(model: BayesianNetwork, subset: str) -> list[str]:
    """The random weights in a subset."""
    names = model.random_weights
    if subset == LAST_LAYER:
        last = set(matching_names(model.net, LAST_LAYER))
        names = [name for name in names if name in last]
    if not names:
        raise ValueError(f"The subset {subset!r} has no random weight; the model's are {shortened([*model.laws])}.")
    return names


def _check_model(model: BayesianNetwork, names: Sequence[str], structure: str) -> None:
    others = [name for name in names if normal_base(model.laws[name]) is None]
    if others:
        raise ValueError(
            f"A Laplace approximation needs normal priors; those of {', '.join(others)} are not. Take priors.Normal, "
            "or another method."
        )
    size = Layout.of(model, names).size
    if structure == "full" and size > LARGEST_FULL:
        raise ValueError(
            f"A full structure takes at most {LARGEST_FULL} weights; got {size}. Pass structure='kronecker' or "
            "subset='last_layer'."
        )


@full_precision()
def _around(
    model: BayesianNetwork, mode: MapPosterior, source: Source, structure: str, names: Sequence[str]
) -> LaplacePosterior:
    """The posterior around a mode.

    Raises:
        ValueError: A mode of another model.
    """
    check_same_sites(mode, model, "mode")
    theta = Layout.of(model).split(mode.values)
    linear = Linearisation(model, theta, mode.buffers, names)
    left: list[str] = []
    found = None
    while found is None:
        try:
            found = _summed(linear, source, structure, left)
        except UnevenRowsError as error:  # as an expert's, of a mixture that only these rows showed
            left.append(error.path)
            linear.layers = [layer for layer in linear.layers if layer.path != error.path]
    log_likelihood, slopes, sums = found
    if structure == "kronecker":
        _check_layers(linear, left)
    posterior = LaplacePosterior(
        model=model,
        values=mode.values,
        buffers=mode.buffers,
        history=mode.history,
        structure=structure,
        names=tuple(names),
        layers=tuple(layer.path for layer in linear.layers),
        curvature=sums,
        log_likelihood=log_likelihood,
        prior_factors=(1.0,) * len(names),
    )
    slope = posterior.slope(slopes)
    del found, slopes  # which a last layer of many classes feels
    rise = 0.5 * float(posterior.law.square(slope, lambda: linear.as_derivatives(slope)))
    _warn_if_no_mode(posterior, rise, source.num_data)
    return posterior


@flushed()
def _summed(
    linear: Linearisation, source: Source, structure: str, left: list[str]
) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Over all rows: the log-likelihood in nats, its gradient, and the curvature.

    Layers whose derivatives do not factor are taken out of `linear`, and noted down.

    Raises:
        UnevenRowsError: A layer that gets some of the rows only.
    """
    sums: dict[str, Tensor] = {}
    slopes: dict[str, Tensor] = {}
    log_likelihood, first = 0.0, 0
    for batch in source.complete():
        if not sums:
            left.extend(linear.probe(batch.x[:PROBED]))
            _check_maps(linear, batch)
        num_columns = TOGETHER if linear.is_large(batch.x) else None
        size = linear.rows_at_a_time(batch.x, dense=structure == "full", num_columns=num_columns)
        if linear.is_head(batch.x) and type(linear.model.likelihood) is Categorical:
            size = BUDGET // linear.numbers_of_head()  # no derivative of a single output is held
        for part in _chunks(batch, size):
            terms, slope, found = _sums_of(linear, part, structure, Place(first, source.num_data))
            log_likelihood += terms
            first += len(part.x)
            sums = STRUCTURES[structure].added(sums, found, linear.layers) if sums else found
            slopes = {name: value + slopes[name] if slopes else value for name, value in slope.items()}
    return log_likelihood, slopes, sums


def _check_maps(linear: Linearisation, batch: Batch) -> None:
    """Refuse real-valued images but where each pixel is a row, for which a covariance of outputs is small."""
    if linear.model.likelihood.has_units and batch.y.ndim > 2 and not linear.is_by_pixel(batch.x):
        raise ValueError(
            "A Laplace approximation of real-valued images is one of the convolution that the network ends in: pass "
            "subset='last_layer', and a network whose last layer is one. Of whole networks take another method, such "
            "as `ensemble` or `swag`."
        )


def _warn_if_no_mode(posterior: LaplacePosterior, rise: float, num_data: int) -> None:
    """Tell of weights that are none, by how many nats the log joint can still rise.

    To the second order that is g^T Sigma g / 2 for the gradient g, Newton's decrement. The law itself lies half as many
    nats below its top, on average, as there are directions that the data determine, tr(H Sigma): MacKay's number of
    good parameters. A point that lies lower is outside of the law that is put around it.
    """
    spread = 0.5 * float(posterior.law.num_determined())
    if rise <= spread:
        return
    history = posterior.history
    others = " Weights kept by `validation` are no mode either: leave it out." if history.validation_loss else ""
    if any(is_dropout(module) for module in posterior.model.net.modules()):
        others += " Dropout moves the mode, too: fit a network without it."
    remedy = (
        f"Raise `num_epochs` ({len(history.loss)} were made), or lower `batch_size` where an epoch has few steps."
        if history.loss
        else "The network was trained elsewhere: for another prior (a narrower or wider one, or `is_centred=True`), or "
        "on other rows than these. Or take these weights as a start: `map_estimate.fit(adopted.model, data)`."
    )
    warn_of_fit(
        "The weights are no mode, and the law around them is no approximation: by the curvature, the log joint still "
        f"rises by {rise:.2g} nats ({rise / num_data:.2g} a row), where draws of the law lie {spread:.2g} nats below "
        f"its top. {remedy}{others}"
    )


def _check_layers(linear: Linearisation, left: Sequence[str]) -> None:
    """Refuse a Kronecker structure without a layer, and tell of layers that are left out of it."""
    why = f"the gradients of {', '.join(left)} do not factor: other parts use their weights too, or mix their rows"
    if not linear.layers:
        raise ValueError(
            "A Kronecker structure needs a linear layer or a plain convolution with random weights; none has any"
            f"{f' ({why})' if left else ''}. Pass structure='diagonal'."
        )
    if left:
        warn_of_fit(f"In the Kronecker structure {why}. They get a diagonal curvature.", UserWarning)


def _chunks(batch: Batch, size: int) -> Iterator[Batch]:
    weights = [None] * len(batch.x) if batch.weight is None else batch.weight.split(size)
    for x, y, weight in zip(batch.x.split(size), batch.y.split(size), weights, strict=False):
        yield Batch(x, y, weight)


class Place(NamedTuple):
    """Where some rows stand among all: the number of the first, and how many there are."""

    first: int
    num_data: int


def _sums_of(
    linear: Linearisation, batch: Batch, structure: str, place: Place
) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Log-likelihood of some rows in nats, its gradient, and what they add to the curvature."""
    likelihood = linear.model.likelihood_given(linear.theta)

    def log_prob(f: Tensor) -> Tensor:
        return likelihood.log_prob(f, batch.y, batch.weight).double().sum()

    if linear.is_head(batch.x):
        return _sums_of_head(linear, batch, structure, log_prob)
    f = linear.forward(batch.x)
    weights = output_weights(likelihood, f, batch.y, batch.weight)
    if linear.is_by_pixel(batch.x):
        weights = as_rows(weights.view(f.shape))
    of_row, shares = _shares(weights)

    def sums(columns: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        _, derivatives = linear.derivatives(batch.x, lambda f: shares.sqrt().unsqueeze(2) * columns(f))
        return STRUCTURES[structure].sums(derivatives, of_row, linear.names)

    if linear.is_large(batch.x):
        groups = [
            sums(partial(random_columns, likelihood, first=place.first, group=group))
            for group in range(num_groups(place.num_data))
        ]
        found = {name: torch.stack([group[name] for group in groups]).mean(dim=0) for name in groups[0]}
    else:
        found = sums(likelihood.fisher_root)
    return float(log_prob(f)), linear.gradient(batch.x, log_prob), found


def _sums_of_head(
    linear: Linearisation, batch: Batch, structure: str, log_prob: Callable[[Tensor], Tensor]
) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """The same where a linear layer gives the outputs, and is the only one sought: in one pass of the network.

    Its inputs a are all that is needed of what comes before: the gradient is g a^T with g that at the outputs, and the
    curvature of labels has a closed form.
    """
    likelihood, (layer,) = linear.model.likelihood_given(linear.theta), linear.layers
    f, inputs = linear.head_inputs(batch.x)
    of_row, shares = _shares(output_weights(likelihood, f, batch.y, batch.weight))
    if type(likelihood) is Categorical:
        found = STRUCTURES[structure].softmax_sums(layer, inputs, f.double().softmax(dim=1), of_row)
    else:
        columns = shares.sqrt().unsqueeze(2) * likelihood.fisher_root(f)
        derivatives = Derivatives({layer: Factors(inputs, columns.mT.unsqueeze(2).double())}, {})
        found = STRUCTURES[structure].sums(derivatives, of_row, linear.names)
    with torch.enable_grad():
        leaf = f.detach().requires_grad_()
        total = log_prob(leaf)
        (slope,) = torch.autograd.grad(total, leaf)
    return float(total.detach()), layer.split(slope.double().T @ inputs[:, 0]), found


def _shares(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The mean weight of each row's outputs, (N,), and each output's share in it, (N, K)."""
    of_row = weights.mean(dim=1)
    return of_row, (weights / of_row.unsqueeze(1)).nan_to_num(0.0)
