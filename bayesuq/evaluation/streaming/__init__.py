"""Measures of fixed size that batches add to, exactly: additive ones, and rankings with a bound."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.evaluation.streaming import states as states

__getattr__, __dir__, __all__ = lazy(__name__)
