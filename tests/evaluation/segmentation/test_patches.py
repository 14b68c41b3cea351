"""Patches against a loop over them."""

import math

import pytest
import torch

from bayesuq.evaluation.segmentation.patches import PatchCounts, patch_sweep

KINDS = ("accurate_certain", "accurate_uncertain", "inaccurate_certain", "inaccurate_uncertain")


def random_maps(seed: int = 0) -> tuple[torch.Tensor, ...]:
    noise = torch.Generator().manual_seed(seed)
    uncertainty = torch.rand(3, 10, 13, generator=noise, dtype=torch.float64)
    labelled = torch.rand(3, 10, 13, generator=noise) < 0.7
    labelled[0, :4, :4] = False
    return uncertainty, torch.rand(3, 10, 13, generator=noise) < 0.4, labelled


@pytest.mark.parametrize(("right", "pixels"), [(29, 50), (63, 90), (29, 100), (57, 100)])
def test_a_patch_is_accurate_above_the_share_and_not_at_it(right: int, pixels: int) -> None:
    """Whose product with the pixels may be below the number of right ones in floating point, as .57 x 100 is."""
    errors = (torch.arange(pixels) >= right)[None]
    for share, accurate in ((right / pixels, 0), (right / pixels - 0.001, 1)):
        counts = patch_sweep(torch.zeros(1, pixels), errors, size=pixels, accuracy_threshold=share, thresholds=(0.5,))
        assert int(counts.accurate_certain) == accurate


@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_patches_are_those_that_a_loop_finds(size: int) -> None:
    uncertainty, errors, labelled = random_maps()
    thresholds = (0.3, 0.5)
    expected = {kind: torch.zeros(3, 2).long() for kind in KINDS}
    for n in range(3):
        for top in range(0, 10, size):
            for left in range(0, 13, size):
                where = (n, slice(top, top + size), slice(left, left + size))
                inside = labelled[where]
                if not inside.any():
                    continue
                right = (~errors[where][inside]).double().mean() > 0.5
                for t, threshold in enumerate(thresholds):
                    unsure = uncertainty[where][inside].mean() > threshold
                    kind = f"{'' if right else 'in'}accurate_{'un' if unsure else ''}certain"
                    expected[kind][n, t] += 1
    counts = patch_sweep(uncertainty, errors, size=size, thresholds=thresholds, labelled=labelled)
    assert {kind: getattr(counts, kind).tolist() for kind in KINDS} == {k: v.tolist() for k, v in expected.items()}


def test_shares_are_those_of_the_reference() -> None:
    counts = PatchCounts(
        thresholds=torch.tensor([0.5]).double(),
        **dict(zip(KINDS, (torch.tensor([[n]]) for n in (50, 20, 10, 20)), strict=True)),
    )
    assert float(counts.accurate_given_certain) == pytest.approx(50 / 60)
    assert float(counts.uncertain_given_inaccurate) == pytest.approx(20 / 30)
    assert float(counts.accuracy_against_uncertainty) == pytest.approx(70 / 100)


def test_images_join_and_weigh() -> None:
    uncertainty, errors, labelled = random_maps(1)
    whole = patch_sweep(uncertainty, errors, labelled=labelled)
    joined = PatchCounts.concatenate(
        [patch_sweep(uncertainty[n : n + 1], errors[n : n + 1], labelled=labelled[n : n + 1]) for n in range(3)]
    )
    for kind in KINDS:
        assert torch.equal(getattr(joined, kind), getattr(whole, kind))
        assert torch.equal(getattr(whole.pooled, kind)[0], getattr(whole, kind).sum(dim=0).double())


def test_a_share_of_no_patch_is_undefined() -> None:
    counts = patch_sweep(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), thresholds=(0.5,))
    assert math.isnan(counts.uncertain_given_inaccurate)
    assert float(counts.accuracy_against_uncertainty) == 1.0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0.1], [True]), {}, "must have one shape"),
        (([[0.1]], [[[True]]]), {}, "must have one shape"),
        (([[[0.1]]], [[[True]]]), {"size": 0}, "size"),
        (([[[0.1]]], [[[True]]]), {"thresholds": ()}, "must rise"),
        (([[[0.1]]], [[[True]]]), {"accuracy_threshold": 1.5}, "accuracy_threshold"),
    ],
)
def test_what_has_no_patches_is_refused(arguments, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        patch_sweep(*arguments, **options)
