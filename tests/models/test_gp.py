"""Gaussian processes without data: kernels against their formulas, hyperparameters, what is refused, and records."""

import json
import math
from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor, nn

from bayesuq.models import gp, likelihoods, networks, priors
from bayesuq.models.gp.combined import Product, Sum
from bayesuq.models.gp.hyperparameters import declared
from bayesuq.models.gp.records import ALLOWED, build_process, process_record
from bayesuq.models.records import NoRecordError
from tests.inference.examples import built, noise

X, Z = noise(0, 7, 3), noise(1, 4, 3)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def covariance(kernel: Any, x: Tensor = X, z: Tensor = Z, num_outputs: int = 1) -> Tensor:
    prior = gp.GaussianProcess(kernel).build(x, num_outputs)
    with torch.no_grad():
        return prior.covariance(prior.features(x), prior.features(z))


def squares(scale: Tensor | float, x: Tensor = X, z: Tensor = Z) -> Tensor:
    return ((x[:, None] - z[None]) / scale).square().sum(dim=2)


def matern(smoothness: float, r: Tensor) -> Tensor:
    if smoothness == 0.5:
        return torch.exp(-r)
    root = math.sqrt(2 * smoothness) * r
    return (1 + root + (root**2 / 3 if smoothness == 2.5 else 0)) * torch.exp(-root)


SCALES = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64)
RBF = gp.RBF(lengthscale=(0.5, 1.5, 2.5))


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (RBF, torch.exp(-squares(SCALES) / 2)),
        (gp.RBF(lengthscale=0.7, per_input=False), torch.exp(-squares(0.7) / 2)),
        (
            gp.RBF(lengthscale=(0.5, 2.0), active_inputs=(2, 0)),
            torch.exp(-squares(torch.tensor([0.5, 2.0]).double(), X[:, [2, 0]], Z[:, [2, 0]]) / 2),
        ),
        (gp.Matern(0.5, lengthscale=1.3), matern(0.5, squares(1.3).sqrt())),
        (gp.Matern(1.5, lengthscale=1.3), matern(1.5, squares(1.3).sqrt())),
        (gp.Matern(2.5, lengthscale=1.3), matern(2.5, squares(1.3).sqrt())),
        (gp.RationalQuadratic(lengthscale=1.3, alpha=0.8), (1 + squares(1.3) / 1.6) ** -0.8),
        (
            gp.Periodic(period=0.9, lengthscale=1.1),
            torch.exp(-2 * (math.pi * (X[:, None] - Z[None]) / 0.9).sin().square().sum(dim=2) / 1.1),
        ),
        (gp.Linear(variance=0.4), 0.4 * X @ Z.T),
        (gp.Scale(RBF, variance=3.0), 3 * torch.exp(-squares(SCALES) / 2)),
        (RBF + gp.Linear(variance=0.4), torch.exp(-squares(SCALES) / 2) + 0.4 * X @ Z.T),
        (RBF * gp.Linear(variance=0.4), torch.exp(-squares(SCALES) / 2) * (0.4 * X @ Z.T)),
        (gp.Scale(RBF * gp.Linear(variance=0.4), variance=2.0), 2 * torch.exp(-squares(SCALES) / 2) * (0.4 * X @ Z.T)),
    ],
    ids=lambda value: "" if isinstance(value, Tensor) else repr(value)[:50],
)  # fmt: skip
def test_a_kernel_is_its_formula(kernel: gp.Kernel, expected: Tensor) -> None:
    torch.testing.assert_close(covariance(kernel)[0], expected, **EXACT)
    prior = gp.GaussianProcess(kernel).build(X, 1)
    diagonal = prior.covariance(X)[0].diagonal()
    torch.testing.assert_close(prior.variance(X)[0], diagonal, rtol=1e-9, atol=1e-9)


def test_a_spectral_mixture_is_the_transform_of_its_gaussians() -> None:
    prior = gp.GaussianProcess(gp.SpectralMixture(2)).build(X[:, :1], 1)
    kernel, distance = prior.kernel, X[:, None, 0] - Z[None, :, 0]
    weights, means, scales = (
        getattr(kernel, name).detach().flatten() for name in ("mixture_weights", "mixture_means", "mixture_scales")
    )
    expected = sum(
        w * torch.exp(-2 * (math.pi * s * distance) ** 2) * torch.cos(2 * math.pi * m * distance)
        for w, m, s in zip(weights, means, scales, strict=True)
    )
    torch.testing.assert_close(prior.covariance(X[:, :1], Z[:, :1])[0].detach(), expected, **EXACT)
    assert len(set(means.tolist())) == 2  # equal ones would stay equal


def test_a_deep_kernel_is_a_kernel_of_features_and_its_network_stays() -> None:
    net = built(lambda: networks.mlp(3, (5,), 2, activation="tanh", dropout=0.5)).train()
    kernel = gp.Deep(net, gp.RBF(lengthscale=0.7))
    expected = torch.exp(-squares(0.7, net.double().eval()(X), net(Z)) / 2)
    net.float().train()
    torch.testing.assert_close(covariance(kernel)[0], expected.detach(), rtol=1e-9, atol=1e-9)
    assert net.training
    assert next(net.parameters()).dtype == torch.float32
    images = noise(2, 5, 1, 8, 8).float()
    deep = gp.Deep(built(lambda: networks.mlp(64, (), 2)), gp.RBF(lengthscale=0.7))
    assert covariance(deep, images.double(), images.double()).shape == (1, 5, 5)


def test_coregionalised_outputs_have_the_kronecker_product() -> None:
    prior = gp.GaussianProcess(gp.Coregionalised(gp.RBF(lengthscale=0.7), rank=2)).build(X, 3)
    outputs = prior.kernel.output_covariance()
    assert torch.linalg.eigvalsh(outputs).min() > 0
    expected = torch.kron(outputs, torch.exp(-squares(0.7) / 2))
    torch.testing.assert_close(prior.covariance(X, Z)[0], expected, **EXACT)
    torch.testing.assert_close(prior.variance(X)[0], prior.covariance(X)[0].diagonal(), **EXACT)


def test_outputs_have_hyperparameters_of_their_own_but_for_classes() -> None:
    own = gp.GaussianProcess(gp.Scale(gp.RBF())).build(X, 4)
    shared = gp.GaussianProcess(gp.Scale(gp.RBF()), likelihood=likelihoods.Categorical()).build(X, 4)
    assert own.kernel.base_kernel.raw_lengthscale.shape == (4, 1, 3)
    assert shared.kernel.base_kernel.raw_lengthscale.shape == (1, 1, 3)
    assert own.covariance(X).shape == (4, 7, 7)
    assert shared.covariance(X).shape == (1, 7, 7)
    assert shared.mean_at(X).shape == own.mean_at(X).shape == (4, 7)


def test_fixed_numbers_do_not_move_and_others_do() -> None:
    kernel = gp.Scale(gp.RBF(lengthscale=0.5) + gp.Matern(lengthscale=priors.LogNormal()), variance="learned")
    found = {name: told for name, _, _, told in declared(gp.GaussianProcess(kernel, gp.ZeroMean()).build(X, 1))}
    assert set(found) == {
        "kernel.raw_outputscale",
        "kernel.base_kernel.kernels.1.raw_lengthscale",
        "log_unknowns.scale",
    }
    assert found["kernel.base_kernel.kernels.1.raw_lengthscale"].prior == priors.LogNormal()
    assert found["kernel.raw_outputscale"].prior is None


def test_sums_of_sums_are_flat() -> None:
    assert gp.RBF() + gp.Linear() + gp.RBF() == Sum((gp.RBF(), gp.Linear(), gp.RBF()))
    assert gp.RBF() * (gp.Linear() * gp.RBF()) == Product((gp.RBF(), gp.Linear(), gp.RBF()))
    with pytest.raises(TypeError):
        _ = gp.RBF() + 3


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: gp.RBF(lengthscale=0.0), ValueError, "`lengthscale` must be a finite number above 0"),
        (lambda: gp.RBF(lengthscale="big"), ValueError, "`lengthscale` must be a number, 'learned' or a prior"),
        (lambda: gp.RBF(lengthscale=priors.Normal()), ValueError, "`lengthscale` needs a prior over positive numbers"),
        (lambda: gp.RBF(active_inputs=()), ValueError, "`active_inputs` must be a tuple of different"),
        (lambda: gp.RBF(active_inputs=(0, 0)), ValueError, "`active_inputs` must be a tuple of different"),
        (lambda: gp.RBF(active_inputs=(-1,)), ValueError, "`active_inputs` must be at least 0"),
        (lambda: gp.Matern(smoothness=2.0), ValueError, "`smoothness` must be 0.5, 1.5 or 2.5"),
        (lambda: gp.SpectralMixture(0), ValueError, "`num_mixtures` must be at least 1"),
        (lambda: gp.Scale("rbf"), TypeError, "A kernel is made of kernels of bayesuq.models.gp; got str"),
        (lambda: Sum(()), TypeError, "got none"),
        (lambda: gp.Scale(gp.Deep(nn.Linear(1, 1), gp.RBF())), ValueError, "Deep must stand outermost"),
        (lambda: gp.Deep("net", gp.RBF()), TypeError, "`net` must be a torch.nn.Module"),
        (lambda: gp.GaussianProcess("rbf"), TypeError, "`kernel` must be one of bayesuq.models.gp"),
        (lambda: gp.GaussianProcess(mean=0.0), TypeError, "`mean` must be one of"),
        (lambda: gp.GaussianProcess(likelihood="normal"), TypeError, "`likelihood` must be one of"),
        (lambda: gp.GaussianProcess(num_outputs=0), ValueError, "`num_outputs` must be at least 1"),
        (lambda: covariance(gp.RBF(active_inputs=(3,))), ValueError, "`active_inputs` must be below 3"),
        (lambda: covariance(gp.RBF(lengthscale=(1.0, 2.0))), ValueError, "one for each of the 3 inputs; got 2"),
        (lambda: covariance(gp.RBF(), X[..., None]), ValueError, r"does not take `x` of shape \(7, 3, 1\)"),
        (lambda: covariance(gp.Deep(nn.Linear(2, 1), gp.RBF())), ValueError, "network does not take `x`"),
        (lambda: covariance(gp.Deep(nn.Flatten(0), gp.RBF())), ValueError, r"to features \(N, K\)"),
    ],
)  # fmt: skip
def test_parts_that_make_no_process_are_refused(build: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        build()


PROCESSES = [
    gp.GaussianProcess(),
    gp.GaussianProcess(gp.Scale(gp.RBF(lengthscale=priors.LogNormal(0.1, 2.0))) + gp.Linear(), gp.LinearMean()),
    gp.GaussianProcess(gp.RationalQuadratic(alpha=0.3) * gp.Periodic(period=1.0), gp.ZeroMean()),
    gp.GaussianProcess(gp.SpectralMixture(3), likelihood=likelihoods.Normal(scale=priors.HalfNormal())),
    gp.GaussianProcess(gp.Scale(gp.Matern(active_inputs=(0, 2)), variance=2.0), num_outputs=3, shares_kernel=True,
                       likelihood=likelihoods.Categorical()),
    gp.GaussianProcess(gp.Coregionalised(gp.RBF(), rank=2), num_outputs=2),
    gp.GaussianProcess(gp.Deep(networks.mlp(3, (4,), 2), gp.RBF())),
]  # fmt: skip


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: repr(process.kernel)[:40])
def test_a_record_gives_the_same_process_back(process: gp.GaussianProcess) -> None:
    again = build_process(json.loads(json.dumps(process_record(process))))
    if not isinstance(process.kernel, gp.Deep):
        assert again.kernel == process.kernel
    assert (again.mean, again.num_outputs, again.shares_kernel) == (
        process.mean,
        process.num_outputs,
        process.shares_kernel,
    )
    assert repr(again.likelihood) == repr(process.likelihood)
    one, other = (each.build(X, 2).state() for each in (again, process))
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}


def test_every_kernel_and_mean_has_been_recorded() -> None:
    text = json.dumps([process_record(process) for process in PROCESSES])
    assert {name for name in ALLOWED if name.startswith("gp.")} == {
        name for name in ALLOWED if f'"{name}"' in text and name.startswith("gp.")
    }


def test_parts_of_the_users_own_have_no_record() -> None:
    changed = networks.mlp(3, (4,), 2)
    changed[0] = nn.Flatten(2)
    for kernel in (gpytorch.kernels.RBFKernel(), gp.Deep(nn.Linear(3, 2), gp.RBF()), gp.Deep(changed, gp.RBF())):
        with pytest.raises(NoRecordError):
            process_record(gp.GaussianProcess(kernel))
    with pytest.raises(ValueError, match="cannot build"):
        build_process({"kernel": {"part": "os.system"}})
