import math

import pytest
import torch

from musicnet.estimation.hermitian import (
    check_covariance,
    check_n_sources,
    general_eigen,
    hermitian_eigen,
    source_slots,
)
from musicnet.estimation.spectrum import bartlett_spectrum, capon_spectrum
from musicnet.estimation.subspace import eigen_decomposition, noise_subspace


def random_hermitian(*batch, n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn((*batch, n, n), generator=generator, dtype=torch.complex128)
    return half + half.mH


def with_eigenvalues(values, seed=0):
    vectors = torch.linalg.qr(random_hermitian(n=len(values), seed=seed)).Q
    return vectors @ torch.diag(torch.tensor(values, dtype=torch.float64) + 0j) @ vectors.mH


def test_eigenvectors_rebuild_the_matrix():
    matrix = random_hermitian(3, 2)
    values, vectors = hermitian_eigen(matrix)
    assert (values.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(vectors * values[..., None, :] @ vectors.mH, matrix)


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_bad_scene_harms_only_itself(spoilt):
    good = random_hermitian(4)
    mixed = good.clone()
    mixed[2, 0, 3] = spoilt
    values, vectors = hermitian_eigen(mixed)
    assert values[2].isnan().all()
    assert vectors[2].isnan().all()
    others = torch.tensor([0, 1, 3])
    assert torch.equal(values[others], hermitian_eigen(good)[0][others])


def test_a_bad_scene_spoils_no_gradient_of_the_others():
    matrix = random_hermitian(3)
    matrix[1, 1, 1] = math.nan
    matrix.requires_grad_()
    values, vectors = hermitian_eigen(matrix)
    (values[[0, 2]].sum() + vectors[[0, 2], 0, 0].abs().sum()).backward()
    assert matrix.grad.isfinite().all()
    assert (matrix.grad[1] == 0).all()
    assert (matrix.grad[0] != 0).any()


def test_gradients_are_those_of_finite_differences_where_eigenvalues_are_apart():
    def smooth(matrix):
        values, vectors = hermitian_eigen(matrix)
        projector = vectors[:, :2] @ vectors[:, :2].mH
        return values, torch.view_as_real(projector)

    matrix = with_eigenvalues([1.0, 2.0, 4.0, 7.0]).requires_grad_()
    assert torch.autograd.gradcheck(smooth, (matrix,))


def test_gradients_stay_finite_where_eigenvalues_meet():
    matrix = with_eigenvalues([1.0, 1.0, 1.0, 5.0]).to(torch.complex64).requires_grad_()
    values, vectors = hermitian_eigen(matrix)
    (values.sum() + vectors.abs().sum()).backward()
    assert matrix.grad.isfinite().all()


def test_projectors_keep_their_gradient_where_eigenvalues_meet_on_one_side():
    def leak(matrix):
        vectors = hermitian_eigen(matrix)[1]
        return (vectors[0, :3].abs().square()).sum()  # of the projector on the three lowest

    matrix = with_eigenvalues([1.0, 1.0, 1.0, 5.0]).requires_grad_()
    leak(matrix).backward()
    shift = 1e-5 * random_hermitian(n=4, seed=3)
    expected = leak(matrix + shift) - leak(matrix - shift)
    slope = 2 * (matrix.grad.conj() * shift).real.sum()
    assert slope.item() == pytest.approx(expected.item(), rel=1e-4)


def test_an_identity_has_finite_gradients():
    matrix = torch.eye(4, dtype=torch.complex64).requires_grad_()
    hermitian_eigen(matrix)[1].abs().sum().backward()
    assert matrix.grad.isfinite().all()


def test_subspaces_are_as_robust():
    covariance = random_hermitian(2) @ random_hermitian(2)
    covariance[0] = math.nan
    noise = noise_subspace(covariance, 2)
    assert noise[0].isnan().all()
    torch.testing.assert_close(noise[1].mH @ noise[1], torch.eye(3, dtype=torch.complex128))
    assert eigen_decomposition(covariance)[0][1].isfinite().all()


@pytest.mark.parametrize(
    ("covariance", "got"),
    [
        (torch.zeros(2, 3, 4, dtype=torch.complex64), r"got shape \(2, 3, 4\)"),
        (torch.zeros(4, dtype=torch.complex64), r"got shape \(4,\)"),
        (torch.eye(3), "got torch.float32"),
        (torch.triu(torch.ones(2, 3, 3, dtype=torch.complex64)), "up to 1 with .* in scene 0"),
    ],
)
@pytest.mark.bad_shape
def test_what_is_no_covariance_is_refused(covariance, got):
    with pytest.raises(ValueError, match=got):
        check_covariance(covariance)


def test_rounding_and_bad_scenes_are_let_through():
    covariance = random_hermitian(3).to(torch.complex64)
    covariance[0, 0, 1] += 1e-6
    covariance[1] = math.nan
    check_covariance(covariance)


@pytest.mark.parametrize("n_sources", [8, -1, torch.tensor([2, 8]), torch.tensor([3, -1])])
def test_impossible_numbers_of_sources_are_refused(n_sources):
    with pytest.raises(ValueError, match=r"got n_sources=(8|-1), n_sensors=8.*n_sources <= 7"):
        check_n_sources(n_sources, 8, 7, "MUSIC")


def test_slots_are_filled_from_the_first():
    n_slots, present = source_slots(torch.tensor([0, 2, 1]), torch.zeros(3))
    assert n_slots == 2
    assert present.tolist() == [[False, False], [True, True], [True, False]]
    assert source_slots(0, torch.zeros(2))[0] == 1


@pytest.mark.parametrize(
    "use",
    [
        lambda r: noise_subspace(r, 1),
        lambda r: bartlett_spectrum(r, torch.eye(3) + 0j),
        lambda r: capon_spectrum(r, torch.eye(3) + 0j),
    ],
)
def test_whoever_takes_a_covariance_refuses_half_of_one(use):
    with pytest.raises(ValueError, match="must be Hermitian"):
        use(torch.triu(torch.ones(3, 3, dtype=torch.complex64)))


def test_second_derivatives_are_refused_rather_than_wrong():
    matrix = with_eigenvalues([1.0, 2.0, 4.0]).requires_grad_()
    values, _ = hermitian_eigen(matrix)
    (slope,) = torch.autograd.grad(values.square().sum(), matrix, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.abs().sum().backward()


def test_general_eigenvectors_have_the_gradient_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn((2, 3, 3), generator=generator, dtype=torch.complex128)

    def smooth(matrix):
        values, vectors = general_eigen(matrix)
        return values, vectors.abs()

    assert torch.autograd.gradcheck(smooth, (matrix.requires_grad_(),))
