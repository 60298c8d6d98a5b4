"""How many processors a run may use, and how its threads wait for one another.

Nothing comes in but the environment; a number goes out. torch reads how its threads shall wait when
it is loaded, so nothing here may import it.
"""

import os
from pathlib import Path

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""Who sets it has chosen a number of threads."""

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def let_waiting_threads_sleep() -> None:
    """Ask that threads sleep while they wait, unless the environment says how they shall wait.

    Two threads share every product of a step, and the one that is done first waits. By default it
    spins meanwhile: harmless on an idle machine, but where other programs want the processors it
    takes them from the very thread that it waits for, and a step takes ten times as long.

    Call it before torch is imported; afterwards it changes nothing.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ["GOMP_SPINCOUNT"] = "1000"  # some microseconds: as long as waking up takes


def usable_processors(quota: Path = _QUOTA) -> int:
    """Processors that this process may keep busy, at least one.

    Args:
        quota: what a container grants, as Linux tells it: microseconds of processor time in a
            period, or "max".

    Returns:
        Those that it may run on, and no more than the quota keeps busy all the time.

    Example:
        >>> usable_processors() >= 1
        True
    """
    try:
        there = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        there = os.cpu_count() or 1
    try:
        granted, period = quota.read_text(encoding="ascii").split()
        return max(1, min(there, int(granted) // int(period)))
    except (OSError, ValueError):  # no container, or no limit
        return there
