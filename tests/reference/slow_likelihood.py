"""Maximum likelihood, one scene at a time, by the book: least squares, projectors, no tricks."""

import numpy as np

from tests.reference.slow_twins import slow_plane_wave, slow_point, slow_steering


def slow_signatures(operator, positions, parameters, wavelength):
    """G_q A, block by block, of a scene's sources."""
    columns = []
    for u, v, rho in parameters:
        if rho == 0:
            direction = np.array([u, v, np.sqrt(1 - u * u - v * v)])
            columns.append(slow_plane_wave(positions, direction, wavelength))
        else:
            columns.append(slow_steering(positions, [slow_point(u, v, rho)], wavelength)[0])
    steering = np.stack(columns, axis=-1)
    return [block @ steering for block in operator]


def slow_cost(y, operator, positions, parameters, wavelength):
    """Power that the best amplitudes leave over."""
    signatures = slow_signatures(operator, positions, parameters, wavelength)
    cost = 0.0
    for q in range(len(y)):
        here = signatures[q if len(operator) > 1 else 0]
        amplitudes = np.linalg.lstsq(here, y[q], rcond=None)[0]
        cost += np.sum(np.abs(y[q] - here @ amplitudes) ** 2)
    return cost


def slow_gradient(cost_of, parameters, step=1e-6):
    gradient = np.zeros_like(parameters)
    for index in np.ndindex(*parameters.shape):
        shift = np.zeros_like(parameters)
        shift[index] = step
        gradient[index] = (cost_of(parameters + shift) - cost_of(parameters - shift)) / (2 * step)
    return gradient


def slow_gains(y, operator, positions, parameters, cells, wavelength):
    """By how much the cost falls if a source at each cell joins the others."""
    before = slow_cost(y, operator, positions, parameters, wavelength) if len(parameters) else None
    if before is None:
        before = np.sum(np.abs(y) ** 2)
    return np.array(
        [
            before - slow_cost(y, operator, positions, [*parameters, cell], wavelength)
            for cell in cells
        ]
    )


def slow_stochastic_bound(operator, steering_of, parameters, powers, noise_power, n_snapshots):
    """Slepian-Bangs over positions, all entries of P and the noise power, by finite differences."""
    n_sources = powers.shape[0]
    entries = [(i, j, part) for i in range(n_sources) for j in range(i, n_sources) for part in "ri"]
    entries = [entry for entry in entries if not (entry[0] == entry[1] and entry[2] == "i")]

    def covariances(unknowns):
        n_positions = parameters.size
        steering = steering_of(unknowns[:n_positions].reshape(parameters.shape))
        power = np.zeros((n_sources, n_sources), complex)
        for value, (i, j, part) in zip(unknowns[n_positions:-1], entries, strict=True):
            power[i, j] += value * (1 if part == "r" else 1j)
            if i != j:
                power[j, i] += value * (1 if part == "r" else -1j)
        field = steering @ power @ steering.conj().T
        return [
            block @ field @ block.conj().T + unknowns[-1] * np.eye(block.shape[0])
            for block in operator
        ]

    values = [powers[i, j].real if part == "r" else powers[i, j].imag for i, j, part in entries]
    unknowns = np.concatenate([parameters.ravel(), values, [noise_power]])
    here = covariances(unknowns)
    slopes = []
    for i in range(len(unknowns)):
        shift = np.zeros(len(unknowns))
        shift[i] = 1e-6
        pairs = zip(covariances(unknowns + shift), covariances(unknowns - shift), strict=True)
        slopes.append([(ahead - behind) / 2e-6 for ahead, behind in pairs])
    information = np.zeros((len(unknowns), len(unknowns)))
    for q, covariance in enumerate(here):
        inverse = np.linalg.inv(covariance)
        turned = [inverse @ slope[q] for slope in slopes]
        for a, first in enumerate(turned):
            for b, second in enumerate(turned):
                information[a, b] += n_snapshots * np.trace(first @ second).real
    n_positions = parameters.size
    return np.linalg.inv(information)[:n_positions, :n_positions]


def slow_gaussian_misfit(y, covariance):
    """Minus the log-density of independent Gaussian snapshots, without T N log pi."""
    inverse = np.linalg.inv(covariance)
    return sum(
        np.linalg.slogdet(covariance)[1] + (snapshot.conj() @ inverse @ snapshot).real
        for snapshot in y
    )


def slow_independent_misfit(y, signatures):
    """Sources that know nothing of each other, in noise of power 1; and the price of K numbers."""
    n_snapshots, n_sources = len(y), signatures.shape[1]
    amplitudes = np.linalg.lstsq(signatures, y.T, rcond=None)[0]
    noise = np.diag(np.linalg.inv(signatures.conj().T @ signatures)).real
    power = np.maximum(np.mean(np.abs(amplitudes) ** 2, axis=1) - noise, noise)
    covariance = np.eye(y.shape[1]) + signatures @ np.diag(power) @ signatures.conj().T
    price = 0.5 * n_sources * np.log(n_snapshots) + np.log(power).sum()
    return slow_gaussian_misfit(y, covariance) + price


def slow_rank_covariance(y, signatures, rank):
    """The likeliest covariance of symbols of a rank, in noise of power 1."""
    basis = np.linalg.qr(signatures)[0]
    seen = basis.conj().T @ (y.T @ y.conj()) @ basis / len(y)
    values, vectors = np.linalg.eigh(seen)
    beyond = np.maximum(values - 1.0, 0.0)
    beyond[: len(values) - rank] = 0.0
    inverse = np.linalg.pinv(signatures)
    field = basis @ vectors @ np.diag(beyond) @ vectors.conj().T @ basis.conj().T
    return inverse @ field @ inverse.conj().T


def slow_coherent_misfit(y, signatures):
    """Symbols of the best rank, in noise of power 1; and the price of 2 K r - r^2 numbers."""
    n_snapshots, n_sources = len(y), signatures.shape[1]
    noise = np.trace(np.linalg.inv(signatures.conj().T @ signatures)).real
    full = np.trace(slow_rank_covariance(y, signatures, n_sources)).real
    misfits = []
    for rank in range(1, n_sources + 1):
        symbols = slow_rank_covariance(y, signatures, rank)
        covariance = np.eye(y.shape[1]) + signatures @ symbols @ signatures.conj().T
        n_free = 2 * n_sources * rank - rank**2
        misfits.append(slow_gaussian_misfit(y, covariance) + 0.5 * n_free * np.log(n_snapshots))
    return min(misfits) + n_sources * np.log(max(full, noise) / n_sources)


def slow_symbol_covariances(signatures, powers, noise_power):
    """What a block of Gaussian symbols of these powers is heard as, block by block."""
    return [
        here @ np.diag(powers) @ here.conj().T + noise_power * np.eye(len(here))
        for here in signatures
    ]


def slow_symbol_cost(y, signatures, powers, noise_power):
    """Sigma^2 times minus the log-density of all snapshots, without what noise alone has."""
    cost = 0.0
    covariances = slow_symbol_covariances(signatures, powers, noise_power)
    n_snapshots = len(y) // len(covariances)
    for q, heard in enumerate(y):
        covariance = covariances[q // n_snapshots]
        volume = np.linalg.slogdet(covariance / noise_power)[1]
        cost += noise_power * ((heard.conj() @ np.linalg.solve(covariance, heard)).real + volume)
    return cost


def slow_symbol_gain(y, signatures, powers, noise_power, cell, floor=0.0):
    """What the whitened filter hears from a cell, of each block its signature.

    No less than a share ``floor`` of a cell's power counts as left by the sources.
    """
    gain = 0.0
    covariances = slow_symbol_covariances(signatures, powers, noise_power)
    n_snapshots = len(y) // len(covariances)
    for q, covariance in enumerate(covariances):
        filtered = noise_power * np.linalg.solve(covariance, cell[q])
        left = (cell[q].conj() @ filtered).real
        left = max(left, floor * np.sum(np.abs(cell[q]) ** 2))
        for heard in y[q * n_snapshots : (q + 1) * n_snapshots]:
            gain += np.abs(filtered.conj() @ heard) ** 2 / left
    return gain
