"""Arrays of a file that are read in parts, so that a file may be larger than memory."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from musicnet.recordings.archives import MAX_BYTES, RecordingError
from musicnet.recordings.archives import sha256_of as sha256_of
from musicnet.recordings.mapped_arrays import MappedArray


@dataclass(frozen=True)
class LazyArray:
    """An array whose lines along the first axis can be read by themselves.

    Args:
        name: file and key, for messages.
        shape: of the whole.
        dtype: in the byte order of this machine.
        read: gives lines from one number to another; of an array without axes, everything.
        mapped: the same where it lies in the file as it is.
        pick: gives lines by number, where that is cheaper than reading one after the other.
        is_held: whether all of it is in memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    mapped: MappedArray | None = None
    pick: Callable[[Sequence[int]], np.ndarray] | None = None
    is_held: bool = False

    @property
    def n_bytes(self) -> int:
        """Of the whole; Python's integers do not overflow."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size

    def whole(self, max_bytes: int = MAX_BYTES) -> np.ndarray:
        """Reads everything.

        Raises:
            RecordingError: it is larger than the limit.
        """
        if self.n_bytes > max_bytes:
            raise RecordingError(
                f"{self.name} declares {self.n_bytes} bytes, the limit is {max_bytes}."
            )
        return self.read(0, self.shape[0] if self.shape else 1)

    def lines(self, numbers: Sequence[int]) -> np.ndarray:
        """Some lines along the first axis, from a map of the file where there is one.

        Args:
            numbers: of the lines, in any order; at least one.

        Returns:
            As many lines, which may be written on.

        Raises:
            OSError: the file cannot be read.
            RecordingError: it has changed, or is damaged there.
        """
        if self.mapped is not None:
            return self.mapped.lines(numbers)
        if self.pick is not None:
            return self.pick(numbers)
        return np.concatenate([self.read(number, number + 1) for number in numbers])

    @property
    def stand_in(self) -> np.ndarray:
        """Zeros of the same shape and type that take no memory, for checks of shapes."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)


@dataclass(frozen=True)
class Store:
    """The arrays of an open file; a context that closes it.

    Args:
        path: of the file.
        kind: what it is, in a word.
        arrays: by key.
        sha256: of the whole file, in hexadecimal.
        resources: what is open.
        rate_hz: lines of ``y`` per second, where it is one long record.
        frequency_hz: of the carrier, where the file says it.
    """

    path: Path
    kind: str
    arrays: Mapping[str, LazyArray]
    sha256: str
    resources: ExitStack = field(default_factory=ExitStack)
    rate_hz: float | None = None
    frequency_hz: float | None = None

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.resources.close()


def in_memory(name: str, array: np.ndarray) -> LazyArray:
    """An array that has been read already.

    Args:
        name: file and key.
        array: any byte order.

    Returns:
        The same, as others are given.

    Example:
        >>> in_memory("file:y", np.arange(6).reshape(3, 2)).read(1, 3).tolist()
        [[2, 3], [4, 5]]
    """
    array = native(array)
    return LazyArray(
        name,
        array.shape,
        array.dtype,
        lambda start, stop: array[start:stop] if array.ndim else array,
        is_held=True,
    )


def native(array: np.ndarray) -> np.ndarray:
    """The same numbers in the byte order of this machine."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)
