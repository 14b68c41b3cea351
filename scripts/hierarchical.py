"""A Pyro program of one's own through fit, predict and report: hierarchical regression, by two guides.

Twelve schools teach from 1 to 40 pupils each. Every school has a level of its own, drawn around a common one, so a
school with one pupil leans on the others. The program has global latents and observes `y`; that is all bayesuq asks.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

import bayesuq as bq
from bayesuq.evaluation.diagnostics.fit_quality import evaluate_fit
from bayesuq.evaluation.report.reporting import evaluate, side_by_side
from bayesuq.inference import variational

NUM_PUPILS = (40, 30, 20, 15, 10, 8, 6, 4, 3, 2, 1, 1)
NUM_DRAWS = 1000  # of importance ratios, and of the levels that are printed
GUIDES = {"mean field": variational.mean_field, "full rank": AutoMultivariateNormal}


def schools(x: Tensor, y: Tensor | None = None, num_data: int | None = None) -> Tensor:
    """Marks of pupils; x holds the number of the school, and hours of study."""
    common = pyro.sample("common", dist.Normal(0.0, 2.0))
    between = pyro.sample("between", dist.HalfNormal(1.0))
    effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    within = pyro.sample("within", dist.HalfNormal(1.0))
    with pyro.plate("schools", len(NUM_PUPILS)):
        level = pyro.sample("level", dist.Normal(common, between))
    mean = level[x[:, 0].long()] + effect * x[:, 1]
    with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
        return pyro.sample("y", dist.Normal(mean, within), obs=y)


def simulate(seed: int, pupils: tuple[int, ...], levels: Tensor) -> bq.Dataset:
    """Pupils of schools with these levels; one more hour gives half a mark, and pupils differ by 0.6."""
    noise = torch.Generator().manual_seed(seed)
    school = torch.arange(len(pupils)).repeat_interleave(torch.tensor(pupils))
    hours = torch.randn(len(school), generator=noise)
    marks = levels[school] + 0.5 * hours + 0.6 * torch.randn(len(school), generator=noise)
    return bq.Dataset(torch.stack([school.float(), hours], dim=1), marks)


def main(num_epochs: int, seed: int) -> None:
    """Simulate, fit, predict, evaluate, print."""
    levels = 1.0 + 0.8 * torch.randn(len(NUM_PUPILS), generator=torch.Generator().manual_seed(seed))
    train, test = simulate(seed + 1, NUM_PUPILS, levels), simulate(seed + 2, (10,) * len(NUM_PUPILS), levels)
    fits = {
        name: variational.fit(schools, train, guide=guide, num_epochs=num_epochs, num_draws=2, seed=seed)
        for name, guide in GUIDES.items()
    }
    reports = {}
    for name, fit in fits.items():
        quality = evaluate_fit(
            losses=fit.history.loss, log_ratios=fit.log_importance_ratios(train, num_samples=NUM_DRAWS, seed=seed)
        )
        reports[name] = evaluate(fit.predict(test.x, seed=seed), test.y).extended(quality)
    print(f"seed {seed}, {num_epochs} epochs, {len(train)} pupils; {len(test)} others to predict")
    print(side_by_side(reports))
    drawn = fits["full rank"].sample_weights(NUM_DRAWS, seed=seed)["level"]
    print("\nschool  pupils  own mean  posterior level  truth")
    for school, pupils in enumerate(NUM_PUPILS):
        own = train.y[train.x[:, 0] == school].mean()
        level = f"{drawn[:, school].mean():.2f} ± {drawn[:, school].std():.2f}"
        print(f"{school:>6}  {pupils:>6}  {own:>8.2f}  {level:>15}  {levels[school]:>5.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-epochs", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.num_epochs, arguments.seed)
