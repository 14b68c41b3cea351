"""A user's own predictive of real targets goes everywhere that the package's own do."""

from collections.abc import Sequence
from typing import Self

import matplotlib as mpl
import pytest
import torch
from torch import Tensor, distributions

import bayesuq as bq
from bayesuq.arrays import ArrayLike
from bayesuq.evaluation import calibration, scores, uncertainty
from bayesuq.evaluation.plots.regression import regression_bands
from bayesuq.predictive.base import RealPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive


class Shared(RealPredictive):
    """One law of Laplace's at each point, the same in every draw, written with nothing but the abstract class."""

    def __init__(self, loc: Tensor, scale: float) -> None:
        self.loc, self.scale = loc.double(), scale

    @property
    def law(self) -> distributions.Laplace:
        return distributions.Laplace(self.loc, self.scale)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((1, *self.loc.shape))

    @property
    def device(self) -> torch.device:
        return self.loc.device

    @property
    def is_discrete(self) -> bool:
        return False

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def aleatoric(self) -> Tensor:
        return self.law.variance

    @property
    def epistemic(self) -> Tensor:
        return torch.zeros_like(self.loc)

    @property
    def component_means(self) -> Tensor:
        return self.loc.unsqueeze(0)

    @property
    def component_variances(self) -> Tensor:
        return self.law.variance.unsqueeze(0)

    def log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        each = self.law.log_prob(self.targets(y))
        return (each if observed is None else torch.where(observed, each, 0.0)).sum(dim=1)

    def component_log_prob(self, y: ArrayLike) -> Tensor:
        return self.log_prob(y).unsqueeze(0)

    def cdf(self, y: ArrayLike) -> Tensor:
        return self.law.cdf(self.targets(y))

    def quantile(self, level: float) -> Tensor:
        return self.law.icdf(torch.full_like(self.loc, level))

    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0 if seed is None else seed)
            return self.law.sample((num_samples,))

    def component_sample(self, *, seed: int | None = None) -> Tensor:
        return self.sample(1, seed=seed)

    def at(self, points: slice) -> Self:
        return type(self)(self.loc[points], self.scale)

    def components_at(self, chosen: Tensor) -> Self:
        if chosen.tolist() != [0]:
            raise ValueError("These have one draw alone.")
        return self

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.loc.to(device), self.scale)

    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        return type(self)(loc + scale * self.loc, float(scale) * self.scale)

    @classmethod
    def joined(cls, parts: Sequence[Self], dim: int) -> Self:
        if dim == 0:
            raise ValueError("These have one draw alone.")
        return cls(torch.cat([part.loc for part in parts]), parts[0].scale)


@pytest.fixture
def loc() -> Tensor:
    return torch.linspace(-2, 2, 60, dtype=torch.float64).unsqueeze(1)


@pytest.fixture
def y(loc: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return loc + distributions.Laplace(0.0, 0.5).sample(loc.shape)


@pytest.fixture
def own(loc: Tensor) -> Shared:
    return Shared(loc, 0.5)


@pytest.fixture
def ours(loc: Tensor) -> MixturePredictive:
    return MixturePredictive(distributions.Laplace(loc.unsqueeze(0), torch.full_like(loc, 0.5).unsqueeze(0)))


def test_every_measure_of_a_report_is_that_of_the_same_law_as_ours(own: Shared, ours: MixturePredictive, y: Tensor):
    mine, theirs = bq.evaluation.report.evaluate(own, y), bq.evaluation.report.evaluate(ours, y)
    assert [m.name for m in mine.measures] == [m.name for m in theirs.measures]
    for one, other in zip(mine.measures, theirs.measures, strict=True):
        # The CRPS is by 1,000 draws: its own error is some 3 % of a point's value, over sqrt(60) points.
        assert one.value == pytest.approx(other.value, rel=0.02 if one.name == "crps" else 1e-9), one.name


def test_scores_with_missing_targets(own: Shared, ours: MixturePredictive, y: Tensor):
    holes = y.clone()
    holes[::3] = torch.nan
    weight = (~holes.isnan()).double()
    for measure in (scores.negative_log_likelihood, scores.root_mean_squared_error):
        torch.testing.assert_close(measure(own, holes, weight=weight), measure(ours, holes, weight=weight))


def test_calibration_uncertainty_and_conformal_intervals(own: Shared, ours: MixturePredictive, y: Tensor):
    for measure in (calibration.probability_integral_transform, calibration.regression_calibration_error):
        torch.testing.assert_close(measure(own, y), measure(ours, y))
    torch.testing.assert_close(uncertainty.predictive_variance(own), uncertainty.predictive_variance(ours))
    for method in ("absolute", "normalised", "quantile"):
        intervals = [bq.conformal.calibrate_intervals(p, y, method=method).intervals(p) for p in (own, ours)]
        torch.testing.assert_close(*intervals)


def test_batches_plots_and_joining(own: Shared, y: Tensor):
    mpl.use("Agg")
    parts = [own.at(slice(0, 25)), own.at(slice(25, None))]
    whole = bq.evaluation.report.evaluate(own, y)
    batches = bq.evaluation.report.evaluate(zip(parts, y.split([25, 35]), strict=True))
    names = [measure.name for measure in whole.measures if measure.name != "crps"]  # whose draws go by batches
    assert [batches[n].value for n in names] == pytest.approx([whole[n].value for n in names])
    torch.testing.assert_close(Shared.concatenate(parts).mean, own.mean)
    assert regression_bands({"own": own}, own.mean).axes[0].get_title() == "own"


def test_what_does_not_fit_is_refused_as_ours_is(own: Shared, y: Tensor):
    with pytest.raises(ValueError, match="must have shape"):
        own.targets(y[:5])
    with pytest.raises(ValueError, match="same points"):
        Shared.mixture([own, own.at(slice(0, 5))])
    with pytest.raises(TypeError, match="RealPredictive"):
        scores.crps(bq.CategoricalPredictive.from_probs([[[0.5, 0.5]]]), [0])
    assert isinstance(GaussianPredictive(mean=torch.zeros(1, 1, 1), noise_variance=1.0), RealPredictive)
