"""Scenes in, JSON entries out: what a file of positions says of each scene."""

import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from musicnet.coordinates import angles, to_xyz
from musicnet.localization import Estimates, localize
from musicnet.localization.bearings import Around, localize_bearings
from musicnet.networks.pretrained import Pretrained
from musicnet.recordings.observation_files import ObservationFile
from musicnet.scene.array import is_ring
from musicnet.scene.snapshots import Observation

SCENES_AT_ONCE = 256

Asked = int | Literal["truth"] | None
"""Sources of every scene; "truth" takes their number from the labels, None has them counted."""


def answers(
    recording: ObservationFile,
    method: str,
    asked: Asked,
    pretrained: Pretrained | None = None,
    at_once: int = SCENES_AT_ONCE,
    around: Around | None = None,
) -> list[dict[str, Any]]:
    """Localises all scenes of a recording.

    Args:
        recording: what was heard.
        method: one of `musicnet.localization.METHODS`.
        asked: how many sources.
        pretrained: the network of methods neural and auto.
        at_once: scenes of a batch; answers do not depend on it.
        around: where bearings are looked for; None looks for directions and ranges.

    Returns:
        An entry for each scene, in their order; JSON types.

    Raises:
        ValueError: the method does not fit the recording, or there are no labels to count.
    """
    counts = counts_of(recording, asked)
    is_far = around is not None or recording.region.inverse_range == (0.0, 0.0)
    has_bearings = around is not None or is_ring(recording.positions)
    entries: dict[int, dict[str, Any]] = {}
    for index, operator in _groups(recording, at_once):
        heard = Observation(
            y=recording.y[index],
            operator=recording.operator[operator],
            noise_power=recording.noise_power[index],
            positions=recording.positions,
            wavelength=recording.wavelength,
        )
        started = time.process_time()
        known = counts if counts is None or isinstance(counts, int) else counts[index]
        if around is not None:
            found = localize_bearings(heard, known, around=around)
        else:
            found = localize(heard, method, known, region=recording.region, pretrained=pretrained)
        columns = _columns(found, is_far=is_far, has_bearings=has_bearings)
        cpu_ms = 1e3 * (time.process_time() - started) / len(index)
        weights = None if pretrained is None else pretrained.name
        for scene, entry in zip(index.tolist(), _entries(found, columns, weights), strict=True):
            entries[scene] = {"n_sources": 0, "cpu_ms": cpu_ms, **entry}
    return [entries[scene] for scene in range(recording.n_scenes)]


def bad_entry(reason: str) -> dict[str, Any]:
    """What is said of a scene that cannot be localised."""
    return {
        "n_sources": None,
        "cpu_ms": None,
        "log_likelihood": None,
        "sources": [],
        "error": reason,
    }


def counts_of(recording: ObservationFile, asked: Asked) -> int | Int[Tensor, " scene"] | None:
    """Sources of all scenes, of each, or None.

    Raises:
        ValueError: there are no labels to take them from.
    """
    if asked != "truth":
        return asked
    if recording.truth is None:
        raise no_labels()
    return recording.truth.n_sources


def no_labels() -> ValueError:
    """To be raised where labels are asked for that are not there."""
    return ValueError(
        "--n-sources truth needs labels: the file has no 'truth_xyz'. Give a number, or leave "
        "--n-sources out to have the sources counted."
    )


def _groups(
    recording: ObservationFile, at_once: int
) -> Iterator[tuple[Int[Tensor, " scene"], int]]:
    """Scenes that share an operator share its costs."""
    for operator in sorted(set(recording.operator_index.tolist())):
        index = (recording.operator_index == operator).nonzero().squeeze(-1)
        for some in index.split(at_once):
            yield some, operator


def _entries(
    found: Estimates, tensors: dict[str, Tensor], weights: str | None
) -> Iterator[dict[str, Any]]:
    """What the file says about each scene: also who answered, and with what weights."""
    columns = {name: _plain(values) for name, values in tensors.items()}
    likelihoods = _plain(found.log_likelihood)
    resolved = found.sources.resolved
    # what the method declares and has not found stands last
    order = resolved.to(torch.uint8).argsort(dim=-1, descending=True, stable=True).tolist()
    methods = found.methods
    for scene, n_declared in enumerate(found.n_sources.tolist()):
        used = weights if methods[scene] == "neural" else None
        yield {
            "n_sources": n_declared,
            "log_likelihood": likelihoods[scene],
            "sources": [
                {
                    **{name: values[scene][slot] for name, values in columns.items()},
                    "resolved": bool(resolved[scene, slot]),
                    "method": methods[scene],
                    "weights": used,
                }
                for slot in order[scene][:n_declared]
            ],
        }


def _columns(found: Estimates, *, is_far: bool, has_bearings: bool) -> dict[str, Tensor]:
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
    bearings = {}
    if has_bearings:
        bearings = {
            "bearing_deg": found.bearing.rad2deg(),
            "std_bearing_deg": found.std_bearing.rad2deg(),
        }
    return {
        **bearings,
        "azimuth_deg": azimuth.rad2deg(),
        "elevation_deg": elevation.rad2deg(),
        "range_m": torch.where(rho == 0, torch.nan, rho.reciprocal()),
        **dict(zip("xyz", points.unbind(-1), strict=True)),
        "std_azimuth_deg": std_azimuth.rad2deg(),
        "std_elevation_deg": std_elevation.rad2deg(),
        "std_range_m": found.std_range,
        **dict(zip(("std_x", "std_y", "std_z"), spread.unbind(-1), strict=True)),
    }


def _plain(values: Tensor) -> Any:
    """Nested lists; JSON has no NaN: what is missing is null."""
    finite = values.isfinite()
    numbers = values.tolist()
    if bool(finite.all()):
        return numbers
    return _without_nan(numbers, finite.tolist())


def _without_nan(numbers: Any, finite: Any) -> Any:
    if isinstance(numbers, list):
        return [_without_nan(one, is_it) for one, is_it in zip(numbers, finite, strict=True)]
    return numbers if finite else None
