"""What a call of `localize` asks, in JSON types: by it answers that were begun are known again.

Everything that may change an answer stands in it by its content, not by its name: recordings,
the description of the array, weights and the program. What changes none (how many scenes at once,
where pictures go) does not.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musicnet.commands.positions_files import FORMAT
from musicnet.commands.weights_choice import METHODS_WITH_WEIGHTS
from musicnet.networks.pretrained import Pretrained, shipped
from musicnet.recordings.lazy_arrays import sha256_of
from musicnet.recordings.setup import Setup
from musicnet.recordings.sigmf_files import DATA, META
from musicnet.records.provenance import hash_file, identify_code

_PACKAGE = Path(__file__).parents[1]


def config_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked, in words.

    Args:
        arguments: of the command, defaults filled in.

    Returns:
        Option -> value, JSON types.
    """
    names = (
        *("method", "n_sources", "array", "frequency", "speed", "wavelength"),
        *("snapshots", "azimuth_deg", "elevation_deg", "range_m"),
        *("bearing_deg", "plane_elevation_deg"),
        *("window", "band", "speed_std", "track"),
    )
    return {"command": "localize", **{name: getattr(arguments, name) for name in names}}


def question_of(
    arguments: argparse.Namespace, setup: Setup, files: Sequence[Path], named: Pretrained | None
) -> dict[str, Any]:
    """Which data, what is asked of them, and who answers.

    Args:
        arguments: of the command, defaults filled in.
        setup: what files do not say.
        files: of the call.
        named: weights that were asked for; None has them chosen.

    Returns:
        Two calls with the same have the same answers; JSON types.
    """
    return {
        "format": FORMAT,
        **config_of(arguments),
        "strict": arguments.strict,
        "setup": repr(setup),  # an array's places, wherever they were read from
        "weights": _weights(arguments.method, named),
        "code": identify_code(_PACKAGE),
        "files": [[str(file), *_hashes(file)] for file in files],
    }


def _weights(method: str, named: Pretrained | None) -> Mapping[str, str | None]:
    """Those that answer; where they are chosen, all of which: file and geometry do the rest."""
    if method not in METHODS_WITH_WEIGHTS:
        return {}
    if named is not None:
        return {named.name: named.sha256}
    return {name: hash_file(path) for name, path in shipped().items()}


def _hashes(file: Path) -> list[str | None]:
    """Of all that makes up a recording."""
    is_pair = file.suffix in (META, DATA)
    parts = (file.with_suffix(META), file.with_suffix(DATA)) if is_pair else (file,)
    return [_hash_or_none(part) for part in parts]


def _hash_or_none(file: Path) -> str | None:
    try:
        return sha256_of(file)
    except (OSError, ValueError):
        return None  # said in its turn
