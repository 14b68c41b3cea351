"""Does a network remember? Five tasks in turn, each the digits with their pixels in another order.

After each task the network is tested on all tasks so far. *Sequential variational* takes yesterday's posterior as
today's prior; *fine-tuned MAP* goes on from yesterday's weights under the first prior; *joint MAP* sees the data of all
tasks so far, which the other two do not. The network has one set of outputs and is never told which task it is in.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch

import bayesuq as bq
from bayesuq.evaluation.scores import accuracy
from bayesuq.inference import map_estimate, variational
from bayesuq.inference.sequential import updated_model
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

CONTINUE = partial(variational.mean_field, initial_scale=1.0)  # where the last fit's scales ended


def tasks(num_tasks: int, seed: int) -> list[bq.Split]:
    """The digits with their pixels in the given order, and then in others."""
    split, generator = bq.datasets.load("digits"), torch.Generator().manual_seed(seed)
    orders = [torch.arange(64), *(torch.randperm(64, generator=generator) for _ in range(num_tasks - 1))]
    three = (split.train, split.val, split.test)
    return [bq.Split(*(bq.Dataset(part.x[:, order], part.y) for part in three)) for order in orders]


def sequential(model: BayesianNetwork, seen: list[bq.Split], last: bq.Posterior | None, **options: int) -> bq.Posterior:
    """Yesterday's posterior as today's prior."""
    if last is None:
        return variational.fit(model, seen[-1].train, **options)
    return variational.fit(updated_model(last), seen[-1].train, guide=CONTINUE, **options)


def fine_tuned(model: BayesianNetwork, seen: list[bq.Split], last: bq.Posterior | None, **options: int) -> bq.Posterior:
    """On from yesterday's weights."""
    if last is not None:
        model.net.load_state_dict({name: draws[0] for name, draws in last.sample_weights().items()})
    return map_estimate.fit(model, seen[-1].train, **options)


def joint(model: BayesianNetwork, seen: list[bq.Split], _: bq.Posterior | None, **options: int) -> bq.Posterior:
    """Again, on all data so far."""
    whole = bq.Dataset(torch.cat([task.train.x for task in seen]), torch.cat([task.train.y for task in seen]))
    return map_estimate.fit(model, whole, **options)


METHODS = {"sequential variational": sequential, "fine-tuned MAP": fine_tuned, "joint MAP": joint}


def run(seed: int, num_tasks: int, num_epochs: int) -> dict[str, list[list[float]]]:
    """One seed: for each method and after each task, the accuracy on every task so far."""
    found, everything = {}, tasks(num_tasks, seed)
    for name, fit in METHODS.items():
        torch.manual_seed(seed)
        net, prior = networks.mlp(64, (200,), 10), priors.FanIn(priors.Normal(scale=4.0))
        last, found[name] = None, []
        for number in range(1, num_tasks + 1):
            model, seen = BayesianNetwork(net, prior, likelihoods.Categorical()), everything[:number]
            last = fit(model, seen, last, num_epochs=num_epochs, seed=seed)
            predict = partial(last.predict, num_samples=50, seed=seed)
            found[name].append([float(accuracy(predict(task.test.x), task.test.y)) for task in seen])
    return found


def table(runs: list[dict[str, list[list[float]]]]) -> str:
    """After each task the mean accuracy over the tasks so far, and at the end that on each task, over seeds."""
    means = {name: [[sum(row) / len(row) for row in run[name]] for run in runs] for name in METHODS}
    ends, lines = {name: [run[name][-1] for run in runs] for name in METHODS}, []
    for title, found in (("mean accuracy so far, after task", means), ("accuracy at the end, on task", ends)):
        lines.append(f"{title:<34}" + "".join(f"{k + 1:>15}" for k in range(len(found["joint MAP"][0]))))
        for name, seeds in found.items():
            values = torch.tensor(seeds, dtype=torch.float64)
            pairs = zip(values.mean(dim=0), values.std(dim=0) / len(runs) ** 0.5, strict=True)
            lines.append(f"{name:<34}" + "".join(f"{mean:.3f} ± {error:.3f}".rjust(15) for mean, error in pairs))
    return "\n".join([*lines, f"{len(runs)} seeds, mean ± standard error"])


def main(out: Path, num_seeds: int, num_tasks: int, num_epochs: int) -> None:
    """Run, write one line a seed, print the table."""
    out.mkdir(parents=True, exist_ok=True)
    runs = []
    with (out / "continual.jsonl").open("w") as file:
        for seed in range(num_seeds):
            runs.append(run(seed, num_tasks, num_epochs))
            file.write(json.dumps({"seed": seed, "num_epochs": num_epochs, **runs[-1]}) + "\n")
            file.flush()
    print(table(runs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/continual"))
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--num-tasks", type=int, default=5)
    parser.add_argument("--num-epochs", type=int, default=100)
    arguments = parser.parse_args()
    main(arguments.out, arguments.num_seeds, arguments.num_tasks, arguments.num_epochs)
