import itertools
import math

import pytest
import torch

from musicnet.scene.array import ArrayGeometry, is_mirrored, line_spacing, rectangle_shape

NESTED = ArrayGeometry(kind="nested", sparse_levels=(3, 3))
COPRIME = ArrayGeometry(kind="coprime", sparse_levels=(3, 5))
RING = ArrayGeometry(7, kind="ring")
ANYWHERE = ArrayGeometry(
    kind="positions", places_wavelengths=((0.0, 0.0, 0.0), (0.5, 0.1, 0.0), (-0.3, 0.2, 0.4))
)


def lags(array):
    """Distances between elements of a line, in steps."""
    x = array.positions(1.0)[:, 0].double() / array.spacing_wavelengths
    return {round(float(b - a)) for a, b in itertools.combinations(x, 2)}


def test_a_ring_keeps_its_neighbours_at_the_spacing():
    places = RING.positions(2.0)
    radius = places.norm(dim=-1)
    torch.testing.assert_close(radius, radius[:1].expand(7))
    neighbours = (places - places.roll(1, 0)).norm(dim=-1)
    torch.testing.assert_close(neighbours, torch.ones(7))
    assert places[0, 1] == 0
    assert places[1, 1] > 0  # counter-clockwise


def test_a_nested_line_has_every_lag_up_to_its_length():
    assert NESTED.n_elements == 6
    assert lags(NESTED) == set(range(1, 12))


def test_a_coprime_line_has_every_lag_up_to_the_product():
    assert COPRIME.n_elements == 3 * 2 + 5 - 1
    assert set(range(1, 3 * 5 + 3)) <= lags(COPRIME)


def test_sparse_lines_are_centred():
    for array in (NESTED, COPRIME):
        x = array.positions(1.0)[:, 0]
        assert (x[0] + x[-1]).abs() < 1e-6
        assert (x.diff() > 0).all()


def test_any_places_are_taken_as_they_are():
    expected = 0.3 * torch.tensor(ANYWHERE.places_wavelengths)
    torch.testing.assert_close(ANYWHERE.positions(0.3), expected)
    assert ANYWHERE.n_elements == 3


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (ArrayGeometry(5, 3, 0.4), (5, 3, 0.4)),
        (ArrayGeometry(8), (8, 1, 0.5)),
        (ArrayGeometry(1, 6), None),
        (RING, None),
        (NESTED, None),
        (ANYWHERE, None),
    ],
)
def test_rectangles_are_recognised_by_their_places(array, shape):
    found = rectangle_shape(array.positions(0.3), 0.3)
    assert found == (None if shape is None else pytest.approx(shape))
    spacing = shape[2] if shape is not None and shape[1] == 1 else None
    assert line_spacing(array.positions(0.3), 0.3) == (spacing and pytest.approx(spacing))


def test_a_shuffled_line_is_not_a_line_in_order():
    assert line_spacing(ArrayGeometry(6).positions(0.3)[[0, 2, 1, 3, 4, 5]], 0.3) is None


def test_only_reversible_arrays_are_mirrored():
    reversible = [is_mirrored(a.positions(0.3)) for a in (ArrayGeometry(4, 3), ArrayGeometry(5))]
    others = [is_mirrored(a.positions(0.3)) for a in (RING, NESTED, ANYWHERE)]
    assert (reversible, others) == ([True, True], [False, False, False])


def test_lines_know_that_they_are_lines():
    slanted = ArrayGeometry(
        kind="positions", places_wavelengths=((0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (3.0, 3.0, 0.0))
    )
    assert all(a.is_line for a in (ArrayGeometry(4), ArrayGeometry(1, 4), NESTED, slanted))
    assert not any(a.is_line for a in (ArrayGeometry(2, 2), RING, ANYWHERE))


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"kind": "spiral"}, "got 'spiral'"),
        ({"kind": "ring", "n_vertical": 2}, "got n_vertical=2"),
        ({"kind": "nested"}, "got sparse_levels=None"),
        ({"sparse_levels": (2, 3)}, "with kind='rectangle'"),
        ({"kind": "coprime", "sparse_levels": (4, 6)}, r"got \(4, 6\)"),
        ({"kind": "nested", "sparse_levels": (0, 6)}, r"got \(0, 6\)"),
        ({"kind": "positions"}, "got none"),
        ({"places_wavelengths": ((0.0, 0.0, 0.0),) * 2}, "got some"),
        (
            {"kind": "positions", "places_wavelengths": ((0.0, 0.0, math.nan), (1.0, 0.0, 0.0))},
            "nan",
        ),
        ({"kind": "positions", "places_wavelengths": ((0.0, 0.0, 0.0),) * 2}, "no two the same"),
    ],
)
@pytest.mark.bad_shape
def test_arrays_that_contradict_themselves_are_refused(arguments, got):
    with pytest.raises(ValueError, match=got):
        ArrayGeometry(**arguments)
