"""Hermitian matrices of many scenes: checks, and an eigensolver that no single scene can upset."""

from typing import Any

import torch
from jaxtyping import Bool, Complex, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from musicnet.shapes import Covariance

_HERMITIAN_TOLERANCE = 1e-3  # far above rounding, far below a transposed or one-sided matrix


def check_covariance(covariance: Covariance) -> None:
    """Refuses what cannot be a covariance.

    Scenes that are not finite pass: estimators leave them unresolved, and the others alone.

    Args:
        covariance: R; linear power.

    Raises:
        ValueError: not square, not complex, no rows, or not Hermitian.
    """
    shape = tuple(covariance.shape)
    if covariance.ndim < 2 or shape[-1] != shape[-2] or shape[-1] < 1:
        raise ValueError(
            f"a covariance must end in (row, row): got shape {shape}. Pass sample_covariance(y)."
        )
    if not covariance.is_complex():
        raise ValueError(
            f"a covariance of complex snapshots must be complex: got {covariance.dtype}. "
            "Convert it with .to(torch.complex64)."
        )
    if torch.compiler.is_compiling():
        return  # a graph cannot look at numbers
    with torch.no_grad():
        apart = (covariance - covariance.mH).abs().amax((-2, -1))
        largest = covariance.abs().amax((-2, -1))
        lopsided = (apart > _HERMITIAN_TOLERANCE * largest).flatten()
        if lopsided.any():
            scene = int(lopsided.int().argmax())
            raise ValueError(
                f"a covariance must be Hermitian: got |R - R^H| up to {float(apart.max()):.3g} "
                f"with |R| up to {float(largest.max()):.3g}, first in scene {scene}. "
                "Pass 0.5 * (R + R.mH), or check for a missing conjugate."
            )


def check_definite(values: Float[Tensor, "*batch row"]) -> None:
    """Refuses eigenvalues that no covariance has: powers are not negative.

    Scenes that are not finite pass, as in `check_covariance`.

    Args:
        values: eigenvalues; linear power.

    Raises:
        ValueError: one is negative beyond rounding.
    """
    if torch.compiler.is_compiling():
        return
    with torch.no_grad():
        lowest, largest = values.amin(-1), values.abs().amax(-1)
        negative = (lowest < -_HERMITIAN_TOLERANCE * largest).flatten()
        if negative.any():
            scene = int(negative.int().argmax())
            raise ValueError(
                "a covariance must have no negative eigenvalue: got "
                f"{float(lowest.flatten()[scene]):.3g} in scene {scene}, with the largest "
                f"{float(largest.flatten()[scene]):.3g}. Pass sample_covariance(y)."
            )


def check_n_sources(
    n_sources: int | Int[Tensor, "*batch"], n_sensors: int, highest: int, method: str
) -> None:
    """Refuses more sources than a method can tell apart.

    Args:
        n_sources: K, one number for all scenes or one for each.
        n_sensors: of the array, for the error.
        highest: most sources that the method can tell apart.
        method: its name, for the error.

    Raises:
        ValueError: fewer than no sources, or more than ``highest``.
    """
    if isinstance(n_sources, int):
        fewest = most = n_sources
    else:
        fewest = int(n_sources.min()) if n_sources.numel() else 0
        most = int(n_sources.max()) if n_sources.numel() else 0
    if not 0 <= fewest <= most <= highest:
        raise ValueError(
            f"{method} needs fewer sources than sensors, so that a noise subspace exists: got "
            f"n_sources={most if most > highest else fewest}, n_sensors={n_sensors}. "
            f"Use a larger array, or n_sources <= {highest}."
        )


def source_slots(
    n_sources: int | Int[Tensor, "*batch"], batch: Shaped[Tensor, "*batch"]
) -> tuple[int, Bool[Tensor, "*batch slot"]]:
    """How many slots an answer has, and which of them each scene fills.

    Args:
        n_sources: K, one number for all scenes or one for each.
        batch: anything with one entry per scene.

    Returns:
        Slots, as many as the scene with most sources needs and at least 1; and True for the first
        K slots of each scene.
    """
    if isinstance(n_sources, int):
        most, counts = n_sources, torch.full(batch.shape, n_sources, device=batch.device)
    else:
        most = int(n_sources.max()) if n_sources.numel() else 0
        counts = n_sources.to(batch.device)
    n_slots = max(most, 1)
    return n_slots, torch.arange(n_slots, device=batch.device) < counts[..., None]


def hermitian_eigen(
    matrix: Covariance,
) -> tuple[Float[Tensor, "*batch row"], Complex[Tensor, "*batch row row"]]:
    """Eigenvalues and eigenvectors; NaN for a matrix that is not finite, and for no other.

    Both triangles count: the matrix is made Hermitian first, whereas `torch.linalg.eigh` alone
    would not look at the upper one. Where eigenvalues meet, the gradient of single eigenvectors
    does not exist; here it stays finite: 1/gap is broadened to gap/(gap^2 + e^2) with e near
    rounding, so that what is smooth, as a projector on a separate subspace, keeps its gradient.

    Args:
        matrix: close to Hermitian.

    Returns:
        Eigenvalues, ascending; eigenvectors in columns, each with a phase of no meaning.

    Example:
        >>> matrix = torch.tensor([[2.0 + 0j, 0.0], [0.0, 1.0]])
        >>> hermitian_eigen(torch.stack((matrix, torch.nan * matrix)))[0].tolist()
        [[1.0, 2.0], [nan, nan]]
    """
    hermitian = 0.5 * (matrix + matrix.mH)
    values, vectors = _HermitianEigen.apply(hermitian)  # type: ignore[no-untyped-call]
    return values, vectors


def general_eigen(
    matrix: Complex[Tensor, "*batch row row"],
) -> tuple[Complex[Tensor, "*batch row"], Complex[Tensor, "*batch row row"]]:
    """Eigenvalues and right eigenvectors of any matrices.

    Where eigenvalues meet in a matrix that has no full set of eigenvectors, gradients do not
    exist: such a matrix gets zeros, and the others of its batch keep theirs.

    Args:
        matrix: finite; of any symmetry.

    Returns:
        Eigenvalues in no order; eigenvectors in columns, each with a phase of no meaning.
    """
    values, vectors = _GeneralEigen.apply(matrix)  # type: ignore[no-untyped-call]
    return values, vectors


class _GeneralEigen(torch.autograd.Function):
    """The general eigensolver with the gradient of each matrix apart from the others'."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eig(matrix)
        ctx.save_for_backward(values, vectors)
        return values, vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        by_value, by_vector = gradients
        gaps = (values[..., None, :] - values[..., :, None]).conj()
        inner = vectors.mH @ by_vector
        # eigenvectors have unit length, which takes out what would stretch them
        stretch = inner.diagonal(dim1=-2, dim2=-1).real
        inner = inner - (vectors.mH @ vectors) * stretch[..., None, :]
        apart = gaps != 0
        inner = (inner / gaps.where(apart, torch.ones_like(gaps))) * apart
        inner = inner + torch.diag_embed(by_value - inner.diagonal(dim1=-2, dim2=-1))
        gradient: Tensor = torch.linalg.solve_ex(vectors.mH, inner).result @ vectors.mH
        finite = torch.isfinite(gradient).all(-1).all(-1)
        return gradient.where(finite[..., None, None], torch.zeros_like(gradient))


def isolate_gradients(matrix: Covariance) -> Covariance:
    """The same matrices; a gradient that does not exist becomes zero, scene by scene.

    Args:
        matrix: what an estimator starts from.

    Returns:
        The matrices. Directions of an identity, or of nothing, have no gradient, and the NaN of
        such a scene would reach the weights that it shares with all others.

    Example:
        >>> matrix = torch.zeros(1, 1, dtype=torch.complex64, requires_grad=True)
        >>> isolate_gradients(matrix).sqrt().abs().sum().backward()
        >>> matrix.grad.abs().item()
        0.0
    """
    isolated: Tensor = _IsolatedGradients.apply(matrix)  # type: ignore[no-untyped-call]
    return isolated


class _IsolatedGradients(torch.autograd.Function):
    """Zeros for the gradients of scenes in which one is not finite."""

    @staticmethod
    def forward(_ctx: Any, matrix: Tensor) -> Tensor:
        return matrix.view_as(matrix)

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        finite = torch.isfinite(gradient).all(-1).all(-1)
        return gradient.where(finite[..., None, None], torch.zeros_like(gradient))


class _HermitianEigen(torch.autograd.Function):
    """The eigensolver with its gradient broadened."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        finite = torch.isfinite(matrix).all(-1).all(-1)
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        values, vectors = torch.linalg.eigh(matrix.where(finite[..., None, None], identity))
        ctx.save_for_backward(values, vectors, finite)
        spoilt = ~finite[..., None]
        return (
            values.masked_fill(spoilt, torch.nan),
            vectors.masked_fill(spoilt[..., None], torch.nan),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        values, vectors, finite = ctx.saved_tensors
        by_value, by_vector = gradients
        gaps = values[..., None, :] - values[..., :, None]
        # the power keeps the amplification below 1e5 in single precision, 1e12 in double
        width = torch.finfo(values.dtype).eps ** 0.75 * values.abs().amax(-1)[..., None, None]
        tiny = torch.finfo(values.dtype).tiny
        inverse_gaps = gaps / (gaps.square() + width.square()).clamp_min(tiny)
        inner = (vectors.mH @ by_vector) * inverse_gaps
        inner = inner + torch.diag_embed(by_value).to(inner.dtype)
        gradient: Tensor = vectors @ inner @ vectors.mH
        # a scene that is not finite teaches nothing, also not through NaN * 0
        return gradient.where(finite[..., None, None], torch.zeros_like(gradient))
