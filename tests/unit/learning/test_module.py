"""MusicNet in a real trainer: what it logs, freezes, repeats, saves and learns."""

import math
from collections import defaultdict

import lightning.pytorch as pl
import pytest
import torch

from musicnet.gate.averaging import Averaging
from musicnet.learning.batches import SceneBatch
from musicnet.learning.data import SceneData
from musicnet.learning.phases import Phase
from musicnet.scene.sources import Sources

CPU = torch.device("cpu")


class Diary(pl.Callback):
    """Notes which batches each stage saw, by epoch."""

    def __init__(self):
        self.trained = defaultdict(list)
        self.validated = defaultdict(list)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.trained[trainer.current_epoch].append(batch.observations[0].y.clone())

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated[trainer.current_epoch].append(batch.observations[0].y.clone())


def fit(trainer, module, data):
    trainer.fit(module, data)
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


def test_a_few_scenes_are_memorised(line_scene, make_module, make_trainer):
    data = SceneData(line_scene, n_scenes=32, batch_size=32, passes_per_epoch=60, seed=0)
    module, trainer = make_module(line_scene), make_trainer(max_epochs=1)
    before = trainer.validate(module, data, verbose=False)[0]["val/loss"]
    after = fit(trainer, module, data)["val/loss"]
    assert module.gate.steps == 60
    assert after < 0.5 * before


@pytest.mark.parametrize(
    ("name", "errors"),
    [
        ("surface_scene", {"recall", "position_median_m", "position_rmse_m"}),
        ("line_scene", {"azimuth_rmspe_deg"}),
    ],
)
def test_the_keys_that_are_logged(name, errors, request, make_module, make_trainer):
    scene = request.getfixturevalue(name)
    data = SceneData(scene, batches_per_epoch=2, batch_size=32, n_val=32, seed=0)
    module = make_module(scene, averaging=Averaging("ema"))
    metrics = fit(make_trainer(max_epochs=1, num_sanity_val_steps=0), module, data)
    judged = {"loss", "spectrum", "offsets", "resolved_fraction"} | errors
    assert set(metrics) == {
        *(f"val/{key}" for key in judged),
        *(f"val/averaged_{key}" for key in judged),
        "train/loss",
        "train/objective",
        "gate/step_real",
        "gate/vetoed_fraction",
    }
    assert all(map(math.isfinite, metrics.values()))


def test_the_logged_loss_is_that_of_the_final_phase(line_scene, make_module, make_trainer):
    final = {"spectrum": 1.0, "offsets": 0.5}
    phases = [Phase({"spectrum": 3.0}, epochs=1), Phase(final)]
    data = SceneData(line_scene, n_scenes=32, batch_size=32, seed=0)
    module, trainer = make_module(line_scene, phases=phases), make_trainer(max_epochs=1)
    first = trainer.validate(module, data, verbose=False)[0]
    metrics = fit(trainer, module, data)  # one step, whose loss is that of the first weights
    assert metrics["train/loss"] == pytest.approx(first["val/loss"], rel=1e-4)
    assert metrics["train/objective"] == pytest.approx(3.0 * first["val/spectrum"], rel=1e-4)
    assert first["val/loss"] == pytest.approx(
        first["val/spectrum"] + 0.5 * first["val/offsets"], rel=1e-5
    )


def test_a_frozen_group_stays_as_it_is_until_its_phase_is_over(
    line_scene, make_module, make_trainer
):
    weights = {"spectrum": 1.0, "offsets": 0.5}
    phases = [Phase(weights, epochs=1, frozen=["backbone"]), Phase(weights)]
    data = SceneData(line_scene, n_scenes=64, batch_size=32, seed=0)
    module = make_module(line_scene, phases=phases)
    states = {}

    class Snapshots(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            state = {name: p.detach().clone() for name, p in module.named_parameters()}
            states[module.phase_index] = state

    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    fit(make_trainer(max_epochs=2, callbacks=[Snapshots()]), module, data)
    for name, value in start.items():
        moved = not torch.equal(states[0][name], value)
        assert moved == name.startswith("network.head"), name
    assert any(not torch.equal(states[1][n], start[n]) for n in start if "backbone" in n)


@pytest.mark.parametrize("fixed", [True, False])
def test_overfit_batches_repeats_the_same_batches_and_validates_on_them(
    fixed, line_scene, make_module, make_trainer
):
    options = {"n_scenes": 128} if fixed else {"batches_per_epoch": 6, "n_val": 64}
    data = SceneData(line_scene, batch_size=32, seed=0, **options)
    diary = Diary()
    trainer = make_trainer(
        max_epochs=3, overfit_batches=2, callbacks=[diary], num_sanity_val_steps=-1
    )
    trainer.fit(make_module(line_scene), data)
    for epoch in range(3):
        assert len(diary.trained[epoch]) == 2
        for number, batch in enumerate(diary.trained[epoch]):
            assert torch.equal(batch, diary.trained[0][number])
    assert not torch.equal(*diary.trained[0])
    # epoch 0 holds the sanity check too
    assert [len(batches) for batches in diary.validated.values()] == [4, 2, 2]
    for batches in diary.validated.values():
        for number, batch in enumerate(batches):
            assert torch.equal(batch, diary.trained[0][number % 2])


def test_fresh_scenes_differ_in_every_epoch(line_scene, make_module, make_trainer):
    data = SceneData(line_scene, batches_per_epoch=2, batch_size=32, n_val=32, seed=0)
    diary = Diary()
    trainer = make_trainer(max_epochs=2, callbacks=[diary])
    trainer.fit(make_module(line_scene), data)
    seen = diary.trained[0] + diary.trained[1]
    for i, one in enumerate(seen):
        assert all(not torch.equal(one, other) for other in seen[:i])
    assert torch.equal(diary.validated[0][-1], diary.validated[1][-1])


def test_the_image_of_a_batch_that_comes_again_is_drawn_once(
    surface_scene, make_module, make_trainer
):
    data = SceneData(surface_scene, n_scenes=64, batch_size=32, seed=0)
    module = make_module(surface_scene)
    drawn = []
    module.network.image.register_forward_hook(lambda *_: drawn.append(1))
    fit(make_trainer(max_epochs=3), module, data)
    assert len(drawn) == 2


def test_the_same_seed_gives_the_same_weights(surface_scene, make_module, make_trainer):
    def trained():
        data = SceneData(surface_scene, batches_per_epoch=3, batch_size=32, n_val=32, seed=4)
        module = make_module(surface_scene)
        fit(make_trainer(max_epochs=2), module, data)
        return module.state_dict()

    one, other = trained(), trained()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_holds_plain_data_and_gives_the_weights_back(
    line_scene, make_module, make_trainer, tmp_path
):
    data = SceneData(line_scene, n_scenes=32, batch_size=32, seed=0)
    module, trainer = make_module(line_scene), make_trainer(max_epochs=1)
    fit(trainer, module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    # what can be drawn again, images and metrics, is no part of it
    assert {name.split(".")[1] for name in checkpoint["state_dict"]} == {"backbone", "head"}
    other = make_module(line_scene)
    other.load_state_dict(checkpoint["state_dict"])
    batch = data.transfer_batch_to_device(next(iter(data.val_dataloader())), CPU, 0)
    assert torch.equal(other(batch).logits, module(batch).logits)


def test_prediction_reads_as_many_sources_as_are_known_to_be_there(
    line_scene, make_module, make_trainer
):
    data = SceneData(line_scene, n_scenes=32, batch_size=32, n_val=32, seed=0)
    (sources,) = make_trainer().predict(make_module(line_scene), data)
    assert isinstance(sources, Sources)
    batch = data.transfer_batch_to_device(next(iter(data.predict_dataloader())), CPU, 0)
    assert torch.equal(sources.n_sources, batch.truth.n_sources)


def test_testing_logs_under_its_own_name(surface_scene, make_module, make_trainer):
    data = SceneData(surface_scene, n_scenes=32, batch_size=32, n_val=32, seed=0)
    (metrics,) = make_trainer().test(make_module(surface_scene), data, verbose=False)
    assert {"test/loss", "test/recall", "test/position_median_m"} < set(metrics)


def test_training_without_truth_is_refused(line_scene, make_module):
    data = SceneData(line_scene, n_scenes=32, batch_size=32, seed=0)
    known = data.transfer_batch_to_device(next(iter(data.val_dataloader())), CPU, 0)
    with pytest.raises(ValueError, match="got a batch without"):
        make_module(line_scene).compute_loss(SceneBatch(known.observations, None), 0)


def test_phases_that_name_no_group_are_refused(line_scene, make_module):
    with pytest.raises(ValueError, match=r"got \['neck'\]"):
        make_module(line_scene, phases=[Phase({"spectrum": 1.0}, frozen=["neck"])])
