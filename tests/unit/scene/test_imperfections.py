import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from musicnet.estimation.likelihood import fit_amplitudes
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.imperfections import Imperfections
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface
from tests.reference.slow_twins import slow_point, slow_steering

LOUD = SourceLaw(n_min=2, n_max=2, snr_db=(60.0, 60.0))
RIS = Scene(ArrayGeometry(6, 6), LOUD, surface=Surface(n_antennas=6, n_codes=10))
LINE = Scene(
    ArrayGeometry(8),
    SourceLaw(n_min=2, n_max=2, elevation_deg=(0.0, 0.0), range_m=None),
    n_snapshots=4000,
    symbols="data",
)
ALL_ERRORS = Imperfections(
    position_wavelengths=0.05,
    gain_db=1.0,
    phase_deg=20.0,
    coupling_db=-15.0,
    noise_correlation=0.5,
    noise_spread_db=2.0,
)


def draw(scene, keys=(0, 1), n_scenes=6, split="train"):
    return draw_blocks(scene, list(keys), n_scenes, "cpu", 0, split, 0)


def residual(scene, keys=(0, 1)):
    """Mean power per row that the true places leave unexplained; 1 is the noise."""
    observation, truth = draw(scene, keys)
    fit = fit_amplitudes(observation, truth)
    return float(fit.cost.mean()) / (observation.y.shape[-1] - 2)


def test_no_error_at_all_changes_nothing():
    plain, _ = draw(RIS)
    with_none, _ = draw(replace(RIS, imperfections=Imperfections()))
    torch.testing.assert_close(with_none.y, plain.y, atol=1e-3, rtol=1e-4)
    assert torch.equal(with_none.operator, plain.operator)


@pytest.mark.parametrize("redrawn", ["never", "block", "scene"])
@pytest.mark.parametrize(
    "error",
    [{"position_wavelengths": 0.02}, {"gain_db": 1.0}, {"phase_deg": 10.0}, {"coupling_db": -20.0}],
)
def test_every_unknown_error_leaves_a_residual(error, redrawn):
    assert residual(RIS) == pytest.approx(1.0, rel=0.15)
    assert residual(replace(RIS, imperfections=Imperfections(**error, redrawn=redrawn))) > 100


def test_cells_that_take_fewer_states_than_asked_for_leave_a_residual():
    assert residual(replace(RIS, imperfections=Imperfections(quantised_bits=1))) > 100
    assert residual(replace(RIS, imperfections=Imperfections(quantised_bits=3))) < 1.2


@pytest.mark.parametrize("scene", [RIS, replace(LINE, n_snapshots=1, symbols="pilot")])
def test_errors_that_are_known_leave_the_noise_alone(scene):
    known = replace(ALL_ERRORS, is_known=True)
    assert residual(replace(scene, imperfections=known), range(8)) == pytest.approx(1.0, rel=0.12)


def test_errors_act_in_the_order_of_the_model():
    scene = replace(
        RIS, imperfections=replace(ALL_ERRORS, noise_correlation=0.0, noise_spread_db=0.0)
    )
    observation, truth = draw(scene, keys=(0,), n_scenes=2)
    errors = scene.imperfections.draw(observation.positions, 0.3, 6, 2, [torch.Generator()])
    places = (observation.positions + errors.displacement[0, 0]).double().numpy()
    mixing = errors.coupling[0, 0].numpy() @ np.diag(errors.response[0, 0].numpy())
    for scene_index in range(2):
        points = [slow_point(*p) for p in truth.parameters[0, scene_index].double().numpy()]
        field = slow_steering(places, points, 0.3).T
        signature = observation.operator[0, 0].numpy() @ mixing @ field
        y = observation.y[0, scene_index, 0].numpy()
        left = y - signature @ np.linalg.lstsq(signature, y, rcond=None)[0]
        assert np.mean(abs(left) ** 2) < 2.0


def test_lasting_errors_are_the_same_everywhere_and_others_are_not():
    positions = RIS.positions()

    def responses(redrawn, seed=0):
        errors = Imperfections(phase_deg=5.0, redrawn=redrawn, seed=seed)
        generators = [torch.Generator().manual_seed(i) for i in (1, 2)]
        return errors.draw(positions, 0.3, 6, 4, generators).response

    assert responses("never").shape == (1, 1, 36)
    assert not torch.equal(responses("never"), responses("never", seed=1))
    by_block, by_scene = responses("block"), responses("scene")
    assert by_block.shape == (2, 1, 36)
    assert by_scene.shape == (2, 4, 36)
    for drawn in (by_block, by_scene):
        flat = drawn.flatten(0, 1)
        assert (flat[1:] != flat[:1]).any(-1).all()


def test_a_block_with_errors_does_not_depend_on_its_neighbours():
    scene = replace(RIS, imperfections=replace(ALL_ERRORS, redrawn="scene"))
    together, _ = draw(scene, keys=(3, 4))
    alone, _ = draw(scene, keys=(4,))
    torch.testing.assert_close(together.y[1], alone.y[0])


def test_errors_have_the_spread_that_they_say():
    errors = Imperfections(position_wavelengths=0.1, gain_db=2.0, phase_deg=30.0, redrawn="scene")
    drawn = errors.draw(RIS.positions(), 0.3, 6, 500, [torch.Generator().manual_seed(0)])
    assert drawn.displacement.std().item() == pytest.approx(0.03, rel=0.03)
    assert (20 * drawn.response.abs().log10()).std().item() == pytest.approx(2.0, rel=0.03)
    assert drawn.response.angle().rad2deg().std().item() == pytest.approx(30.0, rel=0.03)


def test_neighbours_couple_as_strongly_as_said_and_both_ways():
    errors = Imperfections(coupling_db=-20.0)
    coupling = errors.draw(LINE.positions(), 0.3, 8, 1, [torch.Generator()]).coupling[0, 0]
    torch.testing.assert_close(coupling, coupling.mT)
    torch.testing.assert_close(coupling.diagonal(), torch.ones(8) + 0j)
    assert coupling[0, 1].abs().item() == pytest.approx(0.1, rel=1e-4)
    assert coupling[0, 4].abs().item() == pytest.approx(0.025, rel=1e-4)


def test_coloured_noise_has_the_covariance_that_it_says():
    quiet = SourceLaw(
        n_min=1, n_max=1, elevation_deg=(0.0, 0.0), range_m=None, snr_db=(-99.0, -99.0)
    )
    errors = Imperfections(noise_correlation=0.6)
    observation, _ = draw(replace(LINE, sources=quiet, imperfections=errors))
    y = observation.y.flatten(0, 2)
    expected = 0.6 ** (torch.arange(8)[:, None] - torch.arange(8)).abs()
    torch.testing.assert_close(y.mT @ y.conj() / len(y), expected + 0j, atol=0.03, rtol=0)


def test_noise_that_differs_between_receivers_keeps_its_mean_power():
    errors = Imperfections(noise_spread_db=3.0)
    colour = errors.draw(RIS.positions(), 0.3, 6, 1, [torch.Generator()]).colour[0, 0]
    powers = (colour @ colour.mH).diagonal().real
    assert powers.mean().item() == pytest.approx(1.0, rel=1e-5)
    assert powers.std() > 0.2


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"phase_deg": -1.0}, "got -1.0"),
        ({"position_wavelengths": math.nan}, "got nan"),
        ({"coupling_db": 3.0}, "got 3.0"),
        ({"quantised_bits": 0}, "got 0"),
        ({"noise_correlation": 1.0}, "got 1.0"),
        ({"redrawn": "weekly"}, "got 'weekly'"),
        ({"redrawn": "scene", "is_known": True}, "redrawn='scene'"),
    ],
)
@pytest.mark.bad_shape
def test_impossible_imperfections_are_refused(arguments, got):
    with pytest.raises(ValueError, match=got):
        Imperfections(**arguments)


def test_quantised_phases_need_a_surface():
    with pytest.raises(ValueError, match=r"got imperfections\.quantised_bits=2"):
        replace(LINE, imperfections=Imperfections(quantised_bits=2))
