"""A trained network of the user's own, named on the command line, in comparisons, fits and evaluations."""

import copy
import functools
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file, save_model
from torch import nn

import bayesuq as bq
from bayesuq.cli import methods
from bayesuq.cli.main import main
from bayesuq.cli.methods import FitOptions
from bayesuq.cli.problem import Problem
from bayesuq.cli.settings import ChainOptions, ModelOptions, PredictionOptions, TrainingOptions
from bayesuq.evaluation import scores
from bayesuq.randomness import isolated
from tests.cli.rendering import not_rendered

__all__ = ["not_rendered"]  # a fixture
pytestmark = pytest.mark.usefixtures("not_rendered")

SOURCE = """
import torch
from torch import nn

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.fc = nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 9)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.body(x))))

def build():
    return Classifier()

def line():
    return nn.Sequential(nn.Linear(1, 1))

def nothing():
    return 3
"""
SHORT = ["--num_epochs", "2", "--num_members", "2", "--num_samples", "5", "--num_warmup", "20", "--num_draws", "5"]
METHODS = "map,ensemble:dropout"


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the folder where the command is called."""
    (tmp_path / "ownmodels.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "ownmodels", raising=False)
    return "ownmodels"


def trained(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A classifier that is trained, and the file of its weights."""
    net = copy.deepcopy(trained_once())
    path = tmp_path / "weights.safetensors"
    save_model(net, str(path))
    return net, path


@functools.cache
def trained_once() -> nn.Module:
    namespace: dict[str, object] = {}
    exec(SOURCE, namespace)  # the same class, without importing the module
    split = bq.datasets.load("digits-0to8")
    with isolated(0):
        net = namespace["build"]()  # type: ignore[operator]
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(split.train.x), split.train.y).backward()
            optimiser.step()
    return net


def call(command: str, out: Path, *arguments: str, network: str = "ownmodels:build", data: str = "digits-0to8") -> int:
    return main([command, "--data", data, "--out", str(out), *(["--network", network] if network else []), *arguments])


def values(path: Path) -> dict[str, float]:
    return {measure["name"]: measure["value"] for measure in json.loads(path.read_text())["measures"]}


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_a_trained_network_is_compared_as_it_is_and_evaluated_from_its_files(tmp_path: Path) -> None:
    net, weights = trained(tmp_path)
    out = tmp_path / "run"
    assert call("compare", out, "--weights", str(weights), "--methods", METHODS, *SHORT) == 0

    split = bq.datasets.load("digits-0to8")
    with torch.no_grad():
        logits = net.eval()(split.test.x)
    loss = float(nn.functional.cross_entropy(logits.double(), split.test.y))
    accuracy = float((logits.argmax(dim=1) == split.test.y).double().mean())
    found = values(out / "reports" / "map.json")
    assert found["negative_log_likelihood"] == pytest.approx(loss, rel=1e-6)
    assert found["accuracy"] == accuracy > 0.9
    assert sorted(path.stem for path in (out / "reports").iterdir()) == sorted(METHODS.replace(":", "-").split(","))
    assert "The network as it was trained" in (out / "report.html").read_text()

    file = str(out / "posteriors" / "ensemble-dropout.safetensors")
    assert call("evaluate", tmp_path / "again", "--posterior", file, "--num_samples", "5") == 0
    assert values(tmp_path / "again" / "report.json") == values(out / "reports" / "ensemble-dropout.json")


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
@pytest.mark.parametrize(
    "name", ["map", "laplace", "dropout", "variational", "ivon", "swag", "sgmcmc", "microcanonical"]
)
def test_the_body_stays_as_it_was_trained(tmp_path: Path, name: str) -> None:
    net, weights = trained(tmp_path)
    split = bq.datasets.load("digits-0to8")
    problem = Problem.of("digits-0to8", split, ModelOptions(network="ownmodels:build", weights=weights))
    training, chains = TrainingOptions(num_epochs=1, num_members=2), ChainOptions(num_warmup=4, num_draws=4)
    options = FitOptions(training, chains, PredictionOptions())
    posterior = methods.fit(methods.Method.of(name), problem, options, {}).posterior
    state, own = net.state_dict(), posterior.model.net.state_dict()
    assert all(torch.equal(state[key], own[key]) for key in state)
    if name == "dropout":  # which has no layer for it, so that one is put in front of the last
        assert float(posterior.predict(split.test.x, num_samples=5, seed=0).epistemic.mean()) > 1e-3
    else:
        assert set(posterior.sample_weights(1)) == {"fc.weight", "fc.bias"}


def test_real_targets_are_in_raw_units_with_the_noise_of_the_validation_rows(tmp_path: Path) -> None:
    # toy/linear is y = 1 + 2 x + N(0, 0.5^2), 100 training rows: the network is the truth itself.
    save_file({"0.weight": torch.tensor([[2.0]]), "0.bias": torch.tensor([1.0])}, str(tmp_path / "line.safetensors"))
    arguments = ["--weights", str(tmp_path / "line.safetensors"), "--methods", "map,laplace", "--centred"]
    assert call("compare", tmp_path / "run", *arguments, network="ownmodels:line", data="toy/linear") == 0
    split = bq.datasets.load("toy/linear")
    noise = float((split.val.y - 1 - 2 * split.val.x).square().mean().sqrt())
    predictive = bq.GaussianPredictive(
        mean=(1 + 2 * split.test.x).unsqueeze(0), noise_variance=torch.full((1, len(split.test), 1), noise**2)
    )
    found = values(tmp_path / "run" / "reports" / "map.json")
    expected = float(scores.negative_log_likelihood(predictive, split.test.y))
    assert found["negative_log_likelihood"] == pytest.approx(expected, rel=1e-5)
    assert found["root_mean_squared_error"] == pytest.approx(0.5, abs=0.05)
    file = str(tmp_path / "run" / "posteriors" / "laplace.safetensors")
    arguments = ["--posterior", file, "--num_samples", "100"]
    assert call("evaluate", tmp_path / "again", *arguments, network="ownmodels:line", data="toy/linear") == 0
    assert values(tmp_path / "again" / "report.json") == values(tmp_path / "run" / "reports" / "laplace.json")


def test_a_file_names_no_network_that_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "danger.py").write_text("raise SystemExit('imported')")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"network": "danger:build", "weights": "weights.safetensors"}))
    arguments = ["--config", str(tmp_path / "run.yaml"), "--method", "map"]
    assert call("fit", tmp_path / "fit", *arguments, network="") == 2
    assert "stands in a file of options" in capsys.readouterr().err
    assert "danger" not in sys.modules

    _, weights = trained(tmp_path)
    assert call("fit", tmp_path / "own", "--method", "map", "--weights", str(weights)) == 0
    settings = str(tmp_path / "own" / "settings.yaml")
    assert main(["fit", "--config", settings, "--out", str(tmp_path / "again")]) == 2
    assert main(["fit", "--config", settings, "--network=ownmodels:build", "--out", str(tmp_path / "again")]) == 0
    file = str(tmp_path / "own" / "posterior.safetensors")
    assert call("evaluate", tmp_path / "evaluated", "--posterior", file, network="") == 2
    assert "--network ownmodels:build" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("nomodels:build", "There is no module 'nomodels'"),
        ("ownmodels:bild", "did you mean 'build'"),
        ("ownmodels:nothing", "must return a torch.nn.Module; it returned int"),
        ("ownmodels:line", "It lacks 0.weight, 0.bias. The network has no "),
    ],
)
def test_wrong_networks_are_told_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], network: str, message: str
) -> None:
    _, weights = trained(tmp_path)
    assert call("fit", tmp_path / "fit", "--method", "map", "--weights", str(weights), network=network) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "fc.weight": torch.ones(8, 12)}, "fc.weight has shape (9, 12) in the network and (8,"),
        (lambda state: {**state, "fc.bias": torch.ones(9, dtype=torch.float64)}, "fc.bias is torch.float32 in the net"),
        (lambda state: {f"module.{name}": value for name, value in state.items()}, "have no 'module.'"),
        (lambda state: {k: v for k, v in state.items() if k != "norm.running_var"}, "It lacks norm.running_var"),
    ],
)
def test_wrong_weights_are_told_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object, message: str
) -> None:
    net, _ = trained(tmp_path)
    save_file(change(net.state_dict()), str(tmp_path / "other.safetensors"))  # type: ignore[operator]
    arguments = ["--method", "map", "--weights", str(tmp_path / "other.safetensors")]
    assert call("fit", tmp_path / "fit", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "network", "data", "message"),
    [
        (["--method", "map"], "ownmodels:build", "digits-0to8", "--weights FILE.safetensors"),
        (["--method", "map", "--random", "all"], "mlp", "digits-0to8", "--network package.module:function"),
        (["--method", "gp"], "ownmodels:build", "digits-0to8", "leave out gp"),
        (["--method", "map"], "ownmodels:build", "toy/linear", "does not go with toy/linear"),
        (["--method", "map"], "ownmodels:build", "digits", "need 10 columns"),
    ],
)
def test_what_does_not_go_together_is_refused_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], network: str, data: str, message: str
) -> None:
    _, weights = trained(tmp_path)
    given = arguments if "--weights" in message else [*arguments, "--weights", str(weights)]
    assert call("fit", tmp_path / "fit", *given, network=network, data=data) == 2
    assert message in capsys.readouterr().err


def test_a_pickle_is_no_file_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, _ = trained(tmp_path)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    assert call("fit", tmp_path / "fit", "--method", "map", "--weights", str(tmp_path / "weights.pt")) == 2
    assert "is no safetensors file" in capsys.readouterr().err
