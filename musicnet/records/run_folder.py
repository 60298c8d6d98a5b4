"""The folder of one run, which no other run shares.

A root, an experiment's name, a time and a run id come in; a folder that did not exist goes out:
`<root>/<experiment>/<date_time>_<run id>/`.
"""

import re
import secrets
from datetime import datetime
from pathlib import Path

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*")


def new_run_id() -> str:
    """Eight hexadecimal digits that no seed can repeat.

    Example:
        >>> len(new_run_id()), new_run_id() == new_run_id()
        (8, False)
    """
    # secrets, not random: seeding a run must not give two runs one name.
    return secrets.token_hex(4)


def make_run_folder(root: str | Path, experiment: str, now: datetime, run_id: str) -> Path:
    """Make the folder of a new run.

    Args:
        root: the folder of all runs.
        experiment: its name: letters, digits and `._=,+-`, no folder parts.
        now: when the run started; local time reads best in a listing.
        run_id: the run's id, from `new_run_id`; its provenance and log rows carry it too.

    Returns:
        The folder, new and empty.

    Raises:
        ValueError: a name would leave the root.
        FileExistsError: another run has this folder.

    Example:
        >>> noon = datetime(2030, 1, 31, 12, 0)
        >>> folder = make_run_folder(getfixture("tmp_path"), "ula", noon, "c0ffee00")
        >>> folder.parent.name, folder.name
        ('ula', '2030-01-31_12-00-00_c0ffee00')
    """
    for what, name in (("experiment", experiment), ("run_id", run_id)):
        if not _PLAIN_NAME.fullmatch(name):
            raise ValueError(
                f"{what} names a folder, so it must be letters, digits and ._=,+- and start with "
                f"a letter or digit: got {name!r}. Choose a plain name."
            )
    parent = Path(root) / experiment
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{now:%Y-%m-%d_%H-%M-%S}_{run_id}"
    folder.mkdir()
    return folder
