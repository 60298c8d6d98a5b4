"""The whole network: observations in, a learned pseudo-spectrum out, and sources read from it."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from musicnet.estimation.peaks import find_peaks
from musicnet.estimation.posterior import Loudness
from musicnet.estimation.spectrum import SearchGrid
from musicnet.networks.backbone import N_NORM_GROUPS, Backbone
from musicnet.networks.calibration import Calibration
from musicnet.networks.coherence import CoherenceHead
from musicnet.networks.head import Head, PseudoSpectrum
from musicnet.networks.image import image_of
from musicnet.networks.trust import N_TRUST_HEADS
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import Sources

# in logits; on 1024 fresh scenes of briefly trained networks better than 4 or hard suppression
NEIGHBOUR_HANDICAP = 2.0
MAX_WIDTH = 1024
MAX_CELLS = 2**20
"""Sizes beyond which a network is a mistake, or a file means harm."""
MAX_OFFSET = 1.5  # cells: a peak may lie one cell beside its source, not further


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes of the network.

    Args:
        n_channels: features per cell, a multiple of 4.
        dilations: of the residual blocks, one block each.
        n_v: cells along v, where v is searched.
        n_u: cells along u, where u is searched.
        n_rho: planes along inverse range, where that is searched.
        n_trust: features per source of the head that judges found sources, a multiple of 4; 0 goes
            without. It judges what is heard behind a surface only.
        n_coherence: features of the head that says which scenes are coherent; 0 goes without. It
            is about data symbols that an array heard.
        calibrates: whether it learns the errors of one surface, heard with pilots, as well.

    Raises:
        ValueError: a size out of range.
    """

    n_channels: int = 32
    dilations: tuple[int, ...] = (1, 2, 3, 1)
    n_v: int = 11
    n_u: int = 19
    n_rho: int = 8
    n_trust: int = 0
    n_coherence: int = 0
    calibrates: bool = False

    def __post_init__(self) -> None:
        if self.n_channels < N_NORM_GROUPS or self.n_channels % N_NORM_GROUPS:
            raise ValueError(
                f"n_channels must be a positive multiple of {N_NORM_GROUPS}, the groups of the "
                f"norms: got {self.n_channels}."
            )
        if self.n_trust < 0 or self.n_trust % N_TRUST_HEADS:
            raise ValueError(
                f"n_trust must be 0 or a positive multiple of {N_TRUST_HEADS}: got {self.n_trust}."
            )
        if self.n_coherence < 0:
            raise ValueError(f"n_coherence must be >= 0: got {self.n_coherence}.")
        if min(self.dilations, default=1) < 1:
            raise ValueError(f"dilations must be at least 1: got {self.dilations}.")
        if min(self.n_v, self.n_u, self.n_rho) < 2:
            raise ValueError(
                "a searched coordinate needs at least two cells: got "
                f"n_v={self.n_v}, n_u={self.n_u}, n_rho={self.n_rho}."
            )
        # sizes come from files as well, where nothing else bounds them
        widest = max(self.n_channels, self.n_trust, self.n_coherence, *self.dilations)
        if widest > MAX_WIDTH or len(self.dilations) > MAX_WIDTH:
            raise ValueError(
                f"no width, dilation or number of blocks may exceed {MAX_WIDTH}: got {widest} and "
                f"{len(self.dilations)} blocks."
            )
        if self.n_v * self.n_u * self.n_rho > MAX_CELLS:
            raise ValueError(
                f"the grid may have at most {MAX_CELLS} cells: got n_v * n_u * n_rho = "
                f"{self.n_v} * {self.n_u} * {self.n_rho}."
            )


class NeuralMusic(nn.Module):
    """A learned MUSIC pseudo-spectrum, in two trainable parts: ``backbone`` and ``head``.

    A third one, ``calibration``, is there if the network is for one piece of hardware.

    Args:
        scene: the physics; it fixes image and search region.
        settings: sizes.

    Raises:
        ValueError: a scene that the network, or its trust head, cannot judge, or not calibrate.

    Example:
        >>> from musicnet.scene.array import ArrayGeometry
        >>> from musicnet.scene.sources import SourceLaw
        >>> law = SourceLaw(n_max=2, elevation_deg=(0.0, 0.0), range_m=None)
        >>> network = NeuralMusic(Scene(ArrayGeometry(), law), NetworkSettings(n_u=41))
        >>> network.grid.shape
        (1, 41, 1)
    """

    def __init__(self, scene: Scene, settings: NetworkSettings) -> None:
        super().__init__()
        self.grid = SearchGrid.over(scene.region, settings.n_v, settings.n_u, settings.n_rho)
        self.image = image_of(scene, self.grid, moves=settings.calibrates)
        self.n_slots = scene.sources.n_max
        kernel = (1 if self.grid.n_v == 1 else 3, 1 if self.grid.n_u == 1 else 3)
        self.backbone = Backbone(self.image.n_maps, settings.n_channels, settings.dilations, kernel)
        if settings.n_trust:
            _check_trust(scene, settings)
        if settings.n_coherence:
            _check_coherence(scene, settings)
        if settings.calibrates:
            _check_calibration(scene)
        self.calibration = Calibration(scene.n_elements) if settings.calibrates else None
        self.head = Head(
            settings.n_channels,
            self.grid.n_rho,
            settings.n_trust,
            _coherence(scene, settings),
        )

    def forward(self, observation: Observation) -> PseudoSpectrum:
        """Observation to pseudo-spectrum.

        Args:
            observation: batch (*channel, scene) beside operators (*channel).

        Returns:
            Logits and offsets over the grid.
        """
        spectrum: PseudoSpectrum = self.spectrum(self.image(self.calibrated(observation)))
        return spectrum

    def calibrated(self, observation: Observation) -> Observation:
        """An observation with the steering that the network has learned.

        Args:
            observation: with operator and positions as they should be.

        Returns:
            With operator and positions as they are; the same where nothing was to be learned. It
            is what `self.image` and all estimators are to be given.
        """
        return observation if self.calibration is None else self.calibration(observation)

    def spectrum(self, image: Float[Tensor, "*batch v u map"]) -> PseudoSpectrum:
        """The part with weights: image to pseudo-spectrum.

        Args:
            image: of `self.image`; may be kept where an observation comes again, unless its
                calibration is being trained.

        Returns:
            Logits and offsets over the grid.
        """
        batch = image.shape[:-3]
        scenes = image.flatten(0, -4) if batch else image[None]
        features = self.backbone(scenes.movedim(-1, 1))  # a view: channels-last in memory
        found = self.head(features, scenes[..., : self.grid.n_rho])
        return PseudoSpectrum(
            found.logits.reshape(*batch, *self.grid.shape),
            found.offsets.reshape(*batch, *self.grid.shape, 3),
        )

    def decode(
        self, spectrum: PseudoSpectrum, n_sources: Int[Tensor, "*batch"] | None = None
    ) -> Sources:
        """Reads sources off the peaks.

        Args:
            spectrum: logits and offsets.
            n_sources: how many to read in each scene, at most ``n_slots``; None reads those that
                the network finds likelier than not.

        Returns:
            ``n_slots`` slots, best first, inside the search region; slots beyond ``n_sources``,
            and all of a scene with a logit that is NaN, are not resolved.
        """
        peaks = find_peaks(spectrum.logits, self.n_slots, NEIGHBOUR_HANDICAP)
        if n_sources is None:
            resolved = peaks.scores > 0.0
        else:
            slot = torch.arange(self.n_slots, device=peaks.cells.device)
            resolved = peaks.resolved & (slot < n_sources[..., None])
        v, u, rho = peaks.cells.unbind(-1)
        flat = (v * self.grid.n_u + u) * self.grid.n_rho + rho
        offsets = spectrum.offsets.flatten(-4, -2).take_along_dim(flat[..., None], dim=-2)
        found = self.grid.parameters_at(peaks.cells + offsets.clamp(-MAX_OFFSET, MAX_OFFSET))
        parameters = self.grid.region.clamp(found).masked_fill(~resolved[..., None], math.nan)
        return Sources(parameters, resolved)


def _check_trust(scene: Scene, settings: NetworkSettings) -> None:
    """Refuses scenes whose sources a trust head cannot judge."""
    if scene.surface is None:
        raise ValueError(
            "the trust head judges what is heard behind a surface: got "
            f"n_trust={settings.n_trust} and no surface. Set n_trust=0."
        )
    if scene.coherent_share > 0.0:
        raise ValueError(
            "the trust head takes data symbols of different sources for independent: got "
            f"n_trust={settings.n_trust} with coherent_share={scene.coherent_share}. Set either "
            "to 0."
        )
    # answers are weighed by how loud sources can be: better refused here than at the first batch
    Loudness.of(scene.sources)


def _coherence(scene: Scene, settings: NetworkSettings) -> CoherenceHead | None:
    if settings.n_coherence == 0:
        return None
    return CoherenceHead(settings.n_coherence, scene.sources.n_max, scene.n_snapshots)


def _check_coherence(scene: Scene, settings: NetworkSettings) -> None:
    """Refuses a coherence head where it would have nothing to say."""
    if scene.surface is not None or scene.symbols != "data":
        raise ValueError(
            "the coherence is of what an array heard of data symbols: got "
            f"n_coherence={settings.n_coherence} with symbols={scene.symbols!r} and "
            f"{'no surface' if scene.surface is None else 'a surface'}. Set n_coherence=0."
        )


def _check_calibration(scene: Scene) -> None:
    """Refuses what a calibration is not made for."""
    if scene.surface is None or scene.symbols != "pilot":
        raise ValueError(
            "a calibration is learned of surfaces that are heard with pilots: got calibrates=True "
            f"with symbols={scene.symbols!r} and "
            f"{'no surface' if scene.surface is None else 'a surface'}. Set calibrates=false."
        )
