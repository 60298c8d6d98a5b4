"""From an image to features: a residual network of dilated convolutions that keeps the grid."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

N_NORM_GROUPS = 4


class ResidualBlock(nn.Module):
    """Norm, dilated convolution, GELU, convolution; added to what came in.

    Args:
        n_channels: features per cell.
        dilation: distance between the taps of the first convolution, in cells.
        kernel: taps along (v, u).
    """

    def __init__(self, n_channels: int, dilation: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(N_NORM_GROUPS, n_channels)
        self.wide = _grid_convolution(n_channels, n_channels, kernel, dilation)
        self.near = _grid_convolution(n_channels, n_channels, kernel)

    def forward(
        self, features: Float[Tensor, "scene channel v u"]
    ) -> Float[Tensor, "scene channel v u"]:
        """Features of the same shape."""
        added: Tensor = self.near(functional.gelu(self.wide(self.norm(features))))
        return features + added


class Backbone(nn.Sequential):
    """A stem, one residual block per dilation, a closing norm.

    Args:
        n_maps: of the image.
        n_channels: features per cell, a multiple of 4.
        dilations: one residual block each.
        kernel: taps along (v, u); (1, 3) on a grid with one row of cells.
    """

    def __init__(
        self, n_maps: int, n_channels: int, dilations: Sequence[int], kernel: tuple[int, int]
    ) -> None:
        super().__init__(
            _grid_convolution(n_maps, n_channels, kernel),
            *[ResidualBlock(n_channels, dilation, kernel) for dilation in dilations],
            nn.GroupNorm(N_NORM_GROUPS, n_channels),
        )


def _grid_convolution(
    n_in: int, n_out: int, kernel: tuple[int, int], dilation: int = 1
) -> nn.Conv2d:
    """A convolution that keeps the size of the grid."""
    reach = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))
    return nn.Conv2d(n_in, n_out, kernel, padding=reach, dilation=dilation)
