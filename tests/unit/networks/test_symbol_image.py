"""The whitened image against a slow twin, one cell and one code at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from musicnet.estimation.spectrum import SearchGrid
from musicnet.networks.image import image_of
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.symbol_image import N_ROUNDS, SymbolImage
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.snapshots import block_generator, draw_block, draw_blocks
from musicnet.scene.steering import steering
from musicnet.scene.surface import Surface


@pytest.fixture
def data_scene(surface_scene):
    return replace(surface_scene, symbols="data")


def grid_of(scene):
    return SearchGrid.over(scene.region, n_v=5, n_u=7, n_rho=3)


def slow_spectra(y, cells):
    """Matched filter and whitened spectrum of one scene; cells are (block, cell, row)."""
    n_blocks, n_cells, n_rows = cells.shape
    norm = np.array([[np.linalg.norm(d) ** 2 for d in block] for block in cells])
    power = np.array([[np.abs(d.conj() @ y[q]) ** 2 for d in cells[q]] for q in range(n_blocks)])
    matched = (power / norm).mean(0)
    weight = matched / norm.mean(0)
    total = max(np.mean(np.abs(y) ** 2) - 1.0, 0.1)
    weight = weight * total / np.sum(weight * norm.mean(0) / n_rows)
    for _ in range(N_ROUNDS):
        heard, left = np.zeros((n_blocks, n_cells)), np.zeros((n_blocks, n_cells))
        for q in range(n_blocks):
            covariance = np.eye(n_rows) + sum(
                w * np.outer(d, d.conj()) for w, d in zip(weight, cells[q], strict=True)
            )
            for cell, d in enumerate(cells[q]):
                filtered = np.linalg.solve(covariance, d)
                heard[q, cell] = np.abs(filtered.conj() @ y[q]) ** 2
                left[q, cell] = (d.conj() @ filtered).real
        weight = weight * heard.sum(0) / left.sum(0)
    return matched, weight * norm.mean(0)


def test_image_agrees_with_a_slow_twin(data_scene):
    grid = grid_of(data_scene)
    observation, _ = draw_block(data_scene, block_generator(1, "test", 0, 0), n_scenes=2)
    observation = replace(observation, y=2 * observation.y, noise_power=4 * observation.noise_power)
    image = SymbolImage(data_scene, grid)(observation)
    places = steering(
        data_scene.positions().double(), grid.cells.double().reshape(-1, 3), data_scene.wavelength_m
    ).numpy()
    cells = np.stack([places @ block.T for block in observation.operator.numpy().astype(complex)])
    for scene in range(2):
        y = observation.y[scene].numpy().astype(complex) / 2
        n_rho = grid.n_rho
        for first, power in zip((n_rho, 0), slow_spectra(y, cells), strict=True):
            logarithm = np.log(power + 0.05)
            wanted = (logarithm - logarithm.mean()).reshape(grid.shape)
            got = image[scene, ..., first : first + n_rho].numpy()
            np.testing.assert_allclose(got, wanted, atol=1e-3)
            if first == 0:
                np.testing.assert_allclose(image[scene, ..., -1], logarithm.mean(), atol=1e-3)


def test_a_surface_heard_with_data_gets_this_image(data_scene):
    assert isinstance(image_of(data_scene, grid_of(data_scene)), SymbolImage)


def test_a_lone_source_on_the_grid_is_brightest_in_its_direction(data_scene, heard_without_noise):
    # in as few rows as those of the small scene all cells sound alike, and planes nearly do here
    data_scene = replace(data_scene, array=ArrayGeometry(8, 8), surface=Surface())
    grid = grid_of(data_scene)
    cell = (grid.n_v // 2, 4, grid.n_rho // 2)
    observation = heard_without_noise(data_scene, grid.cells[cell])
    score = image_of(data_scene, grid)(observation)[0, ..., : grid.n_rho]
    assert np.unravel_index(int(score.argmax()), grid.shape)[:2] == cell[:2]


def test_channels_and_scenes_do_not_see_one_another(data_scene):
    image = image_of(data_scene, grid_of(data_scene))
    observation, _ = draw_blocks(data_scene, [0, 1], 3, "cpu", seed=0, split="test", epoch=0)
    together = image(observation)
    for channel in range(2):
        one = replace(
            observation,
            y=observation.y[channel],
            operator=observation.operator[channel],
            noise_power=observation.noise_power[channel],
        )
        torch.testing.assert_close(image(one), together[channel], atol=1e-4, rtol=1e-4)
        alone = replace(one, y=one.y[1], noise_power=one.noise_power[1])
        torch.testing.assert_close(image(alone), together[channel, 1], atol=1e-4, rtol=1e-4)


def test_silence_draws_a_finite_image(data_scene):
    observation, _ = draw_block(data_scene, block_generator(0, "test", 0, 0), n_scenes=2)
    silent = replace(observation, y=torch.zeros_like(observation.y))
    assert image_of(data_scene, grid_of(data_scene))(silent).isfinite().all()


def test_sources_that_send_the_same_cannot_be_judged(data_scene):
    coherent = replace(data_scene, coherent_share=0.5)
    with pytest.raises(ValueError, match=r"got n_trust=8 with coherent_share=0.5"):
        NeuralMusic(coherent, NetworkSettings(n_channels=8, n_trust=8))
    network = NeuralMusic(coherent, NetworkSettings(n_channels=8))
    assert network.head.trust is None
