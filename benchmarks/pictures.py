"""Pictures of `benchmarks/estimators.py`: error curves and spectra."""

from collections.abc import Callable
from pathlib import Path

from scenarios import FROM_TRUTH, line, near_line, surface
from trials import Trial, draw

from musicnet.estimation.covariance import forward_backward, sample_covariance
from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import nothing
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import compress
from musicnet.estimation.spectrum import SearchGrid, music_spectrum
from musicnet.estimation.subspace import noise_subspace
from musicnet.localization import localize
from musicnet.metrics.matching import match
from musicnet.plots.error_curves import draw_error_curves
from musicnet.plots.figures import save
from musicnet.plots.spectra import draw_spectrum
from musicnet.scene.sources import Sources
from musicnet.scene.steering import steering

_SNR_DB = (-10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
_FEW_SNR_DB = (0.0, 20.0)
_NAMES = {FROM_TRUTH: "maximum likelihood from the truth"}


def draw_all(folder: Path, answer: Callable, errors_of: Callable, *, is_quick: bool) -> None:
    """Draws every picture.

    Args:
        folder: where to; made if need be.
        answer: runs a method over scenes.
        errors_of: measures it.
        is_quick: few scenes and ratios.
    """
    n_scenes = 16 if is_quick else 1000
    ratios = _FEW_SNR_DB if is_quick else _SNR_DB
    lines = {
        "incoherent": ("nomp", "root-music", "esprit", "mvdr", FROM_TRUTH),
        "coherent": ("nomp", "root-music", "esprit", "mvdr", FROM_TRUTH),
    }
    for symbols, methods in lines.items():
        _curves(
            folder / f"error_ula_{symbols}.png",
            lambda snr, symbols=symbols: line(8, 3, snr, symbols, 100),
            methods,
            ("azimuth_deg", "RMSE of azimuth (degrees)"),
            ratios,
            n_scenes,
            (answer, errors_of),
        )
    _curves(
        folder / "error_ris_pilot.png",
        lambda snr: surface(8, 3, (snr, snr), "pilot", 5.0),
        ("nomp", "multistart", FROM_TRUTH),
        ("position_m", "RMSE of position (m)"),
        ratios,
        32 if is_quick else 320,
        (answer, errors_of),
    )
    save(_line_spectrum(), folder / "spectrum_ula.png")
    save(_near_spectrum(), folder / "spectrum_near_ula.png")
    save(_surface_spectrum(), folder / "spectrum_ris.png")


def _curves(
    path: Path,
    trial_at: Callable[[float], Trial],
    methods: tuple[str, ...],
    error: tuple[str, str],
    ratios: tuple[float, ...],
    n_scenes: int,
    measured_by: tuple[Callable, Callable],
) -> None:
    answer, errors_of = measured_by
    kind, unit = error
    errors: dict[str, list[float]] = {_NAMES.get(method, method): [] for method in methods}
    bound = []
    for snr in ratios:
        trial = trial_at(snr)
        drawn = draw(trial, n_scenes)
        for method in methods:
            found = answer(method, drawn, trial, known=True).sources
            error_of, covariance = errors_of(kind, found, drawn, match(found, drawn.truth))
            rmse = error_of.square().nanmean().sqrt()
            errors[_NAMES.get(method, method)].append(float(rmse))
        variance = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        bound.append(float(variance.mean().sqrt()))
    title = trial_at(0.0).name.removesuffix(", 0 dB")
    save(draw_error_curves(ratios, errors, bound, unit, title), path)


def _scene(sources: Sources, index: int) -> Sources:
    return Sources(sources.parameters[0, index], sources.resolved[0, index])


def _line_spectrum() -> object:
    trial = line(8, 3, 10.0, "incoherent", 100)
    drawn = draw(trial, 4, seed=1)
    heard = drawn.observation
    grid = SearchGrid.over(trial.region, 1, 721, 1)
    noise = noise_subspace(forward_backward(sample_covariance(heard.y[0, 0])), 3)
    lines = steering(heard.positions, grid.cells.reshape(-1, 3), heard.wavelength)
    spectrum = music_spectrum(noise, lines).reshape(grid.shape)
    found = localize(heard, "music", 3, region=trial.region)
    title = f"MUSIC: {trial.name}"
    return draw_spectrum(spectrum, grid, _scene(drawn.truth, 0), _scene(found.sources, 0), title)


def _near_spectrum() -> object:
    trial = near_line("incoherent")
    drawn = draw(trial, 4, seed=1)
    heard = drawn.observation
    grid = SearchGrid.over(trial.region, 1, 241, 61)
    noise = noise_subspace(sample_covariance(heard.y[0, 0]), 2)
    lines = steering(heard.positions, grid.cells.reshape(-1, 3), heard.wavelength)
    spectrum = music_spectrum(noise, lines).reshape(grid.shape)
    found = localize(heard, "music", 2, region=trial.region)
    title = f"MUSIC: {trial.name}"
    return draw_spectrum(spectrum, grid, _scene(drawn.truth, 0), _scene(found.sources, 0), title)


def _surface_spectrum() -> object:
    trial = surface(8, 4, (10.0, 10.0), "pilot", 5.0)
    drawn = draw(trial, 32, seed=1)
    problem = compress(drawn.observation, trial.region)
    grid = SearchGrid.over(trial.region, 61, 101, 8)
    start = nothing(problem)
    explanation = explain(problem, start.parameters, start.present)
    gains = Dictionary.over(problem, grid).gains(explanation)[0, 0].reshape(grid.shape)
    found = localize(drawn.observation, "nomp", 4, region=trial.region)
    title = f"Matched filter, nomp: {trial.name}"
    return draw_spectrum(gains, grid, _scene(drawn.truth, 0), _scene(found.sources, 0), title)
