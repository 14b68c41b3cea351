"""How far a predictive can be trusted: uncertainties, scores, calibration, detection, and a report of them all.

Every measure takes p(y* | x*, D) and y, and asks not how they came about. Modules are handed on lazily (PEP 562).
"""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.evaluation import binning as binning
    from bayesuq.evaluation import calibration as calibration
    from bayesuq.evaluation import decomposition as decomposition
    from bayesuq.evaluation import detection as detection
    from bayesuq.evaluation import diagnostics as diagnostics
    from bayesuq.evaluation import distance as distance
    from bayesuq.evaluation import plots as plots
    from bayesuq.evaluation import report as report
    from bayesuq.evaluation import scores as scores
    from bayesuq.evaluation import segmentation as segmentation
    from bayesuq.evaluation import simulation as simulation
    from bayesuq.evaluation import standard_errors as standard_errors
    from bayesuq.evaluation import uncertainty as uncertainty
    from bayesuq.evaluation.diagnostics import convergence as convergence
    from bayesuq.evaluation.diagnostics import fit_quality as fit_quality
    from bayesuq.evaluation.diagnostics import leave_one_out as leave_one_out
    from bayesuq.evaluation.diagnostics import predictive_checks as predictive_checks
    from bayesuq.evaluation.diagnostics import quantities as quantities
    from bayesuq.evaluation.diagnostics import worst_entries as worst_entries
    from bayesuq.evaluation.report import comparison as comparison
    from bayesuq.evaluation.report import detection_tasks as detection_tasks
    from bayesuq.evaluation.report import measure as measure
    from bayesuq.evaluation.report import score_table as score_table
    from bayesuq.evaluation.report import standard_measures as standard_measures
    from bayesuq.evaluation.segmentation import overlap as overlap
    from bayesuq.evaluation.segmentation import patches as patches
    from bayesuq.evaluation.segmentation import pixel_counts as pixel_counts
    from bayesuq.evaluation.segmentation import reporting as segmentation_report
    from bayesuq.evaluation.standard_errors import bootstrap as bootstrap
    from bayesuq.evaluation.standard_errors import intervals as intervals
    from bayesuq.evaluation.standard_errors import sums as sums
    from bayesuq.evaluation.standard_errors import weighted as weighted
    from bayesuq.evaluation.streaming import ranking as ranking
    from bayesuq.evaluation.streaming import states as states

__getattr__, __dir__, __all__ = lazy(__name__)
