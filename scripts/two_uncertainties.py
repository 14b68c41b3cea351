"""Two uncertainties and the number of data: epistemic falls as they grow, aleatoric comes to what the noise is.

Regression with a noise that depends on the input (HeteroscedasticNormal), and labels that are flipped in one half of
the plane (HeteroscedasticCategorical), from a known law, so that the true aleatoric part can be drawn beside. An
ensemble at every size, each member on rows drawn anew with replacement; mean over fresh inputs, and over seeds.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import bayesuq as bq
from bayesuq.evaluation.plots.parts import uncertainty_by_size
from bayesuq.inference import ensemble
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.randomness import derive_seed, generator, isolated

NUM_TEST, NUM_STEPS, NUM_MEMBERS = 2000, 2000, 5
NOISE, SLOPE, FLIPS = 0.2, 0.15, 0.3  # noise scale at 0 and its growth with |x|; largest share of flipped labels


def curve(num_rows: int, seed: int) -> tuple[bq.Dataset, Tensor]:
    """y = sin 2x + noise of scale .2 + .15 |x|, x in (-3, 3); and the noise variance at each row."""
    noise = generator(seed)
    x = 6 * torch.rand(num_rows, 1, generator=noise) - 3
    scale = NOISE + SLOPE * x.abs()
    return bq.Dataset(x, (2 * x).sin() + scale * torch.randn(num_rows, 1, generator=noise)), scale.square()


def halves(num_rows: int, seed: int) -> tuple[bq.Dataset, Tensor]:
    """Labels on both sides of the curve x1 = sin x2, up to three in ten flipped as x1 grows; and their entropies."""
    noise = generator(seed)
    x = 4 * torch.rand(num_rows, 2, generator=noise) - 2
    clean, flips = (4 * (x[:, 0] - x[:, 1].sin())).sigmoid(), FLIPS * (3 * x[:, 0]).sigmoid()
    probs = clean * (1 - flips) + (1 - clean) * flips
    entropy = torch.special.entr(probs) + torch.special.entr(1 - probs)
    return bq.Dataset(x, (torch.rand(num_rows, generator=noise) < probs).long()), entropy


LAWS: dict[str, tuple[Callable[[int, int], tuple[bq.Dataset, Tensor]], int, likelihoods.Likelihood]] = {
    "regression, variance": (curve, 1, likelihoods.HeteroscedasticNormal()),
    "classification, entropy in nats": (halves, 2, likelihoods.HeteroscedasticCategorical(num_noise_draws=16)),
}


def parts(name: str, num_rows: int, seed: int) -> tuple[float, float]:
    """Mean aleatoric and epistemic uncertainty of an ensemble that has seen so many rows."""
    law, num_features, likelihood = LAWS[name]
    num_outputs = 2 if num_features == 1 else 4
    with isolated(derive_seed(seed, 0)):
        net = networks.mlp(num_features, (20, 20), num_outputs, activation="tanh")
    model = BayesianNetwork(net, priors.FanIn(priors.Normal(scale=2.0)), likelihood)
    posterior = ensemble.fit(
        model,
        law(num_rows, derive_seed(seed, 1))[0],
        num_members=NUM_MEMBERS,
        bootstrap=True,
        num_epochs=max(5, NUM_STEPS * 64 // num_rows),
        batch_size=64,
        learning_rate=1e-2,
        seed=derive_seed(seed, 2),
        progress=False,
    )
    predictive = posterior.predict(law(NUM_TEST, 0)[0].x)
    return float(predictive.aleatoric.mean()), float(predictive.epistemic.mean())


def main(sizes: list[int], num_seeds: int, out: Path) -> None:
    """Every law at every size; print the parts, and draw them beside the truth."""
    found, truth = {}, {}
    for name, (law, _, _) in LAWS.items():
        values = torch.tensor([[parts(name, size, seed) for seed in range(num_seeds)] for size in sizes])
        found[name] = {"aleatoric": values[..., 0], "epistemic": values[..., 1]}
        truth[name] = float(law(100_000, 1)[1].mean())
        print(f"{name}: true noise {truth[name]:.4f}")
        for size, (aleatoric, epistemic) in zip(sizes, values.mean(dim=1).tolist(), strict=True):
            print(f"{size:7d} rows: aleatoric {aleatoric:.4f}, epistemic {epistemic:.5f}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    uncertainty_by_size(found, sizes, truth=truth).savefig(out, dpi=110)
    print(f"Picture: {out.resolve()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 400, 1600, 6400])
    parser.add_argument("--num-seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/two-uncertainties/parts.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.sizes, arguments.num_seeds, arguments.out)
