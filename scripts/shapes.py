"""Two uncertainties in one picture: aleatoric at borders whose labels are noise, epistemic on an object never seen.

An ensemble of small U-Nets learns to segment drawn discs and squares. On images that also show an object of a new
colour its members disagree there, and only there; at borders they agree that nobody can know.
"""

import argparse
from pathlib import Path

import torch

import bayesuq as bq
from bayesuq.datasets.shapes import CLASS_NAMES, UNFAMILIAR
from bayesuq.evaluation import plots
from bayesuq.evaluation.segmentation.reporting import evaluate_segmentation, predictions
from bayesuq.inference import ensemble
from bayesuq.models import likelihoods, networks, priors
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.randomness import isolated

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "shapes.png"
NUM_SHOWN = 2  # images with the unfamiliar object, after one without


def members(options: argparse.Namespace, train: bq.Dataset) -> ensemble.EnsemblePosterior:
    """The ensemble, trained."""
    with isolated(options.seed):
        net = networks.unet(3, 3, depth=2, width=8)
    model = bq.models.BayesianNetwork(net, priors.Normal(scale=1.0), likelihoods.Categorical())
    return ensemble.fit(
        model,
        train,
        num_members=options.num_members,
        num_epochs=options.num_epochs,
        batch_size=8,
        learning_rate=1e-2,
        seed=options.seed,
    )


def parts(predictive: CategoricalPredictive, where: torch.Tensor) -> str:
    """Mean uncertainties of some pixels."""
    aleatoric, epistemic = (float(values[where].mean()) for values in (predictive.aleatoric, predictive.epistemic))
    return f"aleatoric {aleatoric:.3f}, epistemic {epistemic:.3f} nats"


def main(options: argparse.Namespace) -> None:
    """Fit, measure, draw."""
    split = bq.datasets.load("shapes", seed=options.seed)
    posterior = members(options, split.train)
    validation = evaluate_segmentation(predictions(posterior.predict, split.val.x, split.val.y))
    result = evaluate_segmentation(predictions(posterior.predict, split.test.x, split.test.y), validation=validation)
    print(f"seed {options.seed}\n{result.report}\n")

    new = posterior.predict(split.ood.x)
    is_new = split.ood.y == UNFAMILIAR
    print(f"unfamiliar object: {parts(new, is_new)}\nall other pixels:  {parts(new, ~is_new)}")
    x = torch.cat([split.test.x[:1], split.ood.x[:NUM_SHOWN]])
    y = torch.cat([split.test.y[:1], split.ood.y[:NUM_SHOWN]])
    labels = ["familiar", *["unfamiliar"] * NUM_SHOWN]
    figure = plots.segmentation_maps(posterior.predict(x), x, y, names=CLASS_NAMES, labels=labels)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=110)
    print(f"Picture: {options.figure.resolve()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-members", type=int, default=5)
    parser.add_argument("--num-epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    torch.set_num_threads(1)
    main(parser.parse_args())
