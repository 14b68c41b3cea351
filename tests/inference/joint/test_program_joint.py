"""A program's flat joint is Pyro's own potential, and its data are given as programs take them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model

from bayesuq.data import Batch
from bayesuq.inference.joint.program_call import ProgramCall
from bayesuq.inference.joint.program_joint import ProgramJoint, running
from bayesuq.inference.joint.tape import recorded
from bayesuq.inputs import Parts
from tests.inference.examples import noise
from tests.zoo.programs import NUM_ROWS, PROGRAMS, X, Y

ROWS = Batch(X, Y, None)


@pytest.fixture(autouse=True)
def _in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def joint_of(program, rows=ROWS, observed=None):
    return ProgramJoint.of(ProgramCall.of(program, observed), rows)


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_the_potential_of_pyro_with_its_gradient(name):
    torch.manual_seed(0)
    joint = joint_of(PROGRAMS[name])
    _, potential, _, _ = initialize_model(PROGRAMS[name], (X, Y))
    for seed in range(2):
        flat = noise(seed, joint.layout.size)
        with running():
            value, gradient = joint.value_and_grad(flat, ROWS)
        parts = {site: part.clone().requires_grad_() for site, part in joint.layout.split(flat).items()}
        truth = potential(parts)
        slopes = torch.autograd.grad(truth, list(parts.values()))
        assert float(value) == pytest.approx(float(truth.detach()), rel=1e-10)
        torch.testing.assert_close(gradient, torch.cat([one.reshape(-1) for one in slopes]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PROGRAMS)
def test_recorded_it_is_the_same_where_the_program_does_not_branch(name):
    joint = joint_of(PROGRAMS[name])
    with running():
        played = recorded(lambda flat: joint.value_and_grad(flat, ROWS), [noise(0, joint.layout.size)] * 2)
        assert (played is None) == (name == "changing")
        if played is not None:
            flat = noise(3, joint.layout.size)
            value, gradient = joint.value_and_grad(flat, ROWS)
            again, slope = played(flat)
            assert float(again) == pytest.approx(float(value), rel=1e-10)
            torch.testing.assert_close(slope, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PROGRAMS)
def test_vectors_and_sites_are_each_others_inverse(name):
    joint = joint_of(PROGRAMS[name])
    flat = noise(0, joint.layout.size)
    theta = joint.theta(flat, ROWS)
    assert {site: value.shape for site, value in theta.items()} == dict(joint.layout.shapes)
    torch.testing.assert_close(joint.flat(theta, ROWS), flat, rtol=1e-9, atol=1e-9)


def test_a_support_that_depends_on_another_latent_is_followed():
    def program(x, y=None):
        edge = pyro.sample("edge", dist.HalfNormal(1.0))
        mean = pyro.sample("mean", dist.Uniform(-edge, edge))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    joint, flat = joint_of(program), torch.tensor([0.3, -0.4])
    edge, share = flat[0].exp(), flat[1].sigmoid()
    mean = -edge + 2 * edge * share
    density = dist.HalfNormal(1.0).log_prob(edge) - (2 * edge).log() + dist.Normal(mean, 1.0).log_prob(Y).sum()
    volume = flat[0] + (2 * edge * share * (1 - share)).log()
    with running():
        assert float(joint.energy(flat, ROWS)) == pytest.approx(-float(density + volume), rel=1e-12)


def test_local_latents_are_told_by_their_plate_and_their_shape():
    assert joint_of(PROGRAMS["schools"]).layout.local == ("theta",)
    assert joint_of(PROGRAMS["regression"]).layout.local == ()

    def by_shape(x, y=None):
        each = pyro.sample("each", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(each, 1.0).to_event(1), obs=y)

    assert joint_of(by_shape).layout.local == ("each",)


def line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(slope * x, 0.3), obs=y)


def two_inputs(first, second, target=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(first)):
        return pyro.sample("target_site", dist.Normal(slope * first + 0 * second, 0.3), obs=target)


def unconditioned(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("obs", dist.Normal(slope * x, 0.3))


@pytest.mark.parametrize(
    ("program", "x", "observed"),
    [
        (line, X[:, 0], None),
        (two_inputs, (X[:, 0], X[:, 1]), "target_site"),
        (two_inputs, {"first": X[:, 0], "second": X[:, 1]}, None),
        (unconditioned, X[:, 0], "obs"),
        (lambda *parts: line(parts[0], parts[-1]), (X[:, 0], X[:, 1]), None),
    ],
    ids=["one", "a tuple", "a mapping", "conditioned", "as many as come"],
)
def test_data_are_given_as_the_program_takes_them(program, x, observed):
    call = ProgramCall.of(program, observed)
    rows = Batch(x if isinstance(x, torch.Tensor) else Parts(x), Y, None)
    with running():
        value = ProgramJoint.of(call, rows).energy(torch.tensor([0.7]), rows)
        forwards = call.run_forwards(rows.x)
    density = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.7)) + dist.Normal(0.7 * X[:, 0], 0.3).log_prob(Y).sum()
    assert float(value) == pytest.approx(-float(density), rel=1e-12)
    assert forwards.shape == (NUM_ROWS,)
    assert not torch.equal(forwards, Y)  # drawn


def learns(x, y=None):
    scale = pyro.param("scale", torch.tensor(1.0))
    pyro.sample("y", dist.Normal(pyro.sample("mean", dist.Normal(0.0, 1.0)), scale).expand([len(x)]).to_event(1), obs=y)


def chooses(x, y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


def discrete(x, y=None):
    mean = pyro.sample("which", dist.Bernoulli(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def nothing(x, y=None):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, 0], 1.0), obs=y)


def two_sites(x, y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Normal(mean, 1.0), obs=y)
        pyro.sample("b", dist.Normal(mean, 2.0), obs=y)


@pytest.mark.parametrize(
    ("program", "observed", "message"),
    [
        (learns, None, r"learns point values \(scale\).*prior.*variational"),
        (chooses, None, r"plate 'data' chooses 4 of 12 rows.*subsample=torch.arange"),
        (discrete, None, "which are discrete.*Sum them out"),
        (nothing, None, "no latent site"),
        (two_sites, "a", r"observes a, b, too. Name all: `observed=\('a', 'b'\)`|observes b, too. Name all"),
        (two_sites, "c", "observes no site 'c'; it observes a, b, and samples mean"),
        (PROGRAMS["regression"], "slope", "observes no site 'slope'"),
    ],
)
def test_what_has_no_such_joint_is_refused_by_name(program, observed, message):
    with pytest.raises(ValueError, match=message):
        joint_of(program, observed=observed)
