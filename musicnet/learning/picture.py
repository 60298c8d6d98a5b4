"""The picture of a run's report: what the trained network makes of one scene."""

import io

import torch
from torch import Tensor

from musicnet.networks.neural_music import NeuralMusic
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import Sources

_SEED, _SPLIT = 0, "report"


def spectrum_picture(network: NeuralMusic, scene: Scene) -> tuple[bytes, str, str] | None:
    """Draws the pseudo-spectrum of a scene that training has never seen, the same in every run.

    Args:
        network: trained.
        scene: the physics that it was built for.

    Returns:
        The bytes of a PNG file, its kind, and what it shows; None where matplotlib is not
        installed.
    """
    try:
        from musicnet.plots.spectra import draw_spectrum
    except ModuleNotFoundError:
        return None
    device = next(network.parameters()).device
    heard, truth = draw_blocks(scene, [0], 1, device, _SEED, _SPLIT, 0)
    drawn = network(heard)
    found = network.decode(drawn, truth.n_sources)
    try:
        figure = draw_spectrum(
            drawn.logits[0, 0].float().sigmoid().cpu(),
            network.grid,
            _only(truth),
            _only(found),
            "learned pseudo-spectrum",
        )
    except ModuleNotFoundError:
        return None
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    n_sources = int(truth.resolved.sum())
    told = (
        f"Learned pseudo-spectrum of a simulated scene with {n_sources} "
        f"source{'s' if n_sources != 1 else ''}, in decibels below its peak; true places and those "
        "that its highest peaks give are marked."
    )
    return content.getvalue(), "image/png", told


def _only(sources: Sources) -> Sources:
    """The one scene, without its batch, on the processor."""
    places: Tensor = sources.parameters.reshape(-1, *sources.parameters.shape[-2:])[0]
    resolved = sources.resolved.reshape(-1, sources.resolved.shape[-1])[0]
    return Sources(places.cpu(), resolved.cpu().to(torch.bool))
