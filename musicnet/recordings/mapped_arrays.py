"""Arrays that lie in a file as they are, mapped into memory.

Only the lines that are asked for are read, and the operating system keeps what fits. A map is
dangerous where a file changes under it: one that became shorter would end the process. So a file
is mapped as it was when it was checked, and looked at again before each use.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from musicnet.recordings.archives import RecordingError, check_regular_file, sha256_of

_MOST_OPEN = 64  # a folder may have more files than a process may hold open
_MOST_KNOWN = 1 << 16  # of a folder all of whose files were touched, each is read once


@dataclass(frozen=True)
class FileState:
    """Which content a path had; another one has another state.

    Args:
        path: of the file.
        inode: of the file system, with the number of its device.
        n_bytes: of the file.
        written_ns: when it was written last, as it says: anybody may set this.
        touched_ns: when anything of it was changed last, its owner or a second name too: only the
            system sets this.
        sha256: of its content; None where nobody has read all of it.
    """

    path: Path
    inode: tuple[int, int]
    n_bytes: int
    written_ns: int
    touched_ns: int
    sha256: str | None = None

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """The state of now; to be taken before anything of the file is checked.

        Raises:
            OSError: there is no such file, or it is no regular file.
            RecordingError: it is an address, or empty.
        """
        check_regular_file(path)
        return cls._from(path, path.stat())

    @classmethod
    def _from(cls, path: Path, facts: os.stat_result) -> "FileState":
        return cls(
            path,
            (facts.st_dev, facts.st_ino),
            *(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns),
        )

    def holding(self, sha256: str) -> "FileState":
        """The same with the hash of what was read after it was taken."""
        return replace(self, sha256=sha256)

    def check(self) -> None:
        """Refuses a file that is not what it was.

        One that was touched, and not written on as it says, is read whole to find out: a change of
        its permissions must not break a training, and who sets its time back must not hide one.

        Raises:
            OSError: it is gone, or cannot be read.
            RecordingError: it has changed.
        """
        self._check(FileState.of(self.path))

    def _check(self, now: "FileState") -> None:
        if now == replace(self, sha256=None):
            return
        is_touched = now == replace(self, touched_ns=now.touched_ns, sha256=None)
        if not is_touched or self.sha256 is None or _content_of(now) != self.sha256:
            raise _changed(self.path)

    def mapped(self) -> mmap.mmap:
        """The whole file; kept open for the next time, with those that were used last.

        Raises:
            OSError: it is gone, or its file system maps nothing.
            RecordingError: it has changed.
        """
        self.check()
        return _mapped(self)


@lru_cache(maxsize=_MOST_OPEN)
def _mapped(state: FileState) -> mmap.mmap:
    with state.path.open("rb") as file:
        state._check(FileState._from(state.path, os.fstat(file.fileno())))
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@lru_cache(maxsize=_MOST_KNOWN)
def _content_of(state: FileState) -> str:
    return sha256_of(state.path)


def _changed(path: Path) -> RecordingError:
    return RecordingError(f"{path} has changed since it was opened.")


@dataclass(frozen=True)
class MappedArray:
    """An array at some place of a file.

    Args:
        name: file and key, for messages.
        state: of the file when it was checked.
        offset: of the first number; bytes.
        shape: of the whole.
        dtype: in the file's byte order.
        order: "C", or "F" where the first axis runs fastest.

    Raises:
        RecordingError: the file is too short for it.
    """

    name: str
    state: FileState
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"] = "C"

    def __post_init__(self) -> None:
        declared = self.dtype.itemsize
        for length in self.shape:  # Python's integers do not overflow
            declared *= length
        left = self.state.n_bytes - self.offset
        if self.offset < 0 or declared > left:
            raise RecordingError(f"{self.name} declares {declared} bytes but has {left}.")

    def lines(self, numbers: Sequence[int]) -> np.ndarray:
        """Some lines along the first axis, copied, so that nothing hangs on the file any more.

        Args:
            numbers: of the lines, in any order.

        Returns:
            As many lines, in the byte order of this machine.

        Raises:
            OSError: the file is gone.
            RecordingError: it has changed since it was checked.
        """
        content = self.state.mapped()
        where = np.ndarray(self.shape, self.dtype, content, self.offset, order=self.order)
        found: np.ndarray = where[list(numbers)]
        del where
        if hasattr(mmap, "MADV_DONTNEED"):
            # what was touched would count as this process's memory; the system keeps it anyway
            content.madvise(mmap.MADV_DONTNEED)
        return found.astype(found.dtype.newbyteorder("="), order="C", copy=False)
