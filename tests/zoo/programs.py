"""Pyro programs of many kinds, as users write them, in float64 (`torch.set_default_dtype`), all over the same rows.

Each observes under its own name; `LOCAL` are those whose latents belong to rows.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import nn

from tests.inference.examples import noise

NUM_ROWS = 12
ZERO = torch.zeros((), dtype=torch.float64)  # of a law that is made before a test asks for float64
X = noise(0, NUM_ROWS, 3)
Y = X.sum(dim=1) + 0.3 * noise(1, NUM_ROWS)


def regression(x, y=None, num_data=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
        return pyro.sample("y", dist.Normal(x @ slope, scale), obs=y)


def schools(x, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("J", len(x)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        return pyro.sample("obs", dist.Normal(theta, 1.0), obs=y)


def mixture(x, y=None):
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    means = pyro.sample("means", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        law = dist.MixtureSameFamily(dist.Categorical(shares), dist.Normal(means, 1.0))
        return pyro.sample("y", law, obs=y)


def correlated(x, y=None):  # noqa: ARG001 - of covariances alone
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    scales = pyro.sample("scales", dist.LogNormal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(3), scale_tril=scales[:, None] * factor), obs=x)


def bounded(x, y=None, num_data=None):
    low = pyro.sample("low", dist.Uniform(-1.0, 2.0))
    share = pyro.sample("share", dist.Beta(2.0, 3.0))
    pyro.sample("angle", dist.VonMises(0.0, 1.0))
    base = dist.Normal(torch.zeros(3), 1.0)
    pyro.sample("ordered", dist.TransformedDistribution(base, [dist.transforms.OrderedTransform()]))
    pyro.factor("nearness", -((low - share) ** 2))
    pyro.deterministic("product", low * share)
    with pyro.plate("data", num_data or 2 * len(x), subsample=torch.arange(len(x))):
        return pyro.sample("y", dist.StudentT(4.0, low * x[:, 0], share + 0.1), obs=y)


def masked(x, y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0).mask(False))
    scale = pyro.sample("scale", dist.HalfNormal(3.0).mask(False))
    with pyro.plate("data", len(x)), poutine.scale(scale=0.5), poutine.mask(mask=x[:, 0] > -0.5):
        return pyro.sample("y", dist.Laplace(mean, scale), obs=y)


def process(x, y=None):
    length = pyro.sample("length", dist.Gamma(25.0, 4.0))
    noise_variance = pyro.sample("noise_variance", dist.HalfNormal(1.0))
    distance = x[:, None, 0] - x[None, :, 0]
    covariance = torch.exp(-(distance**2) / (2 * length**2)) + noise_variance * torch.eye(len(x))
    return pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def nested(x, y=None):
    with pyro.plate("outer", 4, dim=-2):
        rate = pyro.sample("rate", dist.Exponential(1.0))
        with pyro.plate("inner", 5, dim=-1):
            shape = pyro.sample("shape", dist.Gamma(rate, 1.0))
            pyro.sample("spread", dist.InverseGamma(3.0, 1.0))
    counts = None if y is None else (y - y.min()).round()
    with pyro.plate("data", len(x)):
        return pyro.sample("counts", dist.Poisson(shape.sum() / 10), obs=counts)


def chain(x, y=None):  # noqa: ARG001 - of times alone
    state = pyro.sample("h0", dist.Normal(0.0, 1.0))
    for t in pyro.plate("time", 6):
        state = pyro.sample(f"h{t + 1}", dist.Normal(0.9 * state, 1.0))
        pyro.sample(f"y{t}", dist.Normal(state, 0.5), obs=None if y is None else y[t])


def changing(x, y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = 1.0 if mean > 0 else 2.0
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(mean, spread), obs=y)


class Linear(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(ZERO, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(ZERO, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


PROGRAMS = {
    **{
        program.__name__: program
        for program in (*(regression, schools, mixture, correlated, bounded, masked, process, nested, chain, changing),)
    },
    "module": Linear(),
}
