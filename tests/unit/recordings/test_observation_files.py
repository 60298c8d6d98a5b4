import io
import logging
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from musicnet.estimation.likelihood import fit_amplitudes
from musicnet.recordings.archives import RecordingError
from musicnet.recordings.numpy_files import open_npz
from musicnet.recordings.observation_files import read_observations, write_observations
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import Sources

DATA = Path(__file__).parents[2] / "data"
SURFACE, FAR_LINE, NEAR_LINE = (
    DATA / name for name in ("ris_pilot_48.npz", "ula_far_24.npz", "ula_near_16.npz")
)
every_file = pytest.mark.parametrize("path", [SURFACE, FAR_LINE, NEAR_LINE], ids=lambda p: p.stem)


def with_changes(folder, source=SURFACE, **changes):
    """A copy of a file in which arrays were replaced, or left out where the change is None."""
    with np.load(source) as archive:
        arrays = {key: archive[key] for key in archive.files}
    arrays.update(changes)
    path = folder / "changed.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def loaded(key, source=SURFACE):
    with np.load(source) as archive:
        return archive[key].copy()


@every_file
def test_foreign_files_are_reproduced_to_the_noise_by_their_own_truth(path):
    recording = read_observations(path)
    observation = Observation(
        recording.y[:, None],  # every scene is a channel of its own
        recording.operator[recording.operator_index],
        recording.noise_power[:, None],
        recording.positions,
        recording.wavelength,
    )
    truth = Sources(recording.truth.parameters[:, None], recording.truth.resolved[:, None])
    residual = fit_amplitudes(observation, truth).cost / observation.noise_power
    n_blocks, n_rows = recording.y.shape[1:]
    expected = n_blocks * (n_rows - truth.n_sources)
    assert residual.sum().item() / expected.sum().item() == pytest.approx(1.0, abs=0.05)


def test_truth_a_little_off_is_seen_in_the_residual():
    recording = read_observations(SURFACE)
    shift = torch.tensor([0.02, 0.0, 0.0])
    observation = Observation(
        recording.y[:, None],
        recording.operator[recording.operator_index],
        recording.noise_power[:, None],
        recording.positions,
        recording.wavelength,
    )
    off = Sources((recording.truth.parameters + shift)[:, None], recording.truth.resolved[:, None])
    expected = 128 - off.n_sources
    assert fit_amplitudes(observation, off).cost.sum() / expected.sum() > 1.5


def test_everything_in_a_file_is_read():
    recording = read_observations(SURFACE)
    assert recording.y.shape == (48, 1, 128)
    assert recording.operator.shape == (2, 1, 128, 64)
    assert recording.positions.shape == (64, 3)
    assert (recording.wavelength, recording.field) == (0.3, "near")
    assert recording.range_m == (0.5, 5.0)
    assert recording.region.inverse_range == (0.2, 2.0)
    assert recording.n_scenes == 48
    assert recording.truth.n_sources.max() == 4
    xyz = loaded("truth_xyz")
    np.testing.assert_allclose(recording.truth.xyz.numpy(), xyz, rtol=1e-5, atol=1e-6)
    assert len(recording.sha256) == 64


def test_far_field_truth_has_no_range():
    truth = read_observations(FAR_LINE).truth
    assert (truth.inverse_range[truth.resolved] == 0).all()
    assert truth.inverse_range[~truth.resolved].isnan().all()


def test_a_limit_keeps_the_first_scenes():
    whole, part = read_observations(SURFACE), read_observations(SURFACE, limit=5)
    assert torch.equal(part.y, whole.y[:5])
    assert torch.equal(part.operator_index, whole.operator_index[:5])
    assert part.truth.resolved.shape[0] == part.noise_power.shape[0] == 5
    assert part.sha256 == whole.sha256


@every_file
def test_what_is_written_reads_the_same(path, tmp_path):
    first = read_observations(path)
    write_observations(tmp_path / "copy.npz", first)
    second = read_observations(tmp_path / "copy.npz")
    for name in ("y", "operator", "operator_index", "noise_power", "positions"):
        torch.testing.assert_close(getattr(second, name), getattr(first, name))
    torch.testing.assert_close(second.truth.parameters, first.truth.parameters, equal_nan=True)
    assert second.region == first.region
    assert [file.name for file in tmp_path.iterdir()] == ["copy.npz"]


def test_missing_noise_power_is_estimated(tmp_path):
    recording = read_observations(with_changes(tmp_path, noise_power=None))
    assert recording.noise_power.mean().item() == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("path", [FAR_LINE, NEAR_LINE], ids=lambda p: p.stem)
def test_missing_noise_power_of_a_line_is_estimated(path, tmp_path):
    known = loaded("noise_power", path)
    found = read_observations(with_changes(tmp_path, path, noise_power=None)).noise_power
    assert (found.numpy() / known).mean() == pytest.approx(1.0, abs=0.05)


def test_an_estimated_noise_power_is_that_of_the_scene_and_its_operator(tmp_path):
    louder = np.where(np.arange(48) % 3 == 0, 4.0, 1.0).astype(np.float32)
    path = with_changes(tmp_path, y=loaded("y") * louder[:, None, None], noise_power=None)
    found = read_observations(path).noise_power
    assert found[::3].mean().item() == pytest.approx(16.0, rel=0.1)
    assert found[1::3].mean().item() == pytest.approx(1.0, rel=0.1)


def test_data_without_noise_need_its_power(tmp_path):
    y = loaded("y", FAR_LINE)
    y[3] = 1.0  # a source in front and nothing else
    y[3, 1:] = 0.0
    with pytest.raises(
        RecordingError, match=r"lacks 'noise_power'.* no noise .* index 3 \(1 of 24"
    ):
        read_observations(with_changes(tmp_path, FAR_LINE, y=y, noise_power=None))


def test_missing_truth_is_none(tmp_path):
    assert read_observations(with_changes(tmp_path, truth_xyz=None)).truth is None


def test_big_endian_files_read_the_same(tmp_path):
    path = with_changes(tmp_path, y=loaded("y").astype(">c8"))
    assert torch.equal(read_observations(path).y, read_observations(SURFACE).y)


def test_double_precision_is_cast_with_a_notice(tmp_path, caplog):
    path = with_changes(tmp_path, y=loaded("y").astype(np.complex128))
    with caplog.at_level(logging.INFO):
        assert read_observations(path).y.dtype == torch.complex64
    assert "y is complex128, read as complex64" in caplog.text


def test_unknown_keys_are_ignored_with_a_warning(tmp_path):
    path = with_changes(tmp_path, noise_powr=np.ones(3))
    with pytest.warns(UserWarning, match="noise_powr .* Did you mean 'noise_power'"):
        read_observations(path)


def poisoned(key, index, value):
    array = loaded(key)
    array[index] = value
    return {key: array}


def swapped_axes():
    return {"y": loaded("y", FAR_LINE).swapaxes(1, 2).copy()}


BAD = {
    "missing key": ({"wavelength": None}, r"lacks 'wavelength'; has \["),
    "other format": ({"format": np.array("musicnet.observations/9")}, "format is 'musicnet.obs"),
    "real y": ({"y": np.ones((48, 1, 128), np.float32)}, "y has dtype float32, want complex"),
    "integer y": ({"y": np.ones((48, 1, 128), np.int16)}, "y has dtype int16, want complex"),
    "flat y": ({"y": np.ones((48, 128), np.complex64)}, r"y has shape \(48, 128\), want"),
    "no scenes": ({"y": np.ones((0, 1, 128), np.complex64)}, "y has 0 scenes"),
    "no blocks": ({"y": np.ones((48, 0, 128), np.complex64)}, "y has 0 blocks"),
    "fewer rows": ({"y": np.ones((48, 1, 127), np.complex64)}, "127 rows, operator has 128"),
    "more labels": ({"truth_xyz": np.ones((47, 4, 3))}, r"truth_xyz has shape \(47, 4, 3\)"),
    "fewer indices": ({"operator_index": np.zeros(47, np.int32)}, r"shape \(47,\), want \(48,\)"),
    "lost operator": (poisoned("operator_index", 3, 2), "operator_index .* index 3 "),
    "negative index": (poisoned("operator_index", 3, -1), "operator_index .* index 3 "),
    "fewer elements": ({"element_positions": np.zeros((63, 3))}, r"\(63, 3\), want \(64, 3\)"),
    "two blocks": ({"operator": np.ones((2, 2, 128, 64), np.complex64)}, "operator has 2 blocks"),
    "NaN": (poisoned("y", (7, 0, 3), np.nan), r"y is not finite at index \(7, 0, 3\)"),
    "Inf": (poisoned("y", (7, 0, 3), np.inf), r"y is not finite at index \(7, 0, 3\)"),
    "mute operator": (poisoned("operator", 1, 0), r"operator is zero as a whole at index \(1, 0\)"),
    "faint operator": (poisoned("operator", 1, 1e-30), r"operator is outside \[1e-30, 1e\+30\] in"),
    "faint scene": (poisoned("y", 9, 1e-30), r"y is outside \[1e-30, .* scale it.* index 9 "),
    "loud scene": (poisoned("y", (9, 0, 3), 1e30), r"y is outside \[1e-30, .* index 9 "),
    "faint noise": (
        {"noise_power": np.where(np.arange(48) == 5, 1e-60, 1.0)},
        r"noise_power is outside \[1e-30, .* index 5 ",
    ),
    "label left": (
        poisoned("truth_xyz", (2, 0), (2, 0, 1)),
        r"azimuth_deg \(-60, 60\) at index \(2",
    ),
    "label above": (
        poisoned("truth_xyz", (2, 0), (0, 2, 1)),
        r"elevation_deg \(-30, 30\) at index",
    ),
    "label afar": (
        poisoned("truth_xyz", (2, 0), (0, 0, 6)),
        r"range_m \(0\.5, 5\) at index \(2, 0",
    ),
    "NaN operator": (poisoned("operator", (1, 0, 2, 3), np.nan), "operator is not finite"),
    "overflow": ({"y": np.full((48, 1, 128), 1e300 + 0j)}, "y is not finite"),
    "silent scene": (poisoned("y", 9, 0), "y is silent.* index 9 "),
    "no noise": (poisoned("noise_power", 4, 0), "noise_power is not positive at index 4 "),
    "half a label": (poisoned("truth_xyz", (2, 0, 1), np.nan), r"NaN in part at index \(2, 0\)"),
    "infinite label": (poisoned("truth_xyz", (2, 0, 1), np.inf), r"truth_xyz is not finite"),
    "label behind": (poisoned("truth_xyz", (2, 0), (0, 0, -1)), r"behind the array"),
    "label at zero": (poisoned("truth_xyz", (2, 0), (0, 0, 0)), r"at the array's centre"),
    "field": ({"field": np.array("middle")}, "field is 'middle'"),
    "wavelength": ({"wavelength": np.array(-1.0)}, "wavelength is -1.0"),
    "tiny wavelength": ({"wavelength": np.array(1e-320)}, "wavelength is 1e-320, want metres from"),
    "endless wavelength": ({"wavelength": np.array(np.inf)}, "wavelength is inf, want metres from"),
    "degrees": ({"azimuth_deg": np.array([-600.0, 60.0])}, r"azimuth_deg is \(-600.0, 60.0\)"),
    "descending": ({"elevation_deg": np.array([9.0, -9.0])}, r"elevation_deg is \(9.0, -9.0\)"),
    "NaN bound": ({"azimuth_deg": np.array([np.nan, 60.0])}, "azimuth_deg is"),
    "range": ({"range_m": np.array([0.0, 5.0])}, r"range_m is \(0.0, 5.0\)"),
    "far range": ({"field": np.array("far")}, r"want \(inf, inf\)"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_bad_content_is_refused_in_one_line(changes, message, tmp_path):
    path = with_changes(tmp_path, **changes)
    with pytest.raises(RecordingError, match=message) as caught:
        read_observations(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_swapped_axes_get_a_hint(tmp_path):
    with pytest.raises(RecordingError, match="look swapped"):
        read_observations(with_changes(tmp_path, FAR_LINE, **swapped_axes()))


def test_far_labels_must_be_directions(tmp_path):
    points = loaded("truth_xyz", FAR_LINE) * 2
    with pytest.raises(RecordingError, match="not a unit vector"):
        read_observations(with_changes(tmp_path, FAR_LINE, truth_xyz=points))


def test_one_snapshot_without_noise_power_is_refused(tmp_path):
    y = loaded("y", FAR_LINE)[:, :1]
    with pytest.raises(RecordingError, match=r"lacks 'noise_power'.* 1 block"):
        read_observations(with_changes(tmp_path, FAR_LINE, y=y, noise_power=None))


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        read_observations(SURFACE, limit=0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*gone\.npz"):
        read_observations(tmp_path / "gone.npz")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(OSError, match="is not a regular file"):
        read_observations(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(OSError, match="is not a regular file"):
        read_observations(tmp_path / "pipe.npz")


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = with_changes(tmp_path)
    path.chmod(stat.S_IWUSR)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(PermissionError, match=r"permission denied: .*changed\.npz"):
        read_observations(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"azimuth,elevation\n1,2\n", "is truncated or not an npz"),
        (SURFACE.read_bytes()[:50_000], "is truncated or not an npz"),
        (SURFACE.read_bytes()[:-10], "is truncated or not an npz"),
    ],
    ids=["empty", "text", "cut", "cut at the end"],
)
def test_files_that_are_no_archive_are_refused(content, message, tmp_path):
    path = tmp_path / "file.npz"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=message):
        read_observations(path)


def test_a_flipped_bit_fails_the_checksum(tmp_path):
    content = bytearray(SURFACE.read_bytes())
    content[30_000] ^= 1
    path = tmp_path / "flipped.npz"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match="fails its checksum"):
        read_observations(path)


class Marker:
    """Unpickling it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_objects_are_refused_and_run_nothing(tmp_path):
    payload = np.empty(1, dtype=object)
    payload[0] = Marker(tmp_path / "ran")
    path = with_changes(tmp_path, snr_db=payload)
    with pytest.raises(RecordingError, match="snr_db holds pickled objects"):
        read_observations(path)
    assert not (tmp_path / "ran").exists()


def test_content_beyond_the_limit_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, y=np.zeros(4_000_000, np.complex64))
    assert path.stat().st_size < 100_000
    with pytest.raises(RecordingError, match=r"expands to 32000.* bytes, the limit is 1000000"):
        open_npz(path, max_bytes=1_000_000)


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path):
    header = io.BytesIO()
    facts = {"descr": "<c8", "fortran_order": False, "shape": (2**40, 2**10)}
    np.lib.format.write_array_header_1_0(header, facts)
    path = tmp_path / "liar.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("y.npy", header.getvalue())
    with pytest.raises(RecordingError, match="y declares 9007199254740992 bytes"):
        read_observations(path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = with_changes(tmp_path)
    before = path.read_bytes()
    recording = read_observations(path)

    def half_of_it(file, **arrays):
        file.write(arrays["y"].tobytes())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", half_of_it)
    with pytest.raises(OSError, match="No space left"):
        write_observations(path, recording)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
