"""Rows 29 to 36: two processes over gloo, launched once; each row reads what both of them saw.

The processes are forks, since a spawned child could not import this module under the name that
pytest gave it. Every scenario is a function of the rank that returns plain data; one that raises
leaves its traceback in place of them, so that it fails its own row alone.
"""

import hashlib
import json
import math
import os
import socket
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

from callbacks import ParameterDelta
from musicnet.gate.averaging import Averaging
from musicnet.gate.ranks import RankMismatchError
from musicnet.gate.schedules import Schedule
from musicnet.gate.step_gate import SpikeRule, StepGate

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

N_RANKS = 2
CONSTANT = Schedule(shape="constant", warmup_steps=0)
Seen = list[dict[str, Any]]


def digest(module: nn.Module) -> str:
    """Fingerprint of every bit of the weights."""
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def batches(n: int, seed: int, broken: tuple[int, ...] = ()) -> DataLoader[Any]:
    """Batches of four, different for each seed; the broken ones give nan."""
    x = torch.randn(n, 4, 4, generator=torch.Generator().manual_seed(seed))
    y = x.sum(-1, keepdim=True)
    for batch in broken:
        x[batch, :, 0] = 99
    return DataLoader(TensorDataset(x.flatten(0, 1), y.flatten(0, 1)), batch_size=4)


def fit(module: Any, data: DataLoader[Any], *callbacks: Callback, **settings: Any) -> Trainer:
    """Train as this rank of a DDP run; every rank has batches of its own."""
    usual: dict[str, Any] = {
        "accelerator": "cpu",
        "strategy": "ddp",
        "devices": N_RANKS,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    trainer = Trainer(callbacks=list(callbacks), **usual | settings)
    trainer.fit(module, data)
    return trainer


def told(module: Any, trainer: Trainer) -> dict[str, Any]:
    """What a rank knows of its run in the end."""
    return {
        "digest": digest(module),
        "steps": module.gate.steps,
        "global_step": trainer.global_step,
        "by_reason": dict(module.gate.by_reason),
    }


class OnRank(Callback):
    """Does something to the gradients of one rank, after they were exchanged."""

    def __init__(self, rank: int, batch: int, change: Callable[[Any], None]) -> None:
        self.rank, self.batch, self.change = rank, batch, change

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if (trainer.global_rank, trainer.fit_loop.batch_idx) == (self.rank, self.batch):
            self.change(pl_module)


def broken_batch(rank: int, regressor: Any) -> Any:
    module = regressor(norm=True)
    trainer = fit(module, batches(6, seed=rank, broken=(2,) if rank == 1 else ()))
    finite = all(buffer.isfinite().all() for buffer in module.buffers())
    return told(module, trainer) | {"finite_buffers": bool(finite)}


def broken_after_exchange(rank: int, regressor: Any) -> Any:
    def spoil(module: Any) -> None:
        module.head.weight.grad.fill_(math.nan)

    module = regressor()
    return told(module, fit(module, batches(6, seed=rank), OnRank(1, 2, spoil)))


def never_exchanged(rank: int, regressor: Any) -> Any:
    class Unsynced(type(regressor())):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> None:
            with self.trainer.strategy.block_backward_sync():
                super().training_step(batch, batch_idx)

    module = Unsynced(optimizer=partial(SGD, lr=0.1))
    try:
        fit(module, batches(6, seed=rank))
    except RankMismatchError as error:
        return {"error": str(error), "steps": module.gate.steps}
    return {"error": None}


def unused_parameters(rank: int, regressor: Any) -> Any:
    class Branching(type(regressor())):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone.add_module("side", nn.Linear(8, 8))

        def compute_loss(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            features = self.backbone[1](self.backbone[0](x))
            features = self.backbone.side(features) if batch_idx % 2 else features
            return (self.head(features) - y).square().mean()

    torch.manual_seed(0)
    module = Branching()
    trainer = fit(
        module, batches(6, seed=rank), strategy="ddp_find_unused_parameters_true", max_epochs=2
    )
    return told(module, trainer)


def fifty_steps(rank: int, regressor: Any) -> Any:
    """Windows, a spike rule, clipping, one veto, and targets with noise of each rank's own."""

    class Noisy(type(regressor())):  # type: ignore[misc]
        def compute_loss(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            noise = torch.randn(y.shape, generator=self.noise)
            noises.append(noise.sum().item())
            return super().compute_loss((x, y + 0.1 * noise), batch_idx)

    noises: list[float] = []
    module = Noisy(norm=False, accumulate=2, gate=StepGate(max_norm=0.5, spike=SpikeRule(after=8)))
    module.noise = torch.Generator().manual_seed(100 + rank)
    trainer = fit(module, batches(101, seed=rank, broken=(7,) if rank == 0 else ()))
    return told(module, trainer) | {
        "noise": noises[0],
        "history": module.gate.state_dict()["norm_history"],
    }


def no_gradient_on_one(rank: int, regressor: Any) -> Any:
    def forget(module: Any) -> None:
        for parameter in module.parameters():
            parameter.grad = None

    module = regressor()
    return told(module, fit(module, batches(6, seed=rank), OnRank(1, 2, forget)))


def single_attempts(rank: int, regressor: Any) -> Any:
    """One attempt each on gradients that are set by hand, with and without a loss scale."""
    cases: dict[str, tuple[tuple[float | None, float | None], float | None]] = {
        "both_fine": ((2.0, 2.0), None),
        "one_broken": ((2.0, math.nan), None),
        "one_empty": ((2.0, None), None),
        "one_zero": ((2.0, 0.0), None),
        "one_broken_scaled": ((8.0, math.inf), 4.0),
        "one_empty_scaled": ((8.0, None), 4.0),
        "one_empty_one_broken_scaled": ((None, math.inf), 4.0),
        "unsynced": ((2.0, 3.0), None),
    }
    seen: dict[str, Any] = {}
    for name, (gradients, scale) in cases.items():
        layer, gradient = nn.Linear(1, 1, bias=False), gradients[rank]
        layer.weight.grad = None if gradient is None else torch.full((1, 1), gradient)
        scaler = None if scale is None else GradScaler("cpu", init_scale=scale)
        if scaler is not None:
            scaler.scale(torch.ones(()))
        try:
            report = StepGate().attempt(layer, SGD(layer.parameters(), lr=0.1), scaler=scaler)
            seen[name] = [report.stepped, report.reason, report.scale_after]
        except RankMismatchError as error:
            seen[name] = str(error)
    return seen


def sharded_network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return net, torch.randn(2 * N_RANKS, 4, generator=torch.Generator().manual_seed(5))


def shards(rank: int, regressor: Any) -> Any:
    """FSDP2: five steps of a sharded network, the third one broken in a shard of rank 1."""
    net, x = sharded_network()
    mesh = init_device_mesh("cpu", (N_RANKS,))
    for layer in (net[0], net[2], net):
        fully_shard(layer, mesh=mesh)
    optimizer, gate = AdamW(net.parameters(), lr=0.01, foreach=True), StepGate(max_norm=0.5)
    norms, reasons, local = [], [], []
    for step in range(5):
        optimizer.zero_grad()
        net(x[2 * rank : 2 * rank + 2]).square().mean().backward()
        if step == 2 and rank == 1:
            net[2].weight.grad.to_local().fill_(math.nan)
        pieces = [p.grad.to_local().flatten() for p in net.parameters()]
        local.append(torch.cat(pieces).norm().item())
        report = gate.attempt(net, optimizer)
        norms.append(report.norm)
        reasons.append(report.reason)
    whole = [parameter.full_tensor().tolist() for parameter in net.parameters()]
    return {"norms": norms, "reasons": reasons, "local": local, "weights": whole}


def sharded_fit(rank: int, regressor: Any) -> Any:
    """The same fit with whole and with sharded weights, a scalar among them; one broken batch."""

    class Scaled(type(regressor())):  # type: ignore[misc]
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.head.register_parameter("size", nn.Parameter(torch.tensor(0.5)))
            self.head.register_forward_hook(lambda head, x, out: out * head.size)

    def sharded() -> ModelParallelStrategy:
        return ModelParallelStrategy(N_RANKS, 1, save_distributed_checkpoint=False)

    seen: dict[str, Any] = {}
    for name, strategy in (("whole", "ddp"), ("sharded", sharded())):
        torch.manual_seed(0)
        module, data = Scaled(accumulate=2), batches(9, seed=rank, broken=(2,) if rank else ())
        delta = ParameterDelta(every_n=1)
        trainer = fit(module, data, delta, strategy=strategy, max_epochs=2)
        state = trainer.strategy.lightning_module_state_dict()
        # rank 0 alone gets the gathered weights
        seen[name] = {key: value.tolist() for key, value in state.items()} if rank == 0 else None
        seen[f"{name}_gate"] = module.gate.state_dict()
    averaged = Scaled(averaging=Averaging())
    try:
        fit(averaged, batches(1, seed=rank), strategy=sharded())
    except ValueError as error:
        seen["refusal"] = str(error)
    return seen


SCENARIOS = (
    broken_batch,
    broken_after_exchange,
    never_exchanged,
    unused_parameters,
    fifty_steps,
    no_gradient_on_one,
    single_attempts,
    shards,
    sharded_fit,
)


def play(rank: int, folder: str, port: int, regressor: Any) -> None:
    """All scenarios on one rank; what was seen goes into a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(N_RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # one group for all of them: Lightning takes the one that is there
    dist.init_process_group("gloo", rank=rank, world_size=N_RANKS, timeout=timedelta(seconds=60))
    seen: dict[str, Any] = {}
    for scenario in SCENARIOS:
        try:
            seen[scenario.__name__] = scenario(rank, regressor)
        except Exception:
            seen[scenario.__name__] = {"traceback": traceback.format_exc()}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(seen), encoding="utf-8")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, regressor: Any) -> Callable[[str], Seen]:
    """Launch the two ranks once, and give what they saw in one scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(play, (str(folder), port, regressor), nprocs=N_RANKS, start_method="fork")
    files = [folder / f"rank{rank}.json" for rank in range(N_RANKS)]
    ranks = [json.loads(path.read_text(encoding="utf-8")) for path in files]

    def seen(scenario: str) -> Seen:
        of_each = [rank[scenario] for rank in ranks]
        faults = [one["traceback"] for one in of_each if "traceback" in one]
        assert not faults, faults[0]
        return of_each

    return seen


def assert_alike(seen: Seen, steps: int) -> None:
    """Both ranks have stepped as often, and hold the same weights to the last bit."""
    assert [rank["steps"] for rank in seen] == [steps] * N_RANKS
    assert [rank["global_step"] for rank in seen] == [steps] * N_RANKS
    assert len({rank["digest"] for rank in seen}) == 1


def test_row_29_a_nan_batch_on_one_rank_vetoes_on_both(both: Any) -> None:
    seen = both("broken_batch")
    assert_alike(seen, steps=5)
    assert [rank["by_reason"] for rank in seen] == [{"nonfinite": 1}] * 2
    assert all(rank["finite_buffers"] for rank in seen)


def test_row_30_a_nan_that_comes_after_the_exchange_vetoes_on_both(both: Any) -> None:
    seen = both("broken_after_exchange")
    assert_alike(seen, steps=5)
    assert [rank["by_reason"] for rank in seen] == [{"other_rank": 1}, {"nonfinite": 1}]


def test_row_31_gradients_that_were_never_exchanged_end_the_run_with_both_norms(both: Any) -> None:
    seen = both("never_exchanged")
    assert [rank["steps"] for rank in seen] == [0, 0]
    assert seen[0]["error"] == seen[1]["error"]
    assert (
        "every rank must hold the same gradient before a step: got norms from" in (seen[0]["error"])
    )
    assert ["got norms from 2 to 3" in rank["unsynced"] for rank in both("single_attempts")] == [
        True
    ] * 2


def test_row_32_parameters_that_some_batches_leave_out_are_no_mismatch(both: Any) -> None:
    seen = both("unused_parameters")
    assert_alike(seen, steps=12)
    assert [rank["by_reason"] for rank in seen] == [{}, {}]


def test_row_33_weights_are_bit_identical_after_fifty_steps_with_noise_of_their_own(
    both: Any,
) -> None:
    seen = both("fifty_steps")
    assert_alike(seen, steps=50)
    assert seen[0]["noise"] != seen[1]["noise"]
    assert len(seen[0]["history"]) == 50
    assert seen[0]["history"] == seen[1]["history"]


def test_row_34_a_rank_without_gradients_vetoes_on_both_and_scales_alike(both: Any) -> None:
    seen = both("no_gradient_on_one")
    assert_alike(seen, steps=5)
    assert [rank["by_reason"] for rank in seen] == [{"other_rank": 1}, {"no_grad": 1}]
    by_hand = both("single_attempts")
    assert [r["both_fine"] for r in by_hand] == [[True, "ok", None]] * 2
    for case, reason in (
        ("one_broken", "nonfinite"),
        ("one_empty", "no_grad"),
        ("one_zero", "zero"),
    ):
        assert [r[case][:2] for r in by_hand] == [[False, "other_rank"], [False, reason]]
    assert [r["one_broken_scaled"][2] for r in by_hand] == [2.0, 2.0]
    assert [r["one_empty_scaled"][2] for r in by_hand] == [4.0, 4.0]
    assert [r["one_empty_one_broken_scaled"][2] for r in by_hand] == [2.0, 2.0]


@pytest.mark.filterwarnings("ignore:.*Starting from v1.9.0.*")
def test_row_35_norm_and_weights_of_shards_are_those_of_one_process(both: Any) -> None:
    net, x = sharded_network()
    optimizer, gate = AdamW(net.parameters(), lr=0.01), StepGate(max_norm=0.5)
    norms = []
    for step in range(5):
        optimizer.zero_grad()
        if step == 2:
            norms.append(math.nan)
            continue
        net(x).square().mean().backward()
        norms.append(gate.attempt(net, optimizer).norm)
    seen = both("shards")
    assert seen[0]["norms"] == pytest.approx(norms, rel=1e-5, nan_ok=True)
    assert seen[1]["norms"] == pytest.approx(seen[0]["norms"], rel=0, nan_ok=True)
    assert not any(a == pytest.approx(b) for a, b in zip(seen[0]["local"], norms, strict=True))
    for rank in seen:
        for mine, theirs in zip(net.parameters(), rank["weights"], strict=True):
            torch.testing.assert_close(torch.tensor(theirs), mine.detach(), rtol=1e-5, atol=1e-6)


def test_row_36_a_nan_in_one_shard_vetoes_on_both(both: Any) -> None:
    seen = both("shards")
    assert seen[0]["reasons"] == seen[1]["reasons"]
    assert seen[0]["reasons"] == ["ok", "ok", "nonfinite", "ok", "ok"]
    assert math.isfinite(seen[0]["local"][2])
    assert seen[0]["weights"] == seen[1]["weights"]


def test_row_35_a_sharded_fit_ends_with_the_weights_of_a_whole_one(both: Any) -> None:
    seen = both("sharded_fit")
    whole, sharded = seen[0]["whole"], seen[0]["sharded"]
    assert sorted(whole) == sorted(sharded)
    for name, values in whole.items():
        torch.testing.assert_close(torch.tensor(sharded[name]), torch.tensor(values))
    for rank in seen:
        assert rank["sharded_gate"] == rank["whole_gate"]
        assert (rank["whole_gate"]["steps"], rank["whole_gate"]["skips"]) == (8, 2)
        assert "got averaging in a sharded run" in rank["refusal"]
