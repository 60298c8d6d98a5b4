"""All methods through one call, against scenes whose sources are known."""

import math
import re
from dataclasses import replace

import pytest
import torch

from musicnet.localization import METHODS, localize
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation, block_generator, draw_block, draw_blocks
from musicnet.scene.sources import SearchRegion, SourceLaw
from musicnet.scene.steering import steering
from musicnet.scene.surface import Surface

CLASSICAL = [name for name in METHODS if name != "neural"]
NAMED = CLASSICAL[1:]
SECTOR = SearchRegion.from_angles((-80.0, 80.0), (0.0, 0.0), None)
ANYWHERE = SearchRegion.from_angles((-60.0, 60.0), (-60.0, 60.0), None)


def heard_by(array, truth, *, n_snapshots=100, noise=0.03, seed=0, coherent=False):
    """Snapshots of unit sources at given (u, v, rho), wavelength 1."""
    generator = torch.Generator().manual_seed(seed)
    positions = array.positions(1.0)
    field = steering(positions, truth, 1.0)  # (scene, source, element)
    shape = (*truth.shape[:-2], n_snapshots, 1 if coherent else truth.shape[-2])
    symbols = torch.randn(shape, generator=generator, dtype=torch.complex64)
    symbols = symbols.expand(*shape[:-1], truth.shape[-2])
    clean = symbols @ field
    y = clean + noise * torch.randn(clean.shape, generator=generator, dtype=torch.complex64)
    identity = torch.eye(array.n_elements, dtype=torch.complex64)[None]
    power = torch.full(truth.shape[:-2], noise**2)
    return Observation(y, identity, power, positions, 1.0)


def directions(*cosines):
    """Far scenes of sources at u; NaN is an empty slot."""
    u = torch.tensor(cosines)
    return torch.stack((u, 0.0 * u, 0.0 * u), dim=-1)


LINE = ArrayGeometry(8)
PAIRS = directions([-0.5, 0.3], [0.1, 0.72], [-0.62, 0.05])


def surface_scenes(n_scenes=6, n_sources=2):
    scene = Scene(
        array=ArrayGeometry(6, 6),
        sources=SourceLaw(n_min=n_sources, n_max=n_sources, snr_db=(20.0, 20.0)),
        surface=Surface(n_antennas=6, n_codes=10),
    )
    heard, truth = draw_block(scene, block_generator(0, "localize", 0, 1), n_scenes)
    return heard, truth, scene.region


@pytest.mark.parametrize("method", NAMED)
def test_every_method_finds_two_far_sources(method):
    found = localize(heard_by(LINE, PAIRS), method, 2, region=SECTOR)
    assert found.method == method
    assert found.sources.resolved.all()
    assert found.n_sources.tolist() == [2, 2, 2]
    near = 0.05 if method == "bartlett" else 2e-3  # its two main lobes lean on each other
    torch.testing.assert_close(found.sources.u.sort(-1).values, PAIRS[..., 0], atol=near, rtol=0.0)


@pytest.mark.parametrize("method", CLASSICAL)
def test_known_gains_of_the_sensors_change_nothing(method):
    heard = heard_by(LINE, PAIRS)
    turns = torch.linspace(0.0, 9.0, 8)
    gains = torch.polar(torch.linspace(0.8, 1.2, 8), turns)
    heard = replace(heard, y=heard.y * gains, operator=torch.diag(gains)[None])
    found = localize(heard, method, 2, region=SECTOR)
    assert found.method == ("multistart" if method == "auto" else method)
    near = 0.05 if method == "bartlett" else 2e-3
    torch.testing.assert_close(found.sources.u.sort(-1).values, PAIRS[..., 0], atol=near, rtol=0.0)


@pytest.mark.parametrize("n_snapshots", [4, 8, 12])
def test_few_snapshots_are_counted_as_well(n_snapshots):
    heard = heard_by(LINE, PAIRS.repeat(60, 1, 1), n_snapshots=n_snapshots, noise=0.3)
    found = localize(heard, "root-music", region=SECTOR)
    assert (found.n_sources == 2).float().mean() > 0.97


@pytest.mark.parametrize("method", [name for name in NAMED if name not in ("mvdr", "bartlett")])
def test_coherent_sources_are_found_and_counted(method):
    found = localize(heard_by(LINE, PAIRS, coherent=True), method, region=SECTOR)
    assert found.n_sources.tolist() == [2, 2, 2]
    found_u = found.sources.u.nan_to_num(2.0).sort(-1).values[..., :2]
    torch.testing.assert_close(found_u, PAIRS[..., 0], atol=0.01, rtol=0.0)


@pytest.mark.parametrize("method", NAMED)
def test_a_scene_that_is_not_finite_harms_only_itself(method):
    heard = heard_by(LINE, PAIRS)
    whole = localize(heard, method, 2, region=SECTOR)
    y = heard.y.clone()
    y[1, 3, 2] = math.nan
    found = localize(replace(heard, y=y), method, 2, region=SECTOR)
    assert found.sources.resolved.tolist() == [[True] * 2, [False] * 2, [True] * 2]
    assert found.sources.parameters[1].isnan().all()
    assert found.std_xyz[1].isnan().all()
    assert found.log_likelihood[1].isnan()
    kept = torch.tensor([0, 2])
    torch.testing.assert_close(
        found.sources.parameters[kept], whole.sources.parameters[kept], atol=1e-5, rtol=0.0
    )


@pytest.mark.parametrize("n_sources", [2, None])
@pytest.mark.parametrize("method", NAMED)
def test_a_scene_alone_is_answered_as_in_a_batch(method, n_sources):
    heard = heard_by(LINE, PAIRS, noise=0.1)
    together = localize(heard, method, n_sources, region=SECTOR)
    for index in range(3):
        alone = localize(
            replace(heard, y=heard.y[index : index + 1], noise_power=heard.noise_power[:1]),
            method,
            n_sources,
            region=SECTOR,
        )
        assert alone.n_sources.tolist() == together.n_sources[index : index + 1].tolist()
        for part in ("std_parameters", "log_likelihood"):
            one, all_of_them = getattr(alone, part)[0], getattr(together, part)[index]
            torch.testing.assert_close(one, all_of_them, atol=1e-4, rtol=1e-2, equal_nan=True)
        torch.testing.assert_close(
            alone.sources.parameters[0],
            together.sources.parameters[index],
            atol=1e-4,
            rtol=0.0,
            equal_nan=True,
        )


def test_scenes_may_have_different_numbers_of_sources():
    truth = directions([-0.5, 0.3, 0.8], [0.1, 0.6, math.nan], [math.nan] * 3)
    heard = heard_by(LINE, truth.nan_to_num(0.0))
    field = (
        steering(heard.positions, truth.nan_to_num(0.0), 1.0) * ~truth.isnan().any(-1)[..., None]
    )
    symbols = torch.randn(3, 100, 3, dtype=torch.complex64, generator=torch.manual_seed(1))
    noise = 0.03 * torch.randn(3, 100, 8, dtype=torch.complex64)
    heard = replace(heard, y=symbols @ field + noise)
    for method in NAMED:
        found = localize(heard, method, torch.tensor([3, 2, 0]), region=SECTOR)
        assert found.sources.resolved.sum(-1).tolist() == [3, 2, 0]
        assert found.n_sources.tolist() == [3, 2, 0]
        if method != "bartlett":
            u = found.sources.u.nan_to_num(2.0).sort(-1).values
            torch.testing.assert_close(u[0], truth[0, :, 0], atol=5e-3, rtol=0.0)
            torch.testing.assert_close(u[1, :2], truth[1, :2, 0], atol=5e-3, rtol=0.0)


@pytest.mark.parametrize("method", NAMED)
def test_leading_axes_come_back(method):
    scene = Scene(
        array=LINE,
        sources=SourceLaw(n_max=2, elevation_deg=(0.0, 0.0), range_m=None),
        n_snapshots=20,
        symbols="data",
    )
    heard, truth = draw_blocks(scene, [0, 1, 2], 4, "cpu", 0, "axes", 0)
    found = localize(heard, method, truth.n_sources, region=scene.region)
    assert found.sources.parameters.shape == (3, 4, 2, 3)
    assert found.covariance.shape == (3, 4, 2, 3, 3)
    assert found.log_likelihood.shape == found.n_sources.shape == (3, 4)
    first = replace(
        heard, y=heard.y[1], operator=heard.operator[1], noise_power=heard.noise_power[1]
    )
    alone = localize(first, method, truth.n_sources[1], region=scene.region)
    torch.testing.assert_close(alone.log_likelihood, found.log_likelihood[1], atol=0.05, rtol=1e-4)


@pytest.mark.parametrize("method", ["nomp", "multistart"])
@pytest.mark.parametrize("n_sources", [2, None])
def test_likelihood_methods_find_sources_behind_a_surface(method, n_sources):
    heard, truth, region = surface_scenes()
    found = localize(heard, method, n_sources, region=region)
    assert found.n_sources.tolist() == [2] * 6
    order = found.sources.u.nan_to_num(2.0).argsort(-1)[..., :2, None]
    estimate = found.sources.parameters.take_along_dim(order, -2)
    expected = truth.parameters.take_along_dim(truth.u.argsort(-1)[..., None], -2)
    error = (estimate - expected).abs()
    assert (error <= 6.0 * found.std_parameters.take_along_dim(order, -2)).all()


@pytest.mark.parametrize("method", ["music", "mvdr", "bartlett"])
def test_spectra_answer_behind_a_surface_as_well(method):
    heard, _, region = surface_scenes()
    for n_sources in (2, None):
        found = localize(heard, method, n_sources, region=region)
        parameters = found.sources.parameters[found.sources.resolved]
        assert len(parameters) == 12
        torch.testing.assert_close(region.clamp(parameters), parameters, atol=1e-6, rtol=0.0)


def test_rectangles_and_rings_are_searched_in_two_directions():
    truth = torch.tensor([[[-0.4, 0.3, 0.0], [0.2, -0.5, 0.0]]])
    rectangle, ring = ArrayGeometry(5, 4), ArrayGeometry(12, kind="ring")
    for array, methods in ((rectangle, NAMED), (ring, ("nomp", "multistart", "music", "mvdr"))):
        heard = heard_by(array, truth)
        for method in set(methods) - {"root-music", "bartlett"}:
            found = localize(heard, method, 2, region=ANYWHERE)
            order = found.sources.u.argsort(-1)[..., None]
            estimate = found.sources.parameters.take_along_dim(order, -2)
            torch.testing.assert_close(estimate, truth, atol=5e-3, rtol=0.0)


@pytest.mark.parametrize("method", CLASSICAL)
def test_the_default_type_of_the_caller_changes_nothing(method):
    heard = heard_by(LINE, PAIRS)
    wanted = localize(heard, method, 2, region=SECTOR)
    torch.set_default_dtype(torch.float64)
    try:
        found = localize(heard, method, 2, region=SECTOR)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.sources.parameters, wanted.sources.parameters)


def test_auto_names_what_it_chose():
    assert localize(heard_by(LINE, PAIRS), "auto", 2, region=SECTOR).method == "multistart"
    heard, _, region = surface_scenes(2)
    assert localize(heard, n_sources=2, region=region).method == "nomp"


def test_no_estimate_leaves_the_region():
    narrow = SearchRegion.from_angles((-10.0, 30.0), (0.0, 0.0), None)
    for method in NAMED:
        found = localize(heard_by(LINE, PAIRS, noise=1.0), method, 2, region=narrow)
        u = found.sources.u[found.sources.resolved]
        assert len(u) >= 3
        assert (u >= narrow.u[0]).all()
        assert (u <= narrow.u[1]).all()


def test_silence_holds_no_sources():
    quiet = heard_by(LINE, PAIRS)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(quiet.y.shape, generator=generator, dtype=torch.complex64)
    for method in ("nomp", "root-music"):
        found = localize(replace(quiet, y=noise, noise_power=torch.ones(3)), method, region=SECTOR)
        assert found.n_sources.tolist() == [0, 0, 0]
        assert not found.sources.resolved.any()


def test_a_wrong_noise_power_need_not_be_believed():
    heard = heard_by(LINE, PAIRS, noise=0.3)
    wrong = replace(heard, noise_power=0.2 * heard.noise_power)
    found = localize(wrong, "nomp", region=SECTOR, is_noise_known=False)
    assert found.n_sources.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({}, {"method": "rootmusic"}, "got 'rootmusic'. Did you mean 'root-music'?"),
        (
            {},
            {"n_sources": 8},
            "got n_sources=8, n_sensors=8. Use a larger array, or n_sources <= 7",
        ),
        ({}, {"n_sources": 0}, "got n_sources=0"),
        ({}, {"n_sources": torch.tensor([1, 2, 9])}, "got n_sources=9"),
        ({}, {"most_sources": 8}, "from 1 to 7"),
        ({}, {"region": SearchRegion((0.1, 0.1), (0.0, 0.0), (0.0, 0.0))}, "something to search"),
        ({"y": math.nan}, {}, "got NaN or infinity in all 3 scenes"),
        ({"operator": math.nan}, {}, "operator must be finite"),
        ({"positions": math.inf}, {}, "positions must be finite"),
        ({"noise_power": 0.0}, {}, "noise_power must be positive: got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes, options, reason):
    heard = heard_by(LINE, PAIRS)
    for name, factor in changes.items():
        heard = replace(heard, **{name: getattr(heard, name) * factor})
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        localize(heard, **{"method": "music", "region": SECTOR, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.bad_shape
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: replace(h, y=h.y.mT), "look swapped: pass y.mT"),
        (lambda h: replace(h, y=h.y[..., :5]), r"with 8 rows: got shape \(3, 100, 5\)"),
        (lambda h: replace(h, y=h.y[:0]), "something to localise"),
        (lambda h: replace(h, y=h.y.real), "must be complex"),
        (lambda h: replace(h, y=h.y[0, 0]), "end in .block, row"),
        (lambda h: replace(h, y=h.y[0]), r"each of the scenes \(\): got .* shape \(3,\)"),
        (lambda h: replace(h, noise_power=h.noise_power[:2]), r"noise_power must .* \(2,\)"),
        (lambda h: replace(h, noise_power=h.noise_power + 0j), "one real number .*complex64"),
        (lambda h: replace(h, positions=h.positions[:4]), r"positions must be \(8, 3\)"),
        (lambda h: replace(h, operator=h.operator.expand(7, 8, 8)), "or the 100 of y: got 7"),
        (lambda h: replace(h, operator=h.operator.expand(2, 1, 8, 8)), "for y of"),
    ],
)
def test_wrong_shapes_are_refused_in_one_line(change, reason):
    with pytest.raises(ValueError, match=reason):
        localize(change(heard_by(LINE, PAIRS)), "music", 2, region=SECTOR)


@pytest.mark.bad_shape
@pytest.mark.parametrize(
    "n_sources",
    [
        torch.tensor([1, 2]),
        torch.tensor([1.0, 2.0, 1.0]),
        torch.tensor([1, 2, 1]) + 0j,
        torch.tensor([True, True, True]),
    ],
)
def test_one_whole_number_for_each_scene_is_wanted(n_sources):
    with pytest.raises(ValueError, match="one whole number for each"):
        localize(heard_by(LINE, PAIRS), "music", n_sources, region=SECTOR)


@pytest.mark.parametrize("method", ["root-music", "esprit"])
def test_methods_that_need_a_line_say_so(method):
    heard, _, region = surface_scenes(1)
    with pytest.raises(ValueError, match=r"got a surface, .* the near field. Use nomp"):
        localize(heard, method, 1, region=region)
    ring = heard_by(ArrayGeometry(8, kind="ring"), PAIRS)
    with pytest.raises(ValueError, match="no uniform line"):
        localize(ring, method, 1, region=ANYWHERE)


@pytest.mark.parametrize("method", ["nomp", "multistart", "music", "mvdr"])
def test_a_region_with_corners_beyond_the_unit_disc_is_searched_all_the_same(method):
    law = SourceLaw(
        n_min=1,
        n_max=1,
        azimuth_deg=(-70.0, 70.0),
        elevation_deg=(-50.0, 50.0),
        snr_db=(-40.0, 10.0),
    )
    scene = Scene(ArrayGeometry(8, 8), law, n_snapshots=20, symbols="data")
    observation, _ = draw_block(scene, block_generator(0, "corner", 0, 0), 64)
    found = localize(observation, method, 1, region=scene.region).sources
    assert found.resolved.all()
    assert found.parameters[..., :2].norm(dim=-1).max() <= 1.0


@pytest.mark.parametrize("method", ["nomp", "root-music", "music"])
def test_one_scene_may_come_without_an_axis_of_scenes(method):
    heard = heard_by(LINE, PAIRS)
    alone = localize(
        replace(heard, y=heard.y[0], noise_power=heard.noise_power[0]), method, 2, region=SECTOR
    )
    assert alone.sources.parameters.shape == (2, 3)
    assert alone.log_likelihood.shape == alone.n_sources.shape == ()
    torch.testing.assert_close(alone.sources.u.sort().values, PAIRS[0, :, 0], atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("n_sources", [8, 10**20, -(10**20)])
def test_numbers_of_sources_of_any_size_are_refused_in_one_line(n_sources):
    with pytest.raises(ValueError, match=f"got n_sources={n_sources}, n_sensors=8"):
        localize(heard_by(LINE, PAIRS), "music", n_sources, region=SECTOR)


@pytest.mark.parametrize(
    ("array", "region", "blind"),
    [
        (LINE, ANYWHERE, "v from -0.866 to 0.866.*elevation_deg"),
        (LINE, SearchRegion((0.0, 0.0), (-0.5, 0.5), (0.2, 2.0)), "v from -0.5 to 0.5"),
        (ArrayGeometry(1, 8), ANYWHERE, "u from .*azimuth_deg"),
    ],
)
def test_a_line_is_not_asked_for_what_it_cannot_see(array, region, blind):
    with pytest.raises(ValueError, match=f"cannot see how a source turns .* {blind}"):
        localize(heard_by(array, PAIRS), "nomp", 1, region=region)


def test_a_line_along_y_sees_elevation():
    truth = PAIRS[..., [1, 0, 2]]
    region = SearchRegion((0.0, 0.0), (-0.9, 0.9), (0.0, 0.0))
    found = localize(heard_by(ArrayGeometry(1, 8), truth), "nomp", 2, region=region)
    torch.testing.assert_close(
        found.sources.parameters[..., 1].sort(-1).values, PAIRS[..., 0], atol=2e-3, rtol=0.0
    )
