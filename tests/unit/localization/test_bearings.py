"""Rings hear all around: bearings of sources in the plane of the array, or at one elevation."""

import json
import math

import numpy as np
import pytest
import torch

from musicnet.commands import localize as command
from musicnet.estimation.bearings import Circle, FoundBearings, bearing_information, find_bearings
from musicnet.estimation.likelihood import fit_amplitudes
from musicnet.estimation.problem import compress
from musicnet.localization.bearings import Around, localize_bearings
from musicnet.recordings.array_descriptions import read_array
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion, Sources
from musicnet.scene.steering import steering

WAVELENGTH = 0.343
RING = torch.from_numpy(read_array("uca:8:0.10m").positions(WAVELENGTH)).float()
EYE = torch.eye(8, dtype=torch.complex64)[None]


def heard(bearing_deg, snr_db=10.0, n_snapshots=50, elevation_deg=0.0, noise=1.0, seed=0):
    """Scenes of sources at given bearings, [scene, source]."""
    lot = torch.Generator().manual_seed(seed)
    bearing = torch.deg2rad(torch.as_tensor(bearing_deg, dtype=torch.float64))
    reach = math.cos(math.radians(elevation_deg))
    parameters = torch.stack((bearing.cos(), bearing.sin(), 0 * bearing), -1) * reach
    response = steering(RING.double(), parameters, WAVELENGTH).to(torch.complex64)
    n_scenes, n_sources = bearing.shape

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.complex64, generator=lot)

    symbols = draw(n_scenes, n_snapshots, n_sources) * 10.0 ** (snr_db / 20.0)
    y = symbols @ response + draw(n_scenes, n_snapshots, 8) * noise
    power = torch.full((n_scenes,), max(noise, 1e-3) ** 2)
    return Observation(y, EYE, power, RING, WAVELENGTH)


def errors_deg(found, bearing_deg):
    """Distance of each true bearing to the nearest found, around the circle, and its deviation."""
    truth = torch.as_tensor(bearing_deg, dtype=torch.float64)
    apart = found.bearing.double().rad2deg()[..., None, :] - truth[..., None]
    apart = (torch.remainder(apart + 180.0, 360.0) - 180.0).abs().nan_to_num(1e9)
    nearest = apart.min(-1)
    return nearest.values, found.std_bearing.rad2deg().gather(-1, nearest.indices)


@pytest.mark.parametrize("elevation_deg", [0.0, 35.0])
def test_every_bearing_is_found_also_where_the_circle_closes(elevation_deg):
    truth = torch.linspace(-180.0, 180.0, 41)[:, None]
    around = Around(elevation_deg=elevation_deg)
    found = localize_bearings(
        heard(truth, noise=1e-3, snr_db=0.0, elevation_deg=elevation_deg), 1, around=around
    )
    assert errors_deg(found, truth)[0].max() < 0.01
    assert found.sources.resolved.all()
    assert found.method == "bearing"


def test_error_bars_are_honest_and_the_number_is_found():
    lot = torch.Generator().manual_seed(1)
    first = torch.rand(200, 1, generator=lot) * 360.0 - 180.0
    truth = torch.cat((first, first + 60.0 + 120.0 * torch.rand(200, 1, generator=lot)), 1)
    found = localize_bearings(heard(truth))
    assert (found.n_sources == 2).float().mean() > 0.98
    right = found.n_sources == 2
    error, deviation = errors_deg(found, truth)
    nees = (error / deviation)[right].square().mean().item()
    assert 0.8 < nees < 1.25


def test_noise_alone_has_no_source():
    silent = heard(torch.zeros(300, 1), snr_db=-100.0)
    assert (localize_bearings(silent).n_sources > 0).float().mean() <= 0.01


def test_the_derivative_is_that_of_the_cost():
    """Gauss-Newton's matrix is the second difference where the model explains all."""
    truth = torch.tensor([[20.0, 120.0]])
    observation = heard(truth, noise=1e-3)
    exact = Observation(
        observation.y.to(torch.complex128),
        EYE.to(torch.complex128),
        observation.noise_power.double(),
        RING.double(),
        WAVELENGTH,
    )
    region = SearchRegion((-1.0, 1.0), (-1.0, 1.0), (0.0, 0.0))
    problem, circle = compress(exact, region), Circle()
    present = torch.ones(1, 1, 2, dtype=torch.bool)
    found = find_bearings(problem, circle, torch.full((1, 1), 2))
    curvature = bearing_information(problem, circle, found)[0, 0]

    def cost(bearings):
        sources = Sources(circle.parameters(bearings)[0], present[0])
        return fit_amplitudes(exact, sources).cost.sum()

    step, at = 1e-4, found.bearings
    for i in range(2):
        e = torch.zeros(2, dtype=torch.float64)
        e[i] = step
        second = (cost(at + e) - 2 * cost(at) + cost(at - e)) / step**2
        assert curvature[i, i].item() == pytest.approx(second.item(), rel=1e-3)
    assert FoundBearings(found.bearings, present, found.cost).cost.isfinite().all()


def test_turning_the_array_turns_the_bearings():
    truth = torch.tensor([[10.0, 100.0], [-60.0, 40.0]])
    one = localize_bearings(heard(truth), 2)
    turned = localize_bearings(heard(truth + 45.0), 2)  # one sensor further
    ours = one.bearing.rad2deg().sort(-1).values
    theirs = (turned.bearing.rad2deg() - 45.0).sort(-1).values
    # the noise is another to each sensor
    assert (ours - theirs).abs().max() < 2.0


def test_a_sector_is_kept():
    found = localize_bearings(
        heard(torch.tensor([[150.0]])), 1, around=Around(bearing_deg=(-90.0, 90.0))
    )
    assert abs(found.bearing.rad2deg().item()) <= 90.0 + 1e-4


def test_answers_do_not_depend_on_company_to_the_last_bit():
    truth = torch.linspace(-170.0, 170.0, 12)[:, None] + torch.tensor([0.0, 80.0])
    observation = heard(truth)
    together = localize_bearings(observation)
    for some in (slice(0, 1), slice(1, 5), slice(5, 12)):
        part = Observation(
            observation.y[some], EYE, observation.noise_power[some], RING, WAVELENGTH
        )
        apart = localize_bearings(part)
        assert torch.equal(apart.bearing.nan_to_num(9), together.bearing[some].nan_to_num(9))
        assert torch.equal(
            apart.std_bearing.nan_to_num(9), together.std_bearing[some].nan_to_num(9)
        )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"elevation_deg": 90.0}, "got 90.0"),
        ({"bearing_deg": (10.0, 10.0)}, r"got \(10.0, 10.0\)"),
        ({"bearing_deg": (-200.0, 200.0)}, r"got \(-200.0, 200.0\)"),
    ],
)
def test_what_is_no_part_of_a_circle_is_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        Around(**options)


def test_a_line_does_not_tell_left_from_right():
    line = torch.from_numpy(read_array("ula:8:0.1m").positions(WAVELENGTH)).float()
    observation = heard(torch.tensor([[10.0]]))
    with pytest.raises(ValueError, match="cannot see how a source turns around it"):
        localize_bearings(
            Observation(observation.y, EYE, observation.noise_power, line, WAVELENGTH), 1
        )


@pytest.fixture
def record(tmp_path):
    np.save(tmp_path / "ring.npy", heard(torch.tensor([[-175.0, 60.0]])).y[0].numpy())
    return tmp_path / "ring.npy"


def test_the_command_reports_bearings_of_a_ring(record, tmp_path):
    target = tmp_path / "out.json"
    words = ["--array", "uca:8:0.10m", "--wavelength", "0.343", "--output", str(target)]
    assert command.run([str(record), *words]) == 0
    (scene,) = json.loads(target.read_text())["scenes"]
    found = sorted(source["bearing_deg"] for source in scene["sources"])
    assert found == pytest.approx([-175.0, 60.0], abs=2.0)
    for source in scene["sources"]:
        assert 0.1 < source["std_bearing_deg"] < 2.0
        bearing = math.degrees(math.atan2(source["y"], source["x"]))
        assert bearing == pytest.approx(source["bearing_deg"], abs=1e-3)


def test_contradicting_options_are_refused_in_one_line(record, capsys):
    words = ["--array", "uca:8:0.10m", "--wavelength", "0.343", "--bearing-deg", "0", "90"]
    assert command.run([str(record), *words, "--method", "music"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Leave one or the other out" in line


def test_a_ring_that_looks_ahead_reports_bearings_as_well(record, tmp_path):
    target = tmp_path / "out.json"
    words = ["--array", "uca:8:0.10m", "--wavelength", "0.343", "--elevation-deg", "-60", "60"]
    words += ["--azimuth-deg", "-60", "60", "--n-sources", "1", "--output", str(target)]
    assert command.run([str(record), *words]) == 0
    (scene,) = json.loads(target.read_text())["scenes"]
    assert {"bearing_deg", "std_bearing_deg", "azimuth_deg"} <= set(scene["sources"][0])


def test_a_pair_reports_the_lateral_angle(tmp_path):
    x = 0.05 * np.array([-1.0, 1.0])
    lot = np.random.default_rng(0)
    symbols = lot.normal(size=(200, 1)) + 1j * lot.normal(size=(200, 1))
    noise = 0.05 * (lot.normal(size=(2, 200, 2)))
    response = np.exp(2j * np.pi / 0.343 * x * np.sin(np.radians(25.0)))
    np.save(tmp_path / "pair.npy", symbols * response + noise[0] + 1j * noise[1])
    target = tmp_path / "out.json"
    words = ["--array", "ula:2:0.10m", "--wavelength", "0.343", "--output", str(target)]
    assert command.run([str(tmp_path / "pair.npy"), *words]) == 0
    for scene in json.loads(target.read_text())["scenes"]:
        (source,) = scene["sources"]
        assert source["azimuth_deg"] == pytest.approx(25.0, abs=1.5)
