"""Options by keyword: written once where several functions share them, and with the nearest name for a misspelt one.

A function takes options that it shares with others as `**options: Unpack[Options]` (PEP 692), `Options` being a
`TypedDict` whose docstring has a sentence for each. Type checkers and editors read names and types there, and so does
`spells_out`, which makes of them the function's signature and docstring.
"""

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from types import NoneType
from typing import Any, ParamSpec, TypeVar, get_args

from bayesuq.once import one_call

P = ParamSpec("P")
R = TypeVar("R")
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n|\n(?=    ))*)", re.MULTILINE)
MOST_NAMES = 8  # that an error lists
BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
ENTRY = re.compile(r"^    (\w+): .*\n(?:     .*\n)*", re.MULTILINE)


def nearest(name: str, known: list[str]) -> str:
    """`known` as a phrase for an error, led by the names closest to `name`.

    Example:
        >>> nearest("num_epoch", ["num_epochs", "seed"])
        "did you mean 'num_epochs'? There are: num_epochs, seed"
    """
    close = difflib.get_close_matches(name, known, n=1)
    question = f"did you mean {close[0]!r}? " if close else ""
    return f"{question}There are: {', '.join(known)}"


def shortened(names: Sequence[str], number: int = MOST_NAMES) -> str:
    """Names in an error: the first ones, and how many more there are.

    Example:
        >>> shortened(["a", "b", "c", "d"], 2)
        'a, b and 2 more'
    """
    more = len(names) - number
    return ", ".join(names) if more < 2 else f"{', '.join(names[:number])} and {more} more"


def suggests_names(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function name the nearest option where it is called with one that it does not have.

    It says once what concerns the whole call: see `bayesuq.once`.
    """
    return _checked(function, inspect.signature(function), {}, set())


def spells_out(defaults: Mapping[str, Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function that takes `**options: Unpack[Options]` show and fill in each of them as if it were its own.

    Its signature lists them with their types and defaults, and its docstring has the sentence of each, that of
    `Options` where it has none itself. An option that is not given, or given as None where its type has a None, is its
    default inside. Names are suggested as by `suggests_names`.

    Args:
        defaults: Of all options.

    Example:
        >>> from typing import TypedDict, Unpack
        >>> class Brewing(TypedDict, total=False):
        ...     minutes: int | None
        >>> @spells_out({"minutes": 3})
        ... def brew(leaf: str, **brewing: Unpack[Brewing]) -> int | None:
        ...     return brewing["minutes"]
        >>> inspect.signature(brew), brew("oolong")
        (<Signature (leaf: str, *, minutes: int | None = 3) -> int | None>, 3)
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        written = inspect.signature(function)
        *own, packed = written.parameters.values()
        (options,) = get_args(packed.annotation)
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind)
            for name, kind in options.__annotations__.items()
        ]
        signature = written.replace(parameters=[*own, *shared])
        optional = {option.name for option in shared if NoneType in get_args(option.annotation)}
        checked: Any = _checked(function, signature, {one.name: one.default for one in shared}, optional)
        checked.__signature__ = signature
        checked.__doc__ = _with_sentences(function.__doc__, options.__doc__, list(signature.parameters))
        return checked

    return decorated


def _checked(
    function: Callable[P, R], signature: inspect.Signature, defaults: Mapping[str, Any], optional: Set[str]
) -> Callable[P, R]:
    """The function, called with these defaults, also for None if optional, and with no name that it does not have."""
    known = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]

    kinds = [parameter.kind for parameter in signature.parameters.values()]
    places = [name for name, kind in zip(signature.parameters, kinds, strict=True) if kind in BY_PLACE]
    num_places = math.inf if inspect.Parameter.VAR_POSITIONAL in kinds else len(places)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > num_places:
            told = " and ".join(f"`{place}`" for place in places)
            targets = " Of inputs and targets, pass bayesuq.Dataset(x, y)." if "data" in places else ""
            raise TypeError(
                f"`{_called(function)}` takes {told} by place, and options by name; got {len(args)} arguments.{targets}"
            )
        for name in kwargs.keys() - signature.parameters.keys():
            raise TypeError(f"`{_called(function)}` has no option {name!r}; {nearest(name, known)}.")
        missing = [name for name in defaults if name not in kwargs or (kwargs[name] is None and name in optional)]
        kwargs.update({name: defaults[name] for name in missing})
        with one_call():
            return function(*args, **kwargs)

    return checked


def _called(function: Callable[..., Any]) -> str:
    """The name that a user calls it by: a method's `fit` by its folder's, one that was made by `exec` by its own."""
    module: str | None = function.__module__
    return function.__name__ if module is None else f"{module.removesuffix('.fitting')}.{function.__name__}"


def _with_sentences(own: str | None, shared: str | None, names: list[str]) -> str | None:
    """A function's docstring whose `Args` have, in the order of the names, its own sentences and the shared ones.

    It has none where Python runs without docstrings.
    """
    if own is None or shared is None:
        return own
    own = inspect.cleandoc(own) + "\n"
    sentences = {**_sentences(shared), **_sentences(own)}
    listed = "Args:\n" + "".join(sentences.get(name, "") for name in names)
    return SECTION.sub(lambda _: listed, own, count=1).removesuffix("\n")


def _sentences(doc: str) -> dict[str, str]:
    """What a docstring says of each argument or attribute, by name, with the lines as they stand."""
    section = SECTION.search(inspect.cleandoc(doc) + "\n")
    return {entry[1]: entry[0] for entry in ENTRY.finditer(section[1])} if section else {}
