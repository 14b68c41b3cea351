"""The script of the two uncertainties: its laws, its lines, its picture."""

from pathlib import Path

import pytest

import scripts.two_uncertainties as script


def test_the_noise_that_it_tells_is_that_of_the_laws() -> None:
    data, variance = script.curve(200_000, 0)
    squares = (data.y - (2 * data.x).sin()).square()
    assert float((squares / variance).mean()) == pytest.approx(1.0, abs=4 * (2 / 200_000) ** 0.5)
    data, entropy = script.halves(200_000, 0)
    assert float(entropy.max()) <= 0.6932
    far = (data.x[:, 0] < -1.3) & (data.x[:, 1] > 0)
    assert float(data.y[far].double().mean()) < 0.02
    assert float(entropy[far].mean()) < 0.1
    flipped = (data.x[:, 0] > 1.5) & (data.x[:, 1] < 0)
    assert float(data.y[flipped].double().mean()) == pytest.approx(0.7, abs=0.02)


def test_every_size_has_a_line_and_all_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "NUM_STEPS", 5)
    monkeypatch.setattr(script, "NUM_MEMBERS", 2)
    script.main([40, 80], 2, tmp_path / "new" / "parts.png")
    printed = capsys.readouterr().out
    assert printed.count("rows: aleatoric") == 4
    assert printed.count("true noise") == 2
    assert (tmp_path / "new" / "parts.png").stat().st_size > 5000
