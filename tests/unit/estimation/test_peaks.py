import itertools

import pytest
import torch

from musicnet.estimation.peaks import find_peaks
from tests.reference.slow_twins import slow_peaks


def test_peaks_agree_with_the_slow_twin():
    maps = torch.rand(2, 3, 11, 19, 8, generator=torch.Generator().manual_seed(0))
    peaks = find_peaks(maps, 4)
    for i in range(2):
        for j in range(3):
            expected = slow_peaks(maps[i, j].numpy(), 4)
            assert [tuple(cell) for cell in peaks.cells[i, j].tolist()] == [c for _, c in expected]
            assert peaks.scores[i, j].tolist() == [value for value, _ in expected]
    assert peaks.resolved.all()


@pytest.mark.parametrize("shape", [(1, 40, 1), (7, 1, 1), (1, 9, 6), (5, 5, 1)])
def test_single_cells_along_a_coordinate_are_no_border_trouble(shape):
    spectrum = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    peaks = find_peaks(spectrum, 2)
    expected = slow_peaks(spectrum.numpy(), 2)
    assert [tuple(cell) for cell in peaks.cells[peaks.resolved].tolist()] == [
        cell for _, cell in expected
    ]


def test_no_batch_axis_works_too():
    spectrum = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(2))
    alone, batched = find_peaks(spectrum, 2), find_peaks(spectrum[None], 2)
    assert torch.equal(alone.cells, batched.cells[0])


@pytest.mark.parametrize("value", [0.0, -7.0, 3.0])
def test_a_plateau_is_one_peak(value):
    peaks = find_peaks(torch.full((4, 5, 6), value), 3)
    assert peaks.resolved.tolist() == [True, False, False]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_equal_neighbours_are_one_peak_along_every_axis(axis):
    spectrum = torch.zeros(5, 5, 5)
    spectrum[2, 2, 2] = 1.0
    spectrum += spectrum.roll(1, axis) + spectrum.roll(2, axis)
    peaks = find_peaks(spectrum, 4)
    assert (peaks.scores[peaks.resolved] == 1).sum() == 1


def test_equal_cells_apart_are_two_peaks():
    spectrum = torch.zeros(1, 7, 1)
    spectrum[0, [1, 5], 0] = 1.0
    assert find_peaks(spectrum, 2).cells[:, 1].tolist() == [1, 5]


def test_missing_peaks_are_not_resolved_and_not_invented():
    spectrum = torch.zeros(1, 7, 1)
    spectrum[0, 3, 0] = 1.0
    peaks = find_peaks(spectrum.expand(2, 1, 7, 1), 5)
    assert peaks.resolved[:, 0].all()
    assert (peaks.scores[~peaks.resolved] == -torch.inf).all()
    assert (peaks.cells[~peaks.resolved] == 0).all()


def test_masked_cells_are_never_chosen():
    spectrum = torch.full((3, 3, 3), -torch.inf)
    assert not find_peaks(spectrum, 2).resolved.any()
    spectrum[1, 1, 1] = -5.0
    assert find_peaks(spectrum, 2).resolved.tolist() == [True, False]


def test_a_map_with_nan_has_no_peaks_and_spoils_no_other():
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(3))
    clean = find_peaks(maps[1], 2)
    maps[0, 1, 1, 1] = torch.nan
    peaks = find_peaks(maps, 2)
    assert not peaks.resolved[0].any()
    assert torch.equal(peaks.cells[1], clean.cells)


def test_peaks_carry_no_gradient():
    spectrum = torch.rand(3, 4, 5, requires_grad=True)
    assert not find_peaks(spectrum, 2).scores.requires_grad


@pytest.mark.parametrize("n_peaks", [0, 25])
def test_impossible_numbers_of_peaks_are_refused(n_peaks):
    with pytest.raises(ValueError, match=f"got n_peaks={n_peaks} .* 24 cells"):
        find_peaks(torch.zeros(2, 3, 4), n_peaks)


def ranked_by_hand(logits, handicap):
    scores = {}
    for cell in itertools.product(*map(range, logits.shape)):
        window = tuple(slice(max(i - 1, 0), i + 2) for i in cell)
        is_peak = bool(logits[cell] == logits[window].max())
        scores[cell] = float(logits[cell]) - (0 if is_peak else handicap)
    return sorted(scores, key=scores.get, reverse=True)


def test_soft_suppression_agrees_with_a_cell_by_cell_twin():
    logits = 4 * torch.randn(2, 5, 6, 4, generator=torch.Generator().manual_seed(0))
    peaks = find_peaks(logits, n_peaks=9, handicap=2.5)
    for scene in range(2):
        wanted = ranked_by_hand(logits[scene], handicap=2.5)[:9]
        assert [tuple(cell) for cell in peaks.cells[scene].tolist()] == wanted
    assert (peaks.scores.diff(dim=-1) <= 0).all()


def test_two_sure_neighbours_are_two_sources():
    logits = torch.full((3, 5, 1), -6.0)
    logits[1, 1, 0], logits[1, 2, 0], logits[2, 4, 0] = 7.0, 6.0, -5.0
    assert find_peaks(logits, 2, handicap=2.0).cells.tolist() == [[1, 1, 0], [1, 2, 0]]
    assert find_peaks(logits, 2).cells.tolist() == [[1, 1, 0], [2, 4, 0]]


def test_the_slope_of_a_peak_is_no_second_source():
    logits = torch.full((3, 5, 1), -6.0)
    logits[1, 1, 0], logits[1, 2, 0], logits[2, 4, 0] = 2.0, 0.5, -1.0
    assert find_peaks(logits, 2, handicap=2.0).cells.tolist() == [[1, 1, 0], [2, 4, 0]]
