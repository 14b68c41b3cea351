"""The table of docs/methods/swag.md and sgmcmc.md: SWAG and stochastic gradient chains on `digits`.

A 64-100-10 network with N(0, 1) priors, seed 0, all else by default; MAP and an ensemble stand beside. Name the rows to
run, as in `python benchmarks/chains_digits.py swag sghmc`, or none for all. A few minutes.
"""

import sys
from collections.abc import Callable
from functools import partial
from time import process_time

import torch

from bayesuq.datasets.named import load
from bayesuq.evaluation.calibration import expected_calibration_error
from bayesuq.evaluation.scores import accuracy, negative_log_likelihood
from bayesuq.inference import ensemble, map_estimate, sgmcmc, swag
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.posterior import Posterior

FROM_PRIOR = partial(sgmcmc.fit, start="prior")  # as far from the posterior as R-hat asks for
ROWS: dict[str, Callable[..., Posterior]] = {
    "map": map_estimate.fit,
    "ensemble": ensemble.fit,
    "swag": swag.fit,
    "swag-diagonal": partial(swag.fit, rank=0),
    "swag-scale-10": partial(swag.fit, scale=10.0),
    "swag-rate-1": partial(swag.fit, swa_learning_rate=1.0),
    "multi-swag": partial(ensemble.fit, member_fit=swag.fit),
    "sghmc": FROM_PRIOR,
    "sghmc-preconditioned": partial(FROM_PRIOR, preconditioning="rmsprop"),
    "sghmc-cyclical": partial(FROM_PRIOR, schedule="cyclical", num_warmup=500),
    "sgld": partial(FROM_PRIOR, sampler="sgld"),
    "sghmc-4x": partial(FROM_PRIOR, num_warmup=4000, thinning=40),
    "sghmc-16x": partial(FROM_PRIOR, num_warmup=16000, thinning=160),
}


def main(names: list[str]) -> None:
    """Print a row for each method."""
    torch.set_num_threads(1)
    split = load("digits")
    torch.manual_seed(0)
    model = BayesianNetwork(networks.mlp(64, (100,), 10), priors.Normal(), likelihoods.Categorical())
    print("row | seconds | NLL | accuracy | ECE | mutual information | draws | median scale | step")
    for name in names or ROWS:
        begin = process_time()
        posterior = ROWS[name](model, split.train, seed=0)
        seconds = process_time() - begin
        predictive = posterior.predict(split.test.x, num_samples=100, seed=0)
        figures = [measure(predictive, split.test.y) for measure in (negative_log_likelihood, accuracy)]
        figures.append(expected_calibration_error(predictive, split.test.y))
        figures.append(predictive.epistemic.mean())
        told = " | ".join(f"{float(figure):.4f}" for figure in figures)
        print(f"{name} | {seconds:.0f} | {told} | {predictive.num_samples} | {spread(posterior)}", flush=True)


def spread(posterior: Posterior) -> str:
    """Median over weights of their posterior scale, and the step size or nothing."""
    if isinstance(posterior, swag.SwagPosterior):
        return f"{float(posterior.variance.sqrt().median() * posterior.scale**0.5):.3f} |"
    if isinstance(posterior, sgmcmc.SgmcmcPosterior):
        scale = posterior.draws.flatten(0, 1).std(dim=0).median()
        return f"{float(scale):.3f} | {float(posterior.statistics['step_size'].max()):.2g}"
    return "|"


if __name__ == "__main__":
    main(sys.argv[1:])
