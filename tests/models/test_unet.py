"""The U-Net of `networks`, held to one written out, to its symmetries, and to what methods need of a network."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesuq.models import BayesianNetwork, likelihoods, priors
from bayesuq.models.initialisation import reinitialised
from bayesuq.models.networks import Recipe, unet
from bayesuq.models.records import build_model, model_record
from bayesuq.models.rules import matching_names
from bayesuq.randomness import isolated


def by_formula(w: dict[str, Tensor], x: Tensor, depth: int) -> Tensor:
    """A U-Net without norms, written out: sizes are halved upwards, and cropped back."""

    def block(path: str, h: Tensor) -> Tensor:
        for layer in (0, 2):
            h = functional.conv2d(h, w[f"{path}.{layer}.weight"], w[f"{path}.{layer}.bias"], padding=1).relu()
        return h

    skips = []
    for level in range(depth):
        x = block(f"encoder.{level}", x)
        skips.append(x)
        odd = (x.shape[-2] % 2, x.shape[-1] % 2)
        x = functional.max_pool2d(functional.pad(x, (0, odd[1], 0, odd[0]), value=-torch.inf), 2)
    x = block("bottom", x)
    for level in reversed(range(depth)):
        x = functional.conv_transpose2d(x, w[f"up.{level}.weight"], w[f"up.{level}.bias"], stride=2)
        height, width = skips[level].shape[-2:]
        x = block(f"decoder.{level}", torch.cat([skips[level], x[:, :, :height, :width]], dim=1))
    return functional.conv2d(x, w["head.weight"], w["head.bias"])


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (1, 1)])
def test_a_unet_computes_what_its_formula_says(size: tuple[int, int]) -> None:
    with isolated(0):
        net, x = unet(2, 3, depth=2, width=4, norm=None).double(), torch.randn(2, 2, *size, dtype=torch.float64)
    torch.testing.assert_close(net(x), by_formula(dict(net.named_parameters()), x, depth=2))


@pytest.mark.parametrize("norm", ["batch", "group", None])
def test_an_image_of_a_batch_is_read_as_if_it_were_alone(norm: str | None) -> None:
    with isolated(0):
        net, x = unet(1, 2, depth=2, width=4, norm=norm).double().eval(), torch.randn(3, 1, 9, 10, dtype=torch.float64)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))


def test_a_unet_shifts_with_its_image_by_the_stride_of_its_bottom() -> None:
    with isolated(0):
        net = unet(1, 1, depth=2, width=4, norm=None).double()
        x = torch.randn(1, 1, 128, 128, dtype=torch.float64)
    inner = (..., slice(48, 80), slice(48, 80))  # out of the reach of the borders
    torch.testing.assert_close(net(x.roll((4, -4), dims=(2, 3)))[inner], net(x).roll((4, -4), dims=(2, 3))[inner])


@pytest.mark.parametrize(
    ("depth", "where"),
    [(4, ["bottom", "decoder.2", "decoder.3", "encoder.2", "encoder.3"]), (1, ["bottom"])],
)
def test_dropout_stands_in_the_central_layers(depth: int, where: list[str]) -> None:
    net = unet(1, 1, depth=depth, width=2, dropout=0.3)
    found = {path.rpartition(".")[0]: layer.p for path, layer in net.named_modules() if isinstance(layer, nn.Dropout2d)}
    assert sorted(found) == where
    assert set(found.values()) == {0.3}


def test_without_dropout_and_norm_there_are_no_such_layers() -> None:
    kinds = {type(module) for module in unet(1, 1, depth=1, width=2, norm=None).modules()}
    assert kinds.isdisjoint({nn.Dropout2d, nn.BatchNorm2d, nn.GroupNorm})


@pytest.mark.parametrize("width", [3, 4, 12, 32])
def test_groups_divide_the_channels(width: int) -> None:
    groups = [
        layer for layer in unet(1, 1, depth=1, width=width, norm="group").modules() if hasattr(layer, "num_groups")
    ]
    assert all(layer.num_channels % layer.num_groups == 0 and layer.num_groups <= 8 for layer in groups)


def test_its_last_layer_is_the_one_by_one_convolution() -> None:
    assert matching_names(unet(1, 2, depth=2, width=4), "last_layer") == ["head.weight", "head.bias"]


def test_many_weights_at_once_give_the_outputs_of_each() -> None:
    with isolated(0):
        nets = [unet(1, 2, depth=2, width=4, norm="group") for _ in range(3)]
        x = torch.randn(2, 1, 7, 6)
    stacked = {name: torch.stack([net.get_parameter(name) for net in nets]) for name, _ in nets[0].named_parameters()}
    many = torch.func.vmap(lambda theta: torch.func.functional_call(nets[0], theta, (x,)))(stacked)
    torch.testing.assert_close(many, torch.stack([net(x) for net in nets]), atol=1e-5, rtol=1e-4)


def test_a_recipe_builds_the_same_unet_again() -> None:
    net = unet(3, 5, depth=2, width=6, dropout=0.2, norm="group")
    assert net.recipe == Recipe(
        "unet", {"in_channels": 3, "out_channels": 5, "depth": 2, "width": 6, "dropout": 0.2, "norm": "group"}
    )
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical(ignore_index=4))
    built = build_model(model_record(model))
    assert repr(built.net) == repr(net)
    assert built.likelihood == model.likelihood


def test_members_begin_as_if_built_under_their_seed() -> None:
    with isolated(5):
        built = unet(1, 2, depth=2, width=4)
    fresh = reinitialised(copy.deepcopy(unet(1, 2, depth=2, width=4)), 5)
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth"),
        ({"width": 2.5}, TypeError, "width"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"norm": "layer"}, ValueError, "`norm` must be one of batch, group, or None; got 'layer'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unet(1, 1, **options)
