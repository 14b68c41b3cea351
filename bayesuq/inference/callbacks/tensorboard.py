"""`callbacks.TensorBoardLogger`, in a file of its own which only those import who use it: it needs an extra."""

from os import PathLike
from pathlib import Path
from typing import Self

from bayesuq.inference.training.options import Progress

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise ImportError("TensorBoardLogger needs the extra `tensorboard`: pip install 'bayesuq[tensorboard]'.") from error


class TensorBoardLogger:
    """Writes the curves of a fit where TensorBoard shows them: `tensorboard --logdir FOLDER`.

    The scalars are `loss` and `validation_loss` (nats a data point) and `seconds` over the steps. Each fit is a run
    in a subfolder of its own, `fit-0`, `fit-1`, ...; it is on the disk after each epoch.

    Example:
        >>> with TensorBoardLogger("runs/digits") as log:                                   # doctest: +SKIP
        ...     posterior = bq.inference.ensemble.fit(model, split.train, callbacks=[log])
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        """Choose the folder; it is made when the first epoch ends.

        Args:
            folder: Where the runs go. TensorBoard shows all that is in it, so give each fit a folder of its own.
        """
        self.folder = Path(folder)
        self._fit = -1
        self._writer: SummaryWriter | None = None

    def __call__(self, progress: Progress) -> None:
        """Write the scalars of this epoch."""
        if progress.epoch == 0 or self._writer is None:
            self.close()
            self._fit += 1
            self._writer = SummaryWriter(self.folder / f"fit-{self._fit}")
        self._writer.add_scalar("loss", progress.loss, progress.step)
        if progress.validation_loss is not None:
            self._writer.add_scalar("validation_loss", progress.validation_loss, progress.step)
        self._writer.add_scalar("seconds", progress.seconds, progress.step)
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the run; a later call begins another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
