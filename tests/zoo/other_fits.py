"""Pairs of fits that are alike in name and differ in one thing, each of which a checkpoint must tell apart."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as Rows

from bayesuq.data import Batch, Dataset
from bayesuq.inference import (
    confidence,
    dropout,
    ensemble,
    gp,
    hmc,
    ivon,
    map_estimate,
    microcanonical,
    sgmcmc,
    swag,
    temperature,
    variational,
)
from bayesuq.inference.variational.guides import mean_field
from bayesuq.loaders import Loader
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import built, labelled, measured

SHORT = {"num_epochs": 1, "batch_size": 24, "learning_rate": 0.01, "seed": 1}
CHAINS = {"num_samples": 2, "num_warmup": 2, "num_chains": 1, "seed": 1}
SEARCH = {"num_restarts": 1, "max_iterations": 2, "seed": 1}


@dataclass(frozen=True)
class Pair:
    """A fit, another one, and how the difference is named.

    Attributes:
        fit: Takes `checkpoint`.
        other: The other one.
        words: A pattern in the error.
    """

    fit: Callable[..., Any]
    other: Callable[..., Any]
    words: str


class Own(nn.Module):
    """A network of the user's own, with a frozen backbone, a buffer and a plain attribute."""

    def __init__(self, *, backbone: int = 0, offset: float = 0.0, slope: float = 1.0) -> None:
        super().__init__()
        self.backbone = built(lambda: nn.Linear(3, 4), backbone).requires_grad_(False)
        self.head = built(lambda: nn.Linear(4, 1), 0)
        self.register_buffer("offset", torch.full((1,), offset))
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.slope * self.backbone(x)).tanh()) + self.offset


def same_name(kind: type[nn.Module]) -> Callable[[], nn.Module]:
    """A network of the same name whose code is another."""

    class Own(kind):  # type: ignore[valid-type, misc]
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.backbone(x).sin()) + self.offset

    return Own


def model(net: nn.Module | None = None, prior: Any = None, likelihood: Any = None, **options: Any) -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (4,), 1)) if net is None else net
    likelihood = likelihoods.Normal(scale=0.3) if likelihood is None else likelihood
    return BayesianNetwork(net, priors.Normal() if prior is None else prior, likelihood, **options)


def classifier(seed: int = 0, **options: Any) -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (4,), 3), seed)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical(**options))


def around(shift: float, scale: float) -> dict[str, priors.EntrywiseNormal]:
    """Centred priors, which describe themselves by their shapes alone."""
    weights = {name: value + shift for name, value in model().initial().items()}
    return priors.centred(weights, priors.Normal(scale=scale))


def loader(*, x: float = 0.0, y: float = 0.0, weight: float = 1.0, shuffle: bool = True, factor: float = 1.0) -> Loader:
    data = measured()
    rows = TensorDataset(data.x + x, data.y + y, torch.full((len(data),), weight))
    read = DataLoader(rows, batch_size=24, shuffle=shuffle)
    return Loader(read, batch=lambda item: Batch(factor * item[0], *item[1:]))


class Read(Rows[Any]):
    """Rows that are read one by one, of which the last third may be others."""

    def __init__(self, *, factor: float = 1.0) -> None:
        self.data, self.factor = measured(), factor

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data.x[index], self.data.y[index] * (self.factor if index >= 32 else 1.0)


def read(**changes: Any) -> DataLoader[Any]:
    return DataLoader(Read(**changes), batch_size=12)


def program(x: Tensor, y: Tensor | None = None, num_data: int | None = None) -> Tensor:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
        return pyro.sample("y", dist.Normal(x @ slope, 0.2), obs=y)


def program_of_the_same_name() -> Callable[..., Tensor]:
    def program(x: Tensor, y: Tensor | None = None, num_data: int | None = None) -> Tensor:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
            return pyro.sample("y", dist.Normal(x @ slope, 0.3), obs=y)

    program.__qualname__ = "program"
    return program


def mode(net: BayesianNetwork | None = None, data: Any = None, **options: Any) -> Callable[..., Any]:
    return partial(map_estimate.fit, net or model(), data or measured(), **{**SHORT, **options})


def evidence(net: BayesianNetwork | None = None, data: Any = None, **options: Any) -> Callable[..., Any]:
    return partial(variational.fit, net or model(), data or measured(), **{**SHORT, **options})


def own(**changes: Any) -> Callable[..., Any]:
    return mode(model(Own(**changes)))


def members(net: BayesianNetwork | None = None, **options: Any) -> Callable[..., Any]:
    return partial(ensemble.fit, net or model(), measured(), **{**SHORT, "num_members": 2, **options})


def iterates(**options: Any) -> Callable[..., Any]:
    steps = {"num_epochs": 4, "swa_share": 0.5, "rank": 2, "swa_learning_rate": 1e-4}
    return partial(swag.fit, model(), measured(), **{**SHORT, **steps, **options})


def langevin(net: BayesianNetwork | None = None, **options: Any) -> Callable[..., Any]:
    return partial(sgmcmc.fit, net or model(), measured(), **{**CHAINS, "thinning": 1, "batch_size": 24, **options})


def hamiltonian(net: BayesianNetwork | None = None, **options: Any) -> Callable[..., Any]:
    steps = {"kernel": "hmc", "num_steps": 2, "chain_method": "sequential"}
    return partial(hmc.fit, net or model(), measured(), **{**CHAINS, **steps, **options})


def energies(net: Any, **options: Any) -> Callable[..., Any]:
    steps = {"num_members": 2, "num_samples": 2, "num_warmup": 4, "thinning": 1, "seed": 1}
    return partial(microcanonical.fit, net, measured(), **{**steps, **options})


def newton(net: BayesianNetwork) -> Callable[..., Any]:
    return partial(ivon.fit, net, measured(), **{**SHORT, "learning_rate": 0.1})


@cache
def start() -> Any:
    """A fitted posterior that chains start from."""
    return mode()()


@cache
def fitted(seed: int = 0) -> Any:
    """A classifier."""
    return map_estimate.fit(classifier(seed), labelled(), **SHORT)


def process(kernel: Any = None, mean: Any = None, data: Dataset | None = None, **options: Any) -> Callable[..., Any]:
    made = processes.GaussianProcess(processes.Scale(processes.RBF()) if kernel is None else kernel, mean=mean)
    return partial(gp.fit, made, data or measured(12), **{**SEARCH, **options})


def deep(slope: float = 1.0) -> processes.Deep:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.slope = built(lambda: nn.Linear(3, 2)), slope

        def forward(self, x: Tensor) -> Tensor:
            return self.slope * self.layer(x).tanh()

    Features.__qualname__ = "Features"
    return processes.Deep(Features(), processes.RBF())


def sparse(**options: Any) -> Callable[..., Any]:
    steps = {"approximation": "sparse", "num_inducing": 3, "num_epochs": 1, "batch_size": 12, "seed": 1}
    made = processes.GaussianProcess(options.pop("kernel", processes.RBF()))
    return partial(gp.fit, made, measured(24), **{**steps, **options})


def sampled(kernel: Any = None, **options: Any) -> Callable[..., Any]:
    made = processes.GaussianProcess(kernel or processes.RBF())
    return partial(gp.fit, made, measured(8), hyperparameters="sample", **{**CHAINS, **options})


def scaled(seed: int = 0, data: Dataset | None = None, **options: Any) -> Callable[..., Any]:
    return partial(temperature.fit, fitted(seed), data or labelled(24, seed=5), **{"seed": 1, **options})


def trusted(seed: int = 0, data: Dataset | None = None, **options: Any) -> Callable[..., Any]:
    steps = {"hidden": (3,), "num_fine_tuning_epochs": 1}
    return partial(confidence.fit, fitted(seed), data or labelled(), **{**SHORT, **steps, **options})


LOSS = "at fixed weights is"
MODE, EVIDENCE, LANGEVIN, HAMILTONIAN = mode(), evidence(), langevin(), hamiltonian()
RULE = {"random": lambda name, _: name.startswith("3")}
OTHER_RULE = {"random": lambda name, _: name.endswith("weight")}
WEIGHTED = Dataset(measured().x, measured().y, torch.linspace(0.5, 1.5, len(measured())))

PAIRS = {
    "centred prior, other scale": Pair(
        mode(model(prior=around(0, 1.0))), mode(model(prior=around(0, 2.0))), "prior of 1.bias is not"
    ),
    "centred prior, other centres": Pair(
        mode(model(prior=around(0, 1.0))), mode(model(prior=around(0.1, 1.0))), "prior of 1.bias is not"
    ),
    "prior": Pair(MODE, mode(model(prior=priors.StudentT())), "prior of 1.bias is not"),
    "frozen backbone": Pair(own(), own(backbone=1), "frozen parameter backbone.bias is not"),
    "buffer": Pair(own(), own(offset=1.0), "buffer offset is not"),
    "plain attribute": Pair(own(), own(slope=1.5), LOSS),
    "code under the same name": Pair(own(), mode(model(same_name(Own)())), LOSS),
    "loader, targets": Pair(mode(data=loader()), mode(data=loader(y=0.1)), "its data is"),
    "loader, inputs": Pair(mode(data=loader()), mode(data=loader(x=0.1)), "its data is"),
    "loader, weights": Pair(mode(data=loader(weight=1.0)), mode(data=loader(weight=2.0)), "its data is"),
    "loader, how items are read": Pair(mode(data=loader()), mode(data=loader(factor=2.0)), "its data is"),
    "loader, validation": Pair(
        mode(validation=loader(shuffle=False)), mode(validation=loader(y=0.1, shuffle=False)), "its validation is"
    ),
    "loader, rows that are read late": Pair(mode(data=read()), mode(data=read(factor=2.0)), "its data is"),
    "data": Pair(MODE, mode(data=measured(seed=3)), "its data is"),
    "weights": Pair(MODE, mode(data=WEIGHTED), "its data is"),
    "validation": Pair(mode(validation=measured(9)), mode(validation=measured(9, seed=2)), "its validation is"),
    "likelihood": Pair(MODE, mode(model(likelihood=likelihoods.Normal(scale=0.4))), LOSS),
    "likelihood's start": Pair(
        mode(model(likelihood=likelihoods.Normal(scale="learned"))),
        mode(model(likelihood=likelihoods.Normal(scale="learned", initial_scale=0.3))),
        "start of unknowns is not",
    ),
    "class weights": Pair(
        partial(map_estimate.fit, classifier(), labelled(), **SHORT),
        partial(map_estimate.fit, classifier(class_weights=(1.0, 2.0, 1.0)), labelled(), **SHORT),
        LOSS,
    ),
    "rule that is a function": Pair(evidence(model(**RULE)), evidence(model(**OTHER_RULE)), "its random sites is"),
    "prior by a rule that is a function": Pair(
        mode(model(prior={RULE["random"]: priors.Normal(scale=2.0), "*": priors.Normal()})),
        mode(model(prior={OTHER_RULE["random"]: priors.Normal(scale=2.0), "*": priors.Normal()})),
        "prior of 1.weight is not",
    ),
    "dropout's share": Pair(
        partial(dropout.fit, model(built(lambda: networks.mlp(3, (4,), 1, dropout=0.2))), measured(), **SHORT),
        partial(dropout.fit, model(built(lambda: networks.mlp(3, (4,), 1, dropout=0.4))), measured(), **SHORT),
        LOSS,
    ),
    "adversarial": Pair(MODE, mode(adversarial=True), LOSS),
    "learning rate": Pair(MODE, mode(learning_rate=0.02), "its learning_rate is 0.01, this one's 0.02"),
    "batch size": Pair(MODE, mode(batch_size=12), "its data is '48 rows in 2 batches"),
    "seed": Pair(MODE, mode(seed=2), "its seed is 1, this one's 2"),
    "KL weight of the same end": Pair(
        evidence(kl_weight=variational.annealed(0.3)), evidence(kl_weight=variational.annealed(0.5)), "kl_weight is"
    ),
    "draws a step": Pair(EVIDENCE, evidence(num_draws=2), "its num_draws is 1, this one's 2"),
    "estimator": Pair(EVIDENCE, evidence(estimator="local"), "its estimator is 'weights', this one's 'local'"),
    "first scales": Pair(EVIDENCE, evidence(guide=partial(mean_field, initial_scale=0.3)), "start of log_scale is not"),
    "rate of the scales": Pair(EVIDENCE, evidence(scale_rate=2.0), "its optimizer is"),
    "rank of a guide": Pair(
        evidence(guide=variational.low_rank(1)), evidence(guide=variational.low_rank(2)), "its leaves is"
    ),
    "autoguide's first scales": Pair(
        evidence(guide=AutoNormal), evidence(guide=partial(AutoNormal, init_scale=0.02)), "start of .*scales"
    ),
    "program of the same name": Pair(
        evidence(program),
        evidence(program_of_the_same_name()),
        LOSS,  # type: ignore[arg-type]
    ),
    "program by microcanonical chains": Pair(
        energies(program), energies(program_of_the_same_name()), "log joint at fixed"
    ),
    "microcanonical, backbone": Pair(
        energies(model(Own())), energies(model(Own(backbone=1))), "frozen parameter backbone.bias is not"
    ),
    "IVON, attribute": Pair(newton(model(Own())), newton(model(Own(slope=1.5))), LOSS),
    "ensemble, prior": Pair(members(), members(model(prior=around(0, 2.0))), "prior of 1.bias is not"),
    "ensemble, bootstrap": Pair(members(), members(bootstrap=True), "its data is"),
    "ensemble, one by one": Pair(
        members(vectorised=False), members(model(prior=around(0, 2.0)), vectorised=False), "prior of 1.bias is not"
    ),
    "SWAG, momentum": Pair(iterates(), iterates(momentum=0.5), "its optimizer is"),
    "SWAG, interval": Pair(iterates(collect_every=1), iterates(collect_every=2), "its collect_every is 1"),
    "SWAG, rank": Pair(iterates(collect_every=1), iterates(collect_every=1, rank=3), "its buffers is"),
    "SGLD, prior": Pair(
        langevin(model(prior=around(0, 1.0))), langevin(model(prior=around(0, 2.0))), "prior of 1.bias is not"
    ),
    "SGLD, attribute": Pair(langevin(model(Own())), langevin(model(Own(slope=2.0))), LOSS),
    "SGLD, start": Pair(langevin(start="prior"), langevin(start=start()), "its start is not"),
    "SGLD, step size": Pair(langevin(step_size=1e-3), langevin(step_size=2e-3), "its step_size is 0.001"),
    "SGHMC, friction": Pair(
        langevin(sampler="sghmc", friction=0.1), langevin(sampler="sghmc", friction=0.2), "its kernel is"
    ),
    "HMC from a fitted start, prior": Pair(
        hamiltonian(start=start()),
        hamiltonian(model(prior=priors.Normal(scale=2.0)), start=start()),
        "prior of 1.bias is not",
    ),
    "HMC from a fitted start, likelihood": Pair(
        hamiltonian(start=start()),
        hamiltonian(model(likelihood=likelihoods.Normal(scale=0.4)), start=start()),
        LOSS,
    ),
    "HMC, backbone": Pair(
        hamiltonian(model(Own())), hamiltonian(model(Own(backbone=1))), "frozen parameter backbone.bias is not"
    ),
    "HMC, warm-up": Pair(HAMILTONIAN, hamiltonian(num_warmup=3), "its num_warmup is 2, this one's 3"),
    "process, mean": Pair(process(), process(mean=processes.ZeroMean()), "its hyperparameters is"),
    "process, features": Pair(process(deep()), process(deep(2.0)), LOSS),
    "process, data": Pair(process(), process(data=measured(12, seed=3)), "its data is"),
    "process, prior": Pair(
        process(processes.RBF(lengthscale=priors.LogNormal(0.0, 1.0))),
        process(processes.RBF(lengthscale=priors.LogNormal(0.0, 2.0))),
        "start of the hyperparameters is not|at fixed weights is",
    ),
    "sparse process, inducing points": Pair(sparse(), sparse(num_inducing=4), "its leaves is"),
    "sparse process, features": Pair(sparse(kernel=deep()), sparse(kernel=deep(2.0)), LOSS),
    "sparse process, rate": Pair(sparse(natural_rate=0.1), sparse(natural_rate=0.2), "its natural_rate is 0.1"),
    "sampled process, kernel": Pair(sampled(), sampled(processes.Matern()), LOSS),
    "temperature, posterior": Pair(scaled(), scaled(1), "its data is"),
    "temperature, kind": Pair(scaled(), scaled(vector=True), "its scaling is 'temperature', this one's 'vector'"),
    "confidence, posterior": Pair(trusted(), trusted(1), "its data is"),
    "confidence, width": Pair(trusted(), trusted(hidden=(4,)), "its leaves is"),
    "confidence, rows": Pair(trusted(), trusted(data=labelled(seed=4)), "its data is"),
}
