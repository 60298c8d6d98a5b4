"""Where in a run a checkpoint was saved, put so that Lightning goes on from just there.

Lightning counts events as ready, started, processed and completed, and takes up a run by what
differs among them. Saved inside a hook, some of these counts say that what is still to come has
been: a last batch would lose its validation, a run that stopped inside an epoch the rest of it. The
counts of a checkpoint come in and are rewritten; out goes what remains to be done.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

_BATCHES, _EPOCHS = "epoch_loop.batch_progress", "epoch_progress"
_VALIDATION = "epoch_loop.val_loop.batch_progress"


@dataclass(frozen=True)
class Position:
    """Where a run goes on.

    Args:
        epoch: that is going on or begins, from 0.
        done: batches of it that were trained on.
        begins_epoch: whether the epoch has not begun, so that its first hooks are still to come.
        after_validation: whether the checkpoint was saved at the end of a validation; Lightning
            itself knows what is left then.
        validates: whether a validation comes before the next batch.
    """

    epoch: int
    done: int
    begins_epoch: bool
    after_validation: bool
    validates: bool


@dataclass(frozen=True)
class Pace:
    """What the counts of a checkpoint are to be measured by.

    Args:
        n_batches: of an epoch; infinity if there is no end.
        in_validation: whether the checkpoint was saved inside a validation.
        validation_due: whether a validation follows the batch whose end the checkpoint was
            saved at.
    """

    n_batches: float
    in_validation: bool
    validation_due: bool


def settle(loops: MutableMapping[str, Any], pace: Pace) -> Position:
    """Rewrite the counts of a checkpoint, wherever in a fit it was saved.

    Args:
        loops: the state of Lightning's fit loop; counts are replaced in it.
        pace: of the run that was saved.

    Returns:
        Where the run goes on.
    """
    epochs, batches = loops[_EPOCHS], loops[_BATCHES]
    done, epoch = batches["current"]["processed"], epochs["current"]["processed"]
    is_over = epoch == epochs["current"]["started"]
    if is_over and (batches["is_last_batch"] or not 0 < done < pace.n_batches):
        _level(epochs)
        _level(batches)
        _fill(batches["current"], 0)
        batches["is_last_batch"] = False
        return Position(epoch, 0, begins_epoch=True, after_validation=False, validates=False)
    if is_over:
        # a limit of steps or of time ended the run here; the rest of the epoch is still to come
        epoch -= 1
        for counts in (epochs["total"], epochs["current"]):
            counts["processed"] = counts["completed"] = counts["processed"] - 1
    total = batches["total"]
    is_batch_end = total["completed"] < total["processed"]
    is_batch_start = total["ready"] > total["processed"] or is_over
    validates = pace.in_validation or (is_batch_end and pace.validation_due)
    _level(batches)
    if validates:
        # as if the validation had begun and seen nothing, so that it is run as a whole
        validation = loops[_VALIDATION]
        _fill(validation["current"], 0)
        validation["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation["is_last_batch"] = False
    elif is_batch_start:
        batches["is_last_batch"] = False
    return Position(
        epoch,
        done,
        begins_epoch=False,
        after_validation=not (validates or is_batch_start or is_batch_end),
        validates=validates,
    )


def _level(progress: Mapping[str, Any]) -> None:
    """Let every event count as done, or as not begun."""
    for counts in (progress["total"], progress["current"]):
        _fill(counts, counts["processed"])


def _fill(counts: MutableMapping[str, int], value: int) -> None:
    for name in counts:
        counts[name] = value
