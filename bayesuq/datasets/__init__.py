"""Named data sets, embedded or from the folder that BAYESUQ_DATA names, and the files that hold them."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.datasets import archive as archive
    from bayesuq.datasets import fetching as fetching
    from bayesuq.datasets import named as named
    from bayesuq.datasets import shapes as shapes
    from bayesuq.datasets import sources as sources
    from bayesuq.datasets.named import IGNORED as IGNORED
    from bayesuq.datasets.named import available as available
    from bayesuq.datasets.named import folder as folder
    from bayesuq.datasets.named import load as load
    from bayesuq.datasets.named import num_splits as num_splits
    from bayesuq.datasets.named import relative_path as relative_path

__getattr__, __dir__, __all__ = lazy(__name__)
