import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from musicnet.coordinates import angles
from musicnet.estimation.bounds import (
    ElementErrors,
    angle_bound,
    angle_jacobian,
    deterministic_bound,
)
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.steering import steering

PARAMETERS = torch.tensor([[0.3, -0.2, 0.8], [-0.4, 0.1, 0.4]], dtype=torch.float64)
POSITIONS = ArrayGeometry(4, 4).positions(0.3).double()
NOISE = torch.tensor(0.1, dtype=torch.float64)


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.complex128)


OPERATOR, AMPLITUDES = randn(1, 40, 16), randn(3, 2, seed=1)


def bound(parameters=PARAMETERS, amplitudes=AMPLITUDES, **options):
    noise = NOISE.expand(parameters.shape[:-2])
    return deterministic_bound(OPERATOR, POSITIONS, 0.3, parameters, amplitudes, noise, **options)


def test_empty_slots_have_no_bound_and_do_not_touch_the_others():
    empty = torch.full((1, 3), math.nan, dtype=torch.float64)
    for first in (True, False):
        parts = (empty, PARAMETERS) if first else (PARAMETERS, empty)
        silent = torch.full((3, 1), math.nan, dtype=torch.complex128)
        heard = (silent, AMPLITUDES) if first else (AMPLITUDES, silent)
        padded = bound(torch.cat(parts), torch.cat(heard, dim=-1))
        there = slice(1, None) if first else slice(None, 2)
        torch.testing.assert_close(padded[there], bound())
        assert padded[0 if first else 2].isnan().all()


def test_a_scene_that_is_not_finite_harms_only_itself():
    amplitudes = AMPLITUDES.expand(2, 3, 2).clone()
    amplitudes[0] = math.nan
    both = bound(PARAMETERS.expand(2, 2, 3), amplitudes)
    assert both[0].isnan().all()
    torch.testing.assert_close(both[1], bound())


@pytest.mark.parametrize("errors", [ElementErrors(phase=0.2), ElementErrors(gain=0.1, phase=0.05)])
def test_element_errors_agree_with_the_information_on_everything(errors):
    def mean_of(unknowns):
        parameters = unknowns[:6].reshape(2, 3)
        amplitudes = torch.complex(*unknowns[6:18].reshape(2, 3, 2))
        gain, phase = unknowns[18:].reshape(2, 16)
        field = amplitudes @ steering(POSITIONS, parameters, 0.3)
        field = field * (1 + gain) * torch.polar(torch.ones_like(phase), phase)
        heard = (OPERATOR @ field[..., None]).squeeze(-1).flatten()
        return torch.view_as_real(heard).flatten()

    start = torch.cat((PARAMETERS.flatten(), AMPLITUDES.real.flatten(), AMPLITUDES.imag.flatten()))
    start = torch.cat((start, torch.zeros(32, dtype=torch.float64)))
    slopes = torch.autograd.functional.jacobian(mean_of, start)
    information = 2 / NOISE * slopes.mT @ slopes
    known = torch.zeros(50, dtype=torch.float64)
    known[18:34] = 1e20 if errors.gain == 0 else errors.gain**-2
    known[34:] = errors.phase**-2
    everything = torch.linalg.inv(information + torch.diag(known))
    got = bound(element_errors=errors)
    for k in range(2):
        own = slice(3 * k, 3 * k + 3)
        torch.testing.assert_close(got[k], everything[own, own], rtol=1e-6, atol=1e-12)


def test_element_errors_widen_the_bound():
    widths = [
        bound(element_errors=ElementErrors(phase=deviation)).diagonal(dim1=-2, dim2=-1)
        for deviation in (1e-6, 0.05, 0.5)
    ]
    torch.testing.assert_close(widths[0], bound().diagonal(dim1=-2, dim2=-1), rtol=1e-4, atol=0.0)
    for narrow, wide in pairwise(widths):
        assert (wide > 1.01 * narrow).all()


def test_angle_jacobian_agrees_with_finite_differences():
    jacobian = angle_jacobian(PARAMETERS)
    for i in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[i] = 1e-6
        ends = []
        for p in (PARAMETERS + shift, PARAMETERS - shift):
            azimuth, elevation = angles(p)
            ends.append(torch.stack((azimuth, elevation, 1.0 / p[:, 2]), dim=-1))
        expected = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(jacobian[..., i].numpy(), expected.numpy(), atol=1e-8)


def test_angle_bound_of_a_line_in_the_far_field_is_the_textbook_one():
    # a single source in broadside noise: var(u) = 6 sigma^2 / (T |s|^2 (k0 d)^2 N (N^2 - 1))
    line = ArrayGeometry(8).positions(0.3).double()
    there = torch.tensor([[math.sin(0.5), 0.0, 0.0]], dtype=torch.float64)
    covariance = deterministic_bound(
        torch.eye(8, dtype=torch.complex128)[None],
        line,
        0.3,
        there,
        torch.full((20, 1), 2.0 + 0j, dtype=torch.complex128),
        NOISE,
        active=(True, False, False),
    )
    variance_u = 6 * 0.1 / (2 * 20 * 4.0 * math.pi**2 * 8 * 63) * 2
    azimuth = angle_bound(there, covariance)[0, 0, 0].item()
    assert azimuth == pytest.approx(variance_u / math.cos(0.5) ** 2, rel=1e-5)
