"""Networks whose inputs have several parts, with rows for them."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

NUM_ROWS = 12


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGE, AGE = noise(0, NUM_ROWS, 3), noise(1, NUM_ROWS)
IDS = torch.randint(7, (NUM_ROWS, 4), generator=torch.Generator().manual_seed(2))
MASK = torch.arange(4) < torch.randint(1, 5, (NUM_ROWS, 1), generator=torch.Generator().manual_seed(3))
LABELS = (AGE > 0).long()
Study = namedtuple("Study", "image age")


@dataclass(frozen=True)
class Patient:
    """Parts by name; a part may be missing."""

    image: Any
    age: Any
    history: Any = None


class TwoInputs(nn.Module):
    """A network of two arguments."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, num_classes)

    def forward(self, image: Tensor, age: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(torch.cat([image, age.unsqueeze(1)], dim=1))))


class OfOne(nn.Module):
    """A network of one argument, from which it picks its parts."""

    def __init__(self, pick: Callable[[Any], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.pick, self.net = pick, TwoInputs()

    def forward(self, batch: Any) -> Tensor:
        return self.net(*self.pick(batch))


class Transformer(nn.Module):
    """As Hugging Face has them: all arguments optional, outputs in an object's `.logits`."""

    def __init__(self, vocabulary: int = 7, num_classes: int = 2) -> None:
        super().__init__()
        self.embedding, self.drop = nn.Embedding(vocabulary, 6), nn.Dropout(0.2)
        self.head = nn.Linear(6, num_classes)

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None) -> Any:
        if input_ids is None or attention_mask is None or input_ids.is_floating_point():
            raise TypeError("input_ids and attention_mask must be given, as whole numbers and flags")
        weight = attention_mask.unsqueeze(-1).to(self.embedding.weight)
        pooled = (self.embedding(input_ids) * weight).sum(dim=1) / weight.sum(dim=1)
        return SimpleNamespace(logits=self.head(self.drop(pooled)), hidden_states=None)


@dataclass(frozen=True)
class Case:
    """A network, its inputs as a user writes them, and its outputs by hand."""

    net: nn.Module
    x: Any
    by_hand: Callable[[nn.Module], Tensor]


def cases() -> dict[str, Case]:
    """By name, with weights that are the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        two, hugging = TwoInputs(), Transformer()
        of_mapping = OfOne(lambda batch: (batch["photo"], batch["years"]))
        of_dataclass = OfOne(lambda batch: (batch.image, batch.age))
        of_tuple = OfOne(lambda batch: batch)
    return {
        "two arguments": Case(two, (IMAGE, AGE), lambda net: net(IMAGE, AGE)),
        "keywords": Case(two, {"age": AGE, "image": IMAGE}, lambda net: net(IMAGE, AGE)),
        "a tuple": Case(of_tuple, (IMAGE, AGE), lambda net: net((IMAGE, AGE))),
        "a named tuple": Case(of_dataclass, Study(IMAGE, AGE), lambda net: net(Study(IMAGE, AGE))),
        "a mapping": Case(of_mapping, {"photo": IMAGE, "years": AGE}, lambda net: net({"photo": IMAGE, "years": AGE})),
        "a dataclass": Case(of_dataclass, Patient(IMAGE, AGE), lambda net: net(Patient(IMAGE, AGE))),
        "tokens": Case(
            hugging,
            {"input_ids": IDS, "attention_mask": MASK},
            lambda net: net(input_ids=IDS, attention_mask=MASK).logits,
        ),
    }
