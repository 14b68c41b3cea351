"""Warnings of fits have a class of their own, and point at the call."""

import bayesuq
from bayesuq.fit_warnings import ConvergenceWarning
from bayesuq.inference import ensemble, laplace, map_estimate, swag
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import built, measured, recorded_warnings


def test_every_door_warns_at_the_line_that_called_it():
    net = built(lambda: networks.mlp(3, (4,), 1))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.1))
    for fit in (map_estimate.fit, laplace.fit, swag.fit, ensemble.fit):
        with recorded_warnings() as record:
            fit(model, measured(), num_epochs=40, seed=0)
        told = [one for one in record if issubclass(one.category, bayesuq.ConvergenceWarning)]
        assert told
        assert {one.filename for one in told} == {__file__}
    assert bayesuq.ConvergenceWarning is ConvergenceWarning
    assert issubclass(ConvergenceWarning, UserWarning)
