"""Deep ensembles: networks from initialisations of their own; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.ensemble.fitting import fit as fit
    from bayesuq.inference.posteriors.ensemble import EnsemblePosterior as EnsemblePosterior

__getattr__, __dir__, __all__ = lazy(__name__, returned=["EnsemblePosterior"])
