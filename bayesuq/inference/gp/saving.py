"""Saved posteriors over functions: the process beside what every posterior's file holds."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.posteriors.network import StoredPosterior
from bayesuq.inference.posteriors.packing import FORMAT, pack
from bayesuq.models.gp.combined import Deep
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.models.gp.records import build_process, process_record
from bayesuq.models.parts import check_told, told_of
from bayesuq.models.records import NoRecordError
from bayesuq.posterior import Posterior
from bayesuq.storage import write

LAWS = ("kernel", "mean", "likelihood")  # of a process


class ProcessPosterior(StoredPosterior):
    """A posterior over functions, whose file holds the record of a process.

    Attributes:
        model: The prior over functions and the likelihood.
    """

    model: GaussianProcess

    def facts(self) -> dict[str, str]:
        """What a notebook shows of it, by name."""
        kernel, likelihood = type(self.model.kernel).__name__, repr(self.model.likelihood)
        return {"kernel": kernel, "likelihood": likelihood} | super().facts()

    def save_around(self, outer: Posterior, path: "str | PathLike[str]") -> None:
        """Write a posterior that stands on this one, with the process."""
        save_process(outer, self.model, path)

    def process_entry(self) -> dict[str, Any]:
        """What the header of a network's file holds of it, where it is a member beside the network.

        Raises:
            ValueError: A process with parts of the user's own, or with a network in it.
        """
        try:
            record = process_record(self.model)
        except NoRecordError as reason:
            raise ValueError(f"{reason}: no file can hold it beside a network. Save the members alone.") from reason
        if isinstance(self.model.kernel, Deep):
            raise ValueError("A process with a network in it cannot stand beside another one. Save the members alone.")
        return {"process": record}


def save_process(posterior: Posterior, model: GaussianProcess, path: str | PathLike[str]) -> None:
    """Write a posterior to one file: see `Posterior.save`.

    Warns:
        UserWarning: The process has parts of the user's own, which `load` must be given.
    """
    body, tensors = pack(posterior)
    record: Any = None
    try:
        record = process_record(model)
    except NoRecordError as reason:
        message = f"{reason}; pass the same process to `bayesuq.load(path, model=...)`."
        warn_of_fit(message, UserWarning)
    header = {"format": FORMAT, "model": None, "sites": None, "process": record, "posterior": body}
    if record is None:
        header["told"] = {name: told_of(getattr(model, name)) for name in LAWS}
    write(path, header, tensors)


def restore_process(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor], model: GaussianProcess | None
) -> GaussianProcess:
    """The process of a file, or the user's own; it has no weights in the file.

    Raises:
        ValueError: No record, and no process given; or one of another kernel, mean or likelihood than the file's.
    """
    if model is not None:
        record = header["process"] or {}
        check_told(header.get("told", {name: record[name] for name in LAWS if name in record}), model)
        return model
    if header["process"] is None:
        raise ValueError("The file's process has parts of your own. Pass it: `bayesuq.load(path, model=model)`.")
    return build_process(header["process"], tensors)
