"""What methods need of a likelihood, derived from the law of y: against the closed forms of bayesuq's own."""

import pytest
import torch

from bayesuq.models import likelihoods
from bayesuq.models.scaled_logits import ScaledLogits
from tests.inference.examples import noise
from tests.zoo.own_likelihoods import Copy, NoisyLabels

# By name: the likelihood, the shape of a row's f, targets, and how far a derived curvature may be off, in shares.
OWN = {
    "categorical": (likelihoods.Categorical(), (3,), [0, 2, 1, 1], 1e-10),
    "categorical pixels": (
        likelihoods.Categorical(),
        (3, 2, 1),
        [[[0], [1]], [[2], [0]], [[1], [1]], [[0], [0]]],
        1e-10,
    ),
    "bernoulli": (likelihoods.Bernoulli(), (1,), [0, 1, 1, 0], 1e-10),
    "labels": (likelihoods.Bernoulli(), (2,), [[0, 1], [1, 1], [0, 0], [1, 0]], 1e-10),
    "noisy logits": (likelihoods.HeteroscedasticCategorical(8), (6,), [0, 2, 1, 1], 1e-10),
    "poisson": (likelihoods.Poisson(), (2,), [[0.0, 3.0], [1.0, 7.0], [2.0, 0.0], [0.0, 1.0]], 1e-10),
    "normal": (likelihoods.Normal(scale=[0.3, 2.0]), (2,), noise(1, 4, 2), 1e-10),
    "normal of unequal noise": (likelihoods.HeteroscedasticNormal(), (4,), noise(1, 4, 2), 1e-6),
    # Its second derivative varies between draws about as much as it is large, and one error of 256 is a sixteenth.
    "outliers": (likelihoods.StudentT(df=4.0, scale=0.5), (2,), noise(1, 4, 2), 0.25),
}


@pytest.mark.parametrize("name", OWN)
def test_the_derived_curvature_is_the_closed_form(name):
    likelihood, shape, _, tolerance = OWN[name]
    f = noise(0, 4, *shape)
    root, expected = Copy(likelihood).fisher_root(f), likelihood.fisher_root(f)
    assert root.shape == expected.shape
    expected = expected @ expected.mT
    torch.testing.assert_close(root @ root.mT, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_a_derived_curvature_is_never_indefinite():
    """Observed second derivatives of these have both signs."""
    for likelihood, shape in ((NoisyLabels(0.3), (3,)), (Copy(likelihoods.StudentT(df=1.0, scale=0.1)), (1,))):
        root = likelihood.fisher_root(3 * noise(0, 20, *shape))
        assert root.isfinite().all()
        assert float(torch.linalg.eigvalsh(root @ root.mT).min()) >= -1e-12
        assert float((root @ root.mT).diagonal(dim1=1, dim2=2).sum(dim=1).min()) > 0


@pytest.mark.parametrize("name", OWN)
def test_what_targets_are_is_derived(name):
    likelihood, shape, y, _ = OWN[name]
    copy, targets = Copy(likelihood), likelihood.targets(y)
    assert copy.has_labels == isinstance(
        likelihood, likelihoods.Categorical | likelihoods.Bernoulli | likelihoods.HeteroscedasticCategorical
    )
    assert copy.has_units == (not copy.has_labels and not isinstance(likelihood, likelihoods.Poisson))
    assert likelihood.num_outputs(targets) == shape[0]
    if name in ("categorical", "bernoulli", "poisson", "normal", "outliers"):  # others must say it
        assert copy.num_outputs(targets) == shape[0]
    torch.testing.assert_close(copy.target_weights(targets), torch.ones_like(targets, dtype=torch.float64))


@pytest.mark.parametrize("name", ["categorical", "categorical pixels", "bernoulli", "noisy logits"])
def test_derived_logits_give_the_same_scaled_law(name):
    likelihood, shape, y, _ = OWN[name]
    f, y = noise(0, 2, 4, *shape), likelihood.targets(y)
    ours, derived = (ScaledLogits(one, slopes=(0.4,)) for one in (likelihood, Copy(likelihood)))
    torch.testing.assert_close(derived.log_prob(f[0], y), ours.log_prob(f[0], y))
    torch.testing.assert_close(derived.predictive(f).mean, ours.predictive(f).mean)
    again = ScaledLogits(derived, slopes=(0.5,))
    torch.testing.assert_close(again.predictive(f).mean, ScaledLogits(likelihood, (0.2,)).predictive(f).mean)


def test_what_a_likelihood_does_not_say_is_refused_by_name():
    with pytest.raises(TypeError, match="`base` must be a likelihood of labels; got Copy"):
        ScaledLogits(Copy(likelihoods.Poisson()), slopes=(0.5,))
    with pytest.raises(TypeError, match="The law of `y`, Poisson, is not one over labels"):
        Copy(likelihoods.Poisson()).logits(noise(0, 2, 1))

    class Reweighted(Copy):
        reweights_classes = True

    with pytest.raises(NotImplementedError, match=r"Reweighted .* not by what. Define `target_weights\(y\)`"):
        Reweighted(likelihoods.Categorical()).target_weights(torch.tensor([0, 1]))
