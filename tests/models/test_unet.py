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

CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_formula(w: dict[str, Tensor], x: Tensor, near: list[tuple[bool, ...]]) -> Tensor:
    """A U-Net without norms, written out: sizes are halved upwards along the axes that are near, and cropped back."""
    rank, depth = x.ndim - 2, len(near) - 1

    def block(path: str, h: Tensor, level: int) -> Tensor:
        padding = tuple(int(is_near) for is_near in near[level])
        for layer in (0, 2):
            weight, bias = w[f"{path}.{layer}.weight"], w[f"{path}.{layer}.bias"]
            assert weight.shape[2:] == tuple(2 * side + 1 for side in padding)
            h = CONVOLVE[rank](h, weight, bias, padding=padding).relu()
        return h

    def halved(h: Tensor, level: int) -> Tensor:
        for axis in (2 + place for place in range(rank) if near[level][place]):
            pairs = functional.pad(h.movedim(axis, -1), (0, h.shape[axis] % 2), value=-torch.inf).unflatten(-1, (-1, 2))
            h = pairs.amax(dim=-1).movedim(-1, axis)
        return h

    skips = []
    for level in range(depth):
        x = block(f"encoder.{level}", x, level)
        skips.append(x)
        x = halved(x, level)
    x = block("bottom", x, depth)
    for level in reversed(range(depth)):
        stride = tuple(1 + is_near for is_near in near[level])
        x = TRANSPOSE[rank](x, w[f"up.{level}.weight"], w[f"up.{level}.bias"], stride=stride)
        for axis, size in enumerate(skips[level].shape[2:], start=2):
            x = x.narrow(axis, 0, size)
        x = block(f"decoder.{level}", torch.cat([skips[level], x], dim=1), level)
    return CONVOLVE[rank](x, w["head.weight"], w["head.bias"])


@pytest.mark.parametrize(
    ("size", "spacing", "near"),
    [
        ((16, 16), None, [(True, True)] * 3),
        ((13, 22), None, [(True, True)] * 3),
        ((1, 1), None, [(True, True)] * 3),
        ((11,), None, [(True,)] * 3),
        ((5, 7, 6), None, [(True, True, True)] * 3),
        # Slices 3 apart: of 1, 1 they are 3 times as far, of 2, 2 less than twice.
        ((3, 9, 8), (3.0, 1.0, 1.0), [(False, True, True), (True, True, True), (True, True, True)]),
        ((4, 9), (1.0, 8.0), [(True, False)] * 3),
    ],
    ids=str,
)
def test_a_unet_computes_what_its_formula_says(size, spacing, near) -> None:
    with isolated(0):
        net = unet(2, 3, depth=2, width=4, norm=None, spatial_dims=len(size), spacing=spacing).double()
        x = torch.randn(2, 2, *size, dtype=torch.float64)
    torch.testing.assert_close(net(x), by_formula(dict(net.named_parameters()), x, near))


def test_patches_are_taken_as_one_and_given_apart_as_torch_does() -> None:
    with isolated(0):
        net, x = unet(3, 2, depth=1, width=4, patch_size=2).double().eval(), noise(2, 3, 8, 12)
    parts = [nn.PixelUnshuffle(2), net.patches, nn.ReLU(), nn.PixelShuffle(2), net.head]
    torch.testing.assert_close(net(x), nn.Sequential(*parts)(x))


@pytest.mark.parametrize(
    ("size", "spacing", "channels"),
    [((7,), None, 3), ((9, 10), None, 9), ((4, 7, 5), (4.0, 1.0, 1.0), 9), ((4, 5, 7), None, 27)],
)
def test_patches_of_any_rank_are_the_image_again(size, spacing, channels: int) -> None:
    net = unet(2, 2, depth=1, width=6, norm=None, spatial_dims=len(size), spacing=spacing, patch_size=3)
    net.patches, net.head = nn.Identity(), nn.Identity()
    x = noise(2, 2, *size).abs()
    assert net._gathered(x).shape[1] == 2 * channels
    assert torch.equal(net(x), x)


def test_a_recipe_builds_the_same_patched_unet_again() -> None:
    net = unet(1, 2, depth=1, width=4, patch_size=2)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    assert repr(build_model(model_record(model)).net) == repr(net)
    assert matching_names(net, "last_layer") == ["head.weight", "head.bias"]
    assert net.head.in_channels == 2


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
    net = unet(3, 5, depth=2, width=6, dropout=0.2, norm="group", spatial_dims=3, spacing=(4, 1, 1))
    arguments = {"in_channels": 3, "out_channels": 5, "depth": 2, "width": 6, "dropout": 0.2, "norm": "group"}
    assert net.recipe == Recipe("unet", {**arguments, "spatial_dims": 3, "spacing": [4.0, 1.0, 1.0]})
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
        ({"spatial_dims": 4}, ValueError, "`spatial_dims` must be 1, 2 or 3; got 4"),
        ({"spacing": (1, 1, 1)}, ValueError, "`spacing` must have 2 numbers"),
        ({"spacing": (1, 0)}, ValueError, "spacing"),
        ({"patch_size": 0}, ValueError, "patch_size"),
        ({"norm": "layer"}, ValueError, "`norm` must be one of 'batch', 'group'; got 'layer'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unet(1, 1, **options)
