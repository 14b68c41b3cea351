"""Pictures of results: these files draw and compute nothing, and are the only ones that import matplotlib.

Each function returns a `matplotlib.figure.Figure` of its own, made without pyplot, so that no global state is touched:
save it by `figure.savefig(path)`. Methods are small multiples on shared axes, or lines in one. Handed on lazily.
"""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.evaluation.plots.classification import entropy_histogram as entropy_histogram
    from bayesuq.evaluation.plots.classification import reliability_diagram as reliability_diagram
    from bayesuq.evaluation.plots.detection import rejection_curves as rejection_curves
    from bayesuq.evaluation.plots.detection import roc_curves as roc_curves
    from bayesuq.evaluation.plots.detection import score_histograms as score_histograms
    from bayesuq.evaluation.plots.draws import loo_pit_plot as loo_pit_plot
    from bayesuq.evaluation.plots.draws import predictive_check_plot as predictive_check_plot
    from bayesuq.evaluation.plots.draws import trace_plot as trace_plot
    from bayesuq.evaluation.plots.real_images import kept_error_curves as kept_error_curves
    from bayesuq.evaluation.plots.real_images import real_maps as real_maps
    from bayesuq.evaluation.plots.regression import interval_calibration as interval_calibration
    from bayesuq.evaluation.plots.regression import regression_bands as regression_bands
    from bayesuq.evaluation.plots.segmentation import overlap_curves as overlap_curves
    from bayesuq.evaluation.plots.segmentation import quality_scatter as quality_scatter
    from bayesuq.evaluation.plots.segmentation import segmentation_maps as segmentation_maps
    from bayesuq.evaluation.plots.segmentation import segmentation_montage as segmentation_montage
    from bayesuq.evaluation.plots.simulation import rank_histograms as rank_histograms
    from bayesuq.evaluation.plots.slices import segmentation_slices as segmentation_slices
    from bayesuq.evaluation.plots.training import loss_curves as loss_curves

__getattr__, __dir__, __all__ = lazy(__name__)
