"""Damage of every kind, by the hundred: each file is read as it is, or refused in one line."""

import contextlib
import io
import json
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.array_descriptions import read_array
from musicnet.recordings.manifests import read_manifest
from musicnet.recordings.setup import Setup
from musicnet.recordings.stores import open_store
from musicnet.recordings.streams import open_observations

LINE = Setup(array=read_array("ula:4:0.5w"), frequency_hz=1000.0, n_snapshots=10)
QUICK, SLOW = 100, 2000


def arrays():
    """A file so small that damage hits something."""
    lot = np.random.default_rng(0)
    y = lot.normal(size=(2, 3, 6, 4)).astype(np.float32)
    return {
        "format": np.array("musicnet.observations/1"),
        "y": y[0] + 1j * y[1],
        "operator": np.eye(4, dtype=np.complex64)[None, None],
        "operator_index": np.zeros(3, np.int32),
        "element_positions": read_array("ula:4:0.5w").positions(1.0),
        "wavelength": np.array(1.0),
        "noise_power": np.ones(3, np.float32),
        "field": np.array("far"),
        "azimuth_deg": np.array([-60.0, 60.0]),
        "elevation_deg": np.array([0.0, 0.0]),
        "range_m": np.array([np.inf, np.inf]),
        "truth_xyz": np.array([[[0, 0, 1.0]], [[0, 0, 1.0]], [[np.nan] * 3]]),
    }


def as_npz(write=np.savez):
    file = io.BytesIO()
    write(file, **arrays())
    return file.getvalue()


def as_npy():
    file = io.BytesIO()
    np.save(file, arrays()["y"].reshape(-1, 4))
    return file.getvalue()


def as_hdf5(**options):
    file = io.BytesIO()
    with h5py.File(file, "w") as archive:
        for key, value in arrays().items():
            if value.dtype.kind == "U":
                archive[key] = str(value)
            else:
                archive.create_dataset(key, data=value, **(options if value.ndim else {}))
    return file.getvalue()


def as_mat(*, is_packed):
    file = io.BytesIO()
    scipy.io.savemat(file, arrays(), do_compression=is_packed)
    return file.getvalue()


def as_new_mat(**options):
    """MATLAB v7.3: axes reversed, two parts, codes of characters, a block in front."""
    file = io.BytesIO()
    with h5py.File(file, "w", userblock_size=512) as archive:
        for key, value in arrays().items():
            kind = "char" if value.dtype.kind == "U" else "double"
            if kind == "char":
                value = np.array([[ord(letter)] for letter in str(value)], np.uint16).T
            value = np.atleast_2d(value).T
            if value.dtype.kind == "c":
                real, imaginary = value.real.copy(), value.imag.copy()
                value = np.empty(value.shape, [("real", "f4"), ("imag", "f4")])
                value["real"], value["imag"] = real, imaginary
            archive.create_dataset(key, data=value, **options)
            archive[key].attrs["MATLAB_class"] = np.bytes_(kind)
    content = file.getvalue()
    head = b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM"
    return head + content[len(head) :]


def as_sound(kind):
    file = io.BytesIO()
    sound = np.random.default_rng(0).normal(size=(4000, 4)) * 0.1
    soundfile.write(file, sound, 8000, format=kind)
    return file.getvalue()


def as_sigmf():
    tree = {
        "global": {"core:datatype": "cf32_le", "core:num_channels": 4, "core:sample_rate": 1e6},
        "captures": [{"core:sample_start": 0, "core:frequency": 1e9}],
    }
    return json.dumps(tree).encode()


def as_manifest():
    shard = {"file": "a.npz", "sha256": "0" * 64, "n_scenes": 3}
    return json.dumps({"format": "musicnet.manifest/1", "shards": [shard]}).encode()


def observe(path):
    with open_observations(path, LINE) as stream:
        for chunk in stream.chunks():
            assert len(chunk.good) + len(chunk.faults) == chunk.n_scenes
            if chunk.recording is not None:
                assert chunk.recording.y.isfinite().all()


def observe_pair(path):
    path.with_suffix(".sigmf-data").write_bytes(arrays()["y"].tobytes())
    observe(path)


READERS = {
    "a.npz": (as_npz(), observe),
    "packed.npz": (as_npz(np.savez_compressed), observe),
    "a.npy": (as_npy(), observe),
    "a.h5": (as_hdf5(), observe),
    "packed.h5": (as_hdf5(compression="gzip", fletcher32=True), observe),
    "a.mat": (as_mat(is_packed=False), observe),
    "packed.mat": (as_mat(is_packed=True), observe),
    "new.mat": (as_new_mat(), observe),
    "packed new.mat": (as_new_mat(compression="gzip", fletcher32=True), observe),
    "a.wav": (as_sound("WAV"), observe),
    "a.flac": (as_sound("FLAC"), observe),
    "a.sigmf-meta": (as_sigmf(), observe_pair),
    "a.json": (b'{"positions_m": [[0, 0], [0.1, 0], [0.2, 0]]}', lambda p: read_array(str(p))),
    "a.yaml": (b"positions_m:\n- [0, 0]\n- [0.1, 0]\n", lambda path: read_array(str(path))),
    "a.csv": (b"x_m,y_m\n0,0\n0.1,0\n0.2,0\n", lambda path: read_array(str(path))),
    "manifest.json": (as_manifest(), lambda path: read_manifest(path.parent)),
}


@st.composite
def damaged(draw, content):
    """Cut, flipped, or with pieces put in, taken out or swapped."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["cut", "flip", "byte", "insert", "remove", "number"]))
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        if kind == "cut":
            del data[at:]
        elif kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 16))]
        elif kind == "number":  # lengths are what readers believe
            data[at : at + 4] = draw(st.sampled_from([0, 2**31 - 1, 2**31, 2**32 - 1])).to_bytes(
                4, draw(st.sampled_from(["little", "big"]))
            )
    return bytes(data)


def assert_read_or_refused(read):
    said = "read"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except (RecordingError, OSError) as error:
            said = str(error)
    assert said
    assert "\n" not in said


def try_damage(name, folder, data):
    content, read = READERS[name]
    path = folder / name
    path.write_bytes(data.draw(damaged(content)))
    assert_read_or_refused(lambda: read(path))


FUZZ = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@pytest.mark.parametrize("name", READERS)
def test_damage_is_refused_in_one_line(name, tmp_path):
    @settings(max_examples=QUICK, derandomize=True, **FUZZ)
    @given(data=st.data())
    def attempt(data):
        try_damage(name, tmp_path, data)

    attempt()


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_much_damage_is_refused_in_one_line(name, tmp_path):
    @settings(max_examples=SLOW, **FUZZ)
    @given(data=st.data())
    def attempt(data):
        try_damage(name, tmp_path, data)

    attempt()


def test_a_damaged_heap_of_words_is_walked_to_its_end(tmp_path):
    """With one wrong length the library goes round in it for ever."""
    good = READERS["a.h5"][0]
    heap = good.index(b"GCOL")
    (tmp_path / "a.h5").write_bytes(good)
    observe(tmp_path / "a.h5")
    for place in range(heap, heap + 88):
        data = bytearray(good)
        data[place] = 2
        (tmp_path / "a.h5").write_bytes(data)
        assert_read_or_refused(lambda: open_store(tmp_path / "a.h5"))


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}])
def test_words_of_hdf5_files_are_those_that_the_library_reads(options, tmp_path):
    words = {"short": "a", "long": "ä" * 600, "none": "", "fixed": np.array(b"near")}
    with h5py.File(tmp_path / "a.h5", "w", **options) as file:
        file["y"] = np.ones(3)
        for key, value in words.items():
            file[key] = value
    with h5py.File(tmp_path / "a.h5") as file:
        theirs = {key: file[key][()].decode() for key in words}
    with open_store(tmp_path / "a.h5") as store:
        assert {key: str(store.arrays[key].whole()) for key in words} == theirs
    for many in (["far"] * 300, ["x" * 5000]):
        with h5py.File(tmp_path / "b.h5", "w", **options) as file:
            for number, word in enumerate(many):
                file[str(number)] = word
        last = str(len(many) - 1)
        if len(many) == 1:
            with pytest.raises(RecordingError, match="damaged, or longer than 4096"):
                open_store(tmp_path / "b.h5")
        else:
            assert str(open_store(tmp_path / "b.h5").arrays[last].whole()) == "far"


def test_notes_of_variable_length_are_not_read(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["y"] = np.ones(3)
        file["y"].attrs["MATLAB_class"] = "double"
    with pytest.raises(RecordingError, match="MATLAB_class that is neither a number nor a word"):
        open_store(tmp_path / "a.mat")


DTYPES = ["f2", "f4", "f8", "i1", "i4", "u8", "c8", "c16", ">c8", ">f8", "?", "U3", "S3", "M8[s]"]


@pytest.mark.parametrize("examples", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_wrong_types_shapes_and_numbers_are_refused_in_one_line(examples, tmp_path):
    """Whole archives, in which some array is not what it should be."""
    keys = sorted(arrays())

    @settings(max_examples=examples, derandomize=examples == QUICK, **FUZZ)
    @given(
        key=st.sampled_from(keys),
        dtype=st.sampled_from(DTYPES),
        shape=st.lists(st.integers(0, 5), max_size=5),
        value=st.sampled_from([0, 1, -1, np.nan, np.inf, 1e300, 1e-300]),
        keeps_shape=st.booleans(),
    )
    def attempt(key, dtype, shape, value, keeps_shape):
        found = arrays()
        shape = found[key].shape if keeps_shape else tuple(shape)
        kind = np.dtype(dtype).kind
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = "near" if kind in "US" else value
            is_text = kind in "US" or (kind in "iuM?" and not np.isfinite(value))
            found[key] = np.full(shape, 0 if is_text and kind not in "US" else text).astype(dtype)
        np.savez(tmp_path / "a.npz", **found)
        assert_read_or_refused(lambda: observe(tmp_path / "a.npz"))

    attempt()


def test_memory_is_bounded_by_what_a_file_holds(tmp_path):
    """A header may promise anything: nothing is set aside before it is believed."""
    import tracemalloc

    for name, change in (
        ("a.npz", lambda content: content),
        ("a.mat", lambda content: content[:132] + (2**31).to_bytes(4, "little") + content[136:]),
    ):
        path = tmp_path / name
        path.write_bytes(change(READERS[name][0]))
        tracemalloc.start()
        with contextlib.suppress(RecordingError):
            observe(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40 * 1024**2


def test_the_fuzzed_files_are_good_before_they_are_damaged(tmp_path):
    for name, (content, read) in READERS.items():
        if name == "manifest.json":
            continue  # lists a file that is not there
        (tmp_path / name).write_bytes(content)
        read(tmp_path / name)
    assert zipfile.is_zipfile(tmp_path / "a.npz")
    assert Path(tmp_path / "a.sigmf-data").exists()
