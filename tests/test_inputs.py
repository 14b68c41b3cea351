"""Inputs of several parts: cut and joined as one tensor is, and handed to the network as it takes them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bayesuq.data import Dataset, Standardizer, split_dataset
from bayesuq.inputs import Parts, apply, arguments, as_rows, checked, joined, mapped, named_leaves
from tests.zoo import structures as zoo
from tests.zoo.structures import AGE, IDS, IMAGE, LABELS, MASK, NUM_ROWS

CASES = zoo.cases()


def leaves(x: Any) -> list[torch.Tensor]:
    return list(named_leaves(x).values())


@pytest.mark.parametrize("name", CASES)
def test_a_network_is_called_as_its_user_would_call_it(name: str) -> None:
    case = CASES[name]
    case.net.eval()
    assert torch.equal(apply(case.net, checked(case.x)), case.by_hand(case.net))
    torch.testing.assert_close(apply(case.net, checked(case.x)[3:5]), case.by_hand(case.net)[3:5])


def test_one_tensor_is_one_argument() -> None:
    assert arguments(nn.Linear(2, 1), IMAGE) == ((IMAGE,), {})
    assert torch.equal(apply(nn.Identity(), IMAGE), IMAGE)


@pytest.mark.parametrize("name", CASES)
def test_rows_are_taken_from_every_part(name: str) -> None:
    data = Dataset(CASES[name].x, LABELS, torch.arange(NUM_ROWS))
    assert type(data.x) is type(CASES[name].x)
    order = torch.randperm(NUM_ROWS)
    chosen = data.rows(order)
    for part, whole in zip(leaves(chosen.x), leaves(CASES[name].x), strict=True):
        assert torch.equal(part, whole[order])
        assert part.dtype == whole.dtype
    assert torch.equal(chosen.y, LABELS[order])
    halves = chosen.rows(range(5)).concatenate(chosen.rows(range(5, 9)), chosen.rows(range(9, NUM_ROWS))).to("cpu")
    for part, whole in zip(leaves(halves.x), leaves(chosen.x), strict=True):
        assert torch.equal(part, whole)
    split = split_dataset(data, val_fraction=0.25, test_fraction=0.25, seed=0)
    assert [len(part) for part in (split.train, split.val, split.test)] == [6, 3, 3]


def test_parts_split_as_a_tensor_does() -> None:
    parts = Parts({"image": IMAGE, "age": AGE})
    for sizes in (5, [3, 4, 5]):
        found = [part.value for part in parts.split(sizes)]
        for name, whole in (("image", IMAGE), ("age", AGE)):
            assert all(torch.equal(one[name], other) for one, other in zip(found, whole.split(sizes), strict=True))
    assert (len(parts), parts.numel(), parts[:1].numel()) == (NUM_ROWS, 4 * NUM_ROWS, 4)
    assert torch.equal(joined(parts.split(5)).value["image"], IMAGE)
    assert torch.equal(joined(IMAGE.split(5)), IMAGE)
    assert as_rows(IMAGE) is IMAGE


def test_arrays_become_tensors_and_keep_their_kind() -> None:
    x = {
        "ids": np.array([[1], [2]]),
        "mask": np.array([True, False]),
        "pixels": np.zeros((2, 3), np.uint8),
        "none": None,
    }
    found = checked(x).value
    assert {name: part.dtype for name, part in found.items() if part is not None} == {
        "ids": torch.int64,
        "mask": torch.bool,
        "pixels": torch.float32,
    }
    assert found["none"] is None
    assert repr(Dataset({"ids": IDS}, LABELS)) == "Dataset(x.ids: (12, 4) int64, y: (12,) int64)"


def test_lists_and_tuples_of_numbers_are_one_array() -> None:
    assert torch.equal(checked(((1.0, 2.0), (3.0, 4.0))), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert mapped(lambda leaf: leaf + 1, IMAGE).shape == IMAGE.shape


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ({"a": IMAGE, "b": AGE[:5]}, ValueError, r"same N rows.*'x.a': 12, 'x.b': 5"),
        ({"a": IMAGE, "b": torch.tensor(1.0)}, ValueError, r"`x\.b` must have N rows"),
        ({"a": IMAGE, "b": np.array(["one"] * 12)}, TypeError, "`x.b` must hold numbers"),
        ({"a": {"b": IMAGE / 0}}, ValueError, "`x.a.b` must be finite"),
        ({}, ValueError, "at least one"),
        ((IMAGE, torch.zeros(0)), ValueError, "at least one"),
    ],
)
def test_parts_are_checked_and_named(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Dataset(x, LABELS)


def test_data_of_other_parts_do_not_join() -> None:
    one = Dataset({"a": IMAGE, "b": AGE}, LABELS)
    with pytest.raises(ValueError, match="same shape concatenate"):
        one.concatenate(Dataset({"a": IMAGE}, LABELS))
    with pytest.raises(ValueError, match=r"`x\.b` of"):
        one.concatenate(Dataset({"a": IMAGE, "b": MASK[:, 0]}, LABELS))
    with pytest.raises(ValueError, match="same parts join"):
        joined([Parts({"a": IMAGE}), Parts({"b": IMAGE})])
    with pytest.raises(TypeError, match=r"one tensor; got `x\.a` of shape"):
        Standardizer.fit(one)


class Graph:
    """All nodes of all graphs, as PyTorch Geometric has them."""

    def __init__(self) -> None:
        self.x, self.edge_index = torch.ones(5, 2), torch.zeros(2, 3, dtype=torch.long)


class Photo(torch.Tensor):
    """A tensor of a library's own kind, as MONAI's and torchvision's."""


SEQUENCES = [torch.ones(length, 2) for length in (1, 3, 2)]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.utils.rnn.pack_sequence(SEQUENCES, enforce_sorted=False), "pad_packed_sequence"),
        # Made by the test and not when it is collected, because a jagged tensor loads torch's compiler.
        (lambda: torch.nested.nested_tensor(SEQUENCES, layout=torch.jagged), "to_padded_tensor"),
        (lambda: SEQUENCES, "pad_sequence"),
        (Graph, "rows are nodes"),
        (lambda: {"image": torch.ones(3, 2), "path": ["a", "b", "c"]}, "Leave out parts"),
        (lambda: {"image": torch.ones(3, 2), "flag": True}, "wrap it"),
    ],
)
def test_what_has_no_row_for_each_target_is_refused_with_the_way_out(make: Callable[[], Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        Dataset(make(), torch.zeros(3))


def test_parts_may_be_missing_and_tensors_of_other_kinds_become_plain() -> None:
    assert Dataset((torch.ones(3, 2), None), torch.zeros(3)).rows([0, 2]).x[1] is None
    data = Dataset({"photo": torch.ones(3, 2).as_subclass(Photo)}, torch.zeros(3).as_subclass(Photo))
    assert type(data.x["photo"]) is type(data.y) is torch.Tensor
