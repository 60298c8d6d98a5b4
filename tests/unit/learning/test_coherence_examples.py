"""What the coherence head learns from: true labels, or what the true directions hold."""

import math
from dataclasses import replace

import pytest
import torch

from musicnet.estimation.problem import compress
from musicnet.learning.batches import SceneBatch
from musicnet.learning.coherence_examples import coherence_loss, inferred
from musicnet.learning.data import SceneData
from musicnet.learning.module import MusicNet
from musicnet.learning.phases import Phase
from musicnet.networks.coherence import CoherenceHead
from musicnet.networks.neural_music import NetworkSettings


def batch_of(scene, n_scenes=64):
    data = SceneData(scene, batch_size=n_scenes, scenes_per_channel=n_scenes, seed=0)
    return data.load(data.plan("train")[0], 0, torch.device("cpu"))


def test_labels_say_which_scenes_send_one_waveform(line_scene):
    law = replace(line_scene.sources, n_min=2, snr_db=(30.0, 30.0), min_separation_deg=20.0)
    scene = replace(line_scene, sources=law, coherent_share=0.5)
    batch = batch_of(scene)
    share = float(batch.is_coherent.double().mean())
    assert 0.3 < share < 0.7
    problem = compress(batch.observations[0], scene.region)
    seen = inferred(problem, batch.truth.parameters[None], batch.truth.resolved[None])[0]
    assert torch.equal(seen, batch.is_coherent)


@pytest.mark.parametrize(("share", "wanted"), [(0.0, False), (1.0, True)])
def test_all_or_none_are_coherent_where_the_law_says_so(line_scene, share, wanted):
    scene = replace(line_scene, coherent_share=share)
    batch = batch_of(scene)
    several = batch.truth.n_sources > 1
    assert bool((batch.is_coherent[several] == wanted).all())


def test_the_loss_is_the_cross_entropy_of_scenes_with_several_sources(line_scene):
    batch = batch_of(replace(line_scene, coherent_share=0.5))
    head = CoherenceHead(8, n_max=2, most_snapshots=20)
    torch.nn.init.constant_(head.log_odds.bias, 1.0)
    several = batch.truth.n_sources > 1
    share = float(batch.is_coherent[several].double().mean())
    wanted = share * math.log1p(math.exp(-1.0)) + (1.0 - share) * math.log1p(math.exp(1.0))
    loss = coherence_loss(head, batch, line_scene.region)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_a_recording_tells_by_its_true_directions(line_scene):
    scene = replace(line_scene, coherent_share=0.5)
    batch = batch_of(scene)
    untold = SceneBatch(batch.observations, batch.truth)
    head = CoherenceHead(8, n_max=2, most_snapshots=20)
    assert coherence_loss(head, untold, scene.region).item() == pytest.approx(math.log(2.0))


def test_a_head_learns_to_tell_coherent_scenes(line_scene):
    torch.manual_seed(0)
    law = replace(line_scene.sources, n_min=2, snr_db=(10.0, 10.0), min_separation_deg=15.0)
    scene = replace(line_scene, sources=law, coherent_share=0.5)
    settings = NetworkSettings(n_channels=4, dilations=(1,), n_u=9, n_coherence=16)
    module = MusicNet(
        scene,
        lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        settings,
        phases=[Phase({"coherence": 1.0})],
    )
    batch, fresh = batch_of(scene, 256), batch_of(scene, 257)
    optimizer = torch.optim.AdamW(module.network.head.coherence.parameters(), lr=1e-2)
    head = module.network.head.coherence
    for _ in range(60):
        optimizer.zero_grad()
        coherence_loss(head, batch, scene.region).backward()
        optimizer.step()
    assert coherence_loss(head, fresh, scene.region).item() < 0.1


def test_head_and_loss_term_need_each_other(line_scene):
    settings = NetworkSettings(n_channels=4, dilations=(1,), n_u=9, n_coherence=8)
    with pytest.raises(ValueError, match=r"got network\.n_coherence=8"):
        MusicNet(line_scene, torch.optim.AdamW, settings)
