"""Saved posteriors: what comes back, what must agree, and what no file can make `load` do."""

import copy
import dataclasses
import json
import math
import pkgutil
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import bayesuq
from bayesuq import inference
from bayesuq.data import Dataset
from bayesuq.inference import (
    dropout,
    ensemble,
    map_estimate,
    variational,
)
from bayesuq.inference.gp.foreign import GpytorchPosterior
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.posteriors.chains import ChainPosterior
from bayesuq.inference.posteriors.network import StoredPosterior
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.posteriors.saved import CLASSES, HOMES, load
from bayesuq.inference.training.history import History
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, built, labelled, measured, noise
from tests.posterior_contract import assert_same_draws, tensors_of

OPTIONS = {"num_epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "seed": 0}
X = noise(4, 9, 3).float()
SHORT = pytest.mark.filterwarnings(*SHORT_FIT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "posterior.safetensors"


def mlp_model(prior=None, likelihood=None, num_outputs: int = 1, random="all", dtype=torch.float32, **options):
    net = built(lambda: networks.mlp(3, (6,), num_outputs, **options)).to(dtype)
    likelihood = likelihoods.Normal(scale=0.2) if likelihood is None else likelihood
    return BayesianNetwork(net, priors.Normal() if prior is None else prior, likelihood, random=random)


class Own(nn.Module):
    """A network of the user's own, with a buffer that makes a difference."""

    def __init__(self, width: int = 4, offset: float = 1.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 1)
        self.register_buffer("offset", torch.full((1,), offset))

    def forward(self, x):
        return self.last(self.first(x).tanh()) + self.offset


def own_model(width: int = 4, *, seed: int = 0, offset: float = 1.0, **options: Any) -> BayesianNetwork:
    options = {"likelihood": likelihoods.Normal(scale=0.2)} | options
    return BayesianNetwork(built(lambda: Own(width, offset), seed), priors.Normal(), **options)


@pytest.fixture
def own_file(path: Path) -> Path:
    with pytest.warns(UserWarning, match="Own was not built by bayesuq"):
        map_estimate.fit(own_model(), measured(), **OPTIONS).save(path)
    return path


# What comes back


MODELS = {
    "last layer": partial(mlp_model, random="last_layer"),
    "pattern": partial(mlp_model, random="*.weight"),
    "layer type": partial(mlp_model, random=nn.Linear),
    "learned noise": partial(mlp_model, likelihood=likelihoods.Normal(scale="learned", initial_scale=0.3)),
    "inferred noise": partial(mlp_model, likelihood=likelihoods.Normal(scale=priors.Gamma(3.0, 2.0))),
    "heteroscedastic": partial(mlp_model, likelihood=likelihoods.HeteroscedasticNormal(0.1), num_outputs=2),
    "prior by rule": partial(mlp_model, {"*.bias": priors.StudentT(), nn.Linear: priors.FanIn(priors.Laplace())}),
    "mixture prior": partial(mlp_model, priors.ScaleMixture()),
    "float64": partial(mlp_model, dtype=torch.float64),
    "batch norm": partial(mlp_model, batch_norm=True, activation="silu"),
}


@SHORT
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("fit", [map_estimate.fit, variational.fit], ids=lambda fit: fit.__module__[18:])
def test_models_of_bayesuqs_own_parts_are_rebuilt_from_the_file_alone(kind, fit, path):
    posterior = fit(MODELS[kind](), measured(), **OPTIONS)
    posterior.save(path)
    loaded = load(path)
    assert loaded.model.dtype == posterior.model.dtype
    assert list(loaded.model.laws) == list(posterior.model.laws)
    assert list(loaded.model.points) == list(posterior.model.points)
    theta = posterior.model.initial()
    torch.testing.assert_close(loaded.model.log_prior(theta), posterior.model.log_prior(theta), rtol=0, atol=0)
    assert_same_draws(loaded.predict(X, num_samples=4, seed=0), posterior.predict(X, num_samples=4, seed=0))


@pytest.mark.parametrize(
    "likelihood",
    [likelihoods.Categorical(class_weights=(1.0, 2.0, 3.0), ignore_index=2), likelihoods.Bernoulli((1.0, 2.0))],
    ids=str,
)
def test_likelihoods_of_labels_come_back_with_their_weights(likelihood, path):
    data = labelled() if isinstance(likelihood, likelihoods.Categorical) else Dataset(labelled().x, labelled().y > 0)
    model = mlp_model(likelihood=likelihood, num_outputs=3 if isinstance(likelihood, likelihoods.Categorical) else 1)
    map_estimate.fit(model, data, **OPTIONS).save(path)
    assert load(path).model.likelihood == likelihood


@SHORT
def test_the_history_of_every_member_comes_back(path):
    posterior = ensemble.fit(mlp_model(), measured(), num_members=12, validation=measured(seed=9), **OPTIONS)
    posterior.save(path)
    loaded = load(path)
    assert [member.history for member in loaded.members] == [member.history for member in posterior.members]
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(loaded), tensors_of(posterior), strict=True))


@SHORT
def test_members_of_several_kinds_come_back(path):
    model = mlp_model(dropout=0.2)
    members = [fit(model, measured(), **OPTIONS) for fit in (map_estimate.fit, variational.fit, dropout.fit)]
    posterior = ensemble.EnsemblePosterior.of(members)
    posterior.save(path)
    loaded = load(path)
    assert [type(member) for member in loaded.members] == [type(member) for member in members]
    assert_same_draws(loaded.predict(X, num_samples=7, seed=0), posterior.predict(X, num_samples=7, seed=0))


@pytest.mark.parametrize("form", [Path, str])
def test_the_path_is_a_string_or_a_path(path, form):
    posterior = map_estimate.fit(mlp_model(), measured(), **OPTIONS)
    posterior.save(form(path))
    assert_same_draws(bayesuq.load(form(path)).predict(X), posterior.predict(X))


def test_a_newer_posterior_replaces_an_older_one_in_its_file(path):
    one, other = (map_estimate.fit(mlp_model(), measured(seed=seed), **OPTIONS) for seed in (0, 9))
    one.save(path)
    loaded = load(path)
    other.save(path)
    assert_same_draws(load(path).predict(X), other.predict(X))
    assert_same_draws(loaded.predict(X), one.predict(X))
    loaded.save(path)
    assert_same_draws(load(path).predict(X), one.predict(X))


def test_saving_and_loading_leave_the_global_generator(path):
    posterior = ensemble.fit(mlp_model(), measured(), num_members=2, **OPTIONS)
    before = torch.get_rng_state()
    posterior.save(path)
    load(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_that_is_missing_is_an_oserror(path):
    posterior = map_estimate.fit(mlp_model(), measured(), **OPTIONS)
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*missing"):
        posterior.save(path.parent / "missing" / "posterior")


# A model of the user's own


def test_own_networks_take_the_files_weights_and_buffers(own_file):
    passed = own_model(seed=5, offset=-3.0)
    loaded = load(own_file, model=passed)
    with safe_open(own_file, framework="pt") as file:
        assert torch.equal(loaded.model.net.offset, file.get_tensor("model.offset"))
        assert torch.equal(loaded.buffers["offset"], file.get_tensor("buffers.offset"))
    assert float(passed.net.offset) == -3.0


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: own_model(width=5), r"3 tensors differ, the first is 'first.bias': expected \(\(5,\)"),
        (lambda: BayesianNetwork(nn.Linear(3, 1), priors.Normal(), likelihoods.Normal(0.2)), "tensors differ"),
        (lambda: BayesianNetwork(Own().double(), priors.Normal(), likelihoods.Normal(0.2)), "torch.float64"),
        (lambda: own_model(random="last_layer"), "which sites are random or learned differs"),
        (lambda: own_model(likelihood=likelihoods.Normal(scale="learned")), "which sites are random or learned"),
        (lambda: own_model(likelihood=likelihoods.Normal(scale=priors.HalfNormal())), "which sites are random"),
    ],
    ids=["width", "names", "dtype", "random", "learned noise", "inferred noise"],
)
def test_another_model_than_the_files_is_refused(own_file, model, says):
    with pytest.raises(ValueError, match=says):
        load(own_file, model=model())


@dataclasses.dataclass(frozen=True)
class Wide(likelihoods.Normal):
    """A likelihood of the user's own, with a number of its own."""

    factor: float = 2.0


OTHER_LAWS = {
    "family": (
        likelihoods.Normal(0.2),
        likelihoods.StudentT(scale=0.2),
        "its likelihood is StudentT, the file's is Normal",
    ),
    "scale": (likelihoods.Normal(0.2), likelihoods.Normal(0.3), r"its likelihood\.scale is 0\.3, the file's is 0\.2"),
    "own class": (Wide(0.2), likelihoods.Normal(0.2), "its likelihood is Normal, the file's is Wide"),
    "own number": (Wide(0.2), Wide(0.2, factor=3.0), r"its likelihood\.factor is 3\.0, the file's is 2\.0"),
    "outputs": (
        likelihoods.Normal([0.2, 0.3]),
        likelihoods.HeteroscedasticNormal(),
        "is HeteroscedasticNormal, .* is Normal",
    ),
    "prior": (priors.Normal(), priors.FanIn(priors.Normal()), "its prior is FanIn, the file's is Normal"),
    "rules": ({"*": priors.Laplace()}, {"*": priors.StudentT()}, r"its prior\[0\]\[1\] is StudentT, .* is Laplace"),
}


@pytest.mark.parametrize("net", ["own", "bayesuq"])
@pytest.mark.parametrize("case", OTHER_LAWS)
def test_a_model_of_other_laws_than_the_files_is_refused(case, net, path):
    fitted, passed, says = OTHER_LAWS[case]

    def model(law):
        laws = {"prior": priors.Normal(), "likelihood": likelihoods.Normal(0.2)}
        laws["likelihood" if isinstance(law, likelihoods.Likelihood) else "prior"] = law
        outputs = 2 if case == "outputs" else 1
        made = networks.mlp(3, (4,), outputs) if net == "bayesuq" else nn.Sequential(nn.Linear(3, outputs))
        return BayesianNetwork(made, **laws)

    posterior = MapPosterior(
        model=(fit := model(fitted)),
        values=Layout.of(fit).join(fit.initial()),
        buffers={},
        history=History((), (), 0),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        posterior.save(path)
    with pytest.raises(ValueError, match=says):
        load(path, model=model(passed))
    assert_same_draws(load(path, model=model(fitted)).predict(X), posterior.predict(X))


class Scaled(nn.Module):
    """A network of the user's own, with constants that no state dict has."""

    def __init__(self, factor: float = 1.0, activation: Any = torch.tanh, unused: Any = None) -> None:
        super().__init__()
        self.line, self.factor, self.activation, self.unused = nn.Linear(3, 1), factor, activation, unused
        self.unseen = math.nan  # no file has to hold it

    def forward(self, x):
        return self.activation(self.line(x)) * self.factor


def sequential(*layers: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 1), *layers)


def normed(layer: nn.Linear) -> nn.Sequential:
    """Whose weight is an attribute that each call sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(layer))


class Renamed(Scaled):
    """The same under another name."""


OTHER_LAYERS = {
    "activation": (sequential(nn.ReLU()), sequential(nn.Tanh()), "its layer '1' is Tanh, the file's is ReLU"),
    "option": (sequential(nn.LeakyReLU(0.1)), sequential(nn.LeakyReLU(0.2)), "negative_slope = 0.2, the file's 0.1"),
    "of bayesuq": (networks.mlp(3, (4,), 1), networks.mlp(3, (4,), 1, activation="tanh"), "'2' is Tanh, .* is ReLU"),
    "stride": (
        nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 1, 1), nn.Flatten(), nn.Linear(3, 1)),
        nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 1, 1, padding=1), nn.Flatten(), nn.Linear(3, 1)),
        r"its layer '1' has padding = \[1\], the file's \[0\]",
    ),
}


def scaled_by(factor: float) -> Any:
    return lambda f: f * factor


ALTERED_LAYERS = {
    "lambda": (
        Scaled(activation=lambda f: f.clamp(min=0.0)),
        Scaled(activation=lambda f: f.clamp(max=0.0)),
        r"activation \(code in Python 3\.\d+\) = '\w{8}', the file's '\w{8}'",
    ),
    "constant of a lambda": (Scaled(activation=lambda f: f * 2.0), Scaled(activation=lambda f: f * 3.0), "code"),
    "what a lambda closes over": (Scaled(activation=scaled_by(2.0)), Scaled(activation=scaled_by(3.0)), "code"),
    "list of lambdas": (Scaled(unused=[lambda f: f]), Scaled(unused=[lambda f: -f]), "code"),
    "list of tensors": (
        Scaled(unused=[torch.ones(2), torch.tensor(1.0)]),
        Scaled(unused=[torch.ones(2), torch.tensor(2.0)]),
        r"unused = \[\[1.0, 1.0\], 2.0\], the file's \[\[1.0, 1.0\], 1.0\]",
    ),
    "tensor": (Scaled(unused=torch.tensor(1.0)), Scaled(unused=torch.tensor(2.0)), "unused = 2.0, the file's 1.0"),
    "array": (Scaled(unused=np.ones(2)), Scaled(unused=np.zeros(2)), "unused = "),
    "constant": (Scaled(), Scaled(2.0), "the network has factor = 2.0, the file's 1.0"),
    "function": (Scaled(), Scaled(activation=torch.relu), "activation = 'function relu', the file's 'function tanh'"),
    "added": (sequential(), sequential(nn.Tanh()), "only one of the two has a layer at '1'"),
}
SAME_LAYERS = {
    "lambda": (Scaled(activation=scaled_by(2.0)), Scaled(activation=scaled_by(2.0))),
    "tensors": (Scaled(unused=[torch.ones(65)]), Scaled(unused=[torch.zeros(65)])),  # too many to hold
    "weight norm of old": (normed(nn.Linear(3, 1)), normed(nn.Linear(3, 1))),
    "name": (Scaled(), Renamed()),
    "in place": (sequential(nn.ReLU()), sequential(nn.ReLU(inplace=True))),
    "mode": (sequential(nn.Dropout(0.1)).eval(), sequential(nn.Dropout(0.1)).train()),
}


def loaded_with(fitted: nn.Module, passed: nn.Module, path: Path) -> Any:
    """What is loaded of a posterior of one network where another with the same tensors is passed."""
    laws = (priors.Normal(), likelihoods.Normal(0.2))
    model = BayesianNetwork(fitted, *laws)
    values = Layout.of(model).join(model.initial())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        MapPosterior(model=model, values=values, buffers={}, history=History((), (), 0)).save(path)
    return load(path, model=BayesianNetwork(passed, *laws))


@pytest.mark.parametrize("case", OTHER_LAYERS)
def test_a_model_whose_layers_compute_something_else_is_refused(case, path):
    with pytest.raises(ValueError, match=OTHER_LAYERS[case][2]):
        loaded_with(*OTHER_LAYERS[case][:2], path)


@pytest.mark.parametrize("case", ALTERED_LAYERS)
def test_constants_of_own_layers_that_differ_are_told(case, path):
    with pytest.warns(UserWarning, match=ALTERED_LAYERS[case][2]):
        loaded_with(*ALTERED_LAYERS[case][:2], path)


@pytest.mark.parametrize("case", SAME_LAYERS)
def test_what_changes_no_prediction_is_no_difference(case, path):
    loaded_with(*SAME_LAYERS[case], path)


@pytest.mark.parametrize("model", [Own(), "model", 3], ids=["program", "text", "number"])
def test_a_model_of_another_type_is_refused(own_file, model):
    with pytest.raises(TypeError, match=r"`model` must be a .*BayesianNetwork.*; got"):
        load(own_file, model=model)


def test_frozen_parameters_must_be_frozen_again(path):
    model = own_model()
    model.net.first.requires_grad_(False)
    frozen = BayesianNetwork(model.net, model.prior, model.likelihood)
    with pytest.warns(UserWarning, match="not built by bayesuq"):
        map_estimate.fit(frozen, measured(), **OPTIONS).save(path)
    with pytest.raises(ValueError, match="which sites are random"):
        load(path, model=own_model())
    assert_same_draws(load(path, model=frozen).predict(X), map_estimate.fit(frozen, measured(), **OPTIONS).predict(X))


@pytest.mark.parametrize(
    "change",
    [lambda net: net.append(nn.ELU()), lambda net: net.__setitem__(2, nn.Tanh())],
    ids=["appended", "replaced"],
)
def test_a_network_changed_after_it_was_built_is_the_users_own(change, path):
    model = mlp_model()
    net = copy.deepcopy(model.net)
    change(net)
    changed = BayesianNetwork(net, model.prior, model.likelihood)
    posterior = map_estimate.fit(changed, measured(), **OPTIONS)
    with pytest.warns(UserWarning, match="pass the same model"):
        posterior.save(path)
    with pytest.raises(ValueError, match=r"load\(path, model=model\)"):
        load(path)
    assert_same_draws(load(path, model=changed).predict(X), posterior.predict(X))


def test_rules_and_priors_of_the_users_own_make_the_model_the_users(path):
    model = mlp_model(random=lambda name, _parameter: name.startswith("3"))
    posterior = map_estimate.fit(model, measured(), **OPTIONS)
    with pytest.warns(UserWarning, match="the rule .* is neither"):
        posterior.save(path)
    assert_same_draws(load(path, model=model).predict(X), posterior.predict(X))


# Files that are not trusted


def rewritten(path: Path, change) -> None:
    """The file with its header changed and without its checksum, and all else as it was."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["bayesuq"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    del header["sha256"]
    change(header, tensors)
    save_file(tensors, path, metadata={"bayesuq": json.dumps(header)})


def set_at(*keys: Any, value: Any):
    def change(header: dict, _tensors: dict) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


def drop(*keys: Any):
    def change(header: dict, _tensors: dict) -> None:
        for key in keys[:-1]:
            header = header[key]
        del header[keys[-1]]

    return change


def drop_tensor(name: str):
    return lambda _header, tensors: tensors.pop(name)


CHANGES = {
    "newer format": (set_at("format", value=2), "format 2; this version of bayesuq reads 1"),
    "no format": (drop("format"), "format None"),
    "unknown class": (set_at("posterior", "class", value="OwnPosterior"), "does not have"),
    "class by its path": (set_at("posterior", "class", value="os.system"), "does not have"),
    "class that is a list": (set_at("posterior", "class", value=["MapPosterior"]), "not written by"),
    "class of another method": (set_at("posterior", "class", value="VariationalPosterior"), "fields"),
    "unknown builder": (set_at("model", "net", "builder", value="os.system"), "cannot build"),
    "unknown prior": (set_at("model", "prior", "part", value="os.system"), "cannot build"),
    "prior in the place of a likelihood": (
        set_at("model", "likelihood", "part", value="priors.Normal"),
        "cannot build",
    ),
    "unknown option": (set_at("model", "net", "arguments", "command", value="true"), "cannot build"),
    "value out of range": (set_at("model", "net", "arguments", "in_features", value=0), "at least 1"),
    "unknown dtype": (set_at("model", "dtype", value="float8"), "cannot build"),
    "unknown layer type": (set_at("model", "random", value={"layer": "Module"}), "cannot build"),
    "another width": (set_at("model", "net", "arguments", "hidden", value=[7]), "tensors differ"),
    "another rule": (set_at("model", "random", value={"name": "last_layer"}), "sites are random or learned"),
    "another site": (set_at("sites", 0, 1, value="other"), "sites are random or learned"),
    "missing field": (drop("posterior", "fields", "history"), "fields"),
    "unknown kind of field": (set_at("posterior", "fields", "values", value={"kind": "pickle"}), "not written by"),
    "missing tensor": (drop_tensor("values"), "not written by"),
    "missing weight": (drop_tensor("model.1.bias"), "tensors differ"),
    "no posterior": (drop("posterior"), "not written by"),
    "no model entry": (drop("model"), "not written by"),
    "posterior that is a list": (set_at("posterior", value=[]), "not written by"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_file_that_was_tampered_with_is_refused(kind, path):
    change, says = CHANGES[kind]
    map_estimate.fit(mlp_model(), measured(), **OPTIONS).save(path)
    rewritten(path, change)
    with pytest.raises(ValueError, match=says):
        load(path)


def test_names_in_a_file_are_never_imported_or_called(path, tmp_path, monkeypatch):
    planted = tmp_path / "planted"
    (tmp_path / "trap.py").write_text(f"open({str(planted)!r}, 'w')\ndef build(**_): open({str(planted)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    map_estimate.fit(mlp_model(), measured(), **OPTIONS).save(path)
    for keys in (("posterior", "class"), ("model", "net", "builder"), ("model", "prior", "part")):
        for name in ("trap", "trap.build", "trap:build"):
            copied = path.with_name("copy")
            copied.write_bytes(path.read_bytes())
            rewritten(copied, set_at(*keys, value=name))
            with pytest.raises(ValueError, match=r"does not have|cannot build"):
                load(copied)
    assert not planted.exists()


def test_files_hold_no_code(path):
    ensemble.fit(mlp_model(), measured(), num_members=2, **OPTIONS).save(path)
    with safe_open(path, framework="pt") as file:  # a reader of plain arrays reads all of it
        names = set(file.keys())
        header = json.loads(file.metadata()["bayesuq"])
    assert {"members.0.values", "members.1.values", "model.1.weight"} <= names
    assert header["posterior"]["class"] == "EnsemblePosterior"


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, share):
    map_estimate.fit(mlp_model(), measured(), **OPTIONS).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="not a complete file"):
        load(path)


def test_a_missing_file_is_told(path):
    with pytest.raises(FileNotFoundError, match=str(path)):
        load(path)


def test_every_posterior_of_the_package_can_be_loaded():
    names = (module.name for module in pkgutil.walk_packages(inference.__path__, "bayesuq.inference."))
    modules = [import_module(name) for name in names]
    kinds = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    kinds = {kind for kind in kinds if issubclass(kind, bayesuq.Posterior)}
    posteriors = {kind for kind in kinds if "__dataclass_params__" in vars(kind)}
    posteriors -= {StoredPosterior, ChainPosterior}  # what posteriors extend; none is of these classes themselves
    posteriors -= {GpytorchPosterior}  # of code that no file records, which its `save` says
    assert set(CLASSES.values()) == posteriors
    assert all(CLASSES[name].__module__ == f"bayesuq.inference.{home}" for name, home in HOMES.items())
    assert all(kind.__name__ == name for name, kind in CLASSES.items())
