"""Which options which kind of recording takes: one that no file of a call takes is refused.

An option that is ignored would let its user believe that it was heeded. The table is all there is
to say; commands ask it once, before anything is read whole or written.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from musicnet.estimation.wideband import WIDEBAND_METHODS
from musicnet.localization import METHODS
from musicnet.recordings.audio_files import is_sound
from musicnet.recordings.sigmf_files import DATA, META
from musicnet.recordings.stores import open_store, read_beginning

Kind = Literal["sound", "band", "snapshots", "observations"]
"""Sound over its whole band, one narrow band of it, snapshots alone, or the observation format."""

_IS: Mapping[Kind, str] = {
    "sound": "sound over its whole band",
    "band": "a narrow band of sound",
    "snapshots": "snapshots of an array",
    "observations": "observations, which say wavelength and sector themselves",
}
_ALL: tuple[Kind, ...] = ("sound", "band", "snapshots", "observations")
_NARROW: tuple[Kind, ...] = ("band", "snapshots", "observations")
_BARE: tuple[Kind, ...] = ("band", "snapshots")

TAKEN_BY: Mapping[str, tuple[Kind, ...]] = {
    "window": ("sound",),
    "band": ("sound",),
    "speed_std": ("sound",),
    "track": ("sound",),
    "speed": ("sound", *_BARE),
    "frequency": _BARE,
    "wavelength": ("snapshots",),
    "snapshots": _BARE,
    "azimuth_deg": _BARE,
    "elevation_deg": _BARE,
    "range_m": _BARE,
    "bearing_deg": _NARROW,
    "weights": _NARROW,
}
"""Options that not all kinds take, by their names in a namespace, where None is not given."""

_METHODS: Mapping[Kind, tuple[str, ...]] = {
    "sound": ("auto", *WIDEBAND_METHODS),
    **dict.fromkeys(_NARROW, METHODS),
}

_DEFAULTS = {"window": 1.0, "speed_std": 0.0, "snapshots": 100}


def kind_of(path: Path, *, frequency_hz: float | None, has_array: bool) -> Kind | None:
    """What a file is to a command.

    Args:
        path: a local file.
        frequency_hz: of the narrow band that is asked for.
        has_array: whether the array is described beside the file.

    Returns:
        Its kind; None if it cannot be told, since the file is not there or is damaged: whoever
        opens it says why.
    """
    if path.suffix in (META, DATA):
        return "snapshots"
    try:
        beginning = read_beginning(path)
        if is_sound(beginning):
            return "sound" if frequency_hz is None else "band"
        if beginning.startswith(b"\x93NUMPY"):
            return "snapshots"
        if not has_array:
            return "observations"  # nothing else could be read without
        with open_store(path) as store:
            return "observations" if "format" in store.arrays else "snapshots"
    except (OSError, ValueError, ModuleNotFoundError):
        return None


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
                f"--{name.replace('_', '-')} is for {_said(takers)}: got {file}, {_IS[kind]}. "
                f"{_remedy(kind, takers)}"
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
        takers = [other for other in _ALL if method in _METHODS[other]]
        raise ValueError(
            f"{path} holds {_IS[kind]}, localised by one of {', '.join(_METHODS[kind])}: got "
            f"--method {method}. {_remedy(kind, takers)}"
        )


def fill_defaults(arguments: argparse.Namespace) -> None:
    """Gives the options that were not given, and have a default, their value."""
    for name, value in _DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def _said(takers: Sequence[Kind]) -> str:
    return (
        "what is heard in a narrow band"
        if takers == _NARROW
        else " or ".join(_IS[taker] for taker in takers)
    )


def _remedy(kind: Kind, takers: Sequence[Kind]) -> str:
    if kind == "sound" and "band" in takers:
        return "Leave it out, or give --frequency HZ for one narrow band."
    if kind == "band" and "sound" in takers:
        return "Leave it out, or leave --frequency out."
    return "Leave it out."
