"""Signals that ask a run to leave: it goes on to the next safe place, saves, and then goes.

TERM, INT, HUP and USR1 are taken while a run lasts. The first one is remembered, a second one
changes nothing, and a third one ends the process at once, as without any handler.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
_PATIENCE = 2


class LeftOnSignalError(RuntimeError):
    """A run has saved and leaves, as a signal asked it to.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signal.Signals(signum)
        super().__init__(f"ended by {self.signum.name}")


class LeaveRequests:
    """The signals that have come since the run began.

    Attributes:
        first: the first of them; None while nobody asks the run to leave.
    """

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self._count = 0
        self._process = os.getpid()

    def install(self) -> dict[int, Any]:
        """Listen to the signals.

        Returns:
            The handlers of before, by signal; none outside the main thread, which alone may.
        """
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {signum: signal.signal(signum, self._heard) for signum in SIGNALS}

    def _heard(self, signum: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker. A terminal asks all processes at once: the run itself answers.
            if signum in (signal.SIGTERM, signal.SIGUSR1):
                _end_now(signum)
            return
        self.first = self.first or signal.Signals(signum)
        self._count += 1
        if self._count > _PATIENCE:
            _end_now(signum)


@contextmanager
def leave_requests() -> Iterator[LeaveRequests]:
    """Listen to the signals for as long as the block lasts."""
    requests = LeaveRequests()
    before = requests.install()
    try:
        yield requests
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def _end_now(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
