"""Every method on networks of the architectures in use: it works, or it is refused with a remedy that works."""

from functools import cache, partial

import pytest
import torch

from bayesuq.data import Dataset
from bayesuq.inference import ensemble, hmc, laplace, map_estimate, sgmcmc, swag, variational
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.laplace.linearisation import Linearisation
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import NO_MODE, SHORT_FIT
from tests.zoo.architectures import ARCHITECTURES

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", NO_MODE, *SHORT_FIT),
]
SHORT = {"num_epochs": 1, "batch_size": 8, "seed": 0}
CHAINS = {"num_chains": 2, "num_samples": 2, "seed": 0}
METHODS = {
    "ensemble": partial(ensemble.fit, num_members=2, **SHORT),
    "adversarial ensemble": partial(ensemble.fit, num_members=1, adversarial=True, **SHORT),
    "variational": partial(variational.fit, **SHORT),
    "local": partial(variational.fit, estimator="local", **SHORT),
    "flipout": partial(variational.fit, estimator="flipout", **SHORT),
    "diagonal": partial(laplace.fit, structure="diagonal", subset="all", **SHORT),
    "kronecker": partial(laplace.fit, subset="all", **SHORT),
    "full": partial(laplace.fit, structure="full", subset="all", **SHORT),
    "last layer": partial(laplace.fit, subset="last_layer", **SHORT),
    "swag": partial(swag.fit, rank=2, **SHORT),
    "sgmcmc": partial(sgmcmc.fit, num_warmup=2, thinning=1, batch_size=8, **CHAINS),
    "hmc": partial(hmc.fit, num_warmup=2, kernel="hmc", num_steps=2, **CHAINS),
}
SAYS = {  # what refuses a method, and the option that it names
    "local": (r"estimator='local' .* Use estimator='(flipout|weights)'", {"estimator": "weights"}),
    "flipout": ("estimator='flipout' needs .* Use estimator='weights'", {"estimator": "weights"}),
    "swag": ("No rate of SGD can be measured .* Pass `swa_learning_rate`", {"swa_learning_rate": 1e-3}),
    "sgmcmc": ("No step size can be measured .* Pass `step_size`", {"step_size": 1e-3}),
    "adversarial ensemble": ("moves inputs along .* Leave it out", {"adversarial": False}),
}
REFUSED = {
    *(("local", name) for name in ARCHITECTURES if name != "keywords"),
    ("flipout", "experts"),
    ("swag", "bag of embeddings"),
    ("sgmcmc", "bag of embeddings"),
    ("adversarial ensemble", "bag of embeddings"),
}


@cache
def case(name: str) -> tuple[BayesianNetwork, Dataset]:
    """What every method fits: none may change it."""
    kind = ARCHITECTURES[name]
    x = kind.x(16)
    model = BayesianNetwork(kind.net(), priors.Normal(), likelihoods.Normal(scale=0.5))
    return model, Dataset(x, x.flatten(1).sum(dim=1).sin())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_works_or_names_what_does(method, name):
    model, data = case(name)
    fit = METHODS[method]
    if (method, name) in REFUSED:
        says, remedy = SAYS[method]
        with pytest.raises(ValueError, match=says):
            fit(model, data)
        fit = partial(fit, **remedy)
    posterior = fit(model, data)
    whole, some = (posterior.predict(x, num_samples=3, seed=0) for x in (data.x, data.x[3:5]))
    assert whole.mean.isfinite().all()
    torch.testing.assert_close(some.mean, whole.mean[3:5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(some.total, whole.total[3:5], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_derivatives_of_every_architecture_are_those_of_autograd(name):
    model, data = case(name)
    mode = map_estimate.fit(model, data, **SHORT)
    posterior = laplace.fit(model, data, mode=mode, structure="full", subset="all")
    layout = Layout.of(model)
    linear = Linearisation(model, layout.split(mode.values), mode.buffers, posterior.names, posterior.layers)

    def outputs(flat: torch.Tensor) -> torch.Tensor:
        return model.forward(layout.split(flat), data.x)[:, 0]

    leaf = mode.values.clone().requires_grad_()
    expected = torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in outputs(leaf)])
    curvature = expected.double().T @ expected.double() / 0.25
    torch.testing.assert_close(posterior.curvature["full"], curvature, rtol=1e-3, atol=1e-3 * float(curvature.max()))
    if name == "bag of embeddings":
        return  # it has one derivative, and neither a forward nor a second one
    pushed = linear.pushed(data.x, layout.split(torch.ones_like(mode.values)))
    torch.testing.assert_close(pushed[:, 0], expected.sum(dim=1), rtol=1e-3, atol=1e-3)
