"""Other places for sources: what re-detection would choose from, and each of them elsewhere."""

import pytest
import torch

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import compress
from musicnet.estimation.pursuit import grow
from musicnet.estimation.redetection import alternatives, redetect
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw

N_STARTS = 3


@pytest.fixture
def searched():
    law = SourceLaw(
        n_min=1, n_max=3, elevation_deg=(0.0, 0.0), range_m=None, min_separation_deg=6.0
    )
    scene = Scene(ArrayGeometry(8), law, n_snapshots=10, symbols="data", coherent_share=1.0)
    observation, truth = draw_block(scene, block_generator(0, "test", 0, 0), 80)
    problem = compress(observation, scene.region)
    dictionary = Dictionary.over(problem, None)
    counts = truth.resolved.sum(-1)[None]
    return problem, dictionary, grow(problem, dictionary, counts, steps=2)


def test_the_best_alternative_is_what_redetection_finds(searched):
    problem, dictionary, found = searched
    others = alternatives(problem, dictionary, found, N_STARTS)
    assert len(others) == 3 * N_STARTS
    best = torch.stack([one.cost for one, _ in others]).amin(0)
    everywhere = torch.ones_like(found.cost, dtype=torch.bool)
    again = redetect(problem, dictionary, found, everywhere, N_STARTS)
    improved = again.cost < found.cost
    assert bool(improved.any())
    torch.testing.assert_close(again.cost[improved], best[improved])


def test_alternatives_exist_for_sources_that_are_there_and_cost_what_they_say(searched):
    problem, dictionary, found = searched
    counts = found.present.sum(-1)
    for number, (one, is_there) in enumerate(alternatives(problem, dictionary, found, N_STARTS)):
        assert not bool(is_there[counts <= number // N_STARTS].any())
        cost = explain(problem, one.parameters, one.present).cost
        torch.testing.assert_close(one.cost[is_there], cost[is_there])
        assert torch.equal(one.present, found.present)
