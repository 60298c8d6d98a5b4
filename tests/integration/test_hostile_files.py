"""Thirty files that want to run code: none of them does, and each is refused.

The canary is a folder that every payload would make.
"""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from musicnet import __main__ as door
from musicnet.cli.refusals import first_fault
from musicnet.learning.checkpoint_weights import read_checkpoint
from musicnet.recordings.array_descriptions import read_array
from musicnet.recordings.manifests import read_manifest
from musicnet.recordings.observation_files import read_observations
from musicnet.recordings.setup import Setup
from musicnet.recordings.streams import open_observations

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FAR = ROOT / "tests" / "data" / "ula_far_24.npz"


class Payload:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


class Reading(Payload):
    """Imports a module by name when it is unpickled."""

    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({self.canary!r})",)


def zip_checkpoint(folder, canary, kind=Payload):
    torch.save({"state_dict": kind(canary), "hyper_parameters": {}}, folder / "a.ckpt")
    return folder / "a.ckpt"


def legacy_checkpoint(folder, canary):
    torch.save(
        {"state_dict": Payload(canary)}, folder / "a.ckpt", _use_new_zipfile_serialization=False
    )
    return folder / "a.ckpt"


def raw_pickle(folder, canary, protocol=4):
    (folder / "a.ckpt").write_bytes(pickle.dumps(Payload(canary), protocol))
    return folder / "a.ckpt"


def pickle_in_safetensors(folder, canary):
    (folder / "a.safetensors").write_bytes(pickle.dumps(Payload(canary)))
    return folder / "a.safetensors"


def objects_in_npz(folder, canary, key="y", kind=Payload):
    with np.load(FAR) as archive:
        arrays = dict(archive)
    payload = np.empty(1, dtype=object)
    payload[0] = kind(canary)
    np.savez(folder / "a.npz", **{**arrays, key: payload})
    return folder / "a.npz"


def objects_in_npy(folder, canary):
    payload = np.empty((4, 8), dtype=object)
    payload[:] = Payload(canary)
    np.save(folder / "a.npy", payload, allow_pickle=True)
    return folder / "a.npy"


def pickle_named_npz(folder, canary):
    (folder / "a.npz").write_bytes(pickle.dumps(Payload(canary)))
    return folder / "a.npz"


def header_that_calls(folder, canary):
    """A header is a literal; this one is an expression."""
    call = f"__import__('os').mkdir({str(canary)!r})"
    text = f"{{'descr': {call}, 'fortran_order': False, 'shape': (1,)}}"
    head = text.encode().ljust(246) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(8)
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("y.npy", content)
    return folder / "a.npz"


def structured_with_objects(folder, canary):
    payload = np.zeros(2, dtype=[("re", "f4"), ("im", "O")])
    payload["im"] = Payload(canary)
    return _savez(folder, payload)


def _savez(folder, payload):
    file = io.BytesIO()
    np.lib.format.write_array(file, payload, allow_pickle=True)
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("y.npy", file.getvalue())
    return folder / "a.npz"


def hdf5_to(folder, target):
    with h5py.File(folder / "a.h5", "w") as file:
        file["y"] = target
    return folder / "a.h5"


def hdf5_storage(folder, _):
    (folder / "secret").write_bytes(b"user:password" * 100)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("y", (64,), "S13", external=[(str(folder / "secret"), 0, 832)])
    return folder / "a.h5"


def hdf5_virtual(folder, _):
    with h5py.File(folder / "b.h5", "w") as other:
        other["y"] = np.ones((3, 4), np.complex64)
    layout = h5py.VirtualLayout((3, 4), np.complex64)
    layout[:] = h5py.VirtualSource(str(folder / "b.h5"), "y", (3, 4))
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_virtual_dataset("y", layout)
    return folder / "a.h5"


def hdf5_pickle(folder, canary):
    with h5py.File(folder / "a.h5", "w") as file:
        file["y"] = np.void(pickle.dumps(Payload(canary)))
    return folder / "a.h5"


def hdf5_objects(folder, _):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("y", (2,), h5py.ref_dtype)
    return folder / "a.h5"


def yaml_of(text):
    def make(folder, canary):
        (folder / "a.yaml").write_text(text.replace("CANARY", str(canary)))
        return folder / "a.yaml"

    return make


def yaml_of_laughter(folder, _):
    lines = ["a0: &a0 [1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    (folder / "a.yaml").write_text("\n".join([*lines, "positions_m: *a29"]))
    return folder / "a.yaml"


def manifest_of(name):
    def make(folder, _):
        shard = {"file": name, "sha256": "0" * 64, "n_scenes": 1}
        tree = {"format": "musicnet.manifest/1", "shards": [shard]}
        (folder / "manifest.json").write_text(json.dumps(tree))
        return folder

    return make


def link_out(folder, _):
    (folder / "a.npz").symlink_to(FAR)
    return manifest_of("a.npz")(folder, _)


def sigmf_of(**about):
    def make(folder, _):
        (folder / "a.sigmf-data").write_bytes(bytes(64))
        tree = {"global": {"core:datatype": "cf32_le", "core:num_channels": 2, **about}}
        (folder / "a.sigmf-meta").write_text(json.dumps({**tree, "captures": []}))
        return folder / "a.sigmf-meta"

    return make


def mat_function(folder, _):
    """An element of class `function`, which nothing here looks into."""
    import scipy.io

    scipy.io.savemat(folder / "a.mat", {"y": np.ones((2, 2), complex)})
    content = bytearray((folder / "a.mat").read_bytes())
    content[128 + 16] = 16  # the class of the array
    (folder / "a.mat").write_bytes(bytes(content))
    return folder / "a.mat"


def config_of(class_path):
    return lambda folder, canary: {"class_path": class_path, "init_args": {"path": str(canary)}}


def observe(path):
    with open_observations(path, Setup(array=read_array("ula:8:0.5w"))) as stream:
        list(stream.chunks())


def localize(path):
    words = ["localize", str(path), "--method", "neural", "--weights", str(path)]
    if door.run(words) != 0:
        raise ValueError("refused")


def configure(tree):
    if (fault := first_fault({"data": tree}, {"data": object})) is not None:
        raise ValueError(fault)


HOSTILE = {
    "zip checkpoint": (zip_checkpoint, read_checkpoint),
    "zip checkpoint with eval": (lambda f, c: zip_checkpoint(f, c, Reading), read_checkpoint),
    "zip checkpoint as weights": (zip_checkpoint, localize),
    "legacy checkpoint": (legacy_checkpoint, read_checkpoint),
    "raw pickle": (raw_pickle, read_checkpoint),
    "raw pickle of protocol 0": (lambda f, c: raw_pickle(f, c, 0), read_checkpoint),
    "pickle as weights": (pickle_in_safetensors, localize),
    "address as weights": (lambda f, c: "http://127.0.0.1:9/a.safetensors", localize),
    "bucket as weights": (lambda f, c: "s3://bucket/a.safetensors", localize),
    "address as recording": (lambda f, c: "https://127.0.0.1:9/a.npz", observe),
    "objects as y": (objects_in_npz, observe),
    "objects as a label": (lambda f, c: objects_in_npz(f, c, "snr_db"), read_observations),
    "objects with eval": (lambda f, c: objects_in_npz(f, c, "extra", Reading), observe),
    "objects in npy": (objects_in_npy, observe),
    "objects in a structure": (structured_with_objects, observe),
    "pickle named npz": (pickle_named_npz, observe),
    "header that calls": (header_that_calls, observe),
    "HDF5 external link": (
        lambda f, c: hdf5_to(f, h5py.ExternalLink("/etc/passwd", "/y")),
        observe,
    ),
    "HDF5 soft link": (lambda f, c: hdf5_to(f, h5py.SoftLink("/y")), observe),
    "HDF5 external storage": (hdf5_storage, observe),
    "HDF5 virtual set": (hdf5_virtual, observe),
    "HDF5 opaque pickle": (hdf5_pickle, observe),
    "HDF5 references": (hdf5_objects, observe),
    "YAML that calls": (
        yaml_of("!!python/object/apply:os.mkdir ['CANARY']"),
        lambda path: read_array(str(path)),
    ),
    "YAML that builds": (
        yaml_of("positions_m: !!python/object/new:os.mkdir ['CANARY']"),
        lambda path: read_array(str(path)),
    ),
    "YAML that expands": (yaml_of_laughter, lambda path: read_array(str(path))),
    "manifest to another folder": (manifest_of("../../../etc/passwd"), read_manifest),
    "manifest to the root": (manifest_of("/etc/passwd"), read_manifest),
    "manifest by a link": (link_out, read_manifest),
    "SigMF of another file": (sigmf_of(**{"core:dataset": "/etc/passwd"}), observe),
    "MATLAB function": (mat_function, observe),
    "class path of torch.load": (config_of("torch.load"), configure),
    "class path by an alias": (config_of("musicnet.cli.runs.os.system"), configure),
}


def test_there_are_thirty():
    assert len(HOSTILE) >= 30


@pytest.mark.parametrize("forced", [False, True], ids=["", "forced"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_runs_nothing(name, forced, tmp_path, monkeypatch):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder = tmp_path / "inside"
    folder.mkdir()
    canary = tmp_path / "canary"
    make, use = HOSTILE[name]
    hostile = make(folder, canary)
    with pytest.raises((ValueError, OSError)) as caught:
        use(hostile)
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def test_the_payloads_are_live(tmp_path):
    """A fault test that injects nothing would pass."""
    for number, kind in enumerate((Payload, Reading)):
        pickle.loads(pickle.dumps(kind(tmp_path / str(number))))
        assert (tmp_path / str(number)).exists()
    path = zip_checkpoint(tmp_path, tmp_path / "zip")
    torch.load(path, **{"weights_only": False})
    assert (tmp_path / "zip").exists()
