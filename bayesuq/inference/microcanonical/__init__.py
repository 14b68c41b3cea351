"""Microcanonical Langevin ensembles: trained networks, and a chain from each; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.microcanonical.fitting import MicrocanonicalPosterior as MicrocanonicalPosterior
    from bayesuq.inference.microcanonical.fitting import fit as fit
    from bayesuq.inference.microcanonical.sampling import sample as sample

__getattr__, __dir__, __all__ = lazy(__name__, returned=["MicrocanonicalPosterior"])
