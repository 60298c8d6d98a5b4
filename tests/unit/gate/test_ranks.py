"""Windows of several processes, over gloo on one machine; votes are rows 29 to 36."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import SGD
from torch.utils.data import DataLoader

from musicnet.gate.schedules import Schedule

# a fork, since a spawned child could not import this module under the name that pytest gave it
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

N_RANKS = 2


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
