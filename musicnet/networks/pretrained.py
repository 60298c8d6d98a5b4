"""A trained network and what it was trained for."""

from dataclasses import dataclass
from typing import Any

from musicnet.networks.neural_music import NeuralMusic
from musicnet.scene.scene import Scene


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A trained network and what it was trained for.

    Args:
        name: it goes by.
        network: in eval mode.
        scene: the physics that its training scenes were drawn from.
        card: how it was trained and how good it is; JSON types.
    """

    name: str
    network: NeuralMusic
    scene: Scene
    card: dict[str, Any]
