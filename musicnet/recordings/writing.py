"""Observation files out, in every container that is read."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.lazy_arrays import LazyArray, in_memory
from musicnet.recordings.observation_files import ObservationFile, arrays_of
from musicnet.records.atomic_files import open_atomically

SUFFIXES = (".npz", ".h5", ".hdf5", ".mat")
_LINES_BYTES = 16 * 1024**2


def check_suffix(path: Path) -> None:
    """Refuses a target of a kind that is not written.

    Raises:
        RecordingError: its suffix is not one of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise RecordingError(
            f"{path} must end in one of {', '.join(SUFFIXES)}: got {path.suffix or 'nothing'!r}."
        )


def write_recording(path: Path, recording: ObservationFile) -> None:
    """Writes a recording in the container that its suffix names, whole or not at all.

    Args:
        path: where to; an existing file is replaced.
        recording: what to write; its hash is not.

    Raises:
        OSError: the file cannot be written.
        RecordingError: an unknown suffix.
        ModuleNotFoundError: HDF5 needs h5py.
    """
    arrays = {key: in_memory(key, value) for key, value in arrays_of(recording).items()}
    write_arrays(path, arrays)


def write_arrays(path: Path, arrays: Mapping[str, LazyArray]) -> None:
    """Writes arrays in the container that the suffix names, in parts where it allows that.

    Args:
        path: where to; an existing file is replaced.
        arrays: by key.

    Raises:
        OSError: the file cannot be written.
        RecordingError: an unknown suffix.
        ModuleNotFoundError: HDF5 needs h5py.
    """
    check_suffix(path)
    suffix = path.suffix.lower()
    write = {".npz": _write_npz, ".mat": _write_mat}.get(suffix, _write_hdf5)
    with open_atomically(path) as file:
        write(file, arrays)


def _write_npz(file: BinaryIO, arrays: Mapping[str, LazyArray]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                head = io.BytesIO()
                facts: dict[str, Any] = {
                    "descr": npy.dtype_to_descr(array.dtype),
                    "fortran_order": False,
                    "shape": array.shape,
                }
                npy.write_array_header_1_0(head, facts)
                member.write(head.getvalue())
                for part in _parts(array):
                    member.write(part.tobytes())


def _write_hdf5(file: BinaryIO, arrays: Mapping[str, LazyArray]) -> None:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "HDF5 needs h5py, which is not installed. Run pip install 'musicnet[formats]'."
        ) from error
    with h5py.File(file, "w") as archive:
        for key, array in arrays.items():
            if array.dtype.kind == "U":
                archive[key] = str(array.whole())
            elif not array.shape:
                archive[key] = array.whole()
            else:
                # a checksum for every chunk: HDF5 has none of its own
                data = archive.create_dataset(
                    key, array.shape, array.dtype, chunks=True, fletcher32=True
                )
                first = 0
                for part in _parts(array):
                    data[first : first + len(part)] = part
                    first += len(part)


def _write_mat(file: BinaryIO, arrays: Mapping[str, LazyArray]) -> None:
    from scipy import io as scipy_io

    whole = {key: array.whole() for key, array in arrays.items()}
    scipy_io.savemat(
        file, {key: str(one) if one.dtype.kind == "U" else one for key, one in whole.items()}
    )


def _parts(array: LazyArray) -> Iterator[np.ndarray]:
    if not array.shape:
        yield array.whole()
        return
    lines = max(1, _LINES_BYTES // max(array.n_bytes // max(array.shape[0], 1), 1))
    for first in range(0, array.shape[0], lines):
        yield array.read(first, min(first + lines, array.shape[0]))
