"""What fits warn of when they may be wrong: a class of its own, so that users and tests can filter by it.

warnings.filterwarnings("error", category=bayesuq.ConvergenceWarning)  # a script that stops at a doubtful fit
warnings.filterwarnings("ignore", category=bayesuq.ConvergenceWarning)  # fits that are short on purpose
"""

import sys
import warnings
from pathlib import Path

PACKAGE = str(Path(__file__).parent)
DECORATORS = ("contextlib.py", "_contextlib.py")  # Python's and torch's, between one function of ours and another


class ConvergenceWarning(UserWarning):
    """A fit ended before it had converged, or its chains disagree, or its posterior misses the model's."""


def warn_of_fit(message: str, category: type[Warning] = ConvergenceWarning) -> None:
    """Warn at the line outside this package that the fit was called from, however deep in it the trouble was found."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_within(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_within(path: str) -> bool:
    return path.startswith(PACKAGE) or path.endswith(DECORATORS)
