"""A posterior's networks as one ONNX graph, for where there is no Python: x in; mean, total and epistemic out.

S draws of the weights stand stacked in the graph, which runs them together and mixes what they say, as `predict` does.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesuq import optional
from bayesuq.arrays import ArrayLike, to_tensor
from bayesuq.data import Standardizer
from bayesuq.inference.posteriors.ensemble import EnsemblePosterior
from bayesuq.inference.posteriors.prediction import draw_indices
from bayesuq.inference.posteriors.units import UnitsPosterior
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.temperature.fitting import TemperaturePosterior
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.labels import Bernoulli, Categorical
from bayesuq.models.likelihoods.real import HeteroscedasticNormal, Normal
from bayesuq.models.network_inputs import cast_inputs
from bayesuq.models.rules import trainable_parameters
from bayesuq.models.scaled_logits import ScaledLogits
from bayesuq.models.spectral import with_exact_norms
from bayesuq.posterior import Posterior
from bayesuq.randomness import resolve_seed

__all__ = ["to_onnx"]
__dir__ = __all__.copy

OUTPUTS = ("mean", "total", "epistemic")
NUM_ROWS = 7  # that torch follows: a number which no layer has, so that none is taken for it
SMALLEST = 1e-300  # whose logarithm is a number: p log p is 0 at 0
Kind = Literal["labels", "one logit", "normal", "heteroscedastic"]


def to_onnx(
    posterior: Posterior,
    path: "str | PathLike[str]",
    x: ArrayLike,
    *,
    num_samples: int | None = None,
    seed: int | None = 0,
) -> None:
    """Write a graph of the input `x`, (N, ...), and the outputs `mean`, `total` and `epistemic`, each as `predict` has.

    Of labels these are probabilities (N, C, ...) and nats (N, ...), of real targets units of y and of y squared, (N,
    D), all in float64; total minus epistemic is aleatoric. The number of rows is free. The draws are those of
    `posterior.predict(x, num_samples=num_samples, seed=seed)`.

    Args:
        posterior: Over weights, such as of `variational`, `ivon`, `swag`, `hmc` or `sgmcmc`; an ensemble of networks or
            of these; at a temperature, and in its units (`bq.in_units`), too.
        path: Of the file.
        x: Some inputs, (N, ...), whose shape and type the graph takes.
        num_samples: S, as for `predict`; the file grows with it.
        seed: Of the draws; None takes one from torch's generator.

    Raises:
        ImportError: Without the extra `onnx`.
        TypeError: Another posterior, such as of dropout, whose masks are drawn for every row, or a Gaussian process;
            another likelihood than Categorical, Bernoulli, Normal and HeteroscedasticNormal.
        ValueError: Inputs that the posterior does not take.

    Example:
        >>> import bayesuq as bq
        >>> split = bq.datasets.load("toy/linear")
        >>> model = bq.models.BayesianNetwork(
        ...     bq.models.networks.mlp(1, (5,), 1), bq.models.priors.Normal(), bq.models.likelihoods.Normal()
        ... )
        >>> posterior = bq.inference.variational.fit(model, split.train, num_epochs=100, seed=0)
        >>> to_onnx(posterior, "linear.onnx", split.test.x, num_samples=20)  # doctest: +SKIP
    """
    _ = optional.onnxscript  # which torch's exporter stands on
    units = posterior.standardizer if isinstance(posterior, UnitsPosterior) else None
    inner = posterior.posterior if isinstance(posterior, UnitsPosterior) else posterior
    inner = inner.posterior if isinstance(inner, TemperaturePosterior) else inner
    networks = Networks.of(inner, num_samples, resolve_seed(seed))
    rows: Any = to_tensor(x, "x")
    rows = rows if units is not None else cast_inputs(networks.model, rows)
    posterior.predict(rows[:1], num_samples=1, seed=seed)  # refuses what it does not take
    rows = torch.cat([rows] * math.ceil(NUM_ROWS / len(rows)))[:NUM_ROWS]
    program = _program(Graph(networks, units), rows)
    if _is_of_one_size(program):  # as BatchNorm is, where torch runs it for all networks together
        program = _program(Graph(networks, units, is_stacked=False), rows)
    if _is_of_one_size(program):
        raise TypeError(
            f"The graph of {type(networks.model.net).__name__} would be of one number of rows only: something in it "
            "depends on how many there are. Rows must not meet in the network."
        )
    program.save(fspath(path))


def _program(graph: "Graph", rows: Tensor) -> Any:
    """What torch makes of it: its `model` is the graph."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's exporter about itself
        warnings.simplefilter("ignore", DeprecationWarning)
        program: Any = torch.onnx.export(
            graph.eval(), (rows,), dynamic_shapes={"x": {0: torch.export.Dim("rows")}}, dynamo=True, verbose=False
        )
    _name(program.model.graph)
    return program


def _is_of_one_size(program: Any) -> bool:
    return isinstance(program.model.graph.inputs[0].shape[0], int)


def _name(graph: Any) -> None:
    """Call the input and the outputs as they are promised; torch gives values the names of their operators."""
    for node in graph:
        for value in node.outputs:
            value.name = f"of_{value.name}"
    graph.inputs[0].name = "x"
    for value, name in zip(graph.outputs, OUTPUTS, strict=True):
        value.name = name


@dataclass(frozen=True)
class Networks:
    """S networks, as one architecture and its values.

    Attributes:
        model: Whose architecture they have.
        stacked: What differs between them, (S, ...) by the network's names.
        shared: Buffers and frozen parameters that all have, by name.
        noise: Variance of the noise of each, (S, 1, D) or (S, 1, 1), where it is the same for all rows; else none.
    """

    model: BayesianNetwork
    stacked: Mapping[str, Tensor]
    shared: Mapping[str, Tensor]
    noise: Tensor | None

    @classmethod
    def of(cls, posterior: Posterior, num_samples: int | None, seed: int) -> "Networks":
        """Draws of a posterior over weights, or those of an ensemble's members."""
        parts = [cls._of_weights(*part) for part in _over_weights(posterior, num_samples, seed)]
        first = parts[0]
        if len(parts) == 1:
            return first
        same = {
            name: value
            for name, value in first.shared.items()
            if all(name in part.shared and torch.equal(part.shared[name], value) for part in parts)
        }
        stacks = []
        for part in parts:
            number = len(next(iter(part.stacked.values())))
            own = {name: value for name, value in part.shared.items() if name not in same}
            stacks.append({**part.stacked, **{n: v.expand(number, *v.shape) for n, v in own.items()}})
        noises = [part.noise for part in parts if part.noise is not None]
        return cls(
            first.model,
            {name: torch.cat([stack[name] for stack in stacks]) for name in stacks[0]},
            same,
            torch.cat(noises) if noises else None,
        )

    @classmethod
    def _of_weights(cls, posterior: WeightPosterior, num_samples: int | None, seed: int) -> "Networks":
        model = posterior.model
        theta = posterior.sample_weights(num_samples, seed=seed)
        weights = {name: value for name, value in theta.items() if name in dict(model.net.named_parameters())}
        frozen = {name: value for name, value in model.net.named_parameters() if name not in weights}
        number = len(next(iter(theta.values())))
        likelihood: Any = model.likelihood_given(theta)
        noise = None
        if _kind(likelihood) == "normal":
            columns = max(int(likelihood.per_column), 1)
            noise = likelihood.predictive(torch.zeros(number, 1, columns)).noise_variance.double()
        held = {**frozen, **dict(posterior.buffers)}
        return cls(model, weights, {name: value.detach() for name, value in held.items()}, noise)


def _over_weights(
    posterior: Posterior, num_samples: int | None, seed: int
) -> Iterator[tuple[WeightPosterior, int | None, int]]:
    """Each posterior over weights that a posterior is made of, with its draws and its seed.

    Raises:
        TypeError: It is made of others.
    """
    if isinstance(posterior, WeightPosterior):
        draw_indices(num_samples, posterior.num_members)
        yield posterior, num_samples, seed
    elif isinstance(posterior, EnsemblePosterior):
        for member, number, own in posterior.parts(num_samples, seed):
            yield from _over_weights(member, number, own)
    else:
        raise TypeError(
            f"A {type(posterior).__name__} is no stack of networks. Take a posterior over weights, as variational, "
            "ivon, swag, hmc and sgmcmc give, or an ensemble; of Laplace's its `sampled`."
        )


def _kind(likelihood: Likelihood) -> Kind:
    """How outputs become probabilities or means.

    Raises:
        TypeError: A likelihood that is not written out here.
    """
    base = likelihood
    while isinstance(base, ScaledLogits):
        base = base.base
    if isinstance(base, Categorical):
        return "labels"
    if isinstance(base, Bernoulli):
        return "one logit"
    if isinstance(base, HeteroscedasticNormal):
        return "heteroscedastic"
    if isinstance(base, Normal) and not base.takes_scale:
        return "normal"
    raise TypeError(
        f"The predictive of {likelihood!r} is not written out as a graph: take Categorical, Bernoulli, Normal or "
        "HeteroscedasticNormal."
    )


class Graph(nn.Module):
    """The S networks and what follows them, as ONNX takes it: no branch on a value.

    Attributes:
        model: See `Networks`.
    """

    def __init__(self, networks: Networks, units: Standardizer | None, *, is_stacked: bool = True) -> None:
        super().__init__()
        self._is_stacked = is_stacked
        self.model, self._units, self._noise = networks.model, units, networks.noise
        self._likelihood = networks.model.likelihood
        self._kind = _kind(self._likelihood)
        self.tree = share_tensors(networks.model.net)
        with_exact_norms(self.tree)
        self._stacked, self._shared = dict(networks.stacked), dict(networks.shared)
        self._weights = trainable_parameters(networks.model.net).keys()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, total and epistemic uncertainty."""
        rows = x if self._units is None else self._units._features(x)
        rows = rows.to(self.model.dtype) if rows.is_floating_point() else rows

        def run(one: Mapping[str, Tensor]) -> Tensor:
            own = {name: value for name, value in one.items() if name not in self._weights}
            return self.model.forward(one, rows, net=self.tree, buffers={**own, **self._shared})

        f = torch.func.vmap(run)(self._stacked) if self._is_stacked else torch.stack([run(one) for one in self._each])
        if self._kind in ("labels", "one logit"):
            return self._of_labels(f.double())
        if self._kind == "normal":
            return self._of_numbers(f.double(), torch.as_tensor(self._noise))
        mean, log_variance = f.chunk(2, dim=2)
        likelihood: Any = self._likelihood
        log_variance = likelihood.log_variance(log_variance.float())  # onnxruntime has no arc tangent of float64
        return self._of_numbers(mean.double(), log_variance.double().exp())

    @property
    def _each(self) -> list[dict[str, Tensor]]:
        """The values of each network."""
        number = len(next(iter(self._stacked.values())))
        return [{name: values[s] for name, values in self._stacked.items()} for s in range(number)]

    def _of_labels(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self._likelihood.logits(f, dim=2)
        if self._kind == "one logit":
            logits = logits if logits.shape[2] == 1 else logits.unsqueeze(2)
            logits = torch.cat([torch.zeros_like(logits), logits], dim=2)
        p = logits.softmax(dim=2)
        mean = p.mean(dim=0)
        total = _entropy(mean, dim=1)
        return mean, total, total - _entropy(p, dim=2).mean(dim=0)

    def _of_numbers(self, means: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = means.mean(dim=0)
        epistemic = (means - mean).square().mean(dim=0)
        total = epistemic + noise.mean(dim=0)
        if self._units is None or self._units.y_loc is None or self._units.y_scale is None:
            return mean, total, epistemic
        scale = self._units.y_scale.double()
        return self._units.y_loc.double() + scale * mean, scale**2 * total, scale**2 * epistemic


def _entropy(p: Tensor, dim: int) -> Tensor:
    return -(p * p.clamp(min=SMALLEST).log()).sum(dim=dim)
