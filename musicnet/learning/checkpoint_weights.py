"""The network out of a checkpoint of its training, ready to be used or kept."""

import hashlib
import io
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from musicnet.gate import checkpoints
from musicnet.networks.fitting import find_weights
from musicnet.networks.neural_music import NetworkSettings
from musicnet.networks.pretrained import Pretrained, restored
from musicnet.recordings.archives import read_regular_file
from musicnet.records import manifest
from musicnet.records.plain_data import from_plain
from musicnet.scene.scene import Scene

_PART = "network."  # of a MusicNet


def find_network(word: str) -> Pretrained:
    """Trained weights by the name that they ship under, from a file, or from a run's checkpoint.

    Args:
        word: the name or the path.

    Returns:
        The network and what it was trained for.

    Raises:
        ValueError: neither a name nor a file, or a file that holds no such network.
        OSError: the file cannot be read.
    """
    if word.endswith(".ckpt"):
        return read_checkpoint(Path(word))
    return find_weights(word)


def read_checkpoint(path: str | Path) -> Pretrained:
    """Reads the network of a checkpoint: the average of its weights if one was kept, else those.

    Args:
        path: a local checkpoint of a `MusicNet` that was built from configuration.

    Returns:
        The network in eval mode, without gradients, on the CPU. Its card says ``weights``
        ("averaged" or "raw"), ``epochs`` and ``steps``.

    Raises:
        OSError: there is no such file, it is no regular file, or it may not be read.
        ValueError: it is damaged or another model's; one line that names file and key.
    """
    content = read_regular_file(Path(path))
    checkpoint = _loaded(path, content)
    try:
        known = _entry(checkpoint, "hyper_parameters")
        if "scene" not in known:
            raise ValueError(
                "hyper_parameters must hold the scene: got "
                f"{', '.join(known) or 'none'}. A module built by hand leaves none; train from "
                "configuration."
            )
        scene = from_plain(Scene, known["scene"], "scene", fill_defaults=True)
        sizes = known.get("network") or {}  # null takes the defaults
        settings = from_plain(NetworkSettings, sizes, "network", fill_defaults=True)
        tensors = _own(_entry(checkpoint, "state_dict"))
        average = (checkpoint.get(checkpoints.KEY) or {}).get("average") or {"n_averaged": 0}
        is_averaged = average["n_averaged"] > 0
        if is_averaged:
            # kept in the dtype of sums, and without buffers that count
            own = _own(average["weights"])
            tensors |= {name: own[name].to(tensors[name].dtype) for name in own if name in tensors}
        network = restored(scene, settings, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    card = {
        "weights": "averaged" if is_averaged else "raw",
        "epochs": int(checkpoint.get("epoch", -1)) + 1,
        "steps": int(checkpoint.get("global_step", 0)),
    }
    sha256 = hashlib.sha256(content).hexdigest()
    return Pretrained(Path(path).stem, network, scene, card, settings, sha256)


def _loaded(path: str | Path, content: bytes) -> dict[str, Any]:
    """The checkpoint as plain data and tensors; nothing in it can run code."""
    if manifest.is_whole(path, content) is False:
        raise ValueError(
            f"{path} must be what was saved there: its bytes fail the checksum in the manifest "
            "beside it. Take previous.ckpt, or another run."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(
            f"{path} must be a whole checkpoint of this program: got what is truncated, damaged or "
            f"another format ({type(error).__name__})."
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} must be a checkpoint: got a {type(checkpoint).__name__}.")
    return checkpoint


def _entry(checkpoint: dict[str, Any], key: str) -> dict[str, Any]:
    entry = checkpoint.get(key)
    if not isinstance(entry, dict):
        raise ValueError(f"a checkpoint must hold {key!r}: got {', '.join(map(str, checkpoint))}.")
    return dict(entry)


def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part that belongs to the network."""
    return {
        name.removeprefix(_PART): tensor
        for name, tensor in tensors.items()
        if name.startswith(_PART)
    }
