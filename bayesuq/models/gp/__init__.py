"""Gaussian processes: priors over functions, f ~ GP(mean, kernel), with a likelihood, and no data in them yet.

Kernels and means are specifications, plain frozen values: the width of the data and the number of outputs are learned
when a fit builds GPyTorch's modules from them. `bayesuq.inference.gp.fit` does.

Names are handed on lazily (PEP 562).
"""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.models.gp.combined import Coregionalised as Coregionalised
    from bayesuq.models.gp.combined import Deep as Deep
    from bayesuq.models.gp.combined import Scale as Scale
    from bayesuq.models.gp.kernels import RBF as RBF
    from bayesuq.models.gp.kernels import Kernel as Kernel
    from bayesuq.models.gp.kernels import Linear as Linear
    from bayesuq.models.gp.kernels import Matern as Matern
    from bayesuq.models.gp.kernels import Periodic as Periodic
    from bayesuq.models.gp.kernels import RationalQuadratic as RationalQuadratic
    from bayesuq.models.gp.kernels import SpectralMixture as SpectralMixture
    from bayesuq.models.gp.means import ConstantMean as ConstantMean
    from bayesuq.models.gp.means import FixedMean as FixedMean
    from bayesuq.models.gp.means import LinearMean as LinearMean
    from bayesuq.models.gp.means import Mean as Mean
    from bayesuq.models.gp.means import ZeroMean as ZeroMean
    from bayesuq.models.gp.process import GaussianProcess as GaussianProcess

__getattr__, __dir__, __all__ = lazy(__name__)
