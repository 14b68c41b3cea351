"""NumPyro's NUTS on posteriordb's posteriors, for the lines beside ours, in an environment that has NumPyro.

    python scripts/posteriordb.py --data FOLDER --points points.json
    python scripts/posteriordb_numpyro.py --data FOLDER --points points.json --out docs/results/posteriordb.jsonl

Densities are those of `scripts/posteriordb_programs.py`, with the same sites in the same coordinates, and a line is
refused where they differ by more than a constant at the points of that file. Chains are as long, and the CPU time is
that of the process, compilation included. It imports nothing of bayesuq's, so that one environment needs no other.
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
from numpyro.infer import MCMC, NUTS, init_to_uniform, init_to_value
from numpyro.infer.util import log_density

NUM_CHAINS, LENGTH = 2, 1000
LENGTHS = {"lotka_volterra": 400}  # as our chains of it
STARTS = {"lotka_volterra": {"units": [1.0] * 4, "start": [10.0] * 2, "sigma": [0.4] * 2}}  # others run off
Data = Mapping[str, Any]
Theta = Mapping[str, Any]
Program = tuple[Callable[[], None], Callable[[Theta], Any]]  # and what its draws report, (C, D, d)


def side_by_side(*parts: Any) -> Any:
    """Draws of sites, (C, D) or (C, D, d), as columns."""
    return jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)


def flat(name: str, *shape: int) -> Any:
    """A site with a flat density on all numbers."""
    return numpyro.sample(name, dist.ImproperUniform(dist.constraints.real, (), shape))


def flat_positive(name: str, *shape: int) -> Any:
    """A site with a flat density on the positive numbers."""
    return numpyro.sample(name, dist.ImproperUniform(dist.constraints.positive, (), shape))


def regression(x: Any, y: Any, scale: float | None = None) -> Program:
    """y ~ N(x beta, sigma), flat beta, centred and scaled; sigma ~ HC(scale), or flat and in units of y's spread."""
    middle, width = x[:, 1:].mean(axis=0), x[:, 1:].std(axis=0, ddof=1)
    spread, center = y.std(ddof=1), y.mean()
    units = jnp.concatenate([x[:, :1], (x[:, 1:] - middle) / width], axis=1)
    unit = spread if scale is None else 1.0

    def program() -> None:
        beta = flat("beta", x.shape[1])
        sigma = flat_positive("sigma") if scale is None else numpyro.sample("sigma", dist.HalfCauchy(scale))
        numpyro.sample("y", dist.Normal(center + spread * (units @ beta), unit * sigma), obs=y)

    def reported(theta: Theta) -> Any:
        slopes = spread * theta["beta"][..., 1:] / width
        intercept = center + spread * theta["beta"][..., 0] - (slopes * middle).sum(axis=-1)
        return side_by_side(intercept, slopes, unit * theta["sigma"])

    return program, reported


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
        level, beta, sigma = flat("level"), flat("beta"), flat_positive("sigma")
        numpyro.factor("prior", alpha_prior.log_prob(level - middle * beta) + beta_prior.log_prob(beta))
        numpyro.sample("y", dist.Normal(level + beta * (x - middle), sigma), obs=data["y"])

    return program, lambda theta: side_by_side(theta["level"] - middle * theta["beta"], theta["beta"], theta["sigma"])


def diamonds(data: Data) -> Program:
    """Twenty-four correlated columns, drawn in the coordinates of their QR factors."""
    q, r = jnp.linalg.qr(data["X"][:, 1:] - data["X"][:, 1:].mean(axis=0))
    size = len(q) ** 0.5
    x, to_b = q * size, jnp.linalg.inv(r) * size

    def program() -> None:
        theta = flat("theta", x.shape[1])
        numpyro.factor("prior", dist.Normal(0.0, 1.0).log_prob(to_b @ theta).sum())
        intercept = numpyro.sample("intercept", dist.StudentT(3.0, 8.0, 10.0))
        sigma = flat_positive("sigma")
        numpyro.factor("prior of sigma", dist.StudentT(3.0, 0.0, 10.0).log_prob(sigma))
        numpyro.sample("y", dist.Normal(intercept + x @ theta, sigma), obs=data["Y"])

    return program, lambda theta: side_by_side(theta["theta"] @ to_b.T, theta["intercept"], theta["sigma"])


def eight_schools(data: Data) -> Program:
    """Effects in units of tau."""

    def program() -> None:
        mu, tau = numpyro.sample("mu", dist.Normal(0.0, 5.0)), numpyro.sample("tau", dist.HalfCauchy(5.0))
        e = numpyro.sample("e", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(mu + tau * e, data["sigma"]), obs=data["y"])

    def reported(theta: Theta) -> Any:
        mu, tau = theta["mu"][..., None], theta["tau"][..., None]
        return side_by_side(mu + tau * theta["e"], mu, tau)

    return program, reported


def autoregression(data: Data) -> Program:
    """Five lags."""
    y, lags = data["y"], 5
    x = jnp.stack([y[lags - k : len(y) - k] for k in range(1, lags + 1)], axis=1)

    def program() -> None:
        alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
        beta = numpyro.sample("beta", dist.Normal(jnp.zeros(lags), 10.0).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
        numpyro.sample("y", dist.Normal(alpha + x @ beta, sigma), obs=y[lags:])

    return program, lambda theta: side_by_side(theta["alpha"], theta["beta"], theta["sigma"])


def moving_average(data: Data) -> Program:
    """ARMA(1, 1), residual after residual."""
    y = data["y"]

    def program() -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        phi, theta = (numpyro.sample(name, dist.Normal(0.0, 2.0)) for name in ("phi", "theta"))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
        moved = y - mu - phi * jnp.concatenate([mu.reshape(1), y[:-1]])

        def residual(last: Any, one: Any) -> tuple[Any, Any]:
            return (one - theta * last,) * 2

        residuals = jax.lax.scan(residual, 0.0, moved)[1]
        numpyro.factor("y", dist.Normal(0.0, sigma).log_prob(residuals).sum())

    return program, lambda theta: side_by_side(theta["mu"], theta["phi"], theta["theta"], theta["sigma"])


def forward(transitions: Any, emissions: Any) -> Any:
    """log p of a hidden Markov model's observations, from A, (2, 2), and log p(y_t | k), (N, 2), step after step."""
    logs = jnp.log(transitions)

    def step(weights: Any, emission: Any) -> tuple[Any, None]:
        return jax.scipy.special.logsumexp(weights[:, None] + logs, axis=0) + emission, None

    return jax.scipy.special.logsumexp(jax.lax.scan(step, emissions[0], emissions[1:])[0])


def positive_ordered(name: str) -> Any:
    """0 < a < b, with a flat density: a first, then the distance."""
    first = flat_positive(f"{name}_1")
    return jnp.stack([first, first + flat_positive(f"{name}_step")])


def pair_of(theta: Theta, name: str) -> Any:
    """The two numbers of `positive_ordered`, (C, D, 2)."""
    return side_by_side(theta[f"{name}_1"], theta[f"{name}_1"] + theta[f"{name}_step"])


def hidden_states(data: Data) -> Program:
    """Two states with normal emissions."""

    def program() -> None:
        rows = numpyro.sample("rows", dist.Dirichlet(jnp.ones((2, 2))).to_event(1))
        mu = positive_ordered("mu")
        numpyro.factor("prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
        numpyro.factor("y", forward(rows, dist.Normal(mu, 1.0).log_prob(data["y"][:, None])))

    return program, lambda theta: side_by_side(theta["rows"], pair_of(theta, "mu"))


def drives(data: Data) -> Program:
    """Two states with two exponential emissions."""

    def program() -> None:
        rows = numpyro.sample("rows", dist.Dirichlet(data["alpha"].astype(float)).to_event(1))
        phi, rate = positive_ordered("phi"), positive_ordered("lambda")
        prior = dist.Normal(jnp.array([0.0, 3.0]), 1.0)
        numpyro.factor("prior", (prior.log_prob(phi) + prior.log_prob(rate)).sum())
        laws = dist.Exponential(phi).log_prob(data["u"][:, None]), dist.Exponential(rate).log_prob(data["v"][:, None])
        numpyro.factor("y", forward(rows, sum(laws)))

    return program, lambda theta: side_by_side(theta["rows"], pair_of(theta, "phi"), pair_of(theta, "lambda"))


def two_normals(data: Data) -> Program:
    """A mixture of two normal laws with ordered means."""

    def program() -> None:
        first, step = flat("mu_1"), flat_positive("mu_step")
        mu = jnp.stack([first, first + step])
        numpyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0 * jnp.ones(2)).to_event(1))
        share = numpyro.sample("theta", dist.Beta(5.0, 5.0))
        shares = jnp.log(jnp.stack([share, 1 - share]))
        terms = dist.Normal(mu, sigma).log_prob(data["y"][:, None]) + shares
        numpyro.factor("y", jax.scipy.special.logsumexp(terms, axis=1).sum())

    return program, lambda theta: side_by_side(pair_of(theta, "mu"), theta["sigma"], theta["theta"])


def kernel(x: Any, rho: Any, alpha: Any) -> Any:
    """The squared exponential covariance of the points x, (N,)."""
    return alpha**2 * jnp.exp(-((x[:, None] - x[None, :]) ** 2) / (2 * rho**2))


def process(data: Data) -> Program:
    """A Gaussian process with normal noise; sigma is a variance."""
    x = data["x"]

    def program() -> None:
        rho, alpha = numpyro.sample("rho", dist.Gamma(25.0, 4.0)), numpyro.sample("alpha", dist.HalfNormal(2.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        covariance = kernel(x, rho, alpha) + sigma * jnp.eye(len(x))
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=data["y"])

    return program, lambda theta: side_by_side(theta["rho"], theta["alpha"], theta["sigma"])


def counted_process(data: Data) -> Program:
    """A Gaussian process behind counts."""
    x = data["x"]

    def latent(rho: Any, alpha: Any, z: Any) -> Any:
        return jnp.linalg.cholesky(kernel(x, rho, alpha) + 1e-10 * jnp.eye(len(x))) @ z

    def program() -> None:
        rho, alpha = numpyro.sample("rho", dist.Gamma(25.0, 4.0)), numpyro.sample("alpha", dist.HalfNormal(2.0))
        z = numpyro.sample("z", dist.Normal(jnp.zeros(len(x)), 1.0).to_event(1))
        numpyro.sample("k", dist.Poisson(jnp.exp(latent(rho, alpha, z))), obs=data["k"])

    def reported(theta: Theta) -> Any:
        f = jax.vmap(jax.vmap(latent))(theta["rho"], theta["alpha"], theta["z"])
        return side_by_side(theta["rho"], theta["alpha"], f)

    return program, reported


def predators(data: Data) -> Program:
    """Lotka and Volterra's equations, by five steps of fourth-order Runge-Kutta a year."""
    years, steps = len(data["ts"]), 5
    units = jnp.array([1.0, 0.05, 1.0, 0.05])

    def run(start: Any, own: Any, other: Any) -> Any:
        length = 1.0 / steps

        def slope(state: Any) -> Any:
            return state * (own + other * state[::-1])

        def step(state: Any, _: None) -> tuple[Any, Any]:
            first = slope(state)
            second = slope(state + length / 2 * first)
            third = slope(state + length / 2 * second)
            state += length / 6 * (first + 2 * second + 2 * third + slope(state + length * third))
            return state, state

        return jax.lax.scan(step, start, None, length=years * steps)[1][steps - 1 :: steps]

    def program() -> None:
        rates = flat_positive("units", 4) * units
        prior = dist.Normal(units, jnp.array([0.5, 0.05, 0.5, 0.05]))
        numpyro.factor("prior", prior.log_prob(rates).sum())
        start = numpyro.sample("start", dist.LogNormal(jnp.log(10.0 * jnp.ones(2)), 1.0).to_event(1))
        sigma = numpyro.sample("sigma", dist.LogNormal(-jnp.ones(2), 1.0).to_event(1))
        signs = jnp.array([1.0, -1.0])
        seen = run(start, rates[::2] * signs, -rates[1::2] * signs)
        numpyro.sample("y_init", dist.LogNormal(jnp.log(start), sigma), obs=data["y_init"])
        numpyro.sample("y", dist.LogNormal(jnp.log(seen), sigma), obs=data["y"])

    return program, lambda theta: side_by_side(units * theta["units"], theta["start"], theta["sigma"])


def design(*parts: Any) -> Any:
    """Columns behind a column of ones."""
    return jnp.stack([jnp.ones(len(parts[0])), *(part.astype(float) for part in parts)], axis=1)


def indicators(values: Any, levels: tuple[int, ...]) -> list[Any]:
    """One column of 0 and 1 for each level."""
    return [values == level for level in levels]


def of_heights(data: Data) -> Program:
    """Logarithms of earnings on heights in units, sex, and their product."""
    height, male = data["height"], data["male"]
    z = (height - height.mean()) / height.std(ddof=1)
    return regression(design(z, male, z * male), jnp.log(data["earn"]))


def of_bushes(data: Data) -> Program:
    """The weight of bushes."""
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    return regression(design(*(data[name] for name in names)), data["weight"])


def of_elections(data: Data) -> Program:
    """Party identification."""
    ages = indicators(data["age_discrete"], (2, 3, 4))
    parts = (data["real_ideo"], data["race_adj"], *ages, data["educ1"], data["gender"], data["income"])
    return regression(design(*parts), data["partyid7"])


def of_mothers(data: Data, *, interact: bool) -> Program:
    """Test scores on mothers' schooling and IQ."""
    school, iq = data["mom_hs"], data["mom_iq"]
    further = (school * iq,) if interact else ()
    return regression(design(school, iq, *further), data["kid_score"], 2.5)


PROGRAMS: dict[str, Callable[[Data], Program]] = {
    "earn_height": lambda data: regression(design(data["height"]), data["earn"]),
    "logearn_interaction_z": of_heights,
    "logearn_logheight_male": lambda data: regression(
        design(jnp.log(data["height"]), data["male"]), jnp.log(data["earn"])
    ),
    "kidscore_momhsiq": lambda data: of_mothers(data, interact=False),
    "kidscore_interaction": lambda data: of_mothers(data, interact=True),
    "kidscore_mom_work": lambda data: regression(design(*indicators(data["mom_work"], (2, 3, 4))), data["kid_score"]),
    "mesquite": of_bushes,
    "nes1980": of_elections,
    "kilpisjarvi": kilpisjarvi,
    "sblri": informed_regression,
    "sblrc": informed_regression,
    "diamonds": diamonds,
    "eight_schools": eight_schools,
    "arK": autoregression,
    "arma11": moving_average,
    "hmm_example": hidden_states,
    "hmm_drive_0": drives,
    "low_dim_gauss_mix": two_normals,
    "gp_regr": process,
    "gp_pois_regr": counted_process,
    "lotka_volterra": predators,
}


def density_gap(program: Callable[[], None], points: Mapping[str, Any]) -> float:
    """By how much log densities differ from ours beyond a constant, in nats, over the given points."""
    gaps = []
    for theta, ours in zip(points["thetas"], points["log_joints"], strict=True):
        values = {name: jnp.asarray(value) for name, value in theta.items()}
        gaps.append(float(log_density(program, (), {}, values)[0]) - ours)
    return max(gaps) - min(gaps)


def begin_at(name: str) -> Any:
    """NumPyro's own random starts, or the values of `STARTS`: medians of the priors."""
    values = {site: jnp.asarray(start) for site, start in STARTS.get(name, {}).items()}
    return init_to_value(values=values) if values else init_to_uniform()


def run(name: str, folder: Path, points: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One line, in the fields of `scripts/posteriordb.py`, and the gap of densities in nats.

    Raises:
        ValueError: The densities differ by more than a constant.
    """
    file = np.load(folder / f"{name}.npz")
    data = {key.removeprefix("data_"): jnp.asarray(file[key]) for key in file.files if key.startswith("data_")}
    program, reported = PROGRAMS[name](data)
    gap = density_gap(program, points[name])
    if gap > 1e-3:
        raise ValueError(f"{name}: log densities differ by {gap:.3g} nats beyond a constant")
    length = LENGTHS.get(name, LENGTH)
    begin = time.process_time()
    sampler = MCMC(
        NUTS(program, target_accept_prob=0.9, init_strategy=begin_at(name)),
        num_warmup=length,
        num_samples=length,
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
        "density_gap": gap,
        "cpu_seconds": round(seconds, 2),
        "warnings": [],
    }


def main() -> None:
    """Run what the file does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of posteriordb's .npz files")
    parser.add_argument("--points", type=Path, required=True, help="what posteriordb.py --points wrote")
    parser.add_argument("--posteriors", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    numpyro.enable_x64()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {(one["posterior"], one["method"], one["seed"]) for one in map(json.loads, lines)}
    points = json.loads(options.points.read_text())
    for name in options.posteriors:
        if (name, "NumPyro's NUTS", options.seed) not in known:
            line = json.dumps(run(name, options.data, points, options.seed))
            with options.out.open("a") as file:
                file.write(line + "\n")
            print(line)


if __name__ == "__main__":
    main()
