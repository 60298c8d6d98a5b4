"""Answers side by side: one order, the spread of the bound, no harm from bad scenes."""

import pytest
import torch

from musicnet.estimation.answers import N_ANSWER_CLUES, Answer, compare
from musicnet.estimation.bounds import deterministic_bound
from musicnet.estimation.found import Found
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import compress
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_known_blocks
from musicnet.scene.sources import SourceLaw

N_SCENES = 6


@pytest.fixture(params=[None, (8.0, 48.0)], ids=["far", "near"])
def heard(request):
    law = SourceLaw(
        n_min=2,
        n_max=2,
        elevation_deg=(0.0, 0.0),
        range_m=request.param,
        snr_db=(30.0, 30.0),
        min_separation_deg=10.0,
    )
    scene = Scene(ArrayGeometry(15), law, wavelength_m=1.0, n_snapshots=40, symbols="data")
    return scene, draw_known_blocks(scene, [0], N_SCENES, "cpu", 0, "test", 0)


def answer_at(problem, parameters, rank=0):
    present = torch.ones(parameters.shape[:-1], dtype=torch.bool)
    cost = explain(problem, parameters, present).cost
    return Answer(Found(parameters, present, cost), rank, torch.ones_like(cost, dtype=torch.bool))


def test_all_answers_list_sources_by_rising_u(heard):
    scene, known = heard
    problem = compress(known.observation, scene.region)
    truth = known.truth.parameters
    answers = compare(problem, [answer_at(problem, truth), answer_at(problem, truth.flip(2))])
    u = answers.parameters[..., 0]
    assert bool((u[..., 1] > u[..., 0]).all())
    torch.testing.assert_close(answers.parameters[:, :, 0], answers.parameters[:, :, 1])
    # what is left of strong dimensions is a difference of large numbers in single precision
    torch.testing.assert_close(answers.clues[:, :, 0], answers.clues[:, :, 1], atol=0.05, rtol=0)
    assert answers.clues.shape[-1] == N_ANSWER_CLUES


def test_the_spread_at_the_truth_is_that_of_the_bound(heard):
    scene, known = heard
    observation, truth = known.observation, known.truth.parameters
    problem = compress(observation, scene.region)
    order = truth[..., 0].argsort(-1)
    spread = compare(problem, [answer_at(problem, truth)]).spread[:, :, 0]
    bound = deterministic_bound(
        observation.operator[:, None],
        observation.positions,
        scene.wavelength_m,
        truth,
        known.amplitudes,
        observation.noise_power,
        scene.active,
    )
    variance = bound.diagonal(dim1=-2, dim2=-1).take_along_dim(order[..., None], dim=-2)
    expected = variance.nan_to_num().sqrt().float()
    # amplitudes are estimated, and a thousandth is added to the information
    torch.testing.assert_close(spread, expected, rtol=0.1, atol=1e-7)


def test_the_best_answer_has_no_misfit_and_missing_ones_do_not_count(heard):
    scene, known = heard
    problem = compress(known.observation, scene.region)
    right = answer_at(problem, known.truth.parameters)
    elsewhere = known.truth.parameters.clone()
    elsewhere[..., 0] += 0.05
    wrong = answer_at(problem, elsewhere)
    missing = Answer(right.found, 1, torch.zeros_like(right.is_there))
    answers = compare(problem, [wrong, right, missing])
    assert bool((answers.misfit[:, :, 1] == 0).all())
    assert bool((answers.misfit[:, :, 0] > 1).all())
    assert not bool(answers.is_there[:, :, 2].any())


def test_a_scene_that_is_not_finite_harms_no_other(heard):
    scene, known = heard
    problem = compress(known.observation, scene.region)
    clean = compare(problem, [answer_at(problem, known.truth.parameters)])
    problem.y[0, 2] = torch.nan
    spoilt = compare(problem, [answer_at(problem, known.truth.parameters)])
    others = torch.arange(N_SCENES) != 2
    assert not bool(spoilt.is_there[0, 2].any())
    assert bool(spoilt.is_there[0, others].all())
    torch.testing.assert_close(spoilt.clues[0, others], clean.clues[0, others])
