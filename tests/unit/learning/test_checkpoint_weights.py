"""The network out of a checkpoint."""

import os

import pytest
import torch

from musicnet.learning.checkpoint_weights import read_checkpoint
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.records.plain_data import to_plain
from musicnet.records.provenance import hash_file

TINY = NetworkSettings(n_channels=4, dilations=(1,), n_v=5, n_u=7, n_rho=3)


@pytest.fixture
def checkpoint(surface_scene):
    """What a training from configuration leaves, as far as the network is concerned."""
    weights = NeuralMusic(surface_scene, TINY).state_dict()
    return {
        "epoch": 2,
        "global_step": 40,
        "hyper_parameters": {"scene": to_plain(surface_scene), "network": to_plain(TINY)},
        "state_dict": {f"network.{name}": tensor for name, tensor in weights.items()},
        "step_gate": {"average": None},
    }


@pytest.fixture
def saved(tmp_path):
    def save(content):
        torch.save(content, tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return save


def weights_of(pretrained):
    return pretrained.network.state_dict()


def averaged(checkpoint, n_averaged):
    weights = {
        name: torch.ones_like(one).double() for name, one in checkpoint["state_dict"].items()
    }
    state = {"n_averaged": n_averaged, "weights": weights if n_averaged else {}}
    return {**checkpoint, "step_gate": {"average": state}}


def test_the_raw_weights_are_taken_where_there_is_no_average(checkpoint, saved, surface_scene):
    for content in (checkpoint, averaged(checkpoint, 0)):
        path = saved(content)
        read = read_checkpoint(path)
        assert (read.scene, read.settings, read.sha256) == (surface_scene, TINY, hash_file(path))
        assert read.card == {"weights": "raw", "epochs": 3, "steps": 40}
        for name, tensor in weights_of(read).items():
            assert torch.equal(tensor, checkpoint["state_dict"][f"network.{name}"])


def test_the_average_is_taken_where_there_is_one(checkpoint, saved):
    read = read_checkpoint(saved(averaged(checkpoint, 5)))
    assert read.card["weights"] == "averaged"
    assert all(torch.equal(one, torch.ones_like(one)) for one in weights_of(read).values())
    assert all(one.dtype == torch.float32 for one in weights_of(read).values())


def test_a_network_of_default_sizes_need_not_say_them(checkpoint, saved, surface_scene):
    weights = NeuralMusic(surface_scene, NetworkSettings()).state_dict()
    checkpoint["hyper_parameters"]["network"] = None
    checkpoint["state_dict"] = {f"network.{name}": one for name, one in weights.items()}
    assert read_checkpoint(saved(checkpoint)).settings == NetworkSettings()


def spoil(checkpoint):
    checkpoint["state_dict"]["network.backbone.0.bias"].fill_(torch.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("state_dict"), "must hold 'state_dict': got epoch"),
        (lambda c: c.pop("hyper_parameters"), "must hold 'hyper_parameters'"),
        (lambda c: c["hyper_parameters"].pop("scene"), "A module built by hand leaves none"),
        (lambda c: c["hyper_parameters"]["network"].update(width=3), "unknown key 'width'"),
        (lambda c: c["hyper_parameters"]["network"].update(n_channels=8), "must have shape"),
        (lambda c: c.update(state_dict={"layer.weight": torch.zeros(1)}), "lacks parameters"),
        (spoil, "'backbone.0.bias' must be finite"),
    ],
)
def test_what_is_another_models_is_refused_in_one_line(checkpoint, saved, change, message):
    change(checkpoint)
    path = saved(checkpoint)
    with pytest.raises(ValueError, match=r"last\.ckpt: ") as caught:
        read_checkpoint(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Payload:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_what_could_run_code_is_refused_and_runs_none(saved, tmp_path):
    path = saved({"state_dict": Payload(tmp_path / "ran")})
    with pytest.raises(ValueError, match="must be a whole checkpoint"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_damage_is_named(checkpoint, saved):
    path = saved(checkpoint)
    content = path.read_bytes()
    middle = bytearray(content)
    middle[len(content) // 2] ^= 8
    for damaged in (content[:500], content[:-1000], b"text", bytes(middle)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"truncated, damaged or another format"):
            read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_checkpoint(path.with_name("none.ckpt"))
