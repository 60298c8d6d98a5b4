"""The options that only sound over its whole band is asked with."""

import argparse
import math

from musicnet.localization.tracks import FASTEST_DEG

SOUND_METHODS = ("srp-phat", "cssm", "waves")
"""Methods for wideband sound alone; ``music`` is one as well, and what ``auto`` takes."""


def add_sound_options(parser: argparse.ArgumentParser) -> None:
    """Adds what only sound is asked with.

    Args:
        parser: of the command that localises.
    """
    group = parser.add_argument_group("sound without --frequency: bearings from all of its band")
    group.add_argument(
        "--window",
        type=_positive,
        metavar="S",
        help="seconds that one answer is made from (default: 1)",
    )
    group.add_argument(
        "--band",
        type=_positive,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="frequencies to listen to, Hz (default: 300 to 0.45 of the rate)",
    )
    group.add_argument(
        "--speed-std",
        type=_not_negative,
        metavar="M/S",
        help="standard deviation of --speed; widens error bars (default: 0)",
    )
    group.add_argument(
        "--track",
        type=_drift,
        metavar="DEG/S",
        help="join windows to tracks that drift by so much in a second, and smooth them",
    )


def _positive(word: str) -> float:
    value = _not_negative(word)
    if value == 0.0:
        raise argparse.ArgumentTypeError(f"must be a finite number > 0: got {word!r}")
    return value


def _drift(word: str) -> float:
    value = _positive(word)
    if value > FASTEST_DEG:
        raise argparse.ArgumentTypeError(
            f"must be at most {FASTEST_DEG:g} degrees in a second: got {word!r}"
        )
    return value


def _not_negative(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number >= 0: got {word!r}")
    return value
