"""Weights files: tensors with a description, sealed so that no flipped bit goes unnoticed.

A file is plain safetensors. Its metadata hold one text, a JSON tree, that begins with the seal: the
sha256 of the whole file as it would be with zeros in the seal's place. Nothing in a file can run
code or name a class.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from musicnet.recordings.archives import read_regular_file
from musicnet.records.atomic_files import write_bytes

FORMAT = "musicnet.weights/1"
"""What a file is, and its version."""

_KEY = "musicnet"
_OPEN_SEAL = "0" * 64
_SEAL = re.compile("[0-9a-f]{64}")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """What a weights file holds, its seal and version checked.

    Args:
        tensors: by name.
        description: JSON types.
        sha256: of the whole file, in hexadecimal.
    """

    tensors: dict[str, Tensor]
    description: dict[str, Any]
    sha256: str


def write_weights(
    path: str | Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Writes a weights file, whole or not at all; the same content makes the same bytes.

    Args:
        path: where to; an existing file is replaced.
        tensors: by name.
        description: JSON types.

    Raises:
        OSError: the file cannot be written.
        ValueError: a number of the description is not finite.
        TypeError: something in it is not of a JSON type.
    """
    tree = {"sha256": _OPEN_SEAL, "format": FORMAT, **description}
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False)
    # a clone shares its memory with no other tensor, which safetensors refuses
    apart = {name: one.detach().cpu().contiguous().clone() for name, one in tensors.items()}
    content = safetensors.save(apart, metadata={_KEY: text})
    seal = hashlib.sha256(content).hexdigest()
    write_bytes(path, content.replace(_OPEN_SEAL.encode(), seal.encode(), 1))


def read_weights(path: str | Path) -> WeightsFile:
    """Reads a weights file and checks that it is what was written.

    Args:
        path: a local file.

    Returns:
        Tensors on the CPU, as they were.

    Raises:
        OSError: there is no such file, it is no regular file, or it may not be read.
        ValueError: anything else that is wrong, in one line that names the file.
    """
    if _ADDRESS.match(str(path)):
        raise ValueError(f"weights are read from local files only: got {path}. Download it first.")
    content = read_regular_file(Path(path))
    try:
        tensors = safetensors.load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        hint = " A checkpoint is made into one by benchmarks/train_weights.py." * (
            content[:2] == b"PK"
        )
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} must be a whole safetensors file: got what is truncated, damaged or another "
            f"format ({reason}).{hint}"
        ) from error
    description = _description(path, header)
    seal = description.pop("sha256", None)
    if not (isinstance(seal, str) and _SEAL.fullmatch(seal)):
        raise ValueError(f"{path}:sha256 must be 64 hexadecimal digits: got {str(seal)[:70]!r}.")
    found = hashlib.sha256(content.replace(seal.encode(), _OPEN_SEAL.encode(), 1)).hexdigest()
    if found != seal:
        raise ValueError(
            f"{path} fails its checksum: got sha256 {found[:16]}..., sealed with {seal[:16]}.... "
            "It was damaged or changed; fetch it again."
        )
    version = description.pop("format", None)
    if version != FORMAT:
        raise ValueError(
            f"{path}:format must be {FORMAT!r}, which this version knows: got {version!r}."
        )
    return WeightsFile(tensors, description, hashlib.sha256(content).hexdigest())


def _description(path: str | Path, header: dict[str, Any]) -> dict[str, Any]:
    metadata = header.get("__metadata__", {})
    if _KEY not in metadata:
        raise ValueError(
            f"{path} must be weights of this program, with a description {_KEY!r} in its metadata: "
            f"got {', '.join(map(repr, metadata)) or 'none'}."
        )
    try:
        tree = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}:{_KEY} must be JSON: got damaged text ({error}). Fetch the file again."
        ) from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}:{_KEY} must be a JSON mapping: got {type(tree).__name__}.")
    return tree
