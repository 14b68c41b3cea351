"""The house of DESIGN.md: who imports whom, what no module does, and faces that load nothing until they are asked."""

import gc
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import bayesuq
from bayesuq import moved
from bayesuq.data import Dataset
from bayesuq.faces import lazy
from bayesuq.inference import map_estimate
from bayesuq.inference.catalogue import METHODS
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests import import_rules as rules

SOURCES, PACKAGES = rules.read(Path(bayesuq.__file__).parent)
FACES = sorted(face for face in PACKAGES if "= lazy(__name__" in SOURCES[face])


def everywhere(rule: Callable[..., list[str]], *context: object) -> list[str]:
    """The violations of a rule in the whole package."""
    return [line for module, source in SOURCES.items() for line in rule(module, source, *context)]


def test_the_rules_see_the_whole_package() -> None:
    assert len(FACES) > 20
    assert {"bayesuq", "bayesuq.inference.laplace", "bayesuq.evaluation.plots"} < set(FACES)
    floors = {f"bayesuq.inference.{floor}" for floor in rules.FLOORS} & PACKAGES
    assert floors > PACKAGES - set(FACES)  # whose files say what is in them
    assert {
        "bayesuq.data",
        "bayesuq.models.bnn",
        "bayesuq.inference.posteriors.weights",
        "bayesuq.evaluation.plots.images",
    } <= set(SOURCES)


def test_imports_go_down_the_flow_only() -> None:
    assert everywhere(rules.wrong_directions, SOURCES, PACKAGES) == []


def test_a_method_stands_on_the_floors_below_and_on_the_methods_of_its_theory_only() -> None:
    assert everywhere(rules.floors_and_methods, SOURCES) == []


def test_the_floor_of_inference_has_no_more_rooms_and_arrows_than_these() -> None:
    """A room is a file or folder directly in inference, an arrow one that imports another: see `docs/design.md`."""
    arrows = rules.arrows(SOURCES)
    rooms = {room for arrow in arrows for room in arrow}
    assert {"joint", "gp", "map_estimate", "catalogue"} < rooms
    assert len(rooms) <= 26
    assert len(arrows) <= 65


def test_names_are_imported_from_the_file_that_defines_them() -> None:
    assert everywhere(rules.names_from_elsewhere, SOURCES, PACKAGES) == []


def test_nothing_is_imported_inside_a_function() -> None:
    assert everywhere(rules.imports_inside_functions) == []


def test_no_module_asserts_prints_or_unpickles() -> None:
    assert everywhere(rules.forbidden_statements) == []


def test_no_circle_and_no_nameless_file() -> None:
    assert rules.circle(SOURCES) == []
    assert rules.nameless_files(set(SOURCES)) == []


# A small house, in which each rule is broken in turn: a rule that cannot fail would show nothing.
HOUSE = {
    "bayesuq": "",
    "bayesuq.arrays": "import math as m\nLIMIT: int = 3\nWide = tuple\ndef check(): ...\nclass Array: ...\n",
    "bayesuq.predictive": "",
    "bayesuq.predictive.base": "from bayesuq.arrays import check",
    "bayesuq.posterior": "",
    "bayesuq.data": "",
    "bayesuq.datasets": "",
    "bayesuq.datasets.named": "",
    "bayesuq.cli": "",
    "bayesuq.cli.main": "",
    "bayesuq.cli.comparing": "",
    "bayesuq.models": "",
    "bayesuq.models.bnn": "class BayesianNetwork: ...",
    "bayesuq.models.priors": "",
    "bayesuq.inference": "",
    "bayesuq.inference.joint.layout": "",
    "bayesuq.inference.training.loop": "",
    "bayesuq.inference.posteriors.weights": "",
    "bayesuq.inference.posteriors.saved": "",
    "bayesuq.inference.chains.nuts": "",
    **{f"bayesuq.inference.{method.name}": "" for method in METHODS},
    "bayesuq.inference.laplace.fitting": "",
    "bayesuq.evaluation": "",
    "bayesuq.evaluation.scores": "",
    "bayesuq.evaluation.simulation": "",
}
HOUSE_PACKAGES = {
    *("bayesuq", "bayesuq.predictive", "bayesuq.datasets", "bayesuq.models", "bayesuq.inference"),
    *("bayesuq.evaluation", "bayesuq.cli"),
}
GUARD = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("bayesuq.predictive.base", "from bayesuq.arrays import check", True),
        ("bayesuq.predictive.base", "import bayesuq.models.bnn", False),
        ("bayesuq.data", "from bayesuq.inference.joint import layout", False),
        ("bayesuq.data", "from bayesuq.evaluation.scores import crps", False),
        ("bayesuq.models.bnn", "from bayesuq.models import priors", True),
        ("bayesuq.models.bnn", "from bayesuq.predictive.base import Predictive", True),
        ("bayesuq.models.bnn", "from bayesuq.data import Dataset", False),
        ("bayesuq.models.bnn", "from bayesuq.inference.joint import layout", False),
        ("bayesuq.models.bnn", "import bayesuq.evaluation.scores as scores", False),
        ("bayesuq.models.bnn", GUARD + "from bayesuq.inference.posteriors.weights import Layout", False),
        ("bayesuq.models.bnn", "def f():\n    from bayesuq.inference.joint import layout", False),
        ("bayesuq.inference.posteriors.weights", "from bayesuq.models.bnn import BayesianNetwork", True),
        ("bayesuq.inference.posteriors.weights", "from bayesuq.posterior import Posterior", True),
        ("bayesuq.inference.posteriors.weights", "from bayesuq.evaluation.scores import crps", False),
        ("bayesuq.inference.posteriors.weights", "from bayesuq.evaluation import scores", False),
        ("bayesuq.inference.posteriors.weights", "from bayesuq.datasets.named import load", False),
        ("bayesuq.inference.posteriors.weights", "import bayesuq", False),
        ("bayesuq.evaluation.scores", "from bayesuq.predictive.base import Predictive", True),
        ("bayesuq.evaluation.scores", "from bayesuq.models.bnn import BayesianNetwork", False),
        ("bayesuq.evaluation.scores", "from bayesuq.inference.joint import layout", False),
        ("bayesuq.evaluation.scores", "from bayesuq.posterior import Posterior", False),
        ("bayesuq.evaluation.simulation", "from bayesuq.posterior import Posterior", True),
        ("bayesuq.models", GUARD + "from bayesuq.models.bnn import BayesianNetwork", True),
        ("bayesuq.models", "from bayesuq.models.bnn import BayesianNetwork", False),
        ("bayesuq", GUARD + "from bayesuq import models", True),
        ("bayesuq", "from bayesuq import models", False),
        ("bayesuq", "from bayesuq.faces import lazy", True),
        ("bayesuq.cli.comparing", "from bayesuq.inference import hmc\nfrom bayesuq.evaluation import scores", True),
        ("bayesuq.cli.main", "import bayesuq.cli as commands", True),
        ("bayesuq.cli.main", "from bayesuq.cli import comparing", True),
        ("bayesuq.__main__", "from bayesuq.cli.main import main", True),
        ("bayesuq.cli", "from bayesuq.cli import comparing", False),
        ("scripts.compare", "from bayesuq.models import priors", True),
        ("bayesuq.data", "from bayesuq.cli import main", False),
        ("bayesuq.inference.posteriors.weights", "from bayesuq.cli.comparing import run", False),
        ("bayesuq.cli.main", "from scripts.compare import main", False),
    ],
)
def test_the_rule_of_direction_can_fail(module: str, source: str, allowed: bool) -> None:
    assert (rules.wrong_directions(module, source, HOUSE, HOUSE_PACKAGES) == []) == allowed


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("ensemble.fitting", "from bayesuq.inference import map_estimate", True),
        ("ensemble.fitting", "import bayesuq.inference.map_estimate as map_estimate", True),
        ("laplace.fitting", "from bayesuq.inference.variational.fitting import fit", False),
        ("laplace.posterior", "from bayesuq.inference.laplace.curvature import hessian", True),
        ("laplace.posterior", "from bayesuq.inference.posteriors.weights import WeightPosterior", True),
        ("ensemble.fitting", "from bayesuq.inference.map_estimate import fit", True),
        ("ensemble.together", "from bayesuq.inference import swag", False),
        ("ivon", "from bayesuq.inference.variational.fitting import fit", True),
        ("variational.fitting", "from bayesuq.inference.ivon import fit", False),
        ("microcanonical", "from bayesuq.inference.ensemble.fitting import fit", True),
        ("microcanonical", "from bayesuq.inference import map_estimate", False),
        ("gp.sampling", "from bayesuq.inference.chains import nuts", True),
        ("gp.sampling", "from bayesuq.inference import hmc", False),
        ("temperature.fitting", "from bayesuq.inference.ensemble.fitting import fit", False),
        ("swag.fitting", "from bayesuq.inference.joint import layout", True),
        ("joint.layout", "from bayesuq.inference import hmc", False),
        ("joint.layout", "from bayesuq.inference.training import loop", False),
        ("joint.layout", "from bayesuq.inference.posteriors.weights import WeightPosterior", False),
        ("training.loop", "from bayesuq.inference.joint.layout import Layout", False),
        ("training.loop", "from bayesuq.inference.training.options import Training", True),
        ("posteriors.weights", "from bayesuq.inference.joint.layout import Layout", True),
        ("posteriors.weights", "from bayesuq.inference.chains.nuts import step", False),
        ("posteriors.saved", "from bayesuq.inference.hmc import HmcPosterior", False),  # by name, when a file needs it
        ("posteriors.saved", "from bayesuq.inference.catalogue import HOMES", True),
        ("chains.nuts", "from bayesuq.inference.training.checkpoint import Checkpoint", True),
        ("chains.nuts", "from bayesuq.inference.hmc import fit", False),
        ("catalogue", "from bayesuq.inference.hmc import fit", False),
        ("catalogue", "from bayesuq.inference.joint import layout", False),
    ],
)
def test_the_rule_of_floors_and_methods_can_fail(module: str, source: str, allowed: bool) -> None:
    assert (rules.floors_and_methods(f"bayesuq.inference.{module}", source, HOUSE) == []) == allowed


def test_arrows_are_counted_between_rooms_once() -> None:
    house = {
        "bayesuq.inference.joint.layout": "",
        "bayesuq.inference.gp.exact": "from bayesuq.inference.joint.layout import Layout\nimport bayesuq.arrays",
        "bayesuq.inference.gp.sparse": "from bayesuq.inference.joint.layout import Layout",
        "bayesuq.inference.hmc": "from bayesuq.inference.gp.exact import fit\nfrom bayesuq.models import bnn",
    }
    assert rules.arrows(house) == {("gp", "joint"), ("hmc", "gp")}


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("from bayesuq.arrays import check, Array, LIMIT, Wide", True),
        ("from bayesuq.models import bnn", True),
        ("import bayesuq.models.bnn", True),
        ("from torch import Tensor", True),
        ("from bayesuq import BayesianNetwork", False),
        ("from bayesuq.models import BayesianNetwork", False),
        ("from bayesuq.predictive.base import check", False),  # which only imports it
        ("from bayesuq.arrays import m", False),
        ("from bayesuq.arrays import nothing", False),
        ("from .arrays import check", False),
        ("from bayesuq.arrays import *", False),
    ],
)
def test_the_rule_of_definitions_can_fail(source: str, allowed: bool) -> None:
    assert (rules.names_from_elsewhere("bayesuq.data", source, HOUSE, HOUSE_PACKAGES) == []) == allowed


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("import torch", True),
        ("def __getattr__(name):\n    import torch\n    return import_module(name)", True),
        ("def f():\n    import torch", False),
        ("def f():\n    def g():\n        from torch import nn", False),
        ("async def f():\n    import torch", False),
        ("class A:\n    def __getattr__(self, name):\n        import torch", False),
        ("def f():\n    if True:\n        import torch", False),
        ("def f(name):\n    return import_module(name)", False),
        ("f = importlib.import_module('torch')", False),
        ("f = __import__('torch')", False),
    ],
)
def test_the_rule_of_functions_can_fail(source: str, allowed: bool) -> None:
    assert (rules.imports_inside_functions("bayesuq.data", source) == []) == allowed


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("def _module(name):\n    return import_module(name)", True),
        ("def _module(name):\n    import torch", False),
        ("def load(name):\n    return import_module(name)", False),
        ("f = import_module('torch')", False),
    ],
)
def test_reading_posteriors_loads_modules_by_name_in_one_place(source: str, allowed: bool) -> None:
    assert (rules.imports_inside_functions("bayesuq.inference.posteriors.saved", source) == []) == allowed


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("bayesuq.data", "x = 1\n'assert x; print(x)'", True),
        ("bayesuq.data", "assert True", False),
        ("bayesuq.data", "def f():\n    assert True, 'so'", False),
        ("bayesuq.data", "print('x')", False),
        ("bayesuq.cli.main", "print('x')", True),
        ("bayesuq.data", "import pickle", False),
        ("bayesuq.data", "from dill import loads", False),
        ("bayesuq.data", "import joblib.numpy_pickle", False),
        ("bayesuq.data", "import joblib", False),
        ("bayesuq.data", "from joblib import load", False),
        ("bayesuq.data", "from joblib import Parallel, delayed", True),
        ("bayesuq.data", "torch.load(path)", False),
        ("bayesuq.data", "torch.load(path, weights_only=False)", False),
        ("bayesuq.data", "torch.load(path, weights_only=flag)", False),
        ("bayesuq.data", "torch.load(path, weights_only=True)", True),
        ("bayesuq.data", "np.load(path)", True),
        ("bayesuq.data", "np.load(path, allow_pickle=True)", False),
        ("bayesuq.data", "pyro.get_param_store().load(path)", False),
        ("bayesuq.data", "eval(text)", False),
        ("bayesuq.data", "import matplotlib.pyplot as plt", False),
        ("bayesuq.evaluation.scores", "from matplotlib import pyplot", False),
        ("bayesuq.evaluation.plots.panels", "from matplotlib import pyplot", True),
    ],
)
def test_the_rule_of_statements_can_fail(module: str, source: str, allowed: bool) -> None:
    assert (rules.forbidden_statements(module, source) == []) == allowed


def test_the_rules_of_circles_and_names_can_fail() -> None:
    house = {"a": "import b", "b": "from c import f", "c": "import torch", "d": "import a"}
    assert rules.circle(house) == []
    assert rules.circle(house | {"c": "import a"}) == ["a", "b", "c", "d"]
    assert rules.circle(house | {"c": GUARD + "import a"}) == []
    assert rules.nameless_files({"bayesuq.arrays", "bayesuq.utils", "bayesuq.helpers.x"}) == [
        "bayesuq.helpers.x",
        "bayesuq.utils",
    ]


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_resolves_and_no_other(face: str) -> None:
    package = import_module(face)
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    assert package.__all__ == sorted(package.__all__)
    with pytest.raises(AttributeError, match=f"module '{face}' has no attribute 'no_such_name'"):
        _ = package.no_such_name


@pytest.mark.parametrize("face", [face for face in FACES if face != "bayesuq"])
def test_every_module_that_a_face_names_is_the_module(face: str) -> None:
    package = import_module(face)
    for name in package.__all__:
        if f"{face}.{name}" in SOURCES:
            assert getattr(package, name) is import_module(f"{face}.{name}")


HEAVY = {"torch", "pyro", "gpytorch", "matplotlib", "matplotlib.pyplot", "arviz", "sklearn"}
HEAVY |= {"torch._dynamo"}  # torch's compiler, 1.4 CPU seconds


def loaded_by(statements: list[str], *arguments: str, on_warning: str) -> list[list[str]]:
    """What of `HEAVY` each of some statements loads, of a process that runs one after the other."""
    code = "\n".join(
        ["import sys", "from importlib import import_module", "before = set(sys.modules)"]
        + [
            f"{line}\nprint(*sorted({HEAVY!r} & set(sys.modules) - before))\nbefore = set(sys.modules)"
            for line in statements
        ]
    )
    command = [sys.executable, "-W", on_warning, "-c", code, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return [line.split() for line in finished.stdout.splitlines()]


def test_importing_a_face_loads_neither_torch_nor_pyro_nor_matplotlib() -> None:
    found = loaded_by([f"import {face}" for face in FACES], on_warning="error")
    assert dict(zip(FACES, found, strict=True)) == {face: [] for face in FACES}


FITS = """
import torch, warnings
warnings.simplefilter("ignore")
data = bq.Dataset(torch.randn(20, 3), torch.arange(20) % 3)
net = bq.models.networks.mlp(3, (4,), 3, seed=0)
model = bq.models.BayesianNetwork(net, bq.models.priors.Normal(), bq.models.likelihoods.Categorical())
options = {"num_epochs": 2, "batch_size": 10, "seed": 0, "progress": False}
fitted = [getattr(bq.inference, name).fit(model, data, **options) for name in ("map_estimate", "ivon", "swag")]
fitted += [bq.inference.laplace.fit(fitted[0], data, prior_factors="each")]
fitted += [bq.inference.temperature.fit(fitted[0], data, **kind) for kind in ({"vector": True}, {"matrix": True})]
fitted += [bq.inference.local_temperature.fit(fitted[0], data, num_epochs=1, seed=0)]
[posterior.predict(data.x, num_samples=2) for posterior in fitted]
"""  # by every kind of step and search


@pytest.mark.slow
def test_what_is_heavy_is_loaded_by_those_that_need_it(tmp_path: Path) -> None:
    """Plotting by plots, without pyplot's global state; GPyTorch by Gaussian processes; torch's compiler by no fit."""
    net = networks.mlp(2, (3,), 1)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(0.1))
    map_estimate.fit(model, Dataset(torch.zeros(4, 2), torch.zeros(4, 1)), num_epochs=1, seed=0).save(tmp_path / "map")
    ours = loaded_by(
        [
            "import bayesuq as bq",
            "bq.load(sys.argv[1]).predict([[0.0, 0.0]])",
            "bq.models.BayesianNetwork, bq.evaluation.report.evaluate, bq.conformal",
            "[getattr(bq.inference, name) for name in bq.inference.__all__ if name != 'gp']",
            "bq.evaluation.plots.loss_curves({'a': [1.0, 0.5]}).savefig('/dev/null', format='png')",
            "from bayesuq.cli import comparing, diagnosing, evaluating, fitting, methods, settings",
            "[methods.Method.of(name) for name in settings.METHODS]",
            FITS,
            "bq.inference.gp.fit",
        ],
        str(tmp_path / "map"),
        on_warning="default",  # GPyTorch warns of itself
    )
    *inference, drawing, _, _, _, _ = map(set, ours)
    assert not {"matplotlib", "arviz"} & set.union(*inference)
    assert all("sklearn" not in names for names in inference[:3])  # one network is loaded, and predicts, without it
    assert "matplotlib" in drawing
    assert "matplotlib.pyplot" not in drawing
    assert all("torch._dynamo" not in names for names in ours)
    assert ["gpytorch" in names for names in ours] == [False] * (len(ours) - 1) + [True]


def documented_names() -> list[str]:
    """Every name that the README and the pages write as `bq.name`, sorted."""
    root = Path(__file__).parents[1]
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    written = re.compile(r"\bbq((?:\.[A-Za-z_]\w*)+)")
    found = {match.group(1)[1:] for page in pages for match in written.finditer(page.read_text())}
    return sorted(found)


def test_every_name_that_the_pages_shorten_is_handed_on_by_its_face() -> None:
    """`inference.gp` stands for `bayesuq.inference.gp`: what no face hands on is there by the luck of other imports."""
    root = Path(__file__).parents[1]
    written = re.compile(r"`((?:evaluation|inference|models)(?:\.[A-Za-z_]\w*)+)")
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    names = {match.group(1) for page in pages for match in written.finditer(page.read_text())}
    assert len(names) > 10
    missing = []
    for name in sorted(names):
        module: Any = bayesuq
        for part in name.split("."):
            if isinstance(module, ModuleType) and part not in module.__all__:
                missing.append(name)
                break
            module = getattr(module, part)
    assert missing == []


BELOW = ("gpytorch", "matplotlib.figure", "pooch", "pyro", "scipy.stats", "sklearn.cluster", "sklearn.model_selection")


def failures_of(names: list[str], compiled: Path) -> str:
    """What goes wrong where each face is asked for its names in a process that has imported nothing of bayesuq.

    Each is a copy of this one that forgets bayesuq and keeps what it stands on; bayesuq's files are compiled once. A
    name that goes on in another one is asked for on the way to that. A module has a process of its own, because an
    import of something else would put it into its face; a class or a function is there by its face alone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPyTorch warns of itself
        for module in BELOW:
            import_module(module)
    said = compiled / "said"
    said.touch()
    ends = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    for together in by_process(ends):
        child = os.fork()
        if child == 0:
            try:
                gc.disable()
                warnings.simplefilter("ignore")
                if sys.dont_write_bytecode:
                    sys.pycache_prefix, sys.dont_write_bytecode = str(compiled), False
                for module in [one for one in sys.modules if one.partition(".")[0] == "bayesuq"]:
                    del sys.modules[module]
                for name in together:
                    reduce(getattr, name.split("."), import_module("bayesuq"))
            except BaseException as error:
                with said.open("a") as file:
                    file.write(f"{name}: {error!r}\n")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    return said.read_text()


def by_process(names: list[str]) -> list[list[str]]:
    """Names of one face together, as far as they are no modules."""
    found: dict[str, list[str]] = {}
    for name in names:
        value = reduce(lambda at, part: getattr(at, part, None), name.split("."), bayesuq)
        alone = value is None or isinstance(value, ModuleType)
        found.setdefault(name if alone else name.rpartition(".")[0], []).append(name)
    return list(found.values())


def test_every_name_that_the_pages_write_is_there_whatever_its_own_process_used_first(tmp_path: Path) -> None:
    names = documented_names()
    assert len(names) > 20
    assert "no attribute 'no_such_name'" in failures_of(["inference.no_such_name"], tmp_path)
    (tmp_path / "said").unlink()
    assert failures_of(names, tmp_path) == ""


@pytest.mark.parametrize("old", sorted(moved.HOMES))
def test_a_module_that_has_moved_is_found_under_its_old_name(old: str) -> None:
    """And what it defined is found in it."""
    with pytest.warns(DeprecationWarning, match=rf"bayesuq\.{old} has moved to bayesuq"):
        module = import_module(f"bayesuq.{old}")
    del sys.modules[f"bayesuq.{old}"]
    for home in moved.HOMES[old].split():
        names = {name for name in rules.defined(SOURCES[f"bayesuq.{home}"]) if not name.startswith("__")}
        for name in names:
            assert getattr(module, name) is getattr(import_module(f"bayesuq.{home}"), name)


def test_a_face_without_its_source_says_so() -> None:
    with pytest.raises(ImportError, match="with its source"):
        lazy("builtins")
