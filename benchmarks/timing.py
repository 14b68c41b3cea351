"""How the benchmarks time: alternately, in one process, on one thread, by CPU time, as medians."""

import statistics
from collections.abc import Callable, Mapping
from time import process_time

import torch

torch.set_num_threads(1)


def median_seconds(steps: Mapping[str, Callable[[], object]], *, rounds: int, repeats: int) -> dict[str, float]:
    """CPU seconds of one call of each step: the median over rounds, in each of which every step has its turn.

    Args:
        steps: What to time, by name.
        rounds: Number of turns that each step has.
        repeats: Calls in one turn, for steps that are shorter than the clock is fine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            begin = process_time()
            for _ in range(repeats):
                step()
            seconds[name].append((process_time() - begin) / repeats)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_ratios(title: str, seconds: Mapping[str, float], baselines: tuple[str, ...]) -> None:
    """A row for each step: milliseconds, and the ratio to each baseline."""
    print(f"\n{title}")
    columns = [f"/ {name}" for name in baselines]
    print(f"  {'':34s} {'ms':>9s}" + "".join(f" {column:>16s}" for column in columns))
    for name, value in seconds.items():
        ratios = [f"{value / seconds[baseline]:.2f}" for baseline in baselines]
        cells = [f" {ratio:>{max(16, len(column))}s}" for ratio, column in zip(ratios, columns, strict=True)]
        print(f"  {name:34s} {1e3 * value:9.3f}" + "".join(cells))
