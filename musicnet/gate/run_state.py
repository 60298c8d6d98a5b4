"""What Lightning leaves out of a checkpoint, and a run needs to go on as if nothing had happened.

Random numbers, the means of the epoch that is going on, the metrics that were shown last: a trainer
comes in, plain data and tensors go out, and back again.
"""

import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultCollection,
    _ResultMetric,
    _Sync,
)

KEY = "run_state"
"""Under which it stands in a checkpoint."""

_META = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph"),
    *("add_dataloader_idx", "dataloader_idx", "metric_attribute"),
)


def random_state() -> dict[str, Any]:
    """Where every global source of random numbers stands."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(words), gauss],
        "numpy": [str(name), [int(key) for key in keys], *rest],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Let every global source of random numbers go on from there."""
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002


def open_means(trainer: Trainer) -> list[dict[str, Any]]:
    """What was logged in the epoch that is going on, as far as it has come."""
    results: _ResultCollection = trainer.fit_loop.epoch_loop._results
    return [
        {
            "key": key,
            "value": metric.value.detach().clone(),
            "weight": metric.cumulated_batch_size.clone()
            if metric.meta.is_mean_reduction
            else None,
            "reduce": metric.meta.reduce_fx.__name__,
            "sync": [metric.meta.sync.should, metric.meta.sync.rank_zero_only],
            **{name: getattr(metric.meta, name) for name in _META},
        }
        for key, metric in results.items()
        if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset
    ]


def restore_open_means(trainer: Trainer, means: list[dict[str, Any]]) -> None:
    """Let the means of the epoch go on from there."""
    results: _ResultCollection = trainer.fit_loop.epoch_loop._results
    device = trainer.strategy.root_device
    for entry in means:
        meta = _Metadata(reduce_fx=entry["reduce"], **{name: entry[name] for name in _META})
        should, rank_zero_only = entry["sync"]
        meta.sync = _Sync(fn=trainer.strategy.reduce, _should=should, rank_zero_only=rank_zero_only)
        metric = _ResultMetric(meta, is_tensor=True)
        metric.value = entry["value"].to(device)
        if entry["weight"] is not None:
            metric.cumulated_batch_size = entry["weight"].to(device)
        metric._update_count = 1  # or it would warn that nothing was logged
        results[entry["key"]] = metric


def shown_metrics(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The metrics that callbacks go by, as they were logged last."""
    return {name: value.detach().clone() for name, value in trainer.callback_metrics.items()}


def restore_shown_metrics(trainer: Trainer, metrics: Mapping[str, torch.Tensor]) -> None:
    """Let callbacks see them again."""
    device = trainer.strategy.root_device
    trainer._logger_connector._callback_metrics.update(
        {name: value.to(device) for name, value in metrics.items()}
    )


def of_all_ranks(own: dict[str, Any]) -> list[dict[str, Any]]:
    """What every rank has of its own, in the order of ranks; all ranks call this together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def threads_of(checkpoint: Mapping[str, Any]) -> int | None:
    """With how many threads of the processor a checkpoint was made; None if it does not say."""
    n_threads: int | None = checkpoint.get(KEY, {}).get("threads")
    return n_threads


def warn_of_other_threads(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Say that numbers may differ: the last bits of a sum depend on how it was shared out."""
    saved, now = threads_of(checkpoint), torch.get_num_threads()
    if saved not in (None, now) and trainer.strategy.root_device.type == "cpu":
        warnings.warn(
            f"the run was saved with {saved} threads and goes on with {now}: its last bits need "
            f"not be those of a run that was never broken off. Call torch.set_num_threads({saved})",
            stacklevel=2,
        )
