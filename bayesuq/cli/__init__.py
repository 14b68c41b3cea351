"""The command line: `bayesuq compare | fit | evaluate | diagnose | data`. Imports everything; nothing imports it.

`main` and what it needs to parse options load no torch; the modules that do the work are handed on lazily (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesuq.cli import comparing, data_sets, diagnosing, evaluating, fitting

__all__ = ["comparing", "data_sets", "diagnosing", "evaluating", "fitting"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"bayesuq.cli.{name}")
    raise AttributeError(f"module 'bayesuq.cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
