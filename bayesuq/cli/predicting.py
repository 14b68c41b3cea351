"""`bayesuq predict`: the rows of a table by a posterior that was fitted to one, row for row, into a CSV file."""

import gzip
import math
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from bayesuq.cli.output import tell, tell_warnings
from bayesuq.cli.problem import use_computer
from bayesuq.cli.reading import posterior_file
from bayesuq.cli.settings import NewRowsOptions, PredictionOptions, UsageError
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.posteriors.tables import USUAL, TablePosterior
from bayesuq.tables.encoding import Notes
from bayesuq.tables.table import new_rows
from bayesuq.writing import replacing

FAR, MANY = 3.0, 0.25  # standard errors, and a share of the rows, beyond which unusual ones are told
ROWS = 10_000  # that are in memory together


def run(options: NewRowsOptions, prediction: PredictionOptions) -> None:
    """Read some rows, predict them, write them, and so on; then tell which cells were never seen so.

    Raises:
        UsageError: No such posterior or table, or a file that is there or is read, before anything is done.
        ValueError: A posterior that was fitted to no table, a table without the fitted columns.
        OSError: The file cannot be written.
    """
    use_computer(prediction)
    path = posterior_file(options.posterior)
    posterior = _table_posterior(path)
    if not options.data.is_file():
        raise UsageError(f"There is no file {str(options.data)!r}.")
    for read in (options.data, path):
        if options.out.resolve() == read.resolve():
            raise UsageError(
                f"{options.out} is what is read, and would be lost; name another file for the predictions."
            )
    if options.out.exists() and not options.overwrite:
        raise UsageError(f"{options.out} is there already; pass --overwrite to replace it.")
    if prediction.device is not None:
        posterior = posterior.to(prediction.device)
    frames = new_rows(
        options.data, posterior.columns, rows=ROWS, delimiter=options.delimiter, encoding=options.encoding
    )
    notes, number, num_unusual = Notes(), 0, 0
    with replacing(options.out) as file, _text(file, options.out) as text:
        for frame in frames:
            answers = posterior.answers(
                frame,
                level=options.level,
                num_samples=prediction.num_samples,
                seed=prediction.seed,
                notes=notes,
            )
            answers.to_csv(text, index=False, header=number == 0)
            number += len(answers)
            num_unusual += int((answers["distance"] > 1).sum())
            tell(f"{number} rows")
    tell_warnings(str(options.data), [*notes.lines(), *_unusual(num_unusual, number)])
    print(f"{number} rows: {options.out}")


def _table_posterior(path: Path) -> TablePosterior:
    """The posterior of a file.

    Raises:
        ValueError: It was fitted to no table.
    """
    found = load(path)
    if not isinstance(found, TablePosterior):
        raise ValueError(
            f"{path} was not fitted to a table, and knows no columns; use it from Python by `bayesuq.load`."
        )
    return found


def _unusual(count: int, number: int) -> list[str]:
    """What is said where rows are unlike those that were fitted, of which a twentieth has a distance above 1."""
    expected = 1 - USUAL
    most = expected * number + FAR * math.sqrt(expected * (1 - expected) * number)
    told = (
        f"{count} of {number} rows are further from the fitted ones than {100 * USUAL:.0f} % of these are (`distance` "
        "above 1). Are they in other units, or under other names? What is predicted there is a guess."
    )
    return [told] if count > max(most, MANY * number) else []


def _text(file: Any, path: Path) -> TextIOWrapper:
    """A file as one of text, compressed where its name says so."""
    inner = gzip.GzipFile(fileobj=file, mode="wb") if path.suffix == ".gz" else file
    return TextIOWrapper(inner, encoding="utf-8", newline="")
