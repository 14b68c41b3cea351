"""Labels saved: the script on images that are easy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

import bayesuq as bq
from bayesuq.randomness import generator
from scripts.active_learning import Setting, balanced, draw, run
from scripts.recording import Records
from tests.inference.examples import SHORT_FIT

SETTING = Setting(num_labels=30, at_a_time=10, candidates=50, num_choosing=4, num_steps=25)


def bright(num_rows: int, seed: int) -> bq.Dataset:
    """Images of 28 x 28 with a bright square, whose place is the label."""
    noise, y = generator(seed), torch.arange(num_rows) % 10
    x = 0.1 * torch.rand(num_rows, 1, 28, 28, generator=noise)
    for image, place in zip(x, y.tolist(), strict=True):
        image[0, 4 * (place % 5) + 4 :, 12 * (place // 5) :][:5, :10] += 0.9
    return bq.Dataset(x, y)


def test_the_start_has_as_many_of_each_class_and_is_drawn_by_the_seed() -> None:
    y: Tensor = bright(100, 0).y
    rows = balanced(y, 3, seed=1)
    assert y[rows].bincount().tolist() == [3] * 10
    assert len(rows.unique()) == 30
    assert not torch.equal(rows, balanced(y, 3, seed=2))


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_every_curve_begins_alike_is_a_line_and_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn, scores = bq.active.learn, []

    def watched(*arguments: Any, score: Any, **options: Any) -> bq.active.Curve:
        scores.append(score)
        return learn(*arguments, score=score, **options)

    monkeypatch.setattr(bq.active, "learn", watched)
    records = Records(tmp_path / "lines.jsonl")
    run(bright(100, 0), bright(60, 1), records, [0], SETTING)
    bald, random = records.read()
    assert scores == [bald["score"], random["score"]] == ["bald", "random"]
    assert bald["num_labels"] == random["num_labels"] == [20, 30]
    # The same labels and the same weights at first; .1 is chance.
    assert bald["accuracy"][0] == random["accuracy"][0] > 0.3
    content = records.path.read_bytes()
    run(bright(100, 0), bright(60, 1), records, [0], SETTING)
    assert records.path.read_bytes() == content
    draw(records).savefig(tmp_path / "curve.png")
    assert imread(tmp_path / "curve.png")[..., :3].std() > 0.02
