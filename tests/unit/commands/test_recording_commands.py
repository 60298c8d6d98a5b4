"""Simulate, inspect, convert: files in, files out, and what they say of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from musicnet.cli.scenes import experiment_scene
from musicnet.commands import convert, inspect, localize, simulate
from musicnet.recordings.observation_files import read_observations

DATA = Path(__file__).parents[2] / "data"
SURFACE, FAR = DATA / "ris_pilot_48.npz", DATA / "ula_far_24.npz"


def same(one, other):
    ours, theirs = read_observations(one), read_observations(other)
    for key in ("y", "operator", "operator_index", "noise_power", "positions"):
        assert torch.equal(getattr(ours, key), getattr(theirs, key)), key
    assert ours.truth is not None
    assert torch.equal(ours.truth.parameters.nan_to_num(9), theirs.truth.parameters.nan_to_num(9))


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".mat"])
def test_what_is_converted_holds_the_same(suffix, tmp_path):
    for source in (SURFACE, FAR):
        target = tmp_path / f"{source.stem}{suffix}"
        assert convert.run([str(source), str(target)]) == 0
        same(target, source)


def test_snapshots_become_an_observation_file(tmp_path, capsys):
    y = read_observations(FAR).y.flatten(0, 1).numpy()
    np.save(tmp_path / "record.npy", y)
    target = tmp_path / "scenes.npz"
    words = ["--array", "ula:8:0.5w", "--snapshots", "50", "--wavelength", "0.3"]
    assert convert.run([str(tmp_path / "record.npy"), str(target), *words]) == 0
    assert "24 scenes" in capsys.readouterr().out
    assert torch.equal(read_observations(target).y, read_observations(FAR).y)


def test_bad_scenes_are_not_converted(tmp_path, capsys):
    with np.load(FAR) as archive:
        arrays = dict(archive)
    arrays["y"][5, 1, 2] = np.inf
    np.savez(tmp_path / "bad.npz", **arrays)
    assert convert.run([str(tmp_path / "bad.npz"), str(tmp_path / "out.h5")]) == 1
    assert "y is not finite at index (5, 1, 2)" in capsys.readouterr().err
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("name", ["ris", "ula", "miscalibrated"])
def test_simulated_scenes_are_those_of_the_experiment(name, tmp_path, capsys):
    target = tmp_path / "out.npz"
    words = ["--experiment", name, "--n", "70", "--seed", "3"]
    assert simulate.run([str(target), *words], experiment_scene) == 0
    recording, scene = read_observations(target), experiment_scene(name)
    assert recording.n_scenes == 70
    assert recording.region == scene.region
    assert recording.truth.n_sources.min() >= scene.sources.n_min
    fewer = tmp_path / "fewer.npz"
    assert simulate.run([str(fewer), *words[:3], "40", *words[4:]], experiment_scene) == 0
    assert torch.equal(read_observations(fewer).y, recording.y[:40])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--experiment", "uls"], "Did you mean 'ula'?"),
        ([], "one of --experiment and --weights"),
        (["--experiment", "ula", "--n", "0"], "--n must be at least 1: got 0"),
        (["--experiment", "ula", "--n", "1000000000"], "the limit is"),
        (["--weights", "nothing"], "got 'nothing'"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(words, reason, tmp_path, capsys):
    assert simulate.run([str(tmp_path / "out.npz"), *words], experiment_scene) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert not list(tmp_path.iterdir())


def test_a_kind_that_is_not_written_is_refused(tmp_path, capsys):
    assert convert.run([str(FAR), str(tmp_path / "out.txt")]) == 1
    assert "must end in one of .npz, .h5, .hdf5, .mat" in capsys.readouterr().err


def test_inspection_says_what_is_there(capsys):
    assert inspect.run([str(SURFACE)]) == 0
    said = capsys.readouterr()
    for wanted in (
        "npz, sha256",
        "48 scenes of 1 blocks by 128 rows, 64 elements",
        "near field, azimuth_deg -60 to 60, elevation_deg -30 to 30, range_m 0.5 to 5",
        "labels of 1 to 4 sources",
        "nothing is wrong",
    ):
        assert wanted in said.out
    assert said.err == ""


def test_inspection_says_what_is_wrong(tmp_path, capsys):
    with np.load(FAR) as archive:
        arrays = dict(archive)
    arrays["y"][5, 1, 2] = np.nan
    arrays["y"][7] = 0
    arrays["truth_xyz"][9, 0] = (0, 0, -1)
    np.savez(tmp_path / "bad.npz", **arrays)
    assert inspect.run([str(tmp_path / "bad.npz")]) == 1
    said = capsys.readouterr()
    assert [line.partition("bad.npz:")[2] for line in said.err.splitlines()] == [
        "y is not finite at index (5, 1, 2) (scene 5)",
        "y is silent: every row is zero at index 7 (scene 7)",
        "truth_xyz is behind the array (z < 0) at index (9, 0) (scene 9)",
    ]
    assert "3 scenes are bad" in said.out


def test_a_manifest_lists_a_folder_that_can_then_be_localised(tmp_path, capsys):
    for name in ("b.npz", "a.h5"):
        assert convert.run([str(FAR), str(tmp_path / name)]) == 0
    (tmp_path / "notes.txt").write_text("monday")
    assert inspect.run([str(tmp_path), "--write-manifest"]) == 0
    tree = json.loads((tmp_path / "manifest.json").read_text())
    assert [(one["file"], one["n_scenes"]) for one in tree["shards"]] == [
        ("a.h5", 24),
        ("b.npz", 24),
    ]
    assert "2 shards, 48 scenes" in capsys.readouterr().out
    assert inspect.run([str(tmp_path)]) == 0
    target = tmp_path / "out.json"
    words = ["--method", "bartlett", "--n-sources", "1", "--output", str(target)]
    assert localize.run([str(tmp_path), *words]) == 0
    scenes = json.loads(target.read_text())["scenes"]
    assert [Path(one["file"]).name for one in scenes] == ["a.h5"] * 24 + ["b.npz"] * 24


def test_a_manifest_counts_the_scenes_that_are_bad(tmp_path, capsys):
    with np.load(FAR) as archive:
        arrays = dict(archive)
    arrays["y"][[3, 9], 0, 0] = np.nan
    np.savez(tmp_path / "a.npz", **arrays)
    assert inspect.run([str(tmp_path), "--write-manifest"]) == 0
    assert capsys.readouterr().out.startswith("1 shards, 24 scenes, 2 of them bad: ")
    (shard,) = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    assert shard["bad_scenes"] == [3, 9]
