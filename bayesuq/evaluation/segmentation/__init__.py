"""Segmentations: IoU, Dice, uncertainty-error overlap, patches, and a report whose unit is the image."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.evaluation.segmentation.failures import image_failures as image_failures
    from bayesuq.evaluation.segmentation.lesions import lesion_counts as lesion_counts
    from bayesuq.evaluation.segmentation.masks import class_dice as class_dice
    from bayesuq.evaluation.segmentation.measures import dice as dice
    from bayesuq.evaluation.segmentation.measures import intersection_over_union as intersection_over_union
    from bayesuq.evaluation.segmentation.measures import uncertainty_error_overlap as uncertainty_error_overlap
    from bayesuq.evaluation.segmentation.pixel_counts import pixel_state as pixel_state
    from bayesuq.evaluation.segmentation.raters import rater_agreement as rater_agreement
    from bayesuq.evaluation.segmentation.raters import rater_shares as rater_shares
    from bayesuq.evaluation.segmentation.raters import region as region
    from bayesuq.evaluation.segmentation.reporting import evaluate_segmentation as evaluate_segmentation
    from bayesuq.evaluation.segmentation.surfaces import surface_distances as surface_distances

__getattr__, __dir__, __all__ = lazy(__name__)
