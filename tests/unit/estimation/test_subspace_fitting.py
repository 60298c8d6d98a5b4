"""Subspace fitting: coherent sources in few snapshots, where least squares explains noise."""

import torch

from musicnet.estimation import pursuit
from musicnet.estimation.problem import compress
from musicnet.estimation.refinement import refine
from musicnet.estimation.subspace_fitting import fit_subspace, refit, signal_rank
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw


def drawn(n_sources, coherent_share, snr_db=0.0, n_snapshots=10, n_scenes=300):
    law = SourceLaw(
        n_min=n_sources,
        n_max=n_sources,
        elevation_deg=(0.0, 0.0),
        range_m=None,
        snr_db=(snr_db, snr_db),
        min_separation_deg=15.0,
    )
    scene = Scene(
        ArrayGeometry(8),
        law,
        n_snapshots=n_snapshots,
        symbols="data",
        coherent_share=coherent_share,
    )
    observation, truth = draw_block(scene, block_generator(0, "test", 0, 0), n_scenes)
    return compress(observation, scene.region), truth


def squared_error(parameters, truth):
    found, wanted = (one[..., 0].sort(-1).values for one in (parameters, truth.parameters))
    return float((found - wanted).square().mean())


def test_coherent_sources_fill_one_dimension_and_others_as_many_as_they_are():
    for share, wanted in ((1.0, 1), (0.0, 2)):
        problem, truth = drawn(2, share, snr_db=10.0)
        present = truth.resolved[None]
        at_truth = pursuit.multistart(problem, None, 2)
        assert present.shape == at_truth.present.shape
        assert (signal_rank(problem, at_truth) == wanted).float().mean() > 0.95


def test_in_few_snapshots_it_is_as_good_as_least_squares_from_the_truth():
    problem, truth = drawn(2, coherent_share=1.0)
    plain = pursuit.multistart(problem, None, 2)
    fitted = refit(problem, None, plain)
    from_truth = refine(problem, truth.parameters[None], truth.resolved[None], 20)
    assert squared_error(fitted.parameters[0], truth) < 1.3 * squared_error(
        from_truth.parameters[0], truth
    )
    assert squared_error(fitted.parameters[0], truth) < squared_error(plain.parameters[0], truth)


def test_sources_of_full_rank_are_left_as_they_are():
    problem, _ = drawn(2, coherent_share=0.0, snr_db=15.0, n_snapshots=50)
    plain = pursuit.multistart(problem, None, 2)
    assert torch.equal(refit(problem, None, plain).parameters, plain.parameters)


def test_without_noise_the_subspace_has_the_same_sources():
    problem, truth = drawn(3, coherent_share=1.0, snr_db=60.0, n_scenes=20)
    rank = torch.ones(problem.y.shape[:2], dtype=torch.long)
    fitted = fit_subspace(problem, rank)
    refined = refine(fitted, truth.parameters[None], truth.resolved[None], 10)
    assert (refined.parameters[0] - truth.parameters).abs().amax() < 1e-3


def test_a_scene_that_is_not_finite_harms_no_other():
    problem, _ = drawn(2, coherent_share=1.0, n_scenes=8)
    clean = refit(problem, None, pursuit.multistart(problem, None, 2))
    problem.y[0, 3, 0, 0, 0] = torch.nan
    spoilt = refit(problem, None, pursuit.multistart(problem, None, 2))
    others = torch.arange(8) != 3
    assert torch.allclose(spoilt.parameters[0, others], clean.parameters[0, others], atol=1e-5)
    assert not spoilt.sources(problem).resolved[3].any()
