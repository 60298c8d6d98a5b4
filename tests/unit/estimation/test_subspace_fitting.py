"""Subspace fitting: coherent sources in few snapshots, where least squares explains noise."""

import pytest
import torch

from musicnet.estimation import pursuit
from musicnet.estimation.problem import compress
from musicnet.estimation.refinement import refine
from musicnet.estimation.subspace_fitting import fit_subspace, refit, symbol_misfit
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


@pytest.mark.parametrize("n_sources", [2, 3])
def test_in_few_snapshots_it_is_better_than_least_squares_from_the_truth(n_sources):
    problem, truth = drawn(n_sources, coherent_share=1.0, n_scenes=600)
    plain = pursuit.multistart(problem, None, n_sources)
    fitted = refit(problem, None, plain)
    from_truth = refine(problem, truth.parameters[None], truth.resolved[None], 20)
    reached = squared_error(fitted.parameters[0], truth)
    assert reached < squared_error(from_truth.parameters[0], truth)
    assert reached < 0.9 * squared_error(plain.parameters[0], truth)


def test_incoherent_sources_lose_nothing_in_few_snapshots():
    problem, truth = drawn(3, coherent_share=0.0, n_scenes=600)
    plain = pursuit.multistart(problem, None, 3)
    fitted = refit(problem, None, plain)
    reached = squared_error(fitted.parameters[0], truth)
    assert reached < 1.03 * squared_error(plain.parameters[0], truth)


@pytest.mark.parametrize("coherent_share", [0.0, 1.0])
def test_what_is_not_tried_could_not_have_won(coherent_share):
    problem, _ = drawn(3, coherent_share)
    plain = pursuit.multistart(problem, None, 3)
    best = symbol_misfit(problem, plain)
    for rank in (1, 2):
        fitted = pursuit.multistart(fit_subspace(problem, rank), None, 3)
        best = torch.minimum(best, symbol_misfit(problem, fitted, may_be_independent=False))
    reached = refit(problem, None, plain)
    is_plain = (reached.parameters == plain.parameters).flatten(2).all(-1)
    misfits = [symbol_misfit(problem, reached, may_be_independent=may) for may in (False, True)]
    reached_misfit = torch.where(is_plain, misfits[1], misfits[0])
    assert (reached_misfit <= best + 0.02).float().mean() > 0.98
    assert is_plain.float().mean() > 0.7 if coherent_share == 0 else not is_plain.all()


def test_scenes_may_have_different_numbers_of_sources():
    problem, _ = drawn(3, coherent_share=1.0, n_scenes=12)
    counts = torch.arange(12) % 4
    plain = pursuit.multistart(problem, None, counts)
    fitted = refit(problem, None, plain)
    assert torch.equal(fitted.present.sum(-1)[0], counts)
    for k in (2, 3):
        some = torch.nonzero(counts == k).mT
        alone = refit(problem.take(some), None, pursuit.multistart(problem.take(some), None, k))
        together = fitted.take(some)
        assert torch.allclose(together.parameters[:, :, :k], alone.parameters, atol=1e-4)


def test_sources_of_full_rank_are_left_as_they_are():
    problem, _ = drawn(2, coherent_share=0.0, snr_db=15.0, n_snapshots=50)
    plain = pursuit.multistart(problem, None, 2)
    assert torch.equal(refit(problem, None, plain).parameters, plain.parameters)


def test_without_noise_the_subspace_has_the_same_sources():
    problem, truth = drawn(3, coherent_share=1.0, snr_db=60.0, n_scenes=20)
    fitted = fit_subspace(problem, 1)
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
