"""A misspelt option is answered with the nearest one, and the function is otherwise as it was."""

import inspect

import pytest

from bayesuq.inference import dropout, ensemble, map_estimate, variational
from bayesuq.options import nearest, suggests_names


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
