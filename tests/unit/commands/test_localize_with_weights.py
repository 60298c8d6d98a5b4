"""Localising with trained weights: which are taken, what is said, and what is refused."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from musicnet.commands import localize as command
from musicnet.commands import question, scene_answers
from musicnet.networks import pretrained as module
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import save_pretrained
from musicnet.recordings import streams
from musicnet.recordings.checks import FORMAT_KEYS
from musicnet.records.provenance import hash_file
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface

DATA = Path(__file__).parents[2] / "data"
FAR, NEAR, SURFACE = (
    DATA / f"{name}.npz" for name in ("ula_far_24", "ula_near_16", "ris_pilot_48")
)
TINY = NetworkSettings(n_channels=4, dilations=(1,), n_v=5, n_u=9, n_rho=3)
LINE = SourceLaw(n_max=3, azimuth_deg=(-90.0, 90.0), elevation_deg=(0.0, 0.0), range_m=None)
ULA = Scene(ArrayGeometry(8), LINE)
NARROW = Scene(ArrayGeometry(8), SourceLaw(n_max=3, elevation_deg=(0.0, 0.0), range_m=None))
RIS = Scene(ArrayGeometry(8, 8), SourceLaw(n_max=4), surface=Surface())


@pytest.fixture(autouse=True)
def shipped_folder(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    monkeypatch.setattr(module, "WEIGHTS", folder)
    return folder


@pytest.fixture
def ship(shipped_folder):
    def put(**scenes):
        for name, scene in scenes.items():
            path = shipped_folder / f"{name}.safetensors"
            save_pretrained(path, NeuralMusic(scene, TINY), scene, TINY, {})
        return shipped_folder

    return put


@pytest.fixture
def answer(tmp_path, capsys):
    def ask(file, *words):
        target = tmp_path / "positions.json"
        assert command.run([str(file), *words, "--output", str(target)]) == 0
        return json.loads(target.read_text(encoding="utf-8")), capsys.readouterr().err

    return ask


def methods(tree):
    return {source["method"] for scene in tree["scenes"] for source in scene["sources"]}


def weights(tree):
    return tree["provenance"]["config"]["weights"]


@pytest.mark.parametrize(
    ("file", "name", "scene"), [(FAR, "ula", ULA), (SURFACE, "ris", RIS)], ids=["ula", "ris"]
)
@pytest.mark.parametrize("method", ["auto", "neural"])
@pytest.mark.parametrize("words", [("--n-sources", "truth"), ("--n-sources", "2")])
def test_weights_that_fit_are_used_and_named(ship, answer, file, name, scene, method, words):
    folder = ship(**{"another": NARROW, name: scene})
    tree, told = answer(file, "--method", method, *words)
    assert told == f"weights: {name}\n"
    assert methods(tree) == {"neural"}
    sha256 = hash_file(folder / f"{name}.safetensors")
    assert weights(tree) == {"name": name, "sha256": sha256}


def test_sources_may_be_counted(ship, answer):
    ship(ula=ULA)
    tree, _ = answer(FAR, "--method", "neural")
    assert methods(tree) == {"neural"}


def test_every_source_says_who_found_it(ship, tmp_path):
    """A network for two sources has those of no more, and pursuit has the others."""
    ship(ris=replace(RIS, sources=replace(RIS.sources, n_max=2)))
    target, table = tmp_path / "positions.json", tmp_path / "positions.csv"
    for file in (target, table):
        assert command.run([str(SURFACE), str(FAR), "--output", str(file)]) == 0
    scenes = json.loads(target.read_text(encoding="utf-8"))["scenes"]
    for scene in scenes:
        is_line = scene["file"] == str(FAR)
        pursued = "multistart" if is_line else "nomp"
        is_network = not is_line and scene["n_sources"] <= 2
        expected = ("neural", "ris") if is_network else (pursued, None)
        assert {(one["method"], one["weights"]) for one in scene["sources"]} <= {expected}
    listed = [(one["method"], one["weights"]) for scene in scenes for one in scene["sources"]]
    assert set(listed) == {("neural", "ris"), ("nomp", None), ("multistart", None)}
    with table.open(encoding="utf-8") as lines:
        rows = [(row["method"], row["weights"] or None) for row in csv.DictReader(lines)]
    assert [row for row in rows if row[0]] == listed


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A surface's scenes, of some of which labels name five sources; both kinds alone as well."""
    with np.load(SURFACE) as archive:
        arrays = {key: archive[key] for key in FORMAT_KEYS if key in archive}
    few, many = np.arange(4), np.arange(4, 6)
    labels = np.full((6, 5, 3), np.nan)
    labels[few, : arrays["truth_xyz"].shape[1]] = arrays["truth_xyz"][few]
    labels[many] = [(0.1 * k, 0.1, 1.0 + 0.3 * k) for k in range(5)]
    arrays["truth_xyz"] = labels
    folder, files = tmp_path_factory.mktemp("mixed"), {}
    for name, index in (("mixed", np.arange(6)), ("few", few), ("many", many)):
        files[name] = folder / f"{name}.npz"
        per_scene = {"y", "operator_index", "noise_power", "truth_xyz"} & arrays.keys()
        np.savez(files[name], **{**arrays, **{key: arrays[key][index] for key in per_scene}})
    return files


@pytest.fixture
def trained(shipped_folder):
    """The real network: answers of an untrained one have their last bits from the batch."""
    shipped_folder.mkdir()
    shutil.copy(Path(module.__file__).parents[1] / "weights" / "ris.safetensors", shipped_folder)


def sources(tree):
    return [scene["sources"] for scene in tree["scenes"]]


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("words", [(), ("--method", "neural"), ("--weights", "ris")])
def test_a_scene_beyond_training_takes_the_network_from_no_other(answer, mixed, words):
    tree, told = answer(mixed["mixed"], *words, "--n-sources", "truth")
    assert told == "weights: ris; scenes of more than 4 sources are answered by nomp\n"
    few, told = answer(mixed["few"], *words, "--n-sources", "truth")
    assert told == "weights: ris\n"
    assert methods(few) == {"neural"}
    many, _ = answer(mixed["many"], "--method", "nomp", "--n-sources", "truth")
    assert sources(tree) == sources(few) + sources(many)


@pytest.mark.usefixtures("trained")
def test_where_all_scenes_are_beyond_training_auto_pursues(answer, mixed):
    tree, told = answer(mixed["many"], "--n-sources", "truth")
    assert methods(tree) == {"nomp"}
    assert "answered by nomp" in told
    tree, told = answer(mixed["many"], "--n-sources", "5")
    assert methods(tree) == {"nomp"}
    none = "none of those that ship has learned 5 sources"
    assert told == f"weights: {none}; answered by nomp\n"


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("words", [("--method", "neural"), ("--weights", "ris")])
@pytest.mark.parametrize("asked", ["truth", "5"])
def test_weights_that_have_learned_no_scene_are_refused(mixed, capsys, words, asked):
    assert command.run([str(mixed["many"]), *words, "--n-sources", asked]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "got sources=5, it was trained for up to 4" in line


@pytest.mark.parametrize(("file", "used"), [(FAR, "multistart"), (SURFACE, "nomp")])
def test_without_any_shipped_auto_pursues_and_says_so(answer, file, used):
    tree, told = answer(file, "--n-sources", "1")
    assert told == f"weights: none are shipped; answered by {used}\n"
    assert methods(tree) == {used}
    assert weights(tree) is None


def test_where_none_fits_auto_pursues_and_says_so(ship, answer):
    ship(ula=NARROW, ris=RIS)
    tree, told = answer(FAR, "--n-sources", "1")
    none = "none of those that ship fits this recording"
    assert told == f"weights: {none}; answered by multistart\n"
    assert methods(tree) == {"multistart"}


def test_a_classical_method_says_nothing_of_weights(ship, answer):
    ship(ula=ULA)
    tree, told = answer(FAR, "--method", "esprit", "--n-sources", "1")
    assert told == ""
    assert methods(tree) == {"esprit"}
    assert weights(tree) is None


@pytest.mark.parametrize("method", ["auto", "neural"])
def test_weights_can_be_named(ship, answer, method):
    ship(first=ULA, second=ULA)
    tree, told = answer(FAR, "--method", method, "--weights", "second", "--n-sources", "1")
    assert told == "weights: second\n"
    assert weights(tree)["name"] == "second"


def test_weights_can_be_a_file(ship, answer, tmp_path):
    own = ship(ula=ULA).joinpath("ula.safetensors").rename(tmp_path / "own.safetensors")
    tree, told = answer(FAR, "--weights", str(own), "--n-sources", "1")
    assert told == "weights: own\n"
    assert weights(tree) == {"name": "own", "sha256": hash_file(own)}


def damaged(folder):
    content = bytearray((folder / "ula.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "ula.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("file", "words", "reason"),
    [
        (NEAR, ["--method", "neural"], "none among those that ship (ris: got elements=15"),
        (FAR, ["--method", "neural", "--n-sources", "4"], "ula: got sources=4"),
        (FAR, ["--weights", "ulla"], "ris, ula) or a file: got 'ulla'. Did you mean 'ula'?"),
        (FAR, ["--weights", "ris"], "--weights ris must fit the recording: got elements=8"),
        (FAR, ["--weights", "no/such.safetensors"], "no such file: no/such.safetensors"),
        (FAR, ["--weights", "https://a.b/c"], "local files only"),
        (FAR, ["--weights", str(FAR)], "must be a whole safetensors file"),
        (FAR, ["--method", "nomp", "--weights", "ula"], "got --method nomp"),
    ],
)
def test_what_cannot_be_used_is_one_line(ship, tmp_path, capsys, file, words, reason):
    ship(ula=ULA, ris=RIS)
    target = tmp_path / "out.json"
    assert command.run([str(file), *words, "--output", str(target)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert not target.exists()


def test_neural_without_any_shipped_is_one_line(capsys):
    assert command.run([str(FAR), "--method", "neural"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "none among those that ship (there are none)" in line


@pytest.mark.parametrize("method", ["auto", "neural"])
def test_damaged_weights_are_refused_and_not_passed_over(ship, capsys, method):
    damaged(ship(ula=ULA))
    assert command.run([str(FAR), "--method", method]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "ula.safetensors fails its checksum" in line


@pytest.fixture
def interrupted(tmp_path, monkeypatch, capsys):
    """Begins a call, stops it after six of 24 scenes, lets something happen, and calls again."""

    def ask(words, meanwhile):
        target, calls = tmp_path / "again.json", []

        def stopped(*asked):
            calls.append(asked)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return scene_answers.answers(*asked)

        monkeypatch.setattr(streams, "_CHUNK_BYTES", 6 * 50 * 8 * 8)
        monkeypatch.setattr(command, "answers", stopped)
        words = [str(FAR), *words, "--n-sources", "1", "--output", str(target)]
        assert command.run(words) == 130
        more = meanwhile() or []
        module.load_shipped.cache_clear()  # the second call is another process
        assert command.run([*words, *more]) == 0
        return json.loads(target.read_text(encoding="utf-8")), capsys.readouterr().err

    return ask


def test_what_was_begun_with_the_same_weights_goes_on(ship, interrupted, tmp_path):
    ship(ula=ULA).joinpath("ula.safetensors").rename(tmp_path / "w.safetensors")
    _, told = interrupted(["--weights", str(tmp_path / "w.safetensors")], lambda: None)
    assert "going on after 6 scenes" in told


@pytest.mark.parametrize("is_named", [True, False], ids=["named", "chosen"])
def test_what_other_weights_began_is_begun_anew(ship, interrupted, is_named):
    """Else a tree of two networks' answers would name one."""
    path = ship(ula=ULA) / "ula.safetensors"
    other = NeuralMusic(ULA, TINY)
    with torch.no_grad():
        for values in other.parameters():
            values.mul_(0.5)
    tree, told = interrupted(
        ["--weights", str(path)] if is_named else [],
        lambda: save_pretrained(path, other, ULA, TINY, {}),
    )
    assert "going on" not in told
    assert weights(tree)["sha256"] == hash_file(path)
    assert [scene["scene"] for scene in tree["scenes"]] == list(range(24))


@pytest.mark.parametrize("what", ["strict", "code", "array"])
def test_what_changes_an_answer_is_another_question(interrupted, monkeypatch, tmp_path, what):
    places = tmp_path / "places.csv"
    half = float(np.load(FAR)["wavelength"]) / 2.0
    rows = [f"{half * k},0" for k in range(8)]
    places.write_text("\n".join(["x_m,y_m", *rows]), encoding="utf-8")

    def meanwhile():
        if what == "code":
            monkeypatch.setattr(question, "identify_code", lambda _: {"sha256": "another"})
        if what == "array":
            rows[0] = f"{half * 1e-5},0"
            places.write_text("\n".join(["x_m,y_m", *rows]), encoding="utf-8")
        return ["--strict"] if what == "strict" else None

    words = ["--array", str(places)] if what == "array" else []
    assert "going on" not in interrupted(words, meanwhile)[1]


def test_a_file_goes_on_after_its_own_scenes_alone(tmp_path, monkeypatch):
    """One that is refused half-way leaves fewer entries than it has scenes."""
    with np.load(FAR) as archive:
        arrays = dict(archive)
    arrays["y"][8] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    monkeypatch.setattr(streams, "_CHUNK_BYTES", 6 * 50 * 8 * 8)
    target, calls = tmp_path / "out.json", []

    def stopped(*asked):
        calls.append(asked)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scene_answers.answers(*asked)

    monkeypatch.setattr(command, "answers", stopped)
    words = [str(tmp_path / "bad.npz"), str(FAR), "--strict", "--method", "esprit"]
    assert command.run([*words, "--output", str(target)]) == 130
    assert command.run([*words, "--output", str(target)]) == 1
    scenes = json.loads(target.read_text(encoding="utf-8"))["scenes"]
    assert [(one["file"], one["scene"]) for one in scenes] == [(str(FAR), k) for k in range(24)]
    assert len(calls) == 3 + 3
