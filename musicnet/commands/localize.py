"""`python -m musicnet localize FILE`: positions with error bars from recorded snapshots.

An observation file comes in; ``musicnet.positions/1``, a JSON tree, goes out. Labels in the file
are not looked at, but for the number of sources where ``--n-sources truth`` asks for it.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Int
from torch import Tensor

from musicnet.commands.weights_choice import choice_of, weights_for
from musicnet.coordinates import angles, to_xyz
from musicnet.localization import METHODS, Estimates, localize
from musicnet.networks.pretrained import Pretrained, shipped
from musicnet.recordings.observation_files import ObservationFile, read_observations
from musicnet.records.atomic_files import write_json
from musicnet.records.provenance import collect_provenance
from musicnet.scene.snapshots import Observation

FORMAT = "musicnet.positions/1"
"""What the output is, and its version."""

_BAD_INPUT = 1
_SCENES_AT_ONCE = 256

Asked = int | Literal["truth"] | None


def run(argv: Sequence[str]) -> int:
    """Localise the sources of a file.

    Args:
        argv: what follows the word `localize`.

    Returns:
        The exit code: 0, or 1 after one line on what is wrong.
    """
    try:
        arguments = _parser().parse_args(argv)
        _check_output(arguments.file, arguments.output)
        with warnings.catch_warnings(record=True) as noticed:
            warnings.simplefilter("always")
            recording = read_observations(arguments.file)
        for notice in noticed:
            sys.stderr.write(f"warning: {notice.message}\n")
        most = _most(_counts(recording, arguments.n_sources))
        pretrained = weights_for(recording, arguments.method, arguments.weights, most)
        tree = positions(recording, arguments.method, arguments.n_sources, pretrained)
        _write(tree, arguments.output)
        # not before the work: a refusal is one line
        if told := choice_of(arguments.method, pretrained):
            sys.stderr.write(f"{told}\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return _BAD_INPUT
    return 0


def positions(
    recording: ObservationFile, method: str, asked: Asked, pretrained: Pretrained | None = None
) -> dict[str, Any]:
    """Localises all scenes of a recording.

    Args:
        recording: what was heard.
        method: one of `musicnet.localization.METHODS`.
        asked: sources of every scene, "truth" to take their number from the labels, None to have
            them counted.
        pretrained: the network of methods neural and auto.

    Returns:
        The tree of ``musicnet.positions/1``, JSON types only.

    Raises:
        ValueError: the method does not fit the recording, or there are no labels to count.
    """
    counts = _counts(recording, asked)
    is_far = recording.region.inverse_range == (0.0, 0.0)
    scenes: dict[int, dict[str, Any]] = {}
    for index, operator in _groups(recording):
        heard = Observation(
            y=recording.y[index],
            operator=recording.operator[operator],
            noise_power=recording.noise_power[index],
            positions=recording.positions,
            wavelength=recording.wavelength,
        )
        started = time.process_time()
        known = counts if counts is None or isinstance(counts, int) else counts[index]
        found = localize(heard, method, known, region=recording.region, pretrained=pretrained)
        cpu_ms = 1e3 * (time.process_time() - started) / len(index)
        for scene, entry in zip(index.tolist(), _entries(found, is_far=is_far), strict=True):
            scenes[scene] = {"scene": scene, "n_sources": 0, "cpu_ms": cpu_ms, **entry}
    weights = pretrained and {"name": pretrained.name, "sha256": pretrained.sha256}
    config = {"command": "localize", "method": method, "n_sources": asked, "weights": weights}
    origin = collect_provenance(
        config, data_hash=recording.sha256, code_folder=Path(__file__).parent
    )
    return {
        "format": FORMAT,
        "provenance": {**asdict(origin), "config": config},
        "scenes": [scenes[scene] for scene in range(recording.n_scenes)],
    }


def _counts(recording: ObservationFile, asked: Asked) -> int | Int[Tensor, " scene"] | None:
    if asked != "truth":
        return asked
    if recording.truth is None:
        raise ValueError(
            "--n-sources truth needs labels: the file has no 'truth_xyz'. Give a number, or leave "
            "--n-sources out to have the sources counted."
        )
    return recording.truth.n_sources


def _most(counts: int | Int[Tensor, " scene"] | None) -> int | None:
    return int(counts.max()) if isinstance(counts, Tensor) else counts


def _groups(recording: ObservationFile) -> Iterator[tuple[Int[Tensor, " scene"], int]]:
    """Scenes that share an operator share its costs."""
    for operator in sorted(set(recording.operator_index.tolist())):
        index = (recording.operator_index == operator).nonzero().squeeze(-1)
        for some in index.split(_SCENES_AT_ONCE):
            yield some, operator


def _entries(found: Estimates, *, is_far: bool) -> Iterator[dict[str, Any]]:
    """What the file says about each scene."""
    columns = _columns(found, is_far=is_far)
    resolved = found.sources.resolved
    for scene, n_declared in enumerate(found.n_sources.tolist()):
        # what the method declares and has not found stands last
        slots = resolved[scene].to(torch.uint8).argsort(descending=True, stable=True)[:n_declared]
        yield {
            "n_sources": n_declared,
            "log_likelihood": _number(found.log_likelihood[scene]),
            "sources": [
                {
                    **{name: _number(values[scene, slot]) for name, values in columns.items()},
                    "resolved": bool(resolved[scene, slot]),
                    "method": found.method,
                }
                for slot in slots.tolist()
            ],
        }


def _columns(found: Estimates, *, is_far: bool) -> dict[str, Tensor]:
    """Name -> value of every source, [scene, source]; units are in the names."""
    parameters = found.sources.parameters.double()
    azimuth, elevation = angles(parameters)
    std_azimuth, std_elevation = found.std_angles
    rho = parameters[..., 2]
    points, spread = to_xyz(parameters), found.std_xyz
    if not is_far:
        # among metres a unit vector would read as a source a metre away
        at_infinity = (rho == 0)[..., None]
        points = points.masked_fill(at_infinity, torch.nan)
        spread = spread.masked_fill(at_infinity, torch.nan)
    return {
        "azimuth_deg": azimuth.rad2deg(),
        "elevation_deg": elevation.rad2deg(),
        "range_m": torch.where(rho == 0, torch.nan, rho.reciprocal()),
        **dict(zip("xyz", points.unbind(-1), strict=True)),
        "std_azimuth_deg": std_azimuth.rad2deg(),
        "std_elevation_deg": std_elevation.rad2deg(),
        "std_range_m": found.std_range,
        **dict(zip(("std_x", "std_y", "std_z"), spread.unbind(-1), strict=True)),
    }


def _number(value: Tensor) -> float | None:
    """JSON has no NaN: what is missing is null."""
    return value.item() if bool(value.isfinite()) else None


def _check_output(file: Path, output: Path | None) -> None:
    """Finds out before the work, not after it, where the answer cannot go."""
    if output is None:
        return
    if output.is_dir():
        raise ValueError(f"--output must name a file: got the folder '{output}'.")
    if output.exists() and file.exists() and output.samefile(file):
        raise ValueError(f"--output must not be the recording itself: got {output} for both.")
    # folders that are missing are made; one above them is there
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"--output must lie in a folder that can be written: got '{output}'.")


def _write(tree: dict[str, Any], output: Path | None) -> None:
    if output is None:
        print(json.dumps(tree, indent=2, allow_nan=False))
        return
    write_json(output, tree)
    n_sources = sum(source["resolved"] for scene in tree["scenes"] for source in scene["sources"])
    print(f"{len(tree['scenes'])} scenes, {n_sources} sources: {output}")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="python -m musicnet localize",
        description="Positions with error bars from recorded snapshots. The file's sector is "
        "searched as the smallest box in (u, v, 1/r) around it: answers may lie outside the sector "
        "in azimuth, where the box is wider.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="observations (musicnet.observations/1, .npz)")
    parser.add_argument("--method", choices=METHODS, default="auto", help="default: auto")
    parser.add_argument(
        "--weights",
        metavar="NAME|FILE|CKPT",
        help="trained network of the methods neural and auto: a name of those that ship "
        f"({', '.join(shipped()) or 'none'}), a file, or a run's checkpoint; default: the first "
        "that fits the array. A calibration belongs to one piece of hardware and must be named",
    )
    parser.add_argument(
        "--n-sources",
        type=_asked,
        metavar="K|truth",
        help="sources of every scene, or 'truth' to take their number from the file's labels; "
        "without it they are counted",
    )
    parser.add_argument("--output", type=Path, help=f"JSON file ({FORMAT}); default: print it")
    return parser


def _asked(word: str) -> Asked:
    if word == "truth":
        return "truth"
    if not (word.isascii() and word.isdigit() and int(word) > 0):
        raise argparse.ArgumentTypeError(f"must be a number >= 1, or 'truth': got {word!r}")
    return int(word)


class _OneLineParser(argparse.ArgumentParser):
    """Refuses in one line instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. See --help.")
