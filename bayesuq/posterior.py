"""The posterior q(theta | D): what every inference method returns, and what a user asks for predictions."""

from abc import ABC, abstractmethod
from os import PathLike
from typing import Any, ClassVar, Self, Unpack

import torch
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.functions import Functions
from bayesuq.notebook import table
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.summary import Summary, summarise
from bayesuq.to_arviz.container import Container
from bayesuq.to_arviz.groups import Drawn, Wanted, export
from bayesuq.windows import WindowOptions

__all__ = ["Posterior"]
__dir__ = __all__.copy


class Posterior(ABC):
    """A fitted posterior approximation: a value, never changed by predicting.

    Its random numbers depend on the seed of each call alone, so predicting from several threads is safe.
    """

    draws_are: ClassVar[str] = "functions at the rows that are asked for"  # of what are no sets of weights

    def __repr__(self) -> str:
        return f"{type(self).__name__}(on {self.device})"

    def _repr_html_(self) -> str:
        return table(type(self).__name__, ("", ""), self.facts().items())

    def facts(self) -> dict[str, str]:
        """What a notebook shows of it, by name."""
        return {"device": str(self.device)}

    def by_name(self, x: Any) -> Any:
        """Inputs, or a Dataset, with the columns in their fitted order, where they have names and the fitted ones had.

        Every method of a posterior that takes `x` reads data frames so.

        Raises:
            ValueError: Columns that are missing, or that the fitted data did not have.
        """
        return x

    def as_fitted(self, x: Any) -> Any:
        """Inputs, or a loader of them, as the network or process underneath was fitted to them: in its units."""
        return self.by_name(x)

    @abstractmethod
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
        """The predictive distribution p(y* | x, D).

        Images too large for one pass are predicted in windows: one draw of weights or masks sees all windows of an
        image, their class probabilities are blended in that draw, and memory for activations is that of a window. See
        `bayesuq.windows` for when that is the prediction of the whole.

        Args:
            x: Inputs, (N, ...), or a DataLoader whose batches are inputs, or begin with them. Its batches come in
                order. A data frame is read by the names of its columns, where the fitted data had names.
            num_samples: S, the number of draws. None takes all members of a posterior that stores them, 100 draws
                of one that does not. A posterior of M members asked for fewer takes an even thinning without
                replacement, asked for more takes all.
            seed: The same seed gives the same draws whatever the chunks, batches and threads. None draws one from
                torch's global generator.
            keep_samples: Whether the draws of class probabilities stay available one by one, and all draws of real
                targets are held; O(S N C) memory. Without it, beyond 2^28 numbers (rows x draws x columns: 1 GiB) of
                real targets some draws are held, by an even thinning, which a warning tells: mean and variances are
                then of all draws, log scores, quantiles and CRPS of those held.
            differentiable: Whether what the predictive gives (mean, variances and uncertainties, log scores, quantiles
                of Gaussian mixtures) has gradients in x, which must ask for them: `x.requires_grad_()`. The graph of
                all draws is kept, in memory that grows with them.
            window: Pixels of a window along each axis of images (N, channels, ...), or one number for all axes; where
                an image has fewer it is cut short. None predicts images whole.
            overlap: Of neighbouring windows, a share of their sides in [0, 1); default 0.5.
            blend: "gaussian" (the default) trusts the middle of a window most, "constant" all of it alike.
            margin: Pixels at the cut edges of a window that do not count, where others cover them; default 0.

        Returns:
            The mixture over draws, on the device that x is on (for a loader: the posterior's).

        Raises:
            TypeError: Inputs that are not numbers, counts that are not whole; a loader, for gradients; inputs of
                several parts, for windows.
            ValueError: Inputs that are not finite, of a shape that the network does not take; counts below 1;
                windows of what is not predicted at the pixels of images, or that leave pixels out;
                for gradients, inputs that do not ask for them.
        """

    def functions(
        self, x: ArrayLike, *, num_samples: int | None = None, seed: int | None = None, differentiable: bool = False
    ) -> Functions:
        """Draws of E[y | x] at all rows together, with their covariance where it has a closed form.

        `predict` is of each row by itself, and a mask of dropout or a function of a process need not be the same from
        one row to the next. Here each draw is one function: equal rows get equal values.

        Args:
            x: Inputs, (N, ...).
            num_samples: S, as for `predict`.
            seed: As for `predict`.
            differentiable: As for `predict`.

        Returns:
            Values (S, N, D), of labels (S, N, C); O(S N D) memory. Of a process O(N^3) time.

        Raises:
            TypeError: See `predict`.
            ValueError: See `predict`; a posterior whose draws are not those of functions.

        Example:
            >>> from bayesuq.data import Dataset
            >>> from bayesuq.inference import gp
            >>> from bayesuq.models.gp import GaussianProcess
            >>> posterior = gp.fit(GaussianProcess(), Dataset([[0.0], [1.0], [2.0]], [0.0, 0.5, 0.9]), seed=0)
            >>> found = posterior.functions([[0.5], [0.5], [9.0]], num_samples=4, seed=0)
            >>> found.draws.shape, found.covariance.shape
            (torch.Size([4, 3, 1]), torch.Size([3, 1, 3, 1]))
        """
        asked = self.predict(x, num_samples=num_samples, seed=seed, keep_samples=True, differentiable=differentiable)
        return Functions.of(asked)

    def fixed_draws(self, num_samples: int | None = None, *, seed: int | None = None) -> "Posterior":  # noqa: ARG002
        """A posterior of some draws of the weights, which are made once and kept.

        It predicts the bits that this one does at the same number of draws and seed, in each call, and need not draw
        again: at few rows that is most of the time. It is saved, moved and written to ONNX as others are. Draws of
        chains become draws alone, without the chain that each was of.

        Args:
            num_samples: S, as for `predict`.
            seed: As for `predict`.

        Raises:
            TypeError: See `predict`.
            ValueError: See `predict`; a posterior whose draws are no sets of weights.

        Example:
            >>> posterior = bq.inference.variational.fit(model, data, seed=0)  # doctest: +SKIP
            >>> kept = posterior.fixed_draws(100, seed=0)                      # doctest: +SKIP
            >>> kept.predict(x).mean                                           # doctest: +SKIP
        """
        raise ValueError(
            f"The draws of a {type(self).__name__} are {self.draws_are}: there are no sets of weights to keep."
        )

    def to_arviz(
        self,
        x: ArrayLike | None = None,
        y: ArrayLike | None = None,
        *,
        new_x: ArrayLike | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
        num_prior_samples: int = 100,
        include_weights: bool = True,
    ) -> Container:
        """Its draws under the names that ArviZ's users expect, for `arviz` and `xarray` to read, plot and store.

        The groups are `posterior` (every site by name), `prior`, and of chains `sample_stats` and
        `warmup_sample_stats`. With `x` and `y` also `posterior_predictive`, `log_likelihood` (of every draw and row, in
        nats), `observed_data`, `constant_data` and `prior_predictive`; with new inputs, `predictions` and
        `predictions_constant_data`. E[y* | x, draw] is the variable `mu` (labels: the class probabilities `p`, whose
        coordinate has the names of the classes where the posterior knows some) beside the sites at `x`, and beside the
        predicted `y` at new inputs. The observed site is `y`; of labels it holds the places of their classes.

        Draws of another method than chains are independent: they stand in one chain, marked by the attribute
        `independent_draws`, and their R-hat says nothing. Hyperparameters of a process that have one value each are the
        attribute `hyperparameters`, in JSON and natural units. O(S (P + N C)) memory.

        Args:
            x: Inputs, (N, ...): of observed rows where `y` is given, else new ones.
            y: Their targets.
            new_x: Further inputs without targets, (M, ...).
            num_samples: S, as for `predict`; chains are thinned evenly and stay equally long.
            seed: The draws are those of `predict` and `sample_weights` at the same seed.
            num_prior_samples: Draws from the prior; 0 leaves it out.
            include_weights: Whether the sites are told, too, and not only functions of x.

        Returns:
            `arviz.InferenceData` on ArviZ 0.x, `xarray.DataTree` on 1.x.

        Raises:
            ImportError: ArviZ or xarray cannot be imported.
            TypeError: See `predict`; targets of another kind than the likelihood's.
            ValueError: See `predict`; targets that do not fit `x`; no inputs where a draw is no set of weights.

        Warns:
            UserWarning: The prior is so wide that its predictive is not finite, and left out.
        """
        wanted = Wanted.of(
            self.by_name(x),
            y,
            new_x=self.by_name(new_x),
            num_samples=num_samples,
            seed=seed,
            num_prior_samples=num_prior_samples,
            include_weights=include_weights,
        )
        return export(self.drawn(wanted), wanted)

    def summary(self, *, num_samples: int | None = None, seed: int | None = None) -> Summary:
        """Mean, spread and quantiles of its parameters in natural units, under the names of the model's sites.

        Of a process they are its hyperparameters: lengthscales, not their logarithms. A layer of many weights takes
        one line. Of chains R-hat is told.

        Args:
            num_samples: Draws, as for `predict`.
            seed: Of the draws.

        Raises:
            ValueError: A posterior whose draws are no sets of parameters.

        Example:
            >>> from bayesuq.data import Dataset
            >>> from bayesuq.inference import gp
            >>> from bayesuq.models.gp import RBF, GaussianProcess, Scale
            >>> data = Dataset([[0.0], [1.0], [2.0], [3.0]], [0.0, 0.5, 0.9, 1.0])
            >>> gp.fit(GaussianProcess(Scale(RBF())), data, seed=0).summary()["kernel.base_kernel.lengthscale"].sd
            0.0
        """
        asked = Wanted.of(
            None,
            None,
            new_x=None,
            num_samples=num_samples,
            seed=seed,
            num_prior_samples=0,
            include_weights=True,
        )
        drawn = self.drawn(asked)
        return summarise(drawn.weights or drawn.points, drawn.num_chains)

    @abstractmethod
    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same posterior on another device."""

    @abstractmethod
    def save(self, path: "str | PathLike[str]") -> None:
        """Write it to one file, which `bayesuq.load` reads; the file replaces an older one only when it is complete.

        Raises:
            OSError: The folder does not exist or cannot be written.
        """
