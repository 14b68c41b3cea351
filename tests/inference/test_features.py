"""Scores of features: their formulas, what they do not change under, arrays, loaders, files, and one table for all."""

import functools
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Dataset
from bayesuq.evaluation.report.detection_tasks import evaluate_misclassification, evaluate_ood
from bayesuq.evaluation.standard_errors import bootstrap, weighted
from bayesuq.inference import features, laplace, temperature
from bayesuq.inference.adoption import adopt, adopt_members
from bayesuq.inference.features.energy import Energy
from bayesuq.inference.features.gaussians import ClassDensity, Mahalanobis
from bayesuq.inference.posteriors.row_store import RowStore
from bayesuq.models import likelihoods
from tests.inference.examples import SHORT_FIT, built, labelled, noise

C, D = 3, 5


def made(seed: int, rows: int = 120, shift: float = 0.0) -> features.Features:
    """Classes of different covariances, and a last layer on them."""
    labels = torch.arange(rows) % C
    roots, means = noise(1, C, D, D).float(), 2 * noise(2, C, D).float()
    z = means[labels] + torch.einsum("nij,nj->ni", roots[labels], noise(seed, rows, D).float()) + shift
    weight, bias = noise(3, C, D).float(), noise(4, C).float()
    return features.Features(z, z @ weight.T + bias, labels, weight, bias)


def array(value: Tensor | None) -> np.ndarray:
    assert value is not None
    return value.double().numpy()


def by_mahalanobis(train: features.Features, test: features.Features) -> np.ndarray:
    z, y = array(train.features), train.labels.numpy()
    means = np.stack([z[y == c].mean(axis=0) for c in range(C)])
    law = EmpiricalCovariance(assume_centered=True).fit(z - means[y])
    return np.stack([law.mahalanobis(array(test.features) - mean) for mean in means]).min(axis=0)


def by_relative(train: features.Features, test: features.Features) -> np.ndarray:
    return by_mahalanobis(train, test) - EmpiricalCovariance().fit(array(train.features)).mahalanobis(
        array(test.features)
    )


def by_density(train: features.Features, test: features.Features) -> np.ndarray:
    z, y = array(train.features), train.labels.numpy()
    parts = []
    for c in range(C):
        own = z[y == c]
        law = multivariate_normal(own.mean(axis=0), np.cov(own.T, ddof=0))
        parts.append(len(own) / len(z) * law.pdf(array(test.features)))
    return -np.log(np.sum(parts, axis=0))


def by_neighbours(train: features.Features, test: features.Features) -> np.ndarray:
    mine, theirs = (array(t.features) / np.linalg.norm(array(t.features), axis=1, keepdims=True) for t in (train, test))
    return NearestNeighbors(n_neighbors=50).fit(mine).kneighbors(theirs)[0][:, -1]


def by_energy(train: features.Features, test: features.Features) -> np.ndarray:  # noqa: ARG001
    return -np.logaddexp.reduce(array(test.logits), axis=1)


def by_clipped(train: features.Features, test: features.Features) -> np.ndarray:
    clipped = array(test.features).clip(max=np.quantile(array(train.features), 0.9))
    return -np.logaddexp.reduce(clipped @ array(test.weight).T + array(test.bias), axis=1)


def by_virtual_logit(train: features.Features, test: features.Features) -> np.ndarray:
    """As the published code has it."""
    origin = -np.linalg.pinv(array(train.weight)) @ array(train.bias)
    covariance = EmpiricalCovariance(assume_centered=True).fit(array(train.features) - origin).covariance_
    values, vectors = np.linalg.eig(covariance)
    null = np.ascontiguousarray(vectors.T[np.argsort(values * -1)[D // 2 :]].T)
    length = np.linalg.norm((array(train.features) - origin) @ null, axis=-1)
    alpha = array(train.logits).max(axis=-1).mean() / length.mean()
    return alpha * np.linalg.norm((array(test.features) - origin) @ null, axis=-1) + by_energy(train, test)


FORMULAS = {
    "mahalanobis": by_mahalanobis,
    "relative_mahalanobis": by_relative,
    "class_density": by_density,
    "nearest_neighbours": by_neighbours,
    "energy": by_energy,
    "clipped_energy": by_clipped,
    "virtual_logit": by_virtual_logit,
}


def test_each_score_is_its_formula() -> None:
    train, test = made(5), made(6, 40)
    found = features.fit(train)(test)
    assert list(found) == list(FORMULAS)
    for name, formula in FORMULAS.items():
        # Features of float32 are exact in float64; a clipped one is compared with a quantile of float32.
        np.testing.assert_allclose(found[name], formula(train, test), rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("has_dead_and_doubled_units", [False, True])
def test_gaussians_do_not_change_under_affine_maps(has_dead_and_doubled_units: bool) -> None:
    train, test = made(5), made(6, 40)
    names = ["mahalanobis", "relative_mahalanobis", "class_density"]
    plain = features.fit(train, scores=names)(test)
    matrix = noise(7, D, D) * torch.logspace(-3, 3, D, dtype=torch.float64)
    if has_dead_and_doubled_units:
        matrix = torch.cat([matrix, torch.zeros(D, 2), matrix[:, :1]], dim=1).double()

    def moved(taken: features.Features) -> features.Features:
        return features.Features(taken.features.double() @ matrix + 10, labels=taken.labels)

    found = features.fit(moved(train), scores=names)(moved(test))
    for name in names[:2]:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-6, atol=1e-6)
    difference = found["class_density"] - plain["class_density"]  # the log volume of the map
    torch.testing.assert_close(difference, difference[:1].expand(40), rtol=1e-6, atol=1e-6)
    if not has_dead_and_doubled_units:
        torch.testing.assert_close(difference[0], torch.linalg.slogdet(matrix)[1], rtol=1e-6, atol=1e-6)


def test_a_class_of_fewer_rows_than_features_gets_a_ridge() -> None:
    train = made(5)
    few = train[torch.cat([torch.arange(0, 120, 3), torch.arange(1, 120, 3), torch.tensor([2, 5])])]
    assert ClassDensity.of(few)(made(6, 40)).isfinite().all()
    with pytest.raises(ValueError, match="singular at ridge=0"):
        ClassDensity.of(few, ridge=0.0)


def network(seed: int = 0) -> nn.Module:
    net = built(lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), seed)
    net.train()(noise(3, 64, 3).float() + 1)
    return net.requires_grad_(False).eval()


def test_features_are_what_the_last_layer_gets_and_come_in_any_way() -> None:
    net, data = network(), labelled(64)
    adopted = adopt(net, likelihoods.Categorical())
    taken = features.take(adopted, data)
    assert torch.equal(taken.features, net[:3](data.x.float()))
    assert torch.equal(taken.logits, net(data.x.float()))
    assert torch.equal(taken.labels, data.y)
    assert torch.equal(taken.weight, net[3].weight)
    assert torch.equal(taken.bias, net[3].bias)
    pairs = TensorDataset(data.x, data.y)
    before = torch.get_rng_state()
    ways: dict[str, Any] = {
        "loader": DataLoader(pairs, batch_size=10),
        "shuffled": DataLoader(pairs, batch_size=10, shuffle=True),
        "inputs": data.x,
        "batches of inputs": DataLoader(data.x, batch_size=10),
    }
    for name, rows in ways.items():
        for memory in (2**30, 500):
            again = features.take(adopted, rows, memory=memory)
            # Batches of another size may round otherwise.
            torch.testing.assert_close(again.features, taken.features, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(again.logits, taken.logits, rtol=1e-6, atol=1e-6)
            assert (again.labels is None) == ("inputs" in name)
            assert again.labels is None or torch.equal(again.labels, data.y)
    assert torch.equal(torch.get_rng_state(), before)


def test_beyond_its_memory_a_store_is_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store, rows = RowStore(memory=100), noise(0, 40, 3).float()
    for part in rows.split(7):
        store.add(part)
        assert store._held <= 100
    assert list(tmp_path.iterdir())
    found = store.whole()
    assert torch.equal(found, rows)
    assert not list(tmp_path.iterdir())


def test_scores_stand_beside_those_of_the_predictive_with_paired_differences(tmp_path: Path) -> None:
    data, outside = labelled(200), noise(8, 150, 3).float() * 3
    adopted = adopt(network(), likelihoods.Categorical())
    scores = features.fit(adopted, data)
    pairs = scores.pairs(data.x, outside)
    found = evaluate_ood(adopted.predict(data.x), adopted.predict(outside), scores=pairs)
    assert {"predictive_entropy", *FORMULAS} < set(found.scores)
    table = found.differences("maximum_probability")
    assert "minus maximum_probability" in str(table)
    areas = {name: measures[0].value for name, measures in found.table.measures.items()}
    measures = [weighted.auroc(found.scores[name], found.positives) for name in ("mahalanobis", "maximum_probability")]
    expected = bootstrap.paired_difference(*measures, num_replicates=2000)
    difference = table.measures["mahalanobis"][0]
    assert difference.value == pytest.approx(areas["mahalanobis"] - areas["maximum_probability"])
    assert difference.standard_error == pytest.approx(expected.standard_error, rel=0.1)  # 6 errors of 2,000 replicates
    own = {name: values for name, values in scores(data.x).items() if name == "mahalanobis"}
    errors = evaluate_misclassification(adopted.predict(data.x), data.y, scores=own, weight=torch.arange(200) % 2)
    assert errors.differences("margin").measures["mahalanobis"][0].value == pytest.approx(
        errors.table.measures["mahalanobis"][0].value - errors.table.measures["margin"][0].value
    )
    path = tmp_path / "scores.safetensors"
    scores.save(path)
    again = features.load(path, adopted)(outside)
    assert all(torch.equal(again[name], inside_outside[1]) for name, inside_outside in pairs.items())


@pytest.mark.filterwarnings(*SHORT_FIT, "ignore:The weights are no mode")
def test_what_stands_on_one_network_has_its_features() -> None:
    data = labelled(64)
    adopted = adopt(network(), likelihoods.Categorical())
    expected = features.take(adopted, data)
    for posterior in (temperature.fit(adopted, data), laplace.fit(adopted, data)):
        taken = features.take(posterior, data)
        assert torch.equal(taken.features, expected.features)
        assert torch.equal(taken.logits, expected.logits)


class Twice(nn.Module):
    """A network whose last layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.last(self.first(x)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: features.fit(adopt_members([network(), network(1)], likelihoods.Categorical()), labelled(8)),
            "member",
        ),
        (lambda: features.take(adopt(built(Twice), likelihoods.Normal(scale=1.0)), labelled(8).x), "once a pass"),
        (lambda: features.fit(made(0), labelled(8)), "Leave it out"),
        (lambda: features.fit(adopt(network(), likelihoods.Categorical())), "training rows"),
        (lambda: features.fit(made(0), scores=["distance"]), "must be among mahalanobis"),
        (lambda: features.fit(features.Features(np.ones((3, 2))), scores=["mahalanobis"]), "needs `labels`"),
        (lambda: features.fit(features.Features(np.ones((3, 2))), scores=["virtual_logit"]), "needs `weight`"),
        (lambda: features.fit(made(0))(labelled(8).x), "pass `Features` here"),
        (lambda: features.fit(made(0))(features.Features(np.ones((3, 2)))), "fitted to 5 features; got 2"),
        (
            lambda: features.take(adopt(network(), likelihoods.Categorical()), labelled(8), layer="2.fc"),
            "no layer '2.fc'",
        ),
        (lambda: features.Features(np.ones(3)), r"shape \(N, D\)"),
        (lambda: features.Features(np.ones((3, 2)), labels=[0, 1]), r"`labels` must have shape \(3,\)"),
        (lambda: features.NearestNeighbours.of(made(0, 9)), "at most the 9 training rows"),
        (lambda: Mahalanobis.of(features.Features(np.ones((4, 2)), labels=[0, 1, 0, 1])), "must vary"),
        (lambda: Mahalanobis.of(features.Features(np.eye(3), labels=[0, -100, 1])), "from 0 on; got -100"),
        (lambda: Energy.of(made(0))(features.take(adopt(network(), likelihoods.Normal(1.0)), labelled(8))), "`logits`"),
    ],
)
def test_mistakes_are_told(call: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        call()


def test_fewer_rows_than_neighbours_are_told_with_remedies_that_work() -> None:
    train = made(0, 9)
    with pytest.raises(ValueError, match="at most the 9 training rows; got 50") as told:
        features.fit(train)
    remedies = re.findall("`scores=(.*?)`", str(told.value))
    assert len(remedies) == 2
    for remedy in remedies:
        scores = eval(remedy, {"features": features, "functools": functools})
        assert all(len(values) == 9 for values in features.fit(train, scores=scores)(train).values())


def test_a_mapping_sets_options() -> None:
    train = made(5)
    own = {"near": partial(features.NearestNeighbours.of, num_neighbours=1, has_unit_length=False)}
    found = features.fit(train, scores=own)(train)
    torch.testing.assert_close(found["near"], torch.zeros(120, dtype=torch.float64), atol=1e-6, rtol=0.0)


def test_a_temperature_divides_logits_and_multiplies_the_energy() -> None:
    taken = features.Features([[0.0]], logits=[[1.0, 3.0]])
    found = Energy.of(taken, temperature=2.0)(taken)
    assert float(found) == pytest.approx(-2.0 * math.log(math.exp(0.5) + math.exp(1.5)), rel=1e-6)


@pytest.mark.parametrize("as_loader", [False, True])
def test_rows_that_do_not_count_are_no_class(as_loader: bool) -> None:
    data, void = labelled(60), torch.arange(60) % 4 == 0
    adopted = adopt(network(), likelihoods.Categorical(ignore_index=-100))
    ways = (
        Dataset(data.x, torch.where(void, -100, data.y)),
        Dataset(data.x, data.y, weight=(~void).float()),
    )
    expected = features.fit(adopted, data.rows(~void), scores=["mahalanobis"])(data.x)["mahalanobis"]
    for rows in ways[: 1 if as_loader else 2]:
        given: Any = DataLoader(TensorDataset(rows.x, rows.y), batch_size=60) if as_loader else rows
        scores = features.fit(adopted, given, scores=["mahalanobis"])
        torch.testing.assert_close(scores(given)["mahalanobis"], expected, rtol=1e-5, atol=1e-5)


def test_one_logit_has_the_scores_of_the_two_that_it_stands_for() -> None:
    one = built(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))
    two = built(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)))
    with torch.no_grad():
        two[0].load_state_dict(one[0].state_dict())
        for name in ("weight", "bias"):
            both = torch.cat([torch.zeros_like(getattr(one[2], name)), getattr(one[2], name)])
            getattr(two[2], name).copy_(both)
    data = labelled(60)
    data = Dataset(data.x, data.y % 2)
    names = ["energy", "clipped_energy", "virtual_logit"]
    laws = ((one, likelihoods.Bernoulli()), (two, likelihoods.Categorical()))
    found, expected = (features.fit(adopt(net, law), data, scores=names)(data.x) for net, law in laws)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_features_in_low_precision_are_clipped() -> None:
    taken = made(0)
    low = features.Features(taken.features.bfloat16(), weight=taken.weight, bias=taken.bias)
    assert Energy.of(low, clip=0.9).largest == pytest.approx(Energy.of(taken, clip=0.9).largest, rel=2**-8)
