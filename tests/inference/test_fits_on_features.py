"""Fits of a last layer run the body once for the numbers of the whole network, and know where they may not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Dataset
from bayesuq.inference import ensemble, hmc, ivon, map_estimate, microcanonical, sgmcmc, swag, variational
from bayesuq.inference.adoption import adopt
from bayesuq.inference.posteriors import heads
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from tests.inference.examples import built, labelled, noise
from tests.inference.test_feature_heads import Net, Rows

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NUM_ROWS, PROBES = 64, 30
SHORT = {"num_epochs": 3, "batch_size": 16, "seed": 0}
CHAINS = {"num_samples": 3, "num_warmup": 4, "num_chains": 2, "thinning": 1, "seed": 0}
Fit = Callable[..., Posterior]
FITS: dict[str, Fit] = {
    "variational": lambda mode, data, **o: variational.fit(mode.model, data, **SHORT, **o),
    "low rank": lambda mode, data: variational.fit(mode.model, data, guide=variational.low_rank(2), **SHORT),
    "ivon": lambda mode, data, **o: ivon.fit(mode.model, data, **SHORT, **o),
    "map": lambda mode, data, **o: map_estimate.fit(mode.model, data, **SHORT, **o),
    "ensemble": lambda mode, data: ensemble.fit(mode.model, data, num_members=2, bootstrap=True, **SHORT),
    "swag": lambda mode, data: swag.fit(mode.model, data, mode=mode, rank=2, **SHORT),
    "hmc": lambda mode, data: hmc.fit(mode.model, data, start=mode, max_tree_depth=3, **CHAINS),
    "sgmcmc": lambda mode, data: sgmcmc.fit(mode.model, data, start=mode, **CHAINS),
    "microcanonical": lambda mode, data: microcanonical.fit(
        mode.model, data, start=mode, num_members=2, num_samples=2, num_warmup=10, thinning=1, seed=0
    ),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small a body is, it is run once."""
    monkeypatch.setattr(heads, "FEWEST_CONSTANTS", 1)


def adopted(rate: float = 0.0, **options: Any) -> MapPosterior:
    net = built(lambda: Net(rate).double())  # rounding is small where chains multiply it
    net.train()(noise(3, 64, 3) + 1)
    return adopt(net, likelihoods.Categorical(), prior=priors.Normal(scale=0.5), **options)


def count(fit: Callable[[], Posterior]) -> tuple[Posterior, int]:
    """What a fit gives, and the rows that went through the body."""
    with Rows() as rows:
        return fit(), rows.count


@pytest.mark.parametrize("name", FITS)
def test_the_body_is_run_once_and_the_numbers_are_those_of_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, data = adopted(), labelled(NUM_ROWS)
    ours, passes = count(lambda: FITS[name](mode, data))
    assert passes <= NUM_ROWS + PROBES
    monkeypatch.setattr(heads, "FEWEST_CONSTANTS", 10**9)
    theirs, passes = count(lambda: FITS[name](mode, data))
    assert passes > 2 * NUM_ROWS
    assert type(ours) is type(theirs)
    assert ours.model.net is mode.model.net or name in ("ensemble", "microcanonical")  # type: ignore[attr-defined]
    mine, other = (one.predict(data.x, num_samples=4, seed=0) for one in (ours, theirs))
    torch.testing.assert_close(mine.mean, other.mean, rtol=1e-5, atol=1e-6)


def test_validation_checkpoints_and_bits_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mode, data, watched = adopted(), labelled(NUM_ROWS), labelled(20)
    expected = FITS["variational"](mode, data, validation=watched)
    file = tmp_path / "state"
    again = FITS["variational"](mode, data, validation=watched, checkpoint=file)
    assert torch.equal(again.loc, expected.loc)  # type: ignore[attr-defined]
    assert [path.name for path in tmp_path.iterdir()] == ["state.features"]
    resumed, passes = count(lambda: FITS["variational"](mode, data, validation=watched, checkpoint=file))
    assert torch.equal(resumed.loc, expected.loc)  # type: ignore[attr-defined]
    assert passes <= NUM_ROWS + 20 + 2 * PROBES
    # A file of a fit of the whole network, as versions of before wrote it, is gone on from.
    monkeypatch.setattr(heads, "FEWEST_CONSTANTS", 10**9)
    before = FITS["map"](mode, data, checkpoint=tmp_path / "before")
    monkeypatch.setattr(heads, "FEWEST_CONSTANTS", 1)
    after = FITS["map"](mode, data, checkpoint=tmp_path / "before")
    assert torch.equal(after.values, before.values)  # type: ignore[attr-defined]


def test_dropout_of_the_body_is_no_matter_where_it_does_not_act() -> None:
    mode, data = adopted(rate=0.2), labelled(NUM_ROWS)
    assert count(lambda: FITS["variational"](mode, data))[1] <= NUM_ROWS + PROBES
    assert count(lambda: FITS["map"](mode, data))[1] > 2 * NUM_ROWS


class Branching(nn.Module):
    """Does something else in training mode, without drawing."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


def changed(module: nn.Module, place: int) -> BayesianNetwork:
    """A frozen body with a further module, and a last layer."""
    parts = [nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)]
    parts.insert(place, module)
    net = built(lambda: nn.Sequential(*parts))
    return adopt(net, likelihoods.Categorical()).model


def loader(data: Dataset) -> Any:
    return DataLoader(TensorDataset(data.x, data.y), batch_size=16)


OTHERS: dict[str, Callable[[Dataset], Posterior]] = {
    "a loader, whose rows may change": lambda data: FITS["map"](adopted(), loader(data)),
    "a loader of validation rows": lambda data: FITS["map"](adopted(), data, validation=loader(data)),
    "inputs that are moved": lambda data: FITS["map"](adopted(), data, adversarial=True),
    "a body that is random too": lambda data: FITS["map"](adopted(random="all"), data),
    "low precision": lambda data: FITS["map"](adopted(autocast=torch.bfloat16), data),
    "statistics that move": lambda data: map_estimate.fit(changed(nn.BatchNorm1d(6, affine=False), 2), data, **SHORT),
    "another pass in training mode": lambda data: map_estimate.fit(changed(Branching(), 2), data, **SHORT),
    "a network that goes on": lambda data: map_estimate.fit(changed(nn.LogSoftmax(1), 3), data, **SHORT),
    "a start of one's own": lambda data: ensemble.fit(
        adopted().model, data, num_members=2, initialise=lambda net, _: net, **SHORT
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_where_features_would_be_others_the_whole_network_is_fitted(name: str) -> None:
    assert count(lambda: OTHERS[name](labelled(NUM_ROWS)))[1] > 2 * NUM_ROWS


def test_low_precision_is_fitted_by_the_whole_network() -> None:
    net = nn.Sequential(nn.Linear(3, 5000), nn.Tanh(), nn.Linear(5000, 3))
    data = Dataset(torch.randn(6, 3), torch.arange(6) % 3)
    plain, low = (adopt(net, likelihoods.Categorical(), autocast=dtype).model for dtype in (None, torch.bfloat16))
    assert heads.Body.of(plain, data, {}, drops=False) is not None
    assert heads.Body.of(low, data, {}, drops=False) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert heads.Body.of(plain, data, {}, drops=False) is None
