"""Inference: each module's `fit(model, data, *, ...)` returns a posterior approximation with the same `predict`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference import adoption as adoption
    from bayesuq.inference import automatic as automatic
    from bayesuq.inference import callbacks as callbacks
    from bayesuq.inference import confidence as confidence
    from bayesuq.inference import dropout as dropout
    from bayesuq.inference import ensemble as ensemble
    from bayesuq.inference import features as features
    from bayesuq.inference import gp as gp
    from bayesuq.inference import hmc as hmc
    from bayesuq.inference import ivon as ivon
    from bayesuq.inference import laplace as laplace
    from bayesuq.inference import local_temperature as local_temperature
    from bayesuq.inference import map_estimate as map_estimate
    from bayesuq.inference import microcanonical as microcanonical
    from bayesuq.inference import quantile_calibration as quantile_calibration
    from bayesuq.inference import sequential as sequential
    from bayesuq.inference import sgmcmc as sgmcmc
    from bayesuq.inference import stacking as stacking
    from bayesuq.inference import swag as swag
    from bayesuq.inference import temperature as temperature
    from bayesuq.inference import variational as variational

__getattr__, __dir__, __all__ = lazy(__name__)
