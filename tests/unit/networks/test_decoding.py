"""Soft non-maximum suppression against a cell-by-cell twin and against the hard one."""

import itertools

import torch

from musicnet.estimation.peaks import find_peaks
from musicnet.networks.decoding import strongest_cells


def ranked_by_hand(logits, handicap):
    scores = {}
    for cell in itertools.product(*map(range, logits.shape)):
        window = tuple(slice(max(i - 1, 0), i + 2) for i in cell)
        is_peak = bool(logits[cell] == logits[window].max())
        scores[cell] = float(logits[cell]) - (0 if is_peak else handicap)
    return sorted(scores, key=scores.get, reverse=True)


def test_ranking_agrees_with_a_cell_by_cell_twin():
    logits = 4 * torch.randn(2, 5, 6, 4, generator=torch.Generator().manual_seed(0))
    cells, scores = strongest_cells(logits, n_cells=9, handicap=2.5)
    for scene in range(2):
        wanted = ranked_by_hand(logits[scene], handicap=2.5)[:9]
        got = torch.stack(torch.unravel_index(cells[scene], (5, 6, 4)), -1).tolist()
        assert [tuple(cell) for cell in got] == wanted
    assert (scores.diff(dim=-1) <= 0).all()


def test_an_infinite_handicap_is_hard_suppression():
    logits = torch.randn(3, 6, 7, 4, generator=torch.Generator().manual_seed(1))
    cells, scores = strongest_cells(logits, n_cells=8, handicap=torch.inf)
    peaks = find_peaks(logits, n_peaks=8)
    v, u, rho = peaks.cells.unbind(-1)
    assert torch.equal(cells[peaks.resolved], ((v * 7 + u) * 4 + rho)[peaks.resolved])
    assert torch.equal(scores > -torch.inf, peaks.resolved)


def test_two_sure_neighbours_are_two_sources():
    logits = torch.full((3, 5, 1), -6.0)
    logits[1, 1, 0], logits[1, 2, 0], logits[2, 4, 0] = 7.0, 6.0, -5.0
    assert strongest_cells(logits, 2)[0].tolist() == [6, 7]


def test_the_slope_of_a_peak_is_no_second_source():
    logits = torch.full((3, 5, 1), -6.0)
    logits[1, 1, 0], logits[1, 2, 0], logits[2, 4, 0] = 2.0, 0.5, -1.0
    assert strongest_cells(logits, 2)[0].tolist() == [6, 14]


def test_a_plateau_is_one_peak():
    logits = torch.tensor([0.0, 5.0, 5.0, 0.0, 0.0, 3.0]).reshape(6, 1, 1)
    assert strongest_cells(logits, 2, handicap=torch.inf)[0].tolist() == [1, 5]


def test_nothing_is_read_from_a_map_with_a_nan():
    logits = torch.zeros(2, 3, 3, 1)
    logits[0, 1, 1, 0] = torch.nan
    scores = strongest_cells(logits, 2)[1]
    assert (scores[0] == -torch.inf).all()
    assert (scores[1] > -torch.inf).all()
