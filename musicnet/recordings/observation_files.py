"""Observation files: recorded or simulated snapshots with all that is known about them.

The format is ``musicnet.observations/1``, an ``.npz`` with the keys of `FORMAT_KEYS`. Angles and
ranges have their units in their names there; inside, sources are (u, v, inverse range).
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from musicnet.coordinates import from_xyz
from musicnet.recordings.archives import RecordingError
from musicnet.recordings.checks import (
    FORMAT,
    FORMAT_KEYS,
    WEAKEST_POWER,
    check_keys,
    check_shapes,
    check_values,
)
from musicnet.recordings.noise_power import noise_power_of
from musicnet.recordings.stores import observation_arrays, open_store
from musicnet.records.atomic_files import open_atomically
from musicnet.scene.sources import SearchRegion, Sources
from musicnet.shapes import Positions

Field = Literal["near", "far"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObservationFile:
    """What an observation file holds, checked.

    Args:
        y: received numbers of each scene.
        operator: G of each operator; one block serves all blocks of y.
        operator_index: which operator each scene was taken with.
        noise_power: E|n|^2 of a row, linear; estimated where the file does not say.
        positions: of the elements; metres.
        wavelength: metres.
        field: "near" or "far".
        azimuth_deg: lowest and highest azimuth to search.
        elevation_deg: lowest and highest elevation to search.
        range_m: nearest and farthest range to search; infinite in the far field.
        truth: the true sources, where they are known.
        sha256: of the file, in hexadecimal.
        left_out: number in the file of each bad scene that is not here, and what is wrong with it.
    """

    y: Complex[Tensor, "scene block row"]
    operator: Complex[Tensor, "operator blocks row element"]
    operator_index: Int[Tensor, " scene"]
    noise_power: Float[Tensor, " scene"]
    positions: Positions
    wavelength: float
    field: Field
    azimuth_deg: tuple[float, float]
    elevation_deg: tuple[float, float]
    range_m: tuple[float, float]
    truth: Sources | None
    sha256: str
    left_out: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def n_scenes(self) -> int:
        """Scenes in the file, or as many as were asked for."""
        return self.y.shape[0]

    def scenes(self, some: Bool[Tensor, " scene"]) -> "ObservationFile":
        """The same with some scenes alone."""
        truth = self.truth and Sources(self.truth.parameters[some], self.truth.resolved[some])
        return replace(
            self,
            y=self.y[some],
            operator_index=self.operator_index[some],
            noise_power=self.noise_power[some],
            truth=truth,
        )

    def first(self, n_scenes: int) -> "ObservationFile":
        """The same with the first scenes alone; what holds nothing goes on holding nothing."""
        return replace(
            self,
            y=self.y[:n_scenes],
            operator_index=self.operator_index[:n_scenes],
            noise_power=self.noise_power[:n_scenes],
            truth=self.truth
            and Sources(self.truth.parameters[:n_scenes], self.truth.resolved[:n_scenes]),
        )

    @property
    def region(self) -> SearchRegion:
        """The box in (u, v, rho) around the sector that is to be searched."""
        finite = None if self.field == "far" else self.range_m
        return SearchRegion.from_angles(self.azimuth_deg, self.elevation_deg, finite)


def read_observations(path: str | Path, limit: int | None = None) -> ObservationFile:
    """Reads and checks an observation file.

    Args:
        path: a local file: ``.npz``, HDF5 or MATLAB's, told apart by what they hold.
        limit: most scenes to keep, from the first on; None keeps all. All are checked.

    Returns:
        Tensors on the CPU, complex64 and float32.

    Raises:
        OSError: the file is not there or cannot be read.
        RecordingError: anything else that is wrong, in one line that names file and key.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for all scenes: got {limit}.")
    with open_store(Path(path)) as store:
        arrays = observation_arrays(store)
        check_keys(path, arrays)
        arrays = {key: value for key, value in arrays.items() if key in FORMAT_KEYS}
        check_shapes(path, {key: value.stand_in for key, value in arrays.items()})
        whole = {key: value.whole() for key, value in arrays.items()}
    check_values(path, whole)
    for key in ("y", "operator"):
        if whole[key].dtype != np.complex64:
            _logger.info("%s:%s is %s, read as complex64", path, key, whole[key].dtype)
    per_scene = ("y", "operator_index", "noise_power", "truth_xyz")
    kept = {key: one[:limit] if key in per_scene else one for key, one in whole.items()}
    return assemble(path, kept, store.sha256)


def assemble(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    sha256: str,
    *,
    refuse_silence: bool = True,
) -> ObservationFile:
    """A recording from arrays that were checked.

    Args:
        path: names the file in errors.
        arrays: the keys of the format.
        sha256: of the file.
        refuse_silence: whether a scene without noise is refused; else its power is 0.

    Returns:
        Tensors on the CPU, complex64 and float32.

    Raises:
        RecordingError: no noise power is given, and none can be estimated.
    """
    y, operator = (torch.from_numpy(arrays[key].astype(np.complex64)) for key in ("y", "operator"))
    index = torch.from_numpy(arrays["operator_index"].astype(np.int64))
    field = cast(Field, str(arrays["field"]))
    return ObservationFile(
        y=y,
        operator=operator,
        operator_index=index,
        noise_power=_noise_power(path, arrays, y, operator, index, refuse_silence=refuse_silence),
        positions=torch.from_numpy(arrays["element_positions"].astype(np.float32)),
        wavelength=float(arrays["wavelength"]),
        field=field,
        azimuth_deg=_pair(arrays["azimuth_deg"]),
        elevation_deg=_pair(arrays["elevation_deg"]),
        range_m=_pair(arrays["range_m"]),
        truth=labels_of(arrays["truth_xyz"], field) if "truth_xyz" in arrays else None,
        sha256=sha256,
    )


def write_observations(path: str | Path, recording: ObservationFile) -> None:
    """Writes an observation file, whole or not at all.

    Args:
        path: where to; an existing file is replaced.
        recording: what to write; its hash is not.

    Raises:
        OSError: the file cannot be written.
    """
    with open_atomically(path) as file:
        np.savez(file, **arrays_of(recording))


def arrays_of(recording: ObservationFile) -> dict[str, Any]:
    """A recording as the arrays of the format.

    Args:
        recording: on any device.

    Returns:
        By key.
    """
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "y": recording.y.cpu().numpy(),
        "operator": recording.operator.cpu().resolve_conj().numpy(),
        "operator_index": recording.operator_index.cpu().numpy().astype(np.int32),
        "element_positions": recording.positions.cpu().numpy().astype(np.float64),
        "wavelength": np.array(recording.wavelength, dtype=np.float64),
        "noise_power": recording.noise_power.cpu().numpy(),
        "field": np.array(recording.field),
        "azimuth_deg": np.array(recording.azimuth_deg, dtype=np.float64),
        "elevation_deg": np.array(recording.elevation_deg, dtype=np.float64),
        "range_m": np.array(recording.range_m, dtype=np.float64),
    }
    if recording.truth is not None:
        precise = Sources(recording.truth.parameters.cpu().double(), recording.truth.resolved.cpu())
        arrays["truth_xyz"] = precise.xyz.numpy()
    return arrays


def _pair(bounds: np.ndarray) -> tuple[float, float]:
    return float(bounds[0]), float(bounds[1])


def labels_of(points: np.ndarray, field: Field) -> Sources:
    """Parameters of labels, computed in double precision.

    Args:
        points: ``truth_xyz``.
        field: "near" or "far".

    Returns:
        NaN in slots without a source.
    """
    parameters = from_xyz(torch.from_numpy(points.astype(np.float64)))
    if field == "far":
        parameters[..., 2] *= 0.0  # keeps NaN
    return Sources(parameters.float(), ~parameters.isnan().any(-1))


def _noise_power(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    y: Complex[Tensor, "scene block row"],
    operator: Complex[Tensor, "operator blocks row element"],
    index: Int[Tensor, " scene"],
    *,
    refuse_silence: bool,
) -> Float[Tensor, " scene"]:
    """What the file says, else what the data say."""
    if "noise_power" in arrays:
        return torch.from_numpy(arrays["noise_power"].astype(np.float32))
    estimate = torch.empty(y.shape[0])
    try:
        for used in set(index.tolist()):
            estimate[index == used] = noise_power_of(y[index == used], operator[used])
    except ValueError as error:
        raise RecordingError(f"{path} lacks 'noise_power': {error}") from error
    silent = ~(estimate >= WEAKEST_POWER)
    if refuse_silence and bool(silent.any()):
        raise RecordingError(
            f"{path} lacks 'noise_power', and the data have no noise to estimate it from at index "
            f"{int(silent.nonzero()[0])} ({int(silent.sum())} of {silent.numel()})."
        )
    return estimate
