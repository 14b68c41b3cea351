"""What is public is said by `__all__`, shown by `dir` and told in the reference; what left a face still works."""

import math
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bayesuq.evaluation import calibration
from bayesuq.evaluation.diagnostics import predictive_checks
from bayesuq.evaluation.streaming import states
from bayesuq.moved import INTERNAL
from bayesuq.predictive.categorical import CategoricalPredictive

DOCS = Path(__file__).parents[1] / "docs"
CONSTANTS = (bool, int, float, str, bytes, tuple, frozenset, dict, set, list)


def public_modules() -> list[str]:
    """All that a user reaches from `bayesuq` by names of `__all__`."""
    found, ahead = set(), ["bayesuq"]
    while ahead:
        name = ahead.pop()
        module = import_module(name)
        found.add(name)
        values = [getattr(module, one) for one in getattr(module, "__all__", ())]
        ahead += [value.__name__ for value in values if isinstance(value, ModuleType) and value.__name__ not in found]
    return sorted(found)


# Types of results, which nobody calls: out of `__all__`, and without a warning in the modules that had them.
RESULTS = {
    "active": ("Curve",),
    "conformal": ("ConformalIntervals", "ConformalLabels"),
    "evaluation.calibration": ("Reliability",),
    "evaluation.decomposition": ("BrierDecomposition",),
    "evaluation.detection": ("RiskCoverage",),
    "evaluation.diagnostics.convergence": ("Convergence",),
    "evaluation.diagnostics.leave_one_out": ("LeaveOneOut", "Ranked", "Ranking"),
    "evaluation.diagnostics.predictive_checks": ("PredictiveCheck",),
    "evaluation.simulation": ("Ranks",),
    "evaluation.standard_errors.bootstrap": ("Estimate",),
    "evaluation.streaming.states": ("State",),
    "inference.confidence": ("ConfidencePosterior",),
    "inference.dropout": ("DropoutPosterior",),
    "inference.ensemble": ("EnsemblePosterior",),
    "inference.gp": ("ExactGpPosterior", "SparseGpPosterior"),
    "inference.hmc": ("HmcPosterior",),
    "inference.laplace": ("LaplacePosterior",),
    "inference.local_temperature": ("LocalTemperaturePosterior",),
    "inference.map_estimate": ("MapPosterior",),
    "inference.microcanonical": ("MicrocanonicalPosterior",),
    "inference.quantile_calibration": ("QuantileCalibratedPosterior",),
    "inference.sgmcmc": ("SgmcmcPosterior",),
    "inference.stacking": ("StackedPosterior",),
    "inference.swag": ("SwagPosterior",),
    "inference.temperature": ("TemperaturePosterior",),
    "inference.variational": ("VariationalPosterior",),
    "models.priors": ("EntrywiseNormal",),
}


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """What writes the reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_extensions"))
        return import_module("reference_pages")


@pytest.fixture(scope="module")
def documented(pages: ModuleType) -> dict[str, bool]:
    """The modules of the reference, and whether all of their names are in it."""
    return {module: not names for module, names in pages._entries()}


PUBLIC = public_modules()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_says_what_is_to_be_called_and_shows_nothing_else(name):
    module = import_module(name)
    values = {one: getattr(module, one) for one in module.__all__}
    assert list(values) == sorted(values)
    assert dir(module) == module.__all__
    assert [one for one, value in values.items() if isinstance(value, CONSTANTS) or one.startswith("_")] == []


def test_public_modules_are_all_in_the_reference(documented):
    assert len(PUBLIC) > 40
    faces = {"bayesuq", "bayesuq.bridges", "bayesuq.models", "bayesuq.inference", "bayesuq.evaluation"}
    assert set(PUBLIC) - faces - documented.keys() == set()


def test_what_the_reference_tells_in_full_says_what_is_to_be_called(documented):
    modules = {name: import_module(name) for name, whole in documented.items() if whole}
    assert [name for name, module in modules.items() if not hasattr(module, "__all__")] == []
    assert [(name, one) for name, module in modules.items() for one in module.__all__ if not hasattr(module, one)] == []


def test_a_user_meets_no_more_names_than_these():
    """Functions to call, classes to make, and the types that annotations name; each counted once."""
    values = [getattr(import_module(name), one) for name in PUBLIC for one in import_module(name).__all__]
    assert len({id(value) for value in values if not isinstance(value, ModuleType)}) <= 205


def test_types_of_results_are_no_names_to_call_and_are_told_where_they_are_returned(pages):
    results = pages.result_types()
    told = {cls for classes in results.values() for cls in classes}
    for name, left in RESULTS.items():
        module = import_module(f"bayesuq.{name}")
        assert not set(left) & set(module.__all__)
        assert {getattr(module, one) for one in left} <= told
    left_faces = [home.partition(":") for home in INTERNAL.values()]
    types = {getattr(import_module(f"bayesuq.{home}"), one) for home, _, one in left_faces if one.endswith("Posterior")}
    assert len(types) > 5
    assert types <= told
    assert [cls.__name__ for cls in results["bayesuq.evaluation.diagnostics.leave_one_out"]] == [
        *("Ranking", "LeaveOneOut", "Ranked")  # what `compare` and `loo` return, and the rows of the first
    ]


@pytest.mark.parametrize("name", sorted(INTERNAL))
def test_a_name_that_left_a_face_is_still_there_with_a_warning(name, monkeypatch):
    face, _, last = f"bayesuq.{name}".rpartition(".")
    home, _, inner = f"bayesuq.{INTERNAL[name]}".partition(":")
    package = import_module(face)
    monkeypatch.delitem(vars(package), last, raising=False)  # which an import of the module has put there
    with pytest.warns(DeprecationWarning, match=rf"{face}\.{last} is handed on no longer .* {home}") as told:
        found = getattr(package, last)
    assert told[0].filename == __file__
    assert found is (getattr(import_module(home), inner) if inner else sys.modules[home])
    if inner:
        with pytest.warns(DeprecationWarning, match=f"{last} is handed on no longer"):
            exec(f"from {face} import {last} as again", namespace := {})
        assert namespace["again"] is found


def test_a_function_that_has_become_an_option_still_works_with_a_warning():
    predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))
    with pytest.warns(DeprecationWarning, match="classwise=True"):
        found = calibration.classwise_reliability(predictive, [0, 1], num_bins=2)
    assert torch.equal(found.count, calibration.reliability(predictive, [0, 1], 2, classwise=True).count)
    with pytest.warns(DeprecationWarning, match="skip_undefined=True"):
        state = states.mean_of_defined(
            lambda predictive, y: predictive.mean[:, 0].where(torch.as_tensor(y) == 1, math.nan)
        )
    assert state.update(predictive, [0, 1]).result == 0.5
    with pytest.warns(DeprecationWarning, match="print them"):
        assert predictive_checks.table(()).startswith("statistic")


def test_importing_a_module_that_left_a_face_is_no_use_of_the_face(monkeypatch):
    package, name = import_module("bayesuq.datasets"), "bayesuq.datasets.archive"
    import_module(name)  # so that both of these are put back
    monkeypatch.delitem(vars(package), "archive")
    monkeypatch.delitem(sys.modules, name)
    found = {}
    exec("from bayesuq.datasets import archive", found)  # warnings are errors here
    assert found["archive"].__name__ == name
