"""The public door: a recording in, estimates out, and no trainer."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import musicnet
from musicnet.commands.scene_answers import answers

DATA = Path(__file__).parents[2] / "data"


@pytest.mark.parametrize("name", ["ula_far_24", "ula_near_16", "ris_pilot_48"])
def test_five_lines_say_what_the_command_says(name):
    recording = musicnet.read(DATA / f"{name}.npz")
    found = musicnet.localize(recording, "nomp")
    entries = answers(recording, "nomp", None)
    assert found.n_sources.tolist() == [entry["n_sources"] for entry in entries]
    for scene, entry in enumerate(entries):
        resolved = found.sources.resolved[scene]
        ours = found.sources.xyz[scene][resolved].double()
        theirs = [[source[axis] for axis in "xyz"] for source in entry["sources"]]
        torch.testing.assert_close(
            ours, torch.tensor(theirs).reshape(-1, 3).double(), atol=1e-5, rtol=1e-5
        )


def test_known_numbers_may_differ_from_scene_to_scene():
    recording = musicnet.read(DATA / "ris_pilot_48.npz")
    counts = recording.truth.n_sources
    found = musicnet.localize(recording, n_sources=counts)
    assert torch.equal(found.n_sources, counts)
    assert found.method == "neural"


def test_a_network_that_was_asked_for_must_have_learned_some_scene():
    recording = musicnet.read(DATA / "ris_pilot_48.npz").scenes(torch.arange(48) < 2)
    five = torch.tensor([5, 5])
    for words in ({"weights": "ris"}, {"method": "neural"}):
        with pytest.raises(ValueError, match="got sources=5, it was trained for up to 4"):
            musicnet.localize(recording, n_sources=five, **words)
    found = musicnet.localize(recording, n_sources=five)
    assert found.methods == ["nomp", "nomp"]
    assert musicnet.localize(recording, n_sources=5).methods == ["nomp", "nomp"]


def test_a_bare_observation_is_searched_in_front_of_the_array():
    recording = musicnet.read(DATA / "ula_far_24.npz")
    heard = musicnet.Observation(
        recording.y[:4],
        recording.operator[0],
        recording.noise_power[:4],
        recording.positions,
        recording.wavelength,
    )
    found = musicnet.localize(heard, "nomp", recording.truth.n_sources[:4])
    whole = musicnet.localize(recording, "nomp", recording.truth.n_sources)
    n_slots = found.sources.resolved.shape[-1]
    torch.testing.assert_close(
        found.sources.u.nan_to_num(9),
        whole.sources.u[:4, :n_slots].nan_to_num(9),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("name", "said", "reason"),
    [
        ("far", {"frequency_hz": 100.0}, "frequency_hz is for a narrow band of sound or snapshots"),
        ("far", {"wavelength_m": 0.1}, "wavelength_m is for snapshots of an array: got "),
        ("far", {"range_m": (1.0, 2.0)}, "observations, which say wavelength and sector"),
        ("far", {"n_snapshots": 5}, "Leave it out."),
        ("raw", {"array": "ula:8:0.5w", "wavelength_m": 1.0, "range_m": (1e-300, 1e300)}, "1e-300"),
        ("raw", {"array": "ula:8:0.5w", "wavelength_m": 1.0, "range_m": (1e-6, 1.0)}, "0.00122 m"),
    ],
)
def test_what_a_file_does_not_take_is_refused_in_one_line(tmp_path, name, said, reason):
    path = DATA / "ula_far_24.npz"
    if name == "raw":
        np.save(tmp_path / "raw.npy", musicnet.read(path).y[0].numpy())
        path = tmp_path / "raw.npy"
    with pytest.raises(ValueError, match=r"^\S") as caught:
        musicnet.read(path, **said)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.bad_shape  # types are shapes to the checker
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"frequency_hz": "x"}, "frequency_hz must be finite and positive: got 'x'"),
        ({"speed_m_s": True}, "speed_m_s must be finite and positive: got True"),
        ({"wavelength_m": 1j}, "wavelength_m must be finite and positive: got 1j"),
        ({"n_snapshots": 2.5}, "n_snapshots must be at least 1: got 2.5"),
        ({"azimuth_deg": 3.0}, "azimuth_deg must be two finite numbers, low and high: got 3.0"),
        ({"range_m": "ab"}, "range_m must be two finite numbers, low and high: got 'ab'"),
        ({"array": 8}, "array must be a word or the name of a file: got 8"),
    ],
)
def test_what_is_no_number_is_refused_in_one_line(said, reason):
    with pytest.raises(ValueError, match="must be") as caught:
        musicnet.read(DATA / "ula_far_24.npz", **said)
    assert str(caught.value).startswith(reason)


def test_snapshots_alone_are_read_with_an_array(tmp_path):
    np.save(tmp_path / "r.npy", musicnet.read(DATA / "ula_far_24.npz").y[0].numpy())
    recording = musicnet.read(tmp_path / "r.npy", array="ula:8:0.5w", n_snapshots=50)
    assert recording.y.shape == (1, 50, 8)


def test_a_missing_file_is_said():
    with pytest.raises(OSError, match="no such file"):
        musicnet.read("nothing.npz")


def poisoned(folder, bad):
    with np.load(DATA / "ula_far_24.npz") as archive:
        arrays = dict(archive)
    arrays["y"][bad, 20, 3] = np.nan
    np.savez(folder / "bad.npz", **arrays)
    return folder / "bad.npz"


def test_a_bad_scene_refuses_a_file_unless_it_shall_be_left_out(tmp_path, caplog):
    path = poisoned(tmp_path, [5, 23])
    with pytest.raises(ValueError, match=r"bad\.npz:y is not finite .*\(2 of 24\)"):
        musicnet.read(path)
    recording = musicnet.read(path, leave_out_bad=True)
    assert recording.left_out == {
        5: "y is not finite at index (5, 20, 3)",
        23: "y is not finite at index (23, 20, 3)",
    }
    assert caplog.text.count("the scene is left out") == 2
    whole = musicnet.read(DATA / "ula_far_24.npz")
    assert not whole.left_out
    good = [scene for scene in range(24) if scene not in recording.left_out]
    assert torch.equal(recording.y, whole.y[good])
    found, others = (musicnet.localize(one, "nomp").sources for one in (recording, whole))
    n_slots = found.resolved.shape[-1]
    assert torch.equal(found.u.nan_to_num(9), others.u[good, :n_slots].nan_to_num(9))


def test_a_file_without_a_good_scene_is_refused_all_the_same(tmp_path):
    with pytest.raises(ValueError, match=r"y is not finite .*\(24 of 24\)"):
        musicnet.read(poisoned(tmp_path, range(24)), leave_out_bad=True)


def test_what_is_not_there_is_said():
    with pytest.raises(AttributeError, match="no attribute 'localise'"):
        musicnet.localise  # noqa: B018


def test_estimators_need_no_trainer():
    lines = (
        "import sys, musicnet",
        f"recording = musicnet.read({str(DATA / 'ula_far_24.npz')!r})",
        "found = musicnet.localize(recording, 'esprit')",
        "assert found.sources.resolved.any()",
        "foreign = {'lightning', 'pytorch_lightning', 'hydra', 'omegaconf', 'matplotlib'}",
        "print(sorted(foreign & set(sys.modules)))",
    )
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


def test_the_example_of_the_documentation_runs(monkeypatch, capsys):
    root = Path(__file__).parents[3]
    text = (root / "docs" / "observations.md").read_text(encoding="utf-8")
    example = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(root)
    exec(compile(example, "observations.md", "exec"), {})
    assert "tensor" in capsys.readouterr().out
