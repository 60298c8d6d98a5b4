"""What the small commands share: a parser that refuses in one line, and targets that can be."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

BAD_INPUT = 1
"""Exit code after one line on what is wrong."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class OneLineParser(argparse.ArgumentParser):
    """Refuses in one line instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Raises.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{message}. See --help.")


def told(error: BaseException) -> str:
    """What is wrong, in one line."""
    return f"error: {' '.join(str(error).split()) or type(error).__name__}\n"


def check_file_target(word: str, target: Path | None, sources: Sequence[Path] = ()) -> None:
    """Finds out before the work, not after it, where an answer cannot go.

    Args:
        word: the option, for messages.
        target: a file to be written; None asks for none.
        sources: files that must not be overwritten.

    Raises:
        ValueError: it cannot be written, or is one of the sources.
    """
    if target is None:
        return
    if target.is_dir():
        raise ValueError(f"{word} must name a file: got the folder '{target}'.")
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise ValueError(f"{word} must not be the recording itself: got {target} for both.")
    _check_place(word, target, target.absolute().parents)


def check_folder_target(word: str, target: Path | None) -> None:
    """The same of a folder.

    Raises:
        ValueError: it is a file, or cannot be written.
    """
    if target is None:
        return
    if target.exists() and not target.is_dir():
        raise ValueError(f"{word} must name a folder: got the file '{target}'.")
    whole = target.absolute()
    _check_place(word, target, (whole, *whole.parents))


def _check_place(word: str, target: Path, above: Sequence[Path]) -> None:
    # folders that are missing are made; one above them is there
    place = next(parent for parent in above if parent.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise ValueError(f"{word} must lie in a folder that can be written: got '{target}'.")
