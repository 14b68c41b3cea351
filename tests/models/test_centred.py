"""Normal priors of their own for every weight, around a pretrained network."""

import math

import pytest
import torch
from torch import Tensor, nn

from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.records import NoRecordError, model_record
from tests.models import formulas


def net() -> nn.Module:
    return networks.mlp(3, (4,), 1).double()


def test_the_prior_stands_around_every_weight() -> None:
    pretrained = net()
    model = BayesianNetwork(net(), priors.centred(pretrained, priors.Normal(0.1, 0.3)), likelihoods.Normal(scale=1.0))
    theta = model.initial()
    expected = sum(
        formulas.normal(theta[name], weight.detach() + 0.1, 0.3).sum() for name, weight in pretrained.named_parameters()
    )
    torch.testing.assert_close(model.log_prior(theta), expected, rtol=1e-12, atol=0)


def test_the_width_may_follow_the_fan_in() -> None:
    rules = priors.centred(net(), priors.FanIn(priors.Normal(scale=2.0)))
    assert rules["1.weight"].scale.unique().item() == pytest.approx(2 / math.sqrt(3))
    assert rules["3.weight"].scale.unique().item() == pytest.approx(1.0)
    assert rules["3.bias"].scale.unique().item() == 2.0


def test_some_weights_alone_and_none_that_are_frozen() -> None:
    pretrained = net()
    last = {name: value for name, value in pretrained.state_dict().items() if name.startswith("3.")}
    model = BayesianNetwork(pretrained, priors.centred(last), likelihoods.Normal(scale=1.0), random="last_layer")
    torch.testing.assert_close(model.laws["3.weight"].base_dist.loc, last["3.weight"])
    pretrained[1].requires_grad_(False)
    assert list(priors.centred(pretrained)) == ["3.weight", "3.bias"]


def test_the_pretrained_network_may_change_afterwards() -> None:
    pretrained = net()
    rules, before = priors.centred(pretrained), pretrained[1].weight.detach().clone()
    with torch.no_grad():
        pretrained[1].weight.add_(1.0)
    torch.testing.assert_close(rules["1.weight"].loc, before, rtol=0, atol=0)


def test_each_entry_has_its_own_law() -> None:
    loc, scale = torch.randn(2, 3).double(), torch.rand(2, 3).double() + 0.1
    law = priors.EntrywiseNormal(loc, scale).distribution(torch.zeros(2, 3).double())
    w = torch.randn(2, 3).double()
    assert (law.batch_shape, law.event_shape) == ((), (2, 3))
    torch.testing.assert_close(law.log_prob(w), formulas.normal(w, loc, scale).sum(), rtol=1e-12, atol=0)
    assert law.mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("loc", "scale", "message"),
    [
        (torch.zeros(2), torch.ones(3), r"`loc`'s shape, \(2,\); got \(3,\)"),
        (torch.zeros(2), torch.tensor([1.0, 0.0]), "above 0"),
        (torch.tensor([0.0, math.nan]), torch.ones(2), "finite"),
    ],
)
def test_moments_that_are_no_law_are_refused(loc: Tensor, scale: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        priors.EntrywiseNormal(loc, scale)


def test_other_shapes_and_families_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of shape \(2,\); got one of \(3,\)"):
        priors.EntrywiseNormal(torch.zeros(2), torch.ones(2)).distribution(torch.zeros(3))
    with pytest.raises(TypeError, match="`base` must be a normal prior"):
        priors.centred(net(), priors.Laplace())
    for wrong in ([torch.ones(3)], {"weight": [1.0, 2.0]}):
        with pytest.raises(TypeError, match="`at` must be a network, or a mapping from names to tensors"):
            priors.centred(wrong)


def test_its_numbers_are_not_recorded() -> None:
    plain = networks.mlp(3, (4,), 1)
    model = BayesianNetwork(plain, priors.centred(plain), likelihoods.Normal(scale=1.0))
    with pytest.raises(NoRecordError):
        model_record(model)
