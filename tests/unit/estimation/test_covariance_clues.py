"""Clues of the covariance, against decompositions done otherwise and scenes of a known kind."""

import pytest
import torch

from musicnet.estimation.covariance_clues import N_DISTANCES, CovarianceClues
from musicnet.estimation.found import nothing
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import compress
from musicnet.estimation.subspace_fitting import fit_subspace
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw


def clues_of(coherent_share=0.0, snr_db=20.0, n_snapshots=200, array=None, n_scenes=200):
    law = SourceLaw(
        2,
        2,
        elevation_deg=(0.0, 0.0),
        range_m=None,
        snr_db=(snr_db, snr_db),
        min_separation_deg=15.0,
    )
    scene = Scene(
        array or ArrayGeometry(8),
        law,
        n_snapshots=n_snapshots,
        symbols="data",
        coherent_share=coherent_share,
    )
    observation, _ = draw_block(scene, block_generator(0, "clues", 0, 0), n_scenes)
    problem = compress(observation, scene.region)
    return problem, CovarianceClues.of(problem), observation


@pytest.mark.parametrize("n_snapshots", [3, 50])
def test_eigenvalues_are_those_of_the_snapshots_in_units_of_noise(n_snapshots):
    _, clues, observation = clues_of(n_snapshots=n_snapshots, n_scenes=5)
    y = observation.y.to(torch.complex128)
    wanted = torch.linalg.svdvals(y).square() / n_snapshots
    wanted = torch.nn.functional.pad(wanted, (0, 8 - wanted.shape[-1]))
    torch.testing.assert_close(clues.values[0].double(), wanted, rtol=1e-4, atol=1e-3)


def test_the_strongest_direction_alone_is_the_subspace_of_one_dimension():
    problem, clues, _ = clues_of(snr_db=0.0, n_snapshots=10, n_scenes=20)
    alone, wanted = clues.strongest_alone(problem), fit_subspace(problem, 1)
    torch.testing.assert_close(nothing(alone).cost, nothing(wanted).cost, rtol=1e-4, atol=1e-3)
    places = torch.tensor([[-0.3, 0.0, 0.0], [0.2, 0.0, 0.0]]).expand(1, 20, 2, 3)
    present = torch.ones((1, 20, 2), dtype=torch.bool)
    costs = [explain(one, places, present).cost for one in (alone, wanted)]
    torch.testing.assert_close(*costs, rtol=1e-4, atol=1e-3)


def test_waves_that_know_nothing_of_each_other_are_as_even_as_chance_makes_them():
    for snr_db in (-20.0, 0.0):
        unevenness = clues_of(snr_db=snr_db)[1].unevenness.mean((0, 1))
        assert bool(((unevenness > 0.5) & (unevenness < 1.5)).all())


def test_coherent_waves_interfere():
    even, uneven = (clues_of(share)[1].unevenness.mean(-1) for share in (0.0, 1.0))
    assert float(uneven.quantile(0.1)) > 5.0 * float(even.quantile(0.9))


def test_where_no_two_pairs_of_sensors_stand_alike_nothing_is_uneven():
    places = tuple((x, 0.0, 0.0) for x in (0.0, 0.5, 2.0, 4.5))
    array = ArrayGeometry(kind="positions", places_wavelengths=places)
    _, clues, _ = clues_of(1.0, array=array, n_scenes=4)
    # one number is the mean over all sensors, which stand alike in every array
    assert clues.unevenness.shape[-1] == N_DISTANCES
    torch.testing.assert_close(clues.unevenness[..., 1:], torch.zeros(1, 4, 3), atol=1e-4, rtol=0)


def test_a_scene_that_is_not_finite_harms_no_other():
    problem, wanted, _ = clues_of(n_snapshots=5, n_scenes=3)
    problem.y[:, 1] = torch.nan
    clues = CovarianceClues.of(problem)
    torch.testing.assert_close(clues.values[:, ::2], wanted.values[:, ::2])
