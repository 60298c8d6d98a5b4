"""Taking a source out, against doing it the long way: a new fit without it."""

import pytest
import torch

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.leave_one_out import leave_one_out
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import compress
from tests.unit.estimation.likelihood_scenes import SCENES, draw, in_double


@pytest.mark.parametrize("name", SCENES)
def test_maps_are_those_of_a_fit_without_the_source(name):
    observation, truth = draw(SCENES[name])
    problem = compress(in_double(observation), SCENES[name].region)
    dictionary = Dictionary.over(problem)
    parameters, present = map(problem.flatten, (truth.parameters.double(), truth.resolved))
    explained = explain(problem, parameters, present)
    left_out = leave_one_out(dictionary, explained, present)
    for source in range(present.shape[-1]):
        others = present.clone()
        others[..., source] = False
        without = explain(problem, parameters, others)
        torch.testing.assert_close(left_out.own[..., source], without.cost - explained.cost)
        expected = dictionary.gains(without).flatten(2)
        torch.testing.assert_close(left_out.gains[:, :, source], expected)
    remaining = dictionary.gains(explained).flatten(2)
    torch.testing.assert_close(left_out.remaining, remaining)


def test_empty_slots_have_no_map():
    scene = SCENES["surface, pilots"]
    observation, truth = draw(scene)
    problem = compress(observation, scene.region)
    present = truth.resolved.clone()
    present[..., 1] = False
    explained = explain(problem, truth.parameters, present)
    left_out = leave_one_out(Dictionary.over(problem), explained, present)
    assert (left_out.own[..., 1] == 0).all()
    assert (left_out.gains[:, :, 1] == 0).all()
    assert (left_out.gains[:, :, 0] > 0).any()


def test_pieces_of_a_batch_make_no_difference(monkeypatch):
    scene = SCENES["surface, pilots"]
    observation, truth = draw(scene)
    problem = compress(in_double(observation), scene.region)
    explained = explain(problem, truth.parameters.double(), truth.resolved)
    whole = leave_one_out(Dictionary.over(problem), explained, truth.resolved)
    monkeypatch.setattr("musicnet.estimation.leave_one_out._CHUNK", 1)
    pieces = leave_one_out(Dictionary.over(problem), explained, truth.resolved)
    torch.testing.assert_close(whole.gains, pieces.gains)
    torch.testing.assert_close(whole.remaining, pieces.remaining)
