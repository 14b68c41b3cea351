"""Variational online Newton: a factorised Gaussian whose widths are the curvature; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.ivon.fitting import fit as fit

__getattr__, __dir__, __all__ = lazy(__name__)
