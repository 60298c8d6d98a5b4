from dataclasses import replace

import numpy as np
import pytest
import torch

from musicnet.estimation.bounds import projected_jacobian
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.linearization import explain, linearize
from musicnet.estimation.problem import Problem, compress
from musicnet.estimation.refinement import refine
from musicnet.estimation.spectrum import SearchGrid
from tests.reference.slow_likelihood import slow_cost, slow_gains, slow_gradient
from tests.unit.estimation.likelihood_scenes import SCENES, draw, in_double

ALL_SCENES = pytest.mark.parametrize("name", SCENES)


def setting(name):
    """A double-precision problem, and sources that are nearly the true ones."""
    scene = SCENES[name]
    observation, truth = draw(scene)
    observation = in_double(observation)
    problem = compress(observation, scene.region)
    nearly = scene.region.clamp(truth.parameters.double() + 0.01)
    return observation, problem, nearly, truth.resolved


def slow_arguments(observation, channel, scene):
    return (
        observation.y[channel, scene].numpy(),
        observation.operator[channel].numpy(),
        observation.positions.numpy(),
    )


def uncompressed(observation, region):
    """The same problem with all its rows and snapshots."""
    n_operators = observation.operator.shape[1]
    n_channels, n_scenes, n_blocks, n_rows = observation.y.shape
    n_snapshots = n_blocks // n_operators
    y = observation.y.reshape(n_channels, n_scenes, n_operators, n_snapshots, n_rows)
    return Problem(
        y=y,
        operator=observation.operator,
        positions=observation.positions,
        wavelength=observation.wavelength,
        region=region,
        noise_power=observation.noise_power,
        unexplained=torch.zeros_like(observation.noise_power),
        n_snapshots=n_snapshots,
        n_unexplained=0,
        batch_shape=(n_channels, n_scenes),
    )


@ALL_SCENES
def test_cost_agrees_with_least_squares_over_all_rows(name):
    observation, problem, parameters, present = setting(name)
    cost = explain(problem, problem.flatten(parameters), problem.flatten(present)).cost
    total = problem.unflatten(cost + problem.unexplained)
    for c, s in np.ndindex(*total.shape):
        arguments = slow_arguments(observation, c, s)
        expected = slow_cost(*arguments, parameters[c, s].numpy(), observation.wavelength)
        np.testing.assert_allclose(total[c, s].item(), expected, rtol=1e-9)


@ALL_SCENES
def test_gradient_agrees_with_finite_differences_of_least_squares(name):
    observation, problem, parameters, present = setting(name)
    around = linearize(problem, problem.flatten(parameters), problem.flatten(present))
    gradient = problem.unflatten(around.gradient)
    active = list(problem.active)
    for c, s in ((0, 0), (1, 3)):
        arguments, here = slow_arguments(observation, c, s), parameters[c, s].numpy()

        def cost_of(searched, arguments=arguments, here=here):
            moved = here.copy()
            moved[:, active] = searched.T
            return slow_cost(*arguments, moved, observation.wavelength)

        expected = slow_gradient(cost_of, parameters[c, s].numpy()[:, active].T)
        got = gradient[c, s].numpy().reshape(expected.shape)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max())


@ALL_SCENES
def test_gradient_agrees_with_autograd(name):
    _, problem, parameters, present = setting(name)
    parameters = problem.flatten(parameters).requires_grad_()
    present = problem.flatten(present)
    cost = explain(problem, parameters, present).cost
    (expected,) = torch.autograd.grad(cost.sum(), parameters)
    gradient = linearize(problem, parameters.detach(), present).gradient
    active = list(problem.active)
    got = gradient.unflatten(-1, (len(active), -1)).mT
    torch.testing.assert_close(got, expected[..., active], rtol=1e-9, atol=1e-7)


@ALL_SCENES
def test_gradient_and_curvature_are_products_of_the_bounds_jacobian(name):
    observation, _, parameters, present = setting(name)
    problem = uncompressed(observation, SCENES[name].region)
    around = linearize(problem, parameters, present)
    explanation = explain(problem, parameters, present)
    # (channel, scene, operator, source, snapshot) -> (channel, scene, block, source)
    amplitudes = around.amplitudes.mT.flatten(2, 3)
    operator = observation.operator[:, None]
    jacobian = projected_jacobian(
        operator, observation.positions, observation.wavelength, parameters, amplitudes
    )
    columns = jacobian[..., list(problem.active)].mT.flatten(-2)  # coordinate by coordinate
    curvature = 2.0 * (columns.mH @ columns).real.sum(-3)
    residual = explanation.residual.flatten(2, 3)
    gradient = -2.0 * torch.einsum("csqru,csqr->csu", columns.conj(), residual).real
    torch.testing.assert_close(around.curvature, curvature, rtol=1e-8, atol=1e-6)
    torch.testing.assert_close(around.gradient, gradient, rtol=1e-8, atol=1e-6)


@ALL_SCENES
def test_compressed_and_full_problems_take_equal_steps(name):
    observation, problem, parameters, present = setting(name)
    full = uncompressed(observation, SCENES[name].region)
    small_steps = refine(problem, problem.flatten(parameters), problem.flatten(present), 3)
    full_steps = refine(full, parameters, present, 3)
    got = problem.unflatten(small_steps.parameters)
    torch.testing.assert_close(got, full_steps.parameters, rtol=1e-7, atol=1e-8)
    total = problem.unflatten(small_steps.cost + problem.unexplained)
    torch.testing.assert_close(total, full_steps.cost, rtol=1e-8, atol=0.0)


def test_compression_keeps_what_single_precision_can_hold():
    scene = SCENES["near line"]
    observation, truth = draw(scene)
    loud = replace(observation, y=observation.y * 1e4)
    single = compress(loud, scene.region)
    double = compress(in_double(loud), scene.region)
    present = single.flatten(truth.resolved)
    cost = explain(single, single.flatten(truth.parameters), present).cost
    exact = explain(double, double.flatten(truth.parameters.double()), present).cost
    torch.testing.assert_close(cost.double(), exact, rtol=2e-4, atol=0.0)


@pytest.mark.parametrize("n_found", [0, 1])
@ALL_SCENES
def test_gains_are_what_one_more_source_would_explain(name, n_found):
    observation, problem, parameters, present = setting(name)
    grid = SearchGrid.over(SCENES[name].region, 2, 3, 2)
    found = problem.flatten(parameters)[:, :, :n_found]
    there = problem.flatten(present)[:, :, :n_found]
    gains = Dictionary.over(problem, grid).gains(explain(problem, found, there))
    gains = problem.unflatten(gains)
    cells = grid.visible_cells.double().reshape(-1, 3).numpy()
    for c, s in ((0, 0), (1, 2)):
        arguments = slow_arguments(observation, c, s)
        others = list(parameters[c, s, :n_found].numpy())
        expected = slow_gains(*arguments, others, cells, observation.wavelength)
        got = gains[c, s].flatten().numpy()
        # next to a source that is there already, the floor of the norm holds gains down
        close = got < 0.98 * expected
        np.testing.assert_allclose(got[~close], expected[~close], rtol=1e-5)
        assert close.sum() <= n_found
