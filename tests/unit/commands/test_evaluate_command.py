"""From trained weights to a table, a file of figures and pictures."""

import json
import math

import pytest
import torch

from musicnet.commands import evaluate as command
from musicnet.localization.contestants import CONTESTANTS
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface


@pytest.fixture
def tiny(monkeypatch):
    """An untrained network that every name stands for."""
    torch.manual_seed(0)
    scene = Scene(ArrayGeometry(4, 4), SourceLaw(n_max=2), surface=Surface(n_antennas=4, n_codes=6))
    settings = NetworkSettings(n_channels=8, dilations=(1,), n_v=5, n_u=7, n_rho=3)
    pretrained = Pretrained("tiny", NeuralMusic(scene, settings).eval(), scene, {"seed": 0})
    monkeypatch.setattr(command, "find_network", lambda _: pretrained)
    return pretrained


@pytest.mark.usefixtures("tiny")
def test_a_row_for_every_cell_and_method(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    target, pictures = tmp_path / "new" / "figures.json", tmp_path / "pictures"
    words = ["--weights", "tiny", "--quick", "--json", str(target), "--plots", str(pictures)]
    assert command.run(words) == 0
    tree = json.loads(target.read_text(encoding="utf-8"))
    assert list(tree) == ["format", "provenance", "weights", "card", "rows"]
    assert tree["format"] == "musicnet.evaluation/1"
    assert (tree["weights"], tree["card"]) == ("tiny", {"seed": 0})
    names = [(row["n_sources"], row["snr_db"], row["method"]) for row in tree["rows"]]
    assert names == [
        (k, snr, method) for k in (1, 2) for snr in command.QUICK_SNR_DB for method in CONTESTANTS
    ]
    head, *lines = capsys.readouterr().out.splitlines()
    lines, drawn = lines[: len(names)], lines[len(names) :]
    assert len({len(line) for line in (head, *lines)}) == 1
    curves = {f"{kind}_{k}.png" for kind in ("outliers", "error") for k in (1, 2)}
    assert {path.name for path in pictures.iterdir()} == {"spectrum.png", *curves}
    assert set(drawn) == {str(path) for path in pictures.iterdir()}


@pytest.mark.usefixtures("tiny")
def test_the_words_decide_scenes_and_seeds(tmp_path):
    words = ["--weights", "tiny", "--quick", "--n-scenes", "16", "--seeds", "5"]
    trees = []
    for name in ("first", "again"):
        target = tmp_path / f"{name}.json"
        assert command.run([*words, "--json", str(target)]) == 0
        trees.append(json.loads(target.read_text(encoding="utf-8")))
    config = trees[0]["provenance"]["config"]
    assert (config["seeds"], config["n_scenes"]) == ([5], 16)
    assert {row["n_scenes"] for row in trees[0]["rows"]} == {16}
    for row, again in zip(trees[0]["rows"], trees[1]["rows"], strict=True):
        timeless = [name for name in row if not name.startswith("cpu")]
        assert [row[name] for name in timeless] == [again[name] for name in timeless]


def test_arrays_are_drawn_beside_music(tmp_path):
    pytest.importorskip("matplotlib")
    from musicnet.commands.evaluation_pictures import draw_beside_classical

    law = SourceLaw(n_max=2, elevation_deg=(0.0, 0.0), range_m=None)
    scene = Scene(ArrayGeometry(8), law, n_snapshots=20, symbols="data")
    network = NeuralMusic(scene, NetworkSettings(n_channels=8, n_u=21)).eval()
    plan = command.plan_of(None, None, is_quick=True)
    figure = draw_beside_classical(Pretrained("line", network, scene, {}), plan)
    assert [axes.get_title() for axes in figure.axes] == ["MUSIC, and nomp", "network, and neural"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--weights", "nothing"], "weights must be a name"),
        (["--weights", "nothing"], "or a file: got 'nothing'"),
        ([], "required: --weights"),
        (["--weights", "x", "--sseds", "1"], "unrecognized arguments"),
        (["--weights", "x", "--n-scenes", "many"], "invalid int value: 'many'"),
    ],
)
def test_bad_words_are_one_line(capsys, words, reason):
    assert command.run(words) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert reason in line


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--n-scenes", "0"], "n_scenes must be at least 1: got 0"),
        (["--seeds", "3", "3"], "seeds must be different"),
    ],
)
def test_plans_that_cannot_be_are_one_line(capsys, words, reason):
    assert command.run(["--weights", "tiny", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


@pytest.mark.parametrize(
    ("word", "place", "reason"),
    [
        ("--json", "", "must name a file: got the folder"),
        ("--json", "file/new/figures.json", "must lie in a folder that can be written"),
        ("--plots", "file", "must name a folder: got the file"),
        ("--plots", "file/new", "must lie in a folder that can be written"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_the_work(
    tmp_path, capsys, monkeypatch, word, place, reason
):
    if word == "--plots":
        pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()
    monkeypatch.setattr(command, "find_network", lambda _: pytest.fail("work was begun"))
    assert command.run(["--weights", "tiny", word, str(tmp_path / place)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {word}")
    assert reason in line


def test_the_number_of_threads_is_as_before():
    before = torch.get_num_threads()
    with command.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("figure", [None, 0.5, 9999.9999, 12345.678, -12345.678, 3.2e11, math.inf])
def test_columns_never_run_together(figure):
    columns = dict.fromkeys((*command._COLUMNS, "cpu_ms_per_scene"), figure or 0.0)
    row = {"n_sources": 4, "snr_db": -5.0, "method": "ml-from-truth", **columns}
    row["nees_xyz"] = figure
    line = command.table_line(row)
    assert len(line) == len(command.table_head())
    figures = [float(word) for word in line.split()[3:]]
    expected = [value for value in row.values() if value is not None][3:]
    assert figures == pytest.approx(expected, rel=5e-3, abs=1e-4)
