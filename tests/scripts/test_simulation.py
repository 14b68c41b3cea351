"""Simulation-based calibration of a conjugate model: its exact draws, and the script from end to end."""

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from scripts import simulation as script
from scripts.simulation import NOISE, build, exact, inputs, main
from tests.inference.examples import SHORT_FIT


def test_exact_draws_have_the_moments_of_the_posterior() -> None:
    x = inputs()
    _, y = build().simulate(x, seed=0)
    draws = torch.cat([torch.cat([one["1.weight"].squeeze(1), one["1.bias"]], dim=1) for one in _many(x, y)])
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    covariance = torch.linalg.inv(design.T @ design / NOISE**2 + torch.eye(4, dtype=x.dtype))
    mean = covariance @ design.T @ y.squeeze(1) / NOISE**2
    white = (draws - mean) @ torch.linalg.cholesky(torch.linalg.inv(covariance))
    # 9,800 draws: standard errors .0101 of a mean, .0143 of a variance
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(4, dtype=x.dtype), rtol=0, atol=4 * 0.0101)
    torch.testing.assert_close(white.T.cov(), torch.eye(4, dtype=x.dtype), rtol=0, atol=4 * 0.0143)


def _many(x: torch.Tensor, y: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [exact(x, y, seed) for seed in range(200)]


@pytest.mark.slow
@pytest.mark.filterwarnings(*SHORT_FIT)
def test_every_method_is_judged_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "WARMUP", 5)
    monkeypatch.setattr(script, "THINNING", 1)
    monkeypatch.setattr(script, "NUM_EPOCHS", 3)
    main(2, tmp_path / "new" / "ranks.png")
    printed = capsys.readouterr().out
    for name in ("exact", "NUTS", "full rank", "mean field", "a third narrower"):
        assert f"{name}: 2 simulations of 49 draws" in printed
    assert printed.count("log-likelihood") == 5
    assert imread(tmp_path / "new" / "ranks.png")[..., :3].std() > 0.02
