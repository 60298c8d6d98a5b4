import itertools

import pytest
import torch

from musicnet.estimation.interpolation import interpolate_peaks
from musicnet.estimation.peaks import find_peaks

BOWL = torch.tensor([[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.5]], dtype=torch.float64)


def parabola(shape, top, bowl=BOWL):
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    away = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    away = away - torch.tensor(top, dtype=torch.float64)
    return -(away * (away @ bowl)).sum(-1)


def top_of(score, n_peaks=1):
    return interpolate_peaks(score, find_peaks(score, n_peaks))


@pytest.mark.parametrize(
    ("shape", "top"),
    [
        ((6, 7, 5), (2.3, 3.8, 2.4)),
        ((6, 7, 5), (0.2, 5.9, 3.8)),  # in the outermost cells
        ((1, 7, 5), (0.0, 3.8, 0.1)),
        ((6, 1, 1), (4.6, 0.0, 0.0)),
        ((1, 9, 1), (0.0, 0.3, 0.0)),
    ],
)
def test_tops_of_parabolas_are_found_exactly_also_at_edges(shape, top):
    assert top_of(parabola(shape, top))[0].tolist() == pytest.approx(top, abs=1e-9)


def test_a_slope_that_leaves_the_map_ends_at_its_edge():
    rising = torch.arange(6.0).reshape(1, 6, 1)
    assert top_of(rising)[0].tolist() == [0.0, 5.0, 0.0]
    beyond = parabola((1, 6, 1), (0.0, 5.4, 0.0))
    assert top_of(beyond)[0].tolist() == [0.0, 5.0, 0.0]


def test_two_cells_are_too_few_to_interpolate():
    score = parabola((2, 7, 1), (0.4, 3.3, 0.0), bowl=torch.eye(3, dtype=torch.float64))
    assert top_of(score)[0].tolist() == pytest.approx([0.0, 3.3, 0.0])


def test_peaks_beside_forbidden_cells_stay():
    score = parabola((1, 7, 1), (0.0, 3.3, 0.0))
    score[0, 4, 0] = -torch.inf
    assert top_of(score)[0].tolist() == [0.0, 3.0, 0.0]


def test_no_peak_moves_by_more_than_a_cell():
    generator = torch.Generator().manual_seed(0)
    score = torch.rand((20, 7, 8, 6), generator=generator)
    peaks = find_peaks(score, 6)
    moved = interpolate_peaks(score, peaks)
    assert (moved - peaks.cells).abs().max() <= 1.0
    assert moved.min() >= 0
    for axis, size in enumerate((7, 8, 6)):
        assert moved[..., axis].max() <= size - 1


def test_turning_the_map_turns_the_answer():
    score = parabola((5, 6, 7), (1.3, 2.8, 4.4))
    for axes in itertools.permutations(range(3)):
        turned = top_of(score.permute(axes))[0]
        expected = [(1.3, 2.8, 4.4)[a] for a in axes]
        assert turned.tolist() == pytest.approx(expected, abs=1e-9)
