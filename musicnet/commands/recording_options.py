"""The options by which an owner says what a recording does not."""

import argparse
import math

from musicnet.localization.bearings import Around
from musicnet.recordings.array_descriptions import read_array
from musicnet.recordings.setup import Setup


def add_recording_options(parser: argparse.ArgumentParser) -> None:
    """Adds them.

    Args:
        parser: of a command that opens recordings.
    """
    group = parser.add_argument_group("what a file does not say")
    group.add_argument(
        "--array",
        metavar="WORD|FILE",
        help="ula:8:0.5w, ura:8x8:0.5w, uca:8:0.10m (radius), or a .json, .yaml or .csv of places",
    )
    group.add_argument(
        "--frequency",
        type=_number,
        metavar="HZ",
        help="of the carrier; of sound, the narrow band to listen to",
    )
    group.add_argument(
        "--speed",
        type=_number,
        metavar="M/S",
        help="of the wave; default: that of light, of sound 343",
    )
    group.add_argument("--wavelength", type=_number, metavar="M", help="in place of the two")
    group.add_argument(
        "--snapshots",
        type=int,
        metavar="T",
        help="of a scene, where the file is one long record (default: 100)",
    )
    for name, what in (("azimuth", "azimuth"), ("elevation", "elevation")):
        group.add_argument(
            f"--{name}-deg",
            type=_number,
            nargs=2,
            metavar=("LOW", "HIGH"),
            help=f"{what} to search",
        )
    group.add_argument(
        "--range-m",
        type=_number,
        nargs=2,
        metavar=("NEAR", "FAR"),
        help="range to search; without it sources are far",
    )


def add_bearing_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of arrays that hear all around.

    Args:
        parser: of a command that localises.
    """
    group = parser.add_argument_group(
        "bearings",
        "Counter-clockwise from +x, all sources at one elevation above the plane of the array. "
        "Snapshots of uca:... are searched so, unless azimuth, elevation, range, a method or "
        "weights are given.",
    )
    group.add_argument(
        "--bearing-deg", type=_number, nargs=2, metavar=("LOW", "HIGH"), help="bearings to search"
    )
    group.add_argument(
        "--plane-elevation-deg",
        type=_number,
        metavar="DEG",
        help="of the sources above the plane of the array (default: 0, in it)",
    )


def around_of(arguments: argparse.Namespace) -> Around | None:
    """Whether bearings are asked for, and where.

    Args:
        arguments: of a parser with all options, for files of narrow bands.

    Returns:
        None where directions and ranges are.

    Raises:
        ValueError: numbers that cannot be, or options that contradict each other.
    """
    asked = _given(arguments, "bearing_deg", "plane_elevation_deg")
    others = _given(arguments, "azimuth_deg", "elevation_deg", "range_m", "weights")
    if arguments.method != "auto":
        others.append(f"--method {arguments.method}")
    is_ring = (arguments.array or "").startswith("uca:")
    if not asked and (others or not is_ring):
        return None
    if others:
        raise ValueError(
            "bearings are found by maximum likelihood, around the whole plane or between those of "
            f"--bearing-deg: got {', '.join(asked)} beside {', '.join(others)}. Leave one or the "
            "other out."
        )
    return Around(
        elevation_deg=arguments.plane_elevation_deg or 0.0,
        bearing_deg=_pair(arguments.bearing_deg) or (-180.0, 180.0),
    )


def _given(arguments: argparse.Namespace, *names: str) -> list[str]:
    """The words of options that have a value."""
    return [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None]


def setup_of(arguments: argparse.Namespace) -> Setup:
    """What was said.

    Args:
        arguments: of a parser with the options.

    Returns:
        The setup.

    Raises:
        OSError: a file of places cannot be read.
        RecordingError: a word or a number that cannot be.
    """
    return Setup(
        array=None if arguments.array is None else read_array(arguments.array),
        frequency_hz=arguments.frequency,
        speed_m_s=arguments.speed,
        wavelength_m=arguments.wavelength,
        n_snapshots=arguments.snapshots,
        azimuth_deg=_pair(arguments.azimuth_deg),
        elevation_deg=_pair(arguments.elevation_deg),
        range_m=_pair(arguments.range_m),
    )


def _pair(bounds: list[float] | None) -> tuple[float, float] | None:
    return None if bounds is None else (bounds[0], bounds[1])


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number: got {word!r}")
    return value
