"""A network that somebody has trained already, as a posterior of one member that every other method can start from.

    adopted = adopt(net, likelihoods.Categorical())
    laplace.fit(adopted, data)                              # uncertainty of the last layer, one pass over the data
    dropout.around(adopted, put_in={"fc": 0.1})             # no pass at all
    variational.fit(adopted.model, data)                    # and swag, ensemble (initialise="keep"), hmc likewise

The network is copied once and stays as it is. What is not to be random is frozen in the copy, so that no method that
starts from it moves it, BatchNorm's statistics included.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from bayesuq.inference.posteriors.ensemble import EnsemblePosterior
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.models.bnn import BayesianNetwork, check_network, computed_by_hooks, copied_beside
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.priors import Normal, Prior, centred
from bayesuq.models.rules import LAST_LAYER, Rule, matching_names, trainable_parameters
from bayesuq.models.running import Compile

if TYPE_CHECKING:
    import gpytorch

    from bayesuq.inference.gp.exact import ExactGpPosterior
    from bayesuq.inference.gp.foreign import GpytorchPosterior

__all__ = ["adopt", "adopt_members"]
__dir__ = __all__.copy

PROCESS = "gpytorch.models.gp.GP"  # the class of all of GPyTorch's models


@overload
def adopt(
    net: "gpytorch.models.GP", likelihood: "gpytorch.likelihoods.Likelihood | None" = None
) -> "ExactGpPosterior | GpytorchPosterior": ...
@overload
def adopt(
    net: nn.Module,
    likelihood: Likelihood,
    *,
    prior: Prior | Mapping[Rule, Prior] | None = None,
    random: Rule = LAST_LAYER,
    is_centred: bool = False,
    output: Callable[[Any], Tensor] | None = None,
    autocast: torch.dtype | None = None,
    compile: Compile = False,
) -> MapPosterior: ...
def adopt(
    net: Any,
    likelihood: Any = None,
    *,
    prior: Prior | Mapping[Rule, Prior] | None = None,
    random: Rule = LAST_LAYER,
    is_centred: bool = False,
    output: Callable[[Any], Tensor] | None = None,
    autocast: torch.dtype | None = None,
    compile: Compile = False,
) -> "MapPosterior | ExactGpPosterior | GpytorchPosterior":
    """The posterior of one member that a trained network is.

    Its outputs f are those of `net.eval()(x)` without gradients, to the last bit. (Where the network's parameters ask
    for gradients torch may multiply sequences by another kernel, which rounds otherwise; a frozen network does not.)

    Args:
        net: The network; its parameters, buffers and modes stay as they are. Or a model of GPyTorch's, which becomes a
            posterior over functions: see `bayesuq.inference.gp.foreign`.
        likelihood: p(y | f); of a GPyTorch `ApproximateGP` the GPyTorch likelihood, of an `ExactGP` none.
        prior: Of the random weights, which methods that start from here put uncertainty on: see `BayesianNetwork`. None
            is `priors.Normal()`.
        random: Which weights those are: see `bayesuq.models.rules`. All others are constants. Of a network that is
            frozen as a whole all can be chosen, else those that are not frozen.
        is_centred: Whether the prior stands around the network's own weights, and not around its own mean; it is then
            one normal prior, whose scale counts.
        output: From what the network returns to f, (N, C, ...). None takes a tensor as it is, and of an object its
            attribute called logits.
        autocast: Low precision that the network runs in: see `BayesianNetwork`. The outputs are then those of
            `net.eval()(x)` inside of `torch.autocast`, in the network's dtype.
        compile: Whether its forward pass is compiled: see there. The outputs are then the same to rounding.

    Returns:
        A mode whose `model` other methods take, and which `laplace.fit` and `dropout.around` take itself.

    Raises:
        TypeError: An argument of another kind.
        ValueError: See `BayesianNetwork`.

    Example:
        >>> from bayesuq.models.likelihoods import Categorical
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
        >>> adopted, x = adopt(net, Categorical()), torch.randn(4, 2)
        >>> torch.allclose(adopted.predict(x).mean, net.eval()(x).double().softmax(dim=1))
        True
        >>> list(adopted.model.laws)
        ['3.weight', '3.bias']
    """
    if any(f"{kind.__module__}.{kind.__name__}" == PROCESS for kind in type(net).__mro__):
        found: ExactGpPosterior | GpytorchPosterior = _processes().adopt_process(net, likelihood)
        return found
    if likelihood is None:
        raise TypeError("`likelihood` says what the outputs mean: give one, such as likelihoods.Categorical().")
    check_network(net)
    if output is not None and not callable(output):
        raise TypeError(f"`output` must be a function of what the network returns; got {type(output).__name__}.")
    tree = _with_constants(net, random)
    if output is not None:
        tree.register_forward_hook(_Picked(output))
    own = _prior(tree, prior, is_centred=is_centred)
    return MapPosterior.of(BayesianNetwork(tree, own, likelihood, random=random, autocast=autocast, compile=compile))


def adopt_members(nets: Sequence[nn.Module], likelihood: Likelihood, **options: Any) -> EnsemblePosterior:
    """The committee of networks that somebody has trained, as an ensemble: their equal mixture.

    Args:
        nets: The members, of one architecture or of several.
        likelihood: p(y | f), of each.
        options: As for `adopt`, of each.

    Raises:
        TypeError: See `adopt`.
        ValueError: No member; see `adopt`.

    Example:
        >>> from bayesuq.models.likelihoods import Categorical
        >>> import torch
        >>> adopt_members([nn.Linear(2, 3), nn.Linear(2, 3)], Categorical()).predict(torch.randn(4, 2)).num_samples
        2
    """
    if isinstance(nets, nn.Module) and not isinstance(nets, nn.ModuleList):
        raise TypeError("`nets` must be several networks; for one take `adopt`.")
    return EnsemblePosterior.of([adopt(net, likelihood, **options) for net in nets])


def _processes() -> Any:
    """Loaded when there is a model of GPyTorch's, which is large, and not before."""
    return import_module("bayesuq.inference.gp.foreign")


class _Picked:
    """A forward hook that takes f out of what a network returns."""

    def __init__(self, output: Callable[[Any], Tensor]) -> None:
        self.output = output

    def __call__(self, _module: nn.Module, _args: Any, returned: Any) -> Tensor:
        return self.output(returned)


def _with_constants(net: nn.Module, random: Rule) -> nn.Module:
    """A module tree over the same numbers, in which only the parameters that a rule means are not frozen."""
    was_frozen = not any(parameter.requires_grad for parameter in net.parameters())
    own = {
        id(parameter): nn.Parameter(_numbers(parameter), requires_grad=parameter.requires_grad or was_frozen)
        for parameter in net.parameters()
        if parameter.is_floating_point()
    }
    buffers = {id(buffer): buffer for buffer in net.buffers()}
    computed = {id(value): value.detach() for value in computed_by_hooks(net)}
    tree = copied_beside(net, {**own, **buffers, **computed})
    names = set(matching_names(tree, random))
    for name, parameter in trainable_parameters(tree).items():
        parameter.requires_grad_(name in names)
    return tree


def _numbers(parameter: nn.Parameter) -> Tensor:
    """Of a parameter, shared with it; a copy of one that was made under torch.inference_mode, which none can share."""
    return parameter.clone() if parameter.is_inference() else parameter.detach()


def _prior(
    tree: nn.Module, prior: Prior | Mapping[Rule, Prior] | None, *, is_centred: bool
) -> Prior | Mapping[Rule, Prior]:
    if not is_centred:
        return Normal() if prior is None else prior
    if prior is not None and not isinstance(prior, Prior):
        raise TypeError("`is_centred` takes one normal prior, such as priors.Normal(scale=0.1), for all weights.")
    rules: dict[Rule, Prior] = {}
    rules.update(centred(tree, prior))
    return rules
