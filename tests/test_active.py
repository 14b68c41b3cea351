"""Which rows are labelled next: against information that is summed by hand, and a loop that beats chance."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesuq import active
from bayesuq.active import batch_bald, learn, select
from bayesuq.data import Dataset
from bayesuq.inference import ensemble, gp, laplace, map_estimate
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp import RBF, GaussianProcess, Scale
from bayesuq.posterior import Posterior
from tests.inference.examples import SHORT_FIT, built, noise

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT)


def information(p: Tensor, rows: tuple[int, ...]) -> float:
    """I[labels of the rows; draw] by its definition, configuration by configuration."""
    total = 0.0
    for labels in itertools.product(range(p.shape[2]), repeat=len(rows)):
        each = torch.stack([p[:, row, c] for row, c in zip(rows, labels, strict=True)]).prod(dim=0)  # (S,)
        total += float((each * (each / each.mean()).log()).mean())
    return total


def test_the_information_of_a_batch_is_that_of_its_definition_and_each_choice_the_best_there_is() -> None:
    p = noise(0, 5, 7, 3).mul(2).softmax(dim=2)
    rows, told = batch_bald(p, 4)
    for k in range(1, 5):
        before = tuple(rows[: k - 1].tolist())
        others = [row for row in range(7) if row not in before]
        assert float(told[k - 1]) == pytest.approx(max(information(p, (*before, row)) for row in others), abs=1e-12)
        assert float(told[k - 1]) == pytest.approx(information(p, (*before, int(rows[k - 1]))), abs=1e-12)


def test_information_never_exceeds_the_entropy_of_the_draws_and_two_equal_rows_say_less_than_two_others() -> None:
    certain = torch.tensor([[[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3])  # each label tells which of two draws it is
    _, told = batch_bald(certain, 3)
    torch.testing.assert_close(told, torch.full((3,), torch.tensor(2.0).log().item(), dtype=torch.float64))
    p = torch.tensor([[0.99, 0.99, 0.9], [0.99, 0.99, 0.1], [0.01, 0.01, 0.9], [0.01, 0.01, 0.1]])
    rows, _ = batch_bald(torch.stack([p, 1 - p], dim=2), 2)
    assert rows.tolist() == [0, 2]  # each by itself, rows 0 and 1 are the best two


def test_drawn_configurations_estimate_what_all_of_them_sum_to(monkeypatch: pytest.MonkeyPatch) -> None:
    p = noise(1, 6, 5, 3).mul(2).softmax(dim=2)
    rows, exact = batch_bald(p, 4)
    monkeypatch.setattr(active, "MOST_CONFIGURATIONS", 10)  # of the 27 of three labels
    found = torch.stack([batch_bald(p[:, rows], 4, seed=seed)[1] for seed in range(40)])
    error = found.std(dim=0) / 40**0.5
    # Three labels are chosen by exact sums; the fourth of these four rows has no choice, and a value that was drawn.
    assert abs(float(found[:, 3].mean() - exact[3])) < 5 * float(error[3]) + 1e-12
    assert float(error[3]) > 0


@pytest.mark.parametrize(
    ("probs", "number", "said"),
    [
        ([[0.5, 0.5]], 1, r"shape \(S, N, C\)"),
        ([[[0.5, 0.6]]], 1, "probabilities"),
        ([[[0.5, 0.5]]], 2, "at most the 1 rows"),
    ],
)
def test_what_is_no_probability_is_refused(probs: object, number: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        batch_bald(probs, number)  # type: ignore[arg-type]


X = noise(3, 40, 2)
LABELS = Dataset(X[:12], (X[:12, 0] > 0).long())


def classifier() -> Posterior:
    net = built(lambda: networks.mlp(2, (8,), 2).double())
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    return ensemble.fit(model, LABELS, num_members=4, num_epochs=20, seed=0)


def process() -> Posterior:
    return gp.fit(GaussianProcess(Scale(RBF())), Dataset(X[:12], X[:12].sum(dim=1)), seed=0, num_restarts=1)


def test_rows_are_those_of_the_largest_score() -> None:
    posterior = classifier()
    predictive = posterior.predict(X)
    scores = {
        "bald": predictive.epistemic,
        "entropy": predictive.total,
        "least_confidence": 1 - predictive.mean.max(dim=1).values,
    }
    for name, values in scores.items():
        assert select(posterior, X, 5, score=name).tolist() == values.topk(5).indices.tolist()  # type: ignore[arg-type]
    assert select(posterior, X, 1, score="batch_bald").tolist() == select(posterior, X, 1).tolist()
    assert sorted(select(posterior, X, 40, score="random", seed=1).tolist()) == list(range(40))


def noise_by_row() -> Posterior:
    """A line whose noise is exp(x_0): of the rows that are chosen among, from 0.06 to 3.4."""
    net = built(lambda: networks.mlp(2, (), 2).double())
    model = BayesianNetwork(net, priors.Normal(), likelihoods.HeteroscedasticNormal())
    y = X[:, 1:] + X[:, :1].exp() * noise(5, 40, 1)
    return laplace.fit(model, Dataset(X, y), num_epochs=200, learning_rate=0.05, seed=0)


@pytest.mark.parametrize("fitted", [process, noise_by_row])
def test_rows_of_normal_functions_are_those_whose_determinant_is_largest(fitted: Callable[[], Posterior]) -> None:
    """The first row's noise was that of all, so that another order of the pool gave other rows."""
    posterior = fitted()
    pool = X[12:20]
    found = posterior.functions(pool, seed=0)
    assert found.covariance is not None
    scale = posterior.predict(pool, seed=0).aleatoric.sqrt()
    gram = torch.eye(8, dtype=torch.float64) + found.covariance[:, 0, :, 0].double() / (scale * scale.mT)

    def told(rows: list[int]) -> float:
        return float(gram[rows][:, rows].logdet())

    chosen: list[int] = []
    for _ in range(3):
        chosen.append(max((row for row in range(8) if row not in chosen), key=lambda row: told([*chosen, row])))
    assert select(posterior, pool, 3, score="batch_bald", seed=0).tolist() == chosen
    assert select(posterior, pool.flip(0), 3, score="batch_bald", seed=0).tolist() == [7 - row for row in chosen]


def test_a_score_of_another_kind_of_target_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'variance'"):
        select(process(), X, 2, score="bald")
    with pytest.raises(ValueError, match="'bald'"):
        select(classifier(), X, 2, score="variance")
    net = built(lambda: networks.mlp(2, (), 1).double())
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=1.0))
    line = map_estimate.fit(model, Dataset(X, X[:, 0]), num_epochs=2, seed=0)
    with pytest.raises(ValueError, match="normal law"):
        select(line, X, 2, score="batch_bald")
    with pytest.raises(ValueError, match="at most the 40 rows"):
        select(classifier(), X, 41)


def test_the_loop_asks_for_each_label_once_and_starts_alike_whatever_the_score() -> None:
    asked: list[int] = []

    def label(rows: Tensor) -> Tensor:
        asked.extend(rows.tolist())
        return X[rows].sum(dim=1)

    def fit(data: Dataset) -> Posterior:
        return gp.fit(GaussianProcess(Scale(RBF())), data, seed=0, num_restarts=1)

    starts = []
    for score in ("variance", "random"):
        asked.clear()
        curve = learn(fit, X, label, lambda _: 0.0, start=4, num_labels=9, at_a_time=2, score=score, seed=3)
        assert curve.num_labels == (4, 6, 8, 9)
        assert curve.chosen.tolist() == asked
        assert len(set(asked)) == 9
        starts.append(asked[:4])
        assert curve.labels_for(0.0) == 4
        assert curve.labels_for(0.5) is None
    assert starts[0] == starts[1]


def ask(label: Callable[[Tensor], Any], start: Any = 4) -> Dataset:
    """The rows that the last fit of a loop saw."""
    seen = []

    def fit(data: Dataset) -> Posterior:
        seen.append(data)
        return gp.fit(GaussianProcess(Scale(RBF())), data, seed=0, num_restarts=1, max_iterations=1)

    learn(fit, X, label, lambda _: 0.0, start=start, num_labels=6, score="random", seed=3)
    return seen[-1]


def test_fractions_after_whole_numbers_stay_fractions() -> None:
    answers = iter([torch.arange(4), torch.full((1,), 0.5), torch.full((1,), 0.25)])
    assert ask(lambda _: next(answers)).y.flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 0.5, 0.25]


@pytest.mark.parametrize("start", [[3, 1, 0, 7], np.array([3, 1, 0, 7])])
def test_rows_to_start_with_may_be_named(start: Any) -> None:
    assert torch.equal(ask(lambda rows: X[rows, 0], start).x[:4], X[[3, 1, 0, 7]])


def test_the_number_to_start_with_may_be_numpys() -> None:
    assert torch.equal(ask(lambda rows: X[rows, 0], np.int64(4)).x, ask(lambda rows: X[rows, 0], 4).x)


@pytest.mark.parametrize("start", [[1, 1], [-1, 2], [0, 400], [], [[0, 1]], [0.5]])
def test_rows_that_are_not_there_or_twice_are_refused(start: Any) -> None:
    with pytest.raises(ValueError, match="`start` must be a number, or different rows"):
        ask(lambda rows: X[rows, 0], start)


def test_another_number_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="`label` must return 4 labels"):
        ask(lambda _: X[:, 0])


@pytest.mark.parametrize("candidates", [0, -5])
def test_so_many_candidates_as_there_cannot_be_are_refused(candidates: int) -> None:
    """-5 left five rows of the pool out without a word."""
    with pytest.raises(ValueError, match="`candidates` must be at least 1"):
        learn(
            lambda _: process(), X, lambda rows: X[rows, 0], lambda _: 0.0, start=4, num_labels=6, candidates=candidates
        )


def test_informative_rows_beat_random_ones_where_few_rows_matter() -> None:
    pool = torch.cat([0.05 * noise(4, 90, 1), torch.linspace(0.5, 4, 10, dtype=torch.float64)[:, None]])
    truth, grid = pool[:, 0].sin(), torch.linspace(0, 4, 50, dtype=torch.float64)[:, None]

    def fit(data: Dataset) -> Posterior:
        return gp.fit(GaussianProcess(Scale(RBF())), data, seed=0, num_restarts=1)

    def closeness(posterior: Posterior) -> float:
        return -float((posterior.predict(grid).mean - grid.sin()).square().mean().sqrt())

    curves = {
        score: learn(fit, pool, lambda rows: truth[rows], closeness, start=3, num_labels=9, score=score, seed=0)  # type: ignore[arg-type]
        for score in ("variance", "random")
    }
    assert curves["variance"].values[-1] > -0.05
    assert curves["random"].values[-1] < -0.2
