import math

import pytest
import torch

from musicnet.estimation.covariance import sample_covariance
from musicnet.estimation.search import (
    bartlett_beams,
    capon_beams,
    climb,
    music_beams,
    score_map,
    search,
)
from musicnet.estimation.spectrum import (
    SearchGrid,
    bartlett_spectrum,
    capon_spectrum,
    music_spectrum,
)
from musicnet.estimation.subspace import noise_subspace
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.sources import SearchRegion
from musicnet.scene.steering import steering

LINE = ArrayGeometry(8).positions(0.3).double()
LINE_GRID = SearchGrid.over(SearchRegion((-0.87, 0.87), (0.0, 0.0), (0.0, 0.0)), 1, 61, 1)
RING = ArrayGeometry(9, kind="ring").positions(0.3).double()
NEAR_LINE = ArrayGeometry(15).positions(0.3).double()
PLANE = ArrayGeometry(6, 6).positions(0.3).double()
CASES = {
    "far line": (LINE, LINE_GRID, [(-0.31, 0, 0), (0.42, 0, 0)]),
    "far ring": (
        RING,
        SearchGrid.over(SearchRegion((-0.8, 0.8), (-0.5, 0.5), (0.0, 0.0)), 21, 33, 1),
        [(-0.31, 0.2, 0), (0.42, -0.17, 0)],
    ),
    "near line": (
        NEAR_LINE,
        SearchGrid.over(SearchRegion((-0.8, 0.8), (0.0, 0.0), (0.1, 2.0)), 1, 81, 16),
        [(-0.31, 0, 0.55), (0.42, 0, 1.37)],
    ),
    "near plane": (
        PLANE,
        SearchGrid.over(SearchRegion((-0.8, 0.8), (-0.5, 0.5), (0.2, 2.0)), 15, 25, 8),
        [(-0.31, 0.2, 0.55), (0.42, -0.17, 1.37)],
    ),
}


def exact(positions, parameters, noise=0.1):
    a = steering(positions, torch.tensor(parameters, dtype=torch.float64), 0.3)
    return a.mT @ a.conj() + noise * torch.eye(len(positions))


def snapshots(positions, parameters, *batch, seed=0, snr_db=10.0):
    generator = torch.Generator().manual_seed(seed)
    a = steering(positions, torch.tensor(parameters, dtype=torch.float64), 0.3)
    shape = (*batch, 100)
    symbols = torch.randn((*shape, len(a)), generator=generator, dtype=torch.complex128)
    noise = torch.randn((*shape, a.shape[1]), generator=generator, dtype=torch.complex128)
    return sample_covariance(10 ** (snr_db / 20) * symbols @ a + noise)


@pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))
def test_music_on_an_exact_covariance_is_exact_off_the_grid(case):
    positions, grid, truth = case
    covariance = exact(positions, truth)
    found = search(music_beams(covariance, 2), grid, 2, positions, 0.3, n_iterations=12)
    assert found.resolved.all()
    order = found.u.argsort()
    expected = torch.tensor(truth, dtype=torch.float64)
    torch.testing.assert_close(found.parameters[order], expected, atol=1e-6, rtol=0)


def test_a_few_steps_are_enough_for_noisy_peaks():
    covariance = snapshots(LINE, CASES["far line"][2], 50)
    beams = music_beams(covariance, 2)
    few = search(beams, LINE_GRID, 2, LINE, 0.3)
    many = search(beams, LINE_GRID, 2, LINE, 0.3, n_iterations=40)
    torch.testing.assert_close(few.u, many.u, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "beams_of", [lambda r: music_beams(r, 2), capon_beams, bartlett_beams], ids=list("mcb")
)
@pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))
def test_refined_peaks_are_maxima_of_the_score(case, beams_of):
    positions, grid, truth = case
    beams = beams_of(snapshots(positions, truth))
    found = search(beams, grid, 2, positions, 0.3, n_iterations=30)
    top = beams.score(steering(positions, found.parameters, 0.3))[..., :2]
    for i, is_active in enumerate(grid.region.active):
        for side in (-1e-4, 1e-4) if is_active else ():
            moved = found.parameters.clone()
            moved[:, i] += side
            inside = (grid.region.clamp(moved) == moved).all(-1)
            beside = beams.score(steering(positions, moved, 0.3))
            assert (beside <= top + 1e-12)[inside].all()


def test_peaks_at_the_edge_of_the_region_are_found_there():
    truth = [(0.868, 0, 0), (-0.2, 0, 0)]  # between the last cell and its neighbour
    found = search(music_beams(exact(LINE, truth), 2), LINE_GRID, 2, LINE, 0.3, 10)
    torch.testing.assert_close(
        found.u.sort().values, torch.tensor([-0.2, 0.868], dtype=torch.float64), atol=1e-6, rtol=0
    )
    outside = search(music_beams(exact(LINE, [(0.9, 0, 0)]), 1), LINE_GRID, 1, LINE, 0.3, 10)
    assert outside.u.item() == 0.87


def test_scores_are_those_of_the_spectra():
    covariance = snapshots(LINE, CASES["far line"][2], 3)
    cells = LINE_GRID.cells.double()
    dictionary = steering(LINE, cells.flatten(0, 2), 0.3)

    def score(beams):
        return score_map(beams, cells, LINE, 0.3)[:, 0, :, 0]

    torch.testing.assert_close(
        score(bartlett_beams(covariance)) / 64, bartlett_spectrum(covariance, dictionary)
    )
    power = covariance.diagonal(dim1=-2, dim2=-1).real.mean(-1)[:, None]
    torch.testing.assert_close(
        -1e-3 * power / score(capon_beams(covariance)), capon_spectrum(covariance, dictionary)
    )
    torch.testing.assert_close(
        8 / (8 - score(music_beams(covariance, 2))),
        music_spectrum(noise_subspace(covariance, 2), dictionary),
        rtol=1e-5,
        atol=0,
    )


def test_each_scene_may_have_a_number_of_sources_of_its_own():
    truths = [[(0.3, 0, 0)], [(-0.5, 0, 0), (0.2, 0, 0)]]
    covariance = torch.stack([exact(LINE, t) for t in truths])
    counts = torch.tensor([1, 2])
    found = search(music_beams(covariance, counts), LINE_GRID, counts, LINE, 0.3, 10)
    assert found.resolved.tolist() == [[True, False], [True, True]]
    assert found.u[0, 0].item() == pytest.approx(0.3, abs=1e-6)
    assert found.u[0, 1].isnan()
    assert found.u[1].sort().values.tolist() == pytest.approx([-0.5, 0.2], abs=1e-6)


def test_a_bad_scene_harms_only_itself():
    good = snapshots(LINE, CASES["far line"][2], 5)
    mixed = good.clone()
    mixed[3] = math.nan
    for beams_of in (lambda r: music_beams(r, 2), capon_beams, bartlett_beams):
        expected = search(beams_of(good), LINE_GRID, 2, LINE, 0.3)
        found = search(beams_of(mixed), LINE_GRID, 2, LINE, 0.3)
        others = torch.arange(5) != 3
        torch.testing.assert_close(found.u[others], expected.u[others])
        assert not found.resolved[3].any()


def test_a_batch_gives_what_each_scene_gives_alone():
    covariance = snapshots(LINE, CASES["far line"][2], 6).to(torch.complex64)
    positions = LINE.float()
    batched = search(music_beams(covariance.reshape(2, 3, 8, 8), 2), LINE_GRID, 2, positions, 0.3)
    alone = [search(music_beams(r, 2), LINE_GRID, 2, positions, 0.3).u for r in covariance]
    torch.testing.assert_close(batched.u.reshape(6, 2), torch.stack(alone), atol=1e-5, rtol=0)


def test_slots_that_are_not_resolved_stay_where_they_are():
    beams = music_beams(exact(LINE, CASES["far line"][2]), 2)
    start = torch.tensor([[0.4, 0, 0], [0.4, 0, 0]], dtype=torch.float64)
    moved = climb(beams, start, torch.tensor([True, False]), LINE_GRID, LINE, 0.3)
    assert moved[0, 0] != 0.4
    assert moved[1, 0] == 0.4


def test_an_aperture_sets_how_dense_its_grid_is():
    region = SearchRegion((-0.8, 0.8), (-0.4, 0.4), (0.1, 2.1))
    grid = SearchGrid.dense(region, PLANE, 0.3, cells_per_beam=4.0)
    assert grid.shape == (1 + math.ceil(0.8 * 2.5 * 4), 1 + math.ceil(1.6 * 2.5 * 4), 3)
    line = SearchGrid.dense(LINE_GRID.region, LINE, 0.3)
    assert (line.n_v, line.n_rho) == (1, 1)
    assert line.n_u > SearchGrid.dense(LINE_GRID.region, LINE[:4], 0.3).n_u


@pytest.mark.bad_shape
def test_requests_that_do_not_fit_are_refused():
    beams = music_beams(exact(LINE, [(0.1, 0, 0)]), 1)
    with pytest.raises(ValueError, match="got 8 rows for 9 elements"):
        search(beams, LINE_GRID, 1, RING, 0.3)
    with pytest.raises(ValueError, match="got n_peaks=62"):
        search(beams, LINE_GRID, 62, LINE, 0.3)
    with pytest.raises(ValueError, match=r"got n_sources=8, n_sensors=8"):
        music_beams(exact(LINE, [(0.1, 0, 0)]), 8)


def test_scores_do_not_depend_on_how_many_scenes_are_scored_at_once(monkeypatch):
    beams = capon_beams(snapshots(LINE, CASES["far line"][2], 7))
    cells = LINE_GRID.cells.double()
    whole = score_map(beams, cells, LINE, 0.3)
    monkeypatch.setattr("musicnet.estimation.search._PIECE_ON_CPU", 3 * 61 * 8)
    torch.testing.assert_close(score_map(beams, cells, LINE, 0.3), whole)
