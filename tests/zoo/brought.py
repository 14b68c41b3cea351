"""Small networks of the kinds that users bring with weights, beside batches as their libraries make them."""

from collections import UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bayesuq.randomness import isolated
from tests.zoo import structures
from tests.zoo.pretrained import VisionTransformer

NUM_ROWS, NUM_CLASSES, STEPS, VOCABULARY = 16, 3, 6, 20


class Tokens(UserDict[str, Tensor]):
    """A batch as a tokeniser of Hugging Face makes it, which is a mapping and no dict."""


class Recurrent(nn.Module):
    """An LSTM on padded sequences, packed by their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6, padding_idx=0)
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, NUM_CLASSES)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        return self.head(self.lstm(packed)[1][0][-1])


class Block(nn.Module):
    """A residual block of torchvision, which works in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    """Stem, blocks, pooling, `fc`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.layer1, self.avgpool, self.fc = Block(4), nn.AdaptiveAvgPool2d(1), nn.Linear(4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.layer1(self.relu(self.bn1(self.conv1(x))))), 1))


class Messages(nn.Module):
    """A graph network as PyTorch Geometric has them: all nodes of all graphs in one tensor, edges between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, NUM_CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
        hidden = self.first(x).relu()
        hidden = hidden.index_add(0, edge_index[1], hidden[edge_index[0]])
        return self.last(hidden.new_zeros(num_graphs, 6).index_add(0, batch, hidden))


class PaddedGraphs(nn.Module):
    """Takes padded graphs apart: a row of `nodes` that is 0 is no node, an edge of -1 none."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Messages()

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        is_node = (nodes != 0).any(dim=2)
        place = is_node.flatten().cumsum(0).reshape(is_node.shape) - 1
        graph, edge = (edges[:, :, 0] >= 0).nonzero(as_tuple=True)
        ends = place[graph.unsqueeze(1), edges[graph, edge]]
        return self.net(nodes[is_node], ends.T, is_node.nonzero()[:, 0], len(nodes))


class Brought(NamedTuple):
    """How a network is made, a batch for it, and its last layer with weights."""

    build: Callable[[], nn.Module]
    x: Any
    last: str

    def net(self, seed: int = 0) -> nn.Module:
        """The network, at weights that depend on the seed alone."""
        with isolated(seed):
            return self.build()


def batches() -> dict[str, Any]:
    """Rows for each, the same at each call."""
    noise = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, STEPS + 1, (NUM_ROWS,), generator=noise)
    mask = (torch.arange(STEPS) < lengths.unsqueeze(1)).long()
    tokens = mask * torch.randint(1, VOCABULARY, (NUM_ROWS, STEPS), generator=noise)
    num_nodes = torch.randint(2, 6, (NUM_ROWS, 1), generator=noise)
    nodes = torch.randn(NUM_ROWS, 5, 3, generator=noise) * (torch.arange(5) < num_nodes).unsqueeze(-1)
    edges = torch.randint(2, (NUM_ROWS, 4, 2), generator=noise)
    edges[:, 3] = -1
    return {
        "sequences": {"tokens": tokens, "lengths": lengths},
        "tokens": Tokens(input_ids=tokens, attention_mask=mask),
        "images": torch.randn(NUM_ROWS, 1, 4, 4, generator=noise),
        "graphs": {"nodes": nodes, "edges": edges},
        "two": (torch.randn(NUM_ROWS, 3, generator=noise), torch.randn(NUM_ROWS, generator=noise)),
    }


BATCHES = batches()
LABELS = torch.arange(NUM_ROWS) % NUM_CLASSES


def hugging_face() -> nn.Module:
    """BERT from a small configuration: no weights are downloaded."""
    library = pytest.importorskip("transformers", reason="transformers is not installed: its networks are large")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = library.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=STEPS, num_labels=NUM_CLASSES, **sizes)
    return library.BertForSequenceClassification(config)


BROUGHT = {
    "lstm": Brought(Recurrent, BATCHES["sequences"], "head"),
    "resnet": Brought(ResNet, BATCHES["images"], "fc"),
    "vit": Brought(VisionTransformer, BATCHES["images"], "head"),
    "graph network": Brought(PaddedGraphs, BATCHES["graphs"], "net.last"),
    "two inputs": Brought(lambda: structures.TwoInputs(NUM_CLASSES), BATCHES["two"], "head"),
    "transformer": Brought(lambda: structures.Transformer(VOCABULARY, NUM_CLASSES), BATCHES["tokens"], "head"),
    "hugging face": Brought(hugging_face, BATCHES["tokens"], "classifier"),
}
