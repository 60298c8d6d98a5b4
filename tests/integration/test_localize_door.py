"""`musicnet localize` and `evaluate`, and the benchmarks beside them, as a user starts them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from musicnet import __main__ as door
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import save_pretrained
from musicnet.records.provenance import hash_file
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceLaw

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FAR = ROOT / "tests" / "data" / "ula_far_24.npz"


def test_the_door_knows_the_command(tmp_path, capsys):
    target = tmp_path / "out.json"
    assert door.run(["localize", str(FAR), "--method", "esprit", "--output", str(target)]) == 0
    assert json.loads(target.read_text())["format"] == "musicnet.positions/1"
    assert capsys.readouterr().out.startswith("24 scenes, ")


def test_bad_input_ends_with_one_line_and_exit_code_one(tmp_path):
    words = ["localize", str(FAR), "--n-sources", "9", "--output", str(tmp_path / "out.json")]
    ended = subprocess.run(
        [sys.executable, "-m", "musicnet", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: the number of sources must be smaller")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="a system without broken pipes")
def test_a_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "musicnet", "inspect", str(FAR)]
    ended = subprocess.run(words, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert ended.returncode == -signal.SIGPIPE
    assert ended.stderr == b""


def test_trained_weights_are_taken_from_a_file_and_named(tmp_path):
    law = SourceLaw(n_max=3, azimuth_deg=(-90.0, 90.0), elevation_deg=(0.0, 0.0), range_m=None)
    scene, settings = Scene(ArrayGeometry(8), law), NetworkSettings(n_channels=4, n_u=11)
    weights, target = tmp_path / "own.safetensors", tmp_path / "out.json"
    save_pretrained(weights, NeuralMusic(scene, settings), scene, settings, {"minutes": 0})
    words = [FAR, "--method", "neural", "--weights", weights, "--n-sources", "truth"]
    ended = subprocess.run(
        [sys.executable, "-m", "musicnet", "localize", *map(str, words), "--output", str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == "weights: own\n"
    tree = json.loads(target.read_text())
    said = {source["method"] for entry in tree["scenes"] for source in entry["sources"]}
    assert said == {"neural"}
    origin = {"name": "own", "sha256": hash_file(weights)}
    assert tree["provenance"]["config"]["weights"] == origin


def test_a_misspelt_command_is_answered_with_the_right_one(capsys):
    assert door.run(["localise", str(FAR)]) == 1
    assert "Did you mean 'localize'?" in capsys.readouterr().err


def test_the_benchmark_of_estimators_writes_a_row_per_scenario_and_method(tmp_path):
    target, pictures = tmp_path / "estimators.json", tmp_path / "pictures"
    words = ["--quick", "--items", "3", "6", "--json", target, "--plots", pictures]
    ended = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "estimators.py", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(target.read_text())
    assert figures["eigh64_ms"] > 0
    rows = figures["rows"]
    assert {row["item"] for row in rows} == {3, 6}
    names = [(row["scenario"], row["method"], row.get("error")) for row in rows]
    assert len(set(names)) == len(names)
    columns = {"median", "rmse", "outliers", "efficiency", "resolved", "cpu_ms_per_scene"}
    assert all(columns <= row.keys() for row in rows if row["item"] == 3)
    assert all(row["cpu_ms_per_scene"] > 0 for row in rows)
    assert {path.suffix for path in pictures.iterdir()} == {".png"}
    assert "limits hold" in ended.stdout


def test_the_benchmark_of_the_localizer_runs_without_weights_for_its_growth(tmp_path):
    target = tmp_path / "localizer.json"
    words = ["--quick", "--parts", "growth", "--json", target]
    ended = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "localizer.py", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(target.read_text())
    assert figures["eigh64_ms"] > 0
    assert [row["batch"] for row in figures["growth"]] == [1, 32]
    assert all(row["cpu_ms_per_scene"] > 0 for row in figures["growth"])
    assert "dominates" in ended.stdout


def test_unknown_weights_end_with_one_line_and_exit_code_one(tmp_path):
    for words in (["-m", "musicnet", "evaluate"], [str(ROOT / "benchmarks" / "localizer.py")]):
        ended = subprocess.run(
            [sys.executable, *words, "--weights", str(tmp_path / "nothing"), "--quick"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 1
        (line,) = ended.stderr.splitlines()
        assert line == f"error: no such file: {tmp_path / 'nothing'}"
