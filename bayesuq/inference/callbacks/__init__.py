"""What a fit can report to as it goes: functions of a `Progress`, called after each epoch.

    posterior = bq.inference.variational.fit(model, data, callbacks=[CSVLogger("history.csv")])

`TensorBoardLogger(folder)` writes what TensorBoard shows, and needs the extra `tensorboard`; `MLflowLogger` and
`WandbLogger` write into a run of these trackers that you have begun. A method that fits several
networks, as an ensemble does, calls its callbacks for each in turn: the loggers count these fits from 0.
"""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.callbacks.csv_file import CSVLogger as CSVLogger
    from bayesuq.inference.callbacks.tensorboard import TensorBoardLogger as TensorBoardLogger
    from bayesuq.inference.callbacks.trackers import MLflowLogger as MLflowLogger
    from bayesuq.inference.callbacks.trackers import WandbLogger as WandbLogger

__getattr__, __dir__, __all__ = lazy(__name__)
