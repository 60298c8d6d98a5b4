"""A calibration against the hardware that the simulator draws, and as a part of a network."""

import math
from dataclasses import replace

import pytest
import torch

from musicnet.networks.calibration import Calibration
from musicnet.networks.image import PilotImage
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.scene.imperfections import Imperfections
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.steering import steering

TINY = NetworkSettings(n_channels=4, dilations=(1,), n_v=5, n_u=7, n_rho=3, calibrates=True)
HARDWARE = Imperfections(position_wavelengths=0.05, gain_db=0.5, phase_deg=15.0, seed=3)


def drawn(scene):
    return draw_block(scene, block_generator(0, "test", 0, 0), n_scenes=4)[0]


def spoil(calibration):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in calibration.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return calibration


def test_before_training_nothing_changes(surface_scene):
    heard = drawn(surface_scene)
    calibrated = Calibration(16)(heard)
    assert torch.equal(calibrated.operator, heard.operator)
    assert torch.equal(calibrated.positions, heard.positions)
    assert calibrated.y is heard.y


def test_what_all_elements_share_changes_nothing(surface_scene):
    heard, calibration = drawn(surface_scene), spoil(Calibration(16))
    before = calibration(heard).operator
    with torch.no_grad():
        calibration.phase += 2.0
        calibration.log_gain -= 1.0
    torch.testing.assert_close(calibration(heard).operator, before)


def test_the_errors_of_the_hardware_give_what_knowing_them_gives(surface_scene):
    """The simulator's own correction is the independent truth, up to the common factor."""
    hardware = replace(surface_scene, imperfections=HARDWARE)
    known = drawn(replace(hardware, imperfections=replace(HARDWARE, is_known=True)))
    errors = HARDWARE.draw(hardware.positions(), hardware.wavelength_m, 4, 1, [])
    calibration = Calibration(16)
    with torch.no_grad():
        calibration.phase.copy_(errors.response[0, 0].angle())
        calibration.log_gain.copy_(errors.response[0, 0].abs().log())
        calibration.displacement.copy_(
            errors.displacement[0, 0] * (2.0 * math.pi / hardware.wavelength_m)
        )
    calibrated = calibration(drawn(hardware))
    torch.testing.assert_close(calibrated.positions, known.positions)
    factor = known.operator / calibrated.operator
    torch.testing.assert_close(factor, factor[..., :1, :1].expand_as(factor))


def test_double_precision_stays_double(surface_scene):
    heard = drawn(surface_scene)
    exact = replace(
        heard, operator=heard.operator.to(torch.complex128), positions=heard.positions.double()
    )
    calibrated = spoil(Calibration(16))(exact)
    assert calibrated.operator.dtype == torch.complex128
    assert calibrated.positions.dtype == torch.float64


def test_the_image_looks_with_the_learned_steering(surface_scene):
    network = NeuralMusic(surface_scene, TINY)
    spoil(network.calibration)
    with torch.no_grad():
        heard = network.calibrated(drawn(surface_scene))
        image = network.image(heard)
    cells = network.grid.cells.flatten(0, 2)
    signatures = heard.operator[0] @ steering(heard.positions, cells, heard.wavelength).mT
    products = (heard.y[:, 0] @ signatures.conj()).abs().square()
    power = products / signatures.abs().square().sum(0) / heard.noise_power[:, None]
    score = (power + 0.05).log()
    score = (score - score.mean(-1, keepdim=True)).reshape(4, *network.grid.shape)
    torch.testing.assert_close(image[..., : network.grid.n_rho], score, rtol=1e-4, atol=1e-4)


def test_the_spectrum_is_that_of_the_calibrated_observation(surface_scene):
    network = NeuralMusic(surface_scene, TINY)
    spoil(network.calibration)
    heard = drawn(surface_scene)
    with torch.no_grad():
        wanted = network.spectrum(network.image(network.calibrated(heard)))
        assert torch.equal(network(heard).logits, wanted.logits)
        nominal = network.spectrum(network.image(heard))
        assert not torch.allclose(network(heard).logits, nominal.logits)


def test_a_network_without_a_calibration_leaves_observations_alone(surface_scene):
    network = NeuralMusic(surface_scene, replace(TINY, calibrates=False))
    heard = drawn(surface_scene)
    assert network.calibrated(heard) is heard
    assert not any("calibration" in name for name in network.state_dict())


def test_an_image_that_stands_still_has_the_places_of_its_scene(surface_scene):
    network = NeuralMusic(surface_scene, replace(TINY, calibrates=False))
    heard = drawn(surface_scene)
    moved = replace(heard, positions=heard.positions + 0.01)
    assert torch.equal(network.image(moved), network.image(heard))
    moving = PilotImage(surface_scene, network.grid, moves=True)
    torch.testing.assert_close(moving(heard), network.image(heard), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"symbols": "data"}, {}])
def test_only_surfaces_with_pilots_are_calibrated(request, line_scene, surface_scene, change):
    scene = replace(surface_scene, **change) if change else line_scene
    with pytest.raises(ValueError, match="pilot"):
        NeuralMusic(scene, TINY)
