"""How long this process has lived.

Nothing comes in; seconds of wall time go out, imports and set-up included.
"""

import os
import time
from pathlib import Path

_LOADED = time.monotonic()


def seconds_since_start() -> float:
    """Wall time since the process started, in seconds.

    Linux tells when a process started, to a hundredth of a second. Elsewhere the count begins
    when this module was loaded, which misses the interpreter's own start.

    Example:
        >>> earlier = seconds_since_start()
        >>> 0.0 <= earlier <= seconds_since_start()
        True
    """
    since_loaded = time.monotonic() - _LOADED
    try:
        # The second field, the program's name, may hold spaces: count from its bracket.
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        since_start = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return since_loaded
    # A container may count its boot from another moment than its processes.
    return since_start if since_start >= since_loaded else since_loaded
