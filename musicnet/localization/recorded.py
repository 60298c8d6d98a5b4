"""Whole recordings localised in one call: what `musicnet.read` and `musicnet.localize` are."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicnet.localization.estimates import Estimates
from musicnet.localization.estimator import localize
from musicnet.localization.task import Count
from musicnet.networks.fitting import choose, fewest_of, find_weights, fits
from musicnet.networks.pretrained import Pretrained
from musicnet.recordings.array_descriptions import read_array
from musicnet.recordings.kinds import check_said
from musicnet.recordings.observation_files import ObservationFile
from musicnet.recordings.setup import Setup, is_line
from musicnet.recordings.streams import all_bad, open_observations
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion, Sources

_METHODS_WITH_WEIGHTS = ("auto", "neural")

_logger = logging.getLogger(__name__)


def read_all(
    path: str | Path, *, array: str | None = None, leave_out_bad: bool = False, **said: Any
) -> ObservationFile:
    """Reads a recording of any kind.

    Args:
        path: a local file.
        array: where the sensors stand, as ``--array`` says it, where the file does not.
        leave_out_bad: whether bad scenes are left out and logged, and the good ones kept; their
            numbers and faults are in ``left_out`` of the answer. Else one bad scene refuses the
            file.
        **said: what else the file does not say, see `musicnet.recordings.setup.Setup`.

    Returns:
        Tensors on the CPU.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, says too little, or has a bad scene (no good one where bad ones
            are left out), or something is said that such a file does not take; one line.
    """
    if not isinstance(array, str | None):
        raise ValueError(f"array must be a word or the name of a file: got {array!r:.60}.")
    setup = Setup(array=None if array is None else read_array(array), **said)
    check_said(Path(path), setup)
    with open_observations(path, setup) as stream:
        (chunk,) = stream.chunks(n_at_once=max(stream.n_scenes, 1))
    if chunk.recording is None or (chunk.faults and not leave_out_bad):
        raise all_bad(stream.path, chunk.faults, stream.n_scenes)
    for scene, reason in sorted(chunk.faults.items()):
        _logger.warning("%s:%s (scene %d); the scene is left out", path, reason, scene)
    return replace(chunk.recording, left_out=dict(sorted(chunk.faults.items())))


def localize_all(
    observation: ObservationFile | Observation,
    method: str = "auto",
    n_sources: Count = None,
    *,
    region: SearchRegion | None = None,
    weights: str | Pretrained | None = None,
) -> Estimates:
    """Finds the sources of every scene, and how sure they are.

    Args:
        observation: a recording, or scenes of one or several operators.
        method: one of `musicnet.localization.METHODS`.
        n_sources: K of all scenes, or of each; None has them counted.
        region: where sources may be; None is that of the recording, and of bare observations all
            far directions that the array can tell apart.
        weights: of methods auto and neural: a name, a file, or a network; None takes the first
            of those that ship that fits. Scenes of more sources than it has learned go to nomp.

    Returns:
        Estimates of all scenes, in their order; see `musicnet.localization.localize`.

    Raises:
        ValueError: a method that does not fit, or an observation that cannot be; one line.

    Example:
        >>> recording = read_all("tests/data/ula_far_24.npz")
        >>> found = localize_all(recording, "root-music", n_sources=1)
        >>> tuple(found.sources.xyz.shape), found.method
        ((24, 1, 3), 'root-music')
    """
    if isinstance(observation, Observation):
        area = _everywhere(observation) if region is None else region
        network = _network(observation, area, method, weights, n_sources)
        return localize(observation, method, n_sources, region=area, pretrained=network)
    area = observation.region if region is None else region
    parts, places = [], []
    network = None
    for operator in sorted(set(observation.operator_index.tolist())):
        index = (observation.operator_index == operator).nonzero().squeeze(-1)
        heard = Observation(
            observation.y[index],
            observation.operator[operator],
            observation.noise_power[index],
            observation.positions,
            observation.wavelength,
        )
        network = network or _network(heard, area, method, weights, n_sources)
        known = n_sources[index] if isinstance(n_sources, Tensor) and n_sources.ndim else n_sources
        parts.append(localize(heard, method, known, region=area, pretrained=network))
        places.append(index)
    return _merged(parts, torch.cat(places).argsort())


def _network(
    heard: Observation,
    region: SearchRegion,
    method: str,
    weights: str | Pretrained | None,
    n_sources: Count,
) -> Pretrained | None:
    """The network that answers; one that was asked for must have learned some scene's number."""
    if method not in _METHODS_WITH_WEIGHTS:
        return weights if isinstance(weights, Pretrained) else None
    if weights is None and method == "auto":
        return choose(heard, region, n_sources if isinstance(n_sources, int) else None)
    if weights is None:
        network = choose(heard, region)
    else:
        network = weights if isinstance(weights, Pretrained) else find_weights(weights)
    if network is not None and isinstance(n_sources, Tensor):
        misfit = fits(network, heard, region, fewest_of(n_sources))
        if misfit is not None:
            raise ValueError(f"the network {network.name!r} must fit: {misfit}.")
    return network


def _everywhere(observation: Observation) -> SearchRegion:
    """All far directions in front of the array; those of a line at elevation zero."""
    flat = is_line(observation.positions.double().cpu().numpy())
    half = (0.0, 0.0) if flat else (-90.0, 90.0)
    return SearchRegion.from_angles((-90.0, 90.0), half, None)


def _merged(parts: list[Estimates], order: Tensor) -> Estimates:
    n_slots = max(part.sources.resolved.shape[-1] for part in parts)

    def together(values: list[Tensor], axes: int, fill: float) -> Tensor:
        pad = torch.nn.functional.pad
        wide = [
            pad(one, (*[0, 0] * axes, 0, n_slots - one.shape[-1 - axes]), value=fill)
            for one in values
        ]
        return torch.cat(wide)[order]

    return Estimates(
        sources=Sources(
            together([part.sources.parameters for part in parts], 1, math.nan),
            together([part.sources.resolved for part in parts], 0, 0.0),
        ),
        covariance=together([part.covariance for part in parts], 2, math.nan),
        log_likelihood=torch.cat([part.log_likelihood for part in parts])[order],
        n_sources=torch.cat([part.n_sources for part in parts])[order],
        method=parts[0].method,
        left_to_nomp=_together_left(parts, order),
    )


def _together_left(parts: list[Estimates], order: Tensor) -> Tensor | None:
    left = [part.left_to_nomp for part in parts if part.left_to_nomp is not None]
    return torch.cat(left)[order] if left else None
