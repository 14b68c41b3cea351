"""The bridge to ArviZ: convergence, leave-one-out, predictive checks, and the quality of a fit; free of torch."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.evaluation.diagnostics import convergence as convergence
    from bayesuq.evaluation.diagnostics import fit_quality as fit_quality
    from bayesuq.evaluation.diagnostics import leave_one_out as leave_one_out
    from bayesuq.evaluation.diagnostics import predictive_checks as predictive_checks

__getattr__, __dir__, __all__ = lazy(__name__)
