import numpy as np
import pytest
import torch

from musicnet.estimation.bounds import deterministic_bound
from musicnet.estimation.stochastic_bounds import stochastic_bound
from musicnet.scene.array import ArrayGeometry
from tests.reference.slow_likelihood import slow_signatures, slow_stochastic_bound

PARAMETERS = torch.tensor([[0.3, -0.2, 0.8], [-0.2, 0.1, 0.4]], dtype=torch.float64)
POWERS = torch.tensor([[2.0, 0.6 - 0.4j], [0.6 + 0.4j, 1.0]], dtype=torch.complex128)
POSITIONS = ArrayGeometry(3, 3).positions(0.3).double()
NOISE = torch.tensor(0.3, dtype=torch.float64)


def operators(n_blocks):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n_blocks, 7, 9, generator=generator, dtype=torch.complex128)


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_stochastic_bound_agrees_with_slepian_bangs(n_blocks):
    operator = operators(n_blocks)

    def steering_of(parameters):
        identity = np.eye(9)[None]
        return slow_signatures(identity, POSITIONS.numpy(), parameters, 0.3)[0]

    expected = slow_stochastic_bound(
        operator.numpy(), steering_of, PARAMETERS.numpy(), POWERS.numpy(), 0.3, n_snapshots=50
    )
    bound = stochastic_bound(operator, POSITIONS, 0.3, PARAMETERS, POWERS, NOISE, 50)
    for k in range(2):
        own = slice(3 * k, 3 * k + 3)
        np.testing.assert_allclose(bound[k].numpy(), expected[own, own], rtol=1e-4)


def test_one_operator_agrees_with_the_closed_form():
    # J = 2T/sigma^2 Re{ (D^H P_perp D) o (P B^H R^-1 B P)^T kron ones(3,3) }
    operator = operators(1)
    steering = slow_signatures(np.eye(9)[None], POSITIONS.numpy(), PARAMETERS.numpy(), 0.3)[0]
    signatures = operator[0].numpy() @ steering
    slopes = []
    for k, i in np.ndindex(2, 3):
        shift = np.zeros((2, 3))
        shift[k, i] = 1e-6
        ends = [
            slow_signatures(np.eye(9)[None], POSITIONS.numpy(), PARAMETERS.numpy() + d, 0.3)[0]
            for d in (shift, -shift)
        ]
        slopes.append(operator[0].numpy() @ (ends[0] - ends[1])[:, k] / 2e-6)
    slopes = np.stack(slopes, axis=-1)
    powers = POWERS.numpy()
    covariance = signatures @ powers @ signatures.conj().T + 0.3 * np.eye(7)
    projector = np.eye(7) - signatures @ np.linalg.pinv(signatures)
    heard = powers @ signatures.conj().T @ np.linalg.inv(covariance) @ signatures @ powers
    spread = slopes.conj().T @ projector @ slopes
    information = 2 * 50 / 0.3 * (spread * np.kron(heard.T, np.ones((3, 3)))).real
    expected = np.linalg.inv(information)
    bound = stochastic_bound(operator, POSITIONS, 0.3, PARAMETERS, POWERS, NOISE, 50)
    np.testing.assert_allclose(bound[0].numpy(), expected[:3, :3], rtol=1e-4)
    np.testing.assert_allclose(bound[1].numpy(), expected[3:, 3:], rtol=1e-4)


def test_stochastic_bound_lies_above_the_deterministic_one_and_meets_it_at_high_snr():
    operator = operators(1)
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(20000, 2, generator=generator, dtype=torch.complex128)
    symbols = white @ torch.linalg.cholesky(POWERS).mT
    for noise, lowest, highest in ((3.0, 1.02, 5.0), (1e-4, 0.98, 1.02)):
        power = torch.tensor(noise)
        known = deterministic_bound(operator, POSITIONS, 0.3, PARAMETERS, symbols, power)
        gaussian = stochastic_bound(operator, POSITIONS, 0.3, PARAMETERS, POWERS, power, 20000)
        ratio = (gaussian / known).diagonal(dim1=-2, dim2=-1)
        assert (ratio > lowest).all()
        assert (ratio < highest).all()


def test_knowing_more_never_widens_the_stochastic_bound():
    operator = operators(2)
    diagonal = torch.diag(POWERS.diagonal())
    arguments = (operator, POSITIONS, 0.3, PARAMETERS, diagonal, NOISE, 50)
    nothing_known = stochastic_bound(*arguments)
    noise_known = stochastic_bound(*arguments, is_noise_known=True)
    all_known = stochastic_bound(*arguments, is_noise_known=True, is_uncorrelated=True)
    for wide, narrow in ((nothing_known, noise_known), (noise_known, all_known)):
        smallest = torch.linalg.eigvalsh(wide - narrow).amin(-1)
        assert (smallest > -1e-12).all()
    assert (nothing_known - all_known).abs().max() > 1e-6 * nothing_known.abs().max()
