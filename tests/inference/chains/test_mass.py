"""Dense masses: what they are worth on a correlated law, and that they stop, go on, and are told apart."""

from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesuq as bq
from bayesuq.inference import hmc
from bayesuq.inference.chains import nuts
from bayesuq.inference.chains.mass import LARGEST_DENSE, MassName
from bayesuq.inference.chains.run import Plan, run
from bayesuq.inference.training.checkpoint import Checkpoint
from tests.inference.chains.targets import Gaussian

SIZE, CORRELATION = 5, 0.99
COVARIANCE = CORRELATION + (1 - CORRELATION) * torch.eye(SIZE, dtype=torch.float64)
SCALES = torch.linspace(0.5, 2.0, SIZE, dtype=torch.float64)
NARROW = Gaussian(torch.zeros(SIZE, dtype=torch.float64), COVARIANCE * SCALES * SCALES[:, None])


def found(mass: MassName) -> tuple[float, Tensor]:
    """Least effective number of draws for a thousand gradients, and draws in units of their scales."""
    chains = run(NARROW, nuts.Nuts(), NARROW.draws(1, 0), Plan(250, 200, mass=mass), seed=0)
    units, steps = chains.draws[0] / SCALES, float(chains.statistics["n_steps"].sum())
    ess = min(float(arviz.ess(np.asarray(units[None, :, k]))) for k in range(SIZE))
    return 1000 * ess / steps, units


def test_dense_masses_undo_correlations_that_scales_leave() -> None:
    """The law is sqrt(4.96 / .01) = 22 times as long as wide in units of the scales, and a ball in dense masses'."""
    (plain, _), (dense, units) = found("diagonal"), found("dense")
    assert dense > 100 > 30 > plain
    # a contrast of sd .14 and the level of sd 1, each known to 1 / sqrt(2 * 100) = 7 % by a hundred effective draws
    assert float((units[:, 0] - units[:, -1]).std()) == pytest.approx((2 * (1 - CORRELATION)) ** 0.5, rel=0.25)
    assert float(units.mean(dim=1).std()) == pytest.approx(1.0, rel=0.25)


DATA = bq.Dataset([[1.0, 1.01], [2.0, 1.98], [3.0, 3.02]], [1.0, 2.0, 3.0])


def near_columns(x: Tensor, y: Tensor | None = None) -> Any:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        return pyro.sample("y", dist.Normal(x @ beta, 0.1), obs=y)


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_a_warm_up_of_dense_masses_that_was_stopped_ends_with_the_same_bits(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"num_samples": 20, "num_warmup": 80, "num_chains": 1, "seed": 0, "mass": "dense"}
    whole = hmc.fit(near_columns, DATA, **options)
    assert whole.inverse_mass.shape == (1, 2, 2)
    move, moves = nuts.Nuts.__call__, []

    def stopped(*arguments: Any) -> Any:
        moves.append(1)
        if len(moves) == 40:  # within the window in which the covariance is learned, of 12 to 64
            raise KeyboardInterrupt
        return move(*arguments)

    file = Checkpoint(tmp_path / "chain", every_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(nuts.Nuts, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            hmc.fit(near_columns, DATA, checkpoint=file, **options)
    for other in ({"mass": "diagonal"}, {"mass": "dense", "target_acceptance": 0.9}):
        with pytest.raises(ValueError, match=r"its (kernel|target_acceptance) is"):
            hmc.fit(near_columns, DATA, checkpoint=file, **options | other)
    resumed = hmc.fit(near_columns, DATA, checkpoint=file.path, **options)  # which writes at the end alone
    assert torch.equal(resumed.draws["beta"], whole.draws["beta"])
    assert torch.equal(resumed.inverse_mass, whole.inverse_mass)


def test_a_mass_of_an_unknown_kind_or_of_too_many_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="`mass` must be one of"):
        hmc.fit(near_columns, DATA, mass="full")  # type: ignore[arg-type]
    net = bq.models.networks.mlp(2, (LARGEST_DENSE // 4,), 1)
    wide = bq.models.BayesianNetwork(net, bq.models.priors.Normal(), bq.models.likelihoods.Normal(0.1))
    with pytest.raises(ValueError, match="mass='dense' takes at most 4,096 numbers"):
        hmc.fit(wide, DATA, mass="dense", num_chains=1)
