"""Pyro programs in the place of a network: what is one, and what is said of it beside.

A fit that takes both asks here which of the two it was given.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from pyro.nn import PyroModule
from torch import nn

from bayesuq.models.bnn import BayesianNetwork

Program = Callable[..., Any]
Observed = str | Sequence[str] | None  # names of a program's observed sites; None takes those that it observes


def is_program(model: Any) -> TypeGuard[Program]:
    """Whether something was passed to be run as a Pyro program: a function, or a module of Pyro's."""
    if isinstance(model, BayesianNetwork):  # one too, but known better
        return False
    return callable(model) and (not isinstance(model, nn.Module) or isinstance(model, PyroModule))


def check_program(model: Any) -> None:
    """Refuse what is no Pyro program: a plain module is a network that someone forgot to wrap.

    Raises:
        TypeError: It is none.
    """
    if not is_program(model):
        raise TypeError(
            "`model` must be a bayesuq.models.BayesianNetwork, or a Pyro program with an observed site; got "
            f"{type(model).__name__}."
        )


def check_unnamed(observed: Observed) -> None:
    """Refuse names of observed sites for a network.

    Raises:
        ValueError: There are some.
    """
    if observed is not None:
        raise ValueError(f"`observed` names a site of a program; a network's is 'y'. Leave it out; got {observed!r}.")
