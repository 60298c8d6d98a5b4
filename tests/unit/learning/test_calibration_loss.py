"""The loss of a calibration against least squares by hand, and training by it through the gate."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from musicnet.coordinates import from_xyz
from musicnet.learning.batches import SceneBatch, with_truth
from musicnet.learning.calibration_loss import calibration_loss
from musicnet.learning.data import SceneData
from musicnet.learning.module import MusicNet
from musicnet.learning.phases import Phase
from musicnet.networks.calibration import Calibration
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import save_pretrained
from musicnet.scene.imperfections import Imperfections
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw, Sources
from musicnet.scene.steering import steering

HARDWARE = Imperfections(position_wavelengths=0.02, phase_deg=20.0, seed=5)
SIZES = NetworkSettings(n_channels=4, dilations=(1,), n_v=5, n_u=7, n_rho=3, calibrates=True)
ONLY_CALIBRATION = [Phase({"calibration": 1.0}, frozen=["backbone", "head"])]


@pytest.fixture
def hardware(surface_scene):
    """A small surface with errors of its own, and loud sources."""
    law = SourceLaw(n_max=2, snr_db=(10.0, 20.0))
    return replace(surface_scene, sources=law, imperfections=HARDWARE)


def loss_of(heard, place_error_m=0.0):
    return calibration_loss(heard, SourceLaw().region, place_error_m)


def drawn(scene, n_channels=2, n_scenes=16):
    return draw_blocks(scene, range(n_channels), n_scenes, "cpu", 0, "train", 0)


def module_of(scene, phases=ONLY_CALIBRATION, settings=SIZES, lr=2e-2, **options):
    torch.manual_seed(0)
    return MusicNet(
        scene, lambda groups: torch.optim.Adam(groups, lr=lr), settings, phases=phases, **options
    )


@pytest.mark.slow
def test_it_is_what_least_squares_leaves_over(hardware):
    heard, truth = drawn(hardware)
    left, freedom = 0.0, 0
    for channel in range(2):
        for scene in range(16):
            there = truth.resolved[channel, scene]
            places = truth.parameters[channel, scene][there].double()
            field = steering(heard.positions.double(), places, heard.wavelength)
            signatures = heard.operator[channel, 0].numpy() @ field.numpy().T
            y = heard.y[channel, scene, 0].numpy()
            fitted, *_ = np.linalg.lstsq(signatures, y, rcond=None)
            left += np.abs(y - signatures @ fitted) ** 2 @ np.ones(24)
            freedom += 24 - int(there.sum())
    assert float(loss_of([(heard, truth)])) == pytest.approx(left / freedom, rel=1e-4)


def test_it_is_one_where_the_steering_is_true(hardware):
    known = replace(hardware, imperfections=replace(HARDWARE, is_known=True))
    n_free = 16 * 64 * 23
    told = float(loss_of([drawn(known, 16, 64)]))
    assert abs(told - 1.0) < 4.0 / math.sqrt(n_free)
    assert float(loss_of([drawn(hardware, 16, 64)])) > 2.0


def test_its_gradient_is_that_of_finite_differences(hardware):
    heard, truth = drawn(hardware)
    calibration = Calibration(16)
    loss_of([(calibration(heard), truth)]).backward()
    for parameter in calibration.parameters():
        place = (3,) * parameter.ndim if parameter.ndim == 1 else (3, 1)
        told = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                parameter[place] += step
                told.append(float(loss_of([(calibration(heard), truth)])))
                parameter[place] -= step
        slope = (told[0] - told[1]) / 2e-2
        assert slope == pytest.approx(float(parameter.grad[place]), rel=2e-2, abs=1e-3)


def test_sources_in_one_place_and_scenes_without_any_do_no_harm(hardware):
    heard, truth = drawn(hardware)
    places, there = truth.parameters.clone(), torch.ones_like(truth.resolved)
    places[:] = places[..., :1, :]
    there[0, 0] = False
    calibration = Calibration(16)
    loss_of([(calibration(heard), Sources(places, there))]).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in calibration.parameters())


def test_scenes_keep_their_own_sources(hardware):
    some, others = drawn(hardware, 2, 4), drawn(hardware, 1, 3)
    truth = Sources(
        torch.cat([one.parameters.flatten(0, 1) for _, one in (some, others)]),
        torch.cat([one.resolved.flatten(0, 1) for _, one in (some, others)]),
    )
    batch = SceneBatch((some[0], others[0]), truth)
    for (_, wanted), (_, given) in zip(
        (some, others), with_truth(batch.observations, truth), strict=True
    ):
        assert torch.equal(given.resolved, wanted.resolved)
        assert torch.equal(given.parameters.nan_to_num(), wanted.parameters.nan_to_num())


def test_the_hardware_is_found_through_the_gate_and_nothing_else_moves(hardware, make_trainer):
    data = SceneData(hardware, n_scenes=64, batch_size=64, passes_per_epoch=100, seed=0)
    module = module_of(hardware)
    before = {name: one.clone() for name, one in module.network.state_dict().items()}
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=-1)
    trainer.fit(module, data)
    assert module.gate.steps == 100
    assert float(trainer.callback_metrics["val/calibration"]) == pytest.approx(1.0, abs=0.05)
    for name, one in module.network.state_dict().items():
        assert torch.equal(one, before[name]) != name.startswith("calibration."), name
    # fresh scenes of the same hardware, which only the true steering explains
    heard, truth = draw_blocks(hardware, range(8), 32, "cpu", 1, "val", 0)
    with torch.no_grad():
        learned = float(loss_of([(module.network.calibrated(heard), truth)]))
    assert learned == pytest.approx(1.0, abs=0.15)
    assert float(loss_of([(heard, truth)])) > 3.0


def test_the_network_may_train_beside_it(hardware, make_trainer):
    phases = [Phase({"calibration": 1.0, "spectrum": 1.0, "offsets": 0.5})]
    data = SceneData(hardware, n_scenes=32, batch_size=32, passes_per_epoch=3, seed=0)
    module = module_of(hardware, phases)
    before = {name: one.clone() for name, one in module.network.named_parameters()}
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, data)
    moved = {n for n, one in module.network.named_parameters() if not torch.equal(one, before[n])}
    assert {name.split(".")[0] for name in moved} == {"backbone", "head", "calibration"}
    told = {key: float(value) for key, value in trainer.callback_metrics.items()}
    total = told["val/calibration"] + told["val/spectrum"] + 0.5 * told["val/offsets"]
    assert told["val/loss"] == pytest.approx(total, rel=1e-5)


def test_a_part_and_its_loss_need_each_other(hardware):
    with pytest.raises(ValueError, match=r"need each other: got network\.calibrates=False"):
        module_of(hardware, [Phase({"calibration": 1.0})], replace(SIZES, calibrates=False))
    with pytest.raises(ValueError, match=r"need each other: got network\.calibrates=True"):
        module_of(hardware, [Phase({"spectrum": 1.0})])
    # a trust head that came with the weights is kept as it is
    module_of(hardware, settings=replace(SIZES, n_trust=4))


def test_it_begins_with_trained_weights(hardware, surface_scene, tmp_path):
    torch.manual_seed(7)
    plain = replace(SIZES, calibrates=False)
    trained = NeuralMusic(surface_scene, plain)
    path = tmp_path / "trained.safetensors"
    save_pretrained(path, trained, surface_scene, plain, {})
    module = module_of(replace(hardware, sources=surface_scene.sources), start=str(path))
    for name, wanted in trained.state_dict().items():
        assert torch.equal(module.network.state_dict()[name], wanted)
    assert not any(bool(one.any()) for one in module.network.calibration.parameters())


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"wavelength_m": 0.1}, SIZES, "start: .*same scene: got 'trained' with wavelength_m=0.3"),
        ({}, replace(SIZES, n_channels=8), "start: .*sizes: got 'trained', parameter 'backbone"),
        ({}, replace(SIZES, n_trust=4), "start: .*lacks parameters 'head.trust"),
    ],
)
def test_other_weights_are_no_beginning(surface_scene, tmp_path, change, settings, message):
    path, plain = tmp_path / "trained.safetensors", replace(SIZES, calibrates=False)
    save_pretrained(path, NeuralMusic(surface_scene, plain), surface_scene, plain, {})
    with pytest.raises(ValueError, match=message):
        module_of(replace(surface_scene, **change), settings=settings, start=str(path))


def test_weights_that_are_not_there_are_named(hardware, tmp_path):
    with pytest.raises(ValueError, match=r"start: no such file: .*none\.ckpt"):
        module_of(hardware, start=str(tmp_path / "none.ckpt"))


def test_places_that_were_noted_with_an_error_are_taken_as_such(hardware):
    """Steering true, places off by what training is told: noise again, and no pull to be wrong."""
    known = replace(hardware, imperfections=replace(HARDWARE, is_known=True))
    heard, truth = drawn(known, 8, 32)
    generator = torch.Generator().manual_seed(0)
    points = truth.xyz + 0.03 * torch.randn(truth.xyz.shape, generator=generator)
    noted = Sources(known.region.clamp(from_xyz(points)), truth.resolved)
    assert float(loss_of([(heard, noted)])) > 1.2
    assert float(loss_of([(heard, noted)], 0.03)) == pytest.approx(1.0, abs=0.06)
    # the gradient is that of the whole, though none passes through the places
    calibration = Calibration(16)
    loss_of([(calibration(heard), noted)], 0.03).backward()
    told = []
    for step in (0.03, -0.03):
        with torch.no_grad():
            calibration.phase[3] += step
            told.append(float(loss_of([(calibration(heard), noted)], 0.03)))
            calibration.phase[3] -= step
    slope = (told[0] - told[1]) / 0.06
    assert slope == pytest.approx(float(calibration.phase.grad[3]), rel=0.05, abs=2e-3)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_an_error_of_places_is_a_deviation(hardware, bad):
    with pytest.raises(ValueError, match="place_error_m must be finite and >= 0: got"):
        module_of(hardware, place_error_m=bad)


def test_the_far_field_has_no_places(line_scene):
    plain = replace(SIZES, calibrates=False)
    with pytest.raises(ValueError, match="sources in the far field have none of: got"):
        module_of(line_scene, [Phase({"spectrum": 1.0})], plain, place_error_m=0.1)
