"""From a sound file to bearings."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from musicnet.commands import localize as command
from musicnet.localization.sound import localize_sound
from musicnet.scene.sound import Sound
from tests.unit.estimation.test_wideband import RATE, RING, plane_waves

soundfile = pytest.importorskip("soundfile")
WORDS = ("--array", "uca:8:0.1m", "--n-sources", "1")


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """Three seconds: from 40 degrees, from 40 degrees, from 100 degrees."""
    parts = [plane_waves([math.radians(a)], n_samples=16000, seed=a) for a in (40, 41, 100)]
    samples = np.concatenate([part.samples.numpy().T for part in parts])
    path = tmp_path_factory.mktemp("sound") / "talk.wav"
    soundfile.write(path, samples / np.abs(samples).max(), int(RATE), subtype="FLOAT")
    return path


def entries(capsys, *words):
    assert command.run([str(word) for word in words]) == 0
    return json.loads(capsys.readouterr().out)["scenes"]


def test_each_window_has_its_bearings(capsys, talk):
    found = entries(capsys, talk, *WORDS)
    assert [one["scene"] for one in found] == [0, 1, 2]
    assert [one["time_s"] for one in found] == pytest.approx([0.5, 1.5, 2.5], abs=0.01)
    bearings = [one["sources"][0]["bearing_deg"] for one in found]
    assert bearings == pytest.approx([40.0, 41.0, 100.0], abs=0.3)
    for one in found:
        assert 0.0 < one["sources"][0]["std_bearing_deg"] < 0.5
        assert one["sources"][0]["method"] == "music"


def test_a_window_is_answered_as_by_the_library(capsys, talk):
    samples = soundfile.read(talk, dtype="float32")[0][:16000].T
    wanted = localize_sound(Sound(torch.from_numpy(samples), RATE, RING), 1, "srp-phat")
    found = entries(capsys, talk, *WORDS, "--method", "srp-phat")[0]["sources"][0]
    assert found["bearing_deg"] == pytest.approx(float(wanted.angles.rad2deg()), abs=1e-3)


def test_the_number_of_windows_at_once_changes_nothing(capsys, talk):
    whole = entries(capsys, talk, *WORDS)
    alone = entries(capsys, talk, *WORDS, "--batch-size", "1")
    for one, other in zip(whole, alone, strict=True):
        assert one["sources"] == other["sources"]


def test_sources_may_stand_above_the_plane(capsys, talk):
    words = (*WORDS, "--plane-elevation-deg", "10", "--method", "srp-phat")
    found = entries(capsys, talk, *words)[0]["sources"][0]
    assert found["bearing_deg"] == pytest.approx(40.0, abs=1.0)


def test_tracks_are_smoothed(capsys, talk):
    found = entries(capsys, talk, *WORDS, "--window", "0.25", "--track", "1")
    first = [one["sources"][0]["bearing_deg"] for one in found[:4]]
    assert first == pytest.approx([40.0] * 4, abs=0.5)


def test_bearings_are_drawn(tmp_path, talk):
    words = (*WORDS, "--output", str(tmp_path / "b.json"), "--plot", str(tmp_path / "pictures"))
    assert command.run([str(talk), *words]) == 0
    assert (tmp_path / "pictures" / "talk.png").exists()


def test_a_table_has_columns_for_bearings(tmp_path, talk):
    target = tmp_path / "bearings.csv"
    assert command.run([str(talk), *WORDS, "--output", str(target)]) == 0
    rows = list(csv.DictReader(target.read_text(encoding="utf-8").splitlines()))
    assert float(rows[2]["bearing_deg"]) == pytest.approx(100.0, abs=0.3)


def test_frequencies_beyond_the_aliasing_limit_are_said_aloud(capsys, talk):
    assert command.run([str(talk), *WORDS]) == 0
    said = capsys.readouterr().err
    assert "above 2241 Hz" in said
    assert "weights" not in said
    assert command.run([str(talk), *WORDS, "--band", "300", "2000"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--n-sources", "1"), "got no array"),
        (("--array", "uca:8:0.5w", "--n-sources", "1"), "--array uca:8:0.5w"),
        (("--array", "uca:7:0.1m", "--n-sources", "1"), "8 channels, --array uca:7:0.1m has 7"),
        (("--array", "uca:8:0.1m"), "got no --n-sources"),
        ((*WORDS, "--band", "3000", "4000"), "got 3000 to 4000 Hz"),
        ((*WORDS, "--window", "0.01"), "two frames"),
        ((*WORDS, "--window", "nan"), "got 'nan'"),
        ((*WORDS, "--track", "1e300"), "at most 3600 degrees in a second: got '1e300'"),
        ((*WORDS, "--band", "1000", "1001"), "8 frequencies or more: got 1"),
        ((*WORDS, "--plane-elevation-deg", "89.9999"), "an elevation of 89.9999"),
        ((*WORDS, "--speed", "1e30"), "got 1e+30 and 0 m/s"),
        (("--array", "uca:8:1e-300m", "--n-sources", "1"), "aperture of 2.828e-300 m"),
        (("--array", "uca:8:1e300m", "--n-sources", "1"), "aperture of 2.828e+300 m"),
        (("--array", "ula:8:1e-7m", "--n-sources", "1"), "the aperture of the array is 7e-07 m"),
        (
            ("--array", "uca:8:1e-30m", "--n-sources", "1", "--frequency", "1000"),
            "aperture of 2.828e-30 m, want 0.000343",
        ),
        ((*WORDS, "--method", "esprit"), "got --method esprit"),
        ((*WORDS, "--range-m", "1", "10"), "--range-m is for"),
        ((*WORDS, "--frequency", "900", "--method", "cssm"), "--method cssm"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, tmp_path, talk, words, reason):
    target = tmp_path / "out.json"
    assert command.run([str(talk), *words, "--output", str(target)]) == 1
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
