"""Torch and Pyro distributions taken apart into their tensors, changed, and built again, whatever the family.

A family is a tree: tensors by constructor argument, such as `rate`, and laws inside it, such as the components of a
`MixtureSameFamily`. All tensors begin with the batch dimensions of the outermost law, (S, N, D) of single numbers and
(S, N) of vectors, so that what is done to draws or points is done to all of them alike.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Categorical,
    ComposeTransform,
    Distribution,
    Independent,
    OneHotCategorical,
    TransformedDistribution,
)

from bayesuq.gradients import detached
from bayesuq.predictive import broadcasts

LABELS = (Categorical, OneHotCategorical)
EITHER = ({"logits", "probs"}, {"gate", "gate_logits"}, {"lims"})  # one of these, or none, is an argument
INNER = {  # laws inside a law, by constructor argument
    "MixtureSameFamily": ("mixture_distribution", "component_distribution"),
    "FoldedDistribution": ("base_dist",),
    "MaskedMixture": ("component0", "component1"),
}
FURTHER = {
    "MaskedMixture": ("mask",),
    "RelaxedBernoulli": ("temperature",),
}  # tensors beside those of `arg_constraints`
COUNTS = {
    "LogNormalNegativeBinomial": ("num_quad_points",),
    "Multinomial": ("total_count",),
}  # arguments that are numbers of the program, not of y
POINTS = ("Delta", "Empirical")  # without density

Change = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Law:
    """A distribution in parts.

    Attributes:
        kind: Its class.
        tensors: By constructor argument, with all outer dimensions, constant ones of size 1.
        inner: Laws inside it, by constructor argument.
        fixed: Arguments that are neither.
        transforms: Of a `TransformedDistribution`, with their tensors, if any.
        shape: Batch shape.
    """

    kind: type[Any]
    tensors: Mapping[str, Tensor]
    inner: Mapping[str, "Law"]
    fixed: Mapping[str, Any]
    transforms: tuple[tuple[Any, Mapping[str, Tensor]], ...]
    shape: torch.Size

    @property
    def family(self) -> str:
        """Its name, with those of the laws inside."""
        names = ", ".join(law.family for law in self.inner.values() if not issubclass(law.kind, Categorical))
        return f"{self.kind.__name__}({names})" if names else self.kind.__name__

    def named_tensors(self) -> dict[str, Tensor]:
        """All tensors by dotted name."""
        found = dict(self.tensors)
        for name, law in self.inner.items():
            found |= {f"{name}.{inner}": value for inner, value in law.named_tensors().items()}
        for place, (_, held) in enumerate(self.transforms):
            found |= {f"transforms[{place}].{inner}": value for inner, value in held.items()}
        return found

    def changed(self, change: Change, shape: Sequence[int], prefix: str = "") -> "Law":
        """With every tensor changed, given its dotted name; `shape` is that of the outer dimensions afterwards."""
        return replace(
            self,
            tensors={name: change(f"{prefix}{name}", value) for name, value in self.tensors.items()},
            inner={name: law.changed(change, shape, f"{prefix}{name}.") for name, law in self.inner.items()},
            transforms=tuple(
                (one, {name: change(f"{prefix}transforms[{place}].{name}", value) for name, value in held.items()})
                for place, (one, held) in enumerate(self.transforms)
            ),
            shape=torch.Size((*shape, *self.shape[len(shape) :])),
        )

    def build(self) -> Any:
        """The distribution, without checks of its arguments."""
        inner = {name: law.build() for name, law in self.inner.items()}
        if self.kind is TransformedDistribution:
            steps = [type(one)(**held) if held else one for one, held in self.transforms]
            return TransformedDistribution(inner["base_distribution"], steps, validate_args=False)
        rank = len(self.shape)
        expanded = {name: value.expand(*self.shape, *value.shape[rank:]) for name, value in self.tensors.items()}
        return self.kind(**inner, **expanded, **self.fixed, validate_args=False)


def take_apart(law: Distribution) -> Law:
    """A distribution of single numbers, of batch shape (S, N, D), in parts, in float64.

    Raises:
        TypeError: One that is no family of tensors: made by a function, of labels, or of points without density.
    """
    law = unwrapped(law)
    if isinstance(law, LABELS):
        raise TypeError(
            f"A {type(law).__name__} is of labels: take `CategoricalPredictive.from_probs(law.probs.movedim(-1, 2))`."
        )
    return parts(law, law.batch_shape)


def single_column(law: Distribution) -> Any:
    """A distribution of single numbers, of batch shape (S, N), as one of (S, N, 1)."""
    law = unwrapped(law)
    return _with_column(parts(law, law.batch_shape)).build()


def _with_column(law: Law) -> Law:
    """With a dimension of size 1 behind the first two."""
    return replace(
        law,
        tensors={name: value.unsqueeze(2) for name, value in law.tensors.items()},
        inner={name: _with_column(part) for name, part in law.inner.items()},
        transforms=tuple(
            (one, {name: value.unsqueeze(2) for name, value in held.items()}) for one, held in law.transforms
        ),
        shape=torch.Size((*law.shape[:2], 1, *law.shape[2:])),
    )


def unwrapped(law: Any) -> Any:
    """The law inside of what says only which dimensions are an event, how large it is, and what is masked."""
    while True:
        if isinstance(law, Independent) or "MaskedDistribution" in kinds(law):
            law = law.base_dist
        elif "ExpandedDistribution" in kinds(law):
            inner = law.base_dist.expand(law.batch_shape)
            if "ExpandedDistribution" in kinds(inner):  # a law that has no `expand` of its own, as a user's may
                return law
            law = inner
        else:
            return law


def unchecked(law: Any) -> Any:
    """The same law, which takes whatever values it is given: to look at them is a wait for an accelerator."""
    if not getattr(law, "_validate_args", False):
        return law
    law = copy.copy(law)
    law._validate_args = False
    if hasattr(law, "base_dist"):
        law.base_dist = unchecked(law.base_dist)
    return law


def parts(law: Any, shape: torch.Size) -> Law:
    """A law in parts, whose tensors are cores of `shape` and what follows it."""
    kind = type(law)
    if kind.__name__ == TransformedDistribution.__name__:  # Pyro's is a class of its own
        return _transformed(law, shape)
    names = ("base_dist",) if kind.__name__ == "ZeroInflatedDistribution" else INNER.get(kind.__name__, ())
    inner = {}
    for name in names:
        part = unwrapped(getattr(law, name))
        inner[name] = parts(part, torch.Size((*shape, *part.batch_shape[len(shape) :])))
    found = arguments(law)
    if not isinstance(law, Distribution) or not (found or inner) or kind.__name__ in POINTS:
        raise TypeError(
            "`components` must be a torch distribution with parameters of its own and a density, such as StudentT; got "
            f"{kind.__name__}. Of draws of y* take `EmpiricalPredictive.from_draws`."
        )
    tensors = {
        name: _core(value, len(shape), _num_event_dims(law, name))
        for name, value in found.items()
        if isinstance(value, Tensor)
    }
    fixed = {name: value for name, value in found.items() if name not in tensors}
    return Law(kind, tensors, inner, fixed, (), torch.Size(shape))


def _num_event_dims(law: Any, name: str) -> int:
    """Dimensions of an argument beyond the batch; 0 where its constraint, as `constraints.dependent`, tells none."""
    try:
        return int(law.arg_constraints[name].event_dim)
    except (KeyError, NotImplementedError):
        return 0


def _transformed(law: Any, shape: torch.Size) -> Law:
    """What is made by transforming another law, step by step."""
    steps = []
    for one in _flat(law.transforms):
        held = {name: value for name, value in vars(one).items() if isinstance(value, Tensor)}
        known = isinstance(one, AffineTransform)
        if held and not known:
            raise TypeError(
                f"A law transformed by {type(one).__name__} with tensors of its own cannot be taken apart; give "
                "`EmpiricalPredictive.from_draws(law.sample((1000,))...)`, or a family that has its name."
            )
        if known:
            held = {name: torch.as_tensor(getattr(one, name)) for name in ("loc", "scale")}
        steps.append((one, {name: _core(value, len(shape)) for name, value in held.items()}))
    base = parts(unwrapped(law.base_dist), shape)
    return Law(TransformedDistribution, {}, {"base_distribution": base}, {}, tuple(steps), torch.Size(shape))


def _flat(transforms: Sequence[Any]) -> list[Any]:
    parts = [_flat(one.parts) if isinstance(one, ComposeTransform) else [one] for one in transforms]
    return [one for part in parts for one in part]


def arguments(law: Any) -> dict[str, Any]:
    """The arguments that a law was built from, as far as it has them: tensors, and numbers that fix its shape."""
    further = {name for one in kinds(law) for name in FURTHER.get(one, ())}
    names = [*law.arg_constraints, *sorted(further)]
    found = {name: getattr(law, name) for name in names if hasattr(law, name)}
    for pair in EITHER:
        given = pair & found.keys()
        kept = [name for name in sorted(given) if _holds(law, name)][:1] or sorted(given)[:1]
        found = {name: value for name, value in found.items() if name not in given or name in kept}
    values = {name: value if isinstance(value, Tensor) else torch.as_tensor(value) for name, value in found.items()}
    return values | {name: getattr(law, name) for name in COUNTS.get(type(law).__name__, ()) if hasattr(law, name)}


def kinds(law: Any) -> set[str]:
    """The names of a law's classes in torch and Pyro; by name, so that a predictive loads no Pyro."""
    return {one.__name__ for one in type(law).__mro__ if one.__module__.startswith(("torch.", "pyro."))}


def _holds(law: Any, name: str) -> bool:
    """Whether an argument is held as it was given, and not worked out from its other form."""
    held, param = vars(law), vars(law).get("_param")
    return name in held and (param is None or held[name] is param)


def _core(value: Tensor, num_dims: int, num_event_dims: int = 0) -> Tensor:
    core = broadcasts.core(detached(value), num_dims, num_event_dims)
    return core if core.dtype is torch.bool else core.double()
