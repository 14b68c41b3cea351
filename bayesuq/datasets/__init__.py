"""Named data sets, embedded or from the folder that BAYESUQ_DATA names, and the files that hold them."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.datasets.named import available as available
    from bayesuq.datasets.named import folder as folder
    from bayesuq.datasets.named import load as load
    from bayesuq.datasets.named import num_splits as num_splits
    from bayesuq.datasets.nifti import NiftiFolder as NiftiFolder

__getattr__, __dir__, __all__ = lazy(__name__)
