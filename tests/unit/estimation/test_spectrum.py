import numpy as np
import pytest
import torch

from musicnet.estimation.covariance import (
    forward_backward,
    sample_covariance,
    whitened_blocks,
)
from musicnet.estimation.spectrum import (
    SearchGrid,
    bartlett_spectrum,
    capon_spectrum,
    music_spectrum,
)
from musicnet.estimation.subspace import eigen_decomposition, noise_subspace
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.sources import SearchRegion, SourceLaw
from musicnet.scene.steering import steering
from tests.reference.slow_twins import slow_covariance

POSITIONS = ArrayGeometry(8).positions(1.0).double()
BOX = SearchRegion((-0.8, 0.9), (-0.5, 0.4), (0.2, 2.0))


def line_steering(u):
    u = torch.as_tensor(u, dtype=torch.float64)
    return steering(POSITIONS, torch.stack((u, 0 * u, 0 * u), dim=-1), 1.0)


def exact_covariance(u, noise=0.1):
    a = line_steering(u)
    return a.mT @ a.conj() + noise * torch.eye(8, dtype=torch.complex128)


def random_snapshots(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.complex128)


def test_grid_covers_the_box_with_its_edges():
    cells = SearchGrid.over(BOX, n_v=11, n_u=19, n_rho=8).cells
    assert cells.shape == (11, 19, 8, 3)
    assert cells[0, 0, 0].tolist() == pytest.approx([-0.8, -0.5, 0.2])
    assert cells[-1, -1, -1].tolist() == pytest.approx([0.9, 0.4, 2.0])
    torch.testing.assert_close(cells[:, :, :, 0], cells[:1, :, :1, 0].expand(11, 19, 8))


def test_cell_centres_have_whole_coordinates():
    grid = SearchGrid.over(BOX, 5, 7, 3)
    coordinates = grid.coordinates(grid.cells.double())
    expected = torch.stack(
        torch.meshgrid(*(torch.arange(n).double() for n in grid.shape), indexing="ij"), dim=-1
    )
    torch.testing.assert_close(coordinates, expected, atol=1e-5, rtol=0)


def test_coordinates_and_parameters_invert_each_other():
    grid = SearchGrid.over(BOX, 5, 7, 3)
    parameters = SourceLaw().draw(20, [torch.Generator().manual_seed(0)]).parameters
    torch.testing.assert_close(grid.parameters_at(grid.coordinates(parameters)), parameters)


def test_fixed_coordinates_have_one_cell_and_no_step():
    region = SearchRegion.from_angles((-60.0, 60.0), (0.0, 0.0), None)
    grid = SearchGrid.over(region, 11, 19, 8)
    assert grid.shape == (1, 19, 1)
    assert grid.steps[0] == grid.steps[2] == 0
    assert grid.coordinates(torch.tensor([0.1, 0.0, 0.0])).isfinite().all()
    assert grid.parameters_at(torch.tensor([0.3, 2.0, 0.4]))[1:].tolist() == [0.0, 0.0]


def test_a_grid_with_one_cell_over_a_searched_coordinate_is_refused():
    with pytest.raises(ValueError, match=r"got n_u=1 over \(-0.8, 0.9\)"):
        SearchGrid.over(BOX, 11, 1, 8)


def test_covariance_agrees_with_the_slow_twin():
    y = random_snapshots(3, 20, 5)
    for i in range(3):
        np.testing.assert_allclose(
            sample_covariance(y)[i].numpy(), slow_covariance(y[i].numpy()), atol=1e-12
        )


def test_forward_backward_of_a_symmetric_array_keeps_its_exact_covariance():
    exact = exact_covariance([0.2])
    torch.testing.assert_close(forward_backward(exact), exact)


def test_forward_backward_raises_the_rank_of_a_coherent_pair():
    a = line_steering([0.1, 0.5])
    field = (a * torch.tensor([[1.0], [1.0j]], dtype=a.dtype)).sum(0)
    covariance = field[:, None] * field.conj()
    assert torch.linalg.matrix_rank(covariance, rtol=1e-9) == 1
    assert torch.linalg.matrix_rank(forward_backward(covariance), rtol=1e-9) == 2


def test_whitened_blocks_keep_the_outer_product():
    y = random_snapshots(4, 50, 8)
    reduced = whitened_blocks(y)
    assert reduced.shape == (4, 8, 8)
    torch.testing.assert_close(sample_covariance(reduced) * 8, sample_covariance(y) * 50)


def test_spectra_agree_with_their_quadratic_forms():
    covariance = sample_covariance(random_snapshots(3, 20, 8))
    a = line_steering(torch.linspace(-1, 1, 9))
    bartlett, capon = bartlett_spectrum(covariance, a), capon_spectrum(covariance, a, loading=0.0)
    music = music_spectrum(noise_subspace(covariance, 2), a)
    for i in range(3):
        exact = covariance[i].numpy()
        _, vectors = np.linalg.eigh(exact)
        for g, beam in enumerate(a.numpy()):
            power = (beam.conj() @ exact @ beam).real
            assert bartlett[i, g].item() == pytest.approx(power / 64)
            power = 1 / (beam.conj() @ np.linalg.inv(exact) @ beam).real
            assert capon[i, g].item() == pytest.approx(power, rel=1e-6)
            leaked = np.linalg.norm(vectors[:, :6].conj().T @ beam) ** 2
            assert music[i, g].item() == pytest.approx(8 / leaked, rel=1e-4)


def test_music_finds_close_sources_in_an_exact_covariance():
    u = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    spectrum = music_spectrum(noise_subspace(exact_covariance([0.1, 0.17]), 2), line_steering(u))
    inner = spectrum[1:-1]
    maxima = (inner > spectrum[:-2]) & (inner > spectrum[2:]) & (inner > 1e3)
    torch.testing.assert_close(u[1:-1][maxima], torch.tensor([0.1, 0.17], dtype=torch.float64))


def test_spectra_of_rank_one_and_silent_data_are_finite():
    a = line_steering(torch.linspace(-1, 1, 9)).to(torch.complex64)
    for y in (torch.ones(1, 8, dtype=torch.complex64), torch.zeros(1, 8, dtype=torch.complex64)):
        covariance = sample_covariance(y)
        assert bartlett_spectrum(covariance, a).isfinite().all()
        assert capon_spectrum(covariance, a).isfinite().all()
        assert music_spectrum(noise_subspace(covariance, 1), a).isfinite().all()


def test_noise_subspace_is_orthonormal_and_orthogonal_to_the_sources():
    noise = noise_subspace(exact_covariance([0.1, -0.4]), 2)
    torch.testing.assert_close(noise.mH @ noise, torch.eye(6, dtype=noise.dtype))
    assert (line_steering([0.1, -0.4]).conj() @ noise).abs().max() < 1e-10


def test_eigenvalues_look_at_both_triangles():
    covariance = sample_covariance(random_snapshots(20, 4))
    spoilt = covariance.clone()
    spoilt[0, 3] += 1.0  # torch.linalg.eigh alone would not see this
    values, _ = eigen_decomposition(spoilt)
    assert not torch.allclose(values, eigen_decomposition(covariance)[0])


@pytest.mark.parametrize("n_sources", [8, -1])
def test_more_sources_than_sensors_are_refused(n_sources):
    with pytest.raises(ValueError, match=f"got n_sources={n_sources}, n_sensors=8"):
        noise_subspace(exact_covariance([0.0]), n_sources)


def test_cells_beyond_the_unit_disc_are_brought_to_its_edge():
    region = SearchRegion((-0.94, 0.94), (-0.77, 0.77), (0.2, 2.0))
    cells = SearchGrid.over(region, n_v=5, n_u=7, n_rho=3).visible_cells
    radius = cells[..., :2].norm(dim=-1)
    assert radius.max() <= 1.0 + 1e-6
    assert torch.allclose(cells[2, :, :, 0], torch.linspace(-0.94, 0.94, 7)[:, None].expand(7, 3))
