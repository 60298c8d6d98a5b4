"""The noise power that recordings do not say, against scenes in which it is one."""

import pytest
import torch

from musicnet.recordings.noise_power import noise_power_of
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface

N_SCENES = 400


def estimates(n_sensors, n_snapshots, n_sources, coherent_share=0.0, seed=0):
    law = SourceLaw(n_sources, n_sources, elevation_deg=(0.0, 0.0), range_m=None)
    scene = Scene(
        ArrayGeometry(n_sensors),
        law,
        n_snapshots=n_snapshots,
        symbols="data",
        coherent_share=coherent_share,
    )
    heard, _ = draw_block(scene, block_generator(seed, "noise", 0, 0), N_SCENES)
    return noise_power_of(heard.y, heard.operator)


@pytest.mark.parametrize(("n_sensors", "n_snapshots"), [(8, 50), (15, 50), (8, 12), (15, 10)])
@pytest.mark.parametrize("n_sources", [1, 2, 3])
@pytest.mark.parametrize("coherent_share", [0.0, 1.0], ids=["apart", "coherent"])
def test_the_estimate_has_almost_no_bias(n_sensors, n_snapshots, n_sources, coherent_share):
    found = estimates(n_sensors, n_snapshots, n_sources, coherent_share)
    assert found.mean().item() == pytest.approx(1.0, abs=0.05)
    assert found.median().item() == pytest.approx(1.0, abs=0.05)


def test_single_scenes_are_about_as_good_as_their_numbers_allow():
    found = estimates(n_sensors=15, n_snapshots=50, n_sources=3)
    # the mean of (15 - 3)(50 - 3) exponential numbers varies by 4 %
    assert (found - 1.0).abs().quantile(0.9) < 0.1


def test_noise_alone_is_not_taken_for_sources():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(N_SCENES, 20, 8, generator=generator, dtype=torch.complex64)
    found = noise_power_of(y, torch.eye(8, dtype=y.dtype)[None])
    whole = torch.isclose(found, y.abs().square().mean((-2, -1)))
    assert whole.float().mean() > 0.95


def test_loud_sources_leave_the_estimate_alone():
    heard_scene = Scene(
        ArrayGeometry(8),
        SourceLaw(2, 2, elevation_deg=(0.0, 0.0), range_m=None, snr_db=(60.0, 60.0)),
        n_snapshots=50,
        symbols="data",
    )
    heard, _ = draw_block(heard_scene, block_generator(1, "noise", 0, 0), N_SCENES)
    assert noise_power_of(heard.y, heard.operator).mean().item() == pytest.approx(1.0, abs=0.03)


def test_the_same_operator_said_for_every_block_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(5, 20, 8, generator=generator, dtype=torch.complex64)
    one = torch.eye(8, dtype=y.dtype)[None]
    torch.testing.assert_close(noise_power_of(y, one.expand(20, 8, 8)), noise_power_of(y, one))


@pytest.mark.parametrize("n_operator_blocks", [1, 3])
def test_rows_that_no_field_explains_are_noise(n_operator_blocks):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.complex64)

    operator, field = normal(n_operator_blocks, 40, 10), 30 * normal(N_SCENES, 3, 10)
    y = (operator @ field[..., None])[..., 0] + 2.5**0.5 * normal(N_SCENES, 3, 40)
    found = noise_power_of(y, operator)
    assert found.mean().item() == pytest.approx(2.5, rel=0.02)
    assert found.std().item() == pytest.approx(2.5 / (3 * 30) ** 0.5, rel=0.15)


def test_an_operator_that_changes_hides_the_noise_and_is_refused():
    scene = Scene(ArrayGeometry(4, 4), SourceLaw(), surface=Surface(6, 16), symbols="data")
    heard, _ = draw_block(scene, block_generator(0, "noise", 0, 0), 3)
    with pytest.raises(ValueError, match="got 6 rows for 16 elements"):
        noise_power_of(heard.y, heard.operator)
