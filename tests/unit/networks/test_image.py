"""Images against slow twins in double precision, and what they must not depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from musicnet.estimation.spectrum import SearchGrid
from musicnet.networks.image import ArrayImage, PilotImage, image_of
from musicnet.scene.snapshots import block_generator, draw_block, draw_blocks
from musicnet.scene.steering import steering


def grid_of(scene):
    return SearchGrid.over(scene.region, n_v=5, n_u=7, n_rho=3)


def dictionary_of(scene, grid):
    cells = grid.cells.double().reshape(-1, 3)
    return steering(scene.positions().double(), cells, scene.wavelength_m).numpy()


def centred_log(power):
    logarithm = np.log(power + 0.05)
    return logarithm - logarithm.mean(), logarithm.mean()


def test_pilot_image_agrees_with_a_slow_twin(surface_scene):
    grid = grid_of(surface_scene)
    observation, _ = draw_block(surface_scene, block_generator(1, "test", 0, 0), n_scenes=3)
    image = PilotImage(surface_scene, grid)(observation)
    operator = observation.operator[0].numpy().astype(complex)
    gram = operator.conj().T @ operator
    loaded = gram + 0.01 * np.trace(gram).real / len(gram) * np.eye(len(gram))
    for scene in range(3):
        y = observation.y[scene, 0].numpy().astype(complex)
        inverted = np.linalg.solve(loaded, operator.conj().T @ y)
        field = [a.conj() @ inverted for a in dictionary_of(surface_scene, grid)]
        field = np.array(field) / np.abs(field).max()
        matched = [
            (operator @ a).conj() @ y / np.linalg.norm(operator @ a)
            for a in dictionary_of(surface_scene, grid)
        ]
        score, level = centred_log(np.abs(matched) ** 2)
        n_rho = grid.n_rho
        planes = np.stack([score, np.abs(field), field.real, field.imag], -2)
        wanted = np.moveaxis(planes.reshape(4, *grid.shape), 0, -2)  # (v, u, plane, rho)
        got = image[scene, ..., : 4 * n_rho].unflatten(-1, (4, n_rho)).numpy()
        np.testing.assert_allclose(got, wanted, atol=2e-4)
        np.testing.assert_allclose(image[scene, ..., -1].numpy(), level, atol=1e-4)


def test_array_image_agrees_with_a_slow_twin(line_scene):
    grid = grid_of(line_scene)
    observation, _ = draw_block(line_scene, block_generator(1, "test", 0, 0), n_scenes=1)
    image = ArrayImage(line_scene, grid)(observation)[0, 0]  # (u, map)
    y = observation.y[0].numpy().astype(complex)
    covariance = sum(np.outer(one, one.conj()) for one in y) / len(y)
    mirrored = (covariance + covariance.conj()[::-1, ::-1]) / 2
    mirrored = mirrored + 0.01 * np.trace(mirrored).real / 8 * np.eye(8)
    dictionary = dictionary_of(line_scene, grid)
    capon = [1 / (a.conj() @ np.linalg.inv(mirrored) @ a).real for a in dictionary]
    bartlett = [(a.conj() @ covariance @ a).real / 64 for a in dictionary]
    np.testing.assert_allclose(image[:, 0].numpy(), centred_log(np.array(capon))[0], atol=1e-3)
    np.testing.assert_allclose(image[:, 1].numpy(), centred_log(np.array(bartlett))[0], atol=1e-3)
    values, vectors = np.linalg.eigh(covariance)
    for beam in range(2):
        drawn = np.array([a.conj() @ vectors[:, -1 - beam] for a in dictionary]) / np.sqrt(8)
        weight = np.sqrt(values[-1 - beam] / values[-1])
        got = torch.complex(image[:, 2 + 2 * beam], image[:, 3 + 2 * beam]).numpy()
        np.testing.assert_allclose(np.abs(got), weight * np.abs(drawn), atol=2e-3)
        assert got[np.abs(drawn).argmax()].imag == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["surface_scene", "line_scene"])
def test_a_lone_source_on_the_grid_is_brightest_in_its_cell(name, request, heard_without_noise):
    scene = request.getfixturevalue(name)
    grid = grid_of(scene)
    cell = (grid.n_v // 2, 4, grid.n_rho // 2)
    image = image_of(scene, grid)(heard_without_noise(scene, grid.cells[cell]))
    score = image[0, ..., : grid.n_rho]
    assert np.unravel_index(int(score.argmax()), grid.shape) == cell


@pytest.mark.parametrize("name", ["surface_scene", "line_scene"])
def test_channels_and_scenes_do_not_see_one_another(name, request):
    scene = request.getfixturevalue(name)
    image = image_of(scene, grid_of(scene))
    observation, _ = draw_blocks(scene, [0, 1], 3, "cpu", seed=0, split="test", epoch=0)
    together = image(observation)
    operator = observation.operator.expand(2, *observation.operator.shape[1:])
    for channel in range(2):
        one = replace(
            observation,
            y=observation.y[channel],
            operator=operator[channel],
            noise_power=observation.noise_power[channel],
        )
        torch.testing.assert_close(image(one), together[channel], atol=1e-4, rtol=1e-4)
        alone = replace(one, y=one.y[1], noise_power=one.noise_power[1])
        torch.testing.assert_close(image(alone), together[channel, 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["surface_scene", "line_scene"])
def test_the_receiver_gain_does_not_matter(name, request):
    scene = request.getfixturevalue(name)
    image = image_of(scene, grid_of(scene))
    observation, _ = draw_block(scene, block_generator(0, "test", 0, 0), n_scenes=2)
    louder = replace(observation, y=3 * observation.y, noise_power=9 * observation.noise_power)
    torch.testing.assert_close(image(louder), image(observation), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["surface_scene", "line_scene"])
def test_silence_draws_a_finite_image(name, request):
    scene = request.getfixturevalue(name)
    observation, _ = draw_block(scene, block_generator(0, "test", 0, 0), n_scenes=2)
    silent = replace(observation, y=torch.zeros_like(observation.y))
    assert image_of(scene, grid_of(scene))(silent).isfinite().all()


def test_scenes_without_an_image_are_refused(surface_scene):
    short = replace(surface_scene, surface=replace(surface_scene.surface, n_codes=3))
    with pytest.raises(ValueError, match="got 12 rows"):
        image_of(short, grid_of(short))
