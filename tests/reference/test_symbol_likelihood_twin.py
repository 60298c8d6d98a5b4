"""Gaussian symbols against covariances that are formed and inverted, block by block."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from musicnet.estimation.dictionary import NORM_FLOOR, Dictionary
from musicnet.estimation.leave_one_out import leave_one_out
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import compress
from musicnet.estimation.spectrum import SearchGrid
from musicnet.estimation.symbol_likelihood import (
    linearize_symbols,
    symbol_cost,
    symbol_information,
)
from musicnet.localization.confidence import assess
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import Sources
from tests.reference.slow_likelihood import (
    slow_gradient,
    slow_signatures,
    slow_symbol_cost,
    slow_symbol_covariances,
    slow_symbol_gain,
)
from tests.unit.estimation.likelihood_scenes import SCENES, draw, in_double, surface_scene

KINDS = pytest.mark.parametrize("name", ["surface, data", "codes held", "far line"])
CASES = {
    "surface, data": surface_scene("data"),
    # every code for two snapshots, and an array whose snapshots are more than its rows
    "codes held": replace(surface_scene("data"), n_snapshots=2),
    "far line": replace(SCENES["far line"], coherent_share=0.0),
}
NOISE_POWER = 1.7


class Setting:
    """A double-precision problem, sources that are nearly the true ones, and powers for them."""

    def __init__(self, name):
        scene = CASES[name]
        observation, truth = draw(scene)
        self.observation = replace(
            in_double(observation), noise_power=NOISE_POWER * observation.noise_power.double()
        )
        problem = compress(self.observation, scene.region)
        self.problem = replace(problem, log_powers=(-2.0, 6.0))
        self.active = list(self.problem.active)
        self.parameters = scene.region.clamp(truth.parameters.double() + 0.01)
        self.flat = self.problem.flatten(self.parameters)
        self.present = self.problem.flatten(truth.resolved)
        generator = torch.Generator().manual_seed(0)
        spread = torch.rand(self.present.shape, generator=generator, dtype=torch.float64)
        self.log_power = 1.0 + 3.0 * spread

    def signatures(self, channel, parameters):
        operator = self.observation.operator[channel].numpy()
        positions = self.observation.positions.numpy()
        return slow_signatures(operator, positions, parameters, self.observation.wavelength)

    def heard(self, channel, scene):
        return self.observation.y[channel, scene].numpy()

    def at(self, channel, scene):
        """Parameters and powers of a scene."""
        powers = NOISE_POWER * self.problem.unflatten(self.log_power)[channel, scene].exp()
        return self.parameters[channel, scene].numpy(), powers.numpy()


@KINDS
def test_the_cost_is_that_of_the_covariance(name):
    one = Setting(name)
    around = linearize_symbols(one.problem, one.flat, one.present, one.log_power)
    unexplained = one.problem.unflatten(one.problem.unexplained + around.cost)
    for channel, scene in np.ndindex(*unexplained.shape):
        parameters, powers = one.at(channel, scene)
        signatures = one.signatures(channel, parameters)
        expected = slow_symbol_cost(one.heard(channel, scene), signatures, powers, NOISE_POWER)
        np.testing.assert_allclose(unexplained[channel, scene].item(), expected, rtol=1e-9)


@KINDS
def test_slopes_are_those_of_the_covariance(name):
    one = Setting(name)
    around = linearize_symbols(one.problem, one.flat, one.present, one.log_power)
    channel, scene = 1, 2
    parameters, powers = one.at(channel, scene)
    heard = one.heard(channel, scene)

    def cost_of(unknowns):
        moved = parameters.copy()
        moved[:, one.active] = unknowns[:-1].T
        signatures = one.signatures(channel, moved)
        return slow_symbol_cost(heard, signatures, np.exp(unknowns[-1]), NOISE_POWER) / NOISE_POWER

    expected = slow_gradient(cost_of, np.vstack((parameters[:, one.active].T, np.log(powers))))
    gradient, power_gradient = (
        one.problem.unflatten(part)[channel, scene].numpy()
        for part in (around.gradient, around.power_gradient)
    )
    got = np.vstack((gradient.reshape(len(one.active), -1), power_gradient))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max())


def slow_information(one, channel, scene):
    """Slepian and Bangs, all derivatives by finite differences."""
    parameters, powers = one.at(channel, scene)
    unknowns = np.vstack((parameters[:, one.active].T, np.log(powers)))

    def covariances(values):
        moved = parameters.copy()
        moved[:, one.active] = values[:-1].T
        signatures = one.signatures(channel, moved)
        return np.stack(slow_symbol_covariances(signatures, np.exp(values[-1]), NOISE_POWER))

    inverse = np.linalg.inv(covariances(unknowns))
    slopes = []
    for index in np.ndindex(*unknowns.shape):
        shift = np.zeros_like(unknowns)
        shift[index] = 1e-6
        slopes.append((covariances(unknowns + shift) - covariances(unknowns - shift)) / 2e-6)
    turned = [inverse @ slope for slope in slopes]
    n_snapshots = one.observation.y.shape[-2] // len(inverse)
    return n_snapshots * np.array(
        [[np.einsum("qab,qba->", a, b).real for b in turned] for a in turned]
    )


@KINDS
def test_the_information_is_that_of_slepian_and_bangs(name):
    one = Setting(name)
    information = symbol_information(one.problem, one.flat, one.present, one.log_power)
    expected = slow_information(one, 1, 2)
    n = information.positions.shape[-1]
    positions, crossed, powers, alone = (
        one.problem.unflatten(part)[1, 2].numpy()
        for part in (
            information.positions,
            information.crossed,
            information.powers,
            information.of_positions,
        )
    )
    atol = 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(positions, expected[:n, :n], rtol=1e-5, atol=atol)
    np.testing.assert_allclose(crossed, expected[:n, n:], rtol=1e-5, atol=atol)
    np.testing.assert_allclose(powers, expected[n:, n:], rtol=1e-5, atol=atol)
    wanted = np.linalg.inv(expected)[:n, :n]
    np.testing.assert_allclose(np.linalg.inv(alone), wanted, rtol=1e-4, atol=1e-9)


@KINDS
def test_maps_of_gains_are_those_of_the_whitened_filter(name):
    """All that is known of the clues' maps, at whatever powers are the likeliest."""
    one = Setting(name)
    region = CASES[name].region
    grid = SearchGrid.over(region, 3 if region.active[1] else 1, 4, 2 if region.active[2] else 1)
    dictionary = Dictionary.over(one.problem, grid)
    explained = explain(one.problem, one.flat, one.present)
    left_out = leave_one_out(dictionary, explained, one.present)
    everything = dictionary.gains(explained).flatten(2)
    torch.testing.assert_close(left_out.remaining, everything)
    channel, scene = 0, 1
    heard, (parameters, _) = one.heard(channel, scene), one.at(channel, scene)
    load = one.problem.unflatten(explained.load)[channel, scene].numpy()
    powers, signatures = NOISE_POWER / load, one.signatures(channel, parameters)
    sought = one.signatures(channel, dictionary.cells.numpy())

    def gains(present):
        there = [here[:, present] for here in signatures]
        cells = [[here[:, cell] for here in sought] for cell in range(len(dictionary.cells))]
        given = (heard, there, powers[present], NOISE_POWER)
        return [slow_symbol_gain(*given, cell, NORM_FLOOR) for cell in cells]

    def of(values):
        return one.problem.unflatten(values)[channel, scene].numpy()

    np.testing.assert_allclose(of(everything), gains(np.array([True, True])), rtol=1e-8)
    for source in range(2):
        others = np.arange(2) != source
        np.testing.assert_allclose(of(left_out.gains)[source], gains(others), rtol=1e-8)
        own = [here[:, source] for here in signatures]
        there = [here[:, others] for here in signatures]
        expected = slow_symbol_gain(heard, there, powers[others], NOISE_POWER, own)
        np.testing.assert_allclose(of(left_out.own)[source], expected, rtol=1e-8)


@KINDS
def test_error_bars_are_the_inverse_of_the_information(name):
    one = Setting(name)
    sources = Sources(one.parameters, one.problem.unflatten(one.present))
    said = assess(one.problem, sources)
    explained = explain(one.problem, one.flat, one.present)
    one.log_power = -explained.load.log()
    covariance = np.linalg.inv(slow_information(one, 1, 2))
    cost = one.problem.unflatten(symbol_cost(one.problem, explained, one.present))
    left = one.problem.unflatten(explained.cost)[1, 2].item() / NOISE_POWER
    widened = max(1.0, left / one.problem.n_explicable)
    if widened < 1.0 + 3.0 / one.problem.n_explicable**0.5:
        widened = 1.0
    n_sources = one.present.shape[-1]
    for source in range(n_sources):
        own = [n_sources * i + source for i in range(len(one.active))]
        got = said.covariance[1, 2, source].numpy()[np.ix_(one.active, one.active)]
        wanted = widened * covariance[np.ix_(own, own)]
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    n_heard = one.observation.y[0, 0].numel()
    total = cost + one.problem.unflatten(one.problem.unexplained)
    expected = -total / NOISE_POWER - n_heard * np.log(np.pi * NOISE_POWER)
    torch.testing.assert_close(said.log_likelihood, expected)


def test_powers_make_no_difference_to_pilots():
    """Nor does the code that knows of powers, where there are none."""
    scene = surface_scene()
    heard, truth = draw_block(scene, block_generator(0, "test", 0, 0), n_scenes=3)
    problem = compress(heard, scene.region)
    explained = explain(problem, problem.flatten(truth.parameters), problem.flatten(truth.resolved))
    assert (explained.load == 0).all()
    torch.testing.assert_close(explained.cost, explained.residual.abs().square().sum((2, 3, 4)))
