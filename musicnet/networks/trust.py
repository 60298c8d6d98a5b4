"""Which of the found sources to trust: a small network that weighs clues, source by source.

Sources of a scene look at each other (attention), the more the closer they are: one that stands
where two should be is betrayed by another that stands where none is.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from musicnet.estimation.clues import N_CLUES, Clues

N_TRUST_HEADS = 4
_N_LAYERS = 2
_HIDDEN = -1e9


class TrustHead(nn.Module):
    """Clues to log-odds that each source stands where it belongs, and to how wide its errors are.

    Args:
        n_channels: features per source, a multiple of 4.

    Raises:
        ValueError: a number of features that the attention's heads cannot share.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        if n_channels < N_TRUST_HEADS or n_channels % N_TRUST_HEADS:
            raise ValueError(
                f"n_channels must be a positive multiple of {N_TRUST_HEADS}, the heads of the "
                f"attention: got {n_channels}."
            )
        self.embed = nn.Sequential(
            nn.Linear(N_CLUES, n_channels), nn.GELU(), nn.Linear(n_channels, n_channels)
        )
        self.layers = nn.ModuleList(_Layer(n_channels) for _ in range(_N_LAYERS))
        self.out = nn.Linear(n_channels, 2)

    def forward(self, clues: Clues) -> Float[Tensor, "channel scene source"]:
        """Weighs the clues.

        Args:
            clues: to the sources of each scene.

        Returns:
            Log-odds; anything in empty slots.
        """
        return self.weigh(clues)[0]

    def weigh(
        self, clues: Clues
    ) -> tuple[Float[Tensor, "channel scene source"], Float[Tensor, "channel scene source"]]:
        """Weighs the clues, for the error bars too.

        Args:
            clues: to the sources of each scene.

        Returns:
            Log-odds, and the logarithm of the squared error that is to be expected over the
            variance that the likelihood's curvature states; anything in empty slots.
        """
        features = self.embed(clues.of_sources.to(self.out.weight.dtype))
        log_distance = clues.log_distance.to(features.dtype)
        for layer in self.layers:
            features = layer(features, log_distance, clues.present)
        logits, log_widening = self.out(features).to(clues.of_sources.dtype).unbind(-1)
        return logits, log_widening


class _Layer(nn.Module):
    """Attention among the sources of a scene, biased by their distance, and a step for each."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_channels)
        self.asked = nn.Linear(n_channels, 3 * n_channels)
        self.distance_weight = nn.Parameter(
            nn.init.zeros_(self.asked.weight.new_empty(N_TRUST_HEADS))
        )
        self.told = nn.Linear(n_channels, n_channels)
        self.step = nn.Sequential(
            nn.LayerNorm(n_channels),
            nn.Linear(n_channels, 2 * n_channels),
            nn.GELU(),
            nn.Linear(2 * n_channels, n_channels),
        )

    def forward(
        self,
        features: Float[Tensor, "channel scene source feature"],
        log_distance: Float[Tensor, "channel scene source source"],
        present: Bool[Tensor, "channel scene source"],
    ) -> Float[Tensor, "channel scene source feature"]:
        """Features of the same shape."""
        asked = self.asked(self.norm(features)).unflatten(-1, (3, N_TRUST_HEADS, -1))
        query, key, value = asked.movedim(-3, 0).transpose(-2, -3).unbind(0)  # (..., head, source,)
        score = query @ key.mT / query.shape[-1] ** 0.5
        score = score + self.distance_weight[:, None, None] * log_distance[..., None, :, :]
        weight = score.masked_fill(~present[..., None, None, :], _HIDDEN).softmax(-1)
        features = features + self.told((weight @ value).transpose(-2, -3).flatten(-2))
        stepped: Tensor = features + self.step(features)
        return stepped
