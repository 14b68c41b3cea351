"""Softmaxes of many draws of labels: the same numbers, with the classes apart in memory."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bayesuq.predictive import categorical


@pytest.mark.parametrize("shape", [(3, 5, 2), (2, 4, 32), (2, 4, 33), (1, 3, 4, 2, 2)])
def test_softmaxes_are_torchs_own_however_classes_lie_in_memory(shape: tuple[int, ...]) -> None:
    logits = 30 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = logits.double().log_softmax(dim=2)
    torch.testing.assert_close(categorical._log_softmax(logits), expected, rtol=1e-15, atol=1e-14)
    assert categorical._log_softmax(logits).is_contiguous()


class Softmaxes(TorchDispatchMode):
    """How far apart in memory the classes are that a softmax runs over."""

    def __init__(self) -> None:
        super().__init__()
        self.apart: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._log_softmax.default:
            self.apart.append(args[0].stride(args[1]))
        return func(*args, **(kwargs or {}))


def test_softmaxes_of_few_classes_run_side_by_side() -> None:
    """One after another they took five times as long, and most of a prediction of labels."""
    with Softmaxes() as found:
        categorical._log_softmax(torch.zeros(3, 5, 10))
    assert found.apart == [15]


@pytest.mark.parametrize("shape", [(1, 1, 2, 130, 130), (3, 5, 2, 7), (2, 3, 2, 4, 3, 2), (2, 2, 2, 2**14 + 1)])
def test_two_maps_have_the_sums_of_any_number_of_classes(shape: tuple[int, ...]) -> None:
    """Their sigmoids are taken piece by piece; logits 600 apart, equal ones and single floats are among them."""
    logits = 10 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    logits[:, :, :, ..., 0], logits[0, 0, 1, ..., -1] = 0.25, 600.0
    predictive = categorical.CategoricalPredictive.from_logits(logits)
    running, entropy, votes = categorical._sums_of_logits(logits)
    torch.testing.assert_close(predictive.probability_sum, running.value, rtol=1e-14, atol=0)
    torch.testing.assert_close(predictive.entropy_sum, entropy, rtol=1e-14, atol=1e-15)
    assert predictive.votes.equal(votes)


@pytest.mark.parametrize("far", [-torch.inf, -700.0])
def test_two_maps_that_a_class_is_ruled_out_of(far: float) -> None:
    logits = torch.zeros(2, 1, 2, 3, dtype=torch.float64)
    logits[:, :, 0, 0] = far
    predictive = categorical.CategoricalPredictive.from_logits(logits)
    assert predictive.log_probability_sum[0, 0, 0].item() == pytest.approx(far + math.log(2), abs=1e-12)
    assert predictive.entropy_sum[0].tolist() == pytest.approx([0, 2 * math.log(2), 2 * math.log(2)], abs=1e-14)
    assert predictive.votes[0, :, 0].tolist() == [0, 2]


def test_logits_of_two_maps_are_not_written_into() -> None:
    logits = torch.randn(2, 1, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = logits.clone()
    predictive = categorical.CategoricalPredictive.from_logits(logits)
    assert logits.equal(given)
    torch.testing.assert_close(predictive.samples, given.softmax(dim=2))
