"""`bayesuq`: parse, hand over to the command's module, and tell by the exit code how it went.

Exit codes: 0 success, 1 the work failed, 2 wrong usage, 130 interrupted (Ctrl-C), 143 ended by SIGTERM; both write the
checkpoints first, where there are any. 141 is of an output that nobody reads any more, as after `| head`.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from io import StringIO
from typing import Any

import bayesuq.cli as commands
from bayesuq.cli.launched import is_first
from bayesuq.cli.parser import build, check_named_here, files_first, settings
from bayesuq.cli.settings import UsageError

FAILED, MISUSED, INTERRUPTED, UNREAD, TERMINATED = 1, 2, 130, 141, 143
MODULES = {
    "compare": "comparing",
    "fit": "fitting",
    "evaluate": "evaluating",
    "predict": "predicting",
    "diagnose": "diagnosing",
}


class TerminatedError(SystemExit):
    """SIGTERM came: an orderly end was asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: As on the command line, without the program's name; None takes the program's own.

    Returns:
        The exit code. Wrong options raise SystemExit(2), `--help` SystemExit(0), as argparse does.
    """
    parser = build()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        parsed = parser.parse_args(files_first(given))
    except (UnicodeDecodeError, RecursionError) as error:  # of a file, which the parser passes on
        return _tell(f"The options cannot be read: {error}", MISUSED)
    try:
        check_named_here(given, parsed[parsed.command].get("network"))
        with _told_of_sigterm(), _quietly(parsed[parsed.command].get("quiet") or not is_first()):
            _run(parsed.command, parsed[parsed.command])
            sys.stdout.flush()
    except UsageError as error:
        return _tell(error, MISUSED)
    except KeyboardInterrupt:
        return _tell("Interrupted.", INTERRUPTED)
    except TerminatedError:
        return _tell("Terminated.", TERMINATED)
    except BrokenPipeError:  # who read the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter still flushes
        return UNREAD
    except (ValueError, TypeError, OSError, FloatingPointError, RuntimeError) as error:
        return _tell(error, FAILED)
    return 0


@contextmanager
def _told_of_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises an exception, as Ctrl-C does, so that fits end as they do then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_signal: int, _frame: object) -> None:
        raise TerminatedError(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _quietly(quiet: bool | None) -> AbstractContextManager[Any]:
    """Within, nothing is printed on stdout, where that was asked for; stderr has warnings and errors."""
    return redirect_stdout(StringIO()) if quiet else nullcontext()


def _run(command: str, parsed: Any) -> None:
    if command in MODULES:
        getattr(commands, MODULES[command]).run(*settings(command, parsed))
    elif parsed.action == "list":
        commands.data_sets.show()
    else:
        commands.data_sets.get(parsed[parsed.action].names, overwrite=parsed[parsed.action].overwrite)


def _tell(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
