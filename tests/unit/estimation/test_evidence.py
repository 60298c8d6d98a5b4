from dataclasses import replace

import pytest
import torch

from musicnet.estimation.evidence import log_evidence, pursue
from musicnet.estimation.found import nothing
from musicnet.estimation.problem import compress
from musicnet.estimation.pursuit import multistart
from tests.unit.estimation.likelihood_scenes import draw, line_scene, surface_scene
from tests.unit.estimation.test_pursuit import apart

NOISE_KNOWN = pytest.mark.parametrize("is_noise_known", [True, False])


def counted(scene, observation, **options):
    problem = compress(observation, scene.region)
    return pursue(problem, None, 4, **options).sources(problem).n_sources


@NOISE_KNOWN
@pytest.mark.parametrize("coherent_share", [0.0, 1.0])
@pytest.mark.parametrize("n_sources", [1, 3])
def test_sources_that_stand_apart_are_counted_coherent_or_not(
    n_sources, coherent_share, is_noise_known
):
    scene = line_scene(
        n_sources=n_sources, coherent_share=coherent_share, snr_db=(10.0, 10.0), n_snapshots=100
    )
    observation, truth = draw(scene, n_channels=1, n_scenes=100)
    some = apart(truth.parameters)
    counts = counted(scene, observation, is_noise_known=is_noise_known)
    assert some.sum() >= 15
    assert (counts == n_sources)[some].float().mean() >= 0.95


@NOISE_KNOWN
def test_sources_behind_a_surface_are_counted(is_noise_known):
    for n_sources in (1, 2):
        scene = surface_scene(n_sources=n_sources)
        observation, _ = draw(scene, n_channels=4, n_scenes=16)
        counts = counted(scene, observation, is_noise_known=is_noise_known)
        assert (counts == n_sources).float().mean() >= 0.9


@pytest.mark.parametrize("scene", [surface_scene(), line_scene(), line_scene((5.0, 30.0))])
def test_noise_alone_holds_no_sources(scene):
    observation, _ = draw(scene, n_channels=4, n_scenes=32)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(observation.y.shape, dtype=torch.complex64, generator=generator)
    counts = counted(scene, replace(observation, y=noise))
    assert (counts == 0).float().mean() >= 0.98


def test_the_unit_of_the_data_does_not_matter():
    scene = line_scene(n_sources=2)
    observation, _ = draw(scene, n_channels=1, n_scenes=32)
    loud = replace(observation, y=1e3 * observation.y, noise_power=1e6 * observation.noise_power)
    for is_noise_known in (True, False):
        counts = counted(scene, observation, is_noise_known=is_noise_known)
        again = counted(scene, loud, is_noise_known=is_noise_known)
        assert torch.equal(counts, again)


def test_a_wrong_noise_power_does_not_matter_if_it_is_not_relied_on():
    scene = surface_scene(n_sources=2)
    observation, _ = draw(scene, n_channels=2, n_scenes=16)
    quiet = replace(observation, noise_power=1e-3 * observation.noise_power)
    counts = counted(scene, observation, is_noise_known=False)
    assert torch.equal(counts, counted(scene, quiet, is_noise_known=False))


def test_evidence_does_not_depend_on_empty_slots_or_order():
    scene = surface_scene(n_sources=2)
    problem = compress(draw(scene)[0], scene.region)
    found = multistart(problem, None, 2)
    turned = replace(found, parameters=found.parameters.flip(2), present=found.present.flip(2))
    widened = replace(
        found,
        parameters=torch.cat((found.parameters[:, :, :1] * 0.0 + 0.5, found.parameters), dim=2),
        present=torch.cat((torch.zeros_like(found.present[:, :, :1]), found.present), dim=2),
    )
    expected = log_evidence(problem, found)
    torch.testing.assert_close(log_evidence(problem, turned), expected, rtol=0.0, atol=0.05)
    torch.testing.assert_close(log_evidence(problem, widened), expected, rtol=0.0, atol=0.05)


def test_a_scene_that_is_not_finite_has_no_sources():
    scene = surface_scene(n_sources=2)
    observation, _ = draw(scene)
    spoilt = observation.y.clone()
    spoilt[0, 0, 0, 0] = torch.nan
    counts = counted(scene, replace(observation, y=spoilt))
    assert counts[0, 0] == 0
    assert (counts.flatten()[1:] > 0).all()
    problem = compress(observation, scene.region)
    assert nothing(problem).present.shape == (2, 4, 0)


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("n_sources", [0, 1])
def test_too_high_a_noise_power_invents_no_sources(n_sources, factor):
    scene = line_scene(n_sources=1)
    observation, _ = draw(scene, n_channels=1, n_scenes=64)
    if n_sources == 0:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(observation.y.shape, dtype=torch.complex64, generator=generator)
        observation = replace(observation, y=noise)
    stated = replace(observation, noise_power=factor * observation.noise_power)
    counts = counted(scene, stated)
    assert (counts > n_sources).float().mean() <= 0.02
    if factor <= 3.0:
        assert (counts == n_sources).float().mean() >= 0.95


@NOISE_KNOWN
@pytest.mark.parametrize("scene", [surface_scene(), line_scene()])
def test_silence_holds_no_sources(scene, is_noise_known):
    observation, _ = draw(scene)
    silent = replace(observation, y=torch.zeros_like(observation.y))
    assert (counted(scene, silent, is_noise_known=is_noise_known) == 0).all()
