"""From a scene to what is heard: blocks of observations that share one channel and codebook.

A block is a pure function of (seed, split, epoch, block number), per type of device: whoever draws
it, in whatever order, gets the same numbers. Noise has unit power throughout.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from musicnet.scene.draws import draw_complex_normal, draw_uniform
from musicnet.scene.imperfections import ElementErrors, by_receivers
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceDraw, Sources
from musicnet.scene.steering import Places, steering, superposed_field
from musicnet.scene.surface import quantise_phases
from musicnet.shapes import Operator, Positions, Received

_SAME_WAVEFORM = 1e-4  # of a squared correlation, for rounding


@dataclass(frozen=True)
class Observation:
    """What was heard, y = G A s + n, and what is known about how it came about.

    Args:
        y: received numbers. Training batches are (channel, scene); recordings may be (scene,).
        operator: G, shared by all scenes of a channel; one block serves all blocks of y. The
            identity for a plain array.
        noise_power: E|n|^2 of a row, linear.
        positions: elements; metres.
        wavelength: metres.
    """

    y: Received
    operator: Operator
    noise_power: Float[Tensor, "*batch"]
    positions: Positions
    wavelength: float

    def to(self, device: torch.device | str) -> "Observation":
        """The same observation on another device."""
        return replace(
            self,
            y=self.y.to(device),
            operator=self.operator.to(device),
            noise_power=self.noise_power.to(device),
            positions=self.positions.to(device),
        )

    def channels(self, n_channels: int) -> "Observation":
        """The first channels alone, of a batch (channel, scene)."""
        return replace(
            self,
            y=self.y[:n_channels],
            operator=self.operator[:n_channels],
            noise_power=self.noise_power[:n_channels],
        )


@dataclass(frozen=True)
class KnownBlocks:
    """Drawn scenes with all that is true of them, as a bound on their errors needs it.

    Args:
        observation: what was heard; batch (channel, scene).
        truth: true sources.
        amplitudes: s of each block, over the noise's standard deviation; 0 in slots that hold no
            source.
    """

    observation: Observation
    truth: Sources
    amplitudes: Complex[Tensor, "channel scene block source"]

    @property
    def is_coherent(self) -> Bool[Tensor, "channel scene"]:
        """Scenes whose sources send one waveform; those of one source, or one block, as well."""
        symbols = self.amplitudes
        products = symbols.mH @ symbols  # (..., source, source)
        power = products.diagonal(dim1=-2, dim2=-1).real
        most = power[..., None] * power[..., None, :]
        shared = torch.view_as_real(products).square().sum(-1)
        return (shared >= (1.0 - _SAME_WAVEFORM) * most).all(-1).all(-1)


def block_generator(
    seed: int, split: str, epoch: int, block: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The source of randomness of one block.

    Its seed is the first eight bytes (big-endian, top bit cleared) of BLAKE2b of the text
    "seed/split/epoch/block": the same on every machine and for every version of Python.

    Args:
        seed: of the run.
        split: "train", "val" ...: blocks of different splits have nothing in common.
        epoch: passes over the data so far; fixed data say 0 always.
        block: number of the block within the epoch.
        device: where the block will be drawn.

    Returns:
        A fresh generator.

    Example:
        >>> block_generator(0, "train", 0, 7).initial_seed()
        5486844742621487873
    """
    key = f"{seed}/{split}/{epoch}/{block}".encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return torch.Generator(device).manual_seed(number >> 1)


def draw_block(
    scene: Scene, generator: torch.Generator, n_scenes: int
) -> tuple[Observation, Sources]:
    """Draws scenes that share one channel and one codebook.

    Args:
        scene: the physics.
        generator: decides everything, and where the answer lives.
        n_scenes: S.

    Returns:
        What was heard, batch (scene,), operator without a batch axis; and the true sources.
    """
    drawn = _draw(scene, [generator], n_scenes)
    heard, truth = drawn.observation, drawn.truth
    observation = replace(
        heard, y=heard.y[0], operator=heard.operator[0], noise_power=heard.noise_power[0]
    )
    return observation, Sources(truth.parameters[0], truth.resolved[0])


def draw_blocks(
    scene: Scene,
    keys: Sequence[int],
    scenes_per_block: int,
    device: torch.device | str,
    seed: int,
    split: str,
    epoch: int,
) -> tuple[Observation, Sources]:
    """Draws a training batch of whole blocks.

    Args:
        scene: the physics.
        keys: block numbers; what a block holds does not depend on the others.
        scenes_per_block: S.
        device: where the blocks are drawn.
        seed: of the run.
        split: "train", "val" ...
        epoch: see `block_generator`.

    Returns:
        Observations and true sources with batch (channel, scene), one channel per key.

    Raises:
        ValueError: no keys.
    """
    known = draw_known_blocks(scene, keys, scenes_per_block, device, seed, split, epoch)
    return known.observation, known.truth


def draw_known_blocks(
    scene: Scene,
    keys: Sequence[int],
    scenes_per_block: int,
    device: torch.device | str,
    seed: int,
    split: str,
    epoch: int,
) -> KnownBlocks:
    """Draws the same blocks as `draw_blocks`, and tells the amplitudes as well.

    Args:
        scene: the physics.
        keys: block numbers.
        scenes_per_block: S.
        device: where the blocks are drawn.
        seed: of the run.
        split: "train", "val" ...
        epoch: see `block_generator`.

    Returns:
        One channel per key.

    Raises:
        ValueError: no keys.
    """
    if not keys:
        raise ValueError("a batch needs at least one block: got keys=[]. Pass block numbers.")
    generators = [block_generator(seed, split, epoch, key, device) for key in keys]
    return _draw(scene, generators, scenes_per_block)


def _draw(scene: Scene, generators: Sequence[torch.Generator], n_scenes: int) -> KnownBlocks:
    """Draws one channel per generator; only the random numbers are drawn block by block."""
    device = generators[0].device
    positions = scene.positions(device)
    nominal, actual = _draw_operators(scene, positions, generators)
    drawn = scene.sources.draw(n_scenes, generators)
    errors = None
    if scene.imperfections is not None:
        errors = scene.imperfections.draw(
            positions, scene.wavelength_m, scene.n_receivers, n_scenes, generators
        )
    places = positions if errors is None else positions + errors.displacement
    amplitudes = _draw_amplitudes(scene, drawn, generators)
    field = _field(scene, places, drawn, amplitudes)
    field = field if errors is None else errors.mix(field)
    received = _receive(scene, actual, field, errors, generators)
    noise_power = torch.ones(received.shape[:2], device=device)
    observation = Observation(received, nominal, noise_power, positions, scene.wavelength_m)
    if errors is not None and scene.imperfections is not None and scene.imperfections.is_known:
        observation = _corrected(observation, actual, errors)
    return KnownBlocks(observation, drawn.sources, amplitudes)


def _corrected(
    observation: Observation,
    actual: Complex[Tensor, "channel blocks row element"],
    errors: ElementErrors,
) -> Observation:
    """Tells the estimator about errors that never change: true places, true G, white noise."""
    mixing = actual * errors.response[:, 0, None, None, :]
    if errors.coupling is not None:
        mixing = (actual @ errors.coupling[:, :1]) * errors.response[:, 0, None, None, :]
    y, positions = observation.y, observation.positions + errors.displacement[0, 0]
    if errors.colour is not None:
        whitener = torch.linalg.inv(errors.colour[0, 0])
        y, mixing = (
            by_receivers(whitener, y[..., None]).squeeze(-1),
            by_receivers(whitener, mixing),
        )
    return replace(observation, y=y, operator=mixing, positions=positions)


def _draw_operators(
    scene: Scene, positions: Positions, generators: Sequence[torch.Generator]
) -> tuple[
    Complex[Tensor, "channel blocks row element"], Complex[Tensor, "channel blocks row element"]
]:
    """The channel behind its codes, or the identity of a plain array: as asked for, and as is."""
    if scene.surface is None:
        identity = _identity(scene.n_elements, positions.device)
        operator = identity.expand(len(generators), 1, -1, -1)
        return operator, operator
    channels = scene.surface.draw_channels(positions, scene.wavelength_m, generators)
    codes = scene.surface.codes(scene.array, generators)
    operator = _held(scene, scene.surface.operator(channels, codes, scene.symbols))
    if scene.imperfections is None or scene.imperfections.quantised_bits is None:
        return operator, operator
    codes = quantise_phases(codes, scene.imperfections.quantised_bits)
    return operator, _held(scene, scene.surface.operator(channels, codes, scene.symbols))


def _held(
    scene: Scene, operator: Complex[Tensor, "channel codes row element"]
) -> Complex[Tensor, "channel blocks row element"]:
    """Each code held for as many snapshots as the scene has, one after the other."""
    n = scene.n_snapshots
    return operator if n == 1 else operator.repeat_interleave(n, dim=1)


def _draw_amplitudes(
    scene: Scene, drawn: SourceDraw, generators: Sequence[torch.Generator]
) -> Complex[Tensor, "channel scene block source"]:
    """The amplitudes s of every block; those of pilots do not change."""
    gains = torch.polar(drawn.amplitude, drawn.phase)[..., None, :]  # (..., 1, source)
    if scene.symbols == "pilot":
        return gains.expand(-1, -1, scene.n_blocks, -1)
    return gains * _draw_symbols(scene, drawn, generators)


def _field(
    scene: Scene,
    positions: Places,
    drawn: SourceDraw,
    amplitudes: Complex[Tensor, "channel scene block source"],
) -> Complex[Tensor, "channel scene fields element"]:
    """The field A s at the elements; pilots need one block only, whatever Q is."""
    if scene.symbols == "pilot":
        field = superposed_field(
            positions, drawn.parameters, drawn.amplitude, drawn.phase, scene.wavelength_m
        )
        return field[..., None, :]
    return amplitudes @ steering(positions, drawn.parameters, scene.wavelength_m)


def _draw_symbols(
    scene: Scene, drawn: SourceDraw, generators: Sequence[torch.Generator]
) -> Complex[Tensor, "channel scene block source"]:
    """Unit-power Gaussian symbols, shared by the sources of a coherent scene as far as it says."""
    _, n_scenes, n_slots = drawn.resolved.shape
    symbols = draw_complex_normal((n_scenes, scene.n_blocks, n_slots), generators)
    if scene.coherent_share == 0:
        return symbols
    lot = draw_uniform((n_scenes, 1, 1), generators)
    common = symbols[..., :1]
    if scene.correlation < 1.0:
        common = draw_complex_normal((n_scenes, scene.n_blocks, 1), generators)
        common = (
            math.sqrt(scene.correlation) * common + math.sqrt(1.0 - scene.correlation) * symbols
        )
    return torch.where(lot < scene.coherent_share, common, symbols)


def _receive(
    scene: Scene,
    operator: Complex[Tensor, "channel blocks row element"],
    field: Complex[Tensor, "channel scene fields element"],
    errors: ElementErrors | None,
    generators: Sequence[torch.Generator],
) -> Complex[Tensor, "channel scene block row"]:
    """G x + n, the product added to the noise in place."""
    n_scenes = field.shape[1]
    # blocks before scenes: the noise of a batch is then one batch of matrices, without a copy
    heard = draw_complex_normal((scene.n_blocks, n_scenes, scene.n_rows), generators)
    if errors is not None and errors.colour is not None:
        heard = by_receivers(errors.colour[:, None], heard[..., None]).squeeze(-1)
    if scene.surface is None:
        heard.add_(field.transpose(1, 2))
    else:
        by_block = field.transpose(1, 2).flatten(0, 1)  # (channel block, scene, element)
        heard.flatten(0, 1).baddbmm_(by_block, operator.flatten(0, 1).mT)
    return heard.transpose(1, 2)


@lru_cache(maxsize=32)
def _identity(n_elements: int, device: torch.device) -> Complex[Tensor, "element element"]:
    """The operator of a plain array."""
    # the first caller may be a validation loop, and its inference tensors would outlive it
    with torch.inference_mode(mode=False):
        return torch.eye(n_elements, dtype=torch.complex64, device=device)
