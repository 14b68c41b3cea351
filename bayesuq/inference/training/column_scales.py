"""Columns far from unit size, told where a network is fitted.

Priors, initial weights and learning rates are made for inputs and targets of about unit size. A column of 1e5 saturates
every unit that sees it, one of 1e-5 is never seen, and one that varies by a thousandth of its mean is a constant; the
fit then ends like any other and its uncertainty covers nothing. Gaussian processes count in the columns' own units.

A column is far from unit size where its standard deviation s is above 20, where its mean m is above 20 max(s, 1) in
size, and, unless there are few rows or half of its entries are one value (flags, one-hot columns, the borders of
images), where |m| is above 20 s, or s is below 1/20 and no entry above 1/4 in size. Of images, a column is a channel.
"""

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inputs import named_leaves, without_scale
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.once import is_first

FAR = 20.0
SMALL = 0.25  # five times a standard deviation of 1 / FAR
LOOKED_AT = 2**21  # entries, of rows spread evenly over the data
MOST_ROWS = 2_000
FEWEST = 10  # rows whose spread says something of the column's
NAMED = 3  # columns that a warning shows
TOPIC = "column scales"


def warn_of_scales(likelihood: Likelihood, rows: Batch) -> None:
    """Warn, once a call, of inputs and real targets that are far from unit size.

    Args:
        likelihood: Whose targets have units, or not: counts and labels have none.
        rows: As the network gets them; of a loader, the first batch.

    Warns:
        UserWarning: With the columns, their scales, and the remedy.
    """
    if not is_first(TOPIC):
        return
    far = []
    for name, leaf in named_leaves(without_scale(rows.x)).items():
        if leaf.is_floating_point():
            far.append(_described(leaf if leaf.ndim > 1 else leaf.unsqueeze(1), name))
    if likelihood.has_units:
        far.append(_described(rows.y if rows.y.ndim > 1 else rows.y.unsqueeze(1), "y"))
    told = " and ".join(part for part in far if part)
    if told:
        warn_of_fit(
            f"{told}: far from unit size, for which priors, initial weights and learning rates are made, so that the "
            "fit may miss its data without a word. Take units = bayesuq.Standardizer.fit(data), fit to "
            "units.transform(data), and bayesuq.in_units(posterior, units) predicts at raw inputs in units of y.",
            UserWarning,
        )


def far_columns(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which columns (channels) are far from unit size, (K,), with the means and standard deviations of all."""
    few = _some(values).double().transpose(0, 1).flatten(1)  # (K, entries)
    mean, scale = few.mean(dim=1), few.std(dim=1, correction=0)
    is_sparse = (few == few.median(dim=1, keepdim=True).values).double().mean(dim=1) >= 0.5
    far = (scale > FAR) | (mean.abs() > FAR * scale.clamp(min=1.0))
    if len(values) >= FEWEST:
        is_small = (scale < 1 / FAR) & (few.abs().amax(dim=1) < SMALL)
        far |= ~is_sparse & (is_small | (mean.abs() > FAR * scale))
    return far, mean, scale


def _some(values: Tensor) -> Tensor:
    number = min(len(values), MOST_ROWS, max(1, LOOKED_AT // max(1, values[0].numel())))
    if number == len(values):
        return values
    return values[torch.linspace(0, len(values) - 1, number, device=values.device).long()]


def _described(values: Tensor, name: str) -> str:
    """The columns that are far from unit size; nothing where there are none."""
    far, mean, scale = far_columns(values)
    places = far.nonzero().flatten().tolist()
    if not places:
        return ""
    kind = "columns" if values.ndim == 2 else "channels"
    shown = ", ".join(f"{place}: {mean[place]:.3g} ± {scale[place]:.3g}" for place in places[:NAMED])
    more = ", ..." if len(places) > NAMED else ""
    return f"{len(places)} of {len(mean)} {kind} of `{name}` ({shown}{more})"
