"""Names of Lightning and torch that are not promised to stay, and that the gate leans on."""

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, AdamW


def test_a_loss_scaler_keeps_what_it_found_per_optimizer() -> None:
    layer, scaler = nn.Linear(1, 1), GradScaler("cpu", init_scale=4.0)
    optimizer = SGD(layer.parameters(), lr=0.1)
    scaler.scale(layer(torch.ones(1, 1)).sum()).backward()
    scaler.unscale_(optimizer)
    found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
    assert [value.item() for value in found.values()] == [0.0]
    found[torch.device("cpu")] = torch.ones(())
    scaler.update()
    assert scaler.get_scale() == 2.0


def test_methods_of_a_loss_scaler_can_be_shadowed() -> None:
    scaler = GradScaler("cpu")
    scaler.__dict__["update"] = lambda: "shadow"
    assert scaler.update() == "shadow"


def test_a_fused_optimizer_says_that_it_unscales_by_itself() -> None:
    parameters = [nn.Parameter(torch.ones(1))]
    assert AdamW(parameters, fused=True)._step_supports_amp_scaling
    assert not getattr(AdamW(parameters), "_step_supports_amp_scaling", False)


def test_a_trainer_has_the_loops_and_the_plugin_that_the_gate_asks() -> None:
    scaler = GradScaler("cpu")
    trainer = Trainer(
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
    )
    assert trainer.precision_plugin.scaler is scaler
    assert trainer.fit_loop._skip_backward is False
    assert trainer.fit_loop._combined_loader is None
    assert trainer.fit_loop.epoch_loop.batch_progress.current.completed == 0
    assert trainer.ckpt_path is None
