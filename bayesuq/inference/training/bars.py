"""Bars that show how far a loop is. Where none is shown, none is made: tqdm starts a thread with its first one."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any, Self

from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # a notebook without widgets: the bar is of text then
    from tqdm.auto import tqdm


class Bar:
    """What loops use of tqdm's bars; this one shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self) -> Any:
        """One more is done."""

    def set_postfix(self, facts: Mapping[str, Any], *, refresh: bool) -> None:
        """What stands behind it."""


def bar(progress: bool | None, *, total: int, done: int, unit: str, label: str = "", line: int = 0) -> Bar:
    """A bar, or none.

    Args:
        progress: Whether to show one; None shows it on a terminal and in a notebook only.
        total: How many there are.
        done: How many are done.
        unit: What is counted.
        label: Before the bar.
        line: Of the terminal, where several show one each.
    """
    if not is_shown(progress):
        return Bar()
    shown: Any = tqdm(total=total, initial=done, unit=unit, desc=label, position=line or None)
    return shown


def is_shown(progress: bool | None) -> bool:
    """Whether bars are shown: as asked, or where a person looks on: on a terminal and in a notebook."""
    return sys.stderr.isatty() or _is_in_notebook() if progress is None else progress


def _is_in_notebook() -> bool:
    """Whether the shell of this process is a notebook's."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
