"""Stretches cover a vector in its order, and are filled with the random numbers of the whole."""

import pytest
import torch

from bayesuq.inference.ivon import stretches


@pytest.mark.parametrize("size", [1, 15, 16, 63, 64, 100, 127, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_those_of_one_fill(monkeypatch, size, dtype):
    monkeypatch.setattr(stretches, "LENGTH", 32)
    parts = stretches.stretches(size, torch.device("cpu"))
    assert len(parts) == max(1, size // (32 * torch.get_num_threads()))
    values = torch.full((size,), torch.nan, dtype=dtype)
    noise = torch.Generator().manual_seed(0)
    for where in parts:
        values[where].normal_(generator=noise)
    assert torch.equal(values, torch.empty_like(values).normal_(generator=torch.Generator().manual_seed(0)))


def test_an_accelerator_and_no_weights_have_one():
    assert stretches.stretches(10**7, torch.device("meta")) == [slice(0, 10**7)]
    assert stretches.stretches(0, torch.device("cpu")) == [slice(0, 0)]
