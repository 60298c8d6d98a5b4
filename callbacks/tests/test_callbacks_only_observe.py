"""With and without the callbacks a run is the same to the last bit."""

import logging
from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from callbacks import (
    GradientNorm,
    LearningRates,
    OverfitSanity,
    ParameterDelta,
    RunDoctor,
    RunLog,
)


def all_callbacks() -> list[Callback]:
    return [
        GradientNorm(every_n=2),
        ParameterDelta(every_n=1),
        LearningRates(every_n=3),
        OverfitSanity(),
        RunLog(every_n=1),
        RunDoctor(),
    ]


def state_of(trainer: Trainer) -> list[torch.Tensor]:
    (optimizer,) = trainer.optimizers
    states = [value for state in optimizer.state.values() for value in state.values()]
    random = [torch.get_rng_state().float()]
    return [*trainer.lightning_module.state_dict().values(), *states, *random]


@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_a_run_is_the_same_to_the_last_bit(kind: str, request, fit) -> None:
    def run(*callbacks: Callback) -> list[torch.Tensor]:
        module = request.getfixturevalue(kind)()
        module.backbone = torch.nn.Sequential(module.backbone, torch.nn.Dropout(0.3))
        return state_of(fit(module, *callbacks, max_epochs=3))

    alone, watched = run(), run(*all_callbacks())
    assert len(alone) == len(watched)
    for one, other in zip(alone, watched, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_vetoed_batch_is_the_same_to_the_last_bit(gated: Callable, fit) -> None:
    alone = state_of(fit(gated(poisoned={0, 3}), max_epochs=2))
    watched = state_of(fit(gated(poisoned={0, 3}), *all_callbacks(), max_epochs=2))
    for one, other in zip(alone, watched, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_without_loggers_nothing_is_printed(gated, fit, capsys) -> None:
    judge = OverfitSanity(min_loss_drop=0.1)
    fit(gated(), GradientNorm(), ParameterDelta(), LearningRates(), judge, max_epochs=2)
    printed = capsys.readouterr()
    for begin in ("[GRAD]", "[STEP]", "[LR]", "Verdict"):
        assert begin not in printed.out + printed.err


def test_in_validation_alone_they_do_nothing(gated, fit, loader, tmp_path) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=all_callbacks(),
    )
    trainer.validate(gated(), loader, verbose=False)
    assert not list(tmp_path.iterdir())


def test_their_order_on_the_console_is_that_of_a_step(gated, fit, caplog) -> None:
    caplog.set_level(logging.INFO, logger="callbacks")
    callbacks = [LearningRates(), GradientNorm(), ParameterDelta(), RunLog()]
    fit(gated(), *callbacks)
    firsts = [text.split()[0] for text in caplog.messages if text.startswith(("[", "Epoch"))]
    assert firsts == ["[LR]", "[GRAD]", "[STEP]", "Epoch"]
