"""Slow, plain, double-precision twins of the fast code: one source, one element at a time."""

import itertools

import numpy as np


def slow_steering(positions, points, wavelength):
    """exp(j k0 (r - d_n)) by subtracting distances, or the plane wave for a unit direction."""
    wavenumber = 2 * np.pi / wavelength
    answer = np.zeros((len(points), len(positions)), dtype=complex)
    for k, point in enumerate(points):
        for n, element in enumerate(positions):
            path = np.linalg.norm(point) - np.linalg.norm(point - element)
            answer[k, n] = np.exp(1j * wavenumber * path)
    return answer


def slow_plane_wave(positions, direction, wavelength):
    wavenumber = 2 * np.pi / wavelength
    return np.array([np.exp(1j * wavenumber * (element @ direction)) for element in positions])


def slow_point(u, v, rho):
    return np.array([u, v, np.sqrt(1 - u * u - v * v)]) / rho


def slow_snapshot(operator, steering, amplitudes):
    """Noise-free y of one scene, block by block."""
    n_blocks = len(amplitudes)
    rows = []
    for q in range(n_blocks):
        mixing = operator[q if len(operator) > 1 else 0]
        field = sum(amplitudes[q, k] * steering[k] for k in range(len(steering)))
        rows.append(mixing @ field)
    return np.array(rows)


def slow_covariance(y):
    total = np.zeros((y.shape[1], y.shape[1]), dtype=complex)
    for snapshot in y:
        total += np.outer(snapshot, snapshot.conj())
    return total / len(y)


def slow_peaks(spectrum, n_peaks):
    """Strict local maxima over the 26 neighbours, best first."""
    found = []
    for v, u, rho in itertools.product(*map(range, spectrum.shape)):
        window = spectrum[max(v - 1, 0) : v + 2, max(u - 1, 0) : u + 2, max(rho - 1, 0) : rho + 2]
        value = spectrum[v, u, rho]
        if (window >= value).sum() == 1:
            found.append((value, (v, u, rho)))
    return sorted(found, reverse=True)[:n_peaks]


def slow_slepian_bangs(mean_of, unknowns, noise_power, step=1e-6):
    """Bound on all unknowns of y ~ CN(mean, noise_power I), by finite differences of the mean."""
    columns = []
    for i in range(len(unknowns)):
        shift = np.zeros(len(unknowns))
        shift[i] = step
        columns.append((mean_of(unknowns + shift) - mean_of(unknowns - shift)) / (2 * step))
    jacobian = np.stack(columns, axis=-1)
    information = 2 / noise_power * (jacobian.conj().T @ jacobian).real
    return np.linalg.inv(information)
