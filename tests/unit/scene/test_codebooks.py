import cmath
import math

import pytest
import torch

from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface, quantise_phases

GRID = ArrayGeometry(8, 8)


def generators(n):
    return [torch.Generator().manual_seed(i) for i in range(n)]


def test_dft_beams_are_centred_in_equal_squares_of_the_whole_frequency_square():
    codes = Surface(codebook="dft", n_codes=16, phase_bits=None).codes(GRID, generators(2))
    assert torch.equal(codes[0], codes[1])
    frequencies = [2 * math.pi * ((i + 0.5) / 4 - 0.5) for i in range(4)]
    for code, (x, y) in ((0, (0, 0)), (6, (2, 1)), (15, (3, 3))):
        for cell, (h, g) in ((0, (-3.5, -3.5)), (10, (-1.5, -2.5)), (63, (3.5, 3.5))):
            expected = cmath.exp(1j * (frequencies[x] * h + frequencies[y] * g))
            assert codes[0, code, cell].item() == pytest.approx(expected, abs=1e-5)


def test_dft_beams_of_a_line_are_orthogonal():
    codes = Surface(codebook="dft", n_codes=8, phase_bits=None).codes(
        ArrayGeometry(8), generators(1)
    )[0]
    torch.testing.assert_close(codes @ codes.mH / 8, torch.eye(8) + 0j, atol=1e-6, rtol=0)


def test_dft_beams_are_rounded_to_the_states_of_the_cells():
    rounded = Surface(codebook="dft", phase_bits=3).codes(GRID, generators(1))
    exact = Surface(codebook="dft", phase_bits=None).codes(GRID, generators(1))
    states = rounded.angle() / (math.pi / 4)
    torch.testing.assert_close(states, states.round(), atol=1e-5, rtol=0)
    assert (rounded / exact).angle().abs().max() <= math.pi / 8 + 1e-5


def test_custom_codes_are_taken_as_they_are():
    phases = ((0.0, 90.0, 180.0, 45.0), (10.0, 20.0, 30.0, 40.0))
    surface = Surface(n_codes=2, codebook="custom", code_phases_deg=phases, phase_bits=None)
    codes = surface.codes(ArrayGeometry(4), generators(1))[0]
    torch.testing.assert_close(codes.angle().rad2deg(), torch.tensor(phases))


def test_random_codes_without_states_take_any_phase():
    codes = Surface(phase_bits=None).codes(GRID, generators(3))
    turns = codes.angle().flatten() / (2 * math.pi) + 0.5
    torch.testing.assert_close(codes.abs(), torch.ones(3, 16, 64))
    torch.testing.assert_close(
        torch.histc(turns, 4, 0, 1) / turns.numel(), torch.full((4,), 0.25), atol=0.03, rtol=0
    )


def test_rounding_finds_the_nearest_of_all_states():
    phases = torch.linspace(-3.1, 3.1, 50)
    rounded = quantise_phases(torch.polar(torch.ones(50), phases), 2)
    states = torch.tensor([1, 1j, -1, -1j])
    nearest = (rounded[:, None] - states).abs().amin(-1)
    assert nearest.max() < 1e-6
    assert (
        rounded * torch.polar(torch.ones(50), -phases)
    ).angle().abs().max() <= math.pi / 4 + 1e-5


def test_held_codes_share_their_operator_from_snapshot_to_snapshot():
    scene = Scene(GRID, SourceLaw(), surface=Surface(n_codes=4), n_snapshots=3, symbols="data")
    assert scene.n_blocks == 12
    observation, _ = draw_blocks(scene, [0, 1], 5, "cpu", 0, "train", 0)
    assert observation.y.shape == (2, 5, 12, 8)
    by_code = observation.operator.reshape(2, 4, 3, 8, 64)
    torch.testing.assert_close(by_code, by_code[:, :, :1].expand_as(by_code))
    assert not torch.equal(by_code[:, 0], by_code[:, 1])


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"codebook": "zigzag"}, "got 'zigzag'"),
        ({"codebook": "custom"}, "got none"),
        ({"code_phases_deg": ((0.0,),)}, "got some with codebook='random'"),
        ({"codebook": "custom", "n_codes": 3, "code_phases_deg": ((0.0, 1.0),)}, "got 1 lists"),
        (
            {"codebook": "custom", "n_codes": 2, "code_phases_deg": ((0.0, 1.0), (0.0,))},
            r"lengths \[1, 2\]",
        ),
        ({"codebook": "custom", "n_codes": 1, "code_phases_deg": ((math.nan,),)}, "NaN"),
    ],
)
@pytest.mark.bad_shape
def test_codebooks_that_contradict_themselves_are_refused(arguments, got):
    with pytest.raises(ValueError, match=got):
        Surface(**arguments)


@pytest.mark.parametrize(
    ("surface", "array", "got"),
    [
        (Surface(codebook="dft", n_codes=15), GRID, "got n_codes=15. Set n_codes=9"),
        (Surface(codebook="dft"), ArrayGeometry(8, kind="ring"), "got array.kind='ring'"),
        (
            Surface(codebook="custom", n_codes=1, code_phases_deg=((0.0, 1.0),)),
            GRID,
            "got 2 phases for 64 cells",
        ),
    ],
)
def test_codebooks_must_fit_the_cells(surface, array, got):
    with pytest.raises(ValueError, match=got):
        Scene(array, SourceLaw(n_max=1), surface=surface)
