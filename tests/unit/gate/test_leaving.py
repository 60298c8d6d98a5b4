"""Signals are remembered, and only the third one is obeyed at once."""

import os
import signal
import time

import pytest

from musicnet.gate.leaving import SIGNALS, LeftOnSignalError, leave_requests

# what is forked here does next to nothing, and no thread's lock with it
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def exit_code_of_child(body) -> int:
    """Exit code of a process that does only this; it is forked, and touches no tensor."""
    pid = os.fork()
    if pid == 0:
        body()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_is_remembered_and_the_handlers_come_back(signum: int) -> None:
    before = signal.getsignal(signum)
    with leave_requests() as requests:
        assert requests.first is None
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signal.SIGHUP)
        assert requests.first == signum
    assert signal.getsignal(signum) == before
    assert str(LeftOnSignalError(signum)) == f"ended by {signal.Signals(signum).name}"


def test_a_third_signal_ends_the_process_at_once() -> None:
    def impatient() -> None:
        with leave_requests():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    assert exit_code_of_child(impatient) == -signal.SIGTERM


@pytest.mark.parametrize(("signum", "ends"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_worker_leaves_a_terminals_signals_to_the_run(signum: int, ends: bool) -> None:
    with leave_requests() as requests:
        code = exit_code_of_child(lambda: os.kill(os.getpid(), signum))
        assert code == (-signum if ends else 0)
        assert requests.first is None
