"""The first call that somebody makes, in the form that other libraries have it: told how this one has it."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.utils.data import TensorDataset

import bayesuq as bq
from bayesuq import inference
from bayesuq.arrays import check_device
from bayesuq.inference import map_estimate
from bayesuq.inference.catalogue import METHODS
from bayesuq.models import BayesianNetwork, gp, likelihoods, networks, priors

X, Y = torch.rand(12, 2), torch.rand(12)
SPLIT = bq.data.split_dataset(bq.Dataset(X, Y))
ALONE = [method.name for method in METHODS if method.kind != "wrapper"]


def fit(name: str, *arguments: Any) -> Any:
    net = networks.mlp(2, (4,), 1, dropout=0.1)
    network = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=1.0))
    return getattr(inference, name).fit(gp.GaussianProcess() if name == "gp" else network, *arguments)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, Y), r"takes `model` and `data` by place.*got 3 arguments\. Of inputs and targets, pass.*Dataset\(x, y\)"),
        (((X, Y),), r"got tuple\. Of inputs and targets, pass bayesuq\.Dataset\(x, y\)"),
        (([X, Y],), r"got list\. Of inputs and targets, pass bayesuq\.Dataset\(x, y\)"),
        ((TensorDataset(X, Y),), r"torch\.utils\.data\.DataLoader.*of its tensors bayesuq\.Dataset\(x, y\)"),
        ((X,), r"Inputs alone cannot be fitted: pass bayesuq\.Dataset\(x, y\)"),
        ((SPLIT,), r"got Split\. Of a Split, pass one part, such as its `\.train`"),
    ],
)
def test_every_fit_says_how_data_are_passed(name: str, arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"(?s){message}"):
        fit(name, *arguments)


def test_errors_are_cut_to_what_matters() -> None:
    with pytest.raises(ValueError, match="cannot be used here: this machine has cpu") as told:
        check_device("gpu")
    assert len(str(told.value)) < 200
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(60)))
    with pytest.raises(ValueError, match=r"matches no.*0\.weight, 0\.bias.* and 112 more") as told:
        BayesianNetwork(deep, {"head.*": priors.Normal()}, likelihoods.Normal(scale=1.0)).log_joint({}, X, Y)
    assert len(str(told.value)) < 300


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_that_is_not_the_files_is_told_by_what_differs(tmp_path: Any) -> None:
    def model(random: str) -> BayesianNetwork:
        deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)), nn.Linear(2, 1))
        return BayesianNetwork(deep, priors.Normal(), likelihoods.Normal(scale=1.0), random=random)

    map_estimate.fit(model("all"), bq.Dataset(X, Y), num_epochs=1, seed=0).save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"the file has random 0\.weight \(2, 2\).* and 32 more") as told:
        bq.load(tmp_path / "file", model=model("last_layer"))
    assert len(str(told.value)) < 900


@pytest.mark.parametrize(
    "kind", [likelihoods.Categorical, likelihoods.Bernoulli, likelihoods.HeteroscedasticCategorical]
)
def test_balanced_weights_are_those_of_scikit_learn_and_a_word_is_told(kind: Any) -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 0, 0])
    weights = likelihoods.balanced_class_weights(y)
    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(2), y=y.numpy()).tolist())
    assert kind(class_weights=weights).class_weights == weights
    with pytest.raises(ValueError, match=r"class_weights=likelihoods\.balanced_class_weights\(data\.y\)"):
        kind(class_weights="balanced")
    with pytest.raises(ValueError, match="class 2 has none"):
        likelihoods.balanced_class_weights(y, num_classes=3)
