"""A loader that begins inside an epoch, with any number of workers.

A batch sampler whose order depends on the epoch alone comes in; the loader can leave out the
batches that a run has seen before it was interrupted.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar

from torch.utils.data import BatchSampler, DataLoader
from typing_extensions import override

Item = TypeVar("Item", covariant=True)


class ResumableBatches(BatchSampler):
    """A batch sampler that can leave out the first batches, once.

    Its sampler must give the same order whenever it is asked in the same epoch: a permutation from
    seed and epoch, not from the global random numbers.

    Example:
        >>> batches = ResumableBatches([3, 1, 2], batch_size=1, drop_last=False)
        >>> batches.leave_out(2)
        >>> for _ in range(2):
        ...     batches.begin_pass()
        ...     print(list(batches))
        [[2]]
        [[3], [1], [2]]
    """

    _coming = _left_out = 0

    def leave_out(self, n_batches: int) -> None:
        """Let the pass that begins next go without so many batches."""
        self._coming = n_batches

    def begin_pass(self) -> None:
        """Begin a pass; a loader with workers makes two iterators for it and goes through one."""
        self._left_out, self._coming = self._coming, 0

    @override
    def __iter__(self) -> Iterator[list[Any]]:
        return islice(super().__iter__(), self._left_out, None)


class ResumableLoader(DataLoader[Item]):
    """A DataLoader with `ResumableBatches`; whoever resumes a run calls `resume_at`.

    Random numbers that a dataset draws in its workers begin anew in every epoch, from the epoch's
    number. Those of an item are repeatable inside an epoch only if they depend on the item's key.
    """

    def resume_at(self, epoch: int, done: int) -> None:
        """Let the next pass be the rest of an epoch.

        Args:
            epoch: number, from 0.
            done: batches of it that were trained on.

        Raises:
            TypeError: the batch sampler cannot leave out batches.
        """
        batches = self.batch_sampler
        if not isinstance(batches, ResumableBatches):
            raise TypeError(
                "a resumable loader needs a batch sampler that can leave out batches: got "
                f"{type(batches).__name__}. Use ResumableBatches."
            )
        if hasattr(batches.sampler, "set_epoch"):
            batches.sampler.set_epoch(epoch)
        batches.leave_out(done)

    @override
    def __iter__(self) -> Any:
        if isinstance(self.batch_sampler, ResumableBatches):
            self.batch_sampler.begin_pass()
        if self.generator is not None:
            epoch = getattr(getattr(self.batch_sampler, "sampler", None), "epoch", 0)
            self.generator.manual_seed(epoch)
        return super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the loop knows what was trained on, a loader only what it has handed out.

        Lightning takes a loader with this method for one that can be resumed.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
