"""Draws under the names that ArviZ's users expect, in its container or in xarray's."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.to_arviz import container as container
    from bayesuq.to_arviz import groups as groups

__getattr__, __dir__, __all__ = lazy(__name__)
