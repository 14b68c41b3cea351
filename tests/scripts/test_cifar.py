"""The claims of `scripts/cifar.py`, on the real outputs where they are, and that it goes on where it was stopped."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from bayesuq.evaluation.scores import accuracy
from bayesuq.evaluation.standard_errors import weighted
from bayesuq.evaluation.standard_errors.closed_form import by_derivative
from bayesuq.evaluation.uncertainty import maximum_probability
from bayesuq.inference import features
from scripts import cifar
from scripts.recording import Records

FOLDER = Path(os.environ.get("BAYESUQ_DATA", "shared/data")) / "cifar"
needs_data = pytest.mark.skipif(not (FOLDER / "resnet_outputs.npz").exists(), reason="no outputs of CIFAR-10 here")


@needs_data
@pytest.mark.parametrize("name", cifar.NETWORKS)
def test_scores_of_features_find_mnist_where_the_maximum_probability_does_not(name: str) -> None:
    outputs = cifar.Outputs(FOLDER, name)
    network = cifar.bq.adopt(outputs.head, cifar.likelihoods.Categorical())
    given = torch.from_numpy(np.load(FOLDER / "resnet_outputs.npz")[f"logits_{name}"])[1::2]
    predictive = network.predict(outputs.test.x)
    assert float(accuracy(predictive, outputs.test.y)) == float((given.argmax(1) == outputs.test.y).double().mean())
    scores = features.fit(network, outputs.fit, scores=["class_density", "energy", "virtual_logit"])
    pairs = scores.pairs(outputs.test.x[::4], outputs.outside[::4])
    sides = [maximum_probability(network.predict(x[::4])) for x in (outputs.test.x, outputs.outside)]
    is_outside = torch.arange(2500) >= 1250
    usual = weighted.auroc(torch.cat(sides), is_outside)
    for score, values in pairs.items():
        difference = weighted.auroc(torch.cat(values), is_outside) - usual
        assert difference.value > 2 * by_derivative(difference), score


@needs_data
@pytest.mark.parametrize(("name", "most"), [("resnet20", 0.507), ("resnet56", 0.451)])
def test_a_matrix_of_5000_labels_makes_the_others_probable(
    name: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most .507 and .451 nats, in a CPU second at most; a vector takes more nats, for both."""
    monkeypatch.setattr(cifar, "NUM_HALVES", 1)  # of the divisions whose mean docs/results.md has
    found = cifar.calibrated(cifar.Outputs(FOLDER, name), {"matrix": True})
    assert found["negative_log_likelihood"] <= most
    assert found["cpu_seconds"] <= 1


def test_a_second_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NETWORKS": ("resnet20",), "RATES": (0.1,), "SCALES": (0.3,)}.items():
        monkeypatch.setattr(cifar, name, value)
    noise = np.random.default_rng(0)
    z, labels = noise.normal(size=(200, 6)).astype("float16"), np.arange(200) % 10
    z[np.arange(200), labels % 6] += 3
    monkeypatch.setattr(cifar, "CALIBRATIONS", {"temperature": {}})
    outputs = {"labels": labels.astype("uint8")}
    for name in cifar.NETWORKS:
        outputs |= {f"features_{name}": z, f"mnist_features_{name}": (4 * z[:80]).astype("float16")}
        outputs |= {f"logits_{name}": 3 * np.eye(10, dtype="float32")[labels] + noise.normal(size=(200, 10))}
        outputs |= {f"fc_weight_{name}": noise.normal(size=(10, 6)).astype("float32")}
        outputs |= {f"fc_bias_{name}": np.zeros(10, "float32")}
    probs = np.full((200, 10), 0.1, "float32")
    np.savez(tmp_path / "resnet_outputs.npz", **outputs)
    np.savez(tmp_path / "hmc_probs.npz", probs=probs)
    np.savez(tmp_path / "cifar10h.npz", shares=noise.dirichlet(np.ones(10), size=200))
    records = Records(tmp_path / "cifar.jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cifar.main(tmp_path, records.path, tmp_path / "cifar.png")
    found = records.read()
    assert len([one for one in found if "posterior" in one]) == 4
    assert [one["calibration"] for one in found if "calibration" in one] == ["temperature"]
    assert all("difference" in one for one in found if one.get("score") not in (None, "maximum_probability"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cifar.main(tmp_path, records.path, tmp_path / "cifar.png")
    assert records.read() == found
