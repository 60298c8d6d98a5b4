"""What a run is judged by: one metric, named once, for checkpoints and sweeps alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from musicnet.cli.refusals import ConfigurationError, nearest


@dataclass(frozen=True)
class Objective:
    """What a run is judged by: the best checkpoint's metric and the number a sweep gets.

    Args:
        metric: key of a logged metric.
        mode: whether less or more of it is better.
    """

    metric: str
    mode: Literal["min", "max"] = "min"


class MetricWatch(Callback):
    """Ends a fit that waits for a metric which it will never log, before it has trained anything.

    Only validation can show its metrics, those that begin with ``val``, before the first step.

    Args:
        metrics: metric by the key of the configuration that names it.

    Attributes:
        has_trained: whether a training batch has come to its end.
    """

    def __init__(self, metrics: Mapping[str, str]) -> None:
        self.has_trained = False
        self._metrics = {key: name for key, name in metrics.items() if name.startswith("val")}
        self._unseen = True

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look among the metrics of the first validation, usually the one before training."""
        # an average of the weights is evaluated once there is one
        late = "val/averaged_" if getattr(pl_module, "average", None) is not None else None
        for key, name in self._metrics.items() if self._unseen else ():
            if late is None or not name.startswith(late):
                find(trainer, key, name)
        self._unseen = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without validation there is nothing to wait for."""
        for key, name in {} if trainer.enable_validation else self._metrics.items():
            raise ConfigurationError(
                f"{key} must be a metric that the run logs: got {name!r}, and nothing is "
                "validated. Let it validate, or name a metric of train/."
            )

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Remember it."""
        self.has_trained = True


def find(trainer: Trainer, key: str, name: str) -> float | None:
    """The last value of a metric; None if nothing at all was logged.

    Args:
        trainer: has logged it.
        key: of the configuration that names the metric.
        name: of the metric.

    Raises:
        ConfigurationError: others were logged but not this one.
    """
    logged = trainer.callback_metrics
    if name in logged:
        return float(logged[name])
    if logged:
        raise ConfigurationError(
            f"{key} must be a metric that the run logs: got {name!r}. {nearest(name, list(logged))}"
        )
    return None
