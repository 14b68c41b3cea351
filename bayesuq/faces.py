"""Faces: `__init__` files that hand names on lazily (PEP 562), so that a package loads no more than is asked of it.

A face names each thing once, in its imports under `if TYPE_CHECKING:`. Type checkers and editors read them there, and
so does `lazy`, which makes of them the face's `__getattr__`, `__dir__` and `__all__`.

A public module that is a file says in `__all__` what is meant to be called, and `__dir__ = __all__.copy` lets `dir` and
editors show these names, without constants and without what it imports.
"""

import ast
import sys
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any

from bayesuq.moved import HOMES as MOVED
from bayesuq.moved import INTERNAL, install, is_import_statement, warn_of_internal

install()  # here, because every import of bayesuq comes this way


def lazy(
    face: str, *, returned: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a face.

    Args:
        face: The dotted name of the package, which is being imported.
        returned: Types that its functions return. They are here for annotations, and not among the names to call.

    Raises:
        ImportError: The package comes without its source, in which the names stand.
    """
    homes = _homes(face)

    def get(name: str) -> Any:
        if name not in homes:
            path = f"{face}.{name}".partition(".")[2]
            if path in MOVED:
                return import_module(f"{face}.{name}")
            if path in INTERNAL and not is_import_statement(1):
                module, _, inner = f"bayesuq.{INTERNAL[path]}".partition(":")
                warn_of_internal(f"{face}.{name}", module)
                return getattr(import_module(module), inner) if inner else import_module(module)
            raise AttributeError(f"module {face!r} has no attribute {name!r}")
        home = homes[name]
        return import_module(f"{face}.{name}") if home == face else getattr(import_module(home), name)

    names = sorted(homes.keys() - set(returned))
    return get, names.copy, names


def _homes(face: str) -> dict[str, str]:
    """The module that each name of a face is imported from; the face itself where the name is one of its modules."""
    spec = sys.modules[face].__spec__
    source = getattr(getattr(spec, "loader", None), "get_source", lambda _name: None)(face)
    if source is None:
        raise ImportError(f"{face} must be installed with its source, which says what it hands on")
    for_types = [node for node in ast.parse(source).body if isinstance(node, ast.If) and _is_guard(node.test)]
    found = [imported for node in for_types for imported in node.body if isinstance(imported, ast.ImportFrom)]
    return {alias.name: str(imported.module) for imported in found for alias in imported.names}


def _is_guard(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
