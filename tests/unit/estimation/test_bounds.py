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
from musicnet.estimation.stochastic_bounds import stochastic_bound
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.steering import steering

PARAMETERS = torch.tensor([[0.3, -0.2, 0.8], [-0.4, 0.1, 0.4]], dtype=torch.float64)
POSITIONS = ArrayGeometry(4, 4).positions(0.3).double()
NOISE = torch.tensor(0.1, dtype=torch.float64)


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.complex128)


def deviations(covariance):
    return covariance.diagonal(dim1=-2, dim2=-1).sqrt()


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


def test_sources_at_one_place_cannot_be_told_apart():
    twins = PARAMETERS[:1].expand(2, 3)
    alike = AMPLITUDES[:, :1].expand(3, 2)
    alone = bound(PARAMETERS[:1], AMPLITUDES[:, :1])
    assert (deviations(bound(twins, alike)) > 1e4 * deviations(alone)).all()


def test_a_coordinate_without_effect_has_an_infinite_bound():
    line = ArrayGeometry(8).positions(0.3).double()
    far = torch.tensor([[0.3, 0.0, 0.0]], dtype=torch.float64)
    identity = torch.eye(8, dtype=torch.complex128)[None]

    def of_line(active):
        return deterministic_bound(identity, line, 0.3, far, randn(1, 1), NOISE, active)[0]

    both, one = of_line((True, True, False)), of_line((True, False, False))
    assert both[1, 1] == math.inf
    torch.testing.assert_close(both[0, 0], one[0, 0])


@pytest.mark.parametrize("gap", [0.0, 1e-7, 1e-3, 0.3])
def test_knowing_more_never_raises_the_bound(gap):
    near = PARAMETERS[:1] + torch.tensor([[0.0, 0.0, 0.0], [gap, 0.0, 0.0]], dtype=torch.float64)
    alike = AMPLITUDES[:, :1].expand(3, 2)
    most = deviations(bound(near, alike))
    for active in ((True, True, False), (True, False, False)):
        fewer = deviations(bound(near, alike, active=active))
        assert (fewer <= most * (1.0 + 1e-3)).all()
    alone = deviations(bound(PARAMETERS[:1], AMPLITUDES[:, :1]))
    assert (alone <= most * (1.0 + 1e-6)).all()


def stochastic(parameters, noise, **options):
    n_sources = parameters.shape[-2]
    power = torch.eye(n_sources, dtype=torch.complex128)
    power = power.expand(*noise.shape, n_sources, n_sources)
    return stochastic_bound(OPERATOR, POSITIONS, 0.3, parameters, power, noise, 50, **options)


@pytest.mark.parametrize("is_noise_known", [True, False])
@pytest.mark.parametrize("is_uncorrelated", [True, False])
def test_empty_slots_and_spoilt_scenes_harm_no_other_stochastic_bound(
    is_noise_known, is_uncorrelated
):
    options = {"is_noise_known": is_noise_known, "is_uncorrelated": is_uncorrelated}
    empty = torch.full((1, 3), math.nan, dtype=torch.float64)
    batch = torch.stack((PARAMETERS, torch.cat((empty, PARAMETERS[:1])), PARAMETERS))
    noise = NOISE.expand(3).clone()
    noise[2] = math.nan
    got = stochastic(batch, noise, **options)
    torch.testing.assert_close(got[0], stochastic(PARAMETERS, NOISE, **options))
    torch.testing.assert_close(got[1, 1:], stochastic(PARAMETERS[:1], NOISE, **options))
    assert got[1, 0].isnan().all()
    assert got[2].isnan().all()
