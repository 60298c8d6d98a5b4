import numpy as np
import pytest
import torch

from musicnet.scene.array import ArrayGeometry
from musicnet.scene.draws import draw_complex_normal
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface
from tests.reference.slow_twins import slow_point, slow_snapshot, slow_steering

N_SCENES = 6


@pytest.mark.parametrize("rician_factor", [0.0, 2.0])
@pytest.mark.parametrize("symbols", ["pilot", "data"])
def test_surface_scenes_agree_with_the_twin(symbols, rician_factor):
    """Public draws in their documented order, then the slow physics on them."""
    surface = Surface(n_antennas=5, n_codes=7, rician_factor=rician_factor)
    scene = Scene(ArrayGeometry(6, 4), SourceLaw(), surface=surface, symbols=symbols)
    heard, truth = draw_block(scene, block_generator(0, "train", 0, 3), N_SCENES)

    generators = [block_generator(0, "train", 0, 3)]
    positions = scene.positions()
    channel = surface.draw_channels(positions, scene.wavelength_m, generators)[0]
    codes = surface.draw_codes(24, generators)[0]
    drawn = scene.sources.draw(N_SCENES, generators)
    gains = torch.polar(drawn.amplitude, drawn.phase)[0, :, None, :].expand(-1, scene.n_blocks, -1)
    if symbols == "data":
        gains = gains * draw_complex_normal((N_SCENES, 7, 4), generators)[0]
    shape = (scene.n_blocks, N_SCENES, scene.n_rows)
    noise = draw_complex_normal(shape, generators)[0].transpose(0, 1)

    # G, the plain way: antenna m hears cell n after code l
    stack = np.array(
        [[h * c for h in channel.numpy().astype(complex)] for c in codes.numpy().astype(complex)]
    )
    operator = stack.reshape(1, -1, 24) if symbols == "pilot" else stack
    np.testing.assert_allclose(heard.operator.numpy(), operator, atol=1e-6)
    for i in range(N_SCENES):
        points = [slow_point(*p) for p in drawn.parameters[0, i].double().numpy()]
        steering = slow_steering(positions.double().numpy(), points, scene.wavelength_m)
        clean = slow_snapshot(operator, steering, gains[i].numpy().astype(complex))
        np.testing.assert_allclose(heard.y[i].numpy(), clean + noise[i].numpy(), atol=2e-4)
        np.testing.assert_array_equal(truth.resolved[i].numpy(), drawn.amplitude[0, i].numpy() > 0)


def test_array_scenes_agree_with_the_twin():
    law = SourceLaw(n_max=3, elevation_deg=(0.0, 0.0))
    scene = Scene(ArrayGeometry(7), law, n_snapshots=5, symbols="data", coherent_share=0.5)
    heard, _ = draw_block(scene, block_generator(0, "train", 0, 3), N_SCENES)

    generators = [block_generator(0, "train", 0, 3)]
    drawn = law.draw(N_SCENES, generators)
    symbols = draw_complex_normal((N_SCENES, 5, 3), generators)[0]
    lot = torch.rand(N_SCENES, generator=generators[0])
    noise = draw_complex_normal((5, N_SCENES, 7), generators)[0].transpose(0, 1)
    coherent = 0
    for i in range(N_SCENES):
        sent = symbols[i].clone()
        if lot[i] < 0.5:
            sent[:] = sent[:, :1]
            coherent += 1
        gains = torch.polar(drawn.amplitude, drawn.phase)[0, i] * sent
        points = [slow_point(*p) for p in drawn.parameters[0, i].double().numpy()]
        steering = slow_steering(scene.positions().double().numpy(), points, scene.wavelength_m)
        clean = slow_snapshot(np.eye(7)[None], steering, gains.numpy().astype(complex))
        np.testing.assert_allclose(heard.y[i].numpy(), clean + noise[i].numpy(), atol=2e-4)
    assert 0 < coherent < N_SCENES
