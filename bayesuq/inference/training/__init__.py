"""The one minibatch loop of all that optimises: its options, its rows, its checkpoints."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.training.checkpoint import Checkpoint as Checkpoint
    from bayesuq.inference.training.history import History as History
    from bayesuq.inference.training.options import Callback as Callback
    from bayesuq.inference.training.options import Progress as Progress
    from bayesuq.inference.training.options import Schedule as Schedule
    from bayesuq.inference.training.options import Training as Training
    from bayesuq.inference.training.options import TrainingOptions as TrainingOptions

__getattr__, __dir__, __all__ = lazy(__name__)
