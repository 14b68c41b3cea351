"""The output folder of a command: made once, never overwritten unasked, and holding all that repeats the run."""

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
from time import perf_counter
from typing import Any, Self

import torch
import yaml

from bayesuq.cli.plain_yaml import check_plain
from bayesuq.cli.problem import STANDARDIZER, Loaded
from bayesuq.cli.settings import CheckpointOption, OutputOptions, UsageError
from bayesuq.writing import write_text

SETTINGS = "settings.yaml"  # which many programs have: the first line is the mark by which a folder of ours is known
FIRST_LINE = "# Options of a run of bayesuq, as --config takes them.\n"
POSTERIOR = "posterior.safetensors"
DIAGNOSTICS, DRAWS = "diagnostics.html", "inference_data"  # a file of draws, or a folder of several
RUN = "run.json"  # written last
RESULTS = (RUN, "report.html", "report.json", "reports", "posteriors", POSTERIOR, STANDARDIZER)
OURS = (SETTINGS, *RESULTS, DIAGNOSTICS, DRAWS, f"{DRAWS}.nc")
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
    def prepare(cls, options: OutputOptions, *, resumes: bool = False) -> Self:
        """Make the folder.

        Args:
            options: Where, and whether to overwrite.
            resumes: Whether a run that did not come to its end may be replaced: its fits lie elsewhere.

        Raises:
            UsageError: It holds something, and is not to be overwritten or is no earlier output.
            OSError: It cannot be made.
        """
        folder = options.out
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not _is_ours(folder / SETTINGS):
                raise UsageError(f"{folder} is there and is no output of bayesuq; name another folder.")
            if not options.overwrite and not (resumes and not (folder / RUN).exists()):
                raise UsageError(f"{folder} holds earlier results; pass --overwrite to replace them.")
            for name in OURS:  # by name: what a user has put there stays
                path = folder / name
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, perf_counter())

    def write_settings(self, *groups: Any) -> dict[str, Any]:
        """Write the options, resolved, as a file that `--config` takes; they are returned by name."""
        settings = {name: value for group in groups for name, value in asdict(group).items() if name != "overwrite"}
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        write_text(self.folder / SETTINGS, FIRST_LINE + text)
        return settings

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


def prepare_checkpoints(option: CheckpointOption) -> Path | None:
    """Make the folder of checkpoints, if there is to be one.

    Raises:
        UsageError: It is a file.
        OSError: It cannot be made.
    """
    if option.checkpoint is not None:
        if option.checkpoint.is_file():
            raise UsageError(f"--checkpoint is a folder, with a file for each fit; {option.checkpoint} is a file.")
        option.checkpoint.mkdir(parents=True, exist_ok=True)
    return option.checkpoint


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
