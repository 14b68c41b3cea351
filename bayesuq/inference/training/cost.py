"""How long a fit will take, told before it begins, or after its first steps, by what one evaluation of them takes."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from bayesuq.fit_warnings import warn_of_fit

LONG = 600.0  # seconds that a fit may take without a word, where the number of evaluations is a guess
LONG_FOR_CERTAIN = 180.0  # where it is known
WORTH_TIMING = 1e12  # multiplications, a minute or so, below which nothing is timed


def warn_if_long(evaluate: Callable[[], Any], number: int, work: float, *, told: str, remedy: str) -> None:
    """Warn where so many evaluations take more than ten minutes, by the second of two.

    Args:
        evaluate: Computes the objective once; whatever it changes does not matter.
        number: Of evaluations in the fit, at most.
        work: Multiplications in all of them, roughly.
        told: What an evaluation is, and how many there are.
        remedy: What to do about it, a sentence.
    """
    if work < WORTH_TIMING:
        return
    evaluate()
    one = seconds_of(evaluate)
    warn_of_seconds(one * number, f"The fit has {{}} to go: {told}, {1000 * one:.2g} ms each. {remedy}")


def seconds_of(evaluate: Callable[[], Any]) -> float:
    """The wall time that it takes."""
    begin = perf_counter()
    evaluate()
    return perf_counter() - begin


def warn_of_seconds(seconds: float, message: str, most: float = LONG) -> None:
    """Warn with a message, whose braces become the time in words, where a fit takes more than so many seconds."""
    if seconds > most:
        warn_of_fit(message.format(_readable(seconds)), UserWarning)


def _readable(seconds: float) -> str:
    return f"some {seconds / 3600:.1f} h" if seconds > 5400 else f"some {seconds / 60:.0f} min"
