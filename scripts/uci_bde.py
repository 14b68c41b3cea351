"""Microcanonical ensembles by bde (JAX) on UCI splits, for the lines beside ours, in an environment that has it.

    pip install sklearn-contrib-bde
    python scripts/uci_bde.py --data FOLDER --out docs/results/uci-bde.jsonl

Eight networks of two layers of 16, a warm-up of 5,000 steps and 2,000 after, every second one kept; inputs and targets
standardised by the rows that are fitted. The log density is that of the mixture of all draws, in y's own units. CPU
seconds are the process's, compilation included. It imports nothing of bayesuq's.
"""

import argparse
import json
from pathlib import Path
from time import process_time
from typing import Any

import jax.numpy as jnp
import numpy as np
from bde import BdeRegressor
from scipy.special import logsumexp

SETTING: dict[str, Any] = {
    "n_members": 8,
    "hidden_layers": [16, 16],
    "epochs": 1000,
    "patience": 20,
    "lr": 1e-3,
    "warmup_steps": 5000,
    "n_samples": 2000,
    "n_thinning": 2,
}
SETS = ("yacht", "boston", "energy", "concrete")


def measure(file: Any, split: int) -> dict[str, Any]:
    """Fit the training rows of a published split, and measure on its test rows."""
    x, y = file["x"].astype(np.float64), file["y"].reshape(-1).astype(np.float64)
    train, test = file["train_index"][split], file["test_index"][split]
    loc, scale = x[train].mean(axis=0), x[train].std(axis=0)
    scale[scale == 0] = 1.0
    y_loc, y_scale = y[train].mean(), y[train].std()
    begin = process_time()
    inputs = jnp.asarray((x[train] - loc) / scale, jnp.float32)
    model = BdeRegressor(seed=split, **SETTING).fit(inputs, jnp.asarray((y[train] - y_loc) / y_scale, jnp.float32))
    seconds = process_time() - begin
    draws = np.asarray(model.predict(jnp.asarray((x[test] - loc) / scale, jnp.float32), raw=True), np.float64)
    draws = draws.reshape(-1, len(test), 2)  # of members and steps: the mean, and what the scale is the softplus of
    means, scales = draws[..., 0], np.logaddexp(draws[..., 1], 0.0) + 1e-6
    standard = (y[test] - y_loc) / y_scale
    densities = -0.5 * ((standard - means) / scales) ** 2 - np.log(scales) - 0.5 * np.log(2 * np.pi)
    density = logsumexp(densities, axis=0) - np.log(len(draws)) - np.log(y_scale)
    error = y_scale * (means.mean(axis=0) - standard)
    return {
        "log_likelihood": float(density.mean()),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "cpu_seconds": seconds,
        "num_draws": len(draws),
    }


def main(options: argparse.Namespace) -> None:
    """Each split that has no line yet."""
    for split in range(options.count):
        for name in options.sets.split(","):
            key = {"data": name, "split": split, "method": "bde"}
            lines = options.out.read_text().splitlines() if options.out.exists() else []
            if any(key.items() <= json.loads(line).items() for line in lines):
                continue
            found = measure(np.load(options.data / f"{name}.npz"), split)
            with options.out.open("a") as out:
                out.write(json.dumps({**key, "setting": SETTING, **found}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a file a set, as BAYESUQ_DATA/uci")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--count", type=int, default=1, help="splits of each")
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args())
