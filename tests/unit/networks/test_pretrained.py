"""Weights files: what comes back, and what is refused."""

import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from musicnet.networks import pretrained as module
from musicnet.networks import weights_file
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import Pretrained, load_pretrained, save_pretrained, shipped
from musicnet.networks.weights_file import read_weights, write_weights
from musicnet.records.plain_data import to_plain
from musicnet.records.provenance import hash_file
from musicnet.scene.snapshots import block_generator, draw_block

TINY = NetworkSettings(n_channels=4, dilations=(1, 2), n_v=5, n_u=7, n_rho=3)
CARD = {"command": "python train.py experiment=ris", "minutes": 8.5, "figures": {"K=4": [0.1, 2]}}


@pytest.fixture
def network(surface_scene):
    torch.manual_seed(3)
    return NeuralMusic(surface_scene, TINY)


@pytest.fixture
def saved(tmp_path, network, surface_scene):
    path = tmp_path / "tiny.safetensors"
    save_pretrained(path, network, surface_scene, TINY, CARD)
    return path


def rewritten(path, change):
    """The same file with other content, sealed anew."""
    file = read_weights(path)
    tensors, description = dict(file.tensors), file.description
    change(tensors, description)
    write_weights(path, tensors, description)
    return path


def refusal(path):
    with pytest.raises((ValueError, OSError)) as caught:
        load_pretrained(path)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_what_was_saved_comes_back_bit_for_bit(saved, network, surface_scene):
    read = load_pretrained(saved)
    assert (read.name, read.scene, read.settings, read.card) == ("tiny", surface_scene, TINY, CARD)
    assert read.sha256 == hash_file(saved)
    wanted = network.state_dict()
    assert list(read.network.state_dict()) == list(wanted)
    for name, tensor in read.network.state_dict().items():
        assert tensor.dtype == wanted[name].dtype
        assert torch.equal(tensor, wanted[name])
    heard, _ = draw_block(surface_scene, block_generator(0, "test", 0, 0), n_scenes=4)
    with torch.no_grad():
        ours, theirs = read.network(heard), network.eval()(heard)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.offsets, theirs.offsets)


def test_a_plain_array_comes_back_as_well(tmp_path, line_scene):
    settings = replace(TINY, n_u=21)
    save_pretrained(tmp_path / "a", NeuralMusic(line_scene, settings), line_scene, settings, {})
    assert load_pretrained(tmp_path / "a").scene == line_scene


def test_a_read_network_is_for_use_alone(saved):
    network = load_pretrained(saved).network
    assert not any(part.training for part in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_file_has_no_dictionary_and_the_same_bytes_each_time(saved, network, surface_scene):
    with safe_open(saved, framework="pt") as file:
        names = set(file.keys())
    assert names == {name for name, _ in network.named_parameters()}
    again = saved.with_name("again.safetensors")
    save_pretrained(again, network, surface_scene, TINY, CARD)
    assert again.read_bytes() == saved.read_bytes()


def test_reading_leaves_the_random_numbers_alone(saved):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_pretrained(saved)
    assert torch.equal(torch.rand(3), wanted)


def test_read_under_inference_mode_a_network_can_still_be_trained(saved):
    with torch.inference_mode():
        network = load_pretrained(saved).network
    assert not any(parameter.is_inference() for parameter in network.parameters())


def test_every_flipped_bit_is_found(saved):
    content = saved.read_bytes()
    draw = torch.Generator().manual_seed(0)
    places = torch.randint(len(content), (300,), generator=draw).tolist()
    header = 8 + int.from_bytes(content[:8], "little")
    for index, place in enumerate([*range(0, header, 7), *places]):
        damaged = bytearray(content)
        damaged[place] ^= 1 << index % 8
        saved.write_bytes(damaged)
        assert str(saved) in refusal(saved)


def test_every_truncation_is_found(saved):
    content = saved.read_bytes()
    for length in (1, 7, 8, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        assert "truncated" in refusal(saved)


def test_a_damaged_number_is_called_damage(saved):
    content = bytearray(saved.read_bytes())
    content[-3] ^= 4
    saved.write_bytes(content)
    assert "fails its checksum" in refusal(saved)


class Payload:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_what_could_run_code_is_refused_and_runs_none(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Payload(marker)))
    torch.save(Payload(marker), tmp_path / "a.ckpt")
    assert "another format" in refusal(tmp_path / "a.pkl")
    assert "benchmarks/train_weights.py" in refusal(tmp_path / "a.ckpt")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"weights, believe me", "another format"),
    ],
)
def test_what_is_no_weights_file_is_named(tmp_path, content, message):
    path = tmp_path / "file.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert message in refusal(path)
    assert "not a regular file" in refusal(tmp_path)


@pytest.mark.parametrize("address", ["https://a.b/c.safetensors", "s3://a/b", "file:///a"])
def test_only_local_files_are_read(address):
    assert "local files only" in refusal(address)


def test_foreign_safetensors_are_named(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert "weights of this program" in refusal(tmp_path / "a.safetensors")


def poison(tensors):
    name = min(tensors)
    tensors[name] = tensors[name] * torch.nan


def shorten(tensors):
    tensors["backbone.0.bias"] = tensors["backbone.0.bias"][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: poison(t), "must be finite: got NaN or infinity in"),
        (lambda t, d: shorten(t), "'backbone.0.bias' must have shape (4,): got (3,)"),
        (
            lambda t, d: t.update({"backbone.0.bias": t["backbone.0.bias"].double()}),
            "'backbone.0.bias' must have dtype torch.float32: got torch.float64",
        ),
        (lambda t, d: t.pop("backbone.0.bias"), "lacks parameters 'backbone.0.bias'"),
        (lambda t, d: t.update(other=torch.zeros(1)), "unknown parameters 'other'"),
        (lambda t, d: d["network"].update(n_channels=8), "must have shape"),
        (lambda t, d: d["network"].update(width=8), "network has an unknown key 'width'"),
        (lambda t, d: d["network"].update(n_v=1), "network: a searched coordinate"),
        (lambda t, d: d["scene"].pop("array"), "scene lacks the key 'array'"),
        (lambda t, d: d["scene"].update(wavelength_m=-1.0), "scene: wavelength_m must be finite"),
        (lambda t, d: d.update(scene="ris"), "scene must be a mapping: got 'ris'"),
        (lambda t, d: d.pop("card"), "card must be a mapping: got None"),
    ],
)
def test_what_does_not_make_the_network_is_refused(saved, change, message):
    said = refusal(rewritten(saved, change))
    assert said.startswith(f"{saved}: ")
    assert message in said


def test_another_version_is_named(saved):
    file = read_weights(saved)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_file, "FORMAT", "musicnet.weights/2")
        write_weights(saved, file.tensors, file.description)
    said = refusal(saved)
    assert "'musicnet.weights/1', which this version knows: got 'musicnet.weights/2'" in said


def test_sizes_that_mean_harm_are_refused_before_anything_is_built(saved):
    path = rewritten(saved, lambda _, described: described["network"].update(n_u=10**12))
    assert "at most 1048576 cells" in refusal(path)


def test_the_default_type_of_the_caller_changes_nothing(saved, network):
    torch.set_default_dtype(torch.float64)
    try:
        read = load_pretrained(saved)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    for name, tensor in network.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], tensor)


def test_settings_that_came_later_take_their_defaults(tmp_path, line_scene):
    settings = replace(TINY, n_rho=NetworkSettings().n_rho)
    path = tmp_path / "line.safetensors"
    save_pretrained(path, NeuralMusic(line_scene, settings), line_scene, settings, {})
    older = rewritten(path, lambda tensors, description: description["network"].pop("n_rho"))
    assert load_pretrained(older).settings == settings


def test_weights_of_another_network_are_not_saved(tmp_path, network, surface_scene, line_scene):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="must have shape"):
        save_pretrained(path, network, surface_scene, replace(TINY, n_channels=8), {})
    with torch.no_grad():
        next(iter(network.parameters())).fill_(torch.inf)
    with pytest.raises(ValueError, match="must be finite"):
        save_pretrained(path, network, surface_scene, TINY, {})
    assert not path.exists()


def test_a_card_must_be_plain_and_finite(tmp_path, network, surface_scene):
    path = tmp_path / "a.safetensors"
    with pytest.raises(TypeError, match=r"got \w+Path"):
        save_pretrained(path, network, surface_scene, TINY, {"run": tmp_path})
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_pretrained(path, network, surface_scene, TINY, {"outliers": float("nan")})
    assert not path.exists()


def test_what_ships_is_listed_by_name(tmp_path, monkeypatch):
    for name in ("ula.safetensors", "ris.safetensors", "ris.md"):
        (tmp_path / name).touch()
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    assert shipped() == {
        "ris": tmp_path / "ris.safetensors",
        "ula": tmp_path / "ula.safetensors",
    }
    monkeypatch.setattr(module, "WEIGHTS", tmp_path / "nothing")
    assert shipped() == {}


def test_all_that_ships_can_be_loaded_and_has_a_card():
    for name, path in shipped().items():
        assert load_pretrained(path).name == name
        assert path.with_suffix(".md").exists()


def test_the_description_is_plain_json(saved):
    with safe_open(saved, framework="pt") as file:
        tree = json.loads(file.metadata()["musicnet"])
    assert tree["format"] == "musicnet.weights/1"
    assert tree["network"] == to_plain(TINY)


def test_the_exact_trust_head_is_made_once_and_is_the_same_head(surface_scene):
    settings = replace(TINY, n_trust=8)
    pretrained = Pretrained("one", NeuralMusic(surface_scene, settings), surface_scene, {})
    exact = pretrained.exact_trust
    assert pretrained.exact_trust is exact
    own = pretrained.network.head.trust
    for name, values in own.state_dict().items():
        assert values.dtype == torch.float32
        assert torch.equal(exact.state_dict()[name], values.double())
    bare = replace(TINY, n_trust=0)
    assert (
        Pretrained("two", NeuralMusic(surface_scene, bare), surface_scene, {}).exact_trust is None
    )
