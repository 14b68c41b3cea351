"""One call for a table: methods are tried within a time, judged by held-out rows, mixed, and recalibrated.

The rows are divided once: some for fits, some by which they are judged and mixed, and, of tables of 1,000 rows and
more, some by which the mixture alone is recalibrated. The weights of the mixture are those of stacking: no method is
picked that another one complements. What has a weight is then fitted again to all rows but the last kind, or, of very
long tables, longer to the first kind while the second one watches, where there is time.

Two small fits of a method tell whether there is time for one of use; where not it is left out, and said. Each fit has
its part of the time, and ends with it: its steps take their whole course within it, whatever one of them takes, and how
many they were is said.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_positive, to_tensor, warn_of_other_order
from bayesuq.data import Dataset, Standardizer
from bayesuq.deadline import Deadline, until
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference import quantile_calibration, temperature
from bayesuq.inference.automatic.candidates import MANY_ROWS, Trial, Watched, trials_for_labels, trials_for_numbers
from bayesuq.inference.automatic.gaps import widest_gaps
from bayesuq.inference.automatic.log_odds import log_odds_factor, log_odds_levels
from bayesuq.inference.automatic.outliers import OutlierPosterior, outlier_share, warn_of_strangers
from bayesuq.inference.automatic.posterior import AutomaticPosterior, Candidate, standard_rows
from bayesuq.inference.posteriors.units import in_units
from bayesuq.inference.quantile_calibration import QuantileCalibratedPosterior
from bayesuq.inference.stacking import stacked, stacking_weights
from bayesuq.options import suggests_names
from bayesuq.posterior import Posterior
from bayesuq.randomness import derive_seed, generator, resolve_seed

__all__ = ["classify", "regress"]
__dir__ = __all__.copy

BUDGET = 60.0  # seconds
CLIP = 8.0  # standard deviations
FEWEST_ROWS, RECALIBRATED_FROM = 20, 1000
JUDGED_SHARE, MOST_JUDGED = 0.15, 5000
CALIBRATION_SHARE, MOST_CALIBRATING = 0.1, 5000
FIRST_FITS = 0.45  # of the time; the rest is for fitting again, by which chains go on to where they predict best
SAFETY = 0.95  # the share of a fit's time that its steps end in; the rest is for predictions
LONGER = 1.5  # times what a second fit would take by the first one, where it ends
ENOUGH = 2.0  # times what the smallest fit of use takes by its pilots
TRUSTED = 0.9  # the share of the time that is foretold a size which nothing ends
HOPELESS = 2.0  # times the seconds that there are, where a pilot of few steps leaves no doubt
PILOT_ROWS = 2000  # that pilots read of very many
FEWEST_PIECES, ROWS_A_PIECE = 10, 100  # of the map of levels
NUM_DRAWS = 1000  # of the mixture: a row unlike the others has its density by few of them
FAILURES = (ArithmeticError, RuntimeError, ValueError)  # of a method, beside which others may do well
OUTLIER_SCALE = 1.0  # standard deviations of y
TO_MORE_ROWS, WATCHED = " to the judging rows too", ", watched by the judging rows"
STANDARD = torch.distributions.Normal(0.0, 1.0)
DIVIDE, FITS, CALIBRATE = range(3)  # what the seed is split into


@suggests_names
def regress(
    x: Any,
    y: ArrayLike,
    *,
    budget: float = BUDGET,
    seed: int | None = None,
    clock: Callable[[], float] = perf_counter,
) -> AutomaticPosterior:
    """Predict a number, or several, from the columns of a table.

    A Gaussian process, an ensemble, dropout, a Laplace approximation and microcanonical chains are tried; what comes
    back is their mixture by the weights that held-out rows ask for. `explanation` says what was tried and why it was
    chosen.

    Args:
        x: Inputs, (N, F), in any units.
        y: Targets, (N,) or (N, D), in any unit; whole numbers are real targets here.
        budget: Seconds that it may take. Each fit ends with its part of them, whatever else the machine does, and says
            so; the first method is fitted, if only a little, however few they are.
        seed: Makes the fit repeatable where no fit is ended by its time; how far one comes that is depends on the
            clock, and so on the machine. None draws one from torch's generator.
        clock: What tells the seconds.

    Returns:
        A posterior whose predictive is in y's own unit.

    Raises:
        TypeError: Text, dates and the like in the table: make numbers of them first. Targets that are true or false.
        ValueError: Fewer than 20 rows, values that are not finite, shapes that do not go together, a budget of nothing.
        FloatingPointError: No method could be fitted; it says why of each.

    Warns:
        UserWarning: A target is a thousand times further from the others than these are from each other.

    Example:
        >>> x = torch.linspace(-2.0, 2.0, 60).unsqueeze(1)
        >>> found = regress(x, 1000.0 * x[:, 0].sin(), budget=2.0, seed=0)  # doctest: +SKIP
        >>> print(found.explanation)                                        # doctest: +SKIP
    """
    warn_of_other_order(x, y)
    data = Dataset(_table(x), _numbers(y))
    warn_of_strangers(data.y)
    return _fitted(data, trials_for_numbers, (), budget, resolve_seed(seed), clock)


@suggests_names
def classify(
    x: Any,
    y: Any,
    *,
    budget: float = BUDGET,
    seed: int | None = None,
    clock: Callable[[], float] = perf_counter,
) -> AutomaticPosterior:
    """Predict a class from the columns of a table.

    An ensemble, dropout, a Laplace approximation and microcanonical chains are tried: see `regress`.

    Args:
        x: Inputs, (N, F), in any units.
        y: Labels of any kind, (N,), such as text or whole numbers; `labels` of the result holds them in the order of
            the predictive's classes.
        budget: Seconds that it may take: see `regress`.
        seed: Makes the fit repeatable, as in `regress`; None draws one from torch's generator.
        clock: What tells the seconds.

    Returns:
        A posterior over the numbers of the classes, 0 to C - 1.

    Raises:
        TypeError: Text, dates and the like among the inputs: make numbers of them first. Real targets, or labels of
            several kinds that have no order.
        ValueError: Labels of a single class, or all of them different, missing ones, one-hot rows; else see `regress`.

    Example:
        >>> x = torch.linspace(-2.0, 2.0, 60).unsqueeze(1)
        >>> found = classify(x, np.where(x[:, 0] > 0, "above", "below"), budget=2.0, seed=0)  # doctest: +SKIP
        >>> found.labels                                                                     # doctest: +SKIP
        ('above', 'below')
    """
    warn_of_other_order(x, y)
    labels, numbers = _numbered(y)
    if len(labels) < 2:
        raise ValueError(f"`y` must have at least two classes; got {labels.tolist()}.")
    if len(labels) == len(numbers):
        raise ValueError(
            f"`y` must have labels that rows share; all {len(labels)} are different. Of real targets take "
            "`bayesuq.regress(x, y)`."
        )
    data = Dataset(_table(x), numbers)
    return _fitted(
        data,
        lambda rows: trials_for_labels(rows, len(labels)),
        tuple(labels.tolist()),
        budget,
        resolve_seed(seed),
        clock,
    )


@dataclass(frozen=True)
class Timer:
    """What time is left.

    Attributes:
        clock: Tells the seconds.
        end: When all must be done.
        budget: The seconds that there were.
    """

    clock: Callable[[], float]
    end: float
    budget: float

    @classmethod
    def of(cls, budget: float, clock: Callable[[], float]) -> "Timer":
        """One that begins now."""
        return cls(clock, clock() + budget, budget)

    def left(self, share: float = 1.0) -> float:
        """Seconds until this share of the budget has passed."""
        return self.end - (1 - share) * self.budget - self.clock()

    def within(self, seconds: float) -> Deadline:
        """The end of so many seconds from now."""
        return Deadline(self.clock, self.clock() + seconds)


class Steps(NamedTuple):
    """How long a fit was.

    Attributes:
        made: Its size: epochs, iterations, or steps of chains.
        wanted: The size of a fit that has time enough.
        is_cut: Whether time has ended it.
    """

    made: int
    wanted: int
    is_cut: bool = False

    @classmethod
    def of(cls, size: int, deadline: Deadline) -> "Steps":
        """Those of a fit of this size, as far as the deadline let it come."""
        shares = [ended.share for ended in deadline.ended]
        return cls(max(1, round(size * shares[-1])) if shares else size, size, any(share < 1 for share in shares))

    def anew(self, deadline: Deadline) -> "Steps":
        """Those of the same fit to more rows."""
        again = Steps.of(self.made, deadline)
        return Steps(again.made, self.wanted, self.is_cut or again.is_cut)

    def and_then(self, further: "Steps") -> "Steps":
        """Those of a fit that went on."""
        return Steps(self.made + further.made, self.made + further.wanted, further.is_cut)

    def __str__(self) -> str:
        return f"size {self.made}" + (f" of {self.wanted}, where its time ended" if self.is_cut else "")


@dataclass(frozen=True)
class Fitted:
    """A trial that was fitted.

    Attributes:
        trial: Which one.
        posterior: The first fit, or the one to more rows.
        steps: Of the fit.
        seconds: Of it alone.
        after: Of these, what it took when its steps were made.
        spent: Pilots included.
        log_probs: Of the rows to judge by, (N,), in nats.
        variance: That it predicts for them, their mean, in units of y squared; 0 of labels.
        log_constant: As `log_probs`, their mean under a normal law that has the mean and spread of all; 0 of labels.
        weight: In the mixture.
        again: What the second fit was, in words; none of a first one.
    """

    trial: Trial
    posterior: Posterior
    steps: Steps
    seconds: float
    after: float
    spent: float
    log_probs: Tensor
    variance: float
    log_constant: float
    weight: float = 0.0
    again: str = ""

    @property
    def seconds_again(self) -> float:
        """What the same fit to the judging rows too takes."""
        return self.seconds / (1 - JUDGED_SHARE)

    @property
    def is_surprised(self) -> bool:
        """Whether the rows to judge by are less probable to it than to a standard normal law, which they are under.

        What it has learned of the noise is wrong of them then, and to keep it and take them in as if it were right
        spoils all rows.
        """
        return float(self.log_probs.mean()) < self.log_constant

    def goes_on(self, number: int) -> bool:
        """Whether the fit to so many rows begins where this one ended, and takes what time there is."""
        return self.trial.going_on is not None and number > self.trial.most_anew

    def size_onwards(self, left: float) -> int:
        """How much further it goes within these seconds; 0 where that is not worth it."""
        wanted, seconds = self.trial.wanted_onwards or self.trial.wanted, self.seconds_again
        size = min(wanted, int(TRUSTED * max(left, 0.0) / seconds * self.steps.made)) if seconds > 0 else wanted
        return size if size >= (self.trial.least_onwards or self.trial.least) else 0

    def told(self, unit: float) -> Candidate:
        """What is said of it, y's unit being so many nats."""
        remark = f"{self.steps}" + (f", fitted again{self.again}" if self.again else "")
        return Candidate(self.trial.name, float(self.log_probs.mean()) - unit, self.weight, self.spent, remark)


def _fitted(
    data: Dataset,
    trials_for: Callable[[Dataset], Sequence[Trial]],
    labels: tuple[Any, ...],
    budget: float,
    key: int,
    clock: Callable[[], float],
) -> AutomaticPosterior:
    check_positive(budget, "budget")
    timer = Timer.of(budget, clock)
    if len(data) < FEWEST_ROWS:
        raise ValueError(
            f"`x` must have at least {FEWEST_ROWS} rows; got {len(data)}. Take `bq.inference.gp` or `hmc`."
        )
    fitting, judging, calibrating = divided(len(data), derive_seed(key, DIVIDE))
    standardizer = Standardizer.fit(data.rows(torch.cat([fitting, judging])), clip=CLIP, logarithms=True)
    rows = standard_rows(standardizer, data)
    first, judged = rows.rows(fitting), rows.rows(judging)
    trials = trials_for(first)
    fits, told = _first_fits(trials, first, judged, timer, derive_seed(key, FITS))
    both = rows.rows(torch.cat([fitting, judging]))
    before, mixture, fits = _mixed(fits, both, len(first), timer, derive_seed(key, FITS))
    if not rows.is_labelled:
        before, mixture = (expecting_outliers(one, len(both), fits) for one in (before, mixture))
    posterior, remark = _recalibrated(mixture, rows, calibrating, before, judged, derive_seed(key, CALIBRATE))
    unit = 0.0 if standardizer.y_scale is None else float(standardizer.y_scale.log().sum())
    told = [*told, *(fit.told(unit) for fit in fits)]
    names = [trial.name for trial in trials]
    return AutomaticPosterior(
        posterior=in_units(posterior, standardizer),
        labels=labels,
        candidates=tuple(sorted(told, key=lambda candidate: names.index(candidate.name))),
        remarks=(
            f"{len(fitting)} rows for fits, {len(judging)} to judge and mix them by.",
            remark,
            f"{budget - timer.left():.1f} of {budget:g} seconds taken.",
        ),
        gaps=widest_gaps(standardizer.inputs(data.x)),
        num_rows=len(data),
    )


def divided(number: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows for fits, to judge by, and to recalibrate by; none of the last kind in a small table."""
    order = torch.randperm(number, generator=generator(seed))
    judging = min(MOST_JUDGED, max(5, round(JUDGED_SHARE * number)))
    calibrating = min(MOST_CALIBRATING, round(CALIBRATION_SHARE * number)) if number >= RECALIBRATED_FROM else 0
    return order[judging + calibrating :], order[:judging], order[judging : judging + calibrating]


def _first_fits(
    trials: Sequence[Trial], first: Dataset, judged: Dataset, timer: Timer, key: int
) -> tuple[list[Fitted], list[Candidate]]:
    """Each trial in turn, of the size that its part of the time allows; what is not fitted, with the reason.

    Raises:
        FloatingPointError: None could be fitted.
    """
    fits: list[Fitted] = []
    told: list[Candidate] = []
    constant = 0.0 if judged.is_labelled else float(STANDARD.log_prob(judged.y.double()).sum(dim=1).mean())
    for number, trial in enumerate(trials):
        begin = timer.clock()
        waiting = sum(later.share for later in trials[number:])
        part = timer.left(FIRST_FITS) * trial.share / max(trial.share, waiting / 2)
        try:
            planned = _planned(trial, first, part, _spare(trial, first, fits, timer), timer.clock, key)
            if planned is None and number > 0:
                told.append(Candidate(trial.name, None, 0.0, timer.clock() - begin, "no time for a fit of use"))
                continue
            size, deadline = planned or (trial.least, Deadline(timer.clock, math.inf))
            start = timer.clock()
            posterior = _quietly(deadline, trial.fit, first, size, key)
            after = deadline.since_end
            predictive = posterior.predict(judged.x, seed=derive_seed(key, number), keep_samples=True)
            log_probs = predictive.log_prob(judged.y).double().clamp(min=-1e6)
            if not bool(log_probs.isfinite().all()):
                raise FloatingPointError("its density of held-out rows is no finite number")
            variance = 0.0 if judged.is_labelled else float(predictive.total.mean())
        except FAILURES as error:
            told.append(Candidate(trial.name, None, 0.0, timer.clock() - begin, f"failed: {error}"))
            continue
        end = timer.clock()
        steps = Steps.of(size, deadline)
        fits.append(Fitted(trial, posterior, steps, end - start, after, end - begin, log_probs, variance, constant))
    if not fits:
        reasons = "; ".join(f"{one.name}: {one.remark}" for one in told)
        raise FloatingPointError(f"No method could be fitted to this table. {reasons}")
    return fits, told


def _spare(trial: Trial, rows: Dataset, fits: Sequence[Fitted], timer: Timer) -> float:
    """Seconds that second fits leave to a first one, and to its own second one where it needs it; 0 of less than half.

    What goes on from its first fit needs none, and takes what is left: beside one there is nothing to spare.
    """
    if not fits or any(fit.goes_on(len(rows)) for fit in fits):
        return 0.0
    left, taken = timer.left(), sum(fit.seconds_again for fit in fits)
    both = 1.0 if trial.going_on is not None else 1 + 1 / (1 - JUDGED_SHARE)
    return (left - taken) / both if taken < left / 2 else 0.0  # pilots take some before they tell


def _planned(
    trial: Trial, rows: Dataset, seconds: float, spare: float, clock: Callable[[], float], key: int
) -> tuple[int, Deadline] | None:
    """The size of a fit that takes these seconds at most, and when its steps are to end; None of one of no use.

    Small fits tell whether the smallest one of use would end in time: their difference leaves out what any fit takes.
    Where it would not, or hardly, for a machine may become slower, it takes of the spare seconds. A fit of size 1 goes
    before them, whose seconds do not count: it loads what is loaded once in a process. Where it was the quicker one all
    the same, as it is from a method's second fit in a process on, and leaves no doubt, a second pilot is spared.
    """
    longest, pilots = max(seconds, spare), Deadline(clock, math.inf)
    if longest <= 0:
        return None
    small, large = trial.pilots
    some = rows if len(rows) < MANY_ROWS else rows.rows(torch.arange(PILOT_ROWS))
    longer = min(len(rows), trial.most_read or len(rows)) / min(len(some), trial.most_read or len(some))

    def ending(taken: float, pace: float) -> Deadline | None:
        """When the fit's steps are to end, after pilots that took so long, by the seconds of a step."""
        after = pilots.since_end
        before = max(first - small * pace - after, 0.0)
        least = taken + before + longer * (after + trial.least * pace)
        allowed = min(max(seconds, ENOUGH * least / SAFETY), longest)
        end = clock() - taken + SAFETY * allowed - longer * after
        return Deadline(clock, end) if least <= SAFETY * allowed else None

    once, first = (_seconds_of(trial, some, size, pilots, key) for size in (1, small))
    pace = (first - once) / (small - 1)
    found = ending(first, pace) if pace > 0 else None
    # A larger pilot would take the rest where there is little, or all is hopeless.
    if found is None and first <= longest / 2 and longer * trial.least * pace <= HOPELESS * longest:
        second = _seconds_of(trial, some, large, pilots, key)
        pace = (second - first) / (large - small) if second > first else second / large  # too slow, if anything
        found = ending(first + second, pace)
    return None if found is None else (trial.wanted, found)


def _seconds_of(trial: Trial, rows: Dataset, size: int, deadline: Deadline, key: int) -> float:
    """What a pilot takes."""
    begin = deadline.clock()
    _quietly(deadline, trial.fit, rows, size, key)
    return deadline.clock() - begin


def _mixed(
    fits: Sequence[Fitted], rows: Dataset, fitted: int, timer: Timer, key: int
) -> tuple[Posterior, Posterior, list[Fitted]]:
    """The mixture by the weights that the judging rows ask for, the same of fits to more rows, and all fits."""
    log_probs = torch.stack([fit.log_probs for fit in fits])
    mixture = stacked([fit.posterior for fit in fits], stacking_weights(log_probs), NUM_DRAWS)
    weights = {id(member): weight for member, weight in zip(mixture.members, mixture.weights, strict=True)}
    weighed = [replace(fit, weight=weights.get(id(fit.posterior), 0.0)) for fit in fits]
    again = _again(weighed, rows, fitted, timer, key)
    return mixture, replace(mixture, members=tuple(fit.posterior for fit in again if fit.weight > 0)), again


def _again(fits: Sequence[Fitted], rows: Dataset, fitted: int, timer: Timer, key: int) -> list[Fitted]:
    """Those with a weight, fitted to more rows where there is time, which grows with these.

    What goes on from its first fit comes last, and goes as far as there is time. The first rows, so many, were fitted.
    """
    found = list(fits)
    chosen = [number for number, fit in enumerate(fits) if fit.weight > 0]
    waiting = sorted(chosen, key=lambda one: fits[one].trial.going_on is not None)
    while waiting:
        number, *waiting = waiting
        fit, left = fits[number], timer.left()
        part = left * fit.weight / (fit.weight + sum(fits[one].weight for one in waiting))
        waits = any(fits[one].size_onwards(left) for one in waiting)
        try:
            if fit.trial.watched is not None and part > fit.seconds:
                deadline = timer.within(SAFETY * part - fit.after)
                found[number] = _fitted_longer(fit, fit.trial.watched, rows, fitted, deadline, key)
            else:
                found[number] = _fitted_again(fit, rows, timer, part, key, nothing_waits=not waits)
        except FAILURES:
            warn_of_fit(f"{fits[number].trial.name} failed on more rows; the first fit is kept.", UserWarning)
    return found


def _fitted_longer(fit: Fitted, watched: Watched, rows: Dataset, fitted: int, deadline: Deadline, key: int) -> Fitted:
    """A fit to the same rows that the judging ones watch, as large as there is time for."""
    first, judging = (rows.rows(torch.arange(*ends)) for ends in ((0, fitted), (fitted, len(rows))))
    posterior = _quietly(deadline, watched, first, judging, fit.trial.wanted, key)
    return replace(fit, posterior=posterior, steps=Steps.of(fit.trial.wanted, deadline), again=WATCHED)


def _fitted_again(fit: Fitted, rows: Dataset, timer: Timer, part: float, key: int, *, nothing_waits: bool) -> Fitted:
    """The fit to more rows within the seconds that are left, or as it is where they are too few.

    Of these the part is its own, in which it may take longer than the first fit did.
    """
    trial, left = fit.trial, timer.left()
    is_anew = trial.going_on is None or (nothing_waits and not fit.goes_on(len(rows)))
    if is_anew and left > fit.seconds_again:
        deadline = timer.within(min(max(LONGER * fit.seconds_again, part), left) - fit.after)
        posterior = _quietly(deadline, trial.fit, rows, fit.steps.made, key)
        return replace(fit, posterior=posterior, steps=fit.steps.anew(deadline), again=TO_MORE_ROWS)
    size = fit.size_onwards(left)
    if trial.going_on is None or size == 0 or (fit.is_surprised and not trial.keeps_time):
        return fit
    size = (trial.wanted_onwards or trial.wanted) if trial.keeps_time else size
    deadline = timer.within(SAFETY * left - fit.after)
    posterior = _quietly(deadline, trial.going_on, rows, size, key, fit.posterior)
    return replace(fit, posterior=posterior, steps=fit.steps.and_then(Steps.of(size, deadline)), again=TO_MORE_ROWS)


def expecting_outliers(mixture: Posterior, number: int, fits: Sequence[Fitted]) -> OutlierPosterior:
    """The mixture under which one row in as many as were fitted, or fewer, may be anywhere: see `outlier_share`."""
    variance = sum(fit.weight * fit.variance for fit in fits)
    share = outlier_share(number, variance, OUTLIER_SCALE)
    return OutlierPosterior(posterior=mixture, share=share, scale=OUTLIER_SCALE)


def _recalibrated(
    mixture: Posterior, rows: Dataset, calibrating: Tensor, before: Posterior, judged: Dataset, seed: int
) -> tuple[Posterior, str]:
    """The mixture with calibrated levels or a temperature, and a remark that says so.

    Args:
        mixture: Of the last fits.
        rows: All.
        calibrating: Which of them nothing has seen; none in a small table.
        before: The mixture of the first fits.
        judged: Rows that these have not seen, but by which they are mixed.
        seed: Of the draws.
    """
    if not rows.is_labelled and rows.y.shape[1] > 1:
        return mixture, "Not recalibrated: levels are calibrated for one target column."
    if not len(calibrating):
        if not rows.is_labelled:
            return _sharpened(mixture, before, judged, seed)
        return mixture, f"Not recalibrated: that takes rows of its own, which tables from {RECALIBRATED_FROM} on have."
    data = rows.rows(calibrating)
    if rows.is_labelled:
        scaled = temperature.fit(mixture, data, seed=seed)
        return scaled, f"Temperature {scaled.temperature:.3g}, by {len(data)} further rows."
    try:
        pieces = max(FEWEST_PIECES, len(data) // ROWS_A_PIECE)
        mapped = quantile_calibration.fit(mixture, data, num_pieces=pieces, seed=seed)
    except ValueError as error:
        return mixture, f"Not recalibrated: {error}"
    return mapped, f"Levels recalibrated by {len(data)} further rows."


def _sharpened(mixture: Posterior, before: Posterior, judged: Dataset, seed: int) -> tuple[Posterior, str]:
    """The mixture with its levels' log-odds scaled by the number that the judging rows ask for."""
    predictive: Any = before.predict(judged.x, seed=seed, keep_samples=True)
    factor = log_odds_factor(predictive.cdf(judged.y).flatten())
    knots, levels = log_odds_levels(factor)
    sharpened = QuantileCalibratedPosterior(posterior=mixture, knots=knots, levels=levels)
    return sharpened, f"Log-odds of levels scaled by {factor:.3g}, by the {len(judged)} rows that judged."


def _quietly(deadline: Deadline, fit: Callable[..., Posterior], *arguments: Any) -> Posterior:
    """A fit until then, whose warnings are not shown: held-out rows judge it, and pilots are short on purpose."""
    with warnings.catch_warnings(), until(deadline):
        warnings.simplefilter("ignore")
        return fit(*arguments)


def _table(x: Any) -> Any:
    """Inputs as Dataset takes them, real numbers in float64; a data frame keeps its names."""
    if hasattr(x, "columns"):
        return x
    rows = to_tensor(x, "x")
    if rows.ndim > 2:
        raise ValueError(
            f"`x` must be a table, (N, F); got {tuple(rows.shape)}. Of images and series, fit a network of your own: "
            "bayesuq.inference.ensemble."
        )
    return rows.double()


def _numbers(y: Any) -> Tensor:
    """Targets in float64.

    Raises:
        TypeError: They are true or false, or no numbers.
        ValueError: Some are not finite.
    """
    given = to_tensor(y, "y")
    if given.dtype is torch.bool:
        raise TypeError(
            "`y` must hold numbers; got true and false. Take `bayesuq.classify(x, y)`, or pass `y.astype(float)` if 0 "
            "and 1 are measurements."
        )
    missing = ~given.reshape(len(given), -1).isfinite().all(dim=1) if given.ndim else ~given.isfinite()
    if missing.any():
        raise ValueError(
            f"`y` must be finite; {int(missing.sum())} of {len(given)} rows hold NaN or infinite values, the first is "
            f"row {int(missing.int().argmax())}. Leave these rows out."
        )
    return given.double()


def _numbered(y: Any) -> tuple["np.ndarray[Any, Any]", Tensor]:
    """The different labels in order, and the place among them of each row's, (N,)."""
    given = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if given.ndim == 0 or given.size != len(given):
        raise ValueError(
            f"`y` must have one label a row, (N,); got shape {given.shape}. Of one-hot rows pass `y.argmax(1)`."
        )
    given = given.reshape(-1)
    missing = np.asarray(y.isna()).reshape(-1) if hasattr(y, "isna") else np.array([_is_missing(one) for one in given])
    if missing.any():
        raise ValueError(
            f"`y` must have a label in each row; {int(missing.sum())} of {len(given)} are missing, the first is row "
            f"{int(missing.argmax())}. Leave these rows out."
        )
    try:
        labels, numbers = np.unique(given, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(one).__name__ for one in given})
        raise TypeError(f"`y` must hold labels of one kind; got {', '.join(kinds)}. Make text of all.") from error
    if labels.dtype.kind == "f" and (fractions := labels[labels != np.round(labels)]).size:
        raise TypeError(
            f"`y` must be labels; got {len(labels)} different numbers that are not whole, such as {fractions[0]:.4g}. "
            "Of real targets take `bayesuq.regress(x, y)`."
        )
    return labels, torch.from_numpy(numbers.reshape(-1))


def _is_missing(label: Any) -> bool:
    """Whether it is None or NaN."""
    return label is None or label != label
