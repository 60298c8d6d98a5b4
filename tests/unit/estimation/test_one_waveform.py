"""Sources of one waveform: the cost by hand, its slope by differences, and exact recovery."""

from dataclasses import replace

import pytest
import torch

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.one_waveform import find_together, linearize_together
from musicnet.estimation.problem import compress
from musicnet.estimation.signatures import signatures
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw

N_SCENES = 40


def alike_scene(n_sources=3, snr_db=20.0):
    places = tuple((0.5 * n, 0.0, 0.0) for n in range(8))
    law = SourceLaw(
        n_sources,
        n_sources,
        elevation_deg=(0.0, 0.0),
        range_m=None,
        snr_db=(snr_db, snr_db),
        phase_deg=(0.0, 0.0),
        min_separation_deg=15.0,
    )
    array = ArrayGeometry(kind="positions", places_wavelengths=places)
    return Scene(array, law, n_snapshots=50, symbols="data", coherent_share=1.0)


def drawn(scene):
    observation, truth = draw_block(scene, block_generator(0, "alike", 0, 0), N_SCENES)
    problem = compress(observation, scene.region)
    exact = replace(problem, y=problem.y.to(torch.complex128), positions=problem.positions.double())
    return exact, truth


def test_the_cost_is_what_one_amplitude_for_all_leaves():
    problem, truth = drawn(alike_scene())
    parameters = truth.parameters[None].double()
    around = linearize_together(problem, parameters, truth.resolved[None])
    together = signatures(problem, parameters, truth.resolved[None]).sum(-2)[:, :, 0]
    y = problem.y[:, :, 0]
    projector = together[..., :, None] * together[..., None, :].conj()
    projector = projector / projector.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    left = y - (projector @ y.mT).mT
    wanted = left.abs().square().sum((-2, -1))
    torch.testing.assert_close(around.cost, wanted)


def test_the_slope_is_that_of_the_cost():
    problem, truth = drawn(alike_scene())
    present = truth.resolved[None]
    parameters = truth.parameters[None].double() + torch.tensor([0.02, 0.0, 0.0])
    around = linearize_together(problem, parameters, present)
    for slot in range(3):
        step = torch.zeros_like(parameters)
        step[..., slot, 0] = 1e-6
        costs = [
            linearize_together(problem, parameters + sign * step, present).cost for sign in (1, -1)
        ]
        slope = (costs[0] - costs[1]) / 2e-6
        torch.testing.assert_close(around.gradient[..., slot], slope, rtol=1e-4, atol=1e-2)


def test_empty_slots_change_nothing():
    problem, truth = drawn(alike_scene())
    parameters, present = truth.parameters[None].double(), truth.resolved[None].clone()
    present[..., 2] = False
    around = linearize_together(problem, parameters, present)
    fewer = linearize_together(problem, parameters[..., :2, :], present[..., :2])
    torch.testing.assert_close(around.cost, fewer.cost)
    assert float(around.gradient[..., 2].abs().max()) == 0.0


@pytest.mark.parametrize("n_sources", [1, 2, 5])
def test_loud_sources_are_found_far_below_the_width_of_a_beam(n_sources):
    problem, truth = drawn(alike_scene(n_sources))
    counts = torch.full((1, N_SCENES), n_sources)
    found = find_together(problem, Dictionary.over(problem, None), counts)
    u, wanted = (one[..., 0].sort(-1).values for one in (found.parameters[0], truth.parameters))
    error = (u - wanted).abs().amax(-1)
    assert float((error < 0.02).double().mean()) >= 0.95
