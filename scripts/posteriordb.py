"""Methods on Pyro programs against the reference draws of posteriordb: errors of means and spreads, and what they cost.

The data are no part of bayesuq: `--data` names a folder of posteriordb's posteriors as .npz files. Lines are appended
to a file, and a command that was stopped goes on. Errors are in units of the reference's standard deviation.
"""

import argparse
import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from bayesuq.fit_warnings import ConvergenceWarning
from bayesuq.inference import hmc, laplace, variational
from bayesuq.pareto import tail_shape
from scripts.posteriordb_programs import BUILDERS, Known, Reference, load
from scripts.recording import Records

OUT = Path(__file__).parents[1] / "docs" / "results" / "posteriordb.jsonl"
NUM_CHAINS, NUM_DRAWS, NUM_RATIOS = 2, 2000, 500
BUDGET, FEWEST_DRAWS = 300.0, 100  # CPU seconds that Pyro's own sampler gets for a posterior; draws that say something


Found = tuple[Tensor, Callable[[], dict[str, Any]]]  # draws of the reported parameters, (C, D, d); what else is told


def by_nuts(known: Known, seed: int) -> Found:
    """Draws of NUTS."""
    start = None
    if known.is_costly:
        start = variational.fit(known.program, known.data, guide=variational.full_rank, seed=seed)
    posterior = hmc.fit(
        known.program,
        known.data,
        num_samples=known.length,
        num_warmup=known.length,
        num_chains=NUM_CHAINS,
        start=start,
        target_acceptance=0.9,
        chain_method="sequential",
        seed=seed,
    )
    told = {"divergences": posterior.num_divergences, "steps": int(posterior.statistics["n_steps"].sum())}
    return known.reported(posterior.sample_weights()).unflatten(0, (NUM_CHAINS, known.length)), lambda: told


class SpentError(Exception):
    """A sampler has had its budget."""


def by_pyro(known: Known, seed: int) -> Found:
    """The same by Pyro's own NUTS, with its defaults but for the acceptance: one chain of half the length.

    It is stopped when `BUDGET` is spent, and has then the draws that it made, of which `told` says the number.

    Raises:
        ValueError: It had made fewer than `FEWEST_DRAWS` by then.
    """
    begin, drawn, done = time.process_time(), [], 0

    def watched(kernel: NUTS, unconstrained: Mapping[str, Tensor], stage: str, _number: int) -> None:
        nonlocal done
        done += 1
        if not stage.startswith("Warmup"):
            drawn.append({name: kernel.transforms[name].inv(z) for name, z in unconstrained.items()})
        if time.process_time() - begin > BUDGET:
            raise SpentError

    torch.manual_seed(seed)
    x = known.data.x
    args = x if isinstance(x, tuple) else (x,)
    y = known.data.y[:, 0] if known.data.y.shape[1:] == (1,) else known.data.y
    sampler = MCMC(
        NUTS(known.program, target_accept_prob=0.9),
        num_samples=known.length // 2,
        warmup_steps=known.length // 2,
        num_chains=1,
        disable_progbar=True,
        hook_fn=watched,
    )
    with contextlib.suppress(SpentError):
        sampler.run(*args, y)
    if len(drawn) < FEWEST_DRAWS:
        raise ValueError(f"{done} of {known.length} transitions in {BUDGET:.0f} CPU seconds")
    draws = {name: torch.stack([one[name] for one in drawn]).detach() for name in drawn[0]}
    return known.reported(draws).unsqueeze(0), lambda: {"draws": len(drawn)}


def of_law(posterior: Any, known: Known, seed: int) -> Found:
    """Draws of a law that was fitted, and its Pareto k."""

    def told() -> dict[str, Any]:
        ratios = posterior.log_importance_ratios(known.data, num_samples=NUM_RATIOS, seed=seed)
        return {"k": tail_shape(ratios.numpy())} if ratios.isfinite().all() else {"k": None}

    return known.reported(posterior.sample_weights(NUM_DRAWS, seed=seed)).unsqueeze(0), told


def by_laplace(known: Known, seed: int) -> Found:
    """Draws of Laplace's law, by its defaults."""
    return of_law(laplace.fit(known.program, known.data, seed=seed), known, seed)


def by_guide(guide: Any) -> Callable[[Known, int], Found]:
    """Draws of a guide that was fitted by the method's defaults."""

    def fit(known: Known, seed: int) -> Found:
        posterior = variational.fit(known.program, known.data, guide=guide, seed=seed)
        return of_law(posterior, known, seed)

    return fit


METHODS: dict[str, Callable[[Known, int], Found]] = {
    "NUTS": by_nuts,
    "Pyro's NUTS": by_pyro,  # next to it, so that both meet the same machine
    "Laplace": by_laplace,
    "mean field": by_guide(variational.mean_field),
    "full rank": by_guide(variational.full_rank),
}


def judged(draws: Tensor, reference: Reference) -> dict[str, Any]:
    """Errors of means and spreads, and the least effective sample size, over the reported parameters."""
    flat = draws.flatten(0, 1).double()
    error = (flat.mean(dim=0) - reference.mean) / reference.sd
    ratio = flat.std(dim=0) / reference.sd
    ess = [float(arviz.ess(np.asarray(draws[:, :, k]))) for k in range(draws.shape[2])]
    noise = ((1 / torch.tensor(ess)).sqrt() ** 2 + (reference.error / reference.sd) ** 2).sqrt()
    return {
        "mean_error": float(error.abs().max()),
        "z": float((error.abs() / noise).max()),
        "sd_ratio": [float(ratio.min()), float(ratio.max())],
        "ess": min(ess),
    }


def run(name: str, method: str, folder: Path, seed: int) -> dict[str, Any]:
    """One line: a method on a posterior."""
    known, reference = load(folder, name)
    record: dict[str, Any] = {"posterior": name, "method": method, "seed": seed}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        begin = time.process_time()
        try:
            draws, told = METHODS[method](known, seed)
        except ValueError as error:
            return record | {"refused": str(error)}
        seconds = time.process_time() - begin
    words = [str(one.message) for one in caught if issubclass(one.category, ConvergenceWarning)]
    found = judged(draws, reference) | told() | {"cpu_seconds": round(seconds, 2), "warnings": words}
    if not all(math.isfinite(value) for value in (found["mean_error"], found["z"], *found["sd_ratio"])):
        return record | {"refused": "the draws are not finite", "warnings": words}
    return record | found


def points(known: Known, seed: int, number: int = 5) -> dict[str, Any]:
    """Values of all latents and the program's log joint there, by which a peer shows that it has the same density.

    Values are N(0, .3) on the line of each number, and then what its constraint makes of them.
    """
    x, y = known.data.x, known.data.y
    program = partial(known.program, *(x if isinstance(x, tuple) else (x,)), y[:, 0] if y.shape[1:] == (1,) else y)
    generator = torch.Generator().manual_seed(seed)
    latents = {name: site["fn"] for name, site in poutine.trace(program).get_trace().nodes.items() if is_latent(site)}
    thetas, log_joints = [], []
    for _ in range(number):
        theta = {}
        for name, law in latents.items():
            to_support = biject_to(law.support)
            shape = to_support.inv(law.sample()).shape
            theta[name] = to_support(0.3 * torch.randn(shape, generator=generator))
        log_joint = poutine.trace(poutine.condition(program, theta)).get_trace().log_prob_sum()
        thetas.append({name: value.tolist() for name, value in theta.items()})
        log_joints.append(float(log_joint))
    return {"thetas": thetas, "log_joints": log_joints}


def is_latent(site: dict[str, Any]) -> bool:
    """Whether a site of a trace is drawn: a plate is none, nor what is observed."""
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def main(argv: list[str] | None = None) -> None:
    """Run what the file does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of posteriordb's .npz files")
    parser.add_argument("--posteriors", nargs="+", choices=BUILDERS, default=list(BUILDERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--points", type=Path, help="write log joints at some points to this file instead, for a peer")
    options = parser.parse_args(argv)
    torch.set_default_dtype(torch.float64)
    if options.points:
        told = {name: points(load(options.data, name)[0], options.seed) for name in options.posteriors}
        options.points.write_text(json.dumps(told))
        return
    records = Records(options.out)
    for name in options.posteriors:
        for method in options.methods:
            if records.has(posterior=name, method=method, seed=options.seed):
                continue
            record = run(name, method, options.data, options.seed)
            records.append(record)
            print({key: value for key, value in record.items() if key != "warnings"}, len(record.get("warnings", [])))


if __name__ == "__main__":
    main()
