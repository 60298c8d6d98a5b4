import math

import pytest
import torch

from musicnet.scene.array import ArrayGeometry
from musicnet.scene.surface import Surface


def generators(n, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


@pytest.fixture
def positions():
    return ArrayGeometry(8, 8).positions(0.3)


@pytest.mark.parametrize("rician_factor", [0.0, 1.0, 10.0])
def test_channel_entries_have_power_one_over_n(positions, rician_factor):
    channels = Surface(rician_factor=rician_factor).draw_channels(positions, 0.3, generators(300))
    power = channels.abs().square().mean().item() * 64
    assert power == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("rician_factor", [0.5, 3.0, 30.0])
def test_line_of_sight_has_kappa_times_the_scattered_power(positions, rician_factor):
    surface = Surface(rician_factor=rician_factor)
    channels = surface.draw_channels(positions, 0.3, generators(200))
    rayleigh = Surface().draw_channels(positions, 0.3, generators(200))
    # the same generator draws the scattered part first, so that it can be taken out exactly
    sight = channels - rayleigh / math.sqrt(rician_factor + 1)
    share = sight.abs().square() * 64
    expected = torch.full_like(share, rician_factor / (rician_factor + 1))
    torch.testing.assert_close(share, expected, rtol=1e-4, atol=1e-4)
    assert (torch.linalg.matrix_rank(sight, rtol=1e-3) == 1).all()


def test_codes_are_unit_phasors_of_the_right_number_of_states():
    codes = Surface(phase_bits=2).draw_codes(64, generators(3))
    torch.testing.assert_close(codes.abs(), torch.ones(3, 16, 64))
    states = (codes.angle() / (math.pi / 2)).round() % 4
    torch.testing.assert_close(torch.polar(torch.ones_like(states), states * math.pi / 2), codes)
    assert states.unique().numel() == 4


def test_channels_and_codes_of_different_generators_differ(positions):
    surface = Surface()
    channels = surface.draw_channels(positions, 0.3, generators(2))
    codes = surface.draw_codes(64, generators(2))
    assert not torch.equal(channels[0], channels[1])
    assert not torch.equal(codes[0], codes[1])


def test_pilot_operator_stacks_what_the_data_operator_separates(positions):
    surface = Surface(n_antennas=3, n_codes=4)
    channel = surface.draw_channels(positions, 0.3, generators(1))[0]
    codes = surface.draw_codes(64, generators(1))[0]
    data = surface.operator(channel, codes, "data")
    pilot = surface.operator(channel, codes, "pilot")
    assert data.shape == (4, 3, 64)
    torch.testing.assert_close(data[2], channel @ torch.diag(codes[2]))
    torch.testing.assert_close(pilot, torch.cat(list(data))[None])


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"n_antennas": 0}, "got n_antennas=0"),
        ({"n_codes": -1}, "n_codes=-1"),
        ({"phase_bits": 0}, "got 0"),
        ({"rician_factor": -1.0}, "got -1.0"),
        ({"rician_factor": math.nan}, "got nan"),
    ],
)
def test_impossible_surfaces_are_refused(arguments, got):
    with pytest.raises(ValueError, match=got):
        Surface(**arguments)
