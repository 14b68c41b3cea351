"""The output folder of a command: made once, never overwritten unasked, and holding all that repeats the run."""

import atexit
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter
from typing import Any, Self

import torch
import yaml

from bayesuq.cli.launched import is_first
from bayesuq.cli.plain_yaml import check_plain
from bayesuq.cli.problem import STANDARDIZER, Loaded
from bayesuq.cli.settings import CheckpointOption, OutputOptions, UsageError
from bayesuq.writing import write_text

SETTINGS = "settings.yaml"  # which many programs have: the first line is the mark by which a folder of ours is known
FIRST_LINE = "# Options of a run of bayesuq, as --config takes them.\n"
POSTERIOR = "posterior.safetensors"
DIAGNOSTICS, DRAWS = "diagnostics.html", "inference_data"  # a file of draws, or a folder of several
RUN = "run.json"  # written last
STATE = "under_way"  # checkpoints of fits, until the run has ended
RESULTS = (RUN, "report.html", "report.json", "reports", "posteriors", POSTERIOR, STANDARDIZER)
OURS = (SETTINGS, STATE, *RESULTS, DIAGNOSTICS, DRAWS, f"{DRAWS}.nc")
SHOWN = ("bayesuq", "torch", "pyro-ppl", "gpytorch", "numpy", "scikit-learn", "matplotlib")


@dataclass(frozen=True)
class Output:
    """A folder for results, and when the work began.

    Attributes:
        folder: Where results go.
        begin: Reading of `time.perf_counter`.
    """

    folder: Path
    begin: float

    @classmethod
    def prepare(cls, options: OutputOptions, settings: dict[str, Any], *, fits_lie_elsewhere: bool = False) -> Self:
        """Make the folder, and write the options into it as a file that `--config` takes.

        A run that was stopped goes on where it is asked for once more, without overwriting: what its fits had written
        stays.

        Args:
            options: Where, and whether to overwrite.
            settings: All options of the run, of `by_name`.
            fits_lie_elsewhere: Whether a run that did not come to its end may be replaced, whatever its options were.

        Raises:
            UsageError: It holds something, and is not to be overwritten or is no earlier output.
            OSError: It cannot be made.
        """
        folder = options.out
        if not is_first():  # it computes with the others, and what it would write is theirs, too
            folder = Path(mkdtemp(prefix="bayesuq-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not _is_ours(folder / SETTINGS):
                raise UsageError(f"{folder} is there and is no output of bayesuq; name another folder.")
            was_stopped = not (folder / RUN).exists()
            goes_on = was_stopped and not options.overwrite and read_settings(folder) == settings
            if not (options.overwrite or goes_on or (was_stopped and fits_lie_elsewhere)):
                raise UsageError(_occupied(folder, was_stopped=was_stopped))
            for name in OURS:  # by name: what a user has put there stays
                if not (goes_on and name == STATE):
                    delete(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        write_text(folder / SETTINGS, FIRST_LINE + text)
        return cls(folder, perf_counter())

    def checkpoints(self, option: CheckpointOption) -> Path:
        """The folder of checkpoints, made where it is not there: the one that was named, or one of the run's own.

        Raises:
            UsageError: It is a file.
            OSError: It cannot be made.
        """
        folder = option.checkpoint or self.folder / STATE
        if folder.is_file():
            raise UsageError(f"--checkpoint is a folder, with a file for each fit; {folder} is a file.")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def end(self) -> None:
        """Delete the run's own checkpoints: all is written."""
        delete(self.folder / STATE)

    def write_run(self, settings: dict[str, Any], circumstances: dict[str, str], fits: dict[str, Any]) -> None:
        """Write what was asked for, where it was done, and how each fit went, as strict JSON."""
        content = {"settings": settings, "circumstances": circumstances, "fits": fits}
        text = json.dumps(content, indent=1, allow_nan=False)
        write_text(self.folder / RUN, text + "\n")

    def circumstances(self, device: str | None) -> dict[str, str]:
        """Where, when and with what the work was done, and how long it took, as text by name."""
        return {
            "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "wall time": f"{perf_counter() - self.begin:.1f} s",
            "device": _describe(device),
            "Python": platform.python_version(),
            **{name: version(name) for name in SHOWN},
        }


def by_name(*groups: Any) -> dict[str, Any]:
    """The options of a run as plain values, but for whether they overwrite."""
    settings = {name: value for group in groups for name, value in asdict(group).items() if name != "overwrite"}
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


def _occupied(folder: Path, *, was_stopped: bool) -> str:
    if was_stopped:
        return (
            f"{folder} holds a run that was stopped, of other options: repeat these, which are in {folder / SETTINGS}, "
            "to go on, or pass --overwrite to begin anew."
        )
    return f"{folder} holds earlier results; pass --overwrite to replace them."


def delete(path: Path) -> None:
    """A file or a folder, if it is there; of a link, the link alone."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def file_name(method: str) -> str:
    """Of a method's files: its name, with what file systems do not take replaced.

    Example:
        >>> file_name("temperature:ensemble")
        'temperature-ensemble'
    """
    return method.replace(":", "-")


def tell(line: str) -> None:
    """A line of progress, on a terminal only."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


def tell_table(loaded: Loaded) -> None:
    """What the columns of a table are taken for, on stdout; what is odd in its cells, on stderr."""
    if loaded.said:
        print(*loaded.said, "", sep="\n")
    tell_warnings("table", loaded.warnings)


def tell_warnings(name: str, warnings: Sequence[str]) -> None:
    """What a fit warned of, on stderr, terminal or not."""
    for warning in warnings:
        print(f"warning: {name}: {warning}", file=sys.stderr)


def read_settings(folder: Path) -> dict[str, Any]:
    """The options that a run wrote into its folder; none of a folder that is no output."""
    if not _is_ours(folder / SETTINGS):
        return {}
    try:
        text = (folder / SETTINGS).read_text(encoding="utf-8")
        check_plain(text)
        found = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError):  # a file that someone has edited
        return {}
    return found if isinstance(found, dict) else {}


def _is_ours(settings: Path) -> bool:
    return settings.is_file() and settings.read_bytes().startswith(FIRST_LINE.encode())


def _describe(device: str | None) -> str:
    if device is not None and torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    own = f", {device}" if device not in (None, "cpu") else ""
    return f"CPU {platform.machine()}, {threads} of {os.cpu_count()} threads{own}"
