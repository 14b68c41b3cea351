"""torch's operators in NumPy's words, for `bayesuq.inference.joint.tape`, which tries each before it is used.

An operator that is not here is called as torch's own; one that is here and gives something else is, too.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from math import inf, nan
from typing import Any

import numpy as np
import torch
from scipy import special

EXPANSIONS = ("expand",)
VIEWS = ("view", "_unsafe_view", "reshape", "expand", "detach", "alias")  # that may have the shape that there was
NEUTRAL = {"mul": 1, "div": 1, "add": 0, "sub": 0}  # numbers that change nothing
BINARY = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**"}
COMPARISONS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "eq": "==", "ne": "!="}
LOGICAL = {"logical_and": "&", "logical_or": "|", "bitwise_and": "&", "bitwise_or": "|"}
ALIKE = "exp log log1p expm1 sqrt abs sign sin cos tanh isnan isinf digamma erf"  # called as torch calls them
UNARY = {
    **{name: f"{name}({{}})" for name in ALIKE.split()},
    **{name: f"{name}({{}}, {{}})" for name in ("maximum", "minimum", "xlogy")},
    "rsqrt": "(1.0 / sqrt({}))",
    "sgn": "sign({})",
    "atan": "arctan({})",
    "clamp": "minimum(maximum({}, {}), {})",
    "relu": "maximum({}, 0)",
    "neg": "(-{})",
    "reciprocal": "(1.0 / {})",
    "square": "({0} * {0})",
    "sigmoid": "expit({})",
    "lgamma": "gammaln({})",
    "logical_not": "(~{})",
    "bitwise_not": "(~{})",
    "tanh_backward": "({} * (1.0 - {} ** 2))",
    "sigmoid_backward": "({0} * {1} * (1.0 - {1}))",
    "threshold_backward": "({} * ({} > {}))",
    "where": "where({}, {}, {})",
    "clamp_min": "maximum({}, {})",
    "clamp_max": "minimum({}, {})",
}
ELEMENTWISE = {*BINARY, *COMPARISONS, *LOGICAL, *UNARY, "addcmul", "addcdiv"}


def expression(operator: Any, written: Sequence[str], step: Any, write: Callable[[Any], str]) -> str | None:
    """An operator's call as an expression, or None where NumPy has no words for it.

    Args:
        operator: torch's.
        written: Its arguments as expressions.
        step: The call, whose arguments and results are looked at.
        write: From another value to its expression.
    """
    name = operator.overloadpacket.__name__
    args, shape, dtype = step.args, tuple(step.outputs[0].shape), step.outputs[0].detach().numpy().dtype.name
    if name in BINARY:
        factor = step.kwargs.get("alpha", args[2] if len(args) > 2 else 1)
        if step.kwargs.get("rounding_mode") is not None:
            return None
        if name == "pow" and isinstance(args[1], int | float) and args[1] in (1, 2):
            return written[0] if args[1] == 1 else f"({written[0]} * {written[0]})"
        right = written[1] if factor == 1 else f"({write(factor)} * {written[1]})"
        return f"({written[0]} {BINARY[name]} {right})"
    if name in ("addcmul", "addcdiv"):
        factor = "" if step.kwargs.get("value", 1) == 1 else f"{write(step.kwargs['value'])} * "
        return f"({written[0]} + {factor}{written[1]} {'*' if name == 'addcmul' else '/'} {written[2]})"
    if name in COMPARISONS or name in LOGICAL:
        return f"({written[0]} {(COMPARISONS | LOGICAL)[name]} {written[1]})"
    if name in UNARY:
        return UNARY[name].format(*written) if len(written) >= UNARY[name].count("{}") else None
    if name == "masked_fill" and not isinstance(args[2], torch.Tensor):
        return f"where({written[1]}, {written[2]}, {written[0]})"
    if name in ("detach", "alias", "lift_fresh_copy", "lift_fresh", "contiguous"):
        return written[0]
    if name in ("clone", "_to_copy"):
        return f"array({written[0]}, {dtype!r})"
    if name in ("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze"):
        return f"reshape({written[0]}, {shape})"
    if name == "expand":
        return f"broadcast_to({written[0]}, {shape})"
    if name == "t":
        return f"{written[0]}.T"
    if name == "transpose":
        return f"{written[0]}.swapaxes({args[1]}, {args[2]})"
    if name == "permute":
        return f"{written[0]}.transpose({tuple(args[1])})"
    return (
        _indexing(name, written, args, shape, dtype)
        or _reduction(name, written, step, dtype)
        or _product(name, written, step)
    )


def _indexing(name: str, written: Sequence[str], args: Sequence[Any], shape: tuple[int, ...], dtype: str) -> str | None:
    if name == "select":
        return f"{written[0]}[{':, ' * _positive(args[1], len(shape) + 1)}{args[2]}]"
    if name == "slice":
        given: list[Any] = [*args[1:]]
        dim, start, stop, stride = given + [0, None, None, 1][len(given) :]
        return f"{written[0]}[{':, ' * _positive(dim, len(shape))}{start}:{stop}:{stride}]"
    if name in ("select_backward", "slice_backward"):
        place = f"{args[3]}" if name == "select_backward" else f"{args[3]}:{args[4]}:{args[5]}"
        place = f"{':, ' * _positive(args[2], len(shape))}{place}"
        return f"put(zeros({shape}, {dtype!r}), index_of[{place}], {written[0]})"
    if name == "flip":
        return f"flip({written[0]}, {tuple(args[1])})"
    if name in ("cat", "stack"):
        function = "concatenate" if name == "cat" else "stack"
        return f"{function}({written[0]}, {args[1] if len(args) > 1 else 0})"
    if name == "index" and len(args[1]) == 1 and isinstance(args[1][0], torch.Tensor):
        return f"{written[0]}[{written[1]}[0]]"
    return None


def pieces(name: str, written: str, step: Any) -> list[str] | None:
    """The parts of an array that one operator cuts up, each an expression of its own; None of another operator."""
    if name != "split_with_sizes":
        return None
    dim = _positive(step.args[2] if len(step.args) > 2 else 0, step.outputs[0].ndim)
    edges = pairwise(accumulate(step.args[1], initial=0))
    return [f"{written}[{':, ' * dim}{start}:{end}]" for start, end in edges]


def _reduction(name: str, written: Sequence[str], step: Any, dtype: str) -> str | None:
    args = step.args
    if name in ("sum", "mean"):
        function = "add.reduce" if name == "sum" else "mean"
        kind = "" if step.kwargs.get("dtype") is None else f", dtype={dtype!r}"
        if len(args) == 1 or not args[1]:
            return f"{function}({written[0]}, None{kind})"
        return f"{function}({written[0]}, {tuple(args[1])}{kind}, keepdims={len(args) > 2 and bool(args[2])})"
    if name == "logsumexp":
        return f"logsumexp({written[0]}, {tuple(args[1])}, keepdims={len(args) > 2 and bool(args[2])})"
    if name == "_log_softmax":
        return f"log_softmax({written[0]}, {args[1]})"
    if name == "_log_softmax_backward_data":
        axis = args[2]
        return f"({written[0]} - exp({written[1]}) * add.reduce({written[0]}, {axis}, keepdims=True))"
    if name == "cumsum":
        return f"cumsum({written[0]}, {args[1]})"
    return None


def _product(name: str, written: Sequence[str], step: Any) -> str | None:
    if name in ("mm", "mv", "dot"):
        return f"dot({written[0]}, {written[1]})"
    if name == "bmm":
        return f"({written[0]} @ {written[1]})"
    if name == "baddbmm" and not step.kwargs:
        return f"({written[0]} + {written[1]} @ {written[2]})"
    if name in ("addmm", "addmv") and not step.kwargs:
        return f"({written[0]} + dot({written[1]}, {written[2]}))"
    return None


def _positive(dim: int, ndim: int) -> int:
    return dim if dim >= 0 else dim + ndim


def put(array: Any, place: Any, value: Any) -> Any:
    """The array, after a value was written into it."""
    array[place] = value
    return array


def logsumexp(x: Any, axis: tuple[int, ...], *, keepdims: bool) -> Any:
    """log sum exp x over some axes."""
    top = np.max(x, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.log(np.add.reduce(np.exp(x - top), axis, keepdims=True)) + top
    return total if keepdims else np.squeeze(total, axis)


def log_softmax(x: Any, axis: int) -> Any:
    """x - log sum exp x over one axis."""
    shifted = x - np.max(x, axis=axis, keepdims=True)
    return shifted - np.log(np.add.reduce(np.exp(shifted), axis, keepdims=True))


_OF_NUMPY = (
    "exp log log1p expm1 sqrt sign sin cos tanh arctan maximum minimum where isnan isinf array reshape broadcast_to "
    "concatenate stack flip add mean cumsum dot zeros"
)
NAMES: dict[str, Any] = {name: getattr(np, name) for name in _OF_NUMPY.split()}
NAMES |= {name: getattr(special, name) for name in ("expit", "gammaln", "digamma", "erf", "xlogy")}
NAMES |= {"put": put, "index_of": np.s_, "logsumexp": logsumexp, "log_softmax": log_softmax, "nan": nan, "inf": inf}
