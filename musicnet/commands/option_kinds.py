"""Which options which kind of recording takes: one that no file of a call takes is refused.

An option that is ignored would let its user believe that it was heeded. The table is all there is
to say; commands ask it once, before anything is read whole or written.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from musicnet.estimation.wideband import WIDEBAND_METHODS
from musicnet.localization import METHODS
from musicnet.recordings.kinds import (
    ALL,
    IS,
    NARROW,
    SAID_OF,
    Kind,
    kind_of,
    remedy_of,
    said_of,
)

_FREQUENCY = "--frequency HZ"
_OPTIONS = {
    "speed_m_s": "speed",
    "frequency_hz": "frequency",
    "wavelength_m": "wavelength",
    "n_snapshots": "snapshots",
}

TAKEN_BY: Mapping[str, tuple[Kind, ...]] = {
    "window": ("sound",),
    "band": ("sound",),
    "speed_std": ("sound",),
    "track": ("sound",),
    **{_OPTIONS.get(name, name): takers for name, takers in SAID_OF.items()},
    "bearing_deg": NARROW,
    "weights": NARROW,
}
"""Options that not all kinds take, by their names in a namespace, where None is not given."""

_METHODS: Mapping[Kind, tuple[str, ...]] = {
    "sound": ("auto", *WIDEBAND_METHODS),
    **dict.fromkeys(NARROW, METHODS),
}

_DEFAULTS = {"window": 1.0, "speed_std": 0.0, "snapshots": 100}


def check_options(files: Sequence[Path], arguments: argparse.Namespace) -> list[Kind | None]:
    """Refuses an option, or a method, that none of the files takes.

    Args:
        files: of the call, of any kinds.
        arguments: with some of the options of the table.

    Returns:
        The kind of each file.

    Raises:
        ValueError: the option, what it is for, the first file, and what to do.
    """
    given = vars(arguments)
    kinds = [
        kind_of(
            file,
            frequency_hz=given.get("frequency"),
            has_array=given.get("array") is not None,
        )
        for file in files
    ]
    known = [(file, kind) for file, kind in zip(files, kinds, strict=True) if kind is not None]
    if not known:
        return kinds
    file, kind = known[0]
    for name, takers in TAKEN_BY.items():
        if given.get(name) is not None and all(kind not in takers for _, kind in known):
            raise ValueError(
                f"--{name.replace('_', '-')} is for {said_of(takers)}: got {file}, {IS[kind]}. "
                f"{remedy_of(kind, takers, _FREQUENCY)}"
            )
    method = given.get("method")
    if method is not None and all(method not in _METHODS[kind] for _, kind in known):
        check_method(file, kind, method)
    return kinds


def check_method(path: Path, kind: Kind, method: str) -> None:
    """Refuses a method that is not for files of a kind.

    Raises:
        ValueError: what the methods are.
    """
    if method not in _METHODS[kind]:
        takers = [other for other in ALL if method in _METHODS[other]]
        raise ValueError(
            f"{path} holds {IS[kind]}, localised by one of {', '.join(_METHODS[kind])}: got "
            f"--method {method}. {remedy_of(kind, takers, _FREQUENCY)}"
        )


def fill_defaults(arguments: argparse.Namespace) -> None:
    """Gives the options that were not given, and have a default, their value."""
    for name, value in _DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
