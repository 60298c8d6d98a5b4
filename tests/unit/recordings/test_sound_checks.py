"""What a pass over all samples says of sound."""

import math
from pathlib import Path

import numpy as np
import pytest

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.audio_files import SoundFile
from musicnet.recordings.sound_checks import survey, survey_seconds

RATE, WINDOW, N_WINDOWS, N_CHANNELS = 8000.0, 2000, 4, 5
SECOND = slice(WINDOW, 2 * WINDOW)


def noise(scale=0.1):
    return scale * np.random.default_rng(0).standard_normal((N_WINDOWS * WINDOW, N_CHANNELS))


def looked_at(samples, *, window=WINDOW, subtype="FLOAT"):
    n_samples, n_channels = samples.shape
    file = SoundFile(
        Path("a.wav"), RATE, n_samples, n_channels, subtype, lambda first, last: samples[first:last]
    )
    return survey(file, window, n_samples // window, to_end=True)


def spoilt(where, value):
    samples = noise()
    samples[where] = value
    return samples


def copied(where, one, other):
    samples = noise()
    samples[where, other] = samples[where, one]
    return samples


def test_nothing_is_wrong_with_noise():
    found = looked_at(noise())
    assert (found.blame, found.faults, found.silent, found.warning) == (None, {}, frozenset(), None)
    found.refuse("a.wav", N_WINDOWS)


@pytest.mark.parametrize(
    ("samples", "blame"),
    [
        (0.0 * noise(), "silent throughout"),
        (np.ones_like(noise()), "silent throughout"),
        (noise(1e-20), "too faint"),
        (spoilt(np.s_[:, 3], 0.0), "channel 3 is dead (one value only) throughout"),
        (spoilt(np.s_[:, 3], -0.1), "channel 3 is dead (one value only) throughout"),
        (spoilt(np.s_[:, 1:3], 0.0), "channels 1, 2 are dead (one value only) throughout"),
        (copied(slice(None), 1, 4), "channels 1 and 4 are identical throughout"),
    ],
)
def test_a_file_that_is_wrong_throughout_is_refused_as_a_whole(samples, blame):
    found = looked_at(samples)
    assert blame in found.blame
    with pytest.raises(RecordingError, match=r"^a.wav: .*[^ ]\.$"):
        found.refuse("a.wav", N_WINDOWS)


@pytest.mark.parametrize(
    ("samples", "fault"),
    [
        (spoilt((WINDOW + 7, 2), np.nan), f"channel 2 is not finite at sample {WINDOW + 7}, in"),
        (spoilt((WINDOW + 7, 2), -np.inf), f"channel 2 is not finite at sample {WINDOW + 7}, in"),
        (spoilt((WINDOW + 7, 2), 1e30), f"channel 2 is 1e+30 at sample {WINDOW + 7}, above 1e+15"),
        (spoilt((SECOND, 3), 0.0), "channel 3 is dead (one value only) in window 1 (from 0.25 s)"),
        (copied(SECOND, 1, 4), "channels 1 and 4 are identical in window 1 (from 0.25 s)"),
    ],
)
def test_a_bad_window_is_named_alone(samples, fault):
    found = looked_at(samples)
    assert list(found.faults) == [1]
    assert fault in found.faults[1]
    assert (found.blame, found.silent) == (None, frozenset())
    found.refuse("a.wav", N_WINDOWS)


@pytest.mark.parametrize("value", [0.0, 0.05])
@pytest.mark.parametrize(("first", "n_samples"), [(0, 800), (1200, 799), (1997, 1500), (3100, 800)])
def test_a_microphone_that_stands_still_for_a_while_spoils_its_windows(value, first, n_samples):
    # a window is a quarter of a second here, of which a quarter is shorter than a tenth of one
    samples = spoilt(np.s_[first : first + n_samples, 3], value)
    found = looked_at(samples)
    parts = {w: min(first + n_samples, (w + 1) * WINDOW) - max(first, w * WINDOW) for w in range(4)}
    assert list(found.faults) == [w for w, n in parts.items() if n >= WINDOW // 4]
    longest = max(parts.values())
    assert any(f"channel 3 holds one value for {longest} samples" in f for f in found.dropouts)
    assert len(found.dropouts) == len(found.faults)


def test_runs_that_are_short_or_shared_are_no_standstill():
    assert looked_at(spoilt(np.s_[100:598, 3], 0.0)).faults == {}
    gated = noise()
    for channel in range(N_CHANNELS):  # a wave that ends reaches each microphone at its time
        gated[500 + 9 * channel : 1500 + 9 * channel, channel] = 0.0
    assert looked_at(gated).faults == {}
    coarse = np.round(noise() * 2.0**7) / 2.0**7
    coarse[300:1700] = np.round(coarse[300:1700] * 0.1 * 2.0**7) / 2.0**7  # a step or two
    coarse[300:1700, 2] = 0.0
    assert looked_at(coarse, subtype="PCM_U8").faults == {}
    gated[600:1400, 1] += 0.1 * noise()[600:1400, 0]  # one hears what others do not
    assert "such channels" in looked_at(gated).faults[0]


@pytest.mark.parametrize(("rate", "n_samples", "where"), [(1.0, 4000, 14), (8000.0, 23200, 2)])
def test_a_file_is_looked_at_by_windows_that_tell_something(rate, n_samples, where):
    samples = 0.1 * np.random.default_rng(1).standard_normal((n_samples, 2))
    samples[-1, 1] = np.nan
    file = SoundFile(Path("a.wav"), rate, n_samples, 2, "FLOAT", lambda a, b: samples[a:b])
    found, n_windows = survey_seconds(file)
    assert (n_windows, list(found.faults), found.blame) == (where + 1, [where], None)
    assert f"in window {where} (from {where * max(256 / rate, 1.0):g} s)" in found.faults[where]


def test_a_blow_in_one_window_hushes_no_other():
    samples = spoilt((SECOND, 3), 0.0)
    samples[9, 0] = 1e30
    found = looked_at(samples)
    assert list(found.faults) == [0, 1]
    assert found.silent == frozenset()


def test_a_silent_window_is_no_fault():
    found = looked_at(spoilt(SECOND, 0.0))
    assert (found.blame, found.faults, found.silent) == (None, {}, {1})


def test_where_next_to_nothing_is_heard_channels_may_be_alike():
    samples = spoilt(SECOND, 0.0)
    samples[WINDOW + 9, 0] = 2.0**-15  # a lone step of one microphone
    assert looked_at(samples).silent == {1}
    assert looked_at(samples).faults == {}


def test_a_microphone_is_dead_throughout_though_windows_are_silent_or_bad():
    samples = spoilt(np.s_[:, 3], 0.0)
    samples[SECOND] = 0.0
    samples[2 * WINDOW + 1, 0] = np.nan
    found = looked_at(samples)
    assert "channel 3 is dead" in found.blame


def test_no_window_is_left_where_each_is_silent_or_bad():
    samples = spoilt(SECOND, 0.0)
    samples[[0, 2 * WINDOW, 3 * WINDOW], 1] = np.nan
    with pytest.raises(RecordingError, match=r"3 of 4 windows are bad, none is good"):
        looked_at(samples).refuse("a.wav", N_WINDOWS)


def test_levels_are_those_of_the_waves_without_their_offset():
    wave = np.sin(2 * math.pi * 100 * np.arange(WINDOW * N_WINDOWS) / RATE)
    samples = np.stack([0.5 * wave, 0.1 * wave + 0.3], axis=1)
    found = looked_at(samples)
    assert found.level == pytest.approx(np.array([0.5, 0.1]) / math.sqrt(2))
    assert found.peak == pytest.approx([0.5, 0.4])


def test_a_constant_has_no_level():
    assert looked_at(spoilt(np.s_[:, 3], 0.1)).level[3] == 0.0


def test_levels_do_not_depend_on_the_windows():
    one, other = looked_at(noise()), looked_at(noise(), window=313)
    assert one.level == pytest.approx(other.level)
    assert np.array_equal(one.peak, other.peak)


def test_a_rest_belongs_to_the_last_window():
    samples = np.concatenate([noise(), np.zeros((3, N_CHANNELS))])
    samples[-1, 4] = np.nan
    assert list(looked_at(samples).faults) == [N_WINDOWS - 1]
    samples[-1, 4] = 0.0
    assert looked_at(samples).faults == {}


def test_what_is_wrong_throughout_is_not_said_of_each_window():
    samples = spoilt(np.s_[:, 3], 0.0)
    samples[SECOND, 0] = samples[SECOND, 2]
    samples[5, 1] = np.nan
    found = looked_at(samples)
    assert found.blame.startswith("channel 3 is dead (one value only) throughout")
    assert [found.faults[window].partition(" in")[0] for window in (0, 1)] == [
        "channel 1 is not finite at sample 5,",
        "channels 0 and 2 are identical",
    ]
    assert list(found.faults) == [0, 1]


def humming(scale):
    """Slow, so that neighbouring samples are alike."""
    seconds = np.arange(WINDOW * N_WINDOWS) / RATE
    low = sum(np.sin(2 * math.pi * f * seconds + f) for f in (61.0, 97.3, 150.1, 333.7))
    return scale * low[:, None] * np.array([1.0, 0.9])


def whole(samples, step):
    return np.round(samples / step) * step


def test_clipped_channels_are_counted_as_by_hand():
    samples = humming(0.5)
    samples[:, 1] = np.clip(2.0 * samples[:, 1], -0.6, 0.6)
    found = looked_at(whole(samples, 2.0**-15), subtype="PCM_16")
    top = np.isclose(np.abs(samples[:, 1]), 0.6)
    alike = sum(top[i - 1] & top[i] & top[i + 1] for i in range(1, len(top) - 1))
    assert found.clipped[0] == 0.0
    # a row of samples across two windows is counted as two
    assert found.clipped[1] == pytest.approx(alike / len(top), abs=2 * N_WINDOWS / len(top))
    assert "channel 1 is clipped" in found.warning
    assert (found.blame, found.faults) == (None, {})


@pytest.mark.parametrize(
    ("samples", "subtype"),
    [
        (whole(humming(0.25), 2.0**-15), "PCM_16"),
        (whole(humming(2.0**-7), 2.0**-7), "PCM_U8"),  # steps so coarse that many are alike
        (whole(humming(2.0**-14), 2.0**-15), "PCM_24"),
        (np.tile(np.array([[0.0, 1.0, 0.0, -1.0]]).T, (WINDOW, 2)), "FLOAT"),  # a tone
    ],
)
def test_what_is_not_clipped_is_not_said_to_be(samples, subtype):
    samples = samples * np.array([1.0, 0.97])
    assert looked_at(samples, subtype=subtype).warning is None
