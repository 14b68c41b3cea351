"""Real targets of more draws than fit memory: moments of all, laws of some, told in words; the same numbers below."""

import warnings
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, distributions

import bayesuq as bq
from bayesuq.evaluation import scores
from bayesuq.evaluation.report.detection_tasks import evaluate_ood
from bayesuq.inference.posteriors import draw_budget, prediction
from bayesuq.predictive.base import RealPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive
from bayesuq.predictive.thinned import ThinnedPredictive

SUMS = {"rtol": 1e-11, "atol": 1e-11}  # of some hundred float64 terms of size 1


def means(draws: int, points: int = 50) -> Tensor:
    return torch.randn(draws, points, 1, generator=torch.Generator().manual_seed(1))


def gaussian(loc: Tensor) -> RealPredictive:
    return GaussianPredictive(mean=loc, noise_variance=0.3)


def student(loc: Tensor) -> RealPredictive:
    return MixturePredictive(distributions.StudentT(torch.tensor(5.0).expand(loc.shape), loc, torch.ones_like(loc)))


def of_rows(parts: Iterable[RealPredictive]) -> None:
    """Take rows as they come in."""
    rows = draw_budget.Rows(keep_samples=False)
    for part in parts:
        rows.add(part)


def assert_moments(one: RealPredictive, other: RealPredictive) -> None:
    for name in ("mean", "aleatoric", "epistemic", "total"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **SUMS)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that 100 draws at 50 rows are four times beyond."""
    monkeypatch.setattr(draw_budget, "DRAW_BUDGET", 1250)


@pytest.mark.parametrize("build", [gaussian, student])
@pytest.mark.usefixtures("small")
def test_rows_and_draws_that_stream_have_the_moments_of_all(build, recwarn) -> None:
    whole = build(means(100))
    rows = draw_budget.Rows(keep_samples=False)
    for start in range(0, 50, 10):
        rows.add(whole.at(slice(start, start + 10)))
    by_rows = rows.whole()
    by_draws = draw_budget.mixed_within(whole.components_at(torch.arange(s, s + 4)) for s in range(0, 100, 4))
    for found in (by_rows, by_draws):
        assert isinstance(found, ThinnedPredictive)
        assert found.num_draws == 100
        assert 16 <= found.num_samples <= 25
        assert_moments(found, whole)
        # Quantiles are off by the error of so many draws' mean: 5 standard errors of 50 rows.
        error = (whole.epistemic / found.num_samples).sqrt()
        assert ((found.quantile(0.5) - whole.quantile(0.5)).abs() < 5 * error).all()
    assert [str(w.message)[:30] for w in recwarn] == ["100 draws at 50 rows are more "] * 2


@pytest.mark.parametrize("stream", [of_rows, draw_budget.mixed_within], ids=["rows", "draws"])
def test_every_part_is_counted_once_however_many_there_are(stream, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    shape = GaussianPredictive.shape

    def counted(predictive: GaussianPredictive) -> torch.Size:
        asked.append(predictive)
        return shape.fget(predictive)

    part = gaussian(means(20, points=1))
    monkeypatch.setattr(GaussianPredictive, "shape", property(counted))
    counts = []
    for number in (100, 200):
        asked.clear()
        stream([part] * number)
        counts.append(len(asked))
    assert counts[0] < counts[1] < 2.1 * counts[0]  # and four times, where each is counted with all before it


@pytest.mark.usefixtures("small")
def test_joining_moving_and_choosing_keep_the_moments_of_all() -> None:
    whole = gaussian(means(60))
    some = ThinnedPredictive.of(whole, 20)
    loc, scale = torch.tensor([2.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    assert_moments(some.rescale(loc, scale), whole.rescale(loc, scale))
    assert_moments(some.at(slice(5, 9)), whole.at(slice(5, 9)))
    assert_moments(ThinnedPredictive.concatenate([some.at(slice(0, 9)), some.at(slice(9, None))]), whole)
    first, rest = (whole.components_at(torch.arange(a, b)) for a, b in ((0, 20), (20, 60)))
    merged = ThinnedPredictive.of(first, 20).merge(ThinnedPredictive.of(rest, 10))
    assert_moments(merged, whole)
    assert merged.num_samples == 15  # one for four draws of either part
    with pytest.raises(ValueError, match="one number of draws"):
        ThinnedPredictive.concatenate([ThinnedPredictive.of(first, 9), ThinnedPredictive.of(rest, 9)])


def test_a_report_says_how_many_draws_its_numbers_are_of() -> None:
    whole = gaussian(means(60))
    y = torch.linspace(-2, 2, 50)
    some = ThinnedPredictive.of(whole, 20)
    report = bq.evaluation.report.evaluate(some, y)
    assert "20 of 60 draws held" in str(report)
    assert "from S = 60 draws" in str(report)
    torch.testing.assert_close(scores.crps(some, y), scores.crps(some.held, y))
    for name in ("root_mean_squared_error", "epistemic_variance", "aleatoric_variance"):
        assert report[name].value == pytest.approx(bq.evaluation.report.evaluate(whole, y)[name].value, rel=1e-11)


def test_rows_of_which_all_draws_are_held_go_with_rows_of_which_some_are() -> None:
    """Many test rows beside few of another kind, and batches of two sizes."""
    whole = gaussian(means(60))
    some, few = ThinnedPredictive.of(whole.at(slice(0, 40)), 20), whole.at(slice(40, 50))
    told = evaluate_ood(some, few)
    exact = evaluate_ood(whole.at(slice(0, 40)), few)
    assert told.num_draws == 60
    for name, scores_of in exact.scores.items():
        torch.testing.assert_close(told.scores[name], scores_of, **SUMS)
    assert isinstance(evaluate_ood(few, some).table, type(told.table))
    y = torch.linspace(-2, 2, 50)
    report = bq.evaluation.report.evaluate([(some, y[:40]), (few, y[40:])])
    assert report.num_samples == 60
    assert report["root_mean_squared_error"].value == pytest.approx(
        bq.evaluation.report.evaluate(whole, y)["root_mean_squared_error"].value, rel=1e-11
    )


@pytest.mark.parametrize("method", ["variational", "dropout", "ensemble"])
def test_predict_is_as_ever_below_the_bound_and_told_above_it(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-1, 1, 60).unsqueeze(1)
    net = bq.models.networks.mlp(1, (8,), 1, dropout=0.2)
    model = bq.models.BayesianNetwork(
        net, prior=bq.models.priors.Normal(), likelihood=bq.models.likelihoods.Normal(scale=0.1)
    )
    fit = getattr(bq.inference, method).fit
    options = {"num_members": 20} if method == "ensemble" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = fit(model, bq.Dataset(x, x.sin()), num_epochs=2, seed=0, **options)
    whole = posterior.predict(x, num_samples=64, seed=1)
    assert isinstance(whole, GaussianPredictive)
    monkeypatch.setattr(draw_budget, "DRAW_BUDGET", 60 * 18)
    monkeypatch.setattr(prediction, "CHUNK_BUDGET", 64 * 7)
    with pytest.warns(UserWarning, match="mean and the variances are of all draws"):
        some = posterior.predict(x, num_samples=64, seed=1)
    assert some.num_samples < whole.num_samples
    for name in ("mean", "aleatoric", "epistemic"):  # the network's float32 outputs differ by the chunks' sizes
        torch.testing.assert_close(getattr(some, name), getattr(whole, name), rtol=1e-4, atol=1e-6)
    kept = posterior.predict(x, num_samples=64, seed=1, keep_samples=True)
    assert kept.shape == whole.shape
    assert isinstance(kept, GaussianPredictive)
