from typing import Any

import pytest
import torch

from bayesuq import datasets
from bayesuq.cli.glossary import describe
from bayesuq.cli.methods import FitOptions, Fitted, Method, chosen_for, fit, read_methods
from bayesuq.cli.problem import Problem
from bayesuq.cli.settings import METHODS, ChainOptions, ModelOptions, PredictionOptions, TrainingOptions, UsageError
from bayesuq.data import Dataset, Split
from bayesuq.inference import confidence
from bayesuq.inference.confidence.fitting import ConfidencePosterior
from bayesuq.inference.dropout import DropoutPosterior
from bayesuq.inference.gp.exact import ExactGpPosterior
from bayesuq.inference.gp.sparse_posterior import SparseGpPosterior
from bayesuq.inference.hmc import HmcPosterior
from bayesuq.inference.laplace.posterior import LaplacePosterior
from bayesuq.inference.microcanonical.fitting import MicrocanonicalPosterior
from bayesuq.inference.posteriors.ensemble import EnsemblePosterior
from bayesuq.inference.posteriors.leave_one_out import left_out_levels
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.quantile_calibration import level_map
from bayesuq.inference.sgmcmc.fitting import SgmcmcPosterior
from bayesuq.inference.swag.fitting import SwagPosterior
from bayesuq.inference.temperature.fitting import TemperaturePosterior
from bayesuq.inference.variational.factorised import VariationalPosterior

SMALL = ModelOptions(hidden=[4], dropout=0.3)
PREDICTION = PredictionOptions(num_samples=3)
CHAINS = ChainOptions(num_chains=2, num_warmup=2, num_draws=3)
SHORT = FitOptions(TrainingOptions(num_epochs=1, num_members=2), CHAINS, PREDICTION)


@pytest.fixture(scope="module")
def digits() -> Problem:
    split = datasets.load("digits")
    few = torch.arange(180)  # as many as the smallest part has
    return Problem.of("digits", Split(*(part.rows(few) for part in (split.train, split.val, split.test))), SMALL)


@pytest.mark.parametrize(
    ("name", "key", "has_dropout"),
    [
        ("map", "map", False),
        ("dropout", "dropout", True),
        ("ensemble", "ensemble:map", False),
        ("ensemble:dropout", "ensemble:dropout", True),
        ("temperature", "temperature:map", False),
        ("temperature:ensemble", "temperature:ensemble:map", False),
        ("temperature:ensemble:dropout", "temperature:ensemble:dropout", True),
        ("confidence", "confidence:map", False),
        ("confidence:dropout", "confidence:dropout", True),
        ("quantile_calibration", "quantile_calibration:map", False),
        ("quantile_calibration:gp", "quantile_calibration:gp", False),
    ],
)
def test_names_say_what_stands_on_what(name: str, key: str, has_dropout: bool) -> None:
    method = Method.of(name)
    assert (method.name, method.key, method.has_dropout) == (name, key, has_dropout)
    assert describe(method, 5).endswith(".")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["variatonal"], "There is no method 'variatonal'; did you mean 'variational'"),
        ([""], "There is no method ''; There are: map"),
        (["map:dropout"], "map stands on no other method; got 'map:dropout'"),
        (["ensemble:ensemble"], "ensemble cannot stand on 'ensemble'"),
        (["ensemble:temperature"], "ensemble cannot stand on 'temperature'"),
        (["temperature:temperature"], "temperature cannot stand on 'temperature'"),
        (["confidence:temperature"], "confidence cannot stand on 'temperature'"),
        (["temperature:confidence"], "temperature cannot stand on 'confidence'"),
        (["temperature:"], "There is no method ''"),
        (["temperature:../../etc"], r"There is no method '\.\./\.\./etc'"),
        ([], "Name at least one method"),
        (["map", "map"], "none twice; got map, map"),
        (["temperature", "temperature:map"], "none twice"),
    ],
)
def test_names_of_no_method_are_refused(digits: Problem, names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_methods(names, digits)


@pytest.mark.parametrize(("name", "what"), [("temperature", "Temperature scaling"), ("confidence:map", "A confidence")])
def test_what_is_of_labels_is_refused_of_real_targets(name: str, what: str) -> None:
    line = Problem.of("toy/linear", datasets.load("toy/linear"), SMALL)
    with pytest.raises(UsageError, match=f"{what} is for labels; toy/linear has real targets"):
        read_methods(["map", name], line)


@pytest.mark.parametrize(
    ("name", "kind", "member"),
    [
        ("map", MapPosterior, None),
        ("variational", VariationalPosterior, None),
        ("dropout", DropoutPosterior, None),
        ("laplace", LaplacePosterior, None),
        ("swag", SwagPosterior, None),
        ("ivon", VariationalPosterior, None),
        ("microcanonical", MicrocanonicalPosterior, None),
        ("sgmcmc", SgmcmcPosterior, None),
        ("hmc", HmcPosterior, None),
        ("gp", SparseGpPosterior, None),
        ("ensemble", EnsemblePosterior, MapPosterior),
        ("ensemble:dropout", EnsemblePosterior, DropoutPosterior),
        ("temperature", TemperaturePosterior, None),
        ("confidence", ConfidencePosterior, None),
        ("confidence:sgmcmc", ConfidencePosterior, None),
        ("confidence:laplace", ConfidencePosterior, None),
        ("confidence:ensemble:dropout", ConfidencePosterior, None),
    ],
)
@pytest.mark.filterwarnings("error")
def test_each_name_fits_its_method(digits: Problem, name: str, kind: type, member: type | None) -> None:
    fitted = fit(Method.of(name), digits, SHORT, {})
    assert type(fitted.posterior) is kind
    if member is not None:
        assert [type(part) for part in fitted.posterior.members] == [member] * 2
    chains = (SgmcmcPosterior, HmcPosterior, MicrocanonicalPosterior)
    assert len(fitted.losses) == {EnsemblePosterior: 2, **dict.fromkeys(chains, 0)}.get(kind, 1)
    assert all(len(loss) == 1 for loss in fitted.losses)
    assert fitted.seconds > 0


@pytest.mark.parametrize("base", ["gp", "variational", "map"])
def test_quantiles_are_calibrated_by_rows_that_the_fit_can_leave_out_and_else_by_validation_rows(base: str) -> None:
    split = datasets.load("toy/linear")
    line = Problem.of("toy/linear", Split(split.train, split.test.rows(range(60)), split.test), SMALL)
    (method,) = read_methods([f"quantile_calibration:{base}"], line)
    fitted = fit(Method.of(base), line, SHORT, {})
    calibrated = fit(method, line, SHORT, {base: fitted})
    rows = line.in_fitted_units(line.split.val if base == "map" else line.split.train)
    posterior: Any = fitted.posterior
    if base == "gp":
        levels = posterior.leave_one_out().cdf(rows.y)
    elif base == "variational":  # by 25 draws, though 3 were asked for
        levels = left_out_levels(posterior, rows, num_samples=25, seed=0)
    else:
        levels = posterior.predict(rows.x).cdf(rows.y)
    # Ten rows a piece.
    pieces = len(rows) // 10
    assert (calibrated.posterior.knots, calibrated.posterior.levels) == level_map(levels.flatten(), pieces)
    assert (calibrated.losses, calibrated.quality) == (fitted.losses, fitted.quality)


def test_quantiles_that_cannot_be_calibrated_are_left_and_told(digits: Problem) -> None:
    line = Problem.of("toy/linear", datasets.load("toy/linear"), SMALL)
    few = fit(Method.of("quantile_calibration:map"), line, SHORT, {})
    assert few.posterior.knots == (0.0, 1.0)
    assert any("25 rows are too few to calibrate them by" in told for told in few.warnings)
    for other in (digits, Problem.of("toy/linear", two_targets(), SMALL)):
        with pytest.raises(UsageError, match="Quantile calibration is for one real target a row"):
            read_methods(["quantile_calibration"], other)


def test_a_fit_that_names_no_method_has_calibrated_intervals_of_one_real_target(digits: Problem) -> None:
    split = datasets.load("toy/linear")
    many = split.train.rows(torch.arange(1001) % len(split.train))
    chosen = {
        "quantile_calibration:gp": Problem.of("toy/linear", split, SMALL),
        "quantile_calibration:variational": Problem.of("long", Split(many, split.val, split.test), SMALL),
        "gp": Problem.of("toy/linear", two_targets(), SMALL),
        "variational": digits,
    }
    assert [chosen_for(problem) for problem in chosen.values()] == list(chosen)


def two_targets() -> Split:
    split = datasets.load("toy/linear")
    return Split(*(Dataset(part.x, part.y.expand(-1, 2)) for part in (split.train, split.val, split.test)))


def test_every_method_has_a_name_that_is_tested() -> None:
    chains = {"sgmcmc", "hmc", "microcanonical"}
    assert (
        set(METHODS)
        == {"map", "variational", "ivon", "dropout", "laplace", "swag", "gp", "ensemble", "temperature", "confidence"}
        | {"quantile_calibration"}
        | chains
    )


def test_a_process_is_exact_for_few_real_targets_and_stands_on_features_for_images() -> None:
    line = Problem.of("toy/linear", datasets.load("toy/linear"), SMALL)
    assert isinstance(fit(Method.of("gp"), line, SHORT, {}).posterior, ExactGpPosterior)
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    part = Dataset(x, torch.arange(20) % 2)
    images = Problem.of("images", Split(part, part, part), SMALL)
    posterior = fit(Method.of("gp"), images, SHORT, {}).posterior
    assert posterior.predict(x, num_samples=3).mean.shape == (20, 2)
    assert any(name.startswith("kernel.net.") for name in posterior.hyperparameters)
    maps = Problem.of("maps", Split(*[Dataset(x, torch.zeros(20, 8, 8, dtype=torch.int64))] * 3), SMALL)
    for name, says in (
        ("gp", "no function for every pixel"),
        ("confidence", "one label a row; maps has one for every"),
    ):
        with pytest.raises(UsageError, match=says):
            read_methods([name], maps)


def test_chains_have_their_own_length_and_infer_the_noise(digits: Problem) -> None:
    line = Problem.of("toy/linear", datasets.load("toy/linear"), SMALL)
    for name in ("sgmcmc", "hmc"):
        chains = fit(Method.of(name), line, SHORT, {}).posterior
        assert chains.draws.shape[:2] == (2, 3)
        assert "likelihood.scale" in chains.model.laws
        assert "likelihood.scale" not in fit(Method.of(name), digits, SHORT, {}).posterior.model.laws
    assert "likelihood.scale" in fit(Method.of("map"), line, SHORT, {}).posterior.model.points


def test_a_temperature_scales_the_posterior_that_is_there_already(digits: Problem) -> None:
    method = Method.of("temperature:ensemble")
    base = fit(Method.of("ensemble"), digits, SHORT, {})
    scaled = fit(method, digits, SHORT, {"ensemble:map": base})
    alone = fit(method, digits, SHORT, {})
    x = digits.split.test.x[:5]
    assert torch.equal(scaled.posterior.predict(x).mean, alone.posterior.predict(x).mean)  # the same fit, made twice
    temperature = scaled.posterior.temperature
    logits = base.posterior.predict(x, keep_samples=True).draws / temperature
    torch.testing.assert_close(scaled.posterior.predict(x).mean, logits.softmax(dim=2).double().mean(dim=0))
    assert scaled.seconds > base.seconds


def test_the_temperature_is_that_of_the_validation_rows(digits: Problem) -> None:
    base = fit(Method.of("map"), digits, FitOptions(TrainingOptions(num_epochs=20), CHAINS, PREDICTION), {})
    scaled = fit(Method.of("temperature"), digits, SHORT, {"map": base})
    val = digits.split.val
    logits = base.posterior.predict(val.x, keep_samples=True).draws[0].double()

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / temperature, val.y))

    best = scaled.posterior.temperature
    assert loss(best) < min(loss(best * 1.02), loss(best / 1.02))


def test_a_confidence_learns_from_training_and_validation_rows_and_leaves_the_predictions(digits: Problem) -> None:
    base = fit(Method.of("map"), digits, SHORT, {})
    learned = fit(Method.of("confidence"), digits, SHORT, {"map": base})
    expected = confidence.fit(base.posterior, digits.split.refit, num_epochs=1, num_samples=3, seed=0)
    x = digits.split.test.x
    assert torch.equal(learned.posterior.confidence(x), expected.confidence(x))
    assert torch.equal(learned.posterior.predict(x).mean, base.posterior.predict(x).mean)
    fewer = confidence.fit(base.posterior, digits.split.train, num_epochs=1, num_samples=3, seed=0)
    assert not torch.equal(fewer.confidence(x), expected.confidence(x))
    assert learned.seconds > base.seconds


def test_warnings_of_a_fit_are_kept_not_shown(digits: Problem) -> None:
    fitted = fit(Method.of("variational"), digits, SHORT, {})
    assert any("ELBO" in warning or "scales" in warning for warning in fitted.warnings)
    assert fitted.to_dict()["warnings"] == fitted.warnings


def test_the_quality_of_a_variational_fit_is_told_where_the_data_are_few_enough(
    digits: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = FitOptions(TrainingOptions(num_epochs=20, learning_rate=1e-6), CHAINS, PREDICTION)
    fitted = fit(Method.of("variational"), digits, long, {})
    told = {measure.name: measure for measure in fitted.quality}
    assert list(told) == ["elbo_rise", "scale_movement", "pareto_k"]
    assert told["scale_movement"].remark == "the scales were hardly learned"
    assert told["pareto_k"].value > 1  # after 20 tiny steps q is where it began, and reaches little
    monkeypatch.setattr("bayesuq.cli.methods.MOST_FORWARD_ROWS", 50 * len(digits.split.train) - 1)
    fewer = fit(Method.of("variational"), digits, long, {})
    assert [measure.name for measure in fewer.quality] == ["elbo_rise", "scale_movement"]
    assert fit(Method.of("map"), digits, SHORT, {}).quality == ()


def test_a_fit_leaves_the_global_random_state_alone(digits: Problem) -> None:
    state = torch.get_rng_state()
    fit(Method.of("ensemble:dropout"), digits, SHORT, {})
    assert torch.equal(torch.get_rng_state(), state)


def test_losses_of_members_come_one_by_one() -> None:
    line = Problem.of("toy/linear", datasets.load("toy/linear"), ModelOptions(hidden=[]))
    options = FitOptions(TrainingOptions(num_epochs=3, num_members=4), CHAINS, PREDICTION)
    fitted: Fitted = fit(Method.of("ensemble"), line, options, {})
    assert [len(loss) for loss in fitted.losses] == [3] * 4
