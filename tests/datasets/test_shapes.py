"""Shapes drawn by code: labels follow the law that is known, and the unfamiliar object is nowhere to be trained on."""

import torch

from bayesuq.datasets import shapes
from bayesuq.datasets.named import load


def test_labels_follow_their_known_law() -> None:
    """By class, their number is within five standard deviations of the sum of probabilities."""
    scene = shapes.draw(200, seed=0, unfamiliar=True)
    torch.testing.assert_close(scene.probs.sum(dim=1), torch.ones_like(scene.probs[:, 0]))
    for label in range(4):
        p = scene.probs[:, label].double()
        spread = (p * (1 - p)).sum().sqrt()
        assert abs(float((scene.y == label).sum() - p.sum())) < 5 * float(spread)


def test_borders_are_where_labels_are_in_doubt() -> None:
    scene = shapes.draw(50, seed=1)
    entropy = torch.special.entr(scene.probs).sum(dim=1)
    sure = scene.probs.amax(dim=1) > 0.999
    assert 0.5 < float(sure.float().mean()) < 0.95
    assert float(entropy[~sure].mean()) > 0.1
    assert bool((scene.y == scene.probs.argmax(dim=1))[scene.probs.amax(dim=1) > 1 - 1e-7].all())


def test_what_the_image_shows_is_what_the_labels_say() -> None:
    """To five standard errors, and what the blur leaves of other colours where a class has 99.9 %."""
    scene = shapes.draw(50, seed=2, unfamiliar=True)
    for label, colour in enumerate(shapes.COLOURS):
        inner = scene.probs[:, label] > 0.999
        tolerance = 5 * shapes.NOISE / int(inner.sum()) ** 0.5 + 0.001
        found = scene.x.movedim(1, -1)[inner].mean(dim=0)
        assert float((found - torch.tensor(colour)).abs().max()) < tolerance


def test_each_part_has_images_of_its_own_and_the_seed_decides() -> None:
    one, same, other = load("shapes"), load("shapes"), load("shapes", seed=1)
    assert [len(part) for part in (one.train, one.val, one.test, one.ood)] == [200, 40, 60, 20]
    assert torch.equal(one.train.x, same.train.x)
    assert torch.equal(one.ood.y, same.ood.y)
    assert not torch.equal(one.train.x, other.train.x)
    assert not torch.equal(one.train.x[:40], one.val.x)
    assert one.train.x.shape == (200, 3, 48, 48)
    assert float(one.train.x.min()) >= 0
    assert float(one.train.x.max()) <= 1


def test_the_unfamiliar_object_is_in_every_image_out_of_distribution_and_in_no_other() -> None:
    split = load("shapes")
    for part in (split.train, split.val, split.test):
        assert part.y.unique().tolist() == [0, 1, 2]
    assert bool((split.ood.y == shapes.UNFAMILIAR).flatten(1).any(dim=1).all())


def test_volumes_have_labels_of_their_law_and_noise_that_tells_those_taken_badly() -> None:
    found = shapes.volumes(60, seed=0, degraded=0.5)
    torch.testing.assert_close(found.probs.sum(dim=1), torch.ones(60, 8, 16, 16))
    one_hot = torch.nn.functional.one_hot(found.y, 3).movedim(-1, 1).double()
    number = found.probs[:, 0].numel()
    error = (found.probs * (1 - found.probs)).mean(dim=(0, 2, 3, 4)).div(number).sqrt()
    assert ((one_hot - found.probs).mean(dim=(0, 2, 3, 4)).abs() < 4.5 * error).all()
    inside = found.probs[:, 2] > 0.9
    badly, well = (float(found.x[rows][:, 0][inside[rows]].mean()) for rows in (found.is_degraded, ~found.is_degraded))
    assert badly < 0.45 < 0.85 < well
    assert not torch.equal(shapes.volumes(2, seed=0, part=1).x, shapes.volumes(2, seed=0).x)


def test_the_noise_of_heights_is_what_it_is_said_to_be() -> None:
    found = shapes.depths(200, seed=0)
    standard = (found.y - found.mean) / found.noise
    assert abs(float(standard.mean())) < 4.5 / standard.numel() ** 0.5
    assert abs(float(standard.var()) - 1) < 4.5 * (2 / standard.numel()) ** 0.5
