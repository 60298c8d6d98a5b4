"""Clues: finite, blind to what does not matter, and telling where an answer is wrong."""

from dataclasses import replace

import pytest
import torch

from musicnet.estimation.clues import N_CLUES, gather_clues
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import at_places
from musicnet.estimation.posterior import Loudness
from musicnet.estimation.problem import compress
from tests.unit.estimation.likelihood_scenes import draw, surface_scene

SCENES = {
    symbols: surface_scene(symbols, n_sources=3, snr_db=(5.0, 20.0), n_min=1)
    for symbols in ("pilot", "data")
}
EITHER = pytest.mark.parametrize("symbols", SCENES)


def problem_of(observation, symbols):
    scene = SCENES[symbols]
    problem = compress(observation, scene.region)
    log_powers = Loudness.of(scene.sources).log_powers if symbols == "data" else None
    return replace(problem, log_powers=log_powers)


def problem_and_truth(symbols, seed=0):
    observation, truth = draw(SCENES[symbols], n_scenes=8, seed=seed)
    problem = problem_of(observation, symbols)
    parameters = torch.where(truth.resolved[..., None], truth.parameters, problem.box.mean(0))
    return problem, at_places(problem, parameters, truth.resolved)


@EITHER
def test_clues_are_finite_and_nothing_in_empty_slots(symbols):
    problem, found = problem_and_truth(symbols)
    clues = gather_clues(problem, Dictionary.over(problem), found)
    assert clues.of_sources.shape == (2, 8, 3, N_CLUES)
    assert clues.of_sources.isfinite().all()
    assert clues.log_distance.isfinite().all()
    assert (~found.present).any()
    assert (clues.of_sources[~found.present] == 0).all()


@EITHER
def test_clues_do_not_depend_on_the_unit_of_power(symbols):
    problem, found = problem_and_truth(symbols)
    observation, _ = draw(SCENES[symbols], n_scenes=8)
    louder = replace(observation, y=observation.y * 8.0, noise_power=observation.noise_power * 64.0)
    loud = problem_of(louder, symbols)
    same = at_places(loud, found.parameters, found.present)
    one = gather_clues(problem, Dictionary.over(problem), found)
    other = gather_clues(loud, Dictionary.over(loud), same)
    torch.testing.assert_close(one.of_sources, other.of_sources, atol=1e-3, rtol=1e-3)


@EITHER
def test_clues_follow_their_sources(symbols):
    problem, found = problem_and_truth(symbols)
    order = torch.tensor([2, 0, 1]).expand(2, 8, 3)
    dictionary = Dictionary.over(problem)
    one = gather_clues(problem, dictionary, found).of_sources
    other = gather_clues(problem, dictionary, found.in_order(order)).of_sources
    torch.testing.assert_close(one[:, :, [2, 0, 1]], other, atol=1e-3, rtol=1e-3)


def test_symbols_say_what_an_answer_is_likelier_by():
    """Noise alone explains by n numbers as much as n: from there on it counts, and not linearly."""
    problem, found = problem_and_truth("data")
    silent = replace(problem, y=torch.zeros_like(problem.y))
    nobody = at_places(silent, found.parameters, found.present)
    quiet = gather_clues(silent, Dictionary.over(silent), nobody).of_sources
    heard = gather_clues(problem, Dictionary.over(problem), found).of_sources
    own, modulus = 2, 5  # in the order of the table
    assert (heard[..., own] > quiet[..., own] + 1.0)[found.present].all()
    # as faint as the law allows
    low, _ = Loudness.of(SCENES["data"].sources).log_powers
    torch.testing.assert_close(
        quiet[..., modulus][found.present],
        torch.full_like(quiet[..., modulus][found.present], (0.5 * low - 0.9) / 0.9),
    )


@EITHER
def test_a_source_in_the_wrong_place_gives_itself_away(symbols):
    problem, found = problem_and_truth(symbols)
    moved = found.parameters.clone()
    moved[:, :, 0, 0] = torch.where(moved[:, :, 0, 0] > 0, -0.8, 0.8)
    wrong = at_places(problem, moved, found.present)
    dictionary = Dictionary.over(problem)
    right = gather_clues(problem, dictionary, found).of_sources
    spoilt = gather_clues(problem, dictionary, wrong).of_sources
    surplus, elsewhere = 0, 3  # in the order of the table
    if symbols == "pilot":  # powers make up for what symbols do not explain
        assert (spoilt[:, :, 0, surplus] > right[:, :, 0, surplus]).all()
    assert (spoilt[:, :, 0, elsewhere] > right[:, :, 0, elsewhere]).float().mean() > 0.9
