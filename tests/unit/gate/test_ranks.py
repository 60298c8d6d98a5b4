"""The vote between processes, over gloo on one machine."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Callback
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim import SGD
from torch.utils.data import DataLoader

from musicnet.gate.gradients import exact_norm
from musicnet.gate.ranks import RankMismatchError
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import StepGate

# a fork, since a spawned child could not import this module under the name that pytest gave it
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

N_RANKS = 2


def attempts_of_one_rank(rank: int, folder: str) -> None:
    """Play every case on this rank and write down what its gate did."""
    store = dist.FileStore(f"{folder}/store", N_RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=N_RANKS)
    seen: dict[str, Any] = {}
    cases = {
        "both_fine": ((2.0, 2.0), None),
        "one_broken": ((2.0, torch.nan), None),
        "one_empty": ((2.0, None), None),
        "one_broken_scaled": ((8.0, torch.inf), 4.0),
        "one_empty_one_broken_scaled": ((None, torch.inf), 4.0),
        "unsynced": ((2.0, 3.0), None),
    }
    for name, (gradients, scale) in cases.items():
        layer = nn.Linear(1, 1, bias=False)
        gradient = gradients[rank]
        layer.weight.grad = None if gradient is None else torch.full((1, 1), gradient)
        scaler = None if scale is None else GradScaler("cpu", init_scale=scale)
        if scaler is not None:
            scaler.scale(torch.ones(()))
        try:
            report = StepGate().attempt(layer, SGD(layer.parameters(), lr=0.1), scaler=scaler)
            seen[name] = (report.stepped, report.reason, report.scale_after)
        except RankMismatchError as error:
            seen[name] = str(error)
    mesh = init_device_mesh("cpu", (N_RANKS,))
    shards = [
        distribute_tensor(torch.tensor(g), mesh, [Shard(0)]) for g in ([3.0, 4.0], [0.0, 12.0])
    ]
    seen["sharded_norm"] = exact_norm(shards)
    torch.save(seen, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.start_processes(attempts_of_one_rank, (str(folder),), nprocs=N_RANKS, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(N_RANKS)]


def test_equal_gradients_step_on_every_rank(seen: Any) -> None:
    assert [rank["both_fine"] for rank in seen] == [(True, "ok", None)] * 2


def test_one_broken_rank_holds_all_back(seen: Any) -> None:
    assert [r["one_broken"][:2] for r in seen] == [(False, "other_rank"), (False, "nonfinite")]
    assert [r["one_empty"][:2] for r in seen] == [(False, "other_rank"), (False, "no_grad")]


def test_the_loss_scale_falls_on_every_rank_alike(seen: Any) -> None:
    assert [rank["one_broken_scaled"][2] for rank in seen] == [2.0, 2.0]
    assert [rank["one_empty_one_broken_scaled"][2] for rank in seen] == [2.0, 2.0]


def test_the_norm_of_sharded_gradients_is_that_of_the_whole(seen: Any) -> None:
    assert [rank["sharded_norm"] for rank in seen] == [13.0, 13.0]


def test_gradients_that_were_never_synchronised_end_the_run(seen: Any) -> None:
    assert all("got norms from 2 to 3" in rank["unsynced"] for rank in seen)


@pytest.mark.filterwarnings("ignore:.*Starting from v1.9.0.*")
def test_accumulated_windows_leave_the_same_weights_on_every_rank(
    regressor: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    """The weights of two ranks are those of one process that sees the batches of both."""

    class Saver(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            torch.save(pl_module.state_dict(), tmp_path / f"rank{trainer.global_rank}.pt")

    settings: dict[str, Any] = {
        "optimizer": partial(SGD, lr=0.1),
        "schedule": Schedule(shape="constant", warmup_steps=0),
    }
    # one window of all scenes per epoch, since Lightning deals them to the ranks in random order
    data = loader(4)
    two = trainer(strategy="ddp_fork", devices=N_RANKS, callbacks=[Saver()], max_epochs=3)
    two.fit(regressor(accumulate=2, **settings), data)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(N_RANKS)]
    torch.testing.assert_close(ranks[0], ranks[1], rtol=0, atol=0)

    one = regressor(**settings)
    trainer(max_epochs=3).fit(one, DataLoader(data.dataset, batch_size=16))
    torch.testing.assert_close(ranks[0], one.state_dict())
