"""A training step of a Gaussian process beside the same step in GPyTorch, written by hand with the same settings.

Both in float64, in one process, in turns; CPU time. Exact: marginal likelihood and gradient by Cholesky factors, on
rows of uci/protein. Sparse: ELBO, gradient and optimiser step with 512 inducing points and batches of 1,024.
"""

import argparse
import statistics
from collections.abc import Callable
from time import process_time
from typing import Any

import gpytorch
import torch
from torch import Tensor

import bayesuq as bq
from bayesuq.inference.gp.data import units_of
from bayesuq.inference.gp.hyperparameters import HyperparameterVector
from bayesuq.inference.gp.marginal_likelihood import MarginalLikelihood, Observations
from bayesuq.inference.gp.sparse import SparseObjective
from bayesuq.inference.gp.sparse_posterior import SparseProcess
from bayesuq.inference.training.minibatches import Batch
from bayesuq.models import gp

NUM_INDUCING, BATCH_SIZE = 512, 1024


class Exact(gpytorch.models.ExactGP):
    """As GPyTorch's users write it."""

    def __init__(self, x: Tensor, y: Tensor, likelihood: Any) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=x.shape[1]))

    def forward(self, x: Tensor) -> Any:
        """The prior."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class Sparse(gpytorch.models.ApproximateGP):
    """As GPyTorch's users write it; `natural` as in its tutorial on natural gradients."""

    def __init__(self, z: Tensor, *, natural: bool) -> None:
        law = gpytorch.variational.NaturalVariationalDistribution if natural else None
        law = law or gpytorch.variational.CholeskyVariationalDistribution
        super().__init__(gpytorch.variational.VariationalStrategy(self, z, law(len(z))))
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=z.shape[1]))

    def forward(self, x: Tensor) -> Any:
        """The prior."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def exact_steps(x: Tensor, y: Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Ours, GPyTorch's."""
    model = gp.GaussianProcess(gp.Scale(gp.RBF()))
    prior = model.build(x, 1)
    vector = HyperparameterVector(prior, units_of(model, x, y, 1))
    evidence = MarginalLikelihood(model, prior, Observations(x, y.mT))
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    hand = Exact(x, y[:, 0], likelihood).double()
    hand.covar_module.base_kernel.lengthscale = prior.kernel.base_kernel.lengthscale[0].detach()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, hand)

    def ours() -> None:
        (-evidence()).backward()
        vector.gradient()

    def theirs() -> None:
        hand.zero_grad()
        with gpytorch.settings.max_cholesky_size(10**6):
            (-mll(hand(x), y[:, 0])).backward()

    return ours, theirs


def sparse_steps(x: Tensor, y: Tensor, *, natural: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Ours, GPyTorch's."""
    model = gp.GaussianProcess(gp.Scale(gp.RBF()))
    prior = model.build(x, 1)
    units = units_of(model, x, y, 1)
    z = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:NUM_INDUCING]].clone()
    process = SparseProcess(model, prior, z.clone().requires_grad_(), HyperparameterVector(prior, units))
    objective = SparseObjective(process, len(x), num_draws=8, natural_rate=None if natural else 0.0)
    given = objective.objective()
    optimizer = given.optimizer(given, 0.01) if given.optimizer else None
    batch, noise = Batch(x[:BATCH_SIZE], y[:BATCH_SIZE], None), torch.Generator()
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    hand = Sparse(z.clone(), natural=natural).double()
    hand.covar_module.base_kernel.lengthscale = prior.kernel.base_kernel.lengthscale[0].detach()
    elbo = gpytorch.mlls.VariationalELBO(likelihood, hand, num_data=len(x))
    of_q = list(hand.variational_parameters()) if natural else []
    rest = [p for p in [*hand.parameters(), *likelihood.parameters()] if all(p is not q for q in of_q)]
    optimizers: list[Any] = [torch.optim.Adam(rest, lr=0.01, fused=True)]
    if natural:
        optimizers.append(gpytorch.optim.NGD(of_q, num_data=len(x), lr=0.1))

    def ours() -> None:
        objective.loss_and_grads(batch, noise)
        if optimizer is not None:
            optimizer.step()
        if given.after_step is not None:
            given.after_step()

    def theirs() -> None:
        hand.zero_grad()
        likelihood.zero_grad()
        (-elbo(hand(batch.x), batch.y[:, 0])).backward()
        for each in optimizers:
            each.step()

    return ours, theirs


def compare(name: str, steps: tuple[Callable[[], Any], Callable[[], Any]], rounds: int) -> None:
    """Median CPU times in turns, and the median of their ratios."""
    times: tuple[list[float], list[float]] = ([], [])
    for step in steps:
        step()
    for _ in range(rounds):
        for step, kept in zip(steps, times, strict=True):
            begin = process_time()
            step()
            kept.append(process_time() - begin)
    ours, theirs = (statistics.median(each) for each in times)
    ratio = statistics.median(one / other for one, other in zip(*times, strict=True))
    print(f"{name}: {1e3 * ours:.1f} ms, GPyTorch {1e3 * theirs:.1f} ms, ratio {ratio:.2f}", flush=True)


def main(rounds: int) -> None:
    """Exact at two sizes, sparse with both ways of moving q."""
    torch.set_num_threads(1)
    rows = bq.datasets.load("uci/protein", split=0).refit
    data = bq.Standardizer.fit(rows).transform(rows)
    x, y = data.x.double(), data.y.double()
    compare("exact, 1,000 rows", exact_steps(x[:1000], y[:1000]), rounds)
    compare("sparse, natural gradients", sparse_steps(x, y, natural=True), rounds)
    compare("sparse, Adam", sparse_steps(x, y, natural=False), rounds)
    compare("exact, 4,000 rows", exact_steps(x[:4000], y[:4000]), max(2, rounds // 5))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    main(parser.parse_args().rounds)
