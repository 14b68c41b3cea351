"""Programs of posteriordb: that two of them have the reference's moments by NUTS, and what a line says."""

import os
from pathlib import Path

import pytest
import torch

from bayesuq.inference import hmc
from scripts import posteriordb
from scripts.posteriordb_programs import BUILDERS, load

FOLDER = Path(os.environ.get("BAYESUQ_DATA", "")) / "posteriordb"
pytestmark = pytest.mark.skipif(not (FOLDER / "kilpisjarvi.npz").exists(), reason="posteriordb's files are not here")


@pytest.fixture(autouse=True)
def _in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:The chains have some")  # hours to go, by the speed of a busy machine
@pytest.mark.parametrize("name", ["kilpisjarvi", "sblri"])
def test_nuts_has_the_moments_of_the_reference(name: str) -> None:
    known, reference = load(FOLDER, name)
    posterior = hmc.fit(known.program, known.data, num_samples=250, num_warmup=200, num_chains=1, seed=0)
    found = posteriordb.judged(known.reported(posterior.sample_weights()).unsqueeze(0), reference)
    assert found["z"] < 4.5
    assert found["mean_error"] < 0.3
    assert 0.8 < found["sd_ratio"][0] <= found["sd_ratio"][1] < 1.2


def test_every_program_reports_what_its_reference_does() -> None:
    for name in BUILDERS:
        known, reference = load(FOLDER, name)
        assert len(known.data) > 1
        assert reference.mean.shape == reference.sd.shape


def test_a_fit_that_is_refused_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise ValueError("no mode")

    monkeypatch.setitem(posteriordb.METHODS, "Laplace", refused)
    line = posteriordb.run("sblri", "Laplace", FOLDER, 0)
    assert line == {"posterior": "sblri", "method": "Laplace", "seed": 0, "refused": "no mode"}
