"""Libraries that few calls need and that are slow to import, loaded when they are first used (PEP 562).

ArviZ takes seconds, writes into the user's cache folder, and refuses to be imported where its parts do not fit each
other; nothing but what needs it may depend on that. Write `from bayesuq import optional`, and then `optional.arviz`.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import arviz as arviz
    import nibabel as nibabel
    import onnxscript as onnxscript
    import pandas as pandas
    import xarray as xarray
    from matplotlib import pyplot as pyplot
    from pyarrow import parquet as parquet
    from scipy.stats import qmc as qmc
    from sklearn import impute as impute
    from sklearn import model_selection as model_selection
    from sklearn import preprocessing as preprocessing

NEEDED_BY = {
    "arviz": "Diagnostics and `to_arviz` need ArviZ",
    "impute": "Missing cells of a table need scikit-learn",
    "model_selection": "Dividing data needs scikit-learn",
    "nibabel": "Volumes in NIfTI files need nibabel (`pip install bayesuq[nifti]`)",
    "pandas": "Tables and `to_pandas` need pandas (`pip install bayesuq[tables]`)",
    "onnxscript": "`to_onnx` needs ONNX (`pip install bayesuq[onnx]`)",
    "parquet": "Parquet needs pyarrow (`pip install pyarrow`, or save the table as CSV)",
    "preprocessing": "Categories of a table need scikit-learn",
    "pyplot": "Showing a figure needs matplotlib's pyplot",
    "qmc": "Noise in logits needs SciPy's statistics",
    "sklearn_datasets": "The digits need scikit-learn",
    "xarray": "Diagnostics and `to_arviz` need xarray",
}
MODULES = {  # where it is another than the name
    "impute": "sklearn.impute",
    "model_selection": "sklearn.model_selection",
    "parquet": "pyarrow.parquet",
    "preprocessing": "sklearn.preprocessing",
    "pyplot": "matplotlib.pyplot",
    "qmc": "scipy.stats.qmc",
    "sklearn_datasets": "sklearn.datasets",
}


def __getattr__(name: str) -> Any:
    if name not in NEEDED_BY:
        raise AttributeError(f"module 'bayesuq.optional' has no attribute {name!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0, once a day
        try:
            return import_module(MODULES.get(name, name))
        except (ImportError, OSError) as error:  # 0.23 writes into the user's cache folder
            raise ImportError(
                f"{NEEDED_BY[name]}, which cannot be imported: {error}. Fitting and predicting work without it."
            ) from error
