"""Initial weights for a network: what the members of an ensemble start from."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bayesuq.models.copies import deep_copy
from bayesuq.models.rules import LAST_LAYER, matching_names, trainable_parameters
from bayesuq.randomness import isolated

NamedStart = Literal["reset", "last_layer", "keep"]
Initialise = NamedStart | Callable[[nn.Module, int], nn.Module]


def started(net: nn.Module, seed: int, initialise: Initialise = "reset") -> nn.Module:
    """A copy of a network, on the CPU, at weights to start a fit from.

    Args:
        net: The network.
        seed: Of what is drawn.
        initialise: "reset" initialises every layer by its own `reset_parameters` (see `reinitialised`); "last_layer"
            the last one that has trainable parameters, and keeps the rest; "keep" keeps all. Or a function from a copy
            of the network, its own to change, and the seed to the network; torch's global generator, of which it may
            draw, is seeded and put back.

    Raises:
        TypeError: Another kind of option; a function that does not give a module.
        ValueError: Another word; a trainable parameter that no `reset_parameters` reaches; a network of other
            parameters than before.
    """
    if isinstance(initialise, str):
        if initialise not in get_args(NamedStart):
            known = ", ".join(repr(word) for word in get_args(NamedStart))
            raise ValueError(f"`initialise` must be one of {known}, or a function of (net, seed); got {initialise!r}.")
        if initialise == "keep":
            return deep_copy(net).cpu()
        return reinitialised(net, seed) if initialise == "reset" else _with_fresh_last_layer(net, seed)
    if isinstance(initialise, nn.Module) or not callable(initialise):
        raise TypeError(
            f"`initialise` must be a word or a function of (net, seed) to a net; got {type(initialise).__name__}."
        )
    with isolated(seed):
        fresh = initialise(deep_copy(net).cpu(), seed)
    if not isinstance(fresh, nn.Module):
        raise TypeError(f"`initialise` must return the network, a torch.nn.Module; got {type(fresh).__name__}.")
    expected, found = (
        {name: (tuple(value.shape), value.dtype) for name, value in trainable_parameters(one).items()}
        for one in (net, fresh)
    )
    if expected != found:
        differing = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise ValueError(f"`initialise` must keep the trainable parameters; {', '.join(differing)} differ.")
    return fresh


def _with_fresh_last_layer(net: nn.Module, seed: int) -> nn.Module:
    """A copy of a network, on the CPU, only the last layer that has trainable parameters initialised anew."""
    fresh = deep_copy(net).cpu()
    named = trainable_parameters(fresh)
    names = matching_names(fresh, LAST_LAYER)
    last = {id(named[name]) for name in names}
    owner = next(m for m in fresh.modules() if last & {id(parameter) for parameter in m.parameters(recurse=False)})
    if _reset_of(owner) is None:
        raise ValueError(
            f"The last layer, {type(owner).__name__} with {', '.join(names)}, has no `reset_parameters`. Define it, or "
            "pass `initialise`: 'keep', or a function of (net, seed) that initialises and returns the network."
        )
    with isolated(seed), _held(parameter for parameter in fresh.parameters() if id(parameter) not in last):
        left = last - _reset_one(owner)
    if left:
        raise ValueError(
            f"The last layer's `reset_parameters` leaves {', '.join(n for n in names if id(named[n]) in left)} as they "
            "are. Let it reset them, or pass `initialise`: 'keep', or a function of (net, seed)."
        )
    return fresh


@contextmanager
def _held(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """What the block writes into these is undone."""
    before = [(parameter, parameter.clone()) for parameter in parameters]
    yield
    with torch.no_grad():
        for parameter, value in before:
            parameter.copy_(value)


def reinitialised(net: nn.Module, seed: int) -> nn.Module:
    """A copy of a network, on the CPU, its layers initialised anew by their own `reset_parameters`.

    Where building draws no other random numbers, these are the weights that building the network under the seed gives.
    Frozen parameters, and layers that have nothing to train, stay as they are with their buffers.

    Raises:
        ValueError: A trainable parameter that no layer's `reset_parameters` reaches.
    """
    fresh = deep_copy(net).cpu()  # on the CPU, so that a seed means the same weights on every device
    with isolated(seed), _held(parameter for parameter in fresh.parameters() if not parameter.requires_grad):
        reached = _reset(fresh)
    left = [name for name, parameter in trainable_parameters(fresh).items() if id(parameter) not in reached]
    if left:
        raise ValueError(
            f"Members need an initialisation of their own, but no layer resets {', '.join(left)}. Define "
            "`reset_parameters(self)` in the module that owns it, or pass `initialise`: 'last_layer' or 'keep' start "
            "from the network's own weights; a function of (net, seed) initialises and returns the network."
        )
    return fresh


def _reset(net: nn.Module) -> set[int]:
    """Initialise every layer that can be and is to be trained; the ids of the parameters reached."""
    reached: set[int] = set()
    for module in _parts_first(net, set()):
        if _reset_of(module) is not None and any(parameter.requires_grad for parameter in module.parameters()):
            reached |= _reset_one(module)
    return reached


def _reset_one(module: nn.Module) -> set[int]:
    """Initialise a module that says how; the ids of the parameters that it has written.

    Of a weight that is computed, as by `torch.nn.utils.parametrizations`, the module writes into what was computed, and
    torch's inverse puts that into the parameters.
    """
    if not parametrize.is_parametrized(module):
        hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SpectralNorm | WeightNorm)]
        before = [getattr(module, hook.name).detach().clone() for hook in hooks]
        reached = _written(module)
        for hook, value in zip(hooks, before, strict=True):
            fresh = getattr(module, hook.name).detach()
            reached |= set() if torch.equal(fresh, value) else _assign_by_hook(module, hook, fresh.clone())
        return reached
    plain = _with_computed(module)
    reached = _written(plain)
    for name, computed in cast(nn.ModuleDict, module.parametrizations).items():
        if id(plain._parameters[name]) in reached:
            _assign(computed, getattr(plain, name).detach())
            reached |= {id(parameter) for parameter in computed.parameters(recurse=False)}
    return reached


def _written(module: nn.Module) -> set[int]:
    """Let a module initialise itself; the ids of the parameters that it has written.

    It may write what was there, such as zeros, and nothing into some. So all are moved before, and what stays there is
    put back.
    """
    reset = _reset_of(module)
    if reset is None:
        return set()
    before = [(one, one.detach().clone()) for one in module.parameters() if one.is_floating_point()]
    with torch.no_grad():
        for parameter, value in before:
            parameter.copy_(value + 1)
        reset()
        left = {id(parameter) for parameter, value in before if torch.equal(parameter, value + 1)}
        for parameter, value in before:
            if id(parameter) in left:
                parameter.copy_(value)
    return {id(parameter) for parameter in module.parameters()} - left


def _with_computed(module: nn.Module) -> nn.Module:
    """The module as if no weight were parametrized: what is computed are parameters, and the rest is shared."""
    computed = cast(nn.ModuleDict, module.parametrizations)
    kinds = type(module).__mro__
    kind = next(kind for kind in kinds if not any(isinstance(getattr(kind, name, None), property) for name in computed))
    plain = cast(nn.Module, kind.__new__(kind))  # type: ignore[call-overload]
    own = {name: nn.Parameter(getattr(module, name).detach().clone()) for name in computed}
    parts = {name: part for name, part in module._modules.items() if part is not computed}
    plain.__dict__.update({**vars(module), "_parameters": {**module._parameters, **own}, "_modules": parts})
    return plain


def _assign_by_hook(module: nn.Module, hook: SpectralNorm | WeightNorm, value: Tensor) -> set[int]:
    """The same of torch's older norms, which compute a weight before the module runs; the ids of what was written."""
    if isinstance(hook, SpectralNorm):
        values = {f"{hook.name}_orig": value}
    else:
        values = {f"{hook.name}_g": torch.norm_except_dim(value, 2, hook.dim), f"{hook.name}_v": value}
    with torch.no_grad():
        for name, own in values.items():
            getattr(module, name).copy_(own)
    return {id(getattr(module, name)) for name in values}


def _assign(computed: Any, value: Tensor) -> None:
    """Put a weight into the parameters that it is computed from, as torch does where a weight is parametrized."""
    with torch.no_grad():
        if all(hasattr(part, "right_inverse") for part in computed):
            with suppress(NotImplementedError):
                computed.right_inverse(value)
                return
        computed.original.copy_(value)


def _reset_of(module: nn.Module) -> Callable[[], object] | None:
    """How a module initialises itself, if it does."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return reset if callable(reset) else None


def _parts_first(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    """Each module once, after its parts, as modules are built: attention then overrides its linear layers."""
    seen.add(id(module))
    for child in module.children():
        if id(child) not in seen:
            yield from _parts_first(child, seen)
    yield module
