"""The weight of the divergence: against tempered conjugate posteriors, and named where it is not Bayes."""

import math

import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from bayesuq.data import Batch, Dataset
from bayesuq.evaluation.diagnostics.fit_quality import evaluate_fit
from bayesuq.inference import variational
from bayesuq.inference.variational.correlated import CorrelatedObjective
from bayesuq.inference.variational.factorised import EvidenceObjective
from bayesuq.inference.variational.guides import full_rank, mean_field
from bayesuq.inference.variational.tempering import Tempering, annealed
from bayesuq.randomness import generator
from tests.inference.examples import SHORT_FIT, Conjugate, measured

OBJECTIVES = {"mean field": (EvidenceObjective, mean_field), "full rank": (CorrelatedObjective, full_rank)}
EXACT = Conjugate(60, 2, 0.5, dtype=torch.float64)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_weight_multiplies_the_divergence_and_nothing_else(kind):
    """Loss and gradients are linear in the weight: that at 0.3 lies between those at 0 (by annealing) and at 1."""
    objective, guide = OBJECTIVES[kind]
    batch = Batch(EXACT.data.x, EXACT.data.y, None)
    values, gradients = [], []
    for weight in (0.0, 0.3, 1.0):
        own = guide(EXACT.model)
        tempering = Tempering(lambda share, weight=weight: weight if share < 1 else 1.0, 10)
        evidence = objective(EXACT.model, own, 60, 1, 1.0, tempering)
        values.append(evidence.loss_and_grads(batch, generator(3)))
        gradients.append([parameter.grad.clone() for parameter in own.parameters()])
    torch.testing.assert_close(values[1], 0.7 * values[0] + 0.3 * values[2], rtol=1e-10, atol=0)
    for none, some, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(some, 0.7 * none + 0.3 * whole, rtol=1e-9, atol=1e-12)
    assert values[0] != values[2]


@pytest.mark.parametrize("weight", [0.1, 4.0])
def test_a_tempered_fit_finds_the_tempered_posterior(weight):
    """p(theta) p(y | theta)^(1 / weight) is the posterior under noise of scale sigma sqrt(weight)."""
    data = Conjugate(60, 2, 0.5).data
    tempered = Conjugate(60, 2, 0.5 * math.sqrt(weight))
    design = tempered._design(data.x)
    precision = design.T @ design / tempered.noise_scale**2 + torch.eye(3, dtype=torch.float64)
    model = Conjugate(60, 2, 0.5).model
    posterior = variational.fit(model, data, kl_weight=weight, num_epochs=350, num_draws=2, seed=0)
    torch.testing.assert_close(posterior.scale.double(), precision.diag() ** -0.5, rtol=0.1, atol=0)
    assert posterior.kl_weight == weight


def test_annealing_ends_at_bayes():
    seen = []

    def weight(share):
        seen.append(share)
        return annealed(0.5)(share)

    posterior = variational.fit(EXACT.model, EXACT.data, kl_weight=weight, num_epochs=300, num_draws=4, seed=0)
    first = 2  # after the checks of both ends
    steps = seen[first : first + 300]
    assert steps[0] == 0.0
    assert steps[-1] == 1.0
    assert steps == sorted(steps)
    assert posterior.kl_weight == 1.0
    torch.testing.assert_close(posterior.scale, EXACT.scale, rtol=0.15, atol=0)


def test_the_report_names_a_tempered_posterior():
    assert evaluate_fit(kl_weight=1.0) == ()
    (cold,) = evaluate_fit(kl_weight=0.1)
    (warm,) = evaluate_fit(kl_weight=2.0)
    assert (cold.name, cold.value) == ("kl_weight", 0.1)
    assert cold.remark == "a tempered posterior: the data count more than once"
    assert warm.remark == "a tempered posterior: the data count less"


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize(
    ("weight", "options", "error", "words"),
    [
        (0.0, {}, ValueError, "`kl_weight` must be"),
        (-1.0, {}, ValueError, "`kl_weight` must be"),
        (math.nan, {}, ValueError, "`kl_weight` must be"),
        ("half", {}, TypeError, "`kl_weight`"),
        (lambda share: 1 - share, {}, ValueError, "`kl_weight at the end`"),
        (lambda share: share - 1, {}, ValueError, "not negative; got -1.0 after 0%"),
        (lambda share: -1.0 if 0 < share < 1 else 1.0, {"num_epochs": 3}, ValueError, r"got -1.0 after 50%"),
        (lambda share: math.nan if 0 < share < 1 else 1.0, {"num_epochs": 3}, ValueError, r"got nan after 50%"),
        (lambda _: None, {}, ValueError, "got None after 0%"),
        (0.5, {"guide": AutoNormal}, ValueError, "is for mean_field, low_rank and full_rank"),
    ],
    ids=["zero", "negative", "nan", "text", "ends at 0", "starts low", "sinks", "breaks", "none", "another guide"],
)
def test_what_is_no_weight_is_refused(weight, options, error, words):
    with pytest.raises(error, match=words):
        variational.fit(
            EXACT.model, measured(num_features=2), kl_weight=weight, seed=0, **({"num_epochs": 1} | options)
        )


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_outside_of_its_range_is_refused(share):
    with pytest.raises(ValueError, match="`share` must lie strictly between 0 and 1"):
        annealed(share)


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("guide", [variational.mean_field, variational.low_rank(1)])
def test_a_posterior_of_an_early_epoch_has_the_weight_of_that_epoch(guide):
    far, near = (Dataset(EXACT.data.x, y) for y in (EXACT.data.y + 100, torch.zeros(60)))  # near is passed on the way
    options = {"guide": guide, "kl_weight": annealed(0.5), "num_epochs": 21, "batch_size": len(far), "seed": 0}
    posterior = variational.fit(EXACT.model, EXACT.data, validation=near, **options)
    assert 0 < posterior.history.best_epoch < 10
    assert posterior.kl_weight == pytest.approx(posterior.history.best_epoch / 10)


@pytest.mark.parametrize("guide", [variational.mean_field, variational.full_rank])
def test_without_a_checkpoint_the_weight_is_asked_at_both_ends_and_once_a_step(guide, tmp_path):
    shares: list[float] = []

    def weight(share: float) -> float:
        shares.append(share)
        return 0.5 + share / 4

    options = {"guide": guide, "kl_weight": weight, "num_epochs": 5, "batch_size": len(EXACT.data), "seed": 0}
    variational.fit(EXACT.model, EXACT.data, **options)
    assert shares[:7] == pytest.approx([0.0, 1.0, *(step / 4 for step in range(5))])
    assert set(shares[7:]) == {1.0}  # of the steps by which it is judged
    number = len(shares)
    variational.fit(EXACT.model, EXACT.data, checkpoint=tmp_path / "state", **options)
    assert len(shares) >= 2 * number + 65
