"""Which trained network may be used on what was heard."""

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from musicnet.networks.pretrained import Pretrained, load_pretrained, load_shipped, shipped
from musicnet.scene.agreement import (
    TOLERANCE,
    Difference,
    aperture_differences,
    wavelength_differences,
)
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion

_MARGIN = 1e-3  # of a region's bounds in u and v, and in 1/r as a share of the largest


def fits(
    pretrained: Pretrained,
    observation: Observation,
    region: SearchRegion,
    n_sources: int | None = None,
) -> str | None:
    """Whether a network may be used on an observation.

    The elements must stand where the network's stand, in wavelengths; in the far field about any
    origin, see `about_its_origin`. In the near field, where distances count, the wavelength must be
    the same as well. Behind a surface the rows must be as
    many, and in as many blocks, as the network was trained with, whatever the channel; an array
    may take any number of snapshots, but a network that is asked in how many dimensions they lie,
    and for nothing else, has nothing to say of one. The region must lie within the network's own.

    Args:
        pretrained: the network.
        observation: any leading axes; one or several operators.
        region: where sources may be.
        n_sources: that will be asked for, the fewest of all scenes: those of more are left to
            pursuit one by one; None where they are to be counted.

    Returns:
        None if it may, else one line that says why not.
    """
    scene = pretrained.scene
    differences = [
        *_heard(scene, observation),
        *_compared(pretrained, observation),
        *_sought(scene, region, observation.wavelength),
    ]
    if n_sources is not None and n_sources > scene.sources.n_max:
        differences.append(Difference("sources", str(n_sources), f"up to {scene.sources.n_max}"))
    return "; ".join(map(_said, differences)) or None


def fewest_of(counts: Int[Tensor, "*batch"]) -> int | None:
    """Fewest sources of all scenes that have any; None if none has.

    Example:
        >>> fewest_of(torch.tensor([0, 5, 3])), fewest_of(torch.tensor([0]))
        (3, None)
    """
    some = counts[counts > 0]
    return int(some.min()) if some.numel() else None


def about_its_origin(pretrained: Pretrained, observation: Observation) -> Observation:
    """What was heard, with positions about the origin that phases of the network's scenes refer to.

    Directions do not depend on it; what sources have in common, as arriving in phase, does.

    Args:
        pretrained: a network that fits.
        observation: what was heard.

    Returns:
        The same in the near field, and where positions have that origin already.
    """
    if not pretrained.scene.far_field:
        return observation
    positions, wavelength = observation.positions, observation.wavelength
    own = pretrained.scene.array.positions(1.0, positions.device).double()
    shift = (own - positions.double() / wavelength).mean(0)
    if float(shift.abs().max()) <= TOLERANCE:
        return observation
    moved = positions.double() + shift * wavelength
    return replace(observation, positions=moved.to(positions))


def choose(
    observation: Observation, region: SearchRegion, n_sources: int | None = None
) -> Pretrained | None:
    """The first of the shipped networks that fits.

    Networks for an array with errors of its own, simulated or learned, or for sources that arrive
    in phase, are passed over: whether a recording is of that kind only its owner knows.

    Args:
        observation: what was heard.
        region: where sources may be.
        n_sources: that will be asked for, the fewest of all scenes: those of more are left to
            pursuit one by one; None where they are to be counted.

    Returns:
        The network, shared; None if none fits.

    Raises:
        OSError: a shipped file cannot be read.
        ValueError: a shipped file is damaged.
    """
    for path in shipped().values():
        pretrained = load_shipped(path)
        is_ideal = pretrained.scene.imperfections is None and pretrained.network.calibration is None
        is_common = is_ideal and not pretrained.scene.is_alike
        if is_common and fits(pretrained, observation, region, n_sources) is None:
            return pretrained
    return None


def find_weights(word: str) -> Pretrained:
    """The network that a word stands for.

    Args:
        word: a name of `shipped`, or a local file.

    Returns:
        The network.

    Raises:
        OSError: the file cannot be read.
        ValueError: neither a name nor a file, or a file that holds no network; one line.
    """
    known = shipped()
    if word in known:
        return load_shipped(known[word])
    if not word:
        raise ValueError("weights must be a name or a file: got ''.")
    is_name = not ("/" in word or "\\" in word or word.endswith(".safetensors"))
    if is_name and not Path(word).exists():
        near = get_close_matches(word, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        names = f"one of {', '.join(known)}" if known else "none ships with this version"
        raise ValueError(f"weights must be a name ({names}) or a file: got {word!r}.{hint}")
    return load_pretrained(word)


def _said(difference: Difference) -> str:
    return f"got {difference.name}={difference.found}, it was trained for {difference.wanted}"


def _heard(scene: Scene, observation: Observation) -> Iterator[Difference]:
    """What the network's image follows from."""
    n_blocks, n_rows = observation.y.shape[-2:]
    n_operators = observation.operator.shape[-3]
    wavelength = observation.wavelength
    # ranges, and the region of ranges, are those from the origin: there it must be the same
    yield from aperture_differences(
        scene, observation.positions, wavelength, n_rows, has_any_origin=scene.far_field
    )
    if scene.surface is None:
        if not _is_plain(observation):
            yield Difference("operator", "another", "the identity of a plain array")
        return
    if n_blocks != scene.n_blocks:
        yield Difference("blocks", str(n_blocks), f"{scene.n_blocks} ({scene.symbols} symbols)")
    if n_operators != scene.n_blocks:
        yield Difference("operators", str(n_operators), str(scene.n_blocks))


def _compared(pretrained: Pretrained, observation: Observation) -> Iterator[Difference]:
    """Snapshots, where the network has to compare them; in the near field it knows ranges too."""
    is_asked = pretrained.network.head.coherence is not None and pretrained.scene.far_field
    if is_asked and observation.y.shape[-2] == 1:
        yield Difference("snapshots", "1", "2 and more")


def _sought(scene: Scene, region: SearchRegion, wavelength: float) -> Iterator[Difference]:
    """Where the network can look."""
    is_far = region.inverse_range == (0.0, 0.0)
    if is_far != scene.far_field:
        fields = {True: "far", False: "near"}
        yield Difference("field", fields[is_far], fields[scene.far_field])
        return
    if not is_far:
        yield from wavelength_differences(scene, wavelength)
    for name, (low, high) in region.bounds.items():
        lowest, highest = scene.region.bounds[name]
        margin = _MARGIN * (highest if name == "inverse_range" else 1.0)
        if low < lowest - margin or high > highest + margin:
            found, wanted = (f"[{a:.4g},{b:.4g}]" for a, b in ((low, high), (lowest, highest)))
            yield Difference(name, found, wanted)


def _is_plain(observation: Observation) -> bool:
    """Whether the elements are the rows."""
    operator = observation.operator
    n_operators, n_rows, n_elements = operator.shape[-3:]
    if n_operators != 1 or n_rows != n_elements:
        return False
    identity = torch.eye(n_rows, dtype=operator.dtype, device=operator.device)
    return bool((operator == identity).all())
