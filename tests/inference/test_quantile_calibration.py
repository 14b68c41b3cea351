"""Calibrated quantiles of any posterior over a real target: exact coverage in simulation, a better score, refusals."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Dataset
from bayesuq.evaluation.calibration import interval_coverage, regression_calibration_error
from bayesuq.inference import ensemble, gp, map_estimate, quantile_calibration
from bayesuq.inference.posteriors.leave_one_out import reweighted_levels
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.quantile_calibration import level_map
from bayesuq.inference.training.history import History
from bayesuq.models import gp as gp_models
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.recalibrated import RecalibratedPredictive
from bayesuq.to_arviz.container import group_names
from tests.inference.examples import Conjugate, noise


class Identity(nn.Module):
    """The inputs as outputs, through one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


def too_sure(scale: float = 0.5, likelihood: likelihoods.Likelihood | None = None) -> MapPosterior:
    """N(x, scale^2), where the noise is 1 and skewed."""
    model = BayesianNetwork(Identity(), priors.Normal(), likelihood or likelihoods.Normal(scale=scale))
    return MapPosterior(model=model, values=torch.ones(1).double(), buffers={}, history=History((), (), 0))


def skewed(num_rows: int, seed: int) -> Dataset:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, 1, generator=random, dtype=torch.float64)
    rate = -torch.rand(num_rows, 1, generator=random, dtype=torch.float64).log()
    return Dataset(x, x + rate - 1)


def test_quantiles_at_the_knots_cover_new_rows_exactly() -> None:
    num_rows, num_new, num_trials = 19, 50, 100
    share = torch.zeros(3, dtype=torch.float64)
    for trial in range(num_trials):
        data = skewed(num_rows + num_new, trial)
        held_out, new = data.rows(range(num_rows)), data.rows(range(num_rows, num_rows + num_new))
        calibrated = quantile_calibration.fit(too_sure(), held_out, num_pieces=4)
        predictive = calibrated.predict(new.x)
        share += torch.stack([(new.y <= predictive.quantile(level)).double().mean() for level in (0.25, 0.5, 0.75)])
    mean = torch.tensor([0.25, 0.5, 0.75]).double()
    error = (mean * (1 - mean) * (1 / (num_rows + 2) + 1 / num_new) / num_trials).sqrt()
    assert ((share / num_trials - mean).abs() < 4 * error).all()


def test_calibration_mends_coverage_and_the_log_score() -> None:
    held_out, new = skewed(2000, 0), skewed(5000, 1)
    plain, calibrated = too_sure(), quantile_calibration.fit(too_sure(), held_out)
    before, after = (posterior.predict(new.x) for posterior in (plain, calibrated))
    assert isinstance(after, RecalibratedPredictive)
    assert float(interval_coverage(before, new.y, 0.9)) < 0.75
    assert float(interval_coverage(after, new.y, 0.9)) == pytest.approx(0.9, abs=4 * (0.09 / 2000) ** 0.5)
    assert float(regression_calibration_error(after, new.y)) < 0.1 * float(regression_calibration_error(before, new.y))
    assert float(after.log_prob(new.y).mean()) > float(before.log_prob(new.y).mean()) + 0.5


def test_a_calibrated_posterior_is_left_nearly_as_it_was() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, generator=random, dtype=torch.float64)
    data = Dataset(x, x + 0.5 * torch.randn(4000, 1, generator=random, dtype=torch.float64))
    calibrated = quantile_calibration.fit(too_sure(0.5), data, num_pieces=10)
    # An order statistic of n uniforms has standard deviation at most 1 / (2 sqrt n).
    gaps = [abs(knot - level) for knot, level in zip(calibrated.knots, calibrated.levels, strict=True)]
    assert max(gaps) < 4 / (2 * 4000**0.5)


def test_levels_are_ranks_over_one_more_than_the_rows() -> None:
    knots, levels = level_map(torch.tensor([0.9, 0.1, 0.5, 0.3]), 5)
    assert knots == pytest.approx((0.0, 0.1, 0.3, 0.5, 0.9, 1.0))
    assert levels == pytest.approx((0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    assert level_map(torch.tensor([0.9, 0.1, 0.5, 0.3]), 1) == ((0.0, 1.0), (0.0, 1.0))


@pytest.mark.parametrize("method", [map_estimate, ensemble], ids=lambda method: method.__name__)
def test_it_comes_back_from_a_file(method: object, tmp_path: Path) -> None:
    data = skewed(60, 0)
    model = BayesianNetwork(networks.mlp(1, (6,), 2).double(), priors.Normal(), likelihoods.HeteroscedasticNormal())
    fitted = method.fit(model, data, num_epochs=3, seed=0)  # type: ignore[attr-defined]
    calibrated = quantile_calibration.fit(fitted, data, num_pieces=6, seed=1)
    calibrated.save(tmp_path / "calibrated")
    again = load(tmp_path / "calibrated")
    one, other = (posterior.predict(data.x, seed=2) for posterior in (calibrated, again))
    assert torch.equal(one.log_prob(data.y), other.log_prob(data.y))
    assert torch.equal(calibrated.to("cpu").predict(data.x, seed=2).mean, one.mean)
    assert calibrated.model is fitted.model
    told = calibrated.to_arviz(data.x, data.y, num_samples=5, seed=0)
    assert {"posterior", "posterior_predictive", "log_likelihood"} <= set(group_names(told))


def test_a_loader_gives_what_its_rows_give() -> None:
    data = skewed(50, 0)
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=7)
    one, other = (quantile_calibration.fit(too_sure(), rows) for rows in (data, loader))
    assert one.knots == pytest.approx(other.knots)
    torch.testing.assert_close(one.predict(loader).mean, other.predict(data.x).mean)


def test_rows_count_by_their_weights() -> None:
    rows, posterior = skewed(60, 1), too_sure()
    known = torch.arange(60) % 3 > 0
    y = torch.where(known.unsqueeze(1), rows.y, torch.nan)
    expected = quantile_calibration.fit(posterior, rows.rows(known), num_pieces=5)
    missing = quantile_calibration.fit(posterior, Dataset(rows.x, y, weight=known), num_pieces=5)
    assert (missing.knots, missing.levels) == (expected.knots, expected.levels)
    heavy = level_map(torch.tensor([0.25, 0.5, 0.625, 0.75]), 2, torch.tensor([3.0, 1.0, 1.0, 1.0]))
    assert heavy == ((0.0, 0.25, 1.0), (0.0, 0.4, 1.0))  # where two rows' worth of the weight of four lies below
    with pytest.raises(ValueError, match=r"every `weight` is 0"):
        quantile_calibration.fit(posterior, Dataset(rows.x, rows.y, weight=torch.zeros(60)), num_pieces=5)


def test_what_has_no_such_quantiles_is_refused() -> None:
    data = skewed(40, 0)
    with pytest.raises(ValueError, match="at most 41, one more than the held-out rows; got 50"):
        quantile_calibration.fit(too_sure(), data, num_pieces=50)
    with pytest.raises(ValueError, match="`num_pieces` must be at least 1"):
        quantile_calibration.fit(too_sure(), data, num_pieces=0)
    with pytest.raises(ValueError, match="levels of the predictive coincide"):
        quantile_calibration.fit(too_sure(1e-6), data, num_pieces=4)
    with pytest.raises(TypeError, match="Gaussian mixtures; got MixturePredictive"):
        quantile_calibration.fit(too_sure(likelihood=likelihoods.StudentT(scale=1.0)), data)
    two = Dataset(data.x.expand(-1, 2), data.y.expand(-1, 2))
    with pytest.raises(ValueError, match="one target column; got 2"):
        quantile_calibration.fit(too_sure(), two)
    with pytest.raises(TypeError, match=r"must be a bayesuq\.Dataset or a DataLoader"):
        quantile_calibration.fit(too_sure(), data.x)  # type: ignore[arg-type]


# Rows of the fit, each left out


def test_reweighted_draws_leave_a_row_out() -> None:
    """Against Bayesian linear regression, where the posterior without a row is known, too."""
    number = 40_000
    known = Conjugate(num_points=12, num_features=2, noise_scale=0.5)
    x, y = known.data.x, known.data.y.double()
    design = torch.cat([x.double(), torch.ones(12, 1).double()], dim=1)
    root = torch.linalg.cholesky(torch.linalg.inv(known.precision))
    draws = known.mean + noise(5, number, 3) @ root.T
    predictive = GaussianPredictive(mean=(draws @ design.T).unsqueeze(-1), noise_variance=0.25)
    found = reweighted_levels(predictive, y)
    expected = torch.empty(12).double()
    for row in range(12):
        others = torch.arange(12) != row
        precision = known.precision - torch.outer(design[row], design[row]) / 0.25
        mean = torch.linalg.solve(precision, design[others].T @ y[others, 0] / 0.25)
        variance = design[row] @ torch.linalg.solve(precision, design[row]) + 0.25
        expected[row] = torch.special.ndtr((y[row, 0] - design[row] @ mean) / variance.sqrt())
    plain = predictive.cdf(y)[:, 0]
    assert float((plain - expected).abs().max()) > 0.05  # a row draws its prediction to itself
    # A level's variance is below E[w^2] (F - u)^2 / S, of weights of mean 1.
    ratios = (-predictive.component_log_prob(y)).exp()
    weights = ratios / ratios.mean(dim=0)
    levels = torch.special.ndtr((y[:, 0] - predictive.component_means[..., 0]) / 0.5)
    error = ((weights * (levels - expected)).square().mean(dim=0) / number).sqrt()
    assert ((found - expected).abs() < 5 * error).all()


def test_rows_of_the_fit_calibrate_a_process_that_is_too_sure() -> None:
    train, new = (Dataset(2 * noise(s, n, 1), noise(s + 1, n, 1)) for s, n in ((0, 300), (2, 2000)))
    kernel = gp_models.Scale(gp_models.RBF(lengthscale=1.0), variance=1.0)
    process = gp_models.GaussianProcess(kernel, gp_models.ZeroMean(), likelihoods.Normal(scale=0.5))
    fitted = gp.fit(process, train, seed=0)
    calibrated = quantile_calibration.fit(fitted, train, leave_one_out=True)
    before, after = (interval_coverage(posterior.predict(new.x), new.y, 0.9) for posterior in (fitted, calibrated))
    assert float(before) < 0.7
    assert abs(float(after) - 0.9) < 4 * (0.09 / 300 + 0.09 / 2000) ** 0.5


def test_rows_that_cannot_be_left_out_are_refused() -> None:
    data = skewed(40, 0)
    with pytest.raises(ValueError, match="weighting at least 25 draws of a posterior; got 1"):
        quantile_calibration.fit(too_sure(), data, leave_one_out=True)
    fitted = gp.fit(gp_models.GaussianProcess(), data, num_restarts=1, max_iterations=2, seed=0)
    with pytest.raises(ValueError, match="must be the 40 rows that the process was fitted to, in their order"):
        quantile_calibration.fit(fitted, data.rows(range(39, -1, -1)), leave_one_out=True)
    with pytest.raises(ValueError, match="`leave_one_out` is of a posterior"):
        quantile_calibration.fit(too_sure().predict(data.x), data.y, leave_one_out=True)  # type: ignore[call-overload]
