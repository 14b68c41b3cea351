"""One call for a table: methods are tried within a time, judged by held-out rows, mixed, and recalibrated.

The rows are divided once: some for fits, some by which they are judged and mixed, and, of tables of 1,000 rows and
more, some by which the mixture alone is recalibrated. The weights of the mixture are those of stacking: no method is
picked that another one complements. What has a weight is then fitted again to all rows but the last kind, or, of very
long tables, longer to the first kind while the second one watches, where there is time.

How long a fit takes is learned from two small ones of it. A method for which there is no time is left out, and said.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_positive, to_tensor, warn_of_other_order
from bayesuq.data import Dataset, Standardizer
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference import quantile_calibration, temperature
from bayesuq.inference.automatic.candidates import MANY_ROWS, Trial, Watched, trials_for_labels, trials_for_numbers
from bayesuq.inference.automatic.gaps import widest_gaps
from bayesuq.inference.automatic.log_odds import log_odds_factor, log_odds_levels
from bayesuq.inference.automatic.outliers import OutlierPosterior, outlier_share
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
SAFETY = 0.9  # the share of the time that pilots are trusted for
SPARED = 0.8  # the share of what other fits leave, on which none has to rely
PILOT_ROWS = 2000  # that pilots read of very many
FEWEST_PIECES, ROWS_A_PIECE = 10, 100  # of the map of levels
NUM_DRAWS = 1000  # of the mixture: a row unlike the others has its density by few of them
OUTLIER_SCALE = 1.0  # standard deviations of y
TO_MORE_ROWS, WATCHED = " to the judging rows too", ", watched by the judging rows"
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
        budget: Seconds that it may take. The first method is fitted, if only a little, however few they are.
        seed: Makes the fit repeatable, on a machine that is as fast; None draws one from torch's generator.
        clock: What tells the seconds.

    Returns:
        A posterior whose predictive is in y's own unit.

    Raises:
        TypeError: Text, dates and the like in the table: make numbers of them first.
        ValueError: Fewer than 20 rows, values that are not finite, shapes that do not go together, a budget of nothing.

    Example:
        >>> x = torch.linspace(-2.0, 2.0, 60).unsqueeze(1)
        >>> found = regress(x, 1000.0 * x[:, 0].sin(), budget=2.0, seed=0)  # doctest: +SKIP
        >>> print(found.explanation)                                        # doctest: +SKIP
    """
    warn_of_other_order(x, y)
    data = Dataset(_table(x), to_tensor(y, "y").double())
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
        budget: Seconds that it may take. The first method is fitted, if only a little, however few they are.
        seed: Makes the fit repeatable, on a machine that is as fast; None draws one from torch's generator.
        clock: What tells the seconds.

    Returns:
        A posterior over the numbers of the classes, 0 to C - 1.

    Raises:
        TypeError: Text, dates and the like among the inputs: make numbers of them first. Real targets, or labels of
            several kinds that have no order.
        ValueError: Labels of a single class, missing ones, one-hot rows; else see `regress`.

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
    """

    clock: Callable[[], float]
    end: float

    def left(self, share: float, total: float) -> float:
        """Seconds until this share of the total has passed."""
        return self.end - (1 - share) * total - self.clock()


@dataclass(frozen=True)
class Fitted:
    """A trial that was fitted.

    Attributes:
        trial: Which one.
        posterior: The first fit, or the one to more rows.
        size: Of the fit.
        seconds: Of it alone.
        spent: Pilots included.
        log_probs: Of the rows to judge by, (N,), in nats.
        variance: That it predicts for them, their mean, in units of y squared; 0 of labels.
        weight: In the mixture.
        again: What the second fit was, in words; none of a first one.
    """

    trial: Trial
    posterior: Posterior
    size: int
    seconds: float
    spent: float
    log_probs: Tensor
    variance: float
    weight: float = 0.0
    again: str = ""

    @property
    def seconds_again(self) -> float:
        """What the same fit to the judging rows too takes."""
        return self.seconds / (1 - JUDGED_SHARE)

    def goes_on(self, number: int) -> bool:
        """Whether the fit to so many rows begins where this one ended, and takes what time there is."""
        return self.trial.going_on is not None and number > self.trial.most_anew

    def size_onwards(self, left: float) -> int:
        """How much further it goes within these seconds; 0 where that is not worth it."""
        wanted, seconds = self.trial.wanted_onwards or self.trial.wanted, self.seconds_again
        size = min(wanted, int(SAFETY * max(left, 0.0) / seconds * self.size)) if seconds > 0 else wanted
        return size if size >= (self.trial.least_onwards or self.trial.least) else 0

    def told(self, unit: float) -> Candidate:
        """What is said of it, y's unit being so many nats."""
        remark = f"size {self.size}" + (f", fitted again{self.again}" if self.again else "")
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
    timer = Timer(clock, clock() + budget)
    if len(data) < FEWEST_ROWS:
        raise ValueError(
            f"`x` must have at least {FEWEST_ROWS} rows; got {len(data)}. Take `bq.inference.gp` or `hmc`."
        )
    fitting, judging, calibrating = divided(len(data), derive_seed(key, DIVIDE))
    standardizer = Standardizer.fit(data.rows(torch.cat([fitting, judging])), clip=CLIP, logarithms=True)
    rows = standard_rows(standardizer, data)
    first, judged = rows.rows(fitting), rows.rows(judging)
    trials = trials_for(first)
    fits, told = _first_fits(trials, first, judged, timer, budget, derive_seed(key, FITS))
    both = rows.rows(torch.cat([fitting, judging]))
    before, mixture, fits = _mixed(fits, both, len(first), timer, budget, derive_seed(key, FITS))
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
        remarks=(f"{len(fitting)} rows for fits, {len(judging)} to judge and mix them by.", remark),
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
    trials: Sequence[Trial], first: Dataset, judged: Dataset, timer: Timer, budget: float, key: int
) -> tuple[list[Fitted], list[Candidate]]:
    """Each trial in turn, of the size that its part of the time allows; what is not fitted, with the reason.

    Raises:
        FloatingPointError: None could be fitted.
    """
    fits: list[Fitted] = []
    told: list[Candidate] = []
    for number, trial in enumerate(trials):
        begin = timer.clock()
        waiting = sum(later.share for later in trials[number:])
        part = timer.left(FIRST_FITS, budget) * trial.share / max(trial.share, waiting / 2)
        try:
            size = _size(trial, first, part, _spare(trial, first, fits, timer, budget), timer.clock, key)
            if number == 0:
                size = max(size, trial.least)
            if size < trial.least:
                told.append(Candidate(trial.name, None, 0.0, timer.clock() - begin, "no time for a fit of use"))
                continue
            start = timer.clock()
            posterior = _quietly(trial.fit, first, size, key)
            predictive = posterior.predict(judged.x, seed=derive_seed(key, number), keep_samples=True)
            log_probs = predictive.log_prob(judged.y).double().clamp(min=-1e6)
            variance = 0.0 if judged.is_labelled else float(predictive.total.mean())
        except (FloatingPointError, RuntimeError) as error:
            told.append(Candidate(trial.name, None, 0.0, timer.clock() - begin, f"failed: {error}"))
            continue
        end = timer.clock()
        fits.append(Fitted(trial, posterior, size, end - start, end - begin, log_probs, variance))
    if not fits:
        reasons = "; ".join(f"{one.name}: {one.remark}" for one in told)
        raise FloatingPointError(f"No method could be fitted to this table. {reasons}")
    return fits, told


def _spare(trial: Trial, rows: Dataset, fits: Sequence[Fitted], timer: Timer, budget: float) -> float:
    """Seconds that second fits leave to one that needs none, for it goes on from its first one; 0 of less than half."""
    if not fits or trial.going_on is None or any(fit.goes_on(len(rows)) for fit in fits):
        return 0.0
    left, taken = timer.left(1.0, budget), sum(fit.seconds_again for fit in fits)
    return SPARED * (left - taken) if taken < left / 2 else 0.0  # pilots take some before they say that it is little


def _size(trial: Trial, rows: Dataset, seconds: float, spare: float, clock: Callable[[], float], key: int) -> int:
    """Of a fit that takes these seconds, as two pilots tell: their difference leaves out what any fit takes.

    Where that is less than what is worth its time, it may take the spare seconds. A fit of size 1 goes before the
    pilots: what is loaded once in a process is no part of the pace, nor of these seconds.
    """
    longest = max(seconds, spare)
    if longest <= 0:
        return 0
    small, large = trial.pilots
    some = rows if len(rows) < MANY_ROWS else rows.rows(torch.arange(PILOT_ROWS))
    times = [clock()]
    for size in (1, small, large):
        if len(times) > 2 and times[2] - times[1] > longest / 2:  # the larger one alone would take the rest
            return 0
        _quietly(trial.fit, some, size, key)
        times.append(clock())
    once, first, second = (after - before for before, after in pairwise(times))
    paces = [(second - first) / (large - small)]
    if some is rows:  # a busy machine may spoil one of two; of a few rows all is short, and to be left out costs more
        paces.append((second - once) / (large - 1))
    pace = max(paces) if second > first else second / large  # which is too slow, if anything
    taken = times[3] - times[1] + max(first - small * pace, 0.0)
    pace *= min(len(rows), trial.most_read or len(rows)) / min(len(some), trial.most_read or len(some))

    def within(seconds: float) -> int:
        left = max(SAFETY * seconds - taken, 0.0)
        return min(trial.wanted, int(left / pace)) if pace > 0 else trial.wanted * (left > 0)

    size = within(seconds)
    return size if size >= trial.least else within(longest)


def _mixed(
    fits: Sequence[Fitted], rows: Dataset, fitted: int, timer: Timer, budget: float, key: int
) -> tuple[Posterior, Posterior, list[Fitted]]:
    """The mixture by the weights that the judging rows ask for, the same of fits to more rows, and all fits."""
    log_probs = torch.stack([fit.log_probs for fit in fits])
    mixture = stacked([fit.posterior for fit in fits], stacking_weights(log_probs), NUM_DRAWS)
    weights = {id(member): weight for member, weight in zip(mixture.members, mixture.weights, strict=True)}
    weighed = [replace(fit, weight=weights.get(id(fit.posterior), 0.0)) for fit in fits]
    again = _again(weighed, rows, fitted, timer, budget, key)
    return mixture, replace(mixture, members=tuple(fit.posterior for fit in again if fit.weight > 0)), again


def _again(fits: Sequence[Fitted], rows: Dataset, fitted: int, timer: Timer, budget: float, key: int) -> list[Fitted]:
    """Those with a weight, fitted to more rows where there is time, which grows with these.

    What goes on from its first fit comes last, and goes as far as there is time. The first rows, so many, were fitted.
    """
    found = list(fits)
    chosen = [number for number, fit in enumerate(fits) if fit.weight > 0]
    waiting = sorted(chosen, key=lambda one: fits[one].trial.going_on is not None)
    while waiting:
        number, *waiting = waiting
        fit, left = fits[number], timer.left(1.0, budget)
        part = left * fit.weight / (fit.weight + sum(fits[one].weight for one in waiting))
        waits = any(fits[one].size_onwards(left) for one in waiting)
        try:
            if fit.trial.watched is not None and part > fit.seconds:
                found[number] = _fitted_longer(fit, fit.trial.watched, rows, fitted, part, key)
            else:
                found[number] = _fitted_again(fit, rows, left, key, nothing_waits=not waits)
        except (FloatingPointError, RuntimeError):
            warn_of_fit(f"{fits[number].trial.name} failed on more rows; the first fit is kept.", UserWarning)
    return found


def _fitted_longer(fit: Fitted, watched: Watched, rows: Dataset, fitted: int, part: float, key: int) -> Fitted:
    """A fit to the same rows that the judging ones watch, as large as these seconds allow."""
    first, judging = (rows.rows(torch.arange(*ends)) for ends in ((0, fitted), (fitted, len(rows))))
    size = max(fit.size, min(fit.trial.wanted, int(SAFETY * part / fit.seconds * fit.size)))
    return replace(fit, posterior=_quietly(watched, first, judging, size, key), size=size, again=WATCHED)


def _fitted_again(fit: Fitted, rows: Dataset, left: float, key: int, *, nothing_waits: bool) -> Fitted:
    """The fit to more rows within the seconds that are left, or as it is where they are too few."""
    trial = fit.trial
    is_anew = trial.going_on is None or (nothing_waits and not fit.goes_on(len(rows)))
    if is_anew and left > fit.seconds_again:
        return replace(fit, posterior=_quietly(trial.fit, rows, fit.size, key), again=TO_MORE_ROWS)
    if trial.going_on is None:
        return fit
    size = fit.size_onwards(left)
    if size == 0:
        return fit
    posterior = _quietly(trial.going_on, rows, size, key, fit.posterior)
    return replace(fit, posterior=posterior, size=fit.size + size, again=TO_MORE_ROWS)


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


def _quietly(fit: Callable[..., Posterior], *arguments: Any) -> Posterior:
    """A fit whose warnings are not shown: held-out rows judge it, and pilots are short on purpose."""
    with warnings.catch_warnings():
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
