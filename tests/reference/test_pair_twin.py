import numpy as np
import pytest

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.linearization import explain
from musicnet.estimation.pairs import best_pairs
from musicnet.estimation.problem import compress
from musicnet.estimation.spectrum import SearchGrid
from tests.reference.slow_likelihood import slow_cost
from tests.unit.estimation.likelihood_scenes import SCENES, draw, in_double


@pytest.mark.parametrize("n_found", [0, 1])
@pytest.mark.parametrize("name", SCENES)
def test_gain_of_a_pair_is_what_the_two_cells_explain_together(name, n_found):
    scene = SCENES[name]
    observation, truth = draw(scene)
    observation = in_double(observation)
    problem = compress(observation, scene.region)
    grid = SearchGrid.over(scene.region, 2, 5, 2)
    parameters = problem.flatten(truth.parameters.double())[:, :, :n_found]
    present = problem.flatten(truth.resolved)[:, :, :n_found]
    pairs = best_pairs(Dictionary.over(problem, grid), explain(problem, parameters, present), 4)
    first, second = problem.unflatten(pairs.first), problem.unflatten(pairs.second)
    gains = problem.unflatten(pairs.gains)
    cells = grid.visible_cells.double().reshape(-1, 3).numpy()
    for c, s in ((0, 0), (1, 3)):
        others = list(truth.parameters[c, s, :n_found].double().numpy())
        y = observation.y[c, s].numpy()
        arguments = (y, observation.operator[c].numpy(), observation.positions.numpy())

        def cost(places, arguments=arguments, y=y):
            if not places:
                return np.sum(np.abs(y) ** 2)
            return slow_cost(*arguments, places, observation.wavelength)

        before = cost(others)
        first_cells = first[c, s].tolist()
        for g, h, gain in zip(first_cells, second[c, s].tolist(), gains[c, s], strict=True):
            explained = before - cost([*others, cells[g], cells[h]])
            assert gain.item() <= explained * (1 + 1e-6)
            # the floor of the norm holds down cells that are all but explained already
            if gain.item() > 0.9 * explained:
                np.testing.assert_allclose(gain.item(), explained, rtol=1e-5)
            every_second = [before - cost([*others, cells[g], cell]) for cell in cells]
            assert gain.item() >= 0.5 * max(every_second)


def test_first_cells_differ_and_the_best_pair_comes_first():
    scene = SCENES["near line"]
    observation, truth = draw(scene)
    problem = compress(observation, scene.region)
    none = problem.flatten(truth.parameters)[:, :, :0]
    left = explain(problem, none, none[..., 0].bool())
    pairs = best_pairs(Dictionary.over(problem), left, 5)
    assert (pairs.gains.diff(dim=-1) <= 0).all()
    ordered = pairs.first.sort(dim=-1).values
    assert (ordered.diff(dim=-1) > 0).all()
