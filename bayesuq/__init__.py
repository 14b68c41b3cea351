"""Bayesian deep learning as probabilistic programs: data -> model -> posterior -> predictive -> measures.

Names are handed on lazily (PEP 562), so that `import bayesuq` loads neither torch nor Pyro.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq import active as active
    from bayesuq import bridges as bridges
    from bayesuq import conformal as conformal
    from bayesuq import data as data
    from bayesuq import datasets as datasets
    from bayesuq import estimators as estimators
    from bayesuq import evaluation as evaluation
    from bayesuq import inference as inference
    from bayesuq import models as models
    from bayesuq import posterior as posterior
    from bayesuq import predictive as predictive
    from bayesuq import tables as tables
    from bayesuq.data import Batch as Batch
    from bayesuq.data import Dataset as Dataset
    from bayesuq.data import Split as Split
    from bayesuq.data import Standardizer as Standardizer
    from bayesuq.fit_warnings import ConvergenceWarning as ConvergenceWarning
    from bayesuq.inference.adoption import adopt as adopt
    from bayesuq.inference.adoption import adopt_members as adopt_members
    from bayesuq.inference.automatic.fitting import classify as classify
    from bayesuq.inference.automatic.fitting import regress as regress
    from bayesuq.inference.hmc.from_samples import from_samples as from_samples
    from bayesuq.inference.posteriors.saved import load as load
    from bayesuq.inference.posteriors.tables import of_table as of_table
    from bayesuq.inference.posteriors.units import in_units as in_units
    from bayesuq.inputs import Given as Given
    from bayesuq.loaders import Loader as Loader
    from bayesuq.posterior import Posterior as Posterior
    from bayesuq.predictive.base import PredictiveDistribution as PredictiveDistribution
    from bayesuq.predictive.base import RealPredictive as RealPredictive
    from bayesuq.predictive.categorical import CategoricalPredictive as CategoricalPredictive
    from bayesuq.predictive.empirical import EmpiricalPredictive as EmpiricalPredictive
    from bayesuq.predictive.gaussian import GaussianPredictive as GaussianPredictive
    from bayesuq.predictive.mixture import MixturePredictive as MixturePredictive
    from bayesuq.tables.table import read_table as read_table

__version__ = version("bayesuq")
__getattr__, __dir__, __all__ = lazy(__name__)
