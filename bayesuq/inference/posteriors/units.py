"""A posterior that carries its units: raw inputs go in, and what comes out is in the units of y.

    units = bayesuq.Standardizer.fit(data)
    posterior = bayesuq.in_units(variational.fit(model, units.transform(data)), units)
    posterior.save("prices.safetensors")  # and bayesuq.load reads it with its units, from one file

The standardizer says how: x is centred and divided by its scale before the posterior sees it, and the predictive of
standard units is read as loc + scale * y*, its density with the Jacobian.
"""

from dataclasses import dataclass, replace
from typing import Any, Unpack

from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.columns import ordered
from bayesuq.data import Batch, Dataset, Standardizer
from bayesuq.functions import Functions
from bayesuq.inference.posteriors.prediction import differentiated
from bayesuq.inference.posteriors.wrapping import WrappingPosterior, check_fitted
from bayesuq.loaders import Loader
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.to_arviz.groups import Drawn, Predict, Wanted
from bayesuq.windows import WindowOptions

__all__ = ["UnitsPosterior", "in_units"]
__dir__ = __all__.copy


def in_units(posterior: Posterior, standardizer: Standardizer) -> "UnitsPosterior":
    """The same posterior with its units: `predict` then takes raw inputs and answers in units of y.

    Args:
        posterior: Of any method, fitted to `standardizer.transform(data)`; it stays as it is.
        standardizer: That one.

    Raises:
        TypeError: No posterior, or no standardizer; a posterior that has its units already.

    Example:
        >>> import bayesuq as bq
        >>> data = bq.Dataset([[30e3], [50e3], [70e3], [90e3]], [110.0, 205.0, 290.0, 405.0])
        >>> units = Standardizer.fit(data)
        >>> fitted = bq.inference.gp.fit(bq.models.gp.GaussianProcess(), units.transform(data), seed=0)
        >>> in_units(fitted, units).predict([[60e3]]).mean.round(decimals=-1)
        tensor([[250.]], dtype=torch.float64)
    """
    check_fitted(posterior)
    if isinstance(posterior, UnitsPosterior):
        raise TypeError("`posterior` has its units already. Pass the one that was fitted, its `.posterior`.")
    if not isinstance(standardizer, Standardizer):
        raise TypeError(
            f"`standardizer` must be a bayesuq.Standardizer, by which the fitted data were transformed; got "
            f"{type(standardizer).__name__}."
        )
    return UnitsPosterior(posterior=posterior, standardizer=standardizer)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class UnitsPosterior(WrappingPosterior):
    """A posterior that takes raw inputs and answers in units of y.

    Attributes:
        posterior: As it was fitted, in standard units.
        standardizer: To and from these.
    """

    posterior: Posterior
    standardizer: Standardizer

    def by_name(self, x: Any) -> Any:
        """Inputs, or a Dataset, in the standardizer's order of columns: see `Posterior.by_name`."""
        return ordered(x, self.standardizer.columns)

    def as_fitted(self, x: Any) -> Any:
        """Inputs, or a loader of them, in standard units: see `Posterior.as_fitted`."""
        return self.posterior.as_fitted(self._standard(x))

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
        """The predictive distribution p(y* | x, D) at raw inputs, in units of y: see `Posterior.predict`.

        A data frame is read by the names of its columns, where the fitted data had names.
        """
        with differentiated(x, differentiable=differentiable):
            predictive = self.posterior.predict(
                self._standard(x),
                num_samples=num_samples,
                seed=seed,
                keep_samples=keep_samples,
                differentiable=differentiable,
                **windows,
            )
        return self.standardizer.inverse(predictive)

    def functions(
        self, x: ArrayLike, *, num_samples: int | None = None, seed: int | None = None, differentiable: bool = False
    ) -> Functions:
        """Joint draws of functions at raw inputs, in units of y: see `Posterior.functions`."""
        with differentiated(x, differentiable=differentiable):
            found = self.posterior.functions(
                self._standard(x), num_samples=num_samples, seed=seed, differentiable=differentiable
            )
        loc, scale = self.standardizer.y_loc, self.standardizer.y_scale
        if loc is None or scale is None:
            return found
        loc, scale = loc.to(found.mean.device), scale.to(found.mean.device)
        covariance = found.covariance
        if covariance is not None:
            covariance = covariance * scale[:, None, None] * scale
        return Functions(loc + scale * found.draws, loc + scale * found.mean, covariance)

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: weights as they were fitted, and functions of raw inputs in units of y."""
        inner = self.posterior.drawn(wanted)
        return replace(
            inner,
            method=type(self).__name__,
            predict=self._in_units(inner.predict),
            prior_predict=self._in_units(inner.prior_predict),
        )

    def _standard(self, x: Any) -> Any:
        """Inputs, or a loader of them, in standard units."""
        loader = Loader.of(x)
        if loader is None:
            return x if isinstance(x, Dataset) else self.standardizer.inputs(x)  # which the posterior refuses

        def batch(item: Any) -> Batch:
            return Batch(self.standardizer.inputs(loader.inputs_of(item)), None)  # type: ignore[arg-type]

        return Loader(loader.loader, batch=batch)

    def _in_units(self, predict: Any) -> Predict:
        def predicted(x: Any, *args: Any, **options: Any) -> PredictiveDistribution:
            return self.standardizer.inverse(predict(self.standardizer.inputs(x), *args, **options))

        return predicted
