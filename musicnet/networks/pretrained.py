"""Trained networks: what they were trained for, to a file and back, and those that ship."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.trust import TrustHead
from musicnet.networks.weights_file import read_weights, write_weights
from musicnet.records.plain_data import from_plain, to_plain
from musicnet.scene.scene import Scene

WEIGHTS = Path(__file__).parents[1] / "weights"
"""The folder of the weights that ship in the package."""

_SUFFIX = ".safetensors"
_CALIBRATION = "calibration."


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A trained network and what it was trained for.

    Args:
        name: it goes by.
        network: in eval mode.
        scene: the physics that its training scenes were drawn from.
        card: how it was trained and how good it is; JSON types.
        settings: sizes of the network, where they are known.
        sha256: of the file that it was read from, in hexadecimal; None if from none.
    """

    name: str
    network: NeuralMusic
    scene: Scene
    card: dict[str, Any]
    settings: NetworkSettings | None = None
    sha256: str | None = None

    @cached_property
    def exact_trust(self) -> TrustHead | None:
        """The trust head in double precision, copied once; None if the network has none.

        Its rounding, which depends on the size of a batch, single precision does not see.
        """
        head = self.network.head.trust
        with torch.inference_mode(mode=False):  # it outlives its first caller
            return None if head is None else deepcopy(head).double()


def save_pretrained(
    path: str | Path,
    network: NeuralMusic,
    scene: Scene,
    settings: NetworkSettings,
    card: Mapping[str, Any],
) -> None:
    """Writes a network, with all that is needed to build it again, into one safetensors file.

    Args:
        path: where to; an existing file is replaced in one move. The stem becomes the name.
        network: built for the scene with these settings.
        scene: what it was trained for.
        settings: sizes of the network.
        card: how it was trained and how good it is; JSON types.

    Raises:
        OSError: the file cannot be written.
        ValueError: the weights are not those of such a network, or not finite; nothing is written.
        TypeError: something in the card is not of a JSON type.
    """
    tensors = network.state_dict()
    _check_tensors(tensors, _untrained(scene, settings).state_dict())
    description = {"scene": scene, "network": settings, "card": card}
    write_weights(path, tensors, to_plain(description))


def load_pretrained(path: str | Path) -> Pretrained:
    """Reads a network that `save_pretrained` has written.

    Args:
        path: a local file.

    Returns:
        The network in eval mode, without gradients, on the CPU; bit for bit the one that was saved.

    Raises:
        OSError: there is no such file, it is no regular file, or it may not be read.
        ValueError: it is damaged, of another version, or does not hold what such a network needs;
            one line that names file and key.
    """
    file = read_weights(path)
    try:
        for key in ("scene", "network", "card"):
            if not isinstance(file.description.get(key), dict):
                raise ValueError(f"{key} must be a mapping: got {file.description.get(key)!r:.60}.")
        scene = from_plain(Scene, file.description["scene"], "scene")
        # a setting that came later leaves networks from before as they were
        settings = from_plain(
            NetworkSettings, file.description["network"], "network", fill_defaults=True
        )
        network = restored(scene, settings, file.tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Pretrained(
        name=Path(path).stem,
        network=network,
        scene=scene,
        card=file.description["card"],
        settings=settings,
        sha256=file.sha256,
    )


def restored(scene: Scene, settings: NetworkSettings, tensors: Mapping[str, Tensor]) -> NeuralMusic:
    """Builds a network and fills it.

    Args:
        scene: what it was trained for.
        settings: sizes of the network.
        tensors: its parameters and what else it keeps, by name.

    Returns:
        The network in eval mode, without gradients.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape or type, or not finite; one line.
    """
    network = _untrained(scene, settings)
    _check_tensors(tensors, network.state_dict())
    network.load_state_dict(tensors)
    return network.requires_grad_(requires_grad=False).eval()


def begin_with(network: NeuralMusic, scene: Scene, trained: Pretrained) -> None:
    """Fills a network that is to be trained with what another has learned.

    Args:
        network: of the same sizes; written on. A calibration that the other one lacks stays.
        scene: that it was built for.
        trained: what to begin with.

    Raises:
        ValueError: another array, surface or region, or other sizes; one line.
    """
    for name in ("array", "surface", "symbols", "wavelength_m", "region"):
        found, wanted = getattr(trained.scene, name), getattr(scene, name)
        if found != wanted:
            raise ValueError(
                f"weights to begin with must be those of the same scene: got {trained.name!r} with "
                f"{name}={found}, the scene has {wanted}."
            )
    own = network.state_dict()
    tensors = {n: t for n, t in own.items() if n.startswith(_CALIBRATION)}
    tensors |= trained.network.state_dict()
    try:
        _check_tensors(tensors, own)
    except ValueError as error:
        raise ValueError(
            f"weights to begin with must have the network's sizes: got {trained.name!r}, {error}"
        ) from error
    network.load_state_dict(tensors)


def shipped() -> dict[str, Path]:
    """The weights that ship in the package.

    Returns:
        Name -> file, in alphabetical order.
    """
    return {path.stem: path for path in sorted(WEIGHTS.glob(f"*{_SUFFIX}"))}


@lru_cache(maxsize=16)
def load_shipped(path: Path) -> Pretrained:
    """Reads a file that does not change while the program runs, once.

    Args:
        path: of `shipped`.

    Returns:
        What `load_pretrained` gives, shared: do not write on it.

    Raises:
        OSError: see `load_pretrained`.
        ValueError: see `load_pretrained`.
    """
    return load_pretrained(path)


def _untrained(scene: Scene, settings: NetworkSettings) -> NeuralMusic:
    """A network as built, leaving no trace in the state of the random numbers."""
    # the first caller may be under inference_mode, and its tensors would outlive it
    with torch.inference_mode(mode=False), torch.random.fork_rng(devices=[]), _single_precision():
        return NeuralMusic(scene, settings)


@contextmanager
def _single_precision() -> Iterator[None]:
    """Whatever the caller's default is: weights are float32 in every file."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def _check_tensors(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuses what does not fill a network, or would fill it with what is no number."""
    for verb, names in (
        ("lacks", wanted.keys() - tensors.keys()),
        ("has unknown", tensors.keys() - wanted.keys()),
    ):
        if names:
            first = ", ".join(map(repr, sorted(names)[:3]))
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{verb} parameters {first}{more}: the network has others.")
    for name, tensor in tensors.items():
        for what in ("shape", "dtype"):
            got, right = (getattr(one, what) for one in (tensor, wanted[name]))
            if got != right:
                got, right = (tuple(x) if what == "shape" else x for x in (got, right))
                raise ValueError(f"parameter {name!r} must have {what} {right}: got {got}.")
        if not bool(tensor.isfinite().all()):
            bad = tensor.numel() - int(tensor.isfinite().sum())
            raise ValueError(
                f"parameter {name!r} must be finite: got NaN or infinity in {bad} of "
                f"{tensor.numel()} numbers."
            )
