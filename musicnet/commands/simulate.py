"""`python -m musicnet simulate --experiment NAME --n N FILE`: observation files with labels."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from musicnet.commands.parsing import BAD_INPUT, OneLineParser, check_file_target, told
from musicnet.networks.fitting import find_weights
from musicnet.recordings.archives import MAX_BYTES
from musicnet.recordings.observation_files import ObservationFile
from musicnet.recordings.writing import SUFFIXES, check_suffix, write_recording
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import Sources

SPLIT = "simulate"
"""Of the generators: scenes that no training has seen."""

_SCENES_PER_CHANNEL = 32
_BLOCKS_AT_ONCE = 16


def run(argv: Sequence[str], scene_of: Callable[[str], Scene]) -> int:
    """Draw scenes and write them.

    Args:
        argv: what follows the word `simulate`.
        scene_of: gives the scene of an experiment.

    Returns:
        The exit code: 0, or 1 after one line on what is wrong.
    """
    try:
        arguments = _parser().parse_args(argv)
        check_file_target("FILE", arguments.file)
        check_suffix(arguments.file)
        if (arguments.experiment is None) == (arguments.weights is None):
            raise ValueError("one of --experiment and --weights must say what to simulate.")
        if arguments.weights is None:
            scene = scene_of(arguments.experiment)
        else:
            scene = find_weights(arguments.weights).scene
        recording = simulate(scene, arguments.n, arguments.seed)
        write_recording(arguments.file, recording)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(told(error))
        return BAD_INPUT
    print(f"{recording.n_scenes} scenes: {arguments.file}")
    return 0


def simulate(scene: Scene, n_scenes: int, seed: int) -> ObservationFile:
    """Draws scenes.

    Args:
        scene: the physics.
        n_scenes: how many; the first ones do not depend on it.
        seed: of everything.

    Returns:
        The recording, with labels; its hash is empty.

    Raises:
        ValueError: more than fits into a file.
    """
    if n_scenes < 1:
        raise ValueError(f"--n must be at least 1: got {n_scenes}.")
    n_bytes = 8 * n_scenes * scene.n_blocks * scene.n_rows
    if n_bytes > MAX_BYTES:
        raise ValueError(f"--n makes {n_bytes} bytes, the limit is {MAX_BYTES}: got {n_scenes}.")
    n_blocks = math.ceil(n_scenes / _SCENES_PER_CHANNEL)
    parts = []
    for first in range(0, n_blocks, _BLOCKS_AT_ONCE):
        keys = range(first, min(first + _BLOCKS_AT_ONCE, n_blocks))
        parts.append(draw_blocks(scene, keys, _SCENES_PER_CHANNEL, "cpu", seed, SPLIT, 0))
    kept = slice(n_scenes)
    y = torch.cat([heard.y.flatten(0, 1) for heard, _ in parts])[kept]
    noise_power = torch.cat(
        [heard.noise_power.expand(heard.y.shape[:2]).flatten() for heard, _ in parts]
    )
    truth = Sources(
        torch.cat([sources.parameters.flatten(0, 1) for _, sources in parts])[kept],
        torch.cat([sources.resolved.flatten(0, 1) for _, sources in parts])[kept],
    )
    operator = torch.cat([heard.operator for heard, _ in parts])
    index = torch.arange(n_scenes) // _SCENES_PER_CHANNEL
    if scene.surface is None:
        operator, index = operator[:1], torch.zeros_like(index)
    law, far = scene.sources, (math.inf, math.inf)
    return ObservationFile(
        y=y.resolve_conj(),
        operator=operator,
        operator_index=index,
        noise_power=noise_power[kept].float(),
        positions=scene.positions(),
        wavelength=scene.wavelength_m,
        field="far" if scene.far_field else "near",
        azimuth_deg=law.azimuth_deg,
        elevation_deg=law.elevation_deg,
        range_m=far if law.range_m is None else law.range_m,
        truth=truth,
        sha256="",
    )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m musicnet simulate",
        description="Draws labelled scenes into an observation file.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help=f"where to ({', '.join(SUFFIXES)})")
    parser.add_argument("--experiment", metavar="NAME", help="a file of conf/experiment")
    parser.add_argument("--weights", metavar="NAME|FILE", help="or what these were trained for")
    parser.add_argument("--n", type=int, default=100, metavar="N", help="scenes (default: 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    return parser
