"""Out of distribution: MNIST against Fashion-MNIST and back, and digits up to eight against nines, nine methods.

A line of JSON for each direction, network, seed and method, with AUROC of every uncertainty and the width of the
posterior, which AUROC follows. Lines that are there are skipped; a fit that was stopped goes on from its checkpoint. At
the end a table a direction, and the ensemble against the single softmax, paired by seed.
"""

import argparse
from pathlib import Path
from time import perf_counter

import torch

import bayesuq as bq
from bayesuq.evaluation.report.detection_tasks import evaluate_ood
from bayesuq.evaluation.scores import accuracy, negative_log_likelihood
from bayesuq.inference.posteriors.saved import load
from bayesuq.posterior import Posterior
from bayesuq.randomness import derive_seed
from scripts.further_tables import of_other_inputs
from scripts.ood_methods import (
    NETWORKS,
    STANDS_ON_MAP,
    WITHOUT_NETWORK,
    NetworkKind,
    fit,
    posterior_width,
    read_settings,
)
from scripts.recording import Record, Records, digest, versions

SETTINGS = Path(__file__).parent / "settings"
SETTINGS_OF = {  # by set and network; digits are rows of pixels
    **{(data, "mlp"): SETTINGS / "ood.toml" for data in ("mnist", "fashion_mnist")},
    **{(data, "convnet"): SETTINGS / "ood-convnet.toml" for data in ("mnist", "fashion_mnist")},
    ("digits-0to8", "mlp"): SETTINGS / "ood-digits.toml",
}
SETS = list(dict.fromkeys(data for data, _ in SETTINGS_OF))
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "ood.jsonl"


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
    settings, records = read_settings(options.settings or SETTINGS_OF[data, kind]), Records(options.out)
    on_map = method in STANDS_ON_MAP
    chosen = digest({name: digest(settings[name]) for name in (method, "map")} if on_map else settings[method])
    network = "none" if method in WITHOUT_NETWORK else kind
    key: Record = {"data": data, "network": network, "seed": seed, "method": method, "settings": chosen}
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
    print(f"{data}, {network}, seed {seed}, {method}: AUROC {found['auroc']['predictive_entropy']:.4f}", flush=True)


def mode_file(work: Path, data: str, kind: str, seed: int, settings: str) -> Path:
    """Where a mode is kept, for what stands on it."""
    return work / f"mode-{data}-{kind}-{seed}-{settings}.safetensors"


def main(options: argparse.Namespace) -> None:
    """Every direction, network, seed and method in turn, and the table."""
    options.work.mkdir(parents=True, exist_ok=True)
    for data in options.data:
        split = bq.datasets.load(data)
        for seed in range(options.num_seeds):
            for kind in options.networks:
                file = SETTINGS_OF.get((data, kind))
                for method in read_settings(options.settings or file) if file else ():
                    run(method, data, kind, split, seed, options)
    print("\n".join(of_other_inputs(Records(options.out).read())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=SETS, default=SETS, help="fitted to")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument(
        "--settings", type=Path, help="TOML file with a table a method; default: that of data and network"
    )
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of JSON lines")
    parser.add_argument("--work", type=Path, default=Path("runs/ood"), help="folder for checkpoints and modes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    main(arguments)
