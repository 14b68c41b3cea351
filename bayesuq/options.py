"""Options by keyword, with the nearest name in the error for a misspelt one."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from bayesuq.once import one_call

P = ParamSpec("P")
R = TypeVar("R")


def nearest(name: str, known: list[str]) -> str:
    """`known` as a phrase for an error, led by the names closest to `name`.

    Example:
        >>> nearest("num_epoch", ["num_epochs", "seed"])
        "did you mean 'num_epochs'? There are: num_epochs, seed"
    """
    close = difflib.get_close_matches(name, known, n=1)
    question = f"did you mean {close[0]!r}? " if close else ""
    return f"{question}There are: {', '.join(known)}"


def suggests_names(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function name the nearest option where it is called with one that it does not have.

    It says once what concerns the whole call: see `bayesuq.once`.
    """
    signature = inspect.signature(function)
    known = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs.keys() - signature.parameters.keys():
            module = function.__module__.removesuffix(".fitting")  # a method's `fit` is called by its folder's name
            raise TypeError(f"`{module}.{function.__name__}` has no option {name!r}; {nearest(name, known)}.")
        with one_call():
            return function(*args, **kwargs)

    return checked
