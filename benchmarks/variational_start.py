"""How a mean-field fit starts, judged by validation rows: noise, weight of the divergence, estimator.

    python benchmarks/variational_start.py [SET ...]

Prints a line of JSON for each set, division, and start; sets are UCI names and `digits`. Test rows take no part.
"""

import json
import sys
import warnings
from time import process_time
from typing import Any

import torch

import bayesuq as bq
from bayesuq.inference import variational
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

SETS = ("energy", "boston", "concrete", "power-plant", "digits")
DIVISIONS = (0, 1)
NOISES, ESTIMATORS = (1.0, 0.1), ("weights", "local")
WEIGHTS = {"1": 1.0, "annealed": variational.annealed()}


def measure(name: str, division: int, noise: float, weight: str, estimator: Any) -> dict[str, Any]:
    """A network of 50 units (digits: 100) under N(0, 1), fitted by the defaults but for its start."""
    labels = name == "digits"
    rows = bq.datasets.load(name if labels else f"uci/{name}", seed=division, **({} if labels else {"split": 0}))
    units = None if labels else bq.Standardizer.fit(rows.train)
    train = rows.train if units is None else units.transform(rows.train)
    x = rows.val.x if units is None else units.transform(rows.val).x
    net = networks.mlp(train.x.shape[1], (100 if labels else 50,), 10 if labels else 1, seed=division)
    likelihood = likelihoods.Categorical() if labels else likelihoods.Normal(scale="learned", initial_scale=noise)
    model = BayesianNetwork(net, priors.Normal(), likelihood)
    begin = process_time()
    posterior = variational.fit(
        model, train, kl_weight=WEIGHTS[weight], estimator=estimator, seed=division, progress=False
    )
    seconds = process_time() - begin
    predictive: Any = posterior.predict(x, num_samples=300, seed=0)
    if units is None:
        error = float((predictive.mean.argmax(dim=1) != rows.val.y).double().mean())
    else:
        predictive = units.inverse(predictive)
        error = float((predictive.mean.reshape(-1) - rows.val.y.reshape(-1)).square().mean().sqrt())
    start = {"data": name, "division": division, "noise": noise, "kl_weight": weight, "estimator": estimator}
    judged = {"error": error, "log_likelihood": float(predictive.log_prob(rows.val.y).mean()), "seconds": seconds}
    return {**start, **judged}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for one in sys.argv[1:] or SETS:
        for number in DIVISIONS:
            for start in [(n, w, e) for n in NOISES for w in WEIGHTS for e in ESTIMATORS]:
                if one != "digits" or start[0] == 1.0:
                    print(json.dumps(measure(one, number, *start)), flush=True)
