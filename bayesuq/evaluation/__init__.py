"""How far a predictive can be trusted: uncertainties, scores, calibration, detection, and a report of them all.

Every measure takes p(y* | x*, D) and y, and asks not how they came about. Modules are handed on lazily (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesuq.evaluation import (
        binning,
        bootstrap,
        calibration,
        comparison,
        convergence,
        decomposition,
        detection,
        detection_tasks,
        diagnostics,
        distance,
        fit_quality,
        leave_one_out,
        measure,
        overlap,
        patches,
        pixel_counts,
        plots,
        predictive_checks,
        quantities,
        ranking,
        report,
        score_table,
        scores,
        segmentation,
        segmentation_report,
        simulation,
        standard_errors,
        standard_measures,
        states,
        uncertainty,
        weighted,
        worst_entries,
    )

__all__ = [
    "binning",
    "bootstrap",
    "calibration",
    "comparison",
    "convergence",
    "decomposition",
    "detection",
    "detection_tasks",
    "diagnostics",
    "distance",
    "fit_quality",
    "leave_one_out",
    "measure",
    "overlap",
    "patches",
    "pixel_counts",
    "plots",
    "predictive_checks",
    "quantities",
    "ranking",
    "report",
    "score_table",
    "scores",
    "segmentation",
    "segmentation_report",
    "simulation",
    "standard_errors",
    "standard_measures",
    "states",
    "uncertainty",
    "weighted",
    "worst_entries",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"bayesuq.evaluation.{name}")
    raise AttributeError(f"module 'bayesuq.evaluation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
