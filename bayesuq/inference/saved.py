"""Reading saved posteriors."""

from os import PathLike, fspath

from bayesuq.inference.dropout import DropoutPosterior
from bayesuq.inference.ensemble import EnsemblePosterior
from bayesuq.inference.map_estimate import MapPosterior
from bayesuq.inference.packing import FORMAT, restore_model, unpack
from bayesuq.inference.temperature import TemperaturePosterior
from bayesuq.inference.variational import VariationalPosterior
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from bayesuq.storage import read

CLASSES: dict[str, type[Posterior]] = {
    kind.__name__: kind
    for kind in (
        MapPosterior,
        VariationalPosterior,
        DropoutPosterior,
        EnsemblePosterior,
        TemperaturePosterior,
    )
}


def load(path: str | PathLike[str], model: BayesianNetwork | None = None) -> Posterior:
    """The posterior that `posterior.save(path)` wrote, on the CPU.

    Nothing in the file is ever run or imported: it holds tensors, numbers, and names that are looked up in fixed lists.

    Args:
        path: The file.
        model: Needed where the model has parts that are not bayesuq's own (a network of yours, a rule that is a
            function): the same model again. Its weights come from the file; names, shapes and dtypes must agree.

    Raises:
        FileNotFoundError: No such file.
        TypeError: A model of another type.
        ValueError: A truncated or foreign file, one of a newer format, a model missing or different from the file's.

    Example:
        >>> posterior.save("digits.safetensors")                         # doctest: +SKIP
        >>> bq.load("digits.safetensors").predict(x, num_samples=100)    # doctest: +SKIP
    """
    if model is not None and not isinstance(model, BayesianNetwork):
        raise TypeError(f"`model` must be a bayesuq.models.BayesianNetwork; got {type(model).__name__}.")
    header, tensors = read(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"The file has format {header.get('format')!r}; this version of bayesuq reads {FORMAT}.")
    try:
        return unpack(header["posterior"], tensors, restore_model(header, tensors, model), CLASSES)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{fspath(path)!r} was not written by `posterior.save`: {error!r}.") from error
