"""Small scenes, and observations of sources that a test puts where it wants."""

from dataclasses import replace

import pytest
import torch

from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation, block_generator, draw_block
from musicnet.scene.sources import SourceLaw
from musicnet.scene.steering import steering
from musicnet.scene.surface import Surface


@pytest.fixture
def surface_scene():
    return Scene(ArrayGeometry(4, 4), SourceLaw(n_max=2), surface=Surface(n_antennas=4, n_codes=6))


@pytest.fixture
def line_scene():
    law = SourceLaw(n_max=2, elevation_deg=(0.0, 0.0), range_m=None)
    return Scene(ArrayGeometry(8), law, n_snapshots=20, symbols="data")


@pytest.fixture
def heard_without_noise():
    """Makes the observation of one source of a scene, free of noise."""

    def hear(scene: Scene, parameters: torch.Tensor, amplitude: complex = 30.0) -> Observation:
        drawn, _ = draw_block(scene, block_generator(0, "test", 0, 0), n_scenes=1)
        field = amplitude * steering(scene.positions(), parameters[None], scene.wavelength_m)
        received = drawn.operator[0] @ field[0]
        return replace(drawn, y=received.expand_as(drawn.y))

    return hear
