"""`callbacks.MLflowLogger` and `callbacks.WandbLogger`: the curves of a fit in a run of a tracker of experiments.

Neither library is imported here: the user, who has begun the run, hands it over.
"""

from typing import Any, Protocol

from bayesuq.inference.training.options import Progress


class MLflowClient(Protocol):
    """What an `mlflow.MlflowClient` offers for this."""

    def log_metric(self, run_id: str, key: str, value: float, *, step: int) -> Any:
        """Write one number."""


class WandbRun(Protocol):
    """What the run that `wandb.init` gives offers for this."""

    def define_metric(self, name: str, *, step_metric: str) -> Any:
        """Say which number is the abscissa of others."""

    def log(self, data: dict[str, Any]) -> Any:
        """Write numbers."""


class MLflowLogger:
    """Writes the curves of a fit as metrics of a run of MLflow's, over the steps.

    The metrics are `loss` and `validation_loss` (nats a data point) and `seconds`; those of further fits with this
    logger, such as an ensemble's members, begin with `fit-1/`, `fit-2/`, ...

    Example:
        >>> with mlflow.start_run() as run:                                                 # doctest: +SKIP
        ...     log = MLflowLogger(mlflow.MlflowClient(), run.info.run_id)
        ...     posterior = bq.inference.variational.fit(model, split.train, callbacks=[log])
    """

    def __init__(self, client: MLflowClient, run_id: str) -> None:
        """Choose the run.

        Args:
            client: An `mlflow.MlflowClient`.
            run_id: Of a run that has begun.
        """
        self._client, self._run_id, self._fits = client, run_id, Fits()

    def __call__(self, progress: Progress) -> None:
        """Write the metrics of this epoch."""
        for name, value in self._fits.metrics(progress).items():
            self._client.log_metric(self._run_id, name, value, step=progress.step)


class WandbLogger:
    """Writes the curves of a fit into a run of Weights & Biases', over the steps.

    The metrics are `loss` and `validation_loss` (nats a data point) and `seconds`; those of further fits with this
    logger, such as an ensemble's members, begin with `fit-1/`, `fit-2/`, ..., each over a `step` of its own.

    Example:
        >>> with wandb.init(project="digits") as run:                                       # doctest: +SKIP
        ...     posterior = bq.inference.variational.fit(model, split.train, callbacks=[WandbLogger(run)])
    """

    def __init__(self, run: WandbRun) -> None:
        """Choose the run, as `wandb.init` gives it."""
        self._run, self._fits, self._defined = run, Fits(), set[str]()

    def __call__(self, progress: Progress) -> None:
        """Write the metrics of this epoch."""
        metrics = self._fits.metrics(progress)
        step = f"{self._fits.prefix}step"
        for name in metrics.keys() - self._defined:
            self._run.define_metric(name, step_metric=step)
        self._defined |= metrics.keys()
        self._run.log({**metrics, step: progress.step})


class Fits:
    """Counts the fits that a logger sees, and names their numbers.

    Attributes:
        prefix: Of the names of the present fit; none of the first.
    """

    def __init__(self) -> None:
        self._number, self.prefix = -1, ""

    def metrics(self, progress: Progress) -> dict[str, float]:
        """The numbers of an epoch by name."""
        self._number += progress.epoch == 0 or self._number < 0  # a fit that goes on from a file begins later
        self.prefix = f"fit-{self._number}/" if self._number > 0 else ""
        found = {"loss": progress.loss, "validation_loss": progress.validation_loss, "seconds": progress.seconds}
        return {f"{self.prefix}{name}": float(value) for name, value in found.items() if value is not None}
