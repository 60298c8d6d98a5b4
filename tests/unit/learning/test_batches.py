"""The order of batches: a pure function of seed and epoch, shared out evenly over ranks."""

from collections import Counter

import pytest
import torch

from musicnet.learning.batches import EpochOrder
from musicnet.learning.data import SceneData


def order_in(epoch, n_batches=20, **options):
    order = EpochOrder(n_batches, **({"seed": 3} | options))
    order.set_epoch(epoch)
    return list(order)


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    torch.manual_seed(0)
    first = order_in(epoch=4)
    torch.manual_seed(1)
    assert order_in(epoch=4) == first
    assert order_in(epoch=5) != [(5, number) for _, number in first]
    assert order_in(epoch=4, seed=4) != first


def test_an_order_can_be_walked_again():
    order = EpochOrder(20, seed=0)
    assert list(order) == list(order)


def test_every_pass_visits_every_batch_in_an_order_of_its_own():
    numbers = [number for _, number in order_in(epoch=0, passes=3)]
    passes = [numbers[:20], numbers[20:40], numbers[40:]]
    assert [sorted(one) for one in passes] == [list(range(20))] * 3
    assert passes[0] != passes[1]


def test_without_shuffling_batches_come_in_order():
    assert order_in(epoch=2, n_batches=3, shuffle=False) == [(2, 0), (2, 1), (2, 2)]


def test_ranks_share_the_batches_and_step_equally_often():
    shares = [order_in(epoch=1, n_batches=7, rank=rank, world_size=3) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    assert len(EpochOrder(7, seed=3, world_size=3)) == 3
    taken = Counter(number for share in shares for _, number in share)
    assert set(taken) == set(range(7))
    assert sorted(taken.values()) == [1] * 5 + [2] * 2


def test_more_ranks_than_batches_still_step_equally_often():
    shares = [order_in(epoch=0, n_batches=1, rank=rank, world_size=3) for rank in range(3)]
    assert shares == [[(0, 0)]] * 3


def test_a_loader_can_be_walked_again_and_draws_nothing_from_the_global_generator(line_scene):
    data = SceneData(line_scene, n_scenes=96, batch_size=32, seed=0)
    loader = data.train_dataloader()
    before = torch.get_rng_state()
    assert list(loader) == list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(loader) == 3


def test_a_replaced_sampler_is_noticed(line_scene):
    loader = SceneData(line_scene, n_scenes=96, batch_size=32, seed=0).train_dataloader()
    with pytest.raises(TypeError, match="use_distributed_sampler=false"):
        loader.dataset[0]


def test_less_than_one_pass_is_refused(line_scene):
    with pytest.raises(ValueError, match="got 0"):
        SceneData(line_scene, n_scenes=96, passes_per_epoch=0)
