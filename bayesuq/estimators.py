"""Estimators for scikit-learn: one table in, a posterior inside, and the rest of scikit-learn around it.

    BayesianRegressor("variational").fit(X, y).predict(X, return_std=True)

They go into pipelines, searches and cross-validation as others do. Inputs and targets are standardised inside, and
everything comes back in the targets' own units. Whatever else a predictive can tell is in `predictive(X)`.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from bayesuq import inference
from bayesuq.arrays import to_tensor, warn_of_other_order
from bayesuq.data import Dataset, Standardizer, rounding_scale
from bayesuq.inference.catalogue import BY_COMMAND, METHODS
from bayesuq.models import gp
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.models.likelihoods.real import HeteroscedasticNormal, Normal
from bayesuq.models.networks import Activation, mlp
from bayesuq.models.priors import HalfNormal
from bayesuq.models.priors import Normal as NormalPrior
from bayesuq.options import nearest
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.randomness import derive_seed

__all__ = ["BayesianClassifier", "BayesianRegressor"]
__dir__ = __all__.copy

DROPOUT = 0.1  # of a network that is fitted by dropout
MOST_FLOOR = 0.5  # standard deviations of y, of what rounding took from it
INITIAL, FIT, PREDICT = range(3)  # what an estimator's seed is split into
Array = np.ndarray[Any, Any]


@dataclass(eq=False, repr=False)
class _BayesianEstimator(BaseEstimator):
    """What both kinds share: the parameters, the table that is fitted, and the predictive."""

    method: str = "ensemble"
    _: KW_ONLY
    hidden: Sequence[int] = (50,)
    activation: Activation = "relu"
    prior_scale: float = 1.0
    clip: float | None = None
    num_samples: int | None = None
    options: Mapping[str, Any] | None = None
    random_state: Any = None

    @abstractmethod
    def _likelihood(self, rows: Dataset, *, of_network: bool) -> Likelihood:
        """That of a network, or of a process in its place, for these rows in standard units."""

    @abstractmethod
    def _num_outputs(self, columns: int) -> int:
        """Of a network, for targets of so many columns."""

    def predictive(self, X: Any) -> PredictiveDistribution:
        """The predictive distribution at rows (N, F), in units of y; its `to_pandas` is a table."""
        check_is_fitted(self)
        _check_unmasked(X=X)
        _check_numeric(X)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        x = self.standardizer_.inputs(to_tensor(X, "X"))
        seed = derive_seed(self.seed_, PREDICT)
        found = self.posterior_.predict(x, num_samples=self.num_samples, seed=seed)
        return self._named(self.standardizer_.inverse(found))

    def predict_frame(self, X: Any) -> Any:
        """What the predictive says of rows (N, F), a pandas DataFrame: see `PredictiveDistribution.to_pandas`.

        Its rows have the index of X, where that is a data frame, and its columns the names of labels, which are those
        that were fitted.
        """
        frame, index = self._frame(self.predictive(X)), getattr(X, "index", None)
        return frame if index is None or callable(index) else frame.set_axis(index, axis=0)

    def _frame(self, found: PredictiveDistribution) -> Any:
        """A predictive as a data frame."""
        return found.to_pandas()

    def _named(self, found: PredictiveDistribution) -> PredictiveDistribution:
        """With names of labels, where these are not 0 to C - 1."""
        return found

    def _fit(self, X: Array, y: Array, weight: Array | None) -> Self:
        """Fit rows (N, F) of y, (N, D) real or (N,) labels."""
        name = self._method()
        data = _distinct(X, y, weight)
        self.seed_ = int(check_random_state(self.random_state).randint(2**31))
        self.standardizer_ = Standardizer.fit(data, clip=self.clip)
        standard = self.standardizer_.transform(data)
        model: Any
        if name == "gp":
            model = gp.GaussianProcess(likelihood=self._likelihood(standard, of_network=False))
        else:
            net = mlp(
                X.shape[1],
                self.hidden,
                self._num_outputs(1 if y.ndim == 1 else y.shape[1]),
                DROPOUT if name == "dropout" else 0.0,
                activation=self.activation,
                seed=derive_seed(self.seed_, INITIAL),
            ).double()
            likelihood = self._likelihood(standard, of_network=True)
            model = BayesianNetwork(net, NormalPrior(scale=self.prior_scale), likelihood)
        fit = getattr(inference, name).fit
        self.posterior_: Posterior = fit(model, standard, seed=derive_seed(self.seed_, FIT), **(self.options or {}))
        return self

    def _method(self) -> str:
        """The module of the method, below `bayesuq.inference`.

        Raises:
            ValueError: No such method, or one that needs another posterior first.
        """
        alone = [method.name for method in METHODS if method.kind != "wrapper"]
        name = BY_COMMAND[self.method].name if self.method in BY_COMMAND else self.method
        if name in alone:
            return name
        if name in [method.name for method in METHODS]:
            raise ValueError(
                f"`method` must be fitted to data; {self.method!r} is fitted to a posterior and further rows. Take "
                f"another one here, and call bayesuq.inference.{name}.fit on its `posterior_`."
            )
        raise ValueError(f"There is no method {self.method!r}; {nearest(str(self.method), alone)}.")


@dataclass(eq=False, repr=False)
class BayesianRegressor(RegressorMixin, _BayesianEstimator):
    """Regression by a network under a posterior, or by a Gaussian process, as an estimator of scikit-learn.

    The rows that are fitted are a weighted set: their order does not matter, a whole-number weight is a row repeated,
    and the fit is the same for both to the last bit.

    Args:
        method: The posterior by its name, as "ensemble", "variational", "dropout", "laplace", "hmc" or "gp".
        hidden: Widths of the network's hidden layers.
        activation: Of the hidden layers.
        prior_scale: Standard deviation of the normal prior of each weight.
        clip: Standard deviations from its mean that a feature is held within, in training and in prediction; None
            holds none.
        heteroscedastic: Whether the network tells the noise of each row too, never below that of rounding where more
            than half of the targets repeat another one; else one noise is learned for all.
        num_samples: Draws of a prediction; None is as for `Posterior.predict`.
        options: Of the method's `fit`, such as {"num_epochs": 200}.
        random_state: A whole number makes fits repeatable.

    Attributes:
        posterior_: What the method found, in standard units.
        standardizer_: To and from these units.
        n_features_in_: F.

    Example:
        >>> X = np.linspace(-1.0, 1.0, 40)[:, None]
        >>> regressor = BayesianRegressor("gp", random_state=0).fit(X, 100.0 * X[:, 0])
        >>> mean, std = regressor.predict([[0.5]], return_std=True)
        >>> mean.round(), std.shape
        (array([50.]), (1,))
    """

    _: KW_ONLY
    heteroscedastic: bool = False

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit rows (N, F) and targets, (N,) or (N, D), each row counted by its weight, (N,)."""
        _check_unmasked(X=X, y=y)
        _check_numeric(X)
        warn_of_other_order(X, y)
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        self.is_single_ = y.ndim == 1
        return self._fit(X, np.asarray(y, np.float64).reshape(len(X), -1), _weights(sample_weight, X))

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Means, (N,) or (N, D) as y was; with `return_std` the standard deviations of y* beside them."""
        found = self._real(X)
        mean = self._like_y(found.mean)
        return (mean, self._like_y(found.std)) if return_std else mean

    def predict_interval(self, X: Any, level: float = 0.9) -> Array:
        """Lower and upper end of the central interval that holds y* with this probability, (N, 2) or (N, D, 2)."""
        ends = self._real(X).interval(level)
        return np.stack([self._like_y(end) for end in ends], axis=-1)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean log density of the targets, in nats a row, jointly over columns: the larger the better.

        A proper score, which asks for the right width too; `sklearn.metrics.r2_score` of `predict` is the usual one.
        """
        return _mean(self._real(X).log_prob(np.asarray(y, np.float64)), sample_weight)

    def _real(self, X: Any) -> RealPredictive:
        found: Any = self.predictive(X)
        return found

    def _like_y(self, values: Any) -> Array:
        array: Array = values.cpu().numpy()
        return array[:, 0] if self.is_single_ else array

    def _likelihood(self, rows: Dataset, *, of_network: bool) -> Likelihood:
        if self.heteroscedastic and of_network:
            return HeteroscedasticNormal(minimum_scale=min(rounding_scale(rows.y), MOST_FLOOR))
        return Normal(scale=self._scale(of_network))

    def _scale(self, of_network: bool) -> Any:
        kind = next(method.kind for method in METHODS if method.name == self._method())
        return HalfNormal() if of_network and kind == "chains" else "learned"  # chains draw it

    def _num_outputs(self, columns: int) -> int:
        return 2 * columns if self.heteroscedastic else columns

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.regressor_tags.poor_score = True  # a log density, which need not exceed the .5 that R^2 should
        return tags


@dataclass(eq=False, repr=False)
class BayesianClassifier(ClassifierMixin, _BayesianEstimator):
    """Classification by a network under a posterior, or by a Gaussian process, as an estimator of scikit-learn.

    See `BayesianRegressor` for the other parameters and for weights.

    Args:
        class_weight: By what the rows of each class are weighted: "balanced" lets all classes count alike, N / (C n_c)
            for a class that n_c of N rows have, in sums of weights where rows have any; or numbers by class, 1 for one
            that is not there. It moves the probabilities as far as it moves the data, so that they are no longer those
            of the classes' shares; None leaves both as they are.

    Attributes:
        classes_: The labels, sorted.
        posterior_: What the method found, on standardised inputs.
        standardizer_: To and from standard units.
        n_features_in_: F.

    Example:
        >>> X = np.linspace(-1.0, 1.0, 40)[:, None]
        >>> y = np.where(X[:, 0] > 0, "above", "below")
        >>> classifier = BayesianClassifier("map", options={"num_epochs": 300}, random_state=0).fit(X, y)
        >>> classifier.predict([[-0.9], [0.9]])
        array(['below', 'above'], dtype='<U5')
    """

    _: KW_ONLY
    class_weight: Mapping[Any, float] | Literal["balanced"] | None = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit rows (N, F) and labels of any kind, (N,), each row counted by its weight, (N,).

        Raises:
            ValueError: Labels of a single class; class weights of labels that are not there, or that are no weights.
        """
        _check_unmasked(X=X, y=y)
        _check_numeric(X)
        warn_of_other_order(X, y)
        X, y = validate_data(self, X, y, dtype=np.float64)
        _check_one_kind(y)
        check_classification_targets(y)
        weight = _weights(sample_weight, X)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        counting = numbers if weight is None else numbers[weight > 0]
        if len(np.unique(counting)) < 2:
            raise ValueError(
                f"`y` must have at least two classes; got one class, {self.classes_.tolist()[counting[0]]!r}."
            )
        return self._fit(X, numbers, self._with_classes(numbers, weight))

    def _with_classes(self, numbers: Array, weight: Array | None) -> Array | None:
        """The weights of the rows times those of their classes, (N,)."""
        if self.class_weight is None:
            return weight
        rows = np.ones(len(numbers)) if weight is None else weight
        if self.class_weight == "balanced":
            found = np.bincount(numbers, rows)
            classes = rows.sum() / (np.count_nonzero(found) * np.where(found > 0, found, 1.0))
        else:
            classes = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_[numbers])
        return _weights(rows * classes[numbers], numbers)

    def predict(self, X: Any) -> Array:
        """The most probable label of each row, (N,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Array:
        """Probability of each class, (N, C), in the order of `classes_`."""
        array: Array = self._labels(X).mean.cpu().numpy()
        return array

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean log probability of the labels, in nats a row: the larger the better.

        A proper score, which asks for right probabilities; `sklearn.metrics.accuracy_score` is the usual one.

        Raises:
            ValueError: A label that was not among those fitted.
        """
        found, labels = self._labels(X), np.asarray(y)
        unknown = ~np.isin(labels, self.classes_)
        if unknown.any():
            raise ValueError(
                f"`y` has the class {labels[unknown].tolist()[0]!r}, which is not one of those that were fitted."
            )
        places = torch.from_numpy(np.searchsorted(self.classes_, labels))  # a tensor, whose numbers are no names
        return _mean(found.log_prob(places), sample_weight)

    def _named(self, found: PredictiveDistribution) -> PredictiveDistribution:
        are_numbers = self.classes_.dtype.kind in "iuf"
        if not isinstance(found, CategoricalPredictive) or (
            are_numbers and np.array_equal(self.classes_, np.arange(len(self.classes_)))
        ):
            return found
        return found.named([str(int(label) if are_numbers else label) for label in self.classes_.tolist()])

    def _frame(self, found: PredictiveDistribution) -> Any:
        return found.to_pandas().assign(label=self.classes_[found.mean.max(dim=1).indices.cpu().numpy()])

    def _labels(self, X: Any) -> CategoricalPredictive:
        found: Any = self.predictive(X)
        return found

    def _likelihood(self, rows: Dataset, *, of_network: bool) -> Likelihood:  # noqa: ARG002 - labels are alike for all
        return Categorical()

    def _num_outputs(self, columns: int) -> int:  # noqa: ARG002 - of one column
        return len(self.classes_)


def _check_unmasked(**arrays: Any) -> None:
    """Refuse masked cells, whose mask scikit-learn drops without a word.

    Raises:
        ValueError: An array with some.
    """
    for name, array in arrays.items():
        if np.ma.is_masked(array):
            raise ValueError(
                f"`{name}` has masked cells. Fill them, as by scikit-learn's SimpleImputer, or drop the rows."
            )


def _check_numeric(X: Any) -> None:
    """Refuse columns of a data frame that hold words or dates.

    Raises:
        ValueError: With their names.
    """
    if not hasattr(X, "dtypes") or not hasattr(X, "items"):
        return
    odd = [repr(name) for name, cells in X.items() if cells.dtype.kind in "OUSTmM" and not _is_numeric(cells)]
    if odd:
        raise ValueError(
            f"Columns {', '.join(odd[:4])}{', ...' if len(odd) > 4 else ''} of `X` hold words or dates. Make numbers "
            "of them, as a ColumnTransformer with a OneHotEncoder does, or fit the file: bayesuq.read_table."
        )


def _is_numeric(cells: Any) -> bool:
    values = np.asarray(cells)  # of categories, what they are categories of
    if values.dtype.kind in "mM":
        return False
    try:
        values.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _check_one_kind(y: Array) -> None:
    """Refuse labels that are words and numbers, or missing, at once, which have no order.

    Raises:
        ValueError: With their kinds.
    """
    kinds = sorted({type(label).__name__ for label in y.tolist()}) if y.dtype.kind == "O" else []
    if "NoneType" in kinds or ("str" in kinds and len(kinds) > 1):
        raise ValueError(
            f"`y` must hold labels of one kind, all words or all numbers; got {' and '.join(kinds)}. Leave out the "
            "rows without a label, and write the others alike."
        )


def _weights(sample_weight: Any, X: Array) -> Array | None:
    """Checked weights, (N,), or None.

    Raises:
        ValueError: Of another shape, negative ones, or none above 0.
    """
    if sample_weight is None:
        return None
    given = np.full(len(X), sample_weight) if np.isscalar(sample_weight) else sample_weight
    weight: Array = check_array(given, dtype=np.float64, ensure_2d=False, input_name="sample_weight")
    if weight.shape != (len(X),):
        raise ValueError(f"`sample_weight` must have shape ({len(X)},), a weight for each row; got {weight.shape}.")
    if not (weight >= 0).all() or not (weight > 0).any():
        raise ValueError("`sample_weight` must hold weights of at least 0 that are not all zero.")
    return weight


def _distinct(X: Array, y: Array, weight: Array | None) -> Dataset:
    """The distinct rows, sorted, with their weights: of the same weighted set, the same data to the last bit."""
    counts = np.ones(len(X)) if weight is None else weight
    rows = np.column_stack([X, y])[counts > 0]
    distinct, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    total = np.bincount(place.ravel(), counts[counts > 0], minlength=len(distinct))
    targets = y[counts > 0][first]
    return Dataset(distinct[:, : X.shape[1]], targets, None if (total == 1).all() else total)


def _mean(log_probs: Any, sample_weight: Any) -> float:
    values = log_probs.cpu().numpy()
    weight = _weights(sample_weight, values)
    if weight is None:
        return float(values.mean())
    return float(np.average(values[weight > 0], weights=weight[weight > 0]))  # for 0 times -inf is NaN
