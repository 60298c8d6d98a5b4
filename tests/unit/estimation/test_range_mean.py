"""Settled ranges against slow integrals, and what settling must never do."""

import math

import pytest
import torch

from musicnet.estimation.bounds import deterministic_bound
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import compress
from musicnet.estimation.range_mean import settle_ranges
from musicnet.estimation.refinement import refine
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw

RANGES = (8.0, 48.0)


def drawn(n_sources, snr_db, n_scenes, coherent_share=0.0, n_snapshots=10, seed=0):
    law = SourceLaw(
        n_min=n_sources,
        n_max=n_sources,
        elevation_deg=(0.0, 0.0),
        range_m=RANGES,
        snr_db=(snr_db, snr_db),
        min_separation_deg=3.5,
    )
    scene = Scene(
        ArrayGeometry(15),
        law,
        wavelength_m=1.0,
        n_snapshots=n_snapshots,
        symbols="data",
        coherent_share=coherent_share,
    )
    observation, truth = draw_block(scene, block_generator(seed, "test", 0, 0), n_scenes)
    return observation, truth, scene.region


def climbed(observation, truth, region):
    """The maximum of the likelihood beside the truth."""
    problem = compress(observation, region)
    present = problem.flatten(truth.resolved)
    places = problem.flatten(truth.parameters).nan_to_num()
    return problem, refine(problem, places, present, 25).parameters, present


def bound_of(problem, observation, parameters, present):
    amplitudes = explain(problem, parameters, present).amplitudes[:, :, 0].mT
    return deterministic_bound(
        observation.operator[None, None],
        observation.positions,
        observation.wavelength,
        parameters.double(),
        amplitudes.to(torch.complex128),
        problem.noise_power.double(),
        problem.region.active,
    )


def settled(observation, truth, region):
    problem, parameters, present = climbed(observation, truth, region)
    covariance = bound_of(problem, observation, parameters, present)
    moved, wider = settle_ranges(problem, parameters, present, covariance, RANGES)
    return problem, parameters, present, covariance, moved, wider


def slow_range(rho, sigma):
    """E[1/r] / E[1/r^2] by a fine sum over all ranges of the law."""
    upper = lower = 0.0
    for i in range(20001):
        distance = RANGES[0] + i * (RANGES[1] - RANGES[0]) / 20000
        weight = math.exp(-0.5 * ((1.0 / distance - rho) / sigma) ** 2)
        upper += weight / distance
        lower += weight / distance**2
    return upper / lower


def test_a_lone_range_is_the_ratio_of_the_means_of_its_posterior():
    problem, parameters, _, covariance, moved, _ = settled(*drawn(1, 3.0, 60))
    low, high = problem.box[:, [0, 2]].unbind(0)
    places = parameters[0, :, 0, [0, 2]]
    inside = ((places > low) & (places < high)).all(-1).nonzero()[:, 0].tolist()
    beside = []
    for scene in inside:
        rho = float(parameters[0, scene, 0, 2])
        sigma = float(covariance[0, scene, 0, 2, 2].sqrt())
        distance, wanted = 1.0 / float(moved[0, scene, 0, 2]), slow_range(rho, sigma)
        beside.append(abs(distance - wanted) / (sigma / rho**2))
    # where the likelihood is no parabola, and falls too far, part of the way only
    assert sorted(beside)[int(0.8 * len(beside))] < 0.03
    assert len(beside) > 40


def test_relative_errors_are_less_than_those_of_the_likeliest_and_of_ranges_scaled():
    observation, truth, region = drawn(1, -3.0, 600)
    *_, parameters, _, _, moved, _ = settled(observation, truth, region)
    wanted = truth.parameters[None, ..., 2]

    def error(rho):
        return float((wanted / rho - 1.0).square().mean())

    best = error(moved[..., 2])
    assert best < 0.75 * error(parameters[..., 2])
    assert best < error(moved[..., 2] * 1.1)
    assert best < error(moved[..., 2] / 1.1)


def test_ranges_known_well_stay():
    _, parameters, _, covariance, moved, wider = settled(*drawn(2, 30.0, 20, n_snapshots=100))
    by = (moved - parameters).abs()[..., [0, 2]]
    deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()[..., [0, 2]]
    assert float((by / deviation).median()) < 0.05
    ratio = (wider / covariance)[..., 2, 2]
    assert float(ratio.median()) == pytest.approx(1.0, abs=0.05)


def test_no_move_costs_more_than_a_quarter_of_a_neper_per_source():
    problem, parameters, present, _, moved, _ = settled(*drawn(3, 0.0, 200, coherent_share=1.0))
    before = explain(problem, parameters, present).cost
    after = explain(problem, moved, present).cost
    assert float(((after - before) / problem.noise_power).max()) < 3 * 0.25 + 0.01
    assert not torch.equal(moved, parameters)


def test_estimates_stay_in_the_region_and_errors_are_finite():
    problem, _, _, _, moved, wider = settled(*drawn(2, -8.0, 200))
    low, high = problem.box.unbind(0)
    assert bool(((moved >= low - 1e-6) & (moved <= high + 1e-6)).all())
    assert bool(wider.isfinite().all())
    assert bool((wider.diagonal(dim1=-2, dim2=-1)[..., [0, 2]] > 0).all())


def test_a_scene_does_not_depend_on_its_batch_and_bad_ones_harm_no_other():
    observation, truth, region = drawn(2, 0.0, 12, coherent_share=0.5)
    problem, parameters, present = climbed(observation, truth, region)
    covariance = bound_of(problem, observation, parameters, present)
    moved, _ = settle_ranges(problem, parameters, present, covariance, RANGES)
    for scene in (0, 7):
        some = torch.tensor([[scene]])
        alone, _ = settle_ranges(
            problem.take(some),
            parameters[:, scene : scene + 1],
            present[:, scene : scene + 1],
            covariance[:, scene : scene + 1],
            RANGES,
        )
        torch.testing.assert_close(alone[0, 0], moved[0, scene], rtol=1e-3, atol=1e-5)
    problem.y[0, 3] = torch.nan
    again, _ = settle_ranges(problem, parameters, present, covariance, RANGES)
    others = torch.arange(12) != 3
    torch.testing.assert_close(again[0, others], moved[0, others], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(again[0, 3], parameters[0, 3])


def test_empty_slots_stay_as_they_are():
    observation, truth, region = drawn(2, 0.0, 6)
    problem, parameters, present = climbed(observation, truth, region)
    covariance = bound_of(problem, observation, parameters, present)
    present = present.clone()
    present[..., 1] = False
    parameters[..., 1, :] = torch.tensor([0.1, 0.0, 0.05])
    moved, wider = settle_ranges(problem, parameters, present, covariance, RANGES)
    assert torch.equal(moved[..., 1, :], parameters[..., 1, :])
    assert torch.equal(wider[..., 1, :, :], covariance[..., 1, :, :])
