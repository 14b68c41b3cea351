"""Two pretrained ResNets, uncertain after the fact: MNIST against CIFAR-10, people's doubts, and the distance to HMC.

The outputs and features of ResNet-20 and -56 on CIFAR-10's test set and on MNIST in colour are given; there are no
images. Every other row fits what is to be fitted (class Gaussians, neighbours, the curvature of the last layer, the
rate of dropout on its inputs, a matrix for the logits), and the rest is scored. A line of JSON for each network and
posterior, and for each network and score; lines that are there are skipped. At the end the tables, and the figure.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

import bayesuq as bq
from bayesuq.evaluation.distance import agreement, total_variation
from bayesuq.evaluation.plots.detection import score_differences
from bayesuq.evaluation.report.detection_tasks import Detection, evaluate_ood
from bayesuq.evaluation.report.score_table import ScoreTable
from bayesuq.evaluation.scores import accuracy, negative_log_likelihood
from bayesuq.inference import dropout, features, laplace, temperature
from bayesuq.models import likelihoods, priors
from bayesuq.posterior import Posterior
from scripts.recording import Records, versions

ROOT = Path(__file__).parents[1]
NETWORKS = ("resnet20", "resnet56")
RATES, SCALES = (0.1, 0.2, 0.3, 0.4, 0.5), (0.1, 0.3, 1.0)  # chosen on a quarter of the rows that fit
NUM_DRAWS, SEED = 100, 0
CALIBRATIONS = {"temperature": {}, "vector": {"vector": True}, "matrix": {"matrix": True}}
NUM_HALVES = 6  # random divisions, in which 5,000 labels scale the logits of the others, and the others theirs
HIDDEN = ("expected_entropy", "predictive_variance")  # of one network the entropy, and nearly so


class Outputs:
    """What one network gave: rows that fit, rows that score, and those from MNIST."""

    def __init__(self, folder: Path, name: str) -> None:
        given = np.load(folder / "resnet_outputs.npz")
        self.labels = torch.from_numpy(given["labels"]).long()
        self.logits = torch.from_numpy(given[f"logits_{name}"]).float()
        self.inside, self.outside = (
            torch.from_numpy(given[f"{part}features_{name}"]).float() for part in ("", "mnist_")
        )
        weight, bias = (torch.from_numpy(given[f"fc_{part}_{name}"]) for part in ("weight", "bias"))
        self.head = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0]))
        self.head.load_state_dict({"0.weight": weight, "0.bias": bias})
        self.fit = bq.Dataset(self.inside[::2], self.labels[::2])
        self.test = bq.Dataset(self.inside[1::2], self.labels[1::2])
        self.hmc = bq.CategoricalPredictive.from_probs(np.load(folder / "hmc_probs.npz")["probs"][None, 1::2])
        shares = torch.from_numpy(np.load(folder / "cifar10h.npz")["shares"])[1::2].double()
        self.human = torch.special.entr(shares).sum(dim=1)


def posteriors(outputs: Outputs) -> dict[str, Posterior]:
    """The network itself, and what stands on it, each with the setting that suits a quarter of the fit's rows best."""
    is_held_out = torch.arange(len(outputs.fit)) % 4 == 0
    train, held_out = outputs.fit.rows(~is_held_out), outputs.fit.rows(is_held_out)
    prior = {scale: priors.Normal(scale=scale) for scale in SCALES}
    adopted = {
        scale: bq.adopt(outputs.head, likelihoods.Categorical(), prior=prior[scale], is_centred=True)
        for scale in SCALES
    }
    network = adopted[SCALES[0]]

    def loss(posterior: Posterior) -> float:
        predictive = posterior.predict(held_out.x, num_samples=NUM_DRAWS, seed=SEED)
        return float(negative_log_likelihood(predictive, held_out.y))  # type: ignore[arg-type]

    scale = min(SCALES, key=lambda scale: loss(laplace.fit(adopted[scale], train)))
    rate = min(RATES, key=lambda rate: loss(dropout.around(network, put_in={"0": rate})))
    print(f"prior scale {scale} around the weights, dropout rate {rate}")
    return {
        "network": network,
        "laplace": laplace.fit(adopted[scale], outputs.fit),
        "dropout": dropout.around(network, put_in={"0": rate}),
        "matrix": temperature.fit(network, outputs.fit, matrix=True, seed=SEED),
    }


def judged(outputs: Outputs, posterior: Posterior) -> dict[str, float]:
    """How right, how far from HMC, and whether its doubt about labels is that of people."""
    predictive = posterior.predict(outputs.test.x, num_samples=NUM_DRAWS, seed=SEED)
    return {
        "accuracy": float(accuracy(predictive, outputs.test.y)),  # type: ignore[arg-type]
        "negative_log_likelihood": float(negative_log_likelihood(predictive, outputs.test.y)),  # type: ignore[arg-type]
        "agreement": float(agreement(predictive, outputs.hmc)),  # type: ignore[arg-type]
        "total_variation": float(total_variation(predictive, outputs.hmc)),
        "human": float(spearmanr(predictive.aleatoric, outputs.human).statistic),
    }


def calibrated(outputs: Outputs, options: dict[str, bool]) -> dict[str, float]:
    """How probable a scaling of the logits makes labels that it has not seen, over random halves, and what it costs.

    Each half scales for the other, so that every label is scored once for each division: the error is that of the
    labels, a sample of 10,000, and the deviation that of divisions.
    """
    losses, seconds = np.zeros((NUM_HALVES, len(outputs.labels))), []
    for number in range(NUM_HALVES):
        order = torch.randperm(len(outputs.labels), generator=torch.Generator().manual_seed(number))
        halves = order.chunk(2)
        for held_out, test in (halves, halves[::-1]):
            of = {rows: bq.CategoricalPredictive.from_logits(outputs.logits[rows][None]) for rows in (held_out, test)}
            begin = time.process_time()
            scaling = temperature.fit(of[held_out], outputs.labels[held_out], seed=SEED, **options)
            seconds.append(time.process_time() - begin)
            scaled = scaling.scaled(of[test])
            losses[number, test.numpy()] = -scaled.log_prob(outputs.labels[test]).numpy()
    by_label = losses.mean(axis=0)
    return {
        "negative_log_likelihood": float(by_label.mean()),
        "error": float(by_label.std(ddof=1) / len(by_label) ** 0.5),
        "deviation": float(losses.mean(axis=1).std(ddof=1)) if NUM_HALVES > 1 else float("nan"),
        "cpu_seconds": float(np.median(seconds)),
    }


def detected(outputs: Outputs, fitted: dict[str, Posterior]) -> Detection:
    """Every score against MNIST: the network's own, those of its features, and the parts of the other posteriors."""
    scores = features.fit(fitted["network"], outputs.fit).pairs(outputs.test.x, outputs.outside)
    inside, outside = {}, {}
    for name, posterior in fitted.items():
        inside[name] = posterior.predict(outputs.test.x, num_samples=NUM_DRAWS, seed=SEED)
        outside[name] = posterior.predict(outputs.outside, num_samples=NUM_DRAWS, seed=SEED)
        if name != "network":
            scores[f"{name}: entropy"] = inside[name].total, outside[name].total
        if name in ("laplace", "dropout"):
            scores[f"{name}: mutual information"] = inside[name].epistemic, outside[name].epistemic
    return evaluate_ood(inside["network"], outside["network"], scores=scores)


def run(folder: Path, records: Records) -> dict[str, ScoreTable]:
    """Write what is not written yet; the paired differences of all scores, by network."""
    tables = {}
    for name in NETWORKS:
        outputs = Outputs(folder, name)
        fitted = posteriors(outputs)
        for kind, posterior in fitted.items():
            key = {"network": name, "posterior": kind}
            if not records.has(**key):
                records.append({**key, **judged(outputs, posterior), "versions": versions()})
        for kind, options in CALIBRATIONS.items():
            key = {"network": name, "calibration": kind}
            if not records.has(**key):
                records.append({**key, **calibrated(outputs, options), "versions": versions()})
        found = detected(outputs, fitted)
        tables[name] = found.differences("maximum_probability")
        for score, (area, *_) in found.table.measures.items():
            key = {"network": name, "score": score}
            difference = tables[name].measures[score][0] if score in tables[name].measures else None
            if not records.has(**key):
                own = {"auroc": area.value, "standard_error": area.standard_error}
                paired = difference and {"difference": difference.value, "error": difference.standard_error}
                records.append({**key, **own, **(paired or {}), "versions": versions()})
        print(found.table, tables[name], sep="\n\n", end="\n\n")
    return tables


def main(folder: Path, out: Path, figure: Path) -> None:
    """Run, print, and draw."""
    records = Records(out)
    tables = run(folder, records)
    for record in records.read():
        if "posterior" in record or "calibration" in record:
            print({name: value for name, value in record.items() if name != "versions"})
    shown = [name for name in tables["resnet20"].measures if name not in HIDDEN]
    chosen = {
        name: ScoreTable({score: table.measures[score] for score in shown}, table.num_points, table.positives)
        for name, table in tables.items()
    }
    score_differences(chosen).savefig(figure, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds resnet_outputs.npz, hmc_probs.npz and cifar10h.npz")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "cifar.jsonl")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "cifar.png")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.out, arguments.figure)
