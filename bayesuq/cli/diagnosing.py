"""`bayesuq diagnose`: how far the draws of a run's posteriors can be trusted; a page, and the draws for ArviZ."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bayesuq.cli.diagnosis import Diagnosis, diagnose
from bayesuq.cli.output import DIAGNOSTICS, DRAWS, POSTERIOR, RUN, delete, file_name, read_settings, tell, tell_warnings
from bayesuq.cli.page import fill
from bayesuq.cli.problem import data_options, load_data, use_computer
from bayesuq.cli.reading import as_table, check_fitted_rows, read_alone, read_fitted
from bayesuq.cli.settings import DiagnoseOptions, OwnNetworkOption, PredictionOptions, UsageError
from bayesuq.data import Dataset, Split
from bayesuq.evaluation.diagnostics.leave_one_out import Ranking, compare
from bayesuq.inference.posteriors.tables import TablePosterior
from bayesuq.posterior import Posterior
from bayesuq.tables.files import names_a_file
from bayesuq.writing import replacing_by_name, write_text

TEMPLATE = "diagnostics.html"


@dataclass(frozen=True)
class Run:
    """A folder that holds posteriors.

    Attributes:
        folder: Of the run.
        settings: That it was made with.
        posteriors: Files by the name of the method.
        losses: Of each epoch, of each network, by the name of the method.
    """

    folder: Path
    settings: dict[str, Any]
    posteriors: dict[str, Path]
    losses: dict[str, list[list[float]]]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Find the posteriors.

        Raises:
            UsageError: No output of ours, one without posteriors, or of a run that was stopped.
        """
        settings = read_settings(folder)
        names = settings.get("methods") or [settings.get("method")]
        alone = folder / POSTERIOR
        files = {str(name): folder / "posteriors" / f"{file_name(str(name))}.safetensors" for name in names}
        if alone.is_file():
            files = {str(names[0]): alone}
        if not settings or not all(path.is_file() for path in files.values()):
            raise UsageError(f"{folder} holds no posterior; name a folder that `bayesuq fit` or `compare` wrote.")
        if not (folder / RUN).is_file():
            raise UsageError(f"The run of {folder} did not come to its end; repeat it, so that it goes on from there.")
        try:
            fits = json.loads((folder / RUN).read_text(encoding="utf-8"))["fits"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{folder / RUN} is not as a run wrote it: {error}. Repeat the run.") from error
        return cls(folder, settings, files, {name: fit.get("losses", []) for name, fit in fits.items()})

    def outputs(self) -> dict[str, Path]:
        """Where the draws of each method go."""
        if len(self.posteriors) == 1 and next(iter(self.posteriors.values())).parent == self.folder:
            return dict.fromkeys(self.posteriors, self.folder / f"{DRAWS}.nc")
        return {name: self.folder / DRAWS / f"{file_name(name)}.nc" for name in self.posteriors}


def run(options: DiagnoseOptions, own: OwnNetworkOption) -> None:
    """Draw, diagnose, write, print what was found.

    Real targets stay in the units that were fitted, in which their scale is 1.

    Raises:
        UsageError: No such run, a network of the user's own that is not named, its data are not here, or there are
            diagnostics of it already; before anything is done.
        ImportError: ArviZ cannot be imported.
        OSError: The folder cannot be written.
    """
    use_computer(PredictionOptions(num_threads=options.num_threads))
    found = Run.read(options.run)
    _make_room(found, overwrite=options.overwrite)
    split, known = _fitted_data(found)
    fitted = {
        name: read_fitted(path, str(found.settings["data"]), split, own.network, known.get(name))
        for name, path in found.posteriors.items()
    }
    _, standardizer = next(iter(fitted.values()))
    train, test = (
        (part if standardizer is None else standardizer.transform(part)) for part in (split.train, split.test)
    )
    rows, new = _thinned(train, options.num_rows), _thinned(test, options.num_rows)

    diagnoses: dict[str, Diagnosis] = {}
    for name, (posterior, _) in fitted.items():
        one = diagnose(
            posterior,
            train,
            rows,
            new,
            told=_with_names(posterior, next(iter(known.values()), None)),
            losses=found.losses.get(name, []),
            num_samples=options.num_samples,
            seed=int(found.settings["seed"]),
        )
        _write(one.data, found.outputs()[name])
        tell_warnings(name, one.warnings)
        tell(f"{name}: diagnosed")
        diagnoses[name] = one
    ranking = _rank(diagnoses)
    text = fill(
        TEMPLATE,
        run=found,
        outputs={name: path.relative_to(found.folder) for name, path in found.outputs().items()},
        diagnoses=diagnoses,
        ranking=ranking,
        num_rows=len(rows),
        num_train=len(train),
        num_new=len(new),
        is_standardised=standardizer is not None and not train.is_labelled,
    )
    write_text(found.folder / DIAGNOSTICS, text)
    for name, one in diagnoses.items():
        print(f"{name}\n{one}\n")
    print(*([f"{ranking}\n"] if ranking else []), f"Report: {(found.folder / DIAGNOSTICS).resolve()}", sep="\n")


def _fitted_data(found: Run) -> tuple[Split, dict[str, TablePosterior]]:
    """The data of a run; of a table they must be as they were fitted, as that posterior tells which was read for it.

    Raises:
        UsageError: They are not here, or no longer so.
    """
    options, (name, path) = data_options(found.settings), next(iter(found.posteriors.items()))
    table = as_table(read_alone(path)) if names_a_file(options.data) else None
    split = load_data(options, None if table is None else table.columns).split
    if table is None:
        return split, {}
    check_fitted_rows(table, path, split, options.data)
    return split, {name: table}


def _with_names(posterior: Posterior, table: TablePosterior | None) -> Posterior:
    """The posterior of a table in the units that were fitted, with the names of its labels."""
    return posterior if table is None or not table.columns.target.classes else replace(table, posterior=posterior)


def _rank(diagnoses: dict[str, Diagnosis]) -> Ranking | None:
    """By LOO, where at least two methods have it."""
    able = {name: one.data for name, one in diagnoses.items() if one.loo is not None}
    return compare(able) if len(able) > 1 else None


def _thinned(rows: Dataset, number: int) -> Dataset:
    """At most so many rows, evenly spread."""
    if len(rows) <= number:
        return rows
    return rows.rows([(2 * place + 1) * len(rows) // (2 * number) for place in range(number)])


def _make_room(found: Run, *, overwrite: bool) -> None:
    """Refuse to replace earlier diagnostics unasked, else take them away."""
    places = [found.folder / name for name in (DIAGNOSTICS, DRAWS, f"{DRAWS}.nc")]
    there = [place for place in places if place.exists()]
    if there and not overwrite:
        raise UsageError(f"{there[0]} is there already; pass --overwrite to replace the diagnostics of that run.")
    for place in there:
        delete(place)


def _write(data: Any, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    with replacing_by_name(path) as unfinished:
        data.to_netcdf(str(unfinished))
