"""Libraries that few calls need and that are slow to import, loaded when they are first used (PEP 562).

ArviZ takes seconds, writes into the user's cache folder, and refuses to be imported where its parts do not fit each
other; nothing but diagnostics may depend on that. Write `from bayesuq import optional`, and then `optional.arviz`.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import arviz as arviz
    import xarray as xarray

NEEDED_BY = {
    "arviz": "Diagnostics and `to_arviz` need ArviZ",
    "arviz_stats": "Diagnostics need ArviZ's statistics",
    "xarray": "Diagnostics and `to_arviz` need xarray",
}


def __getattr__(name: str) -> Any:
    if name not in NEEDED_BY:
        raise AttributeError(f"module 'bayesuq.to_arviz.optional' has no attribute {name!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0, once a day
        try:
            return import_module("arviz_stats.base" if name == "arviz_stats" else name)
        except (ImportError, OSError) as error:  # 0.23 writes into the user's cache folder
            raise ImportError(
                f"{NEEDED_BY[name]}, which cannot be imported: {error}. Fitting and predicting work without it."
            ) from error
