"""Carbon dioxide at Mauna Loa by a Gaussian process: trend, season and short-term changes, ten years ahead.

The kernel is a sum in the manner of Rasmussen & Williams 2006, section 5.4.3: a smooth trend, a yearly season that
changes slowly, irregularities over a year or so, and noise. Their trend falls back to its mean; this one has a parabola
beside the smooth part, so that what was learned of the growth goes on into the forecast. It is fitted to all months but
the last ten years, which it then forecasts, beside a kernel without a season.
"""

import argparse
import math
from pathlib import Path

import torch

import bayesuq as bq
from bayesuq.evaluation import plots, report
from bayesuq.inference import gp as inference
from bayesuq.models import gp, priors

ORIGIN = 1990.0  # of the years: straight lines and parabolas have it as their centre
SHOWN = 15.0  # years of the picture


def around(value: float, spread: float = 1.0) -> priors.LogNormal:
    """A prior around a guess, `spread` in nats; the guess is where the fit starts."""
    return priors.LogNormal(math.log(value), spread)


def kernels() -> dict[str, gp.Kernel]:
    """In years and ppm."""
    straight = gp.Linear(variance=around(2.0, 2.0))
    bent = gp.Scale(gp.Linear(variance=1.0) * gp.Linear(variance=1.0), variance=around(1e-3, 2.0))
    trend = straight + bent + gp.Scale(gp.RBF(lengthscale=around(30.0, 0.5)), variance=around(10.0, 2.0))
    season = gp.Scale(gp.Periodic(period=1.0) * gp.RBF(lengthscale=around(90.0)), variance=around(6.0, 2.0))
    irregular = gp.Scale(gp.RationalQuadratic(lengthscale=around(1.2), alpha=around(0.8)), variance=around(0.5, 2.0))
    return {"trend, season, irregularities": trend + season + irregular, "without a season": trend + irregular}


def main(out: Path, seed: int, max_iterations: int, num_restarts: int) -> None:
    """Load, build, fit, forecast, evaluate, draw."""
    split = bq.datasets.load("co2")
    data = bq.Dataset(split.refit.x - ORIGIN, split.refit.y)
    predictives = {}
    for name, kernel in kernels().items():
        posterior = inference.fit(
            gp.GaussianProcess(kernel),
            data,
            approximation="exact",
            num_restarts=num_restarts,
            max_iterations=max_iterations,
            seed=seed,
        )
        predictives[name] = posterior.predict(split.test.x - ORIGIN)
        measures = report.evaluate(predictives[name], split.test.y)
        print(f"{name}: log evidence {posterior.log_marginal_likelihood:.1f} nats, seed {seed}")
        print(measures)
    last = split.refit.x[:, 0] > float(split.refit.x.max()) - SHOWN + 10
    past = (split.refit.x[last, 0], split.refit.y[last, 0])
    figure = plots.regression_bands(predictives, split.test.x, data=past, truth=split.test.y)
    figure.set_size_inches(10, 5)
    figure.supxlabel("year", fontsize="medium")
    figure.axes[0].set_ylabel("CO2, ppm")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "co2.png"
    figure.savefig(path, dpi=150)
    print(f"wrote {path.resolve()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/co2"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=100, help="of L-BFGS, for each of the restarts")
    parser.add_argument("--restarts", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.out, arguments.seed, arguments.iterations, arguments.restarts)
