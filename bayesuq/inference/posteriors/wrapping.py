"""What posteriors share that stand on another one: they keep it as it is, and read it in another way."""

from dataclasses import replace
from os import PathLike
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.data import Dataset
from bayesuq.functions import Functions
from bayesuq.inference.posteriors.network import StoredPosterior
from bayesuq.inference.posteriors.packing import save
from bayesuq.inference.posteriors.prediction import differentiated
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.to_arviz.groups import Drawn, Wanted
from bayesuq.windows import WindowOptions


class WrappingPosterior(StoredPosterior):
    """A posterior on another one, its field `posterior`: it predicts as that does, unless it says otherwise."""

    posterior: Posterior
    changes_functions: ClassVar[bool] = True  # whether a draw's E[y | x] is another than underneath

    @property
    def model(self) -> BayesianNetwork:
        """The joint density of the posterior underneath."""
        return self.posterior.model  # type: ignore[attr-defined]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.posterior.device

    def by_name(self, x: Any) -> Any:
        """Inputs, or a Dataset, as the posterior underneath reads them: see `Posterior.by_name`."""
        return self.posterior.by_name(x)

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
        """The predictive distribution p(y* | x, D) of the posterior underneath: see `Posterior.predict`."""
        with differentiated(x, differentiable=differentiable):
            return self.posterior.predict(x, num_samples=num_samples, seed=seed, keep_samples=keep_samples, **windows)

    def fixed_draws(self, num_samples: int | None = None, *, seed: int | None = None) -> Self:
        """The same around fixed draws of the posterior underneath: see `Posterior.fixed_draws`."""
        return replace(self, posterior=self.posterior.fixed_draws(num_samples, seed=seed))  # type: ignore[call-arg]

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: that of the posterior underneath."""
        return replace(self.posterior.drawn(wanted), method=type(self).__name__)

    def functions(
        self, x: ArrayLike, *, num_samples: int | None = None, seed: int | None = None, differentiable: bool = False
    ) -> Functions:
        """Those of the posterior underneath, where this one leaves them as they are: see `Posterior.functions`.

        Raises:
            ValueError: It reads their values in another way.
        """
        if self.changes_functions:
            raise ValueError(
                f"A {type(self).__name__} changes what is predicted of each row, and has no functions of its own. "
                "Those underneath are `posterior.posterior.functions(x)`."
            )
        return self.posterior.functions(x, num_samples=num_samples, seed=seed, differentiable=differentiable)

    def facts(self) -> dict[str, str]:
        """What a notebook shows of it, by name."""
        return {"around": type(self.posterior).__name__} | self.posterior.facts()

    def save_around(self, outer: Posterior, path: "str | PathLike[str]") -> None:
        """Write a posterior that stands on this one, with the model underneath, a network or a process."""
        around = self.posterior.save_around if isinstance(self.posterior, StoredPosterior) else save
        around(outer, path)


def row_weights(rows: Dataset) -> Tensor:
    """What each held-out row counts, (N,), float64; 1 where nothing was said, 0 where its targets are missing.

    Raises:
        ValueError: Weights that differ between the targets of a row; no row that counts.
    """
    if rows.weight is None:
        return torch.ones(len(rows), dtype=torch.float64)
    flat = rows.weight.detach().cpu().double().reshape(len(rows), -1)
    uneven = (flat != flat[:, :1]).any(dim=1).nonzero().flatten()
    if len(uneven):
        raise ValueError(
            f"Held-out rows are judged whole, and `weight` differs between the targets of {len(uneven)} of them, first "
            f"of row {int(uneven[0])}. Leave rows with missing targets out, by `data.rows(...)`."
        )
    if not bool((flat > 0).any()):
        raise ValueError("No held-out row counts: every `weight` is 0. Pass rows whose targets are known.")
    return flat[:, 0]


def check_fitted(posterior: object) -> None:
    """Refuse what is no posterior, such as the model in its place.

    Raises:
        TypeError: It has no `predict`.
    """
    if not hasattr(posterior, "predict"):
        raise TypeError(
            f"`posterior` must be a fitted one; got {type(posterior).__name__}. Pass what a fit gives, such as "
            "`map_estimate.fit(model, data)`."
        )
