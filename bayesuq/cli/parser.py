"""The parser of the command line, built by jsonargparse from the groups of `bayesuq.cli.settings`; loads no torch."""

import dataclasses
import itertools
import re
import tomllib
from argparse import SUPPRESS, Action, HelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader

from bayesuq.cli.plain_yaml import check_plain
from bayesuq.cli.settings import GROUPS, UsageError, is_import_path, rule
from bayesuq.options import nearest

MODE = "bayesuq"  # the name under which jsonargparse knows our reader of files
PLAIN: dict[str, Any] = {"allow_abbrev": False}
SHELLS = ("bash", "zsh", "tcsh")
UNKNOWN = re.compile(r"unrecognized arguments: --(?P<given>[^\s=]+)|accept(?:s|ed)? option '(?P<written>[^']+)'")
MISSING = re.compile(r"arguments are required: (?P<names>.+)")
WRONG = re.compile(r'(?:Parser key "|argument --)(?P<name>(?!config\b)\w+)"?:(?! expected one argument)')
GIVEN = tuple(  # as jsonargparse and argparse tell the value that they refuse
    re.compile(pattern)
    for pattern in (
        r"Given value: (.+)$",
        r"Got value: (.+)$",
        r"(\S+) does not conform",
        r"(?:base 10| float| value): (.+)$",
        r"; got (.+)$",
    )
)
SUMMARIES = {
    "compare": "Fit several methods to one data set and write a report that puts them side by side.",
    "fit": "Fit one method, and write its posterior and its report.",
    "evaluate": "Evaluate a saved posterior on a part of a data set.",
    "predict": "Predict the rows of a table by a posterior that was fitted to one, into a CSV file.",
    "diagnose": "Ask of the posteriors of a run how far their draws can be trusted.",
    "data": "List data sets, or fetch them from their public sources.",
}


class Parser(ArgumentParser):
    """Jsonargparse's parser, which tells in one sentence what an option must be, or which one was meant."""

    kinds: Mapping[str, Any] = {}  # types by the names of options, none of which are of `bayesuq` itself

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Tell on stderr and exit with 2."""
        kinds = getattr(ex, "subcommand_parser", self).kinds  # where an option of a file is meant
        unknown, wrong, missing = (pattern.search(message) for pattern in (UNKNOWN, WRONG, MISSING))
        if unknown is not None and kinds:
            name = unknown["given"] or unknown["written"]
            message = f"There is no option {name!r}; {nearest(name, list(kinds))}."
        elif wrong is not None and wrong["name"] in kinds:
            message = f"`{wrong['name']}` must be {rule(kinds[wrong['name']])}{_got(message)}."
        elif missing is not None:
            names = [name.rpartition(".")[2] for name in missing["names"].split(", ")]
            message = f"These are required: {', '.join(names)}."
        super().error(message, ex)


class PrintCompletion(Action):
    """Writes jsonargparse's script of completion and ends, as `--help` does."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:  # noqa: ARG002 - argparse's
        super().__init__(option_strings, dest=SUPPRESS, default=SUPPRESS, **options)

    def __call__(self, parser: Any, _namespace: object, shell: Any, _option: str | None = None) -> None:
        """End with 0, or with 2 where shtab is missing."""
        if find_spec("shtab") is None:
            parser.error("Completion needs shtab: `pip install bayesuq[completion]`.")
        print(parser.get_completion_script(f"shtab-{shell}"))
        raise SystemExit(0)  # jsonargparse's own way to end needs the parser, which the script has spoilt


def build() -> Parser:
    """The parser of `bayesuq`."""
    set_loader(MODE, _load, exceptions=(yaml.YAMLError, tomllib.TOMLDecodeError))
    parser = Parser(
        prog="bayesuq",
        description="Bayesian deep learning: fit posteriors, measure their uncertainty, compare them.",
        epilog="Example: bayesuq compare --data digits-0to8 --methods map,variational,ensemble --out runs/digits",
        version=version("bayesuq"),
        formatter_class=HelpFormatter,
        parser_mode=MODE,
        **PLAIN,
    )
    about = "Print what makes the Tab key complete options in that shell; source it."
    parser.add_argument("--print_completion", action=PrintCompletion, choices=SHELLS, help=about)
    commands = parser.add_subcommands(dest="command", metavar="COMMAND", title="commands")
    for command, groups in GROUPS.items():
        own = _command_parser(SUMMARIES[command], f"bayesuq {command} {_places(groups)}[options]")
        own.add_argument("--config", action="config", help="TOML or YAML file with any of these options.")
        own.add_argument("--quiet", action="store_true", help="Print nothing but warnings and errors.")
        for group in groups:
            _add(own, group)
        own.kinds = {"config": Path, "quiet": bool, **{name: kind for group in groups for name, kind in _kinds(group)}}
        commands.add_subcommand(command, own, help=SUMMARIES[command])
    _add_data(commands)
    return parser


def _command_parser(summary: str, usage: str) -> Parser:
    return Parser(description=summary, usage=usage, formatter_class=HelpFormatter, parser_mode=MODE, **PLAIN)


def _add_data(commands: Any) -> None:
    data = _command_parser(SUMMARIES["data"], "bayesuq data list | get")
    commands.add_subcommand("data", data, help=SUMMARIES["data"])
    actions = data.add_subcommands(dest="action", metavar="ACTION", title="actions")
    text = "List what can be loaded here, and what can be fetched."
    actions.add_subcommand("list", _command_parser(text, "bayesuq data list"), help=text)
    text = "Fetch data sets, check them, and put them where they are looked for."
    getting = _command_parser(text, "bayesuq data get [--overwrite] NAME [NAME ...]")
    getting.add_argument("names", nargs="+", metavar="NAME", help="Such as mnist or uci/boston.")
    getting.add_argument("--overwrite", action="store_true", help="Fetch again what is there already.")
    actions.add_subcommand("get", getting, help=text)


def _add(parser: Parser, group: type) -> None:
    section = parser.add_argument_group(str(group.__doc__).rstrip("."))
    hints, kinds = get_type_hints(group, include_extras=True), dict(_kinds(group))
    for option in dataclasses.fields(group):
        name, kind = f"--{option.name}", kinds[option.name]
        (about,) = hints[option.name].__metadata__
        if about.is_place:
            section.add_argument(option.name, metavar=option.name.upper(), type=kind, help=about.text)
        elif kind is bool:
            section.add_argument(name, action="store_true", help=about.text)
        elif option.default is dataclasses.MISSING:
            section.add_argument(name, type=kind, required=True, help=f"{about.text} Required.")
        else:
            shown = "" if option.default is None else f" [{option.default}]"
            section.add_argument(name, type=kind, default=option.default, help=about.text + shown)


def _kinds(group: type) -> Iterator[tuple[str, Any]]:
    """The options of a group with the types that check them."""
    hints = get_type_hints(group, include_extras=True)
    for option in dataclasses.fields(group):
        (about,) = hints[option.name].__metadata__
        yield option.name, about.kind or hints[option.name].__origin__


def _got(message: str) -> str:
    """The value that was refused, where the message tells it."""
    found = next((match for pattern in GIVEN if (match := pattern.search(message))), None)
    return "" if found is None else f"; got {found[1]}"


def _places(groups: Sequence[type]) -> str:
    """Options of a command that are given by their place, for its usage line."""
    return "".join(
        f"{option.name.upper()} "
        for group in groups
        for option in dataclasses.fields(group)
        if get_type_hints(group, include_extras=True)[option.name].__metadata__[0].is_place
    )


def _load(text: str, path: str | PathLike[str] = "") -> Any:
    """TOML where the file is called so, else YAML, which includes JSON; on the command line YAML's simple values.

    Raises:
        yaml.YAMLError: No YAML, or not of the kind that options are written in: see `bayesuq.cli.plain_yaml`.
        tomllib.TOMLDecodeError: No TOML.
    """
    if str(path).lower().endswith(".toml"):
        return tomllib.loads(text)
    check_plain(text)
    return get_loader("yaml")(text)


def files_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with each `--config FILE` behind the command, and options spelt with underscores.

    The parser lets what comes later win.

    Example:
        >>> files_first(["fit", "--seed", "1", "--config", "run.toml"])
        ['fit', '--config', 'run.toml', '--seed', '1']
    """
    files: list[str] = []
    others: list[str] = []
    remaining = map(_with_underscores, arguments)
    for argument in remaining:
        if argument == "--config":
            files += [argument, *itertools.islice(remaining, 1)]
        else:
            (files if argument.startswith("--config=") else others).append(argument)
    if files[-1:] == ["--config"]:  # no name behind it, which the parser tells
        return list(arguments)
    return [*others[:1], *files, *others[1:]]


def check_named_here(arguments: Sequence[str], network: str | None) -> None:
    """Refuse an import path that does not stand on the command line itself.

    Args:
        arguments: Of the command line.
        network: The option as it was read, from wherever.

    Raises:
        UsageError: A file of options named it.
    """
    if network is None or not is_import_path(network):
        return
    spaced = any(pair == ("--network", network) for pair in itertools.pairwise(arguments))
    if not spaced and f"--network={network}" not in arguments:
        raise UsageError(
            f"The network {network!r} stands in a file of options, and what a file names is not imported. If you trust "
            f"that module, write --network {network} on the command line too."
        )


def _with_underscores(argument: str) -> str:
    """An option as it is called here, where it was written with dashes.

    Example:
        >>> _with_underscores("--num-epochs=3"), _with_underscores("--hidden"), _with_underscores("my-file")
        ('--num_epochs=3', '--hidden', 'my-file')
    """
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def settings(command: str, parsed: Namespace) -> list[Any]:
    """The groups of a command, filled, in the order of `GROUPS`.

    Raises:
        UsageError: A null in a file for an option that must have a value; words in the place of true or false.
    """
    flags = ["quiet", *(name for group in GROUPS[command] for name, kind in _kinds(group) if kind is bool)]
    for name in flags:
        if not isinstance(parsed[name], bool | None):  # any word would be as good as true, "false" too
            raise UsageError(f"`{name}` must be {rule(bool)}; got {parsed[name]!r}.")
    for option in (option for group in GROUPS[command] for option in dataclasses.fields(group)):
        if parsed[option.name] is None and option.default is not None:
            raise UsageError(f"`{option.name}` must have a value; leave it out to take {option.default!r}.")
    return [
        group(**{option.name: _plain(parsed[option.name]) for option in dataclasses.fields(group)})
        for group in GROUPS[command]
    ]


def _plain(value: Any) -> Any:
    """Jsonargparse's restricted numbers are of classes of their own, which YAML refuses to write."""
    for kind in (int, float):
        if isinstance(value, kind) and not isinstance(value, bool):
            return kind(value)
    return value
