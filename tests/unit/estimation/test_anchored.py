"""Sources near noted places, against a general minimiser."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from musicnet.coordinates import from_xyz, to_xyz, xyz_jacobian
from musicnet.estimation.anchored import settle_near
from musicnet.estimation.linearization import linearize
from musicnet.estimation.problem import compress
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface

LAW = SourceLaw(n_min=2, n_max=2, snr_db=(15.0, 15.0), range_m=(1.0, 4.0), min_separation_deg=30.0)
SCENE = Scene(ArrayGeometry(5, 5), LAW, surface=Surface(n_antennas=5, n_codes=8))


@pytest.fixture(scope="module")
def asked():
    heard, truth = draw_blocks(SCENE, range(2), 2, "cpu", 3, "test", 0)
    problem = compress(heard, SCENE.region)
    generator = torch.Generator().manual_seed(0)
    points = truth.xyz + 0.05 * torch.randn(truth.xyz.shape, generator=generator)
    return problem, SCENE.region.clamp(from_xyz(points)), truth.resolved


def objective(problem, noted, present, deviation, here):
    cost = linearize(problem, here, present).cost / problem.noise_power
    moved = (xyz_jacobian(noted) @ (here - noted)[..., None])[..., 0] / deviation
    return cost + (moved.square().sum(-1) * present).sum(-1)


def test_no_minimiser_finds_better_places(asked):
    problem, noted, present = asked
    settled, charge = settle_near(problem, noted, present, 0.05, n_iterations=30)
    ours = objective(problem, noted, present, 0.05, settled)
    spent = ours - linearize(problem, settled, present).cost / problem.noise_power
    torch.testing.assert_close(charge, spent, rtol=1e-3, atol=1e-3)
    for channel, scene in np.ndindex(2, 2):

        def value(offset, channel=channel, scene=scene):
            here = settled.clone()
            here[channel, scene] += torch.from_numpy(offset.reshape(2, 3)).float()
            here = SCENE.region.clamp(here)
            return float(objective(problem, noted, present, 0.05, here)[channel, scene])

        found = minimize(value, np.zeros(6), method="Nelder-Mead", options={"maxiter": 400})
        assert float(ours[channel, scene]) <= found.fun + 0.02


def test_a_small_error_holds_sources_where_they_were_noted(asked):
    problem, noted, present = asked
    settled, _ = settle_near(problem, noted, present, 1e-5, n_iterations=10)
    assert float((to_xyz(settled) - to_xyz(noted)).abs().max()) < 1e-3


def test_empty_slots_stay_and_harm_nobody(asked):
    problem, noted, present = asked
    fewer = present.clone()
    fewer[0, 0, 1] = False
    settled, charge = settle_near(problem, noted, fewer, 0.05, n_iterations=10)
    assert torch.equal(settled[0, 0, 1], noted[0, 0, 1])
    assert bool(charge.isfinite().all())
