"""True class probability: a network that learns where to trust another one; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.confidence.fitting import ConfidencePosterior as ConfidencePosterior
    from bayesuq.inference.confidence.fitting import fit as fit

__getattr__, __dir__, __all__ = lazy(__name__, returned=["ConfidencePosterior"])
