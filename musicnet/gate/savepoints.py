"""Saves a run so often that a kill costs little, and takes it up as if nothing had happened.

It saves between two batches, when every hook of the last one has run, and puts into every
checkpoint of the trainer what Lightning leaves out.
"""

import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from musicnet.gate import run_state
from musicnet.gate.checkpoint_files import LAST
from musicnet.gate.leaving import LeaveRequests, LeftOnSignalError
from musicnet.gate.loop_position import Pace, Position, settle

_VERSION = 1


class Savepoints(Callback):
    """Writes `checkpoints/last.ckpt` by batches and by time, whether the gate is open or shut.

    It saves at the start of every epoch, at the end of training and, in between, before the batch
    that follows `every_n_batches` batches or `every_minutes` minutes since the last time; an
    accumulation window is finished first. On a signal of `requests` it saves there too and leaves.

    A run that is resumed from any checkpoint of a trainer with this callback ends with the weights
    of one that was never interrupted, to the last bit on the same processor, if its loader begins
    where it was left (`ResumableLoader`).

    Args:
        every_n_batches: batches between two saves inside an epoch; None goes by time alone.
        every_minutes: minutes between two saves inside an epoch; None goes by batches alone.
        dirpath: folder (default: `checkpoints` of the trainer's `default_root_dir`).
        only_on_request: saves on a signal alone.

    Attributes:
        requests: signals that ask the run to leave; None listens to nobody.

    Raises:
        ValueError: an interval is not above 0.
    """

    def __init__(
        self,
        every_n_batches: int | None = None,
        every_minutes: float | None = 5.0,
        dirpath: str | None = None,
        *,
        only_on_request: bool = False,
    ) -> None:
        for name, value in (("every_n_batches", every_n_batches), ("every_minutes", every_minutes)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0: got {value}. Use null for never.")
        self.every_n_batches = every_n_batches
        self.every_minutes = every_minutes
        self.dirpath = dirpath
        self.only_on_request = only_on_request
        self.requests: LeaveRequests | None = None
        self._forget()

    def _forget(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._position: Position | None = None
        self._random: dict[str, Any] | None = None
        self._loader_states: list[dict[str, Any]] | None = None
        self._validated = 0
        self._batches_since = 0
        self._saved_at = time.monotonic()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Go before all other callbacks, so that none has begun a batch that is saved as undone."""
        if stage != "fit":
            return
        self._forget()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.remove(self)
        callbacks.insert(0, self)
        if not any(isinstance(callback, _LastHooks) for callback in callbacks):
            callbacks.append(_LastHooks())

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning leaves out."""
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        own = {
            "random": self._random or run_state.random_state(),
            "means": run_state.open_means(trainer),
        }
        checkpoint[run_state.KEY] = {
            "version": _VERSION,
            "ranks": run_state.of_all_ranks(own),
            "metrics": run_state.shown_metrics(trainer),
            "n_batches": float(trainer.num_training_batches),
            "threads": torch.get_num_threads(),
            "in_validation": self._random is not None,
            "validated": self._validated,
            "validation_due": fetcher is not None and loop._should_check_val_fx(fetcher),
            "batches_that_stepped": loop._batches_that_stepped,
        }
        if self._loader_states is not None:
            loops = checkpoint["loops"]["fit_loop"]
            loops["state_dict"]["combined_loader"] = self._loader_states

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Find out where the run goes on, before Lightning does."""
        state = checkpoint.get(run_state.KEY)
        if state is None or not trainer.training:
            return
        if state.get("version") != _VERSION:
            raise ValueError(
                f"the state of a run must be of version {_VERSION}: got {state.get('version')!r}. "
                "Go on with the musicnet that saved it."
            )
        run_state.warn_of_other_threads(trainer, checkpoint)
        pace = Pace(state["n_batches"], state["in_validation"], state["validation_due"])
        self._loaded = state
        self._position = settle(checkpoint["loops"]["fit_loop"], pace)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what was shown last, also to a run that has nothing left to do."""
        if self._loaded is not None:
            run_state.restore_shown_metrics(trainer, self._loaded["metrics"])

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back from Lightning."""
        self._listen()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on inside the epoch: the loader where it was left, the means as they were."""
        self._listen()
        self._saved_at = time.monotonic()
        if self._loaded is None or self._position is None:
            return
        own = self._own(trainer)
        if own is not None and not self._position.begins_epoch:
            run_state.restore_open_means(trainer, own["means"])
        _wind_forward(trainer, self._position)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the random numbers of a checkpoint that was saved between two epochs."""
        self._restore_random_state(trainer)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, before anything of this batch has begun."""
        if self._position is not None:
            self._restore_random_state(trainer)
            if not (self._position.after_validation or self._position.validates):
                # Lightning counts a batch twice where it looks whether a validation is due
                loop = trainer.fit_loop.epoch_loop
                loop._batches_that_stepped = (self._loaded or {})["batches_that_stepped"]
            if batch_idx > 0:
                # or Lightning would take this for the first batch, and begin its means anew
                trainer._logger_connector._first_loop_iter = False
            self._loaded = self._position = None
            self._batches_since = 0
        elif self._is_between_steps(trainer) and (
            # before its first batch a loader that counts by itself cannot be asked any more
            batch_idx > 0 or not self._counting_loaders(trainer)
        ):
            self._save_if_asked(trainer, is_due=self._is_due(batch_idx))
        self._loader_states = None
        self._batches_since += 1

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Ask loaders that count by themselves now: when it is saved, they are a batch ahead."""
        if self._counting_loaders(trainer):
            self._loader_states = trainer.fit_loop._combined_loader._state_dicts()  # type: ignore[union-attr]

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the random numbers: a validation that is left is run anew as a whole."""
        if not trainer.sanity_checking:
            self._restore_random_state(trainer)
            self._random = run_state.random_state()
            total = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
            if self._loaded is not None and self._position is not None and self._position.validates:
                # it was counted as begun, for Lightning to run it
                total.reset()
                total.increment_by(self._loaded["validated"])
            self._validated = total.completed

    @override
    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Do not keep whoever asks waiting for the end of a validation."""
        # ranks need not have equally many batches here, and must not wait for each other
        alone = trainer.world_size == 1
        if alone and self._random is not None and self._is_between_steps(trainer):
            self._save_if_asked(trainer, is_due=False)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation is over."""
        self._random = None

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt` now; all ranks call this together. A `fast_dev_run` leaves nothing."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path(trainer))
        self._batches_since = 0
        self._saved_at = time.monotonic()

    def path(self, trainer: Trainer) -> Path:
        """Where `last.ckpt` goes."""
        folder = Path(trainer.default_root_dir) / "checkpoints"
        return (folder if self.dirpath is None else Path(self.dirpath)) / LAST

    def _listen(self) -> None:
        if self.requests is not None:
            self.requests.install()  # Lightning has put its own handlers there meanwhile

    def _save_if_asked(self, trainer: Trainer, *, is_due: bool) -> None:
        """Save if it is time or a signal has come; leave if one has."""
        signum = 0 if self.requests is None else int(self.requests.first or 0)
        if trainer.world_size > 1:
            # a signal reaches any rank, and the first one's clock counts for all
            own = [signum, int(is_due and trainer.is_global_zero)]
            asked = torch.tensor(own, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            signum, is_due = int(asked[0]), bool(asked[1])
        if signum or is_due:
            self.save(trainer)
        if signum:
            raise LeftOnSignalError(signum)

    def _is_due(self, batch_idx: int) -> bool:
        if self.only_on_request or batch_idx == 0:
            return not self.only_on_request
        if self.every_n_batches is not None and self._batches_since >= self.every_n_batches:
            return True
        minutes = (time.monotonic() - self._saved_at) / 60
        return self.every_minutes is not None and minutes >= self.every_minutes

    def _is_between_steps(self, trainer: Trainer) -> bool:
        """Whether nothing is under way that no checkpoint holds, as gradients are."""
        return not getattr(trainer.lightning_module, "is_accumulating", False)

    def _counting_loaders(self, trainer: Trainer) -> bool:
        loaders = _loaders(trainer)
        return any(hasattr(one, "state_dict") and not hasattr(one, "resume_at") for one in loaders)

    def _own(self, trainer: Trainer) -> dict[str, Any] | None:
        """What the checkpoint has of this rank."""
        ranks: list[dict[str, Any]] = (self._loaded or {"ranks": []})["ranks"]
        if len(ranks) == trainer.world_size:
            return ranks[trainer.global_rank]
        if ranks:
            warnings.warn(
                f"the run was saved by {len(ranks)} ranks and goes on with {trainer.world_size}: "
                "random numbers and the means of this epoch begin anew",
                stacklevel=2,
            )
            (self._loaded or {})["ranks"] = []
        return None

    def _restore_random_state(self, trainer: Trainer) -> None:
        """Once, at the first hook in which training draws numbers."""
        if self._loaded is None:
            return
        own = self._own(trainer)
        if own is not None:
            run_state.restore_random_state(own["random"])
            self._loaded["ranks"] = []


class _LastHooks(Callback):
    """Saves when all other callbacks have seen the end, what they judged included."""

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Savepoints) and not callback.only_on_request:
                callback.save(trainer)


def _loaders(trainer: Trainer) -> list[Any]:
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else combined.flattened


def _wind_forward(trainer: Trainer, position: Position) -> None:
    """Let the loaders begin after the batches that were trained on."""
    own = [loader for loader in _loaders(trainer) if hasattr(loader, "resume_at")]
    for loader in own:
        loader.resume_at(position.epoch, position.done)
    if own and trainer.fit_loop._data_fetcher is not None:
        iter(trainer.fit_loop._data_fetcher)  # it has looked at the epoch's first batches already
