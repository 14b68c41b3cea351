"""Failure prediction on MNIST, the MLP row of Corbiere et al. 2019: maximum probability, MC dropout and ConfidNet.

One network a seed, trained with dropout, gives all three. Measures are theirs: positives are the errors for AUPR-error,
the right predictions for FPR95, in percent. A line of JSON for each seed and score; lines that are there are skipped,
and a fit that was stopped goes on from its checkpoint. AUPR-error falls with the error rate: read it beside the error.
"""

import argparse
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bayesuq as bq
from bayesuq.evaluation.detection import auroc, average_precision, false_positive_rate_at
from bayesuq.evaluation.uncertainty import maximum_probability
from bayesuq.inference import confidence, dropout
from bayesuq.inference.confidence.fitting import Loss
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.randomness import derive_seed, isolated
from scripts.further_tables import of_failures
from scripts.recording import Record, Records, digest, versions

SETTINGS = Path(__file__).parent / "settings" / "failure.toml"
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "failure.jsonl"
PIXEL_MEAN, PIXEL_SCALE = 0.1307, 0.3081


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the classifier and its confidence are fitted; see `settings/failure.toml`."""

    hidden: list[int]
    dropout: float
    prior_scale: float
    num_epochs: int
    learning_rate: float
    num_draws: int
    confidence_hidden: list[int]
    confidence_epochs: int
    confidence_rate: float
    fine_tuning_epochs: int
    fine_tuning_rate: float
    confidence_loss: Loss = "squared"

    def model(self, seed: int) -> BayesianNetwork:
        """The network at initial weights that the seed decides."""
        with isolated(seed):
            net = networks.mlp(28 * 28, self.hidden, 10, self.dropout)
        return BayesianNetwork(net, priors.Normal(scale=self.prior_scale), likelihoods.Categorical())


def load_images() -> bq.Split:
    """MNIST with normalised pixels; the last 5,000 training images to choose epochs by."""
    split = bq.datasets.load("mnist")
    scaled = [bq.Dataset((part.x - PIXEL_MEAN) / PIXEL_SCALE, part.y) for part in (split.train, split.val, split.test)]
    return bq.Split(*scaled)


def uncertainties(setting: Setting, split: bq.Split, seed: int, work: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Each score at the test images, and which of its predictions are wrong."""
    file = work / f"failure-{digest(setting)}-{seed}"
    options: dict[str, Any] = {"num_epochs": setting.num_epochs, "learning_rate": setting.learning_rate}
    masked = dropout.fit(
        setting.model(derive_seed(seed, 0)), split.train, seed=derive_seed(seed, 1), checkpoint=file, **options
    )
    parts = {name: getattr(masked, name) for name in ("model", "values", "buffers", "history")}
    trusted = confidence.fit(
        MapPosterior(**parts),
        split.train,
        hidden=setting.confidence_hidden,
        num_epochs=setting.confidence_epochs,
        loss=setting.confidence_loss,
        learning_rate=setting.confidence_rate,
        num_fine_tuning_epochs=setting.fine_tuning_epochs,
        fine_tuning_rate=setting.fine_tuning_rate,
        validation=split.val,
        seed=derive_seed(seed, 2),
        checkpoint=file.with_suffix(".confidence"),
    )
    trusted.save(file.with_suffix(".safetensors"))
    plain = trusted.predict(split.test.x)
    drawn = masked.predict(split.test.x, num_samples=setting.num_draws, seed=derive_seed(seed, 3))
    wrong, wrong_drawn = (predictive.mean.argmax(dim=1) != split.test.y for predictive in (plain, drawn))
    return {
        "maximum probability": (maximum_probability(plain), wrong),  # type: ignore[arg-type]
        "MC dropout": (drawn.total, wrong_drawn),
        "ConfidNet": (1 - trusted.confidence(split.test.x), wrong),
    }


def measured(scores: Tensor, wrong: Tensor) -> Record:
    """The published measures, in percent, and the error rate."""
    found = {
        "fpr95": false_positive_rate_at(-scores, ~wrong),
        "aupr_error": average_precision(scores, wrong),
        "aupr_success": average_precision(-scores, ~wrong),
        "auroc": auroc(scores, wrong),
        "error": wrong.double().mean(),
    }
    return {name: 100 * float(value) for name, value in found.items()}


def main(options: argparse.Namespace) -> None:
    """Every seed in turn, and the table."""
    setting = Setting(**tomllib.loads(options.settings.read_text(encoding="utf-8")))
    records, name = Records(options.out), digest(setting)
    options.work.mkdir(parents=True, exist_ok=True)
    split = load_images()
    for seed in range(options.num_seeds):
        if not records.has(seed=seed, settings=name):
            found = uncertainties(setting, split, seed, options.work)
            key: Record = {"seed": seed, "settings": name, "versions": versions()}
            records.append(*({"score": score, **measured(*pair), **key} for score, pair in found.items()))
        print(f"seed {seed} is there", flush=True)
    print("\n".join(of_failures(line for line in records.read() if line["settings"] == name)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="TOML file of the one setting")
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of JSON lines")
    parser.add_argument("--work", type=Path, default=Path("runs/failure"), help="folder for checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    main(arguments)
