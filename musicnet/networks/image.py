"""What the network sees: an observation drawn over the search grid.

An image has no weights. It is laid out [*batch v u map]: the first ``n_rho`` maps are the classical
*score*, one plane per inverse range, the same that the head adds to its logits; then come the other
maps of every plane, two coordinates and the level that the score was centred by.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from musicnet.estimation.covariance import forward_backward, sample_covariance
from musicnet.estimation.spectrum import SearchGrid, bartlett_spectrum, capon_spectrum
from musicnet.estimation.subspace import eigen_decomposition
from musicnet.networks.maps import N_SHARED_MAPS, centred_log, grid_steering, laid_out
from musicnet.networks.symbol_image import SymbolImage
from musicnet.scene.array import is_mirrored
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation
from musicnet.scene.steering import steering


class PilotImage(nn.Module):
    """Matched filter and least-squares inversion of one block of known mixing.

    Per plane: the centred log power of the matched filter; modulus, real and imaginary part of the
    back-projected least-squares field. The inversion makes the point-spread function the same for
    every channel, so that the network need not know the operator.

    Args:
        scene: a surface heard with pilots.
        grid: where to look.
        loading: of the inversion, over the mean of the Gram matrix's diagonal.
        moves: whether elements stand where each observation says, instead of in the scene's places.
    """

    dictionary: Tensor
    cells: Tensor

    def __init__(
        self, scene: Scene, grid: SearchGrid, loading: float = 0.01, *, moves: bool = False
    ) -> None:
        super().__init__()
        self.loading = loading
        self.moves = moves
        self.shape = grid.shape
        self.n_maps = 4 * grid.n_rho + N_SHARED_MAPS
        self.register_buffer("dictionary", grid_steering(scene, grid), persistent=False)
        self.register_buffer("cells", grid.cells.flatten(0, 2), persistent=False)

    def forward(self, observation: Observation) -> Float[Tensor, "*batch v u map"]:
        """Draws the image; work per operator is done once for all scenes that share it.

        Args:
            observation: batch (*channel, scene) beside operators (*channel), one block each.

        Returns:
            The image; no gradient.
        """
        with torch.no_grad(), torch.autocast(observation.y.device.type, enabled=False):
            operator = observation.operator[..., 0, :, :]  # (*channel, row, element)
            y = observation.y[..., 0, :] / observation.noise_power.sqrt()[..., None]
            gram = operator.mH @ operator
            matched = y @ operator.conj()  # G^H y, (*batch, element)
            inverted = matched @ self._loaded_inverse(gram).mT
            dictionary = self._dictionary(observation)
            analysis = dictionary.mH  # (element, cell), one a_g^* a column
            norm = _dictionary_norm(dictionary, gram)
            filtered = (matched @ analysis) / _beside_scenes(norm, matched)
            score, level = centred_log(filtered.abs().square())
            field = inverted @ analysis
            field = field / field.abs().amax(-1, keepdim=True).clamp_min(_tiny(score))
            planes = (score, field.abs(), field.real, field.imag)
            return laid_out(planes, level, self.shape)

    def _loaded_inverse(
        self, gram: Complex[Tensor, "*channel element element"]
    ) -> Complex[Tensor, "*channel element element"]:
        strength = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        inverse: Tensor = torch.linalg.inv(gram + self.loading * strength * identity)
        return inverse

    def _dictionary(self, observation: Observation) -> Complex[Tensor, "cell element"]:
        if not self.moves:
            return self.dictionary
        positions = observation.positions.to(self.cells.dtype)
        return steering(positions, self.cells, observation.wavelength)


class ArrayImage(nn.Module):
    """Classical spectra of an array's covariance, and the beams of its leading eigenvectors.

    Per plane: centred log Capon power (of the forward-backward average in the far field of an
    array that is its own mirror image, which hears the same sources backwards), log Bartlett
    power, and for each of ``n_max`` eigenvectors the real and imaginary part of its beam, weighted
    by the root of its eigenvalue. The beams keep the phases that powers lose: coherent sources
    share one eigenvector.

    Args:
        scene: a plain array.
        grid: where to look.
        loading: of Capon's inverse, over the mean power of a sensor.
    """

    dictionary: Tensor

    def __init__(self, scene: Scene, grid: SearchGrid, loading: float = 0.01) -> None:
        super().__init__()
        self.loading = loading
        self.shape = grid.shape
        self.is_mirrored = scene.far_field and is_mirrored(scene.positions())
        self.n_beams = scene.sources.n_max
        self.n_maps = (2 + 2 * self.n_beams) * grid.n_rho + N_SHARED_MAPS
        self.register_buffer("dictionary", grid_steering(scene, grid), persistent=False)

    def forward(self, observation: Observation) -> Float[Tensor, "*batch v u map"]:
        """Draws the image.

        Args:
            observation: of sensors, snapshots as blocks; the operator is the identity.

        Returns:
            The image; no gradient.
        """
        with torch.no_grad(), torch.autocast(observation.y.device.type, enabled=False):
            y = observation.y / observation.noise_power.sqrt()[..., None, None]
            covariance = sample_covariance(y)
            averaged = forward_backward(covariance) if self.is_mirrored else covariance
            score, level = centred_log(capon_spectrum(averaged, self.dictionary, self.loading))
            bartlett, _ = centred_log(bartlett_spectrum(covariance, self.dictionary))
            beams = self._beams(covariance)
            return laid_out((score, bartlett, *beams), level, self.shape)

    def _beams(
        self, covariance: Complex[Tensor, "*batch row row"]
    ) -> list[Float[Tensor, "*batch cell"]]:
        values, vectors = eigen_decomposition(covariance)
        leading = vectors[..., -self.n_beams :].mT.flip(-2)  # (..., beam, row), strongest first
        strength = values[..., -self.n_beams :].flip(-1).clamp_min(0.0)
        weight = (strength / strength[..., :1].clamp_min(_tiny(strength))).sqrt()
        beams = leading @ self.dictionary.mH / self.dictionary.shape[-1] ** 0.5
        # an eigenvector has no phase of its own: make each beam real where it is strongest
        peak = beams.gather(-1, beams.abs().argmax(-1, keepdim=True))
        beams = beams * (weight[..., None] * peak.conj() / peak.abs().clamp_min(_tiny(strength)))
        return [part for beam in beams.unbind(-2) for part in (beam.real, beam.imag)]


def image_of(
    scene: Scene, grid: SearchGrid, *, moves: bool = False
) -> PilotImage | SymbolImage | ArrayImage:
    """Chooses the image that fits a scene.

    Args:
        scene: the physics.
        grid: where to look.
        moves: see `PilotImage`; arrays stand still.

    Returns:
        An image without weights.

    Raises:
        ValueError: a scene that no image was made for yet.
    """
    if scene.surface is None:
        return ArrayImage(scene, grid)
    if scene.symbols == "data":
        return SymbolImage(scene, grid)
    if scene.n_rows < scene.n_elements:
        raise ValueError(
            "the least-squares image needs at least as many rows as elements: got "
            f"{scene.n_rows} rows (antennas x codes) for {scene.n_elements} elements. "
            "Raise surface.n_codes."
        )
    return PilotImage(scene, grid, moves=moves)


def _dictionary_norm(
    dictionary: Complex[Tensor, "cell element"], gram: Complex[Tensor, "*channel element element"]
) -> Float[Tensor, "*channel cell"]:
    """||G a_g|| without forming G a_g, which has more rows than elements."""
    weighted = gram @ dictionary.mT  # (*channel, element, cell)
    power = torch.view_as_real(weighted).mul(torch.view_as_real(dictionary.mT))
    return power.sum((-3, -1)).clamp_min(_tiny(power)).sqrt()


def _beside_scenes(
    per_channel: Float[Tensor, "*channel cell"], per_scene: Complex[Tensor, "*batch element"]
) -> Tensor:
    """Gives what belongs to a channel an axis for its scenes, if there is one."""
    return per_channel if per_scene.ndim == per_channel.ndim else per_channel[..., None, :]


def _tiny(like: Tensor) -> float:
    """Keeps a division by an all-zero observation finite."""
    return math.sqrt(torch.finfo(like.dtype).tiny)
