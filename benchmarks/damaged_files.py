"""How `bayesuq.load` answers files that were damaged, and files that ask for too much.

`python benchmarks/damaged_files.py`, with the repository on PYTHONPATH. Every answer must be a ValueError or a
posterior of the same numbers, within 10 s and 1 GB.
"""

import random
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from time import perf_counter

import torch

from bayesuq.inference.posteriors.saved import load
from bayesuq.storage import read
from tests.files_of_before.cases import POSTERIORS, posterior_file
from tests.zoo.damaged_files import damaged, rewrite_greedily

MOST_SECONDS = 10


def main(number: int) -> None:
    """Try so many files, a quarter of them greedy, and print what came of it."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _end)
    folder, chance = Path(tempfile.mkdtemp()), random.Random(0)
    names = [name for name, case in POSTERIORS.items() if not case.loads]
    answers, longest = Counter[str](), 0.0
    for name in names:
        load(posterior_file(name)).save(folder / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for count in range(number):
        name = names[count % len(names)]
        whole, part = folder / name, folder / "part"
        greedy = count % 4 == 0
        if greedy:
            rewrite_greedily(whole, part, chance)
        else:
            part.write_bytes(damaged(whole.read_bytes(), chance))
        begin = perf_counter()
        signal.alarm(MOST_SECONDS)
        try:
            load(part)
        except ValueError:
            answer = "ValueError"
        except BaseException as error:
            answer = f"{type(error).__name__} (wrong)"
        else:
            answer = "loaded" if greedy or _same(whole, part) else "other numbers (wrong)"
        signal.alarm(0)
        longest = max(longest, perf_counter() - begin)
        answers[f"{'greedy' if greedy else 'damaged'}: {answer}"] += 1
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for answer, count in sorted(answers.items()):
        print(f"{count:6} {answer}")
    print(f"longest {longest:.2f} s, {(after - before) / 2**10:.0f} MB more than before")


def _end(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"longer than {MOST_SECONDS} s")


def _same(whole: Path, part: Path) -> bool:
    (header, tensors), (other, others) = read(whole), read(part)
    return header == other and all(torch.equal(others[k].nan_to_num(), v.nan_to_num()) for k, v in tensors.items())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000)
