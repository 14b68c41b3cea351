"""Reading saved posteriors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from os import PathLike, fspath
from types import ModuleType
from typing import Any

from torch import nn

from bayesuq.inference.catalogue import HOMES
from bayesuq.inference.joint.programs import GuideBuilder
from bayesuq.inference.posteriors.packing import FORMAT, restore_model, unpack, within
from bayesuq.models import gp
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.program import Program
from bayesuq.posterior import Posterior
from bayesuq.storage import read

# What parts of a file that do not belong together come to.
BROKEN = (KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError, RuntimeError)


class PosteriorClasses(Mapping[str, type[Posterior]]):
    """The classes that a file can name, each imported when it is asked for: a network's file needs no GPyTorch.

    Args:
        own: The user's, by name.
    """

    def __init__(self, own: Mapping[str, type[Posterior]] | None = None) -> None:
        self.own: Mapping[str, type[Posterior]] = own or {}

    def __getitem__(self, name: str) -> type[Posterior]:
        return self.own[name] if name in self.own else getattr(_module(HOMES[name]), name)

    def __iter__(self) -> Iterator[str]:
        return iter([*self.own, *HOMES])

    def __len__(self) -> int:
        return len(self.own) + len(HOMES)


CLASSES = PosteriorClasses()


def load(
    path: str | PathLike[str],
    model: "BayesianNetwork | gp.GaussianProcess | Program | None" = None,
    guide: GuideBuilder | None = None,
    posteriors: Sequence[type[Posterior]] = (),
) -> Posterior:
    """The posterior that `posterior.save(path)` wrote, on the CPU.

    Nothing in the file is ever run or imported: it holds tensors, numbers, and names that are looked up in fixed lists.

    Args:
        path: The file.
        model: Needed where the model has parts that are not bayesuq's own (a network of yours, a rule that is a
            function): the same model again. Its weights come from the file; names, shapes, dtypes, torch's
            layers with their options, prior and likelihood must agree, and a process' kernel and mean; constants of
            your own layers that differ are told. A Pyro program of your own is always needed.
        guide: Needed where the posterior was fitted with a guide of your own or of Pyro's: the same function from the
            model to the guide. Its parameters come from the file.
        posteriors: Classes of posteriors of your own that the file may hold, besides bayesuq's.

    Raises:
        FileNotFoundError: No such file.
        TypeError: A model, a guide or a posterior's class of another type.
        ValueError: A truncated or foreign file, one of a newer format; a model or guide missing or different from the
            file's.

    Example:
        >>> posterior.save("digits.safetensors")                         # doctest: +SKIP
        >>> bq.load("digits.safetensors").predict(x, num_samples=100)    # doctest: +SKIP
    """
    if guide is not None and (isinstance(guide, nn.Module) or not callable(guide)):
        raise TypeError(f"`guide` must be a function from the model to a Pyro guide; got {type(guide).__name__}.")
    own = _by_name(posteriors)
    header, tensors = read(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"The file has format {header.get('format')!r}; this version of bayesuq reads {FORMAT}.")
    _check_kind(header, model)
    try:
        process = _module("gp.saving").restore_process if "process" in header else None
        restore: Callable[..., Any] = process if process is not None and _is_of_process(header) else restore_model
        given = {"model": restore(header, tensors, model), "guide": guide}
        if process is not None and restore is restore_model:
            given["process"] = process(header, tensors, None)
        return _checked(unpack(header["posterior"], tensors, given, PosteriorClasses(own)), header.get("families", {}))
    except BROKEN as error:
        raise ValueError(f"{fspath(path)!r} was not written by `posterior.save`: {error!r}.") from error


def _checked(posterior: Posterior, families: Mapping[str, str]) -> Posterior:
    """The posterior, if the programs that it and those within it are of have the sites that were fitted."""
    for inner in (posterior, *within(posterior)):
        if check := getattr(inner, "check_program", None):
            check(families)
    return posterior


def _by_name(posteriors: Sequence[type[Posterior]]) -> dict[str, type[Posterior]]:
    """The user's classes by the names that files hold.

    Raises:
        TypeError: Something that is no list of posteriors' classes.
        ValueError: A name that one of bayesuq's classes has, or two of them.
    """
    if not isinstance(posteriors, Sequence) or not all(
        isinstance(kind, type) and issubclass(kind, Posterior) for kind in posteriors
    ):
        raise TypeError(f"`posteriors` must be a list of classes that extend Posterior; got {posteriors!r}.")
    names = [kind.__name__ for kind in posteriors]
    taken = [name for name in names if name in CLASSES or names.count(name) > 1]
    if taken:
        raise ValueError(f"`posteriors` must have names that no other class has; {taken[0]} is taken. Rename it.")
    return dict(zip(names, posteriors, strict=True))


def _check_kind(header: Mapping[str, Any], model: object) -> None:
    """Refuse a model of another kind than the file's."""
    if _is_of_process(header):
        wanted, fits = "a GaussianProcess", model is None or isinstance(model, gp.GaussianProcess)
    elif header.get("sites") is None:
        wanted, fits = "a Pyro program", model is None or (callable(model) and not isinstance(model, BayesianNetwork))
    else:
        wanted, fits = "a bayesuq.models.BayesianNetwork", model is None or isinstance(model, BayesianNetwork)
    if not fits:
        remedy = " Pass BayesianNetwork(net, prior, likelihood)." if isinstance(model, nn.Module) else ""
        raise TypeError(f"`model` must be {wanted}, as in the file; got {type(model).__name__}.{remedy}")


def _is_of_process(header: Mapping[str, Any]) -> bool:
    """Whether the file's model is a Gaussian process, and not a network beside which a member is one."""
    return "process" in header and header.get("sites") is None


def _module(name: str) -> ModuleType:
    """A module of inference that this file names."""
    return import_module(f"bayesuq.inference.{name}")
