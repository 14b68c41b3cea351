"""GPyTorch's own models as posteriors: an `ExactGP` or `ApproximateGP` with its likelihood, trained or not.

    posterior = bayesuq.adopt(model)                      # an ExactGP, which holds its likelihood
    posterior = bayesuq.adopt(model, likelihood)          # an ApproximateGP, and GPyTorch's likelihood of it
    posterior = gp.fit(model, data)                       # trained from where it stands, or from where it was adopted

An exact model whose `forward` is no more than its mean and its kernel becomes an `ExactGpPosterior`, computed in
float64, which is saved, conditioned on further rows and fitted as the package's own. Any other one stays what it is:
GPyTorch predicts, and the predictive is made of that.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from typing import Any, NoReturn, Self, Unpack

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, as_real, as_targets, check_count, check_device, check_inputs
from bayesuq.functions import Functions
from bayesuq.gradients import unless_kept
from bayesuq.inference.gp.exact import ExactGpPosterior, evaluated
from bayesuq.inference.gp.posterior import by_rows, draw_jointly, no_sites
from bayesuq.inference.gp.sparse_posterior import updated_law
from bayesuq.inference.posteriors.prediction import differentiated, draw_indices, predict_batches
from bayesuq.inference.training.history import UNTRAINED
from bayesuq.models.gp.process import FunctionPrior, GaussianProcess
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.models.likelihoods.real import Normal
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive
from bayesuq.randomness import generator, isolated, resolve_seed
from bayesuq.to_arviz.groups import Drawn, Wanted
from bayesuq.windows import WindowOptions, refuse_windows

NO_NOISE = 1e-6  # a scale, where the noise of each row is known and new rows have none
CACHE = "_memoize_cache"  # where GPyTorch's modules keep what they computed
PROBES = 5  # rows at which `forward` is held against mean and kernel
NUM_PLACES = 1000  # of f, whose share of ones is then right to about 1e-6
NORMAL = (
    gpytorch.likelihoods.GaussianLikelihood,
    gpytorch.likelihoods.FixedNoiseGaussianLikelihood,
    gpytorch.likelihoods.MultitaskGaussianLikelihood,
)
DIRICHLET = gpytorch.likelihoods.DirichletClassificationLikelihood  # of labels, by normal targets that stand for them


def is_process(model: object) -> bool:
    """Whether a module is one of GPyTorch's models."""
    return isinstance(model, gpytorch.models.GP)


def adopt_process(model: Any, likelihood: Any = None) -> "ExactGpPosterior | GpytorchPosterior":
    """The posterior that a model of GPyTorch's is.

    Args:
        model: An `ExactGP` with its training data, or an `ApproximateGP`; it stays as it is.
        likelihood: GPyTorch's, of an `ApproximateGP`; an `ExactGP` holds its own.

    Raises:
        TypeError: A likelihood that is not GPyTorch's, or none where it is needed; another kind of model.
        ValueError: An `ExactGP` without training data, or with other inputs for each output.
    """
    own = _likelihood(model, likelihood)
    if not isinstance(model, gpytorch.models.ExactGP) or not _is_plain(model, own):
        if isinstance(own, DIRICHLET):
            raise TypeError("With a DirichletClassificationLikelihood `forward` must be the mean and the kernel alone.")
        return GpytorchPosterior(_begun(copied(model)), copied(own))
    process, x, y = process_of(model), _training_rows(model), model.train_targets.detach().double()
    y = torch.atleast_2d(y)
    prior = process.build(x, len(y))
    prior.load(prior.state() | _log_scale(own, prior))
    noise = own.noise.detach().double().reshape(-1, 1) if _is_learned(own) else _known_noise(own)
    noise = noise.expand_as(y).masked_fill(y.isnan(), torch.inf)  # NaN is how GPyTorch says that one is missing
    posterior = ExactGpPosterior(
        model=process,
        hyperparameters=prior.state(),
        x=x,
        y=y.nan_to_num(0.0),
        noise=noise,
        log_marginal_likelihood=math.nan,
        history=UNTRAINED,
        approximation="dirichlet" if isinstance(own, DIRICHLET) else "exact",
    )
    return evaluated(posterior)


def process_of(model: Any) -> GaussianProcess:
    """The prior over functions and the likelihood of an `ExactGP`, for `gp.fit`; hyperparameters start where they are.

    Priors that are registered in GPyTorch's modules are not taken over.

    Raises:
        TypeError: Not an `ExactGP`, a likelihood that is not normal, or a `forward` that does more than its mean and
            its kernel.
    """
    if not isinstance(model, gpytorch.models.ExactGP) or not _is_plain(model, model.likelihood):
        raise TypeError(
            "`model` must be a GPyTorch ExactGP with a GaussianLikelihood whose `forward` is "
            "`MultivariateNormal(self.mean_module(x), self.covar_module(x))`, or a bayesuq.models.gp.GaussianProcess; "
            f"got {type(model).__name__}. Give its kernel: GaussianProcess(model.covar_module, likelihood=...), a "
            "network before it as Deep(net, kernel); or train it with GPyTorch and call `bayesuq.adopt`."
        )
    likelihood: Likelihood
    if isinstance(model.likelihood, DIRICHLET):
        likelihood = Categorical()
    elif _is_learned(model.likelihood):
        likelihood = Normal(per_column=model.likelihood.noise.numel() > 1)
    else:
        likelihood = Normal(scale=max(_second_noise(model.likelihood) ** 0.5, NO_NOISE))
    kernel, mean = (copy.deepcopy(part).double() for part in (model.covar_module, model.mean_module))
    return GaussianProcess(kernel, mean, likelihood)


def _likelihood(model: Any, given: Any) -> Any:
    found = getattr(model, "likelihood", None) if given is None else given
    if not isinstance(found, gpytorch.likelihoods.Likelihood):
        raise TypeError(
            "A GPyTorch model is adopted with the GPyTorch likelihood that it was trained with: "
            f"`adopt(model, likelihood)`; got {type(found).__name__}."
        )
    if isinstance(model, gpytorch.models.ExactGP) and model.train_inputs is None:
        raise ValueError("`model` has no training data, so it is no posterior yet. Fit it: `gp.fit(model, data)`.")
    return found


def _is_plain(model: Any, likelihood: Any) -> bool:
    """Whether a model is N(mean(x), kernel(x)) with normal noise, as its rows show."""
    kernel, mean = getattr(model, "covar_module", None), getattr(model, "mean_module", None)
    is_normal = isinstance(likelihood, NORMAL[:2])
    if not is_normal or not isinstance(kernel, gpytorch.kernels.Kernel) or not isinstance(mean, gpytorch.means.Mean):
        return False
    if model.train_inputs is None:
        return True
    if len(model.train_inputs) != 1 or model.train_targets.ndim > 2:
        return False
    with torch.no_grad():
        rows = _training_rows(model)[:PROBES].to(next(model.parameters()).dtype)
        prior = model.forward(rows)
        if isinstance(prior, MultitaskMultivariateNormal):
            return False
        same_mean = torch.allclose(prior.mean, mean(rows).expand_as(prior.mean))
        own = kernel(rows).to_dense().expand_as(prior.covariance_matrix)
        return same_mean and torch.allclose(prior.covariance_matrix, own, rtol=1e-5, atol=1e-8)


def _training_rows(model: Any) -> Tensor:
    """(N, D), float64; GPyTorch repeats them for each output.

    Raises:
        ValueError: They differ between outputs.
    """
    x = model.train_inputs[0].detach().double()
    if x.ndim > 2 and bool((x != x[:1]).any()):
        raise ValueError("The outputs of `model` have training inputs of their own. Adopt a model of each output.")
    return x if x.ndim == 2 else x[0]


def _is_learned(likelihood: Any) -> bool:
    return isinstance(likelihood, gpytorch.likelihoods.GaussianLikelihood)


def _log_scale(likelihood: Any, prior: FunctionPrior) -> dict[str, Tensor]:
    """Of the noise, as the process stores it, where it is learned."""
    if not _is_learned(likelihood):
        return {}
    stored = prior.log_unknowns["scale"]
    return {"log_unknowns.scale": 0.5 * likelihood.noise.detach().double().log().reshape(stored.shape)}


def _second_noise(likelihood: Any) -> float:
    """The variance that is learned beside known noise."""
    return float(torch.as_tensor(likelihood.second_noise).detach().mean())


def _known_noise(likelihood: Any) -> Tensor:
    """Noise variances of the training rows, (1, N) or (C, N)."""
    return torch.atleast_2d(likelihood.noise.detach().double())


def copied(module: Any) -> Any:
    """In evaluation mode, without what GPyTorch keeps of earlier calls: in training, tensors that cannot be copied."""
    kept = [(part, part.__dict__.pop(CACHE)) for part in module.modules() if CACHE in part.__dict__]
    try:
        return copy.deepcopy(module).train().eval().requires_grad_(False)
    finally:
        for part, cache in kept:
            part.__dict__[CACHE] = cache


def _begun(network: Any) -> Any:
    """With a law at its inducing points, which GPyTorch puts to the prior, and some noise, at the first call."""
    if hasattr(network, "variational_strategy"):
        with isolated(0), torch.no_grad():
            named = chain(network.named_parameters(), network.named_buffers())
            places = next(value for name, value in named if name.endswith("inducing_points"))
            network(places.reshape(-1, places.shape[-1])[:1])
    return network


@dataclass(frozen=True, eq=False, repr=False)
class GpytorchPosterior(Posterior):
    """A model of GPyTorch's in evaluation mode, and its likelihood: what they predict, as a predictive.

    For normal noise that is GPyTorch's own mean and variances. For labels of two kinds f is taken at 1,000 evenly
    spread quantiles, whose mean probability is GPyTorch's to about 1e-6; for other likelihoods at draws.

    Attributes:
        network: The model.
        reading: Its likelihood.
    """

    network: Any
    reading: Any

    def __repr__(self) -> str:
        return f"GpytorchPosterior({type(self.network).__name__}, {type(self.reading).__name__}, on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

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
        """The predictive distribution p(y* | x, D): see `Posterior.predict`."""
        refuse_windows(self, windows)
        indices, key = draw_indices(num_samples, None), resolve_seed(seed)
        start = 0

        def whole(batch: ArrayLike) -> Iterator[PredictiveDistribution]:
            nonlocal start
            rows = self._rows(batch)
            yield self._predictive(rows, len(indices), (key, start), keep_samples=keep_samples)
            start += len(rows)

        with differentiated(x, differentiable=differentiable):
            return predict_batches(x, whole, keep_samples=keep_samples)

    def _predictive(
        self, rows: Tensor, number: int, place: tuple[int, int], *, keep_samples: bool
    ) -> PredictiveDistribution:
        with unless_kept():
            law = self.network(rows)
            if isinstance(self.reading, NORMAL):
                own, mean = _columns(law, law.variance), _columns(law, law.mean)
                if isinstance(self.reading, NORMAL[1]):  # which gives as many new rows the noise of the fitted ones
                    noise = torch.as_tensor(self.reading.second_noise).to(own).reshape(1, -1).expand_as(own)
                else:
                    noise = (_columns(law, self.reading(law).variance) - own).clamp(min=0.0)
                return GaussianPredictive(
                    mean=mean.unsqueeze(0), noise_variance=noise.unsqueeze(0), function_variance=own.unsqueeze(0)
                )
            if isinstance(self.reading, gpytorch.likelihoods.BernoulliLikelihood):
                levels = (torch.arange(NUM_PLACES, dtype=torch.float64, device=rows.device) + 0.5) / NUM_PLACES
                f = law.mean.double() + law.variance.double().sqrt() * torch.special.ndtri(levels).unsqueeze(-1)
                one = self.reading(f).probs
                probs = torch.stack([1 - one, one], dim=2)
                return CategoricalPredictive.from_probs(probs, keep_samples=keep_samples)
            noise = torch.randn(
                (number, *law.mean.shape), generator=generator(*place, device=rows.device), device=rows.device
            )
            return self._of_draws(law.mean + law.variance.sqrt() * noise.to(law.mean), keep_samples=keep_samples)

    def _of_draws(self, f: Tensor, *, keep_samples: bool) -> PredictiveDistribution:
        """From draws of f, (S, N) or (S, N, C)."""
        law = self.reading(f)
        if isinstance(law, torch.distributions.Categorical):
            return CategoricalPredictive.from_logits(law.logits.movedim(-1, 2), keep_samples=keep_samples)
        if len(law.batch_shape) == 2:
            law = type(law)(**{name: getattr(law, name).unsqueeze(-1) for name in law.arg_constraints})
        return MixturePredictive(law)

    def sample_functions(self, x: ArrayLike, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Joint draws of f at the rows of x, (S, N, C): see `GpPosterior.sample_functions`."""
        check_count(num_samples, "num_samples")
        with torch.no_grad():
            return self._drawn_jointly(self.network(self._rows(x)), num_samples, seed)

    def functions(
        self, x: ArrayLike, *, num_samples: int | None = None, seed: int | None = None, differentiable: bool = False
    ) -> Functions:
        """Joint draws, with the covariance where y is the function and normal noise: see `Posterior.functions`."""
        number = len(draw_indices(num_samples, None))
        with differentiated(x, differentiable=differentiable), unless_kept():
            law = self.network(self._rows(x))
            f = self._drawn_jointly(law, number, seed)
            if not isinstance(self.reading, NORMAL):
                return Functions.of(self._of_draws(f if f.shape[2] > 1 else f[:, :, 0], keep_samples=True))
            if isinstance(law, MultitaskMultivariateNormal):
                mean = law.mean.double()
                return Functions(f, mean, law.covariance_matrix.double().reshape(*mean.shape, *mean.shape))
            mean, covariance = _by_output(law)
            return Functions(f, *by_rows(mean, covariance, len(mean)))

    def _drawn_jointly(self, law: Any, number: int, seed: int | None) -> Tensor:
        key = resolve_seed(seed)
        if isinstance(law, MultitaskMultivariateNormal):  # interleaved: the tasks of a row stand together
            mean, covariance = law.mean.double(), law.covariance_matrix.double()
            draws = draw_jointly(mean.reshape(1, -1), covariance.unsqueeze(0), number, key, 1)
            return draws.reshape(number, *mean.shape)
        mean, covariance = _by_output(law)
        return draw_jointly(mean, covariance, number, key, len(mean))

    def condition(self, x: ArrayLike, y: ArrayLike) -> Self:
        """The posterior given further rows too, at the same hyperparameters and inducing points.

        With a `GaussianLikelihood`, of an `ExactGP`, or of an `ApproximateGP` of one function whose law at the inducing
        points is a `VariationalStrategy` of a `CholeskyVariationalDistribution`.

        Raises:
            NotImplementedError: Another model or likelihood, whose law would have to be found by steps.
            ValueError: Targets that do not fit x, or are not finite.
        """
        rows, is_exact = self._rows(x), isinstance(self.network, gpytorch.models.ExactGP)
        if not _is_learned(self.reading) or not (is_exact or _is_whitened(self.network)):
            raise NotImplementedError(
                "Only a GPyTorch model with a GaussianLikelihood, and as an ApproximateGP one with a "
                "VariationalStrategy of a CholeskyVariationalDistribution, is conditioned on further rows. Train it on "
                "all rows: `gp.fit(posterior, data)`."
            )
        targets = as_targets(y).to(rows)
        if targets.shape != (len(rows), 1):
            raise ValueError(f"`y` must have shape ({len(rows)},), as `x` has rows; got {tuple(targets.shape)}.")
        targets = targets.squeeze(1)
        network = copied(self.network)
        if is_exact:
            inputs = torch.cat([network.train_inputs[0], rows], dim=-2)
            network.set_train_data(inputs, torch.cat([network.train_targets, targets], dim=-1), strict=False)
        else:
            _update(network.variational_strategy, rows, targets, self.reading.noise)
        return type(self)(copied(network), self.reading)

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: a mixture over draws where there is one, else the one law."""

        def predict(x: Tensor) -> PredictiveDistribution:
            return self.predict(x, num_samples=wanted.num_samples, seed=wanted.seed, keep_samples=True)

        def prior_predict(_x: Tensor, number: int, seed: int) -> NoReturn:
            raise NotImplementedError(
                f"GPyTorch's model makes no {number} draws from its prior here (seed {seed}): pass num_prior_samples=0."
            )

        told = natural_parameters(self.network) | natural_parameters(self.reading, "likelihood.")
        return Drawn(
            method=type(self).__name__,
            weights={},
            predict=predict,
            prior=no_sites,
            prior_predict=prior_predict,
            points={name: value.squeeze().unsqueeze(0) for name, value in told.items()},
        )

    def to(self, device: torch.device | str) -> Self:
        """The same posterior on another device."""
        place = check_device(device)
        return type(self)(copied(self.network).to(place), copied(self.reading).to(place))

    def save(self, path: str | PathLike[str]) -> None:
        """Not to a file of ours.

        Raises:
            NotImplementedError: Always; the message says what to write.
        """
        raise NotImplementedError(
            f"The code of {type(self.network).__name__} cannot be recorded: write "
            f"`safetensors.torch.save_file(model.state_dict(), {str(path)!r})`, and `bayesuq.adopt` the model that has "
            "loaded it."
        )

    def _rows(self, x: ArrayLike) -> Tensor:
        return as_real(check_inputs(x), self.device, next(self.network.parameters()).dtype)


def _is_whitened(network: Any) -> bool:
    """Whether a model's law at its inducing points is a normal one of whitened values, by its Cholesky factor."""
    strategy: Any = getattr(network, "variational_strategy", None)
    law: Any = getattr(strategy, "_variational_distribution", None)
    kinds = gpytorch.variational.VariationalStrategy, gpytorch.variational.CholeskyVariationalDistribution
    return type(strategy) is kinds[0] and type(law) is kinds[1] and law.variational_mean.ndim == 1


def _update(strategy: Any, x: Tensor, y: Tensor, noise: Tensor) -> None:
    """Move the law at the inducing points to that given further rows, in place."""
    law, number = strategy._variational_distribution, strategy.inducing_points.shape[-2]
    with torch.no_grad():
        prior = strategy.model.forward(torch.cat([strategy.inducing_points, x]))
        covariance = prior.covariance_matrix.double()
        eye = torch.eye(number, dtype=torch.float64, device=x.device)
        own = covariance[:number, :number] + strategy.jitter_val * eye
        a = torch.linalg.solve_triangular(torch.linalg.cholesky(own), covariance[:number, number:], upper=False)
        mean, scale = law.variational_mean.double(), law.chol_variational_covar.double().tril()
        residual = y.double() - prior.mean[number:].double() - a.mT @ mean
        parts = mean[None], scale[None], a[None], residual[None], noise.double().expand(1, len(y))
        new_mean, new_scale = updated_law(*parts)
        law.variational_mean.copy_(new_mean[0])
        law.chol_variational_covar.copy_(new_scale[0])


def _by_output(law: Any) -> tuple[Tensor, Tensor]:
    """Means (C, N) and covariances (C, N, N) of independent outputs, float64."""
    mean, covariance = law.mean.double(), law.covariance_matrix.double()
    return torch.atleast_2d(mean), covariance if covariance.ndim == 3 else covariance.unsqueeze(0)


def _columns(law: Any, values: Tensor) -> Tensor:
    """Of each row and output, (N, C), float64, as GPyTorch has them: (N,), (C, N), or (N, C) of tasks."""
    if isinstance(law, MultitaskMultivariateNormal):
        return values.double()
    return values.double().reshape(-1, values.shape[-1]).mT


def natural_parameters(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """Learnable parameters of GPyTorch's modules on their own support, by name without "raw"."""
    found = {}
    for name, value, constraint in module.named_parameters_and_constraints():
        natural = value if constraint is None else constraint.transform(value)
        found[prefix + name.replace("raw_", "")] = natural.detach()
    return found
