import os
from dataclasses import replace

import pytest
import torch

from bayesuq import datasets
from bayesuq.cli import problem as problems
from bayesuq.cli.problem import Problem, load_data, read_standardizer, write_standardizer
from bayesuq.cli.settings import DataOptions, ModelOptions, PredictionOptions, UsageError
from bayesuq.data import Dataset, Split, Standardizer
from bayesuq.models import likelihoods
from bayesuq.storage import write


def images(num_classes: int = 3, *, per_pixel: bool = False) -> Split:
    noise = torch.Generator().manual_seed(0)
    shape = (6, 5, 7) if per_pixel else (6,)
    parts = [
        Dataset(torch.rand(6, 2, 5, 7, generator=noise), torch.randint(num_classes, shape, generator=noise))
        for _ in "123"
    ]
    return Split(*parts)


def test_labels_get_a_categorical_network_of_as_many_outputs() -> None:
    problem = Problem.of("digits", datasets.load("digits-0to8"), ModelOptions())
    model = problem.model(seed=0)
    assert (problem.options.network, problem.options.likelihood, problem.options.hidden) == (
        "mlp",
        "categorical",
        [100, 100],
    )
    assert isinstance(model.likelihood, likelihoods.Categorical)
    assert model.net(problem.split.test.x).shape == (len(problem.split.test), 9)
    assert problem.in_fitted_units(problem.split.train) is problem.split.train


def test_a_class_that_only_the_test_rows_have_has_an_output_too() -> None:
    split = images()
    split = replace(split, train=Dataset(split.train.x, split.train.y * 0), val=Dataset(split.val.x, split.val.y * 0))
    split = replace(split, test=Dataset(split.test.x, split.test.y * 0 + 4))
    assert Problem.of("images", split, ModelOptions()).num_outputs == 5


def test_images_get_a_convnet_unless_an_mlp_is_asked_for() -> None:
    for network in ("auto", "mlp"):
        problem = Problem.of("images", images(), ModelOptions(network=network, hidden=[4]))
        layers = {type(layer).__name__ for layer in problem.model(seed=0).net.modules()}
        assert ("Conv2d" in layers) == (network == "auto")
        assert problem.model(seed=0).net(problem.split.test.x).shape == (6, 3)


def test_labels_get_noise_in_their_logits_where_it_is_asked_for() -> None:
    problem = Problem.of("digits", datasets.load("digits"), ModelOptions(likelihood="heteroscedastic"))
    model = problem.model(seed=0)
    assert isinstance(model.likelihood, likelihoods.HeteroscedasticCategorical)
    assert model.net(problem.split.train.x[:2]).shape == (2, 20)


@pytest.mark.parametrize(
    ("likelihood", "kind", "num_outputs"),
    [("auto", likelihoods.Normal, 1), ("heteroscedastic", likelihoods.HeteroscedasticNormal, 2)],
)
def test_numbers_get_a_likelihood_of_numbers_in_standard_units(likelihood: str, kind: type, num_outputs: int) -> None:
    problem = Problem.of("toy/cubic", datasets.load("toy/cubic"), ModelOptions(likelihood=likelihood))
    assert isinstance(problem.model(seed=0).likelihood, kind)
    assert problem.num_outputs == num_outputs
    train = problem.in_fitted_units(problem.split.train)
    torch.testing.assert_close(train.y.double().mean(), torch.tensor(0.0, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.x.double().std(correction=0), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        (images(per_pixel=True), {"network": "convnet"}, "has a label for every pixel, which needs a unet"),
        (images(), {"network": "unet"}, "has no label for every pixel, as a unet needs"),
        (images(), {"likelihood": "normal"}, "The likelihood normal does not go with it, which has labels"),
        (datasets.load("toy/linear"), {"likelihood": "categorical"}, "categorical does not go with it, which has real"),
        (datasets.load("toy/linear"), {"network": "convnet"}, "A convnet takes images; it has inputs of shape"),
    ],
)
def test_what_does_not_go_together_is_refused(split: Split, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Problem.of("it", split, ModelOptions(**options))


def test_initial_weights_are_those_of_the_seed_and_leave_the_global_state_alone() -> None:
    problem = Problem.of("toy/linear", datasets.load("toy/linear"), ModelOptions())
    state = torch.get_rng_state()
    one, same, other = (torch.nn.utils.parameters_to_vector(problem.model(seed=s).net.parameters()) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_options_of_the_model_reach_it() -> None:
    options = ModelOptions(hidden=[6, 5], activation="tanh", dropout=0.25, prior_scale=3.0)
    model = Problem.of("toy/linear", datasets.load("toy/linear"), options).model(seed=0, with_dropout=True)
    layers = [type(layer).__name__ for layer in model.net]
    assert layers == ["Flatten", "Linear", "Tanh", "Dropout", "Linear", "Tanh", "Dropout", "Linear"]
    assert model.net[3].p == 0.25
    assert all(float(law.base_dist.scale.flatten()[0]) == 3.0 for law in model.laws.values())


def test_an_unknown_set_or_split_is_wrong_usage_and_tells_how_to_fetch(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("BAYESUQ_DATA", str(tmp_path))
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        load_data(DataOptions(data="digis"))
    with pytest.raises(UsageError, match="Fetch it by `bayesuq data get uci/yacht`"):
        load_data(DataOptions(data="uci/yacht"))
    with pytest.raises(UsageError, match="one division only"):
        load_data(DataOptions(data="digits", split=1))
    (tmp_path / "uci").mkdir()
    (tmp_path / "uci" / "broken.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"broken\.npz") as raised:
        load_data(DataOptions(data="uci/broken"))
    assert not isinstance(raised.value, UsageError)  # the work failed: nothing is wrong with how it was asked for


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_wrong_usage(device: str) -> None:
    with pytest.raises(UsageError):
        problems.use_computer(PredictionOptions(device=device))


def test_the_command_takes_the_threads_it_is_given() -> None:
    before, cores = torch.get_num_threads(), os.cpu_count() or 1
    with pytest.raises(UsageError, match=f"at most {cores}, this machine's cores; got 1000000"):
        problems.use_computer(PredictionOptions(num_threads=1_000_000))  # which torch does not survive
    assert torch.get_num_threads() == before
    try:
        for device in ("cpu", None):
            problems.use_computer(PredictionOptions(device=device, num_threads=cores))
            assert torch.get_num_threads() == cores
            problems.use_computer(PredictionOptions(device=device))
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_standardizer_beside_a_posterior_comes_back_to_the_last_digit(tmp_path) -> None:
    assert read_standardizer(tmp_path) is None
    write_standardizer(None, tmp_path)
    assert read_standardizer(tmp_path) is None
    train = datasets.load("toy/cubic").train
    standardizer = Standardizer.fit(train)
    write_standardizer(standardizer, tmp_path)
    read = read_standardizer(tmp_path)
    assert read is not None
    assert len(standardizer.tensors()) == 4
    assert all(torch.equal(getattr(read, name), part) for name, part in standardizer.tensors().items())
    write(tmp_path / problems.STANDARDIZER, {"kind": "other"}, {"x_loc": torch.zeros(1)})
    with pytest.raises(ValueError, match="holds no standardizer"):
        read_standardizer(tmp_path)
