"""Temperature scaling of any fitted posterior over labels; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.temperature.fitting import TemperaturePosterior as TemperaturePosterior
    from bayesuq.inference.temperature.fitting import fit as fit

__getattr__, __dir__, __all__ = lazy(__name__, returned=["TemperaturePosterior"])
