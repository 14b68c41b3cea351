"""`bayesuq evaluate`: a saved posterior on a part of a data set; its report in a folder."""

from dataclasses import dataclass
from pathlib import Path

from bayesuq.cli.judging import Judged, judge
from bayesuq.cli.output import Output, by_name, tell, tell_warnings
from bayesuq.cli.problem import Loaded, load_data, use_computer
from bayesuq.cli.reading import (
    as_table,
    check_fitted_rows,
    check_split,
    is_fitted_data,
    posterior_file,
    read_alone,
    read_fitted,
)
from bayesuq.cli.settings import (
    DataOptions,
    OutputOptions,
    OwnNetworkOption,
    Part,
    PosteriorOption,
    PredictionOptions,
    UsageError,
)
from bayesuq.data import Dataset, Split, Standardizer
from bayesuq.datasets import named as datasets
from bayesuq.inference.posteriors.tables import TablePosterior
from bayesuq.posterior import Posterior

MANY = 0.1  # of the fitted rows: fewer may be alike by chance


@dataclass(frozen=True, eq=False)
class Asked:
    """A posterior, and the data that it is asked about.

    Attributes:
        path: Of its file.
        posterior: As it was fitted.
        standardizer: The units of that; None where raw units were fitted.
        table: The posterior with the columns of its table; None of another set.
        is_other_table: Whether the data are a table, and not the one that was fitted.
        loaded: The data.
        part: Of them.
        rows: Of that part; "all" is all parts together.
    """

    path: Path
    posterior: Posterior
    standardizer: Standardizer | None
    table: TablePosterior | None
    is_other_table: bool
    loaded: Loaded
    part: Part
    rows: Dataset


def run(
    posterior: PosteriorOption,
    own: OwnNetworkOption,
    data: DataOptions,
    prediction: PredictionOptions,
    output: OutputOptions,
) -> None:
    """Load, predict, measure, write, print the report.

    Real targets are taken back to their own units by the standardizer that lies beside the posterior.

    Raises:
        UsageError: No such file or data, another split than was fitted, or a folder in use, before anything is done.
        ValueError: A file that is no posterior, or data that it does not take.
        OSError: The folder cannot be written.
    """
    use_computer(prediction)
    path = posterior_file(posterior.posterior)
    _check_apart(path, output)
    check_split(path, data)
    asked = _read(path, posterior.part, data, own)
    settings = by_name(posterior, own, data, prediction, output)
    folder = Output.prepare(output, settings)

    tell_warnings(data.data, [*asked.loaded.warnings, *_fitted_rows(asked)])
    judged = _judged(asked, data, prediction)
    judged.report.save(folder.folder / "report.json")
    folder.write_run(settings, folder.circumstances(prediction.device), {})
    print(f"{_what(asked, data, own)}: {judged.report}")
    tell(f"Written to {folder.folder}.")


def _check_apart(path: Path, output: OutputOptions) -> None:
    """Refuse to write over the posterior."""
    if path.resolve().is_relative_to(output.out.resolve()):
        raise UsageError(
            f"{path} lies in {output.out}, which would be overwritten; name another folder for the results."
        )


def _read(path: Path, part: Part, data: DataOptions, own: OwnNetworkOption) -> Asked:
    """The posterior, and the data: a table by the columns that were fitted."""
    known = read_alone(path)
    table = as_table(known)
    is_other_table = table is not None and not is_fitted_data(path, data.data)
    if part == "all" and not is_other_table:
        raise UsageError(f"Most rows of {data.data} were fitted, so that --part all would judge them by themselves.")
    loaded = load_data(data, None if table is None else table.columns)
    if table is not None:
        check_fitted_rows(table, path, loaded.split, data.data)
    posterior, standardizer = read_fitted(path, data.data, loaded.split, own.network, known)
    rows = _rows(loaded.split, part)
    return Asked(path, posterior, standardizer, table, is_other_table, loaded, part, rows)


def _rows(split: Split, part: Part) -> Dataset:
    if part == "all":
        return split.train.concatenate(split.val, split.test)
    return {"train": split.train, "val": split.val, "test": split.test}[part]


def _fitted_rows(asked: Asked) -> list[str]:
    """What is said where rows that the posterior was fitted to are among those that it is judged by."""
    fitted = asked.table.share_fitted(asked.rows) if asked.table is not None and asked.part == "all" else 0.0
    told = f"{fitted:.0%} of the fitted rows stand in it, so that what is measured is too good."
    return [told] if fitted > MANY else []


def _judged(asked: Asked, data: DataOptions, prediction: PredictionOptions) -> Judged:
    """Thresholds are chosen on the validation rows, but for those rows themselves."""
    split = asked.loaded.split
    return judge(
        asked.posterior if prediction.device is None else asked.posterior.to(prediction.device),
        asked.rows,
        split.ood,
        asked.standardizer,
        prediction,
        validation=split.val if asked.part in ("train", "test") else None,
        ignore_index=datasets.IGNORED.get(data.data),
        background=data.data in datasets.WITHOUT_BACKGROUND,
    )


def _what(asked: Asked, data: DataOptions, own: OwnNetworkOption) -> str:
    """What was measured, on which rows, and in which units where these are not the data's."""
    rows, split = asked.rows, asked.loaded.split
    is_some = asked.is_other_table and asked.part != "all"
    number = len(split.train) + len(split.val) + len(split.test)
    some = f" ({len(rows)}; `--part all` takes all {number})" if is_some else ""
    has_units = rows.is_labelled or asked.standardizer is not None or own.network is not None
    units = "" if has_units else ", in the posterior's units: no standardizer is there"
    return f"{asked.path} on {data.data}, {asked.part} rows{some}{units}"
