"""Rows 37 to 43: what a Lightning trainer can be asked for."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.optim import SGD

from callbacks import OverfitSanity
from musicnet.gate.checkpoints import fingerprints
from musicnet.gate.parameter_groups import backbone_and_head, named_groups
from musicnet.gate.step_gate import GateStuckError, StepGate
from musicnet.learning.data import SceneData
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceLaw


def weights(module: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# dynamo itself looks at .grad of tensors that have none
@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor is being accessed.*")
def test_row_37_a_compiled_network_has_the_same_norms_and_the_same_names(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    modules = [regressor(), regressor()]
    modules[1].head = torch.compile(modules[1].head, backend="aot_eager")
    modules[1].backbone.compile(backend="aot_eager")  # in place: no name changes
    for module in modules:
        trainer(callbacks=[reports]).fit(module, loader(3, poisoned=(1,)))
    norms = [report.norm for report in reports.reports]
    assert norms[3:] == pytest.approx(norms[:3], rel=1e-5, nan_ok=True)
    assert any("_orig_mod" in name for name, _ in modules[1].named_parameters())
    groups = backbone_and_head()
    assert fingerprints(modules[1], groups) == fingerprints(modules[0], groups)
    assert len(named_groups(modules[1], groups, 1.0)[1]["params"]) == 2


def test_row_38_two_optimizers_that_step_together_reach_max_steps_in_half_the_batches(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    class Two(type(regressor())):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return [SGD(self.backbone.parameters(), lr=0.1), SGD(self.head.parameters(), lr=0.1)]

    module = Two()
    run = trainer(max_epochs=-1, max_steps=10)
    run.fit(module, loader(8))
    assert (run.global_step, module.gate.steps, module.total_steps) == (10, 5, 5)


def test_row_38_two_players_of_a_gan_are_gated_one_by_one(
    regressor: Any, loader: Any, trainer: Any, reports: Any
) -> None:
    class Gan(type(regressor())):  # type: ignore[misc]
        """The backbone is pulled one way, the head the other."""

        def configure_optimizers(self) -> Any:
            return [SGD(part.parameters(), lr=0.1) for part in (self.backbone, self.head)]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for player, sign in zip(self.optimizers(), (1.0, -1.0), strict=True):
                with self.toggled_optimizer(player):
                    player.zero_grad()
                    poison = float("nan") if sign < 0 and batch_idx == 2 else 1.0
                    self.manual_backward(sign * poison * self.compute_loss(batch, batch_idx))
                    self.gate.attempt(self, player)

    module = Gan()
    run = trainer(max_epochs=-1, max_steps=10, callbacks=[reports])
    run.fit(module, loader(8))
    # after five and a half batches' steps: the sixth batch is finished
    assert run.global_step == module.gate.steps == 11
    vetoed = [report.attempt for report in reports.reports if not report.stepped]
    assert vetoed == [6]  # the head in the third batch; the backbone has stepped all the same
    assert len(reports.reports) == 12


def test_row_39_global_step_is_the_number_of_real_steps(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    module = regressor()
    run = trainer(max_epochs=3)
    run.fit(module, loader(6, poisoned=(0, 3, 4)))
    assert run.global_step == module.gate.steps == 9
    assert module.gate.skips == 9


def test_row_40_a_run_with_max_steps_that_only_vetoes_ends_with_the_reason(
    regressor: Any, loader: Any, trainer: Any
) -> None:
    module = regressor(norm=True, gate=StepGate(max_consecutive_skips=5))
    start = weights(module)
    with pytest.raises(GateStuckError, match="got 6 vetoes in a row"):
        trainer(max_epochs=-1, max_steps=10).fit(module, loader(4, poisoned=(0, 1, 2, 3)))
    torch.testing.assert_close(weights(module), start, rtol=0, atol=0)


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("poisoned", [(), (0, 1, 2)])
def test_row_41_a_fast_dev_run_ends_even_if_it_only_vetoes(
    regressor: Any, loader: Any, trainer: Any, batches: int, poisoned: tuple[int, ...]
) -> None:
    module = regressor()
    trainer(fast_dev_run=batches).fit(module, loader(5, poisoned=poisoned))
    assert module.gate.attempts == batches
    assert module.gate.steps == (0 if poisoned else batches)


class SeenBatches(Callback):
    """Every batch of training and of validation."""

    def __init__(self) -> None:
        self.trained: list[Any] = []
        self.validated: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, n: int):
        self.trained.append(batch)

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, n: int, loader: int = 0
    ) -> None:
        self.validated.append(batch)


def test_row_42_lightning_itself_validates_an_overfit_run_on_another_batch(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Any
) -> None:
    class Validating(type(regressor())):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", self.compute_loss(batch, batch_idx))

    seen, sanity = SeenBatches(), OverfitSanity(when="overfit_batches", min_loss_drop=0.5)
    run = trainer(
        overfit_batches=1, max_epochs=40, num_sanity_val_steps=-1, callbacks=[seen, sanity]
    )
    run.fit(Validating(), loader(3), loader(3, batch_size=5))
    assert all(torch.equal(batch[0], seen.trained[0][0]) for batch in seen.trained)
    assert seen.validated[0][0].shape != seen.trained[0][0].shape
    assert sanity.verdict is not None


def test_row_42_an_overfit_run_of_this_project_is_judged_on_the_batch_that_it_trains_on(
    regressor: Any, trainer: Any
) -> None:
    class OnScenes(type(regressor())):  # type: ignore[misc]
        def compute_loss(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch.observations[0].y.real.flatten()[:4]
            return self.head(self.backbone(x[None])).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", self.compute_loss(batch, batch_idx), batch_size=1)

    law = SourceLaw(n_max=2, elevation_deg=(0.0, 0.0), range_m=None)
    scene = Scene(ArrayGeometry(), law)
    seen, sanity = SeenBatches(), OverfitSanity(when="overfit_batches", min_loss_drop=0.5)
    run = trainer(
        overfit_batches=1,
        max_epochs=60,
        num_sanity_val_steps=-1,
        use_distributed_sampler=False,
        callbacks=[seen, sanity],
    )
    data = SceneData(scene, batch_size=32, batches_per_epoch=4, n_val=64, seed=0)
    run.fit(OnScenes(), datamodule=data)
    assert {id(batch) for batch in seen.trained} == {id(batch) for batch in seen.validated}
    assert len({id(batch) for batch in seen.trained}) == 1
    assert sanity.verdict.verdict == "pass"


@pytest.mark.parametrize("settings", [{"max_epochs": 0}, {"limit_train_batches": 0}])
def test_row_43_a_run_of_nothing_does_nothing(
    regressor: Any, loader: Any, trainer: Any, settings: Any
) -> None:
    module = regressor()
    start = weights(module)
    trainer(**settings).fit(module, loader(5))
    assert module.gate.attempts == 0
    torch.testing.assert_close(weights(module), start, rtol=0, atol=0)
