"""The command line: `bayesuq compare`, `fit`, `evaluate`, `predict`, ... Imports everything; nothing imports it.

`main` and what it needs to parse options load no torch; the modules that do the work are handed on lazily (PEP 562).
"""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.cli import comparing as comparing
    from bayesuq.cli import data_sets as data_sets
    from bayesuq.cli import diagnosing as diagnosing
    from bayesuq.cli import evaluating as evaluating
    from bayesuq.cli import fitting as fitting
    from bayesuq.cli import predicting as predicting

__getattr__, __dir__, __all__ = lazy(__name__)
