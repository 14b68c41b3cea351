"""Softmaxes of many draws of labels: the same numbers, with the classes apart in memory."""

import time

import pytest
import torch

from bayesuq.predictive import categorical


@pytest.mark.parametrize("shape", [(3, 5, 2), (2, 4, 32), (2, 4, 33), (1, 3, 4, 2, 2)])
def test_softmaxes_are_torchs_own_however_classes_lie_in_memory(shape: tuple[int, ...]) -> None:
    logits = 30 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = logits.double().log_softmax(dim=2)
    torch.testing.assert_close(categorical._log_softmax(logits), expected, rtol=1e-15, atol=1e-14)
    assert categorical._log_softmax(logits).is_contiguous()


def test_softmaxes_of_few_classes_run_side_by_side() -> None:
    """One after another they took five times as long, and most of a prediction of labels: measured in turns."""
    logits = torch.randn(25, 1000, 10, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(15):
        for name, work in (("ours", categorical._log_softmax), ("plain", lambda f: f.double().log_softmax(dim=2))):
            begin = time.thread_time()
            work(logits)
            seconds[name].append(time.thread_time() - begin)
    assert min(seconds["ours"]) < 0.75 * min(seconds["plain"])
