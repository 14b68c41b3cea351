"""Scores of how unlike the training data an input is, from a trained network's features; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.features.fitting import fit as fit
    from bayesuq.inference.features.fitting import load as load
    from bayesuq.inference.features.heads import head as head
    from bayesuq.inference.features.neighbours import NearestNeighbours as NearestNeighbours
    from bayesuq.inference.features.taken import Features as Features
    from bayesuq.inference.features.taking import take as take

__getattr__, __dir__, __all__ = lazy(__name__)
