from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from musicnet.coordinates import to_xyz
from musicnet.estimation.bounds import deterministic_bound, position_bound
from musicnet.estimation.linearization import linearize
from musicnet.estimation.problem import compress
from musicnet.estimation.refinement import refine
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface
from tests.unit.estimation.likelihood_scenes import SCENES, draw, in_double, surface_scene

ALL_SCENES = pytest.mark.parametrize("name", SCENES)


def setting(name, n_scenes=4):
    scene = SCENES[name]
    observation, truth = draw(scene, n_scenes=n_scenes)
    problem = compress(observation, scene.region)
    return problem, problem.flatten(truth.parameters), problem.flatten(truth.resolved)


@ALL_SCENES
def test_every_step_lowers_the_cost_or_is_not_taken(name):
    problem, parameters, present = setting(name)
    start = problem.region.clamp(parameters + 0.03)
    costs = [refine(problem, start, present, n).cost for n in range(6)]
    for before, after in pairwise(costs):
        assert (after <= before).all()
    assert (costs[-1] < costs[0]).all()


@ALL_SCENES
def test_refinement_ends_where_the_gradient_is_flat_inside_the_region(name):
    scene = SCENES[name]
    observation, truth = draw(scene)
    problem = compress(in_double(observation), scene.region)
    present = problem.flatten(truth.resolved)
    start = problem.flatten(truth.parameters.double())
    refined = refine(problem, start, present, 30)
    low, high = problem.box.unbind(0)
    active = list(problem.active)
    inside = ((refined.parameters > low) & (refined.parameters < high))[..., active]
    around = linearize(problem, refined.parameters, present)
    gradient = around.gradient.unflatten(-1, (len(active), -1)).mT
    curvature = around.curvature.diagonal(dim1=-2, dim2=-1).unflatten(-1, (len(active), -1)).mT
    # in units of the noise's own standard deviation of the estimate
    slope = gradient.abs() / curvature.sqrt()
    assert inside.any()
    assert slope[inside].max() < 1e-4


def test_a_coordinate_at_the_edge_is_held_while_the_others_move():
    scene = surface_scene(n_sources=1, snr_db=(20.0, 20.0))
    observation, truth = draw(scene)
    # the true range lies outside: rho runs into its lower edge
    edge = float(truth.parameters[..., 2].max()) + 0.2
    region = replace(scene.region, inverse_range=(edge, edge + 1.0))
    problem = compress(observation, region)
    start = region.clamp(truth.parameters + 0.02)
    refined = refine(problem, start, truth.resolved, 30)
    assert (refined.parameters[..., 2] == torch.tensor(edge)).all()
    around = linearize(problem, refined.parameters, truth.resolved)
    slope = around.gradient / around.curvature.diagonal(dim1=-2, dim2=-1).sqrt()
    assert slope[..., :2].abs().max() < 0.05  # u and v have found their best
    assert (slope[..., 2] > 0.05).all()


def test_slots_without_a_source_are_left_alone():
    problem, parameters, present = setting("surface, pilots")
    absent = present.clone()
    absent[:, :, 1] = False
    refined = refine(problem, parameters, absent, 4)
    torch.testing.assert_close(refined.parameters[:, :, 1], parameters[:, :, 1])
    alone = refine(problem, parameters[:, :, :1], present[:, :, :1], 4)
    torch.testing.assert_close(refined.parameters[:, :, :1], alone.parameters, atol=2e-4, rtol=0.0)
    torch.testing.assert_close(refined.cost, alone.cost, rtol=1e-4, atol=0.0)


@ALL_SCENES
def test_two_sources_in_one_place_stay_finite(name):
    problem, parameters, present = setting(name)
    parameters = parameters.clone()
    parameters[:, :, 1] = parameters[:, :, 0]
    refined = refine(problem, parameters, present, 5)
    assert refined.parameters.isfinite().all()
    assert refined.cost.isfinite().all()


def test_errors_of_a_single_source_are_what_the_bound_says():
    scene = Scene(
        ArrayGeometry(8, 8),
        SourceLaw(1, 1, range_m=(1.0, 5.0), snr_db=(10.0, 10.0)),
        surface=Surface(),
    )
    # a wider box, so that no estimate is cut off at its edge
    region = replace(scene.region, inverse_range=(0.02, 3.0), u=(-0.95, 0.95), v=(-0.7, 0.7))
    observation, truth = draw(scene, n_channels=25, n_scenes=32)
    problem = compress(observation, region)
    refined = refine(problem, truth.parameters, truth.resolved, 12)
    bound = deterministic_bound(
        observation.operator[:, None],
        observation.positions,
        observation.wavelength,
        truth.parameters,
        torch.polar(torch.tensor(10.0**0.5), torch.tensor(0.0)).expand(25, 32, 1, 1),
        observation.noise_power,
    )
    error = (refined.parameters - truth.parameters).double()[..., 0, :, None]
    nees = (error.mT @ torch.linalg.solve(bound[:, :, 0], error)).mean() / 3
    assert 0.9 < nees < 1.1
    placed = to_xyz(refined.parameters.double()) - to_xyz(truth.parameters.double())
    expected = position_bound(truth.parameters.double(), bound).diagonal(dim1=-2, dim2=-1)
    ratio = (placed.square().sum(-1).mean() / expected.sum(-1).mean()).sqrt()
    assert 0.9 < ratio < 1.1
