"""What each package is asked to do, as its own documentation does it; a function imports its package when it runs."""

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.timed import (
    BATCH_SIZE,
    NUM_DRAWS,
    NUM_ROWS,
    NUM_STEPS,
    Line,
    minibatches,
    new_rows,
    plain_net,
    plain_process,
    prediction,
    rows,
    rows_of_process,
    steps,
)


def of_bayesuq() -> Iterator[Line]:
    """Ours: mean field, a Laplace approximation, an exact process."""
    bq = importlib.import_module("bayesuq")
    x, y = rows()
    data, model = (
        bq.data.Dataset(x, y),
        bq.models.BayesianNetwork(plain_net(), bq.models.priors.Normal(), bq.models.likelihoods.Categorical()),
    )
    fit = partial(bq.inference.variational.fit, model, data, batch_size=BATCH_SIZE, seed=0, progress=False)
    num_epochs = NUM_STEPS * BATCH_SIZE // NUM_ROWS
    yield steps(partial(fit, num_epochs=num_epochs, estimator="weights"))
    yield prediction(partial(fit(num_epochs=1).predict, new_rows(), num_samples=NUM_DRAWS, seed=0))
    mode = bq.inference.map_estimate.fit(model, data, num_epochs=1, seed=0, progress=False)
    laplace = partial(
        bq.inference.laplace.fit, model, data, mode=mode, subset="all", structure="kronecker", progress=False
    )
    yield steps(laplace)._replace(what="Laplace, Kronecker, fit")
    inputs, targets = rows_of_process()
    process = bq.models.gp.GaussianProcess(bq.models.gp.RBF())
    search = partial(bq.inference.gp.fit, process, bq.data.Dataset(inputs, targets), num_restarts=1, seed=0)
    yield Line("exact process, whole fit", "20 plain gradients", partial(search, approximation="exact"), plain_process)


def of_tyxe() -> Iterator[Line]:
    """Its VariationalBNN, by AutoNormal and its own training loop."""
    pyro = importlib.import_module("pyro")
    util = importlib.import_module("pyro.util")
    if not hasattr(util, "deep_getattr"):  # which Pyro 1.9 has no more, and TyXe asks for
        util.deep_getattr = lambda base, path: __import__("functools").reduce(getattr, path.split("."), base)
    tyxe = importlib.import_module("tyxe")
    x, y = rows()

    def built() -> Any:
        pyro.clear_param_store()
        prior = tyxe.priors.IIDPrior(pyro.distributions.Normal(0.0, 1.0))
        likelihood = tyxe.likelihoods.Categorical(NUM_ROWS)
        guide = partial(tyxe.guides.AutoNormal, init_loc_fn=pyro.infer.autoguide.init_to_median)
        return tyxe.VariationalBNN(plain_net(), prior, likelihood, guide)

    def fit() -> Any:
        network = built()
        loader = DataLoader(TensorDataset(x, y), batch_size=BATCH_SIZE, shuffle=True)
        network.fit(loader, pyro.optim.Adam({"lr": 1e-3}), NUM_STEPS * BATCH_SIZE // NUM_ROWS)
        return network

    yield steps(fit)
    yield prediction(partial(fit().predict, new_rows(), num_predictions=NUM_DRAWS))


def of_bayesian_torch() -> Iterator[Line]:
    """A network turned into a Bayesian one by reparameterisation."""
    bayesian = importlib.import_module("bayesian_torch.models.dnn_to_bnn")
    options = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "posterior_rho_init": -3.0}
    options |= {"type": "Reparameterization", "moped_enable": False, "moped_delta": 0.5}

    def built() -> Any:
        net = plain_net()
        bayesian.dnn_to_bnn(net, options)
        return net

    def fit() -> None:
        net = built()
        _descend(net, lambda x, y: functional.cross_entropy(net(x), y) + bayesian.get_kl_loss(net) / BATCH_SIZE)

    yield steps(fit)
    yield prediction(partial(_mean_of_passes, built))


def of_posteriors() -> Iterator[Line]:
    """Its diagonal variational inference, and draws under one vmap."""
    posteriors, torchopt = (importlib.import_module(name) for name in ("posteriors", "torchopt"))
    net = plain_net()
    given = {name: value.detach().clone() for name, value in net.named_parameters()}

    def log_posterior(theta: Any, batch: Any) -> tuple[Any, Any]:
        f = torch.func.functional_call(net, theta, (batch[0],))
        log_prior = posteriors.diag_normal_log_prob(theta, mean=0.0, sd_diag=1.0)
        return -functional.cross_entropy(f, batch[1]) + log_prior / NUM_ROWS, f

    transform = posteriors.vi.diag.build(log_posterior, torchopt.adam(1e-3), 1 / NUM_ROWS, init_log_sds=-3.0)

    def fit() -> Any:
        state = transform.init(given)
        for batch in minibatches(NUM_STEPS):
            state, _ = transform.update(state, batch)
            state.nelbo.item()
        return state

    state, x = fit(), new_rows()

    def predict() -> None:
        with torch.no_grad():
            theta = posteriors.vi.diag.sample(state, torch.Size([NUM_DRAWS]))
            run = torch.vmap(lambda one: torch.func.functional_call(net, one, (x,)))
            run(theta).softmax(dim=-1).mean(dim=0)

    yield steps(fit)
    yield prediction(predict)


def of_laplace_torch() -> Iterator[Line]:
    """A Kronecker-factored Laplace approximation of all weights, and 100 draws of it."""
    _declare_operators_of_torchvision()
    laplace = importlib.import_module("laplace")
    loader = DataLoader(TensorDataset(*rows()), batch_size=BATCH_SIZE)

    def fit() -> Any:
        found = laplace.Laplace(plain_net(), "classification", subset_of_weights="all", hessian_structure="kron")
        found.fit(loader)
        return found

    yield steps(fit)._replace(what="Laplace, Kronecker, fit")
    yield prediction(partial(fit(), new_rows(), pred_type="nn", link_approx="mc", n_samples=NUM_DRAWS))


def of_torch_uncertainty() -> Iterator[Line]:
    """Its Bayesian multilayer perceptron and evidence lower bound."""
    _declare_operators_of_torchvision()
    losses = importlib.import_module("torch_uncertainty.losses")
    layers = importlib.import_module("torch_uncertainty.layers")

    def built() -> Any:
        torch.manual_seed(0)
        sizes = (layers.BayesLinear(16, 64), torch.nn.ReLU(), layers.BayesLinear(64, 64), torch.nn.ReLU())
        return torch.nn.Sequential(*sizes, layers.BayesLinear(64, 5))

    def fit() -> None:
        net = built()
        _descend(net, losses.ELBOLoss(net, functional.cross_entropy, kl_weight=1 / NUM_ROWS, num_samples=1))

    yield steps(fit)
    yield prediction(partial(_mean_of_passes, built))


def _descend(net: Any, loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Steps of Adam, as a user writes them, by a loss of each minibatch."""
    optimizer = torch.optim.Adam(net.parameters())
    for x, y in minibatches(NUM_STEPS):
        optimizer.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        optimizer.step()
        loss.item()


def _mean_of_passes(built: Callable[[], Any]) -> Tensor:
    """Class probabilities of a network that draws its weights at each pass."""
    net, x = built(), new_rows()
    with torch.no_grad():
        return torch.stack([net(x).softmax(dim=1) for _ in range(NUM_DRAWS)]).mean(dim=0)


def _declare_operators_of_torchvision() -> None:
    """So that torchvision imports on a torch without its compiled part."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


_KEPT: list[Any] = []  # what must live as long as the process


def of_numpyro() -> Iterator[Line]:
    """SVI by AutoNormal, the steps compiled into one loop, and a compiled prediction; compiling is not counted."""
    jax, numpyro = importlib.import_module("jax"), importlib.import_module("numpyro")
    infer, autoguide = (importlib.import_module(f"numpyro.infer{name}") for name in ("", ".autoguide"))
    inputs, labels = (jax.numpy.asarray(part.numpy()) for part in rows())
    shapes = {"w0": (16, 64), "b0": (64,), "w1": (64, 64), "b1": (64,), "w2": (64, 5), "b2": (5,)}

    def outputs(theta: Any, x: Any) -> Any:
        hidden = jax.nn.relu(x @ theta["w0"] + theta["b0"])
        return jax.nn.relu(hidden @ theta["w1"] + theta["b1"]) @ theta["w2"] + theta["b2"]

    def program(x: Any, y: Any) -> None:
        law = numpyro.distributions.Normal(0.0, 1.0)
        theta = {name: numpyro.sample(name, law.expand(shape).to_event(len(shape))) for name, shape in shapes.items()}
        with numpyro.plate("rows", NUM_ROWS, subsample_size=len(x)):
            numpyro.sample("y", numpyro.distributions.Categorical(logits=outputs(theta, x)), obs=y)

    guide = autoguide.AutoNormal(program, init_loc_fn=infer.init_to_median)
    svi = infer.SVI(program, guide, numpyro.optim.Adam(1e-3), infer.Trace_ELBO())
    begun = svi.init(jax.random.PRNGKey(0), inputs[:BATCH_SIZE], labels[:BATCH_SIZE])

    @jax.jit  # type: ignore[untyped-decorator]
    def fit(state: Any) -> Any:
        def epoch(state: Any, key: Any) -> tuple[Any, Any]:
            order = jax.random.permutation(key, NUM_ROWS).reshape(-1, BATCH_SIZE)
            return jax.lax.scan(lambda now, at: svi.update(now, inputs[at], labels[at]), state, order)

        keys = jax.random.split(jax.random.PRNGKey(1), NUM_STEPS * BATCH_SIZE // NUM_ROWS)
        return jax.lax.scan(epoch, state, keys)

    state, _ = fit(begun)
    values, x = svi.get_params(state), jax.numpy.asarray(new_rows().numpy())

    @jax.jit  # type: ignore[untyped-decorator]
    def predict(key: Any) -> Any:
        theta = guide.sample_posterior(key, values, sample_shape=(NUM_DRAWS,))
        return jax.nn.softmax(jax.vmap(partial(outputs, x=x))(theta)).mean(axis=0)

    yield steps(lambda: jax.block_until_ready(fit(begun)))
    yield prediction(lambda: jax.block_until_ready(predict(jax.random.PRNGKey(2))))


def of_bde() -> Iterator[Line]:
    """Its whole classifier, of four members: training, warm-up and sampling, compilation included."""
    jax, bde = importlib.import_module("jax"), importlib.import_module("bde")
    inputs, labels = (jax.numpy.asarray(part.numpy()) for part in rows())
    size = {"n_members": 4, "hidden_layers": [64, 64], "epochs": 20, "warmup_steps": 100, "n_samples": 100}

    def fit() -> None:
        bde.BdeClassifier(seed=0, **size).fit(inputs, labels)

    yield steps(fit)._replace(what="whole fit, 4 members, 200 steps of each")


def of_gpytorch() -> Iterator[Line]:
    """An exact process with its marginal likelihood."""
    gpytorch = importlib.import_module("gpytorch")
    x, y = rows_of_process()

    class Model(gpytorch.models.ExactGP):  # type: ignore[misc,name-defined]
        def __init__(self, likelihood: Any) -> None:
            super().__init__(x, y, likelihood)
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2))

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    def gradients() -> None:
        model = Model(gpytorch.likelihoods.GaussianLikelihood()).double()
        evidence = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            (-evidence(model(x), y)).backward()
            optimizer.step()

    yield Line("exact process, 20 gradients", "20 plain gradients", gradients, plain_process)


PACKAGES: dict[str, Callable[[], Iterator[Line]]] = {
    "bayesuq": of_bayesuq,
    "tyxe": of_tyxe,
    "bayesian-torch": of_bayesian_torch,
    "posteriors": of_posteriors,
    "laplace-torch": of_laplace_torch,
    "torch-uncertainty": of_torch_uncertainty,
    "numpyro": of_numpyro,
    "bde": of_bde,
    "gpytorch": of_gpytorch,
}
DISTRIBUTIONS = {"bde": "sklearn_contrib_bde"}  # by which a package is installed, where that is another name
