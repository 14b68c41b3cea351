"""A posterior over the rows of a table: it takes them as they stand in their file, and says how far they are from home.

The distance of a row is that to the nearest of up to 1,000 training rows, numbers counted in their standard deviations
and each word, or missing cell, that differs as 1 either way, so that two different words are sqrt(2) apart:

    d(x) = min_i |z(x) - z(x_i)| / q,

q being the distance that 95 % of training rows do not exceed to the nearest other one. Above 1 a row is unusual; at 5
it is five times as far away as the outermost twentieth of the training rows begins.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq import optional
from bayesuq.arrays import ArrayLike, check_fraction, column_names
from bayesuq.data import Dataset
from bayesuq.inference.posteriors.units import UnitsPosterior
from bayesuq.inference.posteriors.wrapping import WrappingPosterior
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.tables.encoding import Columns, Encoded, Notes
from bayesuq.to_arviz.groups import Drawn, Wanted
from bayesuq.windows import WindowOptions

__all__ = ["TablePosterior", "of_table"]
__dir__ = __all__.copy

MOST_REFERENCES = 1000  # training rows that are kept
USUAL = 0.95  # share of training rows within distance 1
SAME = 1e-6  # of the usual distance: nearer rows are one row
ROWS = 1000  # whose distances are computed together


def of_table(posterior: UnitsPosterior, columns: Columns, train: Dataset) -> "TablePosterior":
    """The same posterior for the rows of a table: data frames with the columns of its file, in any order.

    Args:
        posterior: With its units, as of `bayesuq.in_units`.
        columns: What the fitted columns are, from `Table.split`.
        train: The rows that were fitted, in raw units.

    Raises:
        TypeError: A posterior without units, or no columns of a table.
        ValueError: Rows of another table.

    Example:
        >>> posterior = bq.of_table(bq.in_units(fitted, units), columns, split.train)  # doctest: +SKIP
        >>> posterior.save("houses.safetensors")  # doctest: +SKIP
        >>> bq.load("houses.safetensors").answers(pandas.read_csv("new.csv"))  # doctest: +SKIP
    """
    if not isinstance(posterior, UnitsPosterior):
        raise TypeError(
            f"`posterior` must have its units; got {type(posterior).__name__}. Pass bayesuq.in_units(posterior, units)."
        )
    if not isinstance(columns, Columns):
        raise TypeError(f"`columns` must be those of a table, from `Table.split`; got {type(columns).__name__}.")
    if train.x.ndim != 2 or train.x.shape[1] != len(columns.features):
        raise ValueError(f"`train` must have the {len(columns.features)} inputs of the table; got {train!r}.")
    reference = _reference(train, columns, posterior)
    far = torch.cat([part.topk(2, dim=1, largest=False).values[:, 1] for part in _distances(reference, reference)])
    typical = float(far.quantile(USUAL))
    return TablePosterior(
        posterior=posterior, columns=columns, reference=reference, typical=typical if typical > 0 else 1.0
    )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TablePosterior(WrappingPosterior):
    """A posterior over the rows of a table; `to_arviz` takes them as inputs, as `Table.data` has them.

    Attributes:
        posterior: Over their inputs, with its units.
        columns: What the columns are, and how cells become inputs.
        reference: Training rows that distances are measured from, (M, D).
        typical: The distance that 95 % of training rows do not exceed.
    """

    posterior: Posterior
    columns: Columns
    reference: Tensor
    typical: float
    changes_functions: ClassVar[bool] = False

    def by_name(self, x: Any) -> Any:
        """Rows of a data frame as inputs, (N, D), encoded as those of the table were; anything else as it is."""
        return self.columns.encode(x).x if column_names(x) is not None else x

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
        differentiable: bool = False,
        **windows: Unpack[WindowOptions],
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D) of rows, in units of y and with the names of its labels.

        Rows come as a data frame with the fitted columns; or as inputs, (N, D), as `Table.data` has them. See
        `Posterior.predict` for the rest.
        """
        found = self.posterior.predict(
            self.by_name(x),
            num_samples=num_samples,
            seed=seed,
            keep_samples=keep_samples,
            differentiable=differentiable,
            **windows,
        )
        return self._named(found)

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: that of the posterior underneath, with the names of its labels."""
        inner = self.posterior.drawn(wanted)
        return replace(
            inner,
            method=type(self).__name__,
            predict=lambda x, **options: self._named(inner.predict(x, **options)),
            prior_predict=lambda x, *args, **options: self._named(inner.prior_predict(x, *args, **options)),
        )

    def was_fitted_to(self, train: Dataset) -> bool:
        """Whether these are the rows that it was fitted to, as far as those that it kept tell."""
        if train.x.shape[1] != self.reference.shape[1]:
            return False
        rows = _reference(train, self.columns, self.posterior)
        return rows.shape == self.reference.shape and torch.allclose(rows, self.reference.to(rows))

    def share_fitted(self, data: Dataset) -> float:
        """The share of the training rows that it kept, up to 1,000, which stand among these rows as they are."""
        rows = _coordinates(data.x.double(), self.columns, self.posterior).to(self.reference)
        nearest = torch.cat([part.amin(dim=1) for part in _distances(self.reference, rows)])
        return float((nearest < SAME * self.typical).double().mean())

    def distance(self, frame: Any) -> Tensor:
        """How far rows are from the training data, (N,): above 1 further than 95 % of the training rows are."""
        return self._distance(self.columns.encode(frame))

    def answers(
        self,
        frame: Any,
        *,
        level: float = 0.9,
        num_samples: int | None = None,
        seed: int | None = None,
        notes: Notes | None = None,
    ) -> Any:
        """What is predicted of each row, under the name of the target.

        Of numbers: `<target>_mean`, its standard deviation `_sd` with the parts `_sd_aleatoric` and `_sd_epistemic`,
        and the ends `_lower_90` and `_upper_90` of the central interval, all in the target's units. Of labels: the most
        probable one, the probability `<target>_p_<label>` of each, and the uncertainty `_entropy` with the parts
        `_entropy_aleatoric` and `_entropy_epistemic`, in nats. Then `distance`, which is above 1 for rows further from
        the training data than 95 % of these are.

        Args:
            frame: Rows, a data frame with the fitted columns in any order.
            level: Probability of the interval.
            num_samples: Draws, as for `predict`.
            seed: Of the draws.
            notes: Where to remark cells that were never seen so.

        Returns:
            A pandas DataFrame of as many rows, with the index of `frame`.

        Raises:
            TypeError: No data frame.
            ValueError: A column is missing, infinite numbers; a level outside (0, 1).
        """
        check_fraction(level, "level")
        encoded = self.columns.encode(frame, notes=notes)
        found = self._named(self.posterior.predict(encoded.x, num_samples=num_samples, seed=seed))
        name = self.columns.target.name
        cells = _of_real(found, level) if isinstance(found, RealPredictive) else _of_labels(found)
        told = {f"{name}{ending}": values for ending, values in cells.items()} | {"distance": self._distance(encoded)}
        columns = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in told.items()}
        return optional.pandas.DataFrame(columns, index=frame.index)

    def facts(self) -> dict[str, str]:
        """What a notebook shows of it, by name."""
        columns = ", ".join(self.columns.used)
        return {"predicts": self.columns.target.name, "from": columns} | super().facts()

    def _named(self, found: PredictiveDistribution) -> PredictiveDistribution:
        classes = self.columns.target.classes
        return found.named(classes) if classes and isinstance(found, CategoricalPredictive) else found

    def _distance(self, encoded: Encoded) -> Tensor:
        rows = _coordinates(encoded.x, self.columns, self.posterior)
        nearest = torch.cat([part.amin(dim=1) for part in _distances(rows, self.reference.to(rows))])
        return (nearest.square() + encoded.unknown).sqrt() / self.typical


def _reference(train: Dataset, columns: Columns, posterior: Any) -> Tensor:
    """Evenly spread training rows that distances are measured from, (M, D)."""
    places = torch.linspace(0, len(train) - 1, min(len(train), MOST_REFERENCES)).long()
    return _coordinates(train.x.double(), columns, posterior)[places]


def _coordinates(x: Tensor, columns: Columns, posterior: Any) -> Tensor:
    """Inputs for distances, (N, D): numbers in standard deviations, what is 0 or 1 as it is."""
    units = posterior.standardizer
    scale = torch.where(columns.is_flag, 1.0, units.x_scale.to(x.device))
    return (x - units.x_loc.to(x)) / scale.to(x)


def _distances(rows: Tensor, reference: Tensor) -> Iterator[Tensor]:
    """Of some rows at a time to all of the reference."""
    for some in rows.split(ROWS):
        yield torch.cdist(some, reference)


def _of_real(found: RealPredictive, level: float) -> dict[str, Tensor]:
    lower, upper = found.interval(level)
    parts = {} if found.without_split else {"_aleatoric": found.aleatoric, "_epistemic": found.epistemic}
    percent = f"{100 * level:g}"
    cells = {
        "_mean": found.mean,
        "_sd": found.std,
        **{f"_sd{part}": variance.sqrt() for part, variance in parts.items()},
        f"_lower_{percent}": lower,
        f"_upper_{percent}": upper,
    }
    return {name: values[:, 0].cpu() for name, values in cells.items()}


def _of_labels(found: PredictiveDistribution) -> dict[str, Any]:
    table = found.to_pandas()
    ends = {"label": "", "total": "_entropy", "aleatoric": "_entropy_aleatoric", "epistemic": "_entropy_epistemic"}
    return {ends.get(name, f"_{name}"): table[name].to_numpy() for name in table}
