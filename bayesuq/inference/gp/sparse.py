"""Sparse variational Gaussian processes: a normal law over f at M inducing points, for minibatches and any likelihood.

With u = f(Z) = m(Z) + L v, L L^T = k(Z, Z), and q(v) = N(mean, S) over the whitened values,

    q(f(x)) = N(m(x) + a^T mean, k(x, x) - a^T a + a^T S a),   a = L^-1 k(Z, x)
    ELBO = (N / batch) sum_n E_q log p(y_n | f(x_n)) - KL(q(v) || N(0, I))

q is moved by natural gradients where the expected curvature of log p(y | f) is at hand: for classes, for mean and log
variance, and where each target has one latent function. For normal noise they reach the optimum of a full batch in one
step of size 1: with g = d ELBO / d variance_n and h = d ELBO / d mean_n,

    precision <- (1 - rate) precision + rate (I - 2 sum_n g_n a_n a_n^T)
    precision mean <- (1 - rate) precision mean + rate sum_n (h_n - 2 g_n a_n^T mean) a_n

and by Adam, on its mean and Cholesky factor, elsewhere. Hyperparameters and inducing points are moved by Adam always.

Reference:
    Hensman, Matthews & Ghahramani 2015, Scalable Variational Gaussian Process Classification; Khan & Lin 2017,
    Conjugate-Computation Variational Inference, eq. (9) to (11), for the natural gradients.
"""

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.gp.algebra import quadratic_form, stable_cholesky, stacked_product
from bayesuq.inference.gp.data import ProcessReader
from bayesuq.inference.gp.expectations import expected_log_prob, has_curvature, log_predictive, softmax_curvature
from bayesuq.inference.gp.hyperparameters import COUNTED, counts_in_units
from bayesuq.inference.gp.sparse_posterior import SparseGpPosterior, SparseProcess
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.cost import warn_if_long
from bayesuq.inference.training.history import History
from bayesuq.inference.training.identity import ADDRESS
from bayesuq.inference.training.loop import adam, minimise
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.training.optimizers import Adam
from bayesuq.inference.training.options import QUALITY, Training, sources
from bayesuq.inference.training.workers import Workers
from bayesuq.loaders import Data
from bayesuq.models.gp.combined import Coregionalised
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.randomness import generator

NUM_INDUCING, FEWEST_INDUCING = 512, 128
NATURAL_RATE = 0.1
SMALLEST_SHARE = 0.02  # of the natural rate, where the learning rate has fallen to 0


def fit_sparse(
    model: GaussianProcess,
    data: Data,
    training: Training,
    device: torch.device,
    *,
    num_inducing: int | None,
    num_draws: int,
    natural_rate: float | None,
) -> "SparseGpPosterior":
    """Fit q, the inducing points and the hyperparameters; the options are those of `gp.fit`."""
    if isinstance(model.kernel, Coregionalised):
        raise ValueError("A coregionalised kernel is for exact inference; pass approximation='exact'.")
    reader = ProcessReader(model, device)
    workers = training.workers
    with sources(reader, data, training) as (source, validation):
        workers.agree(ADDRESS.sub("", f"{model!r} {num_inducing} {num_draws} {natural_rate}"))
        reader.num_outputs = max(workers.numbers(reader.num_outputs))
        num_inducing = default_inducing(reader.num_outputs) if num_inducing is None else num_inducing
        counts = counts_in_units(Checkpoint.of(training.checkpoint))
        key, size = training.key(QUALITY), num_inducing
        process = workers.agreed(
            lambda: SparseProcess.start(model, source, reader.num_outputs, size, key, counts=counts)
        )
        _start_together(process, workers)
        evidence = SparseObjective(process, source.num_data, num_draws=num_draws, natural_rate=natural_rate)
        _warn_if_long(evidence, source, training)
        history = minimise(evidence.objective(), source, validation, training)
        return evidence.posterior(workers.of_first(source.rows.x[:1].clone()), history)


def default_inducing(num_outputs: int) -> int:
    """The `num_inducing` that None stands for: as many as cost what 512 do for one function, and 128 at least."""
    return max(FEWEST_INDUCING, round(NUM_INDUCING / num_outputs**0.5))


def _warn_if_long(evidence: "SparseObjective", source: Source, training: Training) -> None:
    """Tell of a fit that takes long."""
    steps = training.epochs(source.num_batches) * source.num_batches
    (num_outputs, num_inducing), size = evidence.mean.shape, -(-source.num_data // source.num_batches)
    if source.workers.is_first:
        warn_if_long(
            lambda: evidence.loss_and_grads(source.first(size), generator(training.key(QUALITY), 4)),
            steps,
            steps * num_outputs * num_inducing**2 * (2 * size + num_inducing),
            told=f"{steps} steps over {num_outputs} functions at {num_inducing} inducing points",
            remedy="Lower `num_inducing`, whose square it goes with, or `num_epochs`.",
        )


def _start_together(process: SparseProcess, workers: Workers) -> None:
    """Inducing points and hyperparameters as the first process has them, in its units."""
    process.inducing = workers.of_first(process.inducing.detach()).requires_grad_()
    if process.unit is not None:
        process.unit = (workers.of_first(process.unit[0]), workers.of_first(process.unit[1]))
    with torch.no_grad():
        for shared in [*process.prior.parameters(), *process.prior.buffers()]:
            shared.copy_(workers.of_first(shared))


class SparseObjective:
    """The ELBO as the loop takes it.

    Attributes:
        process: What is fitted.
        mean: Of q(v), (C, M).
        root: By Adam: the Cholesky factor of S, lower, (C, M, M). By natural gradients: that of its inverse.
        num_data: N.
    """

    def __init__(
        self,
        process: SparseProcess,
        num_data: int,
        *,
        num_draws: int,
        natural_rate: float | None,
    ) -> None:
        self.process, self.num_data, self.num_draws = process, num_data, num_draws
        likelihood = process.model.likelihood
        self.rate = (NATURAL_RATE if has_curvature(likelihood) else 0.0) if natural_rate is None else natural_rate
        self.is_natural = self.rate > 0
        if self.is_natural and not has_curvature(likelihood):
            raise ValueError(
                f"Natural gradients are for classes, and where a target has one latent function; got {likelihood!r}. "
                "Pass natural_rate=0, which moves q by Adam."
            )
        shape = (process.prior.num_outputs, len(process.inducing))
        self.mean = torch.zeros(shape, dtype=torch.float64, device=process.inducing.device)
        eye = torch.eye(shape[1], dtype=torch.float64, device=process.inducing.device)
        self.root = eye.expand(*shape, -1).clone()
        self.precision = self.root.clone()
        self._sums = (torch.zeros_like(self.precision), torch.zeros_like(self.mean))  # of the last minibatch
        self._has_sums = False
        self._optimizer: Adam | None = None
        if not self.is_natural:
            self.mean.requires_grad_()
            self.root.requires_grad_()

    def objective(self) -> Objective:
        """For the loop."""
        process = self.process
        leaves: dict[str, Tensor] = {leaf.name: leaf.value for leaf in process.vector.leaves}
        leaves["inducing points"] = process.inducing
        buffers: dict[str, Tensor] = {}
        starts = process.vector.start_by_network()
        counted = f", {COUNTED}" if process.vector.counts else ""
        if self.is_natural:
            buffers = {"q mean": self.mean, "q precision": self.precision, "q root": self.root}
        else:
            leaves |= {"q mean": self.mean, "q root": self.root}
        return Objective(
            leaves=leaves,
            buffers=buffers,
            loss_and_grads=self.loss_and_grads,
            log_predictive=self.log_predictive,
            culprits=lambda batch, noise: [],  # noqa: ARG005 - the terms share all hyperparameters
            identity=f"{process.model!r}, rate {self.rate}, {self.num_draws} draws{counted}",
            from_network=(*starts, "inducing points") if starts else (),
            contents=process.vector.contents(),
            options={"natural_rate": self.rate, "num_draws": self.num_draws} | ({COUNTED: True} if counted else {}),
            optimizer=self._build_optimizer,
            after_step=self._move if self.is_natural else None,
            shared=lambda _: self._sums if self.is_natural else (),
        )

    def _build_optimizer(self, objective: Objective, learning_rate: float) -> Adam:
        self._optimizer = adam(objective, learning_rate)
        return self._optimizer

    def covariance(self) -> Tensor | None:
        """S, (C, M, M), where natural gradients hold its inverse; by Adam its factor alone is needed."""
        return torch.cholesky_inverse(self.root) if self.is_natural else None

    def marginals(self, x: Tensor, covariance: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """a (C or 1, M, N), and the means and variances of f, (N, C), with what `covariance` gave."""
        features = self.process.prior.features(x)
        a = self.process.project(features)
        mean = self.process.prior.mean_at(features) + (self.mean.unsqueeze(1) @ a).squeeze(1)
        spread = (self.root.tril().mT @ a).square().sum(dim=1) if covariance is None else quadratic_form(a, covariance)
        variance = self.process.prior.variance(features) - a.square().sum(dim=1) + spread
        return a, mean.mT, variance.clamp(min=0).mT

    def divergence(self, covariance: Tensor | None) -> Tensor:
        """KL(q(v) || N(0, I)), 0-d, in nats, with what `covariance` gave."""
        log_det = 2 * self.root.diagonal(dim1=1, dim2=2).abs().log().sum()  # of the precision, or of S
        if covariance is None:
            trace = self.root.tril().square().sum()
        else:
            trace, log_det = covariance.diagonal(dim1=1, dim2=2).sum(), -log_det
        return 0.5 * (trace + self.mean.square().sum() - self.mean.numel() - log_det)

    def loss_and_grads(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Minus the ELBO of a minibatch scaled to all rows, with its gradients."""
        for leaf in self._leaves():
            leaf.grad = None
        covariance = self.covariance()
        a, mean, variance = self.marginals(batch.x, covariance)
        if self.is_natural:
            mean.retain_grad()
            variance.retain_grad()
        scale = self.num_data / len(batch.x)
        expected = scale * expected_log_prob(self._likelihood(), mean, variance, *batch[1:], noise, self.num_draws)
        loss = self.divergence(covariance) - self.process.vector.log_penalty() - expected
        loss.backward()
        for leaf in self._leaves():
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        if self.is_natural and mean.grad is not None and variance.grad is not None:
            self._sums = self._direction(a.detach(), -mean.grad.mT, self._slope(batch, mean, variance, noise).mT)
            self._has_sums = True
        return loss.detach()

    def _slope(self, batch: Batch, mean: Tensor, variance: Tensor, noise: torch.Generator) -> Tensor:
        """d ELBO / d variance at the rows, (B, C), but for the divergence."""
        likelihood = self._likelihood()
        if not isinstance(likelihood, Categorical):
            return -variance.grad if variance.grad is not None else torch.zeros_like(variance)
        with torch.no_grad():
            slope = 0.5 * softmax_curvature(likelihood, mean, variance, batch.y, noise, self.num_draws)
            if batch.weight is not None:
                slope = slope * batch.weight.reshape(-1, 1)
            return slope * (self.num_data / len(batch.x))

    def _direction(self, a: Tensor, h: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Where the natural gradient points: the precision but for I, (C, M, M), and its product with the mean, (C, M).

        Both are sums over rows.
        """
        g = g.clamp(max=0)  # a likelihood that is not log-concave would take the precision out of its cone
        precision = stacked_product(a * (-2 * g).unsqueeze(1), a.mT)
        pull = h - 2 * g * (self.mean.unsqueeze(1) @ a).squeeze(1)
        return precision, (a @ pull.unsqueeze(-1)).squeeze(-1)

    def _move(self) -> None:
        """One natural step."""
        if not self._has_sums or self._optimizer is None:
            return
        group = self._optimizer.param_groups[0]
        rate = self.rate * max(group["lr"] / group["initial_lr"], SMALLEST_SHARE)  # it falls as the learning rate does
        sums, shift = self._sums
        precision = torch.eye(sums.shape[1], dtype=sums.dtype, device=sums.device) + sums
        old = (self.precision @ self.mean.unsqueeze(-1)).squeeze(-1)
        self.precision.lerp_(precision, rate)
        self.root.copy_(stable_cholesky(self.precision))
        self.mean.copy_(torch.cholesky_solve(torch.lerp(old, shift, rate).unsqueeze(-1), self.root).squeeze(-1))

    def log_predictive(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """log p(y | x) of each row, (B,), in nats."""
        _, mean, variance = self.marginals(batch.x, self.covariance())
        return log_predictive(self._likelihood(), mean, variance, batch.y, batch.weight, noise)

    def posterior(self, example: Tensor, history: History) -> "SparseGpPosterior":
        """What is fitted so far, as a value of its own."""
        with torch.no_grad():
            root = self.root.tril()
            scale = torch.linalg.cholesky(torch.cholesky_inverse(root)) if self.is_natural else root
        return self.process.posterior(self.mean, scale, example, history)

    def _leaves(self) -> list[Tensor]:
        of_q = [] if self.is_natural else [self.mean, self.root]
        return [*(leaf.value for leaf in self.process.vector.leaves), self.process.inducing, *of_q]

    def _likelihood(self) -> Likelihood:
        return self.process.model.likelihood.given(self.process.prior.unknowns())
