"""Standard errors of measures: in closed form, of weighted rows, and by the bootstrap."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.evaluation.standard_errors import bootstrap as bootstrap
    from bayesuq.evaluation.standard_errors.closed_form import by_derivative as by_derivative
    from bayesuq.evaluation.standard_errors.closed_form import of_aurc as of_aurc
    from bayesuq.evaluation.standard_errors.closed_form import of_auroc as of_auroc
    from bayesuq.evaluation.standard_errors.closed_form import of_average_precision as of_average_precision
    from bayesuq.evaluation.standard_errors.closed_form import (
        of_expected_calibration_error as of_expected_calibration_error,
    )
    from bayesuq.evaluation.standard_errors.closed_form import of_gap_difference as of_gap_difference
    from bayesuq.evaluation.standard_errors.closed_form import of_mean as of_mean
    from bayesuq.evaluation.standard_errors.closed_form import of_root_mean as of_root_mean

__getattr__, __dir__, __all__ = lazy(__name__)
