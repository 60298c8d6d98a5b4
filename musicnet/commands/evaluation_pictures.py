"""Pictures of an evaluation: the learned spectrum beside the classical one, and curves over SNR."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from musicnet.estimation.covariance import forward_backward, sample_covariance
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import nothing
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import compress
from musicnet.estimation.spectrum import SearchGrid, music_spectrum
from musicnet.estimation.subspace import noise_subspace
from musicnet.localization.contestants import CONTESTANTS, Question, Reply, ask
from musicnet.localization.evaluation import Cell, Plan, Row, draw_cell
from musicnet.networks.pretrained import Pretrained
from musicnet.plots.error_curves import draw_error_curves, draw_share_curves
from musicnet.plots.figures import save
from musicnet.plots.spectra import Panel, draw_spectra
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPECTRUM_SNR_DB = 10.0

# three coordinates make many cells, of which the picture shows the highest along one
_FINE, _COARSE = 40.0, 8.0
_PLANES = 8
_UNITS = {"position_m": "RMSE of position (m)", "azimuth_deg": "RMSE of azimuth (degrees)"}


def draw_all(folder: Path, pretrained: Pretrained, rows: Sequence[Row], plan: Plan) -> list[Path]:
    """Draws every picture.

    Args:
        folder: where to; made if need be.
        pretrained: the network that was judged.
        rows: figures of all cells.
        plan: that they were measured by.

    Returns:
        The files.

    Raises:
        OSError: a file cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    figures = {"spectrum": draw_beside_classical(pretrained, plan)}
    for n_sources in sorted({row["n_sources"] for row in rows}):
        some = [row for row in rows if row["n_sources"] == n_sources]
        figures[f"outliers_{n_sources}"] = _outliers(some, n_sources)
        figures[f"error_{n_sources}"] = _errors(some, n_sources)
    files = []
    for name, figure in figures.items():
        files.append(folder / f"{name}.png")
        save(figure, files[-1])
    return files


def draw_beside_classical(pretrained: Pretrained, plan: Plan) -> "Figure":
    """The first scene with most sources, as the network and as a classical method see it.

    Args:
        pretrained: the network.
        plan: whose scenes they are.

    Returns:
        A figure.
    """
    scene, network = pretrained.scene, pretrained.network
    n_sources = scene.sources.n_max
    blocks = next(draw_cell(scene, Cell(n_sources, SPECTRUM_SNR_DB), plan))
    heard = _first(blocks.observation)
    truth = Sources(blocks.truth.parameters[:1, :1], blocks.truth.resolved[:1, :1])
    question = Question(heard, n_sources, scene, pretrained, truth)
    with torch.no_grad():
        learned = network(heard).logits.sigmoid()[0, 0]
    grid, classical, name = _classical_spectrum(heard, scene, n_sources)
    panels = [
        Panel(classical, grid, _only(ask(CONTESTANTS["nomp"], question)), f"{name}, and nomp"),
        Panel(
            learned,
            network.grid,
            _only(ask(CONTESTANTS["neural"], question)),
            "network, and neural",
        ),
    ]
    return draw_spectra(panels, Sources(truth.parameters[0, 0], truth.resolved[0, 0]))


def _first(heard: Observation) -> Observation:
    """The first scene alone, batch (1, 1)."""
    return Observation(
        heard.y[:1, :1],
        heard.operator[:1],
        heard.noise_power[:1, :1],
        heard.positions,
        heard.wavelength,
    )


def _only(reply: Reply) -> Sources:
    return Sources(reply.sources.parameters[0, 0], reply.sources.resolved[0, 0])


def _classical_spectrum(
    heard: Observation, scene: Scene, n_sources: int
) -> tuple[SearchGrid, torch.Tensor, str]:
    """MUSIC of an array's snapshots; the matched filter of what has no covariance."""
    is_box = all(scene.active)
    fineness = _COARSE if is_box else _FINE
    grid = SearchGrid.dense(scene.region, heard.positions, heard.wavelength, fineness)
    if is_box:
        grid = SearchGrid.over(scene.region, grid.n_v, grid.n_u, _PLANES)
    problem = compress(heard, scene.region)
    dictionary = Dictionary.over(problem, grid)
    if scene.surface is None and scene.n_blocks > 1:
        covariance = sample_covariance(heard.y[0, 0])
        if scene.far_field:
            covariance = forward_backward(covariance)
        n_rows = dictionary.parts.shape[2] // 2
        real, imaginary = dictionary.parts[0, 0, :n_rows], dictionary.parts[0, 0, n_rows:]
        lines = torch.complex(real, imaginary).mT
        spectrum = music_spectrum(noise_subspace(covariance, n_sources), lines)
        return grid, spectrum.reshape(grid.shape), "MUSIC"
    start = nothing(problem)
    gains = dictionary.gains(explain(problem, start.parameters, start.present))
    return grid, gains[0, 0].reshape(grid.shape), "matched filter"


def _curves(rows: Sequence[Row], column: str) -> tuple[list[float], dict[str, list[float]]]:
    """Ratios in order, and method -> value at each."""
    ratios = sorted({row["snr_db"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    values = {(row["method"], row["snr_db"]): row[column] for row in rows}
    return ratios, {m: [values.get((m, snr), math.nan) for snr in ratios] for m in methods}


def _outliers(rows: Sequence[Row], n_sources: int) -> "Figure":
    ratios, curves = _curves(rows, "outliers")
    least = 1.0 / (rows[0]["n_scenes"] * n_sources)
    title = f"{n_sources} sources" if n_sources > 1 else "1 source"
    return draw_share_curves(ratios, curves, "share of outliers", min(least, 0.5), title)


def _errors(rows: Sequence[Row], n_sources: int) -> "Figure":
    ratios, curves = _curves(rows, "rmse")
    _, bounds = _curves(rows, "bound")
    title = f"{n_sources} sources" if n_sources > 1 else "1 source"
    bound = next(iter(bounds.values()))
    return draw_error_curves(ratios, curves, bound, _UNITS[rows[0]["error"]], title)
