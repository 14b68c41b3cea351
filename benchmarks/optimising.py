"""Bayesian optimisation: how far below the maximum each model stands after 60 values, beside BoTorch's `SingleTaskGP`.

    python -m benchmarks.optimising [--num-seeds 20] [--models process,ensemble] [--figure docs/figures/optimising.png]

All models see the same ten Sobol points first and are asked for five points at once, by the same acquisition function
and the same optimiser of it, so that only the model differs. A line of JSON for each function, model and seed; what is
there is skipped, so the same command goes on.

References:
    Eriksson et al., "Scalable global optimization via local Bayesian optimization", NeurIPS 2019: Ackley on [-5, 10].
    Hvarfner, Hellsten, Nardi, "Vanilla Bayesian optimization performs great in high dimensions", ICML 2024: longer
        lengthscales a priori where there are more inputs, as `SingleTaskGP` has them, too.
"""

import argparse
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Standardize
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from botorch.test_functions import Ackley, Branin, Hartmann
from gpytorch.mlls import ExactMarginalLogLikelihood
from matplotlib.figure import Figure
from torch import Tensor

import bayesuq as bq
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.models.gp import GaussianProcess, Matern, Scale
from scripts.recording import Records, versions

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "optimising.jsonl"
NUM_FIRST, NUM_VALUES, AT_ONCE = 10, 60, 5
COLOURS = {"SingleTaskGP": "#555555", "process": "#0072B2", "ensemble": "#D55E00"}


class Problem:
    """A function to maximise on the unit cube, of which only the first inputs may matter.

    Attributes:
        num_inputs: D.
        maximum: Its largest value.
    """

    def __init__(self, function: Any, num_inputs: int | None = None) -> None:
        self._function, self._used = function, function.dim
        self.num_inputs, self.maximum = num_inputs or function.dim, float(function.optimal_value)

    def __call__(self, x: Tensor) -> Tensor:
        """Values without noise, (N,), of points in the cube, (N, D)."""
        low, high = self._function.bounds.double()
        values: Tensor = self._function(low + (high - low) * x[:, : self._used])
        return values


PROBLEMS = {
    "Branin": Problem(Branin(negate=True)),
    "Hartmann6": Problem(Hartmann(negate=True)),
    "Ackley5": Problem(Ackley(dim=5, negate=True, bounds=[(-5.0, 10.0)] * 5)),
    "Hartmann6 of 30": Problem(Hartmann(negate=True), 30),
}


def single_task(x: Tensor, y: Tensor, _: int) -> Any:
    """BoTorch's own default model."""
    model = SingleTaskGP(x, y.unsqueeze(1), outcome_transform=Standardize(1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def process(x: Tensor, y: Tensor, seed: int) -> Any:
    """Matern's kernel, whose lengthscales are longer a priori the more inputs there are."""
    lengthscale = priors.LogNormal(math.sqrt(2) + math.log(x.shape[1]) / 2, math.sqrt(3))
    model = GaussianProcess(Scale(Matern(lengthscale=lengthscale)))
    return bq.bridges.as_botorch(bq.inference.gp.fit(model, bq.Dataset(x, y), num_restarts=1, seed=seed))


def ensemble(x: Tensor, y: Tensor, seed: int) -> Any:
    """Ten small networks, each from a start of its own."""
    data = bq.Dataset(x.float(), y.float())
    units = bq.Standardizer.fit(data)
    fitted = bq.inference.ensemble.fit(_network(x), units.transform(data), num_members=10, **_training(seed))
    return bq.bridges.as_botorch(bq.in_units(fitted, units))


def _network(x: Tensor) -> BayesianNetwork:
    net = networks.mlp(x.shape[1], (50,), 1, activation="tanh", seed=0)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal())


def _training(seed: int) -> dict[str, Any]:
    return {"num_epochs": 400, "batch_size": NUM_VALUES, "learning_rate": 0.02, "seed": seed, "progress": False}


MODELS: dict[str, Callable[[Tensor, Tensor, int], Any]] = {
    "SingleTaskGP": single_task,
    "process": process,
    "ensemble": ensemble,
}


def optimise(problem: Problem, model: Callable[[Tensor, Tensor, int], Any], seed: int) -> list[float]:
    """Regret of the best of the first n values, for n from 1 to 60."""
    torch.manual_seed(seed)
    x = torch.quasirandom.SobolEngine(problem.num_inputs, scramble=True, seed=seed).draw(NUM_FIRST, dtype=torch.float64)
    y = problem(x)
    bounds = torch.stack([torch.zeros(problem.num_inputs), torch.ones(problem.num_inputs)]).double()
    while len(y) < NUM_VALUES:
        sampler = SobolQMCNormalSampler(torch.Size([64]), seed=seed) if model is not ensemble else None
        improvement = qLogExpectedImprovement(model(x, y, seed), best_f=y.max(), sampler=sampler)
        how = {"num_restarts": 2, "raw_samples": 64, "options": {"maxiter": 40}}
        chosen, _ = optimize_acqf(improvement, bounds, q=AT_ONCE, **how)
        x, y = torch.cat([x, chosen]), torch.cat([y, problem(chosen)])
    regrets: list[float] = (problem.maximum - y.cummax(dim=0).values).tolist()
    return regrets


def run(records: Records, num_seeds: int, models: Sequence[str]) -> None:
    """Every seed, function and model that has no line yet."""
    for seed in range(num_seeds):
        for function, problem in PROBLEMS.items():
            for name in models:
                key = {"function": function, "model": name, "seed": seed}
                if records.has(**key):
                    continue
                begin = process_time()
                regret = optimise(problem, MODELS[name], seed)
                seconds = round(process_time() - begin, 2)
                records.append({**key, "regret": regret, "cpu_seconds": seconds, "versions": versions()})
                print(f"{function}, {name}, seed {seed}: regret {regret[-1]:.4f} after {seconds:.0f} CPU s", flush=True)


def regrets(records: Records, function: str, model: str) -> Tensor:
    """Of all seeds, (R, 60)."""
    own = [line["regret"] for line in records.read() if (line["function"], line["model"]) == (function, model)]
    return torch.tensor(own, dtype=torch.float64)


def draw(records: Records) -> Figure:
    """Median regrets and quartiles over the number of values, a panel a function."""
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    panels = figure.subplots(1, len(PROBLEMS))
    numbers = torch.arange(NUM_FIRST, NUM_VALUES + 1)
    for panel, function in zip(panels, PROBLEMS, strict=True):
        for model in MODELS:
            values = regrets(records, function, model)[:, NUM_FIRST - 1 :].clamp(min=1e-6)
            low, middle, high = (values.quantile(level, dim=0) for level in (0.25, 0.5, 0.75))
            panel.plot(numbers, middle, color=COLOURS[model], label=model)
            panel.fill_between(numbers, low, high, color=COLOURS[model], alpha=0.15, linewidth=0)
        panel.set(title=function, xlabel="values", yscale="log")
    panels[0].set_ylabel("regret of the best")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def tell(records: Records) -> None:
    """Median regrets after 60 values, a row a function."""
    print(f"{'':16s}" + "".join(f"{model:>16s}" for model in MODELS))
    for function in PROBLEMS:
        cells = (regrets(records, function, model) for model in MODELS)
        row = "".join(f"{statistics.median(cell[:, -1].tolist()):11.4f} ({len(cell):2d})" for cell in cells)
        print(f"{function:16s}{row}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seeds", type=int, default=20)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of JSON lines")
    parser.add_argument("--figure", type=Path, help="draw what is there into this file, and run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = Records(arguments.out)
    if arguments.figure is None:
        run(lines, arguments.num_seeds, arguments.models.split(","))
    else:
        draw(lines).savefig(arguments.figure, dpi=110)
    tell(lines)
