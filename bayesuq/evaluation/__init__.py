"""How far a predictive can be trusted: uncertainties, scores, calibration, detection, and a report of them all.

Every measure takes p(y* | x*, D) and y, and asks not how they came about. Modules are handed on lazily (PEP 562).
"""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.evaluation import calibration as calibration
    from bayesuq.evaluation import decomposition as decomposition
    from bayesuq.evaluation import detection as detection
    from bayesuq.evaluation import diagnostics as diagnostics
    from bayesuq.evaluation import distance as distance
    from bayesuq.evaluation import plots as plots
    from bayesuq.evaluation import real_maps as real_maps
    from bayesuq.evaluation import report as report
    from bayesuq.evaluation import scores as scores
    from bayesuq.evaluation import segmentation as segmentation
    from bayesuq.evaluation import simulation as simulation
    from bayesuq.evaluation import standard_errors as standard_errors
    from bayesuq.evaluation import streaming as streaming
    from bayesuq.evaluation import uncertainty as uncertainty

__getattr__, __dir__, __all__ = lazy(__name__)
