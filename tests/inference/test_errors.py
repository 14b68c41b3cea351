"""Errors at the public doors: each names what came, and its remedy, which is run, works."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bayesuq as bq
from bayesuq import conformal
from bayesuq.evaluation import calibration, detection, plots, report, scores, segmentation
from bayesuq.inference import (
    confidence,
    ensemble,
    hmc,
    laplace,
    local_temperature,
    map_estimate,
    quantile_calibration,
    temperature,
    variational,
)
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork

X = torch.linspace(-1, 1, 24).reshape(8, 3)
MAPS = torch.linspace(0, 1, 4 * 36).reshape(4, 1, 6, 6) ** 2
HOLES = torch.tensor([1.0, torch.nan] * 4)
MANY = torch.tensor([[0, 1, 1], [1, 0, 0]] * 4)
LABELS = torch.arange(8) % 3
REGIONS = torch.rand(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def model(likelihood: Any, num_outputs: int = 1, prior: Any = None) -> BayesianNetwork:
    return BayesianNetwork(networks.mlp(3, (4,), num_outputs, seed=0), prior or priors.Normal(), likelihood)


def fitted(likelihood: Any, y: Any, num_outputs: int = 1) -> Any:
    return map_estimate.fit(model(likelihood, num_outputs), bq.Dataset(X, y), num_epochs=1, seed=0)


def real_maps() -> Any:
    given = BayesianNetwork(nn.Conv2d(1, 1, 3, padding=1), priors.Normal(), likelihoods.Normal(scale=0.1))
    return map_estimate.fit(given, bq.Dataset(MAPS, MAPS), num_epochs=1, seed=0).predict(MAPS)


def state_dict_file() -> Path:
    path = Path(tempfile.mkdtemp(), "net.pt")
    torch.save(nn.Linear(3, 3).state_dict(), path)
    return path


def with_weights_of(path: Path) -> nn.Module:
    net = nn.Linear(3, 3)
    net.load_state_dict(torch.load(path, weights_only=True))
    return net


def found() -> Any:
    return report.evaluate_misclassification(fitted(likelihoods.Categorical(), LABELS, 3).predict(X), LABELS)


def volumes() -> bq.CategoricalPredictive:
    return bq.CategoricalPredictive.from_logits(torch.linspace(-1, 1, 2 * 3 * 4 * 125).reshape(2, 3, 4, 5, 5, 5))


@dataclass(frozen=True)
class Case:
    """A call that is refused, what its error says, and the call that it asks for."""

    wrong: Callable[[], Any]
    says: str
    remedy: Callable[[], Any]


CASES = {
    "maps of real numbers": Case(
        lambda: scores.crps(real_maps(), MAPS),
        r"pass `predictive.pixels` with `predictive.pixel_targets\(y\)`",
        lambda: scores.crps(real_maps().pixels, real_maps().pixel_targets(MAPS)),
    ),
    "missing targets": Case(
        lambda: bq.Dataset(X, HOLES),
        r"4 of 8 rows hold NaN .*weight=~y.isnan\(\)",
        lambda: map_estimate.fit(
            model(likelihoods.Normal()), bq.Dataset(X, HOLES, weight=~HOLES.isnan()), num_epochs=1, seed=0
        ),
    ),
    "sigmoids of regions": Case(
        lambda: bq.CategoricalPredictive.from_probs(REGIONS),
        "got sums .*kind='bernoulli'",
        lambda: scores.accuracy(
            bq.CategoricalPredictive.from_probs(REGIONS, kind="bernoulli"),
            (REGIONS[0] > 0.5).long(),
        ),
    ),
    "volumes with targets of images": Case(
        lambda: scores.accuracy(volumes(), torch.zeros(3, 5, 5, dtype=torch.long)),
        r"must have shape \(3, 5, 5, 5\).*got \(3, 5, 5\)",
        lambda: segmentation.intersection_over_union(volumes(), torch.zeros(3, 5, 5, 5, dtype=torch.long)),
    ),
    "several labels, one output": Case(
        lambda: fitted(likelihoods.Bernoulli(), MANY),
        r"give the network 3, for \(N, 3\) labels",
        lambda: fitted(likelihoods.Bernoulli(), MANY, 3),
    ),
    "several labels, softmax": Case(
        lambda: fitted(likelihoods.Categorical(), MANY, 3),
        r"must have shape \(8,\) .*got \(8, 3\).*likelihoods.Bernoulli\(\)",
        lambda: fitted(likelihoods.Bernoulli(), MANY, 3),
    ),
    "one-hot rows": Case(
        lambda: fitted(likelihoods.Categorical(), nn.functional.one_hot(LABELS), 3),
        r"of one-hot rows, pass `y.argmax\(1\)`",
        lambda: fitted(likelihoods.Categorical(), nn.functional.one_hot(LABELS).argmax(1), 3),
    ),
    "fractions as labels": Case(
        lambda: fitted(likelihoods.Categorical(), LABELS / 3, 3),
        r"got fractions.*likelihoods.Normal\(\)",
        lambda: fitted(likelihoods.Normal(), LABELS / 3),
    ),
    "a temperature of logits": Case(
        lambda: temperature.fit(torch.zeros(8, 3), LABELS),  # type: ignore[arg-type]
        r"must be a fitted posterior over labels; got Tensor.*map_estimate.fit\(model, data\)",
        lambda: temperature.fit(fitted(likelihoods.Categorical(), LABELS, 3), bq.Dataset(X, LABELS)),
    ),
    "inputs in one dimension": Case(
        lambda: bq.Dataset(X[:, 0], X[:, 1]),
        r"`x.reshape\(-1, 1\)`",
        lambda: bq.Dataset(X[:, 0].reshape(-1, 1), X[:, 1]),
    ),
    "a tuple as data": Case(
        lambda: map_estimate.fit(model(likelihoods.Normal()), (X, X[:, 0]), num_epochs=1),  # type: ignore[arg-type]
        r"got tuple.*pass bayesuq.Dataset\(x, y\)",
        lambda: fitted(likelihoods.Normal(), X[:, 0]),
    ),
    "a data set to predict at": Case(
        lambda: fitted(likelihoods.Normal(), X[:, 0]).predict(bq.Dataset(X, X[:, 0])),
        r"got a Dataset. Pass its `.x`",
        lambda: fitted(likelihoods.Normal(), X[:, 0]).predict(bq.Dataset(X, X[:, 0]).x),
    ),
    "logits of one draw": Case(
        lambda: bq.CategoricalPredictive.from_logits(X),
        r"got \(8, 3\). Use `logits\[None\]`",
        lambda: bq.CategoricalPredictive.from_logits(X[None]),
    ),
    "chains of a learned noise": Case(
        lambda: hmc.fit(model(likelihoods.Normal()), bq.Dataset(X, X[:, 0])),
        r"cannot learn point values.*likelihoods.Normal\(scale=priors.HalfNormal\(\)\)",
        lambda: hmc.fit(
            model(likelihoods.Normal(scale=priors.HalfNormal())),
            bq.Dataset(X, X[:, 0]),
            num_samples=2,
            num_warmup=2,
            num_chains=1,
            seed=0,
        ),
    ),
    "Laplace under other priors": Case(
        lambda: laplace.fit(model(likelihoods.Normal(0.1), 1, priors.StudentT()), bq.Dataset(X, X[:, 0]), num_epochs=1),
        r"needs normal priors; .*priors.Normal",
        lambda: laplace.fit(model(likelihoods.Normal(0.1)), bq.Dataset(X, X[:, 0]), num_epochs=1, seed=0),
    ),
    "a model in the place of its posterior": Case(
        lambda: quantile_calibration.fit(model(likelihoods.Normal()), bq.Dataset(X, X[:, 0])),  # type: ignore[call-overload]
        r"got BayesianNetwork. Pass what a fit gives, such as `map_estimate.fit\(model, data\)`",
        lambda: quantile_calibration.fit(fitted(likelihoods.Normal(), X[:, 0]), bq.Dataset(X, X[:, 0]), num_pieces=2),
    ),
    "local temperatures of a model": Case(
        lambda: local_temperature.fit(model(likelihoods.Categorical(), 3), bq.Dataset(X, LABELS)),  # type: ignore[arg-type]
        r"got BayesianNetwork. Pass what a fit gives",
        lambda: local_temperature.fit(
            fitted(likelihoods.Categorical(), LABELS, 3), bq.Dataset(X, LABELS), hidden=2, num_epochs=1, seed=0
        ),
    ),
    "a confidence of a model": Case(
        lambda: confidence.fit(model(likelihoods.Categorical(), 3), bq.Dataset(X, LABELS)),  # type: ignore[arg-type]
        r"got BayesianNetwork. Fit one first, such as `map_estimate.fit\(model, data\)`",
        lambda: confidence.fit(
            fitted(likelihoods.Categorical(), LABELS, 3), bq.Dataset(X, LABELS), num_epochs=1, seed=0
        ),
    ),
    "a report of a posterior": Case(
        lambda: report.evaluate(fitted(likelihoods.Categorical(), LABELS, 3), LABELS),  # type: ignore[arg-type]
        r"got MapPosterior. Pass what `posterior.predict\(x\)` returns",
        lambda: report.evaluate(fitted(likelihoods.Categorical(), LABELS, 3).predict(X), LABELS),
    ),
    "a report of probabilities": Case(
        lambda: report.evaluate(torch.full((8, 3), 1 / 3), LABELS),  # type: ignore[arg-type]
        r"must be a CategoricalPredictive .*got Tensor",
        lambda: report.evaluate(bq.CategoricalPredictive.from_probs(torch.full((1, 8, 3), 1 / 3)), LABELS),
    ),
    "overlap of single labels": Case(
        lambda: segmentation.intersection_over_union(fitted(likelihoods.Categorical(), LABELS, 3).predict(X), LABELS),
        r"mean \(N, C, H, W\); got \(8, 3\). Of single labels take `scores.accuracy`",
        lambda: scores.accuracy(fitted(likelihoods.Categorical(), LABELS, 3).predict(X), LABELS),
    ),
    "scores after what is positive": Case(
        lambda: detection.auroc(LABELS == 1, torch.linspace(0, 1, 8)),
        r"comes after `scores`",
        lambda: detection.auroc(torch.linspace(0, 1, 8), LABELS == 1),
    ),
    "an interval's level in per cent": Case(
        lambda: calibration.interval_coverage(fitted(likelihoods.Normal(), X[:, 0]).predict(X), X[:, 0], 90),
        r"strictly between 0 and 1; got 90",
        lambda: calibration.interval_coverage(fitted(likelihoods.Normal(), X[:, 0]).predict(X), X[:, 0], 0.9),
    ),
    "conformal sets of real targets": Case(
        lambda: conformal.calibrate_labels(fitted(likelihoods.Normal(), X[:, 0]).predict(X), X[:, 0]),  # type: ignore[arg-type]
        r"got GaussianPredictive",
        lambda: conformal.calibrate_intervals(fitted(likelihoods.Normal(), X[:, 0]).predict(X), X[:, 0], alpha=0.5),
    ),
    "conformal intervals of a posterior": Case(
        lambda: conformal.calibrate_intervals(fitted(likelihoods.Normal(), X[:, 0]), X[:, 0]),  # type: ignore[arg-type]
        r"one of real targets; got MapPosterior. Pass what `posterior.predict\(x\)`.*labels take `calibrate_labels`",
        lambda: conformal.calibrate_intervals(fitted(likelihoods.Normal(), X[:, 0]).predict(X), X[:, 0], alpha=0.5),
    ),
    "conformal sets of a posterior": Case(
        lambda: conformal.calibrate_labels(fitted(likelihoods.Categorical(), LABELS, 3), LABELS),  # type: ignore[arg-type]
        r"got MapPosterior. Pass what `posterior.predict\(x\)` returns",
        lambda: conformal.calibrate_labels(fitted(likelihoods.Categorical(), LABELS, 3).predict(X), LABELS, alpha=0.5),
    ),
    "a data set as targets": Case(
        lambda: report.evaluate(fitted(likelihoods.Categorical(), LABELS, 3).predict(X), bq.Dataset(X, LABELS)),  # type: ignore[arg-type]
        r"`y` must be numbers.*got a Dataset. Pass its `.y`",
        lambda: report.evaluate(fitted(likelihoods.Categorical(), LABELS, 3).predict(X), bq.Dataset(X, LABELS).y),
    ),
    "a module as an ensemble's fit": Case(
        lambda: ensemble.fit(model(likelihoods.Normal()), bq.Dataset(X, X[:, 0]), member_fit=map_estimate),  # type: ignore[arg-type]
        r"such as `map_estimate.fit`; got module",
        lambda: ensemble.fit(
            model(likelihoods.Normal()), bq.Dataset(X, X[:, 0]), member_fit=map_estimate.fit, num_epochs=1, seed=0
        ),
    ),
    "a reliability diagram of a predictive": Case(
        lambda: plots.reliability_diagram(fitted(likelihoods.Categorical(), LABELS, 3).predict(X)),  # type: ignore[arg-type]
        r"what `calibration.reliability` gives, as in \{'ensemble': ...\}; got CategoricalPredictive",
        lambda: plots.reliability_diagram(
            {"MAP": calibration.reliability(fitted(likelihoods.Categorical(), LABELS, 3).predict(X), LABELS)}
        ),
    ),
    "bands of labels": Case(
        lambda: plots.regression_bands({"MAP": fitted(likelihoods.Categorical(), LABELS, 3).predict(X)}, X[:, 0]),
        r"of real targets gives.*got a value of type CategoricalPredictive",
        lambda: plots.regression_bands({"MAP": fitted(likelihoods.Normal(), X[:, 0]).predict(X)}, X[:, 0]),
    ),
    "losses of a history": Case(
        lambda: plots.loss_curves({"MAP": fitted(likelihoods.Normal(), X[:, 0]).history}),
        r"what `posterior.history.loss` gives.*got a value of type History",
        lambda: plots.loss_curves({"MAP": fitted(likelihoods.Normal(), X[:, 0]).history.loss}),
    ),
    "a score that is not there": Case(
        lambda: plots.score_histograms(found(), "entropy"),
        r"no score 'entropy'; there are .*predictive_entropy",
        lambda: plots.score_histograms(found(), "predictive_entropy"),
    ),
    "weights of torch in place of a posterior": Case(
        lambda: bq.load(state_dict_file()),
        r"Of a state_dict, load it into its network, and pass that to `bayesuq.adopt\(net, likelihood\)`",
        lambda: bq.adopt(with_weights_of(state_dict_file()), likelihoods.Categorical()).predict(X),
    ),
    "an adopted class": Case(
        lambda: bq.adopt(nn.Linear(3, 3), likelihoods.Categorical),  # type: ignore[arg-type]
        r"such as likelihoods.Categorical\(\); got <class",
        lambda: bq.adopt(nn.Linear(3, 3), likelihoods.Categorical()),
    ),
    "a misspelt option": Case(
        lambda: variational.fit(model(likelihoods.Normal()), bq.Dataset(X, X[:, 0]), num_epoch=1),  # type: ignore[call-arg]
        r"no option 'num_epoch'; did you mean 'num_epochs'",
        lambda: variational.fit(model(likelihoods.Normal()), bq.Dataset(X, X[:, 0]), num_epochs=1, seed=0),
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_an_error_names_what_came_and_a_remedy_that_works(name: str) -> None:
    case = CASES[name]
    with pytest.raises((TypeError, ValueError, KeyError, NotImplementedError), match=case.says):
        case.wrong()
    case.remedy()
