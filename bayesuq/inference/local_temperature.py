"""A temperature for each pixel, told by a small network from the image and what the posterior says of it.

    T(x) = exp(h(x, log p(y | x, D)))        p_local(y | x) = (1 / S) sum_s softmax(f_s(x) / T(x))[y]

Miscalibration differs within an image: a posterior may be too sure at borders and not sure enough inside. h is two
convolutions along the axes of signals, images or volumes, together 5 pixels wide, under normal priors of variance
1 / fan-in. First one temperature for all pixels is found; then h moves to the mode given held-out labels, and keeps the
weights of the epoch that is best on a fifth of the images, which it is not trained on. As in `temperature`, every
draw's logits are divided before they are mixed, so that all uncertainties stay defined. The paper's network is a tree
of gated convolutions over the logits of one network; h sees the mixture of a posterior instead. A label that is no map
counts as a map of one pixel.

Reference:
    Ding, Han, Liu & Niethammer 2021, Local Temperature Scaling for Probability Calibration, section 3 (arXiv
    2008.05105).
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, check_count, check_inputs, check_positive
from bayesuq.columns import keeps_names
from bayesuq.data import Dataset
from bayesuq.gradients import unless_kept
from bayesuq.inference.posteriors.network import over_network
from bayesuq.inference.posteriors.prediction import DEFAULT_NUM_SAMPLES, differentiated, predict_batches
from bayesuq.inference.posteriors.wrapping import WrappingPosterior, check_fitted
from bayesuq.inference.training.optimizers import Adam, falling_rate
from bayesuq.inputs import require_tensor
from bayesuq.options import suggests_names
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.randomness import derive_seed, generator, isolated, resolve_seed
from bayesuq.to_arviz.groups import Drawn, Wanted
from bayesuq.windows import WindowOptions

__all__ = ["fit"]
__dir__ = __all__.copy

DRAWS_BUDGET = 2**25  # numbers in the draws held at a time: 128 MiB in float32
LEAST_LOG_PROB = -10.0  # what h is told of a class that is next to impossible
FEWEST, NUM_STEPS = 4, 2  # rows in a minibatch; minibatches of an epoch, of labels that are no maps
WATCHED_SHARE = 5  # one image in so many chooses the epoch
WEIGHTS, ORDER = range(2)  # what a fit's seed is split into
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # by the number of axes
OF_ROWS = 2  # axes of the map of one pixel that a label without place counts as


@suggests_names
@keeps_names
def fit(
    posterior: Posterior,
    data: Dataset,
    *,
    hidden: int = 8,
    num_epochs: int = 100,
    batch_size: int | None = None,
    learning_rate: float = 1e-2,
    ignore_index: int | None = None,
    num_samples: int | None = None,
    seed: int | None = None,
) -> "LocalTemperaturePosterior":
    """Choose the temperature network that gives held-out labels the highest probability.

    The draws of all held-out rows are kept while it is fitted: O(S N C H W) memory.

    Args:
        posterior: A fitted posterior over labels; it stays as it is.
        data: Held-out images with their labels, and weights where there are some.
        hidden: Channels of the network between its two convolutions.
        num_epochs: Passes over the held-out images, for one temperature and again for the network.
        batch_size: Images in a minibatch, at most. None takes 4; of labels that are no maps, half of the rows.
        learning_rate: Adam's step size at the start; it falls to 0 over the steps.
        ignore_index: The label of void pixels; None is that of the posterior's likelihood, where it has one.
        num_samples: Draws of the mixture that is calibrated, as for `predict`; predict with as many.
        seed: Of the draws, of the network's first weights, and of the order of the images.

    Returns:
        The same posterior, read at logits divided by a temperature for each pixel.

    Raises:
        TypeError: A posterior over real targets, data that are no Dataset, options of the wrong kind.
        ValueError: Labels outside the classes, no label of positive weight, options out of range; labels of regions, or
            at other places than the pixels of the inputs; more than three axes.

    Example:
        >>> from bayesuq.inference import map_estimate
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> net = networks.unet(1, 2, depth=1, width=2)
        >>> model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
        >>> data = Dataset(torch.rand(4, 1, 8, 8), torch.randint(2, (4, 8, 8)))
        >>> scaled = fit(map_estimate.fit(model, data, num_epochs=1, seed=0), data, num_epochs=2, seed=0)
        >>> scaled.temperatures(data.x).shape
        torch.Size([4, 8, 8])
    """
    for name, size in {"hidden": hidden, "num_epochs": num_epochs, "batch_size": batch_size}.items():
        if size is not None:
            check_count(size, name)
    check_positive(learning_rate, "learning_rate")
    check_fitted(posterior)
    if not isinstance(data, Dataset):
        raise TypeError(f"`data` must be a bayesuq.Dataset; got {type(data).__name__}.")
    require_tensor(data.x, "A temperature for each pixel")
    key = resolve_seed(seed)
    predictive = _with_draws(posterior.predict(data.x, num_samples=num_samples, seed=key, keep_samples=True))
    num_axes = _num_axes(data.x, predictive)
    if ignore_index is None:
        network = over_network(posterior)
        ignore_index = None if network is None else getattr(network.likelihood, "ignore_index", None)
    labels, weight = (_as_maps(each, num_axes, num_leading=1) for each in _targets(predictive, data, ignore_index))
    inputs = _inputs(data.x.to(labels.device), predictive, num_axes)
    with isolated(derive_seed(key, WEIGHTS)):
        net = _network(inputs.shape[1], hidden, num_axes)
    net.to(inputs.device)
    draws = _as_maps(_draws(predictive), num_axes, num_leading=3)
    before = float(_loss(draws, torch.ones_like(inputs[:, :1]), labels, weight))
    # One temperature first, so that a network that finds nothing more to say is no worse than that.
    last_bias = list(net.parameters())[-1:]
    held_out = HeldOut(draws, inputs, labels, weight)
    order = torch.randperm(len(labels), generator=generator(key, ORDER)).to(labels.device)
    watched, trained = order.tensor_split([len(order) // WATCHED_SHARE])
    watched = watched if len(watched) else trained
    if batch_size is None:
        batch_size = FEWEST if labels[0].numel() > 1 else max(FEWEST, -(-len(trained) // NUM_STEPS))
    for parameters in (last_bias, list(net.parameters())):
        training = _Training(parameters, num_epochs, batch_size, learning_rate)
        _train(net, held_out, trained, watched, training, generator(key, ORDER, len(parameters)))
    weights = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    with torch.no_grad():
        after = float(_loss(draws, net(inputs).exp(), labels, weight))
    return LocalTemperaturePosterior(posterior=posterior, weights=weights, negative_log_likelihood=(before, after))


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LocalTemperaturePosterior(WrappingPosterior):
    """A posterior read at logits that are divided by a temperature for each pixel.

    Attributes:
        posterior: The posterior as it was.
        weights: Of the temperature network, by name.
        negative_log_likelihood: Of the held-out labels before and after, nats a label.
    """

    posterior: Posterior
    weights: Mapping[str, Tensor]
    negative_log_likelihood: tuple[float, float]

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
        """The predictive distribution p(y* | x, D) at scaled logits: see `Posterior.predict`.

        The posterior is asked for a few rows at a time, whose draws fit memory. Where its random numbers belong to the
        places of rows, as the masks of MC dropout do, they repeat from one such group to the next.
        """
        key = resolve_seed(seed)

        def scaled(batch: ArrayLike) -> Iterator[PredictiveDistribution]:
            for rows, predictive in self._in_groups(batch, num_samples, key, **windows):
                temperature = self._temperature(rows, predictive)
                logits = _draws(predictive)
                divided = _as_maps(logits, temperature.ndim - 2, num_leading=3) / temperature
                yield CategoricalPredictive.from_logits(divided.reshape(logits.shape), keep_samples=keep_samples)

        with differentiated(x, differentiable=differentiable):
            return predict_batches(x, scaled, keep_samples=keep_samples)

    def temperatures(self, x: ArrayLike, *, num_samples: int | None = None, seed: int | None = None) -> Tensor:
        """T of each pixel, (N, ...), above 1 where the posterior is too sure; the arguments are those of `predict`."""
        key = resolve_seed(seed)
        parts = [
            self._temperature(rows, predictive).reshape(predictive.entropy_sum.shape)
            for rows, predictive in self._in_groups(x, num_samples, key)
        ]
        return torch.cat(parts)

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: the weights of the posterior, and functions of x at scaled logits."""
        predict = partial(self.predict, num_samples=wanted.num_samples, seed=wanted.seed, keep_samples=True)
        return replace(self.posterior.drawn(wanted), method=type(self).__name__, predict=predict)

    def _in_groups(
        self, x: ArrayLike, num_samples: int | None, seed: int, **windows: Unpack[WindowOptions]
    ) -> Iterator[tuple[Tensor, CategoricalPredictive]]:
        inputs = check_inputs(x)
        one = _with_draws(self.posterior.predict(inputs[:1], num_samples=1, seed=seed, keep_samples=True, **windows))
        draws = DEFAULT_NUM_SAMPLES if num_samples is None else check_count(num_samples, "num_samples")
        together = max(1, DRAWS_BUDGET // (draws * one.probability_sum.numel()))
        for rows in inputs.split(together):
            predicted = self.posterior.predict(rows, num_samples=num_samples, seed=seed, keep_samples=True, **windows)
            yield rows, _with_draws(predicted)

    def _temperature(self, rows: Tensor, predictive: CategoricalPredictive) -> Tensor:
        """T, (N, 1, ...), along the axes that the weights were fitted to."""
        num_axes = self.weights["0.weight"].ndim - 2
        inputs = _inputs(rows.to(predictive.probability_sum.device), predictive, num_axes)
        given = {name: value.to(inputs.device) for name, value in self.weights.items()}
        with torch.device("meta"):  # without drawing weights, which would move the global generator
            net = _network(inputs.shape[1], len(given["0.bias"]), num_axes)
        with unless_kept():
            log_temperature: Tensor = torch.func.functional_call(net, given, (inputs,))
        return log_temperature.exp()


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a network is chosen by, as maps: logits (S, N, C, ...), what it sees, labels and weights (N, ...)."""

    draws: Tensor
    inputs: Tensor
    labels: Tensor
    weight: Tensor

    def loss(self, net: nn.Module, rows: Tensor) -> Tensor:
        """Of some rows, in nats a label, 0-d."""
        return _loss(self.draws[:, rows], net(self.inputs[rows]).exp(), self.labels[rows], self.weight[rows])


@dataclass(frozen=True, eq=False)
class _Training:
    parameters: list[nn.Parameter]
    num_epochs: int
    batch_size: int
    learning_rate: float


def _train(
    net: nn.Sequential, held_out: HeldOut, rows: Tensor, watched: Tensor, training: _Training, order: torch.Generator
) -> None:
    """Move the parameters, and leave them where the watched rows had the smallest loss, the start included."""
    optimizer = Adam([{"params": training.parameters}])
    num_batches = -(-len(rows) // training.batch_size)
    num_steps, steps = training.num_epochs * num_batches, count()
    total = held_out.weight.sum()
    best, kept = _watched_loss(net, held_out, watched), copy.deepcopy(net.state_dict())
    for _ in range(training.num_epochs):
        for batch in rows[torch.randperm(len(rows), generator=order).to(rows.device)].tensor_split(num_batches):
            with torch.enable_grad():
                net.zero_grad()
                (held_out.loss(net, batch) + _energy(net) / total).backward()
            optimizer.param_groups[0]["lr"] = falling_rate(training.learning_rate, next(steps), num_steps)
            optimizer.step()
        loss = _watched_loss(net, held_out, watched)
        if loss < best:
            best, kept = loss, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)


def _watched_loss(net: nn.Module, held_out: HeldOut, rows: Tensor) -> float:
    with torch.no_grad():
        return float(held_out.loss(net, rows))


def _network(in_channels: int, hidden: int, num_axes: int) -> nn.Sequential:
    """From images and log probabilities to log T, 0 everywhere before it is fitted."""
    convolution = CONVOLUTIONS[num_axes]
    last = convolution(hidden, 1, kernel_size=3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution(in_channels, hidden, kernel_size=3, padding=1), nn.ReLU(), last)


def _energy(net: nn.Sequential) -> Tensor:
    """Minus the log prior of the weights, N(0, 1 / fan-in), and of the biases, N(0, 1), up to a constant, 0-d."""
    parts = [
        0.5 * (parameter.square().sum() * (parameter[0].numel() if parameter.ndim > 1 else 1))
        for parameter in net.parameters()
    ]
    return torch.stack(parts).sum()


def _num_axes(x: Tensor, predictive: CategoricalPredictive) -> int:
    """Along how many axes the labels of these inputs lie; those that have no place are maps of one pixel.

    Raises:
        ValueError: Labels of regions, or at other places than the pixels of the inputs; more than three axes.
    """
    places = predictive.mean.shape[2:]
    if not places:
        return OF_ROWS
    if x.shape[2:] != places or len(places) not in CONVOLUTIONS:
        raise ValueError(
            "A temperature for each pixel needs one label at each pixel of signals, images or volumes; got inputs of "
            f"shape {tuple(x.shape)} and class probabilities of shape {tuple(predictive.mean.shape)}. Take one "
            "temperature for all, by `temperature.fit`."
        )
    return len(places)


def _inputs(x: Tensor, predictive: CategoricalPredictive, num_axes: int) -> Tensor:
    """What the network sees, (N, channels + C, ...), float32."""
    images = _as_maps(x.float().reshape(len(x), 1) if x.ndim == 1 else x.float(), num_axes, num_leading=2)
    log_probs = _as_maps(predictive.mean.log().clamp(min=LEAST_LOG_PROB).float(), num_axes, num_leading=2)
    if images.shape[2:] != log_probs.shape[2:]:  # labels that are no maps: all of the image is told to their one pixel
        images = images.flatten(1)[:, :, None, None]
    return torch.cat([images, log_probs], dim=1)


def _as_maps(values: Tensor, num_axes: int, *, num_leading: int) -> Tensor:
    """Maps after so many leading dimensions; weights of before, fitted to rows of pixels, see such rows again."""
    return values if values.ndim == num_leading + num_axes else values.reshape(*values.shape[:num_leading], -1, 1)


def _loss(draws: Tensor, temperature: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Mean negative log likelihood of the mixture's labels, nats a label, 0-d."""
    log_probs = (draws / temperature).log_softmax(dim=2)
    chosen = labels.expand(len(draws), *labels.shape).unsqueeze(2)
    log_mixture = log_probs.gather(2, chosen).squeeze(2).logsumexp(dim=0) - torch.tensor(float(len(draws))).log()
    return -(weight * log_mixture).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def _targets(predictive: CategoricalPredictive, data: Dataset, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Labels and weights, (N, ...), those of void pixels 0."""
    void = torch.zeros_like(data.y, dtype=torch.bool) if ignore_index is None else data.y == ignore_index
    labels = predictive.labels(data.y.masked_fill(void, 0))
    weight = torch.ones_like(labels, dtype=torch.float32)
    if data.weight is not None:
        given = data.weight.to(weight)
        weight = given.reshape(
            labels.shape if given.numel() == labels.numel() else (-1, *[1] * (labels.ndim - 1))
        ).expand(labels.shape)
    weight = torch.where(void.reshape(labels.shape).to(weight.device), 0.0, weight)
    if not weight.sum() > 0:
        raise ValueError("`data` has no label of positive weight to choose temperatures by.")
    return labels, weight


def _with_draws(predictive: PredictiveDistribution) -> CategoricalPredictive:
    if not isinstance(predictive, CategoricalPredictive) or predictive.draws is None:
        raise TypeError(f"Local temperatures need single draws of class probabilities; got {predictive!r}.")
    return predictive


def _draws(predictive: CategoricalPredictive) -> Tensor:
    """Logits of the draws, (S, N, C, ...), float32; of a class that a draw holds impossible as low as they come."""
    draws = _with_draws(predictive).draws
    return torch.empty(0) if draws is None else draws.float().clamp(min=-1e30)
