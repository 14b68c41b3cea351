"""Gaussians that stand once with their number are the mixture in which they stand so often, whatever is asked of it.

The truth is the same mixture written out, draw by draw.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import pytest
import torch

from bayesuq.evaluation.distance import total_variation, wasserstein
from bayesuq.evaluation.scores import pointwise_crps
from bayesuq.inference.automatic.outliers import widened
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.recalibrated import RecalibratedPredictive
from bayesuq.predictive.thinned import ThinnedPredictive
from tests.zoo.computed_numbers import ComputedNumbers

COUNTS = (3, 1, 6, 2)
POINTS, LEVELS = 5, (0.05, 0.5, 0.9)
Y = torch.linspace(-1.0, 1.0, POINTS)


def held(columns: int, *, covariance: bool = False) -> GaussianPredictive:
    """Four Gaussians at five points."""
    noise = torch.Generator().manual_seed(columns)
    means = torch.randn(len(COUNTS), POINTS, columns, generator=noise)
    scales = 0.2 + torch.rand(len(COUNTS), POINTS, columns, generator=noise, dtype=torch.float64)
    if not covariance:
        function = 0.1 + torch.rand(len(COUNTS), 1, 1, generator=noise, dtype=torch.float64)
        return GaussianPredictive(mean=means, noise_variance=scales.square(), function_variance=function)
    roots = torch.randn(len(COUNTS), POINTS, columns, columns, generator=noise, dtype=torch.float64)
    return GaussianPredictive(mean=means, noise_variance=scales.square(), function_covariance=roots @ roots.mT)


def written_out(laws: GaussianPredictive) -> GaussianPredictive:
    """Each draw's Gaussian, held once for each draw."""
    return laws.components_at(torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS)))


MAKES: dict[str, Callable[[GaussianPredictive], Any]] = {
    "as it is": lambda one: one,
    "rescaled": lambda one: one.rescale(torch.tensor(3.0), torch.tensor(2.0)),
    "some points": lambda one: GaussianPredictive.concatenate([one.at(slice(2, None)), one.at(slice(0, 2))]),
    "mixed": lambda one: GaussianPredictive.mixture([one, held(one.shape[2])]),
    "some components": lambda one: one.components_at(torch.tensor([11, 2, 2, 3, 4, 5, 0])),
    "repeated again": lambda one: one.components_at(torch.arange(24) // 2),
    "of other counts": lambda one: GaussianPredictive.concatenate(
        [one, held(one.shape[2]).repeated([9, 1, 1, 1]).rescale(torch.tensor(0.0), torch.tensor(1.0))]
    ).at(slice(0, POINTS)),
    "with outliers": lambda one: widened(one, 0.3, 4.0),
    "recalibrated": lambda one: RecalibratedPredictive(one.at(slice(None)), (0.0, 0.2, 0.7, 1.0), (0.0, 0.3, 0.6, 1.0)),
    "recalibrated and rescaled": lambda one: MAKES["rescaled"](MAKES["recalibrated"](one)),
    "thinned": lambda one: ThinnedPredictive.of(one, 6),
}


def answers(one: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """What a predictive is asked."""
    y = Y.unsqueeze(-1).expand(one.shape[1:])
    questions: dict[str, Callable[[], Any]] = {
        **{name: partial(getattr, one, name) for name in ("mean", "aleatoric", "epistemic", "total")},
        **{name: partial(getattr, one, name) for name in ("component_means", "component_variances")},
        "shape": lambda: torch.tensor(one.shape),
        "density": lambda: one.log_prob(y),
        "of components": lambda: one.component_log_prob(y),
        "cdf": lambda: one.cdf(y),
        "quantiles": lambda: torch.stack(list(one.quantiles_at(LEVELS))),
        "a draw of each": lambda: one.component_sample(seed=3),
        "sample": lambda: one.sample(20, seed=4),
        "crps": lambda: pointwise_crps(one, y),
    }
    return {name: ask() for name, ask in questions.items() if name not in without}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())
def test_gaussians_with_their_number_are_the_mixture_written_out(make: Callable[[GaussianPredictive], Any]) -> None:
    laws = held(1)
    short, long = make(laws.repeated(COUNTS)), make(written_out(laws))
    for (name, found), truth in zip(answers(short).items(), answers(long).values(), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10, msg=lambda why, name=name: f"{name}: {why}")


@pytest.mark.parametrize("make", ["as it is", "rescaled", "some points", "some components"])
def test_columns_that_go_together_do_so_in_all_draws(make: str) -> None:
    laws = held(2, covariance=True)
    short, long = MAKES[make](laws.repeated(COUNTS)), MAKES[make](written_out(laws))
    torch.testing.assert_close(short.function_covariance, long.function_covariance)
    for (name, found), truth in zip(answers(short).items(), answers(long).values(), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10, msg=lambda why, name=name: f"{name}: {why}")


def test_mixtures_are_compared_by_their_numbers() -> None:
    laws = held(1)
    other = laws.rescale(torch.tensor(0.3), torch.tensor(1.0))
    for distance in (total_variation, wasserstein):
        torch.testing.assert_close(distance(laws.repeated(COUNTS), other), distance(written_out(laws), other))


def test_what_is_repeated_is_held_once() -> None:
    one = GaussianPredictive(mean=torch.zeros(1, 3, 1), noise_variance=1.0).repeated([1000])
    assert one.num_samples == 1000
    assert (
        one.laws.num_samples == one.at(slice(0, 1)).rescale(torch.tensor(0.0), torch.tensor(1.0)).laws.num_samples == 1
    )
    assert one.components_at(torch.arange(400, 900)).laws.num_samples == 1
    assert one.repeated([2] * 1000).num_samples == 2000
    assert widened(one, 0.01, 1.0).laws.num_samples == 2


OF_DRAWS = ("component_means", "component_variances", "of components", "a draw of each")
OF_FEW_DRAWS = ("mixed", "recalibrated and rescaled")


@pytest.mark.parametrize("make", OF_FEW_DRAWS)
def test_what_is_asked_of_a_mixture_costs_as_many_numbers_however_often_its_laws_stand(make: str) -> None:
    counted = []
    for times in (1, 10_000):
        with ComputedNumbers() as computed:
            answers(MAKES[make](held(1).repeated([2 * times] * len(COUNTS))), without=OF_DRAWS)
        counted.append(computed.count)
    assert counted[1] < 1.5 * counted[0]  # Newton's steps may be one more


@pytest.mark.parametrize("counts", [(1, 2, 3), (1, 1, 1, 0)])
def test_counts_are_of_all_and_at_least_one(counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`counts` must be (4 numbers of )?at least 1"):
        held(1).repeated(counts)


def test_fractions_of_draws_are_refused() -> None:
    with pytest.raises(TypeError, match=r"`counts` must be a whole number; got 1\.5"):
        held(1).repeated([1.5, 1, 1, 1])  # type: ignore[list-item]
