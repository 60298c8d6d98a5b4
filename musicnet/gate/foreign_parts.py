"""What the harness says to Lightning's own parts where they would quietly do something else."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.core.optimizer import LightningOptimizer

# Lightning has it since 2.6
_WEIGHT_AVERAGING: tuple[type, ...] = tuple(
    found for found in (getattr(callbacks, "WeightAveraging", None),) if found is not None
)


def check_callbacks(trainer: Trainer) -> None:
    """Refuse callbacks that would end a fit with other weights than it has trained.

    Lightning's averages count calls of any optimiser instead of real steps: with two optimisers
    and an even period they never take a sample, and at the end they put the weights of the start
    in place of the trained ones.

    Raises:
        ValueError: there is one.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, _WEIGHT_AVERAGING):
            raise ValueError(
                "an average of the weights must count real steps and leave the trained ones: got "
                f"the callback {type(callback).__name__}. Give averaging=Averaging('ema') to the "
                "module instead."
            )


def warn_of_bare_optimizers(trainer: Trainer | None, optimizers: Iterable[object]) -> bool:
    """Warn if steps are taken behind the back of a trainer; tell whether it did."""
    bare = [o for o in optimizers if not isinstance(o, LightningOptimizer)]
    if trainer is None or not trainer.training or not bare:
        return False
    warnings.warn(
        f"an attempt in a fit should be given Lightning's optimisers: got a bare "
        f"{type(bare[0]).__name__}, whose steps do not count in global_step, so that max_steps and "
        "checkpoints by step wait for ever. Give self.optimizers()",
        stacklevel=2,
    )
    return True


def make_hyperparameters_plain(checkpoint: dict[str, Any]) -> None:
    """Turn OmegaConf's containers in a checkpoint into dicts and lists.

    A checkpoint that holds any other class is one that `weights_only=True` cannot load.
    """
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        if key in checkpoint:
            checkpoint[key] = _plain(checkpoint[key])
    checkpoint.pop("hparams_type", None)


def _plain(value: Any) -> Any:
    """Give mappings as dicts and sequences as lists, whatever class they are of."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | tuple):
        return [_plain(one) for one in value]
    return value


def warn_of_lost_order(trainer: Trainer) -> None:
    """Warn if a run goes on in the middle of an epoch with a loader that cannot.

    Lightning says so itself, but tells the middle of an epoch by the number of steps, which vetoes
    and further optimisers change.
    """
    loop = trainer.fit_loop
    done = loop.epoch_loop.batch_progress.current.completed
    total = trainer.num_training_batches
    if not (loop.restarting and 0 < done < total) or loop._combined_loader is None:
        return
    if all(hasattr(loader, "load_state_dict") for loader in loop._combined_loader.flattened):
        return
    if math.isfinite(total) and trainer.global_step % total:
        return  # Lightning is about to say so
    warnings.warn(
        f"the run goes on after batch {done} of {total} with a loader that cannot go on there: it "
        "may repeat batches and leave others out. Give it state_dict and load_state_dict, or "
        "resume from the end of an epoch",
        stacklevel=2,
    )


def warn_of_broken_means(trainer: Trainer) -> bool:
    """Warn of losses whose mean is not finite though the gradients were; tell whether it did.

    At the end of an epoch the means are computed anyway; to look at every loss would wait for the
    device in every step.
    """
    means = {n: m for n, m in trainer.callback_metrics.items() if n.startswith("train/")}
    broken = [name for name, mean in means.items() if not math.isfinite(mean)]
    if not broken:
        return False
    warnings.warn(
        f"{', '.join(broken)} of epoch {trainer.current_epoch + 1} must be finite as the "
        "gradients were, which alone decide on a step: got a mean of "
        f"{', '.join(str(float(means[name])) for name in broken)}. Look for what hides "
        "the loss from the gradients, as torch.nan_to_num or a branch without weights does",
        stacklevel=2,
    )
    return True
