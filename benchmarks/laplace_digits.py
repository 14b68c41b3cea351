"""The table of docs/methods/laplace.md: what structures, prior factors and readings are worth on `digits`.

One MAP fit of a 64-100-10 network with N(0, 1) priors, seed 0; every row stands on it. Some five minutes, of which the
full structure takes four.
"""

import torch

from bayesuq.datasets.named import load
from bayesuq.evaluation.scores import accuracy, negative_log_likelihood
from bayesuq.inference import laplace, map_estimate
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.posterior import Posterior

ROWS = (
    ("diagonal", "all"),
    ("kronecker", "all"),
    ("full", "all"),
    ("kronecker", "last_layer"),
    ("full", "last_layer"),
)


def main() -> None:
    """Print a row for each structure and subset."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    split = load("digits")
    net = networks.mlp(64, (100,), 10)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    mode = map_estimate.fit(model, split.train, num_epochs=50, seed=0)

    def scores(posterior: Posterior) -> str:
        predictive = posterior.predict(split.test.x, num_samples=100, seed=0)
        y = split.test.y
        return f"{float(negative_log_likelihood(predictive, y)):.3f} | {float(accuracy(predictive, y)):.3f}"

    print(f"mode | {scores(mode)}")
    print(
        "row | evidence | NLL | accuracy | factor | evidence | NLL | accuracy | probit | | sampled | | tuned, sampled"
    )
    for structure, subset in ROWS:
        posterior = laplace.fit(model, split.train, structure=structure, subset=subset, mode=mode, seed=0)  # type: ignore[arg-type]
        tuned = posterior.tuned("one")
        evidences = [f"{one.log_marginal_likelihood:.0f}" for one in (posterior, tuned)]
        plain = f"{evidences[0]} | {scores(posterior)}"
        best = f"{tuned.prior_factors[0]:.2f} | {evidences[1]} | {scores(tuned)}"
        others = " | ".join(scores(one) for one in (tuned.probit, posterior.sampled, tuned.sampled))
        print(f"{structure}, {subset} | {plain} | {best} | {others}", flush=True)


if __name__ == "__main__":
    main()
