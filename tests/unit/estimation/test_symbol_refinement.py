"""Gaussian symbols: powers at their best, steps downhill, and what knowing the law is worth."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from musicnet.coordinates import to_xyz
from musicnet.estimation.found import at_places, nothing, surplus
from musicnet.estimation.linearization import explain
from musicnet.estimation.posterior import Loudness, log_posterior, misfit
from musicnet.estimation.problem import compress
from musicnet.estimation.pursuit import nomp
from musicnet.estimation.refinement import refine
from musicnet.estimation.symbol_likelihood import linearize_symbols
from musicnet.estimation.symbol_powers import likeliest_log_powers, log_power_bounds
from tests.unit.estimation.likelihood_scenes import draw, in_double, surface_scene

SCENE = surface_scene("data", n_sources=3, snr_db=(-5.0, 20.0))
BOUNDS = Loudness.of(SCENE.sources)


def setting(scene=SCENE, n_channels=2, n_scenes=8):
    observation, truth = draw(scene, n_channels, n_scenes)
    problem = compress(in_double(observation), scene.region)
    problem = replace(problem, log_powers=Loudness.of(scene.sources).log_powers)
    return problem, truth.parameters.double(), truth.resolved


def log_power_of(problem, parameters, present):
    return -explain(problem, parameters, present).load.log()


def test_powers_are_where_the_likelihood_is_flat_or_at_their_bounds():
    problem, parameters, present = setting(n_scenes=32)
    log_power = log_power_of(problem, parameters, present)
    low, high = log_power_bounds(problem)
    assert (low - 1e-9 <= log_power).all()
    assert (log_power <= high + 1e-9).all()
    around = linearize_symbols(problem, parameters, present, log_power)
    deviation = around.power_information.diagonal(dim1=-2, dim2=-1).sqrt()
    inside = (log_power > low + 1e-6) & (log_power < high - 1e-6)
    assert inside.float().mean() > 0.9
    # in standard deviations of the power
    slope = (around.power_gradient / deviation).abs()[inside]
    assert slope.median() < 1e-2
    assert slope.max() < 0.5
    assert (around.power_gradient[log_power <= low + 1e-6] > 0).all()


def test_powers_are_those_that_were_drawn():
    problem, parameters, present = setting(n_channels=4, n_scenes=32)
    log_power = log_power_of(problem, parameters, present)
    explained = explain(problem, parameters, present)
    loudness = explained.amplitudes.abs().square().mean((2, 4)).log()
    loud = log_power > 3.0
    # 10 symbols each: a third of a neper
    assert (log_power - loudness)[loud].abs().median() < 0.05


def test_a_problem_without_bounds_has_no_powers():
    problem, parameters, present = setting()
    free = replace(problem, log_powers=None)
    gram = torch.eye(3, dtype=torch.complex128).expand(2, 8, 10, 3, 3)
    with pytest.raises(ValueError, match="got log_powers=None"):
        likeliest_log_powers(free, gram, gram, present)
    assert (explain(free, parameters, present).load == 0).all()


def test_every_step_lowers_the_cost_or_is_not_taken():
    problem, parameters, present = setting()
    start = problem.region.clamp(parameters + 0.03)
    costs = [refine(problem, start, present, n).cost for n in range(6)]
    for before, after in pairwise(costs):
        assert (after <= before).all()
    assert (costs[-1] < costs[0]).all()
    torch.testing.assert_close(costs[0], at_places(problem, start, present).cost)


def test_refinement_ends_where_the_gradient_is_flat_inside_the_region():
    problem, parameters, present = setting(surface_scene("data", snr_db=(10.0, 20.0)))
    refined = refine(problem, parameters, present, 40)
    low, high = problem.box.unbind(0)
    inside = (refined.parameters > low) & (refined.parameters < high)
    log_power = log_power_of(problem, refined.parameters, present)
    around = linearize_symbols(problem, refined.parameters, present, log_power)
    curvature = around.curvature.diagonal(dim1=-2, dim2=-1)
    slope = (around.gradient.abs() / curvature.sqrt()).unflatten(-1, (3, -1)).mT
    assert inside.any()
    # powers of a fixed point are not quite where refinement left them
    assert slope[inside].max() < 0.05


def test_slots_without_a_source_are_left_alone():
    problem, parameters, present = setting()
    absent = present.clone()
    absent[:, :, 1] = False
    refined = refine(problem, parameters, absent, 4)
    torch.testing.assert_close(refined.parameters[:, :, 1], parameters[:, :, 1])
    others = [0, 2]
    alone = refine(problem, parameters[:, :, others], present[:, :, others], 4)
    torch.testing.assert_close(refined.parameters[:, :, others], alone.parameters)
    torch.testing.assert_close(refined.cost, alone.cost)


def test_no_source_costs_what_was_heard():
    problem, parameters, present = setting()
    power = problem.y.abs().square().sum((2, 3, 4))
    torch.testing.assert_close(nothing(problem).cost, power)
    absent = torch.zeros_like(present)
    torch.testing.assert_close(at_places(problem, parameters, absent).cost, power)


def test_a_scene_that_is_not_finite_harms_no_other():
    problem, parameters, present = setting()
    spoilt = problem.y.clone()
    spoilt[1, 3] = torch.nan
    whole = refine(problem, parameters, present, 4)
    harmed = refine(replace(problem, y=spoilt), parameters, present, 4)
    others = torch.ones_like(present[..., 0])
    others[1, 3] = False
    torch.testing.assert_close(harmed.parameters[others], whole.parameters[others])


def test_what_is_left_at_the_truth_is_noise():
    problem, parameters, present = setting(n_channels=4, n_scenes=32)
    left = surplus(problem, at_places(problem, parameters, present))
    assert left.mean().abs() < 0.3
    assert (left.abs() < 4.0).all()


def test_the_law_of_symbols_makes_faint_sources_surer():
    """Refined from the truth, errors are smaller than with an amplitude free in every code."""
    scene = surface_scene("data", n_sources=4, snr_db=(4.0, 6.0))
    problem, parameters, present = setting(scene, n_channels=4, n_scenes=16)
    errors = []
    for one in (problem, replace(problem, log_powers=None)):
        refined = refine(one, parameters, present, 20)
        errors.append((to_xyz(refined.parameters) - to_xyz(parameters)).norm(dim=-1).median())
    assert errors[0] < 0.9 * errors[1]


def test_the_misfit_is_the_cost_in_units_of_the_noise():
    problem, parameters, present = setting()
    found = at_places(problem, parameters, present)
    torch.testing.assert_close(misfit(problem, found, BOUNDS), found.cost / problem.noise_power)


def test_the_right_number_of_sources_is_the_most_probable():
    scene = surface_scene("data", n_sources=2, snr_db=(5.0, 20.0))
    problem, _, _ = setting(scene, n_channels=2, n_scenes=16)
    bounds = Loudness.of(scene.sources)
    probable = [log_posterior(problem, nothing(problem), bounds)]
    probable += [log_posterior(problem, nomp(problem, None, k), bounds) for k in (1, 2, 3)]
    assert (torch.stack(probable).argmax(0) == 2).float().mean() > 0.9
