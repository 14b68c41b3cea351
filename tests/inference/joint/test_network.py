"""Gradients of flat vectors are written or added, as is said."""

import pytest
import torch
from torch import Tensor

from bayesuq.inference.joint import network
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.network import FlatVector, write_gradients


def vector() -> FlatVector:
    layout = Layout({"used": torch.Size([2]), "unused": torch.Size([1])}, {})
    found = FlatVector(layout, torch.tensor([1.0, 2.0, 3.0]))
    found.grad.fill_(5.0)
    return found


@pytest.mark.parametrize("short", [0, 100])
def test_gradients_of_some_vectors_are_written_and_those_of_others_added(monkeypatch, short):
    monkeypatch.setattr(network, "SHORT", short)
    written, added = vector(), vector()
    places = [leaf.grad for leaf in written.leaves.values()]
    loss = sum(one.leaves["used"].square().sum() for one in (written, added))
    write_gradients(loss, [written], torch.tensor(3.0))
    assert written.grad.tolist() == [6.0, 12.0, 0.0]
    assert added.grad.tolist() == [11.0, 17.0, 5.0]
    assert all(leaf.grad is place for leaf, place in zip(written.leaves.values(), places, strict=True))


def test_a_backward_pass_that_raises_leaves_the_gradients_where_they_were(monkeypatch):
    monkeypatch.setattr(network, "SHORT", 0)

    class RefusedError(Exception):
        pass

    def refuse(_: Tensor) -> None:
        raise RefusedError

    written = vector()
    places = [leaf.grad for leaf in written.leaves.values()]
    loss = written.leaves["used"].sum()
    loss.register_hook(refuse)
    with pytest.raises(RefusedError):
        write_gradients(loss, [written])
    assert all(leaf.grad is place for leaf, place in zip(written.leaves.values(), places, strict=True))
