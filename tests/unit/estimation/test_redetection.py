"""Re-detection of chosen sources, by a misfit of one's own."""

from functools import partial

import pytest
import torch

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found
from musicnet.estimation.linearization import explain
from musicnet.estimation.posterior import Loudness, misfit
from musicnet.estimation.problem import compress
from musicnet.estimation.redetection import out_sets, redetect
from musicnet.estimation.refinement import refine
from tests.unit.estimation.likelihood_scenes import draw, in_double, line_scene, surface_scene

SCENE = surface_scene(n_sources=3, snr_db=(5.0, 20.0))
MISFIT = partial(misfit, loudness=Loudness.of(SCENE.sources))
SLOTS = 3


def refined_answer(problem, parameters, present, steps=6):
    refined = refine(problem, parameters, present, steps)
    return Found(refined.parameters, present, refined.cost)


@pytest.fixture(scope="module")
def spoilt():
    """A right answer, and one whose first source stands in another place."""
    observation, truth = draw(SCENE, n_channels=2, n_scenes=12)
    problem = compress(observation, SCENE.region)
    right = refined_answer(problem, truth.parameters, truth.resolved)
    moved = right.parameters.clone()
    moved[:, :, 0, 0] = torch.where(moved[:, :, 0, 0] > 0, -0.7, 0.7)
    cost = explain(problem, moved, truth.resolved).cost
    return problem, Dictionary.over(problem), right, Found(moved, truth.resolved, cost)


def everywhere(found):
    return torch.ones_like(found.cost, dtype=torch.bool)


def test_sets_are_all_combinations():
    sets = out_sets(4, 2, torch.device("cpu"))
    assert sets.shape == (6, 2, 4)
    pairs = {tuple(one.int().argmax(-1).tolist()) for one in sets}
    assert pairs == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    assert (sets.sum(-1) == 1).all()
    assert out_sets(1, 2, torch.device("cpu")).shape == (0, 2, 1)


@pytest.mark.parametrize("chosen", [[(0,)], [(0,), (2,)], [(0, 1)]])
def test_only_the_sources_that_are_named_start_anew(spoilt, chosen, monkeypatch):
    problem, dictionary, _, wrong = spoilt
    sets = torch.nn.functional.one_hot(torch.tensor(chosen), SLOTS).bool()
    tried = []

    def watched(problem, parameters, present, n_iterations):
        tried.append(parameters)
        return refine(problem, parameters, present, n_iterations)

    monkeypatch.setattr("musicnet.estimation.redetection.refine", watched)
    redetect(problem, dictionary, wrong, everywhere(wrong), 2, sets=sets)
    (starts,) = tried
    by_scene = starts.reshape(2, 12, len(chosen), 2, SLOTS, 3)  # (..., set, start, source, 3)
    stays = by_scene == wrong.parameters[:, :, None, None]
    for number, slots in enumerate(chosen):
        for slot in range(SLOTS):
            if slot not in slots:
                assert stays[:, :, number, :, slot].all()
        moved = [slot for slot in slots if not stays[:, :, number, :, slot].all()]
        assert moved == list(slots)


def test_the_source_in_the_wrong_place_is_found_again(spoilt):
    problem, dictionary, right, wrong = spoilt
    sets = out_sets(1, 1, torch.device("cpu"))
    sets = torch.nn.functional.pad(sets, (0, SLOTS - 1))
    mended = redetect(problem, dictionary, wrong, everywhere(wrong), 3, sets=sets)
    assert (mended.cost <= wrong.cost).all()
    assert (mended.cost < 1.02 * right.cost).float().mean() > 0.8
    # the wrong source is not among these: nothing can be mended
    others = torch.nn.functional.one_hot(torch.tensor([[1], [2]]), SLOTS).bool()
    helpless = redetect(problem, dictionary, wrong, everywhere(wrong), 3, sets=others)
    assert (helpless.cost > 1.02 * right.cost).float().mean() > 0.5


def test_all_sets_are_what_is_taken_without_a_choice(spoilt):
    problem, dictionary, _, wrong = spoilt
    sets = out_sets(SLOTS, 2, torch.device("cpu"))
    one = redetect(problem, dictionary, wrong, everywhere(wrong), 2, n_out=2)
    other = redetect(problem, dictionary, wrong, everywhere(wrong), 2, sets=sets)
    assert torch.equal(one.parameters, other.parameters)
    assert torch.equal(one.cost, other.cost)


def test_what_is_kept_has_the_lower_misfit(spoilt):
    problem, dictionary, right, wrong = spoilt
    for start in (right, wrong):
        kept = redetect(problem, dictionary, start, everywhere(start), 3, misfit=MISFIT)
        before, after = MISFIT(problem, start), MISFIT(problem, kept)
        assert (after <= before).all()
        untouched = (kept.parameters == start.parameters).flatten(2).all(-1)
        assert (after[~untouched] < before[~untouched] - 0.05 + 1e-3).all()
    assert (after < before - 1.0).float().mean() > 0.9  # of the wrong ones


def test_the_misfit_decides_and_not_the_cost(spoilt):
    """A misfit that likes sources on the right prefers a start there, whatever it costs."""
    problem, dictionary, _, wrong = spoilt

    def on_the_right(_, found):
        return -100.0 * found.parameters[:, :, 0, 0]

    sets = torch.nn.functional.one_hot(torch.tensor([[0]]), SLOTS).bool()
    kept = redetect(
        problem, dictionary, wrong, everywhere(wrong), 3, sets=sets, misfit=on_the_right
    )
    by_cost = redetect(problem, dictionary, wrong, everywhere(wrong), 3, sets=sets)
    assert (kept.parameters[:, :, 0, 0] >= wrong.parameters[:, :, 0, 0]).all()
    assert (kept.parameters[:, :, 0, 0] >= by_cost.parameters[:, :, 0, 0] - 5e-4).all()
    assert (kept.cost > by_cost.cost).any()


def test_a_trial_without_a_misfit_does_not_keep_the_others_from_winning(spoilt):
    problem, dictionary, _, wrong = spoilt

    def undefined_above(value):
        def of(part, found):
            return torch.where(found.parameters[:, :, 0, 1] > 0.1, value, MISFIT(part, found))

        return of

    sets = torch.nn.functional.one_hot(torch.tensor([[0]]), SLOTS).bool()
    arguments = (problem, dictionary, wrong, everywhere(wrong), 3)
    kept = redetect(*arguments, sets=sets, misfit=undefined_above(torch.nan))
    expected = redetect(*arguments, sets=sets, misfit=undefined_above(torch.inf))
    defined = wrong.parameters[:, :, 0, 1] <= 0.1
    improved = (expected.parameters != wrong.parameters).flatten(2).any(-1)
    assert (improved & defined).sum() >= 6
    assert torch.equal(kept.parameters[defined], expected.parameters[defined])


def test_scenes_that_are_not_wanted_stay_bit_by_bit(spoilt):
    problem, dictionary, _, wrong = spoilt
    wanted = torch.arange(24).reshape(2, 12) % 3 == 0
    kept = redetect(problem, dictionary, wrong, wanted, 2, misfit=MISFIT)
    assert torch.equal(kept.parameters[~wanted], wrong.parameters[~wanted])
    assert torch.equal(kept.cost[~wanted], wrong.cost[~wanted])
    assert not torch.equal(kept.parameters[wanted], wrong.parameters[wanted])


def test_empty_slots_are_never_taken_out(spoilt):
    problem, dictionary, right, _ = spoilt
    present = right.present.clone()
    present[:, ::2, 2] = False
    answer = Found(right.parameters, present, explain(problem, right.parameters, present).cost)
    sets = torch.nn.functional.one_hot(torch.tensor([[2]]), SLOTS).bool()
    kept = redetect(problem, dictionary, answer, everywhere(answer), 2, sets=sets, misfit=MISFIT)
    assert torch.equal(kept.present, present)
    assert torch.equal(kept.parameters[:, ::2], answer.parameters[:, ::2])
    assert torch.equal(kept.cost[:, ::2], answer.cost[:, ::2])


@pytest.mark.parametrize("n_out", [1, 2])
@pytest.mark.parametrize("scene", [SCENE, line_scene(n_sources=3)])
def test_scenes_that_share_one_dictionary_start_anew_as_in_their_batch(scene, n_out):
    observation, truth = draw(scene, n_channels=1, n_scenes=5)
    problem = compress(in_double(observation), scene.region)
    dictionary = Dictionary.over(problem)
    moved = truth.parameters.double()
    moved[..., 0] = moved[..., 0].flip(-1)
    moved[..., 0, 0] = 0.05
    found = Found(moved, truth.resolved, explain(problem, moved, truth.resolved).cost)
    wanted = torch.tensor([[True, False, True, True, True]])
    together = redetect(problem, dictionary, found, wanted, 2, n_out)
    alone = redetect(
        problem.single_out(wanted),
        dictionary.of_channels(wanted.nonzero()[:, 0]),
        found.single_out(wanted),
        torch.ones(4, 1, dtype=torch.bool),
        2,
        n_out,
    )
    assert (together.cost[wanted] < 0.99 * found.cost[wanted]).any()
    torch.testing.assert_close(alone.cost[:, 0], together.cost[wanted])
    torch.testing.assert_close(alone.parameters[:, 0], together.parameters[wanted])
