"""A loader that begins inside an epoch, whatever number of workers it has."""

import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler

from musicnet.gate.resumable_loader import ResumableBatches, ResumableLoader


@pytest.mark.parametrize("n_workers", [0, 2])
def test_it_leaves_out_once_what_was_trained_on(n_workers: int) -> None:
    items = list(range(7))
    batches = ResumableBatches(SequentialSampler(items), batch_size=2, drop_last=False)
    loader = ResumableLoader(
        items, batch_sampler=batches, num_workers=n_workers, generator=torch.Generator()
    )
    loader.resume_at(epoch=0, done=2)
    assert [batch.tolist() for batch in loader] == [[4, 5], [6]]
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6]]
    assert len(loader) == 4
    assert loader.state_dict() == {}


def test_a_rest_that_nobody_went_through_is_not_left_out_of_the_next_pass() -> None:
    """A run that goes on with a validation has no batch left in its epoch."""
    batches = ResumableBatches(SequentialSampler([0, 1]), batch_size=1, drop_last=False)
    loader = ResumableLoader([0, 1], batch_sampler=batches, generator=torch.Generator())
    loader.resume_at(epoch=0, done=2)
    iter(loader)
    assert [batch.tolist() for batch in loader] == [[0], [1]]


def test_a_sampler_that_cannot_leave_out_is_refused() -> None:
    sampler = BatchSampler(SequentialSampler([1]), batch_size=1, drop_last=False)
    with pytest.raises(TypeError, match=r"got BatchSampler\. Use ResumableBatches"):
        ResumableLoader([1], batch_sampler=sampler).resume_at(0, 1)
