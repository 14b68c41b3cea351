"""NumPyro's NUTS on some of posteriordb's posteriors, for the lines beside ours, in an environment that has NumPyro.

    python scripts/posteriordb_numpyro.py --data FOLDER --out docs/results/posteriordb.jsonl

Densities are those of `scripts/posteriordb_programs.py`, in the same coordinates; chains are as long, and the CPU time
is that of the process, compilation included. It imports nothing of bayesuq's, so that one environment needs no other.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

NUM_CHAINS, LENGTH = 2, 1000
Data = Mapping[str, Any]
Program = tuple[Callable[[], None], Callable[[Mapping[str, Any]], Any]]  # and what its draws report, (C, D, d)


def side_by_side(*parts: Any) -> Any:
    """Draws of sites, (C, D) or (C, D, d), as columns."""
    return jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)


def informed_regression(data: Data) -> Program:
    """y ~ N(x beta, sigma), beta ~ N(0, 10), sigma ~ HN(10)."""
    x, y = data["X"], data["y"]

    def program() -> None:
        beta = numpyro.sample("beta", dist.Normal(jnp.zeros(x.shape[1]), 10.0).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return program, lambda theta: side_by_side(theta["beta"], theta["sigma"])


def kilpisjarvi(data: Data) -> Program:
    """A line through years, drawn at the middle year."""
    x, middle = data["x"], data["x"].mean()
    alpha_prior, beta_prior = (dist.Normal(data[f"pmu{n}"], data[f"ps{n}"]) for n in ("alpha", "beta"))

    def program() -> None:
        level = numpyro.sample("level", dist.ImproperUniform(dist.constraints.real, (), ()))
        beta = numpyro.sample("beta", dist.ImproperUniform(dist.constraints.real, (), ()))
        sigma = numpyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
        numpyro.factor("prior", alpha_prior.log_prob(level - middle * beta) + beta_prior.log_prob(beta))
        numpyro.sample("y", dist.Normal(level + beta * (x - middle), sigma), obs=data["y"])

    return program, lambda theta: side_by_side(theta["level"] - middle * theta["beta"], theta["beta"], theta["sigma"])


def eight_schools(data: Data) -> Program:
    """Effects in units of tau."""

    def program() -> None:
        mu, tau = numpyro.sample("mu", dist.Normal(0.0, 5.0)), numpyro.sample("tau", dist.HalfCauchy(5.0))
        e = numpyro.sample("e", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(mu + tau * e, data["sigma"]), obs=data["y"])

    def reported(theta: Mapping[str, Any]) -> Any:
        mu, tau = theta["mu"][..., None], theta["tau"][..., None]
        return side_by_side(mu + tau * theta["e"], mu, tau)

    return program, reported


def two_normals(data: Data) -> Program:
    """A mixture of two normal laws with ordered means."""

    def program() -> None:
        first = numpyro.sample("first", dist.ImproperUniform(dist.constraints.real, (), ()))
        step = numpyro.sample("step", dist.ImproperUniform(dist.constraints.positive, (), ()))
        mu = jnp.stack([first, first + step])
        numpyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0 * jnp.ones(2)).to_event(1))
        share = numpyro.sample("theta", dist.Beta(5.0, 5.0))
        shares = jnp.log(jnp.stack([share, 1 - share]))
        terms = dist.Normal(mu, sigma).log_prob(data["y"][:, None]) + shares
        numpyro.factor("y", jax.scipy.special.logsumexp(terms, axis=1).sum())

    return program, lambda theta: side_by_side(
        theta["first"], theta["first"] + theta["step"], theta["sigma"], theta["theta"]
    )


PROGRAMS: dict[str, Callable[[Data], Program]] = {
    "kilpisjarvi": kilpisjarvi,
    "sblri": informed_regression,
    "sblrc": informed_regression,
    "eight_schools": eight_schools,
    "low_dim_gauss_mix": two_normals,
}


def run(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """One line, in the fields of `scripts/posteriordb.py`."""
    file = np.load(folder / f"{name}.npz")
    data = {key.removeprefix("data_"): jnp.asarray(file[key]) for key in file.files if key.startswith("data_")}
    program, reported = PROGRAMS[name](data)
    begin = time.process_time()
    sampler = MCMC(
        NUTS(program, target_accept_prob=0.9),
        num_warmup=LENGTH,
        num_samples=LENGTH,
        num_chains=NUM_CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )
    sampler.run(jax.random.PRNGKey(seed), extra_fields=("num_steps", "diverging"))
    draws = np.asarray(reported(sampler.get_samples(group_by_chain=True)))
    seconds = time.process_time() - begin
    extra = {key: int(np.asarray(value).sum()) for key, value in sampler.get_extra_fields().items()}
    exact = "exact_mean" in file.files
    mean, sd = (file["exact_mean"], file["exact_sd"]) if exact else (file["mean"], file["sd"])
    flat = draws.reshape(-1, draws.shape[2])
    error, ratio = np.abs(flat.mean(axis=0) - mean) / sd, flat.std(axis=0, ddof=1) / sd
    ess = np.array([float(arviz.ess(draws[:, :, k])) for k in range(draws.shape[2])])
    noise = np.sqrt(1 / ess + (0 if exact else (file["mean_mcse"] / sd) ** 2))
    return {
        "posterior": name,
        "method": "NumPyro's NUTS",
        "seed": seed,
        "mean_error": float(error.max()),
        "z": float((error / noise).max()),
        "sd_ratio": [float(ratio.min()), float(ratio.max())],
        "ess": float(ess.min()),
        "divergences": extra["diverging"],
        "steps": extra["num_steps"],
        "cpu_seconds": round(seconds, 2),
        "warnings": [],
    }


def main() -> None:
    """Run what the file does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of posteriordb's .npz files")
    parser.add_argument("--posteriors", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    numpyro.enable_x64()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {(one["posterior"], one["method"], one["seed"]) for one in map(json.loads, lines)}
    for name in options.posteriors:
        if (name, "NumPyro's NUTS", options.seed) not in known:
            line = json.dumps(run(name, options.data, options.seed))
            with options.out.open("a") as file:
                file.write(line + "\n")
            print(line)


if __name__ == "__main__":
    main()
