"""`bayesuq data list` and `bayesuq data get`."""

import textwrap
from collections.abc import Sequence
from functools import partial

from bayesuq.cli.output import tell
from bayesuq.cli.settings import UsageError
from bayesuq.datasets import named as datasets
from bayesuq.datasets.fetching import get as fetch
from bayesuq.datasets.sources import SOURCES
from bayesuq.evaluation.report.tables import WIDTH
from bayesuq.options import nearest


def show() -> None:
    """Print the sets that can be loaded, and those that can be fetched with what they are."""
    here = datasets.available()
    print(f"Here (built in, or in {datasets.folder()}):")
    print(*(f"  {name}" for name in here), sep="\n")
    absent = {name: source for name, source in SOURCES.items() if name not in here}
    if absent:
        print("\nTo be fetched by `bayesuq data get NAME`:")
        width = max(map(len, absent))
        for name, source in absent.items():
            print(_line(f"  {name:<{width}}  ", f"{source.description} ({source.licence})"))


def _line(name: str, text: str) -> str:
    """A name and what stands beside it, which goes on below itself where a line of 80 characters ends."""
    return textwrap.fill(text, WIDTH, initial_indent=name, subsequent_indent=" " * len(name))


def get(names: Sequence[str], *, overwrite: bool) -> None:
    """Fetch each set and print where it is.

    Raises:
        UsageError: A name without a source; nothing is then fetched.
        FetchError: A source cannot be reached, or sends something else than it should.
        OSError: The folder cannot be written.
    """
    for name in names:
        if name not in SOURCES:
            raise UsageError(f"There is no source for {name!r}; {nearest(name, list(SOURCES))}.")
    for name in names:
        path = fetch(name, overwrite=overwrite, progress=partial(_tell_file, name))
        print(f"{name}: {path}")


def _tell_file(name: str, done: int, total: int) -> None:
    tell(f"{name}: file {done + 1} of {total}")
