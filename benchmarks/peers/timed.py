"""The problem that all peers have, and how they are timed: it imports torch, and nothing of any peer's.

A network of 16-64-64-5, 1,024 rows of five classes in minibatches of 128, as in `benchmarks/suite.py`. Ours or a peer's
and plain torch have turns in one process, on one thread, by CPU time; told are the median over turns of their ratio and
its quartiles.
"""

import statistics
from collections.abc import Callable, Iterator
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

NUM_ROWS, NUM_FEATURES, NUM_CLASSES, WIDTH, BATCH_SIZE = 1024, 16, 5, 64, 128
NUM_DRAWS, NUM_PREDICTED, NUM_STEPS = 100, 1000, 160
NUM_OF_PROCESS = 300  # rows of a Gaussian process, which is regressed
TURN = 0.15  # CPU seconds of a turn of either, at least


class Line(NamedTuple):
    """Something that is timed beside a reference."""

    what: str
    reference: str
    ours: Callable[[], object]
    theirs: Callable[[], object]


def rows() -> tuple[Tensor, Tensor]:
    """Inputs and labels."""
    torch.manual_seed(0)
    x = torch.randn(NUM_ROWS, NUM_FEATURES)
    return x, (x[:, :NUM_CLASSES] + 0.5 * torch.randn(NUM_ROWS, NUM_CLASSES)).argmax(1)


def plain_net() -> nn.Sequential:
    """The network."""
    torch.manual_seed(0)
    sizes = (nn.Linear(NUM_FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    return nn.Sequential(*sizes, nn.Linear(WIDTH, NUM_CLASSES))


def minibatches(number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many minibatches, epoch by epoch in an order of its own."""
    x, y = rows()
    while True:
        for chosen in torch.randperm(NUM_ROWS).split(BATCH_SIZE):
            if number == 0:
                return
            number -= 1
            yield x[chosen], y[chosen]


def plain_steps() -> None:
    """Steps of default Adam."""
    net = plain_net()
    optimizer = torch.optim.Adam(net.parameters())
    for x, y in minibatches(NUM_STEPS):
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        loss.item()


def new_rows() -> Tensor:
    """Inputs to predict."""
    return torch.randn(NUM_PREDICTED, NUM_FEATURES, generator=torch.Generator().manual_seed(1))


def plain_passes() -> None:
    """As many passes as there are draws."""
    net, x = plain_net(), new_rows()
    with torch.no_grad():
        for _ in range(NUM_DRAWS):
            net(x).softmax(dim=1)


def steps(ours: Callable[[], object]) -> Line:
    """A line of steps."""
    return Line(f"{NUM_STEPS} steps", "plain steps", ours, plain_steps)


def prediction(ours: Callable[[], object]) -> Line:
    """A line of a prediction."""
    return Line(f"{NUM_DRAWS} draws at {NUM_PREDICTED} rows", f"{NUM_DRAWS} passes", ours, plain_passes)


def rows_of_process() -> tuple[Tensor, Tensor]:
    """Inputs and noisy sines."""
    noise = torch.Generator().manual_seed(0)
    x = torch.rand(NUM_OF_PROCESS, 2, generator=noise, dtype=torch.float64)
    return x, (6 * x[:, 0]).sin() + 0.1 * torch.randn(NUM_OF_PROCESS, generator=noise, dtype=torch.float64)


def plain_process() -> None:
    """Twenty gradients of a log marginal likelihood as a plain script writes it."""
    x, y = rows_of_process()
    logs = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        scaled = x / logs[:2].exp()
        covariance = logs[2].exp() * (-0.5 * torch.cdist(scaled, scaled).square()).exp()
        factor = torch.linalg.cholesky(covariance + (logs[3].exp() + 1e-6) * torch.eye(len(x), dtype=torch.float64))
        half = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
        (half.square().sum() / 2 + factor.diagonal().log().sum()).backward()
        optimizer.step()


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of a call."""
    begin = process_time()
    for _ in range(repeats):
        work()
    return (process_time() - begin) / repeats


def timed(line: Line, turns: int) -> dict[str, Any]:
    """Both in turn, after a call of each, which compiles what is compiled."""
    works = (line.ours, line.theirs)
    for work in works:
        work()
    repeats = [max(1, round(TURN / max(seconds_of(work, 1), 1e-6))) for work in works]
    found = [[seconds_of(works[side], repeats[side]) for side in (turn % 2, 1 - turn % 2)] for turn in range(turns)]
    pairs = [(one, other) if turn % 2 == 0 else (other, one) for turn, (one, other) in enumerate(found)]
    low, middle, high = statistics.quantiles([one / other for one, other in pairs], n=4)
    milliseconds = 1e3 * statistics.median(one for one, _ in pairs)
    told = {"what": line.what, "reference": line.reference, "ratio": middle, "low": low, "high": high}
    return {**told, "milliseconds": milliseconds, "turns": turns}
