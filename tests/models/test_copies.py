"""Copies of module trees are those of `copy.deepcopy`, made faster, and share nothing with what they are of."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bayesuq.models.copies import deep_copy


class Held(nn.Module):
    """Two layers with one weight, one empty list under two names; it counts its copies, which it makes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.times, self.notes = 0, list[int]()
        self.first.notes = self.notes

    def __deepcopy__(self, known: dict[int, Any]) -> "Held":
        fresh = type(self).__new__(type(self))
        known[id(self)] = fresh
        vars(fresh).update(copy.deepcopy(vars(self), known), times=self.times + 1)
        return fresh


@pytest.mark.parametrize("copied", [copy.deepcopy, deep_copy])
def test_what_is_held_twice_is_one_thing_and_nothing_is_shared(copied: Callable[[Any], Any]) -> None:
    net = nn.Sequential(Held())
    (own,) = copied(net)
    assert own.times == 1
    assert own.first.weight is own.second.weight
    assert own.first.weight is not net[0].first.weight
    assert own.notes is own.first.notes
    own.notes.append(1)
    own.first.register_forward_hook(lambda *_: pytest.fail("the hook of a copy"))
    own.first.register_buffer("further", torch.zeros(1))
    own.first.add_module("inner", nn.Identity())
    net[0].first(torch.ones(1, 2))
    assert net[0].notes == []
    assert list(net.buffers()) == []
    assert len(list(net.modules())) == 4


def test_what_has_a_copy_keeps_it() -> None:
    net = nn.Linear(2, 2)
    hooks = net._forward_hooks
    own = deep_copy(net, {id(net.weight): net.weight, id(hooks): hooks})
    assert own.weight is net.weight
    assert own.bias is not net.bias
    assert own._forward_hooks is hooks
    assert own._forward_pre_hooks is not net._forward_pre_hooks


class Counting(nn.Module):
    """It counts its weights when its state is set, which takes children that have theirs; it knows itself, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.count, self.options = 0, {"sizes": [1, 2]}
        object.__setattr__(self, "itself", [self])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.count = len(list(self.parameters()))


def test_every_module_has_the_attributes_that_a_plain_copy_gives_it() -> None:
    net: Any = nn.Sequential(Counting(), nn.LSTM(2, 3), nn.MultiheadAttention(4, 2), Held())
    net[0].register_forward_pre_hook(lambda *_: None)
    one, other = deep_copy(net), copy.deepcopy(net)
    assert one[0].count == 4
    assert one[0].itself[0] is one[0]
    for own, expected, given in zip(one.modules(), other.modules(), net.modules(), strict=True):
        assert type(own) is type(expected)
        assert vars(own).keys() == vars(expected).keys()
        for name, value in vars(own).items():
            assert type(value) is type(vars(expected)[name])
            assert value is not vars(given).get(name) or not isinstance(value, dict | list | set | torch.Tensor)
    assert one[0].options == net[0].options
    assert one[0].options["sizes"] is not net[0].options["sizes"]
    x = torch.ones(2, 2)
    torch.testing.assert_close(one[1](x), net[1](x), rtol=0, atol=0)
