"""Reports: named measures of a predictive against the truth, each with its standard error and unit."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.evaluation.report.comparison import compare_predictives as compare_predictives
    from bayesuq.evaluation.report.detection_tasks import evaluate_misclassification as evaluate_misclassification
    from bayesuq.evaluation.report.detection_tasks import evaluate_ood as evaluate_ood
    from bayesuq.evaluation.report.reporting import Report as Report
    from bayesuq.evaluation.report.reporting import evaluate as evaluate
    from bayesuq.evaluation.report.reporting import evaluate_detection as evaluate_detection
    from bayesuq.evaluation.report.reporting import side_by_side as side_by_side

__getattr__, __dir__, __all__ = lazy(__name__)
