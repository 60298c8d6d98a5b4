"""From a training to weights that localise, by the script that makes what ships."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from musicnet.networks.pretrained import load_pretrained
from musicnet.records.provenance import hash_file, read_provenance

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def script(*words):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "train_weights.py", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_finished_run_becomes_weights_with_a_card(finished_run, tmp_path):
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps({"K=4": {"outliers": 0.25}}))
    words = ["overfit", "--run", finished_run, "--figures", figures, "--output", tmp_path]
    ended = script(*words, "trainer.max_epochs=2")
    assert ended.returncode == 0, ended.stderr
    origin, read = read_provenance(finished_run), load_pretrained(tmp_path / "overfit.safetensors")
    assert read.card["command"] == "python train.py experiment=overfit trainer.max_epochs=2"
    assert read.card["config_hash"] == origin.config_hash
    assert read.card["git_commit"] == origin.git_commit
    assert (read.card["seed"], read.card["weights"]) == (0, "raw")
    assert read.card["minutes"] >= 0
    assert read.card["figures"] == {"K=4": {"outliers": 0.25}}
    page = (tmp_path / "overfit.md").read_text(encoding="utf-8")
    for said in (origin.run_id, hash_file(tmp_path / "overfit.safetensors"), '"outliers": 0.25'):
        assert said in page


def test_a_run_of_another_experiment_is_refused(finished_run, tmp_path):
    ended = script("ris", "--run", finished_run, "--output", tmp_path)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "must be a run of experiment=ris: got experiment=overfit" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_experiment_is_trained_and_exported(tiny, tmp_path):
    small = [word for word in tiny if not word.startswith(("experiment", "trainer.max"))]
    small += ["trainer.max_epochs=1", "model.init_args.averaging={kind: ema}"]
    ended = script("ris", *small, "--runs", tmp_path / "runs", "--output", tmp_path)
    assert ended.returncode == 0, ended.stderr
    read = load_pretrained(tmp_path / "ris.safetensors")
    assert read.card["weights"] == "averaged"
    assert read.card["command"].startswith("python train.py experiment=ris trainer=cpu")
    recording = ROOT / "tests" / "data" / "ris_pilot_48.npz"
    words = ["localize", recording, "--weights", tmp_path / "ris.safetensors", "--n-sources", "1"]
    answer = subprocess.run(
        [sys.executable, "-m", "musicnet", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stderr == "weights: ris\n"


def test_what_cannot_be_exported_is_one_line(tmp_path):
    ended = script("tiny", "--run", tmp_path, "--output", tmp_path)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: no such file: ")
    assert not list(tmp_path.iterdir())
