"""Where the elements stand: lines, rectangles, rings, sparse lines, and any list of places."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch

from musicnet.shapes import Positions

Kind = Literal["rectangle", "ring", "nested", "coprime", "positions"]
Place = tuple[float, float, float]


@dataclass(frozen=True)
class ArrayGeometry:
    """The elements of an aperture.

    ==============  ============================================================================
    ``rectangle``   a grid in the x-y plane; one column or one row makes it a line
    ``ring``        a circle in the x-y plane, counter-clockwise from +x
    ``nested``      a dense line of ``sparse_levels[0]`` along x, continued by
                    ``sparse_levels[1]`` elements as many steps apart as the dense part is long
    ``coprime``     two interleaved lines along x for numbers M < N without a common divisor:
                    N elements M steps apart and 2 M elements N steps apart, one in common
    ``positions``   anywhere: ``places_wavelengths``
    ==============  ============================================================================

    All but the last are centred at the origin, to which phases refer.

    Args:
        n_horizontal: elements along x of a rectangle; all elements of a ring.
        n_vertical: elements along y of a rectangle; 1 for everything else.
        spacing_wavelengths: distance of neighbours, or the step of a sparse line, in wavelengths.
        kind: see the table.
        sparse_levels: two numbers of a nested or coprime line.
        places_wavelengths: x, y, z of each element, in wavelengths.

    Raises:
        ValueError: fewer than two elements, numbers that are not finite, or that do not belong to
            the kind.

    Example:
        >>> ArrayGeometry(n_horizontal=3).positions(wavelength=2.0)[:, 0].tolist()
        [-1.0, 0.0, 1.0]
        >>> nested = ArrayGeometry(kind="nested", sparse_levels=(2, 3))
        >>> (2.0 * nested.positions(wavelength=1.0)[:, 0] + 4.0).tolist()
        [0.0, 1.0, 2.0, 5.0, 8.0]
    """

    n_horizontal: int = 8
    n_vertical: int = 1
    spacing_wavelengths: float = 0.5
    kind: Kind = "rectangle"
    sparse_levels: tuple[int, int] | None = None
    places_wavelengths: tuple[Place, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise ValueError(f"array.kind must be one of {known}: got {self.kind!r}.")
        self._check_fit()
        if min(self.n_horizontal, self.n_vertical) < 1 or self.n_elements < 2:
            raise ValueError(
                "an array needs at least two elements to see a direction: got "
                f"n_horizontal={self.n_horizontal}, n_vertical={self.n_vertical}. "
                "Set n_horizontal >= 2 for a linear array."
            )
        if not (math.isfinite(self.spacing_wavelengths) and self.spacing_wavelengths > 0):
            raise ValueError(
                "spacing_wavelengths must be finite and positive: got "
                f"{self.spacing_wavelengths}. Half a wavelength is 0.5."
            )

    def _check_fit(self) -> None:
        """Refuses numbers that do not belong to the kind."""
        if self.kind != "rectangle" and self.n_vertical != 1:
            raise ValueError(
                f"n_vertical is about rectangles: got n_vertical={self.n_vertical} with "
                f"kind={self.kind!r}. Set n_vertical=1."
            )
        is_sparse = self.kind in ("nested", "coprime")
        if is_sparse != (self.sparse_levels is not None):
            raise ValueError(
                "sparse_levels are two numbers for nested and coprime lines, and for those alone: "
                f"got sparse_levels={self.sparse_levels} with kind={self.kind!r}."
            )
        if self.sparse_levels is not None:
            low, high = self.sparse_levels
            fits = low >= 1 and high >= 1
            if self.kind == "coprime":
                fits = 1 < low < high and math.gcd(low, high) == 1
            if not fits:
                raise ValueError(
                    "sparse_levels must be positive, and for a coprime line ascending from 2 on "
                    f"without a common divisor: got {self.sparse_levels} with kind={self.kind!r}."
                )
        if (self.kind == "positions") != (self.places_wavelengths is not None):
            raise ValueError(
                "places_wavelengths hold the elements of kind='positions', and of that alone: got "
                f"{'none' if self.places_wavelengths is None else 'some'} with kind={self.kind!r}."
            )
        places = self.places_wavelengths or ()
        if len(set(places)) != len(places) or not all(math.isfinite(c) for p in places for c in p):
            raise ValueError(
                f"places_wavelengths must be finite, and no two the same: got {places}."
            )

    @property
    def n_elements(self) -> int:
        """N, all elements of the aperture."""
        if self.places_wavelengths is not None:
            return len(self.places_wavelengths)
        if self.sparse_levels is not None:
            return len(_sparse_steps(self.kind, *self.sparse_levels))
        return self.n_horizontal * self.n_vertical

    @property
    def is_line(self) -> bool:
        """Whether all elements stand on one straight line, which sees a single direction cosine."""
        places = self.positions(wavelength=1.0).double()
        steps = places - places[0]
        return int(torch.linalg.matrix_rank(steps, rtol=1e-5)) == 1

    def positions(self, wavelength: float, device: torch.device | str = "cpu") -> Positions:
        """Places the elements.

        Args:
            wavelength: metres.
            device: where the answer lives.

        Returns:
            Metres, float32; in a rectangle element n = vertical * n_horizontal + horizontal, x
            running fastest; on a line ascending in x. Made once and shared: do not write on it.
        """
        return _positions(self, wavelength, torch.device(device))


def line_spacing(positions: Positions, wavelength: float) -> float | None:
    """Recognises a uniform line along x, for methods that live on its regularity.

    Args:
        positions: metres, any origin.
        wavelength: metres.

    Returns:
        Distance of neighbours in wavelengths; None for any other array or order.
    """
    shape = rectangle_shape(positions, wavelength)
    return shape[2] if shape is not None and shape[1] == 1 else None


def rectangle_shape(positions: Positions, wavelength: float) -> tuple[int, int, float] | None:
    """Recognises a rectangular grid in the x-y plane with x running fastest.

    Args:
        positions: metres, any origin.
        wavelength: metres.

    Returns:
        Elements along x, elements along y, and their distance in wavelengths; None for any other
        array, spacing or order. A line along x is a rectangle of one row.
    """
    places = positions.double().cpu() / wavelength
    n_elements = places.shape[0]
    if n_elements < 2:
        return None
    steps = places - places[0]
    spacing = float(steps[1, 0])
    if not spacing > 0:
        return None
    in_first_row = (steps[:, 1].abs() < 1e-3 * spacing).long()
    n_horizontal = int(in_first_row.sum())
    if n_horizontal < 2 or n_elements % n_horizontal:
        return None
    n_vertical = n_elements // n_horizontal
    spacing = float(steps[n_horizontal - 1, 0]) / (n_horizontal - 1)
    expected = ArrayGeometry(n_horizontal, n_vertical, spacing).positions(1.0).double()
    apart = (steps - (expected - expected[0])).abs().max()
    # single precision of positions in metres, over a few hundred steps
    return (n_horizontal, n_vertical, spacing) if float(apart) < 1e-3 * spacing else None


def is_ring(positions: Positions) -> bool:
    """Whether the elements stand on a circle parallel to the x-y plane, and not on a line.

    Args:
        positions: metres, any origin.

    Returns:
        True for rings of three elements and more, which tell bearings all around.

    Example:
        >>> ring = ArrayGeometry(5, kind="ring").positions(1.0)
        >>> is_ring(ring), is_ring(ArrayGeometry(5).positions(1.0))
        (True, False)
    """
    places = positions.double().cpu()
    if len(places) < 3:
        return False
    from_centre = places - places.mean(0)
    radii = from_centre[:, :2].norm(dim=1)
    size = radii.max()
    is_even = bool(((radii - radii.mean()).abs().max() < 1e-3 * size) & (size > 0))
    is_level = bool(from_centre[:, 2].abs().max() < 1e-3 * size)
    return is_even and is_level


def is_mirrored(positions: Positions) -> bool:
    """Whether the elements in reverse order are the array's mirror image through its centre.

    Args:
        positions: metres.

    Returns:
        True for lines and rectangles; only then does forward-backward averaging hold.
    """
    ends = positions + positions.flip(0)
    size = positions.abs().max()
    return bool((ends - ends.mean(0)).abs().max() <= 1e-4 * size)


def _sparse_steps(kind: str, low: int, high: int) -> list[int]:
    """Where the elements of a sparse line stand, in steps."""
    if kind == "nested":
        return [*range(low), *(low + (low + 1) * i for i in range(high))]
    return sorted({low * i for i in range(high)} | {high * i for i in range(2 * low)})


@lru_cache(maxsize=32)
def _positions(array: ArrayGeometry, wavelength: float, device: torch.device) -> Positions:
    """Element positions, kept: every block of scenes asks for them."""
    # the first caller may be a validation loop, and its inference tensors would outlive it
    with torch.inference_mode(mode=False):
        if array.places_wavelengths is not None:
            places = torch.tensor(array.places_wavelengths, dtype=torch.float64) * wavelength
        else:
            places = _steps(array) * (array.spacing_wavelengths * wavelength)
        return places.to(device=device, dtype=torch.float32)


def _steps(array: ArrayGeometry) -> Positions:
    """Centred places in units of the spacing."""
    if array.kind == "ring":
        turn = 2.0 * math.pi * torch.arange(array.n_horizontal, dtype=torch.float64)
        turn = turn / array.n_horizontal
        radius = 0.5 / math.sin(math.pi / array.n_horizontal)
        return radius * torch.stack((turn.cos(), turn.sin(), torch.zeros_like(turn)), dim=-1)
    if array.sparse_levels is not None:
        x = torch.tensor(_sparse_steps(array.kind, *array.sparse_levels), dtype=torch.float64)
        x = x - 0.5 * (x[0] + x[-1])
        return torch.stack((x, torch.zeros_like(x), torch.zeros_like(x)), dim=-1)
    axes = (
        (torch.arange(n, dtype=torch.float64) - (n - 1) / 2)
        for n in (array.n_vertical, array.n_horizontal)
    )
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack((x, y, torch.zeros_like(x)), dim=-1).reshape(-1, 3)
