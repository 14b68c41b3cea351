"""Out of distribution: MNIST against Fashion-MNIST and back, a perceptron and a convolutional network, eight methods.

A line of JSON for each direction, network, seed and method, with AUROC of every uncertainty and the width of the
posterior, which AUROC follows. Lines that are there are skipped; a fit that was stopped goes on from its checkpoint. At
the end a table, and the ensemble against the single softmax, paired by seed, in the hard direction.
"""

import argparse
from pathlib import Path
from time import perf_counter

import torch

import bayesuq as bq
from bayesuq.evaluation.detection_tasks import evaluate_ood
from bayesuq.evaluation.scores import accuracy, negative_log_likelihood
from bayesuq.inference.saved import load
from bayesuq.posterior import Posterior
from bayesuq.randomness import derive_seed
from scripts.ood_methods import METHODS, NETWORKS, STANDS_ON_MAP, NetworkKind, fit, posterior_width, read_settings
from scripts.recording import Record, Records, digest, versions
from scripts.tables import Mean

SETTINGS = Path(__file__).parent / "settings" / "ood.toml"
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "ood.jsonl"
DIRECTIONS = {"mnist": "Fashion-MNIST", "fashion_mnist": "MNIST"}  # trained on: told from
HARD, SCORES = "fashion_mnist", ("maximum_probability", "predictive_entropy", "mutual_information")


def judge(posterior: Posterior, split: bq.Split, num_samples: int, seed: int) -> Record:
    """Accuracy inside, AUROC of each score, and the posterior's width."""
    if split.ood is None:
        raise ValueError("The other set of images is not there.")
    key = derive_seed(seed, 2)
    inside, outside = (posterior.predict(x, num_samples=num_samples, seed=key) for x in (split.test.x, split.ood.x))
    found = evaluate_ood(inside, outside)
    areas = {name: measures[0].value for name, measures in found.table.measures.items()}
    return {
        "error": 1 - float(accuracy(inside, split.test.y)),  # type: ignore[arg-type]
        "negative_log_likelihood": float(negative_log_likelihood(inside, split.test.y)),
        "auroc": areas,
        "auroc_standard_error": {name: m[0].standard_error for name, m in found.table.measures.items()},
        "mean_mutual_information": float(inside.epistemic.mean()),
        "width": posterior_width(posterior, derive_seed(seed, 3)),
        "num_draws": inside.num_samples,
    }


def run(method: str, data: str, kind: NetworkKind, split: bq.Split, seed: int, options: argparse.Namespace) -> None:
    """Fit and judge one method, if it has no line yet."""
    settings, records = read_settings(options.settings), Records(options.out)
    on_map = method in STANDS_ON_MAP
    chosen = digest({name: digest(settings[name]) for name in (method, "map")} if on_map else settings[method])
    key: Record = {"data": data, "network": kind, "seed": seed, "method": method, "settings": chosen}
    if records.has(**key):
        return
    file = options.work / "-".join(map(str, key.values()))
    mode = load(mode_file(options.work, data, kind, seed, digest(settings["map"]))) if on_map else None
    resumed, begin = file.exists(), perf_counter()
    posterior = fit(method, settings[method], kind, split, seed, file, mode)
    seconds = None if resumed else perf_counter() - begin
    if method == "map":
        posterior.save(mode_file(options.work, data, kind, seed, digest(settings["map"])))
    found = judge(posterior, split, settings[method].num_samples, seed)
    records.append({**key, **found, "seconds": seconds, "versions": versions()})
    for part in file.parent.glob(f"{file.name}*"):
        part.unlink()
    print(f"{data}, {kind}, seed {seed}, {method}: AUROC {found['auroc']['predictive_entropy']:.4f}", flush=True)


def mode_file(work: Path, data: str, kind: str, seed: int, settings: str) -> Path:
    """Where a mode is kept, for what stands on it."""
    return work / f"mode-{data}-{kind}-{seed}-{settings}.safetensors"


def mean_and_error(values: list[float]) -> str:
    """Over seeds."""
    return Mean.of(values).rounded(4)


def table(lines: list[Record]) -> str:
    """AUROC by direction, network and method, and the paired difference in the hard direction."""
    rows = []
    for data, kind in ((data, kind) for data in DIRECTIONS for kind in NETWORKS):
        rows.append(f"{data} against {DIRECTIONS[data]}, {kind}: AUROC of {', '.join(SCORES)}; error; width")
        for method in METHODS:
            own = [line for line in lines if (line["data"], line["network"], line["method"]) == (data, kind, method)]
            if own:
                areas = [mean_and_error([line["auroc"].get(score, 0.5) for line in own]) for score in SCORES]
                widths = [line["width"] for line in own if line["width"] is not None]
                width = mean_and_error(widths) if widths else "-"
                rows.append("  ".join([f"{method:12}", *areas, mean_and_error([line["error"] for line in own]), width]))
        rows.append(f"ensemble - map by seed, entropy: {paired(lines, data, kind)}")
    return "\n".join(rows)


def paired(lines: list[Record], data: str, kind: str) -> str:
    """The ensemble's AUROC above the single softmax's, over the seeds that have both."""
    of: dict[str, dict[int, float]] = {"ensemble": {}, "map": {}}
    for line in lines:
        if (line["data"], line["network"]) == (data, kind) and line["method"] in of:
            of[line["method"]][line["seed"]] = line["auroc"]["predictive_entropy"]
    both = sorted(of["ensemble"].keys() & of["map"].keys())
    return mean_and_error([of["ensemble"][seed] - of["map"][seed] for seed in both]) if both else "not there"


def main(options: argparse.Namespace) -> None:
    """Every direction, network, seed and method in turn, and the table."""
    options.work.mkdir(parents=True, exist_ok=True)
    for data in DIRECTIONS:
        split = bq.datasets.load(data)
        for seed in range(options.num_seeds):
            for kind in options.networks:
                for method in [name for name in METHODS if name in read_settings(options.settings)]:
                    run(method, data, kind, split, seed, options)
    print(table(Records(options.out).read()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="TOML file with a table a method")
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of JSON lines")
    parser.add_argument("--work", type=Path, default=Path("runs/ood"), help="folder for checkpoints and modes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    main(arguments)
