"""Lines of arrays by a map of their file: the same numbers, and nothing of a file that changed."""

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from musicnet.recordings import mapped_arrays
from musicnet.recordings.archives import RecordingError
from musicnet.recordings.mapped_arrays import FileState, MappedArray
from musicnet.recordings.stores import observation_arrays, open_store

LOT = np.random.default_rng(0)
Y = (LOT.normal(size=(7, 5, 3)) + 1j * LOT.normal(size=(7, 5, 3))).astype(np.complex64)


def npz(path, y, save=np.savez):
    with path.open("wb") as file:
        save(file, y=y)


def hdf5(path, y, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("y", data=y, **options)


def matlab(path, y, part="<f4", **options):
    """Axes turned round, complex numbers of two named parts, a block of MATLAB's own in front."""
    pair = np.empty(y.T.shape, [("real", part), ("imag", part)])
    pair["real"], pair["imag"] = y.T.real, y.T.imag
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("y", data=pair, **options)


def numpy_array(path, y):
    with path.open("wb") as file:
        np.save(file, y)


FORMATS = {
    "npz": (npz, {}, True),
    "npz of another order": (lambda p, y: npz(p, np.asfortranarray(y)), {}, True),
    "npz of other bytes": (lambda p, y: npz(p, y.astype(">c8")), {}, True),
    "npy": (numpy_array, {}, True),
    "npy of another order": (lambda p, y: numpy_array(p, np.asfortranarray(y)), {}, True),
    "hdf5": (hdf5, {}, True),
    "hdf5 of other bytes": (lambda p, y: hdf5(p, y.astype(">c8")), {}, True),
    "mat v7.3": (matlab, {}, True),
    "mat v7.3 of doubles": (matlab, {"part": "<f8"}, True),
    "mat v7.3 of other bytes": (matlab, {"part": ">f8"}, False),
    "packed npz": (npz, {"save": np.savez_compressed}, False),
    "packed hdf5": (hdf5, {"compression": "gzip"}, False),
    "hdf5 in chunks": (hdf5, {"chunks": (2, 5, 3)}, False),
    "packed mat v7.3": (matlab, {"compression": "gzip"}, False),
}


def test_axes_that_matlab_dropped_come_back(tmp_path):
    for name, options in (("whole", {}), ("packed", {"compression": "gzip"})):
        matlab(tmp_path / name, Y[..., 0], **options)
        with open_store(tmp_path / name) as store:
            array = observation_arrays(store)["y"]
        assert array.shape == (7, 5, 1)
        assert np.array_equal(array.lines([3, 1]), Y[[3, 1], :, :1])


@pytest.mark.parametrize("name", FORMATS)
def test_lines_are_those_of_the_array_whether_mapped_or_read(name, tmp_path):
    write, options, is_mapped = FORMATS[name]
    write(tmp_path / "a", Y, **options)
    with open_store(tmp_path / "a") as store:
        array = observation_arrays(store)["y"]
    assert (array.mapped is not None) == is_mapped
    for numbers in ([6, 0, 3], [4], range(7)):
        found = array.lines(numbers)
        assert np.array_equal(found, Y[list(numbers)])
        assert found.dtype.isnative
        found[:] = 0  # nobody else's
    assert np.array_equal(array.read(1, 4), Y[1:4])


def test_what_was_never_written_is_not_mapped(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("y", (2, 3, 4), np.complex64)
    with open_store(tmp_path / "a.h5") as store:
        array = store.arrays["y"]
    assert array.mapped is None
    assert not array.lines([1, 0]).any()


CHANGES = {
    "cut": lambda path: os.truncate(path, 200),
    "longer": lambda path: os.truncate(path, 5000),
    "another": lambda path: (path.rename(f"{path}.old"), path.write_bytes(bytes(1000))),
    "dated back": lambda path: os.utime(path, ns=(1, 1)),
    "written on in its own time": lambda path: write_on(path, at=-200),
}


def write_on(path, at):
    """Other content of the same size in the same place, said to be as old as before."""
    wait_for_the_clock(path)
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def wait_for_the_clock(path):
    """File times go on in ticks: until a new one has begun, a change shows in none of them."""
    before, other = path.stat().st_ctime_ns, path.with_name("clock")
    while True:
        other.write_bytes(b"")
        if other.stat().st_ctime_ns > before:
            return


TOUCHES = {
    "permissions": lambda path: path.chmod(0o600),
    "a second name": lambda path: path.with_name("second").hardlink_to(path),
    "the same time again": lambda path: os.utime(path, ns=(1, path.stat().st_mtime_ns)),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_a_file_that_was_only_touched_is_read_on(touch, tmp_path, monkeypatch):
    path, looks = tmp_path / "a.npz", []
    npz(path, Y)
    with open_store(path) as store:
        array = store.arrays["y"]
    array.lines([0])
    wait_for_the_clock(path)
    TOUCHES[touch](path)
    sha256_of = mapped_arrays.sha256_of
    monkeypatch.setattr(mapped_arrays, "sha256_of", lambda one: looks.append(1) or sha256_of(one))
    for _ in range(3):
        assert np.array_equal(array.lines([6, 0]), Y[[6, 0]])
    assert len(looks) == 1  # the whole of it is read once for all
    write_on(path, at=-200)
    with pytest.raises(RecordingError, match=r"a\.npz has changed since it was opened\.$"):
        array.lines([6])


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("was_used", [False, True])
def test_a_file_that_changed_is_refused_and_harms_nobody(change, was_used, tmp_path):
    """A map of what is no longer there would end the process."""
    path = tmp_path / "a.npz"
    npz(path, Y)
    with open_store(path) as store:
        array = store.arrays["y"]
    if was_used:
        array.lines([0])
    CHANGES[change](path)
    with pytest.raises(RecordingError, match=r"a\.npz has changed since it was opened\.$"):
        array.lines([6])
    path.unlink()
    with pytest.raises(OSError, match=r"no such file: .*a\.npz$"):
        array.lines([6])


def test_more_is_not_declared_than_a_file_holds(tmp_path):
    numpy_array(tmp_path / "a.npy", Y)
    with open_store(tmp_path / "a.npy") as store:
        mapped = store.arrays["y"].mapped
    for change in ({"shape": (8, 5, 3)}, {"offset": -1}, {"shape": (2**40, 2**40, 2**40)}):
        with pytest.raises(RecordingError, match=r"a\.npy declares \d+ bytes but has \d+\.$"):
            replace(mapped, **change)


def test_neither_files_nor_memory_are_held(tmp_path):
    """A folder of many files, of which one is large."""
    size = 64 * 1024**2
    for number in range(80):
        (tmp_path / str(number)).touch()
        os.truncate(tmp_path / str(number), size if number == 0 else 4096)

    def array_of(number):
        state = FileState.of(tmp_path / str(number))
        shape = (state.n_bytes // 4096, 512)
        return MappedArray("y", state, 0, shape, np.dtype(np.complex64))

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    before = resident()
    large = array_of(0)
    for first in range(0, large.shape[0], 256):
        assert not large.lines(range(first, first + 256)).any()
    assert resident() - before < size // 4
    n_open = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in range(80):
        array_of(number).lines([0])
    assert len(os.listdir("/proc/self/fd")) - n_open <= 64  # noqa: PTH208
