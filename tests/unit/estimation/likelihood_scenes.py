"""Small scenes of every kind that the likelihood has to serve."""

from dataclasses import replace

import torch

from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface


def surface_scene(symbols="pilot", n_sources=2, snr_db=(10.0, 20.0), n_min=None):
    return Scene(
        ArrayGeometry(6, 6),
        SourceLaw(n_min or n_sources, n_sources, snr_db=snr_db),
        surface=Surface(n_antennas=6, n_codes=10),
        symbols=symbols,
    )


def line_scene(range_m=None, n_sources=2, n_snapshots=40, coherent_share=0.5, snr_db=(10.0, 20.0)):
    law = SourceLaw(n_sources, n_sources, elevation_deg=(0.0, 0.0), range_m=range_m, snr_db=snr_db)
    return Scene(
        ArrayGeometry(10),
        law,
        wavelength_m=1.0,
        n_snapshots=n_snapshots,
        symbols="data",
        coherent_share=coherent_share,
    )


SCENES = {
    "surface, pilots": surface_scene(),
    "surface, data": surface_scene("data"),
    "near line": line_scene((5.0, 30.0)),
    "far line": line_scene(),
    "few snapshots": line_scene(n_snapshots=4),
}


def draw(scene, n_channels=2, n_scenes=4, seed=0):
    return draw_blocks(scene, list(range(n_channels)), n_scenes, "cpu", seed, "test", 0)


def in_double(observation):
    return replace(
        observation,
        y=observation.y.to(torch.complex128),
        operator=observation.operator.to(torch.complex128),
        noise_power=observation.noise_power.double(),
        positions=observation.positions.double(),
    )
