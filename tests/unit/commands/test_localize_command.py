"""From an observation file to a file of positions."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from musicnet.commands import localize as command
from musicnet.commands import scene_answers, tally
from musicnet.localization import METHODS, localize
from musicnet.networks import pretrained
from musicnet.recordings import streams
from musicnet.recordings.observation_files import read_observations, write_observations
from musicnet.records.provenance import hash_file
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import Sources

DATA = Path(__file__).parents[2] / "data"
FAR, NEAR, SURFACE = (
    DATA / f"{name}.npz" for name in ("ula_far_24", "ula_near_16", "ris_pilot_48")
)
KEYS = [
    *("azimuth_deg", "elevation_deg", "range_m", "x", "y", "z"),
    *("std_azimuth_deg", "std_elevation_deg", "std_range_m", "std_x", "std_y", "std_z"),
    *("resolved", "method", "weights"),
]


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "no weights")


def answer(tmp_path, file, *words):
    target = tmp_path / "positions.json"
    assert command.run([str(file), *words, "--output", str(target)]) == 0
    return json.loads(target.read_text(encoding="utf-8"))


def without_times(tree):
    return [{**scene, "cpu_ms": None, "file": None} for scene in tree["scenes"]]


@pytest.mark.parametrize("file", [FAR, NEAR, SURFACE])
@pytest.mark.parametrize("words", [(), ("--n-sources", "truth"), ("--n-sources", "2")])
def test_the_tree_has_exactly_the_keys_of_the_format(tmp_path, file, words):
    tree = answer(tmp_path, file, "--method", "nomp", *words)
    recording = read_observations(file)
    assert list(tree) == ["format", "provenance", "files", "scenes"]
    assert [one["sha256"] for one in tree["files"]] == [hash_file(file)]
    assert tree["format"] == "musicnet.positions/1"
    assert tree["provenance"]["data_hash"] == hash_file(file)
    assert [scene["scene"] for scene in tree["scenes"]] == list(range(recording.n_scenes))
    for scene in tree["scenes"]:
        keys = {"file", "scene", "n_sources", "log_likelihood", "cpu_ms", "sources"}
        assert set(scene) == keys
        assert scene["file"] == str(file)
        assert len(scene["sources"]) == scene["n_sources"]
        assert scene["cpu_ms"] > 0
        for source in scene["sources"]:
            assert list(source) == KEYS
            assert source["resolved"] is True
            assert source["method"] == "nomp"


@pytest.mark.parametrize("file", [FAR, NEAR, SURFACE])
def test_positions_are_those_of_the_method(tmp_path, file):
    recording = read_observations(file)
    tree = answer(tmp_path, file, "--method", "nomp", "--n-sources", "truth")
    assert [s["n_sources"] for s in tree["scenes"]] == recording.truth.n_sources.tolist()
    for index in (0, recording.n_scenes // 2, recording.n_scenes - 1):
        heard = Observation(
            recording.y[[index]],
            recording.operator[recording.operator_index[index]],
            recording.noise_power[[index]],
            recording.positions,
            recording.wavelength,
        )
        n_sources = int(recording.truth.n_sources[index])
        found = localize(heard, "nomp", n_sources, region=recording.region)
        sources = tree["scenes"][index]["sources"]
        said = torch.tensor([[source[axis] for axis in "xyz"] for source in sources])
        scale = found.std_xyz[0].norm(dim=-1).max().item()
        torch.testing.assert_close(said, found.sources.xyz[0], atol=0.1 * scale, rtol=0.0)
        azimuth = found.std_angles[0][0].rad2deg().tolist()
        stated = [source["std_azimuth_deg"] for source in sources]
        assert stated == pytest.approx(azimuth, rel=0.05)


@pytest.mark.parametrize("file", [FAR, NEAR, SURFACE])
def test_the_truth_lies_within_the_error_bars(tmp_path, file):
    truth = read_observations(file).truth
    tree = answer(tmp_path, file, "--method", "nomp", "--n-sources", "truth")
    errors = []
    for points, resolved, scene in zip(truth.xyz, truth.resolved, tree["scenes"], strict=True):
        said = torch.tensor([[source[axis] for axis in "xyz"] for source in scene["sources"]])
        stated = torch.tensor(
            [[source[f"std_{axis}"] for axis in "xyz"] for source in scene["sources"]]
        )
        distance, nearest = torch.cdist(points[resolved], said).min(-1)
        errors += (distance / stated[nearest].norm(dim=-1)).tolist()
    # of a normal distribution's lengths two thirds or more are below one, and none is far beyond
    assert 0.3 < np.median(errors) < 1.1
    assert np.mean(np.array(errors) < 4.0) > 0.9


def test_units_and_axes_agree_with_each_other(tmp_path):
    tree = answer(tmp_path, SURFACE, "--method", "nomp", "--n-sources", "2")
    for source in (source for scene in tree["scenes"] for source in scene["sources"]):
        azimuth, elevation = (math.radians(source[f"{n}_deg"]) for n in ("azimuth", "elevation"))
        distance = source["range_m"]
        assert source["x"] == pytest.approx(
            distance * math.sin(azimuth) * math.cos(elevation), abs=1e-5
        )
        assert source["y"] == pytest.approx(distance * math.sin(elevation), abs=1e-5)
        assert source["z"] == pytest.approx(
            distance * math.cos(azimuth) * math.cos(elevation), abs=1e-5
        )


def test_far_sources_have_no_range_but_a_unit_vector(tmp_path):
    tree = answer(tmp_path, FAR, "--method", "root-music")
    sources = [source for scene in tree["scenes"] for source in scene["sources"]]
    assert sources
    for source in sources:
        assert source["range_m"] is None
        assert source["std_range_m"] is None
        assert math.hypot(*(source[axis] for axis in "xyz")) == pytest.approx(1.0)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "neural"])
def test_every_method_answers_the_far_line(tmp_path, method):
    tree = answer(tmp_path, FAR, "--method", method, "--n-sources", "truth")
    said = {source["method"] for scene in tree["scenes"] for source in scene["sources"]}
    assert said == {"multistart" if method == "auto" else method}


@pytest.mark.parametrize("words", [(), ("--n-sources", "2")])
def test_labels_are_not_read(tmp_path, words):
    recording = read_observations(FAR)
    wrong = Sources(recording.truth.parameters * 0.5, recording.truth.resolved)
    for name, truth in (("moved", wrong), ("none", None)):
        write_observations(tmp_path / f"{name}.npz", replace(recording, truth=truth))
    plain = without_times(answer(tmp_path, FAR, "--method", "nomp", *words))
    for name in ("moved", "none"):
        assert (
            without_times(answer(tmp_path, tmp_path / f"{name}.npz", "--method", "nomp", *words))
            == plain
        )


def test_only_the_number_is_taken_from_the_labels(tmp_path):
    recording = read_observations(FAR)
    wrong = Sources(recording.truth.parameters * 0.5, recording.truth.resolved)
    write_observations(tmp_path / "moved.npz", replace(recording, truth=wrong))
    words = ("--method", "nomp", "--n-sources", "truth")
    plain = answer(tmp_path, FAR, *words)
    moved = answer(tmp_path, tmp_path / "moved.npz", *words)
    assert without_times(plain) == without_times(moved)


def test_what_a_method_did_not_find_is_null(tmp_path, monkeypatch):
    def blind(observation, *args, **kwargs):
        found = localize(observation, *args, **kwargs)
        resolved = found.sources.resolved.clone()
        resolved[:, 0] = False
        hidden = ~resolved[..., None]
        return replace(
            found,
            sources=Sources(found.sources.parameters.masked_fill(hidden, math.nan), resolved),
            covariance=found.covariance.masked_fill(hidden[..., None], math.nan),
        )

    monkeypatch.setattr(scene_answers, "localize", blind)
    tree = answer(tmp_path, FAR, "--method", "nomp", "--n-sources", "2")
    for scene in tree["scenes"]:
        found, missing = scene["sources"]
        assert found["resolved"] is True
        assert missing == {**dict.fromkeys(KEYS), "resolved": False, "method": "nomp"}


@pytest.mark.parametrize("method", ["esprit", "auto"])
def test_the_size_of_a_batch_changes_no_bit(tmp_path, method):
    whole = without_times(answer(tmp_path, FAR, "--method", method))
    parts = without_times(answer(tmp_path, FAR, "--method", method, "--batch-size", "5"))
    assert parts == whole


def test_without_output_the_tree_is_printed(capsys):
    assert command.run([str(FAR), "--method", "esprit", "--n-sources", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "musicnet.positions/1"


def unlabelled(tmp_path):
    recording = read_observations(FAR)
    write_observations(tmp_path / "plain.npz", replace(recording, truth=None))
    return tmp_path / "plain.npz"


def cut(tmp_path):
    (tmp_path / "cut.npz").write_bytes(FAR.read_bytes()[:5000])
    return tmp_path / "cut.npz"


def free_elevation(tmp_path):
    with np.load(FAR) as archive:
        arrays = dict(archive)
    arrays["elevation_deg"] = np.array([-30.0, 30.0])
    np.savez(tmp_path / "free.npz", **arrays)
    return tmp_path / "free.npz"


def spoilt(tmp_path):
    with np.load(FAR) as archive:
        arrays = dict(archive)
    arrays["y"][3, 2, 1] = np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    return tmp_path / "nan.npz"


def test_scenes_of_as_many_sources_as_are_counted_are_told(capsys, monkeypatch):
    monkeypatch.setattr(tally, "MOST_COUNTED", 2)
    for words, is_told in (([], True), (["--n-sources", "truth"], False)):
        assert command.run([str(FAR), "--method", "esprit", *words]) == 0
        said = capsys.readouterr()
        scenes = json.loads(said.out)["scenes"]
        n_full = sum(scene["n_sources"] == 2 for scene in scenes)
        assert n_full > 1
        line = f"warning: {FAR}: {n_full} scenes have 2 sources, the most that are counted."
        assert (line in said.err) == is_told


def snapshots(tmp_path):
    np.save(tmp_path / "raw.npy", read_observations(FAR).y[0].numpy())
    return tmp_path / "raw.npy"


@pytest.mark.parametrize(
    ("make", "words", "reason"),
    [
        (lambda _: FAR, ["--method", "musik"], "invalid choice: 'musik'"),
        (lambda _: FAR, ["--n-sources", "8"], "got n_sources=8, n_sensors=8"),
        (lambda _: FAR, ["--n-sources", "9" * 20], "got n_sources=99999999999999999999"),
        (free_elevation, [], "Fix v by equal bounds, in a file those of elevation_deg"),
        (lambda _: FAR, ["--n-sources", "0"], "must be a number >= 1, or 'truth': got '0'"),
        (lambda _: FAR, ["--n-sources", "two"], "got 'two'"),
        (lambda _: FAR, ["--batch-size", "9" * 23], "--batch-size: must be a number from 1 to"),
        (
            snapshots,
            ["--array", "ula:8:0.5w", "--range-m", "1e-300", "1e300", "--wavelength", "1"],
            "range_m is (1e-300, 1e+300), want metres from 1e-09 to 1e+09",
        ),
        (lambda _: FAR, ["--nsources", "2"], "unrecognized arguments"),
        (lambda _: NEAR, ["--method", "root-music"], "root-music needs a uniform line"),
        (lambda _: SURFACE, ["--method", "esprit"], "got a surface"),
        (lambda _: DATA / "nothing.npz", [], "no such file"),
        (unlabelled, ["--n-sources", "truth"], "needs labels"),
        (cut, [], "truncated"),
        (spoilt, ["--strict"], "y is not finite at index (3, 2, 1)"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, make, words, reason):
    file = make(tmp_path)
    target = tmp_path / "out.json"
    assert command.run([str(file), *words, "--output", str(target)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert not target.exists()


def test_a_bad_scene_is_named_and_the_others_are_kept(tmp_path, capsys):
    clean = without_times(answer(tmp_path, FAR))
    capsys.readouterr()
    target = tmp_path / "kept.json"
    assert command.run([str(spoilt(tmp_path)), "--output", str(target)]) == 1
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert line.endswith("nan.npz:y is not finite at index (3, 2, 1); the scene is left out")
    kept = without_times(json.loads(target.read_text()))
    assert kept[3]["error"] == "y is not finite at index (3, 2, 1)"
    assert (kept[3]["n_sources"], kept[3]["sources"]) == (None, [])
    for ours, theirs in zip(kept, clean, strict=True):
        if ours["scene"] != 3:
            assert ours == theirs


def test_a_bad_file_is_named_and_the_others_are_kept(tmp_path, capsys):
    target = tmp_path / "kept.json"
    words = [str(cut(tmp_path)), str(FAR), "--method", "esprit", "--output", str(target)]
    assert command.run(words) == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one]
    assert "cut.npz is truncated" in line
    tree = json.loads(target.read_text())
    assert {scene["file"] for scene in tree["scenes"]} == {str(FAR)}
    assert [bool(one["error"]) for one in tree["files"]] == [True, False]


def test_a_table_has_a_row_for_each_source(tmp_path):
    tree = answer(tmp_path, FAR, "--method", "esprit")
    target = tmp_path / "positions.csv"
    assert command.run([str(FAR), "--method", "esprit", "--output", str(target)]) == 0
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sources = [(s["scene"], source) for s in tree["scenes"] for source in s["sources"]]
    assert len(rows) == len(sources)
    for row, (scene, source) in zip(rows, sources, strict=True):
        assert (int(row["scene"]), row["method"]) == (scene, "esprit")
        assert float(row["azimuth_deg"]) == source["azimuth_deg"]
        assert row["data_sha256"] == hash_file(FAR)


def test_what_was_interrupted_goes_on_without_loss(tmp_path, monkeypatch, capsys):
    whole = without_times(answer(tmp_path, FAR, "--method", "esprit"))
    target, calls = tmp_path / "again.json", []

    def interrupted(*words):
        calls.append(words)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scene_answers.answers(*words)

    monkeypatch.setattr(streams, "_CHUNK_BYTES", 5 * 50 * 8 * 8)  # five scenes
    monkeypatch.setattr(command, "answers", interrupted)
    words = [str(FAR), "--method", "esprit", "--output", str(target)]
    assert command.run(words) == 130
    assert not target.exists()
    journal = tmp_path / "again.json.partial"
    with journal.open("a") as file:
        file.write('{"file": "half a li')  # as a kill would leave it
    assert command.run(words) == 0
    assert len(calls) == 3 + 3
    assert "going on after 10 scenes" in capsys.readouterr().err
    assert without_times(json.loads(target.read_text())) == whole
    assert not journal.exists()


def test_another_question_does_not_go_on_with_the_first(tmp_path, monkeypatch, capsys):
    target = tmp_path / "again.json"
    monkeypatch.setattr(
        command, "write_positions", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert command.run([str(FAR), "--method", "esprit", "--output", str(target)]) == 130
    monkeypatch.undo()
    words = ["--method", "bartlett", "--n-sources", "1", "--output", str(target)]
    assert command.run([str(FAR), *words]) == 0
    assert "going on" not in capsys.readouterr().err
    found = json.loads(target.read_text())["scenes"]
    assert {source["method"] for scene in found for source in scene["sources"]} == {"bartlett"}


def test_pictures_are_drawn_on_request(tmp_path, capsys):
    target, folder = tmp_path / "out.json", tmp_path / "pictures"
    words = ["--method", "esprit", "--output", str(target), "--plot", str(folder)]
    assert command.run([str(FAR), *words]) == 0
    (picture,) = folder.iterdir()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in capsys.readouterr().out


def test_a_recording_is_never_overwritten(tmp_path, capsys):
    copy = tmp_path / "copy.npz"
    copy.write_bytes(FAR.read_bytes())
    assert command.run([str(copy), "--output", str(copy)]) == 1
    assert "--output must not be the recording" in capsys.readouterr().err
    assert copy.read_bytes() == FAR.read_bytes()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (lambda _: "", "must name a file: got the folder '.'"),
        (str, "must name a file: got the folder"),
        (lambda folder: str(folder / "file" / "new" / "out.json"), "folder that can be written"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_the_work(
    tmp_path, capsys, monkeypatch, target, reason
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(command, "open_observations", lambda *_: pytest.fail("work was begun"))
    assert command.run([str(FAR), "--output", target(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --output")
    assert reason in line


def test_missing_folders_of_a_target_are_made(tmp_path):
    target = tmp_path / "a" / "b" / "out.json"
    assert command.run([str(FAR), "--method", "esprit", "--output", str(target)]) == 0
    assert target.exists()


def test_a_failed_write_leaves_the_old_answer(tmp_path, capsys):
    folder = tmp_path / "taken"
    folder.mkdir()
    assert command.run([str(FAR), "--method", "esprit", "--output", str(folder)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_source_at_infinity_has_no_place_among_near_ones():
    recording = read_observations(NEAR)
    # conjugated, waves are curved the other way: a plane one comes closest
    bent = replace(
        recording,
        y=recording.y.conj().resolve_conj(),
        range_m=(recording.range_m[0], math.inf),
    )
    found = [scene_answers.answers(heard, "nomp", 1) for heard in (recording, bent)]
    (near, far) = ([scene["sources"][0] for scene in scenes] for scenes in found)
    assert all(source["range_m"] is not None and source["std_x"] is not None for source in near)
    at_infinity = [source for source in far if source["range_m"] is None]
    assert len(at_infinity) > len(far) // 2
    for source in at_infinity:
        assert source["azimuth_deg"] is not None
        assert source["std_azimuth_deg"] is not None
        for name in ("x", "y", "z", "std_x", "std_y", "std_z", "std_range_m"):
            assert source[name] is None


def grazing(folder):
    """Six scenes of a line: along it, on both sides, and such as nobody can tell apart."""
    with np.load(FAR) as archive:
        arrays = {key: archive[key] for key in archive.files}
    lot = np.random.default_rng(0)
    x = arrays["element_positions"][:, 0] * 2.0 * np.pi / arrays["wavelength"]
    y = 0.3 * (lot.normal(size=(6, 50, 8)) + 1j * lot.normal(size=(6, 50, 8)))
    for scene, u in enumerate((1.0, 0.999, 0.99, -0.995, 0.2)):
        heard = np.exp(1j * (u * x + lot.uniform(0, 2 * np.pi, (50, 1))))
        y[scene] += heard
    for key in ("truth_xyz", "snr_db", "coherent"):
        del arrays[key]
    arrays |= {
        "y": y.astype(np.complex64),
        "operator_index": np.zeros(6, np.int32),
        "noise_power": np.full(6, 0.18, np.float32),
    }
    np.savez(folder / "grazing.npz", **arrays)
    return folder / "grazing.npz"


@pytest.mark.parametrize("method", ["nomp", "music"])
def test_every_resolved_row_says_how_sure_its_angles_are(method, tmp_path):
    """At grazing incidence a derivative is infinite, or says thousands of degrees."""
    path, words = grazing(tmp_path), ("--method", method, "--n-sources", "3")
    tree = answer(tmp_path, path, *words)
    table = tmp_path / "positions.csv"
    assert command.run([str(path), *words, "--output", str(table)]) == 0
    with table.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [source for scene in tree["scenes"] for source in scene["sources"]]
    assert sum(row["resolved"] for row in rows) >= 6
    for row, line in zip(rows, lines, strict=True):
        names = [name for name in row if name.startswith("std_")]
        for name in names:
            assert line[name] == ("" if row[name] is None else str(row[name]))
        if row["resolved"]:
            for angle in ("azimuth", "elevation"):
                assert 0.0 <= row[f"std_{angle}_deg"] <= 180.0 / math.sqrt(12.0) + 1e-4
            assert all(0.0 <= row[f"std_{axis}"] <= 0.578 for axis in "xyz")
        else:
            assert all(row[name] is None for name in names)
