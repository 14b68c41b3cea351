"""How a network runs: its products of matrices in low precision, its forward pass compiled.

Both belong to the class of a network, of which there is one for each way of running, so that every copy of the network
runs likewise. Weights, buffers, losses and the states of optimisers stay in the network's dtype: what is low is inside
of the forward pass, to which weights are cast anew each time, for fits move them in place.
"""

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from bayesuq.models.layers import has_hooks
from bayesuq.models.precision import LOW, is_in_full, lowered

Compile = bool | str
BACKEND = "inductor"  # torch's own, which needs a C++ compiler


class Running:
    """How networks of one class run.

    Attributes:
        autocast: The precision of products of matrices and convolutions; None leaves it.
        backend: By which `torch.compile` compiles the forward pass; None does not.
    """

    def __init__(self, plain: type[nn.Module], autocast: torch.dtype | None, backend: str | None) -> None:
        self.autocast, self.backend = autocast, backend
        self._run = _own_copy(_run)  # torch.compile keeps what it has compiled with a function's code
        self._plain = plain.forward
        self._compiled = None if backend is None else torch.compile(self._run, backend=backend)

    def __call__(self, net: nn.Module, args: Any, named: Any) -> Any:
        """Run the forward pass of a network; one that is compiled serves all copies of it."""
        run = self._run if self._compiled is None or _is_watched(net) else self._compiled
        if self.autocast is None or is_in_full():
            return run(self._plain, net, args, named)
        if torch._C._functorch.maybe_current_level() is not None:
            raise RuntimeError(
                f"Inside of torch.func.vmap autocast has no effect, and the network is to run in {self.autocast}. Pass "
                "vectorised=False to a fit that has it, or leave `autocast` out."
            )
        with lowered(_device(args, named), self.autocast):
            return run(self._plain, net, args, named)


def _run(forward: Callable[..., Any], net: nn.Module, args: Any, named: Any) -> Any:
    return forward(net, *args, **named)


def _own_copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function by a code object of its own."""
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def with_running(net: nn.Module, *, autocast: torch.dtype | None = None, compile: Compile = False) -> nn.Module:
    """Make a network run in another way, itself; the keywords are those of `bayesuq.adopt`.

    Raises:
        TypeError: An `autocast` that is no dtype; a `compile` that is neither a flag nor a backend's name.
        ValueError: A precision that is not lower than float32; a backend that this machine does not have; a network
            with hooks, which compiled code would not see change.
    """
    if autocast is not None and autocast not in LOW:
        kind = ValueError if isinstance(autocast, torch.dtype) else TypeError
        raise kind(f"`autocast` must be torch.bfloat16, torch.float16 or None; got {autocast!r}.")
    if not isinstance(compile, bool | str):
        raise TypeError(f"`compile` must be True, False or the name of a backend of torch.compile; got {compile!r}.")
    backend = BACKEND if compile is True else compile or None
    if backend is not None:
        _check_backend(backend)
        hooked = [path for path, module in net.named_modules() if path and has_hooks(module)]
        if hooked:
            raise ValueError(
                f"`net.{hooked[0]}` has hooks, which a compiled network would not see change. Leave `compile` out, or "
                "take the hooks off."
            )
    if autocast is not None or backend is not None:
        net.__class__ = _kind(cast(Any, type(net)), autocast, backend)
    return net


def running_of(net: nn.Module) -> Running | None:
    """How a network runs; None where it runs as its class does."""
    found: Running | None = getattr(type(net), "_running", None)
    return found


@functools.cache
def _kind(plain: type[nn.Module], autocast: torch.dtype | None, backend: str | None) -> type[nn.Module]:
    """A class of networks that run so, by the same name."""

    @functools.wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **named: Any) -> Any:
        return running(self, args, named)

    running = Running(plain, autocast, backend)
    names = {"forward": forward, "_running": running, "__module__": plain.__module__, "__reduce_ex__": _reduced}
    return type(plain.__name__, (plain,), names)


def _reduced(net: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """How a copy is made, in this process or another: as one of the plain class, which then runs likewise."""
    (plain,), running = type(net).__bases__, running_of(net)
    found = object.__reduce_ex__(net, protocol)
    return (_new, (plain, running.autocast, running.backend), *found[2:]) if running is not None else found  # type: ignore[return-value]


def _new(plain: type[nn.Module], autocast: torch.dtype | None, backend: str | None) -> nn.Module:
    kind = _kind(cast(Any, plain), autocast, backend)
    return kind.__new__(kind)


def _is_watched(net: nn.Module) -> bool:
    """Whether something looks into the forward pass, or derives by weights that are functions of others.

    Compiled code would show nothing of it, and torch cannot compile the second.
    """
    if _get_current_dispatch_mode_stack():
        return True
    for module in net.modules():
        if module is not net and has_hooks(module):  # its own act around the forward pass
            return True
        if not getattr(module, "is_compilable", True):  # draws masks from a stream of its own
            return True
        if any(value is not None and not value.is_leaf for value in module._parameters.values()):
            return True
    return False


def _device(args: Any, named: Any) -> str:
    """Of the inputs: that of the first tensor, in whatever they are."""
    leaves = torch.utils._pytree.tree_leaves((args, named))
    return next((leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)), "cpu")


@functools.cache
def _check_backend(backend: str) -> None:
    """Compile one line.

    Raises:
        ValueError: It fails.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ValueError(f"`compile` names no backend of torch.compile: {backend!r}. There are {', '.join(known)}.")
    try:
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.ones(2))
    except Exception as error:
        raise ValueError(
            f"torch.compile does not work on this machine with the backend {backend!r}: {str(error).splitlines()[0]} "
            "Install a C++ compiler, or leave `compile` out."
        ) from error
