"""What kind of recording a file is, and which of the things that its owner may say it takes.

What is said and ignored would let its sayer believe that it was heeded: it is refused instead, by
commands in the words of their options, in Python in those of `Setup`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.audio_files import is_sound
from musicnet.recordings.setup import Setup
from musicnet.recordings.sigmf_files import DATA, META
from musicnet.recordings.stores import open_store, read_beginning

Kind = Literal["sound", "band", "snapshots", "observations"]
"""Sound over its whole band, one narrow band of it, snapshots alone, or the observation format."""

IS: Mapping[Kind, str] = {
    "sound": "sound over its whole band",
    "band": "a narrow band of sound",
    "snapshots": "snapshots of an array",
    "observations": "observations, which say wavelength and sector themselves",
}
ALL: tuple[Kind, ...] = ("sound", "band", "snapshots", "observations")
NARROW: tuple[Kind, ...] = ("band", "snapshots", "observations")
_BARE: tuple[Kind, ...] = ("band", "snapshots")

SAID_OF: Mapping[str, tuple[Kind, ...]] = {
    "speed_m_s": ("sound", *_BARE),
    "frequency_hz": _BARE,
    "wavelength_m": ("snapshots",),
    "n_snapshots": _BARE,
    "azimuth_deg": _BARE,
    "elevation_deg": _BARE,
    "range_m": _BARE,
}
"""Fields of `Setup` that not all kinds take."""


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


def check_said(path: Path, setup: Setup) -> None:
    """Refuses what is said of a file that does not take it.

    Args:
        path: a local file.
        setup: what is said.

    Raises:
        RecordingError: the first such thing, what it is for, and what to do.
    """
    has_array = setup.array is not None
    kind = kind_of(path, frequency_hz=setup.frequency_hz, has_array=has_array)
    if kind is None:
        return
    for name, takers in SAID_OF.items():
        if getattr(setup, name) is not None and kind not in takers:
            raise RecordingError(
                f"{name} is for {said_of(takers)}: got {path}, {IS[kind]}. "
                f"{remedy_of(kind, takers, 'frequency_hz')}"
            )


def said_of(takers: Sequence[Kind]) -> str:
    """Kinds in words."""
    return (
        "what is heard in a narrow band"
        if takers == NARROW
        else " or ".join(IS[taker] for taker in takers)
    )


def remedy_of(kind: Kind, takers: Sequence[Kind], frequency: str) -> str:
    """What to do about something that files of a kind do not take, and others do."""
    if kind == "sound" and "band" in takers:
        return f"Leave it out, or give {frequency} for one narrow band."
    if kind == "band" and "sound" in takers:
        return f"Leave it out, or leave {frequency.split()[0]} out."
    return "Leave it out."
