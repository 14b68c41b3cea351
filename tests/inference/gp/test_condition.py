"""A posterior that is given further rows: its evidence is that of all of them, and it is factored once."""

import math

import pytest
import torch

from bayesuq.data import Dataset
from bayesuq.inference import gp
from bayesuq.inference.gp import exact
from bayesuq.models.gp import Coregionalised, GaussianProcess, kernels

CASES = {
    "one output": (1, False, None),
    "two outputs that share their factor": (2, False, None),
    "two outputs with missing targets": (2, True, None),
    "two outputs that are coregionalised": (2, False, Coregionalised),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("columns", "lacks", "kernel"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("known", [None, 0.3])
def test_evidence_is_of_all_rows_and_no_prediction_factors_again(columns, lacks, kernel, known, monkeypatch):
    x = torch.rand(30, 2, generator=generator(0), dtype=torch.float64)
    y = torch.randn(30, columns, generator=generator(1), dtype=torch.float64)
    weight = torch.ones(20, columns, dtype=torch.float64)
    if lacks:
        weight[3, 1] = 0.0
    process = GaussianProcess() if kernel is None else GaussianProcess(kernel(kernels.RBF()))
    fitted = gp.fit(process, Dataset(x[:20], y[:20], weight if lacks else None), max_iterations=3, seed=0)
    factored = []
    plain = exact.stable_cholesky
    monkeypatch.setattr(exact, "stable_cholesky", lambda matrix: factored.append(1) or plain(matrix))
    longer = fitted.condition(x[20:], y[20:], noise_scale=None if known is None else torch.full((10,), known))
    longer.predict(x[:5], seed=0)
    assert len(factored) == 1
    expected = exact.log_evidence(longer.model, longer.prior, longer.x, longer.y, longer.noise)
    assert math.isclose(longer.log_marginal_likelihood, expected, rel_tol=1e-9)
