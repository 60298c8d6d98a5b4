"""Options that a kind of file does not take are refused, whatever the command."""

import argparse
import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from musicnet.commands import convert, inspect, localize
from musicnet.commands.option_kinds import TAKEN_BY, check_options
from musicnet.recordings.observation_files import read_observations

soundfile = pytest.importorskip("soundfile")
FAR = Path(__file__).parents[2] / "data" / "ula_far_24.npz"
OF_ALL = {
    *("help", "file", "method", "n_sources", "output", "plot", "strict", "batch_size", "array"),
    "plane_elevation_deg",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    noise = 0.1 * np.random.default_rng(0).standard_normal((8000, 8))
    soundfile.write(folder / "talk.wav", noise, 16000)
    np.save(folder / "record.npy", read_observations(FAR).y[:3].flatten(0, 1).numpy())
    return {
        "sound": (folder / "talk.wav", {}),
        "band": (folder / "talk.wav", {"frequency": 1000.0}),
        "snapshots": (folder / "record.npy", {}),
        "observations": (FAR, {}),
    }


def test_every_option_has_its_kinds():
    named = {action.dest for action in localize._parser()._actions}
    assert named == OF_ALL | set(TAKEN_BY)


@pytest.mark.parametrize(
    ("kind", "name"),
    sorted(
        set(itertools.product(("sound", "band", "snapshots", "observations"), TAKEN_BY))
        - {("sound", "frequency")}  # asks for a narrow band
    ),
)
def test_an_option_is_taken_or_refused(kind, name, files):
    path, given = files[kind]
    arguments = argparse.Namespace(**given, **({name: 1.0} if name not in given else {}))
    if kind in TAKEN_BY[name]:
        assert check_options([path], arguments) == [kind]
        return
    with pytest.raises(ValueError, match=r"Leave it out") as caught:
        check_options([path], arguments)
    said = str(caught.value)
    assert said.startswith(f"--{name.replace('_', '-')} is for ")
    assert str(path) in said
    assert "\n" not in said


def test_an_option_that_one_of_the_files_takes_is_for_that_one(files):
    both = [files["observations"][0], files["sound"][0]]
    asked = argparse.Namespace(window=0.5, weights="ula", method="music")
    assert check_options(both, asked) == ["observations", "sound"]
    with pytest.raises(ValueError, match="--snapshots is for"):
        check_options(both, argparse.Namespace(snapshots=10))


def test_an_archive_of_snapshots_takes_what_snapshots_take(files, tmp_path):
    np.savez(tmp_path / "record.npz", heard=np.load(files["snapshots"][0]))
    asked = argparse.Namespace(array="ula:8:0.5w", snapshots=10, frequency=1e9)
    assert check_options([tmp_path / "record.npz"], asked) == ["snapshots"]
    with pytest.raises(ValueError, match="--frequency is for"):
        check_options([FAR], asked)


def test_each_row_says_what_answered_it(files, tmp_path):
    talk, _ = files["sound"]
    words = ["--array", "ula:8:0.5m", "--n-sources", "1", "--window", "0.25"]
    target = tmp_path / "out.csv"
    assert localize.run([str(FAR), str(talk), *words, "--output", str(target)]) == 0
    rows = list(csv.DictReader(target.read_text(encoding="utf-8").splitlines()))
    answered = {(Path(row["file"]).suffix, row["method"], row["weights"]) for row in rows}
    assert (".wav", "music", "") in answered
    assert {weights for suffix, _, weights in answered if suffix == ".npz"} == {"ula"}
    assert len(rows) == 24 + 2


def test_files_that_are_not_there_are_named_by_who_opens_them(files, tmp_path, capsys):
    assert check_options([tmp_path / "no.wav"], argparse.Namespace(window=1.0)) == [None]
    assert localize.run([str(tmp_path / "no.wav"), "--window", "1"]) == 1
    assert "no.wav" in capsys.readouterr().err


RING = ("--array", "uca:8:0.5w")


@pytest.mark.parametrize(
    ("kind", "words", "reason"),
    [
        ("sound", ("--weights", "ula"), "--weights is for what is heard in a narrow band"),
        ("sound", ("--snapshots", "9"), "give --frequency HZ for one narrow band"),
        ("sound", ("--method", "nomp"), "one of auto, music, srp-phat, cssm, waves: got --method"),
        ("sound", ("--n-sources", "truth"), "whose sources are not counted: got --n-sources truth"),
        ("sound", ("--n-sources", "8"), "8 microphones, which tell fewer sources apart"),
        ("sound", ("--band", "300", "9000"), "half the sampling rate, 8000 Hz"),
        ("sound", ("--band", "900", "800"), "two rising frequencies > 0: got 900 to 800 Hz"),
        ("sound", ("--window", "0.01"), "--window is 160 samples (0.01 s), want two frames"),
        ("sound", ("--plane-elevation-deg", "90"), "between -90 and 90 degrees: got 90.0"),
        (
            "sound",
            ("--array", "ula:8:0.05m", "--plane-elevation-deg", "10"),
            "a line of microphones hears the same angle at any elevation",
        ),
        ("sound", ("--frequency", "900", "--window", "1"), "or leave --frequency out"),
        ("observations", ("--speed", "343"), "which say wavelength and sector themselves"),
        ("observations", ("--azimuth-deg", "-9", "9"), "--azimuth-deg is for a narrow band"),
        ("observations", ("--track", "3"), "--track is for sound over its whole band"),
        ("observations", ("--method", "waves"), "got --method waves"),
        ("observations", ("--bearing-deg", "0", "90"), "got 8 elements on one line"),
        (
            "snapshots",
            (*RING, "--weights", "ula"),
            "--weights ula must fit the recording: got",
        ),
        (
            "snapshots",
            (*RING, "--bearing-deg", "0", "90", "--weights", "ula"),
            "got --bearing-deg beside --weights",
        ),
        (
            "snapshots",
            (*RING, "--plane-elevation-deg", "5", "--method", "music", "--range-m", "1", "2"),
            "got --plane-elevation-deg beside --range-m, --method music",
        ),
        ("snapshots", (*RING, "--bearing-deg", "0", "9", "--method", "cssm"), "got --method cssm"),
        ("snapshots", (*RING, "--n-sources", "8"), "n_sources=8, n_sensors=8"),
        ("snapshots", ("--array", "ula:8:0.5w", "--speed", "343"), "got speed_m_s=343 alone"),
        ("snapshots", ("--array", "ula:8:0.1m"), "got neither --frequency nor --wavelength"),
        ("snapshots", ("--array", "ura:4x2:0.5w", "--weights", "ula"), "must fit the recording"),
    ],
)
def test_the_true_cause_is_named(kind, words, reason, files, tmp_path, capsys):
    path, _ = files[kind]
    usual = ("--array", "uca:8:0.1m", "--n-sources", "1") if kind == "sound" else ()
    target = tmp_path / "out.json"
    assert localize.run([str(path), *usual, *words, "--output", str(target)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert list(tmp_path.iterdir()) == []


def test_scenes_that_are_cut_already_take_no_number_of_snapshots(tmp_path, capsys):
    np.save(tmp_path / "scenes.npy", read_observations(FAR).y[:2].numpy())
    words = ["--array", "ula:8:0.5w", "--snapshots", "10"]
    assert localize.run([str(tmp_path / "scenes.npy"), *words]) == 1
    assert "scenes of 50 snapshots already: got 10" in capsys.readouterr().err


@pytest.mark.parametrize("command", [inspect, convert])
def test_other_commands_keep_to_the_table(command, files, tmp_path, capsys):
    targets = [str(tmp_path / "out.npz")] if command is convert else []
    assert command.run([str(FAR), *targets, "--snapshots", "10"]) == 1
    assert "--snapshots is for" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
