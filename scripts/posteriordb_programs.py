"""The posteriors of posteriordb as Pyro programs: a model and its data, and the parameters that its reference reports.

Each is written from the model's mathematical notation. Flat priors are proper laws with their density masked out.
Columns of a regression are centred, and scaled, where its coefficients have flat priors, which a linear map leaves
flat; the reference's coefficients are mapped back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from bayesuq.data import Dataset

Theta = Mapping[str, Tensor]


@dataclass(frozen=True)
class Known:
    """A posterior with reference draws.

    Attributes:
        program: The model.
        data: What it is conditioned on.
        reported: From draws of its latents (S, ...) to the parameters that the reference reports, (S, d).
        length: Of chains, and of their warm-up: shorter where a gradient takes long.
        is_costly: Whether a gradient takes so long that chains begin at draws of a full-rank law.
    """

    program: Callable[..., Any]
    data: Dataset
    reported: Callable[[Theta], Tensor]
    length: int = 1000
    is_costly: bool = False


def half_cauchy(scale: float) -> Callable[[], Any]:
    """A prior of scales."""
    return lambda: dist.HalfCauchy(scale)


def flat_scale(size: float) -> Callable[[], Any]:
    """No prior of a scale; `size` only says where draws begin."""
    return lambda: dist.HalfNormal(size).mask(False)


def columns(theta: Theta, *names: str) -> Tensor:
    """Sites side by side, (S, d)."""
    return torch.cat([theta[name].reshape(len(theta[name]), -1) for name in names], dim=1)


def regression(x: Tensor, y: Tensor, scale_prior: Callable[[], Any] | None = None) -> Known:
    """y ~ N(x beta, sigma) with flat coefficients; the first column of x is 1."""
    middle, width = x[:, 1:].mean(dim=0), x[:, 1:].std(dim=0)
    spread = float(y.std())
    design = torch.cat([x[:, :1], (x[:, 1:] - middle) / width], dim=1)
    scale = scale_prior or flat_scale(1.0)
    center = float(y.mean())

    def program(x: Tensor, y: Tensor | None = None) -> Tensor:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 1.0).mask(False).to_event(1))
        # in units of y's own spread, in which the chains start
        sigma = pyro.sample("sigma", scale() if scale_prior else dist.HalfNormal(1.0).mask(False))
        unit = 1.0 if scale_prior else spread
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(center + spread * (x @ beta), unit * sigma), obs=y)

    def reported(theta: Theta) -> Tensor:
        slopes = spread * theta["beta"][:, 1:] / width
        intercept = center + spread * theta["beta"][:, :1] - (slopes * middle).sum(dim=1, keepdim=True)
        sigma = theta["sigma"].reshape(-1, 1) * (1.0 if scale_prior else spread)
        return torch.cat([intercept, slopes, sigma], dim=1)

    return Known(program, Dataset(design, y), reported)


def informed_regression(x: Tensor, y: Tensor) -> Known:
    """y ~ N(x beta, sigma), beta ~ N(0, 10), sigma ~ HN(10)."""

    def program(x: Tensor, y: Tensor | None = None) -> Tensor:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return Known(program, Dataset(x, y), lambda theta: columns(theta, "beta", "sigma"))


def kilpisjarvi(data: Mapping[str, Tensor]) -> Known:
    """A line through years near 1980, drawn at the middle year: the prior's quadratic form is the same."""
    x, middle = data["x"], float(data["x"].mean())
    alpha_prior, beta_prior = (dist.Normal(data[f"pmu{n}"], data[f"ps{n}"]) for n in ("alpha", "beta"))

    def program(x: Tensor, y: Tensor | None = None) -> Tensor:
        level = pyro.sample("level", dist.Normal(0.0, 10.0).mask(False))
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0).mask(False))
        sigma = pyro.sample("sigma", flat_scale(1.0)())
        pyro.factor("prior", alpha_prior.log_prob(level - middle * beta) + beta_prior.log_prob(beta))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(level + beta * (x[:, 0] - middle), sigma), obs=y)

    def reported(theta: Theta) -> Tensor:
        return torch.stack([theta["level"] - middle * theta["beta"], theta["beta"], theta["sigma"]], dim=1)

    return Known(program, Dataset(x[:, None], data["y"]), reported)


def diamonds(data: Mapping[str, Tensor]) -> Known:
    """Twenty-four correlated columns, drawn in the coordinates of their QR factors."""
    x = data["X"][:, 1:] - data["X"][:, 1:].mean(dim=0)
    q, r = torch.linalg.qr(x)
    size = len(x) ** 0.5
    to_b = torch.linalg.inv(r) * size  # b = R^-1 sqrt(N) theta

    def program(x: Tensor, y: Tensor | None = None) -> Tensor:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(x.shape[1]), 1.0).mask(False).to_event(1))
        pyro.factor("prior", dist.Normal(0.0, 1.0).log_prob(to_b @ theta).sum())
        intercept = pyro.sample("intercept", dist.StudentT(3.0, 8.0, 10.0))
        sigma = pyro.sample("sigma", flat_scale(1.0)())
        pyro.factor("prior of sigma", dist.StudentT(3.0, 0.0, 10.0).log_prob(sigma))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(intercept + x @ theta, sigma), obs=y)

    def reported(theta: Theta) -> Tensor:
        return torch.cat([theta["theta"] @ to_b.T, columns(theta, "intercept", "sigma")], dim=1)

    return Known(program, Dataset(q * size, data["Y"]), reported)


def eight_schools(data: Mapping[str, Tensor], *, centred: bool = False) -> Known:
    """Effects of eight schools, drawn as they are or in units of tau."""

    def program(sigma: Tensor, y: Tensor | None = None) -> Tensor:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(sigma)):
            if centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * pyro.sample("e", dist.Normal(0.0, 1.0))
            return pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def reported(theta: Theta) -> Tensor:
        mu, tau = theta["mu"].reshape(-1, 1), theta["tau"].reshape(-1, 1)
        effects = theta["theta"] if centred else mu + tau * theta["e"]
        return torch.cat([effects, mu, tau], dim=1)

    return Known(program, Dataset((data["sigma"],), data["y"]), reported)


def autoregression(data: Mapping[str, Tensor]) -> Known:
    """Five lags."""
    y, lags = data["y"], 5
    x = torch.stack([y[lags - k : len(y) - k] for k in range(1, lags + 1)], dim=1)

    def program(x: Tensor, y: Tensor | None = None) -> Tensor:
        alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
        beta = pyro.sample("beta", dist.Normal(torch.zeros(lags), 10.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(alpha + x @ beta, sigma), obs=y)

    return Known(program, Dataset(x, y[lags:]), lambda theta: columns(theta, "alpha", "beta", "sigma"))


def moving_average(data: Mapping[str, Tensor]) -> Known:
    """ARMA(1, 1): residuals e = (I + theta B)^-1 (y - mu - phi B y), with B the shift.

    B^N = 0, so that the inverse is the product of I + (-theta B)^(2^k) over the few k with 2^k < N.
    """
    y = data["y"]
    number = len(y)

    def program(x: Tensor, y: Tensor | None = None) -> None:  # noqa: ARG001
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
        theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        residuals = y - mu - phi * torch.cat([mu.reshape(1), y[:-1]])
        power, shift = -theta, 1
        while shift < number:
            residuals = torch.cat([residuals[:shift], residuals[shift:] + power * residuals[:-shift]])
            power, shift = power * power, 2 * shift
        pyro.factor("y", dist.Normal(0.0, sigma).log_prob(residuals).sum())

    return Known(program, Dataset(y[:, None], y), lambda theta: columns(theta, "mu", "phi", "theta", "sigma"))


def forward(transitions: Tensor, emissions: Tensor) -> Tensor:
    """log p of a hidden Markov model's observations, by products of 2 x 2 matrices in pairs: log N of them in turn.

    Args:
        transitions: A, (2, 2).
        emissions: log p(y_t | k), (N, 2).
    """
    peak = emissions.max(dim=1, keepdim=True).values.detach()
    likely = (emissions - peak).exp()
    steps, total = transitions * likely[1:].unsqueeze(1), peak.sum()  # [t, j, k]
    levels = (len(steps) - 1).bit_length()
    steps = torch.cat([steps, torch.eye(2).expand(2**levels - len(steps), 2, 2)])
    for level in range(levels):
        steps = steps[0::2] @ steps[1::2]
        if level % 3 == 2:
            size = steps.sum(dim=(1, 2), keepdim=True)
            total, steps = total + size.log().sum(), steps / size
    return total + (likely[0].unsqueeze(1) * steps[0]).sum().log()


def positive_ordered(name: str) -> Tensor:
    """0 < a < b, with a flat density: a first, then the distance."""
    first = pyro.sample(f"{name}_1", dist.HalfNormal(1.0).mask(False))
    step = pyro.sample(f"{name}_step", dist.HalfNormal(1.0).mask(False))
    return torch.stack([first, first + step], dim=-1)


def pair_of(theta: Theta, name: str) -> list[Tensor]:
    """The two numbers of `positive_ordered`."""
    first = theta[f"{name}_1"].reshape(-1)
    return [first, first + theta[f"{name}_step"].reshape(-1)]


def hidden_states(data: Mapping[str, Tensor]) -> Known:
    """Two states with normal emissions."""

    def program(x: Tensor, y: Tensor | None = None) -> None:  # noqa: ARG001
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        mu = positive_ordered("mu")
        pyro.factor("prior", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum())
        pyro.factor("y", forward(rows, dist.Normal(mu, 1.0).log_prob(y.unsqueeze(1))))

    def reported(theta: Theta) -> Tensor:
        rows = theta["rows"].reshape(-1, 4)
        return torch.cat([rows, torch.stack(pair_of(theta, "mu"), dim=1)], dim=1)

    return Known(program, Dataset(data["y"][:, None], data["y"]), reported)


def drives(data: Mapping[str, Tensor]) -> Known:
    """Two states with two exponential emissions."""
    alpha = data["alpha"].to(torch.get_default_dtype())

    def program(x: Tensor, y: Tensor | None = None) -> None:  # noqa: ARG001
        rows = pyro.sample("rows", dist.Dirichlet(alpha).to_event(1))
        phi, rate = positive_ordered("phi"), positive_ordered("lambda")
        centre = torch.tensor([0.0, 3.0])
        pyro.factor("prior", (dist.Normal(centre, 1.0).log_prob(phi) + dist.Normal(centre, 1.0).log_prob(rate)).sum())
        emissions = dist.Exponential(phi).log_prob(x[:, :1]) + dist.Exponential(rate).log_prob(x[:, 1:])
        pyro.factor("y", forward(rows, emissions))

    def reported(theta: Theta) -> Tensor:
        rows = theta["rows"].reshape(-1, 4)
        return torch.cat([rows, torch.stack(pair_of(theta, "phi") + pair_of(theta, "lambda"), dim=1)], dim=1)

    return Known(program, Dataset(torch.stack([data["u"], data["v"]], dim=1), data["u"]), reported)


def two_normals(data: Mapping[str, Tensor]) -> Known:
    """A mixture of two normal laws with ordered means."""

    def program(x: Tensor, y: Tensor | None = None) -> Tensor:
        first = pyro.sample("mu_1", dist.Normal(0.0, 2.0).mask(False))
        step = pyro.sample("mu_step", dist.HalfNormal(2.0).mask(False))
        mu = torch.stack([first, first + step])
        pyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
        share = pyro.sample("theta", dist.Beta(5.0, 5.0))
        law = dist.MixtureSameFamily(dist.Categorical(torch.stack([share, 1 - share])), dist.Normal(mu, sigma))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", law, obs=y)

    def reported(theta: Theta) -> Tensor:
        return torch.cat([torch.stack(pair_of(theta, "mu"), dim=1), columns(theta, "sigma", "theta")], dim=1)

    return Known(program, Dataset(data["y"][:, None], data["y"]), reported)


def kernel(x: Tensor, rho: Tensor, alpha: Tensor) -> Tensor:
    """The squared exponential covariance of the points x, (N,)."""
    return alpha**2 * torch.exp(-((x[:, None] - x[None, :]) ** 2) / (2 * rho**2))


def process(data: Mapping[str, Tensor]) -> Known:
    """A Gaussian process with normal noise; sigma is a variance."""

    def program(x: Tensor, y: Tensor | None = None) -> Tensor:
        rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        covariance = kernel(x[:, 0], rho, alpha) + sigma * torch.eye(len(x))
        return pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)

    return Known(program, Dataset(data["x"][:, None], data["y"]), lambda theta: columns(theta, "rho", "alpha", "sigma"))


def counted_process(data: Mapping[str, Tensor]) -> Known:
    """A Gaussian process behind counts."""
    points = data["x"]

    def latent(rho: Tensor, alpha: Tensor, z: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(kernel(points, rho, alpha) + 1e-10 * torch.eye(len(points)))
        return factor @ z

    def program(x: Tensor, y: Tensor | None = None) -> Tensor:
        rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
        with pyro.plate("points", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("k", dist.Poisson(latent(rho, alpha, z).exp()), obs=y)

    def reported(theta: Theta) -> Tensor:
        rho, alpha = theta["rho"].reshape(-1), theta["alpha"].reshape(-1)
        f = torch.stack([latent(*one) for one in zip(rho, alpha, theta["z"], strict=True)])
        return torch.cat([rho[:, None], alpha[:, None], f], dim=1)

    return Known(program, Dataset(points[:, None], data["k"].to(points)), reported)


def predators(data: Mapping[str, Tensor]) -> Known:
    """Lotka and Volterra's equations, by five steps of fourth-order Runge-Kutta a year (forty differ by 5e-4 nats)."""
    years, steps = len(data["ts"]), 5

    def run(start: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """Both numbers each year, (years, 2), of (log state)' = own + other * state of the other."""
        state, length, told = start, 1.0 / steps, []
        for number in range(years * steps):
            first = state * torch.addcmul(own, other, state.flip(0))
            at = torch.add(state, first, alpha=0.5 * length)
            second = at * torch.addcmul(own, other, at.flip(0))
            at = torch.add(state, second, alpha=0.5 * length)
            third = at * torch.addcmul(own, other, at.flip(0))
            at = torch.add(state, third, alpha=length)
            fourth = at * torch.addcmul(own, other, at.flip(0))
            slope = torch.add(first + fourth, second + third, alpha=2.0)
            state = torch.add(state, slope, alpha=length / 6)
            if number % steps == steps - 1:
                told.append(state)
        return torch.stack(told)

    def program(x: Tensor, y: Tensor | None = None) -> None:
        centre, width = torch.tensor([1.0, 0.05, 1.0, 0.05]), torch.tensor([0.5, 0.05, 0.5, 0.05])
        units = pyro.sample("units", dist.HalfNormal(torch.ones(4)).mask(False).to_event(1))
        rates = units * centre  # in which all are about 1
        pyro.factor("prior", dist.Normal(centre, width).log_prob(rates).sum())
        start = pyro.sample("start", dist.LogNormal(torch.full((2,), 10.0).log(), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(-torch.ones(2), 1.0).to_event(1))
        told = run(start, rates[::2] * torch.tensor([1.0, -1.0]), rates[1::2] * torch.tensor([-1.0, 1.0]))
        pyro.sample("y_init", dist.LogNormal(start.log(), sigma).to_event(1), obs=data["y_init"])
        with pyro.plate("years", len(x)):
            pyro.sample("y", dist.LogNormal(told.log(), sigma).to_event(1), obs=y)

    def reported(theta: Theta) -> Tensor:
        rates = theta["units"] * torch.tensor([1.0, 0.05, 1.0, 0.05])
        return torch.cat([rates, theta["start"], theta["sigma"]], dim=1)

    return Known(program, Dataset(data["ts"][:, None], data["y"]), reported, length=400, is_costly=True)


def indicators(values: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
    """One column of 0 and 1 for each level."""
    return [(values == level).to(torch.get_default_dtype()) for level in levels]


def design(*parts: Tensor) -> Tensor:
    """Columns behind a column of ones."""
    return torch.stack([torch.ones_like(parts[0]), *parts], dim=1)


def of_earnings(data: Mapping[str, Tensor], name: str) -> Known:
    """Regressions on height and sex."""
    earn, height, male = data["earn"], data["height"], data["male"]
    if name == "earn_height":
        return regression(design(height), earn)
    if name == "logearn_interaction_z":
        z = (height - height.mean()) / height.std()
        return regression(design(z, male, z * male), earn.log())
    return regression(design(height.log(), male), earn.log())


def of_kids(data: Mapping[str, Tensor], name: str) -> Known:
    """Regressions of test scores on mothers."""
    score, school, iq = data["kid_score"], data["mom_hs"], data["mom_iq"]
    if name == "kidscore_mom_work":
        return regression(design(*indicators(data["mom_work"], (2, 3, 4))), score)
    further = (school * iq,) if name == "kidscore_interaction" else ()
    return regression(design(school, iq, *further), score, half_cauchy(2.5))


def of_mesquite(data: Mapping[str, Tensor], _name: str) -> Known:
    """A regression of the weight of bushes."""
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    return regression(design(*(data[name] for name in names)), data["weight"])


def of_elections(data: Mapping[str, Tensor], _name: str) -> Known:
    """A regression of party identification."""
    ages = indicators(data["age_discrete"], (2, 3, 4))
    parts = (data["real_ideo"], data["race_adj"], *ages, data["educ1"], data["gender"], data["income"])
    return regression(design(*parts), data["partyid7"])


def alone(build: Callable[[Mapping[str, Tensor]], Known]) -> Callable[[Mapping[str, Tensor], str], Known]:
    """A builder that needs no name."""
    return lambda data, _name: build(data)


BUILDERS: dict[str, Callable[[Mapping[str, Tensor], str], Known]] = {
    **dict.fromkeys(("earn_height", "logearn_interaction_z", "logearn_logheight_male"), of_earnings),
    **dict.fromkeys(("kidscore_momhsiq", "kidscore_interaction", "kidscore_mom_work"), of_kids),
    "mesquite": of_mesquite,
    "nes1980": of_elections,
    "kilpisjarvi": alone(kilpisjarvi),
    "sblri": alone(lambda data: informed_regression(data["X"], data["y"])),
    "sblrc": alone(lambda data: informed_regression(data["X"], data["y"])),
    "diamonds": alone(diamonds),
    "eight_schools": alone(eight_schools),
    "arK": alone(autoregression),
    "arma11": alone(moving_average),
    "hmm_example": alone(hidden_states),
    "hmm_drive_0": alone(drives),
    "low_dim_gauss_mix": alone(two_normals),
    "gp_regr": alone(process),
    "gp_pois_regr": alone(counted_process),
    "lotka_volterra": alone(predators),
}


@dataclass(frozen=True)
class Reference:
    """What the reference draws say of each reported parameter, (d,) each."""

    mean: Tensor
    sd: Tensor
    error: Tensor


def load(folder: Path, name: str) -> tuple[Known, Reference]:
    """A posterior and its reference, in float64."""
    file = np.load(folder / f"{name}.npz")
    double = torch.get_default_dtype()
    data = {k.removeprefix("data_"): torch.as_tensor(file[k]).to(double) for k in file.files if k.startswith("data_")}
    mean, sd, error = (torch.as_tensor(file[key]) for key in ("mean", "sd", "mean_mcse"))
    if "exact_mean" in file.files:
        mean, sd, error = torch.as_tensor(file["exact_mean"]), torch.as_tensor(file["exact_sd"]), torch.zeros(len(mean))
    return BUILDERS[name](data, name), Reference(mean, sd, error)
