"""Whoever holds a folder holds it alone, until it lets go or ends."""

import os
import signal
import time
from pathlib import Path

import pytest

from musicnet.records.run_lock import FolderTakenError, RunLock

# what is forked here does next to nothing, and no thread's lock with it
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def hold_in_child(folder: Path) -> int:
    """A process that holds the folder, with a child of its own that lives on."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock = RunLock(folder)
        if os.fork() == 0:
            time.sleep(3)
            os._exit(0)
        os.write(told, b"x")
        time.sleep(30)
        lock.release()
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    return pid


def test_a_killed_holder_lets_go_though_its_worker_lives_on(tmp_path: Path) -> None:
    pid = hold_in_child(tmp_path)
    with pytest.raises(FolderTakenError, match=f"got {tmp_path}, where another process"):
        RunLock(tmp_path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    RunLock(tmp_path).release()


def test_nothing_is_written_into_the_folder(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    assert not list(tmp_path.iterdir())
    lock.release()
    lock.release()
