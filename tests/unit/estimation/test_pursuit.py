from dataclasses import replace

import pytest
import torch

from musicnet.estimation import redetection
from musicnet.estimation.dictionary import Dictionary, adapted_grid
from musicnet.estimation.found import Found
from musicnet.estimation.problem import compress
from musicnet.estimation.pursuit import multistart, nomp, omp
from musicnet.estimation.redetection import redetect
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion
from musicnet.scene.steering import steering
from tests.unit.estimation.likelihood_scenes import (
    SCENES,
    draw,
    in_double,
    line_scene,
    surface_scene,
)

ALL_SCENES = pytest.mark.parametrize("name", SCENES)
SEARCHES = pytest.mark.parametrize("search", [nomp, multistart])


def in_order(parameters):
    """Sources by their u, so that sets can be compared."""
    order = parameters[..., :1].argsort(dim=-2).expand_as(parameters)
    return parameters.gather(-2, order)


def apart(parameters, least=0.3):
    u = parameters[..., 0]
    gaps = (u[..., :, None] - u[..., None, :]).abs() + 9.0 * torch.eye(u.shape[-1])
    return gaps.flatten(-2).amin(-1) > least


@ALL_SCENES
@SEARCHES
def test_sources_are_found_next_to_where_they_are(name, search):
    scene = SCENES[name]
    observation, truth = draw(scene, n_scenes=16)
    observation = replace(observation, y=observation.y * 100.0, noise_power=1e4 * truth.u[..., 0])
    problem = compress(observation, scene.region)
    found = search(problem, None, truth.n_sources).sources(problem)
    resolvable = apart(truth.parameters)
    error = (in_order(found.parameters) - in_order(truth.parameters)).abs()[resolvable]
    assert resolvable.sum() >= 8
    assert error[..., 0].max() < 0.06


def test_as_many_sources_are_found_as_asked_scene_by_scene():
    scene = surface_scene(n_sources=3, n_min=1)
    observation, truth = draw(scene, n_scenes=16)
    assert truth.n_sources.unique().numel() > 1
    problem = compress(observation, scene.region)
    found = nomp(problem, None, truth.n_sources).sources(problem)
    assert torch.equal(found.n_sources, truth.n_sources)
    assert torch.equal(found.parameters.isnan().any(-1), ~found.resolved)


def test_no_sources_may_be_asked_for():
    scene = SCENES["surface, pilots"]
    problem = compress(draw(scene)[0], scene.region)
    assert nomp(problem, None, 0).sources(problem).parameters.shape == (2, 4, 0, 3)


def test_as_many_sources_as_rows_are_refused():
    scene = SCENES["far line"]
    problem = compress(draw(scene)[0], scene.region)
    with pytest.raises(ValueError, match="got n_sources from 10 to 10 with 10 rows"):
        nomp(problem, None, 10)


@SEARCHES
def test_the_order_of_the_true_sources_does_not_matter(search):
    scene = surface_scene(n_sources=3)
    heard, truth = draw(scene, n_scenes=8)
    amplitudes = torch.randn(2, 8, 3, dtype=torch.complex64, generator=torch.Generator()) * 5
    noise = torch.randn(heard.y.shape, dtype=torch.complex64, generator=torch.Generator())

    def found_with(order):
        field = steering(heard.positions, truth.parameters[:, :, order], heard.wavelength)
        field = (amplitudes[:, :, order, None] * field).sum(-2)
        y = (heard.operator @ field.mT[:, None]).mT.transpose(1, 2) + noise
        problem = compress(replace(heard, y=y.contiguous()), scene.region)
        return in_order(search(problem, None, 3).parameters)

    torch.testing.assert_close(found_with([0, 1, 2]), found_with([2, 0, 1]), atol=2e-3, rtol=0.0)


@ALL_SCENES
@SEARCHES
def test_nothing_is_found_outside_the_region(name, search):
    scene = SCENES[name]
    observation, truth = draw(scene, n_scenes=16)
    noise = torch.randn(observation.y.shape, dtype=torch.complex64, generator=torch.Generator())
    problem = compress(replace(observation, y=noise), scene.region)
    found = search(problem, None, truth.n_sources).sources(problem)
    low, high = problem.box.unbind(0)
    assert found.resolved.all()
    assert (found.parameters >= low).all()
    assert (found.parameters <= high).all()


@ALL_SCENES
@SEARCHES
def test_a_scene_that_is_not_finite_harms_only_itself(name, search):
    scene = SCENES[name]
    observation, truth = draw(scene)
    spoilt = observation.y.clone()
    spoilt[0, 1, 0, 0] = torch.nan
    spoilt[1, 2] = torch.inf
    bad = torch.zeros(2, 4, dtype=torch.bool)
    bad[0, 1] = bad[1, 2] = True
    problem = compress(observation, scene.region)
    clean = search(problem, None, truth.n_sources).sources(problem)
    problem = compress(replace(observation, y=spoilt), scene.region)
    found = search(problem, None, truth.n_sources).sources(problem)
    assert not found.resolved[bad].any()
    assert found.parameters[bad].isnan().all()
    assert found.resolved[~bad].all()
    torch.testing.assert_close(found.parameters[~bad], clean.parameters[~bad], atol=1e-4, rtol=0.0)


@ALL_SCENES
@SEARCHES
def test_what_is_found_does_not_depend_on_the_rest_of_the_batch(name, search):
    scene = SCENES[name]
    observation, truth = draw(scene, n_scenes=6)
    problem = compress(observation, scene.region)
    together = search(problem, None, truth.n_sources).sources(problem)

    def alone(y, operator, noise_power):
        single = Observation(y, operator, noise_power, observation.positions, scene.wavelength_m)
        problem = compress(single, scene.region)
        return search(problem, None, 2).sources(problem)

    for c, s in ((0, 0), (1, 5)):
        operator, noise = observation.operator[c], observation.noise_power[c]
        no_batch = alone(observation.y[c, s], operator, noise[s])
        batch_of_one = alone(observation.y[c, s : s + 1], operator, noise[s : s + 1])
        assert no_batch.parameters.shape == (2, 3)
        expected = in_order(together.parameters[c, s])
        torch.testing.assert_close(in_order(no_batch.parameters), expected, atol=2e-3, rtol=0.0)
        one = in_order(batch_of_one.parameters[0])
        torch.testing.assert_close(one, expected, atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_redetection_repairs_whichever_source_is_wrong(slot):
    scene = surface_scene(n_sources=3, snr_db=(20.0, 20.0))
    observation, truth = draw(scene, n_channels=1, n_scenes=64)
    some = apart(truth.parameters, 0.25)[0]
    observation = replace(
        observation, y=observation.y[:, some], noise_power=observation.noise_power[:, some]
    )
    parameters, present = truth.parameters[:, some], truth.resolved[:, some]
    problem = compress(observation, scene.region)
    wrong = parameters.clone()
    wrong[:, :, slot, 1] = -wrong[:, :, slot, 1]
    start = Found(wrong, present, torch.full(present.shape[:2], 1e9))
    everywhere = torch.ones(present.shape[:2], dtype=torch.bool)
    found = redetect(problem, Dictionary.over(problem), start, everywhere, n_starts=2)
    error = (found.parameters[:, :, slot, :2] - parameters[:, :, slot, :2]).abs().amax(-1)
    assert some.sum() >= 10
    assert (error < 0.03).float().mean() > 0.9
    kept = [k for k in range(3) if k != slot]
    moved = (found.parameters[:, :, kept, :2] - parameters[:, :, kept, :2]).abs().amax((-2, -1))
    assert (moved < 0.05).float().mean() > 0.9


def test_a_round_of_redetection_takes_every_source_out_once(monkeypatch):
    scene = surface_scene(n_sources=3)
    observation, truth = draw(scene, n_channels=1, n_scenes=2)
    problem = compress(observation, scene.region)
    left_in = []
    explain = redetection.explain

    def recording(problem, parameters, present):
        left_in.append(present.clone())
        return explain(problem, parameters, present)

    monkeypatch.setattr(redetection, "explain", recording)
    start = Found(truth.parameters, truth.resolved, torch.zeros(1, 2))
    everywhere = torch.ones(1, 2, dtype=torch.bool)
    redetect(problem, Dictionary.over(problem), start, everywhere, n_starts=2)
    (masks,) = left_in
    assert masks[0].tolist() == (~torch.eye(3, dtype=torch.bool)).repeat(2, 1).tolist()


def test_redetection_leaves_scenes_alone_that_are_not_wanted():
    scene = surface_scene(n_sources=2)
    observation, truth = draw(scene, n_scenes=6)
    problem = compress(observation, scene.region)
    wrong = truth.parameters.clone()
    wrong[..., 0] = 0.0
    start = Found(wrong, truth.resolved, torch.full((2, 6), 1e9))
    wanted = torch.zeros(2, 6, dtype=torch.bool)
    wanted[0, 1] = wanted[0, 4] = wanted[1, 3] = True
    found = redetect(problem, Dictionary.over(problem), start, wanted, n_starts=2)
    assert torch.equal(found.parameters[~wanted], wrong[~wanted])
    assert (found.cost[wanted] < 1e9).all()


def test_matching_pursuit_stays_on_the_grid():
    scene = SCENES["near line"]
    observation, truth = draw(scene)
    problem = compress(observation, scene.region)
    grid = adapted_grid(problem)
    found = omp(problem, grid, truth.n_sources)
    index = grid.coordinates(found.parameters)
    torch.testing.assert_close(index, index.round(), atol=1e-3, rtol=0.0)


def test_the_grid_is_fine_enough_for_the_aperture():
    # seven cells in a beam's null-to-null width would be waste, two would miss sources
    for scene, n_elements in ((line_scene(), 10), (surface_scene(), 6)):
        problem = compress(draw(scene)[0], scene.region)
        step_v, step_u, _ = adapted_grid(problem).steps
        null = 2.0 / n_elements
        assert null / 3.5 < step_u < null / 1.6
        assert step_v < null / 1.6


@pytest.mark.parametrize("name", ["far line", "surface, pilots"])
def test_double_precision_is_searched_like_single(name):
    scene = SCENES[name]
    observation, _ = draw(scene)
    single, double = (
        nomp(problem, None, 2).sources(problem).parameters
        for problem in (
            compress(heard, scene.region) for heard in (observation, in_double(observation))
        )
    )
    assert double.dtype == torch.float64
    torch.testing.assert_close(in_order(single).double(), in_order(double), atol=1e-3, rtol=1e-2)


def corner_scene(deviation):
    """One far source each, all over a sector whose corner lies on the unit circle."""
    generator = torch.Generator().manual_seed(3)
    positions = ArrayGeometry(4, 4).positions(1.0)
    positions = positions + deviation * torch.randn(16, 3, generator=generator)
    azimuth, elevation = torch.rand(2, 200, generator=generator)
    azimuth, elevation = (2.0 * azimuth - 1.0) * 1.0472, 0.2 + 0.32 * elevation
    truth = torch.stack((azimuth.sin() * elevation.cos(), elevation.sin(), 0.0 * azimuth), dim=-1)[
        :, None
    ]
    symbols, noise = (
        torch.randn(200, 20, n, dtype=torch.complex64, generator=generator) for n in (1, 16)
    )
    y = symbols @ steering(positions, truth, 1.0) + 0.1 * noise
    power = torch.full((200,), 0.01)
    heard = Observation(y, torch.eye(16, dtype=y.dtype)[None], power, positions, 1.0)
    return heard, truth


@SEARCHES
def test_elements_off_the_plane_do_not_hold_a_search_at_the_edge_of_the_disc(search):
    heard, truth = corner_scene(0.02)
    region = SearchRegion.from_angles((-60.0, 60.0), (-30.0, 30.0), None)
    problem = compress(heard, region)
    found = search(problem, None, 1).sources(problem).parameters
    assert ((found - truth)[..., :2].norm(dim=-1) < 0.05).all()


@pytest.mark.parametrize("deviation", [0.0, 0.02])
def test_what_is_found_lies_in_the_unit_disc(deviation):
    heard, _ = corner_scene(deviation)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(heard.y.shape, dtype=torch.complex64, generator=generator)
    problem = compress(replace(heard, y=noise), SearchRegion((-1.0, 1.0), (-1.0, 1.0), (0.0, 0.0)))
    found = nomp(problem, None, 2).sources(problem).parameters
    assert found[..., :2].norm(dim=-1).max() <= 1.0
