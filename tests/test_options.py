"""A misspelt option is answered with the nearest one, and the function is otherwise as it was."""

import inspect
import re
from importlib import import_module
from typing import TypedDict, Unpack, get_type_hints

import pytest

from bayesuq.inference import dropout, ensemble, map_estimate, variational
from bayesuq.inference.catalogue import METHODS
from bayesuq.inference.posteriors.network_mode import LEARNING_RATE
from bayesuq.inference.training import Training, TrainingOptions
from bayesuq.options import nearest, spells_out, suggests_names


@suggests_names
def brew(leaf: str, water: float = 1.0, *, minutes: int = 3, sugar: bool = False) -> tuple:
    """Make tea."""
    return leaf, water, minutes, sugar


def test_known_options_pass_through():
    assert brew("oolong", 0.5, minutes=4, sugar=True) == ("oolong", 0.5, 4, True)
    assert brew(leaf="oolong") == ("oolong", 1.0, 3, False)


@pytest.mark.parametrize(
    ("name", "guess"), [("minute", "minutes"), ("minuets", "minutes"), ("suger", "sugar"), ("SUGAR", None), ("x", None)]
)
def test_an_unknown_option_is_answered_with_the_nearest(name, guess):
    with pytest.raises(TypeError) as error:
        brew("oolong", **{name: 1})
    question = f"did you mean {guess!r}? " if guess else ""
    assert str(error.value) == f"`{__name__}.brew` has no option {name!r}; {question}There are: minutes, sugar."


def test_a_missing_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'leaf'"):
        brew(minutes=3)


def test_name_docstring_and_signature_stay():
    assert brew.__name__ == "brew"
    assert brew.__doc__ == "Make tea."
    assert list(inspect.signature(brew).parameters) == ["leaf", "water", "minutes", "sugar"]


def test_the_function_is_not_called_with_an_unknown_option():
    calls = []

    @suggests_names
    def record(*, minutes: int = 3) -> None:
        calls.append(minutes)

    with pytest.raises(TypeError):
        record(minute=4)
    assert calls == []


@pytest.mark.parametrize("known", [["num_epochs", "num_draws"], ["num_draws", "num_epochs"]])
def test_the_closest_of_several_is_named(known):
    assert nearest("num_epoch", known).startswith("did you mean 'num_epochs'? There are: ")


@pytest.mark.parametrize("method", [dropout, ensemble, map_estimate, variational], ids=lambda m: m.__name__[18:])
@pytest.mark.parametrize(
    ("name", "guess"),
    [("num_epoch", "num_epochs"), ("batchsize", "batch_size"), ("learning_rates", "learning_rate"), ("sead", "seed")],
)
def test_every_method_suggests_its_options(method, name, guess):
    with pytest.raises(TypeError, match=f"`{method.__name__}.fit` has no option '{name}'; did you mean '{guess}'"):
        method.fit(None, None, **{name: 1})


@pytest.mark.parametrize("method", [dropout, ensemble, map_estimate, variational], ids=lambda m: m.__name__[18:])
def test_every_method_has_the_common_options_by_keyword_only(method):
    parameters = inspect.signature(method.fit).parameters
    assert list(parameters)[:2] == ["model", "data"]
    common = ["num_epochs", "batch_size", "learning_rate", "validation", "device", "seed", "progress", "callbacks"]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in common)
    others = [p for name, p in parameters.items() if name not in ("model", "data")]
    assert all(p.default is not inspect.Parameter.empty for p in others)


class Brewing(TypedDict, total=False):
    """How tea is made.

    Attributes:
        minutes: How long it draws,
            with the lid on.
        milk: Before or after.
    """

    minutes: int | None
    milk: str


@spells_out({"minutes": 3, "milk": "after"})
def steep(leaf: str, *, sugar: bool = False, **brewing: Unpack[Brewing]) -> tuple:
    """Make tea.

    Args:
        milk: Never
            before.
        leaf: Of which plant.
        sugar: Whether.

    Returns:
        Tea.
    """
    return leaf, sugar, brewing


def test_shared_options_are_in_signature_and_docstring_as_if_they_were_written_out():
    assert str(inspect.signature(steep)) == (
        "(leaf: str, *, sugar: bool = False, minutes: int | None = 3, milk: str = 'after') -> tuple"
    )
    assert inspect.getdoc(steep) == (
        "Make tea.\n\nArgs:\n    leaf: Of which plant.\n    sugar: Whether.\n    minutes: How long it draws,\n"
        "        with the lid on.\n    milk: Never\n        before.\n\nReturns:\n    Tea."
    )


@pytest.mark.parametrize("given", [{}, {"minutes": None}])
def test_shared_options_that_are_not_given_are_their_defaults(given):
    assert steep("oolong", **given) == ("oolong", False, {"minutes": 3, "milk": "after"})
    assert steep("oolong", milk=None)[2]["milk"] is None  # which its type does not have: the function's to refuse
    assert steep(leaf="oolong", minutes=4, sugar=True) == ("oolong", True, {"minutes": 4, "milk": "after"})


def test_shared_options_are_suggested():
    with pytest.raises(TypeError, match=r"has no option 'minute'; did you mean 'minutes'\? There are: sugar, minutes"):
        steep("oolong", minute=4)


FITS = [import_module(f"bayesuq.inference.{method.name}").fit for method in METHODS]
TRAINING = [fit for fit in FITS if "num_epochs" in inspect.signature(fit).parameters and "patience" in fit.__doc__]


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.__module__)
def test_help_has_a_sentence_of_its_own_for_every_option(fit):
    listed = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", inspect.getdoc(fit).partition("Args:")[2], re.MULTILINE)
    told = dict(listed[: len(inspect.signature(fit).parameters)])
    assert list(told) == list(inspect.signature(fit).parameters)
    assert not [name for name, text in told.items() if re.search(r"^See |see there|the following", text)]
    assert [name for name, text in told.items() if not text.rstrip().endswith((".", ")"))] == []


def test_all_that_optimise_take_the_training_options_with_their_types():
    names = {fit.__module__.removeprefix("bayesuq.inference.").removesuffix(".fitting") for fit in TRAINING}
    assert names == {
        "map_estimate",
        "variational",
        "dropout",
        "laplace",
        "swag",
        "gp",
        "ensemble",
        "confidence",
        "ivon",
        "microcanonical",
    }
    hints = get_type_hints(TrainingOptions)
    of_some = {"data_parallel"}  # those whose steps several processes can share say so themselves
    assert list(hints) == [name for name in Training.__dataclass_fields__ if name not in of_some]
    for fit in TRAINING:
        parameters = inspect.signature(fit).parameters
        assert {name: parameters[name].annotation for name in hints} == hints


def test_defaults_of_a_method_are_those_of_its_signature():
    def default(method, name):
        return inspect.signature(import_module(f"bayesuq.inference.{method}").fit).parameters[name].default

    assert default("map_estimate", "learning_rate") == LEARNING_RATE
    assert [default("gp", name) for name in ("batch_size", "learning_rate", "schedule")] == [1024, None, "cosine"]
    assert [default("confidence", name) for name in ("learning_rate", "schedule")] == [1e-4, "constant"]
    assert [default("variational", name) for name in ("batch_size", "num_epochs", "callbacks")] == [None, None, ()]


def test_options_are_in_the_signature_also_where_python_runs_without_docstrings():
    def bare(leaf: str, **brewing: Unpack[Brewing]) -> tuple:
        return leaf, brewing

    shown = spells_out({"minutes": 3, "milk": "after"})(bare)
    assert shown.__doc__ is None
    assert list(inspect.signature(shown).parameters) == ["leaf", "minutes", "milk"]
