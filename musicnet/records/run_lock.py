"""One process per run folder: whoever holds the lock writes there, and nobody else does.

A folder comes in; a held lock goes out. The system itself releases it when the process ends,
however it ends, so that a killed run can be taken up at once.
"""

import os
from pathlib import Path


class FolderTakenError(RuntimeError):
    """Another process is at work in the folder."""


class RunLock:
    """Holds a folder until it is released or the process ends.

    Args:
        folder: is there already; nothing is written into it.

    Raises:
        FolderTakenError: another process holds it.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> lock = RunLock(folder)
        >>> try:
        ...     RunLock(folder)
        ... except FolderTakenError:
        ...     print("taken")
        taken
        >>> lock.release()
        >>> RunLock(folder).release()
    """

    def __init__(self, folder: str | Path) -> None:
        self._descriptor = _locked(Path(folder))
        # a forked worker that outlives its killed parent would hold the lock on
        os.register_at_fork(after_in_child=self._close)

    def release(self) -> None:
        """Let others have the folder."""
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """Open the folder and lock it; None where the system, or the file system, knows no locks."""
    if os.name != "posix":
        return None
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            return None
        raise FolderTakenError(
            f"each run needs a folder of its own: got {folder}, where another process is at work. "
            "Wait for it, or start a new run."
        ) from error
    return descriptor
