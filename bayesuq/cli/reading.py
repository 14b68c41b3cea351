"""Saved posteriors of a run as the commands read them: around a network of the user's own, with that network again."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from bayesuq.cli.output import POSTERIOR, read_settings
from bayesuq.cli.own_network import built, put_into
from bayesuq.cli.problem import STANDARDIZER, Problem, read_standardizer
from bayesuq.cli.settings import DataOptions, ModelOptions, UsageError, is_import_path
from bayesuq.data import Split, Standardizer
from bayesuq.inference.dropout import DropoutPosterior
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.posteriors.tables import TablePosterior
from bayesuq.inference.posteriors.units import UnitsPosterior
from bayesuq.posterior import Posterior
from bayesuq.storage import below, read

NOISE = "likelihood.scale"


def posterior_file(path: Path) -> Path:
    """The file of a posterior: the one that is named, or the only one in a run's folder.

    Raises:
        UsageError: None is there, or several.
    """
    if path.is_dir():
        several = sorted((path / "posteriors").glob("*.safetensors"))
        if len(several) > 1:
            raise UsageError(f"{path} holds several posteriors; name one: {', '.join(map(str, several))}.")
        path = several[0] if several else path / POSTERIOR
    if not path.is_file():
        raise UsageError(f"There is no posterior {str(path)!r}; `bayesuq fit` writes {POSTERIOR}.")
    return path


def read_alone(path: Path) -> Posterior | None:
    """The posterior of a file; None where it was fitted around a network of the user's own, which the file lacks."""
    return None if is_import_path(_network_of(path)) else load(path)


def as_table(posterior: Posterior | None) -> TablePosterior | None:
    """A posterior with what it knows of the columns that it was fitted to; None where that was no table."""
    return posterior if isinstance(posterior, TablePosterior) else None


def is_fitted_data(path: Path, data: str) -> bool:
    """Whether a file of data is the one that the posterior of a file was fitted to."""
    return Path(str(_settings_of(path).get("data", ""))).resolve() == Path(data).resolve()


def check_fitted_rows(table: TablePosterior, path: Path, split: Split, data: str) -> None:
    """Refuse the table that was fitted where it is no longer as it was: among its test rows are rows trained on.

    Args:
        table: The posterior.
        path: Its file, beside which it says what it was fitted to.
        split: The parts of the table as it is.
        data: Its name.

    Raises:
        UsageError: With what to do.
    """
    if is_fitted_data(path, data) and not table.was_fitted_to(split.train):
        raise UsageError(
            f"{data} is not as it was when {path} was fitted to it, so that it is not known which of its rows were. "
            "Fit it again; or put the rows that were not fitted into a file of their own, and evaluate on that."
        )


def check_split(path: Path, data: DataOptions) -> None:
    """Refuse another split of the data that were fitted: its test rows are for the most part rows trained on."""
    fitted, asked = _settings_of(path), data.split or 0
    own = fitted.get("split") or 0
    if fitted.get("data") == data.data and own != asked:
        raise UsageError(
            f"{path} was fitted to split {own} of {data.data}, on rows that split {asked} tests; pass --split {own}."
        )


def read_fitted(
    path: Path, data: str, split: Split, network: str | None, known: Posterior | None = None
) -> tuple[Posterior, Standardizer | None]:
    """The posterior of a file as it was fitted, and the units of that, from the file or from beside it.

    The arguments are those of `read_posterior`.

    Raises:
        UsageError: A run of real targets that has lost the units that it was fitted in; see `read_posterior`.
        ValueError: See `read_posterior`.
    """
    posterior = read_posterior(path, data, split, network, known)
    if isinstance(posterior, TablePosterior):
        posterior = posterior.posterior
    if isinstance(posterior, UnitsPosterior):
        return posterior.posterior, posterior.standardizer
    standardizer = read_standardizer(path.parent)
    of_numbers = _settings_of(path).get("likelihood") in ("normal", "heteroscedastic") and not split.train.is_labelled
    if standardizer is None and of_numbers and network is None:
        raise UsageError(
            f"{path} was fitted in units of its own, which {path.parent / STANDARDIZER} holds, and that is not there. "
            "Put it back beside the posterior, or fit again."
        )
    return posterior, standardizer


def read_posterior(
    path: Path, data: str, split: Split, network: str | None, known: Posterior | None = None
) -> Posterior:
    """The posterior of a file.

    Args:
        path: The file.
        data: Name of the data that it was fitted to.
        split: Their parts.
        network: The import path of the network that it was fitted around, as the command line has it; None where that
            was one of bayesuq's.
        known: What `read_alone` gave, where the file has been read before.

    Raises:
        UsageError: A network that is missing or not wanted, or that is not the file's.
        ValueError: See `bayesuq.load`.
    """
    settings, named = _settings_of(path), _network_of(path)
    if network is None:
        if is_import_path(named):
            raise UsageError(
                f"{path} was fitted around a network of your own, which the file does not hold. Name the function that "
                f"builds it: --network {named}, if you trust that module."
            )
        return load(path) if known is None else known
    if not is_import_path(named):
        raise UsageError(f"{path} was not fitted around a network of your own; leave --network out.")
    _, tensors = read(path)
    net = built(network, seed=0)
    put_into(net, below("model.", tensors), str(path))
    names = {item.name for item in fields(ModelOptions)} - {"weights"}
    options: dict[str, Any] = {name: value for name, value in settings.items() if name in names}
    return load_fitted(path, Problem.around(net, data, split, ModelOptions(**options)))


def _settings_of(path: Path) -> dict[str, Any]:
    """Those of the fit, or of the comparison, that wrote a posterior; none where it lies elsewhere."""
    return next((found for folder in path.parents[:2] if (found := read_settings(folder))), {})


def _network_of(path: Path) -> str:
    return str(_settings_of(path).get("network", ""))


def load_fitted(path: Path, problem: Problem) -> Posterior:
    """The posterior of a file that was fitted to this problem; around a network of the user's own, with that.

    Raises:
        ValueError: See `bayesuq.load`.
    """
    if problem.own is None:
        return load(path)
    header, _ = read(path)
    infers_noise = any(name == NOISE and kind == "random" for kind, name, *_ in header["sites"])
    has_dropout = f'"class": "{DropoutPosterior.__name__}"' in json.dumps(header["posterior"])
    return load(path, model=problem.model(seed=0, with_dropout=has_dropout, infers_noise=infers_noise))
