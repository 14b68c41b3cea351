"""Other packages beside ours, each in an environment of its own: `make bench-peers`.

    python -m benchmarks.peers [--folder build/peers] [--out bench-peers.jsonl] [name ...]
    python -m benchmarks.peers --in-this-environment NAME   # the lines of one, on standard output

An environment is made where it is not there yet, from `requirements/NAME.txt`, whose versions are pinned; ours is the
one that this runs in. A line of JSON for each thing that is timed; one that fails leaves a line that says why.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import venv
import warnings
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).parent / "requirements"
WITHOUT_THEIR_OWN = {"tyxe": "tyxe==0.0.2"}  # whose requirements would replace torch
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def environment(name: str, folder: Path) -> Path:
    """The interpreter of a package's environment, which is made where it is not there."""
    if name == "bayesuq":
        return Path(sys.executable)
    python = folder / name / "bin" / "python"
    ready = folder / name / "ready"
    if not ready.exists():
        venv.create(folder / name, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "--requirement", str(REQUIREMENTS / f"{name}.txt")], check=True)
        if name in WITHOUT_THEIR_OWN:
            subprocess.run([*install, "--no-deps", WITHOUT_THEIR_OWN[name]], check=True)
        ready.touch()
    return python


def run(name: str, turns: int) -> None:
    """Time one package, which is here."""
    from benchmarks.peers.packages import DISTRIBUTIONS, PACKAGES
    from benchmarks.peers.timed import timed

    warnings.simplefilter("ignore")
    versions = {one: version(one).partition("+")[0] for one in (DISTRIBUTIONS.get(name, name), "torch")}
    for line in PACKAGES[name]():
        found = timed(line, turns)
        told = {"peer": name, **found, "versions": versions, "Python": platform.python_version()}
        print(json.dumps(told), flush=True)


def main() -> int:
    """All that are asked for; 1 where one has failed."""
    names = ["bayesuq", *sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--out", type=Path, default=Path("bench-peers.jsonl"))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--in-this-environment", metavar="NAME")
    chosen = parser.parse_args()
    if chosen.in_this_environment:
        run(chosen.in_this_environment, chosen.turns)
        return 0
    failed = False
    for name in chosen.names or names:
        command = ["-m", "benchmarks.peers", "--in-this-environment", name, "--turns", str(chosen.turns)]
        told = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
        found = subprocess.run(
            [str(environment(name, chosen.folder.resolve())), *command],
            env=told,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in found.stdout.splitlines() if line.startswith("{")]
        if found.returncode:
            failed = True
            lines.append(json.dumps({"peer": name, "failed": found.stderr.strip().splitlines()[-1:]}))
        with chosen.out.open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))
        print("\n".join(lines), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
