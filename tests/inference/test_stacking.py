"""Weights by stacking: against a grid, against known limits; the mixture's shares, files and kinds."""

import math
from pathlib import Path

import pytest
import torch

import bayesuq as bq
from bayesuq.inference import dropout, gp, laplace, map_estimate, stacking, temperature
from bayesuq.inference.posteriors.wrapping import row_weights
from bayesuq.inference.stacking import shared, stacking_weights
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import built, measured

quietly = pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning", "ignore::UserWarning")
BRIEF = {"num_epochs": 3, "seed": 0, "progress": False}


@pytest.mark.parametrize("seed", range(4))
def test_no_weights_of_a_grid_make_the_held_out_rows_more_probable(seed: int) -> None:
    log_probs = 3 * torch.randn(3, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def score(weights: torch.Tensor) -> torch.Tensor:
        return (weights.log().unsqueeze(-1) + log_probs).logsumexp(dim=-2).mean(dim=-1)

    sides = torch.linspace(0, 1, 101, dtype=torch.float64)
    one, two = torch.meshgrid(sides, sides, indexing="ij")
    grid = torch.stack([one, two, 1 - one - two], dim=-1)[one + two <= 1 + 1e-12].clamp(min=0)
    found = stacking_weights(log_probs)
    assert found.sum() == pytest.approx(1.0)
    assert (found >= 0).all()
    assert score(found) > score(grid).max() - 1e-5
    assert (found - grid[score(grid).argmax()]).abs().max() < 0.03


def test_weights_of_equal_and_of_hopeless_predictives() -> None:
    same = torch.zeros(3, 5)
    torch.testing.assert_close(stacking_weights(same), torch.full((3,), 1 / 3, dtype=torch.float64))
    one_sided = torch.tensor([[0.0, 0.0], [-50.0, -math.inf]])
    torch.testing.assert_close(stacking_weights(one_sided), torch.tensor([1.0, 0.0], dtype=torch.float64))
    shifted = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stacking_weights(shifted), stacking_weights(shifted - 900.0), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("log_probs", "says"),
    [
        (torch.zeros(3), r"must have shape \(K, N\)"),
        (torch.full((2, 3), -math.inf), "row 0 is not so"),
        (torch.tensor([[0.0, math.nan]]), "must not hold NaN"),
    ],
)
def test_scores_that_say_nothing_are_refused(log_probs: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        stacking_weights(log_probs)


@pytest.mark.parametrize("weight", [[1.0, -1.0], [1.0], [[1.0, 1.0]], [0.0, 0.0], [math.inf, 1.0]])
def test_weights_that_are_none_are_refused(weight: list[float]) -> None:
    with pytest.raises(ValueError, match=r"`weight` must"):
        stacking_weights([[-1.0, -9.0], [-9.0, -1.0]], weight=weight)


def test_shares_are_whole_and_sum_up() -> None:
    assert shared(torch.tensor([0.5, 0.3, 0.2]).double(), 10) == [5, 3, 2]
    assert shared(torch.tensor([0.98, 0.01, 0.01]).double(), 5) == [3, 1, 1]
    assert sum(shared(torch.rand(7, generator=torch.Generator().manual_seed(0)).double(), 400)) == 400


def regression(**options: float) -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (4,), 1, **options))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale="learned"))


def process() -> processes.GaussianProcess:
    return processes.GaussianProcess(processes.Scale(processes.RBF()), likelihood=likelihoods.Normal(scale="learned"))


@quietly
def test_a_network_dropout_and_a_process_mix_by_their_weights_and_come_back_from_a_file(tmp_path: Path) -> None:
    data = measured()
    parts = [
        map_estimate.fit(regression(), data, **BRIEF),
        dropout.fit(regression(dropout=0.3), data, **BRIEF),
        gp.fit(process(), data, max_iterations=5, num_restarts=1, seed=0),
    ]
    mixture = stacking.StackedPosterior(members=tuple(parts), shares=(10, 30, 60))
    found = mixture.predict(data.x, seed=1)
    alone = [part.predict(data.x, num_samples=30, seed=1) for part in parts]
    assert found.num_samples == 100
    one, _, last = (part.mean for part in alone)
    middle = found.component_means[10:40].mean(dim=0)  # dropout's draws have a seed of their own
    torch.testing.assert_close(found.mean, 0.1 * one + 0.3 * middle + 0.6 * last)
    torch.testing.assert_close(found.component_log_prob(data.y)[-1], alone[2].log_prob(data.y))
    mixture.save(tmp_path / "mixture")
    again = bq.load(tmp_path / "mixture")
    assert torch.equal(again.predict(data.x, seed=1).mean, found.mean)
    assert [mixture.predict(data.x[:2], num_samples=n, seed=1).num_samples for n in (1, 2, 7)] == [1, 2, 7]
    with pytest.raises(ValueError, match="has no joint draws of functions"):
        mixture.functions(data.x)
    told = mixture.to_arviz(data.x, data.y, num_samples=20, seed=1, num_prior_samples=5)
    assert told is not None


def test_the_better_posterior_gets_the_weight_and_a_worthless_one_no_time() -> None:
    data = measured()
    good, bad = (constant(at) for at in (0.0, 40.0))
    assert stacking.fit([bad, good], data, seed=0).members == (good,)
    assert stacking.fit([bad, good], data, seed=0).functions(data.x).draws.shape == (1, len(data), 1)
    both = stacking.fit([good, constant(0.0)], data, num_draws=10, seed=0)
    assert both.weights == (0.5, 0.5)


def constant(value: float) -> bq.Posterior:
    """A posterior that predicts this value with a deviation of 1, whatever the input."""
    model = BayesianNetwork(torch.nn.Linear(3, 1), priors.Normal(), likelihoods.Normal(1.0))
    return bq.from_samples(model, {"weight": torch.zeros(1, 1, 1, 3), "bias": torch.full((1, 1, 1), value)})


@quietly
def test_labels_mix_and_are_scaled_by_one_temperature() -> None:
    data = measured()
    labelled = bq.Dataset(data.x, (data.y[:, 0] > data.y.median()).long())
    models = [
        BayesianNetwork(built(lambda n=n: networks.mlp(3, (n,), 2)), priors.Normal(), likelihoods.Categorical())
        for n in (3, 5)
    ]
    parts = [
        map_estimate.fit(models[0], labelled, **BRIEF),
        laplace.fit(models[1], labelled, structure="diagonal", **BRIEF),
    ]
    mixture = stacking.StackedPosterior(members=tuple(parts), shares=(40, 60))
    probs = mixture.predict(data.x, seed=1).mean
    expected = 0.4 * parts[0].predict(data.x).mean
    assert ((probs - expected) / 0.6).sum(dim=1).allclose(torch.ones(len(data), dtype=torch.float64))
    scaled = temperature.fit(mixture, labelled, seed=0)
    before, after = scaled.negative_log_likelihood
    assert after <= before
    assert not torch.equal(scaled.predict(data.x, seed=1).mean, probs)


def test_held_out_rows_count_by_their_weights() -> None:
    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(0)).double()
    weight = torch.arange(20) % 3 + 1.0
    repeated = scores.repeat_interleave(weight.long(), dim=1)
    torch.testing.assert_close(stacking_weights(scores, weight=weight), stacking_weights(repeated), rtol=0, atol=1e-9)


def test_rows_whose_targets_are_missing_do_not_choose() -> None:
    members = [constant(0.0), constant(5.0)]
    y = torch.tensor([5.0, 5.1, math.nan, math.nan, math.nan])
    mixture = stacking.fit(members, bq.Dataset(torch.zeros(5, 3), y, weight=~y.isnan()), seed=0)
    assert [float(one.predict(torch.zeros(1, 3)).mean) for one in mixture.members] == pytest.approx([5.0], abs=0.1)
    halves = bq.Dataset(torch.zeros(2, 1), torch.zeros(2, 2), weight=[[1.0, 1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match=r"differs between the targets of 1 of them, first of row 1.*data.rows"):
        row_weights(halves)


def test_what_is_no_posterior_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        stacking.fit([], measured())
    with pytest.raises(TypeError, match="must be a fitted one"):
        stacking.fit([regression()], measured())
    with pytest.raises(TypeError, match="in a list; got one StackedPosterior"):
        stacking.fit(stacking.StackedPosterior(members=(), shares=()), measured())
