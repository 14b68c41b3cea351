"""Reading saved posteriors."""

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from torch import Tensor, nn

from bayesuq.inference.confidence import ConfidencePosterior
from bayesuq.inference.correlated import CorrelatedPosterior
from bayesuq.inference.dropout import DropoutPosterior
from bayesuq.inference.ensemble import EnsemblePosterior
from bayesuq.inference.exact_gp import ExactGpPosterior
from bayesuq.inference.gp_saved import restore_process
from bayesuq.inference.guide_posterior import GuidePosterior
from bayesuq.inference.hmc import HmcPosterior
from bayesuq.inference.laplace_posterior import LaplacePosterior, SampledLaplacePosterior
from bayesuq.inference.local_temperature import LocalTemperaturePosterior
from bayesuq.inference.map_estimate import MapPosterior
from bayesuq.inference.mean_field import VariationalPosterior
from bayesuq.inference.packing import FORMAT, restore_model, unpack
from bayesuq.inference.program_posterior import ProgramPosterior
from bayesuq.inference.programs import GuideBuilder, Program
from bayesuq.inference.quantile_calibration import QuantileCalibratedPosterior
from bayesuq.inference.sampled_gp import SampledGpPosterior
from bayesuq.inference.sgmcmc import SgmcmcPosterior
from bayesuq.inference.sparse_gp_posterior import SparseGpPosterior
from bayesuq.inference.swag import SwagPosterior
from bayesuq.inference.temperature import TemperaturePosterior
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.posterior import Posterior
from bayesuq.storage import read

CLASSES: dict[str, type[Posterior]] = {
    kind.__name__: kind
    for kind in (
        MapPosterior,
        VariationalPosterior,
        CorrelatedPosterior,
        GuidePosterior,
        ProgramPosterior,
        DropoutPosterior,
        EnsemblePosterior,
        LaplacePosterior,
        SampledLaplacePosterior,
        HmcPosterior,
        SgmcmcPosterior,
        SwagPosterior,
        TemperaturePosterior,
        LocalTemperaturePosterior,
        QuantileCalibratedPosterior,
        ConfidencePosterior,
        ExactGpPosterior,
        SparseGpPosterior,
        SampledGpPosterior,
    )
}


def load(
    path: str | PathLike[str],
    model: BayesianNetwork | GaussianProcess | Program | None = None,
    guide: GuideBuilder | None = None,
) -> Posterior:
    """The posterior that `posterior.save(path)` wrote, on the CPU.

    Nothing in the file is ever run or imported: it holds tensors, numbers, and names that are looked up in fixed lists.

    Args:
        path: The file.
        model: Needed where the model has parts that are not bayesuq's own (a network of yours, a rule that is a
            function): the same model again. Its weights come from the file; names, shapes and dtypes must agree. A
            Pyro program of your own is always needed.
        guide: Needed where the posterior was fitted with a guide of your own or of Pyro's: the same function from the
            model to the guide. Its parameters come from the file.

    Raises:
        FileNotFoundError: No such file.
        TypeError: A model or a guide of another type.
        ValueError: A truncated or foreign file, one of a newer format; a model or guide missing or different from the
            file's.

    Example:
        >>> posterior.save("digits.safetensors")                         # doctest: +SKIP
        >>> bq.load("digits.safetensors").predict(x, num_samples=100)    # doctest: +SKIP
    """
    if model is not None and not callable(model) and not isinstance(model, GaussianProcess):
        raise TypeError(
            f"`model` must be a bayesuq.models.BayesianNetwork or a Pyro program; got {type(model).__name__}."
        )
    if guide is not None and (isinstance(guide, nn.Module) or not callable(guide)):
        raise TypeError(f"`guide` must be a function from the model to a Pyro guide; got {type(guide).__name__}.")
    header, tensors = read(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"The file has format {header.get('format')!r}; this version of bayesuq reads {FORMAT}.")
    if "process" in header:
        return _load_process(path, header, tensors, model)
    if isinstance(model, GaussianProcess):
        raise TypeError("`model` is a GaussianProcess, and the file's is none.")
    if model is not None and isinstance(model, BayesianNetwork) != (header.get("sites") is not None):
        wanted = "a Pyro program" if header.get("sites") is None else "a bayesuq.models.BayesianNetwork"
        raise TypeError(f"`model` must be {wanted}, as in the file; got {type(model).__name__}.")
    try:
        given = {"model": restore_model(header, tensors, model), "guide": guide}
        return unpack(header["posterior"], tensors, given, CLASSES)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{fspath(path)!r} was not written by `posterior.save`: {error!r}.") from error


def _load_process(
    path: str | PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor], model: object
) -> Posterior:
    """A posterior over functions."""
    given = {"model": restore_process(header, model), "guide": None}
    try:
        return unpack(header["posterior"], tensors, given, CLASSES)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{fspath(path)!r} was not written by `posterior.save`: {error!r}.") from error
