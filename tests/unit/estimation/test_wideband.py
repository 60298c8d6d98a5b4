"""Wideband spectra against plane waves made in the frequency domain."""

import math

import numpy as np
import pytest
import torch

from musicnet.estimation.circle_peaks import circle_peaks, parabola_offset
from musicnet.estimation.short_time import Spectra, short_time_covariances
from musicnet.estimation.wideband import (
    WIDEBAND_METHODS,
    drawing,
    focusing_matrices,
    plane_wave_steering,
)
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.sound import SearchCircle, Sound, aliasing_limit
from musicnet.scene.steering import steering

SPEED, RATE = 343.0, 16000.0
turn = torch.arange(8) * (math.pi / 4.0)
RING = 0.1 * torch.stack((turn.cos(), turn.sin(), torch.zeros(8)), dim=-1)


def plane_waves(angles, *, seed=0, n_samples=8192, noise=0.03, ring=RING):
    """White noise from each bearing, delayed exactly; unit power a source."""
    generator = np.random.default_rng(seed)
    frequencies = np.fft.rfftfreq(n_samples, 1.0 / RATE)
    heard = noise * generator.standard_normal((len(ring), n_samples))
    for angle in angles:
        spectrum = np.fft.rfft(generator.standard_normal(n_samples))
        ahead = ring.double().numpy() @ np.array([math.cos(angle), math.sin(angle), 0.0]) / SPEED
        moved = spectrum * np.exp(2j * np.pi * frequencies * ahead[:, None])
        heard += np.fft.irfft(moved, n_samples)
    return Sound(torch.tensor(heard, dtype=torch.float32), RATE, ring)


def exact_spectra(angles, frequencies, noise=0.1):
    """Covariances of independent unit sources, without any estimation."""
    frequencies = torch.tensor(frequencies, dtype=torch.float64)
    towards = torch.tensor([[math.cos(a), math.sin(a), 0.0] for a in angles], dtype=torch.float64)
    lines = plane_wave_steering(RING.double(), towards, frequencies, SPEED)
    covariances = lines.mT @ lines.conj() + noise * torch.eye(8, dtype=torch.complex128)
    return Spectra(covariances[None], frequencies, torch.zeros(1, dtype=torch.float64))


def test_steering_is_that_of_the_far_field():
    direction = torch.tensor([[0.6, 0.0, 0.8]])
    frequencies = torch.tensor([500.0, 2000.0])
    found = plane_wave_steering(RING, direction, frequencies, SPEED)
    for number, frequency in enumerate(frequencies.tolist()):
        wanted = steering(RING, torch.tensor([[0.6, 0.0, 0.0]]), SPEED / frequency)
        torch.testing.assert_close(found[number], wanted, atol=1e-5, rtol=0)


def test_covariances_of_a_plane_wave_have_its_phases():
    angle = 0.7
    spectra = short_time_covariances(plane_waves([angle], noise=0.0), (400.0, 2000.0))
    towards = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]])
    line = plane_wave_steering(RING, towards, spectra.frequencies, SPEED)[:, 0]
    wanted = line[:, :, None] * line[:, None, :].conj()
    got = spectra.covariances[0] / spectra.covariances[0].abs()
    # frames cut a delayed wave a little differently
    assert float((got - wanted).abs().max()) < 0.25
    assert float((got - wanted).abs().mean()) < 0.03


@pytest.mark.parametrize("phase_only", [False, True])
def test_covariances_are_those_of_a_slow_twin(phase_only):
    sound = plane_waves([0.3], n_samples=4000)
    spectra = short_time_covariances(sound, (300.0, 3000.0), frame_s=0.016, phase_only=phase_only)
    length, taper = 256, np.hanning(257)[:-1]
    frames = [sound.samples[:, s : s + length] for s in range(0, 4000 - length + 1, 128)]
    total = 0.0
    for frame in frames:
        bins = np.fft.rfft(frame.double().numpy() * taper)[:, 5:49]  # 312.5 to 3000 Hz
        bins = bins / np.abs(bins) if phase_only else bins
        total = total + np.einsum("mf,nf->fmn", bins, bins.conj()) / len(frames)
    assert spectra.frequencies[[0, -1]].tolist() == [312.5, 3000.0]
    np.testing.assert_allclose(spectra.covariances[0].numpy(), total, atol=1e-3 * abs(total).max())


def test_windows_cover_the_sound_one_after_the_other(monkeypatch):
    sound = plane_waves([0.3], n_samples=16000)
    spectra = short_time_covariances(sound, (300.0, 3000.0), window_s=0.25)
    alone = [
        short_time_covariances(
            Sound(sound.samples[:, start : start + 4096], RATE, RING), (300.0, 3000.0)
        ).covariances[0]
        for start in range(0, 4 * 3840, 3840)
    ]
    assert len(spectra.middles) >= 3
    torch.testing.assert_close(spectra.covariances[0], alone[0], rtol=0.3, atol=5.0)
    monkeypatch.setattr("musicnet.estimation.short_time._FRAMES_AT_ONCE", 3)
    piecewise = short_time_covariances(sound, (300.0, 3000.0), window_s=0.25)
    torch.testing.assert_close(piecewise.covariances, spectra.covariances, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", WIDEBAND_METHODS)
def test_exact_covariances_are_read_exactly(method):
    angles = [math.radians(40.0), math.radians(200.0)]
    spectra = exact_spectra(angles, [500.0 + 50.0 * n for n in range(30)])
    circle = SearchCircle.around(RING.double())
    lines = plane_wave_steering(RING.double(), circle.directions, spectra.frequencies, SPEED)
    draw = drawing(method, spectra, lines, 2, is_closed=True)
    score = draw(torch.ones(1, 30, dtype=torch.float64))[0, 0]
    peaks = circle_peaks(score, 2, is_closed=True)
    found = sorted((peaks.cells + peaks.offsets).tolist())
    # beams of two sources pull each other; subspaces do not
    assert found == pytest.approx([40.0, 200.0], abs=0.02 if method == "music" else 1.0)


def test_focusing_turns_a_response_into_that_of_another_frequency():
    circle = SearchCircle.around(RING.double())
    lines = plane_wave_steering(
        RING.double(), circle.directions[50:53], torch.tensor([900.0, 1500.0]).double(), SPEED
    )
    turned = focusing_matrices(lines[:1], lines[1:])
    identity = torch.eye(8, dtype=turned.dtype)
    torch.testing.assert_close(turned[0] @ turned[0].mH, identity, atol=1e-9, rtol=0)
    moved = (turned[0] @ lines[0].mT).mT
    assert float((moved - lines[1]).abs().max()) < 0.05
    assert float((lines[0] - lines[1]).abs().max()) > 0.5


def test_too_many_sources_are_refused():
    spectra = exact_spectra([0.1], [1000.0])
    lines = plane_wave_steering(
        RING.double(), SearchCircle.around(RING).directions.double(), spectra.frequencies, SPEED
    )
    with pytest.raises(ValueError, match="n_sources=8, 8 microphones"):
        drawing("music", spectra, lines, 8, is_closed=True)


def test_a_ring_is_asked_for_bearings_and_a_line_for_lateral_angles():
    ring = SearchCircle.around(RING, elevation=0.5)
    assert (ring.name, ring.is_closed, len(ring.angles)) == ("bearing", True, 360)
    torch.testing.assert_close(ring.directions.norm(dim=-1), torch.ones(360))
    torch.testing.assert_close(ring.directions[:, 2], torch.full((360,), math.sin(0.5)))
    line = SearchCircle.around(ArrayGeometry(4).positions(0.1))
    assert (line.name, line.is_closed) == ("lateral", False)
    assert line.angles[[0, -1]].tolist() == pytest.approx([-math.pi / 2, math.pi / 2], abs=1e-6)
    torch.testing.assert_close(line.directions[:, 0], line.angles.sin())


def test_what_sees_no_circle_is_refused():
    with pytest.raises(ValueError, match="got all at one"):
        SearchCircle.around(torch.zeros(3, 3))
    upright = torch.stack((torch.zeros(3), torch.tensor([0.0, 0.1, 0.0]), torch.arange(3.0)), -1)
    with pytest.raises(ValueError, match="span the x-y plane"):
        SearchCircle.around(upright)


def test_the_aliasing_limit_of_a_ring_is_half_a_wavelength_between_neighbours():
    gap = 0.2 * math.sin(math.pi / 8)
    assert aliasing_limit(RING, SPEED) == pytest.approx(SPEED / (2 * gap), rel=1e-5)


def test_a_parabola_is_read_exactly_and_a_flat_top_stays():
    at = 0.3
    left, here, right = (torch.tensor(-((x - at) ** 2)) for x in (-1.0, 0.0, 1.0))
    assert float(parabola_offset(left, here, right)) == pytest.approx(at)
    assert float(parabola_offset(torch.zeros(()), torch.zeros(()), torch.zeros(()))) == 0.0


def test_the_ends_of_a_line_may_be_maxima_and_those_of_a_circle_meet():
    score = torch.tensor([3.0, 2.0, 1.0, 2.5])
    line = circle_peaks(score, 2, is_closed=False)
    assert line.cells.tolist() == [0, 3]
    assert line.present.tolist() == [True, True]
    ring = circle_peaks(score, 2, is_closed=True)
    assert ring.present.tolist() == [True, False]
    assert not circle_peaks(torch.full((4,), math.nan), 1, is_closed=True).present.any()


@pytest.mark.bad_shape
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": torch.zeros(1, 9)}, r"got shape \(1, 9\)"),
        ({"rate": math.nan}, "got nan"),
        ({"positions": torch.zeros(3, 3)}, "for 8 microphones"),
    ],
)
def test_sound_that_is_none_is_refused(changes, message):
    whole = {"samples": torch.zeros(8, 9), "rate": RATE, "positions": RING}
    with pytest.raises(ValueError, match=message):
        Sound(**(whole | changes))


def test_sound_shorter_than_two_frames_and_empty_bands_are_refused():
    with pytest.raises(ValueError, match="two frames"):
        short_time_covariances(plane_waves([0.0], n_samples=600), (300.0, 3000.0))
    with pytest.raises(ValueError, match="got 301 to 302 Hz"):
        short_time_covariances(plane_waves([0.0]), (301.0, 302.0))
