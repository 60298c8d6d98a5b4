"""What other programs are given holds the same numbers and says what it is."""

import io
import json

import pytest
import torch

from musicnet.commands import export
from musicnet.networks import exporting
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import load_pretrained, save_pretrained
from musicnet.scene.scene import Scene

SETTINGS = NetworkSettings(n_channels=4, dilations=(1,), n_v=3, n_u=7, n_rho=2)


def save(folder, scene: Scene):
    path = folder / "own.safetensors"
    save_pretrained(path, NeuralMusic(scene, SETTINGS), scene, SETTINGS, {"minutes": 1})
    return path


@pytest.fixture
def saved(tmp_path, surface_scene):
    return save(tmp_path, surface_scene)


@pytest.fixture(params=["surface", pytest.param("line", marks=pytest.mark.slow)])
def saved_of_each(request, tmp_path, surface_scene, line_scene):
    """Pilots behind a surface; covariances of a line, with complex eigenvectors."""
    return save(tmp_path, surface_scene if request.param == "surface" else line_scene)


def test_the_pipeline_is_a_program_for_any_number_of_scenes(saved_of_each, tmp_path):
    """Eigenvectors of complex covariances included."""
    saved, target = saved_of_each, tmp_path / "own.pt2"
    words = ["--weights", str(saved), "--to", "torch-export", "--output", str(target)]
    assert export.run(words) == 0
    kept = {exporting.DESCRIPTION: ""}
    program = torch.export.load(io.BytesIO(target.read_bytes()), extra_files=kept)
    pretrained = load_pretrained(saved)
    assert json.loads(kept[exporting.DESCRIPTION])["sha256"] == pretrained.sha256
    pipeline = exporting.Pipeline(pretrained)
    for n_scenes in (1, 4, 9):
        inputs = exporting._heard(pretrained, n_scenes)
        for ours, theirs in zip(pipeline(*inputs), program.module()(*inputs), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0.0)


def test_the_network_is_an_onnx_model(saved_of_each, tmp_path):
    saved = saved_of_each
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    target = tmp_path / "own.onnx"
    assert export.run(["--weights", str(saved), "--to", "onnx", "--output", str(target)]) == 0
    model = onnx.load(target)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said[exporting.DESCRIPTION])["network"]["n_channels"] == 4
    session = runtime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    pretrained = load_pretrained(saved)
    image = exporting._image(pretrained, 6)
    logits, _ = session.run(None, {"image": image.numpy()})
    ours = pretrained.network.spectrum(image).logits
    torch.testing.assert_close(torch.from_numpy(logits), ours, atol=1e-4, rtol=0.0)


def test_safetensors_come_back(saved, tmp_path):
    target = tmp_path / "copy.safetensors"
    words = ["--weights", str(saved), "--to", "safetensors", "--output", str(target)]
    assert export.run(words) == 0
    assert target.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("kind", [pytest.param("torch-export", marks=pytest.mark.slow), "onnx"])
def test_numbers_that_are_off_are_not_exported(kind, saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    target = tmp_path / "own.bin"
    assert export.run(["--weights", str(saved), "--to", kind, "--output", str(target)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "must give the network's numbers" in line
    assert not target.exists()
