"""Doors to other libraries: a posterior in the form in which they take one.

Names are handed on lazily (PEP 562): each library is loaded where its door is first used, and the rest works without.
"""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.bridges.botorch import as_botorch as as_botorch
    from bayesuq.bridges.nnunet import SavedFolds as SavedFolds
    from bayesuq.bridges.onnx import to_onnx as to_onnx

__getattr__, __dir__, __all__ = lazy(__name__)
