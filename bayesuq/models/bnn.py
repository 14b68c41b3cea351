"""The Bayesian network: a network, a prior over its weights and a likelihood make one joint density.

It can be read in two ways, which the tests hold equal: as a Pyro program (call the model), on which Pyro's own SVI,
autoguides, NUTS, Predictive and handlers work unchanged, and as a plain function of the weights (`log_joint`), on which
all of bayesuq's own methods stand:

    log p(theta, y | x) = log p(theta) + (num_data / N) sum_n w_n log p(y_n | f(x_n; theta))
"""

import copy
import threading
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesuq.arrays import check_device
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inputs import Given, arguments, described, output, structure, with_scales
from bayesuq.models.copies import deep_copy
from bayesuq.models.initialisation import Initialise, started
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.precision import raised
from bayesuq.models.priors import Prior
from bayesuq.models.rules import ALL, Rule, assign, matching_names, trainable_parameters
from bayesuq.models.running import Compile, with_running
from bayesuq.models.spectral import with_exact_norms
from bayesuq.options import shortened
from bayesuq.randomness import isolated, resolve_seed

__all__ = ["BayesianNetwork"]
__dir__ = __all__.copy

LIKELIHOOD = "likelihood."
RESERVED = ("y", "data", LIKELIHOOD + "*", "prior.*")
EMPTY = torch.Size()
WIDTHS = ("out_features", "out_channels")  # of torch's layers
REGISTERED = ("_parameters", "_modules")  # where torch looks for weights
DEPTH, LONGEST = 2, 1_000  # of containers that are looked into
WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


class BayesianNetwork:
    """One joint density p(theta, y | x) of the weights and the targets.

    The network is copied, put in evaluation mode, and never changed. Its frozen parameters (`requires_grad=False`) and
    its buffers are constants. A module, or a parameter, that has several places is one set of weights, with the name of
    its first place. The row of an embedding that stands for padding is a constant, whatever its weights. Any number of
    threads may use one model at once.

    Attributes:
        net: The private copy of the network; its weights are where fits start.
        prior: As passed.
        likelihood: As passed, for as many columns as the network has outputs where its parameters are of columns.
        random: As passed.
        laws: The prior of each random site, by name: parameters as in `net.named_parameters()`, then
            `likelihood.<name>`. Pyro distributions whose event is the whole parameter.
        points: The sites that are learned as point values instead, with where they start.

    Example:
        >>> from bayesuq.models import likelihoods, networks, priors
        >>> net = networks.mlp(2, (5,), 1)
        >>> model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> list(model.laws)
        ['1.weight', '1.bias', '3.weight', '3.bias']
    """

    def __init__(
        self,
        net: nn.Module,
        prior: Prior | Mapping[Rule, Prior],
        likelihood: Likelihood,
        *,
        random: Rule = ALL,
        seed: int | None = None,
        autocast: torch.dtype | None = None,
        compile: Compile = False,
    ) -> None:
        """Copy the network and lay out the sites.

        Args:
            net: Any module from x (N, ...) to f (N, C, ...).
            prior: One for all random parameters, or a mapping from rules to priors (see `bayesuq.models.priors`).
            likelihood: p(y | f).
            random: Which trainable parameters get a prior and a posterior: "all", "last_layer", or another rule (see
                `bayesuq.models.rules`). The rest are learned as point values.
            seed: Draws other initial weights, as `reinitialise` does, so that they are the same in every process; None
                keeps the network's own, which were drawn when it was made.
            autocast: torch.bfloat16 or torch.float16: in fits and predictions the network runs in that precision, as
                `torch.autocast` has it; weights and losses stay in theirs. Laplace's derivatives, HMC and
                microcanonical chains are computed in full. float16 has no scaling of gradients, and is for predicting.
            compile: Whether `torch.compile` compiles the forward pass, or the name of a backend of it. What looks into
                a pass, as features and Laplace do, and what draws masks or runs many draws at once, is not compiled.

        Raises:
            TypeError: An argument of another kind.
            ValueError: A rule that matches nothing; parameters of several dtypes or devices; lazy layers; a network
                wrapped for several processes; a parameter named as another site; a prior that excludes the value where
                a fit would start.

        Warns:
            UserWarning: Trainable parameters that torch does not see, as those of layers in a list.
        """
        _check_kinds(net, prior, likelihood)
        _warn_of_unseen(net)
        own = copied(net)
        if seed is not None:
            place = next((parameter.device for parameter in own.parameters()), None)
            own = started(own, resolve_seed(seed)).to(place)
        self.net = with_running(own, autocast=autocast, compile=compile).eval()
        self.prior = prior
        self.likelihood = likelihood = likelihood.for_outputs(_num_outputs(self.net))
        self.random = random
        parameters = trainable_parameters(self.net)
        names = matching_names(self.net, random)
        rules: Mapping[Rule, Prior] = {ALL: prior} if isinstance(prior, Prior) else prior
        chosen = assign(self.net, names, rules)
        self.laws: dict[str, Any] = {name: chosen[name].distribution(parameters[name]) for name in names}
        self.points: dict[str, Tensor] = {n: p.detach().clone() for n, p in parameters.items() if n not in self.laws}
        self._scalar = next(iter(parameters.values())).detach().new_tensor
        for name, unknown in likelihood.unknowns.items():
            start = self._scalar(unknown.initial)
            if unknown.prior is None:
                self.points[LIKELIHOOD + name] = start
            else:
                self.laws[LIKELIHOOD + name] = unknown.prior.distribution(start)
        self._weights = tuple(parameters)
        self._tied = _further_places(self.net)
        held = parameters.keys() - self._tied.keys()
        self._padding = {name: row for name, row in _padding_rows(self.net).items() if name in held}
        self._trees = _Trees()
        _check_support(self.laws, self.initial())

    def __repr__(self) -> str:
        return f"BayesianNetwork({self.net}, {self.prior}, {self.likelihood}, random={self.random!r})"

    @property
    def random_weights(self) -> list[str]:
        """Names of the network's own random sites, without those of the likelihood."""
        return [name for name in self.laws if not name.startswith(LIKELIHOOD)]

    @property
    def dtype(self) -> torch.dtype:
        """Of every site, and of the inputs."""
        return self._scalar(0.0).dtype

    @property
    def device(self) -> torch.device:
        """Of every site."""
        return self._scalar(0.0).device

    def support(self, name: str) -> Any:
        """The constraint on a site's values."""
        if name in self.laws:
            return self.laws[name].support
        return dist.constraints.positive if name.startswith(LIKELIHOOD) else dist.constraints.real

    def initial(self) -> dict[str, Tensor]:
        """Where fits start each site: the network's own weights, and the likelihood's initial values."""
        theta = {name: parameter.detach().clone() for name, parameter in trainable_parameters(self.net).items()}
        for name, unknown in self.likelihood.unknowns.items():
            theta[LIKELIHOOD + name] = self._scalar(unknown.initial)
        return theta

    def forward(
        self,
        theta: Mapping[str, Tensor],
        x: Any,
        *,
        net: nn.Module | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Network outputs f(x; theta), (N, C, ...).

        Args:
            theta: A value for each site.
            x: Inputs, (N, ...), or several parts: see `bayesuq.inputs.arguments`.
            net: The module tree to run, for another training mode; by default one of this thread alone.
            buffers: Values for the network's buffers (BatchNorm's statistics) instead of its own.
        """
        values = self._values(theta)
        if buffers:
            values.update(buffers)
        for name, places in self._tied.items():
            if name in values:
                values.update(dict.fromkeys(places, values[name]))
        tree = self.tree() if net is None else net
        self.check_scale(x)
        args, named = arguments(tree, x)
        f = output(functional_call(tree, values, args, named, tie_weights=False))
        return with_scales(raised(f, self.dtype), x) if isinstance(f, Tensor) else f

    def tree(self) -> nn.Module:
        """The module tree that runs in this thread, over the network's own tensors."""
        return self._trees.of(self.net)

    def at(self, theta: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the network that has these weights for its own, beside the frozen ones."""
        shared = {id(parameter): parameter for parameter in self.net.parameters() if not parameter.requires_grad}
        net = copied_beside(self.net, shared)
        parameters = dict(net.named_parameters())
        with torch.no_grad():
            for name, value in self._values(theta).items():
                parameters[name].copy_(value)
        return net

    def _values(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's weights, by name."""
        values = {name: theta[name] for name in self._weights}
        return values | self.padded(values)

    def padded(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the weights that have a row of padding, with that row as it is held."""
        return {name: torch.where(where, row, values[name]) for name, (where, row) in self._padding.items()}

    def check_scale(self, x: Any) -> None:
        """Refuse inputs without the scales of their noise where the likelihood takes them, and with them where not.

        Raises:
            ValueError: With the remedy.
        """
        is_given = not isinstance(x, Tensor) and isinstance(structure(x), Given)
        if is_given == self.likelihood.takes_scale:
            return
        if is_given:
            raise ValueError(
                f"`x` brings the scale of each row's noise, which {self.likelihood!r} does not take. Give the model "
                "likelihoods.Normal(scale='given'), or leave the scales out."
            )
        raise ValueError(
            f"The likelihood takes each row's own noise scale (scale='given'); got {described(x)} alone. Fit to "
            "bayesuq.Dataset(x, y, scale=scale), and predict at bayesuq.Given(x, scale)."
        )

    def likelihood_given(self, theta: Mapping[str, Tensor]) -> Likelihood:
        """The likelihood with its unknowns at theta's values."""
        unknowns = self.likelihood.unknowns
        return (
            self.likelihood.given({name: theta[LIKELIHOOD + name] for name in unknowns})
            if unknowns
            else self.likelihood
        )

    def log_prior(self, theta: Mapping[str, Tensor]) -> Tensor:
        """log p(theta) in nats, on the sites' own support; learned point values have no term. A 0-d tensor."""
        terms = [law.log_prob(theta[name]) for name, law in self.laws.items()]
        return torch.stack(terms).sum()

    def log_joint(
        self,
        theta: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        num_data: int | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """log p(theta) + (num_data / N) sum_n w_n log p(y_n | f(x_n; theta)), in nats, a 0-d tensor.

        Over uniformly drawn minibatches it is an unbiased estimate of its value on all `num_data` points.

        Args:
            theta: A value on its own support for every site of `laws` and `points`.
            x: Inputs, (N, ...), in the model's dtype.
            y: Targets of N points.
            num_data: Size of the whole data set; None is N.
            weight: (N,) or of y's shape; multiplies the log-likelihood.

        Raises:
            ValueError: Sites missing from theta, or shapes of f and y that do not belong together.
        """
        missing = (self.laws.keys() | self.points.keys()) - theta.keys()
        if missing:
            raise ValueError(f"`theta` lacks a value for {shortened(sorted(missing))}.")
        terms = self.likelihood_given(theta).log_prob(self.forward(theta, x), y, weight)
        scale = 1.0 if num_data is None else num_data / len(y)
        return self.log_prior(theta) + scale * terms.sum()

    def __call__(
        self, x: Tensor, y: Tensor | None = None, num_data: int | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """The Pyro program.

        Its sites are one for each law, a `pyro.param` for each point value, and the observed `y` in the plate `data`.

        Args:
            x: Inputs, (N, ...).
            y: Targets; None samples them.
            num_data: Size of the whole data set; None is N.
            weight: (N,) or of y's shape; multiplies the log-likelihood.

        Returns:
            The targets, observed or sampled.
        """
        theta = {name: pyro.sample(name, law) for name, law in self.laws.items()}
        for name, start in self.points.items():
            theta[name] = pyro.param(name, start.clone(), constraint=self.support(name))
        f = self.forward(theta, x)
        likelihood = self.likelihood_given(theta)
        law = likelihood.distribution(f)
        if weight is not None or likelihood.reweights_classes:
            law = _Weighted(law, likelihood, f, weight)
        size = len(f) if num_data is None else num_data
        # The rows are given, so the plate must not draw any: `subsample` only tells it how many of `size` there are.
        with pyro.plate("data", size, subsample=torch.arange(len(f), device=f.device), dim=-1):
            return pyro.sample("y", law, obs=None if y is None else likelihood.align(f, y))

    def simulate(self, x: Tensor, *, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        """A truth and its data: theta from the prior, and y from the likelihood given theta, at the inputs.

        Args:
            x: Inputs, (N, ...), in the model's dtype and on its device.
            seed: Makes it repeatable.

        Returns:
            Every random site by name, on its own support, and y; sites learned as point values are where fits start.
        """
        with isolated(seed), torch.no_grad():
            theta = {name: law.sample() for name, law in self.laws.items()}
            every = {**self.initial(), **theta}
            return theta, self.likelihood_given(every).distribution(self.forward(every, x)).sample()

    def to(self, device: torch.device | str) -> "BayesianNetwork":
        """The same model on another device.

        Raises:
            ValueError: A device that this machine does not have.
        """
        target = check_device(device)
        if target == self.device:
            return self
        net = deep_copy(self.net).to(target)
        return BayesianNetwork(net, self.prior, self.likelihood, random=self.random)

    def with_likelihood(self, likelihood: Likelihood) -> "BayesianNetwork":
        """The same network and prior under another likelihood."""
        return BayesianNetwork(self.net, self.prior, likelihood, random=self.random)

    def reinitialise(self, seed: int, initialise: Initialise = "reset") -> "BayesianNetwork":
        """The same model at other initial weights, by default each layer's by its own `reset_parameters`.

        Frozen parameters stay as they are.

        Args:
            seed: Of what is drawn.
            initialise: See `bayesuq.models.initialisation.started`.

        Raises:
            TypeError: See there.
            ValueError: A trainable parameter that no layer's `reset_parameters` reaches; see there.
        """
        net = started(self.net, seed, initialise).to(self.device)
        return BayesianNetwork(net, self.prior, self.likelihood, random=self.random)


class _Weighted(dist.TorchDistribution):
    """The law of y whose log density carries the weights; its draws are those of the unweighted law."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, law: Any, likelihood: Likelihood, f: Tensor, weight: Tensor | None) -> None:
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)
        self.law, self.likelihood, self.f, self.weight = law, likelihood, f, weight

    @property
    def support(self) -> Any:
        """Of the unweighted law."""
        return self.law.support

    def sample(self, sample_shape: torch.Size = EMPTY) -> Tensor:
        """Draws of the unweighted law."""
        return self.law.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Weighted log p of each point, (N,)."""
        return self.likelihood.log_prob(self.f, value, self.weight)


class _Trees(threading.local):
    """A module tree of each thread's own over the tensors of a network: running one network writes into no other's."""

    def __init__(self) -> None:
        super().__init__()
        self.trees: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type["_Trees"], tuple[()]]:
        return _Trees, ()  # a copy, and another process, makes its own

    def of(self, net: nn.Module) -> nn.Module:
        """This thread's."""
        tree = self.trees.get(net)
        if tree is None:
            tree = share_tensors(net)
            tree = self.trees[net] = tree if net.training else with_exact_norms(tree)
        return tree


def share_tensors(net: nn.Module) -> nn.Module:
    """A module tree of its own over the same parameters and buffers.

    `functional_call` puts its values into the tree while it runs, so each thread needs a tree; the weights need no
    copy.
    """
    held = [held for module in net.modules() for held in (module._parameters, module._buffers)]
    return deep_copy(net, {id(tensor): tensor for tensors in held for tensor in tensors.values()})


def _num_outputs(net: nn.Module) -> int | None:
    """C, where the last layer of the network tells it."""
    widths = [getattr(module, name) for module in net.modules() for name in WIDTHS if hasattr(module, name)]
    return next((width for width in reversed(widths) if isinstance(width, int)), None)


def copied(net: nn.Module) -> nn.Module:
    """A deep copy; what hooks have computed from weights, such as a normalised weight, is copied as a constant."""
    return copied_beside(net, {id(value): value.detach().clone() for value in computed_by_hooks(net)})


def copied_beside(net: nn.Module, known: dict[int, Any]) -> nn.Module:
    """A deep copy, in which objects have the copies that are known by their `id`.

    Raises:
        TypeError: A module that holds what cannot be copied, such as a lock or an open file.
    """
    try:
        return deep_copy(net, known)
    except TypeError as error:
        raise TypeError(
            f"`net` is copied, so that yours stays as it is, and {_uncopied(net, known) or 'something in it'} cannot "
            f"be: {error}. Delete or move it, or pass the part of the network that computes."
        ) from error


def _uncopied(net: nn.Module, known: dict[int, Any]) -> str:
    """Where the first attribute stands that has no copy."""
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                try:
                    copy.deepcopy(value, dict(known))
                except TypeError:
                    return f"`net.{path}.{name}`" if path else f"`net.{name}`"
    return ""


def computed_by_hooks(net: nn.Module) -> list[Tensor]:
    """What hooks have computed from weights and left in modules, such as a normalised weight; it has a graph behind."""
    values = [value for module in net.modules() for value in vars(module).values()]
    return [value for value in values if isinstance(value, Tensor) and not value.is_leaf]


def _further_places(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """Where else a parameter or buffer stands, by the name of its first place; of those that have several modules."""
    names: dict[int, list[str]] = {}
    for path, module in net.named_modules():  # each module once, so that one in two places is one place
        prefix = f"{path}." if path else ""
        for attribute, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None:
                names.setdefault(id(tensor), []).append(prefix + attribute)
    return {first: tuple(others) for first, *others in names.values() if others}


def _padding_rows(net: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Which rows of an embedding stand for padding, (V, 1), and their values, (1, D), by the name of its weights.

    No data move such a row, so a posterior would leave it to the prior, and padding would be noise: it is a constant.
    """
    return {
        f"{path}.weight" if path else "weight": (
            (torch.arange(module.num_embeddings, device=module.weight.device) == module.padding_idx).unsqueeze(1),
            module.weight[module.padding_idx].detach().clone().unsqueeze(0),
        )
        for path, module in net.named_modules()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None and module.weight.requires_grad
    }


def check_network(net: Any) -> None:
    """Refuse what is no module, and one that is wrapped for several processes.

    Raises:
        TypeError: No module.
        ValueError: A wrapped one.
    """
    if not isinstance(net, nn.Module):
        inside = " Pass its module, `net.module()`." if type(net).__name__ == "ExportedProgram" else ""
        raise TypeError(f"`net` must be a torch.nn.Module; got {type(net).__name__}.{inside}")
    for path, module in net.named_modules():
        where = f"`net.{path}`" if path else "`net`"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{where} is compiled by torch.jit, whose weights nothing can take the place of. Pass the module that "
                "it was made of; where only that is left, its outputs can be the inputs of a network of the rest, "
                "bayesuq.Dataset(scripted(x), y)."
            )
        wrappers = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in WRAPPERS]
        if wrappers:
            raise ValueError(
                f"{where} is wrapped in {wrappers[0]}, whose processes would each draw and "
                "move weights of their own. Pass the network inside, `net.module` (of a sharded one, one that was not "
                "sharded); methods that spread a fit over processes have the option `data_parallel`."
            )

    unmade = [name for name, parameter in net.named_parameters() if parameter.is_meta]
    if unmade:
        raise ValueError(
            f"`net` is on the meta device, where {unmade[0]!r} has no numbers. Call `net.to_empty(device='cpu')`, and "
            "load its weights."
        )
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in net.parameters()):
        raise ValueError("`net` has lazy layers without weights. Run it once on an example input first.")


def _check_kinds(net: Any, prior: Any, likelihood: Any) -> None:
    check_network(net)
    if not isinstance(prior, Prior) and not (
        isinstance(prior, Mapping) and all(isinstance(value, Prior) for value in prior.values())
    ):
        raise TypeError(
            f"`prior` must be a prior, such as priors.Normal(), or a mapping from rules to priors; got {prior!r}."
        )
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"`likelihood` must be a likelihood, such as likelihoods.Categorical(); got {likelihood!r}.")
    trainable = trainable_parameters(net)
    unreal = [name for name, parameter in trainable.items() if not parameter.is_floating_point()]
    if unreal:
        raise ValueError(
            f"The weights of `net` must be real numbers; {unreal[0]!r} is {trainable[unreal[0]].dtype}. Hold real and "
            "imaginary parts as parameters of their own, and join them by `torch.complex` in `forward`."
        )
    if len({(parameter.dtype, parameter.device) for parameter in trainable.values()}) > 1:
        raise ValueError(
            "All trainable parameters of `net` must have one dtype and one device. Call `net.float()` first."
        )
    if not trainable:
        raise ValueError("`net` has no trainable parameter, so there is nothing to infer.")
    taken = [name for name in trainable if any(fnmatchcase(name, pattern) for pattern in RESERVED)]
    if taken:
        raise ValueError(
            f"`net` must not name its parameters as the model names other sites; got {', '.join(taken)}. Wrap it, as "
            "in torch.nn.Sequential(net)."
        )


def _warn_of_unseen(net: nn.Module) -> None:
    """Tell of trainable parameters in plain containers, which are not among the network's."""
    seen = {id(parameter) for parameter in net.parameters()}
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            unseen = [part for part in contained(value) if part.requires_grad and id(part) not in seen]
            if unseen and name not in REGISTERED:
                where = f"net.{path}.{name}" if path else f"net.{name}"
                warn_of_fit(
                    f"`{where}` holds {sum(part.numel() for part in unseen):,} trainable numbers that torch does not "
                    "see there; they are no weights of the network, and stay as they are. Hold modules in a "
                    "torch.nn.ModuleList or ModuleDict, parameters in a torch.nn.ParameterList; what is to stay as it "
                    "is, call `requires_grad_(False)` on.",
                    UserWarning,
                )


def contained(value: Any, depth: int = DEPTH) -> list[Tensor]:
    """Parameters, and those of modules, in a container or in one within; a long one, such as a vocabulary, has none."""
    if isinstance(value, nn.Module):
        return list(value.parameters())
    parts = list(value.values()) if isinstance(value, dict) else value
    if isinstance(parts, list | tuple) and depth and len(parts) <= LONGEST:
        return [part for one in parts for part in contained(one, depth - 1)]
    return [value] if isinstance(value, nn.Parameter) else []


def _check_support(laws: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    for name, law in laws.items():
        if not law.support.check(values[name]).all():
            support = getattr(law.support, "base_constraint", law.support)
            raise ValueError(
                f"The prior of {name} gives no density to the value where a fit would start, which must be {support}. "
                "Take another prior, or give the network or likelihood another initial value."
            )
