"""The legend: what the axes of every array are called, and names for the arrays that travel.

Axis words, as they stand in jaxtyping annotations:

=============  =====================================================================
``batch``      any leading axes; in training batches (channel, scene), or none at all
``channel``    scenes that share one operator, hence one dictionary
``scene``      one realisation of sources, symbols and noise
``block``      Q: rows that share one vector of source amplitudes
``row``        R: one received number
``element``    N: a position in the aperture, an array sensor or a cell of a surface
``antenna``    M: a receiver of the base station behind a surface
``code``       L: one setting of the surface
``source``     K: a slot for a source; empty slots are ``resolved=False`` with NaN
``peak``       a slot for a maximum of a pseudo-spectrum, best first
``v u rho``    the search grid: direction cosine v, direction cosine u, inverse range
=============  =====================================================================

The last axis of parameters is always (u, v, inverse range); that of a grid index (v, u, rho), as
the axes of the map that it points into.
"""

from typing import TypeAlias

from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

Positions: TypeAlias = Float[Tensor, "element 3"]
"""x, y, z of each element; metres, centred at the origin."""

Parameters: TypeAlias = Float[Tensor, "*batch source 3"]
"""(u, v, inverse range) of each source; the last in 1/m, zero in the far field."""

Points: TypeAlias = Float[Tensor, "*batch source 3"]
"""x, y, z of each source; metres, or a unit vector in the far field."""

Resolved: TypeAlias = Bool[Tensor, "*batch source"]
"""Whether a slot holds a source."""

Steering: TypeAlias = Complex[Tensor, "*batch source element"]
"""Unit-modulus response of the elements to each source."""

Received: TypeAlias = Complex[Tensor, "*batch block row"]
"""What was heard."""

Operator: TypeAlias = Complex[Tensor, "*channel blocks row element"]
"""Field at the elements -> row; one or Q blocks."""

Covariance: TypeAlias = Complex[Tensor, "*batch row row"]
"""Hermitian second moments of the rows; linear power."""

Map: TypeAlias = Float[Tensor, "*batch v u rho"]
"""A pseudo-spectrum, or a score, over the search grid."""

GridIndex: TypeAlias = Int[Tensor, "*batch peak 3"]
"""Cells of a map: (v, u, rho) index of each peak."""
