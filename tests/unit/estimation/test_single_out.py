"""Scenes singled out, each a channel of its own, against the same scenes in their batch."""

from dataclasses import replace

import pytest
import torch

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found
from musicnet.estimation.linearization import explain, linearize
from musicnet.estimation.problem import compress
from musicnet.estimation.signatures import signatures
from tests.unit.estimation.likelihood_scenes import SCENES, draw, in_double

ALL_SCENES = pytest.mark.parametrize("name", SCENES)
WANTED = torch.tensor([[False, True, False, True], [True, False, False, True]])


def a_problem(name, n_channels=2):
    scene = SCENES[name]
    observation, truth = draw(scene, n_channels=n_channels)
    observation = in_double(observation)
    # every scene has noise of its own, so that a mix-up would show
    power = torch.linspace(1.0, 3.0, observation.noise_power.numel(), dtype=torch.float64)
    noise_power = power.reshape(observation.noise_power.shape)
    problem = compress(replace(observation, noise_power=noise_power), scene.region)
    parameters, present = map(problem.flatten, (truth.parameters.double(), truth.resolved))
    cost = explain(problem, parameters, present).cost
    return problem, Found(parameters, present, cost)


def wanted_of(problem):
    """Of two channels or, where a plain array's channels are one, of all their scenes."""
    return WANTED.reshape(problem.y.shape[:2])


@ALL_SCENES
def test_a_scene_alone_costs_and_pulls_what_it_does_in_its_batch(name):
    problem, found = a_problem(name)
    wanted = wanted_of(problem)
    part, alone = problem.single_out(wanted), found.single_out(wanted)
    assert part.y.shape[:2] == part.noise_power.shape == part.batch_shape == (4, 1)
    assert torch.equal(part.noise_power[:, 0], problem.noise_power[wanted])
    assert torch.equal(part.unexplained[:, 0], problem.unexplained[wanted])
    assert part.n_explicable == problem.n_explicable
    whole = linearize(problem, found.parameters, found.present)
    single = linearize(part, alone.parameters, alone.present)
    for value in ("cost", "gradient", "curvature", "amplitudes"):
        expected = getattr(whole, value)[wanted][:, None]
        torch.testing.assert_close(getattr(single, value), expected, rtol=1e-9, atol=1e-9)


def test_a_plain_array_goes_on_without_an_operator():
    problem, _ = a_problem("far line")
    assert problem.y.shape[:2] == (1, 8)
    assert problem.single_out(wanted_of(problem)).operator is None


@ALL_SCENES
def test_what_is_put_back_unchanged_changes_nothing(name):
    problem, found = a_problem(name)
    wanted = wanted_of(problem)
    again = found.put_back(wanted, found.single_out(wanted))
    for value in ("parameters", "present", "cost"):
        assert torch.equal(getattr(again, value), getattr(found, value))


def test_what_is_put_back_goes_where_it_was_taken_from_and_nowhere_else():
    _, found = a_problem("surface, pilots")
    parameters, cost = found.parameters.clone(), found.cost.clone()
    some = found.single_out(WANTED)
    numbers = torch.arange(4.0, dtype=torch.float64)
    marked = Found(some.parameters + numbers[:, None, None, None], ~some.present, numbers[:, None])
    after = found.put_back(WANTED, marked)
    # in the order of values[wanted]: channel by channel
    places = [(0, 1), (0, 3), (1, 0), (1, 3)]
    for number, (channel, scene) in enumerate(places):
        assert after.cost[channel, scene] == number
        assert torch.equal(after.present[channel, scene], ~found.present[channel, scene])
        expected = parameters[channel, scene] + number
        torch.testing.assert_close(after.parameters[channel, scene], expected)
    assert torch.equal(after.cost[~WANTED], cost[~WANTED])
    assert torch.equal(after.parameters[~WANTED], parameters[~WANTED])
    # nothing is written on what came in
    assert torch.equal(found.cost, cost)
    assert torch.equal(found.parameters, parameters)


def test_single_scenes_can_be_singled_out_again():
    problem, _ = a_problem("surface, pilots")
    part = problem.single_out(WANTED)
    few = torch.tensor([[False], [True], [True], [False]])
    twice = part.single_out(few)
    assert torch.equal(twice.y[0], problem.y[0, 3][None])
    assert torch.equal(twice.y[1], problem.y[1, 0][None])
    assert torch.equal(twice.operator, problem.operator)


def test_no_scene_at_all_may_be_singled_out():
    problem, found = a_problem("surface, pilots")
    none = torch.zeros_like(WANTED)
    assert problem.single_out(none).batch_shape == (0, 1)
    after = found.put_back(none, found.single_out(none))
    assert torch.equal(after.parameters, found.parameters)


@ALL_SCENES
def test_a_dictionary_of_channels_is_that_of_their_scenes(name):
    problem, found = a_problem(name)
    wanted = wanted_of(problem)
    dictionary = Dictionary.over(problem)
    part = problem.single_out(wanted)
    cells = dictionary.of_channels(wanted.nonzero()[:, 0])
    if problem.operator is None:
        assert cells is dictionary  # one for all
    else:
        fresh = Dictionary.over(part)
        torch.testing.assert_close(cells.parts, fresh.parts)
        torch.testing.assert_close(cells.power, fresh.power)
    whole = dictionary.gains(explain(problem, found.parameters, found.present))
    alone = found.single_out(wanted)
    gains = cells.gains(explain(part, alone.parameters, alone.present))
    torch.testing.assert_close(gains, whole[wanted][:, None])


def test_one_channel_serves_all_its_scenes():
    problem, found = a_problem("surface, pilots", n_channels=1)
    wanted = torch.tensor([[True, False, True, True]])
    part = problem.single_out(wanted)
    cells = Dictionary.over(problem).of_channels(wanted.nonzero()[:, 0])
    assert cells.parts.shape[0] == 1
    assert part.operator.shape[0] == 3
    alone = found.single_out(wanted)
    gains = cells.gains(explain(part, alone.parameters, alone.present))
    whole = Dictionary.over(problem).gains(explain(problem, found.parameters, found.present))
    torch.testing.assert_close(gains, whole[wanted][:, None])


@ALL_SCENES
def test_products_are_those_of_the_signatures(name):
    problem, _ = a_problem(name)
    dictionary = Dictionary.over(problem)
    n_channels, n_blocks, n_rows = problem.y.shape[0], problem.y.shape[2], problem.y.shape[4]
    generator = torch.Generator().manual_seed(0)
    lines = torch.randn(
        n_channels, n_blocks, 3, 2, n_rows, dtype=torch.complex128, generator=generator
    )
    products = dictionary.products(lines)
    cells = dictionary.cells[::17]
    places = cells.expand(n_channels, 1, -1, -1)
    there = torch.ones(places.shape[:-1], dtype=torch.bool)
    slow = signatures(problem, places, there)[:, 0]  # (channel, blocks, cell, row)
    expected = torch.einsum("qbcr,qbslr->qbslc", slow.conj(), lines)
    torch.testing.assert_close(products[..., 0, ::17], expected.real)
    torch.testing.assert_close(products[..., 1, ::17], expected.imag)


def test_another_order_of_slots_is_the_same_answer():
    problem, found = a_problem("surface, pilots")
    present = found.present.clone()
    present[0, 0, 1] = False
    found = replace(found, present=present)
    order = torch.tensor([1, 0]).expand(2, 4, 2)
    turned = found.in_order(order)
    assert torch.equal(turned.parameters, found.parameters.flip(2))
    assert torch.equal(turned.present, found.present.flip(2))
    assert torch.equal(turned.in_order(order).parameters, found.parameters)
    one = explain(problem, found.parameters, found.present).cost
    torch.testing.assert_close(explain(problem, turned.parameters, turned.present).cost, one)


def test_the_better_answer_is_chosen_scene_by_scene():
    _, found = a_problem("surface, pilots")
    other = Found(found.parameters + 1.0, ~found.present, found.cost + 1.0)
    chosen = found.chosen(WANTED, other)
    for value in ("parameters", "present", "cost"):
        ours, one, two = (getattr(which, value) for which in (chosen, found, other))
        assert torch.equal(ours[WANTED], two[WANTED])
        assert torch.equal(ours[~WANTED], one[~WANTED])
