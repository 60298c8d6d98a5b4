"""Intervals of figures over channels that are drawn again."""

import math

import pytest
import torch

from musicnet.metrics.intervals import channel_interval


def test_a_constant_has_itself_as_interval():
    assert channel_interval(lambda _: 0.25, n_channels=7) == (0.25, 0.25)


def test_whole_channels_are_drawn_again():
    """Scenes of a channel agree here, so that only the number of good channels can vary."""
    good = torch.tensor([True, False, False, False])[:, None].expand(4, 1000)
    shares = set()

    def share(channels):
        value = good[channels].double().mean().item()
        shares.add(value)
        return value

    low, high = channel_interval(share, n_channels=4)
    assert shares <= {0.0, 0.25, 0.5, 0.75, 1.0}
    # binomial of four draws at a quarter: 2.5 % and 97.5 %
    assert (low, high) == (0.0, 0.75)


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = channel_interval(lambda c: values[c].mean().item(), 400, n_draws=2000)
    error = 1.96 * values.std().item() / 20.0
    assert low == pytest.approx(values.mean().item() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean().item() + error, abs=0.1 * error)


def test_methods_that_heard_the_same_channels_are_paired():
    first, second = torch.rand(9, 2).unbind(1)
    drawn = [[], []]
    for seen, values in zip(drawn, (first, second), strict=True):
        channel_interval(lambda c, s=seen, v=values: s.append(c.tolist()) or v[c].sum().item(), 9)
    assert drawn[0] == drawn[1]


def test_draws_without_a_figure_do_not_count_and_infinity_does():
    assert all(map(math.isnan, channel_interval(lambda _: math.nan, 3)))
    low, high = channel_interval(lambda c: 1.0 if c[0] else math.inf, n_channels=2)
    assert (low, high) == (1.0, math.inf)


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"n_channels": 0}, "n_channels=0"),
        ({"n_channels": 2, "n_draws": 0}, "n_draws=0"),
        ({"n_channels": 2, "level": 1.0}, r"level=1\.0"),
    ],
)
def test_what_has_no_interval_is_refused(options, got):
    with pytest.raises(ValueError, match=got):
        channel_interval(lambda _: 0.0, **options)
