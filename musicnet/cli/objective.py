"""What a run is judged by: one metric, named once, for checkpoints and sweeps alike."""

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


class ObjectiveWatch(Callback):
    """Ends a fit that will never log its objective before it has trained anything.

    Args:
        objective: what the run shall be judged by.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    @override
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look among the metrics of the first validation."""
        self.value(trainer, prefix="val/")

    def value(self, trainer: Trainer, prefix: str = "") -> float | None:
        """The objective's last value.

        Raises:
            ConfigurationError: its key has the prefix, and others were logged but not it.
        """
        metric, logged = self.objective.metric, trainer.callback_metrics
        if metric in logged:
            return float(logged[metric])
        if logged and metric.startswith(prefix):
            raise ConfigurationError(
                f"objective.metric must be a metric that the run logs: got {metric!r}. "
                f"{nearest(metric, list(logged))}"
            )
        return None
