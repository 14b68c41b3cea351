"""Inference: each module's `fit(model, data, *, ...)` returns a posterior approximation with the same `predict`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesuq.inference import (
        callbacks,
        confidence,
        dropout,
        ensemble,
        gp,
        hmc,
        laplace,
        local_temperature,
        map_estimate,
        quantile_calibration,
        sgmcmc,
        swag,
        temperature,
        variational,
    )

__all__ = [
    "callbacks",
    "confidence",
    "dropout",
    "ensemble",
    "gp",
    "hmc",
    "laplace",
    "local_temperature",
    "map_estimate",
    "quantile_calibration",
    "sgmcmc",
    "swag",
    "temperature",
    "variational",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"bayesuq.inference.{name}")
    raise AttributeError(f"module 'bayesuq.inference' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
