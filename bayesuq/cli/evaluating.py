"""`bayesuq evaluate`: a saved posterior on a part of a data set; its report in a folder."""

from pathlib import Path

from bayesuq.cli.judging import judge
from bayesuq.cli.output import Output, by_name, read_settings, tell, tell_warnings
from bayesuq.cli.problem import load_data, use_computer
from bayesuq.cli.reading import (
    as_table,
    check_fitted_rows,
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
from bayesuq.data import Dataset, Split
from bayesuq.datasets import named as datasets
from bayesuq.inference.posteriors.tables import TablePosterior

MANY = 0.1  # of the fitted rows: fewer may be alike by chance


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
    if path.resolve().is_relative_to(output.out.resolve()):
        raise UsageError(
            f"{path} lies in {output.out}, which would be overwritten; name another folder for the results."
        )
    _check_split(path, data)
    known = read_alone(path)
    table = as_table(known)
    is_other_table = table is not None and not is_fitted_data(path, data.data)
    if posterior.part == "all" and not is_other_table:
        raise UsageError(f"Most rows of {data.data} were fitted, so that --part all would judge them by themselves.")
    found = load_data(data, None if table is None else table.columns)
    split = found.split
    if table is not None:
        check_fitted_rows(table, path, split, data.data)
    loaded, standardizer = read_fitted(path, data.data, split, own.network, known)
    if prediction.device is not None:
        loaded = loaded.to(prediction.device)
    settings = by_name(posterior, own, data, prediction, output)
    folder = Output.prepare(output, settings)
    tell_warnings(data.data, found.warnings)

    part = _part(posterior.part, split)
    if table is not None and posterior.part == "all":
        _tell_of_fitted_rows(table, part, data.data)
    judged = judge(
        loaded,
        part,
        split.ood,
        standardizer,
        prediction,
        validation=split.val if posterior.part in ("train", "test") else None,
        ignore_index=datasets.IGNORED.get(data.data),
        background=data.data in datasets.WITHOUT_BACKGROUND,
    )
    judged.report.save(folder.folder / "report.json")
    folder.write_run(settings, folder.circumstances(prediction.device), {})
    units = (
        ""
        if part.is_labelled or standardizer is not None or own.network is not None
        else ", in the posterior's units: no standardizer is there"
    )
    is_some = is_other_table and posterior.part != "all"
    some = f" ({len(part)}; `--part all` takes all {len(_part('all', split))})" if is_some else ""
    print(f"{path} on {data.data}, {posterior.part} rows{some}{units}: {judged.report}")
    tell(f"Written to {folder.folder}.")


def _tell_of_fitted_rows(table: TablePosterior, rows: Dataset, data: str) -> None:
    """Tell where rows that the posterior was fitted to are among those that it is judged by."""
    fitted = table.share_fitted(rows)
    if fitted > MANY:
        tell_warnings(data, [f"{fitted:.0%} of the fitted rows stand in it, so that what is measured is too good."])


def _part(name: Part, split: Split) -> Dataset:
    if name == "all":
        return split.train.concatenate(split.val, split.test)
    return {"train": split.train, "val": split.val, "test": split.test}[name]


def _check_split(posterior: Path, data: DataOptions) -> None:
    """Refuse another split of the data that were fitted: its test rows are for the most part rows trained on."""
    for folder in (posterior.parent, posterior.parent.parent):  # of a fit, and of a comparison
        fitted = read_settings(folder)
        if fitted.get("data") == data.data and (fitted.get("split") or 0) != (data.split or 0):
            raise UsageError(
                f"{posterior} was fitted to split {fitted.get('split') or 0} of {data.data}, on rows that split "
                f"{data.split or 0} tests; pass --split {fitted.get('split') or 0}."
            )
