"""Options: one name and one meaning on the command line and in files, and none that is not known passes."""

import dataclasses
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import get_type_hints

import pytest

from bayesuq.cli.main import main
from bayesuq.cli.parser import build, files_first, settings
from bayesuq.cli.settings import GROUPS, MethodsOption, ModelOptions, TrainingOptions
from tests.cli.conftest import BUILD
from tests.zoo.bounds import within_seconds

COMPARE = ["compare", "--data", "digits", "--methods", "map", "--out", "results"]


def parse(*arguments: str) -> dict[str, object]:
    """All options of a command by name."""
    parsed = BUILD().parse_args(files_first(arguments))
    groups = settings(parsed.command, parsed[parsed.command])
    return {f.name: getattr(group, f.name) for group in groups for f in dataclasses.fields(group)}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said of wrong usage, which ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_defaults_are_those_of_the_settings_classes() -> None:
    parsed = parse(*COMPARE)
    for group in (ModelOptions, TrainingOptions):
        for option in dataclasses.fields(group):
            assert parsed[option.name] == option.default
    assert (parsed["data"], parsed["methods"], parsed["out"]) == ("digits", ["map"], Path("results"))


def test_values_are_of_plain_types() -> None:
    parsed = parse(*COMPARE, "--num_epochs", "7", "--prior_scale", "2", "--hidden", "8,4", "--learning_rate", "1e-2")
    assert (parsed["num_epochs"], parsed["prior_scale"], parsed["hidden"]) == (7, 2.0, [8, 4])
    assert type(parsed["num_epochs"]) is int
    assert type(parsed["prior_scale"]) is float
    assert parsed["learning_rate"] == 0.01


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "run.toml",
            'data = "toy/cubic"\nmethods = ["map", "temperature:ensemble"]\nhidden = [8, 4]\nnum_epochs = 7\n',
        ),
        ("run.yaml", "data: toy/cubic\nmethods: map, temperature:ensemble\nhidden: [8, 4]\nnum_epochs: 7\n"),
        ("run.yml", "{data: toy/cubic, methods: [map, 'temperature:ensemble'], hidden: '8,4', num_epochs: 7}\n"),
    ],
)
def test_a_file_gives_the_same_settings_as_the_command_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    written = parse("compare", "--config", str(tmp_path / name), "--out", "results")
    methods = ["--methods", "map,temperature:ensemble"]
    given = parse(
        "compare", "--data", "toy/cubic", *methods, "--hidden", "8,4", "--num_epochs", "7", "--out", "results"
    )
    assert written == given


def test_the_command_line_outdoes_the_file_wherever_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("num_epochs = 7\nseed = 3\nout = 'first'\n")
    for named in (["--config", str(path)], [f"--config={path}"]):
        for place in range(1, len(COMPARE) + 1, 2):
            parsed = parse(*COMPARE[:place], *named, *COMPARE[place:], "--seed", "4")
            assert (parsed["num_epochs"], parsed["seed"], parsed["out"]) == (7, 4, Path("results"))
    (tmp_path / "more.toml").write_text("seed = 5\nnum_epochs = 8\n")
    parsed = parse(*COMPARE, "--config", str(path), "--num_epochs", "9", "--config", str(tmp_path / "more.toml"))
    assert (parsed["num_epochs"], parsed["seed"]) == (9, 5)  # of two files, the second


def test_a_file_without_a_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config: expected one argument" in refused(capsys, *COMPARE, "--config")


def test_every_option_can_be_set_by_a_file(tmp_path: Path) -> None:
    for command, groups in GROUPS.items():
        options = [option for group in groups for option in dataclasses.fields(group)]
        values = {"split": 1, "hidden": "[3]", "learning_rate": 0.5, "num_members": 2, "overwrite": "true"}
        values |= {option.name: option.name for option in options if option.default is dataclasses.MISSING}
        values |= {
            "batch_size": 3,
            "num_epochs": 2,
            "num_rows": 7,
            "num_samples": 4,
            "num_chains": 5,
            "num_warmup": 6,
            "num_draws": 8,
            "num_threads": 2,
            "seed": 1,
            "device": "meta",
            "part": "val",
            "checkpoint": "state",
            "weights": "weights.safetensors",
            "random": "all",
            "centred": "true",
            "network": "own.models:build",
            "method": "map",
        }
        values |= {"activation": "tanh", "dropout": 0.5, "prior_scale": 2, "likelihood": "normal"}
        values |= {"clip": 5, "target": "price", "target_kind": "labels", "categories": "code", "leave_out": "[id]"}
        values |= {"delimiter": "'|'", "encoding": "latin-1", "level": 0.5}
        path = tmp_path / f"{command}.yaml"
        path.write_text("".join(f"{option.name}: {values[option.name]}\n" for option in options))
        parsed = parse(command, "--config", str(path))
        assert all(parsed[option.name] != option.default for option in options)


@pytest.mark.parametrize(
    "given",
    [
        "fit --data digits --method laplace --hidden 3,4 --prior-scale 1e-5 --out o",
        "compare --data a.csv --target y --methods map,temperature:ensemble --leave_out id,name --overwrite --out o",
        "evaluate --posterior run --data digits --part val --seed 3 --out o",
        "predict --posterior run --data new.csv --out new.csv.gz --level .5 --delimiter ;",
        "diagnose run --num_rows 7 --quiet",
    ],
)
def test_a_printed_configuration_gives_the_same_settings(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = given.split()
    for spelling in ("--print-config", "--print_config"):
        with pytest.raises(SystemExit) as ended:
            main([command, *options, spelling])
        assert ended.value.code == 0
    printed = capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(printed[: len(printed) // 2])
    assert printed == 2 * (tmp_path / "run.yaml").read_text()
    assert parse(command, "--config", str(tmp_path / "run.yaml")) == parse(command, *options)


@pytest.fixture
def parser_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script of completion spoils it."""
    monkeypatch.setattr("bayesuq.cli.main.build", build)


@pytest.mark.usefixtures("parser_of_its_own")
def test_bash_completes_commands_options_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="needs the extra `completion`")
    with pytest.raises(SystemExit) as ended:
        main(["--print_completion", "bash"])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    for words, found in (
        (["bayesuq", "co"], "compare"),
        (["bayesuq", "fit", "--num_e"], "--num_epochs"),
        (["bayesuq", "fit", "--likelihood", "cat"], "categorical"),
    ):
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_bayesuq; echo ${{COMPREPLY[@]}}"
        run = subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True, check=True)
        assert run.stdout.split() == [found]


@pytest.mark.usefixtures("parser_of_its_own")
def test_completion_without_its_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bayesuq.cli.parser.find_spec", lambda _: None)
    assert "bayesuq[completion]" in refused(capsys, "--print_completion", "zsh")


def test_dashes_are_as_good_as_underscores() -> None:
    written = parse(*COMPARE, "--num_epochs", "7", "--learning_rate=0.5")
    assert parse(*COMPARE, "--num-epochs", "7", "--learning-rate=0.5") == written
    assert parse(*COMPARE[:-1], "my-results", "--num-epochs", "7")["out"] == Path("my-results")


@pytest.mark.parametrize("name", ["run.toml", "run.yaml"])
def test_an_unknown_key_of_a_file_is_refused_with_the_nearest_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_text("num_epoch = 7\n" if name.endswith("toml") else "num_epoch: 7\n")
    told = refused(capsys, *COMPARE, "--config", str(tmp_path / name))
    assert "There is no option 'num_epoch'; did you mean 'num_epochs'?" in told


@pytest.mark.parametrize("option", ["--num_epoch", "--num-epoch", "--num_epoch=7", "--num_e"])
def test_an_unknown_option_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert "did you mean 'num_epochs'?" in refused(capsys, *COMPARE, option, *([] if "=" in option else ["7"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND|command"),
        (["compair"], "invalid choice: 'compair'"),
        (["compare", "--data", "digits"], "required: .*methods"),
        ([*COMPARE, "--config", "nowhere.toml"], "nowhere.toml"),
        (["data"], "list,get|ACTION"),
        (["data", "get"], "NAME|names"),
    ],
)
def test_wrong_usage_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert re.search(message, refused(capsys, *arguments))


COUNT, POSITIVE, SHARE = "a whole number of at least 1", "a finite number above 0", "a number above 0 and below 1"
WIDTHS = "widths, whole numbers of at least 1, with commas between them"
RULES = [
    ("num_epochs", "0", COUNT),
    ("num_epochs", "1.5", COUNT),
    ("num_samples", "x", COUNT),
    ("dropout", "1", SHARE),
    ("prior_scale", "-1", POSITIVE),
    ("prior_scale", "inf", POSITIVE),
    ("learning_rate", "0", POSITIVE),
    ("learning_rate", "inf", POSITIVE),
    ("learning_rate", "nan", POSITIVE),
    ("clip", "-1", POSITIVE),
    ("hidden", "8,x", WIDTHS),
    ("hidden", "0", WIDTHS),
    ("seed", "-1", "a whole number of at least 0"),
    ("split", "-1", "a whole number of at least 0"),
    ("network", "cnn", "one of auto, mlp, convnet, unet, or package.module:function"),
    ("likelihood", "poisson", "one of auto, categorical, normal, heteroscedastic"),
]


@pytest.mark.parametrize(("option", "value", "rule"), RULES)
@pytest.mark.parametrize("in_file", [False, True])
def test_a_value_out_of_bounds_is_told_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, rule: str, in_file: bool
) -> None:
    (tmp_path / "run.yaml").write_text(f"{option}: {value}\n")
    given = ["--config", str(tmp_path / "run.yaml")] if in_file else [f"--{option}", value]
    told = refused(capsys, *COMPARE, *given).splitlines()[-1]
    assert re.fullmatch(rf"error: `{option}` must be {re.escape(rule)}; got '?\S+'?\.", told)


@pytest.mark.parametrize("option", ["overwrite", "centred", "quiet"])
@pytest.mark.parametrize("value", ["'false'", "maybe", "[1]", "2"])
def test_words_in_the_place_of_true_or_false_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    """All of them were true: 'false' in quotes overwrote an earlier run."""
    (tmp_path / "run.yaml").write_text(f"{option}: {value}\n")
    assert main([*COMPARE, "--config", str(tmp_path / "run.yaml")]) == 2
    assert f"`{option}` must be true or false; got" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.toml", "num_epochs = \n"),
        ("run.toml", "num_epochs: 3\n"),
        ("run.yaml", "num_epochs: [3\n"),
        ("run.yaml", "num_epochs: many\n"),
        ("run.yaml", "- 3\n"),
        ("run.yaml", ""),
        ("RUN.TOML", "num_epochs: 3\n"),
        ("run.yaml", "model: {hidden: 3}\n"),
        ("run.toml", "[model]\nhidden = 3\n"),
        ("run.yaml", "!!python/object/apply:os.system ['touch harmed']\n"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    assert "error: " in refused(capsys, *COMPARE, "--config", name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_toml_is_known_whatever_the_case_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "RUN.TOML").write_text("num_epochs = 7\n")
    assert parse(*COMPARE, "--config", str(tmp_path / "RUN.TOML"))["num_epochs"] == 7


@pytest.mark.parametrize("content", [b"\x00\xff\xfe"], ids=["no text"])
def test_a_file_that_the_parser_chokes_on_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    assert main([*COMPARE, "--config", str(tmp_path / "run.yaml")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: The options cannot be read")
    assert told.count("\n") == 1


def test_null_is_no_value_of_an_option_that_has_a_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    may_be_left_open = ("device", "learning_rate", "hidden", "num_epochs")
    Path("run.yaml").write_text("".join(f"{name}: null\n" for name in may_be_left_open))
    assert parse(*COMPARE, "--config", "run.yaml")["learning_rate"] is None
    for name in ("batch_size", "seed", "activation", "overwrite"):
        Path("run.yaml").write_text(f"{name}: null\n")
        assert main([*COMPARE, "--config", "run.yaml"]) == 2
        assert f"`{name}` must have a value" in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.parametrize("command", GROUPS)
def test_help_tells_of_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for group in GROUPS[command]:
        hints = get_type_hints(group, include_extras=True)
        for option in dataclasses.fields(group):
            is_place = hints[option.name].__metadata__[0].is_place
            assert (f" {option.name.upper()} " if is_place else f"--{option.name} ") in told.replace("\n", " ")
    assert "<" not in told  # no object's repr, such as a type's


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["compare", "--help"], ["fit", "--sed", "1"], ["fitt"]]
)
def test_help_version_and_wrong_usage_load_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from bayesuq.cli.main import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as ended:\n"
        f"    assert ended.code == {0 if '-' in arguments[-1] and arguments[-1] != '1' else 2}, ended.code\n"
        "loaded = {'torch', 'numpy', 'pyro', 'matplotlib', 'sklearn', 'jinja2', 'pooch'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)\n"
    )
    finished = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_the_module_and_the_installed_command_are_main() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "bayesuq", "--version"], capture_output=True, text=True, check=True
    )
    assert finished.stdout == f"bayesuq {version('bayesuq')}\n"
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"bayesuq": f"{main.__module__}:{main.__name__}"}


def test_an_empty_list_of_widths_is_a_linear_model() -> None:
    assert parse(*COMPARE, "--hidden", "")["hidden"] == []


def test_the_methods_of_the_help_are_all_methods() -> None:
    (annotation,) = (MethodsOption.__annotations__["methods"].__metadata__,)
    assert all(name in annotation[0].text for name in ("map", "variational", "dropout", "ensemble", "temperature"))


def documented_commands() -> list[str]:
    """Every call of `bayesuq` in the README, the documentation and the Makefile, but for those that read a file."""
    root = Path(__file__).parents[2]
    makefile = (root / "Makefile").read_text()
    (methods,) = re.findall(r"^METHODS := (.*)$", makefile, re.MULTILINE)
    texts = [re.sub(r";|\bthen\b", "\n", makefile.replace("$(METHODS)", methods).replace("$(BIN)/", ""))]
    texts += [path.read_text() for path in (root / "README.md", *sorted((root / "docs").rglob("*.md")))]
    lines = "\n".join(texts).replace("\\\n", " ")
    calls = re.findall(r"^\s*bayesuq ((?:compare|fit|evaluate|data) [^|`\n]*)", lines, re.MULTILINE)
    return sorted({" ".join(call.split()) for call in calls if "--config" not in call})


def test_documented_commands_are_accepted() -> None:
    commands = documented_commands()
    assert {command.split()[0] for command in commands} == {"compare", "fit", "evaluate", "data"}
    for command in commands:
        build().parse_args(shlex.split(command))


LETTERS = "abcdefghijklmnopqrstuvwxyz"
BOMB = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise(LETTERS))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "must not refer to each other"),
        ("methods: " + "[" * 100_000, "more than 20 deep"),
        ("methods: " + "[" * 30 + "]" * 30, "more than 20 deep"),
        ("methods: [" + "map, " * 100_000 + "map]", "must not be longer"),
        ("<<: *nothing\n", "must not refer to each other"),
        ("a: &a [*a]\n", "must not refer to each other"),
    ],
    ids=["bomb", "brackets", "deep", "long", "merge", "a list within itself"],
)
def test_a_file_of_options_that_asks_for_too_much_is_wrong_usage(text, says, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(text)
    with within_seconds(10), pytest.raises(SystemExit, match="2"):
        main([*COMPARE, "--config", str(tmp_path / "run.yaml")])
    assert says in " ".join(capsys.readouterr().err.split())
