"""The trust head: what it may see and what it must not, and settings that it does not fit."""

from dataclasses import replace

import pytest
import torch

from musicnet.estimation.clues import N_CLUES, Clues
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import load_pretrained, save_pretrained
from musicnet.networks.trust import TrustHead

N_SOURCES = 4


@pytest.fixture
def head():
    """One with weights of its own everywhere, distance included."""
    torch.manual_seed(0)
    head = TrustHead(8).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head.requires_grad_(requires_grad=False)


def some_clues(seed=0, n_channels=2, n_scenes=5):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    present = torch.rand((n_channels, n_scenes, N_SOURCES), generator=generator) < 0.7
    present[..., 0] = True
    distance = normal(n_channels, n_scenes, N_SOURCES, N_SOURCES)
    of_sources = normal(n_channels, n_scenes, N_SOURCES, N_CLUES)
    return Clues(of_sources * present[..., None], distance + distance.mT, present)


def slow_trust(head, features, log_distance):
    """All sources of one scene, one after the other, with a loop for every sum."""
    n_sources = len(features)
    features = [head.embed(one) for one in features]
    for layer in head.layers:
        width = features[0].shape[-1] // 4
        asked = [layer.asked(layer.norm(one)) for one in features]
        after = []
        for i in range(n_sources):
            told = []
            for h in range(4):
                query = asked[i][h * width : (h + 1) * width]
                scores, values = [], []
                for j in range(n_sources):
                    key = asked[j][4 * width + h * width : 4 * width + (h + 1) * width]
                    score = sum(q * k for q, k in zip(query, key, strict=True)) / width**0.5
                    scores.append(score + layer.distance_weight[h] * log_distance[i, j])
                    values.append(asked[j][8 * width + h * width : 8 * width + (h + 1) * width])
                weights = [score.exp() for score in scores]
                total = sum(weights)
                told.append(sum(w / total * v for w, v in zip(weights, values, strict=True)))
            one = features[i] + layer.told(torch.cat(told))
            after.append(one + layer.step(one))
        features = after
    return torch.stack([head.out(one) for one in features]).unbind(-1)


def test_it_is_attention_over_the_sources_that_are_there(head):
    clues = some_clues()
    logits, log_widening = head.weigh(clues)
    assert torch.equal(head(clues), logits)
    for channel in range(2):
        for scene in range(5):
            there = clues.present[channel, scene]
            expected = slow_trust(
                head,
                clues.of_sources[channel, scene][there],
                clues.log_distance[channel, scene][there][:, there],
            )
            for ours, theirs in zip((logits, log_widening), expected, strict=True):
                torch.testing.assert_close(ours[channel, scene][there], theirs)


def test_trust_follows_its_source(head):
    clues, order = some_clues(), [2, 0, 3, 1]
    turned = Clues(
        clues.of_sources[:, :, order],
        clues.log_distance[:, :, order][..., order],
        clues.present[:, :, order],
    )
    ours, theirs = head(clues)[:, :, order], head(turned)
    torch.testing.assert_close(ours[turned.present], theirs[turned.present])


def test_what_empty_slots_hold_does_not_matter(head):
    clues = some_clues()
    assert not clues.present.all()
    of_sources = clues.of_sources.masked_fill(~clues.present[..., None], 1e3)
    apart = ~(clues.present[..., None] & clues.present[..., None, :])
    noisy = Clues(of_sources, clues.log_distance.masked_fill(apart, -7.0), clues.present)
    assert torch.equal(head(clues)[clues.present], head(noisy)[clues.present])


def test_a_scene_without_sources_harms_no_other(head):
    clues = some_clues()
    present = clues.present.clone()
    present[0, 1] = False
    logits = head(replace(clues, present=present))
    assert logits.isfinite().all()
    others = clues.present.clone()
    others[0, 1] = False
    assert torch.equal(logits[others], head(clues)[others])


def test_a_scene_alone_is_judged_as_in_a_batch(head):
    clues = some_clues()
    together = head(clues)
    for channel in range(2):
        for scene in range(5):
            here = slice(channel, channel + 1), slice(scene, scene + 1)
            one = Clues(clues.of_sources[here], clues.log_distance[here], clues.present[here])
            torch.testing.assert_close(head(one), together[here])


def test_distance_and_the_other_sources_are_seen(head):
    clues = some_clues()
    logits = head(clues)
    nearer = replace(clues, log_distance=clues.log_distance - 0.5 * torch.eye(N_SOURCES))
    company = clues.present.sum(-1) > 1
    assert (head(nearer) - logits)[company][:, 0].abs().min() > 1e-6
    of_sources = clues.of_sources.clone()
    of_sources[:, :, 1:] += 1.0
    assert (head(replace(clues, of_sources=of_sources)) - logits)[company][:, 0].abs().min() > 1e-6


def test_half_precision_judges_as_single_does():
    torch.manual_seed(0)
    head = TrustHead(8)
    clues = some_clues()
    clues = Clues(clues.of_sources.float(), clues.log_distance.float(), clues.present)
    exact = head(clues)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = head(clues)
    torch.testing.assert_close(coarse.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("n_channels", [0, 6, -4])
def test_features_that_no_heads_can_share_are_refused(n_channels):
    with pytest.raises(ValueError, match=f"multiple of 4.* got {n_channels}"):
        TrustHead(n_channels)
    if n_channels:
        with pytest.raises(ValueError, match=f"multiple of 4.* got {n_channels}"):
            NetworkSettings(n_trust=n_channels)


def test_what_cannot_be_judged_gets_no_head(line_scene):
    settings = NetworkSettings(n_channels=8, n_trust=8)
    with pytest.raises(ValueError, match=r"got n_trust=8 .* no surface. Set n_trust=0"):
        NeuralMusic(line_scene, settings)
    assert NeuralMusic(line_scene, replace(settings, n_trust=0)).head.trust is None


@pytest.mark.parametrize("change", [{"snr_of": "total"}, {"snr_db": (3.0, 3.0)}])
def test_a_law_without_bounds_for_each_source_gets_no_head(surface_scene, change):
    """Or training would stop at its first batch, and localising at its first scene in doubt."""
    scene = replace(surface_scene, sources=replace(surface_scene.sources, **change))
    with pytest.raises(ValueError, match=r"got snr_of="):
        NeuralMusic(scene, NetworkSettings(n_channels=8, n_trust=8))
    NeuralMusic(scene, NetworkSettings(n_channels=8))


def test_a_head_is_saved_and_read_with_its_network(tmp_path, surface_scene):
    settings = NetworkSettings(n_channels=4, dilations=(1,), n_v=5, n_u=7, n_rho=3, n_trust=8)
    network = NeuralMusic(surface_scene, settings)
    save_pretrained(tmp_path / "a", network, surface_scene, settings, {})
    read = load_pretrained(tmp_path / "a")
    assert read.settings == settings
    ours, theirs = network.head.trust.state_dict(), read.network.head.trust.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
