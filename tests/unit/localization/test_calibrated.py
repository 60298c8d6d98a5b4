"""Localising with a learned calibration: every step works with the hardware's steering."""

import math
from dataclasses import replace

import pytest
import torch

from musicnet.localization.estimator import localize
from musicnet.metrics.matching import match
from musicnet.networks import fitting
from musicnet.networks.fitting import choose
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.imperfections import Imperfections
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface

SIZES = NetworkSettings(
    n_channels=4, dilations=(1,), n_v=5, n_u=9, n_rho=3, n_trust=4, calibrates=True
)
HARDWARE = Imperfections(position_wavelengths=0.03, phase_deg=15.0, seed=2)
LAW = SourceLaw(n_max=2, n_min=2, snr_db=(19.0, 21.0), min_separation_deg=25.0)
SCENE = Scene(ArrayGeometry(6, 6), LAW, surface=Surface(n_antennas=6, n_codes=8))


@pytest.fixture(scope="module")
def heard():
    hardware = replace(SCENE, imperfections=HARDWARE)
    return draw_blocks(hardware, range(2), 8, "cpu", 0, "test", 0)


@pytest.fixture(scope="module")
def calibrated():
    """A network whose calibration is the truth about the hardware."""
    torch.manual_seed(0)
    network = NeuralMusic(SCENE, SIZES).requires_grad_(requires_grad=False).eval()
    errors = HARDWARE.draw(SCENE.positions(), SCENE.wavelength_m, 6, 1, [])
    network.calibration.phase.copy_(errors.response[0, 0].angle())
    network.calibration.displacement.copy_(
        errors.displacement[0, 0] * (2.0 * math.pi / SCENE.wavelength_m)
    )
    return Pretrained("calibrated", network, SCENE, {}, SIZES)


@pytest.fixture(scope="module")
def nominal(calibrated):
    """The same network without."""
    plain = replace(SIZES, calibrates=False)
    network = NeuralMusic(SCENE, plain).requires_grad_(requires_grad=False).eval()
    tensors = calibrated.network.state_dict()
    network.load_state_dict({n: t for n, t in tensors.items() if "calibration" not in n})
    return Pretrained("nominal", network, SCENE, {}, plain)


@pytest.mark.parametrize("counted", [2, None])
def test_it_is_as_if_the_recording_had_said_so(heard, calibrated, nominal, counted):
    observation, _ = heard
    region = SCENE.region
    ours = localize(observation, "neural", counted, region=region, pretrained=calibrated)
    told = calibrated.network.calibrated(observation)
    search = {"region": region, "pretrained": replace(nominal, scene=_standing(told))}
    theirs = localize(told, "neural", counted, **search)
    for name in ("parameters", "resolved"):
        one, other = (getattr(found.sources, name) for found in (ours, theirs))
        torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        ours.covariance, theirs.covariance, equal_nan=True, rtol=0.02, atol=0
    )


def _standing(told):
    """A scene whose array stands where the hardware does, so that the network fits."""
    places = tuple(map(tuple, (told.positions / told.wavelength).tolist()))
    return replace(SCENE, array=ArrayGeometry(36, kind="positions", places_wavelengths=places))


def test_known_errors_cost_nothing_and_unknown_ones_much(heard, calibrated):
    observation, truth = heard

    def median(method):
        found = localize(observation, method, 2, region=SCENE.region, pretrained=calibrated)
        return float(match(found.sources, truth).distance.median())

    assert median("auto") < 0.4 * median("nomp")


def test_error_bars_are_those_of_the_true_steering(heard, calibrated):
    observation, truth = heard
    found = localize(observation, "neural", 2, region=SCENE.region, pretrained=calibrated)
    matching = match(found.sources, truth)
    index = matching.estimate_index[..., None]
    offset = found.sources.xyz.take_along_dim(index, dim=-2) - truth.xyz
    squared = (offset / found.std_xyz.take_along_dim(index, dim=-2)).square()
    assert 0.2 < float(squared.median()) < 0.9  # 0.45 of a normal error


def test_no_calibration_is_ever_chosen_without_being_named(
    heard, calibrated, nominal, tmp_path, monkeypatch
):
    observation, _ = heard
    ships = {"a": calibrated, "b": nominal}
    monkeypatch.setattr(fitting, "shipped", lambda: {name: tmp_path / name for name in ships})
    monkeypatch.setattr(fitting, "load_shipped", lambda path: ships[path.name])
    assert choose(observation, SCENE.region).name == "nominal"
    del ships["b"]
    assert choose(observation, SCENE.region) is None
    assert fitting.fits(calibrated, observation, SCENE.region) is None
