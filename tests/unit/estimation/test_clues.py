"""Clues: finite, blind to what does not matter, and telling where an answer is wrong."""

import torch

from musicnet.estimation.clues import N_CLUES, gather_clues
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import compress
from tests.unit.estimation.likelihood_scenes import draw, surface_scene

SCENE = surface_scene(n_sources=3, n_min=1)


def problem_and_truth(seed=0):
    observation, truth = draw(SCENE, n_scenes=8, seed=seed)
    problem = compress(observation, SCENE.region)
    parameters = torch.where(truth.resolved[..., None], truth.parameters, problem.box.mean(0))
    return problem, answer(problem, parameters, truth.resolved)


def answer(problem, parameters, present):
    return Found(parameters, present, explain(problem, parameters, present).cost)


def test_clues_are_finite_and_nothing_in_empty_slots():
    problem, found = problem_and_truth()
    clues = gather_clues(problem, Dictionary.over(problem), found)
    assert clues.of_sources.shape == (2, 8, 3, N_CLUES)
    assert clues.of_sources.isfinite().all()
    assert clues.log_distance.isfinite().all()
    assert (~found.present).any()
    assert (clues.of_sources[~found.present] == 0).all()


def test_clues_do_not_depend_on_the_unit_of_power():
    problem, found = problem_and_truth()
    observation, _ = draw(SCENE, n_scenes=8)
    louder = type(observation)(
        observation.y * 8.0,
        observation.operator,
        observation.noise_power * 64.0,
        observation.positions,
        observation.wavelength,
    )
    loud = compress(louder, SCENE.region)
    same = answer(loud, found.parameters, found.present)
    one = gather_clues(problem, Dictionary.over(problem), found)
    other = gather_clues(loud, Dictionary.over(loud), same)
    torch.testing.assert_close(one.of_sources, other.of_sources, atol=1e-3, rtol=1e-3)


def test_clues_follow_their_sources():
    problem, found = problem_and_truth()
    order = torch.tensor([2, 0, 1]).expand(2, 8, 3)
    dictionary = Dictionary.over(problem)
    one = gather_clues(problem, dictionary, found).of_sources
    other = gather_clues(problem, dictionary, found.in_order(order)).of_sources
    torch.testing.assert_close(one[:, :, [2, 0, 1]], other, atol=1e-3, rtol=1e-3)


def test_a_source_in_the_wrong_place_gives_itself_away():
    problem, found = problem_and_truth()
    moved = found.parameters.clone()
    moved[:, :, 0, 0] = torch.where(moved[:, :, 0, 0] > 0, -0.8, 0.8)
    wrong = answer(problem, moved, found.present)
    dictionary = Dictionary.over(problem)
    right = gather_clues(problem, dictionary, found).of_sources
    spoilt = gather_clues(problem, dictionary, wrong).of_sources
    surplus, elsewhere = 0, 3  # in the order of the table
    assert (spoilt[:, :, 0, surplus] > right[:, :, 0, surplus]).all()
    assert (spoilt[:, :, 0, elsewhere] > right[:, :, 0, elsewhere]).float().mean() > 0.9
