import numpy as np
import pytest
import torch

from musicnet.coordinates import to_xyz, xyz_jacobian
from musicnet.estimation.bounds import deterministic_bound, position_bound, projected_jacobian
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface
from tests.reference.slow_twins import slow_point, slow_slepian_bangs, slow_snapshot, slow_steering

PARAMETERS = torch.tensor([[0.3, -0.2, 0.8], [-0.5, 0.1, 0.4]], dtype=torch.float64)


def setting(symbols):
    scene = Scene(
        ArrayGeometry(4, 4),
        SourceLaw(n_max=2),
        surface=Surface(n_antennas=4, n_codes=5),
        symbols=symbols,
    )
    heard, _ = draw_block(scene, block_generator(0, "test", 0, 0), 1)
    amplitudes = torch.randn(
        scene.n_blocks, 2, generator=torch.Generator().manual_seed(1), dtype=torch.complex128
    )
    operator = heard.operator.to(torch.complex128)
    return operator, scene.positions().double(), scene.wavelength_m, amplitudes


def bound(operator, positions, wavelength, amplitudes, parameters=PARAMETERS, power=0.1, **options):
    noise_power = torch.tensor(power)
    return deterministic_bound(
        operator, positions, wavelength, parameters, amplitudes, noise_power, **options
    )


@pytest.mark.parametrize("symbols", ["pilot", "data"])
def test_bound_agrees_with_slepian_bangs_over_all_unknowns(symbols):
    operator, positions, wavelength, amplitudes = setting(symbols)

    def mean_of(unknowns):
        parameters, rest = unknowns[:6].reshape(2, 3), unknowns[6:].reshape(2, *amplitudes.shape)
        points = [slow_point(*p) for p in parameters]
        steering = slow_steering(positions.numpy(), points, wavelength)
        return slow_snapshot(operator.numpy(), steering, rest[0] + 1j * rest[1]).ravel()

    unknowns = np.concatenate(
        [PARAMETERS.numpy().ravel(), amplitudes.real.numpy().ravel(), amplitudes.imag.ravel()]
    )
    everything = slow_slepian_bangs(mean_of, unknowns, noise_power=0.1)
    fast = bound(operator, positions, wavelength, amplitudes)
    for k in range(2):
        own = slice(3 * k, 3 * k + 3)
        np.testing.assert_allclose(fast[k].numpy(), everything[own, own], rtol=1e-4, atol=1e-12)


def test_bound_does_not_change_with_phase_or_order_of_rows():
    operator, positions, wavelength, amplitudes = setting("pilot")
    plain = bound(operator, positions, wavelength, amplitudes)
    turned = bound(operator, positions, wavelength, amplitudes * np.exp(0.7j))
    torch.testing.assert_close(turned, plain)
    shuffled = operator[:, torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(bound(shuffled, positions, wavelength, amplitudes), plain)


def test_bound_follows_the_order_of_the_sources():
    operator, positions, wavelength, amplitudes = setting("data")
    plain = bound(operator, positions, wavelength, amplitudes)
    swapped = bound(operator, positions, wavelength, amplitudes.flip(-1), PARAMETERS.flip(0))
    torch.testing.assert_close(swapped, plain.flip(0))


def test_bound_falls_with_repetition_and_rises_with_noise():
    operator, positions, wavelength, amplitudes = setting("data")
    plain = bound(operator, positions, wavelength, amplitudes)
    twice = bound(operator.repeat(2, 1, 1), positions, wavelength, amplitudes.repeat(2, 1))
    torch.testing.assert_close(twice, plain / 2)
    torch.testing.assert_close(
        bound(operator, positions, wavelength, amplitudes, power=0.3), plain * 3
    )


def test_known_coordinates_have_no_variance_and_help_the_others():
    operator, positions, wavelength, amplitudes = setting("pilot")
    plain = bound(operator, positions, wavelength, amplitudes)
    known = bound(operator, positions, wavelength, amplitudes, active=(True, False, True))
    assert (known[:, 1] == 0).all()
    assert (known[:, :, 1] == 0).all()
    assert (known[:, 0, 0] <= plain[:, 0, 0] * (1 + 1e-9)).all()


def test_far_line_array_has_the_closed_form_bound():
    # one source, N sensors: var(u) = sigma^2 / (2 |s|^2 k0^2 sum x^2), x from the centre
    positions = ArrayGeometry(8).positions(1.0).double()
    amplitudes = torch.tensor([[2.0 + 0j]], dtype=torch.complex128)
    got = deterministic_bound(
        torch.eye(8, dtype=torch.complex128)[None],
        positions,
        1.0,
        torch.tensor([[0.3, 0.0, 0.0]], dtype=torch.float64),
        amplitudes,
        torch.tensor(0.5),
        active=(True, False, False),
    )
    expected = 0.5 / (2 * 4 * (2 * np.pi) ** 2 * positions[:, 0].square().sum().item())
    assert got[0, 0, 0].item() == pytest.approx(expected)


def test_position_bound_is_that_of_small_displacements():
    operator, positions, wavelength, amplitudes = setting("pilot")
    covariance = bound(operator, positions, wavelength, amplitudes, power=1e-8)
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(covariance)
    shifts = (root @ torch.randn(2, 3, 20000, generator=generator, dtype=torch.float64)).mT
    points = to_xyz(PARAMETERS[:, None] + shifts)
    measured = torch.stack([torch.cov(p.mT) for p in points])
    expected = position_bound(PARAMETERS, covariance)
    scale = expected.diagonal(dim1=-2, dim2=-1).sqrt()
    difference = (measured - expected) / (scale[:, :, None] * scale[:, None, :])
    assert difference.abs().max() < 0.05
    assert xyz_jacobian(PARAMETERS).isfinite().all()


def test_coinciding_sources_do_not_raise():
    operator, positions, wavelength, amplitudes = setting("data")
    same = PARAMETERS[:1].expand(2, 3)
    got = bound(operator, positions, wavelength, amplitudes, same)
    assert got.shape == (2, 3, 3)


def test_jacobian_is_blind_to_what_amplitudes_explain():
    operator, positions, wavelength, amplitudes = setting("data")
    jacobian = projected_jacobian(operator, positions, wavelength, PARAMETERS, amplitudes)
    points = [slow_point(*p) for p in PARAMETERS.numpy()]
    steering = torch.from_numpy(slow_steering(positions.numpy(), points, wavelength))
    signatures = operator @ steering.mT
    assert (signatures.mH @ jacobian.flatten(-2)).abs().max() < 1e-10
