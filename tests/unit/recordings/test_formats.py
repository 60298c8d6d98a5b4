"""The same scenes in every container, and snapshots alone of every kind."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import soundfile
import torch

from musicnet.recordings import streams
from musicnet.recordings.archives import RecordingError
from musicnet.recordings.array_descriptions import read_array
from musicnet.recordings.observation_files import read_observations
from musicnet.recordings.setup import Setup
from musicnet.recordings.streams import open_observations

DATA = Path(__file__).parents[2] / "data"
SURFACE, FAR = DATA / "ris_pilot_48.npz", DATA / "ula_far_24.npz"


def arrays_of(path):
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}


def write_hdf5(path, arrays, **options):
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            if value.dtype.kind == "U":
                file[key] = str(value)
            else:
                chunked = options if value.ndim else {}
                file.create_dataset(key, data=value, **chunked)


def write_mat73(path, arrays):
    """As MATLAB lays it out: axes reversed, two parts, codes of characters, a block in front."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, value in arrays.items():
            if value.dtype.kind == "U":
                codes = np.array([[ord(c)] for c in str(value)], dtype=np.uint16)
                file[key] = codes
                file[key].attrs["MATLAB_class"] = np.bytes_("char")
                continue
            value = np.atleast_2d(value) if value.ndim < 2 else value
            while value.ndim > 2 and value.shape[-1] == 1:
                value = value[..., 0]
            if value.dtype.kind == "c":
                pair = np.empty(value.T.shape, [("real", "f4"), ("imag", "f4")])
                pair["real"], pair["imag"] = value.real.T, value.imag.T
                file[key] = pair
            else:
                file[key] = value.T.astype(np.float64)
            file[key].attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM")


WRITERS = {
    "compressed.npz": lambda path, arrays: np.savez_compressed(path, **arrays),
    "plain.h5": write_hdf5,
    "packed.h5": lambda path, arrays: write_hdf5(
        path, arrays, compression="gzip", shuffle=True, fletcher32=True, chunks=True
    ),
    "old.mat": scipy.io.savemat,
    "packed.mat": lambda path, arrays: scipy.io.savemat(path, arrays, do_compression=True),
    "new.mat": write_mat73,
}


@pytest.mark.parametrize("source", [SURFACE, FAR], ids=lambda path: path.stem)
@pytest.mark.parametrize("name", WRITERS)
def test_every_container_holds_the_same_scenes(name, source, tmp_path):
    arrays = arrays_of(source)
    arrays = {key: value for key, value in arrays.items() if key not in ("snr_db", "coherent")}
    WRITERS[name](tmp_path / name, arrays)
    ours, theirs = read_observations(tmp_path / name), read_observations(source)
    for key in ("y", "operator", "operator_index", "noise_power", "positions"):
        assert torch.equal(getattr(ours, key), getattr(theirs, key)), key
    assert torch.equal(ours.truth.parameters.nan_to_num(9), theirs.truth.parameters.nan_to_num(9))
    assert (ours.region, ours.wavelength) == (theirs.region, theirs.wavelength)
    assert ours.sha256 != theirs.sha256


@pytest.mark.parametrize("name", ["plain.npz", *WRITERS])
def test_chunks_hold_what_the_whole_file_holds(name, tmp_path):
    arrays = arrays_of(SURFACE)
    writer = WRITERS.get(name, lambda path, arrays: np.savez(path, **arrays))
    writer(
        tmp_path / name, {key: arrays[key] for key in arrays if key not in ("snr_db", "coherent")}
    )
    whole = read_observations(tmp_path / name)
    with open_observations(tmp_path / name) as stream:
        chunks = list(stream.chunks(n_at_once=7))
        later = next(stream.chunks(start=13, n_at_once=2))
    assert [chunk.first for chunk in chunks] == list(range(0, 48, 7))
    assert torch.equal(torch.cat([chunk.recording.y for chunk in chunks]), whole.y)
    assert torch.equal(later.recording.y, whole.y[13:15])
    assert later.good == (13, 14)


def test_a_file_is_read_in_parts(tmp_path, monkeypatch):
    """No part is larger than what a chunk may hold."""
    monkeypatch.setattr(streams, "_CHUNK_BYTES", 3 * 128 * 8)
    with open_observations(SURFACE) as stream:
        assert {chunk.n_scenes for chunk in stream.chunks()} == {3}


def snapshots(n_snapshots=250, n_sensors=8, seed=0):
    """A wave from 20 degrees on half a wavelength, and a little noise."""
    lot = np.random.default_rng(seed)
    symbols = lot.normal(size=n_snapshots) + 1j * lot.normal(size=n_snapshots)
    x = 0.5 * (np.arange(n_sensors) - (n_sensors - 1) / 2)
    response = np.exp(2j * np.pi * x * np.sin(np.radians(20.0)))
    noise = lot.normal(size=(2, n_snapshots, n_sensors)) * 0.05
    return (symbols[:, None] * response + noise[0] + 1j * noise[1]).astype(np.complex64)


def write_sigmf(folder, y, datatype="cf32_le", scale=1.0, **changes):
    parts = np.stack((y.real, y.imag), axis=-1) * scale
    kinds = {"cf32_le": "<f4", "ci16_le": "<i2", "cf64_be": ">f8", "ci8": "i1", "cu8": "u1"}
    shift = 128 if datatype == "cu8" else 0
    parts = np.round(parts + shift) if "i" in datatype or "u" in datatype else parts
    (folder / "r.sigmf-data").write_bytes(parts.astype(kinds[datatype]).tobytes())
    tree = {
        "global": {
            "core:datatype": datatype,
            "core:version": "1.2.0",
            "core:num_channels": y.shape[1],
            "core:sample_rate": 1e6,
            **changes,
        },
        "captures": [{"core:sample_start": 0, "core:frequency": 1e9}],
        "annotations": [],
    }
    (folder / "r.sigmf-meta").write_text(json.dumps(tree))
    return folder / "r.sigmf-meta"


def line(**options):
    return Setup(array=read_array("ula:8:0.5w"), **options)


def first_scenes(path, setup):
    with open_observations(path, setup) as stream:
        (chunk,) = stream.chunks()
        return stream, chunk.recording


def test_one_long_record_is_cut_into_scenes(tmp_path):
    np.save(tmp_path / "r.npy", snapshots())
    _, recording = first_scenes(tmp_path / "r.npy", line())
    assert recording.y.shape == (2, 100, 8)
    assert torch.equal(recording.y[1], torch.from_numpy(snapshots()[100:200]))
    assert recording.noise_power.mean().item() == pytest.approx(2 * 0.05**2, rel=0.1)
    assert recording.region.active == (True, False, False)


def test_scenes_in_an_array_of_their_own_are_kept(tmp_path):
    np.save(tmp_path / "r.npy", snapshots(60).reshape(3, 20, 8))
    _, recording = first_scenes(tmp_path / "r.npy", line())
    assert recording.y.shape == (3, 20, 8)


@pytest.mark.parametrize(
    ("datatype", "scale", "error"),
    [
        ("cf32_le", 1.0, 0),
        ("cf64_be", 1.0, 0),
        ("ci16_le", 4000.0, 0.0002),
        ("ci8", 20.0, 0.05),
        ("cu8", 20.0, 0.05),
    ],
)
def test_sigmf_in_every_type(datatype, scale, error, tmp_path):
    path = write_sigmf(tmp_path, snapshots(), datatype, scale)
    for name in (path, path.with_suffix(".sigmf-data")):
        stream, recording = first_scenes(name, line())
        full = {"i": 2.0**15, "8": 2.0**7}.get("8" if "8" in datatype else datatype[1], 1.0)
        found = recording.y[0].numpy() * (full / scale)
        assert np.abs(found - snapshots()[:100]).max() <= max(error, 1e-6)
        assert recording.wavelength == pytest.approx(0.299792458)
        assert stream.rate_hz == pytest.approx(1e4)


@pytest.mark.parametrize("kind", ["bare.mat", "bare.npz", "bare.h5"])
def test_a_lone_array_of_snapshots_needs_no_name(kind, tmp_path):
    y = snapshots(100)
    if kind.endswith(".mat"):
        scipy.io.savemat(tmp_path / kind, {"X": y, "note": "hall, monday"})
    elif kind.endswith(".npz"):
        np.savez(tmp_path / kind, samples=y)
    else:
        write_hdf5(tmp_path / kind, {"samples": y})
    _, recording = first_scenes(tmp_path / kind, line())
    assert torch.equal(recording.y[0], torch.from_numpy(y))


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_sound_is_heard_at_one_frequency(suffix, tmp_path):
    rate, tone, delay = 16000, 1000.0, 3.0e-5
    time = np.arange(rate) / rate
    noise = np.random.default_rng(0).normal(size=(rate, 4)) * 0.01
    sound = 0.3 * np.stack([np.cos(2 * np.pi * tone * (time + n * delay)) for n in range(4)], 1)
    soundfile.write(tmp_path / f"r{suffix}", sound + noise, rate, subtype="PCM_24")
    setup = Setup(array=read_array("ula:4:0.02m"), frequency_hz=tone, n_snapshots=10)
    stream, recording = first_scenes(tmp_path / f"r{suffix}", setup)
    assert recording.wavelength == pytest.approx(0.343)
    assert stream.rate_hz == pytest.approx(rate / 512 / 10)
    # what reaches a sensor sooner is ahead in phase
    turned = np.angle((recording.y[..., 1:] * recording.y[..., :-1].conj()).numpy())
    assert np.abs(turned - 2 * np.pi * tone * delay).mean() < 0.02


REFUSED = {
    "no array": ("r.npy", Setup(), "does not say where its sensors stand"),
    "seven sensors": (
        "r.npy",
        Setup(array=read_array("ula:7:0.5w")),
        "has 8 sensors, geometry ula:7:0.5w has 7",
    ),
    "swapped": ("swapped.npy", line(), "has 250 sensors, .* look swapped"),
    "real": ("real.npy", line(), "has dtype float64, want complex"),
    "flat": ("flat.npy", line(), r"has shape \(8,\), want \(snapshot, sensor\)"),
    "no wavelength": (
        "r.npy",
        Setup(array=read_array("ula:8:0.1m")),
        "does not say its wavelength",
    ),
    "silent": ("r.wav", line(), "is sound, .* Give --frequency"),
    "too high": ("r.wav", line(frequency_hz=9000.0), "half the sampling rate"),
}


@pytest.mark.parametrize(("name", "setup", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_understood_is_refused_in_one_line(name, setup, reason, tmp_path):
    y = snapshots()
    contents = {"r.npy": y, "swapped.npy": y.T, "real.npy": y.real.astype(float), "flat.npy": y[0]}
    if name.endswith(".npy"):
        np.save(tmp_path / name, contents[name])
    else:
        soundfile.write(tmp_path / name, y.real * 0.1, 16000)
    with (
        pytest.raises(RecordingError, match=reason) as caught,
        open_observations(tmp_path / name, setup),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_an_array_that_is_not_the_files_is_refused():
    for word in ("ula:7:0.5w", "ula:8:0.4w", "uca:8:0.3m"):
        with (
            pytest.raises(RecordingError, match="--array"),
            open_observations(FAR, Setup(array=read_array(word))),
        ):
            pass
    with open_observations(FAR, Setup(array=read_array("ula:8:0.5w"))) as stream:
        assert stream.n_scenes == 24


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"core:datatype": "rf32_le"}, "want complex samples"),
        ({"core:num_channels": 0}, "num_channels is 0"),
        ({"core:num_channels": 7}, "is truncated"),
        ({"core:sha512": "0" * 128}, "fails its checksum"),
        ({"core:dataset": "../../etc/passwd"}, "samples in another file"),
        ({"core:sample_rate": -1}, "sample_rate is -1"),
    ],
)
def test_sigmf_descriptions_that_do_not_fit_are_refused(changes, reason, tmp_path):
    with (
        pytest.raises(RecordingError, match=reason),
        open_observations(write_sigmf(tmp_path, snapshots(), **changes), line()),
    ):
        pass
