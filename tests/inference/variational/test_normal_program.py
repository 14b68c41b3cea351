"""Normal guides of programs by the recorded joint: exact posteriors, any support, and when Pyro's route is taken."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayesuq.data import Batch, Dataset
from bayesuq.fit_warnings import ConvergenceWarning
from bayesuq.inference import variational
from bayesuq.inference.joint.program_call import ProgramCall
from bayesuq.inference.joint.programs import correlated, factorised
from bayesuq.inference.variational.guided_program import GuidedProgram
from bayesuq.inference.variational.normal_program import NormalObjective, normal_objective


def sharp(x, y=None):
    """Coefficients that are known to .001 under a prior of scale 10."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ beta, 0.01), obs=y)


def supports(x, y=None):
    """A simplex, a Cholesky factor, an interval, a scale, and a latent of each of two groups."""
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    factor = pyro.sample("factor", dist.LKJCholesky(2, 2.0))
    bound = pyro.sample("bound", dist.Uniform(-1.0, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("groups", 2):
        level = pyro.sample("level", dist.Normal(bound, scale))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x[:, 0] * level.sum() + share[0] + factor[1, 0], scale), obs=y)


def moving(x, y=None):
    """An interval that ends where another latent is."""
    top = pyro.sample("top", dist.HalfNormal(1.0))
    bound = pyro.sample("bound", dist.Uniform(0.0, top))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x[:, 0] * bound, 1.0), obs=y)


def rows(number=40):
    seeded = torch.Generator().manual_seed(0)
    x = torch.randn(number, 2, generator=seeded)
    x[:, 1] = 0.4 * x[:, 0] + 0.9 * x[:, 1]
    return Dataset(x, x @ torch.tensor([2.0, -1.0]) + 0.01 * torch.randn(number, generator=seeded))


def objective(program, build, data) -> tuple[NormalObjective | None, Batch]:
    batch = Batch(data.x, data.y[:, 0], None)
    pair = GuidedProgram(program, build, Batch(data.x[:1], batch.y[:1], None), seed=0)
    return normal_objective(pair, build, ProgramCall(program), batch, 0), batch


@pytest.mark.parametrize("guide", [variational.mean_field, variational.full_rank])
def test_coefficients_far_narrower_than_their_prior_are_exact_by_default(guide):
    data = rows()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ConvergenceWarning)
        posterior = variational.fit(sharp, data, guide=guide, num_epochs=1000, seed=0, progress=False)
    narrow = guide is variational.mean_field  # beside coefficients that are correlated by half
    assert ["narrower than the model's" in str(one.message) for one in told] == [True] * narrow
    precision = data.x.T @ data.x / 0.01**2 + torch.eye(2) / 10**2
    mean = torch.linalg.solve(precision, data.x.T @ data.y[:, 0] / 0.01**2)
    sd = (
        torch.linalg.inv(precision).diagonal().sqrt()
        if guide is variational.full_rank
        else precision.diagonal().rsqrt()
    )
    draws = posterior.sample_weights(500, seed=0)["beta"]
    assert ((draws.mean(dim=0) - mean).abs() / sd).max() < 0.15  # .045 of it by chance
    assert (draws.std(dim=0) / sd - 1).abs().max() < 0.1  # .03 by chance


@pytest.mark.parametrize("build", [factorised, correlated])
def test_the_law_of_the_flat_vector_is_pyros_guide_on_every_support(build):
    found, batch = objective(supports, build, rows(6))
    assert found is not None
    with torch.no_grad():
        found.mean.normal_()
        found.log_scale.normal_(std=0.3)
        if found.lower is not None:
            found.lower.copy_(0.1 * torch.randn_like(found.lower).tril(-1))
    assert found.agrees(batch, 1)
    with torch.no_grad():
        found.log_scale[0] += 0.01
        found.spread += 0.5
    assert not found.agrees(batch, 1)


@pytest.mark.parametrize("build", [factorised, correlated])
def test_the_gradient_is_that_of_the_bound(build):
    """At q = p it is 0 draw by draw; elsewhere its mean is the slope of the bound, by differences at common draws."""
    found, batch = objective(sharp, build, rows())
    assert found is not None
    with torch.no_grad():
        found.log_scale.fill_(-0.3)
        found.mean.fill_(0.4)
    found.num_draws = 1000
    found.loss_and_grads(batch, torch.Generator().manual_seed(0))
    slope, step = found.log_scale.grad.clone(), 0.05
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            found.log_scale.fill_(-0.3 + sign * step)
        losses.append(float(found.loss_and_grads(batch, torch.Generator().manual_seed(0))))
    assert float(slope.sum()) == pytest.approx(
        (losses[0] - losses[1]) / (2 * step), abs=0.15
    )  # of -1.8; common draws, so that the step's curvature is what is left
    with torch.no_grad():
        found.mean.fill_(0.0)
        found.log_scale.fill_(0.0)
    found.num_draws = 1
    found.loss_and_grads(batch, torch.Generator().manual_seed(1))
    if build is correlated:
        assert found.mean.grad.abs().max() < 0.02


def test_supports_that_move_and_other_guides_take_pyros_route():
    assert objective(moving, factorised, rows(6))[0] is None
    assert objective(sharp, pyro.infer.autoguide.AutoDiagonalNormal, rows(6))[0] is None


def test_a_program_of_its_own_rows_alone_is_fitted():
    """It fails on a single row, by torch's own error, and is run on all."""

    def whole(x, y=None):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("y", dist.Normal(torch.eye(6) @ z, 1.0), obs=y)

    data = Dataset(torch.zeros(6, 1), torch.arange(6.0))
    posterior = variational.fit(whole, data, num_epochs=500, seed=0, progress=False)
    draws = posterior.sample_weights(500, seed=0)["z"]
    assert (draws.mean(dim=0) - torch.arange(6.0) / 2).abs().max() < 0.15  # .03 by chance
