"""Signal and noise subspaces of a covariance."""

from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.estimation.hermitian import check_covariance, check_definite, hermitian_eigen
from musicnet.estimation.spectrum import load_diagonal
from musicnet.shapes import Covariance


def eigen_decomposition(
    covariance: Covariance, loading: float = 1e-6
) -> tuple[Float[Tensor, "*batch row"], Complex[Tensor, "*batch row row"]]:
    """Eigenvalues and eigenvectors of a Hermitian matrix.

    Both triangles count, a scene that is not finite gives NaN and harms no other, and gradients
    stay finite where eigenvalues meet: see `musicnet.estimation.hermitian`.

    Args:
        covariance: R; linear power.
        loading: share of the mean row power that is added to the diagonal, so that neither a
            rank-one nor an all-zero matrix is singular.

    Returns:
        Eigenvalues, ascending; eigenvectors in columns.
    """
    return hermitian_eigen(load_diagonal(covariance, loading))


def noise_subspace(covariance: Covariance, n_sources: int) -> Complex[Tensor, "*batch row noise"]:
    """Directions in which only noise lives.

    Args:
        covariance: R; linear power.
        n_sources: K, the same for the whole batch.

    Returns:
        U_n, orthonormal columns: eigenvectors of the R - K smallest eigenvalues.

    Raises:
        ValueError: no direction is left, or no covariance.
    """
    check_covariance(covariance)
    n_rows = covariance.shape[-1]
    if not 0 <= n_sources < n_rows:
        raise ValueError(
            "MUSIC needs fewer sources than sensors, so that a noise subspace exists: got "
            f"n_sources={n_sources}, n_sensors={n_rows}. Use a larger array, or n_sources <= "
            f"{n_rows - 1}."
        )
    values, vectors = eigen_decomposition(covariance)
    check_definite(values)
    return vectors[..., : n_rows - n_sources]
